"""The layers that turn a weight into an order of their own while a checkpoint is loaded."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from m7b.runtime.checkpoints import Blocks


class PackedLinear(nn.Module, ABC):
    """A linear layer without a bias whose weight is given to `take`, once, and cannot be had back.

    `takes_blocks` says that `take` knows what to do with blocks, and wants numbers as they are stored;
    else it is given the weight in the model's dtype, on its device.
    """

    takes_blocks = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def take(self, weight: Tensor | Blocks) -> None:
        """Hold `weight` (out, in) from now on. The caller lets go of it."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes of the weight as it is held, all of which a forward pass reads."""
