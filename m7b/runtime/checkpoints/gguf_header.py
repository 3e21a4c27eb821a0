"""The header of a GGUF file: metadata and tensor descriptions, read within the bounds of the file.

Every count and length is checked against the bytes that are left before anything is read or
allocated for it, so a header that lies costs nothing. (Layout: ggml's docs/gguf.md, version 2 and 3.)
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


class HeaderError(ValueError):
    """The bytes are not a GGUF header."""


class VersionError(HeaderError):
    """The header is in a layout that is not read; `hint` is the way out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor as the file declares it: `dims` innermost first, `offset` from the start of the data."""

    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its data, which begins at byte `data_start`."""

    metadata: dict[str, Any]
    tensors: list[TensorHeader]
    data_start: int


def read_header(path: Path) -> Header:
    """Read the header of the GGUF file at `path`.

    Raises:
        VersionError: it is of another version or byte order.
        HeaderError: it is cut short, lies about a length, repeats a name or has a type unknown here.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise HeaderError("the file is empty") from None
        with data:
            return _parse(_Cursor(data))


class _Cursor:
    """A position in the bytes that never passes their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise HeaderError(f"{count} bytes are announced at byte {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def numbers(self, layout: str, count: int) -> list[Any]:
        size = struct.calcsize(layout)
        return list(struct.unpack(f"<{count}{layout[1:]}", self.take(size * count))) if count else []

    def read_string(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8")

    def strings(self, count: int) -> list[str]:
        return [self.read_string() for _ in range(self._check_bounds(count, 8))]

    def each(self, count: int, least_bytes: int, read: Callable[[], Any]) -> list[Any]:
        """`count` things of at least `least_bytes` each."""
        return [read() for _ in range(self._check_bounds(count, least_bytes))]

    def _check_bounds(self, count: int, least_bytes: int) -> int:
        if count * least_bytes > len(self.data) - self.at:
            raise HeaderError(f"{count} entries are announced at byte {self.at} of {len(self.data)}")
        return count


def _parse(cursor: _Cursor) -> Header:
    try:
        if cursor.take(4) != MAGIC:
            raise HeaderError("it does not begin with GGUF")
        _check_version(cursor.number("<I"))
        n_tensors, n_entries = cursor.number("<Q"), cursor.number("<Q")
        metadata = _unique(cursor.each(n_entries, 13, lambda: (cursor.read_string(), _value(cursor))))
        tensors = cursor.each(n_tensors, 24, lambda: _tensor(cursor))
        _unique([(tensor.name, tensor) for tensor in tensors])
    except UnicodeDecodeError as error:
        raise HeaderError(f"a string at byte {cursor.at} is not UTF-8") from error
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise HeaderError(f"general.alignment is {alignment}, not a power of two")
    return Header(metadata, tensors, -(-cursor.at // alignment) * alignment)


def _check_version(version: int) -> None:
    if version and version & 0xFFFF == 0:
        raise VersionError(
            f"GGUF version {version >> 24} in big-endian byte order",
            "fetch the little-endian file, or convert it with gguf-convert-endian of the package gguf",
        )
    if version not in _VERSIONS:
        raise VersionError(
            f"GGUF version {version}",
            f"m7b reads {' and '.join(map(str, _VERSIONS))}: "
            + ("fetch a newer file" if version < _VERSIONS[0] else "a newer m7b may read it"),
        )


def _value(cursor: _Cursor) -> Any:
    type_id = cursor.number("<I")
    if type_id in _SCALARS:
        return cursor.number(_SCALARS[type_id])
    if type_id == _STRING:
        return cursor.read_string()
    if type_id != _ARRAY:
        raise HeaderError(f"value type {type_id} at byte {cursor.at} is unknown")
    item, count = cursor.number("<I"), cursor.number("<Q")
    if item == _STRING:
        return cursor.strings(count)
    if item in _SCALARS:
        return cursor.numbers(_SCALARS[item], count)
    raise HeaderError(f"array of type {item} at byte {cursor.at} is unknown")


def _tensor(cursor: _Cursor) -> TensorHeader:
    name, n_dims = cursor.read_string(), cursor.number("<I")
    if n_dims > _MAX_DIMS:
        raise HeaderError(f"{name!r} has {n_dims} dimensions, {_MAX_DIMS} are the most")
    return TensorHeader(name, tuple(cursor.numbers("<Q", n_dims)), cursor.number("<I"), cursor.number("<Q"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise HeaderError("a name appears twice")
    return values
