"""What a completion request may say, as JSON or as options. Knows fields and ranges; nothing about models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from m7b.constraint import AnyJson, Grammar, JsonSchema
from m7b.errors import UsageError
from m7b.generation import MAX_SEED, SamplingParams
from m7b.offer import ANY, AUTO
from m7b.options import list_options


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """OpenAI-style `messages` to answer, and the `tools` offered with them, unchecked."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A prompt or a conversation, and how to go on from it. Sample i of `n` draws with `params.seed` + i.

    With `special`, names of control tokens in the prompt stand for these.
    """

    prompt: str
    params: SamplingParams
    n: int = 1
    echo: bool = False
    id: str | int | None = None
    conversation: ChatPrompt | None = None
    grammar: Grammar | None = None
    tool_choice: str = AUTO
    constrains_calls: bool = True
    special: bool = False

    def __post_init__(self) -> None:
        if self.conversation is not None and self.echo:
            raise UsageError("echo repeats a prompt, and a conversation is none", hint="leave it out")
        if self.conversation is not None and self.special:
            raise UsageError(
                "messages never hold control tokens, which special would write",
                hint="leave it out: the chat template writes them",
            )
        if self.params.stop and self.grammar is not None:
            raise UsageError("a stop string could end an answer before its grammar does", hint="leave it out")
        if self.grammar is not None and self.conversation and self.conversation.tools:
            raise UsageError("an answer cannot both keep to a grammar and call tools", hint="ask for one")
        if self.n < 1:
            raise UsageError(f"n is {self.n}", hint="it must be at least 1")
        if (self.params.seed or 0) + self.n - 1 > MAX_SEED:
            raise UsageError(
                f"seed is {self.params.seed} for {self.n} samples", hint=f"the last may be {MAX_SEED}"
            )


_PARAMS = {
    name: option.kind for name, option in list_options(SamplingParams).items() if option.kind in (int, float)
}
_IGNORED = {"model", "user", "metadata"}  # they name the caller or the model and change no token
_OTHER = {"id", "prompt", "n", "echo", "special", "stop", "logit_bias", "response_format"}
_CHAT = {"messages", "tools", "tool_choice"}


def parse_request(
    fields: Mapping[str, Any], defaults: CompletionRequest, *, is_chat: bool = False
) -> CompletionRequest:
    """The request that a JSON object describes; `defaults` gives what it leaves out.

    With `is_chat` it has `messages`, or a `prompt` that is one user message.

    Raises:
        UsageError: a field is unknown, of the wrong type or out of range.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    known = _PARAMS.keys() | _OTHER | (_CHAT if is_chat else set())
    unknown = sorted(fields.keys() - known - _IGNORED)
    if unknown and unknown[0] in _CHAT:
        raise UsageError(f"{unknown[0]} need a chat template", hint="add --chat")
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r}", hint=f"known are {', '.join(sorted(known))}")
    tools = defaults.conversation.tools if defaults.conversation else None
    conversation = _conversation(fields, tools) if is_chat else None
    prompt = fields.get("prompt", "" if conversation else None)
    if not isinstance(prompt, str):
        raise UsageError("prompt must be a string")
    given = {name: _convert(name, fields[name], kind) for name, kind in _PARAMS.items() if name in fields}
    if "stop" in fields:
        given["stop"] = _stop(fields["stop"])
    if "logit_bias" in fields:
        given["logit_bias"] = _logit_bias(fields["logit_bias"])
    flags = {name: fields.get(name, getattr(defaults, name)) for name in ("echo", "special")}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{name} must be true or false")
    return CompletionRequest(
        prompt=prompt,
        params=replace(defaults.params, **given),
        n=_convert("n", fields.get("n", defaults.n), int),
        echo=flags["echo"],
        special=flags["special"],
        id=fields.get("id"),
        conversation=conversation,
        grammar=_grammar(fields["response_format"]) if "response_format" in fields else defaults.grammar,
        tool_choice=_tool_choice(fields["tool_choice"]) if "tool_choice" in fields else defaults.tool_choice,
        constrains_calls=defaults.constrains_calls,
    )


def parse_chat_prompt(text: str, *, prompt_allowed: bool) -> ChatPrompt:
    """The conversation in `text`: an object with `messages` and perhaps `tools`, or a list of messages.

    With `prompt_allowed`, any other text is one user message.

    Raises:
        UsageError: it is neither.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        value, reason = None, str(error)
    else:
        reason = "neither a list of messages nor an object with messages"
    if isinstance(value, list) and all(isinstance(entry, dict) and "role" in entry for entry in value):
        return ChatPrompt(value)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return ChatPrompt(value["messages"], value.get("tools"))
    if prompt_allowed:
        return ChatPrompt([{"role": "user", "content": text}])
    raise UsageError(f"no conversation: {reason}", hint='write [{"role": "user", "content": "Hello"}]')


def _tool_choice(value: Any) -> str:
    """OpenAI's `tool_choice` in our words."""
    match value:
        case "required":
            return ANY
        case str():
            return value
        case {"type": "function", "function": {"name": str() as name}}:
            return name
    raise UsageError("tool_choice is of no known form", hint="write auto, required, none, or a function")


def _grammar(value: Any) -> Grammar | None:
    """What OpenAI's `response_format` asks for."""
    match value:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return AnyJson()
        case {"type": "json_schema", "json_schema": {"schema": dict() | bool() as schema}}:
            return JsonSchema(schema)
    raise UsageError(
        "response_format is of no known form",
        hint='write {"type": "json_schema", "json_schema": {"schema": {…}}}, or json_object or text as type',
    )


def _conversation(fields: Mapping[str, Any], tools: Any) -> ChatPrompt:
    tools = fields.get("tools", tools)
    if "messages" in fields and "prompt" in fields:
        raise UsageError("prompt and messages are both given", hint="give one")
    if "prompt" in fields:
        return ChatPrompt([{"role": "user", "content": fields["prompt"]}], tools)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError("messages must be a list of objects")
    return ChatPrompt(messages, tools)


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`; an integer passes as a float, a bool as neither."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise UsageError(f"{name} is {json.dumps(value)[:60]}", hint=f"it must be {_KIND_NAMES[kind]}")
    try:
        return kind(value)
    except OverflowError:
        raise UsageError(f"{name} is beyond all numbers", hint="write it smaller") from None


_KIND_NAMES = {int: "an integer", float: "a number"}


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise UsageError("stop must be a string or a list of strings")
    return tuple(stops)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or not all(key.isdecimal() and len(key) < 12 for key in value):
        raise UsageError('logit_bias must map token ids to numbers, like {"15043": -100}')
    return {int(key): _convert(f"logit_bias of {key}", bias, float) for key, bias in value.items()}
