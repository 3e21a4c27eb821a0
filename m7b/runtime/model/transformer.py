"""The Mistral 7B forward pass: arithmetic only (arXiv 2310.06825; mistral-inference).

Shapes: N tokens of one sequence or several, H heads, K kv heads, D head_dim, V vocabulary. Only attention
knows that tokens belong to sequences; everything else is done token by token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m7b.runtime.cache import RollingKVCache
from m7b.runtime.model.batch import Batch
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.operations import Attend, EmbeddingFactory, LinearFactory, Operations, Project
from m7b.runtime.model.rope import rotation
from m7b.runtime.model.update import Updates, list_parts


class Linear(nn.Module):
    """`torch.nn.Linear` without its bias and without initial values, which a checkpoint brings."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) to (N, out) in the dtype of `x`, multiplied in the weight's."""
        return F.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)


class Embedding(nn.Module):
    """One row of `weight` per id."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N,) ids to (N, dim)."""
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """Scale by the root mean square, then weigh."""

    def __init__(self, dim: int, eps: float, operations: Operations) -> None:
        super().__init__()
        self.eps = eps
        self.rms_norm = operations.rms_norm
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim) to (N, dim)."""
        return self.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention of the layer with number `layer`."""

    def __init__(
        self, config: ModelConfig, layer: int, linear: LinearFactory, operations: Operations
    ) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.rotate = operations.rotate
        self.wq = linear(config.dim, config.n_heads * config.head_dim)
        self.wk = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = linear(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, project: Project) -> Tensor:
        """(N, dim) to (N, dim)."""
        N = x.shape[0]
        q = self.rotate(project(self.wq, x).view(N, -1, self.head_dim), cos, sin)  # (N, H, D)
        k = self.rotate(project(self.wk, x).view(N, -1, self.head_dim), cos, sin)  # (N, K, D)
        v = project(self.wv, x).view(N, -1, self.head_dim)  # (N, K, D)
        return project(self.wo, attend(self.layer, q, k, v).view(N, -1))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig, linear: LinearFactory, operations: Operations) -> None:
        super().__init__()
        self.swiglu = operations.swiglu
        self.w1 = linear(config.dim, config.hidden_dim)
        self.w2 = linear(config.hidden_dim, config.dim)
        self.w3 = linear(config.dim, config.hidden_dim)

    def forward(self, x: Tensor, project: Project) -> Tensor:
        """(N, dim) to (N, dim)."""
        return project(self.w2, self.swiglu(project(self.w1, x), project(self.w3, x)))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each after a norm and added to its input."""

    def __init__(
        self, config: ModelConfig, layer: int, linear: LinearFactory, operations: Operations
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps, operations)
        self.attention = Attention(config, layer, linear, operations)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps, operations)
        self.feed_forward = FeedForward(config, linear, operations)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, attend: Attend, project: Project) -> Tensor:
        """(N, dim) to (N, dim)."""
        h = h + self.attention(self.attention_norm(h), cos, sin, attend, project)
        return h + self.feed_forward(self.ffn_norm(h), project)


class Transformer(nn.Module):
    """The whole model; its parameters carry the canonical names of `ModelConfig.tensor_shapes`.

    Args:
        config: its shape.
        linear: makes the linears of the layers.
        output: makes the last one.
        operations: everything else.
        embedding: makes the first layer.

    Attributes:
        adapters: what is added to linears, by the number that spans give; none where it is empty.
    """

    def __init__(
        self,
        config: ModelConfig,
        linear: LinearFactory,
        output: LinearFactory,
        operations: Operations,
        embedding: EmbeddingFactory = Embedding,
    ) -> None:
        super().__init__()
        self.config = config
        self.prepare_attention, self.add_update = operations.attention, operations.add_update
        self.adapters: Sequence[Updates] = ()
        self.tok_embeddings = embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            TransformerBlock(config, layer, linear, operations) for layer in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps, operations)
        self.output = output(config.dim, config.vocab_size)
        self.tie()

    def tie(self) -> None:
        """Let the output share the embedding's weight, where the checkpoint has one for both."""
        is_shared = isinstance(self.output, Linear) and isinstance(self.tok_embeddings, Embedding)
        if self.config.tied_embeddings and is_shared:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, batch: Batch, cache: RollingKVCache) -> Tensor:
        """The wanted logits of `batch`, (M, V) float32. Keys and values go to their rows of `cache`."""
        h = self.tok_embeddings(batch.tokens)  # (N, dim)
        cos, sin = rotation(batch.positions, self.config)
        attend = self.prepare_attention(cache, batch.spans, h)
        project = self.prepare_projection(batch)
        for layer in self.layers:
            h = layer(h, cos, sin, attend, project)
        return self.read_out(h, batch)

    def prepare_projection(self, batch: Batch) -> Project:
        """The linears of layers, with what adapters add for the tokens of `batch`."""
        parts = list(list_parts(batch.spans)) if self.adapters else []

        def project(linear: nn.Module, x: Tensor) -> Tensor:
            y: Tensor = linear(x)
            for part in parts:
                if update := self.adapters[part.adapter].get(linear):
                    self.add_update(x[part.first : part.end], y[part.first : part.end], update)
            return y

        return project

    def read_out(self, h: Tensor, batch: Batch) -> Tensor:
        """The wanted logits (M, V) float32 of what the last layer made, `h` (N, dim)."""
        return self.output(self.norm(h[batch.wanted]).to(torch.float32))
