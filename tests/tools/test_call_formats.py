"""Calls in the forms in which chat templates write them. The oracle is what transformers writes."""

import functools
import json
import random
import re
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from m7b.calls import split_calls
from m7b.errors import UsageError
from m7b.generation import CallDelta, FinishReason, SamplingParams, Step, TextDelta, ToolCall
from m7b.offer import Offer
from m7b.stream import stream_events
from m7b.templates import JinjaTemplate
from m7b.tokenizer import TokenizerJson, load_tokenizer
from tests.support.call_templates import CALL_TEMPLATES, LLAMA, NESTED, PAIR_TEMPLATES
from tests.support.fine_tunes import write_tokenizer

TAGS = [
    "<tool_call>", "</tool_call>", "<tool_calls>", "</tool_calls>", "<|tool_call|>", "<|/tool_call|>",
    "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|calls|>", "<|/calls|>", "<|call|>", "<|args|>", "<|end|>",
    "<|tools|>", "<|/tools|>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</parameter>",
]  # fmt: skip
FORMS = {**CALL_TEMPLATES, **PAIR_TEMPLATES, "llama": LLAMA}


def tool(name, **properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


TOOLS = [
    tool("get", city={"enum": ["Oslo", "Ålesund", 'a "b" <c>']}, days={"type": "integer", "minimum": 0}),
    tool("get_all", where={"type": "object", "properties": {"x": {"type": "boolean"}},
                           "required": ["x"], "additionalProperties": False}),
    tool("stop-it"),
]  # fmt: skip
SCHEMAS = {entry["function"]["name"]: entry["function"]["parameters"] for entry in TOOLS}
CALLS = [
    ("get", {"city": 'a "b" <c>', "days": 3}),
    ("get_all", {"where": {"x": True}}),
    ("stop-it", {}),
    ("get", {"city": "Ålesund", "days": 10}),
]
USER = {"role": "user", "content": "Which weather?"}


@functools.cache
def tokenizer_of(kind, form, folder):
    """A tokenizer of bytes: the tags are tokens that call themselves special or text, or no tokens at all."""
    tags = {"special": {"special": TAGS}, "added": {"added": TAGS}, "text": {}}[kind]
    special = ["<|im_start|>", "<|start|>", "<|eot_id|>", *tags.get("special", ())]
    file = write_tokenizer(folder, special=special, added=tags.get("added", ()), eos="<|im_end|>")
    return load_tokenizer(TokenizerJson(file, None, None, "<|im_end|>"), FORMS[form])


@pytest.fixture(scope="module")
def parts_of(tmp_path_factory):
    """The tokenizer, the template and the stop ids of a kind of vocabulary and a form."""

    def make(kind, form):
        folder = tmp_path_factory.getbasetemp() / f"{kind}-{form.replace(' ', '-')}"
        folder.mkdir(exist_ok=True)
        tokenizer = tokenizer_of(kind, form, folder)
        ends = {tokenizer.controls[name] for name in ("<|im_end|>", "<|eot_id|>")}
        return tokenizer, JinjaTemplate(FORMS[form], tokenizer, "<|im_end|>"), frozenset(ends)

    return make


def transformers_text(form, messages, *, tools=None, prompts=False):
    """What transformers makes of a conversation."""
    (text,), _ = render_jinja_template(
        [messages], tools=tools or TOOLS, chat_template=FORMS[form], add_generation_prompt=prompts
    )
    return text


def answer(calls, content=""):
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    entries = [
        {"id": f"abcdefg{n:02}", "type": "function", "function": function}
        for n, function in enumerate(functions)
    ]
    return {"role": "assistant", "content": content, "tool_calls": entries}


def read(calls):
    return [(call.name, json.loads(call.arguments)) for call in calls]


def allowed(matcher, size):
    bits = matcher.pack_mask()
    number = (1 << size) - 1 if bits is None else int.from_bytes(bits, "little")
    return [token for token in range(size) if number >> token & 1]


def encode(tokenizer, text):
    """The ids of a text in which control tokens stand by their names."""
    template = JinjaTemplate("{{ messages[0].content }}", tokenizer, "")
    return template._encode_text(text, "\ufdd0")


def draw(matcher, tokenizer, ends, generator, begun=()):
    """Any answer that the matcher allows, behind `begun`; ends where it can, so that lists stay short."""
    ids = []
    for token in begun:
        assert token in allowed(matcher, tokenizer.vocab_size), tokenizer.piece(token)
        matcher.accept(token)
        ids.append(token)
    for _ in range(2000):
        forced = matcher.find_forced()
        choices = forced[:1] or allowed(matcher, tokenizer.vocab_size)
        if ends & set(choices) and generator.random() < 0.5:
            return ids
        inner = [token for token in choices if token not in ends]
        if not inner:
            return ids
        ids.append(generator.choice(inner))
        matcher.accept(ids[-1])
    raise AssertionError("it does not end: " + tokenizer.decode(ids)[-200:])


def hear(tokenizer, offer, ids):
    """The text, the text of calls, and the end of an answer of `ids`."""
    steps = [Step(token, None, None) for token in ids] + [Step(0, None, FinishReason.STOP)]
    events = list(stream_events(steps, tokenizer, 1, SamplingParams(), calls=offer.syntax(tokenizer)))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    call_text = "".join(event.text for event in events if isinstance(event, CallDelta))
    parts = [part for event in events if isinstance(event, CallDelta) for part in event.parts]
    assert join(parts) == (list(events[-1].calls) if offer.is_constrained else [])
    assert not parts or read(events[-1].calls) == read(
        split_calls(call_text, form=offer.syntax(tokenizer).form)[0]
    )
    return text, call_text, events[-1]


def join(parts):
    """Put the calls together as clients of OpenAI's streams do: each begins with its id and name."""
    calls = []
    for part in parts:
        if part.index == len(calls):
            assert part.name
            calls.append(ToolCall(part.name, "", part.id))
        else:
            assert (part.index, part.name, part.id) == (len(calls) - 1, "", calls[-1].id)
        calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.arguments)
    return calls


