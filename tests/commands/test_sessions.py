"""`m7b sessions`: what it prints, writes and refuses, in process."""

import io
import json
import os
import re
import shlex
import stat
import time

import pytest
from markdown_it import MarkdownIt

from m7b.cli import main
from m7b.commands.sessions import sessions
from m7b.export import ExportFormat, choose_format, format_export
from m7b.messages import Message, parse_message
from m7b.paths import sessions_file
from m7b.store import Store
from tests.support.tiny import assert_refused, call

PASTA = [
    Message("system", "You cook."),
    Message("user", "How do I\ncook Pasta?"),
    Message("assistant", "Boil **water**.\n\n# Then\n", is_partial=True),
]
CALLS = [{"id": "abc", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
TOOLS = [
    Message("user", [{"type": "text", "text": "What time"}, {"type": "text", "text": "is it?"}]),
    Message("assistant", None, {"tool_calls": CALLS}),
    Message("tool", "noon", {"tool_call_id": "abc"}),
    Message("assistant", "Noon. \x1b[31m\u2028🍝"),
]
COMMANDS = {
    command.name or command.callback.__name__: command.callback for command in sessions.registered_commands
}
EXAMPLES = [
    line.strip()
    for function in COMMANDS.values()
    for line in function.__doc__.partition("Examples:")[2].splitlines()
    if line.strip()
]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """An empty data folder, and a working directory of its own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("M7B_HOME", str(folder))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def kept(monkeypatch):
    """Conversation 1 is about pasta, 2 is called recipes and has tool calls, 3 is empty."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    clock = iter(range(0, 10**9, 86_400))
    with Store(sessions_file()) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr("m7b.store.time.time", lambda: float(next(clock)))
        store.save(store.create("instruct-v0.1"), PASTA)
        store.save(store.create("demo", "recipes"), TOOLS)
        store.create("demo")
    yield
    monkeypatch.undo()
    time.tzset()


def said(*arguments):
    """What a command printed that had nothing to note."""
    ran = call("sessions", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return ran.out


class Terminal(io.StringIO):
    def isatty(self):
        return True


# list


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["search", "x"]], ids=" ".join)
def test_where_nothing_was_kept_nothing_is_printed_or_made(arguments, home):
    ran = call("sessions", *arguments)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err in ("m7b: there are no conversations yet\n", "m7b: nothing found\n")
    assert not home.exists()


@pytest.mark.parametrize("arguments", [["show", "1"], ["export", "1"], ["rm", "1"]], ids=" ".join)
def test_where_nothing_was_kept_no_reference_is_known(arguments, home):
    assert_refused(call("sessions", *arguments), 2, "no conversation '1'", "none yet")
    assert not home.exists()


@pytest.mark.usefixtures("kept")
def test_list_shows_the_latest_first_in_aligned_columns():
    assert said("list") == (
        "3  1970-01-05 00:00  demo           0  (empty)\n"
        "2  1970-01-04 00:00  demo           4  recipes\n"
        "1  1970-01-02 00:00  instruct-v0.1  3  How do I cook Pasta?\n"
    )


@pytest.mark.usefixtures("kept")
def test_list_as_json_has_one_conversation_a_line():
    ran = call("sessions", "list", "--json")
    assert ran.answers[1] == {
        "id": 2,
        "name": "recipes",
        "model": "demo",
        "created": 172_800.0,
        "updated": 259_200.0,
        "n_messages": 4,
        "title": "What time is it?",
    }
    assert [answer["id"] for answer in ran.answers] == [3, 2, 1]


# show and export

PASTA_MARKDOWN = """\
# How do I cook Pasta?

instruct-v0.1

**system**

You cook.

**user**

How do I
cook Pasta?

**assistant** (cut off)

Boil **water**.

# Then

"""
TOOLS_MARKDOWN = """\
# recipes

demo

**user**

What time

is it?

**assistant**

```json
[{"id": "abc", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
```

**tool**

noon

**assistant**

Noon. \x1b[31m\u2028🍝
"""


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("1", PASTA_MARKDOWN),
        ("recipes", TOOLS_MARKDOWN),
        ("2", TOOLS_MARKDOWN),
        ("3", "# Conversation 3\n\ndemo\n"),
    ],
)
def test_a_conversation_reads_as_markdown_with_its_texts_verbatim(reference, text):
    assert said("show", reference) == said("export", reference) == text


