"""From seconds to figures: one `Measurement` for each engine and work, and ratios. Measures nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median, quantiles, stdev
from typing import Any

from m7b.bench.runs import Reads, Sample, Work

_OF_BATCHES = ("batch", "decode_tps_per_sequence")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one engine did at one depth: tokens per second and seconds, None where nothing was measured.

    Speeds are those of all sequences of the `batch` together: medians, and `stdev` is that of the sample.
    `achieved_gbs` is what decoding must have read of weights, keys and values in a second, weights once for
    all sequences, and `percent_of_limit` its share of what this machine reads.
    """

    engine: str
    depth: int
    batch: int
    prompt_tokens: int
    decode_tokens: int
    repetitions: int
    prefill_tps: float | None
    prefill_tps_mean: float | None
    prefill_tps_stdev: float | None
    ttft_s: float | None
    decode_tps: float | None
    decode_tps_mean: float | None
    decode_tps_stdev: float | None
    decode_tps_per_sequence: float | None
    token_p50_s: float | None
    token_p95_s: float | None
    weights: str
    weight_bytes: int
    kv_bytes: int
    kv_read_bytes: int
    achieved_gbs: float | None
    percent_of_limit: float | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster than a peer we were at one depth: of the medians, and the median of the pairs."""

    peer: str
    depth: int
    batch: int
    prefill: float | None
    prefill_paired: float | None
    decode: float | None
    decode_paired: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """How many times faster an engine is than in an earlier run, None where one of them measured nothing."""

    engine: str
    depth: int
    batch: int
    prefill: float | None
    decode: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. `read_gbs` is what the machine read before and after it."""

    machine: dict[str, Any]
    model: dict[str, Any]
    load_s: float
    read_gbs: tuple[float, float]
    peak_rss_bytes: int
    results: tuple[Measurement, ...]
    ratios: tuple[Ratio, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def is_batched(self) -> bool:
        """Whether several sequences ran together anywhere; else nothing is told of batches."""
        return any(result.batch > 1 for result in self.results)

    def rows(self) -> list[dict[str, Any]]:
        """A flat object for each engine, batch and depth."""
        return [self._as_row(result) for result in self.results]

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        before, after = self.read_gbs
        report: dict[str, Any] = {
            "machine": self.machine,
            "model": self.model,
            "load_s": self.load_s,
            "read_gbs": {"before": before, "after": after},
            "peak_rss_bytes": self.peak_rss_bytes,
            "results": self.rows(),
        }
        if self.ratios:
            report["ratios"] = [self._as_row(ratio) for ratio in self.ratios]
        if self.changes:
            report["changes"] = [self._as_row(change) for change in self.changes]
        return report

    def _as_row(self, value: "Measurement | Ratio | Change") -> dict[str, Any]:
        row = asdict(value)
        return row if self.is_batched else {key: row[key] for key in row if key not in _OF_BATCHES}


def summarize(
    engine: str, work: Work, samples: Sequence[Sample], reads: Reads, limit_gbs: float
) -> Measurement:
    """The figures of `samples`, against a memory that is read at `limit_gbs`."""
    prefill, decode = compute_speeds(work, samples)
    steps = [seconds for sample in samples for seconds in sample.step_s]
    ttft = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    kv_read, batch = reads.kv_read_bytes(work), work.n_sequences
    achieved = median(decode) * (reads.weight_bytes / batch + kv_read) / 1e9 if decode else None
    return Measurement(
        engine=engine,
        depth=work.depth,
        batch=batch,
        prompt_tokens=work.prompt_tokens,
        decode_tokens=work.decode_tokens,
        repetitions=len(samples),
        prefill_tps=median(prefill) if prefill else None,
        prefill_tps_mean=mean(prefill) if prefill else None,
        prefill_tps_stdev=stdev(prefill) if len(prefill) > 1 else None,
        ttft_s=median(ttft) if ttft else None,
        decode_tps=median(decode) if decode else None,
        decode_tps_mean=mean(decode) if decode else None,
        decode_tps_stdev=stdev(decode) if len(decode) > 1 else None,
        decode_tps_per_sequence=median(decode) / batch if decode else None,
        token_p50_s=median(steps) if steps else None,
        token_p95_s=compute_p95(steps) if steps else None,
        weights=reads.weights,
        weight_bytes=reads.weight_bytes,
        kv_bytes=reads.kv_bytes * batch,
        kv_read_bytes=kv_read,
        achieved_gbs=achieved,
        percent_of_limit=achieved / limit_gbs * 100 if achieved is not None else None,
    )


def compare_in_turn(peer: str, work: Work, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Ratio:
    """How `ours` compare with `theirs`, which ran in turn."""
    our_prefill, our_decode = compute_speeds(work, ours)
    their_prefill, their_decode = compute_speeds(work, theirs)
    prefill, prefill_paired = _divide(our_prefill, their_prefill)
    decode, decode_paired = _divide(our_decode, their_decode)
    return Ratio(peer, work.depth, work.n_sequences, prefill, prefill_paired, decode, decode_paired)


def compute_speeds(work: Work, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Tokens per second of each repetition, in all sequences: of prompts, and decoded."""
    n_prompt, n = work.prompt_tokens * work.n_sequences, work.n_sequences
    prefill = [n_prompt / sample.prefill_s for sample in samples if sample.prefill_s is not None]
    return prefill, [n * len(sample.step_s) / sum(sample.step_s) for sample in samples if sample.step_s]


def compute_p95(values: Sequence[float]) -> float:
    """The value that 95 % of `values` do not exceed, interpolated between two of them."""
    return quantiles(values, n=100, method="inclusive")[94] if len(values) > 1 else values[0]


def _divide(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float | None, float | None]:
    if not ours or not theirs:
        return None, None
    paired = [our / their for our, their in zip(ours, theirs, strict=True)]
    return median(ours) / median(theirs), median(paired)
