"""Tools and their results, and the rules for both. Knows nothing about how a tool runs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from m7b.errors import UsageError

DEEPEST = 100  # levels of a JSON result; the templates parse results again, and recursion has an end

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Approval(StrEnum):
    """Who decides whether a tool runs."""

    ASK = "ask"
    AUTO = "auto"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as it is offered to the model.

    `parameters` is the JSON schema of the arguments, an object. `source` says where the tool is from, such as
    `weather.py` or `mcp:files`.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    source: str

    def as_json(self) -> dict[str, Any]:
        """The tool as OpenAI writes it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model reads after a call.

    `content` is JSON text if the tool returned JSON, else its string. A text that is too long is cut, and
    ends in a line that says so; then it is no JSON any more.
    """

    content: str
    is_error: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What came of a call: its text, how many characters are cut off its end, and whether it failed."""

    content: str
    is_error: bool = False
    left_out: int = 0


def make_tool(name: Any, description: Any, parameters: Any, source: str) -> Tool:
    """Make a tool of parts that nobody has checked yet.

    Raises:
        UsageError: a part breaks the rules; the message names the source and the tool.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{source}: {name!r} cannot be the name of a tool",
            hint="it takes 1 to 64 of the letters a-z and A-Z, digits, _ and -",
        )
    if not isinstance(description, str):
        raise UsageError(f"{source}: the description of {name} must be text")
    wrong = find_fault(parameters)
    if wrong:
        raise UsageError(f"{source}: the parameters of {name} must be a JSON schema of an object: {wrong}")
    return Tool(name, description, parameters, source)


def find_fault(parameters: Any) -> str:
    """Say why `parameters` are no JSON schema of an object, empty where they are."""
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        return 'it needs "type": "object"'
    properties = parameters.get("properties", {})
    if not isinstance(properties, Mapping):
        return '"properties" must be an object'
    for name, schema in properties.items():
        if not isinstance(schema, Mapping | bool):
            return f"the property {name!r} must be a schema"
    required = parameters.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return '"required" must be a list of names'
    return ""


def cut(text: str, limit: int) -> tuple[str, int]:
    """Cut `text` to `limit` characters, replacing lone surrogates; returns it and how many were cut off."""
    kept = text[:limit].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return kept, max(0, len(text) - limit)


def format_content(answer: CallOutcome, limit: int) -> str:
    """Format the text of `answer`, with a last line that says how many characters are missing."""
    kept, more = cut(answer.content, limit)
    left_out = answer.left_out + more
    return f"{kept}\n[{left_out} more characters left out]" if left_out else kept


def explain_unreadable(content: str) -> str:
    """Say why `content` is JSON that cannot be parsed again, empty where it can or is no JSON at all."""
    try:
        level = [json.loads(content)]
    except json.JSONDecodeError:
        return ""
    except RecursionError:
        return f"JSON of more than {DEEPEST} levels"
    except ValueError:
        return "a number of more digits than Python reads"
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return f"JSON of more than {DEEPEST} levels" if level else ""


def find_last_line(output: bytes) -> str:
    """Find the last line that a program printed, without escape sequences and control characters."""
    lines = _ESCAPE_SEQUENCE.sub("", output.decode("utf-8", "replace")).splitlines()
    printable = ("".join(c for c in line if c.isprintable()).strip() for line in reversed(lines))
    return next((line[-300:] for line in printable if line), "")
