"""Checkpoints that seem to be downloaded."""

from pathlib import Path

import pytest

from m7b.hub import shelf
from m7b.paths import checkpoints_folder


def put(home: Path, name: str) -> Path:
    """Record an empty file as the checkpoint `name` of the data folder `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M7B_HOME", str(home))
        folder = checkpoints_folder() / f"{name}.gguf"
        folder.mkdir(parents=True)
        path = folder / "model.gguf"
        path.touch()
        files = (shelf.File(path.name, 0, "sha256:"),)
        times = {"fetched": 0.0, "verified": 0.0}
        shelf.put(
            shelf.CheckpointRecord(
                name, "gguf", "test", "", "", str(path), str(folder), files, is_ours=True, **times
            )
        )
    return path