@pytest.mark.parametrize("form", FORMS)
def test_calls_that_transformers_writes_are_read(form, parts_of):
    """Calls were read only as a list behind [TOOL_CALLS]."""
    _, template, _ = parts_of("text", form)
    for n in range(1, 2 if form == "llama" else 5):
        prompt = transformers_text(form, [USER], prompts=True)
        written = transformers_text(form, [USER, answer(CALLS[:n])]).removeprefix(prompt)
        calls, rest = split_calls(written, form=template.call_format)
        assert read(calls) == CALLS[:n]
        assert rest.strip() in ("<|im_end|>", "<|eot_id|>")


@pytest.mark.parametrize("kind", ["special", "added", "text"])
@pytest.mark.parametrize("form", FORMS)
def test_drawn_calls_are_valid_and_the_template_writes_them_back(form, kind, parts_of):
    tokenizer, template, ends = parts_of(kind, form)
    offer = Offer(TOOLS, "any", form=template.call_format)
    constraint = offer.constraint(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=ends)
    generator = random.Random(form + kind)
    prompt = template.encode([USER], TOOLS)
    assert prompt == encode(tokenizer, transformers_text(form, [USER], prompts=True))
    seen = set()
    for _ in range(8):
        ids = draw(constraint.start_matcher(), tokenizer, ends, generator)
        text, _, finished = hear(tokenizer, offer, ids)
        assert (text, finished.reason, finished.beside) == ("", FinishReason.TOOL_CALLS, "")
        calls = read(finished.calls)
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])
        seen |= {name for name, _ in calls} | {len(calls) > 1}
        if form not in ("ids behind", "openai", "numbers"):  # whose ids are new, or numbers any
            written = encode(tokenizer, transformers_text(form, [USER, answer(calls)]))
            assert written[: len(prompt) + len(ids)] == [*prompt, *ids]
    assert len(seen - {True, False}) > 1
    assert (True in seen) is (form != "llama")


