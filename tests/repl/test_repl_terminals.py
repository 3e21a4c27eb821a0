"""`m7b chat` on terminals as they are: keys of many kinds, pastes without marks, no answers, sudden ends."""

import base64
import os
import re
import signal

import pytest

from m7b.messages import Message
from m7b.render import Theme
from m7b.repl.background import read_answer, read_colorfgbg
from tests.support.chat_home import ChatHome


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path)


# keys that have no code of their own

NEWLINES = {
    "Shift+Enter in kitty": "\x1b[13;2u",
    "Ctrl+Enter in kitty": "\x1b[13;5u",
    "Shift+Enter in kitty with events": "\x1b[13;2:1u",
    "Shift+Enter on a keypad": "\x1b[57414;2u",
    "Shift+Enter in xterm": "\x1b[27;2;13~",
    "Ctrl+Shift+Enter in xterm": "\x1b[27;6;13~",
    "Alt+Enter": "\x1b\r",
    "Alt+Enter in kitty": "\x1b[13;3u",
    "Alt+Enter in xterm": "\x1b[27;3;13~",
    "Ctrl+J in kitty": "\x1b[106;5u",
}


@pytest.mark.parametrize("sequence", NEWLINES.values(), ids=NEWLINES)
def test_enter_with_a_modifier_begins_a_new_line(home, sequence):
    """It typed what follows the escape, as in [13;2u, or sent the message."""
    with home.chat() as terminal:
        terminal.type(f"a{sequence}b")
        terminal.wait_for_draft("b")
        assert terminal.submit("") == ["echo: a", "b"]


def test_keys_in_the_long_form_do_what_the_short_ones_do(home):
    with home.chat() as terminal:
        terminal.type("a wrong\x1b[119;5uword\x1b[13;1u")
        terminal.wait_for_prompt()
        assert home.texts()[0] == "a word"


# pastes that the terminal does not mark


@pytest.mark.parametrize("end", ["", "\n"], ids=["open", "ended"])
@pytest.mark.parametrize("n_lines", [2, 400])
def test_a_paste_without_marks_is_not_sent(home, n_lines, end):
    """Each of its lines was sent as a message."""
    lines = [f"line {n} of a paste" for n in range(n_lines)]
    with home.chat("--ctx-size", 100_000, "-n", 50_000) as terminal:
        terminal.type(("\n".join(lines) + end).replace("\n", "\r"))
        terminal.wait_for(lambda: f"... {lines[-1]}{chr(10) * len(end)}" in terminal.text)
        terminal.wait_for_draft("" if end else lines[-1])
        assert terminal.n_prompts == 1
        terminal.key("enter")
        terminal.wait_for_prompt()
    assert home.texts()[::2] == ["\n".join(lines) + end]


# terminals that do not answer


def test_a_terminal_that_does_not_tell_where_its_cursor_is_gets_no_warning(home):
    """It got one in the middle of the prompt."""
    with home.chat(is_ready=False, is_mute=True) as terminal:
        terminal.wait_for(">>>")
        terminal.type("draft")
        terminal.draw_for(3)
        assert "WARNING" not in terminal.text
        terminal.key("enter")
        terminal.wait_for("echo: draft")


# sudden ends

GO = {"go": "one⏸"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["prompt", "answer", "load"])
def test_a_signal_to_end_saves_the_turn_and_gives_the_terminal_back(home, number, moment):
    """The shell had no echo afterwards, and the last second of an answer was lost."""
    with home.chat(
        is_ready=moment != "load", loads_slowly=moment == "load", answers={"go": "one⏸"}
    ) as terminal:
        if moment == "load":
            terminal.wait_for("loading")
        else:
            home.go_on() if moment == "prompt" else None
            terminal.type("go")
            terminal.key("enter")
            terminal.wait_for("\none")
            if moment == "prompt":
                terminal.wait_for_prompt()
        assert not terminal.has_echo
        terminal.send_signal(number)
        assert terminal.exit_code() == 128 + number
        assert terminal.has_echo
        assert "Traceback" not in terminal.text
    expected = (
        []
        if moment == "load"
        else [Message("user", "go"), Message("assistant", "one", is_partial=moment == "answer")]
    )
    assert home.messages() == expected


def test_a_signal_to_end_keeps_what_one_question_got(home):
    asking = home.asking("go", answers={"go": "one⏸"})
    assert asking.stdout.read(3) == b"one"
    asking.send_signal(signal.SIGTERM)
    assert asking.wait(30) == 143
    asking.communicate()
    assert home.messages()[1] == Message("assistant", "one", is_partial=True)


# the clipboard


def asked_for(raw):
    """What the terminal was asked to put on the clipboard."""
    (data,) = re.findall(rb"\x1b\]52;c;([\w+/=]*)\x07", raw)
    return base64.b64decode(data).decode()


