"""Reading numbers from files that nobody vouches for: every value has a type and a range, or is refused."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m7b.errors import CheckpointNotFound, DamagedCheckpoint

MAX_DIM = 1 << 20
MAX_LAYERS = 1 << 10
MAX_VOCAB = 1 << 22
MAX_POSITIONS = 1 << 31
MAX_JSON_BYTES = 256 << 20  # the largest tokenizer.json in use is some 35 MB

_REQUIRED = object()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Fields:
    """The keys of one configuration file, or of the object `within` it, read with their bounds."""

    def __init__(self, file: Path, values: Mapping[str, Any], within: str = "") -> None:
        self.file = file
        self.within = within
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def raw(self, key: str) -> Any:
        """The value as it stands, None where the key is absent."""
        return self._values.get(key)

    def integer(self, key: str, high: int, default: Any = _REQUIRED) -> int:
        """An integer from 1 to `high`; `default` only where the key is absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise self.bad(key, f"an integer from 1 to {high}")
        return value

    def optional_integer(self, key: str, high: int) -> int | None:
        """An integer from 1 to `high`, None where the value is null or absent."""
        return None if self.raw(key) is None else self.integer(key, high)

    def number(self, key: str, high: float, default: Any = _REQUIRED) -> float:
        """A finite number above 0 and up to `high`; `default` only where the key is absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(key, "a number")
        if not 0 < value <= high:  # false for NaN as well
            raise self.bad(key, f"a number above 0 and up to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false; `default` where the key is absent or null."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def bad(self, key: str, wanted: str) -> DamagedCheckpoint:
        """The error that says what `key` holds and what it should."""
        place = f"{self.within}.{key}" if self.within else key
        if key not in self._values:
            return DamagedCheckpoint(f"{self.file}: {place} is missing", hint=f"it must be {wanted}")
        value = self._values[key]
        shown = f"a {type(value).__name__}" if isinstance(value, list | dict) else json.dumps(value)[:80]
        return DamagedCheckpoint(f"{self.file}: {place} is {shown}", hint=f"it must be {wanted}")

    def _get(self, key: str, default: Any) -> Any:
        if key in self._values:
            return self._values[key]
        if default is _REQUIRED:
            raise self.bad(key, "present")
        return default


def find_head_dim(fields: Fields, key: str, dim: int, n_heads: int, n_kv_heads: int) -> int:
    """The size of one head under `key`, dim / heads where it is null or absent.

    Raises:
        DamagedCheckpoint: it is odd (RoPE turns pairs), or the heads do not divide evenly.
    """
    if n_heads % n_kv_heads:
        raise DamagedCheckpoint(
            f"{fields.file}: {n_heads} attention heads cannot share {n_kv_heads} kv heads"
        )
    head_dim = fields.optional_integer(key, MAX_DIM)
    if head_dim is None:
        if dim % n_heads:
            raise DamagedCheckpoint(f"{fields.file}: dimension {dim} does not divide into {n_heads} heads")
        head_dim = dim // n_heads
    if head_dim % 2:
        raise DamagedCheckpoint(f"{fields.file}: {key} is {head_dim}", hint="it must be even")
    return head_dim


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`.

    Raises:
        CheckpointNotFound: it may not be read.
        DamagedCheckpoint: it is no JSON object.
    """
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DamagedCheckpoint(f"{file}: {size} bytes are too many for a JSON file of a checkpoint")
        data = file.read_bytes()
        values = json.loads(data)
        if _SURROGATE.search(data):  # a pair is a character, and half of one cannot be written as UTF-8
            json.dumps(values, ensure_ascii=False).encode()
    except OSError as error:
        raise CheckpointNotFound(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise DamagedCheckpoint(f"{file}: holds a JSON {type(values).__name__}, not an object")
    return values
