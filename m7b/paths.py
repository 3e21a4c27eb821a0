"""Where m7b keeps its files: platform folders, or everything below `M7B_HOME`."""

import os
import shlex
from pathlib import Path

import platformdirs

from m7b.errors import UsageError


def parse_path(text: str) -> Path:
    """The path that somebody typed or dropped onto a terminal: `~/a`, `'/with space'`, `/with\\ space`.

    Raises:
        UsageError: it cannot be one.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark that is part of the name
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
    """Where downloaded checkpoints and the records of them are."""
    return data_folder() / "checkpoints"


def history_file() -> Path:
    """Where the lines typed at the prompt are kept."""
    return data_folder() / "history"


def sessions_file() -> Path:
    """Where conversations are kept."""
    return data_folder() / "sessions.sqlite3"
