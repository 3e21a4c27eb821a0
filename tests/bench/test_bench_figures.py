"""The figures of `m7b bench`: what is summed up from seconds, how it is written, and against what."""

import csv
import io
import json
from dataclasses import replace

import pytest

from m7b.bench import ReportFormat
from m7b.bench.claims import Claim, ClaimsReport
from m7b.bench.comparison import check_speed, compute_changes, read_run
from m7b.bench.figures import Change, Report, compare_in_turn, compute_p95, summarize
from m7b.bench.formats import render
from m7b.bench.plot import check_plot, draw
from m7b.bench.runs import Reads, Sample, Sweep, Work
from m7b.errors import OutOfResources, TooSlow, UsageError

READS = Reads("bfloat16", weight_bytes=1_000_000_000, kv_bytes=4096, kv_bytes_per_token=100, window=None)
WORK = Work(prompt_tokens=100, decode_tokens=4, depth=0)
MACHINE = {"cpu": "A CPU", "cores": 2, "threads": 2}
MODEL = {
    "name": "tiny | model",
    "random_weights": True,
    "parameters": 1234567,
    "n_layers": 2,
    "weights": "bfloat16",
    "window": 16,
    "ctx_size": 105,
}


def sample(prefill_s, step_s):
    return Sample(prefill_s, prefill_s and prefill_s + 0.5, tuple(step_s))


SAMPLES = [sample(1.0, [0.1] * 4), sample(2.0, [0.2] * 4), sample(4.0, [0.1, 0.3, 0.1, 0.3])]


def report_of(*rows, **changes_):
    made = Report(
        MACHINE, MODEL, 1.5, (10.0, 20.0), 1 << 30, rows or (summarize("m7b", WORK, SAMPLES, READS, 20.0),)
    )
    return replace(made, **changes_)


# statistics


def test_a_row_has_medians_means_and_the_deviation_of_the_sample():
    row = summarize("m7b", WORK, SAMPLES, READS, 20.0)
    assert (row.prefill_tps, row.prefill_tps_mean) == (50, pytest.approx(175 / 3))
    assert row.prefill_tps_stdev == pytest.approx(38.188, abs=1e-3)  # of 100, 50 and 25
    assert (row.decode_tps, row.decode_tps_mean) == (pytest.approx(5), pytest.approx(20 / 3))
    assert row.ttft_s == 2.5
    assert row.token_p50_s == pytest.approx(0.15)
    assert row.token_p95_s == pytest.approx(0.3)
    assert row.repetitions == 3


def test_the_limit_is_what_the_machine_reads_over_what_a_token_reads():
    row = summarize("m7b", WORK, SAMPLES, READS, 20.0)
    assert row.kv_read_bytes == 250  # 1, 2, 3 and 4 positions of 100 bytes
    assert row.achieved_gbs == pytest.approx(5 * 1.00000025)
    assert row.percent_of_limit == pytest.approx(25, rel=1e-5)


@pytest.mark.parametrize(
    ("depth", "tokens", "window", "positions"),
    [(2, 3, 4, 11 / 3), (0, 2, None, 1.5), (100, 2, 16, 16), (100, 2, None, 101.5), (9, 0, None, 0)],
)
def test_a_token_reads_the_positions_that_it_sees(depth, tokens, window, positions):
    reads = replace(READS, window=window, kv_bytes_per_token=600)
    assert reads.kv_read_bytes(Work(0, tokens, depth)) == round(positions * 600)


@pytest.mark.parametrize(
    ("work", "samples", "empty", "full"),
    [
        (Work(0, 4, 0), [sample(None, [0.1] * 4)], "prefill_tps", "decode_tps"),
        (Work(100, 0, 0), [sample(2.0, [])], "decode_tps", "prefill_tps"),
    ],
    ids=["no prompt", "nothing decoded"],
)
def test_what_was_not_measured_is_none(work, samples, empty, full):
    row = summarize("m7b", work, samples, READS, 20.0)
    assert getattr(row, empty) is getattr(row, f"{empty}_mean") is None
    assert getattr(row, full) is not None
    assert getattr(row, f"{full}_stdev") is None  # of one repetition
    assert all("50.0" in text or "10.0" in text for text in (render(report_of(row), f) for f in ReportFormat))


