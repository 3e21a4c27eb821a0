"""The fields of OpenAI's requests, one by one: from JSON to our values. Knows nothing about models.

Each error says as `param` which field it is about.
"""

import json
from collections.abc import Mapping
from typing import Any

from m7b.constraint import AnyJson, Grammar, JsonSchema
from m7b.errors import UsageError
from m7b.offer import ANY, AUTO, NONE

IGNORED = frozenset(
    (
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "prediction",
        "stream_options",
    )
)
"""Fields that name the caller or the way to a server: they change no token."""

_TEXT_ONLY = "this model writes text alone"
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "stream": ((False,), "answers come whole here"),
    "modalities": ((["text"],), _TEXT_ONLY),
    "audio": ((), _TEXT_ONLY),
    "best_of": ((1,), "ask for n samples and choose among them"),
    "suffix": (("",), "this model continues a text and fills no gap"),
    "reasoning_effort": (("none",), "this model does not reason before it answers"),
    "verbosity": (("medium",), "ask for it in a message"),
    "web_search_options": ((), "offer a search as a tool"),
    "moderation": ((), "nothing is moderated here"),
    "safe_prompt": ((False,), "write a system message"),
    "guardrails": (([],), "nothing is moderated here"),
}
"""Fields that cannot be honoured: the values that ask for nothing, and why others are refused."""

FIXED = frozenset(_FIXED)

_SYNONYMS = {"random_seed": "seed"}


def replace_synonyms(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields that Mistral's own clients send OpenAI's names.

    Raises:
        UsageError: a field is given by both names.
    """
    for name, usual in _SYNONYMS.items():
        if name in fields and usual in fields:
            raise UsageError(f"{usual} and {name} are both given", hint="give one", param=name)
    return {_SYNONYMS.get(name, name): value for name, value in fields.items()}


def check_fixed(fields: Mapping[str, Any]) -> None:
    """Check that no field asks for what nobody can do here.

    Raises:
        UsageError: one does.
    """
    for name, (harmless, reason) in _FIXED.items():
        if name in fields and fields[name] not in harmless:
            if name == "best_of" and fields[name] == fields.get("n"):
                continue  # all samples are wanted
            raise UsageError(
                f"the field {name!r} is {_shorten(fields[name])}", hint=f"leave it out: {reason}", param=name
            )


def read_number(name: str, value: Any, kind: Any) -> Any:
    """Read `value` as `kind`; an integer passes as a float, a bool as neither."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise UsageError(f"{name} is {_shorten(value)}", hint=f"it must be {_KIND_NAMES[kind]}", param=name)
    try:
        return kind(value)
    except OverflowError:
        raise UsageError(f"{name} is beyond all numbers", hint="write it smaller", param=name) from None


_KIND_NAMES = {int: "an integer", float: "a number"}


def read_flag(name: str, value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false", param=name)
    return value


def read_max_tokens(fields: Mapping[str, Any]) -> int | None:
    """Read `max_completion_tokens` and its elder name `max_tokens`; None where neither is given."""
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    values = [int(read_number(name, fields[name], int)) for name in names]
    if len(set(values)) > 1:
        raise UsageError(
            f"max_completion_tokens is {values[0]} and max_tokens is {values[1]}",
            hint="give one",
            param="max_tokens",
        )
    return values[0] if values else None


def read_chat_logprobs(fields: Mapping[str, Any]) -> int | None:
    """Read a chat's `logprobs`, true or false with the number in `top_logprobs`, or ours: the number."""
    wanted = fields.get("logprobs", False)
    if not isinstance(wanted, bool):
        return int(read_number("logprobs", wanted, int))
    if "top_logprobs" in fields and not wanted:
        raise UsageError(
            "top_logprobs is given without logprobs", hint='add "logprobs": true', param="top_logprobs"
        )
    return int(read_number("top_logprobs", fields.get("top_logprobs", 0), int)) if wanted else None


def read_prompt(value: Any) -> str | tuple[int, ...]:
    """Read the prompt of a text completion: a text, or ids; a list may hold one."""
    match value:
        case str() | [str()]:
            return value if isinstance(value, str) else str(value[0])
        case [list(ids)] | list(ids) if ids and all(type(token) is int for token in ids):
            return tuple(ids)
        case list():
            hint = "write a request for each text"
        case _:
            hint = "write the text to continue"
    raise UsageError("prompt must be a string", hint=hint, param="prompt")


def read_stop(value: Any) -> tuple[str, ...]:
    """Read `stop`: a text, or several."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise UsageError("stop must be a string or a list of strings", param="stop")
    return tuple(stops)


def read_logit_bias(value: Any) -> dict[int, float]:
    """Read `logit_bias`: a number for each token id, written as a string."""
    if not isinstance(value, dict) or not all(key.isdecimal() and len(key) < 12 for key in value):
        raise UsageError('logit_bias must map token ids to numbers, like {"15043": -100}', param="logit_bias")
    return {int(key): read_number(f"logit_bias of {key}", bias, float) for key, bias in value.items()}


def read_tools(fields: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read `tools`, or the `functions` of before tools; None where there are none."""
    if "functions" not in fields:
        tools = fields.get("tools", [])
        if not isinstance(tools, list):
            raise UsageError("tools must be a list of objects", param="tools")
        return tools or None
    if "tools" in fields:
        raise UsageError("tools and functions are both given", hint="give tools alone", param="functions")
    functions = fields["functions"]
    if not isinstance(functions, list):
        raise UsageError("functions must be a list of objects", hint="give tools instead", param="functions")
    return [{"type": "function", "function": function} for function in functions] or None


def read_tool_choice(fields: Mapping[str, Any], default: str) -> tuple[str, frozenset[str] | None]:
    """Read `tool_choice`, or the `function_call` of before tools.

    Returns:
        The choice in our words, and the names of the tools that may be called; None allows all.
    """
    match fields.get("tool_choice"), fields.get("function_call"):
        case None, None:
            return default, None
        case "required", _:
            return ANY, None
        case (str() as choice, _) | (None, ("auto" | "none") as choice):
            return str(choice), None
        case ({"type": "function", "function": {"name": str() as name}}, _) | (None, {"name": str() as name}):
            return name, None
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode} as allowed}, _:
            return AUTO if mode == "auto" else ANY, _read_allowed(allowed.get("tools"))
        case {"type": "custom"}, _:
            raise UsageError(
                "tool_choice names a custom tool",
                hint="this model was trained on functions alone",
                param="tool_choice",
            )
    param = "tool_choice" if "tool_choice" in fields else "function_call"
    raise UsageError(
        f"{param} is of no known form", hint="write auto, required, none, or a function", param=param
    )


