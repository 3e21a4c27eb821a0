"""OpenAI's Responses: their input as a chat, and an answer in their shape. Nothing is kept."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from m7b.completions import Completion, count_cached, count_usage
from m7b.errors import UsageError
from m7b.generation import (
    CallDelta,
    CallPart,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    TextDelta,
)
from m7b.server.errors import HttpError, format_error

_SAME = ("model", "temperature", "top_p", "parallel_tool_calls", "seed", "metadata", "user", "service_tier")
_HARMLESS = frozenset(
    (
        *("input", "instructions", "tools", "tool_choice", "max_output_tokens", "text", "stream", "store"),
        *("include", "reasoning", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("client_metadata", "stream_options", "truncation"),
    )
)
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "developer"}


def read_response_request(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a chat completion that ask for the same.

    Raises:
        UsageError: a field asks for what nobody can do here; `param` names it.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    _check(fields)
    chat = {name: fields[name] for name in _SAME if name in fields}
    chat["messages"] = _read_input(fields)
    if "max_output_tokens" in fields:
        chat["max_tokens"] = fields["max_output_tokens"]
    if tools := fields.get("tools"):
        chat["tools"] = _read_tools(tools)
    if tools and "tool_choice" in fields:
        chat["tool_choice"] = _read_tool_choice(fields["tool_choice"])
    if text_format := _read_format(fields.get("text", {})):
        chat["response_format"] = text_format
    return chat


def format_response(completion: Completion, fields: dict[str, Any]) -> dict[str, Any]:
    """The finished answer."""
    return _Frame(fields, completion).finish(completion)


class ResponseStream:
    """The events of an answer on its way."""

    def __init__(self, completion: Completion, fields: dict[str, Any]) -> None:
        self._completion = completion
        self._frame = _Frame(fields, completion)
        self._number = 0
        self._text = ""
        self._calls = ""
        self._item: dict[str, Any] | None = None
        self._is_text_done = False

    def begin(self) -> Iterator[dict[str, Any]]:
        """That the answer has begun."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._frame.describe("in_progress"))

    def add(self, index: int, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        """What `event` comes to."""
        match event:
            case TextDelta(text):
                yield from self._add_text(text)
            case CallDelta(text, parts):  # without parts told whole, once it is sure that they are calls
                self._calls += text
                for part in parts:
                    yield from self._add_call(part)
            case Finished():
                yield from self._end(event)
            case PromptProgress():
                pass

    def finish(self) -> Iterator[dict[str, Any]]:
        """The whole answer at the end."""
        response = self._frame.finish(self._completion, self._text if self._frame.calls else None)
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, error: HttpError) -> Iterator[dict[str, Any]]:
        """That it has failed."""
        told = format_error(error)["error"]
        response = self._frame.describe("failed") | {
            "error": {"code": told["code"] or "server_error", "message": told["message"]}
        }
        yield self._event("response.failed", response=response)

    def _add_text(self, text: str) -> Iterator[dict[str, Any]]:
        if self._item is None:
            self._item = self._frame.make_message("", "in_progress")
            begun = self._item | {"content": []}
            yield self._event("response.output_item.added", output_index=0, item=begun)
            yield self._event("response.content_part.added", **self._place(), part=_part(""))
        self._text += text
        yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def _end_text(self) -> Iterator[dict[str, Any]]:
        if self._item is None or self._is_text_done:
            return
        self._is_text_done = True
        yield self._event("response.output_text.done", **self._place(), text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_part(self._text))
        item = self._frame.make_message(self._text, "completed")
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _add_call(self, part: CallPart) -> Iterator[dict[str, Any]]:
        if part.name:
            yield from self._end_text()
            item = self._frame.begin_call(part)
            yield self._event("response.output_item.added", output_index=self._index(part.index), item=item)
        if part.arguments:
            place = self._frame.add_arguments(part) | {"output_index": self._index(part.index)}
            yield self._event("response.function_call_arguments.delta", **place, delta=part.arguments)

    def _end(self, finished: Finished) -> Iterator[dict[str, Any]]:
        told = self._frame.calls
        if finished.reason is FinishReason.LENGTH and self._calls and not told:
            yield from self._add_text(self._calls)
        for index, call in enumerate(finished.calls[len(told) :], len(told)):
            yield from self._add_call(CallPart(index, call.id, call.name))
            yield from self._add_call(CallPart(index, call.id, arguments=call.arguments))
        yield from self._end_text()
        for index, item in enumerate(self._frame.end_calls(finished)):
            place = {"item_id": item["id"], "output_index": self._index(index)}
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **place, **said)
            yield self._event("response.output_item.done", output_index=self._index(index), item=item)

    def _index(self, call: int) -> int:
        """The place of a call in the output."""
        return call + bool(self._text)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._frame.message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **content: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **content}


