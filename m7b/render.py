"""Write to the user: the answer to stdout, all else to stderr. Knows terminals; nothing about models."""

import io
import json
import os
import re
import sys
from contextlib import suppress
from enum import StrEnum
from typing import Any, TextIO

from m7b.errors import OutOfResources, UsageError


class Theme(StrEnum):
    """Colours for the background that the terminal has, for a light or a dark one, or none at all."""

    AUTO = "auto"
    LIGHT = "light"
    DARK = "dark"
    NONE = "none"


class PipeClosed(Exception):
    """The reader of our stdout has gone: stop quietly."""


class Output:
    """Writes answers to stdout, or to another stream.

    It flushes after each piece. Pipes get UTF-8 whatever the locale. On a terminal, control characters in the
    model's text are shown as U+FFFD.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        if stream is None and sys.stdout is None:
            raise UsageError("stdout is closed", hint="the answer needs somewhere to go")
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._has_colours = self._is_terminal and has_colours()
        self._printable = PrintableStream()
        if isinstance(self._stream, io.TextIOWrapper):
            if self._is_terminal:
                self._stream.reconfigure(errors="replace")
            else:
                self._stream.reconfigure(encoding="utf-8", newline="\n")

    @property
    def is_terminal(self) -> bool:
        """Whether the stream is a terminal."""
        return self._is_terminal

    def write(self, text: str, *, emphasis: bool = False) -> None:
        """Write `text` now; with `emphasis` it is coloured where the terminal has colours.

        Raises:
            PipeClosed: the reader of the pipe has gone.
            OutOfResources: the stream cannot be written, for example because the disk is full.
        """
        try:
            shown = self._printable.feed(text) if self._is_terminal else text
            self._stream.write(f"\x1b[1;35m{shown}\x1b[0m" if emphasis and self._has_colours else shown)
            self._stream.flush()
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            raise OutOfResources(f"cannot write the answer: {error.strerror}") from None

    def write_json(self, value: Any) -> None:
        """Write `value` as one line of JSON."""
        self.write(json.dumps(value, ensure_ascii=False) + "\n")


class Status:
    """One line of progress on stderr, rewritten in place; writes nothing where stderr is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr  # None where it is closed
        self._is_terminal = self._stream is not None and self._stream.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._is_terminal:
            self._write(f"\r\x1b[K{text}")
            self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    def _write(self, text: str) -> None:
        with suppress(OSError):  # nobody reads it: no reason to lose the answer
            self._stream.write(text)
            self._stream.flush()


def can_ask() -> bool:
    """Whether stderr and stdin are terminals, so that the user can read a question and answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def has_colours() -> bool:
    """Whether to use colours on a terminal: not with `NO_COLOR`, nor where `TERM` is dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", None)


def printable(text: str) -> str:
    """Replace every control character but newline and tab by U+FFFD, and line ends of Windows by newlines."""
    if text.isprintable():
        return text
    lines = re.sub(r"\r+\n", "\n", text)
    return "".join(c if c in "\n\t" or not _is_control(c) else "\ufffd" for c in lines)


class PrintableStream:
    """Makes a text printable that comes in pieces: it keeps a return until it is known what follows."""

    def __init__(self) -> None:
        self._returns = ""

    def feed(self, text: str) -> str:
        """Return what can be shown now."""
        text = self._returns + text
        known = text.rstrip("\r")
        self._returns = text[len(known) :]
        return printable(known)


def note(text: str) -> None:
    """Tell the user something on stderr, in one line."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"m7b: {printable(' '.join(text.split()))}", file=sys.stderr, flush=True)


def _is_control(char: str) -> bool:
    return ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0
