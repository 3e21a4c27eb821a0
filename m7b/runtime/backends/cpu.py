"""The forward pass by the native kernels, for bfloat16 on the CPU."""

from collections.abc import Sequence

from torch import Tensor, nn

from m7b.runtime import kernels
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.kernels import LayerArrays, LayerStack, PackedWeight, RingSpan, RingSpans
from m7b.runtime.linears.blocks import BlockLinear
from m7b.runtime.linears.dense import DenseLinear
from m7b.runtime.model.batch import Batch, Span
from m7b.runtime.model.operations import Attend, Operations
from m7b.runtime.model.rope import rotation
from m7b.runtime.model.transformer import Transformer, TransformerBlock


def locate(cache: RollingKVCache, spans: Sequence[Span]) -> RingSpans:
    """Where the kernels find the rings of `spans`."""
    rows = [(cache[span.row], span) for span in spans]
    return RingSpans(
        RingSpan(
            *(row.addresses, row.capacity, span.first, span.n, row.window or 0, span.is_prompt),
            is_in_blocks=row.is_in_blocks,
        )
        for row, span in rows
    )


def prepare_attention(cache: RollingKVCache, spans: Sequence[Span], like: Tensor) -> Attend:
    """See `Operations.attention`."""
    located = locate(cache, spans)

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return kernels.attend(queries, keys, values, located, layer)

    return attend


KERNELS = Operations(prepare_attention, kernels.rotate, kernels.rms_norm, kernels.swiglu)


class FusedTransformer:
    """A model whose layers are run whole by the kernels, with the bits that one call an operation gives.

    Args:
        model: loaded; its layers are all blocks, or all dense.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        layers = [_find_arrays(layer) for layer in model.layers]
        self._stack = LayerStack(layers, model.norm.eps, model.config.head_dim)

    def __call__(self, batch: Batch, cache: RollingKVCache) -> Tensor:
        """As `Transformer.forward`."""
        model = self._model
        if not self._stack.takes(batch.tokens.shape[0]):
            return model(batch, cache)
        h = model.tok_embeddings(batch.tokens)  # (N, dim)
        cos, sin = rotation(batch.positions, model.config)
        return model.read_out(self._stack(h, cos, sin, locate(cache, batch.spans)), batch)


def _find_arrays(layer: nn.Module) -> LayerArrays:
    assert isinstance(layer, TransformerBlock)
    attention, feed_forward = layer.attention, layer.feed_forward
    return LayerArrays(
        attention_norm=layer.attention_norm.weight,
        ffn_norm=layer.ffn_norm.weight,
        wq=_find_weight(attention.wq),
        wk=_find_weight(attention.wk),
        wv=_find_weight(attention.wv),
        wo=_find_weight(attention.wo),
        w1=_find_weight(feed_forward.w1),
        w2=_find_weight(feed_forward.w2),
        w3=_find_weight(feed_forward.w3),
    )


def _find_weight(layer: nn.Module) -> PackedWeight | Tensor:
    if isinstance(layer, BlockLinear):
        return layer.packed
    assert isinstance(layer, DenseLinear)
    return layer.weight
