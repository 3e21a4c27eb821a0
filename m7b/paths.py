"""The folders and files of m7b: those of the platform, or all below `M7B_HOME`."""

import os
import shlex
from pathlib import Path

import platformdirs

from m7b.errors import UsageError


def parse_path(text: str) -> Path:
    """Parse a path that was typed, or dropped onto a terminal: `~/a`, `'/with space'`, `/with\\ space`.

    Raises:
        UsageError: `text` cannot be a path.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # the name holds a quotation mark
        words = [text]
    try:
        path = Path(words[0] if len(words) == 1 else text).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{text!r} is no path: {error}") from None
    if "\0" in text:
        raise UsageError(f"{text!r} is no path: it holds a NUL")
    return path


def data_folder() -> Path:
    """The folder of downloaded checkpoints and other data worth keeping."""
    home = os.environ.get("M7B_HOME")
    return Path(os.path.expanduser(home)) if home else platformdirs.user_data_path("m7b", appauthor=False)


def config_file() -> Path:
    """The file of the user's settings, which need not exist."""
    home = os.environ.get("M7B_HOME")
    folder = Path(os.path.expanduser(home)) if home else platformdirs.user_config_path("m7b", appauthor=False)
    return folder / "config.toml"


def checkpoints_folder() -> Path:
    """The folder of downloaded checkpoints and their records."""
    return data_folder() / "checkpoints"


def history_file() -> Path:
    """The file of the lines typed at the prompt."""
    return data_folder() / "history"


def sessions_file() -> Path:
    """The file of the conversations."""
    return data_folder() / "sessions.sqlite3"
