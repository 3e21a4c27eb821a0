"""Hugging Face folders: config.json beside safetensors or pytorch_model*.bin, sharded or not."""

import re
from pathlib import Path
from typing import Any

import torch

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints import bnb, groups, torch_files
from m7b.runtime.checkpoints.checkpoint import Blocks, Checkpoint, Format, match_tensors
from m7b.runtime.checkpoints.fields import (
    MAX_DIM,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB,
    Fields,
    find_head_dim,
    read_json,
)
from m7b.runtime.checkpoints.folder import chat_templates, stop_ids, tokenizer_source
from m7b.runtime.checkpoints.methods import gather
from m7b.runtime.checkpoints.scaling import find_rope, read_scaling
from m7b.runtime.model.config import ModelConfig

NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "layers": "model.layers",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
"""The parts of canonical names, as transformers calls them."""
_IGNORED = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)  # a constant that old files carry

# Each dtype that is read, with the one that it runs in.
_DTYPES = torch_files.DTYPES | bnb.DTYPES | groups.DTYPES

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def sniff(path: Path) -> bool:
    """Whether `path` is a folder in this format, judged by its files."""
    return path.is_dir() and (path / "config.json").is_file() and _weights_entry(path) is not None


def open_checkpoint(path: Path, *, window_given: bool = False) -> Checkpoint:
    """Read the configuration and the tensor headers of the folder at `path`; no weights.

    `window_given`: the user names the window, so the file need not.

    Raises:
        DamagedCheckpoint: the files contradict themselves or each other.
        UnsupportedCheckpoint: the model is not of this architecture.
    """
    fields = Fields(path / "config.json", read_json(path / "config.json"))
    inventory = torch_files.inventory(_weight_files(path))
    stored = {name: tensor for name, tensor in inventory.items() if not _IGNORED.fullmatch(name)}
    quantized = gather(fields, stored)
    config = _config(fields, tied="lm_head.weight" not in quantized.tensors, window_given=window_given)
    found = match_tensors(path, config, quantized.tensors, _DTYPES, NAMES)

    block_readers = quantized.block_readers

    def read(name: str) -> torch.Tensor:
        reader = quantized.readers.get(found[name].source_name)
        return reader() if reader else torch_files.read(found[name])

    def read_blocks(name: str) -> Blocks:
        assert block_readers is not None
        return block_readers[found[name].source_name]()

    return Checkpoint(
        path=path,
        format=Format.HF,
        config=config,
        dtype=_DTYPES[found["tok_embeddings.weight"].dtype],
        tensors=found,
        read=read,
        tokenizer=tokenizer_source(path, config.vocab_size),
        stop_ids=_stop_ids(path, fields) | stop_ids(path),
        chat_templates=chat_templates(path),
        read_blocks=read_blocks if block_readers is not None else None,
        quant=quantized.quant,
    )


