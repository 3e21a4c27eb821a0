"""What a completion request may say, as JSON or as options. Knows the fields; nothing about models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from m7b.completions.fields import (
    FIXED,
    IGNORED,
    check_choice,
    check_fixed,
    read_chat_logprobs,
    read_flag,
    read_logit_bias,
    read_max_tokens,
    read_number,
    read_prompt,
    read_response_format,
    read_stop,
    read_tool_choice,
    read_tools,
    replace_synonyms,
)
from m7b.constraint import Grammar
from m7b.errors import UsageError
from m7b.generation import MAX_SEED, SamplingParams
from m7b.offer import AUTO, NONE
from m7b.options import list_options

MAX_SAMPLES = 1024
"""The most answers to one request."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """OpenAI-style `messages` to answer, and the `tools` offered with them, unchecked."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A prompt or a conversation, and how to go on from it. Sample i of `n` draws with `params.seed` + i.

    A `prompt` of ids is taken as it is. `allowed_tools` are the tools that may be called, None for all;
    `is_parallel` allows several calls. With `special`, names of control tokens in the prompt stand for these.
    """

    prompt: str | tuple[int, ...]
    params: SamplingParams
    n: int = 1
    echo: bool = False
    id: str | int | None = None
    conversation: ChatPrompt | None = None
    grammar: Grammar | None = None
    tool_choice: str = AUTO
    constrains_calls: bool = True
    allowed_tools: frozenset[str] | None = None
    is_parallel: bool = True
    special: bool = False

    def __post_init__(self) -> None:
        if self.conversation is not None and self.echo:
            raise UsageError(
                "echo repeats a prompt, and a conversation is none", hint="leave it out", param="echo"
            )
        if self.conversation is not None and self.special:
            raise UsageError(
                "messages never hold control tokens, which special would write",
                hint="leave it out: the chat template writes them",
                param="special",
            )
        if self.params.stop and self.grammar is not None:
            raise UsageError(
                "a stop string could end an answer before its grammar does", hint="leave it out", param="stop"
            )
        offers_tools = self.conversation and self.conversation.tools and self.tool_choice != NONE
        if self.grammar is not None and offers_tools:
            raise UsageError(
                "an answer cannot both keep to a grammar and call tools",
                hint='ask for one, or let it call none with "tool_choice": "none"',
                param="response_format",
            )
        if not 1 <= self.n <= MAX_SAMPLES:
            raise UsageError(f"n is {self.n}", hint=f"it must be from 1 to {MAX_SAMPLES}", param="n")
        if (self.params.seed or 0) + self.n - 1 > MAX_SEED:
            raise UsageError(
                f"seed is {self.params.seed} for {self.n} samples",
                hint=f"the last may be {MAX_SEED}",
                param="seed",
            )


_PARAMS = {
    name: option.kind for name, option in list_options(SamplingParams).items() if option.kind in (int, float)
}
_OTHER = {
    "id",
    "prompt",
    "n",
    "echo",
    "special",
    "stop",
    "logit_bias",
    "response_format",
    "max_completion_tokens",
}
_TOOLS = {"tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"}
_CHAT = {"messages", "top_logprobs"} | _TOOLS


def parse_request(
    fields: Mapping[str, Any], defaults: CompletionRequest, *, is_chat: bool = False
) -> CompletionRequest:
    """The request that a JSON object describes; `defaults` gives what it leaves out.

    With `is_chat` it has `messages`, or a `prompt` that is one user message.

    Raises:
        UsageError: a field is unknown, of the wrong type, out of range, or asks for what nobody can do here;
            `param` names it.
    """
    fields = replace_synonyms({name: value for name, value in fields.items() if value is not None})
    _check_names(fields, is_chat=is_chat)
    check_fixed(fields)
    request = replace(
        defaults,
        prompt=read_prompt(fields.get("prompt", "" if is_chat else None)),
        params=_read_params(fields, defaults.params, is_chat=is_chat),
        n=read_number("n", fields.get("n", defaults.n), int),
        echo=read_flag("echo", fields.get("echo", defaults.echo)),
        special=read_flag("special", fields.get("special", defaults.special)),
        id=fields.get("id"),
        conversation=None,
        grammar=read_response_format(fields["response_format"])
        if "response_format" in fields
        else defaults.grammar,
    )
    return _add_conversation(request, fields, defaults) if is_chat else request


def _check_names(fields: Mapping[str, Any], *, is_chat: bool) -> None:
    known = _PARAMS.keys() | _OTHER | (_CHAT if is_chat else set())
    unknown = sorted(fields.keys() - known - IGNORED - FIXED)
    if unknown and unknown[0] in _CHAT:
        raise UsageError(f"{unknown[0]} need a chat template", hint="add --chat", param=unknown[0])
    if unknown:
        raise UsageError(
            f"unknown field {unknown[0]!r}", hint=f"known are {', '.join(sorted(known))}", param=unknown[0]
        )


def _add_conversation(
    request: CompletionRequest, fields: Mapping[str, Any], defaults: CompletionRequest
) -> CompletionRequest:
    """Add the messages of a chat, and which of its tools may be called."""
    tools = defaults.conversation.tools if defaults.conversation else None
    if {"tools", "functions"} & fields.keys():
        tools = read_tools(fields)
    choice, allowed = read_tool_choice(fields, defaults.tool_choice)
    if {"tool_choice", "function_call"} & fields.keys():
        check_choice(choice, allowed, tools)
    return replace(
        request,
        conversation=_read_conversation(fields, tools),
        tool_choice=choice,
        allowed_tools=allowed,
        is_parallel=read_flag("parallel_tool_calls", fields.get("parallel_tool_calls", True)),
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


def is_conversation(text: str) -> bool:
    """Whether `text` is a conversation in JSON, and no prompt."""
    try:
        parse_chat_prompt(text, prompt_allowed=False)
    except UsageError:
        return False
    return True


def _read_conversation(fields: Mapping[str, Any], tools: Any) -> ChatPrompt:
    if "messages" in fields and "prompt" in fields:
        raise UsageError("prompt and messages are both given", hint="give one", param="prompt")
    if "prompt" in fields:
        return ChatPrompt([{"role": "user", "content": fields["prompt"]}], tools)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError("messages must be a list of objects", param="messages")
    return ChatPrompt(messages, tools)


def _read_params(fields: Mapping[str, Any], params: SamplingParams, *, is_chat: bool) -> SamplingParams:
    """Put what the fields say in the place of `params`."""
    apart = {"logprobs", "max_tokens"} if is_chat else {"max_tokens"}
    kinds = {name: kind for name, kind in _PARAMS.items() if name in fields and name not in apart}
    given = {name: read_number(name, fields[name], kind) for name, kind in kinds.items()}
    if (max_tokens := read_max_tokens(fields)) is not None:
        given["max_tokens"] = max_tokens
    if is_chat and {"logprobs", "top_logprobs"} & fields.keys():
        given["logprobs"] = read_chat_logprobs(fields)
    if "stop" in fields:
        given["stop"] = read_stop(fields["stop"])
    if "logit_bias" in fields:
        given["logit_bias"] = read_logit_bias(fields["logit_bias"])
    for name, value in given.items():
        try:
            params = replace(params, **{name: value})
        except UsageError as error:
            raise UsageError(error.message, hint=error.hint, param=name) from None
    return params
