"""Where m7b keeps its files: platform folders, or everything below `M7B_HOME`."""

import os
from pathlib import Path

import platformdirs


def data_folder() -> Path:
    """The folder of downloaded checkpoints and other data worth keeping."""
    home = os.environ.get("M7B_HOME")
    return Path(os.path.expanduser(home)) if home else platformdirs.user_data_path("m7b", appauthor=False)


def checkpoint_folder(variant: str) -> Path:
    """Where the checkpoint of a variant lies once it is downloaded."""
    return data_folder() / "checkpoints" / variant
