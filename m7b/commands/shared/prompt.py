"""Where the text of a prompt comes from: an argument, files, stdin, and all of them together."""

import os
import select
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from m7b.errors import UsageError
from m7b.render import note
from m7b.text_input import decode_text, read_text

_STDIN = Path("-")
_PATIENCE_S = 3.0


def read_prompt(prompt: str | None, files: Sequence[Path] = (), *, keep_newline: bool = False) -> str:
    """What is piped in, the files and the argument `prompt`, as far as given, one right behind the other.

    Where `-` stands for stdin, stdin comes in its place. Where stdin is last, it loses one final newline
    unless it is to be kept.

    Raises:
        UsageError: there is none, or one cannot be read.
    """
    sources = _list_sources(prompt, files)
    text = "".join(_read(source, is_alone=len(sources) == 1) for source in sources)
    return text.removesuffix("\n") if sources[-1] == _STDIN and not keep_newline else text


def read_parts(prompt: str | None, files: Sequence[Path] = (), *, keep_newline: bool = False) -> list[str]:
    """The parts of a message, in the order of `read_prompt`; stdin always loses one final newline.

    Raises: as `read_prompt`.
    """
    sources = _list_sources(prompt, files)
    parts = [_read(source, is_alone=len(sources) == 1) for source in sources]
    return [
        part.removesuffix("\n") if source == _STDIN and not keep_newline else part
        for source, part in zip(sources, parts, strict=True)
    ]


def read_file(file: Path) -> str:
    """The text in `file`; `-` is stdin.

    Raises:
        UsageError: it cannot be read.
    """
    return _read(file, hint="name a file, or - for stdin")


def tell_left_out(places: Sequence[str]) -> None:
    """Tell on stderr which places of a conversation its template leaves out."""
    if places:
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        note(f"{places[0]}{more} is left out: the template has no place for it")


def _list_sources(prompt: str | None, files: Sequence[Path]) -> list[Path | str]:
    """Where the text comes from: files, the text of an argument, and `-` as a path for stdin."""
    argument = [] if prompt is None else [_STDIN if prompt == "-" else prompt]
    sources = [*files, *argument]
    if sources.count(_STDIN) > 1:
        raise UsageError("- is given twice", hint="stdin can be read once")
    if _STDIN not in sources and (not sources or _is_piped()):
        sources.insert(0, _STDIN)
    return sources


def _read(
    source: Path | str, *, is_alone: bool = True, hint: str = "--file takes a file, or - for stdin"
) -> str:
    if source == _STDIN:
        return _read_stdin(is_alone=is_alone)
    if isinstance(source, Path):
        try:
            return read_text(source)
        except UsageError as error:
            raise UsageError(error.message, hint=error.hint or hint) from None
    # Arguments are bytes, which Python has decoded by the locale: go back and take them as UTF-8.
    return decode_text("the prompt", os.fsencode(source))


def _read_stdin(*, is_alone: bool) -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no text", hint="give it as an argument or through a pipe")
    if not is_alone and not _has_come(_PATIENCE_S):
        note("waiting for the end of stdin; < /dev/null leaves it out")
    return decode_text("stdin", sys.stdin.buffer.read())


def _is_piped() -> bool:
    """Whether stdin may hold text that nobody named: a pipe or a file, and no terminal or device."""
    if sys.stdin is None:
        return False
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except OSError:  # memory, no file of the system's
        return True


def _has_come(seconds: float) -> bool:
    """Whether stdin has something to read, or has ended, within so many seconds."""
    if sys.platform == "win32":  # whose pipes cannot be asked
        return True
    try:
        ready: Iterable[int] = select.select([sys.stdin.fileno()], [], [], seconds)[0]
    except OSError:
        return True
    return bool(ready)
