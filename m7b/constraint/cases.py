"""Cases: sets of values of one type, and what two of them have in common.

What is inside of an array or an object is a `Need`: schemas that it satisfies or fails, by their places.
Knows nothing about how a schema becomes cases.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any, assert_never

from m7b.constraint.documents import FALSE, is_number
from m7b.constraint.strings import Strings
from m7b.constraint.texts import has_strings, matches

Need = frozenset[tuple[str, bool]]
"""Places of schemas, each with whether a value satisfies or fails it; all of them hold."""
ANYTHING: Need = frozenset()
NOTHING: Need = frozenset({(FALSE, True)})


class WholeNumber(int):
    """An integer of a type that has no other numbers: it is written as 1, never as 1.0."""


@dataclass(frozen=True, slots=True)
class Values:
    """Some of null, booleans, numbers and strings."""

    values: tuple[bool | int | float | str | None, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers between two bounds; an open bound is none of them.

    They are multiples of `step`. `is_integral` says whether they are integers (True), are not (False), or may
    be either.
    """

    low: Fraction | None = None
    high: Fraction | None = None
    is_low_open: bool = False
    is_high_open: bool = False
    step: Fraction | None = None
    is_integral: bool | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """How many items from the place `start` on satisfy `item`."""

    item: Need
    least: int
    most: int | None = None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Arrays:
    """Arrays: what the first items are, and each one after them.

    `unique_at` is the place of a keyword that demands different items, empty where there is none. `evaluated`
    items were looked at by a keyword; None is all of them.
    """

    first: tuple[Need, ...] = ()
    rest: Need = ANYTHING
    shortest: int = 0
    longest: int | None = None
    counts: frozenset[Count] = frozenset()
    unique_at: str = ""
    evaluated: int | None = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """What one schema says about properties: by name, by pattern, and about each of the others.

    `evaluates` tells whether these are properties that `unevaluatedProperties` passes over.
    """

    named: tuple[tuple[str, Need], ...] = ()
    matching: tuple[tuple[str, Need], ...] = ()
    rest: Need = ANYTHING
    evaluates: bool = True
    evaluates_rest: bool = False


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects that keep to all `layers`, and whose names satisfy `names`."""

    layers: tuple[Layer, ...] = ()
    required: tuple[str, ...] = ()
    fewest: int = 0
    most: int | None = None
    names: Need = ANYTHING


Case = Values | Numbers | Strings | Arrays | Objects


def intersect(a: Case, b: Case) -> Case | None:
    """The values that are in both, None where there are none."""
    match a, b:
        case Values(), _:
            kept = tuple(value for value in a.values if contains(b, value))
            if isinstance(b, Numbers) and b.is_integral:
                kept = tuple(WholeNumber(value or 0) for value in kept)
            return Values(kept) if kept else None
        case _, Values():
            return intersect(b, a)
        case Numbers(), Numbers():
            return _intersect_numbers(a, b)
        case Strings(), Strings():
            if Strings() in (a, b):
                return b if a == Strings() else a
            longest = _least(a.longest, b.longest)
            found = Strings(max(a.shortest, b.shortest), longest, a.patterns | b.patterns)
            return found if has_strings(found) else None
        case Arrays(), Arrays():
            return _intersect_arrays(a, b)
        case Objects(), Objects():
            return _intersect_objects(a, b)
        case _:
            return None


def contains(case: Case, value: Any) -> bool:
    """Whether a value that is no array or object is in `case`."""
    match case:
        case Values(values):
            return any(is_same(value, other) for other in values)
        case Numbers():
            return is_number(value) and _has_number(case, exact(value))
        case Strings(shortest, longest, patterns):
            fits = isinstance(value, str) and shortest <= len(value) <= (
                longest or len(value) * (longest != 0)
            )
            return fits and (not patterns or matches(case, value))
        case Arrays() | Objects():
            return False
        case _:
            assert_never(case)


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are the same in JSON, where 1 is 1.0 and no boolean."""
    return a == b and isinstance(a, bool) is isinstance(b, bool)


