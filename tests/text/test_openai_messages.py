"""OpenAI's messages in Mistral's templates, beside mistral-common's own reading of them."""

import copy
import functools
import json

import pytest
from hypothesis import assume, given, settings
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.base import TokenizerVersion as Version
from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV3
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

from m7b.errors import InvalidConversation
from m7b.templates import MistralTemplate
from m7b.templates.openai import find_left_out
from m7b.tokenizer import OfficialVocabulary, load_tokenizer, official_file
from m7b.variants import TokenizerVersion
from tests.support.openai_messages import TOOLS, conversations

USER = {"role": "user", "content": "u"}
SAID = {"role": "assistant", "content": "a"}
TEXT = {"type": "text", "text": "a"}
THOUGHT = {"type": "thinking", "thinking": "hm"}
WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@functools.cache
def template(version="v3"):
    return MistralTemplate(
        load_tokenizer(OfficialVocabulary(TokenizerVersion(version))), TokenizerVersion(version)
    )


@functools.cache
def oracle():
    pieces = SentencePieceTokenizer(official_file(TokenizerVersion.V3), Version.v3)
    return MistralTokenizer(
        InstructTokenizerV3(pieces),
        get_validator(Version.v3, ValidationMode.test),
        get_normalizer(Version.v3, None),
    )


def by_mistral_common(messages, tools=None):
    """The ids that mistral-common makes, where ids of calls are cut to their last nine, as vLLM does."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls") or ():
            call["id"] = call["id"][-9:]
        if message["role"] == "tool":
            message["tool_call_id"] = message["tool_call_id"][-9:]
    return oracle().encode_chat_completion(ChatCompletionRequest.from_openai(messages, tools)).tokens


@settings(deadline=None, max_examples=30)
@given(conversations(), TOOLS)
def test_what_openais_types_say_becomes_the_ids_of_mistral_common(messages, tools):
    """`refusal`, `annotations`, `index`, `name`, long ids and tools without parameters were refused."""
    ids = {call["id"] for message in messages for call in message.get("tool_calls") or ()}
    assume(len({id_[-9:] for id_ in ids}) == len(ids))  # two that end alike are told apart here
    assert template().encode(messages, tools) == by_mistral_common(messages, tools)


def called(*ids, **fields):
    calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls} | fields


def result(id_, content="3"):
    return {"role": "tool", "tool_call_id": id_, "content": content}


def spell(messages, tools=None):
    made = template()
    tokenizer = load_tokenizer(OfficialVocabulary(TokenizerVersion.V3))
    return "".join(tokenizer.piece(token) for token in made.encode(messages, tools))


@pytest.mark.parametrize(
    "ids",
    [
        ["call_1"], ["0"], ["functions.f:0", "functions.f:1"], ["toolu_01-x_y", "call_é"], ["a\n" * 9],
        ["call_a_123456789", "call_b_123456789"], ["123456789", "x123456789"],
    ],
    ids=repr,
)  # fmt: skip
def test_any_ids_are_nine_letters_that_tell_calls_apart(ids):
    text = spell([USER, called(*ids), *map(result, ids)]).replace("▁", "")
    short = [part[:9] for part in text.split('"id":"')[1:]]
    assert len(set(short)) == len(ids)
    assert all(each.isascii() and each.isalnum() for each in short)
    assert [part[:9] for part in text.split('"call_id":"')[1:]] == short


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (
            [USER, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
             {"role": "function", "name": "f", "content": "3"}],
            [USER, called("b79776f45"), result("b79776f45")],
        ),
        ([USER, {"role": "assistant", "content": None, "refusal": "no"}, USER],
         [USER, SAID | {"content": "no"}, USER]),
        ([USER, SAID | {"content": [{"type": "refusal", "refusal": "no"}]}, USER],
         [USER, SAID | {"content": "no"}, USER]),
        ([USER, called("abcdefghi", content=" \n"), result("abcdefghi")],
         [USER, called("abcdefghi"), result("abcdefghi")]),
        ([USER, called("abcdefghi", content="Let me look."), result("abcdefghi")],
         [USER, called("abcdefghi"), result("abcdefghi")]),
        ([USER, SAID | {"reasoning_content": "hm"}, USER], [USER, SAID, USER]),
        ([USER, SAID | {"content": [THOUGHT, TEXT]}, USER], [USER, SAID, USER]),
        ([USER, SAID | {"audio": {"id": "x"}, "x": None}, USER], [USER, SAID, USER]),
    ],
    ids=["function_call", "refusal", "refusal part", "spaces beside calls", "text beside calls", "reasoning",
         "thinking", "audio"],
)  # fmt: skip
def test_what_mistral_common_refuses_and_the_template_can_show_is_shown(given, meant):
    assert template().encode(given) == by_mistral_common(meant)


def test_text_beside_calls_that_is_left_out_is_found():
    """OpenAI's clients send such messages back, and the whole conversation was refused."""
    for content in ("Let me look.", [TEXT]):
        assert [*find_left_out([USER, called("a", content=content)])] == ["messages[1].content"]
    old = {"role": "assistant", "content": "b", "function_call": {"name": "f", "arguments": "{}"}}
    assert [*find_left_out([old])] == ["messages[0].content"]
    assert not [*find_left_out([USER, SAID, called("a", content=" \n")])]


