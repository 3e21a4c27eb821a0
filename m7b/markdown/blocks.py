"""Tell what a line of Markdown is, as soon as its first characters say so. Knows lines; prints nothing."""

import re
from dataclasses import dataclass, replace

HOLD = 300  # characters after which text of unknown meaning is taken literally

_QUOTE = 0  # among the widths of containers: that of a list item is what its lines are indented by
_CODE_INDENT = 4
_QUOTE_MARK = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?: {1,4}(?=[^ ])| (?= {4,}[^ ]))")
_EMPTY_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)]) *")
_HEADING = re.compile(r" {0,3}(#{1,6}) +(?=[^ ])")
_RULE = re.compile(r" {0,3}([-*_]) *(?:\1 *){2,}")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+) *")
_FENCE = re.compile(r" *(`{3,}(?=[^`]*$)|~{3,}) *([^\s`]*)")
_TABLE_ROW = re.compile(r" *\|")
_DELIMITERS = re.compile(r" *\|(?: *:?-+:? *\|)*(?: *:?-+:? *)?")
_UNDECIDED = re.compile(
    r" *(?:#{0,6} *|\+ *|([-*_]) *(?:\1 *)*|\d{1,9}(?:[.)] *)?|`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*"
    r"|<(?:[A-Za-z/!?][^>]*>? *)?)"
)
_HTML = tuple(
    (re.compile(rf" {{0,3}}<(?:{start})", re.I), re.compile(end, re.I))
    for start, end in (
        (r"(?:script|pre|style|textarea)(?=[ >]|$)", r"</(?:script|pre|style|textarea)>"),
        (r"!--", r"-->"),
        (r"\?", r"\?>"),
        (r"!\[CDATA\[", r"\]\]>"),
        (r"![a-z]", r">"),
    )
)
_HTML_TAG = re.compile(
    r" {0,3}</?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details"
    r"|dialog|dir|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html"
    r"|iframe|legend|li|link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|search|section|summary"
    r"|table|tbody|td|tfoot|th|thead|title|tr|track|ul)(?= |/?>|$)",
    re.I,
)
_LONE_TAG = re.compile(
    r""" {0,3}<(?:[a-z][a-z\d-]*(?: +[a-z_:][\w.:-]*(?: *= *(?:[^ "'=<>`]+|'[^']*'|"[^"]*"))?)* */?"""
    r"|/[a-z][a-z\d-]* *)> *",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Prose:
    """Text: `marks` are indentation, bullets, numbers and quote marks; it starts at character `start`."""

    marks: str
    heading: int  # its level, 0 where it is none
    start: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal rule."""


@dataclass(frozen=True, slots=True)
class Code:
    """A line of code by its indentation."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The line that opens a block of code, inside containers of such widths."""

    run: str
    language: str
    indent: int
    containers: tuple[int, ...]

    @property
    def is_quoted(self) -> bool:
        """Whether the block stands in a quote."""
        return _QUOTE in self.containers

    def covers(self, line: str) -> bool:
        """Whether `line` belongs to the block at all: a quoted one ends where the quote does.

        In a list, lines need no indentation: models forget it, and mean the fence.
        """
        return not self.is_quoted or line.lstrip().startswith(">")

    def is_closed_by(self, line: str) -> bool:
        """Whether `line` is the fence's other end."""
        start, _ = _enter(line, self.containers)
        run = line[start:].lstrip(" ")
        most = _CODE_INDENT + (self.indent if self.indent >= _CODE_INDENT else 0)
        is_code = len(line) - start - len(run) >= most
        return not is_code and run.startswith(self.run) and not run.rstrip(" \t").strip(self.run[0])


@dataclass(frozen=True, slots=True)
class Verbatim:
    """HTML or mathematics, shown as written up to a line that `end` is found in, or to a blank one."""

    end: re.Pattern[str] | None
    ends_at_blank: bool
    containers: tuple[int, ...] = ()

    def covers(self, line: str) -> bool:
        """Whether `line` belongs to the block at all."""
        if not line.strip(" "):
            return not self.ends_at_blank
        return _enter(line, self.containers)[1] == self.containers

    def is_closed_by(self, line: str) -> bool:
        """Whether `line` is the last one of the block."""
        return self.end is not None and self.end.search(line) is not None


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of what may be a table."""


Block = Prose | Rule | Code | Fence | Verbatim | TableRow


@dataclass(frozen=True, slots=True)
class Context:
    """What the lines before leave open, as far as it decides what the next one is.

    `- a` leaves the containers (2,), `> - a` (0, 2): what is indented so far is part of the item.
    """

    containers: tuple[int, ...] = ()
    is_paragraph: bool = False  # whose text goes on, however far its next line is indented
    is_code: bool = False  # by indentation

    def open_containers(self, line: str, start: int, kept: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Find the containers that `line` opens from `start` on, and where its text begins inside them."""
        widths: list[int] = []
        while not (_RULE.fullmatch(line, start) and not widths):
            found = _QUOTE_MARK.match(line, start) or _ITEM.match(line, start)
            if found is None:
                break
            mark = found[0].strip(" ")
            is_inside = not widths and self.is_paragraph and kept == self.containers
            if is_inside and mark[0].isdecimal() and mark[:-1] != "1":
                break  # a list inside a paragraph begins with 1: other numbers are its text
            widths.append(_QUOTE if mark == ">" else len(found[0]))
            start = found.end()
        return start, tuple(widths)

    def follow(self, line: str, block: Block | None) -> "Context":
        """Return the context behind `line`, which is `block`, or blank."""
        if block is None:
            n_items = next((n for n, width in enumerate(self.containers) if width == _QUOTE), None)
            return replace(self, containers=self.containers[:n_items], is_paragraph=False)
        start, kept = _enter(line, self.containers)
        end, opened = self.open_containers(line, start, kept)
        is_text = isinstance(block, TableRow) or (isinstance(block, Prose) and not block.heading)
        is_text = is_text and bool(line[end:].strip(" "))
        if not opened and self.is_paragraph and is_text:
            return replace(self, is_paragraph=not _UNDERLINE.fullmatch(line, start))
        empty = _EMPTY_ITEM.fullmatch(line, end) if isinstance(block, Prose) else None
        if empty:
            opened = (*opened, len(empty[0].rstrip(" ")) + 1)
        return Context((*kept, *opened), is_text and not empty, isinstance(block, Code))


def parse_block(line: str, context: Context, *, is_whole: bool) -> Block | None:
    """Tell what `line` is, or None where that still depends on the rest of the line."""
    at, kept = _enter(line, context.containers)
    if not line[at:].strip(" "):
        return Prose(_space_quotes(line), 0, len(line)) if is_whole else None
    goes_on = context.is_paragraph
    if _is_code(line, at) and not goes_on:
        return Code()
    if is_whole and not line[:at].strip(" ") and _RULE.fullmatch(line, at):
        return Rule()
    start, opened = context.open_containers(line, at, kept)
    goes_on = goes_on and not opened
    if _is_code(line, start) and not goes_on:
        return Code()
    is_bare = not line[:start].strip(" ")
    if is_bare and _TABLE_ROW.match(line, start):
        return TableRow() if is_whole else None
    if not is_whole and len(line) < HOLD and _UNDECIDED.fullmatch(line, start):
        return None
    if is_whole and (fence := _FENCE.match(line, start)):
        return Fence(fence[1], fence[2], fence.start(1) - start, (*kept, *opened))
    html = _parse_html(line, start, kept, goes_on=goes_on) if is_bare else None
    return html or _parse_prose(line, start)


def is_delimiter_row(line: str) -> bool:
    """Whether `line`, below a table's head, makes it a table."""
    return "-" in line and _DELIMITERS.fullmatch(line.rstrip()) is not None


def _enter(line: str, containers: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Find where `line` goes on inside those of `containers` that it is part of, and which they are."""
    at = 0
    for n, width in enumerate(containers):
        quote = _QUOTE_MARK.match(line, at)
        if width == _QUOTE and quote:
            at = quote.end()
        elif width != _QUOTE and len(line) >= at + width and not line[at : at + width].strip(" "):
            at += width
        else:
            return at, containers[:n]
    return at, containers


def _is_code(line: str, start: int) -> bool:
    """Whether what follows `start` is indented like code."""
    rest = line[start:]
    return len(rest) - len(rest.lstrip(" ")) >= _CODE_INDENT and bool(rest.strip(" "))


def _parse_html(line: str, start: int, containers: tuple[int, ...], *, goes_on: bool) -> Verbatim | None:
    for begin, end in _HTML:
        if begin.match(line, start):
            return Verbatim(end, False, containers)
    if _HTML_TAG.match(line, start) or (not goes_on and _LONE_TAG.fullmatch(line, start)):
        return Verbatim(None, True, containers)
    return None


def _parse_prose(line: str, start: int) -> Prose:
    if heading := _HEADING.match(line, start):
        return Prose(_space_quotes(line[:start]), len(heading[1]), heading.end())
    start = len(line) - len(line[start:].lstrip(" "))
    return Prose(_space_quotes(line[:start]), 0, start)


def _space_quotes(marks: str) -> str:
    return re.sub(r">(?! )", "> ", marks)
