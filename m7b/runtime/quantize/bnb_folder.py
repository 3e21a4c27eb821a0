"""A Hugging Face folder whose layers bitsandbytes has quantized, as transformers writes and reads it."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m7b.runtime.checkpoints import Checkpoint, Format, hf
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.scaling import write_scaling
from m7b.runtime.linears.bnb import BLOCK
from m7b.runtime.quantize.safetensors_file import SafetensorsWriter
from m7b.runtime.quantize.writing import Written, relative_error
from m7b.tokenizer import Tokenizer, save_tokenizer

if TYPE_CHECKING:
    from m7b.runtime.quantize import Settings

MAX_FILE_BYTES = 5_000_000_000
"""Of one file of weights, as hubs and transformers split them."""
_KEPT_FILES = ("generation_config.json", "special_tokens_map.json")
_BITS = {"nf4": 4.5, "fp4": 4.5, "int8": 8.0}


def plan(checkpoint: Checkpoint, tokenizer: Tokenizer, settings: "Settings") -> "FolderPlan":
    """What will be written; nothing is yet."""
    return FolderPlan(checkpoint, tokenizer, settings)


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is a linear of a layer: transformers keeps the output, the embedding and norms."""
    return name.startswith("layers.") and len(shape) > 1


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """One folder to be written: its weights in one file, or in several where that would be too large."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    settings: "Settings"

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, and some for the tokenizer."""
        return sum(map(self._n_bytes, self.checkpoint.config.tensor_shapes())) + (8 << 20)

    def write(self, folder: Path) -> Iterator[Written]:
        """Write the folder; its configuration, without which nobody reads it, comes last."""
        folder.mkdir()
        total, done = sum(map(self._n_bytes, self.checkpoint.config.tensor_shapes())), 0
        files: dict[str, str] = {}
        shards = self._shards()
        for n, names in enumerate(shards, 1):
            file = f"model-{n:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            with SafetensorsWriter(folder / file, len(names)) as writer:
                for name in names:
                    tensors, error = self._encode(name)
                    for stored_name, tensor in tensors.items():
                        writer.add(stored_name, tensor)
                    files |= dict.fromkeys(tensors, file)
                    done += self._n_bytes(name)
                    yield Written(name, error, done, total)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": files}
            _save(folder / "model.safetensors.index.json", index)
        self._keep_files(folder)
        _save(folder / "config.json", self._config())

    def _shards(self) -> list[list[str]]:
        """The names of all tensors, in groups of as many as a file takes."""
        shards: list[list[str]] = [[]]
        room = MAX_FILE_BYTES
        for name in self.checkpoint.config.tensor_shapes():
            room -= self._n_bytes(name)
            if room < 0 and shards[-1]:
                shards.append([])
                room = MAX_FILE_BYTES - self._n_bytes(name)
            shards[-1].append(name)
        return shards

    def _n_bytes(self, name: str) -> int:
        shape = torch.Size(self.checkpoint.config.tensor_shapes()[name])
        bits = _BITS[self.settings.target] if is_quantized(name, shape) else 16
        return int(shape.numel() * bits / 8)

    def _encode(self, name: str) -> tuple[dict[str, Tensor], float]:
        """The tensors that stand for one weight by their names in the file, and their relative error."""
        weight = self.checkpoint.read(name).to(self.settings.compute_dtype)
        stored_name = translate_name(name, hf.NAMES)
        if not is_quantized(name, tuple(weight.shape)):
            return {stored_name: weight.contiguous().clone()}, 0.0
        if self.settings.target == "int8":
            return _int8(stored_name, weight)
        return _four_bit(stored_name, weight, self.settings)

    def _keep_files(self, folder: Path) -> None:
        """The tokenizer and the template: the checkpoint's own files where it is of this format too."""
        checkpoint = self.checkpoint
        save_tokenizer(checkpoint.tokenizer, self.tokenizer, folder)
        for name, source in checkpoint.chat_templates.items():
            is_default = name == "default"
            file = "chat_template.jinja" if is_default else f"additional_chat_templates/{_tidy(name)}.jinja"
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(source, encoding="utf-8")
        if checkpoint.format is Format.HF:
            for name in _KEPT_FILES:
                if (checkpoint.path / name).is_file():
                    shutil.copyfile(checkpoint.path / name, folder / name)

    def _config(self) -> dict[str, Any]:
        config, dtype = self.checkpoint.config, str(self.settings.compute_dtype).removeprefix("torch.")
        stop_ids = sorted(self.checkpoint.stop_ids)
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": config.dim,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "intermediate_size": config.hidden_dim,
            "vocab_size": config.vocab_size,
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "rope_scaling": write_scaling(config.rope_scaling),
            "sliding_window": config.sliding_window,
            "max_position_embeddings": config.max_seq_len,
            "tie_word_embeddings": config.tied_embeddings,
            "hidden_act": "silu",
            "bos_token_id": self.tokenizer.bos_id,
            "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else stop_ids or None,
            "dtype": dtype,
            "quantization_config": _quantization_config(self.settings, dtype),
        }


def _tidy(name: str) -> str:
    """The name of a template as one of a file."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _quantization_config(settings: "Settings", dtype: str) -> dict[str, Any]:
    if settings.target == "int8":
        return {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": str(settings.target),
        "bnb_4bit_use_double_quant": settings.double_quant,
        "bnb_4bit_compute_dtype": dtype,
    }


def _four_bit(name: str, weight: Tensor, settings: "Settings") -> tuple[dict[str, Tensor], float]:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(),
        blocksize=BLOCK,
        quant_type=str(settings.target),
        compress_statistics=settings.double_quant,
    )
    parts = {f"{name}.{key}": value.contiguous() for key, value in state.as_dict(packed=True).items()}
    return {name: packed, **parts}, relative_error([(weight, dequantize_4bit(packed, state))])


def _int8(name: str, weight: Tensor) -> tuple[dict[str, Tensor], float]:
    """Rows of int8 under a float32 scale each, their largest absolute value. (LLM.int8(), section 2.)"""
    wide = weight.to(torch.float32)
    scale = wide.abs().amax(1)
    quants = (wide * torch.where(scale > 0, 127 / scale, 0)[:, None]).round().to(torch.int8)
    layer = name.removesuffix("weight")
    stored = {name: quants, f"{layer}SCB": scale, f"{layer}weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, relative_error([(wide, quants * (scale / 127)[:, None])])


def _save(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
