"""Option types that several commands share. Heavy imports stay out: `m7b --help` reads this file."""

import glob
import os
import reprlib
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from m7b.commands.shared.expansion import collect_option, flag
from m7b.generation import MAX_TOKENS, AdapterChoice, DType, EngineOptions, KvType, Quant
from m7b.options import list_options
from m7b.variants import VARIANTS

_LONGEST_S = 366 * 24 * 3600
ENGINE = list_options(EngineOptions)
VariantName = StrEnum("VariantName", {name: name for name in VARIANTS})  # type: ignore[misc]


def plain(message: str) -> str:
    """Typer's words on what is wrong, without pydantic's prefix and the full stop."""
    return message.replace("Value error, ", "").rstrip(".")


def is_flag(ctx: typer.Context, name: str) -> bool:
    """Whether the option was given on the command line, and is no setting."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not a whole number") from None


def read_adapters(given: list[str] | None) -> tuple[AdapterChoice, ...]:
    """The adapters that `AdapterOption` gives."""
    adapters: tuple[AdapterChoice, ...] = collect_option(ENGINE["adapter"], given)
    return adapters


def count(text: str) -> int:
    """A whole number, at least one."""
    value = integer(text)
    if value < 1:
        raise typer.BadParameter(f"{value} is not at least 1")
    return value


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not a number") from None


def duration(text: str) -> float:
    """Seconds, as `90`, `90s`, `10m` or `2h` say them."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    value = number(text[:-1] if factor else text) * (factor or 1)
    if not 0 < value < _LONGEST_S:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not from 1 second to 1 year")
    return value


def n_tokens(text: str) -> int:
    """A number of tokens, at least one."""
    value = integer(text)
    if not 1 <= value <= MAX_TOKENS:
        raise typer.BadParameter(f"{reprlib.repr(text)} is not from 1 to {MAX_TOKENS}")
    return value


def _displaces(rival: str) -> Callable[[typer.Context, Any], Any]:
    """A callback for an option that, once given, puts the default of another out of force.

    It comes in time: options on the command line are read before the defaults of all others.
    """

    def displace(ctx: typer.Context, value: Any) -> Any:
        if value is not None and ctx.default_map:
            ctx.default_map.pop(rival, None)
        return value

    return displace


def _go_offline(wanted: bool) -> bool:
    if wanted:
        os.environ["M7B_OFFLINE"] = "1"
    return wanted


def complete_name(incomplete: str) -> list[str]:
    """The names of the checkpoints on this machine that begin with `incomplete`, for shells."""
    from m7b.hub import shelf

    return [name for name in shelf.list_names() if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    """Those names, and the files and folders that begin so."""
    place = os.path.expanduser(incomplete)
    paths = sorted(glob.glob(f"{glob.escape(place)}*"))
    shown = (incomplete + path[len(place) :] + ("/" if os.path.isdir(path) else "") for path in paths)
    return [*complete_name(incomplete), *shown]


VariantOption = Annotated[
    VariantName | None,
    typer.Option(
        "--variant",
        callback=_displaces("model"),
        help="A released checkpoint by name.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        callback=_displaces("variant"),
        autocompletion=_complete_model,
        help="A checkpoint of your own: a folder, a GGUF file, or the name of one that m7b list shows.",
        show_default=False,
    ),
]
WindowOption = Annotated[int | None, flag(ENGINE["window"])]
PrefillChunkOption = Annotated[int, flag(ENGINE["prefill_chunk"])]
DTypeOption = Annotated[DType | None, flag(ENGINE["dtype"])]
QuantOption = Annotated[Quant | None, flag(ENGINE["quant"])]
KvTypeOption = Annotated[KvType | None, flag(ENGINE["kv_type"])]
ThreadsOption = Annotated[int | None, flag(ENGINE["threads"])]
DeviceOption = Annotated[str, flag(ENGINE["device"])]
AdapterOption = Annotated[list[str] | None, flag(ENGINE["adapter"])]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="v1|v3|FILE",
        help="Mistral's template by version, or a Jinja file; the model's own if not given.",
        show_default=False,
    ),
]
PromptCacheOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-cache",
        metavar="FILE|auto|off",
        help="Keep what is read of the prompt in a file, or where m7b finds it again, and go on from there.",
        show_default=False,
    ),
]
OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline", callback=_go_offline, help="Never touch the network; M7B_OFFLINE=1 does the same."
    ),
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
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
