"""Parse the calls of tools that a model wrote.

Knows the shape of calls; nothing about tokens, nor about what a call does.
"""

import ast
import json
import math
import re
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from m7b.call_format import (
    MISTRAL,
    TAG,
    Around,
    CallFormat,
    Fixed,
    Hole,
    Pairs,
    find_trigger,
    spell_fixed,
)
from m7b.generation import CallPart, ToolCall

_NAME = re.compile(r"[\w-]+")
_START = re.compile(r"\[\s*\{|\{\s*[\"']")  # other brackets are prose
_PYTHON_PARTS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\[{\]}]", re.DOTALL)
_IN_STRING = re.compile(  # a quote, letters, an escape; both halves of a character
    r"""["]|[^"\\]+|\\u[dD][89abAB]..\\u[dD].{3}|\\u(?![dD][89abAB]).{4}|\\[^u]"""
)
_IN_JSON = re.compile(r"""["{}\[\]]|[,:\s]+|(?P<scalar>[^\s,:\[\]{}"]+)(?=[\s,:\[\]{}"])""")
_MAX_QUOTED = 20_000  # characters that are read as Python; the parser's time grows with them


def parse_calls(text: str, *, lenient: bool = False, form: CallFormat = MISTRAL) -> tuple[ToolCall, ...]:
    """Parse the calls in `text`; returns none where it holds something else. See `split_calls`."""
    return split_calls(text, lenient=lenient, form=form)[0]


def split_calls(
    text: str, *, lenient: bool = False, form: CallFormat = MISTRAL
) -> tuple[tuple[ToolCall, ...], str]:
    """Parse the calls in `text`, and what stands behind them. The ids of calls are new.

    What stands around them is that of `form`, with any spaces; spaces in strings without quotes are kept.
    Where it is not, calls are JSON objects or lists of them: a marker, a fence or prose before the first
    is skipped, and so is prose behind it; a marker behind it begins more. `arguments` may be called
    `parameters`, and be JSON in a string, or null. With `lenient` it reads Python's quotes as well. NaN,
    1e400 and lone surrogates are no strict JSON, and so no call; of keys that come twice the last counts.
    """
    found, end = _parse_format(text, form)
    if found:
        return found, text[end:]
    markers = {marker[0] for fixed in form.parts for part in fixed for marker in TAG.finditer(part)}
    return _parse_entries(text, markers, lenient=lenient)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """The fixed texts of a format, with any spaces in them."""

    trigger: str
    opening: re.Pattern[str]
    middle: re.Pattern[str]
    tail: re.Pattern[str]
    separator: re.Pattern[str]
    closing: re.Pattern[str]
    lead: re.Pattern[str]  # in front of a first key
    joint: re.Pattern[str]  # in front of other keys
    end: re.Pattern[str]  # what may follow a value, behind which nothing stands


@lru_cache(maxsize=8)
def _compile(form: CallFormat) -> _Patterns:
    trigger, rest = find_trigger(form, {})
    opening = (str(trigger), *(part for part in rest if isinstance(part, str)))
    # The trigger may be a control token, which has no text.
    start = f"(?:{_write_pattern(opening[:1])})?{_write_pattern(opening[1:])}"
    separator = "(?!)" if form.separator is None else _write_pattern(form.separator)
    middle, tail, closing = map(_write_pattern, (form.middle, form.tail, form.closing))
    before, between = (form.pairs.before, form.pairs.separator) if form.pairs else ((), ())
    lead, joint = map(_write_pattern, (before, between))
    end = rf"{joint if between else '(?!)'}|\s*{re.escape(spell_fixed(form.tail).strip()[:1])}"
    texts = (start, middle, tail, separator, closing, lead, joint + lead, end)
    return _Patterns(str(trigger), *map(re.compile, texts))


