"""Tools described in a JSON file, as OpenAI writes them. Knows the format; such tools have no code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m7b.errors import UsageError
from m7b.text_input import read_text
from m7b.tools.tool import Tool, make_tool


def load_json_tools(file: Path) -> list[Tool]:
    """Load the tools of `file`: a list of tools, or an object with the list as its `tools`.

    Raises:
        UsageError: the file holds something else, or an unknown key.
    """
    value = read_json(file)
    if isinstance(value, dict):
        _check_keys(value, {"tools"}, f"{file.name}")
        value = value.get("tools")
    return parse_tools(value, file.name)


def parse_tools(value: Any, source: str) -> list[Tool]:
    """Parse a list of tools as OpenAI writes it.

    Raises:
        UsageError: `value` is no such list, or has an unknown key.
    """
    if not isinstance(value, list) or not value:
        raise UsageError(f"{source}: no list of tools", hint='write [{"type": "function", "function": {…}}]')
    return [_parse_tool(entry, f"{source}: tool {number}", source) for number, entry in enumerate(value, 1)]


def read_json(file: Path) -> Any:
    """Read a JSON file of the user.

    Raises:
        UsageError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(file), parse_constant=_refuse)
    except RecursionError:
        raise UsageError(f"{file.name}: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{file.name} is not JSON: {error}") from None


def _parse_tool(entry: Any, where: str, source: str) -> Tool:
    if (
        not isinstance(entry, dict)
        or entry.get("type") != "function"
        or not isinstance(entry.get("function"), dict)
    ):
        raise UsageError(f"{where} is none", hint='a tool is {"type": "function", "function": {…}}')
    _check_keys(entry, {"type", "function"}, where)
    function = entry["function"]
    _check_keys(function, {"name", "description", "parameters", "strict"}, where)
    nothing = {"type": "object", "properties": {}}
    return make_tool(
        function.get("name"),
        function.get("description") or "",
        nothing if function.get("parameters") in (None, {}) else function["parameters"],
        source,
    )


def _check_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = [key for key in value if key not in known]
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}", hint=f"known are {', '.join(sorted(known))}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
