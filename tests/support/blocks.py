"""Blocks of every type, drawn at random: every pattern of bits is a block, but for the float16s in it."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.gguf import NAMES
from m7b.runtime.kernels import BlockType

# Where the float16s of a block are: its scale, and its minimum. (ggml-common.h)
_HEADS = {
    BlockType.Q4_0: (0,),
    BlockType.Q4_1: (0, 2),
    BlockType.Q8_0: (0,),
    BlockType.INT8: (0,),
    BlockType.Q5_0: (0,),
    BlockType.Q5_1: (0, 2),
    BlockType.Q2_K: (80, 82),
    BlockType.Q3_K: (108,),
    BlockType.Q4_K: (0, 2),
    BlockType.Q5_K: (0, 2),
    BlockType.Q6_K: (208,),
    BlockType.IQ4_NL: (0,),
    BlockType.IQ4_XS: (0,),
}


def draw_blocks(type: BlockType, n_out: int, n_in: int, heads: Tensor | float | None = None) -> Tensor:
    """Blocks (out, bytes) uint8 of drawn bits, with the float16s `heads`, else drawn ones of either sign."""
    n_blocks = n_in // type.n_values
    blocks = torch.randint(0, 256, (n_out, n_blocks, type.n_bytes), dtype=torch.uint8)
    set_heads(type, blocks, torch.randn(n_out, n_blocks, 1) / 100 if heads is None else heads)
    return blocks.flatten(1)


def set_heads(type: BlockType, blocks: Tensor, heads: Tensor | float) -> None:
    """Let the float16s of `blocks` (out, n_blocks, bytes) uint8 be `heads`."""
    for at in _HEADS[type]:
        values = torch.as_tensor(heads).expand(*blocks.shape[:2], 1).half().contiguous()
        blocks[:, :, at : at + 2] = values.view(torch.uint8)


def quantize_by_llama_cpp(type: BlockType, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """The blocks (out, bytes) uint8 that llama.cpp's own quantizer makes of `weight` (out, in) float32."""
    import llama_cpp

    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
    size, address = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, address, address, size, size, size, address]
    n_out, n_in = weight.shape
    blocks = torch.empty(n_out, n_in // type.n_values * type.n_bytes, dtype=torch.uint8)
    weights = importance.data_ptr() if importance is not None else None
    library.ggml_quantize_chunk(type.ggml_id, weight.data_ptr(), blocks.data_ptr(), 0, n_out, n_in, weights)
    return blocks


def quantize_file_by_llama_cpp(
    source: Path, out: Path, target: str, importance: Mapping[str, Tensor] | None = None
) -> None:
    """Let llama.cpp quantize a GGUF file; `importance` is by canonical names."""
    import llama_cpp
    from gguf import LlamaFileType

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, LlamaFileType[f"MOSTLY_{target.upper()}"]
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance or {}) + 1))()  # the last is empty
    columns = {name: values.contiguous() for name, values in (importance or {}).items()}
    for entry, (name, values) in zip(entries, columns.items(), strict=False):
        entry.name, entry.size = translate_name(name, NAMES).encode(), values.numel()
        entry.data = ctypes.cast(values.data_ptr(), ctypes.POINTER(ctypes.c_float))
    if importance:
        params.imatrix = entries
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
