"""llama.cpp's importance matrix: of each weight, the mean square of each of its inputs over some text.

Two layouts are in use. The newer is a GGUF file with two tensors of float32 for a weight, `NAME.in_sum2`
(in,) and `NAME.counts` (1,): sums of squares, and the tokens that they are over. The older one ends in
`.dat`: a count of entries, and for each the length of its name, the name, a number of calls, a number of
values, and these, each times the calls. (Layout: llama.cpp, tools/imatrix.)
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter, Keys
from torch import Tensor

from m7b.errors import DamagedCheckpoint, UsageError
from m7b.runtime.checkpoints import gguf
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.gguf_header import Header, HeaderError, read_header
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.quantize.writing import removed_on_failure

_F32 = 0  # ggml's number of it
_MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """What a matrix was measured on: a text, its tokens, and how many were read together."""

    text: str
    n_tokens: int
    ctx_size: int


def read_imatrix(file: Path, config: ModelConfig) -> Mapping[str, Tensor]:
    """The mean squares (in,) by the canonical names of the weights of a model.

    Raises:
        DamagedCheckpoint: the file is cut short, or is none.
        UsageError: it cannot be read, or was made with another model.
    """
    try:
        means = dict(_read_gguf(file) if gguf.sniff(file) else _read_dat(file))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (HeaderError, struct.error, ValueError) as error:
        raise DamagedCheckpoint(
            f"{file}: not a whole importance matrix: {error}",
            hint="llama-imatrix makes them, and --save-imatrix",
        ) from None
    found: dict[str, Tensor] = {}
    for name, shape in config.tensor_shapes().items():
        mean = means.get(translate_name(name, gguf.NAMES))
        if mean is None:
            if name.startswith("layers.") and len(shape) > 1:
                raise _of_another_model(file, f"it says nothing about {name}")
            continue
        if len(mean) != shape[-1]:
            raise _of_another_model(file, f"{name} has {len(mean)} columns there, not {shape[-1]}")
        if not np.isfinite(mean).all() or (mean < 0).any():
            raise DamagedCheckpoint(f"{file}: {name} has values that are no mean squares")
        found[name] = torch.from_numpy(mean)
    return found


def write_imatrix(file: Path, means: Mapping[str, Tensor], reading: Reading) -> None:
    """Write the mean squares of weights, by canonical names, as a GGUF file that llama.cpp reads."""
    with removed_on_failure(file) as unfinished:
        writer = GGUFWriter(unfinished, "llama")
        writer.add_type("imatrix")
        writer.add_array(Keys.IMatrix.DATASETS, [reading.text])
        writer.add_uint32(Keys.IMatrix.CHUNK_COUNT, -(-reading.n_tokens // reading.ctx_size))
        writer.add_uint32(Keys.IMatrix.CHUNK_SIZE, reading.ctx_size)
        for name, mean in means.items():
            stored = translate_name(name, gguf.NAMES)
            sums = (mean.to(torch.float32) * reading.n_tokens).numpy()
            writer.add_tensor(f"{stored}.in_sum2", sums[None])
            writer.add_tensor(f"{stored}.counts", np.array([[reading.n_tokens]], dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _of_another_model(file: Path, why: str) -> UsageError:
    return UsageError(f"{file} was made with another model: {why}", hint="make one with --calibrate")


def _read_gguf(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    header = read_header(file)
    parts = {tensor.name: _read_tensor(file, header, n) for n, tensor in enumerate(header.tensors)}
    for name, sums in parts.items():
        weight = name.removesuffix(".in_sum2")
        if weight == name:
            continue
        counts = parts.get(f"{weight}.counts")
        if counts is None or len(counts) != 1 or not counts[0] > 0:
            raise ValueError(f"{weight} has no count of tokens")
        yield weight, sums / counts[0]


def _read_tensor(file: Path, header: Header, n: int) -> np.ndarray:
    tensor = header.tensors[n]
    if tensor.type_id != _F32:
        raise ValueError(f"{tensor.name} is of type {tensor.type_id}, not F32")
    size = int(np.prod(tensor.dims, dtype=np.int64))
    start = header.data_start + tensor.offset
    if start + 4 * size > file.stat().st_size:
        raise ValueError(f"{tensor.name} ends past the end")
    return np.fromfile(file, dtype="<f4", count=size, offset=start)


def _read_dat(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    data, at = file.read_bytes(), 4
    (n_entries,) = struct.unpack_from("<i", data)
    if n_entries < 1:
        raise ValueError(f"it counts {n_entries} entries")
    for _ in range(n_entries):
        (length,) = struct.unpack_from("<i", data, at)
        if not 0 < length <= _MAX_NAME:
            raise ValueError(f"a name of {length} bytes")
        name = data[at + 4 : at + 4 + length].decode("utf-8")
        n_calls, size = struct.unpack_from("<ii", data, at + 4 + length)
        at += 12 + length
        if size < 1 or at + 4 * size > len(data):
            raise ValueError(f"{name} has {size} values, which the file has no room for")
        yield name, np.frombuffer(data, dtype="<f4", count=size, offset=at) / np.float32(max(n_calls, 1))
        at += 4 * size