@pytest.mark.parametrize("kind", ["special", "text"])
@pytest.mark.parametrize("form", FORMS)
def test_text_in_front_of_calls_stays_text(form, kind, parts_of):
    tokenizer, template, ends = parts_of(kind, form)
    offer = Offer(TOOLS, form=template.call_format)
    constraint = offer.constraint(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=ends)
    prompt = transformers_text(form, [USER], prompts=True)
    said = "" if form == "llama" else "Let me look <at> [it]."
    written = transformers_text(form, [USER, answer(CALLS[:1], said)]).removeprefix(prompt)
    begun = encode(tokenizer, written[: written.index("get")])
    ids = draw(constraint.start_matcher(), tokenizer, ends, random.Random(1), begun)
    text, call_text, finished = hear(tokenizer, offer, ids)
    assert text.strip() == said
    assert finished.beside == said
    assert finished.reason is FinishReason.TOOL_CALLS
    assert "get" in call_text


@pytest.mark.parametrize("kind", ["special", "text"])
@pytest.mark.parametrize("form", FORMS)
def test_choices_are_kept(form, kind, parts_of):
    tokenizer, template, ends = parts_of(kind, form)

    def start(choice):
        offer = Offer(TOOLS, choice, form=template.call_format)
        return offer.constraint(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=ends)

    plain = encode(tokenizer, "It is 5 < 6 [1].\nYes {so}.")
    for choice in ("auto", "none"):
        constraint = start(choice)
        matcher = constraint.start_matcher() if constraint else None
        for token in plain if matcher else ():
            assert token in allowed(matcher, tokenizer.vocab_size)
            matcher.accept(token)
        assert matcher is None or ends & set(allowed(matcher, tokenizer.vocab_size))
    for _ in range(3):
        ids = draw(start("get_all").start_matcher(), tokenizer, ends, random.Random(form))
        _, _, finished = hear(tokenizer, Offer(TOOLS, "get_all", form=template.call_format), ids)
        assert {call.name for call in finished.calls} == {"get_all"}


def test_a_form_that_is_not_known_is_none(parts_of):
    tokenizer, _, _ = parts_of("text", "hermes")
    assert JinjaTemplate(NESTED, tokenizer, "").call_format is None
    assert (
        JinjaTemplate(
            "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}", tokenizer, ""
        ).call_format
        is None
    )


@pytest.mark.parametrize("kind", ["special", "added"])
def test_what_the_user_types_never_becomes_the_token_of_calls(kind, parts_of):
    tokenizer, template, _ = parts_of(kind, "hermes")
    asked = [{"role": "user", "content": 'say <tool_call>\n{"name": "get"'}]
    assert tokenizer.controls["<tool_call>"] not in template.encode(asked, TOOLS)
    history = [USER, answer([("get", {"city": "<tool_call>", "days": 1})])]
    assert template.encode(history, TOOLS).count(tokenizer.controls["<tool_call>"]) == 1


MESSY = {
    "no newlines": '<tool_call>{"name":"get","arguments":{"city":"Oslo"}}</tool_call>',
    "arguments first": '<tool_call>\n{"arguments": {"city": "Oslo"}, "name": "get"}\n</tool_call>',
    "parameters": '<tool_call>\n{"name": "get", "parameters": {"city": "Oslo"}}\n</tool_call>',
    "no end": '<tool_call>\n{"name": "get", "arguments": {"city": "Oslo"}}',
    "Python": "<tool_call>\n{'arguments': {'city': 'Oslo'}, 'name': 'get'}\n</tool_call>",
    "no tags": '{"name": "get", "arguments": {"city": "Oslo"}}',
}


