"""`m7b rm` and `m7b prune`: give disk back."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from m7b import hub
from m7b.commands.shared.options import YesOption, complete_name
from m7b.errors import UsageError
from m7b.hub import DownloadFormat
from m7b.models import list_prompts
from m7b.render import can_ask, note, printable

if TYPE_CHECKING:
    from m7b.hub.removal import Removal


def rm(
    name: Annotated[
        str, typer.Argument(help="A checkpoint that m7b list shows.", autocompletion=complete_name)
    ],
    format: Annotated[
        DownloadFormat | None,
        typer.Option("--format", help="Only the copy in this layout.", show_default=False),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Remove a checkpoint, having said what that frees.

    Files that are shared with other downloads stay, and so do files that were never copied.

    Examples:

      m7b rm demo -y

      m7b rm demo --format gguf --yes
    """
    from m7b.hub.removal import plan_removal

    removals = [plan_removal(record) for record in hub.require(name, format)]
    _confirm([one.text for one in removals], yes)
    for one in removals:
        one.execute()
    note(f"removed {name}: {sum(one.n_bytes for one in removals) / 1e6:,.1f} MB are free again")


def prune(
    caches: Annotated[
        bool, typer.Option("--caches", help="Remove what --prompt-cache auto has kept, instead.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Remove what downloads left behind that never ended.

    Examples:

      m7b prune

      m7b prune --caches -y
    """
    from m7b.hub.removal import find_leftovers

    removals = _find_prompts() if caches else find_leftovers()
    if not removals:
        note("nothing to prune")
        return
    _confirm([one.text for one in removals], yes)
    for one in removals:
        one.execute()
    note(f"{sum(one.n_bytes for one in removals) / 1e6:,.1f} MB are free again")


def _find_prompts() -> list["Removal"]:
    from m7b.hub.removal import Removal

    return [
        Removal(
            f"a prompt of {prompt.n_bytes / 1e6:,.1f} MB in {prompt.file}", prompt.n_bytes, prompt.file.unlink
        )
        for prompt in list_prompts()
    ]


def _confirm(lines: list[str], yes: bool) -> None:
    """Show what would go, and ask.

    Raises:
        UsageError: nobody can be asked.
        Abort: the answer is no.
    """
    for line in lines:
        print(printable(line), file=sys.stderr)
    if yes:
        return
    if not can_ask():
        raise UsageError("nothing was removed: nobody can be asked", hint="give -y to remove it unasked")
    print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort
