"""Tools offered to a model: how its calls are told from text, and what keeps them valid.

Knows templates, tokenizers and grammars; nothing about what tools do, nor who runs them.
"""

from dataclasses import dataclass

from m7b.calls import build_calls_schema
from m7b.constraint import CallsOrText, Grammar, JsonSchema, compile_constraint
from m7b.errors import UsageError
from m7b.generation import Constraint, Matcher
from m7b.stream import CallSyntax
from m7b.templates import Template, Tools
from m7b.tokenizer import Tokenizer

AUTO, ANY, NONE = "auto", "any", "none"
"""What the model may choose: to call or not, which tool to call, or not to call. Else the name of a tool."""

_CALL_TOKEN = "[TOOL_CALLS]"
_PROBE = {
    "type": "function",
    "function": {"name": "probe", "description": "", "parameters": {"type": "object"}},
}


@dataclass(frozen=True, slots=True)
class Offer:
    """Tools in OpenAI's shape, what the model may choose, and whether its calls are kept valid."""

    tools: Tools
    choice: str = AUTO
    is_constrained: bool = True

    def __post_init__(self) -> None:
        if self.choice not in (AUTO, ANY, NONE, *self.names):
            raise UsageError(
                f"the tool choice is {self.choice!r}",
                hint=f"it can be auto, any, none, {', '.join(self.names)}",
            )
        if self.choice not in (AUTO, NONE) and not self.is_constrained:
            raise UsageError("only a constraint makes a model call a tool", hint="leave out --no-constrain")

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return [tool["function"]["name"] for tool in self.tools]

    def syntax(self, tokenizer: Tokenizer) -> CallSyntax | None:
        """How calls are told from text, None where there are to be none."""
        if self.choice == NONE:
            return None
        call_id = tokenizer.controls.get(_CALL_TOKEN)
        in_text = call_id is None or not self.is_constrained
        return CallSyntax(call_id, in_text, frozenset() if self.is_constrained else frozenset(self.names))

    def constraint(
        self, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: frozenset[int]
    ) -> Constraint | None:
        """What keeps the calls valid, None where nothing has to."""
        call_id = tokenizer.controls.get(_CALL_TOKEN)
        if self.choice == NONE:
            return None if call_id is None else CallConstraint(None, call_id, vocab_size)
        if not self.is_constrained:
            return None
        is_required = self.choice != AUTO
        schema = build_calls_schema(self.tools, name=self.choice if self.choice in self.names else None)
        grammar: Grammar = JsonSchema(schema) if call_id is not None or is_required else CallsOrText(schema)
        constraint = compile_constraint(
            grammar, tokenizer, vocab_size=vocab_size, stop_ids=stop_ids, continues=False
        )
        if call_id is None:
            return constraint
        return CallConstraint(constraint, call_id, vocab_size, is_required=is_required)


def check_template(template: Template) -> None:
    """See that a template shows tools to the model.

    Raises:
        UsageError: it does not.
    """
    message = [{"role": "user", "content": "a"}]
    if template.encode(message, [_PROBE]) == template.encode(message):
        raise UsageError(
            "the chat template of this model has no place for tools",
            hint="use instruct-v0.3, or a fine-tune whose template has one",
        )


class CallConstraint:
    """An answer that is text, or behind `call_id` as its first token calls that keep to `calls`.

    Args:
        calls: what the calls keep to; None where there are to be none.
        call_id: the token that begins them.
        vocab_size: the model's number of ids.
        is_required: whether the answer must be calls.
    """

    def __init__(
        self, calls: Constraint | None, call_id: int, vocab_size: int, *, is_required: bool = False
    ) -> None:
        self.calls = calls
        self.call_id = call_id
        self.is_required = is_required
        n_bytes = -(-vocab_size // 8)
        text = (1 << vocab_size) - 1 ^ 1 << call_id
        self.text_ids = text.to_bytes(n_bytes, "little")

    def matcher(self) -> "CallMatcher":
        """The beginning of an answer."""
        return CallMatcher(self)


class CallMatcher:
    """Where one answer stands: at its beginning, in text, or in calls."""

    def __init__(self, constraint: CallConstraint) -> None:
        self._constraint = constraint
        self._calls: Matcher | None = None
        self._is_first = True

    def forced(self) -> list[int]:
        """The ids that follow because there is no choice of text, none where there is."""
        if self._calls:
            return self._calls.forced()
        return [self._constraint.call_id] if self._is_first and self._constraint.is_required else []

    def allowed(self) -> bytes | None:
        """The ids that may follow, a bit for each; None allows all."""
        if self._calls:
            return self._calls.allowed()
        return None if self._is_first and self._constraint.calls else self._constraint.text_ids

    def accept(self, token: int) -> None:
        """Go on behind `token`, which must be allowed."""
        if self._calls:
            self._calls.accept(token)
        elif self._is_first and self._constraint.calls and token == self._constraint.call_id:
            self._calls = self._constraint.calls.matcher()
        self._is_first = False
