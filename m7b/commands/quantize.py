"""`m7b quantize`: a checkpoint in fewer bits, in a format that others read, and what that cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b.commands.shared.evaluation import Text, read_text, read_with_progress, usual_ctx_size
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.quantizing import WriteStatus
from m7b.errors import OutOfResources, UsageError
from m7b.generation import DType, QuantizeTarget
from m7b.models import ModelChoice, open_model, read_tokenizer
from m7b.paths import parse_path
from m7b.render import Output, Status, note
from m7b.texts import ENGLISH, english_text

if TYPE_CHECKING:
    from m7b.runtime.quantize import Importance


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
    from m7b.commands.shared.quantize_report import compare, format_report
    from m7b.runtime.loader import DTYPES
    from m7b.runtime.quantize import Settings
    from m7b.runtime.quantize import quantize as write

    destination = parse_path(out)
    text = read_text(eval_file) if eval_file else Text(ENGLISH, english_text())
    _check_options(to, double_quant, compute_dtype, calibrate)
    choice = ModelChoice.from_name(source)
    files = open_model(choice)
    checkpoint, tokenizer = files.checkpoint, read_tokenizer(files.checkpoint)
    for message in filter(None, (checkpoint.note, _rounded_twice(checkpoint.find_requantized(to)))):
        note(message)
    status = Status()
    importance = _importance(choice, calibrate, status) if calibrate else None
    settings = Settings(to, double_quant, DTYPES[compute_dtype or DType.BFLOAT16], importance)
    progress, errors, written = WriteStatus(status, destination.name), {}, 0
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
        report = compare(choice, destination, files.name, errors, text, status)
    except OutOfResources as error:
        note(f"no report: {error}")
        return
    finally:
        status.clear()
    Output().write("\n" + format_report(report, destination))


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


def _importance(choice: ModelChoice, file: Path, status: Status) -> "Importance":
    """Which columns matter to the model when it reads `file`."""
    from m7b.runtime.quantize.importance import column_importance

    text, model = read_text(file), load_model(choice)
    ctx_size, ids = usual_ctx_size(model), text.ids(model.tokenizer)
    try:
        reading = column_importance(model.engine, ids, ctx_size)
        return read_with_progress(reading, model.name, len(ids), status)
    finally:
        status.clear()
