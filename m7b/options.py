"""Options that users set, each declared once: beside the field that holds its value.

Knows names, ranges, help and how a value is written as text. Command lines, JSON requests, /set and settings
take theirs from here; this knows nothing about any of them.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, get_args

from m7b.errors import UsageError

_KEY = "option"
_NUMBERS: Mapping[Callable[[str], Any], str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option: a field of a value, as users meet it.

    Attributes:
        help: what it does, in a sentence.
        name: the field, and the name in JSON, for /set and in settings; the flag has dashes for underscores.
        kind: what makes a value of a text: int, float, str, an enumeration or a function.
        default: the value where none is given.
        low: the least number.
        high: the largest.
        is_strict: whether a text out of range cannot be read; else the class of the field refuses its value.
        words: values that are written as a word.
        metavar: what stands for the value in a help text, where it is not X or N for a number.
        short: a flag of one letter.
        sample: the value that a new config.toml shows; None where there is no such setting.
        is_apart: whether it is not given wherever the others of its class are.
        in_chat: whether /set changes it.
        collect: what makes a value of the parts of an option that is given several times.
    """

    help: str
    name: str = ""
    kind: Callable[[str], Any] = str
    default: Any = None
    low: float = -math.inf
    high: float = math.inf
    is_strict: bool = False
    words: Mapping[str, Any] = field(default_factory=dict)
    metavar: str | None = None
    short: str = ""
    sample: str | int | float | None = None
    is_apart: bool = False
    in_chat: bool = True
    collect: Callable[[list[Any]], Any] | None = None

    @property
    def flag(self) -> str:
        """The long flag."""
        return f"--{self.name.replace('_', '-')}"

    def read(self, text: str) -> Any:
        """The value that `text` says.

        Raises:
            ValueError: it says none; the message tells why.
        """
        if text in self.words:
            return self.words[text]
        try:
            value = self.kind(text)
        except ValueError:
            if self.kind not in _NUMBERS:
                raise
            raise ValueError(
                f"{reprlib.repr(text)} is not {_NUMBERS[self.kind]}{self._other_words}"
            ) from None
        if self.is_strict and not self.low <= value <= self.high:
            bounds = f"from {self.low} to {self.high}"
            raise ValueError(f"{reprlib.repr(text)} is not {bounds}{self._other_words}")
        return value

    def check(self, value: Any) -> None:
        """See that a value is one that the option can have; None is.

        Raises:
            UsageError: it is not.
        """
        if isinstance(self.kind, type) and issubclass(self.kind, Enum) and value is not None:
            names = [entry.value for entry in self.kind]
            if value not in names:
                raise UsageError(f"{self.name} is {value!r}", hint=f"it can be {', '.join(names)}")
        if self.kind in _NUMBERS and value is not None and value not in self.words.values():
            check_range(self.name, value, self.low, self.high)

    @property
    def _other_words(self) -> str:
        return "".join(f", nor {word}" for word in self.words)


def option(default: Any, help: str, **details: Any) -> Any:
    """A field of a dataclass that is an option; `details` are fields of `Option`.

    Numbers are of the kind that the field is annotated with.
    """
    return field(default=default, metadata={_KEY: Option(help, default=default, **details)})


def option_mapping(help: str, **details: Any) -> Any:
    """A field as `option` makes it, whose default is an empty mapping."""
    return field(default_factory=dict, metadata={_KEY: Option(help, default={}, **details)})


def list_options(owner: type) -> Mapping[str, Option]:
    """The options among the fields of a dataclass, by name and in their order."""
    hashable: Any = owner  # every class is, though mypy does not think so
    return _read_options(hashable)


def check_options(value: Any) -> None:
    """See that all options of a dataclass's instance are in range.

    Raises:
        UsageError: one is not.
    """
    for name, entry in list_options(type(value)).items():
        entry.check(getattr(value, name))


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """See that a number is in range.

    Raises:
        UsageError: it is not, or is no number at all.
    """
    if not low <= value <= high or value == math.inf:  # false for NaN as well
        bounds = f"from {low} to {high}" if high < math.inf else f"at least {low}"
        raise UsageError(f"{name} is {value}", hint=f"it must be {bounds}")


@cache
def _read_options(owner: Any) -> Mapping[str, Option]:
    found = {}
    for entry in fields(owner):
        if stated := entry.metadata.get(_KEY):
            kind = _number_kind(entry.type) or stated.kind
            found[entry.name] = replace(stated, name=entry.name, kind=kind)
    return MappingProxyType(found)


def _number_kind(annotation: Any) -> type | None:
    """int for `int` and `int | None`, float likewise; None for anything else."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((kind for kind in (int, float) if kind in kinds), None)
