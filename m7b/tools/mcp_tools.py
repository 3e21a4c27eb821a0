"""Convert what servers list and answer into our tools and outcomes. Knows the SDK's types, no processes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m7b.errors import UsageError
from m7b.tools.enforceable import check_tool
from m7b.tools.schema import drop_titles
from m7b.tools.tool import CallOutcome, Tool, find_fault, make_tool

if TYPE_CHECKING:
    import mcp_types

    from m7b.tools.servers import Server


@dataclass(frozen=True, slots=True)
class ServedTool:
    """A tool under the name by which it is offered, its server, and its name there."""

    tool: Tool
    server: "Server"
    theirs: str


def name_tools(
    servers: "Sequence[Server]", taken: Mapping[str, str]
) -> tuple[list[ServedTool], list[UsageError]]:
    """Name the tools of `servers`; returns them, and an error for each that cannot have a name of its own.

    Where several servers have a name, or one of those in `taken` (sources by name), the server's name goes in
    front. Characters that templates refuse become _.
    """
    listed = [(server, theirs, _make_usable(theirs.name)) for server in servers for theirs in server.listed]
    owners: dict[str, set[str]] = {name: {source} for name, source in taken.items() if _is_server(source)}
    for server, _, name in listed:
        owners.setdefault(name, set()).add(server.source)
    named: dict[str, ServedTool] = {}
    faults = []
    for server, theirs, name in listed:
        offered = _make_usable(f"{server.name}_{name}") if len(owners[name]) > 1 else name
        other = named[offered].tool.source if offered in named else taken.get(offered)
        if other is None:
            schema = drop_titles(theirs.input_schema)
            tool = make_tool(offered, theirs.description or "", schema, server.source)
            named[offered] = ServedTool(tool, server, theirs.name)
        else:
            faults.append(_make_clash(server.source, theirs.name, offered, other))
    return list(named.values()), faults


def keep_served(served: Sequence[ServedTool]) -> tuple[list[ServedTool], list[UsageError]]:
    """Keep the tools whose calls can be kept valid; returns them, and an error for each of the others."""
    kept, faults = [], []
    for each in served:
        try:
            check_tool(each.tool.as_json())
            kept.append(each)
        except UsageError as error:
            faults.append(UsageError(f"{each.tool.source}: {error.message}", hint=error.hint))
    return kept, faults


def check_entry(entry: Any, source: str) -> dict[str, Any]:
    """Check one entry of the list of tools that a server sends; returns what m7b uses of it.

    Raises:
        UsageError: it describes no tool that can be offered.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise UsageError(f"{source}: one of its tools has no name")
    name, description, schema = (entry.get(key) for key in ("name", "description", "inputSchema"))
    if not isinstance(description, str | None):
        raise UsageError(f"{source}: the tool {name}: its description must be text")
    if fault := find_fault(schema):
        raise UsageError(f"{source}: the tool {name}: its schema is none of an object: {fault}")
    return {"name": name, "description": description, "inputSchema": schema}


def convert_result(result: "mcp_types.CallToolResult") -> CallOutcome:
    """Convert a result for the model: to its structured content if there is any, else to its texts."""
    if result.structured_content is not None:
        content = json.dumps(result.structured_content, ensure_ascii=False)
    else:
        content = "\n".join(_format_block(block) for block in result.content)
    return CallOutcome(content, result.is_error)


def _make_clash(source: str, theirs: str, offered: str, other: str) -> UsageError:
    if other == source:
        return UsageError(
            f"{source}: the tool {theirs}: another of the server's tools is called {offered} already"
        )
    return UsageError(
        f"{other} and {source} both offer {offered}", hint="rename one of them or leave one out"
    )


def _is_server(source: str) -> bool:
    return source.startswith("mcp:")


def _format_block(block: "mcp_types.ContentBlock") -> str:
    match block.type:
        case "text":
            return block.text
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource_link":
            return f"[link to {block.uri}]"
        case kind:
            return f"[{kind} left out]"


def _make_usable(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64]
