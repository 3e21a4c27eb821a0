"""Every slash command of `m7b chat` on a pseudo-terminal: what it does, and what it refuses."""

import base64
import json
import re

import pytest

from m7b.messages import Message
from m7b.repl.slash import COMMANDS
from tests.support.chat_home import ChatHome, mode_of

ANSWERS = {"hot": "T{temperature} P{top_p} S{seed} call {call}", "long": "one two three"}

# Each is typed into a chat of its own, behind one turn: "hello", answered "echo: hello".
SCRIPTS = {
    "help": [
        ("/help undo", ["/undo [N]", "  Take back the last turn, or the last N."]),
        ("/? /exit", ["/bye", "  End the chat.", "  also /exit, /quit"]),
    ],
    "clear": [
        ("/system Be brief.", ["Be brief."]),
        ("/clear", ["a new conversation"]),
        ("/tokens x", ["<1>Be brief.<2>x<3>", "13 of 4096 tokens"]),
        ("/new", ["a new conversation"]),
        ("/sessions", ["    1    3 messages  hello"]),
    ],
    "regen": [
        ("hot", ["T0.7 P1.0 SNone call 2"]),
        ("/regen", ["T0.7 P1.0 SNone call 3"]),
        ("/retry temperature=1 seed=7", ["T1.0 P1.0 S7 call 4"]),
        ("/regen temperature 0", ["T0.0 P1.0 SNone call 5"]),
        ("/regen", ["T0.7 P1.0 SNone call 6"]),
        ("/undo", ["took back 1 turn, from: hot"]),
    ],
    "continue": [
        ("/set max_tokens 5", ["max_tokens = 5"]),
        ("long", ["one t", "stopped after 5 tokens; /continue goes on"]),
        ("/set max_tokens 100", ["max_tokens = 100"]),
        ("/continue", ["wo three"]),
        ("/continue", ["the model said nothing"]),
    ],
    "undo": [
        ("second", ["echo: second"]),
        ("third", ["echo: third"]),
        ("/undo", ["took back 1 turn, from: third"]),
        ("/undo 2", ["took back 2 turns, from: hello"]),
        ("/tokens", ["<2><3>", "2 of 4096 tokens"]),
    ],
    "system": [
        ("/system", ["there is no system prompt"]),
        ("/system Be brief.", ["Be brief."]),
        ("/tokens", ["<1>Be brief.<2>hello<3>echo: hello<2><3>", "30 of 4096 tokens"]),
        ("/system Be long.", ["Be long."]),
        ("/system off", ["there is no system prompt"]),
        ("/tokens", ["<2>hello<3>echo: hello<2><3>", "20 of 4096 tokens"]),
    ],
    "set": [
        ("/set temperature 1", ["temperature = 1"]),
        ("hot", ["T1.0 P1.0 SNone call 2"]),
        ("/set parameter temperature 0.5", ["temperature = 0.5"]),
        ("/regen", ["T0.5 P1.0 SNone call 3"]),
        ("/set temperature=2 top_p=0.5 seed=3", ["temperature = 2  top_p = 0.5  seed = 3"]),
        ("/regen", ["T2.0 P0.5 S3 call 4"]),
        ('/set stop "P0" call', ['stop = "P0" call']),
        ("/regen", ["T2.0"]),
        ("/set stop off", ["stop = off"]),
        ("/set system Be brief.", ["Be brief."]),
        ("/set on_full roll", ["on_full = roll"]),
        ("/set num_predict 7", ["num_predict = 7"]),
    ],
    "show": [
        ("/show", ["model       demo", "checkpoint  none (script)"]),
        ("/show info", ["model       demo", "checkpoint  none (script)"]),
        ("/show system", ["there is no system prompt"]),
        ("/show template", ["frames of the test", "{{ role }}{{ content }}"]),
        ("/show license", ["license of the test"]),
    ],
    "tokens": [
        ("/tokens", ["<2>hello<3>echo: hello<2><3>", "20 of 4096 tokens"]),
        ("/tokens <3> [b]", ["<2>hello<3>echo: hello<2><3> [b]<3>", "27 of 4096 tokens"]),
    ],
    "window": [
        ("/window", ["the prompt has 20 of 4096 tokens", "full attention: every token sees all before it"])
    ],
    "save": [
        ("/save recipes", ["m7b chat --session recipes carries on with it"]),
        ("/sessions", ["*   1    2 messages  recipes"]),
        ("/clear", ["a new conversation"]),
        ("other", ["echo: other"]),
        ("/sessions", ["*   2    2 messages  other", "    1    2 messages  recipes"]),
        ("/sessions ECHO: HELLO", ["    1    2 messages  recipes"]),
        ("/sessions nothing", ["there are none"]),
        ("/load recipes", ["conversation 1, 2 messages: recipes", ">>> hello", "echo: hello"]),
        ("more", ["echo: more"]),
        ("/load 2", ["conversation 2, 2 messages: other", ">>> other", "echo: other"]),
        ("/sessions", ["    1    4 messages  recipes", "*   2    2 messages  other"]),
    ],
    "copy": [("/copy", ["handed 11 characters to the terminal"])],
    "model": [
        ("/model", ["demo: 4096 tokens of context"]),
        ("/model instruct-v0.3", ["instruct-v0.3: 4096 tokens of context"]),
        ("again", ["echo: again"]),
        ("/show", ["model       instruct-v0.3", "checkpoint  none (script)"]),
    ],
    "tools": [
        ("/tools", ["there are no tools; /tools load FILE.py brings some"]),
        ("/tools off", ["tools are not offered"]),
        ("/tools on", ["tools are offered"]),
    ],
}
ELSEWHERE = {"theme", "bye", "exit", "quit", "edit", "read", "export", "stats", "multiline"}

