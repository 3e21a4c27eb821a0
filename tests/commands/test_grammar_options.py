"""Constrained output from the command line and in requests: what is kept to, and what is refused."""

import json
import re

import jsonschema
import pytest

from m7b.constraint import JsonSchema
from m7b.errors import UsageError
from m7b.generation import SamplingParams
from m7b.messages import Message
from m7b.session import Session
from tests.support.checkpoints import write_v3
from tests.support.fake_chat import STOP, fake_model
from tests.support.tiny import assert_refused, call, lines

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = json.dumps(PERSON)
PLATE = "[a-f]{3,5}-[0-9]"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The options of a random checkpoint with the tokenizer of v0.3."""
    folder = write_v3(tmp_path_factory.mktemp("tiny-v3"), max_position_embeddings=1024)
    return ["--model", folder, "--dtype", "float32", "--threads", 2]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    (tmp_path / "person.json").write_text(SCHEMA)
    (tmp_path / "yes.lark").write_text('start: "yes" | "no"\n')
    (tmp_path / "bad.json").write_text('{"type": ')
    (tmp_path / "list.json").write_text("[]")


def is_json(text, schema):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


KEPT = {
    "schema": (["-j", SCHEMA], lambda text: is_json(text, PERSON)),
    "schema in a file": (["-j", "person.json"], lambda text: is_json(text, PERSON)),
    "any JSON": (["--format", "json"], lambda text: is_json(text, {"type": ["object", "array"]})),
    "Lark": (["--grammar", "yes.lark"], lambda text: text in ("yes", "no")),
    "regex": (["--regex", PLATE], lambda text: re.fullmatch(PLATE, text)),
}
COMMANDS = {
    "complete": ["complete"],
    "complete --chat": ["complete", "--chat", "--chat-template", "v3"],
    "chat": ["chat", "--no-save", "--chat-template", "v3"],
}


@pytest.mark.parametrize(("arguments", "is_kept"), KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_keeps_to_a_grammar(tiny, command, arguments, is_kept):
    # Brackets and commas more likely, that any JSON ends
    bias = [word for token in (29561, 29491, 29493) for word in ("--logit-bias", f"{token}=9")]
    n_whole = 0
    for seed in range(4):
        ran = call(*command, "Hi", *arguments, *tiny, *bias, "-n", 120, "--seed", seed)
        assert ran.code == 0, ran.err
        try:
            n_whole += bool(is_kept(ran.out.removesuffix("\n")))
        except ValueError:  # cut off
            assert arguments[0] in ("--format", "-j")
    assert n_whole >= (1 if arguments[0] in ("--format", "-j") else 4)


def test_response_format_in_jsonl_is_openais(tiny):
    person = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    choice = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    good = [{"prompt": "Hi", "response_format": f, "seed": 2} for f in (person, choice, {"type": "text"})]
    bad = [{"prompt": "Hi", "response_format": f} for f in ({"type": "xml"}, "json", {"type": "json_schema"})]
    unknown = {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}
    bad += [{"prompt": "Hi", "response_format": unknown}, good[0] | {"stop": "x"}]
    ran = call("complete", "--jsonl", "-", *tiny, "-n", 300, stdin=lines(*good, *bad))
    answers = ran.answers
    for answer, schema in zip(answers, (PERSON, {"enum": ["yes", "no"]}), strict=False):
        (entry,) = answer["choices"]
        assert entry["finish_reason"] == "length" or is_json(entry["text"], schema)
    assert not answers[2]["choices"][0]["text"].startswith("{")
    for answer, reason in zip(answers[3:], ["no known form"] * 3 + ["not", "stop string"], strict=True):
        assert reason in answer["error"]["message"]


REFUSED = {
    "two grammars": (["-j", SCHEMA, "--regex", "a"], "give one"),
    "format and a grammar": (["--format", "json", "--grammar", "yes.lark"], "give one"),
    "a stop string": (["-j", SCHEMA, "--stop", "x"], "stop"),
    "no JSON": (["-j", "bad.json"], "bad.json is not JSON"),
    "no JSON inline": (["-j", '{"type": '], "the schema is not JSON"),
    "no file": (["-j", "nope.json"], "nope.json"),
    "no schema": (["-j", "list.json"], "a JSON list"),
    "a keyword": (["-j", '{"type": "array", "uniqueItems": true}'], "uniqueItems"),
    "another keyword": (["-j", '{"$dynamicRef": "#a"}'], "$dynamicRef"),
    "no Lark": (["--grammar", "person.json"], "grammar"),
    "no regex": (["--regex", "("], "unclosed group"),
    "an unknown format": (["--format", "xml"], "xml"),
}


@pytest.mark.parametrize(("arguments", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("command", [COMMANDS["complete"], COMMANDS["chat"]], ids=["complete", "chat"])
def test_what_cannot_be_kept_to_is_refused(tiny, command, arguments, reason):
    assert_refused(call(*command, "Hi", *arguments, *tiny, "-n", 5), 2, reason)


def test_an_answer_under_a_grammar_cannot_be_continued():
    session = Session(
        fake_model(lambda ids: STOP),
        SamplingParams(),
        messages=[Message("user", "Hi"), Message("assistant", "[", is_partial=True)],
        grammar=JsonSchema(PERSON),
    )
    with pytest.raises(UsageError, match="keeps to a grammar cannot be continued"):
        session.continue_answer()
