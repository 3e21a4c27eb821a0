"""Edit a file or a text in the user's editor. Knows nothing about what is edited."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from m7b.errors import UsageError
from m7b.text_input import read_text

_USUAL = ("editor", "nano", "vi", "notepad")


def edit_file(file: Path) -> None:
    """Open `file` in $VISUAL, $EDITOR or what the machine has, and wait until it is closed.

    Raises:
        UsageError: there is no editor, or it failed.
    """
    editor = _find_editor()
    try:
        code = subprocess.run([*editor, str(file)]).returncode
    except OSError as error:
        raise UsageError(
            f"cannot run the editor {editor[0]}: {error.strerror}", hint="set VISUAL or EDITOR to another"
        ) from None
    if code:
        raise UsageError(f"the editor {editor[0]} failed with exit code {code}")


def edit_text(text: str) -> str:
    """Open `text` in the editor; returns what the user leaves, without line ends at its end.

    Raises:
        UsageError: there is no editor, it failed, or what it left is no text.
    """
    with tempfile.TemporaryDirectory() as folder:  # only the user may enter this folder
        file = Path(folder) / "message.md"
        file.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        edit_file(file)
        return read_text(file).rstrip("\r\n")


def _find_editor() -> list[str]:
    """Find the command that starts the user's editor, as a list of words."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        words = shlex.split(command or next(filter(shutil.which, _USUAL), ""))
    except ValueError as error:
        raise UsageError(f"the editor {command!r} cannot be run: {error}") from None
    if not words:
        raise UsageError("there is no editor", hint="set VISUAL or EDITOR to one")
    return words
