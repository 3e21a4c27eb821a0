"""Read JSON schemas: check what they say, and find where their references lead.

Knows the keywords of draft 2020-12, and what older drafts wrote instead. Knows nothing about what a keyword
admits.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from m7b.errors import UsageError

MAX_SCHEMA, MAX_DEPTH = 100_000, 100
"""Characters and levels of a schema's JSON; larger ones would take seconds to compile."""
TRUE, FALSE = "true", "false"
"""The places of the schemas that everything and nothing satisfies."""
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

_SCHEMA = {
    "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else", "items",
    "unevaluatedProperties", "unevaluatedItems",
}  # fmt: skip
_SCHEMA_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SCHEMA_MAPS = {"properties", "patternProperties", "dependentSchemas"}
_DEFINITIONS = {"$defs", "definitions"}
_SIZES = {
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains",
    "maxContains",
}  # fmt: skip
_UNREACHABLE = 1_000_000  # no answer has so many letters or items
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_NOT_ENFORCED = {"$dynamicRef", "$recursiveRef"}
_OLD_DRAFTS = ("draft-03", "draft-04", "draft-06", "draft-07")

Part = dict[str, Any]
"""A schema of known keywords, in which the schemas below it are replaced by their places."""


@dataclass(frozen=True, slots=True)
class Document:
    """All parts of a schema by their places, which are JSON pointers; `#` is the whole."""

    parts: Mapping[str, Part]


def read_document(schema: Any) -> Document:
    """Read `schema` with all that its references lead to.

    Unknown keywords are annotations and left out.

    Raises:
        UsageError: it is no schema, or a reference leads nowhere; the message names the place.
    """
    _check_size(schema)
    reader = _Reader(schema)
    reader.read(schema, "#", _Scope())
    reader.resolve_references()
    return Document(reader.parts)


