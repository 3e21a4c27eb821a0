"""What `m7b chat` shows on a pseudo-terminal: any text, any size, few colours; toolbar and progress."""

import re

import pytest

from m7b.messages import Message
from tests.support.chat_home import ChatHome

TALL = "\n".join(f"line {n} of the answer" for n in range(60))
TALL_LINES = TALL.split("\n")


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path)


# what an answer may hold


STEERING = {
    "[/INST] stays": "[/INST] stays",
    "[bold red]not markup[/] [/nope]": "[bold red]not markup[/] [/nope]",
    "a\x1b[31mred\x1b[0m b": "a�[31mred�[0m b",
    "bell\x07 back\x08\x08\x08 nul\x00": "bell� back��� nul�",
    "osc \x1b]0;title\x07 end": "osc �]0;title� end",
    "c1 \x9b31m": "c1 �31m",
    ">>> looks like a prompt": "│ │ │ looks like a prompt",
    "**bold** and `code`": "bold and code",
    "両方 🍝 ok": "両方 🍝 ok",
}


def test_an_answer_never_steers_the_terminal(home):
    answers = {f"q{n}": answer for n, answer in enumerate(STEERING)}
    with home.chat(answers=answers) as terminal:
        n_before = len(terminal.raw)
        found = {answer: "\n".join(terminal.submit(message)) for message, answer in answers.items()}
        assert found == STEERING
        assert b"\x07" not in terminal.raw[n_before:]
        assert b"\x1b[31m" not in terminal.raw[n_before:]
    assert home.texts()[1::2] == list(STEERING)


def test_a_message_with_control_characters_is_sent_and_kept_as_it_was_pasted(home):
    with home.chat() as terminal:
        terminal.paste("tab\there [bold]x[/bold] 🍝")
        terminal.key("enter")
        terminal.wait_for_prompt()
        assert terminal.until_cursor[-2].startswith("echo: tab")
    assert home.texts()[0] == "tab\there [bold]x[/bold] 🍝"


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--no-markdown"], {}), ([], {"M7B_MARKDOWN": "false"})],
    ids=["flag", "variable"],
)
def test_without_markdown_an_answer_shows_as_it_is_written(home, arguments, env):
    answer = "# T\n\n**bold** `x`\n- one"
    with home.chat(*arguments, env=env, answers={"go": answer}) as terminal:
        assert terminal.submit("go") == answer.split("\n")


# sizes


def test_an_answer_taller_than_the_screen_leaves_each_line_once_in_the_scrollback(home):
    with home.chat("-n", 3000, rows=10, answers={"go": TALL}) as terminal:
        assert terminal.submit("go") == TALL_LINES
        assert [line for line in terminal.lines if line.startswith("line ")] == TALL_LINES


@pytest.mark.parametrize(("columns", "rows"), [(50, 10), (120, 40), (80, 8)])
def test_a_window_resized_during_an_answer_shows_each_word_once(home, columns, rows):
    answer = f"{TALL}⏸\n{TALL}".replace("line", "row").replace("row", "line", 60)
    with home.chat("-n", 3000, answers={"go": answer}) as terminal:
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("line 59 of the answer")
        terminal.resize(columns, rows)
        home.go_on()
        terminal.wait_for_prompt()
        shown = [line for line in terminal.lines if " of the answer" in line]
        assert shown == answer.replace("⏸", "").split("\n")
        assert terminal.submit("next") == ["echo: next"]


def test_a_window_resized_in_the_middle_of_a_line_goes_on_in_it(home):
    words = [f"word{n}" for n in range(40)]
    with home.chat(answers={"go": " ".join(words).replace(" word25", " word25⏸")}) as terminal:
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for(lambda: "word24 word25" in "".join(terminal.lines))
        terminal.resize(120, 24)
        home.go_on()
        terminal.wait_for_prompt()
        shown = "".join(terminal.until_cursor[2:-1])
        assert shown == " ".join(words)


