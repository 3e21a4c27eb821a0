"""Needs as cases: what is left of all values where some schemas hold and others do not.

Knows the keywords that combine schemas; those that look at one value are in `keywords`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

from m7b.constraint.cases import (
    ANYTHING,
    NOTHING,
    Arrays,
    Case,
    Layer,
    Need,
    Numbers,
    Objects,
    Values,
    contains,
    exact,
    intersect,
    item_at,
)
from m7b.constraint.documents import Document, Part, is_number
from m7b.constraint.keywords import (
    ALL,
    OF_TYPE,
    NotEnforced,
    exclude_types,
    forbid_property,
    list_failed,
    list_satisfied,
    refuse_keyword,
    to_need,
)
from m7b.constraint.strings import Pattern, Strings, match_literally
from m7b.constraint.texts import matches
from m7b.errors import UsageError

MAX_CASES, MAX_WORK = 400, 40_000
"""Cases of one need, and pairs of cases that are compared for a schema: about two seconds."""
_DEPTH = 4  # levels below a case at which it is looked whether anything satisfies it


class Expander:
    """Turns the needs of one document into cases.

    Args:
        document: the schemas by their places.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._known: dict[tuple[str, bool], tuple[Case, ...]] = {}
        self._needs: dict[Need, tuple[Case, ...]] = {}
        self._begun: set[Need] = set()
        self._open: set[tuple[str, bool]] = set()
        self._circles: set[tuple[str, bool]] = set()
        self._work = 0

    def expand(self, need: Need) -> tuple[Case, ...]:
        """The cases of a need; none where nothing satisfies it.

        Raises:
            UsageError: a keyword cannot be enforced, or the cases are too many.
        """
        if need not in self._needs:
            self._begun.add(need)
            cases: Sequence[Case] = ALL
            for place, holds in sorted(need):
                cases = self._cross(cases, self._expand_place(place, holds))
            self._needs[need] = tuple(cases)
            self._begun.discard(need)
        return self._needs[need]

    def is_empty(self, need: Need, depth: int = _DEPTH) -> bool:
        """Whether surely nothing satisfies `need`."""
        if need >= NOTHING:
            return True
        if depth == 0 or need == ANYTHING or need in self._begun or need & self._open:
            return False
        try:
            return all(self._is_empty_case(case, depth) for case in self.expand(need))
        except NotEnforced:
            return False

    def find_property(self, objects: Objects, name: str) -> Need:
        """What the property `name` of an object needs."""
        if not self.has_text(objects.names, name):
            return NOTHING
        return ANYTHING.union(*(self._look_up(layer, name) for layer in objects.layers))

    def has_text(self, need: Need, text: str) -> bool:
        """Whether the string `text` satisfies `need`."""
        return need == ANYTHING or any(contains(case, text) for case in self.expand(need))

    def _look_up(self, layer: Layer, name: str) -> Need:
        found = [need for known, need in layer.named if known == name]
        found += [need for pattern, need in layer.matching if self._matches(pattern, name)]
        return ANYTHING.union(*found) if found else layer.rest

    def _matches(self, pattern: str, name: str) -> bool:
        return matches(Strings(patterns=frozenset({Pattern(pattern)})), name)

    def _is_empty_case(self, case: Case, depth: int) -> bool:
        match case:
            case Objects(required=required):
                return any(self.is_empty(self.find_property(case, name), depth - 1) for name in required)
            case Arrays(shortest=shortest):
                n_items = min(shortest, len(case.first) + 1)
                return any(self.is_empty(item_at(case, i), depth - 1) for i in range(n_items))
            case _:
                return False

    def _cross(self, first: Iterable[Case], second: Iterable[Case]) -> list[Case]:
        """The cases that are in one of `first` and one of `second`."""
        second = list(second)
        found: dict[Case, None] = {}
        for a in first:
            for b in second:
                self._work += 1
                both = intersect(a, b)
                if both is not None and not self._is_empty_case(both, 2):
                    found[both] = None
            if len(found) > MAX_CASES or self._work > MAX_WORK:
                raise UsageError(
                    "the schema has too many combinations of options to enforce",
                    hint="use fewer anyOf, oneOf, if and not beside each other",
                )
        return list(found)

    def _expand_place(self, place: str, holds: bool) -> tuple[Case, ...]:
        key = (place, holds)
        if key in self._open:
            self._circles.add(key)
            return ()
        if key not in self._known:
            self._open.add(key)
            try:
                part = self._document.parts[place]
                self._known[key] = tuple(self._satisfy(part, place) if holds else self._fail(part, place))
            finally:
                self._open.discard(key)
            if key in self._circles and not self._known[key]:
                raise UsageError(f"nothing satisfies the schema: {place} needs itself")
        return self._known[key]

    # Each keyword satisfied

    def _satisfy(self, part: Part, place: str) -> list[Case]:
        cases = list(ALL)
        if "type" in part:
            types = part["type"] if isinstance(part["type"], list) else [part["type"]]
            types = [name for name in types if name != "integer" or "number" not in types]
            cases = [OF_TYPE[name] for name in dict.fromkeys(types)]
        if "enum" in part:
            values = dict.fromkeys((isinstance(value, bool), value) for value in part["enum"])
            cases = self._cross(cases, [Values(tuple(value for _, value in values))] if values else [])
        for case in list_satisfied(part, place):
            cases = self._narrow(cases, case)
        for options in self._list_options(part, place):
            cases = self._cross(cases, options)
        return self._close_unevaluated(part, cases, place)

    def _narrow(self, cases: Iterable[Case], narrower: Case) -> list[Case]:
        """Keep what is of another kind than `narrower`, or in it."""
        found: list[Case] = []
        for case in cases:
            if isinstance(case, Values):
                kept = tuple(v for v in case.values if not _is_kind(v, narrower) or contains(narrower, v))
                found += [Values(kept)] if kept else []
            elif type(case) is type(narrower):
                found += self._cross([case], [narrower])
            else:
                found.append(case)
        return found

    def _list_options(self, part: Part, place: str) -> Iterable[Sequence[Case]]:
        """Yield, for each keyword that combines schemas, the cases that it leaves."""
        for key in ["$ref"] if "$ref" in part else []:
            yield self._expand_place(part[key], True)
        for inner in part.get("allOf", []):
            yield self._expand_place(inner, True)
        if "anyOf" in part:
            yield self._unite(self._expand_place(option, True) for option in part["anyOf"])
        if "oneOf" in part:
            yield self._choose_one(part["oneOf"], place)
        if "not" in part:
            yield self._expand_place(part["not"], False)
        if "if" in part and {"then", "else"} & part.keys():
            yield self._unite(
                self.expand(
                    frozenset({(part["if"], holds), *((part[key], True) for key in [then] if key in part)})
                )
                for then, holds in (("then", True), ("else", False))
            )
        for name, names in part.get("dependentRequired", {}).items():
            with_all = Objects(required=tuple(dict.fromkeys((*names, name))))
            yield [*_without(Objects), forbid_property(name), with_all]
        for name, inner in part.get("dependentSchemas", {}).items():
            having = self._cross([Objects(required=(name,))], self._expand_place(inner, True))
            yield [*_without(Objects), forbid_property(name), *having]

    def _unite(self, options: Iterable[Iterable[Case]]) -> list[Case]:
        found = list(dict.fromkeys(case for option in options for case in option))
        plain = [case for case in found if isinstance(case, Values)]
        values = dict.fromkeys((isinstance(v, bool), v) for case in plain for v in case.values)
        rest = [case for case in found if not isinstance(case, Values)]
        return [*([Values(tuple(v for _, v in values))] if values else []), *rest]

    def _choose_one(self, options: Sequence[str], place: str) -> list[Case]:
        """The cases that are in one option and in no other."""
        expanded = [self._expand_place(option, True) for option in options]
        found: list[Case] = []
        for index, cases in enumerate(expanded):
            for case in cases:
                kept: list[Case] = [case]
                for other, option in enumerate(options):
                    if other != index and self._cross([case], expanded[other]):
                        kept = self._cross(kept, self._fail_option(option, f"{place}/oneOf"))
                found += kept
        return list(dict.fromkeys(found))

    def _fail_option(self, option: str, place: str) -> tuple[Case, ...]:
        try:
            return self._expand_place(option, False)
        except NotEnforced as error:
            raise NotEnforced(
                f"the schema's keyword 'oneOf' cannot be enforced (at {place}): options may hold together",
                hint="use anyOf, or give the options a property with different values",
            ) from error

    def _close_unevaluated(self, part: Part, cases: list[Case], place: str) -> list[Case]:
        """Apply what `part` says about properties and items that no other keyword looked at."""
        if "unevaluatedProperties" in part:
            need = to_need(part["unevaluatedProperties"])
            cases = [
                replace(case, layers=(*case.layers, _make_last_layer(case, need)))
                if isinstance(case, Objects)
                else case
                for case in cases
            ]
        if "unevaluatedItems" in part:
            need = to_need(part["unevaluatedItems"])
            cases = [closed for case in cases for closed in self._close_items(case, need, place)]
        return cases

    def _close_items(self, case: Case, need: Need, place: str) -> list[Case]:
        if not isinstance(case, Arrays):
            return [case]
        if case.counts and case.evaluated is not None:
            raise refuse_keyword("unevaluatedItems", place, "write items")
        if case.evaluated is not None:
            first = tuple(item_at(case, i) for i in range(case.evaluated))
            rest = Arrays((ANYTHING,) * len(first), need, evaluated=None)
            return self._cross([case], [rest])
        return [case]

    # Each keyword failed

    def _fail(self, part: Part, place: str) -> list[Case]:
        """The cases in which a keyword of `part` does not hold."""
        found: list[Case] = []
        if "type" in part:
            found += exclude_types(part["type"] if isinstance(part["type"], list) else [part["type"]])
        if "enum" in part:
            found += self._exclude_values(part["enum"], place)
        found += list_failed(part, place)
        found += self._fail_options(part)
        for key in ("unevaluatedProperties", "unevaluatedItems"):
            if key in part and not self.is_anything(part[key]):
                raise refuse_keyword(key, place, "do not use it below not, if and oneOf")
        return self._unite([map(_forget_evaluated, found)])

    def is_anything(self, place: str) -> bool:
        """Whether a schema says nothing."""
        return not self._document.parts[place]

    def _exclude_values(self, values: Sequence[Any], place: str) -> list[Case]:
        constants = tuple(value for value in (None, False, True) if not any(value is v for v in values))
        texts = [value for value in values if isinstance(value, str)]
        strings = Strings()
        if texts:
            strings = Strings(patterns=frozenset({Pattern(match_literally(texts), is_negated=True)}))
        numbers = sorted({exact(value) for value in values if is_number(value)})
        edges = [None, *numbers, None]
        gaps = [Numbers(low, high, low is not None, high is not None) for low, high in pairwise(edges)]
        return [*([Values(constants)] if constants else []), *gaps, strings, Arrays(), Objects()]

    def _fail_options(self, part: Part) -> list[Case]:
        found: list[Case] = []
        if "$ref" in part:
            found += self._expand_place(part["$ref"], False)
        for inner in part.get("allOf", []):
            found += self._expand_place(inner, False)
        if "anyOf" in part:
            found += self.expand(frozenset((option, False) for option in part["anyOf"]))
        if "oneOf" in part:
            found += self.expand(frozenset((option, False) for option in part["oneOf"]))
            for pair in combinations(part["oneOf"], 2):
                found += self.expand(frozenset((option, True) for option in pair))
        if "not" in part:
            found += self._expand_place(part["not"], True)
        if "if" in part:
            for key, holds in (("then", True), ("else", False)):
                if key in part:
                    found += self.expand(frozenset({(part["if"], holds), (part[key], False)}))
        for name, names in part.get("dependentRequired", {}).items():
            for needed in names:
                found += self._cross([Objects(required=(name,))], [forbid_property(needed)])
        for name, inner in part.get("dependentSchemas", {}).items():
            found += self._cross([Objects(required=(name,))], self._expand_place(inner, False))
        return found


