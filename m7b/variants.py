"""The released checkpoints that m7b knows by name: facts only, no files and no tensors."""

from dataclasses import dataclass
from enum import StrEnum


class TokenizerVersion(StrEnum):
    """The tokenizers of the Mistral 7B releases."""

    V1 = "v1"
    V3 = "v3"


@dataclass(frozen=True, slots=True)
class Variant:
    """One released checkpoint.

    `sliding_window` is None where attention is full. `tokenizer` is None where the checkpoint
    brings its own, and `is_instruct` says that it was trained to chat.
    """

    name: str
    summary: str
    hub_id: str
    tokenizer: TokenizerVersion | None
    vocab_size: int
    rope_theta: float
    sliding_window: int | None
    is_instruct: bool = False
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    hidden_dim: int = 14336
    norm_eps: float = 1e-5
    max_seq_len: int = 32768
    tied_embeddings: bool = False
    license: str = "Apache-2.0"


_TABLE = (
    Variant(
        name="base-v0.1",
        summary="Mistral 7B base, September 2023: sliding window of 4096",
        hub_id="mistralai/Mistral-7B-v0.1",
        tokenizer=TokenizerVersion.V1,
        vocab_size=32000,
        rope_theta=1e4,
        sliding_window=4096,
    ),
    Variant(
        name="instruct-v0.1",
        summary="Mistral 7B Instruct, September 2023: sliding window of 4096",
        hub_id="mistralai/Mistral-7B-Instruct-v0.1",
        tokenizer=TokenizerVersion.V1,
        vocab_size=32000,
        rope_theta=1e4,
        sliding_window=4096,
        is_instruct=True,
    ),
    Variant(
        name="instruct-v0.2",
        summary="Mistral 7B Instruct, December 2023: full attention",
        hub_id="mistralai/Mistral-7B-Instruct-v0.2",
        tokenizer=TokenizerVersion.V1,
        vocab_size=32000,
        rope_theta=1e6,
        sliding_window=None,
        is_instruct=True,
    ),
    Variant(
        name="base-v0.3",
        summary="Mistral 7B base, May 2024: full attention, 32768 tokens in the vocabulary",
        hub_id="mistralai/Mistral-7B-v0.3",
        tokenizer=TokenizerVersion.V3,
        vocab_size=32768,
        rope_theta=1e6,
        sliding_window=None,
    ),
    Variant(
        name="instruct-v0.3",
        summary="Mistral 7B Instruct, May 2024: full attention, function calling",
        hub_id="mistralai/Mistral-7B-Instruct-v0.3",
        tokenizer=TokenizerVersion.V3,
        vocab_size=32768,
        rope_theta=1e6,
        sliding_window=None,
        is_instruct=True,
    ),
    Variant(
        name="demo",
        summary="SmolLM2 135M Instruct: the same architecture, small enough to run anywhere",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        tokenizer=None,
        vocab_size=49152,
        rope_theta=1e5,
        sliding_window=None,
        is_instruct=True,
        dim=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        hidden_dim=1536,
        max_seq_len=8192,
        tied_embeddings=True,
    ),
)

VARIANTS = {variant.name: variant for variant in _TABLE}
"""Every variant by its name, in the order of release."""
