"""`m7b eval`: the paper's table, and any task of lm-eval."""

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m7b.bench.formats import Table, align, markdown
from m7b.commands.shared.expansion import expand_options
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import (
    ChatTemplateOption,
    JsonOption,
    ModelOption,
    OfflineOption,
    VariantOption,
    count,
)
from m7b.errors import SomeFailed, UsageError
from m7b.generation import EngineOptions
from m7b.models import Model, ModelChoice
from m7b.network import is_web_address
from m7b.render import Output, Status, note

if TYPE_CHECKING:
    from m7b.harness.evaluation import Outcome


@expand_options
def eval(
    *,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[paper|TASK]...",
            help="paper, tasks of lm-eval, or files that describe them; paper if not given.",
            show_default=False,
        ),
    ] = None,
    variant: VariantOption = None,
    model: ModelOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=count, metavar="N", help="Ask only the first N questions of a task.", show_default=False
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            parser=count,
            metavar="N",
            help="Questions under way at once; as many as pay and fit if not given.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Take questions from this folder, not from the hub.", show_default=False
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    chat_template: ChatTemplateOption = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let programs run that the model writes.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Who rates mt_bench: an address that speaks OpenAI's protocol, as http://localhost:8000/v1.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str,
        typer.Option(metavar="NAME", help="With --judge: the model to ask for; OPENAI_API_KEY is the key."),
    ] = "gpt-4",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Keep answers and results here.", show_default=False
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With -o: go on where it stopped.")] = False,
    lists: Annotated[
        bool, typer.Option("--list", help="Show the paper's tasks, their settings and figures, and stop.")
    ] = False,
    as_json: JsonOption = False,
    engine: EngineOptions,
    offline: OfflineOption = False,
) -> None:
    """Evaluate a model on the tasks of its paper, or others of lm-eval, which `m7b[eval]` brings.

    Examples:

      m7b eval --list

      m7b eval arc_easy piqa --data questions --limit 100 -o results
    """
    from m7b.harness import mt_bench, require_lm_eval

    if lists:
        Output().write(align(_tabulate_paper()))
        return
    require_lm_eval()
    if resume and not output:
        raise UsageError("--resume goes on in the folder of -o", hint="name it")
    if data and not data.is_dir():
        raise UsageError(f"{data} is no folder")
    if offline or os.environ.get("M7B_OFFLINE") == "1":
        os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    from m7b.harness.answers import Answers
    from m7b.harness.evaluation import Figure, Folder, check_tasks, open_tasks, run_tasks, tabulate
    from m7b.harness.model import HarnessModel

    manager = open_tasks()
    names = check_tasks(tasks or [], manager, allows_code=allow_code, has_judge=bool(judge))
    if not allow_code and "paper" in (tasks or ["paper"]):
        note("humaneval and mbpp run programs that the model writes and are left out; --allow-code lets them")
    if judge and not is_web_address(judge):
        raise UsageError(f"--judge {judge!r} is no address", hint="it looks like http://localhost:8000/v1")
    rater = mt_bench.Judge(judge, judge_model, os.environ.get("OPENAI_API_KEY", "")) if judge else None
    loaded = load_model(ModelChoice(variant, model), engine, chat_template=chat_template)
    about = _describe(loaded, engine, chat)
    status, folder = Status(), Folder(output) if output else None
    outcomes: list[Outcome] = []
    with closing(Answers(folder.answers if folder else None, about, resumes=resume)) as answers:
        asked = HarnessModel(
            loaded,
            parallel=parallel,
            answers=answers,
            report=lambda what, done, total: status.show(f"{what}: {done:,} of {total:,}"),
        )
        try:
            for outcome in run_tasks(
                asked,
                manager,
                names,
                folder,
                rater,
                limit=limit,
                data=data,
                chats=chat,
                allows_code=allow_code,
            ):
                outcomes.append(outcome)
                if folder:
                    folder.keep_results(about, outcomes, markdown(tabulate(outcomes)))
        finally:
            status.clear()
    if as_json:
        Output().write_json({"about": about, "results": [each.as_json() for each in outcomes]})
    else:
        Output().write(align(tabulate(outcomes)))
    failures = [each for each in outcomes if not isinstance(each, Figure)]
    for failure in failures:
        note(f"{failure.task}: {failure.reason}")
    if failures:
        raise SomeFailed(f"{len(failures)} of {len(names)} tasks failed")


def _tabulate_paper() -> Table:
    """What `paper` runs, and where its figures come from."""
    from m7b.harness import mt_bench
    from m7b.harness.paper import PAPER

    rows = [(t.name, t.settings, t.metric.removesuffix(",none"), f"{t.paper:.1f}", t.source) for t in PAPER]
    rows.append((mt_bench.NAME, "2 turns", "rating by --judge", f"{mt_bench.PAPER}", mt_bench.SOURCE))
    columns = ("task", "settings", "metric", "paper", "source")
    return Table(columns, tuple(rows), text_columns=len(columns))


def _describe(model: Model, engine: EngineOptions, chat: bool) -> dict[str, Any]:
    """What answers depend on: they are taken over only where it is the same; any CPU will do."""
    counts = ("checkpoint", "quantization", "adapter", "format of keys and values", "device")
    return {
        "model": model.name,
        "parameters": model.n_params,
        "bytes": model.n_bytes,
        "quant": engine.quant and str(engine.quant),
        "dtype": engine.dtype and str(engine.dtype),
        "window": model.window,
        "ctx_size": model.ctx_size,
        "chat": model.chat_template.description if chat else None,
        **{label: model.fingerprint.get(label) for label in counts},
    }
