"""Writing a checkpoint in fewer bits: its progress on a terminal, and one beside what was downloaded."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from m7b import hub
from m7b.commands.shared.fetching import FetchScreen
from m7b.errors import UsageError
from m7b.generation import QuantizeTarget
from m7b.models import read_tokenizer
from m7b.paths import checkpoints_folder
from m7b.render import Status, note

if TYPE_CHECKING:
    from m7b.runtime.quantize import Written


class WriteStatus:
    """Bytes written, and the time that the rest will take, on a terminal."""

    def __init__(self, status: Status, name: str) -> None:
        self._status, self._name, self._started = status, name, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def show(self, written: "Written") -> None:
        """Tell how far it is."""
        left = int(self.seconds / written.done * (written.total - written.done))
        self._status.show(
            f"writing {self._name}: {written.done >> 20:,} of {written.total >> 20:,} MiB, "
            f"{left // 60}:{left % 60:02} left"
        )


def quantize_record(record: hub.CheckpointRecord, to: QuantizeTarget) -> None:
    """Put a GGUF file of a downloaded checkpoint beside it, under the same name: the latest is what runs.

    Raises:
        UsageError: the checkpoint is such a file itself.
    """
    from m7b.runtime.checkpoints import open_checkpoint
    from m7b.runtime.quantize import Settings
    from m7b.runtime.quantize import quantize as write

    if record.format == "gguf":
        raise UsageError(
            f"{record.name} has come as a GGUF file",
            hint="--include chooses another; m7b quantize rounds it again",
        )
    path = checkpoints_folder() / hub.shelf.make_key(record.name, "gguf", to) / f"{to}.gguf"
    for made in hub.shelf.find_records(record.name):
        if (made.path, made.origin, made.revision) == (str(path), record.path, record.revision):
            note(f"{record.name} is here already in {to}: {path}")
            hub.shelf.put(replace(made, fetched=time.time()))
            return
    checkpoint = open_checkpoint(Path(record.path))
    path.parent.mkdir(parents=True, exist_ok=True)
    status = Status()
    progress = WriteStatus(status, path.name)
    try:
        for tensor in write(checkpoint, read_tokenizer(checkpoint), path, Settings(to), force=True):
            progress.show(tensor)
    finally:
        status.clear()
    with FetchScreen() as screen:
        hub.shelf.put(screen.run(hub.describe_made(record, path)))
    note(f"{record.name} is ready in {to}: {path}")
