"""The headers of a GGUF file, or of all parts of one that was split. Knows nothing of what the tensors mean.

The first part has the metadata of the model. Each has three keys of its own: `split.no` counts from 0,
`split.count`, and `split.tensors.count` of all parts. (llama.cpp's `gguf-split`, gguf's `GGUFWriter`.)
"""

from pathlib import Path

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.parts import list_part_names
from m7b.runtime.checkpoints.gguf_header import Header, HeaderError, VersionError, read_header


def read_parts(path: Path) -> list[tuple[Path, Header]]:
    """Read the header of the GGUF file at `path`, and of the other parts where it is one of a split.

    Returns the parts in order, each with its file.

    Raises:
        DamagedCheckpoint: a part is missing, cut short, or of another split.
        UnsupportedCheckpoint: a part is of another version of GGUF.
    """
    header = _read_whole(path)
    count = _read_count(path, header)
    if count == 1:
        return [(path, header)]
    names = list_part_names(path.name)
    if len(names) != count:
        raise DamagedCheckpoint(
            f"{path}: is one of {count} parts, and its name does not say where the others are",
            hint=f"call it as it was: NAME-00001-of-{count:05}.gguf, beside the others",
        )
    parts = [
        (path.with_name(name), _read_part(path.with_name(name), number, count))
        for number, name in enumerate(names)
    ]
    _check_tensors(parts)
    return parts


def _read_part(path: Path, number: int, count: int) -> Header:
    """Read the header of the part `number`, counted from 0."""
    if not path.is_file():
        raise DamagedCheckpoint(
            f"{path}: part {number + 1} of {count} is missing", hint="fetch it, and put it beside the others"
        )
    header = _read_whole(path)
    found, found_count = header.metadata.get("split.no"), header.metadata.get("split.count")
    if type(found) is not int or (found, found_count) != (number, count):
        raise DamagedCheckpoint(
            f"{path}: should be part {number + 1} of {count}, and says {_describe(found, found_count)}",
            hint="it belongs to another split, or was renamed: fetch it again",
        )
    return header


def _check_tensors(parts: list[tuple[Path, Header]]) -> None:
    """Compare the tensors of all parts with the number that each part gives for them."""
    n_tensors = sum(len(header.tensors) for _, header in parts)
    owners: dict[str, Path] = {}
    for path, header in parts:
        expected = header.metadata.get("split.tensors.count", n_tensors)
        if expected != n_tensors:
            raise DamagedCheckpoint(
                f"{path}: is of a split of {str(expected)[:20]} tensors, "
                f"and the {len(parts)} parts here have {n_tensors}",
                hint="parts of several splits are mixed: fetch them again",
            )
        for tensor in header.tensors:
            if tensor.name in owners:
                raise DamagedCheckpoint(
                    f"{path}: has {tensor.name}, as {owners[tensor.name].name} does",
                    hint="parts of several splits are mixed: fetch them again",
                )
            owners[tensor.name] = path


def _read_whole(path: Path) -> Header:
    try:
        return read_header(path)
    except VersionError as error:
        raise UnsupportedCheckpoint(f"{path}: {error}", hint=error.hint) from None
    except (HeaderError, OSError) as error:
        raise DamagedCheckpoint(f"{path}: not a whole GGUF file: {error}", hint="fetch it again") from None


def _read_count(path: Path, header: Header) -> int:
    """How many parts the file says it was split into, 1 where it says nothing."""
    count = header.metadata.get("split.count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise DamagedCheckpoint(f"{path}: split.count is {str(count)[:20]!r}", hint="it must be a number")
    return count or 1


def _describe(number: object, count: object) -> str:
    if type(number) is int and type(count) is int:
        return f"that it is part {number + 1} of {count}"
    return "nothing of a split"