def escape_pointer(name: str) -> str:
    """Escape `name` as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def is_number(value: Any) -> bool:
    """Whether `value` is a JSON number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a schema stands: below which address, and in a draft in which $ref hides what is beside it.

    `is_told`: the schema says which draft it is.
    """

    base: str = ""
    is_old: bool = False
    is_told: bool = False


@dataclass(slots=True)
class _Reader:
    """What was read of a document so far."""

    whole: Any
    parts: dict[str, Part] = field(default_factory=lambda: {TRUE: {}, FALSE: {"enum": []}})
    names: dict[str, str] = field(default_factory=dict)  # absolute addresses, with anchors, to places
    references: list[tuple[str, str, str]] = field(default_factory=list)  # place, as written, absolute
    doubts: dict[str, str] = field(default_factory=dict)  # places with $id beside $ref, and the base around

    def read(self, schema: Any, at: str, scope: _Scope) -> str:
        """Read the schema at the place `at`; returns the place."""
        if isinstance(schema, bool):
            self.parts[at] = dict(self.parts[TRUE if schema else FALSE])
            return at
        if not isinstance(schema, Mapping):
            hint = "a schema is an object or a boolean"
            raise UsageError(f"the schema's {at} is {_shorten(schema)}", hint=hint)
        part: Part = {}
        self.parts[at] = part
        scope = self._name(schema, at, scope)
        for key, value in _modernize(schema, scope.is_old).items():
            self._read_keyword(part, key, value, at, scope)
        return at

    def resolve_references(self) -> None:
        """Replace the references in all parts by places."""
        while self.references:
            at, written, address = self.references.pop()
            place = self.parts[at]["$ref"] = self._find(at, written, address)
            if at in self.doubts and self._leads_elsewhere(at, written, place):
                raise UsageError(
                    f"the schema's {at} has $id beside $ref, which drafts read in two ways",
                    hint="name the draft with $schema",
                )

    def _name(self, schema: Mapping[str, Any], at: str, scope: _Scope) -> _Scope:
        """Note the names that `schema` gives itself; returns where the schemas below it stand."""
        name, base = schema.get("$id"), scope.base
        dialect, is_old, is_told = schema.get("$schema"), scope.is_old, scope.is_told
        if isinstance(dialect, str):
            is_old, is_told = any(draft in dialect for draft in _OLD_DRAFTS), True
        if not is_told and name is not None and "$ref" in schema:
            self.doubts[at] = base
        if at == "#":
            self.names[""] = at
        if isinstance(name, str) and not name.startswith("#") and not (is_old and "$ref" in schema):
            base = _join(base, name).removesuffix("#")
            self.names[base] = at
        anchors = [schema.get("$anchor"), schema.get("$dynamicAnchor")]
        anchors += [name[1:]] if isinstance(name, str) and name.startswith("#") else []
        for anchor in anchors:
            if isinstance(anchor, str):
                self.names[f"{base}#{anchor}"] = at
        return _Scope(base, is_old, is_told)

    def _read_keyword(self, part: Part, key: str, value: Any, parent: str, scope: _Scope) -> None:
        at = f"{parent}/{escape_pointer(key)}"
        if key in _SCHEMA:
            part[key] = self.read(value, at, scope)
        elif key in _SCHEMA_LISTS:
            is_list = isinstance(value, list) and (value != [] or key == "prefixItems")
            _expect(is_list, at, value, "a list of schemas")
            found = [self.read(option, f"{at}/{i}", scope) for i, option in enumerate(value)]
            part[key] = [*part.get(key, []), *found]
        elif key in _SCHEMA_MAPS | _DEFINITIONS:
            _expect(isinstance(value, Mapping), at, value, "an object of schemas")
            inner = {
                name: self.read(below, f"{at}/{escape_pointer(name)}", scope) for name, below in value.items()
            }
            if key in _SCHEMA_MAPS:
                part[key] = inner
        elif key == "$ref":
            _expect(isinstance(value, str), at, value, "a place in the schema, such as #/$defs/name")
            self.references.append((parent, value, _join(scope.base, value)))
        elif key in {"const", "enum"}:
            _expect(key == "const" or isinstance(value, list), at, value, "a list of values")
            self._read_values(part, [value] if key == "const" else value, at)
        elif key in _NOT_ENFORCED:
            raise UsageError(f"the schema's keyword {key!r} cannot be enforced (at {at})", hint="use $ref")
        elif _check_value(key, value, at) and not (
            key in _SIZES and key.startswith("max") and value > _UNREACHABLE
        ):
            part[key] = int(value) if key in _SIZES else value

    def _read_values(self, part: Part, values: list[Any], at: str) -> None:
        """Add the alternatives of const or enum; arrays and objects become schemas of what is in them."""
        plain = [value for value in values if not isinstance(value, list | Mapping)]
        if len(plain) == len(values) and "enum" not in part:
            part["enum"] = plain
            return
        options = [f"{at}/="]
        self.parts[options[0]] = {"enum": plain}
        for i, value in enumerate(values):
            if isinstance(value, list | Mapping):
                options.append(self._read_value(value, f"{at}/={i}"))
        self.parts[f"{at}/=="] = {"anyOf": options}
        part["allOf"] = [*part.get("allOf", []), f"{at}/=="]

    def _read_value(self, value: Any, at: str) -> str:
        part: Part
        match value:
            case list():
                below = [self._read_value(item, f"{at}/{i}") for i, item in enumerate(value)]
                part = {"prefixItems": below, "minItems": len(value), "maxItems": len(value)}
                self.parts[at] = {"type": ["array"], **part}
            case Mapping():
                named = {
                    name: self._read_value(item, f"{at}/{escape_pointer(name)}")
                    for name, item in value.items()
                }
                part = {"properties": named, "required": [*value], "maxProperties": len(value)}
                self.parts[at] = {"type": ["object"], **part}
            case _:
                self.parts[at] = {"enum": [value]}
        return at

    def _find(self, at: str, written: str, address: str) -> str:
        name, fragment = urldefrag(address)
        hint = "it must be a place in the schema, such as #/$defs/name"
        if fragment and not fragment.startswith("/"):
            place = self.names.get(address)
        elif (root := self.names.get(name)) is not None:
            place = root + unquote(fragment)
            if place not in self.parts and not self._read_place(place, name):
                raise UsageError(f"the schema's {at}/$ref points to {written}, where there is no schema")
        else:
            place = None
        if place is None:
            raise UsageError(f"the schema's {at}/$ref is {_shorten(written)}", hint=hint)
        return place

    def _leads_elsewhere(self, at: str, written: str, place: str) -> bool:
        """Whether $ref leads to another place than `place` in the drafts that pass over an $id beside it."""
        try:
            return self._find(at, written, _join(self.doubts[at], written)) != place
        except UsageError:
            return False

    def _read_place(self, place: str, base: str) -> bool:
        """Read a schema that stands below a keyword that the draft does not know; whether there is one."""
        found = self.whole
        for name in place.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, Mapping) and name in found and name not in {"const", "enum"}:
                found = found[name]
            else:
                return False
        if not isinstance(found, Mapping | bool):
            return False
        self.read(found, place, _Scope(base))
        return True


def _modernize(schema: Mapping[str, Any], is_old: bool) -> Mapping[str, Any]:
    """Write what older drafts say in the words of 2020-12."""
    if is_old and "$ref" in schema:
        return {key: value for key, value in schema.items() if key in {"$ref", *_DEFINITIONS}}
    new = dict(schema)
    rest = new.pop("additionalItems", None)
    if isinstance(new.get("items"), list):
        new["prefixItems"] = new.pop("items")
        if rest is not None:
            new["items"] = rest
    if isinstance(needs := new.pop("dependencies", None), Mapping):
        for key, is_ours in (("dependentRequired", True), ("dependentSchemas", False)):
            chosen = {name: need for name, need in needs.items() if isinstance(need, list) is is_ours}
            if chosen:
                new[key] = {**chosen, **new.get(key, {})}
    return new


def _check_value(key: str, value: Any, at: str) -> bool:
    """Check the value of a keyword that holds no schemas; whether the keyword is known."""
    if key in _SIZES:
        is_size = is_number(value) and value == int(value) >= 0
        _expect(is_size, at, value, "a size")
    elif key in _NUMBERS:
        _expect(is_number(value) and (key != "multipleOf" or value > 0), at, value, "a number")
    elif key == "type":
        types = value if isinstance(value, list) else [value]
        _expect(types != [] and all(isinstance(t, str) and t in TYPES for t in types), at, value, "a type")
    elif key == "required":
        _expect(_is_names(value), at, value, "names")
    elif key == "dependentRequired":
        is_map = isinstance(value, Mapping) and all(_is_names(names) for names in value.values())
        _expect(is_map, at, value, "an object of names")
    elif key == "pattern":
        _expect(isinstance(value, str), at, value, "a regular expression")
    elif key == "uniqueItems":
        _expect(isinstance(value, bool), at, value, "true or false")
    else:
        return key == "format"
    return True


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _join(base: str, reference: str) -> str:
    # urljoin knows nothing of urn:
    return urldefrag(base)[0] + reference if reference.startswith("#") else urljoin(base, reference)


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


def _expect(holds: bool, at: str, value: Any, expected: str) -> None:
    if not holds:
        raise UsageError(f"the schema's {at} is {_shorten(value)}", hint=f"it must be {expected}")


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
