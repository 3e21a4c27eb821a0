"""The layers that turn a weight into an order of their own while a checkpoint is loaded."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from m7b.runtime.checkpoints import Blocks


class PackedLayer(nn.Module, ABC):
    """A layer whose weight is given to `set_weight`, once, and cannot be had back.

    `takes_blocks` says that `set_weight` knows what to do with blocks, and wants numbers as they are stored;
    else it is given the weight in the model's dtype, on its device.
    """

    takes_blocks = False

    @abstractmethod
    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Hold `weight` (out, in) from now on. The caller lets go of it."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes of the weight as it is held."""


class PackedLinear(PackedLayer):
    """A linear layer without a bias, which reads all of its weight in a forward pass."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
