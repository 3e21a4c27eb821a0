"""Tool calls as models write them, good and bad, and the schema that they are kept to."""

import json
import re

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m7b.call_format import MISTRAL
from m7b.calls import CallReader, parse_calls
from tests.support.calls import build_calls_schema

DALLAS = {"city": "Dallas", "state": "TX", "unit": "fahrenheit"}
SAN_FRANCISCO = {"city": "San Francisco", "state": "CA", "unit": "fahrenheit"}
WEATHER = [("get_current_weather", DALLAS)]


def parsed(text, **options):
    return [
        (call.name, json.loads(call.arguments, parse_constant=pytest.fail))
        for call in parse_calls(text, **options)
    ]


def call(name="f", arguments='{"a": 1}', **others):
    """One call as a model writes it."""
    rest = "".join(f', "{key}": {value}' for key, value in others.items())
    return f'{{"name": "{name}", "arguments": {arguments}{rest}}}'


# What Mistral models were seen to write. Names and values may be shortened.
SEEN = {
    # vLLM, tests/tool_parsers/test_mistral_tool_parser.py, tokenizer of 7B v0.3
    "no space": ('[TOOL_CALLS][{"name": "add", "arguments":{"a": 3.5}}]', [("add", {"a": 3.5})]),
    "a space": (f'[TOOL_CALLS] [{call("get_current_weather", json.dumps(DALLAS))}]', WEATHER),
    "arguments first": ('[TOOL_CALLS] [{"arguments":{"name": "John Doe"}, "name": "get_age"}]',
                        [("get_age", {"name": "John Doe"})]),
    "parallel": (f'[TOOL_CALLS] [{call()}, {call("g")}]', [("f", {"a": 1}), ("g", {"a": 1})]),
    "text behind": (f'[TOOL_CALLS] [{call()}]\nextra trailing data', [("f", {"a": 1})]),
    "junk in front": (f"[TOOL_CALLS]  junk [{call()}] trail", [("f", {"a": 1})]),
    # vLLM PR 40531: newlines behind the list
    "newlines behind": (f"[TOOL_CALLS][{call()}]\n\n\n", [("f", {"a": 1})]),
    # vLLM PR 5649, amihalik 2024-08-09: quotes of the other kind inside
    "apostrophes": ('[TOOL_CALLS] [{"name": "write_story", "arguments": {"topic": "\'smell my feet\'"}}]',
                    [("write_story", {"topic": "'smell my feet'"})]),
    # Hub, Mistral-7B-Instruct-v0.3 discussion 20: no marker, only the JSON
    "no marker": (f" [{call()}]", [("f", {"a": 1})]),
    # ollama issue 13519: fenced, and with parameters
    "fenced parameters": ('```json\n{"name": "query_web_search", "parameters": {"query": "ollama"}}\n```',
                          [("query_web_search", {"query": "ollama"})]),
    # smolagents PR 1003, quarkus-langchain4j PR 2642: arguments in a string
    "arguments in a string": ('[{"name": "f", "arguments": "{\\"city\\": \\"New York\\"}"}]',
                              [("f", {"city": "New York"})]),
    # mlx-lm PR 1643: an id of the model's own
    "an id": (f'[TOOL_CALLS][{call(id=json.dumps("abcdefghi"))}]', [("f", {"a": 1})]),
    # vercel/ai issue 11802: ids that break the rule
    "a bad id": (f'[TOOL_CALLS][{call(id=json.dumps("i-nKGDr5g"))}]', [("f", {"a": 1})]),
    "an id that is a number": (f"[TOOL_CALLS][{call(id=7)}]", [("f", {"a": 1})]),
    # a third party's tests for 7B v0.3: no list
    "single": (f"[TOOL_CALLS]{call()}", [("f", {"a": 1})]),
    # NVIDIA dynamo's tests of its mistral parser: an end marker of their own
    "an end marker": (f"[TOOL_CALLS][{call()}][/TOOL_CALLS]", [("f", {"a": 1})]),
    "OpenAI's shape": ('{"type": "function", "function": {"name": "f", "arguments": "{}"}}', [("f", {})]),
}  # fmt: skip
SEEN_BROKEN = {
    # vLLM, as above
    "no JSON": "[TOOL_CALLS] not json at all",
    "newer format": '[TOOL_CALLS]add{"a": 3.5, "b": 4}',
    # vLLM PR 5649, amihalik: a description of the call instead of it
    "prose": "[TOOL_CALLS] I would add the numbers and raise the sum to the power of 2.778",
    # ollama issue 5976: another protocol
    "JSON-RPC": '```\n{"jsonrpc": "2.0", "method": "eval", "params": {"expression": "5234 / 6453"}}\n```',
    # ollama's v0.3 template shows calls without a comma between, which models repeat
    "no comma": f"[TOOL_CALLS] [{call()}{call()}]",
    "cut off": f"[TOOL_CALLS] [{call()[:-3]}",
    "numbers": "[1, 2, 3]",
    "empty": "[]",
    "nothing": "",
    "only a marker": "[TOOL_CALLS]",
    "no name": '[{"arguments": {}}]',
    "a name that is no text": '[{"name": 5, "arguments": {}}]',
    "arguments that are a list": '[{"name": "f", "arguments": [1]}]',
    "arguments that are text": '[{"name": "f", "arguments": "weather"}]',  # unsloth PR 5704
    "one of two": f'[{call()}, {{"name": 5}}]',
}
QUOTED = {
    # vLLM PR 5649, samutamm 2024-07-26, 7B v0.3 in 4 bits
    "quantized": (
        f"[TOOL_CALLS][{{'name': 'get_current_weather', 'arguments': {DALLAS}}}, "
        f"{{'name': 'get_current_weather', 'arguments': {SAN_FRANCISCO}}}]"
        "$$ In order to execute these functions, I need to provide the API.",
        [*WEATHER, ("get_current_weather", SAN_FRANCISCO)],
    ),
    # ollama PR 5284, K-Mistele 2024-07-19
    "plain": (
        "[TOOL_CALLS] [{'name': 'f', 'arguments': {'a': True, 'b': None}}]",
        [("f", {"a": True, "b": None})],
    ),
    "an apostrophe": ("""[{'name': 'f', 'arguments': {'a': "it's"}}]""", [("f", {"a": "it's"})]),
}
DEFECTS = {
    # Hub, Mistral-7B-Instruct-v0.3 discussion 25: the list of tools comes back
    "the offered tools": (
        '[{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]',
        [],
    ),
    # vLLM, as above
    "text in front": (f"Hello[TOOL_CALLS] [{call()}]", [("f", {"a": 1})]),
    "two markers": (f"[TOOL_CALLS] [{call()}][TOOL_CALLS] [{call('g')}]", [("f", {"a": 1}), ("g", {"a": 1})]),
    "a fence behind": (f"[{call()}]\nas in\n```json\n{call('g')}\n```", [("f", {"a": 1})]),
    "a reference in front": (f"As in [1]: [{call()}]", [("f", {"a": 1})]),
    "null": ('[{"name": "f", "arguments": null}]', [("f", {})]),  # unsloth PR 5704
    "brackets behind quotes": ("[{'name': 'f', 'arguments': {'a': 1}}] as in [1]", [("f", {"a": 1})]),
    "unhashable": ("[{{'a': 1}: 2}]", []),
    "NaN": ('[{"name": "f", "arguments": {"a": NaN}}]', []),
    "Infinity": ('[{"name": "f", "arguments": {"a": -Infinity}}]', []),
    "too large a number": ('[{"name": "f", "arguments": {"a": 1e400}}]', []),
    "too large a number in quotes": ("[{'name': 'f', 'arguments': {'a': 1e400}}]", []),
    "half a character": ('[{"name": "f", "arguments": {"a": "\\ud800"}}]', []),
}


