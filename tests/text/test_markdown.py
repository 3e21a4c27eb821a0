"""Markdown on terminals that keep every row: what they show, and which bytes they were sent."""

import io
import itertools
import os
import re
import unicodedata

import pyte
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pygments.lexer import Lexer
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from m7b.markdown import MarkdownStream
from m7b.markdown.code import Highlighter

ALLOWED = re.compile(r"\x1b\[[\d;]*m|\x1b\[[1-9]\d*C|\x1b\[K|[\r\n\t]|[^\x00-\x1f\x7f-\x9f]")
LETTERS = "".join(c for c in map(chr, [*range(97, 123), *range(0x180, 0x240)]) if c.isalpha())
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


class Tty(io.TextIOWrapper):
    """A stream that says it is a terminal, and keeps what it is sent until it is drained."""

    def __init__(self, encoding="utf-8", *, is_terminal=True):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def drain(self):
        data = self.buffer.getvalue()
        self.buffer.seek(0)
        self.buffer.truncate()
        return data.decode(self.encoding)


class Truncating(pyte.Screen):
    """A terminal that cuts its rows when it gets narrower. Its scrollback has no end."""

    def __init__(self, columns, lines):
        self.scrollback = []
        super().__init__(columns, lines)
        self.stream = pyte.Stream(self)

    def feed(self, text):
        self.stream.feed(text.replace("\n", "\r\n"))

    def draw(self, data):
        for char in data:  # pyte drops what follows a joiner, and wraps for what takes no room
            if self.cursor.x < self.columns or pyte.screens.wcwidth(char):
                super().draw(char)
            else:
                row, at = self.buffer[self.cursor.y], self.columns - 1
                row[at] = row[at]._replace(data=unicodedata.normalize("NFC", row[at].data + char))

    def index(self):
        if self.cursor.y == self.lines - 1:
            self.scrollback.append(dict(self.buffer[0]))
        super().index()

    def change(self, columns):
        self.resize(columns=columns)
        self.cursor.x = min(self.cursor.x, columns - 1)

    @property
    def row(self):
        """Where the cursor is, counted from the first row that there ever was."""
        return len(self.scrollback) + self.cursor.y

    @property
    def cells(self):
        """The rows, each up to its last cell that is not blank."""
        rows = [*self.scrollback, *(self.buffer[y] for y in range(self.lines))]
        ends = [max((x + 1 for x, cell in row.items() if cell.data != " "), default=0) for row in rows]
        cells = [
            [row.get(x, self.default_char) for x in range(end)] for row, end in zip(rows, ends, strict=True)
        ]
        return cells[: max((y + 1 for y, row in enumerate(cells) if row), default=0)]

    @property
    def rows(self):
        return ["".join(cell.data for cell in row) for row in self.cells]


class Reflowing:
    """A terminal that keeps lines: rows that it wrapped are joined and wrapped anew when it is resized."""

    def __init__(self, columns, lines):
        self.columns, self.rows_of_cells, self.at, self.is_pending = columns, [[]], 0, False

    def feed(self, text):
        for found in re.finditer(r"\x1b\[([\d;]*)([CKm])|\n|\r|(.)", text):
            line = self.rows_of_cells[-1]
            start = (self.at - self.is_pending) // self.columns * self.columns
            end = start + self.columns
            if found[2] == "K":
                line[self.at - self.is_pending : end] = [" "] * (end - self.at) if end < len(line) else []
            elif found[2] == "m":
                continue
            elif found[3]:
                self._draw(line, found[3])
                continue
            elif found[0] == "\n" and end >= len(line):
                self.rows_of_cells.append([])
                self.at = 0
            else:
                self.at = {"C": min(end - 1, self.at + int(found[1] or 0)), None: start}[found[2]]
                self.at = end if found[0] == "\n" else self.at
            self.is_pending = False

    def _draw(self, line, char):
        n_cells = pyte.screens.wcwidth(char)
        if n_cells > 0:
            self.at += n_cells == 2 and self.at % self.columns == self.columns - 1
            line += [" "] * (self.at - len(line))
            line[self.at : self.at + n_cells] = [char, ""][:n_cells]
            self.at += n_cells
            self.is_pending = self.at % self.columns == 0

    def change(self, columns):
        self.columns, self.is_pending = columns, False

    @property
    def rows(self):
        return ["".join(cells).rstrip(" ") for cells in self.rows_of_cells]


class Watched:
    """A stream of Markdown, and the terminal that it is shown on."""

    def __init__(self, columns=80, lines=24, encoding="utf-8", terminal=Truncating):
        self.columns, self.sent = columns, ""
        self.terminal, self.tty = terminal(columns, lines), Tty(encoding)
        self.markdown = MarkdownStream(self.tty, width=lambda: self.columns)

    def write(self, text):
        self.markdown.write(text)
        self._pass_on()

    def finish(self):
        self.markdown.finish()
        self._pass_on()

    def resize(self, columns):
        self.columns = columns
        self.terminal.change(columns)

    def _pass_on(self):
        new = self.tty.drain()
        self.sent += new
        self.terminal.feed(new)


