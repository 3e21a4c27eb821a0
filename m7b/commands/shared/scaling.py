"""The options of a batch on many machines, and running it."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from m7b.commands.shared.fetching import offer_missing
from m7b.commands.shared.options import count
from m7b.completions import CompletionRequest
from m7b.errors import UsageError
from m7b.generation import EngineOptions
from m7b.models import ModelChoice, load_chosen_template, open_model
from m7b.offer import check_template
from m7b.render import note


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Whether Ray's actors answer a batch, and which."""

    ray: Annotated[
        bool,
        typer.Option("--ray", help="With --jsonl and -o DIR: answer by actors of Ray, on many machines."),
    ] = False
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="With --ray: the cluster; auto is the one here, none is begun.",
            show_default=False,
        ),
    ] = None
    actors: Annotated[
        int | None,
        typer.Option(
            "--actors",
            parser=count,
            metavar="N",
            help="With --ray: how many actors, each with a model; one a machine if not given.",
            show_default=False,
        ),
    ] = None
    threads_per_actor: Annotated[
        int | None,
        typer.Option(
            "--threads-per-actor",
            parser=count,
            metavar="N",
            help="With --ray: the threads of each; all of a machine if not given.",
            show_default=False,
        ),
    ] = None

    def check(self, jsonl: Path | None, output: Path | None) -> None:
        """Check that they go together.

        Raises:
            UsageError: they do not.
        """
        if self.ray and not (jsonl and output):
            raise UsageError(
                "--ray goes with --jsonl and -o", hint="name a file of requests and a new folder"
            )
        given = [field.name for field in fields(self)[1:] if getattr(self, field.name) is not None]
        if given and not self.ray:
            raise UsageError(f"--{given[0].replace('_', '-')} goes with --ray")


def answer_by_ray(
    ray: RayOptions,
    source: Path,
    target: Path,
    choice: ModelChoice,
    engine: EngineOptions,
    defaults: CompletionRequest,
    *,
    resume: bool,
    **settings: Any,
) -> None:
    """Answer the requests in `source` by actors, into the folder `target`; `settings` are `Answerer`'s.

    Raises:
        SomeFailed: some have no answer, or an error.
        UsageError: something does not go together, or there is no such cluster.
        OutOfResources: the actors do not fit.
    """
    from m7b.scale import AnswerFolder, Tally, require_ray
    from m7b.scale.cluster import choose_crew, join_cluster

    require_ray()
    folder = AnswerFolder(source, target, resume=resume)
    where = folder.prepare()
    if folder.kept.n_rows == folder.n_rows:
        folder.finish([], Tally(), reason="")
        return
    offer_missing(choice)
    open_model(choice, window=engine.window)  # what is wrong with it shows before Ray begins
    if settings["chat_template"] and Path(settings["chat_template"]).is_file():
        settings["chat_template"] = str(Path(settings["chat_template"]).absolute())
    if settings["is_chat"]:
        _check_template(choice, defaults, settings["chat_template"])
    if choice.shelf_name is None and choice.path:
        choice = replace(choice, path=choice.path.absolute())
    with join_cluster(ray.address) as cpus:
        from m7b.scale.stage import answer_parts

        crew = choose_crew(cpus, ray.actors, ray.threads_per_actor or engine.threads)
        note(f"{crew}; --actors and --threads-per-actor change that")
        parts = folder.cut(crew.n_actors)
        options = asdict(replace(engine, threads=crew.n_threads))
        tally, reason = answer_parts(
            parts, where, {"name": choice, "defaults": defaults} | options | settings, crew
        )
    folder.finish(parts, tally, reason)


def _check_template(choice: ModelChoice, defaults: CompletionRequest, chat_template: str | None) -> None:
    """Check before any actor loads the model that it can chat, with the tools if there are."""
    _, template = load_chosen_template(choice, chat_template)
    if defaults.conversation and defaults.conversation.tools:
        check_template(template)