@pytest.mark.parametrize(("text", "expected"), SEEN.values(), ids=SEEN)
def test_calls_are_found_in_what_models_write(text, expected):
    assert parsed(text) == expected


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("text", SEEN_BROKEN.values(), ids=SEEN_BROKEN)
def test_what_is_no_call_is_none(text, lenient):
    assert parse_calls(text, lenient=lenient) == ()


@pytest.mark.parametrize(("text", "expected"), QUOTED.values(), ids=QUOTED)
def test_quotes_of_python_are_read_only_when_asked(text, expected):
    assert parse_calls(text) == ()
    assert parsed(text, lenient=True) == expected


@pytest.mark.parametrize(("text", "expected"), DEFECTS.values(), ids=DEFECTS)
def test_stranger_texts_are_read_as_meant(text, expected):
    calls = parse_calls(text, lenient=True)
    assert [(call.name, json.loads(call.arguments)) for call in calls] == expected
    assert all(call.arguments.encode() for call in calls)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ('{"b": 1, "a": 2}', '{"b": 1, "a": 2}'),
        ('{"a": 1e5, "b": 1.10, "c": 1E-7}', '{"a": 100000.0, "b": 1.1, "c": 1e-07}'),
        ('{"a": 123456789012345678901234567890}', '{"a": 123456789012345678901234567890}'),
        ('{"a": "\\u00e9\\ud83d\\ude00"}', '{"a": "é😀"}'),
        ("{}", "{}"),
    ],
)
def test_arguments_are_written_as_mistral_common_would(written, read):
    (found,) = parse_calls(f"[{call('f', written)}]")
    assert found.arguments == read


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '[{"a":' * 50_000, f"[{call('f', '9' * 5000)}]", "[{'a': " * 2000]
)
def test_hostile_text_is_no_call(text, lenient):
    assert parse_calls(text, lenient=lenient) == ()