def test_the_95th_percentile_is_interpolated():
    assert compute_p95([1.0]) == 1
    assert compute_p95([float(n) for n in range(101)]) == 95


def test_ratios_are_of_medians_and_of_pairs():
    theirs = [sample(2.0, [0.2] * 4), sample(8.0, [0.2] * 4), sample(4.0, [0.8] * 4)]
    ratio = compare_in_turn("peer", WORK, SAMPLES, theirs)
    assert ratio.prefill == 2  # 50 over 25
    assert ratio.prefill_paired == 2  # of 2, 4 and 1
    assert ratio.decode == pytest.approx(1)  # 5 over 5
    assert ratio.decode_paired == pytest.approx(2)  # of 2, 1 and 4


def test_speeds_of_a_batch_are_those_of_all_sequences_together():
    row = summarize("m7b", replace(WORK, n_sequences=4), SAMPLES, READS, 20.0)
    assert (row.batch, row.prefill_tps) == (4, 200)  # 4 prompts of 100 tokens in 2 seconds
    assert (row.decode_tps, row.decode_tps_per_sequence) == (pytest.approx(20), pytest.approx(5))
    assert row.token_p50_s == pytest.approx(0.15)
    assert row.kv_bytes == 4 * READS.kv_bytes


def test_a_batch_reads_the_weights_once_a_step_and_keys_and_values_a_sequence():
    row = summarize("m7b", replace(WORK, n_sequences=4), SAMPLES, READS, 20.0)
    assert row.achieved_gbs == pytest.approx(5 * (1_000_000_000 + 4 * 250) / 1e9)


def test_a_sweep_has_each_batch_at_each_depth():
    works = Sweep(100, 4, (0, 64), repetitions=1, warmup=0, batches=(1, 8)).works
    assert [(work.n_sequences, work.depth) for work in works] == [(1, 0), (1, 64), (8, 0), (8, 64)]


# formats


BATCHED = tuple(summarize("m7b", replace(WORK, n_sequences=n), SAMPLES, READS, 20.0) for n in (1, 8))


def test_batches_are_told_of_where_there_are_any():
    ratios = tuple(compare_in_turn("peer", replace(WORK, n_sequences=n), SAMPLES, SAMPLES) for n in (1, 8))
    report = json.loads(render(report_of(*BATCHED, ratios=ratios), ReportFormat.JSON))
    assert [row["batch"] for row in report["results"]] == [1, 8]
    assert [row["batch"] for row in report["ratios"]] == [1, 8]
    assert report["results"][1]["decode_tps_per_sequence"] == pytest.approx(5)
    alone = json.loads(render(report_of(ratios=ratios[:1]), ReportFormat.JSON))
    assert not {"batch", "decode_tps_per_sequence"} & {*alone["results"][0], *alone["ratios"][0]}


def test_tables_have_a_line_for_each_batch():
    ratio = compare_in_turn("peer", replace(WORK, n_sequences=8), SAMPLES, SAMPLES)
    change = Change("m7b", 0, 8, 2.0, 3.0)
    written = render(report_of(*BATCHED, ratios=(ratio,), changes=(change,)), ReportFormat.MD)
    facts, speeds, ratios, changed = (block.splitlines() for block in written.split("\n\n"))
    assert "- m7b: 1,000,000,000 bytes of bfloat16 weights a step, cache 4,096 a sequence" in facts
    for table in (speeds, ratios, changed):
        assert len({line.count("|") for line in table}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:6]] for line in speeds]
    assert cells[0] == ["phase", "depth", "batch", "tok/s", "each"]
    assert cells[2:] == [
        ["prefill", "0", "1", "50.00", "50.00"],
        ["decode", "0", "1", "5.00", "5.00"],
        ["prefill", "0", "8", "400.0", "50.00"],
        ["decode", "0", "8", "40.00", "5.00"],
    ]
    assert "| peer | 0 | 8 | 1.00x | 1.00x | 1.00x | 1.00x |" in ratios
    assert "| m7b | 0 | 8 | 2.00x | 3.00x |" in changed