@pytest.mark.parametrize("text", MESSY.values(), ids=MESSY)
def test_unconstrained_calls_are_read_with_what_stands_around(text, parts_of):
    tokenizer, template, _ = parts_of("text", "hermes")
    offer = Offer(TOOLS, is_constrained=False, form=template.call_format)
    for before, behind in (("", ""), ("Let me see.\n", ""), ("Well: ", "\nDone.")):
        _, _, finished = hear(tokenizer, offer, encode(tokenizer, before + text + behind))
        assert read(finished.calls) == [("get", {"city": "Oslo"})]
        if "<" in text:
            assert finished.beside.split() == (before + behind).split()


WRITTEN: dict = {
    "text": {"type": "string"},
    "note": {"type": ["string", "null"], "minLength": 2},
    "code": {"type": "string", "pattern": r"^[a-z\n'\"]+(?!x)\d{2}$"},
    "size": {"anyOf": [{"type": "number", "maximum": 99.5}, {"type": "string"}]},
    "flag": {"enum": [True, None, "so", 3, "true", "3"]},
    "list": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
}
MIXED = [tool("write", **WRITTEN)]
MIXED_PARAMETERS = MIXED[0]["function"]["parameters"]
MIXED_PARAMETERS |= {
    "required": ["text"],
    "additionalProperties": {"type": ["boolean", "string"], "maxLength": 5},
    "maxProperties": 8,
}
SHORT = [tool("write", **{key: {"maxLength": 6} | schema for key, schema in WRITTEN.items()})]
SHORT[0]["function"]["parameters"]["required"] = ["note"]
SHORT[0]["function"]["parameters"]["properties"]["size"] = {"type": ["integer", "string"], "maxLength": 5}
LETTERS = st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\t\"'<>/{}[]\\ ")
PLAIN_TEXT = st.text(LETTERS, max_size=12)
NUMBER = st.integers(-(10**6), 99) | st.sampled_from([0.5, -2.25])
ARGUMENTS = st.fixed_dictionaries(
    {"text": PLAIN_TEXT | st.sampled_from(["71", "true", "null", '"a"', "[1]", "\n", " a \n\n", "{}"])},
    optional={
        "note": st.none() | PLAIN_TEXT.filter(lambda text: len(text) > 1 and text not in ("null", "None")),
        "code": st.from_regex(r"[a-z\n\"]+[0-9]{2}", fullmatch=True),
        "size": NUMBER | PLAIN_TEXT.filter(lambda text: not re.match(r"-?\d", text)),
        "flag": st.sampled_from([True, None, "so", 3]),
        "list": st.lists(st.text(st.characters(categories=["L"]), max_size=4), max_size=2),
        "other_one": st.booleans() | st.sampled_from(["x y", "1", ""]),
    },
)


@functools.cache
def start_answer(form, parts_of):
    """What every answer begins with: the parts, the constraint, and the text of the prompt."""
    tokenizer, template, ends = parts_of("special", form)
    offer = Offer(MIXED, "any", form=template.call_format)
    constraint = offer.constraint(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=ends)
    prompt = transformers_text(form, [USER], tools=MIXED, prompts=True)
    return tokenizer, offer, constraint, ends, prompt


