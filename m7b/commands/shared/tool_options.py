"""The options of tools, and the toolbox that they fill."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from m7b.completions import CompletionRequest, leave_out_tools
from m7b.errors import UsageError
from m7b.offer import AUTO, NONE
from m7b.render import note
from m7b.tools import Toolbox

ToolsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--tools",
        metavar="FILE.py|FILE.json",
        help="Offer the model these tools; can be repeated.",
        show_default=False,
    ),
]
McpOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--mcp",
        metavar="CONFIG",
        help="Offer the tools of the MCP servers in this file; can be repeated.",
        show_default=False,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict", help="Refuse to start where a server, or a tool, cannot be used as it is."
    ),
]
ToolChoiceOption = Annotated[
    str,
    typer.Option(
        "--tool-choice", metavar="auto|any|none|NAME", help="Whether the model may or must call a tool."
    ),
]
ConstrainOption = Annotated[
    bool, typer.Option("--constrain/--no-constrain", help="Keep calls valid against the tools' schemas.")
]


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """Which tools are offered, and what the model may choose of them."""

    tools: ToolsOption = None
    mcp: McpOption = None
    tool_choice: ToolChoiceOption = AUTO
    strict: StrictOption = False

    @property
    def are_given(self) -> bool:
        """Whether any tool is to be offered."""
        return bool(self.tools or self.mcp)

    def fill(self, toolbox: Toolbox, *, constrain: bool) -> None:
        """Load the tools of the files, and of the servers; a note tells what of servers is left out.

        With `constrain`, that includes tools whose calls cannot be kept valid.

        Raises:
            UsageError: a file cannot be used, or with `strict` a server; or there are no tools, and one must
                be called.
        """
        for file in self.tools or ():
            toolbox.load(file)
        for config in self.mcp or ():
            toolbox.load_mcp(config, is_strict=self.strict, is_enforced=constrain)
        for fault in toolbox.left_out:
            note(f"left out {fault}")
        if self.are_given and not toolbox.tools and self.tool_choice not in (AUTO, NONE):
            raise UsageError(f"--tool-choice {self.tool_choice}: there are no tools")

    def describe(self, *, constrain: bool) -> list[dict[str, Any]] | None:
        """The tools in OpenAI's shape, None where there are none; none of them is run."""
        if not self.are_given:
            return None
        with Toolbox() as toolbox:
            self.fill(toolbox, constrain=constrain)
            return [tool.as_json() for tool in toolbox.tools]


def note_left_out_tools(request: CompletionRequest) -> CompletionRequest:
    """Leave out the tools whose calls cannot be kept valid, with a note about each; see `leave_out_tools`."""
    request, left_out = leave_out_tools(request)
    for line in left_out:
        note(line)
    return request
