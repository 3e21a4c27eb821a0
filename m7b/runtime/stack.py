"""Which models go through whole layers in one call of the native kernels."""

from torch import nn

from m7b.runtime import kernels
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.kernels import LayerArrays, LayerStack, PackedWeight
from m7b.runtime.linears.blocks import BlockLinear
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model import Transformer, TransformerBlock


def make_stack(model: Transformer, cache: RollingKVCache) -> LayerStack | None:
    """The stack of a bfloat16 model whose layers are all blocks for the kernels; None for any other."""
    linears = [layer for layer in model.layers.modules() if isinstance(layer, PackedLinear)]
    are_blocks = bool(linears) and all(type(layer) is BlockLinear for layer in linears)
    if not are_blocks or model.norm.rms_norm is not kernels.rms_norm:
        return None
    layers = []
    for layer, layer_cache in zip(model.layers, cache.layers, strict=True):
        assert isinstance(layer, TransformerBlock)
        attention, feed_forward = layer.attention, layer.feed_forward
        layers.append(
            LayerArrays(
                attention_norm=layer.attention_norm.weight,
                ffn_norm=layer.ffn_norm.weight,
                wq=_packed(attention.wq),
                wk=_packed(attention.wk),
                wv=_packed(attention.wv),
                wo=_packed(attention.wo),
                w1=_packed(feed_forward.w1),
                w2=_packed(feed_forward.w2),
                w3=_packed(feed_forward.w3),
                keys=layer_cache.keys,
                values=layer_cache.values,
            )
        )
    return LayerStack(layers, model.norm.eps)


def _packed(layer: nn.Module) -> PackedWeight:
    assert isinstance(layer, BlockLinear)
    return layer.packed
