"""Find out how a chat template writes calls, by letting it write some. Knows texts; nothing about tokens."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

from m7b.call_format import TAG, Around, CallFormat, Fixed, Hole, Pairs, spell_fixed
from m7b.errors import InvalidConversation
from m7b.templates.base import Tools

Write = Callable[[Sequence[Mapping[str, Any]], Tools | None, bool], str]
"""Writes the text of messages and tools; the last argument says whether it ends where an answer begins."""

_Find = Callable[[str, Any, int], tuple[int, int] | None]
"""Finds where arguments begin and end in a text, behind a place."""

_NAMES = ("probe_one", "probe_two", "probe_three")
_IDS = ("probeIdX1", "probeIdX2", "probeIdX3")  # nine letters and digits, as some templates demand
_ARGUMENTS: tuple[dict[str, Any], ...] = ({"zq": "vq"}, {"zw": 71}, {"zx": [True]})
_TEXTS: tuple[dict[str, Any], ...] = ({"zq": "vq"}, {"zw": "vw"}, {"zx": "vx"})
_VALUES: dict[str, tuple[Any, str]] = {  # of each JSON type, and the forms in which m7b writes it
    "string": ("vq", "vq"),
    "number": (71, "71"),
    "boolean": (True, "[tT]rue"),
    "null": (None, "null|None"),
    "array": (["vq"], r"""\[(?:"vq"|'vq')\]"""),
    "object": ({"zk": "vq"}, r"""\{(?:"zk": ?"vq"|'zk': 'vq')\}"""),
}
_ODD = "v\"q'\\\n<q"
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
    """Derive how `write` writes the calls of an answer; None where it shows none, or in no known form."""
    for as_text in (False, True):  # some templates refuse arguments that are an object
        if _try(write, _make_answer(_ARGUMENTS[:1], as_text=as_text)) is None:
            continue
        form = _derive(write, _ARGUMENTS, _find_object, as_text=as_text)
        if form is not None or as_text:
            return form
        pairs = _derive_pairs(write)
        form = _derive(write, _TEXTS, partial(_find_pair, pairs)) if pairs else None
        return replace(form, pairs=pairs) if form else None
    return None


def _derive(
    write: Write, arguments: Sequence[dict[str, Any]], find: _Find, *, as_text: bool = False
) -> CallFormat | None:
    """Derive what stands around names and `arguments`, which `find` finds."""
    plain, begun = _write_around(write)
    text = _try(write, _make_answer(arguments[:1], as_text=as_text)) or ""
    single = _find_parts(_cut_answer(text, plain, begun), arguments[:1], find)
    if single is None:
        return None
    text = _try(write, _make_answer(arguments, as_text=as_text)) or ""
    many = _find_parts(_cut_answer(text, plain, begun), arguments, find)
    both = _try(write, _make_answer(arguments[:1], _TEXT, as_text=as_text)) or ""
    return _join(single, many, follows_text=0 <= both.rfind(_TEXT) < both.rfind(_NAMES[0]))


def _derive_pairs(write: Write) -> Pairs | None:
    """Derive how arguments are written one by one; None where strings are written in no known form."""
    plain, begun = _write_around(write)

    def split(arguments: dict[str, Any], *values: str) -> list[str] | None:
        """What stands between the name, the keys, the values and the end, with the values."""
        text = _cut_answer(_try(write, _make_answer([arguments])) or "", plain, begun)
        steps = [f"(.*?){key}(.*?)({value})" for key, value in zip(arguments, values, strict=True)]
        found = re.search(f"{_NAMES[0]}{''.join(steps)}(.*)", text, re.DOTALL)
        return [*found.groups()] if found else None

    two, one = split({"zq": "vq", "zr": "vr"}, "vq", "vr"), split({"zq": "vq"}, "vq")
    if two is None or one is None:
        return None
    (lead, between, _, end), joint = one, two[3]
    before = lead[len(lead) - _count_common_suffix(lead, joint) :]
    joint = joint[: len(joint) - len(before)]
    n = _count_common(joint, end)
    behind, separator, tail = joint[:n], joint[n:], end[n:]
    odd = _try(write, _make_answer([{"zq": _ODD}])) or ""
    is_quoted = json.dumps(_ODD) in odd and between.endswith('"') and behind.startswith('"')
    is_shown = is_quoted or between + _ODD + behind in odd
    if not behind.strip() or "zq" in behind or not tail.strip() or not is_shown:
        return None
    around: dict[tuple[str, str], set[str]] = {}
    words: list[str] = []
    for kind, (value, pattern) in _VALUES.items():
        found = split({"zq": value}, pattern)
        if found and found[0] == lead and found[3].endswith(tail):
            texts = (found[1], found[3].removesuffix(tail))
            if is_quoted and kind == "string":
                texts = (between[:-1], behind[1:])
            around.setdefault(texts, set()).add(kind)
            words.append(found[2])
    return Pairs(
        _fix(before),
        _fix(separator),
        tuple(
            Around(frozenset(kinds), _fix(texts[0]), _fix(texts[1]))
            for texts, kinds in sorted(around.items(), key=lambda item: -len(item[0][0]))
        ),
        (
            "True" if "True" in words else "true",
            "False" if "True" in words else "false",
            "None" if "None" in words else "null",
        ),
        is_quoted,
    )


def _write_around(write: Write) -> tuple[str, str]:
    """What the template writes of an answer of text, and up to where an answer begins."""
    plain = _try(write, _make_answer((), _TEXT)) or ""
    return plain, _try(write, None) or ""


def _cut_answer(text: str, plain: str, begun: str) -> str:
    """Cut calls out of a text that the template wrote."""
    start = max(_count_common(text, plain), len(begun) if text.startswith(begun) else 0)
    return text[start : len(text) - _count_common_end(text, plain)]


def _try(write: Write, answer: dict[str, Any] | None) -> str | None:
    """Write a question with `answer`, or up to where one begins; returns None where the template refuses."""
    try:
        return write([_USER, answer] if answer else [_USER], _TOOLS, answer is None)
    except InvalidConversation:
        return None


def _make_answer(
    arguments: Sequence[dict[str, Any]], content: str = "", *, as_text: bool = False
) -> dict[str, Any]:
    """Make an assistant's message with a call for each of `arguments`."""
    calls = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given) if as_text else given},
        }
        for id_, name, given in zip(_IDS, _NAMES, arguments, strict=False)
    ]
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    return answer | {"tool_calls": calls} if calls else answer


