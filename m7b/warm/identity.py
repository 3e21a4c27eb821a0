"""What tells one loaded model from another: two with the same identity give the same answers."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m7b.generation import EngineOptions
from m7b.models.choice import ModelChoice
from m7b.version import __version__

_N_DIGITS = 16


def identify(choice: ModelChoice, options: EngineOptions, chat_template: str | None) -> str:
    """The identity of a model that runs as `options` say; it changes with the files that it is read from.

    Raises:
        CheckpointNotFound: it was not downloaded.
    """
    name, path = choice.locate()
    told: dict[str, Any] = {
        "version": __version__,
        "kernels": os.environ.get("M7B_KERNELS", ""),
        "name": name,
        "release": choice.release,
        "files": list(_list_files(Path(os.path.realpath(path)))),
        "template": chat_template,
        "options": asdict(options),
    }
    if chat_template and os.path.isfile(chat_template):
        told["template"] = hashlib.sha256(Path(chat_template).read_bytes()).hexdigest()
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_N_DIGITS]


def _list_files(path: Path) -> Iterator[tuple[str, int, int]]:
    """The files of a checkpoint, each with its size and when it was written: its folder's, or its parts."""
    yield str(path), 0, 0
    if path.is_dir():
        files = sorted(path.iterdir())
    else:
        parts = re.sub(r"-\d+-of-\d+(?=\.)", "-*-of-*", glob.escape(path.name))
        files = sorted(path.parent.glob(parts))
    for file in files:
        if file.is_file():
            state = file.stat()
            yield file.name, state.st_size, state.st_mtime_ns
