"""Adapters as PEFT saves them: a folder of adapter_config.json and adapter_model.safetensors."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.adapters.adapter import (
    Adapter,
    AdapterFormat,
    LowRank,
    check_part,
    gather_pairs,
    list_adaptable,
)
from m7b.runtime.checkpoints import StoredTensor, hf, torch_files
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.fields import Fields, read_json
from m7b.runtime.model.config import ModelConfig

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_MAX_RANK = 1 << 14
_MAX_ALPHA = 1e6

# What changes the arithmetic, or other weights than linears, by the field that asks for it.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole weights of its own",
    "trainable_token_indices": "embeddings of its own",
    "target_parameters": "parameters that are no linears",
    "layer_replication": "layers that are used twice",
    "lora_bias": "biases",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow's routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron's layers",
}
# Beginnings that put something else into the base model than its own weights.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")

_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[\w-]+)?\.weight")
_PREFIX = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?=layers\.)")
_FOREIGN = {
    "lora_magnitude_vector": "belongs to DoRA",
    "lora_embedding_": "belongs to the embedding",
    "modules_to_save": "is a whole weight",
    "lm_head": "belongs to the output",
    "embed_tokens": "belongs to the embedding",
    "bias": "is a bias",
}
# A pattern is a regular expression of a stranger's: what could take for ever is refused.
_SLOW = re.compile(r"\)[*+?{]|\\[1-9]|\(\?[^:]|(?:[^(*+?{]*[(*+?{]){5}", re.DOTALL)
_MAX_PATTERN = 200


def sniff(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return (path / CONFIG).is_file()


def open_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Read the configuration and the tensor headers of the folder at `path`, for a model of `config`.

    Raises:
        DamagedCheckpoint: the files contradict themselves, each other or the model.
        UnsupportedCheckpoint: it is more than low-rank additions to linears.
    """
    fields = Fields(path / CONFIG, read_json(path / CONFIG))
    recipe = _read_recipe(fields)
    weights = path / _WEIGHTS
    if not weights.is_file():
        raise _make_missing_error(path)
    modules = {_name_module(name): name for name in list_adaptable(config)}

    def locate(source_name: str) -> tuple[str, str] | None:
        match = _TENSOR.fullmatch(source_name)
        name = modules.get(_PREFIX.sub("model.", match["module"], count=1)) if match else None
        return (name, "down" if match["side"] == "A" else "up") if match and name else None

    pairs = gather_pairs(path, torch_files.inventory([weights]), config, locate, _FOREIGN)
    parts = {name: _make_part(name, *pair, recipe, config) for name, pair in pairs.items()}
    base = fields.raw("base_model_name_or_path")
    return Adapter(
        path=path,
        format=AdapterFormat.PEFT,
        parts=parts,
        read_stored=lambda name, tensor: torch_files.read(tensor),
        base=base if isinstance(base, str) else "",
    )


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What adapter_config.json says of all modules, and of some by patterns."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilized: bool

    def find_rank(self, module: str) -> int:
        return next((self.ranks[key] for key in _match(self.ranks, module)), self.rank)

    def find_scale(self, module: str) -> float:
        alpha = next((self.alphas[key] for key in _match(self.alphas, module)), self.alpha)
        rank = self.find_rank(module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def _match(patterns: Mapping[str, Any], module: str) -> Iterator[str]:
    """Those of the patterns that fit `module`, as PEFT compares them."""
    return (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))


def _read_recipe(fields: Fields) -> _Recipe:
    kind = fields.raw("peft_type")
    if kind != "LORA":
        raise UnsupportedCheckpoint(
            f"{fields.file}: peft_type is {str(kind)[:60]!r}", hint="m7b reads adapters of the type LORA"
        )
    _refuse_unsupported(fields)
    return _Recipe(
        rank=fields.integer("r", _MAX_RANK),
        alpha=fields.number("lora_alpha", _MAX_ALPHA),
        ranks=_read_pattern(fields, "rank_pattern", lambda inner, key: inner.integer(key, _MAX_RANK)),
        alphas=_read_pattern(fields, "alpha_pattern", lambda inner, key: inner.number(key, _MAX_ALPHA)),
        is_rank_stabilized=fields.flag("use_rslora", False),
    )


def _refuse_unsupported(fields: Fields) -> None:
    for key, what in _REFUSED.items():
        if fields.raw(key):
            raise UnsupportedCheckpoint(
                f"{fields.file}: {key} asks for {what}",
                hint="m7b adds low-rank weights to linears; merge it into its base model with peft",
            )
    if (bias := fields.raw("bias")) not in (None, "none"):
        raise UnsupportedCheckpoint(
            f"{fields.file}: bias is {str(bias)[:60]!r}",
            hint="m7b runs models without biases: merge it into its base model with peft",
        )
    start = fields.raw("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise UnsupportedCheckpoint(
            f"{fields.file}: init_lora_weights is {start[:60]!r}, which changes the base model too",
            hint="let peft save it with path_initial_model_for_weight_conversion",
        )


def _read_pattern(fields: Fields, key: str, read: Any) -> dict[str, Any]:
    """The numbers under `key` by the patterns of their modules, none where it is absent or null."""
    value = fields.raw(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise fields.bad(key, "an object of patterns and numbers")
    inner = Fields(fields.file, value, key)
    for pattern in value:
        if len(pattern) > _MAX_PATTERN or _SLOW.search(pattern) or not _compiles(pattern):
            raise DamagedCheckpoint(
                f"{fields.file}: {key} has the pattern {pattern[:80]!r}",
                hint="m7b takes names of modules, and patterns of up to four groups and repetitions",
            )
    return {pattern: read(inner, pattern) for pattern in value}


def _compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _make_missing_error(path: Path) -> DamagedCheckpoint | UnsupportedCheckpoint:
    if (path / _PICKLE).is_file():
        return UnsupportedCheckpoint(
            f"{path / _PICKLE}: a pickle, which could run code",
            hint=f"m7b reads adapters from {_WEIGHTS}: let peft load and save it",
        )
    if (path / "adapters.safetensors").is_file():
        return UnsupportedCheckpoint(
            f"{path}: an adapter of mlx-lm", hint="m7b reads those of peft and of llama.cpp"
        )
    return DamagedCheckpoint(f"{path}: {_WEIGHTS} is missing", hint="fetch the adapter again")


def _make_part(
    name: str, down: StoredTensor, up: StoredTensor, recipe: _Recipe, config: ModelConfig
) -> LowRank:
    module = _name_module(name)
    part = LowRank(down, up, recipe.find_scale(module))
    return check_part(part, list_adaptable(config)[name], torch_files.DTYPES, recipe.find_rank(module))


def _name_module(name: str) -> str:
    """What transformers calls the linear of the weight with the canonical `name`."""
    return translate_name(name, hf.NAMES).removesuffix(".weight")
