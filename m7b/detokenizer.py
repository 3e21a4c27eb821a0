"""Ids as text while they come: incremental decoding, and stop strings.

Knows tokenizers; knows nothing about engines and calls.
"""

import re
from collections.abc import Mapping, Sequence

from m7b.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What decoding gives for a byte that is no character."""
_HOLD = 3  # an unfinished UTF-8 character is at most three bytes, each shown as U+FFFD
_FIRST_MARK, _MAX_MARKS = 0xD800, 2048
_MARKS = re.compile("[\ud800-\udfff]")
_LONG = 32  # tokens of undecodable bytes after which a cut is tried


class IncrementalDecoder:
    """Turns a growing list of ids into pieces of text that never change afterwards.

    Decoding one id at a time would lose every space between words, so each decode
    has left context. Once all text is final, any whole letter serves as context as well as the ids
    that were: it stands in for them. A character that arrives byte by byte is held until it is whole.

    Args:
        tokenizer: decodes.
        continues: whether the ids carry on from a text, so that a space in front of them counts.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", bos=False)
        self._anchor_length = len(tokenizer.decode(self._anchor))
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text
        if continues:
            self._restart([])

    def push(self, token: int) -> str:
        """The text that `token` makes final."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        held = min(_HOLD, len(text) - len(text.rstrip(REPLACEMENT)))
        piece = text[self._emitted : len(text) - held]
        self._emitted += len(piece)
        if held == 0 and text:
            self._restart([])
        elif len(self._window) % _LONG == 0:
            self._shorten(text)
        return piece

    def flush(self) -> str:
        """What was held back: an unfinished character, as U+FFFD."""
        text = self._tokenizer.decode(self._window)[self._emitted :]
        self._emitted += len(text)
        return text

    def _restart(self, tail: list[int]) -> None:
        self._window = [*self._anchor, *tail]
        self._emitted = self._anchor_length

    def _shorten(self, text: str) -> None:
        """Drop the front of a long run of undecodable bytes, where it can be cut without changing it."""
        decode = self._tokenizer.decode
        pending = len(text) - self._emitted
        for n_kept in range(_HOLD, _LONG // 2):
            head, tail = self._window[:-n_kept], self._window[-n_kept:]
            kept = decode([*self._anchor, *tail])[self._anchor_length :]
            if decode(head) + kept == text and len(kept) >= pending:
                self._restart(tail)
                self._emitted += len(kept) - pending
                return


class StopStrings:
    """Passes text through up to the first stop string, holding back what may be the start of one.

    Args:
        stops: the stop strings. One may hold names of control tokens, as text and as what it stands for.
        controls: the control ids by their names.
    """

    def __init__(self, stops: Sequence[str], controls: Mapping[str, int] | None = None) -> None:
        names = [name for name in controls or {} if any(name in stop for stop in stops)]
        # Control tokens have no text. In a stop, half a character stands for one, which no text holds.
        marks = {name: chr(_FIRST_MARK + at) for at, name in enumerate(names[:_MAX_MARKS])}
        self._marks = {(controls or {})[name]: mark for name, mark in marks.items()}
        self._stops = tuple(dict.fromkeys([*stops, *(_replace_all(stop, marks) for stop in stops)]))
        self._pending = ""

    def mark(self, token: int) -> str:
        """What to push for a control token that a stop string names, behind the text before it."""
        return self._marks.get(token, "")

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string ended it.

        The stop string that is complete first ends the text, however the text is cut into pieces.
        """
        self._pending += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            safe = self._pending[: min(found)[1]]
            self._pending = ""
            return _MARKS.sub("", safe), True
        held = max((find_overlap(self._pending, stop) for stop in self._stops), default=0)
        cut = len(self._pending) - held
        safe, self._pending = self._pending[:cut], self._pending[cut:]
        return _MARKS.sub("", safe), False

    def flush(self) -> str:
        """The text that was held back and turned out to be no stop string."""
        held, self._pending = self._pending, ""
        return _MARKS.sub("", held)


def _replace_all(text: str, marks: Mapping[str, str]) -> str:
    """Replace each name in `marks` by its mark, longer names first."""
    for name in sorted(marks, key=len, reverse=True):
        text = text.replace(name, marks[name])
    return text


def find_overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
