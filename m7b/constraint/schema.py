"""Which JSON schemas can be enforced to the letter. Knows draft 2020-12; knows nothing about tokens.

llguidance ignores unknown keywords, and in odd places even known ones. So it never sees the user's schema,
but one that is rebuilt from keywords that it is known to enforce.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from m7b.errors import UsageError

MAX_SCHEMA, MAX_DEPTH = 100_000, 100
"""Characters and levels of a schema's JSON; larger ones would take seconds to compile."""
MAX_NUMBER = 2**53 - 1
"""The largest integer that every JSON reader keeps (RFC 8259, section 6)."""

_ANNOTATIONS = {
    "$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly",
    "discriminator",  # OpenAPI's: it repeats what the options of a oneOf say
}  # fmt: skip
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
_SCHEMA = {"items", "additionalProperties"}
_SCHEMA_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SCHEMA_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_SIZES = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}

_KNOWN_FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
"""The values of `format` that llguidance enforces well."""

# llguidance lets 29 February into every year, second 60 into every minute and fractions run on without end.
_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
_TIME = (
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_FORMAT_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""The values of `format` that become a pattern of ours."""

Schema = dict[str, Any]


def rebuild_schema(schema: Any) -> Schema:
    """Rebuild `schema` as one that llguidance enforces fully.

    Raises:
        UsageError: it is no schema, or asks for what cannot be enforced; the message names the keyword.
    """
    _check_size(schema)
    if isinstance(schema, Mapping):  # the name of the whole schema; no part may have an $id
        schema = {key: value for key, value in schema.items() if key != "$id"}
    places: dict[str, Schema] = {}
    root = _rebuild(schema, "#", places)
    targets = {place: found["$ref"] for place, found in places.items() if "$ref" in found}
    for place, target in targets.items():
        if _unquote(target) not in places:
            raise UsageError(f"the schema's {place}/$ref points to {target}, where there is no schema")
    _check_endings(root, places)
    for found in places.values():
        _inline_options(found, places)
    return root


def _rebuild(schema: Any, place: str, places: dict[str, Schema]) -> Schema:
    """Rebuild `schema` of known keywords; adds it and all schemas in it to `places`, by JSON pointer."""
    if isinstance(schema, bool):
        places[place] = {} if schema else {"anyOf": []}
        return places[place]
    if not isinstance(schema, Mapping):
        raise UsageError(
            f"the schema's {place} is {_shorten(schema)}", hint="a schema is an object or a boolean"
        )
    rebuilt: Schema = {}
    places[place] = rebuilt
    for key, value in schema.items():
        at = f"{place}/{_escape(key)}"
        if key in _ANNOTATIONS or (key == "uniqueItems" and value is False):
            continue
        if key in _SCHEMA:
            rebuilt[key] = _rebuild(value, at, places)
        elif key in _SCHEMA_LISTS:
            _expect(isinstance(value, list) and value != [], at, value, "a list of schemas")
            rebuilt[key] = [_rebuild(option, f"{at}/{i}", places) for i, option in enumerate(value)]
        elif key in _SCHEMA_MAPS:
            _expect(isinstance(value, Mapping), at, value, "an object of schemas")
            rebuilt[key] = {
                name: _rebuild(inner, f"{at}/{_escape(name)}", places) for name, inner in value.items()
            }
        else:
            _check_value(key, value, at)
            rebuilt[key] = value
    _check_min_properties(rebuilt, place)
    _tighten(rebuilt)
    return rebuilt


def _check_value(key: str, value: Any, at: str) -> None:
    """Check the value of a keyword that holds no schemas."""
    if key in _SIZES:
        _expect(_is_number(value) and value == int(value) >= 0, at, value, "a size")
    elif key in _NUMBERS:
        _expect(_is_number(value) and (key != "multipleOf" or value > 0), at, value, "a number")
        _check_literal(value, at)
    elif key == "type":
        types = value if isinstance(value, list) else [value]
        _expect(types != [] and all(isinstance(t, str) and t in _TYPES for t in types), at, value, "a type")
    elif key == "required":
        _expect(isinstance(value, list) and all(isinstance(n, str) for n in value), at, value, "names")
    elif key in {"enum", "const"}:
        _expect(key == "const" or (isinstance(value, list) and value != []), at, value, "a list of values")
        _check_literal(value, at)
    elif key == "pattern":
        _expect(isinstance(value, str), at, value, "a regular expression")
    elif key == "format":
        known = ", ".join(sorted({*_FORMAT_PATTERNS, *_KNOWN_FORMATS}))
        _expect(
            isinstance(value, str) and value in {*_FORMAT_PATTERNS, *_KNOWN_FORMATS},
            at,
            value,
            f"one of {known}",
        )
    elif key == "$ref":
        inside = isinstance(value, str) and (value == "#" or value.startswith("#/"))
        _expect(inside, at, value, "a place in the schema, such as #/$defs/name")
    else:
        raise UsageError(
            f"the schema's keyword {key!r} cannot be enforced (at {at})", hint="leave it out of the schema"
        )


def _tighten(schema: Schema) -> None:
    """Rule out numbers that satisfy `schema` only before they are rounded, and digits without end."""
    if "format" in schema and schema["format"] in _FORMAT_PATTERNS:
        schema.setdefault("allOf", []).append({"pattern": _FORMAT_PATTERNS[schema.pop("format")]})
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    if "integer" in types and "number" not in types:
        if not {"minimum", "exclusiveMinimum"} & schema.keys():
            schema["minimum"] = -MAX_NUMBER
        if not {"maximum", "exclusiveMaximum"} & schema.keys():
            schema["maximum"] = MAX_NUMBER
    elif (bounds := _BOUNDS & schema.keys()) and "multipleOf" not in schema:
        # JSON readers round: they read 0.99999999999999999999 as 1. They keep 15 digits.
        bound = max(abs(schema[key]) for key in bounds)
        schema["multipleOf"] = float(f"1e-{min(9, max(0, 15 - len(str(int(bound)))))}")


def _check_min_properties(schema: Schema, place: str) -> None:
    # llguidance lets a key that is not in `properties` come twice, which makes one property.
    if schema.get("minProperties", 0) > max(1, len(set(schema.get("required", [])))):
        raise UsageError(
            f"the schema's keyword 'minProperties' cannot be enforced above 1 (at {place})",
            hint="list the properties in 'required'",
        )


def _check_endings(root: Schema, places: Mapping[str, Schema]) -> None:
    """Refuse a schema that needs itself: its answers would never end."""
    targets = {_unquote(schema["$ref"]) for schema in places.values() if "$ref" in schema} | {"#"}
    ending: set[str] = set()
    while found := {target for target in targets - ending if _can_end(places[target], ending)}:
        ending |= found
    if endless := sorted(targets - ending):
        raise UsageError(f"nothing satisfies the schema: {endless[0]} needs itself")


def _can_end(schema: Schema, ending: set[str]) -> bool:
    """Whether a finite answer satisfies `schema`, given that this holds for the references in `ending`."""
    if "$ref" in schema and _unquote(schema["$ref"]) not in ending:
        return False
    if not all(_can_end(part, ending) for part in schema.get("allOf", [])):
        return False
    if not all(
        any(_can_end(o, ending) for o in schema[key]) for key in ("anyOf", "oneOf") if schema.get(key)
    ):
        return False
    types = schema.get("type", "null")
    if not set(types if isinstance(types, list) else [types]) <= {"object", "array"}:
        return True
    required = [schema.get("properties", {}).get(name, {}) for name in schema.get("required", [])]
    n_items = int(schema.get("minItems", 0))
    items = schema.get("prefixItems", [])[:n_items]
    if n_items > len(items):
        items = [*items, schema.get("items", {})]
    as_object, as_array = (all(_can_end(part, ending) for part in parts) for parts in (required, items))
    return ("object" in types and as_object) or ("array" in types and as_array)


def _inline_options(schema: Schema, places: Mapping[str, Schema]) -> None:
    """Replace options of a oneOf that are references: llguidance compares options as they are written."""
    if "oneOf" in schema:
        schema["oneOf"] = [
            places[_unquote(option["$ref"])] if option.keys() == {"$ref"} else option
            for option in schema["oneOf"]
        ]


def _check_literal(value: Any, at: str) -> None:
    """Refuse literals that llguidance cannot write as they are."""
    for literal in _walk_literals(value):
        if _is_number(literal):
            _expect(abs(literal) <= MAX_NUMBER, at, literal, f"a number within ±{MAX_NUMBER}")
        if isinstance(literal, str):
            visible = not any((ord(c) < 32 and c not in "\n\r\t\b\f") or c == "\x7f" for c in literal)
            _expect(visible, at, literal, "text without control characters")


def _walk_literals(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _walk_literals(item)
    else:
        yield value


def _check_size(schema: Any) -> None:
    level, depth = [schema] if _is_nested(schema) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UsageError(f"the schema is nested deeper than {MAX_DEPTH} levels")
        parts = (item.values() if isinstance(item, Mapping) else item for item in level)
        level = [inner for part in parts for inner in part if _is_nested(inner)]
    try:
        length = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is one
        raise UsageError(f"the schema is not JSON: {error}") from None
    if length > MAX_SCHEMA:
        raise UsageError(f"the schema has {length} bytes, m7b takes {MAX_SCHEMA}")


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(holds: bool, at: str, value: Any, expected: str) -> None:
    if not holds:
        raise UsageError(f"the schema's {at} is {_shorten(value)}", hint=f"it must be {expected}")


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _unquote(reference: str) -> str:
    """Spell a reference like the keys of `places`."""
    return unquote(reference)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
