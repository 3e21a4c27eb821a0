"""Tool files written for a test, and the processes that they leave behind."""

import contextlib
import json
import textwrap
import time
from pathlib import Path

import psutil

from m7b.tools import Toolbox, ToolResult

MARK = "M7B_TEST_MARK"


def write(folder: Path, source: str, name: str = "tool.py") -> Path:
    """A tool file of `source`, which may be indented."""
    file = folder / name
    file.write_text(textwrap.dedent(source), encoding="utf-8")
    return file


def write_json(folder: Path, value: object, name: str = "tools.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def parameters_of(folder: Path, source: str) -> dict:
    """The schema of the one function of `source`."""
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(write(folder, source))
    return dict(tool.parameters)


def value_of(result: ToolResult) -> object:
    """The JSON of a result that is no error."""
    assert not result.is_error, result.content
    return json.loads(result.content)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that have `mark` in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(claim, seconds: float = 20) -> bool:
    """Whether `claim()` comes true."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
