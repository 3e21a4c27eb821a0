"""Tools that the model may call: Python functions, JSON descriptions, Model Context Protocol servers.

Knows how to describe, run and stop a tool, and what its result is; nothing about models, templates, approval
or screens. Tools run with the rights of the user: their own process keeps the chat alive, but is no sandbox.
"""

from m7b.tools.enforceable import check_tool, keep_enforceable
from m7b.tools.json_file import parse_tools
from m7b.tools.tool import Approval, Tool, ToolResult
from m7b.tools.toolbox import Toolbox

__all__ = ["Approval", "Tool", "ToolResult", "Toolbox", "check_tool", "keep_enforceable", "parse_tools"]
