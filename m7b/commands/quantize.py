"""`m7b quantize`: a checkpoint in fewer bits, in a format that others read, and what that cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b.commands.shared.evaluation import Text, read_text, read_with_progress, usual_ctx_size
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import AdapterOption, count, read_adapters
from m7b.commands.shared.quantizing import WriteStatus
from m7b.errors import OutOfResources, UsageError
from m7b.generation import DType, EngineOptions, QuantizeTarget
from m7b.models import ModelChoice, join_names, mix_adapters, open_adapters, open_model, read_tokenizer
from m7b.paths import parse_path
from m7b.render import Output, Status, note
from m7b.texts import ENGLISH, english_text

if TYPE_CHECKING:
    from m7b.commands.shared.quantize_report import Source
    from m7b.runtime.quantize import Importance

_FILES_OF_OTHERS = {".safetensors", ".bin", ".pt", ".pth"}


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A variant, a folder or a GGUF file.")],
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="What to write: a file, or a folder.")
    ],
    to: Annotated[QuantizeTarget, typer.Option("--to", help="What to turn the weights into.")],
    adapter: AdapterOption = None,
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
            help="A text that tells which columns of a weight matter, for GGUF files of few bits.",
            show_default=False,
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="llama.cpp's importance matrix, which tells the same as --calibrate.",
            show_default=False,
        ),
    ] = None,
    save_imatrix: Annotated[
        Path | None,
        typer.Option(
            "--save-imatrix",
            metavar="FILE",
            help="Where to keep what --calibrate found, for --imatrix and for llama.cpp.",
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
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASK,...",
            help="Let both do these tasks of m7b eval, for the report; can be repeated.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            parser=count,
            metavar="N",
            help="With --tasks: ask only the first N questions of each.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="With --tasks: take questions from this folder.", show_default=False
        ),
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Do not compare the result with its source.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Quantize a checkpoint, and report what it saved and what it cost.

    nf4, fp4 and int8 become a Hugging Face folder, which transformers reads too; all others one GGUF file,
    which llama.cpp reads too. The report is printed and kept beside the result.

    Examples:

      m7b quantize demo -o demo-q8_0.gguf --to q8_0 --eval-file prompt.txt

      m7b quantize demo -o demo-nf4 --to nf4 --double-quant --no-report
    """
    from m7b.commands.shared.quantize_report import Exam, Source, compare, format_report
    from m7b.runtime.adapters import merge
    from m7b.runtime.loader import DTYPES
    from m7b.runtime.quantize import Settings
    from m7b.runtime.quantize import quantize as write
    from m7b.runtime.quantize.imatrix import read_imatrix

    destination = parse_path(out)
    text = read_text(eval_file) if eval_file else Text(ENGLISH, english_text())
    _check_options(to, double_quant, compute_dtype, calibrate or imatrix)
    _check_name(destination, to)
    if (calibrate and imatrix) or (save_imatrix and not calibrate):
        raise UsageError("--imatrix takes the place of --calibrate, and --save-imatrix needs it")
    if save_imatrix and save_imatrix.exists() and not force:
        raise UsageError(f"{save_imatrix} is already there", hint="--force replaces it")
    names = tuple(name for each in tasks or () for name in each.split(",") if name)
    exam = Exam(names, limit, data) if names else None
    if no_report and exam:
        raise UsageError("--tasks is for the report, which --no-report leaves out")
    if exam:
        exam.check()
    choice = ModelChoice.from_name(source)
    files = open_model(choice)
    checkpoint, tokenizer = files.checkpoint, read_tokenizer(files.checkpoint)
    options = EngineOptions(adapter=read_adapters(adapter))
    adapters = open_adapters(options.adapter, checkpoint.config)
    if any(destination.exists() and destination.samefile(each.adapter.path) for each in adapters):
        raise UsageError(f"{destination} is an adapter that is read", hint="name another place with -o")
    merged = merge(checkpoint, mix_adapters(adapters))
    original = Source(choice, options, join_names(files.name, adapters))
    for message in filter(None, (checkpoint.note, _rounded_twice(checkpoint.find_requantized(to)))):
        note(message)
    status = Status()
    importance = None
    if calibrate:
        importance = _calibrate(original, calibrate, save_imatrix, status)
    elif imatrix:
        importance = read_imatrix(imatrix, checkpoint.config)
    settings = Settings(to, double_quant, DTYPES[compute_dtype or DType.BFLOAT16], importance)
    progress, errors, written = WriteStatus(status, destination.name), {}, 0
    try:
        for tensor in write(merged, tokenizer, destination, settings, force=force):
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
        report = compare(original, destination, errors, text, status, exam)
    except OutOfResources as error:
        note(f"no report: {error}")
        return
    finally:
        status.clear()
    Output().write("\n" + format_report(report, destination))


def _check_name(out: Path, to: QuantizeTarget) -> None:
    """Refuse a name that belongs to another format than what is written.

    Raises:
        UsageError: it does.
    """
    if to.is_gguf and out.suffix in _FILES_OF_OTHERS:
        raise UsageError(
            f"{to} is written as a GGUF file, and {out} is named as another", hint=f"-o {out.stem}.gguf"
        )
    if not to.is_gguf and out.suffix in {".gguf", *_FILES_OF_OTHERS}:
        raise UsageError(
            f"{to} is written as a folder, and {out} is named as a file",
            hint=f"-o {out.stem}, or --to q4_k_m",
        )


def _check_options(
    to: QuantizeTarget, double_quant: bool, compute_dtype: DType | None, columns: Path | None
) -> None:
    """Refuse options that the target would not heed.

    Raises:
        UsageError: there is one.
    """
    for option, is_given, targets in (
        ("--double-quant", double_quant, ("nf4", "fp4")),
        ("--compute-dtype", compute_dtype, ("nf4", "fp4", "int8")),
        (
            "--calibrate or --imatrix",
            columns,
            tuple(target for target in QuantizeTarget if target.is_searched),
        ),
    ):
        if is_given and to not in targets:
            raise UsageError(f"{option} means nothing to {to}", hint=f"it is for {', '.join(targets)}")


def _rounded_twice(stored: str) -> str:
    return f"weights stored as {stored} are rounded a second time" if stored else ""


def _calibrate(source: "Source", file: Path, keep: Path | None, status: Status) -> "Importance":
    """Which columns matter to the model when it reads `file`; kept in another if that is wanted."""
    from m7b.runtime.quantize.imatrix import Reading, write_imatrix
    from m7b.runtime.quantize.importance import column_importance

    text, model = read_text(file), load_model(source.choice, source.options)
    ctx_size, ids = usual_ctx_size(model), text.ids(model.tokenizer)
    try:
        reading = column_importance(model.engine, ids, ctx_size)
        found = read_with_progress(reading, model.name, len(ids), status)
    finally:
        status.clear()
    if keep:
        write_imatrix(keep, found, Reading(text.name, len(ids), ctx_size))
    return found
