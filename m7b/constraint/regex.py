"""Parse regular expressions of JSON schemas (ECMA-262) into trees. Knows nothing about JSON or grammars."""

import unicodedata
from dataclasses import dataclass

from m7b.errors import UsageError

LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]
"""Characters as sorted pairs of first and last code points that do not touch."""

_DIGITS: Ranges = ((0x30, 0x39),)
_WORDS: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_LETTERS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0, "a": 7}
_MAX_DEPTH = 50
_MAX_PARTS = 5_000  # of a pattern; each may take a millisecond later


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of these or of these properties (`L`, `Greek`, `^L`); with `is_negated` any other."""

    ranges: Ranges
    properties: tuple[str, ...] = ()
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    options: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` again and again, `most` times or without end."""

    item: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """What follows here begins with `item`; with `is_negated` it does not."""

    item: "Node"
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Edge:
    """The start of the text, or its end."""

    is_start: bool


Node = Chars | Sequence | Choice | Repeat | Look | Edge


def parse_regex(pattern: str) -> Node:
    """Parse a pattern.

    Raises:
        UsageError: it is wrong, or has parts that no regular language has.
    """
    parser = _Parser(pattern)
    node = parser.parse_choice()
    if parser.at < len(pattern):
        raise parser.fail("there is a ) too many")
    return node


