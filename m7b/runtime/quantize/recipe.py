"""Which block type each tensor of a GGUF file gets, as llama.cpp chooses it for the same name.

A target such as q4_k_m is a mix: most weights in one type, those that suffer most in a finer one. Knows
names and shapes; rounds nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from m7b.errors import UsageError
from m7b.generation import QuantizeTarget
from m7b.runtime import kernels
from m7b.runtime.kernels import BLOCK, BlockType
from m7b.runtime.model.config import ModelConfig

_MOST = {
    QuantizeTarget.Q3_K_M: BlockType.Q3_K,
    QuantizeTarget.Q4_0: BlockType.Q4_0,
    QuantizeTarget.Q4_K_S: BlockType.Q4_K,
    QuantizeTarget.Q4_K_M: BlockType.Q4_K,
    QuantizeTarget.Q5_K_M: BlockType.Q5_K,
    QuantizeTarget.Q6_K: BlockType.Q6_K,
    QuantizeTarget.Q8_0: BlockType.Q8_0,
    QuantizeTarget.IQ4_NL: BlockType.IQ4_NL,
    QuantizeTarget.IQ4_XS: BlockType.IQ4_XS,
}
# What takes the place of a type where rows are no multiple of 256.
_INSTEAD = {
    BlockType.Q3_K: BlockType.Q4_0,
    BlockType.Q4_K: BlockType.Q5_0,
    BlockType.Q5_K: BlockType.Q5_1,
    BlockType.Q6_K: BlockType.Q8_0,
    BlockType.IQ4_XS: BlockType.IQ4_NL,
}
_WITHOUT_KERNELS = (BlockType.Q4_0, BlockType.Q8_0)


def choose_types(
    config: ModelConfig, target: QuantizeTarget, *, has_importance: bool
) -> Mapping[str, BlockType]:
    """The block type of each matrix of the model, by canonical names.

    Raises:
        UsageError: rows do not fill whole blocks, or there are no kernels for a type.
    """
    shapes = {name: shape for name, shape in config.tensor_shapes().items() if len(shape) > 1}
    recipe = _Recipe(target, config, has_importance)
    types = {name: recipe.choose(name, shape[-1]) for name, shape in shapes.items()}
    for name, type_ in types.items():
        if shapes[name][-1] % type_.n_values:
            raise UsageError(
                f"{target} needs rows of whole blocks of {BLOCK}, {name} has rows of {shapes[name][-1]}",
                hint="nf4 takes rows of any length",
            )
        if not kernels.instruction_set() and type_ not in _WITHOUT_KERNELS:
            raise UsageError(
                f"{target} rounds to {type_.stored}, and {kernels.why_missing()}",
                hint="q4_0 and q8_0 need no kernels",
            )
    return types


@dataclass(frozen=True, slots=True)
class _Recipe:
    target: QuantizeTarget
    config: ModelConfig
    has_importance: bool

    def choose(self, name: str, columns: int) -> BlockType:
        """The type of one matrix whose rows have so many columns."""
        if name == "output.weight" or (self.config.tied_embeddings and name == "tok_embeddings.weight"):
            chosen = self._output()
        elif name.startswith("layers."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            chosen = self._choose_in_layer(part, int(layer)) or _MOST[self.target]
        else:
            chosen = _MOST[self.target]
        return _INSTEAD.get(chosen, chosen) if columns % chosen.n_values else chosen

    def _output(self) -> BlockType:
        """That of the output, where few bits cost most."""
        whole = (QuantizeTarget.Q4_0, QuantizeTarget.Q8_0)
        return BlockType.Q8_0 if self.target in whole else BlockType.Q6_K

    def _choose_in_layer(self, part: str, layer: int) -> BlockType | None:
        """A finer type than most weights get, None for theirs. The values and the way down suffer most."""
        match part:
            case "attention.wv":
                return self._choose_values(layer)
            case "feed_forward.w2":
                return self._choose_down(layer)
            case "attention.wo" if self.target is QuantizeTarget.Q3_K_M:
                return BlockType.Q4_K
        return None

    def _choose_values(self, layer: int) -> BlockType | None:
        match self.target:
            case QuantizeTarget.Q3_K_M:
                return BlockType.Q5_K if layer < 2 else BlockType.Q4_K
            case QuantizeTarget.Q4_K_S if layer < 4:
                return BlockType.Q5_K
            case QuantizeTarget.Q4_K_M | QuantizeTarget.Q5_K_M if self._suffers(layer):
                return BlockType.Q6_K
            case QuantizeTarget.IQ4_NL | QuantizeTarget.IQ4_XS:
                return BlockType.Q5_K if self.config.n_heads >= 4 * self.config.n_kv_heads else None
        return None

    def _choose_down(self, layer: int) -> BlockType | None:
        n_layers = self.config.n_layers
        match self.target:
            case QuantizeTarget.Q3_K_M:
                return BlockType.Q5_K if layer < n_layers // 16 else BlockType.Q4_K
            case QuantizeTarget.Q4_K_S if layer < n_layers // 8:
                return BlockType.Q5_K
            case QuantizeTarget.Q4_K_M | QuantizeTarget.Q5_K_M if self._suffers(layer):
                return BlockType.Q6_K
            case QuantizeTarget.IQ4_NL | QuantizeTarget.IQ4_XS if layer < n_layers // 8:
                return None if self.has_importance else BlockType.Q5_K
        return None

    def _suffers(self, layer: int) -> bool:
        """Whether it is among the first and the last eighth of the layers, or a third of the others."""
        eighth = self.config.n_layers // 8
        return layer < eighth or layer >= 7 * self.config.n_layers // 8 or (layer - eighth) % 3 == 2
