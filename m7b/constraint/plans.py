"""Plans: arrays and objects as what is written one after the other, before it is a grammar.

Knows which properties an object lists in which order, which other names may follow, and which items an array
may have where. A plan may need what nothing satisfies; whoever writes it leaves that out.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, assert_never

from m7b.constraint.cases import (
    ANYTHING,
    NOTHING,
    Arrays,
    Case,
    Need,
    Numbers,
    Objects,
    Values,
    WholeNumber,
    intersect,
    item_at,
)
from m7b.constraint.documents import is_number
from m7b.constraint.expand import Expander
from m7b.constraint.keywords import NotEnforced
from m7b.constraint.numbers import write_numbers
from m7b.constraint.strings import Pattern, Strings, write_json
from m7b.constraint.texts import has_strings
from m7b.errors import UsageError

MAX_UNIQUE = 60
"""Values that items which must differ may have; a grammar remembers each in a bit."""
_MAX_STATES, _MAX_CELLS = 2_000, 64


@dataclass(frozen=True, slots=True)
class Property:
    """A property that is written at its place, if at all."""

    name: str
    need: Need
    is_required: bool


@dataclass(frozen=True, slots=True)
class Extra:
    """Properties with any other name in `names`."""

    names: Strings
    need: Need


@dataclass(frozen=True, slots=True)
class ObjectPlan:
    """Properties in their order, then others; from `fewest` to `most` of all of them."""

    properties: tuple[Property, ...]
    extras: tuple[Extra, ...]
    fewest: int
    most: int | None
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListPlan:
    """Items in their order, then more of one kind."""

    first: tuple[Need, ...]
    rest: Need
    shortest: int
    longest: int | None


@dataclass(frozen=True, slots=True)
class StatePlan:
    """States of an array that is being written: whether it may end there, and which items lead where."""

    ends: tuple[bool, ...]
    items: tuple[tuple[tuple[Need, int], ...], ...]


@dataclass(frozen=True, slots=True)
class UniquePlan:
    """Items that differ, by their JSON texts; `first` and `rest` are numbers of `texts`."""

    texts: tuple[tuple[str, ...], ...]
    first: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]
    shortest: int
    longest: int | None


Plan = Values | Numbers | Strings | ObjectPlan | ListPlan | StatePlan | UniquePlan


def make_plan(case: Case, expander: Expander) -> Plan:
    """Plan how the values of a case are written.

    Raises:
        UsageError: a keyword cannot be enforced.
    """
    match case:
        case Objects():
            return _plan_object(case, expander)
        case Arrays(unique_at=at) if at and (case.longest is None or case.longest > 1):
            return _plan_unique(case, expander)
        case Arrays(counts=counts) if counts:
            return _plan_states(case, expander)
        case Arrays():
            return ListPlan(case.first, case.rest, case.shortest, case.longest)
        case _:
            return case


def list_needs(plan: Plan) -> Iterator[Need]:
    """Yield the needs of all parts of a plan."""
    match plan:
        case ObjectPlan():
            yield from (part.need for part in plan.properties)
            yield from (extra.need for extra in plan.extras)
        case ListPlan():
            yield from (*plan.first, plan.rest)
        case StatePlan():
            yield from (need for edges in plan.items for need, _ in edges)
        case Values() | Numbers() | Strings() | UniquePlan():
            return
        case _:
            assert_never(plan)


def can_end(plan: Plan, satisfied: set[Need]) -> bool:
    """Whether a plan has a value, given the needs that have one."""
    match plan:
        case ObjectPlan():
            usable = [p for p in plan.properties if p.need in satisfied]
            has_required = all(p.need in satisfied for p in plan.properties if p.is_required)
            has_extras = any(extra.need in satisfied for extra in plan.extras)
            return has_required and (has_extras or len(usable) >= plan.fewest)
        case ListPlan():
            n_items = min(plan.shortest, len(plan.first) + 1)
            return all(need in satisfied for need in [*plan.first, plan.rest][:n_items])
        case StatePlan():
            return 0 in find_live_states(plan, satisfied)
        case UniquePlan():
            return plan.longest is None or plan.shortest <= plan.longest
        case Numbers():
            return write_numbers(plan) != []
        case Values() | Strings():
            return True
        case _:
            assert_never(plan)


def find_live_states(plan: StatePlan, satisfied: set[Need]) -> set[int]:
    """The states from which the array can end."""
    live = {state for state, is_end in enumerate(plan.ends) if is_end}
    while True:
        more = {
            state
            for state, edges in enumerate(plan.items)
            if state not in live and any(to in live and need in satisfied for need, to in edges)
        }
        if not more:
            return live
        live |= more


def _plan_object(case: Objects, expander: Expander) -> ObjectPlan:
    allowed = [Strings()] if case.names == ANYTHING else list(expander.expand(case.names))
    names = dict.fromkeys(name for layer in case.layers for name, _ in layer.named)
    names |= dict.fromkeys(case.required)
    for possible in allowed:
        if isinstance(possible, Values):
            names |= dict.fromkeys(value for value in possible.values if isinstance(value, str))
    found = [Property(name, expander.find_property(case, name), name in case.required) for name in names]
    properties = [p for p in found if p.is_required or not p.need >= NOTHING]
    most = case.most
    has_room = most is None or most > sum(p.is_required for p in properties)
    cells = _list_cells(case) if has_room else []
    extras = [
        Extra(both, need)
        for cell, need in cells
        for possible in allowed
        if isinstance(possible, Strings) and isinstance(both := intersect(cell, possible), Strings)
    ]
    return ObjectPlan(tuple(properties), tuple(extras), case.fewest, most, tuple(names))


def _list_cells(case: Objects) -> list[tuple[Strings, Need]]:
    """Divide names by the patterns that they match; returns each part with what a property there needs."""
    cells: list[frozenset[Pattern]] = [frozenset()]
    for regex in dict.fromkeys(regex for layer in case.layers for regex, _ in layer.matching):
        halves = [cell | {Pattern(regex, sign)} for cell in cells for sign in (False, True)]
        cells = [half for half in halves if has_strings(Strings(patterns=half))]
        if len(cells) > _MAX_CELLS:
            raise UsageError("the schema's patternProperties overlap in too many ways to enforce")
    found = []
    for cell in cells:
        matched = {pattern.regex for pattern in cell if not pattern.is_negated}
        needs = []
        for layer in case.layers:
            here = [need for regex, need in layer.matching if regex in matched]
            needs += here or [layer.rest]
        need = ANYTHING.union(*needs)
        if not need >= NOTHING:
            found.append((Strings(patterns=cell), need))
    return found


def _plan_states(case: Arrays, expander: Expander) -> StatePlan:
    """Count, item by item, how many satisfy each of `counts`."""
    counts = sorted(case.counts, key=lambda count: (sorted(count.item), count.least))
    n_last = max(
        len(case.first), case.shortest if case.longest is None else case.longest, *(c.start for c in counts)
    )
    start = (0, *(0 for _ in counts))
    states, edges = {start: 0}, []
    queue = [start]
    for state in queue:
        index, *seen = state
        found: dict[tuple[Need, int], None] = {}
        if case.longest is None or index < case.longest:
            for is_counted in product((False, True), repeat=len(counts)):
                step = _count_item(case, counts, seen, index, is_counted)
                if step is None or expander.is_empty(step[0]):
                    continue
                after = (min(index + 1, n_last), *step[1])
                if after not in states:
                    states[after] = len(states)
                    queue.append(after)
                found[step[0], states[after]] = None
        edges.append(tuple(found))
        if len(states) > _MAX_STATES:
            raise UsageError(
                "the schema's contains counts too many items to enforce", hint="lower its bounds"
            )
    ends = tuple(
        state[0] >= min(case.shortest, n_last)
        and all(n >= c.least for n, c in zip(state[1:], counts, strict=True))
        for state in states
    )
    return StatePlan(ends, tuple(edges))


def _count_item(
    case: Arrays, counts: Sequence[Any], seen: Sequence[int], index: int, is_counted: Sequence[bool]
) -> tuple[Need, list[int]] | None:
    """What the next item needs to be counted like this, and the counts behind it; None if it cannot be."""
    need, after = item_at(case, index), []
    for count, n, counted in zip(counts, seen, is_counted, strict=True):
        is_done = index < count.start or (count.most is None and n >= count.least)
        if counted and (is_done or n == count.most):
            return None
        if counted:
            need |= count.item
        elif not is_done and count.most is not None:
            need |= (
                frozenset((place, not holds) for place, holds in count.item)
                if len(count.item) == 1
                else NOTHING
            )
        after.append(n + counted)
    return need, after


def _plan_unique(case: Arrays, expander: Expander) -> Plan:
    hint = "give its items an enum, or leave it out"
    if case.counts:
        raise NotEnforced(
            f"'uniqueItems' beside 'contains' cannot be enforced (at {case.unique_at})", hint=hint
        )
    is_closed = case.longest is not None and case.longest <= len(case.first)
    listed = [list_values(need, expander) for need in (*case.first, *([] if is_closed else [case.rest]))]
    known: dict[str, list[str]] = {}
    for values in listed:
        if values is None:
            if is_closed and _are_apart(case.first, expander):
                return ListPlan(case.first, NOTHING, case.shortest, case.longest)
            raise NotEnforced(
                f"the schema's keyword 'uniqueItems' cannot be enforced (at {case.unique_at}): "
                "its items have too many values to remember",
                hint=hint,
            )
        for key, text in values:
            known.setdefault(key, []).append(text)
    if len(known) > MAX_UNIQUE:
        raise NotEnforced(
            f"the schema's keyword 'uniqueItems' cannot be enforced (at {case.unique_at}) for {len(known)} "
            f"values, m7b takes {MAX_UNIQUE}",
            hint="leave it out",
        )
    numbers = {key: number for number, key in enumerate(known)}
    choices = [tuple(dict.fromkeys(numbers[key] for key, _ in values or ())) for values in listed]
    rest = () if is_closed else choices[-1]
    first = tuple(choices if is_closed else choices[:-1])
    longest = min(len(known), case.longest if case.longest is not None else len(known))
    texts = tuple(tuple(dict.fromkeys(known[key])) for key in known)
    return UniquePlan(texts, first, rest, case.shortest, longest)


def _are_apart(needs: Sequence[Need], expander: Expander) -> bool:
    """Whether no value satisfies two of `needs`."""
    pairs = [(a, b) for i, a in enumerate(needs) for b in needs[i + 1 :]]
    return all(expander.is_empty(a | b) for a, b in pairs)


def list_values(need: Need, expander: Expander) -> list[tuple[str, str]] | None:
    """List the values of a need: keys, the same for equal values, and JSON texts; None if too many."""
    found: dict[tuple[str, str], None] = {}
    if need >= NOTHING:
        return []
    for case in expander.expand(need):
        values = _list_case(case, expander)
        if values is None or len(found) + len(values) > 2 * MAX_UNIQUE:
            return None
        found |= dict.fromkeys(values)
    return list(found)


def _list_case(case: Case, expander: Expander) -> list[tuple[str, str]] | None:
    match case:
        case Values(values):
            return [(make_key(value), text) for value in values for text in spell(value)]
        case Numbers(low, high, is_integral=True, step=step):
            if low is None or high is None or step is None or high - low > MAX_UNIQUE * step:
                return None
            first = -(-low // step) * step
            candidates = [first + i * step for i in range(int((high - low) / step) + 2)]
            lower = [n for n in candidates if n > low or (n == low and not case.is_low_open)]
            kept = [int(n) for n in lower if n < high or (n == high and not case.is_high_open)]
            return [(make_key(n), write_json(n)) for n in kept]
        case Arrays(first, _, shortest, longest) if shortest == longest == len(first) and not case.counts:
            parts = [list_values(need, expander) for need in first]
            return None if case.unique_at else _combine(parts, "[", "]", [""] * len(first))
        case Objects(required=required, most=most) if most == len(required):
            order = [name for layer in case.layers for name, _ in layer.named if name in required]
            names = list(dict.fromkeys((*order, *required)))
            parts = [list_values(expander.find_property(case, name), expander) for name in names]
            return _combine(parts, "{", "}", [f"{write_json(name)}: " for name in names])
        case _:
            return None


def _combine(
    parts: Sequence[list[tuple[str, str]] | None], left: str, right: str, labels: Sequence[str]
) -> list[tuple[str, str]] | None:
    """All arrays or objects of these parts."""
    if any(part is None for part in parts) or math.prod(len(part or ()) for part in parts) > 2 * MAX_UNIQUE:
        return None
    found = []
    for values in product(*(part for part in parts if part is not None)):
        keys = [label + key for label, (key, _) in zip(labels, values, strict=True)]
        texts = [label + text for label, (_, text) in zip(labels, values, strict=True)]
        # the order of properties does not matter, that of items does
        key = left + ", ".join(sorted(keys) if left == "{" else keys) + right
        found.append((key, left + ", ".join(texts) + right))
    return found


def make_key(value: Any) -> str:
    """A text that is the same for values that are the same in JSON."""
    if is_number(value) and value == int(value):
        value = int(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def spell(value: bool | int | float | str | None) -> list[str]:
    """The JSON texts of a value: whole numbers have two, but where they must be integers."""
    if not is_number(value):
        return [write_json(value)]
    assert isinstance(value, int | float)
    if isinstance(value, WholeNumber):
        return [str(value)]
    whole = [str(int(value)), f"{int(value)}.0"] if value == int(value) else []
    own = json.dumps(value)
    return list(dict.fromkeys([own, *whole]))
