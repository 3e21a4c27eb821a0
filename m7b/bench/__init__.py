"""What `m7b bench` measures and how that is told: runs, figures, formats. Runs no model and needs no torch.

Here are the names that its options take; the rest is imported when something is measured.
"""

from enum import StrEnum


class ReportFormat(StrEnum):
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