OPEN = {
    "a fence": "Look:\n\n```py\nx = 1",
    "a longer fence": "````\n```\nx\n```",
    "tildes": "~~~\n```\nx\n",
    "the line of a fence": "text\n```",
    "a fence with CRLF": "a\r\n```\r\nx\r\n",
    "a fence in a list": "1. a\n   ```\n   x",
    "a fence in a quote": "> ```\n> x",
    "a fence behind one in a list": "- ```\n  x\n\n```\ny",
    "a comment": "<!-- a\n\nb",
    "a script": "<script>\nx",
    "preformatted text": "<pre>\nx",
    "an instruction": "<?php x",
    "character data": "<![CDATA[ x",
    "a comment in a fence": "```\n<!-- a",
}


@pytest.mark.parametrize("text", OPEN.values(), ids=OPEN)
def test_a_block_that_an_answer_leaves_open_does_not_take_in_what_follows(text):
    """The turns behind an answer that was cut off in a block of code became part of that code."""
    talk = [Message("user", "q"), Message("assistant", text, is_partial=True), Message("user", "more")]
    with Store(None) as store:
        exported = format_export(store.find(str(store.create("demo"))), talk)
    assert text in exported
    tokens = MarkdownIt("commonmark").parse(exported)
    paragraphs = [token.content for token in tokens if token.type == "inline" and token.level == 1]
    assert paragraphs[-2:] == ["**user**", "more"]


@pytest.mark.usefixtures("kept")
def test_a_terminal_does_not_obey_what_it_shows(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["sessions", "show", "recipes"]) == 0
    assert "Noon. \ufffd[31m" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()


@pytest.mark.usefixtures("kept")
def test_export_as_json_has_the_messages_as_openai_writes_them():
    assert json.loads(said("export", "recipes", "--format", "json")) == {
        "id": 2,
        "name": "recipes",
        "model": "demo",
        "messages": [
            {"role": "user", "content": TOOLS[0].content},
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "content": "noon", "tool_call_id": "abc"},
            {"role": "assistant", "content": TOOLS[3].content},
        ],
    }


@pytest.mark.usefixtures("kept")
def test_export_as_jsonl_gives_back_the_messages():
    ran = call("sessions", "export", "recipes", "--format", "jsonl")
    assert [parse_message(answer) for answer in ran.answers] == TOOLS


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("file", "options", "form"),
    [
        ("a.md", [], "markdown"),
        ("a.json", [], "json"),
        ("a.JSON", [], "json"),
        ("a.jsonl", [], "jsonl"),
        ("a.txt", [], "markdown"),
        ("a", [], "markdown"),
        ("a.md", ["--format", "json"], "json"),
    ],
)
def test_export_to_a_file_has_the_format_of_its_suffix_unless_told(file, options, form, tmp_path):
    ran = call("sessions", "export", "2", "-o", file, *options)
    assert (ran.code, ran.out, ran.err) == (0, "", f"m7b: wrote {file}\n")
    written = (tmp_path / "work" / file).read_bytes().decode("utf-8")
    assert written == said("export", "2", "--format", form)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_export_writes_for_the_owner_only_and_leaves_nothing_else(umask, tmp_path):
    before = os.umask(umask)
    try:
        call("sessions", "export", "1", "-o", "a.md")
    finally:
        os.umask(before)
    (file,) = (tmp_path / "work").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.usefixtures("kept")
