"""What guesses at the next tokens save, as figures with them and without. Measures nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from m7b.bench.runs import Answered, KnownAnswer


@dataclass(frozen=True, slots=True)
class DraftSpeed:
    """Decoding of one text by one engine: medians of tokens per second, and the median of ratios in pairs."""

    engine: str
    text: str
    tokens: int
    decode_tps: float
    decode_tps_drafting: float
    ratio: float
    drafted: int | None
    taken: int | None


@dataclass(frozen=True, slots=True)
class DraftsReport:
    """All texts on one machine."""

    machine: dict[str, Any]
    model: dict[str, Any]
    speeds: tuple[DraftSpeed, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A flat object for each engine and text."""
        return [asdict(speed) for speed in self.speeds]

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"machine": self.machine, "model": self.model, "drafts": self.rows()}


def compute_draft_speed(
    engine: str, text: KnownAnswer, pairs: Sequence[tuple[Answered, Answered]]
) -> DraftSpeed:
    """The figures of answers that were decoded plainly and with guesses in turn."""
    n = len(text.answer) - 1
    plain, drafting = zip(*pairs, strict=True)
    return DraftSpeed(
        engine,
        text.name,
        n,
        decode_tps=n / median(each.seconds for each in plain),
        decode_tps_drafting=n / median(each.seconds for each in drafting),
        ratio=median(one.seconds / other.seconds for one, other in pairs),
        drafted=drafting[-1].drafted,
        taken=drafting[-1].taken,
    )