def test_a_window_resized_at_the_prompt_keeps_the_draft(home):
    with home.chat() as terminal:
        terminal.submit("hello")
        terminal.type("draft")
        terminal.wait_for_draft("draft")
        for columns, rows in ((40, 10), (100, 30), (60, 24)):
            terminal.resize(columns, rows)
            terminal.type("!")
            terminal.wait_for(lambda: terminal.draft.endswith("!"))
            terminal.key("backspace")
            terminal.wait_for_draft("draft")
        terminal.key("enter")
        terminal.wait_for("\necho: draft")
        terminal.wait_for(lambda: terminal.until_cursor[-1] == ">>>")
        assert terminal.until_cursor[-3:] == [">>> draft", "echo: draft", ">>>"]
    assert home.texts()[::2] == ["hello", "draft"]


def test_twenty_columns_are_enough(home):
    """A progress line that was wrapped could not be taken away again."""
    answer = "A sentence that is longer than the screen is wide.\n\n- and a list of one thing"
    with home.chat(columns=20, rows=12, answers={"go": answer}) as terminal:
        shown = terminal.submit("go")
        assert "".join(shown).replace("•", "-").replace(" ", "") == "".join(answer.split())
        assert max(map(len, shown)) <= 20
        terminal.submit("/help")
        assert terminal.submit("/set top_k 1") == ["top_k = 1"]


# poor terminals


def test_no_color_leaves_no_colours(home):
    answer = "# Title\n\n**bold** `code`\n\n```python\nx = 1\n```"
    colour = rb"\x1b\[[0-9;]*\b(?:3[0-7]|4[0-7]|9[0-7]|38|48)\b[0-9;]*m"
    found = {}
    for no_color in ("", "1"):
        with home.chat("--no-save", env={"NO_COLOR": no_color}, answers={"go": answer}) as terminal:
            terminal.submit("go")
            terminal.submit("/nope")
            found[no_color] = re.findall(colour, terminal.raw)
    assert found[""]
    assert found["1"] == []


def test_a_dumb_terminal_gets_plain_text(home):
    with home.chat(env={"TERM": "dumb"}, is_ready=False, answers={"go": "**bold**"}) as terminal:
        terminal.wait_for(">>>")
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("**bold**\n>>>")
        terminal.key("ctrl+c")
        terminal.type("more")
        terminal.key("enter")
        terminal.wait_for("echo: more\n>>>")
        cursor = b"\x1b[?12l\x1b[?25h"  # prompt-toolkit asks for one on every terminal
        assert b"\x1b" not in terminal.raw.replace(cursor, b"")
        terminal.key("ctrl+d")
        assert terminal.exit_code() == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_shows_question_marks_and_keeps_the_text(home, encoding):
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    answer = "naïve — 🍝\n\n- item"
    with home.chat(env=env, answers={"go": answer}) as terminal:
        shown = terminal.submit("go")
        assert shown[0].endswith("ve ? ?")
        assert shown[-1].endswith("- item")
        assert terminal.submit("next") == ["echo: next"]
    assert home.texts()[1] == answer


def test_the_c_locale_is_enough(home):
    with home.chat(env={"LC_ALL": "C"}) as terminal:
        assert terminal.submit("naïve — 🍝") == ["echo: naïve — 🍝"]
    assert home.texts()[0] == "naïve — 🍝"


# toolbar and progress


def test_the_toolbar_tells_the_model_the_context_in_use_and_what_was_reused(home):
    with home.chat("--window", 100, "--ctx-size", 2000, delay=0.001) as terminal:
        assert terminal.toolbar == "demo · 2 of 2000 tokens · window 100"
        terminal.submit("hello")
        assert re.fullmatch(
            r"demo · 20 of 2000 tokens · window 100 · reused 0 of 7 · \d+\.\d tok/s", terminal.toolbar
        )
        terminal.submit("again")
        # <2>hello<3>echo: hello<2>again<3>: all but the last 7 were in the cache
        assert "· 38 of 2000 tokens · window 100 · reused 18 of 25 ·" in terminal.toolbar
        terminal.submit("/undo")
        assert "· 20 of 2000 tokens ·" in terminal.toolbar
        terminal.submit("/clear")
        assert terminal.toolbar == "demo · 2 of 2000 tokens · window 100"


