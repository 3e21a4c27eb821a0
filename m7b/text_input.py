"""Text that people hand in: bytes of a file, of stdin or of an argument. Knows nothing of what it means."""

import codecs
from pathlib import Path

from m7b.errors import UsageError

_MARKS = {  # longest first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The encodings that a byte order mark names, which Windows' programs write in front of text."""


def decode_text(name: str, data: bytes) -> str:
    """The text of `data`: UTF-8, unless a byte order mark says otherwise, which is no part of the text.

    Raises:
        UsageError: it is no text.
    """
    encoding = next((marked for mark, marked in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        written = encoding.removesuffix("-sig").upper()
        raise UsageError(
            f"{name} is not {written}: byte 0x{data[error.start]:02x} at offset {error.start}",
            hint="save it as UTF-8",
        ) from None


def read_text(file: Path) -> str:
    """The text in `file`.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    return decode_text(file.name, data)
