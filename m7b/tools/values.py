"""Return values as text: JSON where they are JSON, and a reason where they are not. Runs in the worker."""

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any


class NotJson(Exception):
    """A value that JSON has no words for: `str(error)` says what it was, and where."""


def text_of(value: Any) -> str:
    """A string as it is, anything else as JSON.

    Raises:
        NotJson: it is neither.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        return str.__str__(value)
    try:
        return json.dumps(_plain(value, ""), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise NotJson("a value that contains itself, or is nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python writes
        raise NotJson(f"a number that is too long: {error}") from None


def _plain(value: Any, place: str) -> Any:
    match value:
        case None | bool():
            return value
        case Enum():
            return _plain(value.value, place)
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise NotJson(f"the number {float(value)}{place}, which JSON does not have")
            return float(value)
        case list() | tuple():
            return [_plain(item, f"{place} at [{index}]") for index, item in enumerate(value)]
        case Mapping():
            return _plain_mapping(value, place)
    if dataclasses.is_dataclass(value) or hasattr(type(value), "__pydantic_serializer__"):
        return _plain(_dumped(value, place), place)
    raise NotJson(f"{_type_of(value)}{place}")


def _plain_mapping(value: Mapping[Any, Any], place: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str | int):
            raise NotJson(f"a dict with {_type_of(key)} as a key{place}")
    plain = {_key(key): _plain(item, f"{place} at [{_key(key)!r}]") for key, item in value.items()}
    if len(plain) < len(value):
        raise NotJson(f"a dict{place} with keys that are the same in JSON")
    return plain


def _key(key: str | int) -> str:
    match key:
        case Enum():
            return _key(key.value)
        case bool():
            return "true" if key else "false"
        case str():
            return str.__str__(key)
        case _:
            return str(int(key))


def _dumped(value: Any, place: str) -> Any:
    """A pydantic model or a dataclass in pydantic's JSON."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise NotJson(f"{_type_of(value)}{place}: {error}") from None


def _type_of(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