def shown(pieces, **size):
    watched = Watched(**size)
    for piece in pieces:
        watched.write(piece)
    watched.finish()
    return watched


@pytest.fixture(scope="module", autouse=True)
def _a_capable_terminal():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            patch.delenv(name, raising=False)
        yield


CORPUS = {
    "prose": "The quick brown fox jumps over the lazy dog, twice.\nA second line.\n\nA second paragraph.",
    "headings": "# One\n## Two *x*\n### Three ###\n#### Four\n##### Five\n###### Six\n####### seven\n#no\n#",
    "setext": "Title\n=====\ntext\n\nSub\n---\ntext",
    "nested list": "- one\n  - two **b**\n    - three, long enough to wrap somewhere\n* four\n+ five\n-\n- ",
    "ordered list": "1. one\n2) two\n   10. ten\n999999999. many\n1234567890. too many\n3.no\n1.",
    "tasks": "- [ ] open\n- [x] done\n- [link](address)",
    "quotes": "> one\n> > two *x*\n>three\n- > four\n> - five\n> # six\n>",
    "rules": "a\n\n---\n***\n_ _ _\n- - -\n--\n-- -x\n* * *\n*\n",
    "table": "| a | *b* | c |\n|---|:-:|--:|\n| 1 | `2` | 3 |\n| 4 \\| 5 |\n\nafter",
    "wide table": "|" + " heading |" * 8 + "\n|" + "---|" * 8 + "\n|" + " some longer text |" * 8 + "\n",
    "no table": "| a | b |\nno\n|\n|-|\n||\n|x\n|---\n| a",
    "table at the end": "| a | b |\n|---|---|\n| 1 | 2",
    "fence": "```python\ndef f(x):\n\t'''Doc\n\n    more'''\n    return f'{x!r}'  # why\n```\nafter *it*",
    "fence of nothing known": "~~~klingon\nwo' *batlh*\n```\n~~~\nafter",
    "fences in others": "> ```sh\n> ls | wc\n> ```\n- ```py\n  x = 1\n  ```\n````\n```\n````",
    "unclosed fence": "text\n```js\nlet x = `a\n",
    "unclosed fence, open line": "```c\nint main(void) {",
    "fence only": "```",
    "indented code": "text\n\n    x = *p * 2\n\ttab(`)\n",
    "inline code": "a `b` ``c ` d`` `e  f` `*g*` `un\nclosed`",
    "emphasis": "*a b* **c d** ***e f*** _g_ __h__ snake_case_name 2 * 3 * 4 ~~i~~ **j *k* l** m*n*o",
    "emphasis that never ends": "**a b c\nd *e _f ~~g `h [i",
    "long wait": "*" + "word " * 90 + "end* and **so on** " + "`" + "code " * 70,
    "links": '[a b](http://x "T") <http://y> [r][s] [c *d* e](<f g>) [](h) [i]( j )\n[k](http://k',
    "images": "![a b](c.png) ![*d*](e) ![f",
    "html": "<b>x</b> &amp; <br/> <!-- y --> <a href='z'>\n<div>\n</div>",
    "hard breaks": "one  \ntwo\\\nthree",
    "backslashes": "\\*a\\* \\\\ \\_b\\_ C:\\dir\\ \\[c\\] \\",
    "control strings": "[INST] hi [/INST] </s><s> [TOOL_CALLS] <<SYS>>",
    "Rich markup": "[bold]a[/bold] [/] [red on blue]b [link=x]c[/link] :smile: [@click=x]d",
    "escapes": "\x1b[31mred\x1b[0m \x1b[2J\x1b[H\x1b]0;title\x07 \x9b1A **\x1b[1mb**\n```\n\x1b[5A\n```\n",
    "lone escape": "a\x1b",
    "controls": "a\rb\bc\x07d\0e\x0bf\x0cg\x7fh\x85i\x1b\r\nj\t\tk\n| \r | \x07 |\n|-|-|\n| \b | \0 |",
    "separators": "a\u2028b\u2029c\u00a0d\u200be\ufefff\x1cg",
    "right to left": "שלום עולם **חזק** \u202eabc\u202c العربية",
    "wide": "中文字符中文字符中文字符，中文。word中文 한국어 日本語**太字**の `コード` 文*x*文",
    "combining": "e\u0301 a\u0300\u0323 n\u0303o **u\u0308** \u0301 क्षि",
    "emoji": "👩\u200d👩\u200d👧\u200d👦 👍🏽 ❤\ufe0f 1\ufe0f\u20e3 *🏳\ufe0f\u200d🌈* 👩\u200d",
    "flags": "🇩🇪🇫🇷 🇩 x 🇪",
    "surrogates": "a\ud83d\ude00b \udcff c",
    "long word": "x" * 200 + " y " + "中" * 50 + "z" * 100,
    "tabs": "a\tb\n\tc\n-\td\n```make\nall:\n\tcc\tx\n```",
    "blank lines": "\n\n\na\n\n\n \n\t\nb\n   \n",
    "code by indentation": "a:\n\n    __b__, c*d*e\n    # f\n\n\n      > g\n\n1. h\n\n       *i*\n   *j*\n\n- \n      *k*",  # noqa: E501
    "windows": "# a\r\n\r\n```py\r\nb = 1\r\n```\r\n- *c*\r\n\r\n| d |\r\n|---|\r\n| e |\r\n\r",
    "latex": "\\(x_1 * y_1\\) $a_b$ $5 and *c* $6 \\[\nd_1 \\\\ e_1\n\\] *f*\n$$\n*g*\n$$\n\\begin{a}\n_h_\n\\end{a}\n_i_ \\[\n\n*j*",  # noqa: E501
    "html blocks": "<div a='*b*'>\n*c*\n\n*d*\n<!-- *e*\n\n*f* -->\n*g*\n<pre>\n\n_h_\n</pre>\n<x-y>\n*i*\n\n- <p>\n*j*\n- *k*",  # noqa: E501
    "500 lines": "".join(f"- {n} *{n}*\n" for n in range(500)),
}
a_case = pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)


