"""The names of the parts that a GGUF file was split into: `name-00001-of-00003.gguf`. Reads no file."""

import re
from collections.abc import Iterable

_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
MAX_PARTS = 1000
"""A split of more is no split: one of half a terabyte has some fifty parts."""


def list_part_names(name: str) -> list[str]:
    """The names of all parts of the split that the file `name` belongs to, in order.

    A name that is none of a part stands alone: `a.gguf` is ["a.gguf"], `a-00002-of-00002.gguf` is
    ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"].
    """
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count <= MAX_PARTS:
        return [name]
    return [f"{stem}-{one:05}-of-{count:05}.gguf" for one in range(1, count + 1)]


def name_whole(name: str) -> str:
    """The name that the file had before it was split: `a-00002-of-00002.gguf` was `a.gguf`."""
    match = _PART.fullmatch(name)
    return f"{match[1]}.gguf" if match else name


def gather_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the files `names` by the first name of their split; a file that was not split is a group."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(list_part_names(name)[0], []).append(name)
    return groups
