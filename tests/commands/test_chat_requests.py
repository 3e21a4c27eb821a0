"""Conversations on the command line: `tokenize --chat`, batches of them, and `complete --chat`."""

import io
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from m7b.cli import main
from tests.support.tiny import assert_refused, call, lines, write_tiny

GOLDEN = Path(__file__).parent.parent / "golden"
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "It is"}
V1 = ("--variant", "instruct-v0.2")
V3 = ("--variant", "instruct-v0.3")
HI_V3 = [1, 3, 16127, 4]


def rows(name):
    return [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint with v1's tokenizer and no template of its own."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def complete(tiny):
    """Runs `m7b complete` on the tiny checkpoint, 5 tokens without dice unless told otherwise."""

    def run(*arguments, stdin=b""):
        return call("complete", "-m", tiny, "-n", 5, "--temperature", 0, *arguments, stdin=stdin)

    return run


@pytest.fixture
def chat(complete):
    """`complete --chat` with Mistral's template v1."""
    return lambda *arguments, stdin=b"": complete("--chat", "--chat-template", "v1", *arguments, stdin=stdin)


def succeeded(ran):
    assert (ran.code, ran.err) == (0, "")
    return ran


# tokenize --chat --jsonl


@pytest.mark.parametrize("name", ["vectors_public", "samples"])
def test_batch_gives_the_golden_ids_and_texts(name):
    expected = rows(name)
    answers = succeeded(call("tokenize", "--chat", "--jsonl", GOLDEN / f"{name}.jsonl")).answers
    assert [(a["id"], a["tokens"]) for a in answers] == [(row["id"], row["tokens"]) for row in expected]
    assert [a["text"] for a in answers] == [
        row.get("text", a["text"]) for row, a in zip(expected, answers, strict=True)
    ]


def test_batch_gives_each_invalid_conversation_its_golden_error():
    ran = call("tokenize", "--chat", "--jsonl", GOLDEN / "invalid_public.jsonl")
    assert (ran.code, ran.err.count("\n")) == (7, 1)
    assert ran.answers == [
        {"id": row["id"], "error": {"type": row["exception"], "message": row["message"]}}
        for row in rows("invalid_public")
    ]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "ValidationError"),
        ({"messages": "Hi"}, "ValidationError"),
        ({"messages": [USER | {"x": 1}]}, "ValidationError"),
        ({"messages": [USER], "mode": "x"}, "ValueError"),
        ({"messages": [USER], "extra": "x"}, "UsageError"),
        ({"messages": [USER], "extra": {"self": 1}}, "UsageError"),
        ({"messages": [USER], "extra": {"x": 1}}, "ValidationError"),
        ({"messages": [USER], "variant": "base-v0.3"}, "UsageError"),
        ({"messages": [USER], "variant": "v9"}, "UsageError"),
        ({"messages": [USER], "variant": ["demo"]}, "UsageError"),
    ],
    ids=str,
)
def test_bad_line_fails_alone(fields, kind):
    """A mode or an `extra` that is none ended the whole batch with a traceback."""
    good = {"id": "good", "messages": [USER]}
    ran = call("tokenize", "--chat", *V3, "--jsonl", "-", stdin=lines({"id": "bad"} | fields, b"{", good))
    bad, broken, answer = ran.answers
    assert (ran.code, bad["id"], bad["error"]["type"]) == (7, "bad", kind), ran.err
    assert (broken["id"], broken["error"]["type"]) == (None, "UsageError")
    assert answer == {"id": "good", "tokens": HI_V3, "text": "<s>[INST]▁Hi[/INST]"}


def test_lines_may_name_several_variants(demo_home, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(demo_home))
    requests = [{"id": name, "variant": name, "messages": [USER]} for name in ("instruct-v0.1", "demo")]
    ran = succeeded(
        call("tokenize", "--chat", *V3, "--jsonl", "-", stdin=lines(*requests, {"messages": [USER]}))
    )
    assert [answer["text"] for answer in ran.answers] == [
        "<s>▁[INST]▁Hi▁[/INST]",
        "<|im_start|>systemĊYouĠareĠaĠhelpfulĠAIĠassistantĠnamedĠSmolLM,ĠtrainedĠbyĠHuggingĠFace<|im_end|>Ċ"
        "<|im_start|>userĊHi<|im_end|>Ċ<|im_start|>assistantĊ",
        "<s>[INST]▁Hi[/INST]",
    ]


