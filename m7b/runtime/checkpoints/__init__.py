"""Checkpoint formats. Each module has `sniff(path)` and `open_checkpoint(path)`; one is picked here."""

from pathlib import Path

from m7b.errors import CheckpointNotFound, UnsupportedCheckpoint
from m7b.parts import gather_splits
from m7b.runtime.checkpoints import gguf, hf, native
from m7b.runtime.checkpoints.checkpoint import Blocks, Checkpoint, Format, StoredTensor
from m7b.runtime.checkpoints.fields import Fields, read_json
from m7b.runtime.checkpoints.lookalikes import name_file, name_folder
from m7b.runtime.checkpoints.methods import find_method

__all__ = ["Blocks", "Checkpoint", "Format", "StoredTensor", "open_checkpoint"]

# In order of preference where a folder holds two: the Hugging Face layout loads without reordering rows.
_FORMATS = (hf, native, gguf)


def open_checkpoint(path: Path, *, window_given: bool = False) -> Checkpoint:
    """Look at the checkpoint at `path`, a folder or a GGUF file, and read no weights.

    Args:
        path: what it is is judged from its content, never from its name.
        window_given: the user names the sliding window, so the files need not.

    Raises:
        CheckpointNotFound: there is nothing at `path`.
        UnsupportedCheckpoint: it is no format or no model that m7b runs.
        DamagedCheckpoint: its files are cut short or contradict each other.
    """
    try:
        path.stat()
    except OSError as error:
        raise CheckpointNotFound(f"{path}: {error.strerror}", hint="give a folder or a GGUF file") from None
    for module in _FORMATS:
        if module.sniff(path):
            return module.open_checkpoint(path, window_given=window_given)
    if path.is_dir():
        files = [child.name for child in sorted(path.iterdir()) if gguf.sniff(child)]
        models = list(gather_splits(files).values())
        if len(models) == 1:
            return gguf.open_checkpoint(path / models[0][0], window_given=window_given)
        if models:
            raise UnsupportedCheckpoint(
                f"{path}: holds {len(models)} GGUF files", hint=f"name one of them, such as {path / files[0]}"
            )
        if (config := path / "config.json").is_file():
            find_method(Fields(config, read_json(config)))  # one that is not read has weights of other names
        what, hint = name_folder(path) or (
            "no checkpoint in this folder",
            "it needs config.json with safetensors or pytorch_model*.bin, "
            "params.json with consolidated.*, or a GGUF file",
        )
        raise UnsupportedCheckpoint(f"{path}: {what}", hint=hint)
    what, hint = name_file(path) or (
        "not a GGUF file",
        "other formats are opened by their folder, with the configuration inside",
    )
    raise UnsupportedCheckpoint(f"{path}: {what}", hint=hint)
