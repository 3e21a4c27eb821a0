"""A row of the cache in a file, for another process to go on from. Knows ids, keys and values; no model.

The file is one of safetensors: keys and values of each layer, positions in order, and a checksum of each.
Its metadata has the ids, and what the writer says of the model that has read them.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from m7b.errors import DamagedCheckpoint, OutOfResources, UsageError
from m7b.runtime.cache import CacheRow

_FORMAT = "m7b prompt cache 1"  # the number changes with what is in the file
_CHECKSUMS = "checksums"
UNFINISHED = ".prompt-"
"""What names of files begin with that were not written to their end."""

_HEAD_BYTES = 128  # where a file of ours names its format
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A row in a `file`, as its header tells of it.

    `ids` are the tokens that were read, the first `n_exact` as a fresh row would read them, and keys and
    values are those from position `first` on. `about` is what the writer says of the model.
    """

    file: Path
    ids: list[int]
    n_exact: int
    first: int
    about: Mapping[str, str]

    def count_shared(self, ids: Sequence[int]) -> int:
        """How many of `ids` it begins with."""
        return count_common(self.ids, ids)

    def restore(self, row: CacheRow, length: int) -> None:
        """Let `row` hold the first `length` tokens, and nothing else.

        Raises:
            DamagedCheckpoint: keys or values are not those that were written, or of another shape. The row
                holds nothing then.
        """
        try:
            row.restore(self.first, length, self._read())
        except ValueError as error:
            raise _describe_damage(self.file, str(error)) from None

    def _read(self) -> Iterator[Tensor]:
        """Keys and values of each layer in turn, mapped and compared with their checksums."""
        try:
            with safe_open(self.file, framework="pt") as opened:
                _, *sums = opened.get_tensor(_CHECKSUMS).tolist()
                for at, known in enumerate(sums):
                    ring = opened.get_tensor(_name(at))
                    if _checksum(ring) != known:
                        raise _describe_damage(self.file, f"the checksum of {_name(at)} is another")
                    yield ring
        except (SafetensorError, OSError, ValueError) as error:
            raise _describe_damage(self.file, str(error)) from None


def open_row(file: Path) -> SavedRow:
    """Read the header of `file`.

    Raises:
        UsageError: it is no file of this kind.
        DamagedCheckpoint: it is cut short or contradicts itself.
    """
    if not file.is_file():  # a pipe would wait for a writer
        raise UsageError(f"{file} is no regular file", hint="name another file")
    try:
        with file.open("rb") as opened:
            is_ours = _FORMAT.encode() in opened.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="name another file") from None
    if not is_ours:
        raise UsageError(
            f"{file} is no prompt cache of this version of m7b", hint="name another file, or remove it"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            fields = opened.metadata()
            row = _parse(file, fields)
            if opened.get_tensor(_CHECKSUMS).tolist()[0] != _checksum_fields(fields):
                raise _describe_damage(file, "the checksum of its header is another")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _describe_damage(file, str(error)) from None
    return row


def _parse(file: Path, fields: Mapping[str, str]) -> SavedRow:
    """The row that metadata tell of.

    Raises:
        ValueError: they tell of none.
        LookupError: they are not whole.
    """
    ids, about = json.loads(fields["ids"]), json.loads(fields["about"])
    first, n_exact = int(fields["first"]), int(fields["n_exact"])
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError("its ids are none")
    if not isinstance(about, dict) or not (0 <= first <= len(ids) and 0 <= n_exact <= len(ids)):
        raise ValueError("its header contradicts itself")
    return SavedRow(file, ids, n_exact, first, about)


def write_row(
    file: Path, row: CacheRow, ids: Sequence[int], *, n_exact: int, about: Mapping[str, str]
) -> None:
    """Write what `row` holds of the tokens `ids`, readable to its owner alone, whole or not at all.

    Raises:
        OutOfResources: it cannot be written.
    """
    positions = row.list_positions(len(ids))
    fields = {
        "ids": json.dumps(list(ids), separators=(",", ":")),
        "n_exact": str(n_exact),
        "first": str(positions.start),
        "about": json.dumps(dict(about)),
    }
    try:
        target = Path(os.path.realpath(file))  # a link stays one
        handle, whole = tempfile.mkstemp(prefix=UNFINISHED, dir=target.parent)
        try:
            with open(handle, "wb") as out:
                _write(out, row, positions, fields)
            os.replace(whole, target)
        except BaseException:
            os.unlink(whole)
            raise
    except OSError as error:
        raise OutOfResources(f"cannot write {file}: {error.strerror}") from None


def count_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with, found by halves: whole slices are compared faster than ids one by one."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _write(out: BinaryIO, row: CacheRow, positions: range, fields: dict[str, str]) -> None:
    """Layer by layer, so that no more than one is in memory twice."""
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, **fields}}
    shapes = [(*ring.shape[:1], len(positions), *ring.shape[2:]) for ring in row.list_rings()]
    end = 0
    for at, (ring, shape) in enumerate(zip(row.list_rings(), shapes, strict=True)):
        start, end = end, end + torch.Size(shape).numel() * ring.itemsize
        header[_name(at)] = {"dtype": _DTYPES[ring.dtype], "shape": shape, "data_offsets": [start, end]}
    n_sums = 1 + len(shapes)
    header[_CHECKSUMS] = {"dtype": "I64", "shape": [n_sums], "data_offsets": [end, end + 8 * n_sums]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sums = [_checksum_fields(fields)]
    out.write(len(text).to_bytes(8, "little") + text)
    for ring in row.read(positions):
        sums.append(_checksum(ring))
        out.write(_as_bytes(ring))
    out.write(_as_bytes(torch.tensor(sums)))


def _name(at: int) -> str:
    """What the ring number `at` of a row is called: keys and values take turns."""
    return f"layers.{at // 2}.{'values' if at % 2 else 'keys'}"


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_as_bytes(tensor))


def _checksum_fields(fields: Mapping[str, str]) -> int:
    return zlib.crc32("\n".join(fields[key] for key in ("ids", "n_exact", "first", "about")).encode())


def _as_bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
    return data


def _describe_damage(file: Path, why: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"the prompt cache {file} is damaged: {why}", hint="remove it")
