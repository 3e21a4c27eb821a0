"""The grammar of tool calls in a model's own format. Knows formats, schemas and ids of control tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, assert_never

from m7b.call_format import CallFormat, Fixed, Hole, Pairs, Part, find_trigger, spell_fixed, split_controls

_HOLES = {Hole.ID: "/[a-zA-Z0-9]{9}/", Hole.NUMBER: "/[0-9]{1,4}/"}
_ANY = "(.|\\n)*"


class Place(Enum):
    """Where an answer may hold calls.

    `ONLY`: it is calls. `REST`: it is what follows the trigger of calls. `BESIDE_TEXT`: it is text, or calls,
    in front of which the format may allow text. `NOWHERE`: it is text without the trigger of calls.
    """

    ONLY = auto()
    REST = auto()
    BESIDE_TEXT = auto()
    NOWHERE = auto()


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls in `format` of tools by their names, each with the schema of its arguments.

    `controls` are the control ids by their names: where the format writes one, the id must be written.
    """

    format: CallFormat
    tools: Mapping[str, Mapping[str, Any]]
    controls: Mapping[str, int]
    place: Place

    @property
    def control_ids(self) -> frozenset[int]:
        """The control ids that the calls need."""
        parts = (part for fixed in self.format.parts for part in split_controls(fixed, self.controls))
        return frozenset(part for part in parts if isinstance(part, int))


@dataclass(frozen=True, slots=True)
class ValueTexts:
    """What stands around values of some JSON types, as Lark: `stop` is a text, `behind` follows that.

    `forbidden` is what a string that stands as it is cannot hold.
    """

    kinds: frozenset[str]
    before: str
    stop: str
    behind: str
    forbidden: str


@dataclass(frozen=True, slots=True)
class PairTexts:
    """What stands around keys, values and pairs, as Lark; see `Pairs`."""

    before: str
    separator: str
    values: tuple[ValueTexts, ...]
    words: tuple[str, str, str]
    is_quoted: bool


def write_calls(calls: Calls) -> str:
    """Write the calls in llguidance's variant of Lark; what tool n takes is the grammar `arguments_n`."""
    form, controls = calls.format, calls.controls
    trigger, rest = find_trigger(form, controls)
    if calls.place is Place.NOWHERE:
        return f"start: TEXT\nTEXT: /{_ANY}/ & ~/{_ANY}{_escape(str(trigger))}{_ANY}/"
    more = "" if form.separator is None else f"({_write(split_controls(form.separator, controls))} call)*"
    rules = [f"calls: call {more} {_write(split_controls(form.closing, controls))}"]
    match calls.place:
        case Place.ONLY:
            rules.append(f"start: {_write(split_controls(form.opening, controls))} calls")
        case Place.REST:
            rules.append(f"start: {_write(rest)} calls")
        case Place.BESIDE_TEXT:
            before = _ANY if form.follows_text else "\\s*"
            rules.append(f"start: TEXT | begin {_write(rest)} calls\nTEXT: /{_ANY}/")
            rules.append(f"begin[lazy]: /{before}/ {_quote(str(trigger))}")
        case other:
            assert_never(other)
    rules.append("call: " + " | ".join(f"call_{n}" for n in range(len(calls.tools))))
    tail = _write(split_controls(form.tail, controls))
    for n, name in enumerate(calls.tools):
        head = _write([name, *split_controls(form.middle, controls)])
        rules.append(f"call_{n}: {head} @arguments_{n} {tail}")
    return "\n".join(rules)


def write_pair_texts(pairs: Pairs, controls: Mapping[str, int]) -> PairTexts:
    """Write the texts around arguments that stand one by one."""

    def write(fixed: Fixed) -> str:
        return _write(split_controls(fixed, controls))

    values = []
    for around in pairs.around:
        first, *rest = split_controls(around.behind, controls) or [""]
        stop, behind = ("", [first, *rest]) if isinstance(first, int) else (first, rest)
        forbidden = spell_fixed(around.behind).strip()
        values.append(
            ValueTexts(around.kinds, write(around.before), _quote(str(stop)), _write(behind), forbidden)
        )
    return PairTexts(write(pairs.before), write(pairs.separator), tuple(values), pairs.words, pairs.is_quoted)


def _write(parts: Sequence[Part]) -> str:
    """Write fixed parts as Lark: neighbouring texts as one, ids of control tokens, patterns for holes."""
    written: list[str] = []
    text = ""
    for part in parts:
        if isinstance(part, str) and not isinstance(part, Hole):
            text += part
            continue
        written += [_quote(text), _HOLES[part] if isinstance(part, Hole) else f"<[{part}]>"]
        text = ""
    return " ".join(filter(None, [*written, _quote(text)]))


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _escape(text: str) -> str:
    """Escape `text` for a pattern between slashes."""
    return "".join(
        letter if letter.isalnum() or letter in "_ " else f"\\x{{{ord(letter):x}}}" for letter in text
    )
