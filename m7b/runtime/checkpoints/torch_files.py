"""Tensors in safetensors files and in torch's zip-pickles, listed without reading them.

Pickles are only ever read with `weights_only=True`: one that wants to run code is refused.
"""

import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from m7b.errors import CheckpointNotFound, DamagedCheckpoint
from m7b.runtime.checkpoints.checkpoint import StoredTensor
from m7b.runtime.checkpoints.lookalikes import name_file

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that weights may have, by their safetensors names."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def inventory(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of `files` by its name there, from their headers.

    Raises:
        CheckpointNotFound: a file may not be read.
        DamagedCheckpoint: a file is no such file, is cut short, or two hold the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        if not os.access(file, os.R_OK):
            raise CheckpointNotFound(f"{file}: not readable", hint="check its permissions")
        if found := name_file(file):
            raise DamagedCheckpoint(f"{file}: {found[0]}", hint=found[1])
        for tensor in _safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file):
            twin = tensors.setdefault(tensor.source_name, tensor)
            if twin is not tensor:
                raise DamagedCheckpoint(f"{tensor.source_name} is both in {twin.file} and in {file.name}")
    return tensors


def read(tensor: StoredTensor) -> torch.Tensor:
    """The tensor itself, mapped from its file rather than copied.

    The file is opened anew for each, so that its pages leave memory with the tensor.
    """
    if tensor.file.suffix == ".safetensors":
        try:
            with safe_open(tensor.file, framework="pt") as opened:
                value: torch.Tensor = opened.get_tensor(tensor.source_name)
                return value
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpoint(f"{tensor.file}: changed since it was opened: {error}") from None
    return _load_pickle(tensor.file)[tensor.source_name]


def _safetensors(file: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                view = opened.get_slice(name)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                yield _make_stored(name, file, shape, dtype)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(
            f"{file}: not a whole safetensors file: {error}", hint="fetch it again"
        ) from None


def _read_pickle(file: Path) -> Iterator[StoredTensor]:
    for name, value in _load_pickle(file).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise DamagedCheckpoint(f"{file}: {str(name)[:60]!r} is not a tensor")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise DamagedCheckpoint(f"{file}: {name} holds no plain values ({value.layout}, {value.device})")
        yield _make_stored(name, file, tuple(value.shape), _NAMES.get(value.dtype, str(value.dtype)))


def _make_stored(name: str, file: Path, shape: tuple[int, ...], dtype: str) -> StoredTensor:
    item_bytes = DTYPES[dtype].itemsize if dtype in DTYPES else 1  # any other is refused before it counts
    return StoredTensor(name, file, shape, dtype, torch.Size(shape).numel() * item_bytes)


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            # torch would map compressed bytes as if they were weights; and only stored ones are bounded.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise DamagedCheckpoint(
                    f"{file}: compressed inside, as torch never writes", hint="fetch it again"
                )
        values = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except DamagedCheckpoint:
        raise
    except pickle.UnpicklingError:
        raise DamagedCheckpoint(
            f"{file}: not a plain dictionary of tensors, and reading the rest could run code",
            hint="do not trust its source",
        ) from None
    except Exception as error:  # noqa: BLE001 - an unpickler raises whatever the bytes lead it to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedCheckpoint(f"{file}: not a whole torch file: {reason}", hint="fetch it again") from None
    if not isinstance(values, dict):
        raise DamagedCheckpoint(f"{file}: holds a {type(values).__name__}, not a dictionary of tensors")
    return values
