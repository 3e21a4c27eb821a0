"""What tells models apart whose engines read the same ids in other bits."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m7b.models.adapters import OpenAdapter
from m7b.version import __version__

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.engine import Engine
    from m7b.templates import Template

_N_DIGITS = 16


def make_fingerprint(
    checkpoint: "Checkpoint",
    engine: "Engine",
    quant: str | None,
    adapters: Sequence[OpenAdapter],
    template: "Template | None",
) -> dict[str, str]:
    """What decides the bits of keys and values, and of the ids that conversations become, by label.

    A file counts by its name, its size and when it was written: weights are too long to be read for this.
    """
    tensors = checkpoint.tensors.values()
    files = list_states(tensor.file for tensor in tensors)
    return {
        "version of m7b": __version__,
        "checkpoint": f"{checkpoint.path.name} {digest([repr(checkpoint.config), files])}",
        "quantization": quant or "as stored",
        **fingerprint_adapters(adapters),
        "chat template": digest([template.description, template.source]) if template else "none",
        **engine.numerics,
    }


def fingerprint_adapters(adapters: Sequence[OpenAdapter]) -> dict[str, str]:
    """The label that tells models with other adapters apart."""
    return {"adapter": ", ".join(map(_describe, adapters)) or "none"}


def _describe(adapter: OpenAdapter) -> str:
    parts = adapter.adapter.parts
    scales = sorted((name, part.scale) for name, part in parts.items())
    return f"{adapter.label} {digest([list_states(part.up.file for part in parts.values()), scales])}"


def list_states(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """The name of each file, its size, and when it was written in nanoseconds; sorted by their paths."""
    states = ((file.name, file.stat()) for file in sorted(set(files)))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def digest(value: object) -> str:
    """16 digits that stand for what JSON writes of `value`, other objects as texts."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_N_DIGITS]
