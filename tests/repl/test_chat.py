"""`m7b chat` with the demo model: a whole conversation on a pseudo-terminal, and one question in a pipe."""

import os
import re
import sys

import pytest

from m7b.store import Store
from tests.support.terminal import Terminal
from tests.support.tiny import call

OPTIONS = ["--variant", "demo", "--temperature", "0", "-n", "20"]


@pytest.fixture
def home(tmp_path, demo_home):
    """A data folder of its own with the demo checkpoint in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "checkpoints").symlink_to(demo_home / "checkpoints")
    return tmp_path / "home"


def chat(home, *arguments):
    """The real program on a terminal, at its first prompt."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("M7B_") and key != "NO_COLOR"
    }
    env |= {"M7B_HOME": str(home), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "m7b", "chat", "--no-markdown", *arguments, *OPTIONS]
    terminal = Terminal(command, env=env, cwd=str(home), columns=200)
    terminal.wait_for_prompt()
    return terminal


def stored(home):
    with Store(home / "sessions.sqlite3") as store:
        return store.load_messages(store.find_latest().id)


def begin(terminal, question):
    """Ask `question` and wait until its answer is under way; the line of the question."""
    start = terminal.row
    terminal.type(question)
    terminal.key("enter")
    terminal.wait_for(
        lambda: re.search(r"^(?!reading).{30}", "\n".join(terminal.until_cursor[start + 1 :]), re.DOTALL)
    )
    return start


def reused(terminal):
    """The figures of the toolbar: tokens in use, tokens reused, tokens of the last prompt."""
    used, old, prompt = re.search(r"(\d+) of \d+ tokens .*reused (\d+) of (\d+)", terminal.toolbar).groups()
    return int(used), int(old), int(prompt)


def test_a_conversation_is_reused_interrupted_killed_and_carried_on_as_it_was_shown(home):
    shown = []
    with chat(home) as terminal:
        figures = []
        for question in ("What is the capital of France?", "And of Italy?", "Tell me more."):
            lines = [line for line in terminal.submit(question) if not line.startswith("stopped after")]
            shown += [question, " ".join(lines)]
            figures.append(reused(terminal))
        (_, first, _), (used, second, prompt), (_, third, _) = figures
        assert first < second < third, "each turn reuses all the turns before it"
        assert prompt - second < 20, "what is new is read, and nothing else"
        assert used > prompt

        terminal.submit("/set max_tokens 1000")
        start = begin(terminal, "Write a long story.")
        terminal.key("ctrl+c")
        terminal.wait_for_prompt()
        *answer, told = terminal.until_cursor[start + 1 : -1]
        assert told == "stopped; /continue goes on, /regen answers anew"
        shown += ["Write a long story.", " ".join(answer)]
        assert [" ".join(message.text.split()) for message in stored(home)] == [
            " ".join(text.split()) for text in shown
        ]

        start = begin(terminal, "And another one.")
        terminal.kill()
        seen = " ".join(" ".join(terminal.until_cursor[start + 1 :]).split())
    *whole, asked, last = stored(home)
    assert [" ".join(message.text.split()) for message in whole] == [" ".join(t.split()) for t in shown]
    assert asked.text == "And another one."
    assert last.is_partial
    assert seen.startswith(" ".join(last.text.split())[: len(seen)])

    with chat(home, "--continue") as terminal:
        assert "this answer was cut off; /continue goes on" in terminal.text
        assert f"conversation 1, {len(whole) + 2} messages" in terminal.text
        terminal.submit("/continue")
        terminal.key("ctrl+d")
        assert terminal.exit_code() == 0
    assert stored(home)[-1].text.startswith(last.text.rstrip(" �"))
    assert len(stored(home)[-1].text) > len(last.text)


def test_one_question_is_answered_as_complete_chat_answers_it(home, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(home))
    question = "What is the capital of France?"
    asked = call("chat", question, *OPTIONS)
    completed = call("complete", "--chat", question, *OPTIONS)
    assert (asked.code, completed.code) == (0, 0), (asked.err, completed.err)
    assert len(asked.out) > 10
    assert asked.out.rstrip("\n") == completed.out.rstrip("\n")
