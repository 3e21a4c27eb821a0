"""What `import m7b` offers: the way that the commands go, for programs.

Nothing here asks, prints or fetches. Errors are those of `m7b.errors`, as the commands tell them.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m7b.completions import Choice, Completion, CompletionRequest, answer_request, parse_request
from m7b.constraint import AnyJson, Grammar, JsonSchema, Lark, Regex
from m7b.errors import M7bError, UsageError
from m7b.generation import (
    EngineOptions,
    Finished,
    FinishReason,
    GenerationEvent,
    SamplingParams,
    TextDelta,
    TokenLogprob,
    read_adapters,
)
from m7b.messages import Message, parse_message
from m7b.models import LoadEvent, Model, ModelChoice, load_model
from m7b.offer import AUTO, check_template
from m7b.session import CHAT_SAMPLING, OnFull, Session, SessionEvent
from m7b.templates import Tools
from m7b.tools import Toolbox, keep_enforceable, parse_tools

__all__ = [
    "AnyJson",
    "Finished",
    "JsonSchema",
    "Lark",
    "M7bError",
    "Model",
    "Regex",
    "TextDelta",
    "Toolbox",
    "answer",
    "ask",
    "chat",
    "complete",
    "detokenize",
    "generate",
    "load",
    "score",
    "tokenize",
]


def load(
    name: str | Path = "demo",
    *,
    chat_template: str | None = None,
    report: Callable[[LoadEvent], object] | None = None,
    **options: Any,
) -> Model:
    """Load a model that is on this machine.

    Args:
        name: a variant, a path, or the hub id of a checkpoint that was downloaded.
        chat_template: `v1`, `v3` or a Jinja file, instead of the model's own.
        report: called with each event while the model is loaded: `Loading` (bytes), `Remark` (a text).
        **options: the fields of `EngineOptions`, which are the options of the commands: `quant="q8_0"`,
            `ctx_size=4096`, `threads=2`, `window=0` for none, `adapter="folder:0.5"` or several in a list.

    Raises:
        CheckpointNotFound: it is not on this machine; the hint is the command that fetches it.
        OutOfResources: it does not fit.
        UsageError: an option is out of range.
    """
    choice = ModelChoice(path=name) if isinstance(name, Path) else ModelChoice.from_name(name)
    if "adapter" in options:
        options["adapter"] = read_adapters(options["adapter"])
    settings = EngineOptions(**options)
    return load_model(choice, settings, chat_template=chat_template, report=report)


def complete(
    model: Model, prompt: str, *, grammar: Grammar | None = None, special: bool = False, **sampling: Any
) -> Choice:
    """Continue `prompt` exactly as it stands.

    Args:
        model: continues.
        prompt: the text so far.
        grammar: what the answer keeps to.
        special: whether names of control tokens in the prompt stand for these; else they are text.
        **sampling: the fields of `SamplingParams`: `max_tokens`, `temperature`, `seed`, `stop` and so on.

    Returns:
        The answer: its `text`, and what `finished` tells of its tokens and its end.
    """
    completion = _begin(model, prompt, grammar, sampling, special=special)
    for _ in _events(completion):
        pass
    return completion.choices[0]


def generate(
    model: Model, prompt: str, *, grammar: Grammar | None = None, special: bool = False, **sampling: Any
) -> Iterator[GenerationEvent]:
    """Continue `prompt`, as `complete` does, and tell what happens, as events: `TextDelta` has new text.

    Closing the iterator ends the answer; the model stays usable.
    """
    return _events(_begin(model, prompt, grammar, sampling, special=special))


def answer(model: Model, request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request in OpenAI's shape, as a line of `m7b complete --jsonl`: one with `messages` is a chat.

    Raises:
        UsageError: a field is unknown, of the wrong type or out of range.
    """
    defaults = CompletionRequest("", SamplingParams())
    parsed = parse_request(request, defaults, is_chat="messages" in request)
    return answer_request(model, parsed)


