"""The bytes of each id of any tokenizer, and the same vocabulary as llguidance needs it."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from m7b.tokenizer import TokenBytes, Tokenizer, read_byte_piece


def list_token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """List the bytes that each id adds to a text in which it is not the first; none for control ids."""
    token_bytes = TokenBytes(tokenizer)
    return [token_bytes.read(token) for token in range(tokenizer.vocab_size)]


def strips_space(tokenizer: Tokenizer, tokens: Sequence[bytes]) -> bool:
    """Whether decoding drops a space at the beginning of a text, as SentencePiece does."""
    spaced = next((token for token, text in enumerate(tokens) if re.fullmatch(rb" \w+", text)), None)
    return spaced is not None and not tokenizer.decode([spaced]).startswith(" ")


class Vocabulary:
    """The ids of a model as llguidance needs them.

    Args:
        tokenizer: gives the text of ids.
        vocab_size: the model's number of ids, which may exceed the tokenizer's.
        stop_ids: the ids that end an answer.
        control_ids: the control ids that a grammar names.

    Attributes:
        inner_ids: the ids that may stand before the end, a bit for each: texts, and those control ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_ids: frozenset[int],
        control_ids: frozenset[int] = frozenset(),
    ) -> None:
        from llguidance import LLTokenizer

        tokens = list_token_bytes(tokenizer)[:vocab_size]
        self.strips_space = strips_space(tokenizer, tokens)
        # SentencePiece never writes <0x41> for the A that it has a piece for, nor takes <0x20> for its space.
        byte_ids = {
            token for token in range(len(tokens)) if read_byte_piece(tokenizer.piece(token)) is not None
        }
        pieces = {text for token, text in enumerate(tokens) if token not in byte_ids}
        for token in byte_ids:
            if tokens[token] in pieces:
                tokens[token] = b""
        tokens += [b""] * (vocab_size - len(tokens))
        self.space_id = tokens.index(b" ") if b" " in tokens else None
        control_ids = frozenset(token for token in control_ids - stop_ids if token < vocab_size)
        self.inner_ids = _make_bits(
            token
            for token, text in enumerate(tokens)
            if (text and token not in stop_ids) or token in control_ids
        )
        self.stop_ids = _make_bits(stop_ids)
        self.n_bytes = -(-vocab_size // 32) * 4
        encode = _make_encoder(tokenizer, tuple(tokens), self.strips_space)
        for token in stop_ids | control_ids:
            tokens[token] = b"\xff" + f"<{token}>".encode()  # 0xFF marks ids that are no text
        self.backend = LLTokenizer(
            _Wrapper(tokens, sorted(stop_ids), sorted(control_ids), encode),  # type: ignore[arg-type]
            eos_token=sorted(stop_ids),
            slices=LLTokenizer.json_slices(),
        )


@lru_cache(maxsize=4)  # decoding every id takes a quarter of a second
def build_vocabulary(
    tokenizer: Tokenizer,
    vocab_size: int,
    stop_ids: frozenset[int],
    control_ids: frozenset[int] = frozenset(),
) -> Vocabulary:
    """Build the vocabulary of a model, once."""
    return Vocabulary(tokenizer, vocab_size, stop_ids, control_ids)


class _Wrapper:
    """The attributes and the call that LLTokenizer expects of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        tokens: list[bytes],
        stop_ids: list[int],
        control_ids: list[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = stop_ids + control_ids
        self.eos_token_id = stop_ids[0]
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


def _make_encoder(
    tokenizer: Tokenizer, tokens: Sequence[bytes], strips_space: bool
) -> Callable[[str], list[int]]:
    """Make a function that encodes the continuation of a text: without a space in front, and byte by byte.

    Where the tokenizer would change the text (SentencePiece turns U+2581 into a space), the function takes
    the longest pieces that fit.
    """
    head = tokenizer.encode("\n", bos=False) if strips_space else []  # no piece joins it with what follows
    ids = {text: token for token, text in enumerate(tokens) if text}
    longest = max(map(len, ids))

    def encode_greedily(text: bytes) -> Iterator[int]:
        while text:
            n = next((n for n in range(longest, 0, -1) if text[:n] in ids), 0)
            if n == 0:  # a byte that the vocabulary lacks
                return
            yield ids[text[:n]]
            text = text[n:]

    def encode(text: str) -> list[int]:
        found = tokenizer.encode("\n" + text if strips_space else text, bos=False)[len(head) :]
        exact = b"".join(tokens[token] for token in found) == text.encode()
        return found if exact else list(encode_greedily(text.encode()))

    return encode


def _make_bits(ids: Iterable[int]) -> int:
    """Make a number with one bit set for each of `ids`."""
    bits = 0
    for token in ids:
        bits |= 1 << token
    return bits
