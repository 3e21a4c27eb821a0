"""Format what a tool returned as text: JSON, or the reason why it is no JSON. Runs in the worker."""

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any


class NotJson(Exception):
    """A value that JSON cannot hold; `str(error)` says what it is, and where."""


def format_value(value: Any) -> str:
    """Format a value: a string as it is, anything else as JSON.

    Raises:
        NotJson: it is neither.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        return str.__str__(value)
    try:
        return json.dumps(_convert(value, ""), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise NotJson("a value that contains itself, or is nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python writes
        raise NotJson(f"a number that is too long: {error}") from None


def _convert(value: Any, place: str) -> Any:
    match value:
        case None | bool():
            return value
        case Enum():
            return _convert(value.value, place)
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise NotJson(f"the number {float(value)}{place}, which JSON does not have")
            return float(value)
        case list() | tuple():
            return [_convert(item, f"{place} at [{index}]") for index, item in enumerate(value)]
        case Mapping():
            return _convert_mapping(value, place)
    if dataclasses.is_dataclass(value) or hasattr(type(value), "__pydantic_serializer__"):
        return _convert(_dump(value, place), place)
    raise NotJson(f"{_name_type(value)}{place}")


def _convert_mapping(value: Mapping[Any, Any], place: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str | int):
            raise NotJson(f"a dict with {_name_type(key)} as a key{place}")
    plain = {
        _convert_key(key): _convert(item, f"{place} at [{_convert_key(key)!r}]")
        for key, item in value.items()
    }
    if len(plain) < len(value):
        raise NotJson(f"a dict{place} with keys that are the same in JSON")
    return plain


def _convert_key(key: str | int) -> str:
    match key:
        case Enum():
            return _convert_key(key.value)
        case bool():
            return "true" if key else "false"
        case str():
            return str.__str__(key)
        case _:
            return str(int(key))


def _dump(value: Any, place: str) -> Any:
    """Convert a pydantic model or a dataclass as pydantic does for JSON."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise NotJson(f"{_name_type(value)}{place}: {error}") from None


def _name_type(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
