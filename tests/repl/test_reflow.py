"""A draft in a window whose width changes: one copy of it, whether the terminal wraps anew or cuts."""

import shlex
import shutil
import subprocess
import sys
import time

import pytest
from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.screen import Char, Screen

from m7b.repl.reflow import count_rows_above, rewraps
from tests.support.chat_home import PROGRAM, ChatHome

DRAFT = " ".join(f"word{n}" for n in range(40))  # 269 cells with the prompt


def squeeze(text):
    return "".join(text.split())


def draw(*rows):
    screen = Screen()
    for y, row in enumerate(rows):
        x = 0
        for character in row:
            cell = Char(character)
            screen.data_buffer[y][x] = cell
            x += cell.width
    return screen


@pytest.mark.parametrize(
    ("rows", "cursor", "columns", "expected"),
    [
        (["a" * 80, "b" * 30], (30, 1), 80, 1),
        (["a" * 80, "b" * 30], (30, 1), 40, 2),
        (["a" * 80, "b" * 30], (30, 1), 30, 4),  # 30 + 30 + 20, and the cursor behind a full row
        (["a" * 80, "b" * 30], (29, 1), 30, 3),
        (["a" * 80, "b" * 30], (30, 1), 120, 1),  # what prompt-toolkit has broken stays broken
        (["", "b"], (1, 1), 10, 1),
        (["a   "], (4, 0), 3, 1),
        (["漢" * 20, "x"], (1, 1), 20, 2),
        (["a" + " " * 60, "x"], (1, 1), 20, 1),  # spaces at the end are not drawn
    ],
)
def test_rows_are_counted_as_the_terminal_wraps_them(rows, cursor, columns, expected):
    assert count_rows_above(draw(*rows), Point(*cursor), columns) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-kitty"}, True),
        ({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(390)"}, False),
        ({"TERM": "screen.xterm-256color", "STY": "1.tty"}, False),
        ({"TERM": "screen-256color", "TMUX": "socket,1,0"}, True),
        ({"TERM": "tmux-256color", "TMUX": "socket,1,0", "XTERM_VERSION": "XTerm(390)"}, True),
        ({"TERM": "linux"}, False),
        ({}, True),
    ],
)
def test_terminals_that_cut_lines_are_known(environ, expected):
    assert rewraps(environ) == expected


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux to resize")
def test_a_long_draft_stands_once_in_tmux(tmp_path):
    home = ChatHome(tmp_path)
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]

    def run(*arguments):
        return subprocess.run([*tmux, *arguments], check=True, text=True, stdout=subprocess.PIPE).stdout

    def see(text):
        """What the window shows as soon as `text` is there, both without spaces and breaks."""
        deadline = time.monotonic() + 60
        while squeeze(text) not in (shown := squeeze(run("capture-pane", "-p", "-t", "0"))):
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        return shown

    environment = [f"{name}={value}" for name, value in home.environment().items() if name != "TERM"]
    program = shlex.join(["env", *environment, sys.executable, *PROGRAM[1:], "chat"])
    run("new-session", "-d", "-x", "100", "-y", "30", "-c", str(home.work), program)
    try:
        see("tokens")
        run("send-keys", "-t", "0", "hello", "Enter")  # else the draft begins in the first row
        see("echo: hello")
        run("send-keys", "-t", "0", "-l", DRAFT)
        for n, columns in enumerate((60, 35, 50, 110), 1):
            run("resize-window", "-t", "0", "-x", str(columns), "-y", "30")
            time.sleep(0.5)  # prompt-toolkit looks at the size twice a second besides
            run("send-keys", "-t", "0", "-l", "!")  # seen when all is drawn again
            assert see(f">>> {DRAFT}{'!' * n}").count("word") == 40, columns
    finally:
        run("kill-server")
