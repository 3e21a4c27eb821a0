"""What quantizing saved and what it cost: the same text and the same work, before and after."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m7b.bench.formats import Table, align, markdown
from m7b.bench.runs import Work, repeat
from m7b.commands.shared.evaluation import Text, choose_stride, read_with_progress, usual_ctx_size
from m7b.commands.shared.loading import load_model
from m7b.errors import UsageError
from m7b.generation import EngineOptions
from m7b.models import Model, ModelChoice
from m7b.render import Status

_WORK = Work(prompt_tokens=256, decode_tokens=32, depth=0)
_REPETITIONS = 3
_WORST = 8


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models. Speeds are in tokens per second, the best of a few."""

    model: str
    bytes: int
    bits_per_weight: float
    load_s: float
    prefill_tps: float
    decode_tps: float
    perplexity: float
    perplexity_error: float


@dataclass(frozen=True, slots=True)
class Source:
    """The model that is quantized: how it runs, with the adapters that are merged, and what it is called."""

    choice: ModelChoice
    options: EngineOptions
    name: str


@dataclass(frozen=True, slots=True)
class Exam:
    """Tasks of lm-eval that both models are to do.

    Attributes:
        tasks: their names, as `m7b eval` takes them.
        limit: the most questions of each, None for all.
        data: the folder with the questions, None for the hub.
    """

    tasks: tuple[str, ...]
    limit: int | None
    data: Path | None

    def check(self) -> None:
        """Check that lm-eval is there and has the tasks with their questions.

        Raises:
            UsageError: it is not, or has them not.
        """
        from m7b.harness import require_lm_eval

        require_lm_eval()
        from m7b.harness.evaluation import check_tasks, load_task, open_tasks

        manager = open_tasks()
        for name in check_tasks(self.tasks, manager, allows_code=False):
            load_task(manager, name, self.data)

    def take(self, model: Model, status: Status) -> list[dict[str, Any]]:
        """What `model` comes to.

        Raises:
            UsageError: questions are not there.
        """
        from m7b.harness.evaluation import check_tasks, open_tasks, run_task
        from m7b.harness.model import HarnessModel

        manager = open_tasks()
        asked = HarnessModel(
            model, report=lambda what, done, total: status.show(f"{what}: {done:,} of {total:,}")
        )
        names = check_tasks(self.tasks, manager, allows_code=False)
        figures = [
            figure
            for name in names
            for figure in run_task(asked, manager, name, limit=self.limit, data=self.data)
        ]
        return [figure.as_json() for figure in figures]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The report: both models, and how far the distributions of the second are from the first's.

    `worst_layers` have the largest relative error, of the root mean square. `tasks` has for each figure of an
    exam what the first came to and what the second did.
    """

    text: str
    tokens: int
    ctx_size: int
    stride: int
    original: Side
    quantized: Side
    mean_kl: float
    kl_error: float
    p99_kl: float
    top1_agreement: float
    worst_layers: list[dict[str, Any]]
    tasks: list[dict[str, Any]] = field(default_factory=list)


def compare(
    source: Source,
    out: Path,
    errors: Mapping[str, float],
    text: Text,
    status: Status,
    exam: Exam | None = None,
) -> Comparison:
    """Run the original, then the quantized model; one is in memory at a time.

    Raises:
        OutOfResources: there is no room for one of them.
    """
    from m7b.runtime.evaluate import Record, perplexity

    with tempfile.TemporaryDirectory(prefix="m7b-report-") as folder:
        model, name = load_model(source.choice, source.options), source.name
        ctx_size = usual_ctx_size(model)
        stride, ids = choose_stride(None, ctx_size), text.ids(model.tokenizer)
        record = Record(Path(folder) / "log-probabilities")
        read_with_progress(record.take(model.engine, ids, ctx_size, stride), name, len(ids), status)
        original = _side(model, name, perplexity(record.losses), status)
        before = exam.take(model, status) if exam else []
        del model
        model = load_model(ModelChoice(path=out))
        if text.ids(model.tokenizer) != ids:
            raise UsageError(f"the tokenizer in {out} is not that of {name}: this is a bug of m7b's")
        losses, distance = read_with_progress(
            record.compare(model.engine, ids, ctx_size, stride), out.name, len(ids), status
        )
        quantized = _side(model, out.name, perplexity(losses), status)
        after = exam.take(model, status) if exam else []
    worst = sorted(errors.items(), key=lambda item: -item[1])[:_WORST]
    report = Comparison(
        text=text.name,
        tokens=len(losses),
        ctx_size=ctx_size,
        stride=stride,
        original=original,
        quantized=quantized,
        **asdict(distance),
        worst_layers=[{"name": name, "error": error} for name, error in worst],
        tasks=[
            {"original": one, "quantized": other, "difference": other["value"] - one["value"]}
            for one, other in zip(before, after, strict=True)
        ],
    )
    _keep(report, out)
    return report


def format_report(report: Comparison, out: Path) -> str:
    """The report for people, and where it is kept."""
    figures, *others = _tables(report)
    parts = [align(figures), _distance(report) + "\n", *map(align, others)]
    return "\n".join([*parts, f"kept in {_beside(out, '.md')}\n"])


def _side(model: Model, name: str, found: Any, status: Status) -> Side:
    from m7b.runtime.bench.measure import EngineRunner

    status.show(f"timing {name}")
    runner = EngineRunner(model.engine)
    samples = [repeat(runner, _WORK) for _ in range(_REPETITIONS)]
    return Side(
        model=name,
        bytes=model.n_bytes,
        bits_per_weight=8 * model.n_bytes / model.n_params,
        load_s=model.load_s,
        prefill_tps=max(_WORK.prompt_tokens / (sample.prefill_s or 1) for sample in samples),
        decode_tps=max(_WORK.decode_tokens / sum(sample.step_s) for sample in samples),
        perplexity=found.value,
        perplexity_error=found.error,
    )


def _keep(report: Comparison, out: Path) -> None:
    figures, *others = _tables(report)
    _beside(out, ".json").write_text(
        json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    parts = [f"# {report.quantized.model}\n", markdown(figures), _distance(report) + "\n"]
    _beside(out, ".md").write_text("\n".join([*parts, *map(markdown, others)]), encoding="utf-8")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.report{suffix}")


def _distance(report: Comparison) -> str:
    r = report
    return (
        f"Over {r.tokens:,} tokens of {r.text} (context {r.ctx_size}, stride {r.stride}), next-token "
        f"distributions differ by {r.mean_kl:.5f} ± {r.kl_error:.5f} nats (KL, mean; p99 {r.p99_kl:.4f}), "
        f"and {100 * r.top1_agreement:.2f} % of the likeliest tokens are the same."
    )


def _tables(report: Comparison) -> list[Table]:
    sides = (report.original, report.quantized)
    rows = {
        "bytes": [f"{side.bytes:,}" for side in sides],
        "bits per weight": [f"{side.bits_per_weight:.2f}" for side in sides],
        "load, s": [f"{side.load_s:.2f}" for side in sides],
        "prefill, tok/s": [f"{side.prefill_tps:.1f}" for side in sides],
        "decode, tok/s": [f"{side.decode_tps:.1f}" for side in sides],
        "perplexity": [f"{side.perplexity:.4f} ± {side.perplexity_error:.4f}" for side in sides],
    }
    figures = Table(("", *(side.model for side in sides)), tuple((k, *v) for k, v in rows.items()), 1)
    worst = tuple((layer["name"], f"{100 * layer['error']:.2f} %") for layer in report.worst_layers)
    tables = [figures, Table(("worst layers", "error"), worst, 1)]
    if report.tasks:
        names = tuple(side.model for side in sides)
        tables.append(Table(("task", "metric", *names, "difference"), tuple(map(_row, report.tasks)), 2))
    return tables


def _row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """One figure of an exam: task, metric, both sides with their standard errors, difference."""
    one, other = result["original"], result["quantized"]
    values = (
        f"{each['value']:.2f}" + ("" if each["error"] is None else f" ± {each['error']:.2f}")
        for each in (one, other)
    )
    return (one["task"], one["metric"].removesuffix(",none"), *values, f"{result['difference']:+.2f}")
