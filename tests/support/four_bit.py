"""Tiny folders in the four-bit formats of other programs, each packed from its format's description.

What is written is known: `Folder.values` has every weight as the format means it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import MistralForCausalLM

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each place of a word has, lowest bits first


@dataclass(frozen=True)
class Folder:
    """A folder that was written, and the values (out, in) float64 of its quantized weights by their name."""

    path: Path
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Weight:
    """`quants` (out, in) from 0 to 15, `scales` and `zeros` (out, groups); column i is of `columns[i]`."""

    quants: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    columns: np.ndarray

    def values(self) -> np.ndarray:
        """(quant - zero) * scale."""
        scales, zeros = (part.astype(np.float64)[:, self.columns] for part in (self.scales, self.zeros))
        return (self.quants - zeros) * scales


def round_weight(weight: np.ndarray, group: int, *, symmetric: bool, shuffled: bool) -> Weight:
    """Round to 4 bits, by groups of neighbours or, `shuffled`, of columns from anywhere."""
    n_out, n_in = weight.shape
    columns = np.arange(n_in) // (n_in if group == -1 else group)
    if shuffled:
        columns = np.random.default_rng(n_in).permutation(columns)
    scales = np.empty((n_out, columns.max() + 1), np.float16)
    zeros = np.full(scales.shape, 8, np.int64)
    quants = np.empty(weight.shape, np.int64)
    for g in range(scales.shape[1]):
        part = weight[:, columns == g]
        low, high = part.min(1).clip(max=0), part.max(1).clip(min=0)
        scales[:, g] = np.abs(part).max(1) / 7 if symmetric else (high - low) / 15
        step = scales[:, g].astype(np.float64)
        if not symmetric:
            zeros[:, g] = np.clip(np.round(-low / step), 0, 15)
        quants[:, columns == g] = np.clip(np.round(part / step[:, None]) + zeros[:, g, None], 0, 15)
    return Weight(quants, scales, zeros, columns)


def pack_down(values: np.ndarray) -> torch.Tensor:
    """Eight values of a column to a word, the first in the lowest bits: (8 n, m) to (n, m) int32."""
    words = np.zeros((values.shape[0] // 8, values.shape[1]), np.uint32)
    for place in range(8):
        words |= values[place::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32))


def pack_along(values: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight values of a row to a word, place p having that of `order[p]`: (n, 8 m) to (n, m) int32."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for place, column in enumerate(order):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32))


def write_gptq(
    model: MistralForCausalLM,
    path: Path,
    *,
    group: int = 32,
    symmetric: bool = False,
    shuffled: bool = False,
    has_order: bool = True,
    settings_file: str | None = None,
    **settings: Any,
) -> Folder:
    """As AutoGPTQ does: zeros one too small, or as they are where `checkpoint_format` is `gptq_v2`.

    The settings are in config.json, or in a `settings_file` beside it.
    """
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": shuffled} | settings
    less = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def store(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        rounded = round_weight(weight, group, symmetric=symmetric, shuffled=shuffled)
        zeros = np.maximum(rounded.zeros, less)
        rounded = Weight(rounded.quants, rounded.scales, zeros, rounded.columns)
        parts = {
            "qweight": pack_down(rounded.quants.T),
            "qzeros": pack_along(zeros.T - less),
            "scales": torch.from_numpy(rounded.scales.T.copy()),
            "bias": torch.zeros(len(weight), dtype=torch.float16),
        }
        if has_order:
            parts["g_idx"] = torch.from_numpy(rounded.columns.astype(np.int32))
        return parts, rounded.values()

    return _write(model, path, store, settings, "quantization_config", settings_file)


def write_awq(
    model: MistralForCausalLM,
    path: Path,
    *,
    group: int = 32,
    settings_file: str | None = None,
    **settings: Any,
) -> Folder:
    """As AutoAWQ does in its version gemm."""
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
    } | settings

    def store(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        rounded = round_weight(weight, group, symmetric=False, shuffled=False)
        parts = {
            "qweight": pack_along(rounded.quants.T, AWQ_ORDER),
            "qzeros": pack_along(rounded.zeros.T, AWQ_ORDER),
            "scales": torch.from_numpy(rounded.scales.T.copy()),
        }
        return parts, rounded.values()

    return _write(model, path, store, settings, "quantization_config", settings_file)


def write_mlx(
    model: MistralForCausalLM,
    path: Path,
    *,
    group: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    **settings: Any,
) -> Folder:
    """As mlx-lm does: embeddings and output too, `quantization` in config.json."""

    def store(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        rounded = round_weight(weight, group, symmetric=False, shuffled=False)
        scales = torch.from_numpy(rounded.scales).to(dtype)
        biases = (-torch.from_numpy(rounded.zeros) * torch.from_numpy(rounded.scales)).to(dtype)
        parts = {
            "weight": pack_along(rounded.quants).view(torch.uint32),
            "scales": scales,
            "biases": biases,
        }
        zeros = -biases.double().numpy() / scales.double().numpy()
        exact = Weight(rounded.quants, scales.double().numpy(), zeros, rounded.columns)
        return parts, exact.values()

    settings = {"group_size": group, "bits": 4} | settings
    return _write(model, path, store, settings, "quantization", None, all_matrices=True)


def dequantized(model: MistralForCausalLM, folder: Folder) -> MistralForCausalLM:
    """The model with the values of the folder in the place of its weights."""
    values = {name: torch.from_numpy(value).float() for name, value in folder.values.items()}
    model.load_state_dict(values, strict=False)
    return model


def _write(
    model: MistralForCausalLM,
    path: Path,
    store: Callable[[np.ndarray], tuple[dict[str, torch.Tensor], np.ndarray]],
    settings: dict[str, Any],
    key: str,
    settings_file: str | None,
    *,
    all_matrices: bool = False,
) -> Folder:
    model.config.save_pretrained(path)
    settings = {name: value for name, value in settings.items() if value is not ...}
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, np.ndarray] = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if weight.dim() == 2 and (all_matrices or "_proj" in name):
            parts, values[name] = store(weight.double().numpy())
            tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        else:
            tensors[name] = weight.to(torch.float16)
            values[name] = tensors[name].double().numpy()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    if settings_file is not None:
        (path / settings_file).write_text(json.dumps(settings))
    else:
        config = json.loads((path / "config.json").read_text()) | {key: settings}
        (path / "config.json").write_text(json.dumps(config))
    return Folder(path, values)
