"""Mistral's own folders: params.json beside consolidated.safetensors or consolidated.00.pth."""

from pathlib import Path

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints import torch_files
from m7b.runtime.checkpoints.checkpoint import Checkpoint, Format, match_tensors
from m7b.runtime.checkpoints.fields import (
    MAX_DIM,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB,
    Fields,
    find_head_dim,
    read_json,
)
from m7b.runtime.checkpoints.folder import stop_ids, tokenizer_source
from m7b.runtime.checkpoints.scaling import read_native_scaling
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.rope import canonical_rows
from m7b.runtime.model.scaling import YarnScaling

_WEIGHTS = ("consolidated.safetensors", "consolidated.00.pth")
_MAX_SEQ_LEN = 32768  # releases of this model say nothing, and take this many
_EOS = 2


def sniff(path: Path) -> bool:
    """Whether `path` is a folder in this format, judged by its files."""
    return (
        path.is_dir()
        and (path / "params.json").is_file()
        and any((path / name).is_file() for name in _WEIGHTS)
    )


def open_checkpoint(path: Path, *, window_given: bool = False) -> Checkpoint:
    """Read the configuration and the tensor headers of the folder at `path`; no weights.

    A params.json without `sliding_window` means full attention, so `window_given` changes nothing.

    Raises:
        DamagedCheckpoint: the files contradict themselves or each other.
    """
    weights = next(path / name for name in _WEIGHTS if (path / name).is_file())
    stored = torch_files.inventory([weights])
    fields = Fields(path / "params.json", read_json(path / "params.json"))
    config = _config(fields, tied="output.weight" not in stored)
    found = match_tensors(path, config, stored, torch_files.DTYPES, source_names={})
    return Checkpoint(
        path=path,
        format=Format.NATIVE,
        config=config,
        dtype=torch_files.DTYPES[found["tok_embeddings.weight"].dtype],
        tensors=found,
        read=lambda name: canonical_rows(name, torch_files.read(found[name]), config),
        tokenizer=tokenizer_source(path, config.vocab_size),
        stop_ids=frozenset({_EOS}) | stop_ids(path),
        chat_templates={},
    )


def _config(fields: Fields, *, tied: bool) -> ModelConfig:
    if tied and not fields.flag("tied_embeddings", False):
        raise DamagedCheckpoint(
            f"{fields.file.parent}: output.weight is missing and params.json does not tie it",
            hint="fetch the checkpoint again",
        )
    for key in ("moe", "quantization", "llama_4_scaling", "lora", "vision_encoder"):
        if fields.raw(key) is not None:
            raise UnsupportedCheckpoint(f"{fields.file}: has {key}", hint="m7b does not run such models")
    dim = fields.integer("dim", MAX_DIM)
    n_heads = fields.integer("n_heads", MAX_DIM)
    n_kv_heads = fields.integer("n_kv_heads", MAX_DIM)
    window = _window(fields)
    scaling = read_native_scaling(fields)
    return ModelConfig(
        dim=dim,
        n_layers=fields.integer("n_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=find_head_dim(fields, "head_dim", dim, n_heads, n_kv_heads),
        hidden_dim=fields.integer("hidden_dim", MAX_DIM),
        vocab_size=fields.integer("vocab_size", MAX_VOCAB),
        norm_eps=fields.number("norm_eps", 1.0),
        # Where the file is silent: the first release, with a window, had 1e4; all since have 1e6.
        rope_theta=fields.number("rope_theta", 1e12, default=1e6 if window is None else 1e4),
        sliding_window=window,
        max_seq_len=_max_seq_len(fields, scaling),
        tied_embeddings=tied,
        rope_scaling=scaling,
    )


def _max_seq_len(fields: Fields, scaling: YarnScaling | None) -> int:
    """What the file says, which is rare; else what it is stretched to."""
    stretched = int(scaling.factor * scaling.original_context) if scaling else _MAX_SEQ_LEN
    longest = fields.optional_integer("max_position_embeddings", MAX_POSITIONS)
    return min(stretched, MAX_POSITIONS) if longest is None else longest


def _window(fields: Fields) -> int | None:
    """`sliding_window`, or mistral-inference's alias for it; some files write it as a string."""
    key = "sliding_window" if "sliding_window" in fields else "_sliding_window"
    value = fields.raw(key)
    if isinstance(value, str) and value.isdecimal() and len(value) < 12:
        return Fields(fields.file, {key: int(value)}).integer(key, MAX_POSITIONS)
    return fields.optional_integer(key, MAX_POSITIONS)
