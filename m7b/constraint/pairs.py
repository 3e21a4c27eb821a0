"""Values of arguments that are written one by one, as terminals in llguidance's variant of Lark."""

from collections.abc import Collection, Sequence
from typing import Any

from m7b.constraint.calls import PairTexts, ValueTexts
from m7b.constraint.cases import Numbers, Values
from m7b.constraint.documents import is_number
from m7b.constraint.plans import ListPlan, ObjectPlan, Plan, StatePlan, UniquePlan, spell
from m7b.constraint.strings import Strings, quote, write_strings

_STARTS = {"number": r"/-?[0-9]/", "array": '"["', "object": '"{"'}
_ANY = r"/(?s:.)*/"


def kind_of_value(value: Any) -> str:
    """The JSON type of a value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if is_number(value):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, Sequence) else "object"


def list_kinds(plan: Plan) -> set[str]:
    """List the JSON types of the values of a plan."""
    match plan:
        case Values(values):
            return {kind_of_value(value) for value in values}
        case Numbers():
            return {"number"}
        case Strings():
            return {"string"}
        case ObjectPlan():
            return {"object"}
        case ListPlan() | StatePlan() | UniquePlan():
            return {"array"}


def write_scalars(plans: Collection[Plan], texts: ValueTexts, pairs: PairTexts) -> str:
    """Write the terminal of the strings, and of the single values, that `plans` have; empty without any.

    A string that reads as another value is no string, where such a value may stand in its place.
    """
    kinds = {kind for plan in plans for kind in list_kinds(plan)} & texts.kinds
    words = [
        (kind_of_value(value), word)
        for plan in plans
        if isinstance(plan, Values)
        for value in plan.values
        for word in _spell(value, pairs)
        if kind_of_value(value) in kinds
    ]
    literals = [quote(word) for kind, word in words if kind != "string"]
    options: list[str] = [*literals]
    taken = [*literals, *(f"({start} {_ANY})" for kind, start in _STARTS.items() if kind in kinds)]
    for constant, kind in zip(pairs.words, ("boolean", "boolean", "null"), strict=True):
        taken += [quote(constant)] if kind in kinds else []
    if not pairs.is_quoted and "string" in kinds:
        taken.append(f"({_ANY} {quote(texts.forbidden)} {_ANY})")
        strings = [quote(word) for kind, word in words if kind == "string"]
        strings += [write_strings(plan, is_plain=True) for plan in plans if isinstance(plan, Strings)]
        barrier = " & ".join(f"~({text})" for text in dict.fromkeys(taken))
        options += [f"(({text}) & {barrier})" for text in strings]
    elif "string" in kinds:
        options += [quote(word) for kind, word in words if kind == "string"]
        options += [write_strings(plan) for plan in plans if isinstance(plan, Strings)]
    return " | ".join(dict.fromkeys(options))


def _spell(value: Any, pairs: PairTexts) -> list[str]:
    true, false, null = pairs.words
    if value is None or isinstance(value, bool):
        return [null if value is None else true if value else false]
    return [value] if isinstance(value, str) and not pairs.is_quoted else spell(value)