REFUSALS = [
    ("/help nope", "there is no command /nope"),
    ("/regen", "there is no user message yet; say something first"),
    ("/retry", "there is no user message yet; say something first"),
    ("/regen temprature=1", "there is no parameter 'temprature'; did you mean temperature?"),
    ("/regen temperature", "temperature is set to nothing; write /set temperature 0.7"),
    ("/continue", "there is no answer to continue; ask something first"),
    ("/undo", "cannot take back 1 of 0 turns"),
    ("/undo 0", "cannot take back 0 of 0 turns"),
    ("/undo x", "'x' is no number of turns; write /undo 2"),
    ("/edit", "there is no user message yet; say something first"),
    ("/edit answer", "there is no assistant message yet; say something first"),
    ("/edit x", "there is no 'x' to edit; write /edit user or /edit answer"),
    ("/set temperature", "temperature is set to nothing; write /set temperature 0.7"),
    ("/set temperature x", "temperature is 'x'; it must be a number"),
    ("/set temperature 1000", "temperature is 1000.0; it must be from 0 to 100"),
    ("/set top_p=0.5 temperature", "'temperature' is not NAME=VALUE; write temperature=0.7 top_p=0.9"),
    ("/set top_k=1 top_p=2", "top_p is 2.0; it must be from 0 to 1"),
    ("/set num_ctx 5", "num_ctx cannot change while the model is loaded; use --ctx-size"),
    ("/set on_full x", "on_full is 'x'; it can be error, drop-oldest, roll, stop"),
    ('/set stop="a', "'stop=\"a': No closing quotation"),
    ("/show x", "there is nothing to show of 'x'"),
    ("/stats", "there is no answer yet"),
    ("/read", "no file is named; write /read notes.txt"),
    ("/read nope", "cannot read nope: No such file or directory"),
    ("/read .", ". is no regular file; name another"),
    ("/read ~nosuchuser/x", "'~nosuchuser/x' is no path"),
    ("/read /dev/null", "/dev/null is no regular file"),
    ("/export ~nosuchuser/x", "'~nosuchuser/x' is no path"),
    ("/export --force", "no file is named"),
    ("/undo " + "9" * 5000, "is no number of turns; write /undo 2"),
    (" /nope", "there is no command /nope"),
    ("/read latin.txt", "latin.txt is not UTF-8"),
    ("/save", "no name is given; write /save recipes"),
    ("/save x", "there is no conversation yet; say something first"),
    ("/load nope", "there is no conversation 'nope'; there are none yet"),
    ("/sessions", "there are none"),
    ("/export", "no file is named; write /export talk.md"),
    ("/export talk.md", "there is no conversation yet; say something first"),
    ("/copy", "there is no assistant message yet; say something first"),
    ("/tools x", "/tools does not take 'x'; write /tools, on, off, or load FILE"),
    ("/tools load", "/tools does not take 'load'; write /tools, on, off, or load FILE"),
    ("/tools load nope.py", "nope.py: no such file; tools are in .py or .json files"),
    ("/tools load latin.txt", "latin.txt: tools are in .py or .json files"),
    ("/model nope", "there is no model nope; name a folder, a GGUF file"),
    ("/model instruct-v0.1", "instruct-v0.1 is not on this machine"),
    ("/model base-v0.1", "base-v0.1 was not trained to chat"),
    ("/helo", "there is no command /helo; did you mean /help? // at the beginning sends it as text"),
    ("/qqqq", "there is no command /qqqq; /? lists them"),
    ("/", "there is no command /"),
    ("/ hello", "there is no command /"),
    ("/usr/bin is a folder", "there is no command /usr/bin"),
]


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path, ("demo", "instruct-v0.3"))


