"""The script for a machine with a GPU, tried on the processor with a tiny model."""

import re
import subprocess
import sys

import pytest
import torch

from tests.device import measure


@pytest.fixture(scope="module")
def table():
    done = subprocess.run(
        [sys.executable, "-m", "tests.device.measure", "--device", "cpu", "--tiny"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_has_a_row_for_all_that_is_measured(table):
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    places = {tuple(row[:4]) for row in rows}
    expected = {
        (engine, quant, str(depth), str(batch))
        for engine in ("m7b", "transformers")
        for quant in ("bfloat16", "nf4")
        for depth in measure.DEPTHS[True]
        for batch in measure.BATCHES[True]
    }
    assert places == expected
    assert all(float(row[4].replace(",", "")) > 0 for row in rows)
    assert re.match(
        r"tiny, random weights, on .*: copies at [\d,]+ GB/s, multiplies at [\d.,]+ TFLOP/s", table
    )


def test_what_does_not_fit_is_a_row_of_the_table(monkeypatch):
    bench = measure.Bench("cpu", "instruct-v0.3", is_tiny=True)
    monkeypatch.setattr("m7b.runtime.placement.free_memory", lambda: 1 << 20)
    rows = list(bench.measure("bfloat16", 0))
    assert rows[0][0] == "m7b"
    assert rows[0][4] == "does not fit"
    assert [row[0] for row in rows[1:]] == ["transformers"] * 2, "the other engine is measured all the same"


def test_without_a_card_the_tests_of_one_are_skipped_with_the_reason():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "tests/device/test_device.py",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "no GPU that torch can use" in done.stdout
