"""Where the text of a prompt comes from: an argument, a file or stdin."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m7b.errors import UsageError
from m7b.render import note
from m7b.templates import Template, list_left_out


def read_prompt(prompt: str | None, file: Path | None, *, keep_newline: bool = False) -> str:
    """The prompt from exactly one of argument, file and stdin.

    Raises:
        UsageError: there is none or more than one, or it is not UTF-8.
    """
    if prompt is not None and file:
        raise UsageError("a prompt and --file are both given", hint="give one")
    if prompt is not None and prompt != "-":
        # Arguments are bytes, which Python has decoded by the locale: go back and take them as UTF-8.
        return _decode("the prompt", os.fsencode(prompt))
    if file and str(file) != "-":
        return _decode(file.name, _read_file(file))
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no text", hint="give it as an argument or through a pipe")
    text = _decode("stdin", sys.stdin.buffer.read())
    return text if keep_newline else text.removesuffix("\n")


def tell_left_out(template: Template, messages: Sequence[Mapping[str, Any]]) -> None:
    """Tell on stderr what the template leaves out of the messages."""
    if places := list_left_out(template, messages):
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        note(f"{places[0]}{more} is left out: the template has no place for reasoning")


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None
