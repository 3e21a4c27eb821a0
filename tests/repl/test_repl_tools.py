"""Tools in `m7b chat`: who allows a call, what a hostile tool leaves behind, and what is kept."""

import json
import re

import pytest

from m7b.errors import ExitCode
from tests.support.chat_home import ChatHome
from tests.support.tiny import call as run
from tests.support.tool_files import write

QUESTION = "[y]es, [n]o, [a]lways: "
DECLINED = "the user declined this call"
TOOLS = """
import os, time
from pathlib import Path

def mark(name: str) -> str:
    "Leave a mark."
    with open("ran", "a") as file:
        file.write(name + "\\n")
    return "done " + name

def hang() -> str:
    "Take long."
    Path("hangs").touch()
    time.sleep(600)
    return "late"

def escape() -> str:
    "Print and return escape codes."
    codes = "\\x1b[2J\\x1b[31m\\x1b]0;title\\x07\\x1b[?1049h"
    print(codes, flush=True)
    os.write(2, codes.encode())
    return codes + "end"

def fail() -> str:
    "Raise."
    raise ValueError("no such luck")

def leave() -> str:
    "End the process."
    os._exit(3)
"""


def calls(*names, **arguments):
    """An answer that calls these tools."""
    return "☎" + json.dumps([{"name": name, "arguments": arguments} for name in names])


ANSWERS = {
    "one": calls("mark", name="a"),
    "two": calls("mark", "mark", name="b"),
    "hang": calls("hang"),
    "escape": calls("escape"),
    "fail": calls("fail"),
    "leave": calls("leave"),
    "unknown": calls("rm"),
    "for ever": calls("mark", name="again"),
    "done again": calls("mark", name="again"),
    DECLINED: "as you like",
    "done a": "it is done",
    "done b": "they are done",
}


@pytest.fixture
def home(tmp_path):
    home = ChatHome(tmp_path)
    write(home.work, TOOLS, "tools.py")
    return home


def chat(home, *arguments, **settings):
    return home.chat("--tools", "tools.py", *arguments, answers=ANSWERS, columns=100, **settings)


def marks(home):
    """What ran, by the marks that it left."""
    file = home.work / "ran"
    return file.read_text().split() if file.exists() else []


def roles(home):
    return [message.role for message in home.messages()]


def ask(terminal, message):
    """Send a message whose answer calls a tool, and wait for the question."""
    n_questions = terminal.text.count("[a]lways")
    terminal.type(message)
    terminal.key("enter")
    terminal.wait_for(lambda: terminal.text.count("[a]lways") > n_questions)


def reply(terminal, keys):
    """Answer the question, and wait for the next prompt."""
    terminal.type(keys)
    terminal.key("enter")
    terminal.wait_for_prompt()


def test_a_call_runs_when_the_user_says_yes(home):
    with chat(home) as terminal:
        ask(terminal, "one")
        assert 'run mark (tools.py) with {"name": "a"}? ' in " ".join(terminal.text.split())
        assert marks(home) == []
        reply(terminal, "y")
        assert "mark returned in" in terminal.text
        assert "it is done" in terminal.text
    assert marks(home) == ["a"]
    assert roles(home) == ["user", "assistant", "tool", "assistant"]
    call, result = home.messages()[1:3]
    assert result.extra == {"tool_call_id": call.extra["tool_calls"][0]["id"], "name": "mark"}


@pytest.mark.parametrize("keys", ["n", "", "no", "yep", "always y"])
def test_a_call_does_not_run_when_the_user_says_anything_else(home, keys):
    with chat(home) as terminal:
        ask(terminal, "one")
        reply(terminal, keys)
        assert "as you like" in terminal.text
    assert marks(home) == []
    assert home.texts()[2] == DECLINED


def test_always_lasts_for_the_tool_and_the_session(home):
    with chat(home) as terminal:
        ask(terminal, "one")
        reply(terminal, "a")
        terminal.submit("two")
        assert terminal.text.count("[a]lways") == 1
        ask(terminal, "fail")
        reply(terminal, "n")
        terminal.submit("/clear")
        terminal.submit("one")
    assert marks(home) == ["a", "b", "b", "a"]
    with chat(home) as terminal:
        ask(terminal, "one")
        reply(terminal, "n")
    assert marks(home) == ["a", "b", "b", "a"]


