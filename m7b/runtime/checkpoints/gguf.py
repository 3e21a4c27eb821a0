"""GGUF files of Mistral and Llama models: metadata and tensors in one, weights as numbers or as blocks."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints.checkpoint import (
    Blocks,
    Checkpoint,
    Format,
    StoredTensor,
    dequantize_by_gguf,
    match_tensors,
)
from m7b.runtime.checkpoints.fields import (
    MAX_DIM,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB,
    Fields,
    find_head_dim,
)
from m7b.runtime.checkpoints.gguf_header import MAGIC, Header
from m7b.runtime.checkpoints.gguf_parts import read_parts
from m7b.runtime.checkpoints.scaling import read_gguf_scaling, shorten
from m7b.runtime.kernels import BlockType
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.rope import canonical_rows
from m7b.tokenizer import GGUFVocabulary
from m7b.variants import VARIANTS

NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "layers": "blk",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
"""The parts of canonical names, as GGUF calls them."""

ARCHITECTURES = ("llama", "mistral3")
"""Those with the same rows and the same arithmetic."""

_OTHER_TYPES = {
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix for a quantizer",
    "mmproj": "the vision part of a model",
}
# Keys that would change the logits, with the values that do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "attention.temperature_scale": (None, 0.0),
    "attention.scale": (None, 0.0),
    "expert_count": (None, 0),
}
_ROPE_FACTORS = "rope_freqs.weight"
# What ends an answer; at the latter three llama.cpp ends one too.
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_TEMPLATE = re.compile(r"tokenizer\.chat_template(?:\.(.+))?")

_NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_RARE = (
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "TQ1_0",
    "TQ2_0",
    "MXFP4",
    "NVFP4",
)
DTYPES = _NUMBERS | dict.fromkeys((*(type.stored for type in BlockType), *_RARE), torch.bfloat16)
"""Each tensor type that is read, with the dtype that holds it without loss or, quantized, well enough."""

# The common types by their number: name, values in a block, bytes of a block. The gguf package knows all,
# and takes its time to import. (Layout: ggml.h.)
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)} | {
    type.ggml_id: (type.stored, type.n_values, type.n_bytes) for type in BlockType
}


def sniff(path: Path) -> bool:
    """Whether `path` is a file that begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_checkpoint(path: Path, *, window_given: bool = False) -> Checkpoint:
    """Read the metadata and the tensor headers of the file at `path`; no weights.

    Any part of a split stands for all of it. A file without a window in its metadata means full attention;
    `window_given` silences the note about files that lost theirs.

    Raises:
        DamagedCheckpoint: the file is cut short or contradicts itself.
        UnsupportedCheckpoint: it is not a plain Llama model, or of a type that is not read.
    """
    parts = read_parts(path)
    path, header = parts[0]
    fields = Fields(path, header.metadata)
    architecture = _find_architecture(fields)
    _refuse_unsupported(fields, architecture)
    stored = {
        tensor.source_name: (tensor, offset) for part in parts for tensor, offset in list_tensors(*part)
    }
    tensors = {name: tensor for name, (tensor, _) in stored.items()}
    config = _config(fields, architecture, tensors)
    if tensors.pop(_ROPE_FACTORS, None):
        _refuse_rope_factors(*stored[_ROPE_FACTORS], config)
    found = match_tensors(path, config, tensors, DTYPES, NAMES)
    refuse_overlap(stored.values())
    return Checkpoint(
        path=path,
        format=Format.GGUF,
        config=config,
        dtype=DTYPES[found["layers.0.attention.wq.weight"].dtype],
        tensors=found,
        read=lambda name: canonical_rows(name, read_numbers(*stored[found[name].source_name]), config),
        tokenizer=_vocabulary(fields),
        stop_ids=_stop_ids(fields),
        chat_templates=_chat_templates(header.metadata),
        license=named if isinstance(named := fields.raw("general.license"), str) else "",
        note="" if window_given else _lost_window(config),
        read_blocks=lambda name: _blocks(name, *stored[found[name].source_name], config),
    )


def list_tensors(path: Path, header: Header) -> Iterator[tuple[StoredTensor, int]]:
    """Each tensor with the offset of its bytes in the file, none past its end.

    Raises:
        DamagedCheckpoint: one ends behind the file.
        UnsupportedCheckpoint: one is of an unknown type.
    """
    size = path.stat().st_size
    for tensor in header.tensors:
        try:
            type_, block, block_bytes = _TYPES.get(tensor.type_id) or _rare_type(tensor.type_id)
        except ValueError:
            raise UnsupportedCheckpoint(
                f"{path}: {tensor.name} is of the unknown type {tensor.type_id}"
            ) from None
        shape = tuple(reversed(tensor.dims))
        if not shape or shape[-1] % block:
            raise DamagedCheckpoint(f"{path}: {tensor.name} is {shape}, which blocks of {block} cannot fill")
        n_bytes = math.prod(shape) // block * block_bytes
        start = header.data_start + tensor.offset
        if start + n_bytes > size:
            raise DamagedCheckpoint(
                f"{path}: {tensor.name} ends at byte {start + n_bytes} of {size}", hint="fetch the file again"
            )
        yield StoredTensor(tensor.name, path, shape, type_, n_bytes), start