def exact(number: float) -> Fraction:
    """The number that was written, not the float nearest to it."""
    return Fraction(str(number))


def has_values(numbers: Numbers) -> bool:
    """Whether there is a number between the bounds."""
    low, high = numbers.low, numbers.high
    if low is None or high is None:
        return True
    if numbers.step is None:
        return low < high or (low == high and not (numbers.is_low_open or numbers.is_high_open))
    first = -(-low // numbers.step) * numbers.step
    if numbers.is_low_open and first == low:
        first += numbers.step
    return first < high or (first == high and not numbers.is_high_open)


def _has_number(numbers: Numbers, value: Fraction) -> bool:
    above = numbers.low is None or (value > numbers.low if numbers.is_low_open else value >= numbers.low)
    below = numbers.high is None or (value < numbers.high if numbers.is_high_open else value <= numbers.high)
    is_multiple = numbers.step is None or value % numbers.step == 0
    return above and below and is_multiple and numbers.is_integral in (None, value.denominator == 1)


def _intersect_numbers(a: Numbers, b: Numbers) -> Numbers | None:
    if None not in (a.is_integral, b.is_integral) and a.is_integral is not b.is_integral:
        return None
    is_integral = a.is_integral if a.is_integral is not None else b.is_integral
    step = _join_steps(a.step, b.step)
    if is_integral is False and step is not None and step.denominator == 1:
        return None
    low, is_low_open = max(
        (numbers.low, numbers.is_low_open) for numbers in (a, b) if numbers.low is not None
    ) if (a.low, b.low) != (None, None) else (None, False)  # fmt: skip
    high, is_closed = min(
        (numbers.high, not numbers.is_high_open) for numbers in (a, b) if numbers.high is not None
    ) if (a.high, b.high) != (None, None) else (None, True)  # fmt: skip
    found = Numbers(low, high, is_low_open, not is_closed, step, is_integral)
    return found if has_values(found) else None


def _join_steps(a: Fraction | None, b: Fraction | None) -> Fraction | None:
    if a is None or b is None:
        return a or b
    return Fraction(lcm(a.numerator, b.numerator), gcd(a.denominator, b.denominator))


def _intersect_arrays(a: Arrays, b: Arrays) -> Arrays | None:
    n_first = max(len(a.first), len(b.first))
    longest = _least(a.longest, b.longest)
    first = tuple(item_at(a, i) | item_at(b, i) for i in range(n_first))
    for index, need in enumerate(first):
        if need >= NOTHING:
            longest = _least(longest, index)
            break
    if a.rest | b.rest >= NOTHING:
        longest = _least(longest, n_first)
    evaluated = None if None in (a.evaluated, b.evaluated) else max(a.evaluated or 0, b.evaluated or 0)
    found = Arrays(
        first,
        a.rest | b.rest,
        max(a.shortest, b.shortest),
        longest,
        a.counts | b.counts,
        a.unique_at or b.unique_at,
        evaluated,
    )
    return found if found.longest is None or found.shortest <= found.longest else None


def item_at(arrays: Arrays, index: int) -> Need:
    """What the item at `index` needs."""
    return arrays.first[index] if index < len(arrays.first) else arrays.rest


def _intersect_objects(a: Objects, b: Objects) -> Objects | None:
    found = Objects(
        tuple(dict.fromkeys((*a.layers, *b.layers))),
        tuple(dict.fromkeys((*a.required, *b.required))),
        max(a.fewest, b.fewest),
        _least(a.most, b.most),
        a.names | b.names,
    )
    if found.most is not None and max(found.fewest, len(found.required)) > found.most:
        return None
    closed = {name for layer in found.layers for name, need in layer.named if need >= NOTHING}
    return None if closed & {*found.required} else found


def _least(a: int | None, b: int | None) -> int | None:
    return min((bound for bound in (a, b) if bound is not None), default=None)
