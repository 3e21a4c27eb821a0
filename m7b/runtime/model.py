"""The Mistral 7B forward pass: arithmetic only (arXiv 2310.06825; mistral-inference).

Shapes: T tokens of one sequence, S cache slots, H heads, K kv heads, D head_dim, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m7b.runtime.attention import score_bias
from m7b.runtime.cache import CacheSpan, LayerCache, RollingKVCache
from m7b.runtime.config import ModelConfig
from m7b.runtime.kernels import LayerStack
from m7b.runtime.primitives import TORCH, Primitives
from m7b.runtime.rope import rotation

LinearFactory = Callable[[int, int], nn.Module]
"""Makes the layer that maps (T, in) to (T, out) without a bias, in the dtype of what it is given.

That is the model's, but float32 for the output, whose sums should not be rounded where the layer can help it.
"""


class Linear(nn.Module):
    """`torch.nn.Linear` without its bias and without initial values, which a checkpoint brings."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out) in the dtype of `x`, multiplied in the weight's."""
        return F.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)


class Embedding(nn.Module):
    """One row of `weight` per id."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(T,) ids to (T, dim)."""
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """Scale by the root mean square, then weigh."""

    def __init__(self, dim: int, eps: float, primitives: Primitives) -> None:
        super().__init__()
        self.eps = eps
        self.rms_norm = primitives.rms_norm
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(T, dim) to (T, dim)."""
        return self.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention through one layer's cache."""

    def __init__(self, config: ModelConfig, linear: LinearFactory, primitives: Primitives) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attend, self.rotate = primitives.attend, primitives.rotate
        self.wq = linear(config.dim, config.n_heads * config.head_dim)
        self.wk = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = linear(config.n_heads * config.head_dim, config.dim)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, cache: LayerCache, span: CacheSpan
    ) -> Tensor:
        """(T, dim) to (T, dim)."""
        T = x.shape[0]
        q = self.rotate(self.wq(x).view(T, -1, self.head_dim), cos, sin)  # (T, H, D)
        k = self.rotate(self.wk(x).view(T, -1, self.head_dim), cos, sin)  # (T, K, D)
        v = self.wv(x).view(T, -1, self.head_dim)  # (T, K, D)
        keys, values = cache.write(span, k.transpose(0, 1), v.transpose(0, 1))  # (K, S, D)
        return self.wo(self.attend(q, keys, values, bias).reshape(T, -1))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig, linear: LinearFactory, primitives: Primitives) -> None:
        super().__init__()
        self.swiglu = primitives.swiglu
        self.w1 = linear(config.dim, config.hidden_dim)
        self.w2 = linear(config.hidden_dim, config.dim)
        self.w3 = linear(config.dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(T, dim) to (T, dim)."""
        return self.w2(self.swiglu(self.w1(x), self.w3(x)))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, config: ModelConfig, linear: LinearFactory, primitives: Primitives) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps, primitives)
        self.attention = Attention(config, linear, primitives)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps, primitives)
        self.feed_forward = FeedForward(config, linear, primitives)

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, cache: LayerCache, span: CacheSpan
    ) -> Tensor:
        """(T, dim) to (T, dim)."""
        h = h + self.attention(self.attention_norm(h), cos, sin, bias, cache, span)
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    """The whole model; its parameters carry the canonical names of `ModelConfig.tensor_shapes`."""

    def __init__(
        self,
        config: ModelConfig,
        linear: LinearFactory = Linear,
        primitives: Primitives = TORCH,
        output: LinearFactory | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            TransformerBlock(config, linear, primitives) for _ in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps, primitives)
        self.output = (output or linear)(config.dim, config.vocab_size)
        self.stack: LayerStack | None = None  # whole layers in one call, where somebody offers it
        self.tie()

    def tie(self) -> None:
        """Let the output share the embedding's weight, where the checkpoint has one for both."""
        if self.config.tied_embeddings and isinstance(self.output, Linear):
            self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: Tensor, cache: RollingKVCache, *, last_only: bool = False) -> Tensor:
        """Logits (T, V) float32 for `tokens` (T,), which `cache` takes up; (1, V) with `last_only`."""
        config = self.config
        h = self.tok_embeddings(tokens)  # (T, dim)
        span, positions, seen = cache.reserve(tokens.shape[0])
        cos, sin = rotation(positions.to(h.device), config.head_dim, config.rope_theta)
        bias = score_bias(seen.to(h.device), config.n_heads // config.n_kv_heads, h.dtype)
        if self.stack and self.stack.takes(span.length):
            h = self.stack(h, cos, sin, bias, span.slot, span.filled)
        else:
            for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
                h = layer(h, cos, sin, bias, cache=layer_cache, span=span)
        cache.commit(span)
        return self.output(self.norm(h[-1:] if last_only else h).to(torch.float32))
