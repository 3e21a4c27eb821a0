"""JSON schemas made small enough for a prompt. Knows JSON schema; nothing about Python types or tools."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

_ONE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_SEVERAL = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DROPPED = ("title", "$schema", "discriminator")
_DEFINITION = "#/$defs/"


def plain(schema: Any) -> Any:
    """`schema` without titles and with definitions that are used once written where they are used.

    What refers to itself, or is used in several places, stays in `$defs`.
    """
    if not isinstance(schema, Mapping):
        return schema
    small = untitled(schema)
    definitions = small.pop("$defs", {})
    uses = Counter(
        _definition_of(part)
        for root in (small, *definitions.values())
        for part in _parts(root)
        if _definition_of(part)
    )
    # ends: in a circle of definitions, the one that is reached from outside is used twice
    once = {name: body for name, body in definitions.items() if uses[name] == 1}
    small = _inlined(small, once)
    kept = {
        name: _inlined(body, once)
        for name, body in definitions.items()
        if name not in once and uses[name] > 0
    }
    return small | ({"$defs": kept} if kept else {})


def untitled(schema: Any) -> Any:
    """`schema` without titles and other words that are for documents."""
    if not isinstance(schema, Mapping):
        return schema
    small = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "discriminator" in schema:  # OpenAPI's; its branches exclude each other, so any of them is one of them
        small = {"anyOf" if key == "oneOf" else key: value for key, value in small.items()}
    return _mapped(small, untitled)


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    name = _definition_of(schema)
    if name in definitions:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _inlined(definitions[name] | beside, definitions)
    return _mapped(schema, lambda part: _inlined(part, definitions))


def _mapped(schema: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """`schema` with each schema directly below it changed."""
    result = dict(schema)
    for key, value in schema.items():
        if key in _ONE:
            result[key] = change(value)
        elif key in _SEVERAL and isinstance(value, list):
            result[key] = [change(part) for part in value]
        elif key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: change(part) for name, part in value.items()}
    return result


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """`schema` and every schema in it."""
    if isinstance(schema, Mapping):
        yield schema
        below: list[Any] = []
        _mapped(schema, below.append)
        for part in below:
            yield from _parts(part)


def _definition_of(schema: Mapping[str, Any]) -> str:
    reference = schema.get("$ref")
    is_ours = isinstance(reference, str) and reference.startswith(_DEFINITION)
    return str(reference).removeprefix(_DEFINITION) if is_ours else ""