def chat(
    model: Model,
    *,
    system: str = "",
    messages: Sequence[Mapping[str, Any]] = (),
    tools: Toolbox | Tools | None = None,
    tool_choice: str = AUTO,
    constrains_calls: bool = True,
    grammar: Grammar | None = None,
    on_full: OnFull | str = OnFull.DROP_OLDEST,
    **sampling: Any,
) -> Session:
    """Begin a conversation. `ask` says something in it; `session.send(text)` tells the answer as events.

    Args:
        model: answers.
        system: the system prompt.
        messages: the conversation so far, in OpenAI's shape.
        tools: what the model may call: a `Toolbox`, or tools in OpenAI's shape.
        tool_choice: `auto`, `any`, `none`, or the name of a tool.
        constrains_calls: whether calls are kept valid.
        grammar: what every answer keeps to.
        on_full: `error`, `drop-oldest`, `roll` or `stop`: what to do when the context is full.
        **sampling: the fields of `SamplingParams`.

    Raises:
        UsageError: the model cannot chat, its template has no place for tools, or calls of any tool, or of
            the one that must be called, cannot be kept valid. Other such tools are left out with a warning.
    """
    template = model.chat_template
    offered = [tool.as_json() for tool in tools.tools] if isinstance(tools, Toolbox) else tools
    if offered:
        check_template(template)
    if offered and constrains_calls:
        checked = [tool.as_json() for tool in parse_tools(offered, "tools")]
        offered, left_out = keep_enforceable(checked, demanded=tool_choice)
        for line in left_out:
            warnings.warn(line, stacklevel=2)
    session = Session(
        model,
        _build_sampling(CHAT_SAMPLING, sampling),
        messages=[parse_message(message) for message in messages],
        tools=offered or None,
        tool_choice=tool_choice,
        constrains_calls=constrains_calls,
        grammar=grammar,
        on_full=OnFull(on_full),
    )
    if system:
        session.system = system
    return session


def ask(session: Session, text: str, toolbox: Toolbox | None = None, *, limit: int = 5) -> Message:
    """Say `text` and return the answer.

    With a `toolbox`, calls are made as the model asks for them, unasked, for at most `limit` rounds; without
    one, an answer that calls tools is returned as it is, with the calls in `extra["tool_calls"]`.

    Raises:
        UsageError: `max_tokens` were used up before a text began or a call ended; the turn is taken back.
    """
    before = session.messages
    finished = _finish(session.send(text))
    for n_left in reversed(range(limit if toolbox else 0)):
        if not finished.calls:
            break
        assert toolbox is not None
        results = [
            (call, toolbox.call(call.name, json.loads(call.arguments)).content) for call in finished.calls
        ]
        before = session.messages
        finished = _finish(session.return_results(results, may_call=n_left > 0))
    if session.messages != before:
        return session.find_last("assistant")
    if finished.reason is FinishReason.LENGTH:
        raise UsageError(
            f"{len(finished.tokens)} tokens hold no text and no whole call", hint="set max_tokens to more"
        )
    return Message("assistant", "")  # nothing was said, and the turn is taken back


def score(model: Model, text: str, *, top: int = 0) -> list[TokenLogprob]:
    """The log-probability of each token of `text` but the first, given all before it; `top` alternatives."""
    scores = list(model.engine.score(tokenize(model, text), top))
    model.engine.forget()
    return scores


def tokenize(model: Model, text: str | Sequence[Mapping[str, Any]], *, bos: bool | None = None) -> list[int]:
    """The ids of a text, or of the messages of a conversation, as the model would see them.

    `bos` says whether the begin-of-sequence id stands in front of a text; None is as the model expects.
    """
    if not isinstance(text, str):
        return model.chat_template.encode(text)
    return model.tokenizer.encode(text, bos=model.tokenizer.adds_bos if bos is None else bos)


def detokenize(model: Model, ids: Sequence[int]) -> str:
    """The text of token ids."""
    return model.tokenizer.decode(ids)


def _begin(
    model: Model, prompt: str, grammar: Grammar | None, sampling: dict[str, Any], *, special: bool
) -> Completion:
    params = _build_sampling(SamplingParams(), sampling)
    request = CompletionRequest(prompt, params, grammar=grammar, special=special)
    return Completion(model, request)


def _events(completion: Completion) -> Iterator[GenerationEvent]:
    for events in completion.samples():
        yield from events


def _finish(events: Iterator[SessionEvent]) -> Finished:
    """Runs an answer to its end; returns that."""
    *_, last = events
    assert isinstance(last, Finished)
    return last


def _build_sampling(defaults: SamplingParams, given: dict[str, Any]) -> SamplingParams:
    """The defaults with what was given in their place; `stop` may be one text."""
    stop = given.get("stop", ())
    return replace(defaults, **given | {"stop": (stop,) if isinstance(stop, str) else tuple(stop)})
