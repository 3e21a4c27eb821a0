"""Sampling parameters by name, as /set and /regen take them."""

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from m7b.errors import UsageError
from m7b.generation import SamplingParams


def _parse_optional_integer(text: str) -> int | None:
    return None if text.lower() in ("none", "off", "random") else int(text)


def _parse_texts(text: str) -> tuple[str, ...]:
    return () if text.lower() in ("none", "off") else tuple(shlex.split(text))


PARAMETERS: Mapping[str, Callable[[str], Any]] = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repeat_last_n": int,
    "seed": _parse_optional_integer,
    "stop": _parse_texts,
}
"""Every parameter, and the function that reads its value."""

_ALIASES = {"num_predict": "max_tokens", "n_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
_OTHERS = {"num_ctx": "--ctx-size", "ctx_size": "--ctx-size", "window": "--window"}


def parse_assignments(text: str) -> list[tuple[str, str]]:
    """Read names and values from `NAME VALUE`, `parameter NAME VALUE`, or any number of `NAME=VALUE`.

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
    """Return `params` with new values.

    Raises:
        UsageError: a name is unknown, or a value is out of range.
    """
    values = {}
    for given, text in pairs:
        name = _resolve_name(given)
        try:
            values[name] = PARAMETERS[name](text)
        except ValueError:
            raise UsageError(f"{name} is {text!r}", hint="it must be a number") from None
    return replace(params, **values)


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
