"""Chat templates as they are published: the same text as transformers writes.

Beside our own, which have the shapes of those that are in use, it runs over the folder in M7B_TEST_TEMPLATES,
such as llama.cpp's `models/templates`.
"""

import json
import os
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from m7b.errors import InvalidConversation
from m7b.templates import JinjaTemplate
from m7b.tokenizer import TokenizerJson, load_tokenizer

OWN = Path(__file__).parent.parent / "templates"
FOLDERS = [OWN, *map(Path, filter(None, [os.environ.get("M7B_TEST_TEMPLATES")]))]
FILES = sorted(file for folder in FOLDERS for file in folder.glob("*.jinja"))
TEMPLATES = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])

PLACE = {"type": "string", "description": 'Stadt, "<b>"'}
PARAMETERS = {"type": "object", "properties": {"city": PLACE, "n": {"type": "integer"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Wetter in é", "parameters": PARAMETERS}
TOOLS = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": WEATHER | {"name": "forecast"}},
]
ARGUMENTS = (
    '{"z": 1.0, "city": "Z\\u00fcrich", "big": 12345678901234567890,'
    ' "list": [true, null, {"k": 1e5}], "n": -0.0}'
)
USER, ANSWER = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "It is 3."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of bytes with two control tokens."""
    folder = tmp_path_factory.mktemp("bytes")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<s>", "</s>"])
    model.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(TokenizerJson(folder / "tokenizer.json", "<s>", False, "</s>"))


@pytest.fixture(scope="module")
def oracle(folder):
    file = str(folder / "tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<s>", eos_token="</s>")


def calls(*names, is_object):
    """An assistant's calls, as clients keep them or as templates were written for."""
    arguments = json.loads(ARGUMENTS) if is_object else ARGUMENTS
    made = [
        {"id": f"call0000{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, name in enumerate(names)
    ]
    others = {} if is_object else {"refusal": None, "function_call": None, "audio": None}
    return {"role": "assistant", "content": "" if is_object else None, "tool_calls": made, **others}


def result(n, name, content):
    return {"role": "tool", "tool_call_id": f"call0000{n}", "name": name, "content": content}


def talks(*, is_object):
    """Conversations with what is offered in them."""
    one, two = (
        calls("get_weather", is_object=is_object),
        calls("get_weather", "forecast", is_object=is_object),
    )
    return {
        "plain": ([SYSTEM, USER, ANSWER, USER], None),
        "plain without system": ([USER, ANSWER, USER], None),
        "tools offered": ([SYSTEM, USER], TOOLS),
        "a call": ([USER, one, result(0, "get_weather", "3 °C")], TOOLS),
        "an answer behind a call": ([USER, one, result(0, "get_weather", '{"t": 3}'), ANSWER, USER], TOOLS),
        "several calls": ([USER, two, result(0, "get_weather", "3"), result(1, "forecast", "[4]")], TOOLS),
        "reasoning": ([USER, ANSWER | {"reasoning": "hm"}, USER], None),
    }


def written(template, tokenizer, messages, tools=None):
    """The ids, None where the template refuses."""
    try:
        return template.encode(messages, tools)
    except InvalidConversation:
        return None


def expected(oracle, file, messages, tools=None):
    source = file.read_text(encoding="utf-8")
    try:
        return oracle.apply_chat_template(
            messages, tools, chat_template=source, add_generation_prompt=True, return_dict=False
        )
    except Exception:  # noqa: BLE001 - a template may raise whatever it wants
        return None


def template_of(file, tokenizer):
    return JinjaTemplate(file.read_text(encoding="utf-8"), tokenizer, "</s>")


@pytest.mark.parametrize("talk", talks(is_object=True))
@TEMPLATES
def test_template_writes_what_transformers_writes_of_objects(file, talk, tokenizer, oracle):
    """Null content became "None" or an error, and arguments JSON in a string."""
    messages, tools = talks(is_object=False)[talk]
    wanted = expected(oracle, file, *talks(is_object=True)[talk])
    assert written(template_of(file, tokenizer), tokenizer, messages, tools) == wanted
    assert file.parent != OWN or wanted, "our own take all of them"


def in_parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@TEMPLATES
def test_parts_are_joined_by_the_template_or_by_newlines(file, role, tokenizer, oracle):
    """They were joined by blank lines, also where the template joins them itself."""

    def talk(content):
        made = {
            "system": [SYSTEM | {"content": content}, USER],
            "user": [USER | {"content": content}],
            "assistant": [USER, ANSWER | {"content": content}, USER],
            "tool": [USER, calls("f", is_object=True), result(0, "f", content), ANSWER, USER],
        }
        return made[role]

    template = template_of(file, tokenizer)
    by_itself = expected(oracle, file, talk(in_parts("one", "two")))
    text = "" if by_itself is None else oracle.decode(by_itself)
    shows_parts = "one" in text and "two" in text and not re.search(r"""["']text["']: ?["']one""", text)
    joined = by_itself if shows_parts else expected(oracle, file, talk("one\ntwo"))
    if joined is None or "one" not in oracle.decode(joined):
        pytest.skip("the template has no place for it")
    assert written(template, tokenizer, talk(in_parts("one", "two"))) == joined


PARTS_ALONE = (
    "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
)


def test_text_is_one_part_to_a_template_that_takes_parts_alone(tokenizer):
    """It went through the text's letters, and wrote nothing."""
    template = JinjaTemplate(PARTS_ALONE, tokenizer, "</s>")
    assert tokenizer.decode(template.encode([USER, ANSWER])) == "user:Weather?;assistant:It is 3.;"
    assert tokenizer.decode(template.encode([USER | {"content": in_parts("a", "b")}])) == "user:a;b;"


def test_prefix_in_parts_is_continued(tokenizer):
    template = JinjaTemplate(PARTS_ALONE, tokenizer, "</s>")
    begun = ANSWER | {"content": in_parts("It ", "is"), "prefix": True}
    assert tokenizer.decode(template.encode([USER, begun])) == "user:Weather?;assistant:It ;is"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"b": 1.0, "a": 2}', '{"b": 1.0, "a": 2}'),
        ("", "{}"),
        (" ", "{}"),
        ("null", "{}"),
        (None, "{}"),
        ({"a": 1}, '{"a": 1}'),
        ('{"a": 1', '"{\\"a\\": 1"'),
        ("[1]", '"[1]"'),
        ('{"a": NaN}', '"{\\"a\\": NaN}"'),
        ('{"a": 1e999}', '"{\\"a\\": 1e999}"'),
        ('{"a": %s}' % ("1" * 5000), '"{\\"a\\": %s}"' % ("1" * 5000)),
        ("[" * 100_000, json.dumps("[" * 100_000)),
    ],
    ids=range(12),
)
def test_arguments_that_are_json_of_an_object_are_that_object(arguments, shown, tokenizer):
    """What a model wrote and is no JSON stays the text that it is."""
    source = "{{ messages[-1].tool_calls[0].function.arguments | tojson }}"
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    template = JinjaTemplate(source, tokenizer, "</s>")
    ids = template.encode([USER, {"role": "assistant", "content": None, "tool_calls": [call]}])
    assert tokenizer.decode(ids) == shown


def test_messages_are_left_as_they_are(tokenizer):
    messages = [USER | {"content": in_parts("a")}, calls("f", is_object=False)]
    before = json.dumps(messages)
    JinjaTemplate(PARTS_ALONE, tokenizer, "</s>").encode(messages)
    assert json.dumps(messages) == before