def test_reasoning_that_is_left_out_is_found():
    answers = [SAID | {"reasoning_content": "hm"}, SAID | {"reasoning": ""}, SAID | {"content": [THOUGHT]}]
    assert [*find_left_out([USER, *answers])] == ["messages[1].reasoning_content", "messages[3].content[0]"]


IMAGE = {"type": "image_url", "image_url": {"url": "x:y"}}
SOUND = {"type": "input_audio", "input_audio": {}}
CUSTOM = {"type": "custom", "custom": {"name": "f", "input": "x"}, "id": "a"}
BAD = {
    "image": ([USER, SAID, USER | {"content": [TEXT, IMAGE]}], "messages[2].content[1].type"),
    "audio": ([USER | {"content": [SOUND]}], "messages[0].content[0].type"),
    "part of no type": ([USER | {"content": [{"text": "a"}]}], "messages[0].content[0]"),
    "no content": ([USER | {"content": None}], "messages[0].content"),
    "empty answer": ([USER, SAID | {"content": ""}, USER], "messages[1]"),
    "custom call": ([USER, called() | {"tool_calls": [CUSTOM]}], "messages[1].tool_calls[0].type"),
    "call without id": ([USER, called("")], "messages[1].tool_calls[0].id"),
    "arguments a list": (
        [USER, called() | {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": []}}]}],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "name with a space": (
        [USER, called() | {"tool_calls": [{"id": "a", "function": {"name": "f g"}}]}, result("a")],
        "messages[1]",
    ),
    "result of nothing": ([USER, {"role": "function", "name": "f", "content": "3"}], "messages[1]"),
    "result without id": ([USER, called("a"), {"role": "tool", "content": "3"}], "messages[2].tool_call_id"),
    "result after a user": ([USER, result("a")], "messages[1]"),
    "late system": ([USER, SAID, {"role": "system", "content": "s"}, USER], "messages[2]"),
    "call without result": ([USER, called("a"), USER, SAID, USER], "messages[3]"),
    "nothing to answer": ([USER, SAID], "messages[1]"),
    "unknown role": ([USER, {"role": "bot", "content": "a"}], "messages[1].role"),
    "unknown field": ([USER | {"mood": "good"}], "messages[0].mood"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_the_template_cannot_show_is_refused_with_its_place(case):
    messages, place = BAD[case]
    with pytest.raises(InvalidConversation) as caught:
        template().encode(messages)
    assert caught.value.param == caught.value.report()["param"] == place
    assert caught.value.message.startswith(place)


@pytest.mark.parametrize(
    ("tool", "place"),
    [
        ({"type": "custom", "custom": {"name": "f"}}, "tools[1].type"),
        ({"type": "function"}, "tools[1].function"),
        ({"type": "function", "function": {"name": "f g"}}, "tools[1]"),
        ({"type": "function", "function": {"name": "f", "parameters": {"type": "objectt"}}}, "tools[1]"),
        (5, "tools[1]"),
    ],
)
def test_tool_that_is_none_is_refused_with_its_place(tool, place):
    with pytest.raises(InvalidConversation) as caught:
        template().encode([USER], [WEATHER, tool])
    assert (caught.value.param, caught.value.message.startswith(place)) == (place, True)


def test_arguments_in_a_string_and_as_an_object_are_the_same_prompt():
    function = {"name": "f", "arguments": {"a": "Zürich", "n": 1.0}}
    written = function | {"arguments": json.dumps(function["arguments"])}
    calls = [
        [USER, called() | {"tool_calls": [{"id": "a", "function": f}]}, result("a")]
        for f in (function, written)
    ]
    assert template().encode(calls[0]) == template().encode(calls[1])