def _rare_type(type_id: int) -> tuple[str, int, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    type_ = GGMLQuantizationType(type_id)
    return type_.name, *GGML_QUANT_SIZES[type_]


def refuse_overlap(places: Iterable[tuple[StoredTensor, int]]) -> None:
    """Refuse a small file that passes for a large model by using its bytes twice.

    Raises:
        DamagedCheckpoint: it does.
    """
    file, free = Path(), 0
    for tensor, start in sorted(places, key=lambda place: (place[0].file, place[1])):
        free = free if tensor.file == file else 0
        if start < free:
            raise DamagedCheckpoint(
                f"{tensor.file}: {tensor.source_name} begins at byte {start}, inside another tensor"
            )
        file, free = tensor.file, start + tensor.n_bytes


def _find_architecture(fields: Fields) -> str:
    """The architecture of the model; its keys begin with it.

    Raises:
        UnsupportedCheckpoint: it is another, or the file holds something else than a model.
    """
    kind, architecture = fields.raw("general.type"), fields.raw("general.architecture")
    if isinstance(kind, str) and kind in _OTHER_TYPES:
        raise UnsupportedCheckpoint(
            f"{fields.file}: {_OTHER_TYPES[kind]}, not a model",
            hint="name the GGUF file of the model itself"
            + (", and this with --adapter" if kind == "adapter" else ""),
        )
    if architecture not in ARCHITECTURES:
        raise UnsupportedCheckpoint(
            f"{fields.file}: general.architecture is {str(architecture)[:60]!r}",
            hint=f"m7b runs {' and '.join(map(repr, ARCHITECTURES))}, as Mistral 7B is written; "
            "llama.cpp runs others",
        )
    return str(architecture)


def _refuse_unsupported(fields: Fields, architecture: str) -> None:
    """Refuse what would change the forward pass."""
    for key, allowed in _PLAIN.items():
        if (value := fields.raw(f"{architecture}.{key}")) not in allowed:
            raise UnsupportedCheckpoint(
                f"{fields.file}: {architecture}.{key} is {str(value)[:60]!r}",
                hint="m7b runs dense models with unscaled attention only",
            )


def _refuse_rope_factors(tensor: StoredTensor, offset: int, config: ModelConfig) -> None:
    """Refuse a divisor other than 1 for a frequency of RoPE, which llama.cpp would heed."""
    if tensor.dtype != "F32" or tensor.shape != (config.head_dim // 2,):
        raise DamagedCheckpoint(
            f"{tensor.file}: {tensor.source_name} is {tensor.shape} of {tensor.dtype}, "
            f"{config.head_dim // 2} of F32 belong to a head of {config.head_dim}"
        )
    if not (read_numbers(tensor, offset) == 1).all():
        raise UnsupportedCheckpoint(
            f"{tensor.file}: {tensor.source_name} scales each frequency of RoPE by itself, as Llama 3.1 does",
            hint="m7b runs it from its Hugging Face folder; from GGUF, llama.cpp does",
        )


def _config(fields: Fields, architecture: str, stored: Mapping[str, StoredTensor]) -> ModelConfig:
    dim = fields.integer(f"{architecture}.embedding_length", MAX_DIM)
    n_heads = fields.integer(f"{architecture}.attention.head_count", MAX_DIM)
    n_kv_heads = fields.integer(f"{architecture}.attention.head_count_kv", MAX_DIM, default=n_heads)
    head_dim = find_head_dim(fields, f"{architecture}.attention.key_length", dim, n_heads, n_kv_heads)
    if fields.integer(f"{architecture}.rope.dimension_count", MAX_DIM, default=head_dim) != head_dim:
        raise fields.bad(f"{architecture}.rope.dimension_count", f"the head size, {head_dim}")
    embeddings = stored.get("token_embd.weight")
    n_rows = embeddings.shape[0] if embeddings else 0
    return ModelConfig(
        dim=dim,
        n_layers=fields.integer(f"{architecture}.block_count", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_dim=fields.integer(f"{architecture}.feed_forward_length", MAX_DIM),
        # Rows past the vocabulary only fill the matrix up.
        vocab_size=max(n_rows, fields.integer(f"{architecture}.vocab_size", MAX_VOCAB, default=n_rows)),
        norm_eps=shorten(fields.number(f"{architecture}.attention.layer_norm_rms_epsilon", 1.0)),
        # GGUF has a default of its own.
        rope_theta=shorten(fields.number(f"{architecture}.rope.freq_base", 1e12, default=1e4)),
        rope_scaling=read_gguf_scaling(fields, architecture),
        sliding_window=fields.optional_integer(f"{architecture}.attention.sliding_window", MAX_POSITIONS),
        max_seq_len=fields.integer(f"{architecture}.context_length", MAX_POSITIONS),
        tied_embeddings="output.weight" not in stored,
    )


def _blocks(name: str, tensor: StoredTensor, offset: int, config: ModelConfig) -> Blocks:
    rows = torch.from_numpy(_map(tensor, offset)).view(tensor.shape[0], -1)
    return Blocks(tensor.dtype, canonical_rows(name, rows, config))


def _map(tensor: StoredTensor, offset: int) -> np.ndarray:
    """The bytes of `tensor` where the system keeps the file, which nobody copies."""
    try:
        return np.memmap(tensor.file, dtype=np.uint8, mode="c", offset=offset, shape=(tensor.n_bytes,))
    except ValueError:  # the file is shorter than that
        raise _changed(tensor) from None


def _bytes(tensor: StoredTensor, offset: int) -> np.ndarray:
    stored = np.fromfile(tensor.file, dtype=np.uint8, count=tensor.n_bytes, offset=offset)
    if stored.nbytes != tensor.n_bytes:
        raise _changed(tensor)
    return stored


def _changed(tensor: StoredTensor) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{tensor.file}: changed since it was opened: {tensor.source_name} is cut short")


def read_numbers(tensor: StoredTensor, offset: int) -> torch.Tensor:
    """The values of `tensor`, whose bytes begin at `offset`, in the file's order of rows."""
    stored = _bytes(tensor, offset)
    if tensor.dtype in _NUMBERS:
        return torch.from_numpy(stored).view(_NUMBERS[tensor.dtype]).view(tensor.shape)
    rows = torch.from_numpy(stored).view(math.prod(tensor.shape[:-1]), -1)
    if tensor.dtype in BlockType.__members__:
        return Blocks(tensor.dtype, rows).dequantize(torch.float32).view(tensor.shape)
    return dequantize_by_gguf(tensor.dtype, rows).view(tensor.shape)


def _vocabulary(fields: Fields) -> GGUFVocabulary | None:
    def entries(key: str) -> list[Any]:
        key = f"tokenizer.ggml.{key}"
        value = fields.raw(key)
        if not isinstance(value, list | None):
            raise fields.bad(key, "a list")
        return value or []

    model = fields.raw("tokenizer.ggml.model")
    if model is None:
        return None
    pieces = entries("tokens")
    is_sentencepiece = model == "llama"
    return GGUFVocabulary(
        path=fields.file,
        model=str(model),
        pre=str(fields.raw("tokenizer.ggml.pre") or "missing"),
        pieces=pieces,
        types=entries("token_type") or [1] * len(pieces),
        scores=entries("scores") or [0.0] * len(pieces),
        merges=entries("merges"),
        bos_id=_token_id(fields, "bos_token_id"),
        adds_bos=fields.flag("tokenizer.ggml.add_bos_token", is_sentencepiece),
        adds_space=fields.flag("tokenizer.ggml.add_space_prefix", is_sentencepiece),
        eos_id=_token_id(fields, "eos_token_id"),
    )


def _token_id(fields: Fields, key: str) -> int | None:
    key = f"tokenizer.ggml.{key}"
    value = fields.raw(key)
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise fields.bad(key, "a token id")
    return value


def _stop_ids(fields: Fields) -> frozenset[int]:
    ids = (_token_id(fields, f"{name}_token_id") for name in _ENDS)
    return frozenset(token for token in ids if token is not None)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates by their names: `tokenizer.chat_template.NAME`, the default one without a name."""
    found = {_TEMPLATE.fullmatch(key): value for key, value in metadata.items()}
    return {key[1] or "default": value for key, value in found.items() if key and isinstance(value, str)}


def _lost_window(config: ModelConfig) -> str:
    """What to tell the user of a file that has the shape of Mistral 7B v0.1 and no window."""
    first = VARIANTS["base-v0.1"]
    shape = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "rope_theta")
    if config.sliding_window is not None or any(getattr(config, key) != getattr(first, key) for key in shape):
        return ""
    return (
        "this GGUF has the shape of Mistral 7B v0.1 but no sliding window: "
        f"--window {first.sliding_window} restores it"
    )
