"""Texts that ship with m7b, to evaluate models on."""

ENGLISH = "Alice's Adventures in Wonderland, chapters I and II (Lewis Carroll, 1865; public domain)"
"""What `english_text` is."""


def english_text() -> str:
    """22 kB of English prose in paragraphs."""
    from importlib.resources import files  # not at every start of m7b

    return files(__package__).joinpath("alice.txt").read_text(encoding="utf-8")