def test_the_progress_of_a_long_prompt_is_shown_and_leaves_no_trace(home):
    with home.chat("--prefill-chunk", 50, prefill_delay=0.05) as terminal:
        message = "x" * 1000
        start = terminal.row
        terminal.paste(message)
        terminal.key("enter")
        terminal.wait_for(
            lambda: re.search(r"reading the conversation: \d+ of 1002 tokens, 0 reu", terminal.text)
        )
        terminal.wait_for_prompt()
        assert "reading" not in terminal.text
        assert "".join(terminal.until_cursor[start:-1]) == f">>> {message}echo: {message}"


# a context that is full


def talk_until_full(terminal, *, turns: int = 4) -> list[list[str]]:
    """Turns of 2 × (1 + 20) + 6 tokens: the lines of each."""
    return [terminal.submit(f"message {turn} is twenty.") for turn in range(turns)]


def test_drop_oldest_tells_what_is_out_of_sight_and_keeps_it_on_disk(home):
    with home.chat("--ctx-size", 150, "-n", 40) as terminal:
        shown = talk_until_full(terminal)
        told = next(" ".join(lines) for lines in shown if len(lines) > 1)
        assert re.match(
            r"the context is full: the oldest \d messages \(\d+ tokens\) are out of the model's", told
        )
        assert "(--on-full drop-oldest)" in told
        assert all(lines[-1].startswith("echo: message") for lines in shown)
        assert re.search(
            r"the oldest \d messages are left out \(--on-full", " ".join(terminal.submit("/window"))
        )
        assert "message 0" not in " ".join(terminal.submit("/tokens")).split("oldest")[0]
    assert home.texts()[::2] == [f"message {turn} is twenty." for turn in range(4)]


def test_error_refuses_the_turn_and_brings_the_message_back(home):
    with home.chat("--ctx-size", 100, "-n", 40, "--on-full", "error") as terminal:
        assert terminal.submit("message 0 is twenty.") == ["echo: message 0 is twenty."]
        (told,) = [" ".join(terminal.submit("message 1 is much longer than twenty."))]
        assert "the prompt has" in told
        assert "the context holds 100" in told
        assert terminal.draft == "message 1 is much longer than twenty."
    assert home.texts() == ["message 0 is twenty.", "echo: message 0 is twenty."]


@pytest.mark.parametrize("how", ["flag", "setting", "command"])
def test_stop_ends_the_answer_where_the_context_does(home, how):
    arguments = ["--on-full", "stop"] if how == "flag" else []
    env = {"M7B_ON_FULL": "stop"} if how == "setting" else {}
    with home.chat("--ctx-size", 60, *arguments, env=env, answers={"go": "y" * 100}) as terminal:
        if how == "command":
            terminal.submit("/set on_full stop")
        first, second, *_ = terminal.submit("go")
        assert first == "y" * 56
        assert second == "the context of 60 tokens is full; --on-full roll goes on"
    assert home.messages()[1] == Message("assistant", "y" * 56, is_partial=True)


def test_roll_goes_on_in_the_middle_of_an_answer_and_tells_afterwards(home):
    long = " ".join(f"w{n}" for n in range(15))
    with home.chat("--ctx-size", 100, "--on-full", "roll", answers={"go": long}) as terminal:
        terminal.submit("message 0 is twenty.")
        first, *told = terminal.submit("go")
        assert first == long
        assert "(--on-full roll)" in " ".join(told)
    assert home.messages()[-1] == Message("assistant", long)
