"""Find out how a chat template writes calls, by letting it write some. Knows texts; nothing about tokens."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from m7b.call_format import TAG, CallFormat, Fixed, Hole
from m7b.errors import InvalidConversation
from m7b.templates.base import Tools

Write = Callable[[Sequence[Mapping[str, Any]], Tools | None, bool], str]
"""Writes the text of messages and tools; the last argument says whether it ends where an answer begins."""

_NAMES = ("probe_one", "probe_two", "probe_three")
_IDS = ("probeIdX1", "probeIdX2", "probeIdX3")  # nine letters and digits, as some templates demand
_ARGUMENTS: tuple[dict[str, Any], ...] = ({"zq": "vq"}, {"zw": 71}, {"zx": [True]})
_TEXT = "Zq says"
_USER = {"role": "user", "content": "Q"}
_TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind, "description": "d"} for key in arguments},
                "required": [*arguments],
                "additionalProperties": False,
            },
        },
    }
    for name, arguments, kind in zip(_NAMES, _ARGUMENTS, ("string", "integer", "array"), strict=True)
)
_ID_MARK, _NUMBER_MARK = "\ufdd0", "\ufdd1"
_MARKS = {_ID_MARK: Hole.ID, _NUMBER_MARK: Hole.NUMBER}
_JSON = json.JSONDecoder()


def derive_call_format(write: Write) -> CallFormat | None:
    """Derive how `write` writes the calls of an answer; returns None where it shows none, or not as JSON."""
    for as_text in (False, True):  # some templates refuse arguments that are an object
        text = _try(write, _make_answer(1, as_text=as_text))
        if text is None:
            continue
        plain = _try(write, _make_answer(0, _TEXT)) or ""
        begun = _try(write, None) or text
        single = _find_parts(text, plain, begun, 1)
        if single is None:
            return None
        both = _try(write, _make_answer(1, _TEXT, as_text=as_text)) or ""
        many = _find_parts(_try(write, _make_answer(3, as_text=as_text)) or "", plain, begun, 3)
        return _join(single, many, follows_text=0 <= both.rfind(_TEXT) < both.rfind(_NAMES[0]))
    return None


def _try(write: Write, answer: dict[str, Any] | None) -> str | None:
    """Write a question with `answer`, or up to where one begins; returns None where the template refuses."""
    try:
        return write([_USER, answer] if answer else [_USER], _TOOLS, answer is None)
    except InvalidConversation:
        return None


def _make_answer(n_calls: int, content: str = "", *, as_text: bool = False) -> dict[str, Any]:
    """Make an assistant's message with the first `n_calls` of the calls."""
    calls = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
        }
        for id_, name, arguments in zip(_IDS, _NAMES, _ARGUMENTS, strict=True)
    ]
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    return answer | {"tool_calls": calls[:n_calls]} if n_calls else answer


def _find_parts(text: str, plain: str, begun: str, n_calls: int) -> list[str] | None:
    """Find the texts around the names and the arguments of `n_calls` calls; None where not all are there.

    Args:
        text: what the template writes of the calls.
        plain: the same with an answer of text instead.
        begun: the same without the answer.
        n_calls: how many calls to find.
    """
    start = max(_count_common(text, plain), len(begun) if text.startswith(begun) else 0)
    answer = text[start : len(text) - _count_common_end(text, plain)]
    parts, at = [], 0
    for name, arguments in zip(_NAMES[:n_calls], _ARGUMENTS, strict=False):
        found = answer.find(name, at)
        place = _find_object(answer, arguments, found + len(name)) if found >= 0 else None
        if place is None:
            return None
        parts += [answer[at:found], answer[found + len(name) : place[0]]]
        at = place[1]
    return [*parts, answer[at:]] if parts[0].strip() else None


def _find_object(text: str, value: Any, start: int) -> tuple[int, int] | None:
    """Find where the JSON of `value` begins and ends behind `start`."""
    for found in re.compile(r"\{").finditer(text, start):
        try:
            read, end = _JSON.raw_decode(text, found.start())
        except ValueError:
            continue
        if read == value:
            return found.start(), end
    return None


def _join(single: list[str], many: list[str] | None, *, follows_text: bool) -> CallFormat:
    """Join the parts of one call with those of three, in which more can be told apart."""
    opening, middle, closing = (_unify([part]) or "" for part in single)
    alone = CallFormat(_fix(opening), _fix(middle), _fix(closing), None, (), follows_text)
    if many is None or _unify(many[:1]) != opening or _unify(many[-1:]) != closing:
        return alone
    shared, between = _unify(many[1:-1:2]), _unify(many[2:-1:2])
    if shared is None or between is None:
        return alone
    n = _count_common(between, closing)
    tail, separator, rest = map(_fix, (between[:n], between[n:], closing[n:]))
    return CallFormat(alone.opening, _fix(shared), tail, separator, rest, follows_text)


def _unify(texts: Sequence[str]) -> str | None:
    """Make one text of `texts` that differ in ids and in numbers that count; None where more differs."""
    for id_ in _IDS:
        texts = [text.replace(id_, _ID_MARK) for text in texts]
    if len(set(texts)) == 1:
        return texts[0]
    split = [re.split(r"(\d+)", text) for text in texts]
    if len({len(pieces) for pieces in split}) > 1:
        return None
    unified = [_unify_piece(pieces) for pieces in zip(*split, strict=True)]
    return None if None in unified else "".join(piece or "" for piece in unified)


def _unify_piece(pieces: Sequence[str]) -> str | None:
    if len(set(pieces)) == 1:
        return pieces[0]
    if all(piece.isdecimal() for piece in pieces):
        first, *others = map(int, pieces)
        return _NUMBER_MARK if others == [first + n for n in range(1, len(pieces))] else None
    return None


def _fix(text: str) -> Fixed:
    """Replace the marks in `text` by holes."""
    pieces = re.split(f"([{_ID_MARK}{_NUMBER_MARK}])", text)
    return tuple(_MARKS.get(piece, piece) for piece in pieces if piece)


def _count_common(a: str, b: str) -> int:
    """Count the characters with which both begin, without a part of a marker."""
    n = _count_equal(a, b)
    for text in (a, b):
        n = next((tag.start() for tag in TAG.finditer(text) if tag.start() < n < tag.end()), n)
    return n


def _count_common_end(text: str, plain: str) -> int:
    """Count the characters with which both end: all behind the plain answer, or whole markers of that."""
    behind = plain.rpartition(_TEXT)[2]
    if text.endswith(behind):
        return len(behind)
    n = _count_equal(text[::-1], behind[::-1])
    tag = TAG.search(text, len(text) - n)
    return len(text) - tag.start() if tag else 0


def _count_equal(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
