"""Run chat templates in jinja2's sandbox, and stop those that work too long. Knows nothing about tokens."""

import json
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn, cast

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from m7b.errors import InvalidConversation

_BUDGET = 1 << 26  # characters that a template may compute in all
_TURN = 512  # characters that one turn of a loop, or one call of a macro, costs


class Program:
    """A chat template in the environment that `transformers` gives it, compiled when it first runs."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._environment = environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.globals["namespace"] = _Namespace
        del environment.globals["lipsum"]  # makes text without measure

    @cached_property
    def _compiled(self) -> Template:
        return self._environment.from_string(self._source)

    def run(self, **variables: Any) -> str:
        """Run the template; returns its text.

        Raises:
            InvalidConversation: the template refuses, or fails.
        """
        self._environment.refill()
        try:
            return self._compiled.render(variables)
        except Exception as error:  # noqa: BLE001 - a template is a program that anyone may have written
            verb = "says" if type(error) is TemplateError else "fails"
            reason = str(error) or type(error).__name__
            raise InvalidConversation("TemplateError", f"the chat template {verb}: {reason}") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox in which a template can neither run nor grow without end.

    jinja2 keeps a template away from the rest of the process, but does not limit its time and memory. So this
    class takes from a budget: the length of every value that the template computes, and a price for every
    turn of a loop and every call of a macro. A single call, `"a".ljust(10**9)`, is counted only afterwards.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=self.weigh)
        self.refill()

    def refill(self) -> None:
        """Let another run begin with the whole budget."""
        self._left = _BUDGET

    def weigh(self, value: Any) -> Any:
        """Take the length of `value` from the budget; returns the value."""
        self._spend(len(value) if isinstance(value, str | list | tuple | dict) else 1)
        return value

    def count_turn(self) -> bool:
        """Take the price of a turn from the budget; returns True."""
        self._spend(_TURN)
        return True

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left * right` or `left ** right`; takes its size from the budget beforehand."""
        match operator, left, right:
            case "**", int(), int():
                self._spend((left.bit_length() * right) ** 2)
            case "*", int(), int():
                self._spend((left.bit_length() + right.bit_length()) ** 2)
            case "*", int(), (str() | list() | tuple()):
                self._spend(len(right) * left)
            case "*", (str() | list() | tuple()), int():
                self._spend(len(left) * right)
        return super().call_binop(context, operator, left, right)

    def _spend(self, amount: int) -> None:
        self._left -= max(amount, 0)
        if self._left < 0:
            raise SecurityError("it makes too much text, or runs too long")

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        _Weighing().visit(source)
        source.set_environment(self)
        return super()._generate(source, *arguments, **options)


class _Weighing(NodeTransformer):
    """Inserts calls of `weigh` and `count_turn` into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count every element, also those that the loop's own condition leaves out."""
        self._visit_body(node)
        if node.test is not None:
            node.test = nodes.And(_make_call("count_turn", node), node.test, lineno=node.lineno)
        return node

    def _visit_body(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_make_call("count_turn", node), lineno=node.lineno))
        return cast(nodes.Node, node)

    def _visit_value(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return _make_call("weigh", node, node)

    def _visit_callee(self, node: Any) -> nodes.Node:
        """Weigh the body only: jinja2 needs the called node itself to stay where it is."""
        node.body = [self.visit(child) for child in node.body]
        return cast(nodes.Node, node)

    visit_Macro = visit_Block = _visit_body
    visit_Concat = visit_Add = visit_Mod = visit_Filter = visit_Call = _visit_value
    visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _visit_callee


def _make_call(name: str, place: nodes.Node, *values: nodes.Expr) -> nodes.Call:
    """Make a call of the environment's method `name` with `values`, on the line of the node `place`."""
    method = nodes.EnvironmentAttribute(name, lineno=place.lineno)
    return nodes.Call(method, list(values), [], None, None, lineno=place.lineno)


class _GenerationBlocks(Extension):
    """Replaces `{% generation %}` blocks, which mark text for training, by their content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> nodes.Node:
        """The block as a scope of its own, as `transformers` has it."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """jinja2's `namespace`, without names that mean something to Python."""

    def __init__(self, /, *fields: Any, **more: Any) -> None:
        for name in dict(*fields, **more):
            _check_name(name)
        super().__init__(*fields, **more)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
