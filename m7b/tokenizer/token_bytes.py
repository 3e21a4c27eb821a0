"""The bytes that single ids stand for, also where they are but a part of a character."""

import re
from functools import cache

from m7b.tokenizer.base import Tokenizer

_UNDECODABLE = "\ufffd"
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes that ids of `tokenizer` add to a text in which they are not the first.

    Each id is decoded after a letter. Where it is only a part of a character, its piece names the bytes:
    `<0xE2>` in SentencePiece vocabularies, letters that stand for bytes in GPT-2's alphabet.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", bos=False)
        self._start = len(tokenizer.decode(self._anchor))
        self._alphabet = _build_byte_alphabet()

    def read(self, token: int) -> bytes:
        """The bytes of one id; none of a control id."""
        if self._tokenizer.is_control(token):
            return b""
        text = self._tokenizer.decode([*self._anchor, token])[self._start :]
        if _UNDECODABLE not in text:
            return text.encode()
        piece = self._tokenizer.piece(token)
        if (byte := read_byte_piece(piece)) is not None:
            return bytes([byte])
        if self._alphabet.keys() >= set(piece):
            return bytes(self._alphabet[letter] for letter in piece)
        return text.encode()


def read_byte_piece(piece: str) -> int | None:
    """The byte that a piece of SentencePiece such as `<0xE2>` stands for, None where it stands for none."""
    found = _BYTE_PIECE.fullmatch(piece)
    return int(found[1], 16) if found else None


@cache
def _build_byte_alphabet() -> dict[str, int]:
    """Build GPT-2's letters for bytes: visible Latin-1 stands for itself, other bytes count from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}