def _read_allowed(tools: Any) -> frozenset[str]:
    names = [
        tool["function"]["name"]
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict) and "name" in tool["function"]
    ]
    if not names or len(names) != len(tools) or not all(isinstance(name, str) for name in names):
        raise UsageError(
            "tool_choice.allowed_tools.tools must be a list of functions",
            hint='write [{"type": "function", "function": {"name": …}}]',
            param="tool_choice.allowed_tools.tools",
        )
    return frozenset(names)


def check_choice(choice: str, allowed: frozenset[str] | None, tools: Any) -> None:
    """Check that a demanded call has a tool to go to."""
    if not tools and choice not in (AUTO, NONE):
        raise UsageError(
            f"tool_choice is {choice!r} and there are no tools", hint="give tools", param="tool_choice"
        )
    names = {
        name
        for tool in tools or ()
        if isinstance(tool, dict)
        and isinstance(function := tool.get("function"), dict)
        and isinstance(name := function.get("name"), str)
    }
    if missing := sorted((allowed or set()) - names):
        raise UsageError(
            f"tool_choice allows {missing[0]!r}, which is none of the tools",
            hint="name those in tools",
            param="tool_choice.allowed_tools.tools",
        )


def read_response_format(value: Any) -> Grammar | None:
    """Read what `response_format` asks for; a schema is kept to whether it is `strict` or not."""
    match value:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return AnyJson()
        case {"type": "json_schema", "json_schema": {"schema": dict() | bool() as schema}}:
            return JsonSchema(schema)
        case {"type": "json_schema", "json_schema": {"name": str()} as named} if named.get("schema") is None:
            return AnyJson()
    raise UsageError(
        "response_format is of no known form",
        hint='write {"type": "json_schema", "json_schema": {"schema": {…}}}, or json_object or text as type',
        param="response_format",
    )


def _shorten(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]