def merge_ranges(ranges: Ranges) -> Ranges:
    """Sort ranges and join those that touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def invert_ranges(ranges: Ranges) -> Ranges:
    """All characters outside of `ranges`."""
    inverse, start = [], 0
    for low, high in merge_ranges(ranges):
        if start < low:
            inverse.append((start, low - 1))
        start = high + 1
    return (*inverse, (start, LAST)) if start <= LAST else tuple(inverse)


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.n_parts = 0
        self.depth = 0
        self.folds = self._skip("(?i)")

    def fail(self, reason: str) -> UsageError:
        """Make an error that shows the pattern."""
        shown = self.pattern if len(self.pattern) <= 60 else f"{self.pattern[:60]}…"
        return UsageError(f"the pattern {shown} cannot be enforced: {reason}")

    def parse_choice(self) -> Node:
        """Parse up to the end or the ) of the group."""
        options = [self._parse_sequence()]
        while self._skip("|"):
            options.append(self._parse_sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _parse_sequence(self) -> Node:
        items: list[Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            items.append(self._parse_repeat(self._parse_item()))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _parse_repeat(self, item: Node) -> Node:
        while bounds := self._parse_bounds():
            if isinstance(item, Look | Edge):
                raise self.fail("nothing to repeat")
            item = Repeat(item, *bounds)
            self._skip("?")  # lazy or greedy, the language is the same
        return item

    def _parse_bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._skip(sign):
                return bounds
        if not self._peek().startswith("{"):
            return None
        end = self.pattern.find("}", self.at)
        least, comma, most = self.pattern[self.at + 1 : max(end, 0)].partition(",")
        if not least.isdecimal() or not (most == "" or most.isdecimal()):
            return None  # { as a letter
        self.at = end + 1
        upper = int(most) if most else None if comma else int(least)
        if max(int(least), upper or 0) > 1_000_000 or (upper is not None and upper < int(least)):
            raise self.fail("it repeats too often")
        return int(least), upper

    def _parse_item(self) -> Node:
        self.n_parts += 1
        if self.n_parts > _MAX_PARTS:
            raise self.fail(f"it has more than {_MAX_PARTS} parts")
        letter = self.pattern[self.at]
        self.at += 1
        match letter:
            case "(":
                return self._parse_group()
            case "[":
                return self._parse_class()
            case "\\":
                return self._parse_escape()
            case ".":
                return Chars(invert_ranges(_LINE_ENDS))
            case "^":
                return Edge(True)
            case "$":
                return Edge(False)
            case "*" | "+" | "?":
                raise self.fail("nothing to repeat")
        return self._fold(((ord(letter), ord(letter)),))

    def _parse_group(self) -> Node:
        look = next((sign for sign in ("?=", "?!") if self._skip(sign)), None)
        if look is None and self._skip("?") and not self._skip(":"):
            self._skip("P")
            if self._peek()[:2] in {"<=", "<!"}:
                raise self.fail("lookarounds not supported: (?<")
            end = self.pattern.find(">", self.at)
            if not self._skip("<") or end < 0:
                raise self.fail(f"a group begins with (?{self._peek()[:1]}")
            self.at = end + 1
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.fail(f"its groups are nested deeper than {_MAX_DEPTH} levels")
        node = self.parse_choice()
        self.depth -= 1
        if not self._skip(")"):
            raise self.fail("a ) is missing")
        return node if look is None else Look(node, look == "?!")

    def _parse_class(self) -> Chars:
        is_negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        properties: tuple[str, ...] = ()
        while not self._skip("]"):
            if self.at >= len(self.pattern):
                raise self.fail("a ] is missing")
            low = self._parse_class_item()
            if isinstance(low, int) and self._peek()[:1] == "-" and self._peek()[1:2] not in {"]", ""}:
                self.at += 1
                high = self._parse_class_item()
                if not isinstance(high, int) or high < low:
                    raise self.fail("a range of letters is wrong")
                ranges.append((low, high))
            elif isinstance(low, int):
                ranges.append((low, low))
            else:
                ranges += low.ranges
                properties += low.properties
        found = self._fold(tuple(ranges))
        if properties:
            return Chars(found.ranges, properties, is_negated)
        return Chars(invert_ranges(found.ranges)) if is_negated else found

    def _parse_class_item(self) -> int | Chars:
        letter = self.pattern[self.at]
        self.at += 1
        if letter != "\\":
            return ord(letter)
        if self._skip("b"):
            return 8
        item = self._parse_escape()
        if not isinstance(item, Chars):
            raise self.fail("a class has no edges")
        is_one = len(item.ranges) == 1 and item.ranges[0][0] == item.ranges[0][1] and not item.properties
        return item.ranges[0][0] if is_one else item

    def _parse_escape(self) -> Node:
        letter = self.pattern[self.at : self.at + 1]
        self.at += 1
        if not letter:
            raise self.fail("it ends in \\")
        if letter.lower() in _CLASSES:
            ranges = _CLASSES[letter.lower()]
            return Chars(ranges if letter.islower() else invert_ranges(ranges))
        match letter:
            case "p" | "P":
                return self._parse_property(is_negated=letter == "P")
            case "A":
                return Edge(True)
            case "z" | "Z":
                return Edge(False)
            case "b" | "B":
                raise self.fail(f"lookarounds not supported: \\{letter}")
            case "x":
                return self._fold_code(self._parse_hex(2))
            case "u":
                return self._fold_code(self._parse_unicode())
            case "c":
                self.at += 1
                return self._fold_code(ord(self.pattern[self.at - 1 : self.at] or "@") % 32)
        if letter in "123456789k":
            raise self.fail("backreferences are not supported")
        return self._fold_code(_LETTERS.get(letter, ord(letter)))

    def _parse_property(self, *, is_negated: bool) -> Chars:
        braced = self._skip("{")
        end = self.pattern.find("}", self.at) if braced else self.at + 1
        name = self.pattern[self.at : end].replace("_", "") if end > self.at else ""
        if not name.replace("=", "").isalnum():
            raise self.fail("a property of characters has no name")
        self.at = end + 1 if braced else end
        return Chars((), (f"^{name}" if is_negated else name,))

    def _parse_unicode(self) -> int:
        if self._skip("{"):
            end = self.pattern.find("}", self.at)
            code = self._parse_hex(max(end - self.at, 0))
            self.at += 1
            return code
        code = self._parse_hex(4)
        if 0xD800 <= code < 0xDC00 and self._skip("\\u"):
            return 0x10000 + (code - 0xD800) * 0x400 + self._parse_hex(4) - 0xDC00
        return code

    def _parse_hex(self, n_digits: int) -> int:
        digits = self.pattern[self.at : self.at + n_digits]
        self.at += n_digits
        try:
            code = int(digits, 16)
        except ValueError:
            code = LAST + 1
        if code > LAST:
            raise self.fail("a number of a character is wrong")
        return code

    def _fold_code(self, code: int) -> Chars:
        return self._fold(((code, code),))

    def _fold(self, ranges: Ranges) -> Chars:
        """The characters of `ranges`, in both cases where the pattern begins with (?i)."""
        if self.folds:
            ascii_letters = [c for low, high in ranges for c in range(low, min(high, 0x7A) + 1)]
            swapped = [ord(chr(c).swapcase()) for c in ascii_letters if chr(c).isalpha()]
            ranges = (*ranges, *((c, c) for c in swapped))
        return Chars(merge_ranges(ranges))

    def _skip(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 3]


def has_property(character: str, name: str) -> bool:
    """Whether a character has a general category such as `L` or `Po`; `^` in front means the opposite."""
    negated = name.startswith("^")
    return unicodedata.category(character).startswith(name.removeprefix("^")) is not negated
