"""A checkpoint as a GGUF file that llama.cpp runs: no tokenizer, one tensor in memory at a time."""

import math
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

from m7b.runtime.bench.peers.task import Task
from m7b.runtime.checkpoints import gguf
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.random import STD, cut
from m7b.runtime.model.rope import native_rows
from m7b.runtime.quantize.gguf_file import add_shape

_BLOCKS = 32_749  # a prime, so no two rows are the same


def file_bytes(task: Task) -> int:
    """Bytes of all tensors in the file."""
    shapes = task.config.tensor_shapes()
    return sum(_n_bytes(shape, _choose_type(name, shape, task)) for name, shape in shapes.items())


def read_bytes(task: Task) -> int:
    """Bytes of the tensors that a decoded token reads: all but the embedding, of which it reads one row."""
    shapes = task.config.tensor_shapes()
    embedding = shapes["tok_embeddings.weight"]
    type_ = _choose_type("tok_embeddings.weight", embedding, task)
    row = _n_bytes(embedding[1:], type_)
    return file_bytes(task) + row - (0 if task.config.tied_embeddings else _n_bytes(embedding, type_))


def write_gguf(task: Task, file: Path) -> None:
    """Write the model of `task`: norms in F32, matrices as `task.quant` says or in the dtype it runs in.

    As in our engine, an embedding that is not the output too is not quantized.
    """
    writer = GGUFWriter(file, "llama")
    add_shape(writer, task.config)
    writer.add_tokenizer_model("no_vocab")  # llama.cpp then makes as many tokens up
    types = {name: _choose_type(name, shape, task) for name, shape in task.config.tensor_shapes().items()}
    for name, type_ in types.items():
        shape = task.config.tensor_shapes()[name]
        stored = quants.quant_shape_to_byte_shape(shape, type_) if type_ in _QUANTIZED else shape
        writer.add_tensor_info(
            translate_name(name, gguf.NAMES),
            stored,
            np.dtype(np.uint8 if type_ in _QUANTIZED else np.float32),
            _n_bytes(shape, type_),
            raw_dtype=type_,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, type_ in types.items():
        writer.write_tensor_data(_generate_bytes(name, type_, task))
    writer.close()


_QUANTIZED = {
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.BF16,
}  # what the gguf package writes as bytes


def _generate_bytes(name: str, type_: GGMLQuantizationType, task: Task) -> np.ndarray:
    """What the file holds for one tensor, in bytes."""
    shape = task.config.tensor_shapes()[name]
    if task.is_random and type_ in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0):
        return _random_blocks(shape, type_)
    weight = task.checkpoint.read(name).to(torch.float32)
    weight = native_rows(name, weight, task.config)
    return quants.quantize(weight.numpy(), type_).view(np.uint8).reshape(-1)


def _random_blocks(shape: tuple[int, ...], type_: GGMLQuantizationType) -> np.ndarray:
    """Quantized normals, drawn once and repeated: quantizing 7B values takes minutes."""
    size, n_block_bytes = GGML_QUANT_SIZES[type_]
    draw = np.random.default_rng(0)
    blocks = quants.quantize(draw.normal(0, STD, (_BLOCKS, size)).astype(np.float32), type_)
    n = math.prod(shape) // size * n_block_bytes
    return cut(torch.from_numpy(blocks.reshape(-1)), n, 0).numpy()


def _choose_type(name: str, shape: tuple[int, ...], task: Task) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    is_kept = name == "tok_embeddings.weight" and not task.config.tied_embeddings
    if task.quant in ("q4_0", "q8_0") and not is_kept:
        return GGMLQuantizationType[task.quant.upper()]
    return {
        torch.float32: GGMLQuantizationType.F32,
        torch.float16: GGMLQuantizationType.F16,
    }.get(task.dtype, GGMLQuantizationType.BF16)


def _n_bytes(shape: tuple[int, ...], type_: GGMLQuantizationType) -> int:
    size, n_block_bytes = GGML_QUANT_SIZES[type_]
    return math.prod(shape) // size * n_block_bytes