def chat(home, *arguments, **settings):
    """A chat that answers by the table."""
    return home.chat("--variant", "demo", *arguments, answers=ANSWERS, **settings)


def test_every_command_and_alias_is_tried():
    lines = [line for script in SCRIPTS.values() for line, _ in script]
    tried = {line[1:].split()[0] for line in lines if line.startswith("/")}
    assert tried | ELSEWHERE == {name for command in COMMANDS for name in command.names}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_command_does_what_it_says(home, script):
    with chat(home) as terminal:
        terminal.submit("hello")
        for line, expected in script:
            shown = [row for row in terminal.submit(line) if row]
            assert (line, shown) == (line, expected)


def test_a_command_that_cannot_be_done_says_why_and_changes_nothing(home):
    (home.work / "latin.txt").write_bytes(b"\xff")
    with chat(home) as terminal:
        before = terminal.submit("/show parameters")
        found = [(line, " ".join(terminal.submit(line))) for line, _ in REFUSALS]
        assert terminal.submit("/set") == before
        assert terminal.submit("/tokens") == ["<2><3>", "2 of 4096 tokens"], "something was sent"
    assert [line for line, reason in REFUSALS if reason not in dict(found)[line]] == [], found
    assert home.messages() == []


def test_help_lists_every_command_and_fits_the_screen(home):
    with chat(home, columns=60) as terminal:
        shown = terminal.submit("/help")
        assert [c.synopsis for c in COMMANDS if not any(row.startswith(c.synopsis) for row in shown)] == []
        assert max(map(len, shown)) <= 60


@pytest.mark.parametrize("name", ["bye", "exit", "quit"])
def test_bye_ends_the_chat(home, name):
    with chat(home) as terminal:
        terminal.type(f"/{name}")
        terminal.key("enter")
        assert terminal.exit_code() == 0


def test_two_slashes_send_one(home):
    with chat(home) as terminal:
        assert terminal.submit("//help is a path") == ["echo: /help is a path"]
    assert home.texts()[0] == "/help is a path"


def test_show_parameters_shows_what_was_set(home):
    with chat(home, "--top-k", 40, "--stop", "END", "--on-full", "stop") as terminal:
        terminal.submit("/set temperature=1.5 seed=9")
        rows = dict(row.split(maxsplit=1) for row in terminal.submit("/show parameters"))
        assert rows["temperature"] == "1.5"
        assert (rows["top_k"], rows["seed"], rows["stop"]) == ("40", "9", "('END',)")
        assert (rows["max_tokens"], rows["on_full"]) == ("1024", "stop")


def test_window_shows_where_a_window_that_is_full_begins(home):
    with chat(home, "--window", 30) as terminal:
        terminal.submit("hello")
        assert terminal.submit("/window")[1] == "a window of 30: every token still sees all before it"
        terminal.submit("a second message")
        # <2>hello<3>echo: hello<2>a second message<3>echo: a second message<2><3>, of which 29 are seen
        assert terminal.submit("/window") == [
            "the prompt has 60 of 4096 tokens",
            "a window of 30: the next token sees itself and 29 before it, from",
            "  …sageecho: a second message…",
            "and what came earlier only through what the layers below made of it",
        ]
        assert "window 30" in terminal.toolbar


def test_stats_shows_the_figures_of_the_last_answer(home):
    with chat(home) as terminal:
        terminal.submit("hello")
        terminal.submit("again")
        shown = dict(row.split(maxsplit=1) for row in terminal.submit("/stats"))
        assert shown["prompt"] == "25 tokens, reused 18 of 25"
        assert shown["answer"] == "11 tokens"
        assert re.fullmatch(r"\d+\.\d\d s, \d+\.\d tok/s", shown["decode"])


