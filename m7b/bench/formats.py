"""A report as a table, Markdown, CSV or JSON. Knows the figures; knows nothing about terminals."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from m7b.bench import ReportFormat
from m7b.bench.claims import ClaimsReport
from m7b.bench.drafts import DraftsReport
from m7b.bench.figures import Change, Measurement, Ratio, Report

AnyReport = Report | ClaimsReport | DraftsReport


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, `text_columns` of which are left-aligned and come first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 0


def render(report: AnyReport, format: ReportFormat) -> str:
    """`report` in `format`, whole lines; CSV and JSONL have its rows alone."""
    match format:
        case ReportFormat.JSON:
            return json.dumps(report.as_json(), ensure_ascii=False) + "\n"
        case ReportFormat.JSONL:
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in report.rows())
        case ReportFormat.CSV:
            return _write_csv(report)
        case ReportFormat.MD:
            facts = "".join(f"- {label}: {text}\n" for label, text in _list_facts(report))
            return "\n".join([facts, *map(markdown, _make_tables(report))])
        case ReportFormat.TABLE:
            facts = "".join(f"{label:<14}{text}\n" for label, text in _list_facts(report))
            return "\n".join([facts, *map(align, _make_tables(report))])
        case _:
            assert_never(format)


def _write_csv(report: AnyReport) -> str:
    rows, text = report.rows(), io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(table: Table) -> str:
    """The table in Markdown."""
    rules = (":--" if n < table.text_columns else "--:" for n in range(len(table.columns)))
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (table.columns, tuple(rules), *table.rows))


def align(table: Table) -> str:
    """The table in columns, a line for the names and one for each row."""
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            f"{cell:<{width}}" if n < table.text_columns else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip() + "\n"

    return "".join(map(line, (table.columns, *table.rows)))


def _list_facts(report: AnyReport) -> Iterator[tuple[str, str]]:
    machine, model = report.machine, report.model
    yield "machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    origin = ", random weights" if model["random_weights"] else ""
    yield "model", f"{model['name']}{origin}, {model['parameters']:,} parameters, {model['weights']}"
    if isinstance(report, ClaimsReport):
        layers = f"{report.measured_layers} of {model['n_layers']} layers"
        yield "measured", f"decoding at a depth of {report.depth} in {layers}"
        return
    if isinstance(report, DraftsReport):
        yield "measured", "known answers, a token at a time and with guesses looked up in the text so far"
        return
    window = model["window"]
    seen = f"a window of {window}" if window else "full attention"
    yield "cache", f"{model['ctx_size']} tokens, {seen}"
    step, of = ("step", " a sequence") if report.is_batched else ("token", "")
    for row in {row.engine: row for row in report.results}.values():
        yield (
            row.engine,
            f"{row.weight_bytes:,} bytes of {row.weights} weights a {step}, "
            f"cache {row.kv_bytes // row.batch:,}{of}",
        )
    yield "load", f"{report.load_s:.2f} s"
    yield "peak memory", f"{report.peak_rss_bytes / (1 << 30):.2f} GiB"
    before, after = report.read_gbs
    yield "memory read", f"{before:.1f} GB/s before, {after:.1f} GB/s after"


def _make_tables(report: AnyReport) -> Iterator[Table]:
    if isinstance(report, ClaimsReport):
        yield _tabulate_claims(report)
        yield _tabulate_reach(report)
        return
    if isinstance(report, DraftsReport):
        yield _tabulate_drafts(report)
        return
    batch = ("batch",) if report.is_batched else ()
    yield _tabulate_speeds(report)
    if report.ratios:
        yield Table(
            ("against", "depth", *batch, "prefill", "in pairs", "decode", "in pairs"),
            tuple(
                (
                    r.peer,
                    *_place(report, r),
                    *map(_ratio, (r.prefill, r.prefill_paired, r.decode, r.decode_paired)),
                )
                for r in report.ratios
            ),
            text_columns=1,
        )
    if report.changes:
        yield Table(
            ("now over then", "depth", *batch, "prefill", "decode"),
            tuple(
                (c.engine, *_place(report, c), _ratio(c.prefill), _ratio(c.decode)) for c in report.changes
            ),
            text_columns=1,
        )


def _place(report: Report, row: Measurement | Ratio | Change) -> tuple[str, ...]:
    """The cells that say where it was measured: the depth, and the batch if there are any."""
    return (str(row.depth), str(row.batch)) if report.is_batched else (str(row.depth),)


def _tabulate_speeds(report: Report) -> Table:
    batch, each = (("batch",), ("each",)) if report.is_batched else ((), ())
    measured = ("tok/s", *each, "mean", "stdev", "first s", "p50 ms", "p95 ms", "GB/s", "limit %")
    columns = ("engine", "phase", "depth", *batch, *measured)
    rows = [cells for row in report.results for cells in _list_phases(report, row)]
    if len({row.engine for row in report.results}) == 1:
        return Table(columns[1:], tuple(cells[1:] for cells in rows), text_columns=1)
    return Table(columns, tuple(rows), text_columns=2)


def _list_phases(report: Report, row: Measurement) -> Iterator[tuple[str, ...]]:
    """A line for the prompts and a line for the tokens decoded, where they were measured."""
    place = _place(report, row)
    if row.prefill_tps is not None:
        spread = map(_figure, (row.prefill_tps_mean, row.prefill_tps_stdev))
        each = (_figure(row.prefill_tps / row.batch),) if report.is_batched else ()
        first = _figure(row.ttft_s, digits=3)
        yield (row.engine, "prefill", *place, _figure(row.prefill_tps), *each, *spread, first, "", "", "", "")
    if row.decode_tps is not None:
        spread = map(_figure, (row.decode_tps_mean, row.decode_tps_stdev))
        each = (_figure(row.decode_tps_per_sequence),) if report.is_batched else ()
        steps = (seconds and seconds * 1000 for seconds in (row.token_p50_s, row.token_p95_s))
        rest = map(_figure, (*steps, row.achieved_gbs, row.percent_of_limit))
        yield (row.engine, "decode", *place, _figure(row.decode_tps), *each, *spread, "", *rest)


def _tabulate_claims(report: ClaimsReport) -> Table:
    columns = ("claim", "context", "MiB", "without", "", "tok/s", "without", "")
    rows = (
        (
            claim.claim,
            str(claim.context),
            f"{claim.kv_bytes / (1 << 20):.1f}",
            f"{claim.kv_bytes_without / (1 << 20):.1f}",
            _ratio(claim.kv_ratio),
            _figure(claim.decode_tps),
            _figure(claim.decode_tps_without),
            _ratio(claim.decode_ratio),
        )
        for claim in report.claims
    )
    return Table(columns, tuple(rows), text_columns=1)


def _tabulate_reach(report: ClaimsReport) -> Table:
    columns = ("reach", "layers", "window", "tokens", "at the edge", "beyond")
    rows = (
        (
            "the end moves by",
            *map(str, (reach.layers, reach.window, reach.tokens)),
            f"{reach.moved_at_edge:.1e}",
            f"{reach.moved_beyond:.1e}",
        )
        for reach in report.reach
    )
    return Table(columns, tuple(rows), text_columns=1)


def _tabulate_drafts(report: DraftsReport) -> Table:
    columns = ("engine", "text", "tokens", "tok/s", "drafts", "", "drafted", "taken")
    rows = (
        (
            speed.engine,
            speed.text,
            str(speed.tokens),
            *map(_figure, (speed.decode_tps, speed.decode_tps_drafting)),
            _ratio(speed.ratio),
            *("-" if n is None else str(n) for n in (speed.drafted, speed.taken)),
        )
        for speed in report.speeds
    )
    return Table(columns, tuple(rows), text_columns=2)


def _figure(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.{(2 if value < 100 else 1) if digits is None else digits}f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
