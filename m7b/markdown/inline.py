"""Markdown within a line: strong, emphasis, code, strike, links, and the cells of tables.

Knows text and styles; knows nothing about lines that arrive in pieces, nor about terminals.
"""

import re
from typing import Any, Literal

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from rich import box
from rich.table import Table
from rich.text import Text

from m7b.render import printable

_STYLES = {"strong": "bold", "em": "italic", "s": "strike", "link": "underline"}
_CODE, _CODE_ON_LIGHT = "bold cyan", "bold blue"
_MARKUP = re.compile(r"[*_~`\[\]<\\$]")
_OPENERS = re.compile(
    r"\*(?=\S)|(?<!\w)_(?=\S)|~~(?=\S)|`|<(?:/?[A-Za-z][^<>]*|[!?][^>]*)?$|\]\([^)]*$"
    # A dollar may begin mathematics, but not one in front of a price or of a variable of the shell.
    r"|\$(?![\s$]|\d[\d.,]*(?:[kKmMbB]\b|[^\w\\^{}$*+=<>]|$)|[A-Z_]{2,}\b|$)"
)
_DOLLARS = re.compile(r"\$(?=[^\s$])(?:\\.|[^\\$`])*(?<=\S)\$(?!\d)")
_BEGIN = re.compile(r"\\begin\{(\w+\*?)\}")
_CLOSERS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}


def _scan_math(state: StateInline, silent: bool) -> bool:
    r"""A rule of the parser that leaves `\(x\)`, `\[x\]`, `$x$`, `$$x$$`, environments and `\\` as is."""
    source, start = state.src, state.pos
    if source[start] not in "\\$":
        return False
    pair = source[start : start + 2]
    begin = _BEGIN.match(source, start)
    closer = f"\\end{{{begin[1]}}}" if begin else _CLOSERS.get(pair)
    end = source.find(closer, start + 2) if closer else -1
    kind = "math"
    if closer and end >= 0:
        end += len(closer)
    elif begin or pair == "\\[" or (pair == "$$" and _is_display(source, start)):
        kind, end = "open_math", len(source)
    elif pair == "\\(":
        kind, end = "open_math", start + 2
    elif pair in ("\\\\", "\\)", "\\]"):
        end = start + 2
    elif dollars := _DOLLARS.match(source, start):
        end = dollars.end()
    else:
        return False
    if not silent:
        token = state.push(kind, "", 0)
        token.content = source[start:end]
        token.info = closer or ""
    state.pos = end
    return True


def _is_display(source: str, start: int) -> bool:
    """Whether two dollars may begin mathematics of several lines: they begin or end their own."""
    return not (source[:start].strip() and source[start + 2 :].strip())


class _Parser(MarkdownIt):
    """Leaves HTML, entities and addresses as they are written: people read addresses, nobody opens them.

    So it does with mathematics in LaTeX, and with the double backslash that ends its rows.
    """

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": True})
        self.enable("strikethrough").disable("entity")
        self.inline.ruler.before("escape", "math", _scan_math)

    def validateLink(self, url: str) -> bool:
        return True

    def normalizeLink(self, url: str) -> str:
        return url

    def normalizeLinkText(self, link: str) -> str:
        return link


_PARSER = _Parser()


def is_settled(source: str) -> bool:
    """Whether later text cannot change the style of `source`: every delimiter in it has its partner."""
    if not _MARKUP.search(source):
        return True
    tokens = _parse(source)
    if any(token.type == "open_math" for token in tokens):
        return False
    # Escapes, code and pairs become a dot: next to a delimiter they count as punctuation.
    left = "".join(token.content if token.type == "text" else "." for token in tokens)
    return not (_OPENERS.search(left) or _has_open_bracket(left))


def find_open_math(source: str) -> str | None:
    r"""Find what ends the mathematics that `source` leaves open: `\]`, `$$` or `\end{...}`."""
    tokens = _parse(source) if "\\" in source or "$$" in source else []
    return next((token.info for token in tokens if token.type == "open_math" and token.info != "\\)"), None)


def render(source: str, style: str = "", *, is_light: bool = False) -> Text:
    """Render `source` as styled text without its markup. The address of a link follows its text."""
    text = Text(style=style)
    if not _MARKUP.search(source):
        return text.append(source)
    code = _CODE_ON_LIGHT if is_light else _CODE
    styles: list[str] = []
    links: list[tuple[int, str]] = []  # where each open link starts, and its address
    for token in _parse(source):
        name, _, side = token.type.rpartition("_")
        if side == "open":
            styles.append(_STYLES[name])
            if name == "link":
                links.append((len(text), _format_address(token)))
        elif side == "close":
            styles.pop()
            if name == "link":
                start, address = links.pop()
                text.append("" if text.plain[start:] == address else f" ({address})")
        elif token.type == "image":
            text.append(f"{token.content} ({_format_address(token)})", " ".join(styles))
        else:
            text.append(token.content, " ".join([*styles, code] if token.type == "code_inline" else styles))
    return text


def render_table(lines: list[str], *, is_light: bool = False) -> Table:
    """Render a table of its `lines`: a head, a delimiter row, rows."""
    head, delimiters, *rows = (_split_cells(line) for line in lines)
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in range(count_columns(lines)):
        title = head[column] if column < len(head) else ""
        justify = _justify(delimiters[column]) if column < len(delimiters) else "left"
        grid.add_column(render(title, is_light=is_light), justify=justify, overflow="fold")
    for row in rows:
        grid.add_row(*(render(cell, is_light=is_light) for cell in row))
    return grid


def count_columns(lines: list[str]) -> int:
    """Count the columns of the longest of `lines`."""
    return max(len(_split_cells(line)) for line in lines)


def _parse(source: str) -> list[Token]:
    return _PARSER.inline.parse(source, _PARSER, {}, [])


def _has_open_bracket(text: str) -> bool:
    depth = 0
    for bracket in re.findall(r"[\[\]]", text):
        depth = depth + 1 if bracket == "[" else max(0, depth - 1)
    return depth > 0


def _format_address(token: Token) -> str:
    """Format the address of a link or an image, with its title, in one line."""
    attributes: dict[str, Any] = token.attrs
    title = f' "{attributes["title"]}"' if attributes.get("title") else ""
    return printable(f"{attributes.get('href', attributes.get('src'))}{title}").replace("\n", " ")


def _split_cells(line: str) -> list[str]:
    """`| a | b \\| c |` has the cells `a` and `b | c`."""
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
    return cells[1 : -1 if not cells[-1] else None]


def _justify(delimiter: str) -> Literal["left", "center", "right"]:
    if delimiter.endswith(":"):
        return "center" if delimiter.startswith(":") else "right"
    return "left"