class CallReader:
    """Reads calls while they are written, as `form` has them. For text that a grammar keeps in order.

    Attributes:
        calls: those that have begun, with the arguments so far.
    """

    def __init__(self, form: CallFormat) -> None:
        patterns = _compile(form)
        opening, separator = patterns.opening.pattern, patterns.separator.pattern
        again = f"{patterns.closing.pattern}(?={re.escape(patterns.trigger)}){opening}"
        self._pairs = form.pairs
        begins = r"\{"
        if form.pairs:
            before = form.pairs.before
            begins = f"{_write_pattern(before)}|{patterns.tail.pattern}" if before else ""
        name = rf"(?P<name>{_NAME.pattern}){patterns.middle.pattern}(?={begins})"
        self._first = re.compile(opening + name)
        self._next = re.compile(f"{patterns.tail.pattern}(?:{separator}|{again}){name}")
        self._text = ""  # what is not told
        self._depth = 0  # of brackets in the arguments
        self._is_string = False
        self._patterns = patterns
        self.calls: list[ToolCall] = []

    def push(self, text: str) -> tuple[CallPart, ...]:
        """What `text`, which follows all that was pushed before, tells of calls."""
        self._text += text
        parts: list[CallPart] = []
        while self._text:
            if not self._depth:
                head = (self._next if self.calls else self._first).match(self._text)
                if head is None:
                    break
                self._text = self._text[head.end() :]
                self.calls.append(ToolCall(head["name"], "", _make_id()))
                parts.append(CallPart(len(self.calls) - 1, self.calls[-1].id, head["name"]))
                self._depth = 1 if self._pairs else 0  # until its pairs are over
            call = self.calls[-1]
            piece = self._take_pairs(self._pairs, call) if self._pairs else self._take_arguments()
            if not piece:
                break
            parts.append(CallPart(len(self.calls) - 1, call.id, arguments=piece))
            self.calls[-1] = replace(call, arguments=call.arguments + piece)
        return tuple(parts)

    def _take_pairs(self, pairs: Pairs, call: ToolCall) -> str:
        """Take the pairs that are whole, and the end of the arguments, as `split_calls` writes them."""
        patterns = self._patterns
        taken = ""
        while True:
            is_first = not call.arguments + taken
            lead, fixed = (patterns.lead, ()) if is_first else (patterns.joint, pairs.separator)
            if spell_fixed((*fixed, *pairs.before)).lstrip().startswith(self._text.lstrip()):
                return taken
            begun = lead.match(self._text)
            if begun is None or (is_first and not pairs.before and patterns.tail.match(self._text)):
                self._depth = 0
                return taken + ("{}" if is_first else "}")
            pair = _parse_pair(self._text, begun.end(), patterns, pairs, call.name)
            if pair is None:
                return taken
            key, value, end = pair
            taken += ("{" if is_first else ", ") + json.dumps({key: value}, ensure_ascii=False)[1:-1]
            self._text = self._text[end:]

    def _take_arguments(self) -> str:
        """Take what is sure of the arguments of the call that has begun, as `split_calls` writes them."""
        taken, end = [], 0
        while part := (_IN_STRING if self._is_string else _IN_JSON).match(self._text, end):
            end = part.end()
            if part[0] == '"':
                self._is_string = not self._is_string
            elif self._is_string:
                text = json.loads(f'"{part[0]}"', strict=False)
                taken.append(json.dumps(text, ensure_ascii=False)[1:-1])
                continue
            taken.append(json.dumps(json.loads(part[0])) if part.lastgroup else part[0])
            self._depth += (part[0] in "[{") - (part[0] in "]}")
            if self._depth == 0:
                break
        self._text = self._text[end:]
        return "".join(taken)


def _write_pattern(fixed: Fixed) -> str:
    pieces: list[str] = []
    for part in fixed:
        if isinstance(part, Hole):
            pieces.append(r"[\w-]*")
        else:
            pieces += map(re.escape, re.findall(r"\w+|[^\w\s]", part))
    before = "" if pieces[:1] == ['"'] else r"\s*"  # in quotes spaces count
    after = "" if pieces[-1:] == ['"'] else r"\s*"
    return before + r"\s*".join(pieces) + after


def _parse_format(text: str, form: CallFormat) -> tuple[tuple[ToolCall, ...], int]:
    """Parse calls that are written as the format has them; returns where they end, too."""
    patterns = _compile(form)
    begun = patterns.opening.match(text) or patterns.opening.match(text, max(0, text.find(patterns.trigger)))
    calls: list[ToolCall] = []
    at = begun.end() if begun else -1
    while at >= 0:
        name = _NAME.match(text, at)
        middle = patterns.middle.match(text, name.end()) if name else None
        if name is None or middle is None:
            return (), 0
        value: Any
        if form.pairs:
            value, end = _parse_pairs(text, middle.end(), patterns, form.pairs, name[0])
        else:
            value, end = _parse_value(text, middle.end(), lenient=False)
        tail = patterns.tail.match(text, end)
        call = _parse_call({"name": name[0], "arguments": value}) if isinstance(value, dict) else None
        if call is None or tail is None:
            return (), 0
        calls.append(call)
        more, closing = patterns.separator.match(text, tail.end()), patterns.closing.match(text, tail.end())
        if more is None and closing and text.startswith(patterns.trigger, closing.end()):
            more = patterns.opening.match(text, closing.end())
        if more is None:
            return (tuple(calls), closing.end()) if closing else ((), 0)
        at = more.end()
    return (), 0


def _parse_pairs(
    text: str, at: int, patterns: _Patterns, pairs: Pairs, name: str
) -> tuple[dict[str, Any], int]:
    """Parse arguments that stand one by one; returns where they end, too."""
    found: dict[str, Any] = {}
    if not pairs.before and patterns.tail.match(text, at):
        return found, at
    while lead := (patterns.joint if found else patterns.lead).match(text, at):
        pair = _parse_pair(text, lead.end(), patterns, pairs, name)
        if pair is None:
            break
        key, value, at = pair
        found[key] = value
    return found, at


