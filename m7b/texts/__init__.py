"""Texts that ship with m7b, to evaluate models on."""

from importlib.resources import files

ENGLISH = "Alice's Adventures in Wonderland, chapters I and II (Lewis Carroll, 1865; public domain)"
"""What `english_text` is."""


def english_text() -> str:
    """22 kB of English prose in paragraphs."""
    return files(__package__).joinpath("alice.txt").read_text(encoding="utf-8")
