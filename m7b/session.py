"""One conversation with a model: encode all of it, generate an answer, keep it, take turns back.

Knows messages, templates and events; nothing about screens, files or tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from m7b.call_format import MISTRAL
from m7b.constraint import Grammar
from m7b.detokenizer import REPLACEMENT
from m7b.errors import ContextOverflow, UsageError
from m7b.generation import (
    CallDelta,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    SamplingParams,
    Step,
    TextDelta,
    ToolCall,
    Usage,
)
from m7b.messages import Message
from m7b.models import Model, PromptCache
from m7b.offer import AUTO, NONE, Offer
from m7b.stream import stream_events
from m7b.templates import Tools, find_call_format

CHAT_SAMPLING = SamplingParams(max_tokens=1024)
"""How answers in a conversation are sampled where nothing else is said."""


class OnFull(StrEnum):
    """What to do when the conversation no longer fits the context.

    `error` refuses a turn that leaves too little room to answer: `max_tokens`, or a quarter of the context
    where that is less. `stop` lets the answer end where the context does. `drop-oldest` leaves the oldest
    turns out before it answers. `roll` does so in the middle of an answer, which then goes on.
    """

    ERROR = "error"
    DROP_OLDEST = "drop-oldest"
    ROLL = "roll"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Dropped:
    """The oldest `n_messages` of the conversation, `n_tokens` of the prompt, are out of the model's sight."""

    n_messages: int
    n_tokens: int


SessionEvent = GenerationEvent | Dropped


