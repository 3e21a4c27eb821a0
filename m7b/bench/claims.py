"""What the architecture claims, as figures with it and without it. Measures nothing."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Claim:
    """One idea of the architecture, with it and without it.

    `kv_bytes` are those of the whole model at `context`, and `kv_ratio` says how many times fewer they
    are. `allocated_ratio` counts the slots of a prefill chunk beside a window as well. Speeds are medians
    of decoding, None where nothing was decoded.
    """

    claim: str
    context: int
    kv_bytes: int
    kv_bytes_without: int
    kv_ratio: float
    allocated_ratio: float
    decode_tps: float | None
    decode_tps_without: float | None
    decode_ratio: float | None


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back `layers` with a `window` see, itself included: `tokens` = layers * (window - 1).

    `moved_at_edge` and `moved_beyond` say how far a log-probability moves when the token so far back changes,
    and the one before it.
    """

    layers: int
    window: int
    tokens: int
    moved_at_edge: float
    moved_beyond: float


@dataclass(frozen=True, slots=True)
class ClaimsReport:
    """All claims on one machine. Decoding was measured in `measured_layers` of the layers, at `depth`."""

    machine: dict[str, Any]
    model: dict[str, Any]
    measured_layers: int
    depth: int
    claims: tuple[Claim, ...]
    reach: tuple[Reach, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """A flat object for each claim of memory and speed."""
        return [asdict(claim) for claim in self.claims]

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "machine": self.machine,
            "model": self.model,
            "measured_layers": self.measured_layers,
            "depth": self.depth,
            "claims": self.rows(),
            "reach": [asdict(reach) for reach in self.reach],
        }