def cuts(text, sizes):
    ends = [*itertools.accumulate(sizes)]
    ends = [0, *(end for end in ends if end < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (23, 6), (7, 3), (2, 2), (1, 1)])
@a_case
def test_pieces_show_what_the_whole_text_shows(text, columns, lines):
    whole = shown([text], columns=columns, lines=lines)
    for pieces in (text, re.findall(r"\s*\S+|\s+$", text), cuts(text, itertools.repeat(3, 9999))):
        if columns == 80 or len(text) < 2000:
            assert shown(pieces, columns=columns, lines=lines).terminal.cells == whole.terminal.cells
    assert not ALLOWED.sub("", whole.sent)


@a_case
def test_an_interrupted_answer_ends_like_one_whose_last_line_is_whole(text):
    for end in range(0, len(text), max(1, len(text) // 12)):
        cut, whole = shown([text[:end]]), shown([text[:end] + "\n"])
        assert cut.terminal.cells == whole.terminal.cells


MARKDOWN = [
    *("*", "**", "_", "__", "`", "``", "```", "~~", "~~~", "[", "](U)", "](U", "]", ")", "!", "<", ">", "> "),
    *(
        "\\",
        "#",
        "## ",
        "- ",
        "* ",
        "1. ",
        "---",
        "===",
        "***",
        "\n",
        "\n",
        "\n\n",
        "    ",
        "\t",
        " ",
        " ",
        " ",
    ),
    *("```PYTHON\n", "(", ".", "中", "文", "É", "E\u0301", "👩\u200d👧", "🇩🇪", "👍🏽", "❤\ufe0f", "\u2028"),
    *("\x1b[2J", "\x1b[1A", "\x1b", "\r", "\a", "\b", "\0", "\x9b1A", "\ud83d", "[/INST]", "[BOLD]", "&AMP;"),
]
TABLES = ["|", " | ", "|\n", "|-|\n", "|---|:-:|\n", "\n|", "\\|", "`|`"]


def spelt(atoms):
    """The atoms as one text, numbers standing for words in which no letter comes twice."""
    letters = iter(LETTERS)
    return "".join("".join(itertools.islice(letters, a)) if isinstance(a, int) else a for a in atoms)


def markdown(atoms):
    words = st.sampled_from([1, 2, 3, 7])
    return st.lists(words | words | st.sampled_from(atoms), max_size=30).map(spelt)


def letters_of(text):
    return [char for char in text if char in LETTERS]


a_width = st.integers(1, 12) | st.integers(1, 120)
sizes = st.lists(st.integers(1, 9), max_size=60)


@settings(quick, max_examples=300)
@given(text=markdown(MARKDOWN), columns=a_width, lines=st.sampled_from([1, 3, 24]), sizes=sizes)
def test_any_markdown_is_shown_once_in_order_and_below_it_an_empty_row(text, columns, lines, sizes):
    watched = shown(cuts(text, sizes), columns=columns, lines=lines)
    assert not ALLOWED.sub("", watched.sent)
    assert watched.terminal.cells == shown([text], columns=columns, lines=lines).terminal.cells
    if columns > 2:  # the emulator writes one wide character over the other
        assert letters_of("".join(watched.terminal.rows)) == letters_of(text)
    assert watched.terminal.cursor.x == 0
    assert watched.terminal.row >= len(watched.terminal.rows)


@quick
@given(text=markdown(MARKDOWN + TABLES * 5), columns=a_width, sizes=sizes)
def test_tables_lose_no_letter(text, columns, sizes):
    watched = shown(cuts(text, sizes), columns=columns)
    assert not ALLOWED.sub("", watched.sent)
    if columns > 2:
        assert sorted(letters_of("".join(watched.terminal.rows))) == sorted(letters_of(text))


@settings(quick, max_examples=200)
@given(text=st.text("abcé中.,;'  \n", max_size=120), columns=st.integers(3, 60), sizes=sizes)
def test_every_character_of_prose_is_shown_once(text, columns, sizes):
    rows = shown(cuts(text, sizes), columns=columns, lines=3).terminal.rows
    assert "".join("".join(rows).split()) == "".join(text.split())


def test_lines_beyond_the_screen_are_in_the_scrollback_once():
    lines = [f"line {n} of **many**, `code`" for n in range(200)]
    watched = shown("\n".join(lines), lines=10)
    assert watched.terminal.rows == [re.sub(r"[*`]", "", line) for line in lines]
    assert len(watched.terminal.scrollback) == 191


@pytest.mark.parametrize(
    ("before", "line", "after"),
    [("```py\n", "x = {}", "\n```"), ("| a | b |\n|---|---|\n", "| {} | y |", ""), ("", "> - {}", "")],
    ids=["code", "table", "quote"],
)
def test_blocks_taller_than_the_screen_are_shown_once(before, line, after):
    text = before + "\n".join(line.format(n) for n in range(100)) + after
    rows = shown(text, lines=5).terminal.rows
    assert [int(n) for row in rows for n in re.findall(r"\d+", row)] == [*range(100)]


SCREENS = {
    "headings": ("# A *b*\n## C #\n# D#\n#E", ["A b", "C", "D#", "#E"]),
    "lists": ("- a\n  * b\n1. c\n+ d", ["• a", "  • b", "1. c", "• d"]),
    "long list": ("- one two three four five", ["• one two three four fiv", "e"]),
    "long quote": ("> one two three four five", ["│ one two three four fiv", "e"]),
    "rule": ("a\n\n---\n", ["a", "", "─" * 23]),
    "blank lines": ("\n\na\n\n\n\nb\n\n", ["a", "", "b"]),
    "line ends": ("a\nb  \nc", ["a", "b", "c"]),
    "link": ('[a](U "t") <http://b> ![c](d)', ['a (U "t") http://b c (d)']),
    "table": ("| a | b |\n|---|--:|\n| 1 | 2 \\| 3 |", ["a       b", "─────────", "1   2 | 3"]),
    "narrow table": ("|a|b|c|\n|-|-|-|\n|1|2|3|", ["|a|b|c|", "|-|-|-|", "|1|2|3|"]),
    "fence": ("```py\n*x* = '\n\n```\n*y*", ["```py", "*x* = '", "", "```", "y"]),
    "wide": ("中文中文中文中文中文中文中文", ["中文" * 6, "中文"]),
    "long word": ("ab " + "x" * 30, ["ab " + "x" * 21, "x" * 9]),
    "control": ("a\x1b[2Jb\rc", ["a\ufffd[2Jb\ufffdc"]),
    "space in front": (" one two three four fives", ["one two three four fives"]),
    "literal": ("[/INST] [bold]a[/] <b>&amp;</b>", ["[/INST] [bold]a[/] <b>&a", "mp;</b>"]),
}


@pytest.mark.parametrize(("text", "rows"), SCREENS.values(), ids=SCREENS)
def test_a_terminal_of_24_columns_shows(text, rows):
    terminal = shown(text, columns=24).terminal
    assert terminal.rows == rows
    assert terminal.row == len(rows)


AS_WRITTEN = {
    "code": ["Text:", "", "    __name__, a*b*c", "    # note", "", "", "        `x` \\* [y](z)", "    - *a*"],
    "code at the beginning": ["    __a__", "      **b**"],
    "code behind a heading": ["# Title", "    a*b*c"],
    "code behind a list": ["- a", "", "b", "", "    *c*"],
    "code in a list": ["1. a", "", "       *c*", "   b"],
    "code in a list item": ["-     *c*"],
    "code in a quote": [">     *c*", ">     _d_"],
    "a fence inside code": ["```", "    ```", "*a*", "```"],
    "a fence of tildes": ["~~~~", "~~~", "```", "*a*", "~~~~"],
    "a fence in a list": ["1. a", "   ```", "*b*", "   ```"],
    "parentheses": [r"So \(x_1 * y_1 * z_1\) and \(a\_b\)."],
    "brackets": [r"Then \[x_1 * y_1 * z_1\] holds."],
    "brackets on lines of their own": [r"\[", r"x_1 *y* \\", r"  \{a_1, b_1\}", r"\]"],
    "brackets that begin in a line": [r"So \[ x_1 *y*", r"= \,z *a*", r"\]"],
    "dollars": ["So $a_b$, $x_1*y_1*z_1$ and $\\{a\\}$ and $_a_$."],
    "two dollars": ["$$x_1*y_1*z_1$$"],
    "two dollars on lines of their own": ["$$", r"a_1 & *b* \\", r"\, c_1", "$$"],
    "an environment": [r"\begin{align*}", r"a_1 &= *b* \\", r"\end{align*}"],
    "an environment in a line": [r"a \begin{matrix} a_1 & *b* \\ c \end{matrix}"],
    "the end of a row": [r"a \\ b", r"\\server\share"],
    "no mathematics": ["It costs $5, not $10 or $1,000."],
    "a tag": ['A <a href="*b*" title="_c_">link</a>'],
    "HTML": ["<table>", "  <td>*a*", "</table>"],
    "a comment": ["<!-- *a*", "", "_b_ -->"],
    "a line that goes on in a paragraph": ["a", "    # b"],
}


@pytest.mark.parametrize("lines", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_what_is_no_markup_is_shown_as_it_is_written(lines):
    """Code by indentation lost its stars and became headings, and LaTeX lost its backslashes."""
    told = [line.removeprefix("# ") if line == "# Title" else line for line in lines]
    told = [re.sub("^- a", "• a", line) for line in told]
    for end in ("\n", "\r\n"):
        text = end.join(lines)
        assert shown([text]).terminal.rows == shown(text).terminal.rows == told


BEHIND = {
    "code": ("    *a*\nb *c*", "b c"),
    "fence": ("```\n*a*\n```\nb *c*", "b c"),
    "a fence with CRLF": ("```\r\n*a*\r\n```\r\nb *c*", "b c"),
    "mathematics": ("\\[\n*a*\n\\]\nb *c*", "b c"),
    "mathematics that never ends": ("\\[ *a*\n*b*\n\nb *c*", "b c"),
    "mathematics in code": ("`\\[` is *a*\nb *c*", "b c"),
    "two dollars in a line": ("a $$ *b*\nb *c*", "b c"),
    "HTML": ("<div>\n*a*\n\nb *c*", "b c"),
    "HTML in a list": ("- <div>\n- b *c*", "• b c"),
    "prices": ("$5 and *b* or $6", "$5 and b or $6"),
    "variables": ("$HOME and *b* or $PATH", "$HOME and b or $PATH"),
}


@pytest.mark.parametrize(("text", "last"), BEHIND.values(), ids=BEHIND)
def test_markup_is_read_again_behind_what_is_shown_as_it_is_written(text, last):
    assert shown(text).terminal.rows[-1] == last


@pytest.mark.parametrize("columns", [20, 37, 80])
@pytest.mark.parametrize(
    "text",
    [
        "word and *other* words " * 30,
        "- " + "item `code` " * 30,
        "> " + "quote " * 60,
        "中文字，" * 60,
        "# " + "head " * 40,
    ],
    ids=["paragraph", "item", "quote", "wide", "heading"],
)
def test_only_the_ends_of_lines_are_sent_as_such(text, columns):
    """What was copied from the screen had a line end for each row."""
    for pieces in ([text], text):
        watched = shown(pieces, columns=columns)
        assert watched.sent.count("\n") == 1
        assert watched.terminal.row > 1


def test_a_paragraph_is_wrapped_anew_by_a_terminal_that_can():
    text = "word and *other* words " * 30
    watched = shown(text, columns=40, terminal=Reflowing)
    watched.resize(90)
    assert watched.terminal.rows[0] == text.replace("*", "").strip()


# Flicker: what is sent, and what is erased.


def test_prose_that_fits_its_row_is_sent_as_it_is():
    """Once each word was erased and written anew when it ended, as words that lose their markup are."""
    watched = Watched()
    for n, char in enumerate(text := "One two, three four. (Five) six - seven\n", 1):
        watched.write(char)
        assert watched.sent.split() == text[:n].split()
    assert watched.sent.rstrip() == text.rstrip()


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("one **tw", "one **tw"),
        ("👍🏽 one\ntwo", "two"),
        ("```py\nx = ", "x ="),
        ("| a | b |\n|---|", "… 1 row"),
        ("---", "---"),
        ("- one *" + "two " * 20, "• one *two two two two"),
    ],
    ids=["markup", "behind emoji", "code", "table", "rule", "longer than the row"],
)
def test_the_open_end_of_a_line_is_shown_as_far_as_its_row_has_room(text, row):
    watched = Watched(columns=24)
    for char in text:
        watched.write(char)
    assert watched.terminal.rows[-1] == row


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_prose_costs_one_erasure_a_row_and_half_as_many_bytes_again(columns):
    text = " ".join(f"word{n} and, others" for n in range(100))
    watched = shown(text, columns=columns)
    assert watched.sent.count("\x1b[K") < len(watched.terminal.rows)
    assert len(watched.sent) < 2 * len(text) if columns == 20 else 1.5 * len(text)


def test_marked_words_are_shown_raw_and_replaced_once():
    text = "some **bold words here** and `code` in between, " * 40
    watched = shown(text)
    assert watched.sent.count("\x1b[K") < 2 * 40 + len(watched.terminal.rows)
    assert len(watched.sent) < 4 * len(text)


# Resizing, on terminals of either kind.


def resized(text, pieces, widths, terminal):
    watched = Watched(columns=widths[0], lines=40, terminal=terminal)
    for piece, width in zip(pieces, itertools.chain(widths, itertools.repeat(None)), strict=False):
        if width:
            watched.resize(width)
        watched.write(piece)
    watched.finish()
    assert not ALLOWED.sub("", watched.sent)
    return letters_of("".join(watched.terminal.rows))


some_widths = st.lists(st.none() | a_width.filter(lambda n: n > 1), max_size=40).map(
    lambda widths: [40, *widths]
)


@settings(quick, max_examples=300)
@given(text=markdown(MARKDOWN), widths=some_widths, sizes=sizes)
def test_nothing_is_lost_or_doubled_where_a_resized_terminal_reflows(text, widths, sizes):
    assert resized(text, cuts(text, sizes), widths, Reflowing) == letters_of(text)


@settings(quick, max_examples=300)
@given(text=markdown(MARKDOWN), widths=some_widths, sizes=sizes)
def test_nothing_written_after_a_resize_is_lost_or_doubled_where_a_terminal_cuts_rows(text, widths, sizes):
    pieces = cuts(text, sizes)
    letters = resized(text, pieces, widths, Truncating)
    assert len(letters) == len({*letters})
    last = max(n for n, width in enumerate(widths) if width)
    after = letters_of("".join(pieces[last:]))
    assert [char for char in letters if char in after] == after


@pytest.mark.parametrize("terminal", [Truncating, Reflowing])
def test_every_width_may_follow_every_other(terminal):
    text = spelt(
        [3, " **", 4, "** ", 7, "\n- ", 2, " ", 5, " `", 6, "` ", 2, "\n```PYTHON\n", 9, "\n```\n> ", 3]
    )
    for before, after in itertools.product([2, 3, 4, 5, 9, 30, 120], range(2, 121, 3)):
        letters = resized(text, [text[:9], text[9:]], [before, after], terminal)
        assert letters == letters_of(text) or (terminal is Truncating and after < 9)
    resized(text, text, [1, *range(1, 121), *range(120, 0, -1)], terminal)


def test_a_wide_character_goes_where_there_is_no_room_for_it():
    """Once the first one hung a terminal of one column."""
    assert shown("中文 中a", columns=1, lines=9).sent == "中文 中a\n"
    assert shown("中文中a", columns=2, lines=9).terminal.rows == ["中", "文", "中", "a"]


# Streams of every kind.


@pytest.mark.parametrize(
    ("variable", "value"), [("NO_COLOR", "1"), ("TERM", "xterm-256color"), ("TERM", None)], ids=str
)
def test_colours_are_sent_where_they_are_wanted(monkeypatch, variable, value):
    """Once a terminal without TERM got colours in its answers and nowhere else."""
    monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    sent = shown(["# *a* `b`\n```python\nx = '1'\n```\n| a |\n|---|\n| `b` |\n"]).sent
    codes = {int(n) for run in re.findall(r"\x1b\[([\d;]*)m", sent) for n in run.split(";") if n}
    assert any(30 <= code < 110 for code in codes) == (value == "xterm-256color")
    assert 1 in codes


@pytest.mark.parametrize("text", ["# *a*\n\n| b |\n|--|\n", "`c", "\n", ""])
def test_pipes_and_dumb_terminals_get_the_text_as_it_is(monkeypatch, text):
    monkeypatch.setenv("TERM", "dumb")
    for tty in (Tty(), Tty(is_terminal=False)):
        markdown = MarkdownStream(tty)
        for char in text:
            markdown.write(char)
        markdown.finish()
        assert tty.drain() == text + "\n" * (text[-1:] not in ("", "\n"))


def test_a_pipe_gets_control_bytes_that_a_dumb_terminal_does_not(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    for tty, expected in ((Tty(), "\ufffd[2J\n"), (Tty(is_terminal=False), "\x1b[2J\n")):
        MarkdownStream(tty).write("\x1b[2J\n")
        assert tty.drain() == expected


@pytest.mark.parametrize(
    ("encoding", "row"),
    [("ascii", "- ? ?"), ("latin-1", "- é ?"), ("cp1252", "- é ?"), ("koi8-r", "- ? ?"), ("utf-8", "• é 中")],
)
def test_a_stream_shows_what_its_encoding_has(encoding, row):
    text = "- é 中\n\n---\n> x\n| 中 | b |\n|---|---|\n| 1 | … |\n"
    for pieces in ([text], text):
        watched = shown(pieces, encoding=encoding)
        assert watched.terminal.rows[0] == row
        assert watched.terminal.rows[2][0] in "-─"
    for text in CORPUS.values():
        shown([text], encoding=encoding)


# Who else says what is bold: markdown-it, given the whole text.

INLINE = [
    *(
        "*",
        "**",
        "***",
        "_",
        "__",
        "`",
        "``",
        "~~",
        "[",
        "](U)",
        "](<V W>)",
        "]",
        ")",
        "!",
        "<",
        "<http://H>",
    ),
    *(">", "\\", "\\*", " ", " ", " ", " ", ".", ",", "(", "中", "文文", "É", "-", ":", '"', "'", "#"),
]
REFERENCE = MarkdownIt("commonmark", {"html": True}).enable("strikethrough").disable("entity")
REFERENCE.normalizeLink = REFERENCE.normalizeLinkText = lambda address: (
    address
)  # addresses are shown as written
REFERENCE.validateLink = lambda address: True


def styles_told(text):
    """The characters of a paragraph and their styles, the address behind a link included.

    A backslash stays in front of those characters that follow one in LaTeX.
    """
    styled, styles, links = [], [], []
    kept = re.sub(r"(\\\\)|\\(?=[][()])", lambda found: found[0] * 2, text)
    _, paragraph, _ = REFERENCE.parse(kept)
    for token in paragraph.children:
        kind, _, side = token.type.rpartition("_")
        if side == "open":
            styles.append(kind)
            links += [(len(styled), token.attrs["href"])] if kind == "link" else []
        elif side == "close":
            styles.pop()
            start, address = links.pop() if kind == "link" else (0, None)
            if address and "".join(char for char, _ in styled[start:]) != address:
                styled += [(char, {*()}) for char in f"({address})"]
        elif token.type == "image":
            styled += [(char, {*styles}) for char in f"{token.content}({token.attrs['src']})"]
        else:
            inner = {*styles, "code", "strong"} if token.type == "code_inline" else {*styles}
            styled += [(char, inner) for char in token.content]
    return [(char, style) for char, style in styled if char != " "]


def styles_shown(terminal):
    styled = []
    for cell in itertools.chain.from_iterable(terminal.cells):
        flags = {
            "strong": cell.bold,
            "em": cell.italics,
            "s": cell.strikethrough,
            "link": cell.underscore,
            "code": cell.fg == "cyan",
        }
        styled += [(char, {name for name in flags if flags[name]}) for char in cell.data]
    return [(char, style) for char, style in styled if char != " "]


@settings(quick, max_examples=600)
@given(
    text=markdown(INLINE).filter(lambda text: len(text) < 120), columns=st.sampled_from([20, 80]), sizes=sizes
)
def test_markup_within_a_line_means_what_it_does_to_a_parser_of_the_whole_line(text, columns, sizes):
    """Two differences are meant and not drawn here: markup ends with its line, and after 300 characters."""
    text = f"Z {text.strip()} Y"
    assert styles_shown(shown(cuts(text, sizes), columns=columns).terminal) == styles_told(text)


@pytest.mark.parametrize("text", ["Z a][b c](U)", "Z \\!_a b_ Y", "Z `a`_b c_ Y", "Z *a*_b c_ Y"])
def test_markup_is_awaited_behind(text):
    """Once words were final too early, behind a lone bracket or an underscore next to an escape or code."""
    assert styles_shown(shown(text).terminal) == styles_told(text)


# Who else says what is text: markdown-it, given the whole document.

LINES = [
    *("{}", "*{}* _{}_", "__{}__, {}*{}*{}", "# {} *{}*", "    # {}", "    *{}*", "        _{}_", "  `{}*`"),
    *("- {}", "- *{}*", "-     *{}*", "1. {}", "10) *{}*", "  - {}", " 1. *{}*", "> {}", ">     *{}*"),
    *(
        "> - *{}*",
        "",
        "",
        "",
        "",
        ">",
        "---",
        "***",
        "===",
        "```",
        "```",
        "~~~~",
        "   ```{}",
        "\n    ```",
        "  ~~~",
    ),
    *("<div>", "<{}>", "</p>", "<!-- {}", "{} -->", "<pre>", "</pre>", "<b>*{}*</b>", "{} <i a='*'>"),
]
documents = st.lists(st.sampled_from(LINES), max_size=14).map(lambda lines: "\n".join(lines))


def characters_told(text):
    """The characters that a document holds, in its order, blanks left out."""
    told = []
    for token in REFERENCE.parse(text):
        told += [child.content for child in token.children or ()] or [token.content]
    return re.sub(r"\s", "", "".join(told))


def find_lost(text):
    """The characters of a document that a terminal of many columns does not show in their order."""
    watched = Watched(columns=1000)
    watched.write(text)
    watched.finish()
    sent = iter(re.sub(r"\x1b\[[\d;]*m", "", watched.sent))
    return "".join(char for char in characters_told(text) if not any(char == other for other in sent))


@settings(quick, max_examples=400)
@given(text=documents)
def test_every_character_of_a_document_is_shown(text):
    """Text that looked like markup where it was none lost its stars: in code by indentation, and in HTML.

    Two differences are meant and not drawn here: a fence in a paragraph is one however far it is indented,
    and the lines of one in a list need not be indented.
    """
    assume(not re.search(r"^ *(?:-|\d+[.)])(?: |$)", text, re.M) or not re.search("```|~~~", text))
    letters = iter(LETTERS)
    text = re.sub("{}", lambda _: next(letters), text)
    assert find_lost(text) == ""


@pytest.mark.skipif("M7B_COMMONMARK" not in os.environ, reason="M7B_COMMONMARK names CommonMark's spec.txt")
def test_every_character_of_the_examples_of_commonmark_is_shown():
    """But for links by reference, whose meaning comes after their text."""
    with open(os.environ["M7B_COMMONMARK"], encoding="utf-8") as file:
        examples = re.findall(r"^`{32} example\n(.*?)^\.\n", file.read(), re.M | re.S)
    assert len(examples) > 600
    examples = [example.replace("→", "\t") for example in examples]
    assert [text for text in examples if not re.search(r"\]:", text) and find_lost(text)] == []


# Code: colours and cost.

PYTHON = [
    *(
        "x = 1",
        '"""',
        "'''",
        "    def f(a, b):",
        '# comment """',
        "s = 'it' + \"x\"",
        "class A(B):",
        "",
        "",
        "@dec",
    ),
    *(
        '    """Doc."""',
        'if x == """abc',
        "import os, sys",
        "from a import (b,",
        "    c)",
        "match x:",
        "    case 1:",
    ),
    *(
        "x = [1,",
        "  2]",
        'r"""raw \\',
        "\\",
        '"unterminated',
        "async def g(): await h()",
        'f"{a!r:>{w}} {b}"',
    ),
]


def colours(text):
    segments = text.render(Console())
    return [
        (char, str(segment.style or "none")) for segment in segments for char in segment.text if char != "\n"
    ]


# The sixteen colours of xterm and of kitty, as RGB.
PALETTES = {
    "xterm": "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5"
    " 7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff ffffff",
    "kitty": "000000 cc0403 19cb00 cecb00 0d73cc cb1ed1 0dcdcd dddddd"
    " 767676 f2201f 23fd00 fffd00 1a8fff fd28ff 14ffff ffffff",
}
SAMPLES = [
    *PYTHON, "class A(int):", "    @b", "    def c(self): return print(1, True)  # d", "+ a", "- b",
    "#include <a.h>",
    "int main() { return 'a'; }",
    'for a in $b; do echo "$c"; done', '{"a": [1, null]}', "<a href='b'>&amp;</a>",
]  # fmt: skip


def contrast_on_white(colour):
    """The contrast of a colour in hexadecimal RGB on white, as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("language", ["python", "c", "bash", "diff", "json", "html"])
def test_all_colours_of_code_can_be_read_on_white(palette, language):
    """Names of functions were green and `print` cyan: 2.0 to 2.2, where WCAG wants 3 of large text."""
    highlighter = Highlighter(language, is_light=True)
    parts = [part for line in SAMPLES for part in highlighter.highlight(line).render(Console())]
    used = {part.style.color for part in parts if part.style}
    numbers = {colour.number for colour in used if colour and colour.number is not None}
    assert numbers
    assert all(contrast_on_white(PALETTES[palette].split()[number]) >= 3 for number in numbers)


@settings(quick, max_examples=50)
@given(lines=st.lists(st.sampled_from(PYTHON), min_size=1, max_size=100))
def test_lines_of_code_have_the_colours_of_the_whole(lines):
    """One difference is meant: a replacement field of an f-string over many lines is not drawn here."""
    lexer, theme = Syntax("", "python").lexer, Syntax.get_theme("ansi_dark")
    tokens = lexer.get_tokens("\n".join(lines))
    whole = Text.assemble(*((part, theme.get_style_for_token(kind)) for kind, part in tokens))
    highlighter = Highlighter("python")
    assert [pair for line in lines for pair in colours(highlighter.highlight(line))] == colours(whole)


def test_empty_lines_within_a_string_do_not_end_it():
    lines = ['x = """', *[""] * 40, "import os", '"""', "import os"]
    highlighter = Highlighter("python")
    *_, inside, _, outside = [highlighter.highlight(line) for line in lines]
    assert colours(inside) != colours(outside) == colours(Highlighter("python").highlight("import os"))


@pytest.mark.parametrize(
    ("lines", "most"),
    [(["x = 1"] * 5000, 32), (["    x = 1"] * 1000, 32), (["'''", *["a"] * 1000], 200)],
    ids=["code", "indented", "endless string"],
)
def test_long_code_costs_a_fixed_number_of_lines_for_each_line(monkeypatch, lines, most):
    """Once indented code was read with up to 192 lines before it, as if it were a string."""
    lexed, get_tokens = [], Lexer.get_tokens
    monkeypatch.setattr(Lexer, "get_tokens", lambda self, text: lexed.append(text) or get_tokens(self, text))
    highlighter = Highlighter("python")
    assert [highlighter.highlight(line).plain for line in lines] == lines
    assert sum(text.count("\n") + 1 for text in lexed) < most * len(lines)


def test_a_tab_in_code_does_not_write_over_the_last_column():
    """Once the terminal expanded all tabs; behind one at the right edge a character hid the one before."""
    rows = shown("```\nabcdefghijkl\tmn\n\to\n```", columns=12).terminal.rows
    assert rows == ["```", "abcdefghijkl", "    mn", "        o", "```"]


def test_blanks_at_the_end_of_a_row_of_code_make_no_row():
    """Once those that did not fit made an empty row below a row that was full."""
    assert shown("```x  \nabcdefgh  \n```", columns=8).terminal.rows == ["```x", "abcdefgh", "```"]


def test_combining_marks_stay_with_their_letters():
    rows = shown("e\u0301a\u0308 " * 30, columns=10).terminal.rows
    assert unicodedata.normalize("NFC", "".join(rows).replace(" ", "")) == "éä" * 30
    assert {len(unicodedata.normalize("NFC", row)) for row in rows} == {9, 10}


CODE = "Look:\n\n```py\nclass A:\n    def __init__(self):\n        a*b*c\n    # note\n```\n*done*\n`x`"


@pytest.mark.parametrize("at", range(13, len(CODE) - 10, 5))
def test_an_answer_that_is_continued_is_shown_as_the_whole_would_be(at):
    """The open block of code was forgotten, and its rest read as prose."""
    whole, rest = shown([CODE]), Watched()
    rest.markdown.resume(CODE[:at])
    rest.write(CODE[at:])
    rest.finish()
    assert rest.terminal.rows[1:] == whole.terminal.rows[CODE.count("\n", 0, at) + 1 :]
