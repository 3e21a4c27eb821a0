"""The `m7b` command: its subcommands, and the one place where errors become exit codes."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from itertools import takewhile

import typer
from typer.exceptions import TyperException

from m7b.commands.config import apply_settings
from m7b.commands.shared.lazy import LazyGroup
from m7b.commands.shared.options import plain
from m7b.errors import ExitCode, M7bError
from m7b.render import PipeClosed, note
from m7b.version import __version__

app = typer.Typer(
    name="m7b",
    help="Mistral 7B in a terminal: exact, readable, fast.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=LazyGroup,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"m7b {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
    ),
) -> None:
    """Mistral 7B in a terminal: exact, readable, fast."""
    apply_settings(ctx)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; `argv` None is that of the process.

    Every error the user can act on is one line on stderr. Only our own bugs show a traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return int(app(arguments or ["--help"], prog_name="m7b", standalone_mode=False) or 0)
    except TyperException as error:
        note(f"{plain(error.format_message()).rstrip()}; see {_help_for(error)}{_dash_hint(arguments)}")
        return ExitCode.USAGE
    except M7bError as error:
        note(f"{error}{_dash_hint(arguments) if error.exit_code == ExitCode.USAGE else ''}")
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except PipeClosed:
        return ExitCode.PIPE_CLOSED
    except SystemExit as error:
        if error.code != 1:
            raise
        return ExitCode.PIPE_CLOSED  # what Typer makes of a reader of --help that has gone
    except Exception as error:  # noqa: BLE001 - the last resort: show the bug
        if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            note(f"{error.filename or 'cannot write'}: {error.strerror}")
            return ExitCode.RESOURCES
        if isinstance(error, FileNotFoundError) and _is_nowhere():
            note("the current folder is gone; cd to another")
            return ExitCode.RESOURCES
        traceback.print_exc()
        note("this is a bug in m7b; the lines above say where")
        return ExitCode.BUG


def _is_nowhere() -> bool:
    """Whether the current folder was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _help_for(error: TyperException) -> str:
    """The command line that explains the command that `error` is of."""
    names: list[str] = []
    context = getattr(error, "ctx", None)
    while context and context.parent:
        names.insert(0, context.info_name)
        context = context.parent
    return " ".join(["m7b", *names, "--help"])


def _dash_hint(arguments: Sequence[str]) -> str:
    """What to do where one of `arguments` looks like a text, and was read as an option for its dash."""
    options = takewhile(lambda word: word != "--", arguments)
    seems_text = any(re.match(r"-(?!-).*\s|-\W*\d|--[\w-]*[^\w=-]", word) for word in options)
    return "; a text that begins with a dash goes last, behind --" if seems_text else ""


def run() -> None:
    """Run the command line of this process and exit with its code."""
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # Nothing more can be written; without this, Python would complain while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
