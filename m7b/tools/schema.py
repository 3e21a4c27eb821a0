"""Make JSON schemas small enough for a prompt. Knows JSON schema; nothing about Python types or tools."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

_ONE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_SEVERAL = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DROPPED = ("title", "$schema", "discriminator")
_DEFINITION = "#/$defs/"


def simplify_schema(schema: Any) -> Any:
    """Drop titles, and move each definition that is used once to the place where it is used.

    Definitions that refer to themselves, or are used in several places, stay in `$defs`.
    """
    if not isinstance(schema, Mapping):
        return schema
    small = drop_titles(schema)
    definitions = small.pop("$defs", {})
    uses = Counter(
        _find_definition(part)
        for root in (small, *definitions.values())
        for part in _walk(root)
        if _find_definition(part)
    )
    # inlining ends: in a circle of definitions, the one that is reached from outside is used twice
    once = {name: body for name, body in definitions.items() if uses[name] == 1}
    small = _inline(small, once)
    kept = {
        name: _inline(body, once) for name, body in definitions.items() if name not in once and uses[name] > 0
    }
    return small | ({"$defs": kept} if kept else {})


def drop_titles(schema: Any) -> Any:
    """Drop titles and other keywords that are for documents, at every level of `schema`."""
    if not isinstance(schema, Mapping):
        return schema
    small = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "discriminator" in schema:  # OpenAPI's; its branches exclude each other, so any of them is one of them
        small = {"anyOf" if key == "oneOf" else key: value for key, value in small.items()}
    return _map_parts(small, drop_titles)


def allow_repeats(schema: Any) -> Any:
    """Drop `uniqueItems`, which pydantic writes for sets, and takes repeated items for.

    It stays where the items are an enum, which a grammar can keep different, and where they are counted.
    """
    if not isinstance(schema, Mapping):
        return schema
    items = schema.get("items")
    is_enum = isinstance(items, Mapping) and ("enum" in items or items.get("type") == "boolean")
    keeps = is_enum or schema.get("minItems", 0) > 1
    kept = {key: value for key, value in schema.items() if key != "uniqueItems" or keeps}
    return _map_parts(kept, allow_repeats)


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    name = _find_definition(schema)
    if name in definitions:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _inline(definitions[name] | beside, definitions)
    return _map_parts(schema, lambda part: _inline(part, definitions))


def _map_parts(schema: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """Return `schema` with `change` applied to each schema directly below it."""
    result = dict(schema)
    for key, value in schema.items():
        if key in _ONE:
            result[key] = change(value)
        elif key in _SEVERAL and isinstance(value, list):
            result[key] = [change(part) for part in value]
        elif key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: change(part) for name, part in value.items()}
    return result


def _walk(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield `schema` and every schema in it."""
    if isinstance(schema, Mapping):
        yield schema
        below: list[Any] = []
        _map_parts(schema, below.append)
        for part in below:
            yield from _walk(part)


def _find_definition(schema: Mapping[str, Any]) -> str:
    reference = schema.get("$ref")
    is_ours = isinstance(reference, str) and reference.startswith(_DEFINITION)
    return str(reference).removeprefix(_DEFINITION) if is_ours else ""