def test_ids_are_nine_letters_or_digits_of_our_own():
    text = f"[{', '.join([call(id=json.dumps('abcdefghi'))] * 50)}]"
    ids = {found.id for found in parse_calls(text)}
    assert len(ids) == 50
    assert "abcdefghi" not in ids
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", id_) for id_ in ids)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
ARGUMENTS = st.dictionaries(st.text(), VALUES, max_size=3)


@given(
    calls=st.lists(st.tuples(st.text(min_size=1), ARGUMENTS), min_size=1, max_size=4),
    behind=st.text("ab .\n"),
)
def test_calls_of_any_arguments_come_back(calls, behind):
    text = json.dumps(
        [{"name": name, "arguments": arguments} for name, arguments in calls], ensure_ascii=False
    )
    assert parsed("[TOOL_CALLS] " + text + behind) == calls


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Book a flight",
            "parameters": {
                "type": "object",
                "properties": {"to": {"$ref": "#/$defs/Place"}, "via": {"$ref": "#/properties/to"}},
                "required": ["to"],
                "additionalProperties": False,
                "$defs": {"Place": {"type": "string", "minLength": 3}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "tree",
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
                "additionalProperties": False,
                "$defs": {"Place": {"type": "integer"}},
            },
        },
    },
]
VALID = [
    [{"name": "book", "arguments": {"to": "Rome"}}],
    [{"name": "book", "arguments": {"to": "Rome", "via": "Bern"}}, {"name": "tree", "arguments": {}}],
    [{"name": "tree", "arguments": {"children": [{"children": [{}]}, {}]}}],
]
INVALID = [
    [],
    [{"name": "book", "arguments": {"to": "X"}}],
    [{"name": "book", "arguments": {"to": "Rome", "via": 5}}],
    [{"name": "book", "arguments": {}}],
    [{"name": "tree", "arguments": {"to": "Rome"}}],
    [{"name": "tree", "arguments": {"children": [{"children": [{"x": 1}]}]}}],
    [{"name": "other", "arguments": {}}],
    [{"name": "tree"}],
    [{"name": "tree", "arguments": {}, "id": "x"}],
]


def test_schema_of_calls_admits_the_offered_tools_alone():
    validator = jsonschema.Draft202012Validator(build_calls_schema(TOOLS))
    assert [calls for calls in VALID if not validator.is_valid(calls)] == []
    assert [calls for calls in INVALID if validator.is_valid(calls)] == []


def test_schema_of_calls_can_be_of_one_tool():
    validator = jsonschema.Draft202012Validator(build_calls_schema(TOOLS, name="tree"))
    assert [validator.is_valid(calls) for calls in VALID] == [False, False, True]


def test_schema_of_calls_leaves_the_tools_as_they_are():
    before = json.dumps(TOOLS)
    build_calls_schema(TOOLS)
    assert json.dumps(TOOLS) == before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=3), st.booleans(), st.data()
)
def test_calls_that_come_in_pieces_are_those_that_come_whole(arguments, escapes, data):
    written = [call(f"f{n}", json.dumps(each, ensure_ascii=escapes)) for n, each in enumerate(arguments)]
    text = f"[TOOL_CALLS][{', '.join(written)}]"
    reader, at = CallReader(MISTRAL), 0
    while at < len(text):
        end = at + data.draw(st.integers(1, 9))
        reader.push(text[at:end])
        at = end
    assert [(found.name, found.arguments) for found in reader.calls] == [
        (found.name, found.arguments) for found in parse_calls(text)
    ]
