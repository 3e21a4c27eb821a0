"""What each variant would take here in each weight format, and how fast it could be. Arithmetic alone."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from m7b.generation import QuantizeTarget
from m7b.runtime.kernels import BlockType, instruction_set
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.quantize.recipe import choose_types
from m7b.variants import VARIANTS

DEPTHS = (0, 4096)
"""Positions in the cache at which a speed is told."""

_ROWS: dict[str, Callable[[int], int]] = {
    "bf16": lambda n: 2 * n,
    "int8": lambda n: n // 32 * 34,  # the same as q8_0 on the CPU
    "q8_0": lambda n: n // 32 * 34,  # a float16 scale for 32 weights
    "q4_0": lambda n: n // 32 * 18,
    "nf4": lambda n: n // 64 * 36,  # a float32 scale for 64 weights
    "fp4": lambda n: n // 64 * 36,
}
# Files of GGUF that hold a mix of types, in which their embedding stays too.
_MIXES = {mix.value: mix for mix in (QuantizeTarget.Q6_K, QuantizeTarget.Q5_K_M, QuantizeTarget.Q4_K_M)}
FORMATS = ("bf16", "int8", "q8_0", *_MIXES, "q4_0", "nf4", "fp4")
"""What weights can be held in, by the names of `--quant` and of files."""

_CACHE_ITEM_BYTES = 2
_PREFILL_CHUNK = 512
_CTX_STEP = 256


@dataclass(frozen=True, slots=True)
class Fit:
    """Variants of one shape in one weight format, on a machine with so much memory and bandwidth.

    `weight_bytes` is what the weights occupy and `read_bytes` what a decoded token reads of them;
    `cache_bytes` is the cache of the whole `context`. `ctx_size` is the longest context that fits, None
    where not even a short one does. `limit_tps` has tokens per second by depth: upper limits, since memory
    is read no faster than the probe read it.
    """

    variants: tuple[str, ...]
    format: str
    context: int
    weight_bytes: int
    cache_bytes: int
    read_bytes: int
    ctx_size: int | None
    limit_tps: dict[int, float]


def list_fits(free_bytes: int, gigabytes_per_second: float, kv_type: str | None = None) -> list[Fit]:
    """Every variant in every format; variants of the same shape share a row. Caches are of `kv_type`."""
    return [
        _fit(names, config, format, free_bytes, gigabytes_per_second, kv_type)
        for config, names in _shapes().items()
        for format in FORMATS
        if format not in _MIXES or instruction_set()  # without kernels they are turned into numbers
    ]


def weight_bytes(config: ModelConfig, format: str) -> int:
    """Bytes of all weights, of which norms stay in bfloat16.

    So does the embedding, but in files of GGUF; one that is tied is an output too.
    """
    kept = 0 if config.tied_embeddings else config.vocab_size * _embedding_row_bytes(config, format)
    return kept + _output_and_layers(config, format)


def read_bytes(config: ModelConfig, format: str) -> int:
    """Bytes of weights that one decoded token reads: all of them, but of the embedding a single row."""
    return _embedding_row_bytes(config, format) + _output_and_layers(config, format)


def cache_read_bytes(config: ModelConfig, depth: int, kv_type: str | None = None) -> int:
    """Bytes of keys and values that a token reads which `depth` others precede; its window limits them."""
    seen = min(depth, config.sliding_window or depth)
    return seen * config.cache_bytes_per_token(_CACHE_ITEM_BYTES, kv_type)


def _output_and_layers(config: ModelConfig, format: str) -> int:
    shapes = config.tensor_shapes()
    embedding = shapes.pop("tok_embeddings.weight")
    if config.tied_embeddings:
        shapes["output.weight"] = embedding
    types = _mix_types(config, format)
    return sum(
        types[_stored_name(config, name)].count_bytes(math.prod(shape))
        if types and len(shape) > 1
        else _tensor_bytes(shape, format)
        for name, shape in shapes.items()
    )


def _embedding_row_bytes(config: ModelConfig, format: str) -> int:
    types = _mix_types(config, format)
    return types["tok_embeddings.weight"].count_bytes(config.dim) if types else 2 * config.dim


def _stored_name(config: ModelConfig, name: str) -> str:
    is_tied = config.tied_embeddings and name == "output.weight"
    return "tok_embeddings.weight" if is_tied else name


@cache
def _mix_types(config: ModelConfig, format: str) -> Mapping[str, BlockType]:
    """The block type of each matrix in a file that mixes them, nothing for other formats."""
    return choose_types(config, _MIXES[format], has_importance=False) if format in _MIXES else {}


def _tensor_bytes(shape: tuple[int, ...], format: str) -> int:
    *rows, columns = shape
    return math.prod(rows) * _ROWS[format](columns) if rows else 2 * columns


def _fit(
    names: tuple[str, ...],
    config: ModelConfig,
    format: str,
    free_bytes: int,
    bandwidth: float,
    kv_type: str | None,
) -> Fit:
    stored, read, context = weight_bytes(config, format), read_bytes(config, format), config.max_seq_len
    room = free_bytes - stored
    whole = _cache_bytes(config, context, kv_type)
    return Fit(
        variants=names,
        format=format,
        context=context,
        weight_bytes=stored,
        cache_bytes=whole,
        read_bytes=read,
        ctx_size=next((n for n in _contexts(context) if _cache_bytes(config, n, kv_type) <= room), None),
        limit_tps={
            depth: bandwidth * 1e9 / (read + cache_read_bytes(config, depth, kv_type)) for depth in DEPTHS
        },
    )


def _contexts(longest: int) -> Iterator[int]:
    """Contexts worth trying, the longest first."""
    yield longest
    yield from range((longest - 1) // _CTX_STEP * _CTX_STEP, 0, -_CTX_STEP)


def _cache_bytes(config: ModelConfig, ctx_size: int, kv_type: str | None) -> int:
    n_slots = config.cache_slots(ctx_size, _PREFILL_CHUNK)
    return n_slots * config.cache_bytes_per_token(_CACHE_ITEM_BYTES, kv_type)


def _shapes() -> dict[ModelConfig, tuple[str, ...]]:
    """Variants by configuration: those of one row differ in what they learnt alone."""
    shapes: dict[ModelConfig, tuple[str, ...]] = {}
    for name, variant in VARIANTS.items():
        config = ModelConfig.of_variant(variant)
        shapes[config] = (*shapes.get(config, ()), name)
    return shapes
