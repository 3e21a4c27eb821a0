"""Convert what servers list and answer into our tools and outcomes. Knows the SDK's types, no processes."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m7b.tools.schema import drop_titles
from m7b.tools.tool import CallOutcome, Tool, make_tool

if TYPE_CHECKING:
    import mcp_types

    from m7b.tools.servers import Server


def name_tools(servers: "Sequence[Server]", taken: set[str]) -> "list[tuple[Tool, Server, str]]":
    """Give each tool of `servers` the name under which it is offered; returns (tool, server, name there).

    Where several servers have a name, or it is `taken`, the server's name goes in front. Characters that
    templates refuse become _.
    """
    listed = [(server, theirs, _make_usable(theirs.name)) for server in servers for theirs in server.listed]
    owners: dict[str, set[str]] = {}
    for server, _, name in listed:
        owners.setdefault(name, set()).add(server.name)
    tools = []
    for server, theirs, name in listed:
        is_shared = name in taken or len(owners[name]) > 1
        offered = _make_usable(f"{server.name}_{name}") if is_shared else name
        source = f"mcp:{server.name}"
        tool = make_tool(offered, theirs.description or "", drop_titles(theirs.input_schema), source)
        tools.append((tool, server, theirs.name))
    return tools


def convert_result(result: "mcp_types.CallToolResult") -> CallOutcome:
    """Convert a result for the model: to its structured content if there is any, else to its texts."""
    if result.structured_content is not None:
        content = json.dumps(result.structured_content, ensure_ascii=False)
    else:
        content = "\n".join(_format_block(block) for block in result.content)
    return CallOutcome(content, result.is_error)


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
