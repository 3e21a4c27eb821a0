"""OpenAI's messages and tools as mistral-common takes them. Knows their shapes; nothing about token ids.

What changes no prompt is dropped, ids of calls get the length that template v3 demands, and what Mistral's
templates cannot show is refused with its place and the way out.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from m7b.errors import InvalidConversation

_ROLES = {"developer": "system", "function": "tool"}  # OpenAI's other names for a role
_REASONING = ("reasoning_content", "reasoning", "reasoning_details")
_KNOWN = {"role", "content", "name", "id", "cache_control", "provider_specific_fields"}
_KNOWN_BY_ROLE = {
    "assistant": {
        "prefix",
        "tool_calls",
        "function_call",
        "refusal",
        "annotations",
        "audio",
        "parsed",
        "weight",
    }
    | set(_REASONING),
    "tool": {"tool_call_id", "is_error", "status"},
}
_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_TEXT_ONLY = "this model reads text alone: leave the part out, or say it in words"
_FUNCTIONS_ONLY = "this model was trained on functions alone: describe it as one with a string as parameter"


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Read messages as OpenAI's clients write them.

    Raises:
        InvalidConversation: they say something that Mistral's templates cannot show.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        _refuse("messages", "must be a list of objects")
    ids = _CallIds()
    return [_read_message(message, f"messages[{at}]", ids) for at, message in enumerate(messages)]


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Read tools as OpenAI's clients write them; what says nothing about a tool is dropped.

    Raises:
        InvalidConversation: one of them is no function.
    """
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        _refuse("tools", "must be a list of objects")
    return [_read_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]


