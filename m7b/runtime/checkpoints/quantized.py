"""What the readers of quantized folders give: an inventory in which each weight is one tensor again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from m7b.runtime.checkpoints.checkpoint import Blocks, StoredTensor


@dataclass(frozen=True, slots=True)
class Quantized:
    """The `tensors` of a folder, and how to read those that are quantized: as numbers, some as blocks too.

    Without `block_readers` there are no blocks at all. `quant` is the quantization of bitsandbytes, if any.
    """

    tensors: dict[str, StoredTensor]
    readers: Mapping[str, Callable[[], Tensor]]
    block_readers: Mapping[str, Callable[[], Blocks]] | None = None
    quant: str | None = None