def test_export_replaces_a_file_only_by_force(tmp_path):
    file = tmp_path / "work" / "a.md"
    file.write_text("mine")
    assert_refused(call("sessions", "export", "1", "-o", "a.md"), 2, "a.md exists", "--force")
    assert file.read_text() == "mine"
    assert call("sessions", "export", "1", "-o", "a.md", "--force").code == 0
    assert file.read_text() == PASTA_MARKDOWN


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (["-o", "/dev/null", "--force"], 2, ["/dev/null", "no regular file"]),
        (["-o", ".", "--force"], 2, ["no regular file"]),
        (["-o", "nowhere/a.md"], 5, ["nowhere/a.md", "No such file"]),
        (["-o", "x" * 300 + ".md"], 5, ["name too long"]),
        (["--force"], 2, ["--force", "--output"]),
        (["--format", "pdf"], 2, ["--format", "'pdf'", "markdown"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, list) else "",
)
def test_export_says_what_it_cannot_write(arguments, code, fragments):
    assert_refused(call("sessions", "export", "1", *arguments), code, *fragments)


@pytest.mark.parametrize("form", ExportFormat)
def test_an_export_is_utf8_whatever_was_kept(form):
    broken = [Message("user", "half \ud83d, \udcff"), Message("tool", None, {"name": "\ud800"})]
    with Store(None) as store:
        text = format_export(store.find(str(store.create("\udcff"))), broken, form)
    assert "half \\ud83d" in text.encode("utf-8").decode("utf-8")
    if form is ExportFormat.JSONL:
        assert [parse_message(json.loads(line)) for line in text.splitlines()] == broken


def test_every_format_has_a_suffix_or_is_the_default(tmp_path):
    assert {choose_format(tmp_path / name) for name in ("a.json", "a.jsonl", "a.md")} == set(ExportFormat)


# rm


@pytest.mark.usefixtures("kept")
def test_rm_removes_and_says_what():
    ran = call("sessions", "rm", "recipes", "1", "2")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "m7b: removed 2 recipes\nm7b: removed 1 How do I cook Pasta?\n"
    assert [answer["id"] for answer in call("sessions", "list", "--json").answers] == [3]


@pytest.mark.usefixtures("kept")
def test_rm_removes_nothing_where_one_reference_is_unknown():
    assert_refused(call("sessions", "rm", "1", "nope"), 2, "'nope'", "recipes", "m7b sessions list")
    assert len(call("sessions", "list", "--json").answers) == 3


# search


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("PASTA", "   1  user       cook Pasta?\n"),
        ("ti", "   2  user       What time\n"),
        ("oo", "   2  tool       noon\n   2  assistant  Noon. \x1b[31m\n   1  system     You cook.\n"
               "   1  user       cook Pasta?\n"),
        ("i\ncook", "   1  user       How do I\n"),
    ],
    ids=repr,
)  # fmt: skip
def test_search_prints_the_line_with_the_text(text, printed):
    assert said("search", text) == printed


@pytest.mark.usefixtures("kept")
def test_search_that_finds_nothing_says_so_and_succeeds():
    ran = call("sessions", "search", "nowhere")
    assert (ran.code, ran.out, ran.err) == (0, "", "m7b: nothing found\n")


# all of them


@pytest.mark.parametrize(
    "command", [["list"], ["show", "1"], ["export", "1"], ["rm", "1"], ["search", "x"]], ids=" ".join
)
def test_a_damaged_store_is_refused_in_one_line(command, home):
    home.mkdir()
    sessions_file().write_text("no database\n" * 1000)
    assert_refused(call("sessions", *command), 2, str(sessions_file()), "move it away")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_two_examples_of_it(name):
    ran = call("sessions", name, "--help")
    assert (ran.code, ran.err) == (0, "")
    about = re.split(r"\n(?:Arguments|Options):", ran.out)[0]
    examples = re.findall(r"^    (\S.*)$", about, re.MULTILINE)
    assert [f"{line} ".startswith(f"m7b sessions {name} ") for line in examples] == [True, True], examples


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_runs_on_a_store_with_such_conversations(line):
    program, *arguments = shlex.split(line)
    assert program == "m7b"
    ran = call(*arguments)
    assert ran.code == 0, ran.err