def test_read_puts_a_file_in_front_of_the_next_message_only(home):
    (home.work / "notes.txt").write_text("Some notes: é\n", encoding="utf-8")
    with chat(home) as terminal:
        assert terminal.submit("/read notes.txt") == ["notes.txt: 15 tokens, in front of your next message"]
        assert terminal.toolbar.endswith("+ notes.txt")
        terminal.submit("What is this?")
        assert "notes.txt" not in terminal.toolbar
        terminal.submit("And now?")
    assert home.texts()[::2] == ["Some notes: é\n\n\nWhat is this?", "And now?"]


def test_edit_sends_the_edited_message_in_the_place_of_the_last(home):
    editor = home.executable("editor", 'cp "$1" "$HOME/seen"; printf "edited" > "$1"')
    with chat(home, env={"VISUAL": editor, "EDITOR": "false"}) as terminal:
        terminal.submit("first")
        terminal.submit("hello")
        assert terminal.submit("/edit") == [">>> edited", "echo: edited"]
        assert (home.folder / "seen").read_text() == "hello"
        assert terminal.submit("/edit user") == ["nothing changed"]
    assert home.texts() == ["first", "echo: first", "edited", "echo: edited"]


def test_edit_answer_replaces_the_answer_and_continue_goes_on_from_it(home):
    editor = home.executable("editor", 'cp "$1" "$HOME/seen"; printf "edited" > "$1"')
    with chat(home, env={"EDITOR": editor}) as terminal:
        terminal.submit("hello")
        assert terminal.submit("/edit answer") == ["the answer is replaced; /continue goes on from it"]
        assert (home.folder / "seen").read_text() == "echo: hello"
        assert home.messages()[-1] == Message("assistant", "edited")
        assert terminal.submit("/edit answer") == ["nothing changed"]
        assert terminal.submit("/continue") == ["and so on"]
    assert home.texts()[-1] == "edited and so on"


def test_an_editor_that_fails_changes_nothing(home):
    editor = home.executable("editor", 'printf "edited" > "$1"; exit 3')
    with chat(home, env={"EDITOR": editor}) as terminal:
        terminal.submit("hello")
        assert "failed with exit code 3" in " ".join(terminal.submit("/edit"))
    assert home.texts() == ["hello", "echo: hello"]


def test_the_editor_finds_the_modes_that_programs_expect(home):
    editor = home.executable("editor", 'stty -a < /dev/tty > "$HOME/modes"')
    with chat(home, env={"EDITOR": editor}) as terminal:
        terminal.submit("hello")
        terminal.submit("/edit")
        modes = (home.folder / "modes").read_text().replace(";", " ").split()
        assert {"icanon", "echo", "icrnl", "isig"} <= set(modes)


def test_export_writes_three_formats_and_replaces_nothing_unasked(home):
    with chat(home) as terminal:
        terminal.submit("hello")
        for name in ("talk.md", "talk.json", "two words.jsonl"):
            assert terminal.submit(f"/export {name}") == [f"wrote {name}"]
        assert "talk.md exists" in terminal.submit("/export talk.md")[0]
        assert terminal.submit("/export talk.md --force") == ["wrote talk.md"]
        assert "cannot write nope/x.md" in terminal.submit("/export nope/x.md")[0]
    markdown = (home.work / "talk.md").read_text()
    assert markdown == "# hello\n\ndemo\n\n**user**\n\nhello\n\n**assistant**\n\necho: hello\n"
    messages = [message.as_json() for message in home.messages()]
    assert json.loads((home.work / "talk.json").read_text())["messages"] == messages
    lines = (home.work / "two words.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == messages
    assert mode_of(home.work / "talk.md") == 0o600


def test_copy_hands_the_last_answer_to_the_terminal_by_osc_52(home):
    with home.chat("--variant", "demo", answers={"hello": "**ünï** 🍝\n\n"}) as terminal:
        terminal.submit("hello")
        terminal.submit("/copy")
        (data,) = re.findall(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", terminal.raw)
        assert base64.b64decode(data).decode() == "**ünï** 🍝\n\n"


def test_multiline_swaps_enter_and_alt_enter_and_back(home):
    with chat(home) as terminal:
        assert terminal.submit("/multiline") == ["Alt+Enter sends"]
        assert terminal.toolbar.endswith("Alt+Enter sends")
        terminal.type("one")
        terminal.key("enter")
        terminal.type("two")
        terminal.key("alt+enter")
        terminal.wait_for_prompt()
        assert terminal.submit("/multiline") == ["Enter sends"], "a command is sent with Enter in any mode"
        assert terminal.submit("three") == ["echo: three"]
    assert home.texts()[::2] == ["one\ntwo", "three"]
