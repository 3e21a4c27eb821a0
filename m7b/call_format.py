"""How a model writes calls of tools: the fixed texts around their names and arguments.

Knows texts alone; nothing about templates, tokens or grammars.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""A marker in a text, such as `<tool_call>` or `[TOOL_CALLS]`; often a token of its own."""

_TRIGGER = re.compile(rf"{TAG.pattern}|\w+\[|\[(?=\s*\{{)\s*\{{")


class Hole(StrEnum):
    """What stands in a fixed text and says nothing: the id of a call, or its number."""

    ID = "id"
    NUMBER = "number"


Fixed = tuple[str | Hole, ...]
"""A text that is the same for every call, but for its holes."""


@dataclass(frozen=True, slots=True)
class Around:
    """The texts around a value, and of which JSON types (`integer` is a `number`) the values are."""

    kinds: frozenset[str]
    before: Fixed
    behind: Fixed


@dataclass(frozen=True, slots=True)
class Pairs:
    """Arguments one by one: before KEY around[VALUE] (separator before KEY around[VALUE])*, or none.

    A string stands as it is, or with `is_quoted` as JSON; other values are JSON, but for `words`.

    Attributes:
        around: by the types of values; of a type that stands in none, a value cannot be written.
        words: how true, false and null are written.
        kinds: the types of each tool's arguments by their names, where they are known; they tell a number
            from a string of digits. The name "" stands for all others.
    """

    before: Fixed
    separator: Fixed
    around: tuple[Around, ...]
    words: tuple[str, str, str] = ("true", "false", "null")
    is_quoted: bool = False
    kinds: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict, compare=False)

    @property
    def parts(self) -> tuple[Fixed, ...]:
        """All fixed texts."""
        return (self.before, self.separator, *(text for a in self.around for text in (a.before, a.behind)))


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a model writes calls. An answer of calls is

        opening NAME middle ARGUMENTS tail (separator NAME middle ARGUMENTS tail)* closing

    where ARGUMENTS is a JSON object, or `pairs`. A vocabulary may have tokens of their own for parts of the
    fixed texts.

    Attributes:
        separator: None where an answer holds one call only.
        follows_text: whether text may stand in front of the calls.
        pairs: how arguments are written one by one; None where they are a JSON object.
    """

    opening: Fixed
    middle: Fixed
    tail: Fixed
    separator: Fixed | None
    closing: Fixed
    follows_text: bool = False
    pairs: Pairs | None = None

    @property
    def parts(self) -> tuple[Fixed, ...]:
        """All fixed texts."""
        of_pairs = self.pairs.parts if self.pairs else ()
        return (self.opening, self.middle, self.tail, self.separator or (), self.closing, *of_pairs)

    def end_at(self, ends: Collection[str]) -> "CallFormat | None":
        """The same format for a model that stops at `ends`; None where it stops within a call."""
        cut = (
            self
            if self.separator is None or not _holds(self.separator, ends)
            else replace(self, separator=None)
        )
        closing = _cut(cut.closing, ends)
        tail = _cut(cut.tail, ends)
        if tail != cut.tail:
            cut, closing = replace(cut, tail=tail, separator=None), ()
        inner = (cut.opening, cut.middle, *(cut.pairs.parts if cut.pairs else ()))
        if any(_holds(fixed, ends) for fixed in inner):
            return None
        if cut.pairs and not spell_fixed(tail).strip():
            return None  # nothing would tell that there are no more arguments
        return replace(cut, closing=closing)


MISTRAL = CallFormat(
    opening=('[TOOL_CALLS][{"name": "',),
    middle=('", "arguments": ',),
    tail=("}",),
    separator=(', {"name": "',),
    closing=("]",),
)
"""A list behind a marker: how Mistral's models write calls, and others that show no form of their own."""


PLAIN = replace(MISTRAL, opening=('[{"name": "',))
"""The list alone, for vocabularies without the marker."""

Part = str | int | Hole
"""A piece of text, a control id, or a hole."""


def find_trigger(form: CallFormat, controls: Mapping[str, int]) -> tuple[str | int, Sequence[Part]]:
    """Find the beginning of the opening that tells calls from text, without spaces, and what follows it.

    It is a control id where the vocabulary has one.
    """
    first, *rest = split_controls(form.opening, controls)
    if isinstance(first, str) and not first.strip() and rest:
        first, *rest = rest
    if isinstance(first, int):
        return first, rest
    text = str(first).lstrip()
    found = _TRIGGER.match(text)
    trigger = found[0] if found else text
    return trigger, [text[len(trigger) :], *rest] if len(trigger) < len(text) else rest


def split_controls(fixed: Fixed, controls: Mapping[str, int]) -> list[Part]:
    """Split `fixed` at the names of control tokens, longest first, and put their ids in their places."""
    names = sorted((name for name in controls if len(name) > 1), key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
    parts: list[Part] = []
    for part in fixed:
        if isinstance(part, Hole):
            parts.append(part)
        else:
            parts += [controls.get(piece, piece) for piece in pattern.split(part) if piece]
    return parts


def spell_fixed(fixed: Fixed) -> str:
    """Spell a fixed text that has no holes."""
    return "".join(part for part in fixed if not isinstance(part, Hole))


def _holds(fixed: Fixed, ends: Collection[str]) -> bool:
    return _cut(fixed, ends) != fixed


def _cut(fixed: Fixed, ends: Collection[str]) -> Fixed:
    """Cut `fixed` at the first of `ends`."""
    kept: list[str | Hole] = []
    for part in fixed:
        found = [part.find(end) for end in ends if end and end in part] if not isinstance(part, Hole) else []
        if found:
            return (*kept, part[: min(found)]) if min(found) else tuple(kept)
        kept.append(part)
    return tuple(kept)