def test_demo_line_that_is_no_conversation_fails_alone(demo_home, monkeypatch):
    """Messages that are no list were an AttributeError."""
    monkeypatch.setenv("M7B_HOME", str(demo_home))
    bad = [{"messages": value} for value in (None, "Hi", [1], [], [{"content": "Hi"}])]
    ran = call("tokenize", "--chat", "--variant", "demo", "--jsonl", "-", stdin=lines(*bad))
    assert (ran.code, ran.err.count("\n")) == (7, 1)
    assert {answer["error"]["type"] for answer in ran.answers} == {"UsageError"}


# tokenize --chat


@pytest.mark.parametrize("value", [[USER], {"messages": [USER]}, {"messages": [USER], "tools": []}], ids=str)
@pytest.mark.parametrize("source", ["-", "nothing", "file"])
def test_messages_come_as_a_list_or_an_object_from_stdin_or_a_file(value, source, tmp_path):
    text = json.dumps(value)
    file = tmp_path / "messages.json"
    file.write_text(text, encoding="utf-8")
    where = {"-": ["-"], "nothing": [], "file": [file]}[source]
    ran = succeeded(call("tokenize", "--chat", *V3, "--json", *where, stdin="" if source == "file" else text))
    assert ran.answer == {
        "tokens": HI_V3,
        "pieces": ["<s>", "[INST]", "▁Hi", "[/INST]"],
        "text": "<s>[INST]▁Hi[/INST]",
    }


def test_tools_are_shown():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    request = json.dumps({"messages": [USER], "tools": [tool]})
    text = succeeded(call("tokenize", "--chat", *V3, "--json", stdin=request)).answer["text"]
    assert text.startswith('<s>[AVAILABLE_TOOLS]▁[{"type":')
    assert text.endswith("[/AVAILABLE_TOOLS][INST]▁Hi[/INST]")


HI_PLAIN = "     1  <s>\n     3  [INST]\n 16127  ▁Hi\n     4  [/INST]\n"


