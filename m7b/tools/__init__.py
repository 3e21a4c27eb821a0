"""Tools that the model may call: Python functions, JSON descriptions, Model Context Protocol servers.

Knows how a tool is described, run, stopped and answered for; nothing about models, templates, approval or
screens.
Tools run with the rights of the user: a process of their own keeps a chat alive, it is not a sandbox.
"""

from m7b.tools.json_file import parse_tools
from m7b.tools.tool import Approval, Tool, ToolResult
from m7b.tools.toolbox import Toolbox

__all__ = ["Approval", "Tool", "ToolResult", "Toolbox", "parse_tools"]