def _parse_pair(
    text: str, at: int, patterns: _Patterns, pairs: Pairs, name: str
) -> tuple[str, Any, int] | None:
    """Parse a key, its value, and where that ends, of the tool `name`; None where they are not whole."""
    places = []
    for around in pairs.around:
        before = spell_fixed(around.before)
        place = text.find(before.rstrip(), at)
        if place > at:
            start = place + len(before if text.startswith(before, place) else before.rstrip())
            places.append((place, -len(before), start, around))
    if not places:
        return None
    place, _, start, around = min(places, key=lambda entry: entry[:2])
    key, behind = text[at:place], spell_fixed(around.behind)
    kinds = pairs.kinds.get(name, {})
    possible = kinds.get(key, kinds.get("", around.kinds))
    if behind:
        end = text.find(behind.lstrip(), start)
        raw = text[start:end].removesuffix(behind[: len(behind) - len(behind.lstrip())])
        return (
            (key, _read_value(raw, around, pairs, possible), end + len(behind.lstrip())) if end >= 0 else None
        )
    word = re.compile("|".join(map(re.escape, pairs.words))).match(text, start)
    value, end = (
        (_read_value(word[0], around, pairs, possible), word.end())
        if word
        else _parse_value(text, start, lenient=True)
    )
    return (key, value, end) if patterns.end.match(text, end) else None


def _read_value(raw: str, around: Around, pairs: Pairs, kinds: Collection[str]) -> Any:
    """Read a value, which is of one of `kinds`: a string as it is, or what other values write."""
    possible = around.kinds & frozenset(kinds)
    if around.kinds <= {"string"} or possible == {"string"}:
        return _decode(raw) if pairs.is_quoted else raw
    constants = dict(zip(pairs.words, (True, False, None), strict=True))
    value = constants[raw] if raw in constants else _decode(raw)
    if isinstance(value, str):
        return value if pairs.is_quoted else raw
    return raw if possible and "string" in around.kinds and _find_kind(value) not in possible else value


def _decode(raw: str) -> Any:
    """Decode JSON, or a list or an object as Python writes it; anything else is text."""
    value, end = _parse_value(raw, 0, lenient=raw[:1] in ("[", "{"))
    return value if end == len(raw) and (value is not None or raw == "null") else raw


def _find_kind(value: Any) -> str:
    """The JSON type of a value."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", dict: "object", list: "array"}
    return kinds.get(type(value), "null")


def _parse_entries(text: str, markers: Collection[str], *, lenient: bool) -> tuple[tuple[ToolCall, ...], str]:
    """Parse calls that are objects, or lists of them, between any of `markers`."""
    marker = "|".join(map(re.escape, markers)) or "(?!)"
    between = re.compile(rf"\s*(?:(?:{marker})\s*)+(?=[\[{{])")
    behind = re.compile(rf"\s*(?:(?:{marker})\s*)*")
    entries: list[Any] = []
    at = 0
    while not entries or between.match(text, at):
        start = _START.search(text, at)
        if start is None:
            return (), ""
        value, at = _parse_value(text, start.start(), lenient=lenient)
        entries += value if isinstance(value, list) and value else [value]
    calls = [_parse_call(entry) for entry in entries]
    end = behind.match(text, at)
    rest = text[end.end() if end else at :]
    return (tuple(call for call in calls if call), rest) if all(calls) else ((), "")


def _parse_value(text: str, start: int, *, lenient: bool) -> tuple[Any, int]:
    """Parse the value that begins at `start`; returns it and where it ends, or None and the end of `text`."""
    try:
        return _STRICT.raw_decode(text, start)
    except (ValueError, RecursionError):
        pass
    end = _find_python_end(text[start : start + _MAX_QUOTED]) if lenient else 0
    try:
        return ast.literal_eval(text[start : start + end]), start + end
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None, len(text)


def _find_python_end(text: str) -> int:
    """Find where the bracket that begins `text` is closed, 0 where it is not."""
    depth = 0
    for part in _PYTHON_PARTS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return 0


def _parse_call(entry: Any) -> ToolCall | None:
    """Parse one call, None where the value is no call."""
    if not isinstance(entry, dict) or "description" in entry:  # some models repeat the list of tools
        return None
    function = entry.get("function")
    if isinstance(function, dict) and "arguments" in function:
        entry = function  # as OpenAI writes it
    name, arguments = entry.get("name"), entry.get("arguments", entry.get("parameters"))
    try:
        if isinstance(arguments, str) and arguments:
            arguments = _STRICT.decode(arguments)
        if not isinstance(name, str) or not isinstance(arguments or {}, dict):
            return None
        found = json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
        (name + found).encode()
    except (TypeError, ValueError, RecursionError):  # keys and values that only Python has, half a character
        return None
    return ToolCall(name, found, _make_id())


def _refuse(literal: str) -> None:
    raise ValueError(f"{literal} is no JSON")


def _parse_finite(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError(f"{literal} is no number that JSON readers know")
    return value


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_parse_finite)


def _make_id() -> str:
    """Make an id of nine letters and digits, as template v3 demands."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
