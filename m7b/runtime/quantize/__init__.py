"""Checkpoints in fewer bits, written in formats that others read: GGUF, or a Hugging Face folder.

One tensor is in memory at a time. A file gets its name when it is whole and on disk, so nothing
that was interrupted can be taken for a model.
"""

import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from m7b.errors import OutOfResources, UsageError
from m7b.generation import QuantizeTarget
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.processor import physical_cores
from m7b.runtime.quantize import bnb_folder, gguf_file
from m7b.runtime.quantize.writing import Written, removed_on_failure
from m7b.tokenizer import Tokenizer

__all__ = ["Importance", "Settings", "Written", "quantize"]


Importance = Mapping[str, Tensor]
"""By the name of a weight how much an error in each of its columns matters: (in,)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to quantize.

    `double_quant` quantizes the scales of nf4 and fp4 too. `compute_dtype` is what readers of a folder
    multiply in. `importance` is for GGUF's types of six bits and fewer.
    """

    target: QuantizeTarget
    double_quant: bool = False
    compute_dtype: torch.dtype = torch.bfloat16
    importance: Importance | None = None


def quantize(
    checkpoint: Checkpoint, tokenizer: Tokenizer, out: Path, settings: Settings, *, force: bool = False
) -> Generator[Written, None, None]:
    """Write `checkpoint` to `out`, telling each tensor when it is written.

    Args:
        checkpoint: any that m7b opens.
        tokenizer: the one that it was opened with.
        out: a file for GGUF, else a folder.
        settings: what to write.
        force: replace `out` if it is there.

    Raises:
        OutOfResources: the disk has too little room, which is checked before anything is written.
        UnsupportedCheckpoint: GGUF has no word for the tokenizer.
        UsageError: `out` is there, or rows do not fill whole blocks.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} is already there", hint="--force replaces it, or name another with -o")
    if out.exists() and out.resolve() == checkpoint.path.resolve():
        raise UsageError(f"{out} is the checkpoint that is read", hint="name another place with -o")
    module = gguf_file if settings.target.is_gguf else bnb_folder
    plan = module.plan(checkpoint, tokenizer, settings)
    _check_disk(plan.n_bytes, out)
    torch.set_num_threads(physical_cores())
    with removed_on_failure(out) as unfinished:
        yield from plan.write(unfinished)


def _check_disk(n_bytes: int, out: Path) -> None:
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="make it, or name another place with -o")
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OutOfResources(
            f"{out} takes {n_bytes:,} bytes and {folder} has {free:,} free",
            hint="free some, or name another disk with -o",
        )