def _find_parts(answer: str, arguments: Sequence[dict[str, Any]], find: _Find) -> list[str] | None:
    """Find the texts around the names and the arguments of calls; None where not all are there."""
    parts, at = [], 0
    for name, given in zip(_NAMES, arguments, strict=False):
        found = answer.find(name, at)
        place = find(answer, given, found + len(name)) if found >= 0 else None
        if place is None:
            return None
        parts += [answer[at:found], answer[found + len(name) : place[0]]]
        at = place[1]
    return [*parts, answer[at:]] if parts[0].strip() else None


def _find_pair(pairs: Pairs, text: str, arguments: dict[str, Any], start: int) -> tuple[int, int] | None:
    """Find where the one of `arguments`, a string, begins and ends behind `start`."""
    ((key, value),) = arguments.items()
    around = next(around for around in pairs.around if "string" in around.kinds)
    written = json.dumps(value) if pairs.is_quoted else value
    before, inner, behind = map(spell_fixed, (pairs.before, around.before, around.behind))
    wanted = f"{before}{key}{inner}{written}{behind}"
    found = text.find(wanted, start)
    return (found, found + len(wanted)) if found >= 0 else None


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


def _count_common_suffix(a: str, b: str) -> int:
    """Count the characters with which both end, without a part of a marker."""
    n = _count_equal(a[::-1], b[::-1])
    for text in (a, b):
        start = len(text) - n
        n = next((len(text) - tag.end() for tag in TAG.finditer(text) if tag.start() < start < tag.end()), n)
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