def _without(kind: type) -> list[Case]:
    return [case for case in ALL if not isinstance(case, kind)]


def _forget_evaluated(case: Case) -> Case:
    """What holds because something else fails counts as not looked at."""
    match case:
        case Arrays():
            return replace(case, evaluated=0)
        case Objects(layers):
            return replace(case, layers=tuple(replace(layer, evaluates=False) for layer in layers))
        case _:
            return case


def _is_kind(value: Any, case: Case) -> bool:
    """Whether a value is of the type of which `case` knows some."""
    match case:
        case Numbers():
            return is_number(value)
        case Strings():
            return isinstance(value, str)
        case _:
            return False


def _make_last_layer(case: Objects, need: Need) -> Layer:
    """A layer for the properties that no layer of `case` has evaluated."""
    layers = [layer for layer in case.layers if layer.evaluates]
    if any(layer.evaluates_rest for layer in layers):
        return Layer(evaluates_rest=True)
    named = dict.fromkeys(name for layer in layers for name, _ in layer.named)
    matching = dict.fromkeys(pattern for layer in layers for pattern, _ in layer.matching)
    return Layer(
        tuple((name, ANYTHING) for name in named),
        tuple((pattern, ANYTHING) for pattern in matching),
        need,
        evaluates_rest=True,
    )
