"""Sampling parameters by name, as /set and /regen take them."""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from m7b.errors import UsageError
from m7b.generation import SamplingParams
from m7b.options import Option, list_options

PARAMETERS: Mapping[str, Option] = {
    name: option for name, option in list_options(SamplingParams).items() if option.in_chat
}
"""Every parameter that can be set in a chat."""

_ALIASES = {"num_predict": "max_tokens", "n_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
_OTHERS = {"num_ctx": "--ctx-size", "ctx_size": "--ctx-size", "window": "--window"}


def parse_assignments(text: str) -> list[tuple[str, str]]:
    """The names and values in `NAME VALUE`, `parameter NAME VALUE`, or any number of `NAME=VALUE`.

    Raises:
        UsageError: the text is none of these.
    """
    text = text.removeprefix("parameter ").strip()
    name, _, rest = text.partition(" ")
    if "=" not in name:
        if not rest.strip():
            raise UsageError(f"{name or 'nothing'} is set to nothing", hint="write /set temperature 0.7")
        return [(name, rest.strip())]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None
    wrong = next((word for word in words if "=" not in word), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is not NAME=VALUE", hint="write temperature=0.7 top_p=0.9")
    pairs = (word.partition("=") for word in words)
    return [(name, shlex.quote(value) if name == "stop" else value) for name, _, value in pairs]


def change_params(params: SamplingParams, pairs: list[tuple[str, str]]) -> SamplingParams:
    """`params` with new values.

    Raises:
        UsageError: a name is unknown, or a value is out of range.
    """
    values = {}
    for given, text in pairs:
        name = _resolve_name(given)
        try:
            values[name] = _read(PARAMETERS[name], text)
        except ValueError:
            raise UsageError(f"{name} is {text!r}", hint="it must be a number") from None
    return replace(params, **values)


def _read(option: Option, text: str) -> Any:
    """The value that `text` says.

    Raises:
        ValueError: it says none.
    """
    is_none = text.lower() in ("none", "off")
    if option.collect:
        return option.collect([] if is_none else [option.read(part) for part in shlex.split(text)])
    if option.default is None and (is_none or text.lower() == "random"):
        return None
    return option.read(text)


def _resolve_name(given: str) -> str:
    name = given.lower().replace("-", "_")
    name = _ALIASES.get(name, name)
    if name in PARAMETERS:
        return name
    if name in _OTHERS:
        raise UsageError(f"{name} cannot change while the model is loaded", hint=f"use {_OTHERS[name]}")
    near = difflib.get_close_matches(name, PARAMETERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(PARAMETERS)}"
    raise UsageError(f"there is no parameter {given!r}", hint=hint)
