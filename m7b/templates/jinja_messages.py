"""From OpenAI's messages to what Jinja templates take of them. Knows messages; nothing about templates."""

import json
import math
from collections.abc import Mapping
from typing import Any

from m7b.errors import InvalidConversation

_SAY_SOMETHING = ("user", "system", "developer")
_REASONING = ("reasoning_content", "thinking", "reasoning")


def read_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Read a message: no `prefix` and nothing that is null, content in text or parts, arguments in objects.

    Null content of an answer or a result is text without a character.

    Raises:
        InvalidConversation: it has no role, or its content is missing or something other than text.
    """
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidConversation("UsageError", "a message has no role")
    if role in _SAY_SOMETHING and message.get("content") is None:
        raise InvalidConversation(
            "UsageError", f"a {role} message has no content; it must be text, which may be empty"
        )
    fields = {name: value for name, value in message.items() if name != "prefix" and value is not None}
    fields["content"] = _read_content(fields.get("content", ""))
    if isinstance(calls := fields.get("tool_calls"), list):
        fields["tool_calls"] = [_read_call(call) for call in calls]
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    if reasoning is None:
        return fields
    return {"thinking": reasoning} | fields | {"reasoning_content": reasoning}  # as `transformers` does


def join_parts(parts: list[dict[str, Any]]) -> str:
    """Join the texts of parts, for templates that take no parts. A line each is what servers make of them."""
    return "\n".join(part["text"] for part in parts)


def _read_content(content: Any) -> str | list[dict[str, Any]]:
    match content:
        case str():
            return content
        case list():
            return [_read_part(part) for part in content] or ""
    raise InvalidConversation("UsageError", f"a message's content is a {type(content).__name__}")


def _read_part(part: Any) -> dict[str, Any]:
    match part:
        case {"text": str()}:
            return {"type": "text", **part}
        case {"type": "refusal", "refusal": str() as text}:
            return {"type": "text", "text": text}
    kind = part.get("type") if isinstance(part, Mapping) else None
    what = kind if isinstance(kind, str) else "a part"
    raise InvalidConversation(
        "UsageError", f"a message holds {what} without text; this model reads text alone"
    )


def _read_call(call: Any) -> Any:
    """A call whose arguments are an object, as templates were written for, where they are JSON of one."""
    match call:
        case {"function": Mapping() as function}:
            return {**call, "function": {**function, "arguments": _read_arguments(function.get("arguments"))}}
    return call


def _read_arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = _STRICT.decode(arguments) if arguments.strip() else None
    except (ValueError, RecursionError):
        return arguments
    return {} if value is None else value if isinstance(value, dict) else arguments


def _refuse(literal: str) -> float:
    raise ValueError(f"{literal} is no JSON")


def _parse_finite(literal: str) -> float:
    value = float(literal)
    return value if math.isfinite(value) else _refuse(literal)


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_parse_finite)