def test_json_is_the_report_with_a_flat_object_a_row():
    report = json.loads(render(report_of(), ReportFormat.JSON))
    assert report["machine"] == MACHINE
    assert report["model"] == MODEL
    assert report["read_gbs"] == {"before": 10.0, "after": 20.0}
    (row,) = report["results"]
    assert (row["depth"], row["prefill_tps"], row["kv_bytes"]) == (0, 50.0, 4096)
    assert "ratios" not in report


def test_jsonl_and_csv_have_the_rows_of_json():
    report = report_of(
        *(summarize("m7b", replace(WORK, depth=depth), SAMPLES, READS, 20.0) for depth in (0, 64))
    )
    rows = json.loads(render(report, ReportFormat.JSON))["results"]
    assert [json.loads(line) for line in render(report, ReportFormat.JSONL).splitlines()] == rows
    read = list(csv.DictReader(io.StringIO(render(report, ReportFormat.CSV))))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == read


def test_markdown_tables_have_as_many_cells_in_each_line():
    ratio = compare_in_turn("peer", WORK, SAMPLES, SAMPLES)
    written = render(report_of(ratios=(ratio,)), ReportFormat.MD)
    blocks = [block.splitlines() for block in written.split("\n\n")]
    assert len(blocks) == 3  # the facts, the speeds, the ratios
    for table in blocks[1:]:
        assert len({line.count("|") for line in table}) == 1
    assert "| peer | 0 | 1.00x | 1.00x | 1.00x | 1.00x |" in blocks[2]


def test_the_columns_of_a_table_line_up():
    table = render(report_of(), ReportFormat.TABLE).split("\n\n")[1].splitlines()
    depth_ends = table[0].index("depth") + len("depth")
    assert [line[depth_ends - 1] for line in table] == ["h", "0", "0"]


@pytest.mark.parametrize("format", ReportFormat)
def test_claims_are_written_in_every_format(format):
    claim = Claim("GQA", 32768, 1 << 20, 4 << 20, 4.0, 4.0, 2.0, 1.0, 2.0)
    written = render(ClaimsReport(MACHINE, MODEL, 1, 99, (claim,)), format)
    assert written.endswith("\n")
    assert ("4.00x" if format in (ReportFormat.TABLE, ReportFormat.MD) else "4.0") in written


# against an earlier run


@pytest.fixture
def old(tmp_path):
    file = tmp_path / "old.json"
    file.write_text(render(report_of(), ReportFormat.JSON), encoding="utf-8")
    return file


def test_a_change_is_the_speed_now_over_then(old):
    faster = summarize("m7b", WORK, [sample(1.0, [0.1] * 4)], READS, 20.0)
    (change,) = compute_changes([faster], read_run(old))
    assert (change.prefill, change.decode) == (pytest.approx(2), pytest.approx(2))


def test_only_the_same_work_is_compared(old):
    same, deeper = report_of().results[0], summarize("m7b", replace(WORK, depth=7), SAMPLES, READS, 20.0)
    assert [change.depth for change in compute_changes([deeper, same], read_run(old))] == [0]
    with pytest.raises(UsageError, match="nothing that this one measured") as error:
        compute_changes([deeper], read_run(old))
    assert "-p 100 -n 4 -d 0" in error.value.hint


