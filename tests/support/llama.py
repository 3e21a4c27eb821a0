"""llama.cpp by its bindings: what it makes of a file, and what it computes from one."""

import ctypes
from pathlib import Path

import pytest
import torch


def quantize(source: Path, file: Path, name: str) -> Path:
    """`source` as llama.cpp rounds it to the type or mix called `name`, such as Q4_K_M."""
    api = pytest.importorskip("llama_cpp").llama_cpp
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{name}")
    settings.nthread = 1
    settings.allow_requantize = True
    assert api.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(settings)) == 0
    return file


def logits(file: Path, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) after each of `ids`."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), n_ctx=len(ids), logits_all=True, n_threads=2, verbose=False)
    model.eval(ids)
    return torch.from_numpy(model.scores[: len(ids)].copy())