@pytest.mark.parametrize("n_characters", [3, 5000])
def test_copy_goes_through_gnu_screen(home, n_characters):
    """It said that it copied, and screen kept it to itself."""
    env = {"STY": "1.pts-1.host", "TERM": "screen-256color", "TMUX": ""}
    text = "é" + "x" * n_characters
    with home.chat("-n", 9000, "--ctx-size", 20000, env=env, answers={"go": text}) as terminal:
        terminal.submit("go")
        n_before = len(terminal.raw)
        assert f"handed {len(text)} characters to the terminal" in "".join(terminal.submit("/copy"))
        passed_on = re.findall(rb"\x1bP(.{,512})\x1b\\", terminal.raw[n_before:], re.S)
        assert asked_for(b"".join(passed_on)) == text


def test_copy_goes_through_tmux(home):
    """By default tmux takes the sequence from no program inside it."""
    tmux = home.executable("tmux", 'echo "$@" > "$HOME/called"; cat > "$HOME/copied"')
    env = {
        "TMUX": "/tmp/tmux-0/default,1,0",
        "TERM": "tmux-256color",
        "PATH": f"{home.folder}:{os.environ['PATH']}",
    }
    with home.chat(env=env, answers={"go": "é"}) as terminal:
        terminal.submit("go")
        assert terminal.submit("/copy") == ["handed 1 characters to tmux, and through it to the terminal"]
    assert tmux
    assert (home.folder / "copied").read_text() == "é"
    assert (home.folder / "called").read_text() == "load-buffer -w -\n"


@pytest.mark.parametrize(
    "env", [{"TMUX": ""}, {"TMUX": "x", "PATH": "/nowhere"}], ids=["no tmux", "tmux is not found"]
)
def test_copy_asks_the_terminal_itself_otherwise(home, env):
    with home.chat(env=env, answers={"go": "é"}) as terminal:
        terminal.submit("go")
        terminal.submit("/copy")
        assert asked_for(terminal.raw) == "é"


def test_copy_says_where_it_cannot(home):
    with home.chat(env={"TERM": "linux", "TMUX": "", "STY": ""}) as terminal:
        terminal.submit("go")
        assert "has no clipboard" in " ".join(terminal.submit("/copy"))


# light and dark

BACKGROUNDS = {
    "it says light": ({}, "rgb:ffff/ffff/dddd", Theme.LIGHT),
    "it says dark": ({"COLORFGBG": "0;15"}, "rgb:1c/1c/1c", Theme.DARK),
    "the variable says light": ({"COLORFGBG": "0;default;15"}, None, Theme.LIGHT),
    "the variable says dark": ({"COLORFGBG": "15;0"}, None, Theme.DARK),
    "nothing says anything": ({}, None, Theme.DARK),
    "no colours": ({"NO_COLOR": "1"}, "rgb:ffff/ffff/ffff", Theme.NONE),
    "a variable": ({"M7B_THEME": "light"}, "rgb:0/0/0", Theme.LIGHT),
}
COLOURS = {Theme.LIGHT: b"\x1b[1;34mx", Theme.DARK: b"\x1b[1;36mx", Theme.NONE: b"\x1b[1mx"}


@pytest.mark.parametrize(("env", "background", "theme"), BACKGROUNDS.values(), ids=BACKGROUNDS)
def test_colours_suit_the_background(home, env, background, theme):
    with home.chat(env={"COLORFGBG": ""} | env, background=background, answers={"go": "`x`"}) as terminal:
        terminal.submit("go")
        assert COLOURS[theme] in terminal.raw


def test_the_theme_is_a_flag_and_changes_with_a_command(home):
    with home.chat("--theme", "none", background="rgb:ff/ff/ff", answers={"go": "`x`"}) as terminal:
        for theme in ("light", "dark", "none"):
            assert terminal.submit(f"/theme {theme}") == [f"the theme is {theme}"]
            n_before = len(terminal.raw)
            terminal.submit("go")
            assert COLOURS[Theme(theme)] in terminal.raw[n_before:]
        assert terminal.submit("/theme auto") == ["the theme is light"]
        assert terminal.submit("/theme") == ["the theme is light"]
        assert "there is no theme 'pink'" in terminal.submit("/theme pink")[0]


@pytest.mark.parametrize(
    ("data", "theme", "typed"),
    [
        (b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?62;22c", Theme.LIGHT, b""),
        (b"\x1b]11;rgb:00/00/ff\x07\x1b[?6c", Theme.DARK, b""),
        (b"\x1b]11;rgba:FFFF/FFFF/0000/FFFF\x1b\\\x1b[?6c", Theme.LIGHT, b""),
        (b"\x1b[?6c", None, b""),
        (b"hi\r\x1b]11;rgb:f/f/f\x07\x1b[At\x1b[?6chere", Theme.LIGHT, b"hi\r\x1b[Athere"),
    ],
)
def test_what_is_typed_while_the_terminal_answers_is_kept(data, theme, typed):
    assert read_answer(data) == (theme, typed)


@pytest.mark.parametrize("text", ["", ";", "x", "15;-1", "15;", "0;bright"])
def test_a_variable_that_says_nothing_is_ignored(text):
    assert read_colorfgbg({"COLORFGBG": text}) is None