def test_a_batch_is_compared_with_the_same_batch(tmp_path):
    file = tmp_path / "old.json"
    file.write_text(render(report_of(*BATCHED), ReportFormat.JSON), encoding="utf-8")
    slower = summarize("m7b", replace(WORK, n_sequences=8), [sample(4.0, [0.4] * 4)], READS, 20.0)
    found = compute_changes([slower], read_run(file))
    assert [(change.batch, change.prefill, change.decode) for change in found] == [
        (8, 0.5, pytest.approx(0.5))
    ]
    with pytest.raises(TooSlow, match="of m7b at depth 0 in a batch of 8 runs at"):
        check_speed(found, 0.6)
    with pytest.raises(UsageError) as error:
        compute_changes([replace(slower, batch=2)], read_run(file))
    assert "-p 100 -n 4 -d 0 --batch 1,8" in error.value.hint


def test_a_file_without_batches_is_of_single_sequences(old):
    assert [change.batch for change in compute_changes(BATCHED, read_run(old))] == [1]


def test_a_run_slower_than_allowed_is_refused_with_the_worst(old):
    slower = summarize("m7b", WORK, [sample(4.0, [0.2] * 4)], READS, 20.0)
    found = compute_changes([slower], read_run(old))
    check_speed(found, 0.5)
    with pytest.raises(TooSlow, match=r"prefill of m7b at depth 0 runs at 0\.500"):
        check_speed(found, 0.51)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no results"),
        (b'{"results": []}', "holds no results"),
        (b'{"results": {"a": 1}}', "holds no results"),
        (b'{"results": [1]}', "another shape"),
        (b'{"results": [{"engine": "m7b"}]}', "another shape"),
        (
            b'{"results": [{"engine": "m7b", "depth": 0, "prompt_tokens": 1, "decode_tokens": 1, '
            b'"prefill_tps": 0, "decode_tps": 1}]}',
            "another shape",
        ),
        (
            b'{"results": [{"engine": "m7b", "depth": 0, "prompt_tokens": 1, "decode_tokens": 1, '
            b'"prefill_tps": "fast", "decode_tps": NaN}]}',
            "another shape",
        ),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path, content, complaint):
    file = tmp_path / "old.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        read_run(file)


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_run(tmp_path / "old.json")


# plots


@pytest.mark.parametrize(("name", "head"), [("speed.svg", b"<?xml"), ("speed.PNG", b"\x89PNG")])
def test_a_plot_is_drawn_in_the_format_of_its_name(tmp_path, old, name, head):
    pytest.importorskip("matplotlib")
    report = report_of(
        *(summarize("m7b", replace(WORK, depth=depth), SAMPLES, READS, 20.0) for depth in (0, 64))
    )
    check_plot(tmp_path / name)
    draw(tmp_path / name, report, read_run(old))
    written = (tmp_path / name).read_bytes()
    assert written.startswith(head)
    if name.endswith("svg"):
        assert all(
            text in written.decode() for text in ("m7b before", "window of 16", "decode, tokens per second")
        )


def test_a_plot_has_a_line_for_each_batch(tmp_path):
    pytest.importorskip("matplotlib")
    draw(tmp_path / "speed.svg", report_of(*BATCHED), None)
    assert "m7b x 8" in (tmp_path / "speed.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "complaint"), [("a.pdf", "neither .png nor .svg"), ("no/a.svg", "no such folder")]
)
def test_a_plot_that_cannot_be_drawn_is_refused_beforehand(tmp_path, name, complaint):
    with pytest.raises(UsageError, match=complaint):
        check_plot(tmp_path / name)


def test_a_missing_matplotlib_is_told_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError, match="needs matplotlib") as error:
        check_plot(tmp_path / "a.svg")
    assert "m7b[plot]" in error.value.hint


def test_a_plot_that_cannot_be_written_says_so(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(OutOfResources, match="Is a directory"):
        draw(tmp_path / "a.svg", report_of(), None)
