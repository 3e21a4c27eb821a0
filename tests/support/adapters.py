"""Random low-rank adapters in the real formats, written by hand: what others write is in the oracles."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import MistralForCausalLM

from m7b.runtime.adapters import Mix, Weighted, open_adapter
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.engine import Engine
from m7b.runtime.loader import EngineOptions, load_engine

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A (R, in) and B (out, R) by the names that transformers gives linears."""


def draw_pairs(
    model: MistralForCausalLM,
    rank: int = 4,
    *,
    targets: Sequence[str] = LINEARS,
    ranks: Mapping[str, int] | None = None,
    seed: int = 7,
    std: float = 0.1,
) -> Pairs:
    """Random pairs for all linears of `model` that are called so; `ranks` are other ranks by those names."""
    draw = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind in targets:
            out, n_in = module.weight.shape
            r = (ranks or {}).get(kind, rank)
            pairs[name] = (
                torch.randn(r, n_in, generator=draw) * std,
                torch.randn(out, r, generator=draw) * std,
            )
    return pairs


def name_tensors(pairs: Pairs, prefix: str = "base_model.model.") -> dict[str, torch.Tensor]:
    """The pairs under PEFT's names."""
    sides = {
        f"{prefix}{name}.lora_{side}.weight": tensor
        for name, pair in pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    return {name: tensor.contiguous() for name, tensor in sides.items()}


def write_peft(
    folder: Path, pairs: Pairs, *, tensors: Mapping[str, torch.Tensor] | None = None, **config: Any
) -> Path:
    """A folder as PEFT saves it, with `config` changed, `...` for gone, and `tensors` in the place of all."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(pairs.values()))
    fields = {
        "peft_type": "LORA",
        "r": first[0].shape[0],
        "lora_alpha": 8,
        "bias": "none",
        "base_model_name_or_path": "org/base",
        "target_modules": sorted({name.rpartition(".")[2] for name in pairs}),
    } | config
    kept = {key: value for key, value in fields.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    save_file(dict(name_tensors(pairs) if tensors is None else tensors), folder / "adapter_model.safetensors")
    return folder


def write_gguf_adapter(
    file: Path, pairs: Pairs, model: MistralForCausalLM, *, alpha: float | None = 8.0, **metadata: Any
) -> Path:
    """A file as llama.cpp's converter writes it: rows of q and k interleaved, float32."""
    from gguf import GGUFWriter

    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha} | metadata
    writer = GGUFWriter(file, fields.pop("general.architecture", "llama"))
    for key, value in fields.items():
        if value is not None:
            (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for name, (down, up) in pairs.items():
        _, _, layer, part = name.split(".", 3)
        weight = f"blk.{layer}.{_GGUF[part]}.weight"
        writer.add_tensor(f"{weight}.lora_a", down.numpy())
        writer.add_tensor(f"{weight}.lora_b", _interleave(part, up, model).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_to(model: MistralForCausalLM, pairs: Pairs, scale: float | Mapping[str, float]) -> MistralForCausalLM:
    """Add the pairs to the weights of `model` itself."""
    for name, (down, up) in pairs.items():
        factor = scale[name.rpartition(".")[2]] if isinstance(scale, Mapping) else scale
        with torch.no_grad():
            model.get_submodule(name).weight += factor * (up @ down)
    return model


def adapted_engine(path: Path, *adapters: Path | tuple[Path, float], **options: Any) -> Engine:
    """The production loader's engine with all `adapters` added; in float32 unless told otherwise."""
    return mixed_engine(path, [adapters], **options)


def mixed_engine(path: Path, mixes: Sequence[Sequence[Path | tuple[Path, float]]], **options: Any) -> Engine:
    """The same with several mixes, of which the engine takes the first."""
    checkpoint = open_checkpoint(path, window_given=True)
    opened: list[Mix] = [
        [
            Weighted(open_adapter(one, checkpoint.config), scale)
            for one, scale in (each if isinstance(each, tuple) else (each, 1.0) for each in mix)
        ]
        for mix in mixes
    ]
    settings = {"dtype": "float32", "prefill_chunk": 16, "is_static": None} | options
    is_static = settings.pop("is_static")
    loading = load_engine(checkpoint, EngineOptions(**settings), opened, is_static=is_static)
    while True:
        try:
            next(loading)
        except StopIteration as done:
            return done.value


def _interleave(part: str, up: torch.Tensor, model: MistralForCausalLM) -> torch.Tensor:
    """Rows of q and k as GGUF keeps them: pair i of a head in rows 2i and 2i + 1."""
    heads = {
        "self_attn.q_proj": model.config.num_attention_heads,
        "self_attn.k_proj": model.config.num_key_value_heads,
    }.get(part)
    if heads is None:
        return up.contiguous()
    out, rank = up.shape
    return up.reshape(heads, 2, out // heads // 2, rank).swapaxes(1, 2).reshape(out, rank).contiguous()