class Session:
    """A conversation with a model.

    As soon as an answer in progress has text, it is the last message, marked partial, so a caller can save it
    between two events. A caller that closes the events keeps the answer so far; where the answer had not
    begun, the conversation is as it was before.

    Args:
        model: generates the answers.
        params: how to sample; the stop ids of the model are added to them.
        messages: the conversation so far.
        tools: those to offer in every turn.
        tool_choice: what the model may choose of them; see `Offer`.
        constrains_calls: whether a grammar keeps calls valid.
        grammar: the one that every answer must satisfy.
        on_full: what to do when the context is full.
        prompt_cache: has what other processes have read of conversations.
    """

    def __init__(
        self,
        model: Model,
        params: SamplingParams,
        *,
        messages: Sequence[Message] = (),
        tools: Tools | None = None,
        tool_choice: str = AUTO,
        constrains_calls: bool = True,
        grammar: Grammar | None = None,
        on_full: OnFull = OnFull.DROP_OLDEST,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.model = model
        self.params = params
        self.tools = tools
        self.tool_choice = tool_choice
        self.constrains_calls = constrains_calls
        self.grammar = grammar
        self.on_full = on_full
        self._prompt_cache = prompt_cache
        self.usage: Usage | None = None
        self._messages = list(messages)
        self._n_dropped = 0  # messages behind the system prompt that the model no longer sees

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, the system prompt first where there is one."""
        return tuple(self._messages)

    @property
    def system(self) -> str:
        """The system prompt, empty where there is none."""
        return self._messages[0].text if self._has_system else ""

    @system.setter
    def system(self, text: str) -> None:
        self._messages[: self._has_system] = [Message("system", text)] if text else []

    @property
    def n_dropped(self) -> int:
        """The messages that the model no longer sees."""
        return self._n_dropped

    def find_last(self, role: str) -> Message:
        """Find the last message of `role`.

        Raises:
            UsageError: there is none.
        """
        return self._messages[self._find_last(role)]

    def encode_prompt(self, text: str) -> list[int]:
        """Encode the prompt that `send(text)` would make if all of it fitted the context."""
        return self._encode(
            self._select_visible([*_add_missing_results(self._messages), Message("user", text)])
        )

    def send(self, text: str) -> Iterator[SessionEvent]:
        """Add the user message `text` and let the model answer.

        Raises:
            ContextOverflow: there is no room for it.
            InvalidConversation: the template refuses the messages.
        """
        return self._run_turn([*_add_missing_results(self._messages), Message("user", text)], self.params)

    def regenerate(
        self, params: SamplingParams | None = None, *, text: str | None = None
    ) -> Iterator[SessionEvent]:
        """Answer the last user message again, with other `params` for this once, or with another `text`.

        Raises:
            UsageError: there is no user message.
        """
        *before, asked = self._messages[: self._find_last("user") + 1]
        return self._run_turn(
            [*before, asked if text is None else Message("user", text)], params or self.params
        )

    def return_results(
        self, results: Sequence[tuple[ToolCall, str]], *, may_call: bool = True
    ) -> Iterator[SessionEvent]:
        """Add the results of the calls and let the model answer; it may call again if `may_call`.

        The results stay in the conversation even where the answer fails.
        """
        for call, content in results:
            extra = {"tool_call_id": call.id, "name": call.name}
            self._messages = [*self._messages, Message("tool", content, extra)]
        return self._run_turn(self._messages, self.params, may_call=may_call)

    def continue_answer(self) -> Iterator[SessionEvent]:
        """Go on with the last answer where it ended.

        Raises:
            UsageError: the last message is no answer.
        """
        if not self._messages or not _is_answer(self._messages[-1]):
            raise UsageError("there is no answer to continue", hint="ask something first")
        if self.grammar is not None:
            raise UsageError(
                "an answer that keeps to a grammar cannot be continued", hint="/regen answers anew"
            )
        *question, answer = self._messages
        # The model writes again what may have been cut in two: a character, or the space before a word.
        begun = answer.text.rstrip(f" {REPLACEMENT}" if answer.is_partial else " ")
        return self._run_turn([*question, Message("assistant", begun)] if begun else question, self.params)

    def undo(self, n_turns: int = 1) -> list[Message]:
        """Take back the last turns, each a user message and what follows it; returns what was taken.

        Raises:
            UsageError: there are fewer.
        """
        asked = [at for at, message in enumerate(self._messages) if message.role == "user"]
        if not 0 < n_turns <= len(asked):
            raise UsageError(f"cannot take back {n_turns} of {len(asked)} turns")
        taken = self._messages[asked[-n_turns] :]
        del self._messages[asked[-n_turns] :]
        if self._n_dropped >= len(self._messages) - self._has_system:
            self._n_dropped = 0  # else the model would see nothing, though there is room
        return taken

    def replace_answer(self, text: str) -> None:
        """Put `text` in the place of the last answer.

        Raises:
            UsageError: there is none, it calls tools, or `text` is empty.
        """
        if not text:
            raise UsageError("an answer cannot be empty", hint="/undo takes the turn back")
        at = self._find_last("assistant")
        if not _is_answer(self._messages[at]):
            raise UsageError("the last answer calls tools", hint="/undo takes the turn back")
        self._messages[at] = Message("assistant", text)

    def load(self, messages: Sequence[Message]) -> None:
        """Carry on with another conversation."""
        self._messages = list(messages)
        self._n_dropped = 0
        self.usage = None

    def clear(self) -> None:
        """Begin again; the system prompt stays."""
        self.load(self._messages[: self._has_system])

    def _run_turn(
        self, asked: Sequence[Message], params: SamplingParams, *, may_call: bool = True
    ) -> Iterator[SessionEvent]:
        """Generate an answer to `asked`; where its last message is an answer, continue that one."""
        text = asked[-1].text if asked and asked[-1].role == "assistant" else ""
        question = asked[:-1] if text else asked
        before, n_dropped = self._messages, self._n_dropped
        self.usage = None
        # Keep a question at once; keep an old answer until there is a new one.
        waiting = self._messages = max(before, list(question), key=len)
        try:
            offer = self._make_offer(asked, may_call=may_call)
            for event in self._generate_answer(asked, self._complete_params(params, offer), offer):
                match event:
                    case TextDelta():
                        text += event.text
                        self._messages = [*question, Message("assistant", text, is_partial=True)]
                    case Finished():
                        self.usage = event.usage
                        if event.calls:
                            self._messages = [*question, _make_calls_message(event)]
                        elif event.reason is FinishReason.STOP and text:
                            self._messages = [*question, replace(self._messages[-1], is_partial=False)]
                    case PromptProgress() | Dropped() | CallDelta():
                        pass
                    case other:
                        assert_never(other)
                yield event
        finally:
            if self._messages is waiting:
                self._messages, self._n_dropped = before, n_dropped

    def _generate_answer(
        self, asked: Sequence[Message], params: SamplingParams, offer: Offer | None
    ) -> Iterator[SessionEvent]:
        ids, dropped = self._fit(asked, params)
        if dropped:
            yield dropped
        rolled: list[Dropped] = []
        steps = self._generate_steps(asked, ids, params, rolled)
        continues = asked[-1].role == "assistant"
        tokenizer = self.model.tokenizer
        syntax = offer.syntax(tokenizer) if offer else None
        events = stream_events(
            steps,
            tokenizer,
            len(ids),
            params,
            continues=continues,
            calls=syntax,
            controls=self.model.controls,
        )
        for event in events:
            yield from rolled
            rolled.clear()
            yield event

    def _generate_steps(
        self, asked: Sequence[Message], ids: list[int], params: SamplingParams, rolled: list[Dropped]
    ) -> Iterator[PromptProgress | Step]:
        """Yield the engine's steps; where the context is full and rolls, go on with a shorter prompt.

        What rolling drops is appended to `rolled`. The shorter prompt ends with the ids of the answer so far,
        not with its text: that may end in half a character, or in the start of a stop string.
        """
        tokens: list[int] = []
        if self._prompt_cache:
            self._prompt_cache.restore(self.model, ids)
        while True:
            left = replace(params, max_tokens=params.max_tokens - len(tokens))
            for step in self.model.engine.generate(ids, left):
                yield step
                if isinstance(step, Step):
                    tokens.append(step.token)
            is_full = len(tokens) < params.max_tokens
            if (
                not (is_full and self.on_full is OnFull.ROLL and self._count_oldest_turn(asked))
                or params.constraint
            ):
                return
            ids, dropped = self._fit(asked, left, tokens)
            if dropped:
                rolled.append(dropped)

    def _fit(
        self, asked: Sequence[Message], params: SamplingParams, tokens: Sequence[int] = ()
    ) -> tuple[list[int], Dropped | None]:
        """Encode the prompt and append the `tokens` of the answer so far; drop the oldest turns if need be.

        Dropping changes the beginning of the prompt, so the model reads all of it again. Therefore it drops
        down to half the context at once, not a turn at a time.
        """
        ids = [*self._encode(self._select_visible(asked)), *tokens]
        size = self.model.ctx_size
        is_strict = self.on_full in (OnFull.ERROR, OnFull.DROP_OLDEST)
        room = max(1, min(params.max_tokens, size // 4)) if is_strict else 1
        if len(ids) + room <= size:
            return ids, None
        n_dropped, n_tokens = self._n_dropped, len(ids)
        if self.on_full in (OnFull.DROP_OLDEST, OnFull.ROLL):
            room = 1  # when no more turns can be dropped, a short answer is better than none
            while len(ids) > size // 2 and (turn := self._count_oldest_turn(asked)):
                self._n_dropped += turn
                ids = [*self._encode(self._select_visible(asked)), *tokens]
        if len(ids) + room > size:
            raise ContextOverflow(
                f"the prompt has {len(ids)} tokens and the context holds {size}, {room} of them to answer",
                hint="shorten it, begin anew, raise --ctx-size, or choose another --on-full",
            )
        if self._n_dropped == n_dropped:
            return ids, None
        return ids, Dropped(self._n_dropped - n_dropped, n_tokens - len(ids))

    def _count_oldest_turn(self, asked: Sequence[Message]) -> int:
        """Count the messages of the oldest turn that the model sees of `asked`, 0 where it sees only one."""
        start = self._has_system + self._n_dropped
        later = (at for at in range(start + 1, len(asked)) if asked[at].role == "user")
        return next(later, start) - start

    def _select_visible(self, messages: Sequence[Message]) -> list[Message]:
        start = self._has_system
        return [*messages[:start], *messages[start + self._n_dropped :]]

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        """Encode `messages`; where the last one is an answer, the model is to continue it."""
        asked = [message.as_json() for message in messages]
        if asked and asked[-1]["role"] == "assistant":
            asked[-1]["prefix"] = True
        return self.model.chat_template.encode(asked, self.tools)

    def _make_offer(self, asked: Sequence[Message], *, may_call: bool) -> Offer | None:
        """Offer the tools for an answer to `asked`; none where the answer is begun already, and so is text.

        A call can be demanded once only: with its result, the model may answer.
        """
        if not self.tools or asked[-1].role == "assistant":
            return None
        choice = AUTO if asked[-1].role == "tool" and self.tool_choice != NONE else self.tool_choice
        form = find_call_format(self.model.chat_template) or MISTRAL
        return Offer(self.tools, choice if may_call else NONE, self.constrains_calls, form=form)

    def _complete_params(self, params: SamplingParams, offer: Offer | None) -> SamplingParams:
        """Add to `params` the ids that end an answer, and the constraint of the grammar or the tools."""
        constraint = params.constraint
        if self.grammar is not None:
            constraint = self.model.compile(self.grammar)
        elif offer:
            constraint = self.model.constrain_calls(offer)
        return replace(params, stop_ids=self.model.list_stop_ids(params), constraint=constraint)

    @property
    def _has_system(self) -> bool:
        return bool(self._messages) and self._messages[0].role == "system"

    def _find_last(self, role: str) -> int:
        """Find the index of the last message of `role`."""
        for at in reversed(range(len(self._messages))):
            if self._messages[at].role == role:
                return at
        raise UsageError(f"there is no {role} message yet", hint="say something first")


def _make_calls_message(finished: Finished) -> Message:
    """Make the assistant message that holds the calls of an answer, in OpenAI's shape."""
    calls = [call.as_json() for call in finished.calls]
    return Message("assistant", finished.beside or None, {"tool_calls": calls})


def _add_missing_results(messages: Sequence[Message]) -> list[Message]:
    """Add a result for every last call that has none: a chat can end while a tool runs."""
    at = len(messages)
    while at and messages[at - 1].role == "tool":
        at -= 1
    calls = messages[at - 1].extra.get("tool_calls", ()) if at else ()
    answered = {message.extra.get("tool_call_id") for message in messages[at:]}
    missing = [call for call in calls if call["id"] not in answered]
    extras = ({"tool_call_id": call["id"], "name": call["function"]["name"]} for call in missing)
    return [*messages, *(Message("tool", "the call was interrupted", extra) for extra in extras)]


def _is_answer(message: Message) -> bool:
    return message.role == "assistant" and not message.extra.get("tool_calls")
