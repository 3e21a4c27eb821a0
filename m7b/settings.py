"""The user's settings: `config.toml`, and the `M7B_*` variables, which win over it. Flags win over both.

Knows the names of the settings and where each was set; does not know what a value means: the options of the
same names do.
"""

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m7b.errors import UsageError
from m7b.generation import EngineOptions, SamplingParams
from m7b.options import list_options


def _samples(owner: type) -> dict[str, str | int | float | bool]:
    """The options of a class that are settings, with their samples."""
    options = list_options(owner).items()
    return {name: option.sample for name, option in options if option.sample is not None}


# Each long option that can be a setting, and the value that a new config.toml shows for it.
SETTINGS: Mapping[str, str | int | float | bool] = {
    "variant": "demo",
    "model": "~/models/mistral-7b",
    **_samples(EngineOptions),
    **_samples(SamplingParams),
    "system": "Answer briefly.",
    "chat_template": "v3",
    "on_full": "drop-oldest",
    "vi": False,
    "markdown": True,
    "theme": "auto",
    "save": True,
    "server": "auto",
    "prompt_cache": "auto",
}

_CHECKPOINT = {"variant", "model"}  # two ways to name one thing
_MAX_BITS = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as the text that would follow its flag; `source` is the file or the variable that set it."""

    name: str
    text: str
    source: str

    @property
    def place(self) -> str:
        """Where the user can change it."""
        return self.source if self.source == variable(self.name) else f"{self.source}: {self.name}"


def variable(name: str) -> str:
    """The name of the environment variable of a setting."""
    return f"M7B_{name.upper()}"


def load(environ: Mapping[str, str], file: Path | None, known: Collection[str]) -> dict[str, Setting]:
    """Load those of the `known` settings that are set, by name.

    A variable wins over the file, where there is one; an empty variable sets nothing.

    Raises:
        UsageError: the file cannot be read, or a setting is unknown or contradicts another.
    """
    of_file, of_environ = _read_file(file, known) if file else {}, _read_environ(environ, known)
    for settings, place in ((of_file, file and file.name), (of_environ, "the environment")):
        if settings.keys() >= _CHECKPOINT:
            raise UsageError(f"variant and model are both set in {place}", hint="name one checkpoint")
    beaten = _CHECKPOINT if of_environ.keys() & _CHECKPOINT else set()
    return {name: setting for name, setting in of_file.items() if name not in beaten} | of_environ


def find_similar_variables(environ: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """Find variables that look like a misspelt setting, each with the one that may be meant."""
    variables = [variable(name) for name in known]
    unknown = (name for name in environ if name.startswith("M7B_") and name not in variables)
    matches = {name: difflib.get_close_matches(name, variables, n=1, cutoff=0.85) for name in unknown}
    return {name: close[0] for name, close in matches.items() if close}


def _read_environ(environ: Mapping[str, str], known: Collection[str]) -> dict[str, Setting]:
    texts = {name: environ[variable(name)] for name in known if environ.get(variable(name))}
    return {
        name: Setting(name, _decode_utf8(text, variable(name)), variable(name))
        for name, text in texts.items()
    }


def _read_file(file: Path, known: Collection[str]) -> dict[str, Setting]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and endless numbers
        raise UsageError(f"{file.name} is not TOML: {error}", hint="m7b config edit opens it") from None
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"they are {', '.join(known)}"
        raise UsageError(f"{file.name}: {unknown} is no setting", hint=hint)
    return {
        name: Setting(name, _format_value(name, value, file), file.name) for name, value in values.items()
    }


def _format_value(name: str, value: Any, file: Path) -> str:
    """Format a value of the file as the text that would follow its flag."""
    match value:
        case bool():
            return str(value).lower()
        case str() if "\0" in value:
            raise UsageError(f"{file.name}: {name} holds a NUL, which no flag could")
        case int() if value.bit_length() > _MAX_BITS:
            raise UsageError(f"{file.name}: {name} is too large")
        case str() | int() | float():
            return str(value)
        case _:
            raise UsageError(f"{file.name}: {name} is neither a number nor a text, nor true or false")


def _decode_utf8(text: str, source: str) -> str:
    # Variables are bytes, which Python decoded by the locale: decode them again as UTF-8.
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{source} is not UTF-8") from None
