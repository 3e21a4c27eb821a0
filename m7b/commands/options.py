"""Option types that several commands share. Heavy imports stay out: `m7b --help` reads this file."""

import os
import reprlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from m7b.errors import UsageError
from m7b.variants import VARIANTS

VariantName = StrEnum("VariantName", {name: name for name in VARIANTS})  # type: ignore[misc]


class DType(StrEnum):
    """The dtypes a model can run in."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


_MAX_TOKENS = 1 << 31
_MAX_THREADS = 1 << 10


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not a whole number") from None


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not a number") from None


def n_tokens(text: str) -> int:
    """A number of tokens, at least one."""
    return _between(text, 1, _MAX_TOKENS)


def n_threads(text: str) -> int:
    """A number of threads, at least one."""
    return _between(text, 1, _MAX_THREADS)


def window_size(text: str) -> int:
    """The tokens of a window, 0 for `off`."""
    if text == "off":
        return 0
    try:
        return n_tokens(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{error.message}, nor off") from None


def _between(text: str, low: int, high: int) -> int:
    value = integer(text)
    if not low <= value <= high:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not from {low} to {high}")
    return value


def default_variant() -> str:
    """The variant where none is named: that of `M7B_VARIANT`, else the demo."""
    name = os.environ.get("M7B_VARIANT", "demo")
    if name not in VARIANTS:
        raise UsageError(f"M7B_VARIANT is {name!r}", hint=f"it can be {', '.join(VARIANTS)}")
    return name


VariantOption = Annotated[
    VariantName | None, typer.Option("--variant", help="A released checkpoint by name.", show_default=False)
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "-m", "--model", help="A checkpoint of your own: a folder or a GGUF file.", show_default=False
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        "--window",
        parser=window_size,
        metavar="N|off",
        help="Sliding window in tokens, instead of the checkpoint's own.",
        show_default=False,
    ),
]
CtxSizeOption = Annotated[
    int | None,
    typer.Option(
        "--ctx-size",
        parser=n_tokens,
        metavar="N",
        help="Most tokens of prompt and answer together; the checkpoint's own if not given.",
        show_default=False,
    ),
]
PrefillChunkOption = Annotated[
    int,
    typer.Option("--prefill-chunk", parser=n_tokens, metavar="N", help="Prompt tokens read in one pass."),
]
DTypeOption = Annotated[
    DType | None,
    typer.Option(
        "--dtype", help="Number format to run in; the checkpoint's own if not given.", show_default=False
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:N, mps, or auto to spread over all of them and the disk."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        parser=n_threads,
        metavar="N",
        help="CPU threads; as many as torch finds good if not given.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Put the begin-of-sequence id in front; as the model expects if not given.",
        show_default=False,
    ),
]
KeepNewlineOption = Annotated[
    bool, typer.Option("--keep-newline", help="Keep the final newline of a text from stdin.")
]
