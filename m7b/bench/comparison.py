"""A run against an earlier one: its file, checked, and how speeds have changed. Measures nothing."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m7b.bench.figures import Change, Measurement
from m7b.errors import TooSlow, UsageError

_KEYS = ("engine", "depth", "batch", "prompt_tokens", "decode_tokens")
_SPEEDS = ("prefill_tps", "decode_tps")


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """What `m7b bench -o json` wrote: the speeds of each row by engine, depth, batch and tokens.

    `cpu` and `model` say where and of what, empty where the file does not.
    """

    speeds: dict[tuple[Any, ...], tuple[float | None, float | None]]
    rows: tuple[dict[str, Any], ...]
    cpu: str
    model: str


def read_run(file: Path) -> EarlierRun:
    """The run in `file`.

    Raises:
        UsageError: there is none in it.
    """
    try:
        report = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="write it with: m7b bench -o json") from None
    except (ValueError, RecursionError):  # of JSON and of UTF-8
        raise _refuse(file, "is not JSON") from None
    rows = report.get("results") if isinstance(report, dict) else None
    if not isinstance(rows, list) or not rows:
        raise _refuse(file, "holds no results")
    rows = [{"batch": 1} | row if isinstance(row, dict) else row for row in rows]
    if not all(map(_is_row, rows)):
        raise _refuse(file, "holds results of another shape")
    cpu, model = _read_text(report, "machine", "cpu"), _read_text(report, "model", "name")
    return EarlierRun({_key(row): tuple(row[s] for s in _SPEEDS) for row in rows}, tuple(rows), cpu, model)


def compute_changes(results: Sequence[Measurement], earlier: EarlierRun) -> tuple[Change, ...]:
    """The speeds of `results` over those that `earlier` has for the same engine, depth, batch and tokens.

    Raises:
        UsageError: it has none of them.
    """
    found = []
    for row in results:
        then = earlier.speeds.get(tuple(getattr(row, key) for key in _KEYS))
        if then:
            now = (row.prefill_tps, row.decode_tps)
            found.append(Change(row.engine, row.depth, row.batch, *map(_divide, now, then)))
    if not found:
        measured = ", ".join(
            sorted({f"-p {row['prompt_tokens']} -n {row['decode_tokens']}" for row in earlier.rows})
        )
        depths = ",".join(str(depth) for depth in sorted({row["depth"] for row in earlier.rows}))
        batches = sorted({row["batch"] for row in earlier.rows})
        batch = "" if batches == [1] else f" --batch {','.join(map(str, batches))}"
        raise UsageError(
            "the earlier run has nothing that this one measured",
            hint=f"it was made with {measured} -d {depths}{batch}",
        )
    return tuple(found)


def check_speed(found: Sequence[Change], least: float) -> None:
    """Refuse a run that is slower than `least` times the earlier one, in any phase at any depth.

    Raises:
        TooSlow: with the worst of them.
    """
    ratios = [
        (ratio, f"{phase} of {change.engine} at depth {change.depth}{_name_batch(change.batch)}")
        for change in found
        for phase, ratio in (("prefill", change.prefill), ("decode", change.decode))
        if ratio is not None
    ]
    ratio, worst = min(ratios, default=(math.inf, ""))
    if ratio < least:
        raise TooSlow(f"{worst} runs at {ratio:.3f} times its earlier speed, --fail-under is {least}")


def _name_batch(n_sequences: int) -> str:
    return f" in a batch of {n_sequences}" if n_sequences > 1 else ""


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("engine"), str)
        and all(type(row.get(key)) is int for key in _KEYS[1:])
        and all(speed in row and _is_speed(row[speed]) for speed in _SPEEDS)
        and all(_is_speed(row.get(f"{speed}_stdev") or None) for speed in _SPEEDS)
    )


def _is_speed(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < math.inf)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEYS)


def _read_text(report: dict[str, Any], part: str, key: str) -> str:
    found = report.get(part)
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


def _divide(now: float | None, then: float | None) -> float | None:
    return now / then if now is not None and then is not None else None


def _refuse(file: Path, what: str) -> UsageError:
    return UsageError(f"{file}: {what}", hint="--compare takes what m7b bench -o json wrote")
