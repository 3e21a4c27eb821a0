"""Rotary position embedding in half-split row order.

The angles and the rotation are float32 whatever the model's dtype, as in mistral-inference
(`rope.py`); transformers rounds cos and sin to the model dtype first.
"""

import math
from typing import assert_never

import torch
from torch import Tensor

from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.scaling import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling


def rotation(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle, each (T, 1, D/2) float32, for absolute `positions` (T,)."""
    angles = positions.to(torch.float32)[:, None, None] * _frequencies(config, positions.device)
    cos, sin = angles.cos(), angles.sin()
    if isinstance(config.rope_scaling, YarnScaling):
        factor = config.rope_scaling.attention_factor
        return cos * factor, sin * factor
    return cos, sin


def _frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """The angle from one position to the next for each pair of a head, (D/2,) float32."""
    D = config.head_dim
    plain = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, dtype=torch.float32, device=device) / D)
    match config.rope_scaling:
        case None | DynamicScaling():
            return plain
        case LinearScaling(factor):
            return plain / factor
        case YarnScaling() as yarn:
            return _blend(plain, yarn.factor, _yarn_ramp(yarn, config, device))
        case Llama3Scaling() as llama:
            turns = llama.original_context * plain / (2 * math.pi)
            width = llama.high_freq_factor - llama.low_freq_factor
            return _blend(plain, llama.factor, 1 - ((turns - llama.low_freq_factor) / width).clamp(0, 1))
        case other:
            assert_never(other)


def _blend(plain: Tensor, factor: float, share: Tensor) -> Tensor:
    """Divide that `share` of each frequency by `factor`."""
    return plain / factor * share + plain * (1 - share)


def _yarn_ramp(yarn: YarnScaling, config: ModelConfig, device: torch.device) -> Tensor:
    """From 0 for pairs that turn fast to 1 for slow ones, (D/2,)."""
    D = config.head_dim

    def find_pair(n_turns: float) -> float:
        """The pair, as a fraction, that turns so often in the original context."""
        return (
            D * math.log(yarn.original_context / (n_turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        )

    low, high = find_pair(yarn.beta_fast), find_pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    pairs = torch.arange(D // 2, dtype=torch.float32, device=device)
    return ((pairs - low) / (high - low or 0.001)).clamp(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of `x` (T, heads, D) by its angle; returns the dtype of `x`."""
    first, second = x.to(torch.float32).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def canonical_rows(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """The weight called `name`, read from a file in native order, in canonical row order."""
    n_heads = _turned_heads(name, config)
    return interleaved_to_half_split(weight, n_heads) if n_heads else weight


def interleaved_to_half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of a q or k projection (heads * D, dim) from native to canonical order.

    Native files and GGUF keep pair i of a head in rows 2i and 2i+1; the canonical order, that of
    Hugging Face, in rows i and i + D/2. One head with D=6: rows [0 1 2 3 4 5] become [0 2 4 1 3 5].
    """
    rows, columns = weight.shape
    pairs = weight.view(n_heads, rows // n_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def half_split_to_interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """The other way, for files in native order. One head with D=6: [0 1 2 3 4 5] become [0 3 1 4 2 5]."""
    rows, columns = weight.shape
    halves = weight.view(n_heads, 2, rows // n_heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def native_rows(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """The weight called `name` in native row order, given in canonical order."""
    n_heads = _turned_heads(name, config)
    return half_split_to_interleaved(weight, n_heads) if n_heads else weight


def _turned_heads(name: str, config: ModelConfig) -> int | None:
    """The heads that the rows of the weight called `name` make, if RoPE turns what it projects."""
    if name.endswith("attention.wq.weight"):
        return config.n_heads
    return config.n_kv_heads if name.endswith("attention.wk.weight") else None
