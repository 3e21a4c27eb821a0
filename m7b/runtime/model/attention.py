"""Grouped-query attention over cache slots. Knows masks; knows nothing about windows or positions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of `queries` (T, H, D) over `keys` and `values` (K, S, D); returns (T, H, D).

    Query head h reads kv head h // (H / K), as mistral-inference repeats them. `bias` is what
    `score_bias` made.
    """
    T, H, D = queries.shape
    K = keys.shape[0]
    # The query heads that share a kv head become rows of one longer query: no key is copied.
    grouped = queries.reshape(T, K, H // K, D).permute(1, 2, 0, 3).reshape(1, K, H // K * T, D)
    mixed = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=bias)
    return mixed.view(K, H // K, T, D).permute(2, 0, 1, 3).reshape(T, H, D)


def score_bias(seen: Tensor, n_groups: int, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and -inf where not, from `seen` (T, S): (n_groups * T, S) in `dtype`."""
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return bias.repeat(n_groups, 1)
