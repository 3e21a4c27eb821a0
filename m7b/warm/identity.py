"""What tells one loaded model from another: two with the same identity give the same answers."""

import glob
import hashlib
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m7b.generation import EngineOptions
from m7b.models.choice import ModelChoice
from m7b.models.fingerprint import digest, list_states
from m7b.version import __version__


def identify(choice: ModelChoice, options: EngineOptions, chat_template: str | None) -> str:
    """The identity of a model that runs as `options` say; it changes with the files that it is read from.

    Raises:
        CheckpointNotFound: it was not downloaded.
    """
    name, path = choice.locate()
    place = Path(os.path.realpath(path))
    told: dict[str, Any] = {
        "version": __version__,
        "kernels": os.environ.get("M7B_KERNELS", ""),
        "name": name,
        "release": choice.release,
        "path": str(place),
        "files": list_states(_list_files(place)),
        "template": chat_template,
        "options": asdict(options),
    }
    if chat_template and os.path.isfile(chat_template):
        told["template"] = hashlib.sha256(Path(chat_template).read_bytes()).hexdigest()
    return digest(told)


def _list_files(path: Path) -> list[Path]:
    """The files of a checkpoint: its folder's, or its parts."""
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file()]
    parts = re.sub(r"-\d+-of-\d+(?=\.)", "-*-of-*", glob.escape(path.name))
    return [file for file in path.parent.glob(parts) if file.is_file()]
