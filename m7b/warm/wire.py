"""Requests, events and errors as JSON, so that they mean the same at both ends of a socket.

Both ends are m7b of one version. Only the classes named here are made, and each value is of the kind that its
field declares, so whoever writes to a socket cannot make anything else.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from m7b import errors
from m7b.completions.remarks import Remarks
from m7b.completions.request import ChatPrompt, CompletionRequest
from m7b.constraint.grammar import AnyJson, JsonSchema, Lark, Regex
from m7b.errors import InvalidConversation, M7bError, UsageError
from m7b.generation import (
    CallDelta,
    CallPart,
    Finished,
    FinishReason,
    PromptProgress,
    SamplingParams,
    TextDelta,
    TokenLogprob,
    ToolCall,
    Usage,
)

ANSWER_PATH = "/m7b/answer"


_VALUES = (CompletionRequest, ChatPrompt, SamplingParams, AnyJson, JsonSchema, Lark, Regex, Remarks)
_EVENTS = (CallDelta, CallPart, Finished, PromptProgress, TextDelta, TokenLogprob, ToolCall, Usage)
_CLASSES: Mapping[str, type] = {one.__name__: one for one in (*_VALUES, *_EVENTS)}
_KIND, _ITEMS = "kind", "items"


def pack(value: Any) -> Any:
    """`value` as JSON can hold it: what JSON has no word for is an object with a `kind`."""
    match value:
        case FinishReason():
            return {_KIND: "FinishReason", _ITEMS: value.value}
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [pack(item) for item in value]
        case tuple() | frozenset():
            return {_KIND: type(value).__name__, _ITEMS: [pack(item) for item in value]}
        case Mapping():
            return {_KIND: "dict", _ITEMS: [[key, pack(item)] for key, item in value.items()]}
        case _ if is_dataclass(value) and type(value).__name__ in _CLASSES:
            packed = {field.name: pack(getattr(value, field.name)) for field in fields(value)}
            return {_KIND: type(value).__name__, _ITEMS: packed}
    raise TypeError(f"{type(value).__name__} does not go over a socket")


def unpack(packed: Any) -> Any:
    """What was packed.

    Raises:
        UsageError: it is not what `pack` makes.
    """
    try:
        return _unpack(packed)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"this is no request of m7b's own: {error}") from None


def pack_error(error: M7bError) -> dict[str, Any]:
    """An error as JSON tells it, so that the other end can raise it."""
    known = next(one.__name__ for one in type(error).__mro__ if hasattr(errors, one.__name__))
    extra = {name: getattr(error, name) for name in ("param", "kind") if hasattr(error, name)}
    return {"class": known, "message": error.message, "hint": error.hint, **extra}


def unpack_error(packed: Mapping[str, Any]) -> M7bError:
    """The error that was packed."""
    owner = getattr(errors, str(packed.get("class")), M7bError)
    message, hint = str(packed.get("message")), str(packed.get("hint", ""))
    if owner is InvalidConversation:
        kind, param = str(packed.get("kind")), str(packed.get("param"))
        return InvalidConversation(kind, message, hint=hint, param=param)
    if owner is UsageError:
        return UsageError(message, hint=hint, param=str(packed.get("param", "")))
    is_error = isinstance(owner, type) and issubclass(owner, M7bError)
    return owner(message, hint=hint) if is_error else M7bError(message, hint=hint)


def _unpack(packed: Any) -> Any:
    match packed:
        case list():
            return [_unpack(item) for item in packed]
        case {"kind": "tuple", "items": [*items]}:
            return tuple(map(_unpack, items))
        case {"kind": "frozenset", "items": [*items]}:
            return frozenset(map(_unpack, items))
        case {"kind": "dict", "items": [*items]}:
            return {key: _unpack(item) for key, item in items}
        case {"kind": "FinishReason", "items": value}:
            return FinishReason(value)
        case {"kind": str() as kind, "items": dict() as items}:
            return _make(_CLASSES[kind], {name: _unpack(item) for name, item in items.items()})
        case dict():
            raise ValueError("an object has no kind")
    return packed


def _make(owner: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        if not _fits(value, _hints(owner)[name]):
            raise ValueError(f"{name} of {owner.__name__} cannot be of {type(value).__name__}")
    return owner(**values)


@cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type that `hint` says."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (UnionType, Union):
        return any(_fits(value, one) for one in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and all(map(_fits, value, inner))
    if origin in (tuple, list, frozenset):
        return isinstance(value, origin) and all(_fits(item, inner[0]) for item in value)
    if origin is not None:  # a mapping
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if hint is float:
        return type(value) in (int, float)
    if getattr(hint, "_is_protocol", False):  # a constraint, which the other end makes of a grammar
        return False
    return type(value) is hint if hint in (int, str, bool) else isinstance(value, hint)
