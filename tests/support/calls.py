"""The schema of tool calls as JSON, to judge calls by."""

from collections.abc import Mapping, Sequence
from typing import Any


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
