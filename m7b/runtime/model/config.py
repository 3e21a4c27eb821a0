"""The shape of a model, in the vocabulary of params.json. Knows no file format and no torch."""

from dataclasses import dataclass, fields

from m7b.generation import KvType
from m7b.runtime.model.scaling import RopeScaling
from m7b.variants import Variant

KV_BLOCK = 32
"""Keys or values of one head that share a scale where they are held in 8 bits."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the forward pass depends on.

    `sliding_window` None is full attention, `rope_scaling` None leaves RoPE as it is. `max_seq_len` limits
    positions and changes no logit.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    sliding_window: int | None
    max_seq_len: int
    tied_embeddings: bool
    rope_scaling: RopeScaling | None = None

    @classmethod
    def of_variant(cls, variant: Variant) -> "ModelConfig":
        """The configuration of a released checkpoint, known without its files."""
        names = [field.name for field in fields(cls) if field.name != "rope_scaling"]  # no release scales it
        return cls(**{name: getattr(variant, name) for name in names})

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by its canonical name: 291 of them for Mistral 7B."""
        q_rows, kv_rows = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab_size, self.dim)}
        for layer in range(self.n_layers):
            prefix = f"layers.{layer}."
            shapes |= {
                prefix + "attention_norm.weight": (self.dim,),
                prefix + "attention.wq.weight": (q_rows, self.dim),
                prefix + "attention.wk.weight": (kv_rows, self.dim),
                prefix + "attention.wv.weight": (kv_rows, self.dim),
                prefix + "attention.wo.weight": (self.dim, q_rows),
                prefix + "ffn_norm.weight": (self.dim,),
                prefix + "feed_forward.w1.weight": (self.hidden_dim, self.dim),
                prefix + "feed_forward.w2.weight": (self.dim, self.hidden_dim),
                prefix + "feed_forward.w3.weight": (self.hidden_dim, self.dim),
            }
        shapes["norm.weight"] = (self.dim,)
        if not self.tied_embeddings:
            shapes["output.weight"] = (self.vocab_size, self.dim)
        return shapes

    @property
    def n_params(self) -> int:
        """The exact number of parameters: 7,241,732,096 for v0.1 (tied weights count once)."""
        per_layer = (
            2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
            + 3 * self.dim * self.hidden_dim
            + 2 * self.dim
        )
        embeddings = self.vocab_size * self.dim * (1 if self.tied_embeddings else 2)
        return self.n_layers * per_layer + embeddings + self.dim

    def cache_slots(self, ctx_size: int, prefill_chunk: int) -> int:
        """Slots that the rolling cache needs: the window and the chunk, never more than the context.

        window 4096, chunk 512: 4607 slots; no window, context 32768: 32768 slots.
        """
        if self.sliding_window is None:
            return ctx_size
        return min(ctx_size, self.sliding_window + prefill_chunk - 1)

    def cache_bytes_per_token(self, itemsize: int, kv_type: str | None = None) -> int:
        """Bytes of keys and values that one token takes: 131,072 for Mistral 7B in bfloat16, 69,632 in q8_0.

        `itemsize` is that of the dtype that runs, in which they are held where `kv_type` is None.
        """
        return 2 * self.n_layers * self.n_kv_heads * count_kv_bytes(self.head_dim, itemsize, kv_type)


def count_kv_bytes(head_dim: int, itemsize: int, kv_type: str | None) -> int:
    """Bytes of one key or value of `head_dim` numbers."""
    match kv_type:
        case KvType.Q8_0:
            return head_dim + 2 * -(-head_dim // KV_BLOCK)
        case KvType.BF16:
            return 2 * head_dim
    return head_dim * itemsize
