"""Low-rank adapters: reading them, and what they add to a model. Knows files and weights; no text."""

from pathlib import Path

from m7b.errors import CheckpointNotFound, UnsupportedCheckpoint
from m7b.runtime.adapters import gguf, peft
from m7b.runtime.adapters.adapter import Adapter, AdapterFormat, Mix, Weighted
from m7b.runtime.adapters.building import build_updates, count_bytes
from m7b.runtime.adapters.merging import merge
from m7b.runtime.model.config import ModelConfig

__all__ = [
    "Adapter",
    "AdapterFormat",
    "Mix",
    "Weighted",
    "build_updates",
    "count_bytes",
    "merge",
    "open_adapter",
]


def open_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Look at the adapter at `path`, a folder of PEFT's or a GGUF file, for a model of `config`.

    Shapes are compared with the model's before any weight is read.

    Raises:
        CheckpointNotFound: there is nothing at `path`.
        UnsupportedCheckpoint: it is no adapter, or one that does more than m7b can.
        DamagedCheckpoint: its files are cut short, or contradict each other or the model.
    """
    try:
        path.stat()
    except OSError as error:
        raise CheckpointNotFound(
            f"{path}: {error.strerror}", hint="give the folder or the GGUF file of an adapter"
        ) from None
    if peft.sniff(path):
        return peft.open_adapter(path, config)
    files = sorted(file for file in path.iterdir() if gguf.sniff(file)) if path.is_dir() else [path]
    if len(files) == 1 and gguf.sniff(files[0]):
        return gguf.open_adapter(files[0], config)
    if path.is_dir() and (path / "config.json").is_file():
        raise UnsupportedCheckpoint(f"{path}: a model, not an adapter", hint="name it with -m")
    raise UnsupportedCheckpoint(
        f"{path}: no adapter",
        hint=f"it needs {peft.CONFIG} beside safetensors, or be a GGUF file that llama.cpp converted",
    )
