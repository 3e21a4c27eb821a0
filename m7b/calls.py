"""Tool calls as JSON: build the schema that they keep to, and parse what a model wrote.

Knows the shape of calls; nothing about tokens, nor about what a call does.
"""

import ast
import json
import math
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any

from m7b.generation import ToolCall

_MARKER = "[TOOL_CALLS]"
_START = re.compile(r"\[\s*\{|\{\s*[\"']")  # other brackets are prose
_PYTHON_PARTS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\[{\]}]", re.DOTALL)
_MAX_QUOTED = 20_000  # characters that are read as Python; the parser's time grows with them


def build_calls_schema(tools: Sequence[Mapping[str, Any]], *, name: str | None = None) -> dict[str, Any]:
    """Build the schema of `[{"name": one of the tools, "arguments": what it takes}, …]`, one call at least.

    With `name` it allows that tool only. References within a tool's own schema are moved along with it.
    """
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{at}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, function in enumerate(functions)
    ]
    schemas = {
        str(at): _move_references(function["parameters"], f"#/$defs/{at}")
        for at, function in enumerate(functions)
    }
    return {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": schemas}


def parse_calls(text: str, *, lenient: bool = False) -> tuple[ToolCall, ...]:
    """Parse the calls in `text`; returns none where it holds something else. The ids of calls are new.

    It skips a marker, a fence or prose before the first list, and prose behind it; a marker behind it begins
    another list. `arguments` may be called `parameters`, and be JSON in a string, or null; a single call may
    stand without its list. With `lenient` it reads Python's quotes as well. NaN, 1e400 and lone surrogates
    are no strict JSON, and so no call; of keys that come twice the last counts.
    """
    entries: list[Any] = []
    at = 0
    while not entries or text[at:].lstrip().startswith(_MARKER):
        start = _START.search(text, at)
        if start is None:
            return ()
        value, at = _parse_value(text, start.start(), lenient=lenient)
        entries += value if isinstance(value, list) and value else [value]
    calls = [_parse_call(entry) for entry in entries]
    return tuple(call for call in calls if call) if all(calls) else ()


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


def _move_references(schema: Any, place: str) -> Any:
    """Move the references in `schema`, so that they lead below `place` instead of the root."""
    match schema:
        case dict():
            return {
                key: place + value[1:]
                if key == "$ref" and isinstance(value, str)
                else _move_references(value, place)
                for key, value in schema.items()
            }
        case list():
            return [_move_references(entry, place) for entry in schema]
        case _:
            return schema
