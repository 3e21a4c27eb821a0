"""Write the cases of a schema as a grammar in llguidance's variant of Lark.

Each part of JSON is a lexeme of its own: a bracket, a separator, a string, a number. Separators are those of
json.dumps, which wrote the calls that Mistral trained on, and no other whitespace is allowed: an answer
cannot end in endless blanks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, assert_never

from m7b.constraint.calls import PairTexts
from m7b.constraint.cases import NOTHING, Need, Numbers, Values
from m7b.constraint.documents import read_document
from m7b.constraint.expand import Expander
from m7b.constraint.numbers import write_numbers
from m7b.constraint.pairs import list_kinds, write_scalars
from m7b.constraint.plans import (
    Extra,
    ListPlan,
    ObjectPlan,
    Plan,
    StatePlan,
    UniquePlan,
    can_end,
    list_needs,
    make_plan,
    spell,
)
from m7b.constraint.strings import (
    TERMINALS,
    Pattern,
    Strings,
    exclude_strings,
    quote,
    write_json,
    write_strings,
)
from m7b.errors import UsageError

MAX_NEEDS, MAX_RULES = 3_000, 20_000
"""Parts of a schema and rules of its grammar; more would take seconds to compile."""
S = TypeVar("S")
_ROOT: Need = frozenset({("#", True)})
_WORD = "^[A-Za-z_][A-Za-z0-9_.-]*$"  # other names of pairs might hold what follows them
_LETTERS = [f"[{letter}{letter.upper()}]" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["[^a-zA-Z]"]


def write_schema_rules(schema: object, pairs: PairTexts | None = None) -> str:
    """Write a grammar whose rule `json` is valid against `schema`; as an object's `pairs`, where given.

    Raises:
        UsageError: `schema` is none, asks for what cannot be enforced, or nothing satisfies it.
    """
    return _Writer(*_plan_schema(schema), pairs).write()


def find_kinds(schema: object) -> dict[str, frozenset[str]]:
    """Find the JSON types of an object's properties by their names; "" stands for those that have none.

    Raises:
        UsageError: as `write_schema_rules` does.
    """
    plans, satisfied = _plan_schema(schema)
    found: dict[str, frozenset[str]] = {}
    for plan in plans[_ROOT]:
        if isinstance(plan, ObjectPlan):
            named = [(part.name, part.need) for part in plan.properties]
            for name, need in [*named, *(("", extra.need) for extra in plan.extras)]:
                kinds = [kind for below in plans.get(need, []) for kind in list_kinds(below)]
                found[name] = found.get(name, frozenset()).union(kinds if need in satisfied else [])
    return found


def _plan_schema(schema: object) -> tuple[dict[Need, list[Plan]], set[Need]]:
    """Plan all needs of a schema; returns the plans, and the needs that a finite value satisfies."""
    try:
        plans = _plan_all(Expander(read_document(schema)))
    except RecursionError:
        raise UsageError(
            "the schema's allOf, anyOf, oneOf and not are nested too deeply to enforce"
        ) from None
    satisfied = _find_satisfied(plans)
    if _ROOT not in satisfied:
        raise UsageError("nothing satisfies the schema: it contradicts or needs itself")
    return plans, satisfied


def _plan_all(expander: Expander) -> dict[Need, list[Plan]]:
    """Plan the cases of all needs below the root."""
    plans: dict[Need, list[Plan]] = {}
    queue = [_ROOT]
    for need in queue:
        if need in plans or need >= NOTHING:
            continue
        plans[need] = [make_plan(case, expander) for case in expander.expand(need)]
        queue += [below for plan in plans[need] for below in dict.fromkeys(list_needs(plan))]
        if len(plans) > MAX_NEEDS:
            raise UsageError("the schema has too many combinations of parts to enforce", hint="simplify it")
    return plans


def _find_satisfied(plans: dict[Need, list[Plan]]) -> set[Need]:
    """The needs that a finite value satisfies."""
    satisfied: set[Need] = set()
    while True:
        more = {
            need
            for need, options in plans.items()
            if need not in satisfied and any(can_end(plan, satisfied) for plan in options)
        }
        if not more:
            return satisfied
        satisfied |= more


class _Writer:
    """Writes rules; each need becomes one."""

    def __init__(
        self, plans: dict[Need, list[Plan]], satisfied: set[Need], pairs: PairTexts | None = None
    ) -> None:
        self._plans = plans
        self._satisfied = satisfied
        self._pairs = pairs
        self._values: dict[Need, str] = {}
        self._names = {need: f"r{number}" for number, need in enumerate(plans)}
        self._terminals: dict[str, str] = {}
        self._lines: list[str] = []
        self._n_rules = 0

    def write(self) -> str:
        """Write the whole grammar."""
        self._lines.append(f"json: {self._write_pairs(self._pairs) if self._pairs else self._names[_ROOT]}")
        for need, options in self._plans.items():
            if need in self._satisfied:
                usable = [plan for plan in options if can_end(plan, self._satisfied)]
                self.add_line(f"{self._names[need]}: " + " | ".join(map(self._write_plan, usable)))
        terminals = [f"{name}: {expression}" for expression, name in self._terminals.items()]
        return "\n".join([*self._lines, *terminals, TERMINALS])

    def _write_plan(self, plan: Plan) -> str:
        match plan:
            case Values(values):
                texts = dict.fromkeys(text for value in values for text in spell(value))
                return self._name_terminal(" | ".join(map(quote, texts)))
            case Numbers():
                return self._write_numbers(plan)
            case Strings():
                return self.name_strings(plan)
            case ObjectPlan():
                return self._write_object(plan)
            case ListPlan():
                return self._write_list(plan)
            case StatePlan():
                return self._write_counted(plan)
            case UniquePlan():
                return self._write_unique(plan)
            case _:
                assert_never(plan)

    def _write_numbers(self, numbers: Numbers) -> str:
        names = []
        for right in write_numbers(numbers):
            names.append(self.claim_name())
            self.add_line(f"{names[-1]}: {right}")
        return f"({' | '.join(names)})"

    def _write_pairs(self, pairs: PairTexts) -> str:
        """Write the objects that may be the whole, as pairs, of the values that these can write."""
        usable = {need for need in self._satisfied if self._list_values(need, pairs)}
        options = [
            self._write_object(plan, pairs, usable)
            for plan in self._plans[_ROOT]
            if isinstance(plan, ObjectPlan) and can_end(plan, usable)
        ]
        if not options:
            raise UsageError(
                "it needs arguments of a type that the chat template writes in no form that m7b knows",
                hint="leave it out",
            )
        return " | ".join(options)

    def _list_values(self, need: Need, pairs: PairTexts) -> list[str]:
        """List what may stand between a key and the next pair, for all types that `pairs` can write."""
        plans = [plan for plan in self._plans.get(need, []) if can_end(plan, self._satisfied)]
        found = []
        for texts in pairs.values:
            if scalars := write_scalars(plans, texts, pairs):
                terminal = self._name_terminal(f"({scalars}) {texts.stop}".rstrip())
                found.append(f"{texts.before} {terminal} {texts.behind}")
            for plan in plans:
                if not isinstance(plan, Values | Strings) and list_kinds(plan) <= texts.kinds:
                    found.append(f"{texts.before} {self._write_plan(plan)} {texts.stop} {texts.behind}")
        return found

    def _name_value(self, need: Need, pairs: PairTexts) -> str:
        if need not in self._values:
            self._values[need] = self.claim_name()
            self.add_line(f"{self._values[need]}: {' | '.join(self._list_values(need, pairs))}")
        return self._values[need]

    def write_pair(
        self, name: str | Strings, need: Need, pairs: PairTexts | None, known: Sequence[str]
    ) -> str:
        """Write a property of the name, or of any of the names other than `known`."""
        if pairs is None:
            key = quote(write_json(name)) if isinstance(name, str) else self.name_strings(name, known)
            return f'{key} ": " {self.name_need(need)}'
        if isinstance(name, str):
            key = quote(name)
        else:
            words = replace(name, patterns=name.patterns | {Pattern(_WORD)})
            excluded = " | ".join(map(quote, known))
            key = write_strings(words, is_plain=True) + (f" & ~({excluded})" if excluded else "")
            key = self._name_terminal(key)
        return f"{pairs.before} {key} {self._name_value(need, pairs)}"

    def _write_object(
        self, plan: ObjectPlan, pairs: PairTexts | None = None, satisfied: set[Need] | None = None
    ) -> str:
        """Write an object property by property; a state knows how many there were, as far as that matters.

        It is JSON, or as `pairs` say, with values that are `satisfied`.
        """
        satisfied = self._satisfied if satisfied is None else satisfied
        usable = [p for p in plan.properties if p.need in satisfied]
        extras = [extra for extra in plan.extras if extra.need in satisfied]
        n_required = sum(p.is_required for p in usable)
        fewest = plan.fewest if plan.fewest > n_required else 0
        most = plan.most if plan.most is not None and (extras or plan.most < len(usable)) else None
        top = fewest if most is None else most
        ends = _Ends(self, extras, plan.known, fewest, most, pairs)

        def list_steps(state: tuple[int, int, bool]) -> Iterator[tuple[str, tuple[int, int, bool] | None]]:
            index, count, is_first = state
            if index == len(usable):
                yield from ((end, None) for end in ends.list_texts(count, is_first=is_first))
                return
            part = usable[index]
            if most is None or count < most:
                comma = "" if is_first else f"{ends.comma} "
                text = f"{comma}{self.write_pair(part.name, part.need, pairs, ())}"
                yield text, (index + 1, min(count + 1, top), False)
            if not part.is_required:
                yield "", (index + 1, count, is_first)

        return ("" if pairs else '"{" ') + self._write_states((0, 0, True), list_steps)

    def _write_list(self, plan: ListPlan) -> str:
        n_first = len(plan.first)

        def list_steps(index: int) -> Iterator[tuple[str, int | None]]:
            comma = '", " ' if index else ""
            if index < n_first:
                if index >= plan.shortest:
                    yield '"]"', None
                if plan.first[index] in self._satisfied and (plan.longest is None or index < plan.longest):
                    yield f"{comma}{self.name_need(plan.first[index])}", index + 1
                return
            least = max(0, plan.shortest - index)
            most = None if plan.longest is None else plan.longest - index
            rest = self.name_need(plan.rest) if plan.rest in self._satisfied else None
            yield from ((f'{text} "]"', None) for text in _repeat(rest, least, most, is_first=index == 0))

        return f'"[" {self._write_states(0, list_steps)}'

    def _write_counted(self, plan: StatePlan) -> str:
        def list_steps(state: tuple[int, bool]) -> Iterator[tuple[str, tuple[int, bool] | None]]:
            index, is_first = state
            if plan.ends[index]:
                yield '"]"', None
            for need, after in plan.items[index]:
                if need in self._satisfied:
                    yield f"{'' if is_first else comma}{self.name_need(need)}", (after, False)

        comma = '", " '
        return f'"[" {self._write_states((0, True), list_steps)}'

    def _write_unique(self, plan: UniquePlan) -> str:
        """Write items whose bits are not set yet."""
        bits = f"[0:{len(plan.texts)}]"
        last = len(plan.first)
        names = [self.claim_name() for _ in range(last + 2)]
        for index, name in enumerate(names):
            comma = '", " ' if index else ""
            after = names[min(index + 1, last + 1)]
            choices = plan.first[index] if index < last else plan.rest
            options = [f'"]" %if bit_count_ge({bits}, {plan.shortest})']
            for number in choices:
                item = self._name_terminal(" | ".join(map(quote, plan.texts[number])))
                has_room = f"bit_count_lt({bits}, {plan.longest})"
                rule = f"{comma}{item} {after}::set_bit({number}) %if and(bit_clear({number}), {has_room})"
                options.append(rule)
            self.add_line(f"{name}::_ : " + " | ".join(options))
        return f'"[" {names[0]}::0'

    def _write_states(self, start: S, list_steps: Callable[[S], Iterator[tuple[str, S | None]]]) -> str:
        """Write a rule for each state that leads to an end; returns the rule of the first."""
        steps: dict[S, list[tuple[str, S | None]]] = {}
        queue = [start]
        for state in queue:
            if state not in steps:
                steps[state] = list(list_steps(state))
                queue += [after for _, after in steps[state] if after is not None]
                self._check_rules(len(steps))
        live = _find_live(steps)
        assert start in live, "a plan that can end has an end"
        names = {state: self.claim_name() for state in steps if state in live}
        for state, name in names.items():
            kept = [(text, after) for text, after in steps[state] if after is None or after in live]
            options = [f"{text} {names[after]}" if after is not None else text for text, after in kept]
            self.add_line(f"{name}: {' | '.join(options)}")
        return names[start]

    def name_need(self, need: Need) -> str:
        """The rule of a need."""
        return self._names[need]

    def name_strings(self, strings: Strings, excluded: Sequence[str] = ()) -> str:
        """The terminal of strings other than `excluded`."""
        if strings == Strings() and not excluded:
            return "STRING"
        return self._name_terminal(exclude_strings(write_strings(strings), excluded))

    def claim_name(self) -> str:
        """A name that no other rule has."""
        self._n_rules += 1
        self._check_rules(self._n_rules)
        return f"s{self._n_rules}"

    def add_line(self, line: str) -> None:
        """Add a rule."""
        self._lines.append(line)

    def _name_terminal(self, expression: str) -> str:
        return self._terminals.setdefault(expression, f"T{len(self._terminals)}")

    def _check_rules(self, n_rules: int) -> None:
        if n_rules > MAX_RULES:
            raise UsageError("the schema has too many combinations of parts to enforce", hint="simplify it")


class _Ends:
    """How an object ends after its listed properties: with others, as many as are missing at least.

    Other properties could repeat a name, which makes one. Where several are missing, their names begin with
    different letters.
    """

    def __init__(
        self,
        writer: _Writer,
        extras: Sequence[Extra],
        known: Sequence[str],
        fewest: int,
        most: int | None,
        pairs: PairTexts | None,
    ) -> None:
        self._writer = writer
        self._pairs = pairs
        self.comma = pairs.separator if pairs else '", "'
        self._brace = "" if pairs else ' "}"'
        self._extras = extras
        self._known = known
        self._fewest = fewest
        self._most = most
        self._name = self._write_extra() if extras else None

    def list_texts(self, count: int, *, is_first: bool) -> list[str]:
        """List what may follow `count` properties."""
        least = max(0, self._fewest - count)
        most = None if self._most is None else self._most - count
        if least < 2 or self._name is None:
            texts = _repeat(self._name, least, most, is_first=is_first, comma=self.comma)
            return [text + self._brace for text in texts]
        if most is not None and most < least:
            return []
        return [self._write_different(least, most, is_first=is_first)]

    def _write_extra(self, start: str = "") -> str:
        """Write a rule for one other property, whose name begins with `start`, a class of letters."""
        options = []
        for extra in self._extras:
            names = extra.names
            if start:
                names = replace(names, patterns=names.patterns | {Pattern(f"^{start}")})
            options.append(self._writer.write_pair(names, extra.need, self._pairs, self._known))
        name = self._writer.claim_name()
        self._writer.add_line(f"{name}: {' | '.join(options)}")
        return name

    def _write_different(self, least: int, most: int | None, *, is_first: bool) -> str:
        if least > len(_LETTERS):
            raise UsageError(
                f"the schema's minProperties cannot be enforced above {len(_LETTERS)} without names",
                hint="list the properties in 'required'",
            )
        bits = f"[0:{len(_LETTERS)}]"
        first, later = self._writer.claim_name(), self._writer.claim_name()
        pairs = [self._write_extra(letters) for letters in _LETTERS]
        has_more = f"bit_count_lt({bits}, {least})"
        options = [
            f"{self.comma} {pair} {later}::set_bit({bit}) %if and(bit_clear({bit}), {has_more})"
            for bit, pair in enumerate(pairs)
        ]
        most_more = None if most is None else most - least
        (tail,) = _repeat(self._name, 0, most_more, is_first=False, comma=self.comma)
        end = f"{tail}{self._brace} %if bit_count_eq({bits}, {least})"
        self._writer.add_line(f"{later}::_ : {' | '.join(options)} | {end}")
        starts = [f"{pair} {later}::set_bit({bit})" for bit, pair in enumerate(pairs)]
        self._writer.add_line(f"{first}::_ : {' | '.join(starts)}")
        return f"{first}::0" if is_first else f"{later}::0"


def _repeat(
    item: str | None, least: int, most: int | None, *, is_first: bool, comma: str = '", "'
) -> list[str]:
    """Write `least` to `most` items with commas between, and in front unless they come first."""
    if most is not None and most < least:
        return []
    if item is None or most == 0:
        return [""] if least == 0 else []
    if not is_first:
        return [f"({comma} {item}){{{least},{'' if most is None else most}}}"]
    more = (
        f"{item} ({comma} {item}){{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        if most != 1
        else item
    )
    return [more] if least else ["", more]


def _find_live(steps: Mapping[S, Sequence[tuple[str, S | None]]]) -> set[S]:
    """The states that lead to an end."""
    live: set[S] = set()
    while True:
        n_before = len(live)
        for state in reversed([*steps]):  # later states first, as most steps lead forward
            if any(after is None or after in live for _, after in steps[state]):
                live.add(state)
        if len(live) == n_before:
            return live
