"""The option types of tools, and the toolbox that they fill."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from m7b.commands.shared.options import integer
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
ToolChoiceOption = Annotated[
    str,
    typer.Option(
        "--tool-choice", metavar="auto|any|none|NAME", help="Whether the model may or must call a tool."
    ),
]
ConstrainOption = Annotated[
    bool, typer.Option("--constrain/--no-constrain", help="Keep calls valid against the tools' schemas.")
]
ToolLimitOption = Annotated[
    int,
    typer.Option(
        "--tool-limit", parser=integer, metavar="N", help="Most rounds of calls before the model must answer."
    ),
]


def fill(toolbox: Toolbox, files: Sequence[Path] | None, configs: Sequence[Path] | None) -> None:
    """Load the tools of `files` and of the servers in `configs`."""
    for file in files or ():
        toolbox.load(file)
    for config in configs or ():
        toolbox.load_mcp(config)
