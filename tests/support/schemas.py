"""JSON schemas of every kind that m7b enforces, by name."""

from typing import Any

_POINT = {
    "type": "array",
    "prefixItems": [{"type": "number"}, {"type": "number"}],
    "items": False,
    "minItems": 2,
}
_TREE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    },
    "required": ["value"],
    "additionalProperties": False,
}
_CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "lives"],
    "additionalProperties": False,
}
_DOG = {
    "type": "object",
    "properties": {"kind": {"const": "dog"}, "good": {"type": "boolean"}},
    "required": ["kind", "good"],
    "additionalProperties": False,
}


def _object(additional: Any = False, **properties: Any) -> dict[str, Any]:
    """An object that has all of `properties`."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": additional,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": _object(name={"type": "string"}, age={"type": "integer", "minimum": 0}),
    "nested": _object(a=_object(b=_object(c={"type": "boolean"}), d={"type": "null"})),
    "optional": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    "weather": _object(city={"type": "string", "maxLength": 30}, unit={"enum": ["celsius", "fahrenheit"]}),
    "enum of everything": {"enum": ["a", 1, 2.5, None, True, [1, {"x": []}], {"k": "v"}]},
    "const object": {"const": {"b": [1, 2], "a": {"c": None}}},
    "unicode": _object(
        **{"größe": {"enum": ["klein", "groß", "😀", "漢字"]}, "naïve 名": {"const": '▁ é\n"\\'}}
    ),
    "boolean": {"type": "boolean"},
    "nullable": _object(x={"type": ["string", "null"], "maxLength": 5}),
    "integer bounds": {"type": "integer", "minimum": -17, "maximum": 205},
    "integer exclusive": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 1234},
    "integer multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
    "number bounds": {"type": "number", "minimum": -0.5, "maximum": 1.25},
    "number exclusive": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number multiple": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 99},
    "number": {"type": "array", "items": {"type": "number"}, "maxItems": 4},
    "string lengths": {"type": "string", "minLength": 3, "maxLength": 8},
    "string pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "string substring": {"type": "string", "pattern": "ab|cd", "maxLength": 12},
    "dates": _object(d={"type": "string", "format": "date"}, t={"type": "string", "format": "date-time"}),
    "addresses": _object(
        four={"type": "string", "format": "ipv4"},
        six={"type": "string", "format": "ipv6"},
        id={"type": "string", "format": "uuid"},
    ),
    "email": {"type": "string", "format": "email", "maxLength": 40},
    "array bounds": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    "array of arrays": {"type": "array", "items": _POINT, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
    "array of objects": {"type": "array", "items": _object(id={"type": "integer"}), "maxItems": 3},
    "recursive": _TREE,
    "recursive list": {
        "$defs": {
            "list": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/cell"}]},
            "cell": _object(head={"type": "integer"}, tail={"$ref": "#/$defs/list"}),
        },
        "$ref": "#/$defs/list",
    },
    "mutual recursion": {
        "$defs": {
            "and": _object(all={"type": "array", "items": {"$ref": "#/$defs/any"}, "maxItems": 2}),
            "any": {"anyOf": [{"$ref": "#/$defs/and"}, _object(leaf={"type": "boolean"})]},
        },
        "$ref": "#/$defs/any",
    },
    "union": {
        "anyOf": [{"type": "string", "maxLength": 4}, {"type": "integer"}, _object(x={"type": "null"})]
    },
    "one of": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}, "maxItems": 3}]},
    "tagged union": {
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
        "$defs": {"Cat": _CAT, "Dog": _DOG},
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 5}, "b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^n_": {"type": "integer"}, "^s_": {"type": "string", "maxLength": 5}},
        "additionalProperties": False,
        "maxProperties": 4,
    },
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    "patterns beside others": {
        "type": "object",
        "properties": {"x": {"type": "string"}},
        "patternProperties": {"^y": {"type": "integer"}},
        "additionalProperties": {"type": "null"},
    },
    "anything": {"type": "object", "maxProperties": 3},
    "annotated": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/thing",
        "title": "A thing",
        "type": "object",
        "properties": {"default": {"type": "integer", "default": 3, "description": "not the keyword"}},
        "required": ["default"],
        "examples": [{"default": 1}],
    },
    "names like keywords": _object(**{"$ref": {"type": "integer"}, "type": {"type": "null"}, "not": {}}),
}
