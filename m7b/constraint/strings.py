"""Strings as terminals of a Lark grammar: lengths, and patterns with look-aheads and negations.

A pattern describes the text of a string, a terminal its JSON: `"` is `\\"` there, a line end `\\n`. Each
character has one spelling, so what a pattern rules out cannot be written in another way. A plain terminal
describes the text itself.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from m7b.constraint.regex import (
    Chars,
    Choice,
    Edge,
    Look,
    Node,
    Ranges,
    Repeat,
    Sequence,
    has_property,
    invert_ranges,
    parse_regex,
)
from m7b.errors import UsageError

TERMINALS = r"""
CHARACTER: /[^"\\\x00-\x1F\x7F]|\\["\\nrtbf]/
ANY: /(?:[^"\\\x00-\x1F\x7F]|\\["\\nrtbf])*/
STRING: /"(?:[^"\\\x00-\x1F\x7F]|\\["\\nrtbf])*"/
PLAIN_CHARACTER: /[^\x00-\x08\x0B\x0C\x0E-\x1F\x7F]/
PLAIN: /[^\x00-\x08\x0B\x0C\x0E-\x1F\x7F]*/
""".strip()
"""Terminals that the expressions here refer to."""

_CHARACTER = r'(?:[^"\\\x00-\x1F\x7F]|\\["\\nrtbf])'
_ESCAPES = {'"': '"', "\\": "\\", "\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}
_RAW: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))
_TEXT: Ranges = ((0x9, 0xA), (0xD, 0xD), (0x20, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))
_EMPTY = '""'
_MAX_LENGTH = 60_000  # of an expression; look-aheads double what follows them


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a string matches somewhere, or with `is_negated` nowhere."""

    regex: str
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Strings:
    """Strings of some lengths that keep to patterns."""

    shortest: int = 0
    longest: int | None = None
    patterns: frozenset[Pattern] = frozenset()


@dataclass(frozen=True, slots=True)
class _Spelling:
    """How strings are written: their terminals, one character, and what stands around them."""

    whole: str
    any: str
    character: str
    pattern: str
    quote: str
    end: str
    is_json: bool


_AS_JSON = _Spelling("STRING", "ANY", "CHARACTER", _CHARACTER, '"', r'"\""', is_json=True)
_AS_TEXT = _Spelling(
    "PLAIN", "PLAIN", "PLAIN_CHARACTER", r"[^\x00-\x08\x0B\x0C\x0E-\x1F\x7F]", "", "", is_json=False
)


def write_strings(strings: Strings, *, is_plain: bool = False) -> str:
    """Write the terminal of strings as JSON, or with `is_plain` as they are.

    Raises:
        UsageError: a pattern cannot be enforced.
    """
    form = _AS_TEXT if is_plain else _AS_JSON
    parts = []
    if strings.shortest or strings.longest is not None:
        longest = "" if strings.longest is None else strings.longest
        parts.append(f"/{form.quote}{form.pattern}{{{strings.shortest},{longest}}}{form.quote}/")
    for pattern in sorted(strings.patterns, key=lambda pattern: (pattern.is_negated, pattern.regex)):
        expression = _write_search(parse_regex(pattern.regex), form)
        if expression is None:
            parts += [] if pattern.is_negated else ["(/a/ & /b/)"]
        else:
            parts.append(f"({'~' if pattern.is_negated else ''}({form.end} {expression} {form.end}))")
    return " & ".join([form.whole, *parts])


def exclude_strings(terminal: str, texts: Iterable[str]) -> str:
    """Write the terminal of the strings of `terminal` other than `texts`."""
    excluded = " | ".join(quote(write_json(text)) for text in texts)
    return f"{terminal} & (~({excluded}))" if excluded else terminal


def match_literally(texts: Iterable[str]) -> str:
    """Write a regular expression that these strings match alone."""
    return "^(?:" + "|".join("".join(_escape(character) for character in text) for text in texts) + ")$"


def quote(text: str) -> str:
    """Write `text` as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def write_json(value: object) -> str:
    """Write JSON in the one spelling that strings have here."""
    return json.dumps(value, ensure_ascii=False)


def _escape(character: str) -> str:
    return character if character.isalnum() else f"\\u{{{ord(character):x}}}"


def _write_search(node: Node, form: _Spelling) -> str | None:
    """Write the JSON text of strings in which `node` matches somewhere; None where there are none."""
    options = node.options if isinstance(node, Choice) else (node,)
    found = []
    for option in options:
        if _has_start(option):
            found.append(_follow(option, form.any, form, is_start=True))
            later = _follow(option, form.any, form, is_start=False)
            found.append(later and f"{form.character} {form.any} {later}")
        else:
            written = _follow(option, form.any, form, is_start=False)
            found.append(f"{form.any} {written or '(/a/ & /b/)'}")
    return _join(found)


def _join(options: Iterable[str | None]) -> str | None:
    kept = [option for option in dict.fromkeys(options) if option is not None]
    text = kept[0] if len(kept) == 1 else f"({' | '.join(kept)})" if kept else None
    if text and len(text) > _MAX_LENGTH:
        raise UsageError("a pattern cannot be enforced: its look-aheads take too much work")
    return text


def _follow(node: Node, rest: str, form: _Spelling, *, is_start: bool) -> str | None:
    """Write what begins with `node` and goes on with `rest`; None where nothing does."""
    if not _has_assertion(node):
        return f"/{_write_plain(node, form)}/ {rest}"
    match node:
        case Sequence(items):
            return _follow_all(items, rest, form, is_start=is_start)
        case Choice(options):
            return _join(_follow(option, rest, form, is_start=is_start) for option in options)
        case Repeat(item, 0, 1):
            return _join([_follow(item, rest, form, is_start=is_start), rest])
        case Repeat(item, 1, 1):
            return _follow(item, rest, form, is_start=is_start)
        case Repeat():
            raise UsageError("a pattern cannot be enforced: it repeats a look-ahead, ^ or $")
        case Look(item, is_negated):
            ahead = _follow(item, form.any, form, is_start=is_start)
            if ahead is None:
                return rest if is_negated else None
            return f"(({'~' if is_negated else ''}({ahead})) & ({rest}))"
        case Edge(of_start):
            if of_start:
                return rest if is_start else None
            return _EMPTY if rest == form.any else f"({_EMPTY} & ({rest}))"
        case Chars():
            raise AssertionError("characters are plain")
        case _:
            assert_never(node)


def _follow_all(items: tuple[Node, ...], rest: str, form: _Spelling, *, is_start: bool) -> str | None:
    """Write what begins with all of `items`, and goes on with `rest`."""
    starts, is_here = [], is_start
    for index, item in enumerate(items):
        starts.append(is_here)
        is_open = is_here and _may_be_empty(item) and not isinstance(item, Look | Edge)
        if is_open and any(_has_start(later) for later in items[index + 1 :]):
            raise UsageError("a pattern cannot be enforced: it has ^ behind what may be empty")
        is_here = is_here and isinstance(item, Look | Edge)
    written: str | None = rest
    for plain, here in zip(reversed(items), reversed(starts), strict=True):
        if written is None:
            return None
        if len(written) > _MAX_LENGTH:
            raise UsageError("a pattern cannot be enforced: its look-aheads take too much work")
        written = _follow(plain, written, form, is_start=here)
    return written


def _has_assertion(node: Node) -> bool:
    match node:
        case Look() | Edge():
            return True
        case Chars():
            return False
        case Sequence(parts) | Choice(parts):
            return any(_has_assertion(part) for part in parts)
        case Repeat(item, _, _):
            return _has_assertion(item)
        case _:
            assert_never(node)


def _has_start(node: Node) -> bool:
    match node:
        case Edge(is_start):
            return is_start
        case Chars():
            return False
        case Sequence(parts) | Choice(parts):
            return any(_has_start(part) for part in parts)
        case Repeat(item, _, _) | Look(item, _):
            return _has_start(item)
        case _:
            assert_never(node)


def _may_be_empty(node: Node) -> bool:
    match node:
        case Look() | Edge():
            return True
        case Chars():
            return False
        case Sequence(parts):
            return all(_may_be_empty(part) for part in parts)
        case Choice(parts):
            return any(_may_be_empty(part) for part in parts)
        case Repeat(item, least, _):
            return least == 0 or _may_be_empty(item)
        case _:
            assert_never(node)


def _write_plain(node: Node, form: _Spelling) -> str:
    """Write a node without look-aheads and edges as a regular expression over the written text."""
    match node:
        case Chars():
            return _write_characters(node, form)
        case Sequence(items):
            return "".join(_write_plain(item, form) for item in items) or "(?:)"
        case Choice(options):
            return f"(?:{'|'.join(_write_plain(option, form) for option in options)})"
        case Repeat(item, least, most):
            bounds = f"{{{least},{'' if most is None else most}}}"
            return f"(?:{_write_plain(item, form)}){bounds}"
        case Look() | Edge():
            raise AssertionError("edges are not plain")
        case _:
            assert_never(node)


def _write_characters(chars: Chars, form: _Spelling) -> str:
    if not form.is_json:
        return _write_text_characters(chars)
    escaped = "".join(letter for character, letter in _ESCAPES.items() if _contains(chars, character))
    if chars.properties:
        inside = _write_ranges(chars.ranges) + "".join(map(_write_property, chars.properties))
        raw = f'[[{"^" if chars.is_negated else ""}{inside}]&&[^"\\\\\\x00-\\x1F\\x7F]]'
    else:
        inside = _write_ranges(_intersect(chars.ranges, _RAW))
        if _intersect(chars.ranges, _RAW) == _RAW:
            inside = r'^"\\\x00-\x1F\x7F'
        raw = f"[{inside}]" if inside else ""
    options = [raw] if raw else []
    if escaped:
        options.append(r"\\[" + "".join("\\\\" if letter == "\\" else letter for letter in escaped) + "]")
    if not options:
        return "(?:[a&&b])"  # only control characters, which are not written
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def _write_text_characters(chars: Chars) -> str:
    if chars.properties:
        inside = _write_ranges(chars.ranges) + "".join(map(_write_property, chars.properties))
        return f"[[{'^' if chars.is_negated else ''}{inside}]&&{_AS_TEXT.pattern}]"
    inside = _write_ranges(_intersect(chars.ranges, _TEXT))
    return f"[{inside}]" if inside else "(?:[a&&b])"


def _contains(chars: Chars, character: str) -> bool:
    within = any(low <= ord(character) <= high for low, high in chars.ranges) or any(
        has_property(character, name) for name in chars.properties
    )
    return within is not chars.is_negated


def _intersect(first: Ranges, second: Ranges) -> Ranges:
    outside = (*invert_ranges(first), *invert_ranges(second))
    return invert_ranges(outside)


def _write_ranges(ranges: Ranges) -> str:
    return "".join(
        f"\\x{{{low:x}}}" if low == high else f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges
    )


def _write_property(name: str) -> str:
    return f"\\P{{{name[1:]}}}" if name.startswith("^") else f"\\p{{{name}}}"
