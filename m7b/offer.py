"""Tools offered to a model: how to tell its calls from text, and the grammar that keeps them valid.

Knows templates, tokenizers and grammars; nothing about what tools do, nor who runs them.
"""

from dataclasses import dataclass

from m7b.calls import build_calls_schema
from m7b.constraint import CallsOrText, Grammar, JsonSchema, compile_constraint
from m7b.errors import UsageError
from m7b.generation import Constraint, Matcher
from m7b.stream import CallSyntax
from m7b.templates import Template, Tools, shows_tools
from m7b.tokenizer import Tokenizer

AUTO, ANY, NONE = "auto", "any", "none"
"""A tool choice: `auto` may call or not, `any` must call, `none` must not; a tool's name must call that."""

_CALL_TOKEN = "[TOOL_CALLS]"


@dataclass(frozen=True, slots=True)
class Offer:
    """Tools in OpenAI's shape, the tool choice, and whether a grammar keeps calls valid."""

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
        """How to tell calls from text, None where the model must not call."""
        if self.choice == NONE:
            return None
        call_id = tokenizer.controls.get(_CALL_TOKEN)
        in_text = call_id is None or not self.is_constrained
        return CallSyntax(call_id, in_text, frozenset() if self.is_constrained else frozenset(self.names))

    def constraint(
        self, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: frozenset[int]
    ) -> Constraint | None:
        """Compile the constraint that keeps calls valid, None where none is needed."""
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
    """Check that a template shows tools to the model.

    Raises:
        UsageError: it does not.
    """
    if not shows_tools(template):
        raise UsageError(
            "the chat template of this model has no place for tools",
            hint="use instruct-v0.3, or a fine-tune whose template has one",
        )


class CallConstraint:
    """Allows two kinds of answers: text, or `call_id` as the first token and then calls that satisfy `calls`.

    Args:
        calls: the constraint of the calls; None allows text only.
        call_id: the token that begins calls.
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

    def start_matcher(self) -> "CallMatcher":
        """Return the state of an answer that begins."""
        return CallMatcher(self)


class CallMatcher:
    """The state of one answer: at its beginning, in text, or in calls."""

    def __init__(self, constraint: CallConstraint) -> None:
        self._constraint = constraint
        self._calls: Matcher | None = None
        self._is_first = True

    def find_forced(self) -> list[int]:
        """The ids that must follow because only one text is allowed; none where several are."""
        if self._calls:
            return self._calls.find_forced()
        return [self._constraint.call_id] if self._is_first and self._constraint.is_required else []

    def pack_mask(self) -> bytes | None:
        """The ids that may follow, a bit for each; None allows all."""
        if self._calls:
            return self._calls.pack_mask()
        return None if self._is_first and self._constraint.calls else self._constraint.text_ids

    def accept(self, token: int) -> None:
        """Add `token`, which must be allowed, to the answer."""
        if self._calls:
            self._calls.accept(token)
        elif self._is_first and self._constraint.calls and token == self._constraint.call_id:
            self._calls = self._constraint.calls.start_matcher()
        self._is_first = False