def _config(fields: Fields, *, tied: bool, window_given: bool) -> ModelConfig:
    model_type = fields.raw("model_type")
    if model_type not in ("mistral", "llama"):
        raise UnsupportedCheckpoint(
            f"{fields.file}: model_type is {model_type!r}", hint="m7b runs 'mistral' and 'llama' models"
        )
    _refuse_unsupported(fields)
    if tied and not fields.flag("tie_word_embeddings", False):
        raise DamagedCheckpoint(
            f"{fields.file}: lm_head.weight is missing and tie_word_embeddings is not true",
            hint="fetch the checkpoint again",
        )
    if model_type == "mistral" and "sliding_window" not in fields and not window_given:
        # transformers would silently take 4096, and the released models differ: absent is not null.
        raise DamagedCheckpoint(
            f"{fields.file}: sliding_window is missing (null would mean none)",
            hint="name it with --window N or --window off",
        )
    # transformers' Llama has no window, whatever its file says.
    window = fields.optional_integer("sliding_window", MAX_POSITIONS) if model_type == "mistral" else None
    dim = fields.integer("hidden_size", MAX_DIM)
    n_heads = fields.integer("num_attention_heads", MAX_DIM)
    n_kv_heads = fields.integer("num_key_value_heads", MAX_DIM, default=n_heads)
    return ModelConfig(
        dim=dim,
        n_layers=fields.integer("num_hidden_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=find_head_dim(fields, "head_dim", dim, n_heads, n_kv_heads),
        hidden_dim=fields.integer("intermediate_size", MAX_DIM),
        vocab_size=fields.integer("vocab_size", MAX_VOCAB),
        norm_eps=fields.number("rms_norm_eps", 1.0),
        rope_theta=_rope_theta(fields, window),
        rope_scaling=read_scaling(fields),
        sliding_window=window,
        max_seq_len=fields.integer("max_position_embeddings", MAX_POSITIONS),
        tied_embeddings=tied,
    )


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse what would change the forward pass."""
    plain: dict[str, tuple[Any, ...]] = {
        "hidden_act": (None, "silu"),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
    }
    for key, allowed in plain.items():
        if fields.raw(key) not in allowed:
            raise UnsupportedCheckpoint(
                f"{fields.file}: {key} is {str(fields.raw(key))[:60]}", hint="m7b does not run such models"
            )


def _rope_theta(fields: Fields, window: int | None) -> float:
    """`rope_theta`, at the top or inside transformers 5's `rope_parameters`, which may leave it out."""
    rope = find_rope(fields)
    if rope is not None and "rope_theta" in rope:
        return rope.number("rope_theta", 1e12)
    is_first = window is not None  # the first release, whose early files do not say so
    if "rope_theta" not in fields and (is_first or fields.raw("rope_parameters") is not None):
        return 1e4
    return fields.number("rope_theta", 1e12)


def _stop_ids(path: Path, fields: Fields) -> frozenset[int]:
    """`eos_token_id` of config.json and of generation_config.json: programs disagree on which one counts."""
    generation = path / "generation_config.json"
    others = [Fields(generation, read_json(generation))] if generation.is_file() else []
    return frozenset().union(*map(_eos_ids, [fields, *others]))


def _eos_ids(fields: Fields) -> list[int]:
    value = fields.raw("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise fields.bad("eos_token_id", "an id or a list of ids")
    return ids


def _weights_entry(path: Path) -> Path | None:
    """The one file that leads to all weights: safetensors before pickles, an index before a lone file."""
    for name in _WEIGHTS:
        for entry in (path / f"{name}.index.json", path / name):
            if entry.is_file():
                return entry
    lone = sorted(path.glob("gptq_model-*.safetensors"))  # as AutoGPTQ first named its one file
    return lone[0] if len(lone) == 1 else None


def _weight_files(path: Path) -> list[Path]:
    entry = _weights_entry(path)
    assert entry is not None, "sniff found it"
    if entry.suffix != ".json":
        return [entry]
    weight_map = read_json(entry).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedCheckpoint(f"{entry}: has no weight_map")
    suffix = Path(entry.name.removesuffix(".index.json")).suffix
    return [_shard(entry, name, suffix) for name in sorted({str(name) for name in weight_map.values()})]


def _shard(index: Path, name: str, suffix: str) -> Path:
    """The file that an index names, which must lie beside it."""
    folder = index.parent.resolve()
    shard = index.parent / name
    if name != Path(name).name or "\\" in name or not name.endswith(suffix):
        raise DamagedCheckpoint(
            f"{index}: names the shard {name!r}", hint=f"a bare file name ending in {suffix} is allowed"
        )
    try:
        is_there = shard.is_file()
    except (OSError, ValueError):  # too long for a name, or no Unicode
        is_there = False
    if not is_there:
        raise DamagedCheckpoint(
            f"{index}: names the shard {name!r}, which is not there", hint="fetch the checkpoint again"
        )
    allowed = [folder]
    if folder.parent.name == "snapshots":  # the Hugging Face cache links each file to its blobs folder
        allowed.append(folder.parent.parent / "blobs")
    if shard.resolve().parent not in allowed:
        raise DamagedCheckpoint(f"{index}: names the shard {name!r}, a link that leaves the folder")
    return shard