def test_each_of_several_calls_is_asked_for(home):
    with chat(home) as terminal:
        ask(terminal, "two")
        terminal.type("n")
        terminal.key("enter")
        terminal.wait_for(lambda: terminal.text.count("[a]lways") == 2)
        reply(terminal, "y")
        assert "they are done" in terminal.text
    assert marks(home) == ["b"]
    assert home.texts()[2:4] == [DECLINED, "done b"]


@pytest.mark.parametrize(("approval", "ran"), [("auto", ["a"]), ("deny", [])])
def test_auto_and_deny_ask_nobody(home, approval, ran):
    with chat(home, "--tool-approval", approval) as terminal:
        terminal.submit("one")
        assert "[a]lways" not in terminal.text
    assert marks(home) == ran


def test_what_is_not_offered_never_runs(home):
    with chat(home, "--tool-approval", "auto") as terminal:
        terminal.submit("unknown")
        assert "rm is not offered, and was not run" in terminal.text
    assert home.texts()[2] == "there is no tool rm"


def test_ctrl_c_at_the_question_declines(home):
    with chat(home) as terminal:
        ask(terminal, "one")
        terminal.key("ctrl+c")
        terminal.wait_for("as you like")
        terminal.wait_for_prompt()
        assert terminal.submit("hello") == ["echo: hello"]
    assert marks(home) == []


def test_ctrl_c_stops_a_tool_and_not_the_chat(home):
    with chat(home, "--tool-approval", "auto") as terminal:
        terminal.type("hang")
        terminal.key("enter")
        terminal.wait_for(lambda: (home.work / "hangs").exists())
        terminal.key("ctrl+c")
        terminal.wait_for("echo: stopped by the user")
        terminal.wait_for_prompt()
        assert terminal.submit("hello") == ["echo: hello"]
        terminal.submit("one")
    assert marks(home) == ["a"]


def test_keys_typed_ahead_do_not_answer_the_question(home):
    answers = ANSWERS | {"wait": ANSWERS["one"].replace("☎", "☎⏸")}
    with home.chat("--tools", "tools.py", answers=answers, columns=100) as terminal:
        terminal.type("wait")
        terminal.key("enter")
        terminal.draw_for(0.3)
        terminal.type("y")
        terminal.key("enter")
        terminal.draw_for(0.3)
        home.go_on()
        terminal.wait_for("[a]lways")
        terminal.draw_for(0.3)
        assert marks(home) == []
        reply(terminal, "n")
    assert marks(home) == []


HOSTILE = {
    "escape": "end",
    "fail": "no such luck",
    "leave": "leave",
    "hang": "hang",
}


@pytest.mark.parametrize(("name", "result"), HOSTILE.items(), ids=HOSTILE)
def test_a_hostile_tool_leaves_screen_and_session_usable(home, name, result):
    with chat(home, "--tool-approval", "auto", "--tool-timeout", "1") as terminal:
        terminal.submit("hello")
        raw = len(terminal.raw)
        terminal.submit(name)
        for code in (b"\x1b[2J", b"\x1b]0;title", b"\x1b[?1049h"):
            assert code not in terminal.raw[raw:]
        assert ">>> hello" in terminal.text, "the screen was cleared"
        assert terminal.submit("hello") == ["echo: hello"]
        terminal.submit("one")
        assert "it is done" in terminal.text
    assert marks(home) == ["a"]
    contents = [message.text for message in home.messages() if message.role == "tool"]
    assert result in contents[0]


def test_the_rounds_of_calls_have_a_limit(home):
    with chat(home, "--tool-approval", "auto", "--tool-limit", "3") as terminal:
        terminal.submit("for ever")
    assert marks(home) == ["again"] * 3
    assert home.messages()[-1].role == "assistant"


