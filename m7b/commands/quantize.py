"""`m7b quantize`: a checkpoint in fewer bits, in a format that others read, and what that cost."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b import hub
from m7b.commands.choosing import named_model
from m7b.commands.evaluating import Text, counted, read_text, usual_ctx_size
from m7b.commands.fetching import FetchScreen
from m7b.commands.loading import load_model, open_chosen, tokenizer_of
from m7b.commands.options import DType, VariantName
from m7b.errors import OutOfResources, UsageError
from m7b.generation import QuantizeTarget
from m7b.paths import checkpoints_folder, parse_path
from m7b.render import Output, Status, note
from m7b.texts import ENGLISH, english_text

if TYPE_CHECKING:
    from m7b.runtime.quantize import Importance, Written


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A variant, a folder or a GGUF file.")],
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="What to write: a file, or a folder.")
    ],
    to: Annotated[QuantizeTarget, typer.Option("--to", help="What to turn the weights into.")],
    double_quant: Annotated[
        bool, typer.Option("--double-quant", help="Quantize the scales of nf4 and fp4 as well.")
    ] = False,
    compute_dtype: Annotated[
        DType | None,
        typer.Option(
            "--compute-dtype",
            help="What readers of nf4, fp4 and int8 multiply in; bfloat16 if not given.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="A text that tells which columns of a weight matter, for q4_0.",
            show_default=False,
        ),
    ] = None,
    eval_file: Annotated[
        Path | None,
        typer.Option(
            "--eval-file",
            metavar="FILE",
            help="A text for the report; one in English ships with m7b.",
            show_default=False,
        ),
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Do not compare the result with its source.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Quantize a checkpoint, and report what it saved and what it cost.

    q4_0, q8_0, f16 and bf16 become one GGUF file, which llama.cpp reads too; nf4, fp4 and int8 a Hugging Face
    folder, which transformers reads too. The report is printed and kept beside the result.

    Examples:

      m7b quantize demo -o demo-q8_0.gguf --to q8_0 --eval-file prompt.txt

      m7b quantize demo -o demo-nf4 --to nf4 --double-quant --no-report
    """
    from m7b.commands.report import compare, told
    from m7b.runtime.loader import DTYPES
    from m7b.runtime.quantize import Settings
    from m7b.runtime.quantize import quantize as write

    destination = parse_path(out)
    text = read_text(eval_file) if eval_file else Text(ENGLISH, english_text())
    _check_options(to, double_quant, compute_dtype, calibrate)
    variant, model = named_model(source)
    name, checkpoint = open_chosen(variant, model, window_given=False)
    tokenizer = tokenizer_of(checkpoint)
    for message in filter(None, (checkpoint.note, _rounded_twice(checkpoint.requantized(to)))):
        note(message)
    status = Status()
    importance = _importance(variant, model, calibrate, status) if calibrate else None
    settings = Settings(to, double_quant, DTYPES[compute_dtype or DType.BFLOAT16], importance)
    progress, errors, written = Progress(status, destination.name), {}, 0
    try:
        for tensor in write(checkpoint, tokenizer, destination, settings, force=force):
            progress.show(tensor)
            errors[tensor.name], written = tensor.error, tensor.done
    finally:
        status.clear()
    n_params = checkpoint.config.n_params
    Output().write(
        f"{destination}: {written:,} bytes of weights, {8 * written / n_params:.2f} bits each, "
        f"in {progress.seconds:.0f} s\n"
    )
    if no_report:
        return
    try:
        report = compare((variant, model), destination, name, errors, text, status)
    except OutOfResources as error:
        note(f"no report: {error}")
        return
    finally:
        status.clear()
    Output().write("\n" + told(report, destination))


def quantize_record(record: hub.CheckpointRecord, to: QuantizeTarget) -> None:
    """Put a GGUF file of a downloaded checkpoint beside it, under the same name: the latest is what runs.

    Raises:
        UsageError: the checkpoint is such a file itself.
    """
    from m7b.runtime.checkpoints import open_checkpoint
    from m7b.runtime.quantize import Settings
    from m7b.runtime.quantize import quantize as write

    if record.format == "gguf":
        raise UsageError(
            f"{record.name} has come as a GGUF file",
            hint="--include chooses another; m7b quantize rounds it again",
        )
    path = checkpoints_folder() / hub.shelf.make_key(record.name, "gguf") / f"{to}.gguf"
    if any(one.path == str(path) for one in hub.shelf.find_records(record.name)):
        note(f"{record.name} is here already in {to}: {path}")
        return
    checkpoint = open_checkpoint(Path(record.path))
    path.parent.mkdir(parents=True, exist_ok=True)
    status = Status()
    progress = Progress(status, path.name)
    try:
        for tensor in write(checkpoint, tokenizer_of(checkpoint), path, Settings(to), force=True):
            progress.show(tensor)
    finally:
        status.clear()
    with FetchScreen() as screen:
        hub.shelf.put(screen.run(hub.describe_made(record, path)))
    note(f"{record.name} is ready in {to}: {path}")


class Progress:
    """Bytes written, and the time that the rest will take, on a terminal."""

    def __init__(self, status: Status, name: str) -> None:
        self._status, self._name, self._started = status, name, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def show(self, written: "Written") -> None:
        """Tell how far it is."""
        left = int(self.seconds / written.done * (written.total - written.done))
        self._status.show(
            f"writing {self._name}: {written.done >> 20:,} of {written.total >> 20:,} MiB, "
            f"{left // 60}:{left % 60:02} left"
        )


def _check_options(
    to: QuantizeTarget, double_quant: bool, compute_dtype: DType | None, calibrate: Path | None
) -> None:
    """Refuse options that the target would not heed.

    Raises:
        UsageError: there is one.
    """
    for option, is_given, targets in (
        ("--double-quant", double_quant, ("nf4", "fp4")),
        ("--compute-dtype", compute_dtype, ("nf4", "fp4", "int8")),
        ("--calibrate", calibrate, ("q4_0",)),
    ):
        if is_given and to not in targets:
            raise UsageError(f"{option} means nothing to {to}", hint=f"it is for {', '.join(targets)}")


def _rounded_twice(stored: str) -> str:
    return f"weights stored as {stored} are rounded a second time" if stored else ""


def _importance(variant: VariantName | None, model: Path | None, file: Path, status: Status) -> "Importance":
    """Which columns matter to the model when it reads `file`."""
    from m7b.runtime.engine import Engine
    from m7b.runtime.quantize.importance import column_importance

    text, loaded = read_text(file), load_model(variant, model)
    assert isinstance(loaded.engine, Engine)
    ctx_size, ids = usual_ctx_size(loaded), text.ids(loaded.tokenizer)
    try:
        reading = column_importance(loaded.engine, ids, ctx_size)
        return counted(reading, loaded.name, len(ids), status)
    finally:
        status.clear()
