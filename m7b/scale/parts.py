"""Files of requests, cut into parts: runs of rows that are read, answered and written as one.

Knows lines of JSON and rows of Parquet, which become such lines. Knows no model and no Ray.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from m7b.errors import UsageError

_SUFFIXES = (".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` to `last` of `source`, counted from 1; in lines of JSON they begin at byte `start`."""

    source: Path
    first: int
    last: int
    start: int = 0

    @property
    def n_rows(self) -> int:
        """How many rows it has."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """The file of its answers, by whose names parts sort."""
        return f"{self.source.name}-{self.first:010}-{self.last:010}.jsonl"

    def read(self) -> list[bytes]:
        """Read its rows, each a line of JSON."""
        if _is_parquet(self.source):
            return _read_parquet(self.source, self.first - 1, self.last)
        with self.source.open("rb") as file:
            file.seek(self.start)
            return [line for _, line in islice(_iterate_lines(file), self.n_rows)]


class Rows:
    """The rows of one `source`: how many there are, and where each begins.

    Raises:
        UsageError: it cannot be read.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._starts: Sequence[int]
        try:
            if _is_parquet(source):
                self._starts = range(_open_parquet(source).metadata.num_rows)
            else:
                with source.open("rb") as file:
                    self._starts = array("q", (start for start, _ in _iterate_lines(file)))
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror or error}") from None

    def __len__(self) -> int:
        return len(self._starts)

    def part(self, first: int, last: int) -> Part:
        """Rows `first` to `last`."""
        return Part(self.source, first, last, self._starts[first - 1])

    def cut(self, kept: Sequence[Part], size: int) -> Iterator[Part]:
        """Cut all rows that are in none of `kept`, which are in order, into parts of at most `size` rows."""
        first = 1
        for end in [*(part.first for part in kept), len(self) + 1]:
            for start in range(first, end, size):
                yield self.part(start, min(start + size, end) - 1)
            first = next((part.last for part in kept if part.first == end), 0) + 1


def list_sources(path: Path) -> list[Path]:
    """List the files of requests that `path` means: it, or those in it where it is a folder.

    Raises:
        UsageError: there are none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in _SUFFIXES)
    if not found:
        raise UsageError(f"{path} holds no requests", hint=f"name files with {', '.join(_SUFFIXES)}")
    return found


def as_line(row: dict[str, Any]) -> bytes:
    """A row of columns as a line of JSON, without what is null: a column, or a field of a structure."""
    return json.dumps(_leave_out_nulls(row), ensure_ascii=False, default=_as_json).encode(
        "utf-8", "surrogatepass"
    )


def _iterate_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each with the byte at which it begins."""
    start = file.tell()
    for line in file:
        if line.strip():
            yield start, line
        start += len(line)


def _is_parquet(source: Path) -> bool:
    return source.suffix == ".parquet"


def _open_parquet(source: Path) -> Any:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(source)
    except ArrowInvalid as error:
        raise UsageError(f"{source} is no Parquet: {error}") from None


def _read_parquet(source: Path, start: int, end: int) -> list[bytes]:
    """The rows from `start`, counted from 0, to before `end`."""
    groups = _open_parquet(source).metadata
    lines: list[bytes] = []
    before = 0
    for group in range(groups.num_row_groups):
        after = before + groups.row_group(group).num_rows
        if before < end and start < after:
            table = _read_group(source, group)
            rows = table.slice(max(start - before, 0), min(end, after) - max(start, before))
            lines += map(as_line, rows.to_pylist(maps_as_pydicts="lossy"))
        before = after
    return lines


@lru_cache(maxsize=1)  # parts of one group follow each other
def _read_group(source: Path, group: int) -> Any:
    return _open_parquet(source).read_row_group(group)


def _leave_out_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {name: _leave_out_nulls(entry) for name, entry in value.items() if entry is not None}
        case list():
            return [_leave_out_nulls(entry) for entry in value]
    return value


def _as_json(value: Any) -> Any:
    """What JSON has no word for: bytes that are a text become one, else an object that no field takes."""
    try:
        return value.decode("utf-8")
    except (AttributeError, UnicodeDecodeError):
        return {type(value).__name__: str(value)}
