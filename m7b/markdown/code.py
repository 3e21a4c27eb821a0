"""Colour the lines of a block of code as they come. Knows lexers; knows nothing about Markdown."""

import re
from typing import Any

from rich.style import Style
from rich.syntax import ANSI_LIGHT, ANSISyntaxTheme, Syntax
from rich.text import Text

_STEP = 16  # lines after which the context is cut, if that changes nothing
_KEPT = 8
_MOST = 192
_READABLE = {
    "yellow": "red",
    "green": "magenta",
    "cyan": "blue",
    "white": "default",
}  # on white, and what is not
_ON_LIGHT = ANSISyntaxTheme(
    {
        kind: style + Style(color=_READABLE.get(style.color.name) if style.color else None)
        for kind, style in ANSI_LIGHT.items()
    }
)


class Highlighter:
    """Colours one line after another; it lexes each with the lines before it, since a string may span many.

    To lex all of a long block for each line would take ever longer. So it drops all but the last lines where
    these lex the same without the others, and at the latest after 192 lines.
    """

    def __init__(self, language: str, *, is_light: bool = False) -> None:
        self._lexer = Syntax("", language, tab_size=0).lexer if language else None
        self._theme = _ON_LIGHT if is_light else Syntax.get_theme("ansi_dark")
        self._lines: list[str] = []

    def highlight(self, code: str) -> Text:
        """Return the line `code`, coloured."""
        if self._lexer is None:
            return Text(code)
        self._lines.append(code)
        lexed = self._lex(self._lines)
        n = len(self._lines)
        if n >= _MOST or (n % _STEP == 0 and self._lex(self._lines[-_KEPT:]) == lexed[-_KEPT:]):
            self._lines = self._lines[-_KEPT:]
        tokens = ((part.rstrip("\n"), self._theme.get_style_for_token(kind)) for kind, part in lexed[-1])
        text = Text.assemble(*tokens)
        return text if text.plain == code else Text(code)

    def _lex(self, lines: list[str]) -> list[list[tuple[Any, str]]]:
        """Lex `lines`; returns the tokens of each. That of the line end shows whether it is in a string."""
        assert self._lexer is not None
        lexed: list[list[tuple[Any, str]]] = [[]]
        for kind, value in self._lexer.get_tokens("\n".join(lines)):
            for part in re.findall(r"[^\n]*\n|[^\n]+", value):
                lexed[-1].append((kind, part))
                if part.endswith("\n"):
                    lexed.append([])
        return lexed[: len(lines)]
