"""How many bytes of weights a model keeps and reads, and in which form. Runs nothing."""

from torch import Tensor, nn

from m7b.runtime.kernels import BlockType
from m7b.runtime.linears.blocks import BlockLinear
from m7b.runtime.linears.packed import PackedLayer
from m7b.runtime.model.transformer import Transformer
from m7b.runtime.model.update import Update


def count_weight_bytes(model: Transformer) -> int:
    """Bytes of weights that a decoded token reads: all but the embedding, of which it reads one row."""
    row = count_bytes(model.tok_embeddings) // model.config.vocab_size
    added = sum(part.nbytes for update in _list_added(model) for part in (update.down, update.up))
    return row + added + sum(count_bytes(part) for part in (model.layers, model.norm, model.output))


def _list_added(model: Transformer) -> list[Update]:
    """What adapters add."""
    return list(model.adapters[0].values()) if model.adapters else []


def count_bytes(module: nn.Module) -> int:
    """Bytes of all weights in `module`, with the scales of those that are quantized."""
    if isinstance(module, PackedLayer):
        return module.n_bytes
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(map(_n_bytes, own)) + sum(map(count_bytes, module.children()))


def describe_weights(model: Transformer, quant: str | None) -> str:
    """How most weights of `model` are kept, in a word: a type of blocks, else `quant`, else a dtype."""
    types = [layer.block_type for layer in model.modules() if isinstance(layer, BlockLinear)]
    if types:
        common = max(dict.fromkeys(types), key=types.count)
        return common.name.lower() if isinstance(common, BlockType) else ""
    return str(model.norm.weight.dtype).removeprefix("torch.") if quant in (None, "none") else str(quant)


def _n_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, and of the scales that bitsandbytes hangs on its parameters."""
    state = getattr(tensor, "quant_state", None)
    scales = [state.absmax] if state is not None else [getattr(tensor, "SCB", None)]
    return tensor.nbytes + sum(scale.nbytes for scale in scales if isinstance(scale, Tensor))
