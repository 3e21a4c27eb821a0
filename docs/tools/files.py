"""Tools that read text files in one folder, and nothing outside it.

The folder is the environment variable M7B_FILES, or the working directory. No shell is involved.
"""

import os
import stat
from pathlib import Path

ROOT = Path(os.environ.get("M7B_FILES") or ".").resolve()


def list_files(folder: str = ".") -> list[str]:
    """List the files in a folder. The names of folders end in a slash.

    Args:
        folder: a path inside the shared folder.
    """
    return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in _inside(folder).iterdir())


def read_file(path: str) -> str:
    """Read a text file.

    Args:
        path: a path inside the shared folder, as list_files shows it.
    """
    file = _inside(path)
    # without O_NONBLOCK, opening a named pipe would wait for a writer
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, encoding="utf-8") as text:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PermissionError(f"{path} is not a file")
        return text.read(1_000_000)


def _inside(path: str) -> Path:
    """The place that `path` means once .. and symbolic links are followed, if that is inside the folder."""
    place = (ROOT / path).resolve()
    if not place.is_relative_to(ROOT):
        raise PermissionError(f"{path} is outside the shared folder")
    return place
