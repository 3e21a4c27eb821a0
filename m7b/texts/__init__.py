"""Texts that ship with m7b, to evaluate models on."""

ENGLISH = "Alice's Adventures in Wonderland, chapters I and II (Lewis Carroll, 1865; public domain)"
"""What `english_text` is."""


def english_text() -> str:
    """22 kB of English prose in paragraphs."""
    from importlib.resources import files  # not at every start of m7b

    return files(__package__).joinpath("alice.txt").read_text(encoding="utf-8")


TASKS = {
    "code": "a file of code, edited",
    "rewriting": "a letter, corrected",
    "summary": "a report, summed up with quotations",
    "json": "records in JSON after the first of them",
    "prose": "a story, which repeats nothing",
}
"""Prompts whose answers repeat more or less of them, by name."""


def read_task(name: str) -> tuple[str, str]:
    """The prompt of one of `TASKS`, and an answer to it."""
    from importlib.resources import files

    text = files(__package__).joinpath("drafts", f"{name}.txt").read_text(encoding="utf-8")
    prompt, _, answer = text.partition("%%%\n")
    return prompt, answer