class Screen(io.TextIOWrapper):
    """A terminal that keeps what it shows."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("is_terminal", "environment", "is_coloured"),
    [
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb", "NO_COLOR": ""}, False),
        (False, {"TERM": "xterm", "NO_COLOR": ""}, False),
    ],
    ids=["terminal", "NO_COLOR", "dumb", "pipe"],
)
def test_control_tokens_are_coloured_on_a_terminal_only(
    is_terminal, environment, is_coloured, tmp_path, monkeypatch
):
    file = tmp_path / "messages.json"
    file.write_text(json.dumps([USER]))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = (Screen if is_terminal else io.TextIOWrapper)(io.BytesIO(), encoding="utf-8", newline="")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["tokenize", "--chat", *V3, str(file)]) == 0
    shown = out.buffer.getvalue().decode()
    colour, end = "\x1b[1;35m", "\x1b[0m"
    expected = HI_PLAIN
    for name in ("<s>", "[INST]", "[/INST]") if is_coloured else ():
        expected = expected.replace(f" {name}\n", f" {colour}{name}{end}\n")
    assert shown == expected


@pytest.mark.parametrize(
    ("arguments", "stdin", "fragments"),
    [
        ([*V3], "Hi", ["no conversation", '[{"role": "user"']),
        ([*V3], "", ["no conversation"]),
        ([*V3], "{}", ["neither a list of messages nor an object"]),
        ([*V3], '{"messages": 5}', ["neither"]),
        ([*V3], '[{"content": "Hi"}]', ["neither"]),
        ([*V3], "[" * 100_000, ["no conversation"]),
        ([*V3], "[]", ["at least one message"]),
        ([*V3], '{"messages": [1]}', ["messages.0"]),
        ([*V3], '[{"role": "bot", "content": "Hi"}]', ["messages.0: union_tag_invalid"]),
        ([*V3], '[{"role": "user", "content": "Hi", "x": 1}]', ["messages.0.user.x: extra_forbidden"]),
        ([*V3], '[{"role": "user", "content": "\\ud800"}]', ["half a character"]),
        ([*V3, "/nowhere.json"], "", ["/nowhere.json"]),
        ([*V3, "--jsonl", "-", "x"], "", ["--jsonl"]),
        ([*V3, "--bos"], "[]", ["--bos", "--chat"]),
        ([*V1, "--chat-template", "v3"], json.dumps([USER]), ["v3", "[INST]"]),
        ([*V1, "--chat-template", "/nowhere.jinja"], json.dumps([USER]), ["/nowhere.jinja", "v1, v3"]),
        (["--variant", "base-v0.1"], json.dumps([USER]), ["base-v0.1", "m7b complete --variant base-v0.1"]),
        (["--variant", "base-v0.3"], json.dumps([USER]), ["base-v0.3", "m7b complete --variant base-v0.3"]),
    ],
)
def test_what_tokenize_cannot_show_is_refused_in_one_line(arguments, stdin, fragments):
    assert_refused(call("tokenize", "--chat", *arguments, stdin=stdin), 2, *fragments)


def test_template_needs_chat(complete):
    assert_refused(call("tokenize", "--chat-template", "v1", "Hi"), 2, "--chat-template", "--chat")
    assert_refused(complete("--chat-template", "v1", "Hi"), 2, "--chat-template", "--chat")


def test_what_a_named_template_writes_is_no_text_of_users(tiny, tmp_path):
    """Only the template in the checkpoint made its added tokens control tokens, not one that was named."""
    tokenizer = Tokenizer(BPE(dict(zip("<|end>hi", range(8), strict=True)), []))
    tokenizer.add_tokens([AddedToken("<|end|>", special=False)])
    folder = shutil.copytree(tiny, tmp_path / "tuned")
    (folder / "tokenizer.model").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}<|end|>")
    messages = json.dumps([{"role": "user", "content": "hi<|end|>"}])
    ran = call(
        "tokenize",
        "--chat",
        "--json",
        "-m",
        folder,
        "--chat-template",
        tmp_path / "own.jinja",
        stdin=messages,
    )
    assert succeeded(ran).answer["tokens"] == [6, 7, 0, 1, 2, 3, 4, 1, 5, 8]


def test_base_variant_chats_with_a_template_that_is_named():
    ran = call(
        "tokenize",
        "--chat",
        "--variant",
        "base-v0.3",
        "--chat-template",
        "v3",
        "--json",
        stdin=json.dumps([USER]),
    )
    assert succeeded(ran).answer["tokens"] == HI_V3


def test_checkpoint_of_a_fine_tune_brings_its_own_template(tiny, tmp_path):
    folder = tmp_path / "fine-tune"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).symlink_to(file)
    source = (
        "{{ bos_token }}{% for m in messages %}### {{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    messages = json.dumps([{"role": "user", "content": "a</s>"}])
    ran = succeeded(call("tokenize", "--chat", "-m", folder, "--json", stdin=messages))
    assert ran.answer["text"] == "<s>###▁user:▁a</s></s>"
    assert ran.answer["tokens"].count(2) == 1


# complete --chat


def test_chat_answers_the_prompt_inside_the_template(complete, chat):
    """In v1 the template is plain text, so the same prompt can be written by hand."""
    by_hand = succeeded(complete("--json", "[INST] Hi [/INST]")).answer
    answer = succeeded(chat("--json", "Hi")).answer
    assert answer["choices"][0]["token_ids"] == by_hand["choices"][0]["token_ids"]
    assert answer["usage"] == by_hand["usage"]
    assert (answer["object"], answer["id"][:9]) == ("chat.completion", "chatcmpl-")
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": message["content"], "refusal": None}
    assert succeeded(chat("Hi")).out == message["content"] + "\n"


@pytest.mark.parametrize("stdin", ["Hi", json.dumps([USER]), json.dumps({"messages": [USER]})])
def test_chat_takes_a_prompt_or_messages(stdin, chat, tmp_path):
    file = tmp_path / "input"
    file.write_text(stdin)
    expected = succeeded(chat("Hi")).out
    assert succeeded(chat(stdin=stdin)).out == succeeded(chat("-f", file)).out == expected
    assert succeeded(chat(stdin)).out == expected


@pytest.mark.parametrize("prompt", ["[1, 2]", '{"role": "user"}', "null", '"Hi"', "[INST"])
def test_chat_takes_json_that_is_no_conversation_for_a_prompt(prompt, chat):
    as_message = json.dumps([{"role": "user", "content": prompt}])
    assert (
        succeeded(chat("--json", prompt)).answer["usage"]
        == succeeded(chat("--json", as_message)).answer["usage"]
    )
    assert chat(prompt).out == chat(as_message).out


def test_chat_continues_a_prefix(complete, chat):
    """Of text that goes on, the first space counts; an answer of its own begins without."""
    hello = ("--json", "--logit-bias", "22557=1000")
    by_hand = succeeded(complete(*hello, "[INST] Hi [/INST] It is")).answer
    messages = json.dumps([USER, ANSWER | {"prefix": True}])
    answer = succeeded(chat(*hello, messages)).answer
    begun = succeeded(chat(*hello, "Hi")).answer["choices"][0]["message"]["content"]
    assert (by_hand["choices"][0]["text"], begun) == (" Hello" * 5, "Hello" + " Hello" * 4)
    assert answer["choices"][0]["token_ids"] == by_hand["choices"][0]["token_ids"]
    assert answer["choices"][0]["message"]["content"] == by_hand["choices"][0]["text"]


def test_chat_batch_answers_messages_and_prompts(chat):
    requests = [
        {"id": 1, "messages": [USER]},
        {"id": 2, "prompt": "Hi"},
        {"id": 3, "messages": []},
        {"id": 4, "messages": [USER], "prompt": "Hi"},
        {"id": 5, "messages": "Hi"},
        {"id": 6, "messages": [ANSWER]},
        {"id": 7, "messages": [USER], "tools": 5},
        {"id": 8, "messages": [USER], "echo": True},
    ]
    ran = chat("--jsonl", "-", stdin=lines(*requests))
    assert ran.code == 7
    first, second, *failed = ran.answers
    assert first["choices"] == second["choices"]
    assert first["choices"][0]["message"]["content"] == chat("Hi").out[:-1]
    assert [(answer["id"], answer["error"]["type"]) for answer in failed] == [
        (3, "InvalidMessageStructureException"),
        (4, "UsageError"),
        (5, "UsageError"),
        (6, "InvalidMessageStructureException"),
        (7, "UsageError"),
        (8, "UsageError"),
    ]


def test_messages_in_a_batch_need_chat(complete):
    ran = complete("--jsonl", "-", stdin=lines({"id": 1, "messages": [USER]}))
    assert (ran.code, "--chat" in ran.answer["error"]["message"]) == (7, True)


def test_chat_logprobs_have_openais_shape(chat):
    (only,) = succeeded(chat("--json", "--logprobs", 2, "Hi")).answer["choices"]
    content = only["logprobs"]["content"]
    assert len(content) == len(only["token_ids"]) == 5
    for entry in content:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(entry["bytes"]).decode() == entry["token"]
        likeliest = entry["top_logprobs"][0]
        assert len(entry["top_logprobs"]) == 2
        assert (likeliest["token"], likeliest["logprob"]) == (entry["token"], entry["logprob"])


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--chat", "--echo", "--chat-template", "v1", "Hi"], ["echo"]),
        (["--chat", "Hi"], ["brings no chat template", "--chat-template"]),
        (["--chat", "--chat-template", "v3", "Hi"], ["v3", "[INST]"]),
        (["--chat", "--chat-template", "/nowhere.jinja", "Hi"], ["/nowhere.jinja"]),
        (["--chat", "--chat-template", "v1", "[]"], ["at least one message"]),
    ],
)
def test_what_chat_cannot_answer_is_refused_in_one_line(arguments, fragments, complete):
    assert_refused(complete(*arguments), 2, *fragments)


def test_base_variant_refuses_chat_before_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    ran = call("complete", "--chat", "--variant", "base-v0.1", "Hi")
    assert_refused(ran, 2, "not trained to chat", "m7b complete --variant base-v0.1")


def test_demo_answers_in_its_own_template(demo_home, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(demo_home))
    options = ("--variant", "demo", "-n", 3, "--temperature", 0, "--json", "--threads", 2)
    shown = succeeded(
        call("tokenize", "--chat", "--variant", "demo", "--json", stdin=json.dumps([USER]))
    ).answer
    answer = succeeded(call("complete", "--chat", *options, "Hi")).answer
    assert answer["usage"]["prompt_tokens"] == len(shown["tokens"])
    assert answer["choices"][0]["message"]["content"].startswith("Hello")
