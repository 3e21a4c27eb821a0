"""What each keyword leaves of the values of its type where it holds, and where it does not.

Knows the keywords that look at one value; nothing about those that combine schemas. What fails is said more
narrowly where it cannot be said exactly, never more widely, so that no value is invalid.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from m7b.constraint.cases import (
    ANYTHING,
    NOTHING,
    Arrays,
    Case,
    Count,
    Layer,
    Need,
    Numbers,
    Objects,
    Values,
    exact,
)
from m7b.constraint.documents import Part
from m7b.constraint.formats import FORMATS
from m7b.constraint.strings import Pattern, Strings
from m7b.errors import UsageError

ALL: tuple[Case, ...] = (Values((None, False, True)), Numbers(), Strings(), Arrays(), Objects())
"""The cases of any value."""
OF_TYPE: dict[str, Case] = {
    "null": Values((None,)),
    "boolean": Values((False, True)),
    "integer": Numbers(step=Fraction(1), is_integral=True),
    "number": Numbers(),
    "string": Strings(),
    "array": Arrays(),
    "object": Objects(),
}
"""The case of each value of `type`."""


class NotEnforced(UsageError):
    """A keyword that cannot be enforced."""


def list_satisfied(part: Part, place: str) -> list[Case]:
    """The cases that keywords of `part` leave of numbers, strings, arrays and objects."""
    return [*_list_numbers(part), *_list_strings(part), *_list_arrays(part, place), *_list_objects(part)]


def list_failed(part: Part, place: str) -> list[Case]:
    """The cases in which one of the same keywords does not hold.

    Raises:
        NotEnforced: a keyword that holds cannot be told from one that does not.
    """
    return [
        *_fail_numbers(part, place),
        *_fail_strings(part),
        *_fail_arrays(part, place),
        *_fail_objects(part, place),
    ]


def to_need(place: str) -> Need:
    """What satisfies one schema."""
    return frozenset({(place, True)})


def forbid_property(name: str) -> Objects:
    """Objects without a property."""
    return Objects((Layer(named=((name, NOTHING),), evaluates=False),))


def refuse_keyword(keyword: str, place: str, hint: str) -> NotEnforced:
    """Make an error that names a keyword and its place."""
    return NotEnforced(f"the schema's keyword {keyword!r} cannot be enforced (at {place})", hint=hint)


def exclude_types(types: Sequence[str]) -> list[Case]:
    """The cases of all other types."""
    constants: list[Any] = [] if "null" in types else [None]
    constants += [] if "boolean" in types else [False, True]
    found: list[Case] = [Values(tuple(constants))] if constants else []
    if "number" not in types:
        found.append(Numbers(is_integral=False) if "integer" in types else Numbers())
    return found + [OF_TYPE[name] for name in ("string", "array", "object") if name not in types]


def _list_numbers(part: Part) -> list[Numbers]:
    made: dict[str, Callable[[Fraction], Numbers]] = {
        "minimum": lambda value: Numbers(low=value),
        "maximum": lambda value: Numbers(high=value),
        "exclusiveMinimum": lambda value: Numbers(low=value, is_low_open=True),
        "exclusiveMaximum": lambda value: Numbers(high=value, is_high_open=True),
        "multipleOf": lambda value: Numbers(step=value),
    }
    return [make(exact(part[key])) for key, make in made.items() if key in part]


def _list_strings(part: Part) -> list[Strings]:
    found = [Strings(part.get("minLength", 0), part.get("maxLength"))]
    if "pattern" in part:
        found.append(Strings(patterns=frozenset({Pattern(part["pattern"])})))
    if isinstance(part.get("format"), str) and part["format"] in FORMATS:
        known = FORMATS[part["format"]]
        found.append(Strings(longest=known.longest, patterns=frozenset({Pattern(known.pattern)})))
    return [strings for strings in found if strings != Strings()]


def _list_arrays(part: Part, place: str) -> list[Arrays]:
    first = tuple(to_need(place) for place in part.get("prefixItems", []))
    evaluated = None if "items" in part else len(first)
    rest = to_need(part["items"]) if "items" in part else ANYTHING
    found = [Arrays(first, rest, part.get("minItems", 0), part.get("maxItems"), evaluated=evaluated)]
    if part.get("uniqueItems"):
        found.append(Arrays(unique_at=f"{place}/uniqueItems"))
    if "contains" in part:
        least, most = part.get("minContains", 1), part.get("maxContains")
        count = Count(to_need(part["contains"]), least, most)
        found.append(Arrays(counts=frozenset({count})))
    return [arrays for arrays in found if arrays != Arrays()]


def _list_objects(part: Part) -> list[Objects]:
    found = []
    if {"properties", "patternProperties", "additionalProperties"} & part.keys():
        closed = "additionalProperties" in part
        layer = Layer(
            tuple((name, to_need(place)) for name, place in part.get("properties", {}).items()),
            tuple((pattern, to_need(place)) for pattern, place in part.get("patternProperties", {}).items()),
            to_need(part["additionalProperties"]) if closed else ANYTHING,
            evaluates_rest=closed,
        )
        found.append(Objects((layer,)))
    required = tuple(dict.fromkeys(part.get("required", [])))
    names = to_need(part["propertyNames"]) if "propertyNames" in part else ANYTHING
    found.append(Objects((), required, part.get("minProperties", 0), part.get("maxProperties"), names))
    return [objects for objects in found if objects != Objects()]


def _fail_numbers(part: Part, place: str) -> list[Case]:
    made: dict[str, Callable[[Fraction], Numbers]] = {
        "minimum": lambda value: Numbers(high=value, is_high_open=True),
        "maximum": lambda value: Numbers(low=value, is_low_open=True),
        "exclusiveMinimum": lambda value: Numbers(high=value),
        "exclusiveMaximum": lambda value: Numbers(low=value),
    }
    found: list[Case] = [make(exact(part[key])) for key, make in made.items() if key in part]
    if "multipleOf" in part:
        if part["multipleOf"] != 1:
            raise refuse_keyword("multipleOf", place, "do not use it below not, if and oneOf")
        found.append(Numbers(is_integral=False))
    return found


def _fail_strings(part: Part) -> list[Case]:
    # nothing fails a format, which may be an annotation to whoever reads the answer
    found: list[Case] = []
    if part.get("minLength", 0) > 0:
        found.append(Strings(longest=part["minLength"] - 1))
    if "maxLength" in part:
        found.append(Strings(part["maxLength"] + 1))
    if "pattern" in part:
        found.append(Strings(patterns=frozenset({Pattern(part["pattern"], is_negated=True)})))
    return found


def _fail_arrays(part: Part, place: str) -> list[Case]:
    found: list[Case] = []
    first = part.get("prefixItems", [])
    for index, item in enumerate(first):
        found.append(Arrays((*[ANYTHING] * index, _fails(item)), shortest=index + 1))
    if "items" in part:
        count = Count(_fails(part["items"]), 1, start=len(first))
        found.append(Arrays(counts=frozenset({count})))
    if part.get("minItems", 0) > 0:
        found.append(Arrays(longest=part["minItems"] - 1))
    if "maxItems" in part:
        found.append(Arrays(shortest=part["maxItems"] + 1))
    if "contains" in part:
        least, most, item = part.get("minContains", 1), part.get("maxContains"), to_need(part["contains"])
        found += [Arrays(counts=frozenset({Count(item, 0, least - 1)}))] if least > 0 else []
        found += [Arrays(counts=frozenset({Count(item, most + 1)}))] if most is not None else []
    if part.get("uniqueItems"):
        raise refuse_keyword("uniqueItems", place, "do not use it below not, if and oneOf")
    return found


def _fail_objects(part: Part, place: str) -> list[Case]:
    for key in ("patternProperties", "additionalProperties", "propertyNames"):
        if part.get(key):
            raise refuse_keyword(key, place, "do not use it below not, if and oneOf")
    found: list[Case] = [forbid_property(name) for name in part.get("required", [])]
    for name, inner in part.get("properties", {}).items():
        found.append(Objects((Layer(named=((name, _fails(inner)),), evaluates=False),), (name,)))
    if part.get("minProperties", 0) > 0:
        found.append(Objects(most=part["minProperties"] - 1))
    if "maxProperties" in part:
        found.append(Objects(fewest=part["maxProperties"] + 1))
    return found


def _fails(place: str) -> Need:
    return frozenset({(place, False)})
