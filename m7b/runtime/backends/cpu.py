"""The forward pass by the native kernels, for bfloat16 on the CPU."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from m7b.runtime import kernels
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.kernels import LayerArrays, LayerStack, PackedWeight, RingSpan, RingSpans
from m7b.runtime.kernels.updates import (
    LayerUpdateArrays,
    ModelUpdates,
    UpdateArrays,
    UpdatedParts,
    UpdatedTokens,
)
from m7b.runtime.linears.blocks import BlockLinear
from m7b.runtime.linears.dense import DenseLinear
from m7b.runtime.model.batch import Batch, Span
from m7b.runtime.model.operations import Attend, Operations
from m7b.runtime.model.rope import rotation
from m7b.runtime.model.transformer import Transformer, TransformerBlock
from m7b.runtime.model.update import Update, Updates, list_parts

# The linears of a layer, in the order of `LayerUpdateArrays`.
_LINEARS = (
    *("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
)


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


def add_update(x: Tensor, y: Tensor, update: Update) -> None:
    """See `Operations.add_update`."""
    kernels.add_update(x, y, _list_arrays(update))


KERNELS = Operations(prepare_attention, kernels.rotate, kernels.rms_norm, kernels.swiglu, add_update)


class FusedTransformer:
    """A model whose layers are run whole by the kernels, with the bits that one call an operation gives.

    Args:
        model: loaded; its layers are all blocks, or all dense.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        layers = [_find_arrays(layer) for layer in model.layers]
        self._stack = LayerStack(layers, model.norm.eps, model.config.head_dim)
        self._updates = [_find_updates(model, updates) for updates in model.adapters]

    def __call__(self, batch: Batch, cache: RollingKVCache) -> Tensor:
        """As `Transformer.forward`."""
        model = self._model
        if not self._stack.takes(batch.tokens.shape[0]):
            return model(batch, cache)
        h = model.tok_embeddings(batch.tokens)  # (N, dim)
        cos, sin = rotation(batch.positions, model.config)
        updated = UpdatedParts(self._find_updated(batch.spans))
        return model.read_out(self._stack(h, cos, sin, locate(cache, batch.spans), updated), batch)

    def _find_updated(self, spans: Sequence[Span]) -> Iterator[UpdatedTokens]:
        """The tokens for which there is something to add."""
        for part in list_parts(spans) if self._updates else ():
            if updates := self._updates[part.adapter]:
                yield UpdatedTokens(updates, part.first, part.end)


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


def _find_updates(model: Transformer, updates: Updates) -> ModelUpdates | None:
    """What is added to each layer, None where that is nothing."""

    def find(layer: nn.Module) -> LayerUpdateArrays:
        linears = (layer.get_submodule(name) for name in _LINEARS)
        return LayerUpdateArrays(
            *(_list_arrays(updates[linear]) if linear in updates else None for linear in linears)
        )

    return ModelUpdates([find(layer) for layer in model.layers]) if updates else None


def _list_arrays(update: Update) -> UpdateArrays:
    return UpdateArrays(update.down, update.up, update.scales)


def _find_weight(layer: nn.Module) -> PackedWeight | Tensor:
    if isinstance(layer, BlockLinear):
        return layer.packed
    assert isinstance(layer, DenseLinear)
    return layer.weight
