"""llama.cpp by its bindings: how it rounds, and what it computes."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.gguf import NAMES
from m7b.runtime.kernels import BlockType

THREADS = {"n_threads": 1, "n_threads_batch": 1}
"""Tests run on a core each, and threads of llama.cpp that share one wait for each other at its full speed."""


def quantize_weight(type: BlockType, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """The blocks (out, bytes) uint8 that llama.cpp's own quantizer makes of `weight` (out, in) float32."""
    llama_cpp = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
    size, address = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, address, address, size, size, size, address]
    n_out, n_in = weight.shape
    blocks = torch.empty(n_out, n_in // type.n_values * type.n_bytes, dtype=torch.uint8)
    weights = importance.data_ptr() if importance is not None else None
    library.ggml_quantize_chunk(type.ggml_id, weight.data_ptr(), blocks.data_ptr(), 0, n_out, n_in, weights)
    return blocks


def quantize(source: Path, file: Path, mix: str, importance: Mapping[str, Tensor] | None = None) -> Path:
    """`source` as llama.cpp rounds it to a type or mix, by its name; `importance` is by canonical names."""
    api = pytest.importorskip("llama_cpp").llama_cpp
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{mix.upper()}")
    settings.nthread, settings.allow_requantize = 1, True
    columns = {name: values.contiguous() for name, values in (importance or {}).items()}
    entries = (api.llama_model_imatrix_data * (len(columns) + 1))()  # the last is empty
    for entry, (name, values) in zip(entries, columns.items(), strict=False):
        entry.name, entry.size = translate_name(name, NAMES).encode(), values.numel()
        entry.data = ctypes.cast(values.data_ptr(), ctypes.POINTER(ctypes.c_float))
    if columns:
        settings.imatrix = entries
    assert api.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(settings)) == 0
    return file


def logits(file: Path, ids: list[int]) -> Tensor:
    """Logits (T, V) after each of `ids`."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), n_ctx=len(ids), logits_all=True, verbose=False, **THREADS)
    model.eval(ids)
    return torch.from_numpy(model.scores[: len(ids)].copy())
