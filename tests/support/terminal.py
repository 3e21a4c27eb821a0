"""A program on a pseudo-terminal with a screen: pexpect runs it, pyte draws what it writes.

Nothing here sleeps: every wait is for something on the screen, with a bound that only a hang reaches.
"""

import os
import signal
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pexpect
import pyte

PATIENCE_S = 60.0
_PROMPT_OPENS = b"\x1b[?2004h"  # bracketed paste is on while a prompt is open, and only then
_PASTE = ("\x1b[200~", "\x1b[201~")
_KEYS = {
    "enter": "\r",
    "alt+enter": "\x1b\r",
    "tab": "\t",
    "esc": "\x1b",
    "backspace": "\x7f",
    "up": "\x1b[A",
    "down": "\x1b[B",
}


class Screen(pyte.HistoryScreen):
    """A screen that answers the program's questions, and loses no line when it shrinks."""

    def __init__(
        self, columns: int, rows: int, answer: Callable[[str], object], background: str | None
    ) -> None:
        super().__init__(columns, rows, history=100_000)
        self._answer = answer
        self._background = background

    def set_icon_name(self, param: str) -> None:
        # pyte takes the question for the background, OSC 11, for a name by OSC 1.
        if param == ";?" and self._background:
            self._answer(f"\x1b]11;{self._background}\x1b\\")

    def write_process_input(self, data: str) -> None:
        self._answer(data)

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        # As xterm does it: rows below the cursor go first, then those at the top become scrollback.
        lines = lines or self.lines
        n_gone = max(0, self.cursor.y + 1 - lines)
        self.history.top.extend(self.buffer[y] for y in range(n_gone))
        kept = [self.buffer[y] for y in range(n_gone, n_gone + min(lines, self.lines))]
        self.buffer.clear()
        self.buffer.update(enumerate(kept))
        self.cursor.y -= n_gone
        self.lines = min(lines, self.lines)  # so that pyte has nothing to drop
        super().resize(lines, columns)

    @property
    def rows(self) -> list[str]:
        """Everything that is on the screen or was scrolled out of it."""
        shown = [*self.history.top, *(self.buffer[y] for y in range(self.lines))]
        return [
            "".join(row[x].data for x in range(max(row, default=-1) + 1)).replace("\xa0", " ").rstrip()
            for row in shown
        ]


class Terminal:
    """A program on a terminal of so many columns and rows.

    Args:
        command: the program and its arguments.
        env: its whole environment.
        cwd: its working directory.
        answers: whether the terminal answers questions, such as where its cursor is.
        background: its colour, as it answers the question for it; None does not.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        columns: int = 80,
        rows: int = 24,
        answers: bool = True,
        background: str | None = None,
    ) -> None:
        self.raw = b""
        self._child: Any = pexpect.spawn(
            command[0],
            list(command[1:]),
            env=dict(env),
            cwd=cwd,
            dimensions=(rows, columns),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._child.delaybeforesend = None
        self._screen = Screen(columns, rows, self._child.send if answers else len, background)
        self._stream = pyte.ByteStream(self._screen)
        self._n_seen = 0  # prompts that were waited for

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child.isalive():
            os.kill(self._child.pid, signal.SIGKILL)
        self._child.ptyproc.delayafterclose = 0
        self._child.close()

    # what is on the screen

    @property
    def lines(self) -> list[str]:
        """Every line, scrollback first, without the empty ones at the end."""
        rows = self._screen.rows
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def text(self) -> str:
        """The lines, in one text."""
        return "\n".join(self.lines)

    @property
    def toolbar(self) -> str:
        """The last line on the screen."""
        return self._screen.rows[-1]

    @property
    def row(self) -> int:
        """The line that the cursor is in, by its place in `lines`."""
        return len(self._screen.history.top) + self._screen.cursor.y

    @property
    def until_cursor(self) -> list[str]:
        """Every line down to the one with the cursor."""
        return self._screen.rows[: self.row + 1]

    @property
    def column(self) -> int:
        """The column that the cursor is in."""
        return self._screen.cursor.x

    @property
    def draft(self) -> str:
        """What is typed in the last line of the prompt."""
        return self._screen.rows[self.row][4:]

    @property
    def n_prompts(self) -> int:
        """How often a prompt was opened."""
        return self.raw.count(_PROMPT_OPENS)

    @property
    def has_echo(self) -> bool:
        """Whether the terminal shows what is typed by itself."""
        return bool(termios.tcgetattr(self._child.child_fd)[3] & termios.ECHO)

    # what a user does

    def type(self, text: str) -> None:
        """Type `text`, where a newline is Ctrl+J."""
        self._child.send(text)

    def key(self, *names: str) -> None:
        """Press keys one after the other: "enter", "ctrl+c", "x"."""
        for name in names:
            held, plus, letter = name.partition("+")
            is_control = bool(plus) and held == "ctrl"
            self._child.send(_KEYS.get(name) or (chr(ord(letter) & 0x1F) if is_control else name))

    def paste(self, text: str) -> None:
        """Paste `text` as a terminal does, which sends its line ends as Enter."""
        self._child.send(text.replace("\n", "\r").join(_PASTE))

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self._pump(0)
        self._screen.resize(rows, columns)
        self._child.setwinsize(rows, columns)

    def submit(self, line: str) -> list[str]:
        """Type `line` and Enter at the prompt; the lines that appear before the next one opens."""
        start = self.row
        self.type(line)
        self.key("enter")
        self.wait_for_prompt()
        return self._screen.rows[start + 1 : self.row]

    def send_signal(self, number: int) -> None:
        """Send the program a signal."""
        os.kill(self._child.pid, number)

    def kill(self) -> None:
        """Kill the program as a power cut would."""
        os.kill(self._child.pid, signal.SIGKILL)
        self.exit_code()

    # waiting

    def wait_for(self, wanted: str | Callable[[], object]) -> None:
        """Wait until a text is on the screen, or a claim holds."""
        claim = wanted if callable(wanted) else lambda: wanted in self.text
        deadline = time.monotonic() + PATIENCE_S
        while not claim():
            if not self._pump(0.2) and not claim():
                raise AssertionError(f"the program ended before {wanted!r}:\n{self.text}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{wanted!r} does not come:\n{self.text}")

    def draw_for(self, seconds: float) -> None:
        """Let the program go on for a moment, as somebody does who reads."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._pump(left)

    def wait_for_prompt(self, n: int = 1) -> None:
        """Wait until `n` more prompts were opened, and the last one is drawn, its toolbar too."""
        self._n_seen += n
        self.wait_for(lambda: self.n_prompts >= self._n_seen and self._is_drawn())

    def skip_prompts(self) -> None:
        """Count all prompts so far as waited for."""
        self._n_seen = self.n_prompts

    def wait_for_draft(self, draft: str) -> None:
        """Wait until the last line of the prompt reads `draft`."""
        self.wait_for(lambda: self.draft == draft)

    def exit_code(self) -> int:
        """Wait for the end of the program: its exit code, negative where a signal ended it."""
        deadline = time.monotonic() + PATIENCE_S
        while self._pump(0.2):
            if time.monotonic() > deadline:
                raise AssertionError(f"the program does not end:\n{self.text}")
        self._child.wait()
        return self._child.exitstatus if self._child.signalstatus is None else -self._child.signalstatus

    def _is_drawn(self) -> bool:
        return " of " in "".join(self._screen.rows[self.row + 1 :])

    def _pump(self, timeout: float) -> bool:
        """Draw what arrives within `timeout` seconds; false when nothing will any more."""
        try:
            data = self._child.read_nonblocking(1 << 16, timeout=timeout)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True
