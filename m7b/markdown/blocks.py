"""Tell what a line of Markdown is, as soon as its first characters say so. Knows one line; prints nothing."""

import re
from dataclasses import dataclass

HOLD = 300  # characters after which text of unknown meaning is taken literally

_CONTAINER = re.compile(r"[ \t]*(?:> ?|(?:[-*+]|\d{1,9}[.)])[ \t]+(?=\S))")
_HEADING = re.compile(r"[ \t]*(#{1,6})[ \t]+(?=\S)")
_RULE = re.compile(r"[ \t]*([-*_])[ \t]*(?:\1[ \t]*){2,}")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})[ \t]*([^\s`]*)")
_TABLE_ROW = re.compile(r"[ \t]*\|")
_DELIMITERS = re.compile(r"[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)*(?:[ \t]*:?-+:?[ \t]*)?")
_UNDECIDED = re.compile(
    r"[ \t]*(?:#{0,6}[ \t]*|\+[ \t]*|([-*_])[ \t]*(?:\1[ \t]*)*|\d{1,9}(?:[.)][ \t]*)?"
    r"|`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*)"
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
class Fence:
    """The line that opens a block of code."""

    run: str
    language: str
    is_quoted: bool

    def covers(self, line: str) -> bool:
        """Whether `line` belongs to the block at all: a quoted one ends where the quote does."""
        return not self.is_quoted or line.lstrip().startswith(">")

    def is_closed_by(self, line: str) -> bool:
        """Whether `line` is the fence's other end."""
        run = line.lstrip(" \t>" if self.is_quoted else None).rstrip()
        return run.startswith(self.run) and not run.strip(self.run[0])


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of what may be a table."""


Block = Prose | Rule | Fence | TableRow


def parse_block(line: str, *, is_whole: bool) -> Block | None:
    """Tell what `line` is, or None where that still depends on the rest of the line."""
    if is_whole and _RULE.fullmatch(line):
        return Rule()
    if _TABLE_ROW.match(line):
        return TableRow() if is_whole else None
    start = 0
    while found := _CONTAINER.match(line, start):
        start = found.end()
    if not is_whole and len(line) < HOLD and _UNDECIDED.fullmatch(line, start):
        return None
    marks = line[:start]
    if is_whole and (fence := _FENCE.match(line, start)):
        return Fence(fence[1], fence[2], ">" in marks)
    if heading := _HEADING.match(line, start):
        return Prose(_space_quotes(marks), len(heading[1]), heading.end())
    start = len(line) - len(line[start:].lstrip(" \t"))
    return Prose(_space_quotes(line[:start]), 0, start)


def is_delimiter_row(line: str) -> bool:
    """Whether `line`, below a table's head, makes it a table."""
    return "-" in line and _DELIMITERS.fullmatch(line.rstrip()) is not None


def _space_quotes(marks: str) -> str:
    return re.sub(r">(?! )", "> ", marks)