def test_with_a_limit_of_0_nothing_runs_and_the_chat_goes_on(home):
    with chat(home, "--tool-approval", "auto", "--tool-limit", "0") as terminal:
        terminal.submit("one")
        assert terminal.submit("hello") == ["echo: hello"]
    assert marks(home) == []


def test_tools_are_listed_switched_and_loaded(home):
    write(home.work, 'def more(x: int) -> int:\n    "More."\n    return x\n', "two words.py")
    with chat(home, "--tool-approval", "auto") as terminal:
        rows = terminal.submit("/tools")
        assert [row.split()[0] for row in rows] == ["mark", "hang", "escape", "fail", "leave"]
        assert re.match(r"mark +Leave a mark\. \(tools\.py\)", rows[0])
        assert terminal.submit("/tools off") == ["tools are not offered"]
        assert terminal.submit("/tools")[-1] == "they are not offered; /tools on offers them"
        terminal.submit("one")
        assert marks(home) == []
        assert terminal.submit("/tools on") == ["tools are offered"]
        assert terminal.submit("/tools load two words.py") == ["offered: more"]
        assert terminal.submit("/tools")[-1].split() == ["more", "More.", "(two", "words.py)"]
        assert "both offer more" in " ".join(terminal.submit("/tools load two words.py"))


def test_a_file_that_is_loaded_in_a_chat_is_offered_at_once(home):
    with home.chat("--tool-approval", "auto", answers=ANSWERS) as terminal:
        assert terminal.submit("/tools load tools.py") == ["offered: mark, hang, escape, fail, leave"]
        terminal.submit("one")
    assert marks(home) == ["a"]


def test_tools_do_not_go_with_a_grammar(home):
    """They were offered beside it, and the answer was then told as calls."""
    with home.chat("--format", "json", answers=ANSWERS) as terminal:
        assert "both keep to a grammar and call tools" in " ".join(terminal.submit("/tools load tools.py"))
    ran = home.ask("hi", "--format", "json", "--tools", "tools.py")
    assert ran.code == ExitCode.USAGE


def test_nothing_runs_when_nobody_can_be_asked(home):
    ran = home.ask("one", "--tools", "tools.py", answers=ANSWERS)
    assert (ran.code, ran.out) == (0, "as you like\n")
    assert "mark was not run; --tool-approval auto runs tools unasked" in ran.err
    assert marks(home) == []
    ran = home.ask("one", "--tools", "tools.py", "--no-save", stdin=b"y\n", answers=ANSWERS)
    assert marks(home) == []
    ran = home.ask("one", "--tools", "tools.py", "--tool-approval", "auto", answers=ANSWERS)
    assert (ran.code, ran.out) == (0, "it is done\n")
    assert marks(home) == ["a"]


def test_calls_and_results_are_kept_and_shown_again(home, monkeypatch):
    """Results were shown as answers, and calls not at all."""
    with chat(home, "--tool-approval", "auto") as terminal:
        terminal.submit("one")
    with chat(home, "--continue") as terminal:
        shown = terminal.until_cursor
        assert 'mark was called with {"name": "a"}' in shown
        assert "mark returned: done a" in shown
        assert "it is done" in shown
        assert terminal.submit("hello") == ["echo: hello"]
    monkeypatch.setenv("M7B_HOME", str(home.home))
    ran = run("sessions", "show", "1")
    for part in ('"arguments": "{\\"name\\": \\"a\\"}"', "**tool**\n\ndone a", "it is done"):
        assert part in ran.out


def test_a_chat_that_is_killed_while_a_tool_runs_can_be_carried_on(home):
    """The template refused every further message."""
    with chat(home, "--tool-approval", "auto") as terminal:
        terminal.type("hang")
        terminal.key("enter")
        terminal.wait_for(lambda: (home.work / "hangs").exists())
        terminal.kill()
    assert roles(home) == ["user", "assistant"]
    with chat(home, "--continue") as terminal:
        terminal.submit("hello")
    assert roles(home) == ["user", "assistant", "tool", "user", "assistant"]