class _Frame:
    """What stays the same in all that is told of one answer."""

    def __init__(self, fields: dict[str, Any], completion: Completion) -> None:
        self.message_id = f"msg_{uuid.uuid4().hex}"
        self.calls: list[dict[str, Any]] = []
        params = completion.request.params
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": completion.model.name,
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "metadata": fields.get("metadata") or {},
            "parallel_tool_calls": completion.request.is_parallel,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "text": fields.get("text") or {"format": {"type": "text"}},
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": [tool for tool in fields.get("tools") or [] if tool.get("type") == "function"],
            "truncation": "disabled",
        }

    def describe(self, status: str) -> dict[str, Any]:
        """The answer before it has anything to say."""
        return self._head | {
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [],
        }

    def finish(self, completion: Completion, text: str | None = None) -> dict[str, Any]:
        """The answer at its end, with `text` where it was told in parts."""
        (choice,) = completion.choices
        is_cut = choice.finished.reason is FinishReason.LENGTH
        for index, call in enumerate(choice.finished.calls[len(self.calls) :], len(self.calls)):
            self.begin_call(CallPart(index, call.id, call.name))
            self.add_arguments(CallPart(index, call.id, arguments=call.arguments))
        calls = self.end_calls(choice.finished)
        text = choice.text if text is None else text
        output = [self.make_message(text, "incomplete" if is_cut else "completed")]
        usage = count_usage([completion])
        return self.describe("incomplete" if is_cut else "completed") | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [*(output if text or not calls else []), *calls],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": count_cached([completion]),
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def make_message(self, text: str, status: str) -> dict[str, Any]:
        """The text as an item of the output."""
        content = [_part(text)]
        return {
            "type": "message",
            "id": self.message_id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def begin_call(self, part: CallPart) -> dict[str, Any]:
        """A call as an item of the output, before it has arguments."""
        head = {
            "type": "function_call",
            "id": f"fc_{uuid.uuid4().hex}",
            "call_id": part.id,
            "name": part.name,
        }
        self.calls.append(head | {"arguments": "", "status": "in_progress"})
        return dict(self.calls[-1])

    def add_arguments(self, part: CallPart) -> dict[str, Any]:
        """Keep more of a call; returns how its item is named."""
        item = self.calls[part.index]
        item["arguments"] += part.arguments
        return {"item_id": item["id"]}

    def end_calls(self, finished: Finished) -> list[dict[str, Any]]:
        """All calls as items of the output; one that was cut is incomplete."""
        for number, item in enumerate(self.calls):
            item["status"] = "completed" if number < len(finished.calls) else "incomplete"
        return self.calls


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _check(fields: dict[str, Any]) -> None:
    if "previous_response_id" in fields or "conversation" in fields:
        name = "previous_response_id" if "previous_response_id" in fields else "conversation"
        raise UsageError(f"{name} names what is not kept", hint="send the whole input", param=name)
    if fields.get("background"):
        raise UsageError("background is true", hint="answers are not kept to be fetched", param="background")
    if fields.get("truncation", "disabled") != "disabled":
        raise UsageError("truncation is not disabled", hint="shorten the input", param="truncation")
    unknown = sorted(fields.keys() - _HARMLESS - set(_SAME) - {"previous_response_id", "background"})
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r}", hint="leave it out", param=unknown[0])


def _read_input(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages of the input, with the instructions in front."""
    given = fields.get("input")
    messages: list[dict[str, Any]] = []
    if instructions := fields.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise UsageError("input must be a text or a list of items", param="input")
    for number, item in enumerate(given):
        _add_item(messages, item, f"input[{number}]")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, place: str) -> None:
    """Put one item behind `messages`; calls join the assistant's message that they follow."""
    match item:
        case {"type": "function_call", "call_id": str() as id, "name": str() as name}:
            call = {
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": item.get("arguments")},
            }
            if not (messages and messages[-1]["role"] == "assistant"):
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        case {"type": "function_call_output", "call_id": str() as id, "output": output}:
            messages.append({"role": "tool", "tool_call_id": id, "content": _read_content(output, place)})
        case {"type": "reasoning"}:
            pass  # of other models, which this one has no place for
        case {"role": str() as role, "content": content} if role in _ROLES:
            messages.append({"role": _ROLES[role], "content": _read_content(content, place)})
        case _:
            kind = item.get("type") if isinstance(item, dict) else type(item).__name__
            raise UsageError(
                f"{place} is {kind!r}", hint="it can be a message, a function_call or its output", param=place
            )


def _read_content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        match part:
            case {"type": "input_text" | "output_text" | "text", "text": str() as text}:
                texts.append(text)
            case {"type": "refusal", "refusal": str() as text}:
                texts.append(text)
            case _:
                raise UsageError(
                    f"{place}.content[{number}] is no text",
                    hint="this model reads text alone",
                    param=f"{place}.content[{number}]",
                )
    return "\n\n".join(texts)


def _read_tools(tools: Any) -> list[dict[str, Any]]:
    """Read the functions. What OpenAI runs itself, as a web search, is left out beside functions."""
    if not isinstance(tools, list):
        raise UsageError("tools must be a list", param="tools")
    placed = [(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    functions = [
        each for each in placed if not isinstance(each[0], dict) or each[0].get("type") == "function"
    ]
    return [_read_tool(tool, place) for tool, place in functions or placed]


def _read_tool(tool: Any, place: str) -> dict[str, Any]:
    match tool:
        case {"type": "function", "name": str()}:
            function = {key: value for key, value in tool.items() if key != "type" and value is not None}
            return {"type": "function", "function": function}
    kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
    raise UsageError(f"{place} is {kind!r}", hint="tools are functions here", param=place)


def _read_tool_choice(choice: Any) -> Any:
    match choice:
        case {"type": "function", "name": str() as name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": list() as tools}:
            named = [
                {"type": "function", "function": {"name": tool.get("name")}}
                for tool in tools
                if isinstance(tool, dict)
            ]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
    return choice


def _read_format(text: Any) -> dict[str, Any] | None:
    """What `text.format` asks for, as a chat's `response_format`."""
    match text:
        case {"format": {"type": "json_schema"} as schema}:
            return {
                "type": "json_schema",
                "json_schema": {key: schema[key] for key in schema if key != "type"},
            }
        case {"format": {"type": "text" | "json_object"} as plain}:
            return {"type": plain["type"]}
        case {"format": other}:
            raise UsageError(
                f"text.format is {json.dumps(other)[:60]}",
                hint="it can be text, json_object or json_schema",
                param="text.format",
            )
        case dict():
            return None
    raise UsageError("text must be an object", hint='such as {"format": {"type": "text"}}', param="text")
