"""The figures of `m7b bench`: what was measured, its statistics, its shapes on paper. Runs no model.

Here are the names that its options take; the rest is imported when something is measured.
"""

from enum import StrEnum


class Format(StrEnum):
    """How a report is written."""

    TABLE = "table"
    MD = "md"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"


class PeerName(StrEnum):
    """The programs that can be measured beside ours."""

    TRANSFORMERS = "transformers"
    LLAMA_CPP = "llama.cpp"
