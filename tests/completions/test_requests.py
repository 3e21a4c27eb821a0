"""What OpenAI's clients may send: each field is honoured, changes nothing, or is refused by its name."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m7b.completions import CompletionRequest, parse_request
from m7b.constraint import AnyJson, JsonSchema
from m7b.errors import UsageError
from m7b.generation import SamplingParams

DEFAULTS = CompletionRequest("", SamplingParams(max_tokens=9))
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
OTHER = {"type": "function", "function": {"name": "g"}}
CALL_F = {"type": "function", "function": {"name": "f"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": False}}

# The fields of chat.completions.create and completions.create in openai 3, each with a value of its type.
HARMLESS = {
    "model": "gpt-4o", "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
    "safety_identifier": "u", "prompt_cache_key": "k", "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "x"}, "stream": False,
    "stream_options": {"include_usage": True}, "best_of": 1, "modalities": ["text"], "verbosity": "medium",
    "reasoning_effort": "none", "suffix": "", "parallel_tool_calls": True, "logprobs": False,
    "response_format": {"type": "text"}, "tools": [], "functions": [], "tool_choice": "auto",
    "function_call": "none", "logit_bias": {}, "stop": [],
}  # fmt: skip
REFUSED = {
    "stream": True, "audio": {"voice": "alloy", "format": "wav"}, "modalities": ["text", "audio"],
    "best_of": 3, "suffix": "x", "reasoning_effort": "high", "verbosity": "low", "web_search_options": {},
    "moderation": {"model": "m"}, "top_logprobs": 2, "mood": "good", "logit_bias": [1], "n": 0, "seed": "1",
    "top_p": 2, "temperature": -1, "presence_penalty": "1", "max_tokens": -1, "max_completion_tokens": 1.5,
    "parallel_tool_calls": "no", "tool_choice": "required", "response_format": "json", "stop": 5,
    "logprobs": "a", "functions": {}, "function_call": 5, "echo": True, "tools": -1,
}  # fmt: skip


def parse(**fields):
    return parse_request({"messages": HI} | fields, DEFAULTS, is_chat=True)


@pytest.mark.parametrize("name", HARMLESS)
def test_field_that_changes_no_token_is_accepted(name):
    """`store`, `service_tier` and more ended the request."""
    wanted = replace(parse(), tool_choice="none") if name == "function_call" else parse()
    assert parse(**{name: HARMLESS[name]}) == wanted


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["auto", "f", "type"])
KEYS = st.sampled_from(
    ["type", "function", "name", "allowed_tools", "mode", "tools", "json_schema", "schema"]
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
ODD_TOOL = {"type": "function", "function": {"name": ["f"]}}


@settings(deadline=None, max_examples=500)
@given(st.dictionaries(st.sampled_from([*HARMLESS, *REFUSED, "messages"]), VALUES, min_size=1, max_size=3))
@example({"tools": -1, "tool_choice": "auto"})
@example({"tools": [ODD_TOOL], "tool_choice": "auto"})
def test_whatever_the_fields_hold_it_is_read_or_refused(fields):
    """`tools: -1` beside a `tool_choice` was a fault of the server's."""
    for is_chat in (True, False):
        with suppress(UsageError):
            parse_request(fields, DEFAULTS, is_chat=is_chat)


@pytest.mark.parametrize("name", [*HARMLESS, *REFUSED])
def test_null_field_is_a_missing_one(name):
    assert parse(**{name: None}) == parse()


@pytest.mark.parametrize("name", REFUSED)
def test_field_that_cannot_be_honoured_is_refused_by_its_name(name):
    with pytest.raises(UsageError) as caught:
        parse(**{name: REFUSED[name]})
    assert caught.value.param == name
    assert caught.value.report()["param"] == name
    assert name in str(caught.value) or name == "response_format"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": 3}, {"logprobs": 3}),
        ({"stop": "a", "seed": 3, "top_p": 1}, {"stop": ("a",), "seed": 3, "top_p": 1.0}),
        (
            {"logit_bias": {"5": -100}, "presence_penalty": 1},
            {"logit_bias": {5: -100}, "presence_penalty": 1.0},
        ),
    ],
    ids=str,
)
def test_sampling_field_is_honoured(fields, expected):
    params = parse(**fields).params
    assert {name: getattr(params, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"tool_choice": "none"}, ("none", None)),
        ({"tool_choice": "required"}, ("any", None)),
        ({"tool_choice": CALL_F}, ("f", None)),
        ({"function_call": "auto"}, ("auto", None)),
        ({"function_call": {"name": "f"}}, ("f", None)),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CALL_F]}}},
         ("auto", {"f"})),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CALL_F]}}},
         ("any", {"f"})),
    ],
    ids=str,
)  # fmt: skip
def test_tool_choice_is_read_in_all_its_shapes(choice, expected):
    request = parse(tools=[TOOL, OTHER], **choice)
    assert (request.tool_choice, request.allowed_tools) == expected


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "custom", "custom": {"name": "f"}}, "tool_choice"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"type": "function"}, "tool_choice"),
        (["f"], "tool_choice"),
    ],
    ids=str,
)
def test_tool_choice_of_another_shape_is_refused(choice, param):
    with pytest.raises(UsageError) as caught:
        parse(tools=[TOOL], tool_choice=choice)
    assert caught.value.param == param


def test_functions_are_tools():
    functions = [TOOL["function"], OTHER["function"]]
    assert parse(functions=functions).conversation == parse(tools=[TOOL, OTHER]).conversation


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"type": "json_object"}, AnyJson()),
        (FORMAT, JsonSchema({"type": "object"})),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, AnyJson()),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": None, "strict": None}}, AnyJson()),
    ],
    ids=str,
)
def test_response_format_is_read_in_all_its_shapes(asked, expected):
    assert parse(response_format=asked).grammar == expected


def test_response_format_goes_with_tools_that_must_not_be_called():
    assert parse(response_format=FORMAT, tools=[TOOL], tool_choice="none").grammar is not None
    with pytest.raises(UsageError, match="tool_choice"):
        parse(response_format=FORMAT, tools=[TOOL])


def test_mistrals_names_of_fields_are_known():
    """Found with mistralai's client: `random_seed` was an unknown field."""
    read = parse_request({"messages": HI, "random_seed": 7, "safe_prompt": False}, DEFAULTS, is_chat=True)
    assert read.params.seed == 7
    for field, fields in {
        "random_seed": {"seed": 7, "random_seed": 7},
        "safe_prompt": {"safe_prompt": True},
    }.items():
        with pytest.raises(UsageError) as refused:
            parse_request({"messages": HI, **fields}, DEFAULTS, is_chat=True)
        assert refused.value.param == field


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 3, "max_completion_tokens": 4}, {"functions": [], "tools": [TOOL]}]
)
def test_two_names_of_one_field_must_agree(fields):
    with pytest.raises(UsageError) as caught:
        parse(**fields)
    assert caught.value.param in fields


@pytest.mark.parametrize("prompt", [5, ["a", "b"], [1, "a"], [[1], [2]], [], {}])
def test_prompt_is_one_text_or_its_ids(prompt):
    assert parse_request({"prompt": ["a"]}, DEFAULTS).prompt == "a"
    assert parse_request({"prompt": [1, 2]}, DEFAULTS).prompt == (1, 2)
    with pytest.raises(UsageError) as caught:
        parse_request({"prompt": prompt}, DEFAULTS)
    assert caught.value.param == "prompt"