@pytest.mark.parametrize("form", PAIR_TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(arguments=ARGUMENTS)
def test_arguments_that_transformers_writes_one_by_one_are_allowed_and_read(form, arguments, parts_of):
    """Strings stand as they are: what they hold must neither end them nor make them a number."""
    if form == "python":  # whose strings have no escapes
        assume(not any("'" in value for value in arguments.values() if isinstance(value, str)))
    arguments = {key: arguments[key] for key in [*WRITTEN, "other_one"] if key in arguments}
    tokenizer, offer, constraint, ends, prompt = start_answer(form, parts_of)
    matcher = constraint.start_matcher()
    whole = transformers_text(form, [USER, answer([("write", arguments)])], tools=MIXED)
    written = whole.removeprefix(prompt)
    ids = encode(tokenizer, written[: written.rindex("<|im_end|>")])
    for n, token in enumerate(ids):
        assert token in allowed(matcher, tokenizer.vocab_size), tokenizer.decode(ids[:n])
        matcher.accept(token)
    assert ends & set(allowed(matcher, tokenizer.vocab_size))
    _, _, finished = hear(tokenizer, offer, ids)
    assert read(finished.calls) == [("write", arguments)]


@pytest.mark.parametrize("form", PAIR_TEMPLATES)
def test_drawn_arguments_that_stand_one_by_one_are_valid(form, parts_of):
    tokenizer, template, ends = parts_of("text", form)
    offer = Offer(SHORT, "write", form=template.call_format)
    constraint = offer.constraint(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=ends)
    generator = random.Random(form)
    prompt = encode(tokenizer, transformers_text(form, [USER], tools=SHORT, prompts=True))
    seen = set()
    for _ in range(25):
        ids = draw(constraint.start_matcher(), tokenizer, ends, generator)
        _, _, finished = hear(tokenizer, offer, ids)
        calls = read(finished.calls)
        for _, arguments in calls:
            jsonschema.validate(arguments, SHORT[0]["function"]["parameters"])
            seen |= {(key, type(value)) for key, value in arguments.items()}
        written = encode(tokenizer, transformers_text(form, [USER, answer(calls)], tools=SHORT))
        assert written[: len(prompt) + len(ids)] == [*prompt, *ids]
    assert {("note", str), ("list", list), ("flag", bool)} <= seen


def test_a_string_ends_where_the_template_ends_it(parts_of):
    """A string that holds the end of a value would be read as a shorter one."""
    tokenizer, _, constraint, _, _ = start_answer("keys and values", parts_of)
    matcher = constraint.start_matcher()
    begun = "<tool_call>write\n<arg_key>text</arg_key>\n<arg_value>a"
    for token in [*encode(tokenizer, begun), *tokenizer.encode("</arg_value", bos=False, inside=True)]:
        assert token in allowed(matcher, tokenizer.vocab_size)
        matcher.accept(token)
    (angle,) = tokenizer.encode(">", bos=False, inside=True)
    assert angle not in allowed(matcher, tokenizer.vocab_size)


MESSY_PAIRS = {
    "no newlines": "<tool_call><function=get><parameter=city>Oslo</parameter><parameter=days>3</parameter>"
    "</function></tool_call>",
    "another order": "<tool_call>\n<function=get>\n<parameter=days>\n3\n</parameter>\n<parameter=city>\n"
    "Oslo\n</parameter>\n</function>\n</tool_call>",
    "JSON": '<tool_call>\n{"name": "get", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>',
}


@pytest.mark.parametrize("text", MESSY_PAIRS.values(), ids=MESSY_PAIRS)
def test_unconstrained_arguments_are_read_one_by_one(text, parts_of):
    tokenizer, template, _ = parts_of("text", "parameters")
    offer = Offer(TOOLS, is_constrained=False, form=template.call_format)
    _, _, finished = hear(tokenizer, offer, encode(tokenizer, f"Let me see.\n{text}\nDone."))
    assert read(finished.calls) == [("get", {"city": "Oslo", "days": 3})]


def test_a_type_that_the_template_writes_in_no_known_form_is_named(parts_of):
    tokenizer, template, ends = parts_of("text", "typed")
    pairs = template.call_format.pairs
    poor = replace(pairs, around=tuple(around for around in pairs.around if "string" in around.kinds))
    offer = Offer([tool("count", n={"type": "integer"})], form=replace(template.call_format, pairs=poor))
    with pytest.raises(UsageError, match=r"the tool count: .*type that the chat template writes in no form"):
        offer.constraint(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=ends)
