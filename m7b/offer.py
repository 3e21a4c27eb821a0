"""Tools offered to a model: how to tell its calls from text, and the grammar that keeps them valid.

Knows templates, tokenizers and grammars; nothing about what tools do, nor who runs them.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

from m7b.call_format import MISTRAL, PLAIN, CallFormat, find_trigger, split_controls
from m7b.constraint import Calls, Place, compile_constraint, find_kinds
from m7b.errors import UsageError
from m7b.generation import Constraint, Matcher
from m7b.stream import CallSyntax
from m7b.templates import Template, Tools, find_call_format, shows_tools
from m7b.tokenizer import Tokenizer

AUTO, ANY, NONE = "auto", "any", "none"
"""A tool choice: `auto` may call or not, `any` must call, `none` must not; a tool's name must call that."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Tools in OpenAI's shape, the tool choice, whether a grammar keeps calls valid, and their form.

    `is_parallel` allows several calls in one answer.
    """

    tools: Tools
    choice: str = AUTO
    is_constrained: bool = True
    is_parallel: bool = True
    form: CallFormat = MISTRAL

    def __post_init__(self) -> None:
        if self.choice not in (AUTO, ANY, NONE, *self.names):
            raise UsageError(
                f"the tool choice is {self.choice!r}",
                hint=f"it can be auto, any, none, {', '.join(self.names)}",
                param="tool_choice",
            )
        if not self.is_parallel and not self.is_constrained:
            raise UsageError("only a constraint keeps a model to one call", hint="leave out --no-constrain")
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
        form = self._choose_form(tokenizer)
        if form.pairs:
            form = replace(form, pairs=replace(form.pairs, kinds=self._find_kinds()))
        trigger, _ = find_trigger(form, tokenizer.controls)
        call_id = trigger if isinstance(trigger, int) else None
        in_text = call_id is None or not self.is_constrained
        anywhere = frozenset() if self.is_constrained else frozenset(self.names)
        return CallSyntax(call_id, in_text, anywhere, form, tokenizer.controls, self.is_constrained)

    def constraint(
        self, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: frozenset[int]
    ) -> Constraint | None:
        """Compile the constraint that keeps calls valid, None where none is needed."""
        form = self._choose_form(tokenizer)
        trigger, _ = find_trigger(form, tokenizer.controls)
        if self.choice == NONE and isinstance(trigger, int):
            return CallConstraint(None, trigger, vocab_size)
        if self.choice == NONE and not form.follows_text:
            return None
        if not self.is_constrained:
            return None
        is_required = self.choice not in (AUTO, NONE)
        place = self._choose_place(trigger, tokenizer)
        constraint = compile_constraint(
            self._write_grammar(tokenizer, stop_ids, place),
            tokenizer,
            vocab_size=vocab_size,
            stop_ids=stop_ids,
            continues=place is Place.REST and not _adds_space(tokenizer),
        )
        if not isinstance(trigger, int) or place is not Place.REST:
            return constraint
        return CallConstraint(
            constraint, trigger, vocab_size, is_required=is_required, follows_text=form.follows_text
        )

    def _choose_form(self, tokenizer: Tokenizer) -> CallFormat:
        """The form of the template; of Mistral's without the token of its marker, what is kept in order."""
        if self.form is not MISTRAL or not self.is_constrained:
            return self.form
        trigger, _ = find_trigger(MISTRAL, tokenizer.controls)
        return MISTRAL if isinstance(trigger, int) else PLAIN

    def _find_kinds(self) -> dict[str, dict[str, frozenset[str]]]:
        """The JSON types of each tool's arguments, as far as schemas tell them."""
        found = {}
        for tool in self.tools:
            with suppress(UsageError):  # its calls are not kept valid
                found[tool["function"]["name"]] = find_kinds(tool["function"]["parameters"])
        return found

    def _choose_place(self, trigger: str | int, tokenizer: Tokenizer) -> Place:
        if self.choice == NONE:
            return Place.NOWHERE
        is_id_first = split_controls(self.form.opening, tokenizer.controls)[0] == trigger
        if self.choice == AUTO:
            return Place.REST if isinstance(trigger, int) else Place.BESIDE_TEXT
        return Place.REST if isinstance(trigger, int) and is_id_first else Place.ONLY

    def _write_grammar(self, tokenizer: Tokenizer, stop_ids: frozenset[int], place: Place) -> Calls:
        """Write the grammar of the calls that may be made.

        Raises:
            UsageError: the model stops where the template has it go on.
        """
        form = self._choose_form(tokenizer).end_at({tokenizer.piece(token) for token in stop_ids})
        if form is None:
            raise UsageError(
                "this model ends its answer within a call, as its chat template writes it",
                hint="--no-constrain takes calls as they come",
            )
        if not self.is_parallel:
            form = replace(form, separator=None)
        functions = [tool["function"] for tool in self.tools]
        asked = self.choice if self.choice in self.names else None
        schemas = {
            function["name"]: function["parameters"]
            for function in functions
            if asked in (None, function["name"])
        }
        return Calls(form, schemas, tokenizer.controls, place)


def check_template(template: Template) -> None:
    """Check that a template shows tools to the model.

    Raises:
        UsageError: it does not.
    """
    if not shows_tools(template):
        raise UsageError(
            "the chat template of this model has no place for tools",
            hint="use instruct-v0.3, a fine-tune whose template has one, or another --chat-template",
        )


def describe_form(template: Template) -> str:
    """Say how calls are written, where the template does not show it; empty where it does."""
    if find_call_format(template) is not None:
        return ""
    return (
        "the chat template of this model shows no form of calls that m7b knows; "
        'they are [{"name": …, "arguments": …}]'
    )


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Whether a text behind a control token begins as one at the beginning does."""
    return tokenizer.encode("a", bos=False, inside=True) == tokenizer.encode("a", bos=False)


class CallConstraint:
    """Allows text, and `call_id` followed by what satisfies `calls`.

    Args:
        calls: the constraint of the calls; None allows text only.
        call_id: the token that begins calls.
        vocab_size: the model's number of ids.
        is_required: whether the answer must be calls.
        follows_text: whether text may stand in front of the calls; else `call_id` is the first token or none.
    """

    def __init__(
        self,
        calls: Constraint | None,
        call_id: int,
        vocab_size: int,
        *,
        is_required: bool = False,
        follows_text: bool = False,
    ) -> None:
        self.calls = calls
        self.call_id = call_id
        self.is_required = is_required
        self.follows_text = follows_text
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
        return None if self._may_call else self._constraint.text_ids

    def accept(self, token: int) -> None:
        """Add `token`, which must be allowed, to the answer."""
        if self._calls:
            self._calls.accept(token)
        elif self._constraint.calls and self._may_call and token == self._constraint.call_id:
            self._calls = self._constraint.calls.start_matcher()
        self._is_first = False

    @property
    def _may_call(self) -> bool:
        constraint = self._constraint
        return bool(constraint.calls) and (self._is_first or constraint.follows_text)