def find_left_out(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Find the places of what Mistral's templates leave out: thoughts, and text beside calls."""
    for at, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") == "assistant":
            yield from (f"messages[{at}].{name}" for name in _REASONING if message.get(name))
            content = message.get("content")
            parts = content if isinstance(content, list) else []
            if (message.get("tool_calls") or message.get("function_call")) and _has_text(content):
                yield f"messages[{at}].content"
                continue
            yield from (f"messages[{at}].content[{n}]" for n, part in enumerate(parts) if _is_thought(part))


class _CallIds:
    """The ids of one conversation's calls in nine letters and digits: the last nine, as vLLM takes them.

    Where these are not nine, or belong to another call already, they are nine of the id's hash.
    """

    def __init__(self) -> None:
        self._short: dict[str, str] = {}
        self.last_function = ""  # the id of the last function call of before tools, which had none

    def shorten(self, long: str) -> str:
        if long not in self._short:
            tries = (long[-9:], *(_hash(f"{n}{long}") for n in range(99)))
            taken = set(self._short.values())
            self._short[long] = next(t for t in tries if _CALL_ID.fullmatch(t) and t not in taken)
        return self._short[long]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def _read_message(message: Any, place: str, ids: _CallIds) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        hint = 'write {"role": "user", "content": "Hello"}'
        _refuse(place, "must be an object", hint=hint, rule="model_attributes_type")
    name = message.get("role")
    role = _ROLES.get(name, name) if isinstance(name, str) else name
    if role not in ("system", "user", "assistant", "tool"):
        _refuse(
            f"{place}.role",
            "is missing" if name is None else f"is {name!r}",
            hint="it can be system, developer, user, assistant or tool",
            rule="union_tag_not_found" if name is None else "union_tag_invalid",
        )
    _check_keys(message, place, role)
    match name:
        case "assistant":
            return _read_answer(message, place, ids)
        case "tool":
            long = message.get("tool_call_id")
            if not isinstance(long, str) or not long:
                _refuse(
                    f"{place}.tool_call_id",
                    "is missing",
                    hint="it is the id of the call that has this result",
                )
            content = _read_content(message.get("content"), f"{place}.content")
            return {"role": "tool", "tool_call_id": ids.shorten(long), "content": content}
        case "function":
            if not ids.last_function:
                _refuse(place, "is the result of no function_call before it")
            content = _read_content(message.get("content") or "", f"{place}.content")
            return {"role": "tool", "tool_call_id": ids.last_function, "content": content}
        case _:
            return {"role": role, "content": _read_content(message.get("content"), f"{place}.content")}


def _read_answer(message: Mapping[str, Any], place: str, ids: _CallIds) -> dict[str, Any]:
    """Read a message of the assistant: calls, which have no place for text up to v3, or text or a refusal."""
    calls = _read_calls(message, place, ids)
    content = message.get("content")
    if content is None and isinstance(refusal := message.get("refusal"), str):
        content = refusal
    if content is not None:
        content = _read_content(content, f"{place}.content", is_answer=True)
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    if not calls and not any(texts):
        _refuse(
            place,
            "has neither content nor tool_calls",
            hint="leave the message out",
            kind="InvalidAssistantMessageException",
        )
    prefix = {"prefix": message["prefix"]} if message.get("prefix") is not None else {}
    return {"role": "assistant"} | ({"tool_calls": calls} if calls else {"content": content}) | prefix


def _read_calls(message: Mapping[str, Any], place: str, ids: _CallIds) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        _refuse(f"{place}.tool_calls", "must be a list of objects")
    read = [_read_call(call, f"{place}.tool_calls[{at}]", ids) for at, call in enumerate(calls)]
    if message.get("function_call") is not None:
        ids.last_function = ids.shorten(f"{place}.function_call")
        function = _read_called(message["function_call"], f"{place}.function_call")
        read.append({"id": ids.last_function, "type": "function", "function": function})
    return read


def _read_call(call: Any, place: str, ids: _CallIds) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        _refuse(place, "must be an object")
    if call.get("type", "function") not in ("function", None):
        _refuse(f"{place}.type", f"is {call['type']!r}", hint=_FUNCTIONS_ONLY)
    function = _read_called(call.get("function"), f"{place}.function")
    if not isinstance(call.get("id"), str) or not call["id"]:
        _refuse(f"{place}.id", "is missing", hint="its result names it as tool_call_id")
    return {"id": ids.shorten(call["id"]), "type": "function", "function": function}


def _read_called(function: Any, place: str) -> dict[str, Any]:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        _refuse(place, "must be an object with name and arguments")
    arguments = function.get("arguments")
    if not isinstance(arguments, str | Mapping | None):
        _refuse(f"{place}.arguments", f"is a {type(arguments).__name__}", hint="it must be JSON of an object")
    return {"name": function["name"], "arguments": arguments}


def _read_content(content: Any, place: str, *, is_answer: bool = False) -> str | list[dict[str, Any]]:
    """Read text, or parts of which each is text; parts without text are dropped."""
    if isinstance(content, str):
        return content
    if content is None:
        _refuse(place, "is missing", hint="it must be text, which may be empty")
    if not isinstance(content, list | tuple):
        _refuse(place, f"is a {type(content).__name__}", hint="it must be text, or a list of parts")
    parts = enumerate(content)
    texts = [_read_part(part, f"{place}[{at}]", is_answer=is_answer) for at, part in parts]
    return [{"type": "text", "text": text} for text in texts if text]


def _read_part(part: Any, place: str, *, is_answer: bool) -> str:
    match part:
        case {"type": "text", "text": str() as text}:
            return text
        case {"type": "refusal", "refusal": str() as text} if is_answer:
            return text
        case {"type": "thinking"} if is_answer:
            return ""
        case {"type": "text"}:
            _refuse(f"{place}.text", "must be a string")
        case {"type": str() as kind}:
            _refuse(f"{place}.type", f"is {kind!r}", hint=_TEXT_ONLY)
    return _refuse(place, "must be an object with a type", hint='write {"type": "text", "text": "Hello"}')


def _read_tool(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        _refuse(place, "must be an object", hint='write {"type": "function", "function": {"name": …}}')
    if tool.get("type", "function") != "function":
        _refuse(f"{place}.type", f"is {tool['type']!r}", hint=_FUNCTIONS_ONLY)
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        _refuse(f"{place}.function", "must be an object with a name")
    known = ("name", "description", "parameters", "strict")
    given = {name: function[name] for name in known if function.get(name) is not None}
    return {"type": "function", "function": {"description": "", "parameters": {}} | given}


def _has_text(content: Any) -> bool:
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return any(isinstance(text, str) and text.strip() for text in texts)


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "thinking"


def _check_keys(message: Mapping[str, Any], place: str, role: str) -> None:
    """Refuse a field that might have meant something; null means nothing."""
    known = _KNOWN | _KNOWN_BY_ROLE.get(role, set())
    for name, value in message.items():
        if name not in known and value is not None:
            fault = "is no field of such a message"
            _refuse(f"{place}.{name}", fault, hint="leave it out", rule="extra_forbidden", role=role)


def _refuse(
    place: str, fault: str, *, hint: str = "", kind: str = "ValidationError", rule: str = "", role: str = ""
) -> NoReturn:
    """Refuse what stands at `place`; `rule` is mistral-common's name for the fault."""
    if rule:
        message, _, name = place.replace("[", ".").replace("]", "").removesuffix(".role").partition(".")
        number, _, name = name.partition(".")
        path = ".".join(part for part in (message, number, role, name) if part)
        hint = f"{hint} ({path}: {rule})"
    raise InvalidConversation(kind, f"{place} {fault}", hint=hint, param=place)
