"""The folders and files of m7b: those of the platform, or all below `M7B_HOME`."""

import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from m7b.errors import OutOfResources, UsageError

_LONGEST_RUN_FOLDER = 80  # the path of a Unix socket may have 104 bytes on some systems


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


class NoHome(OutOfResources):
    """Nobody knows where the files of this user belong."""


def data_folder() -> Path:
    """The folder of downloaded checkpoints and other data worth keeping.

    Raises:
        NoHome: nothing says where it is.
    """
    return _find_home(platformdirs.user_data_path)


def config_file() -> Path:
    """The file of the user's settings, which need not exist.

    Raises:
        NoHome: nothing says where it is.
    """
    return _find_home(platformdirs.user_config_path) / "config.toml"


def make_absolute(folder: Path) -> Path:
    """Make the path of a folder of the user's one that is the same from every folder.

    Raises:
        NoHome: it begins with a home that is not known.
    """
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise _make_homeless_error(folder)
    try:
        return folder.absolute()
    except FileNotFoundError:
        raise NoHome(f"{folder} is below the current folder, which is gone", hint="cd to another") from None


def _find_home(find_usual: Callable[..., Path]) -> Path:
    if home := os.environ.get("M7B_HOME"):
        return make_absolute(Path(os.path.expanduser(home)))
    try:
        return make_absolute(find_usual("m7b", appauthor=False))
    except RuntimeError:  # how platformdirs says it
        raise _make_homeless_error("m7b") from None


def _make_homeless_error(what: object) -> NoHome:
    return NoHome(
        f"there is no home for {what}: HOME is not set, and the system knows none",
        hint="set HOME, or M7B_HOME to a folder",
    )


def checkpoints_folder() -> Path:
    """The folder of downloaded checkpoints and their records."""
    return data_folder() / "checkpoints"


def history_file() -> Path:
    """The file of the lines typed at the prompt."""
    return data_folder() / "history"


def prompts_folder() -> Path:
    """The folder of what was read of prompts, which can be read again. It need not exist.

    Raises:
        NoHome: nothing says where it is.
    """
    return _find_home(platformdirs.user_cache_path) / "prompts"


def run_folder() -> Path:
    """The folder of what lives as long as servers do: their sockets and records. It need not exist.

    Raises:
        NoHome: nothing says where it is.
    """
    if os.environ.get("M7B_HOME") or not os.environ.get("XDG_RUNTIME_DIR"):
        folder = data_folder() / "run"
    else:
        folder = platformdirs.user_runtime_path("m7b", appauthor=False)
    if len(os.fsencode(folder)) <= _LONGEST_RUN_FOLDER:
        return folder
    short = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir(), f"m7b-{os.getuid()}-{short}")


def sessions_file() -> Path:
    """The file of the conversations."""
    return data_folder() / "sessions.sqlite3"
