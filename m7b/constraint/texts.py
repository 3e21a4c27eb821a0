"""Questions about strings that keep to patterns, answered by llguidance over single bytes."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from m7b.constraint.strings import TERMINALS, Strings, write_json, write_strings
from m7b.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


@lru_cache(maxsize=1024)
def has_strings(strings: Strings) -> bool:
    """Whether there is a string that keeps to all patterns."""
    if strings.longest is not None and strings.shortest > strings.longest:
        return False
    if not strings.patterns:
        return True
    matcher = _start(strings)
    return any(matcher.compute_bitmask()) and not matcher.is_error()


def matches(strings: Strings, text: str) -> bool:
    """Whether `text` keeps to all patterns."""
    matcher = _start(strings)
    data = list(write_json(text).encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def _start(strings: Strings) -> "LLMatcher":
    return _build_matcher(strings).deep_copy()


@lru_cache(maxsize=64)  # building one takes milliseconds, and enums ask for each of their values
def _build_matcher(strings: Strings) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    grammar = LLMatcher.grammar_from_lark(f"start: STRINGS\nSTRINGS: {write_strings(strings)}\n{TERMINALS}")
    limits = LLParserLimits(verbose_errors=False, precompute_large_lexemes=False)
    matcher = LLMatcher(_build_byte_tokenizer(), grammar, log_level=0, limits=limits)
    if matcher.is_error():
        reason = re.sub(r"^at \d+\(\d+\): | \d+ \| .*", "", " ".join(matcher.get_error().split()))
        raise UsageError(f"a pattern cannot be enforced: {reason}")
    return matcher


class _Bytes:
    """The attributes and the call that LLTokenizer expects of a tokenizer; each byte is a token."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@lru_cache(maxsize=1)
def _build_byte_tokenizer() -> "LLTokenizer":
    from llguidance import LLTokenizer

    return LLTokenizer(_Bytes(), slices=[])  # type: ignore[arg-type]
