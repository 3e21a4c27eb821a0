"""`m7b bench` from its options to its report, what it runs, and what it refuses."""

import csv
import io
import json
import os
import random
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16

from m7b.bench.runs import Work, repeat
from m7b.errors import OutOfResources
from m7b.generation import FinishReason, PromptProgress, SamplingParams, Step
from m7b.progress import run_with_progress
from m7b.runtime import machine
from m7b.runtime.bench import claims as claims_module
from m7b.runtime.bench import speeds
from m7b.runtime.bench.claims import count_fitting_layers, pair_shapes
from m7b.runtime.bench.measure import EngineRunner, fill, load_runner, peak_rss, reset_peak_rss
from m7b.runtime.bench.reach import measure_reach
from m7b.runtime.bench.together import decode_together, prefill_together
from m7b.runtime.bench.weights import count_weight_bytes
from m7b.runtime.cache import RollingKVCache, visible
from m7b.runtime.checkpoints.random import cut, random_checkpoint
from m7b.runtime.loader import EngineOptions, load_engine
from m7b.runtime.model.config import ModelConfig
from m7b.variants import VARIANTS
from tests.support.checkpoints import main_row
from tests.support.tiny import CONFIG, WINDOW, assert_refused, call, write_tiny

SMALL = replace(CONFIG, n_layers=3, n_heads=8)
QUICK = ("-p", 8, "-n", 4, "-r", 2)


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch):
    """No test waits for the probe; it finds 20 GB/s, then 40."""
    found = []
    monkeypatch.setattr(machine, "read_bandwidth", lambda threads=None: found.append(0) or 20.0 * len(found))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A whole checkpoint with a window of 16 and a context of 256."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def engine_of(config=SMALL, checkpoint=None, **options):
    loading = load_engine(checkpoint or random_checkpoint("small", config), EngineOptions(**options))
    while True:
        try:
            next(loading)
        except StopIteration as done:
            return done.value


# random weights


def test_random_weights_have_the_shape_and_spread_of_a_models_own():
    checkpoint = random_checkpoint("small", SMALL)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == SMALL.tensor_shapes()
    assert checkpoint.n_bytes == 2 * SMALL.n_params
    for name, shape in SMALL.tensor_shapes().items():
        tensor = checkpoint.read(name)
        assert (tensor.shape, tensor.dtype) == (shape, torch.bfloat16)
        if len(shape) == 1:
            assert (tensor == 1).all()
        else:
            assert tensor.float().std() == pytest.approx(0.02, rel=0.1)


def test_random_weights_are_the_same_each_time_and_differ_from_each_other():
    first, again = random_checkpoint("a", SMALL), random_checkpoint("b", SMALL)
    other = random_checkpoint("a", SMALL, seed=1)
    wq, wo = "layers.0.attention.wq.weight", "layers.0.attention.wo.weight"
    assert torch.equal(first.read(wq), again.read(wq))
    assert not torch.equal(first.read(wq), other.read(wq))
    assert not torch.equal(first.read(wq).flatten(), first.read(wo).flatten())


@pytest.mark.parametrize(("n", "start"), [(5, 4), (0, 1), (3, 0), (10, 2), (2, 100)])
def test_a_tensor_is_cut_from_the_block_without_end(n, start):
    block = torch.tensor([10.0, 11, 12])
    assert cut(block, n, start).tolist() == [10.0 + (start + i) % 3 for i in range(n)]


# depth


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("depth", [0, 1, 4, 16, 17, 100])
def test_a_filled_cache_stands_where_a_prompt_would_leave_it(window, depth):
    config = replace(SMALL, sliding_window=window)
    read, filled = (engine_of(config, prefill_chunk=16) for _ in range(2))
    if depth:
        list(read.generate([1] * depth, SamplingParams(max_tokens=1, temperature=0)))
    fill(filled.cache, filled.rows.main, depth)
    rows = [main_row(read), main_row(filled)]
    assert rows[0].length == rows[1].length == depth
    for length in (depth, depth // 2):
        assert rows[0].holds(length) == rows[1].holds(length)


def test_filling_leaves_no_two_layers_heads_or_positions_alike():
    devices = ["cpu"] * SMALL.n_layers
    cache = RollingKVCache(SMALL, prefill_chunk=16, dtype=torch.float32, devices=devices)
    row = cache.add_row(64)
    fill(cache, row, 40)
    rows = torch.cat([keys[:, :40].reshape(-1, SMALL.head_dim) for keys in cache[row].keys])
    assert torch.unique(rows, dim=0).shape[0] == len(rows) == 40 * SMALL.n_layers * SMALL.n_kv_heads
    assert rows.std() == pytest.approx(1, rel=0.1)


def test_an_answer_at_a_depth_reads_the_prompt_alone():
    engine = engine_of()
    EngineRunner(engine).prepare(50)
    first, *_ = engine.generate([1] * 50 + [2, 3], SamplingParams(max_tokens=1, temperature=0))
    assert (first.reused, first.total) == (50, 52)


def test_after_a_benchmark_the_engine_answers_as_before():
    engine, params = engine_of(), SamplingParams(max_tokens=8, temperature=0)
    ids = random.Random(0).choices(range(SMALL.vocab_size), k=30)
    before = [event.token for event in engine.generate(ids, params) if hasattr(event, "token")]
    repeat(EngineRunner(engine), Work(5, 5, 40))
    engine.forget()
    assert [event.token for event in engine.generate(ids, params) if hasattr(event, "token")] == before


@pytest.mark.parametrize("window", [None, 16])
def test_each_phase_starts_at_the_depth(window):
    engine = engine_of(replace(SMALL, sliding_window=window), prefill_chunk=16)
    runner = EngineRunner(engine)
    for depth in (0, 40, 40, 7):
        runner.prepare(depth)
        assert main_row(engine).length == depth
        runner.prefill(20)
        assert main_row(engine).length == depth + 20
        runner.prepare(depth)
        assert len(runner.decode(6)) == 6
        assert main_row(engine).length == depth + 6  # the last token is chosen, not read


# several sequences together


class FakeSequence:
    """Answers as many tokens as it is let to, once it has read its prompt."""

    def __init__(self, ids, params):
        self.ids, self.n_left, self.is_done, self.events = ids, params.max_tokens, False, []

    def advance(self, n_tokens):
        self.events.append(PromptProgress(len(self.ids), len(self.ids), 0))
        for _ in range(min(n_tokens, self.n_left)):
            self.n_left -= 1
            self.events.append(Step(1, None, None if self.n_left else FinishReason.LENGTH))
        self.is_done = self.n_left == 0

    def take(self):
        events, self.events = self.events, []
        return events


class FakeBatchingEngine:
    """Lets each sequence have so many tokens a step, by its place among those submitted, and counts steps."""

    def __init__(self, *tokens_a_step):
        self.tokens_a_step, self.sequences, self.n_steps = tokens_a_step, [], 0

    def submit(self, ids, params, *, is_exact):
        self.sequences.append(FakeSequence(ids, params))
        return self.sequences[-1]

    def step(self):
        self.n_steps += 1
        running = [one for one in self.sequences if not one.is_done]
        for n, sequence in enumerate(running):
            sequence.advance(self.tokens_a_step[n % len(self.tokens_a_step)])


@pytest.mark.parametrize(
    ("tokens_a_step", "n_steps"),
    [((1,), 6), ((1, 2), 6), ((3,), 2), ((1, 0), 12)],
    ids=["in step", "one is ahead", "three at once", "one waits for the other"],
)
def test_sequences_together_have_a_time_for_every_token(tokens_a_step, n_steps):
    engine = FakeBatchingEngine(*tokens_a_step)
    seconds = decode_together(engine, [[1, 2], [3, 4]], 6)
    assert (len(seconds), engine.n_steps) == (6, n_steps)
    assert min(seconds) > 0


def test_prompts_together_are_timed_to_the_last_of_them():
    engine = FakeBatchingEngine(1)
    read, chosen = prefill_together(engine, [[1, 2], [3, 4], [5, 6]])
    assert 0 < read <= chosen
    assert [sequence.ids for sequence in engine.sequences] == [[1, 2], [3, 4], [5, 6]]


def test_no_two_sequences_of_a_repetition_begin_alike(monkeypatch):
    """An engine reads a common beginning once, which would not be the work that was asked for."""
    submitted, engine = [], engine_of()
    submit = engine.submit
    monkeypatch.setattr(
        engine, "submit", lambda ids, *given, **named: submitted.append(ids) or submit(ids, *given, **named)
    )
    repeat(EngineRunner(engine), Work(5, 3, 0, n_sequences=4))
    prompts, last = submitted[:4], submitted[4:]
    assert {len(ids) for ids in prompts} == {5}
    assert {len(ids) for ids in last} == {1}
    assert len({ids[0] for ids in prompts}) == len({ids[0] for ids in last}) == 4


# what is read


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_reads_every_weight_but_the_embedding(tied):
    config = replace(SMALL, tied_embeddings=tied)
    n_read = config.n_params if tied else config.n_params - config.vocab_size * config.dim
    assert count_weight_bytes(engine_of(config, dtype="float32").model) == 4 * (n_read + config.dim)


@pytest.mark.parametrize(("quant", "bits"), [("q8_0", 8.5), ("q4_0", 4.5), ("nf4", None)])
def test_a_quantized_model_reads_what_its_format_takes(quant, bits):
    if bits is None:  # scales of 16 bits where the processor multiplies bfloat16, else of 32
        bits = 4.25 if has_avx512bf16() else 4.5
    config = replace(SMALL, vocab_size=128)  # rows in panels of 16
    n_norm = (2 * config.n_layers + 1) * config.dim
    n_linear = config.n_params - n_norm - config.vocab_size * config.dim
    runner = EngineRunner(engine_of(config, quant=quant), quant)
    assert runner.reads.weight_bytes == n_linear * bits / 8 + 2 * (n_norm + config.dim)
    assert runner.reads.weights == quant


def test_the_bytes_of_the_cache_are_those_of_the_engine():
    runner = EngineRunner(engine_of(replace(SMALL, sliding_window=16), prefill_chunk=8, ctx_size=100))
    assert runner.reads.kv_bytes_per_token == SMALL.cache_bytes_per_token(2)
    assert runner.reads.kv_bytes == 23 * SMALL.cache_bytes_per_token(2)
    assert runner.reads.window == 16


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux forgets a peak")
def test_the_peak_of_memory_is_that_since_it_was_reset():
    big = torch.ones(64 << 20, dtype=torch.uint8)
    assert peak_rss() >= big.nbytes
    high = peak_rss()
    del big
    reset_peak_rss()
    assert peak_rss() < high - (32 << 20)


# the command


def test_json_has_machine_and_results_with_every_figure(tiny):
    ran = call("bench", "-m", tiny, *QUICK, "-d", "30,0", "-o", "json", "--threads", 1)
    assert (ran.code, ran.err) == (0, "")
    report = ran.answer
    assert report["machine"]["threads"] == 1
    assert report["model"]["window"] == WINDOW
    assert report["read_gbs"] == {"before": 20.0, "after": 40.0}
    assert report["load_s"] > 0
    assert report["peak_rss_bytes"] > 1 << 20
    assert [row["depth"] for row in report["results"]] == [0, 30]
    for row in report["results"]:
        assert (row["prompt_tokens"], row["decode_tokens"], row["repetitions"]) == (8, 4, 2)
        assert all(row[key] > 0 for key in row if key.endswith(("_tps", "_tps_mean", "_s", "_bytes", "_gbs")))
        assert row["token_p50_s"] <= row["token_p95_s"]
        read = row["weight_bytes"] + row["kv_read_bytes"]
        assert row["achieved_gbs"] == pytest.approx(row["decode_tps"] * read / 1e9)
        assert row["percent_of_limit"] == pytest.approx(row["achieved_gbs"] / 40 * 100)


def test_the_window_of_the_options_is_the_one_that_runs(tiny):
    for window, expected in (("off", None), ("8", 8)):
        report = call("bench", "-m", tiny, *QUICK, "-d", 100, "--window", window, "-o", "json").answer
        assert report["model"]["window"] == expected
        per_token = report["results"][0]["kv_read_bytes"] / (expected or 102.5)
        assert per_token == 2 * 2 * 2 * 4 * 4  # keys and values, layers, kv heads, head_dim, float32


@pytest.mark.parametrize("format", ["table", "md", "csv", "jsonl"])
def test_every_format_has_both_depths(tiny, format):
    ran = call("bench", "-m", tiny, *QUICK, "-d", "0,20", "-o", format)
    assert (ran.code, ran.err) == (0, "")
    match format:
        case "csv":
            assert [row["depth"] for row in csv.DictReader(io.StringIO(ran.out))] == ["0", "20"]
        case "jsonl":
            assert [row["depth"] for row in ran.answers] == [0, 20]
        case _:
            cells = [line.replace("|", " ").split()[:2] for line in ran.out.splitlines()]
            assert [cell for cell in cells if cell[:1] in (["prefill"], ["decode"])] == [
                ["prefill", "0"],
                ["decode", "0"],
                ["prefill", "20"],
                ["decode", "20"],
            ]


def test_random_weights_need_no_files(monkeypatch, tmp_path):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    ran = call("bench", "--random-weights", "-p", 2, "-n", 1, "-d", 0, "-r", 1, "--warmup", 0, "-o", "json")
    assert ran.code == 0, ran.err
    assert ran.answer["model"]["random_weights"]
    assert ran.answer["model"]["parameters"] == ModelConfig.of_variant(VARIANTS["demo"]).n_params
    assert list(tmp_path.iterdir()) == []


def test_random_weights_take_the_shape_of_a_checkpoint_too(tiny):
    report = call("bench", "-m", tiny, "--random-weights", *QUICK, "-d", 0, "-o", "json").answer
    assert report["model"]["random_weights"]
    assert report["model"]["window"] == WINDOW


@pytest.mark.parametrize(
    ("options", "none", "some"),
    [(("-p", 0), "prefill_tps", "decode_tps"), (("-n", 0), "decode_tps", "ttft_s")],
)
def test_a_phase_of_no_tokens_is_left_out(tiny, options, none, some):
    row = call("bench", "-m", tiny, *QUICK, *options, "-d", 0, "-o", "json").answer["results"][0]
    assert row[none] is None
    assert row[some] > 0


# against an earlier run


@pytest.fixture
def old(tiny, tmp_path):
    """A function that writes an earlier run, so many times as fast as this machine is."""

    def write(factor):
        report = call("bench", "-m", tiny, *QUICK, "-d", 0, "-o", "json").answer
        for row in report["results"]:
            row["prefill_tps"], row["decode_tps"] = row["prefill_tps"] * factor, row["decode_tps"] * factor
        file = tmp_path / "old.json"
        file.write_text(json.dumps(report), encoding="utf-8")
        return file

    return write


def test_an_earlier_run_is_compared_with_ratios(tiny, old):
    file = old(1)
    then = json.loads(file.read_text())["results"][0]
    report = call("bench", "-m", tiny, *QUICK, "-d", 0, "-o", "json", "--compare", file).answer
    (change,), (row,) = report["changes"], report["results"]
    assert change["decode"] == pytest.approx(row["decode_tps"] / then["decode_tps"])
    assert change["prefill"] == pytest.approx(row["prefill_tps"] / then["prefill_tps"])


def test_a_run_a_million_times_slower_exits_with_8_after_its_report(tiny, old):
    ran = call("bench", "-m", tiny, *QUICK, "-d", 0, "--compare", old(1e6), "--fail-under", 0.5)
    assert ran.code == 8
    assert "now over then" in ran.out
    assert ran.err.startswith("m7b: ")
    assert "--fail-under is 0.5" in ran.err


def test_a_run_a_million_times_faster_passes(tiny, old):
    ran = call("bench", "-m", tiny, *QUICK, "-d", 0, "--compare", old(1e-6), "--fail-under", 0.5)
    assert (ran.code, ran.err) == (0, "")


def test_runs_of_another_machine_or_model_are_told_of(tiny, old):
    file = old(1)
    file.write_text(file.read_text().replace(json.loads(file.read_text())["machine"]["cpu"], "Another CPU"))
    ran = call("bench", "-m", tiny, *QUICK, "-d", 0, "--compare", file)
    assert ran.code == 0
    assert "another machine: Another CPU" in ran.err


@pytest.mark.parametrize("format", ["table", "md", "csv", "json", "jsonl"])
def test_batches_are_written_in_every_format(tiny, format):
    ran = call("bench", "-m", tiny, *QUICK, "-d", 0, "--batch", "4,1", "-o", format)
    assert (ran.code, ran.err) == (0, "")
    match format:
        case "csv":
            assert [row["batch"] for row in csv.DictReader(io.StringIO(ran.out))] == ["1", "4"]
        case "json":
            one, four = ran.answer["results"]
            assert (one["batch"], four["batch"]) == (1, 4)
            assert four["decode_tps_per_sequence"] == pytest.approx(four["decode_tps"] / 4)
            assert four["kv_bytes"] == 4 * one["kv_bytes"]
        case "jsonl":
            assert [row["batch"] for row in ran.answers] == [1, 4]
        case _:
            cells = [line.replace("|", " ").split()[:3] for line in ran.out.splitlines()]
            assert [cell[2] for cell in cells if cell[:1] in (["prefill"], ["decode"])] == list("1144")


def test_a_plot_is_written_beside_the_report(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    ran = call("bench", "-m", tiny, *QUICK, "-d", "0,20", "--plot", tmp_path / "speed.svg")
    assert ran.code == 0, ran.err
    assert f"window of {WINDOW}" in (tmp_path / "speed.svg").read_text(encoding="utf-8")


# what is refused


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("-p", 0, "-n", 0), ["nothing to measure"]),
        (("-d", "0,x"), ["--depths", "'x'", "-d 0,4096"]),
        (("-d", ""), ["--depths"]),
        (("-d", "-1"), ["--depths", "-1"]),
        (("--batch", "0"), ["--batch", "0 is not from 1 to 256", "--batch 1,2,4,8,16"]),
        (("--batch", "1,many"), ["--batch", "'many'"]),
        (("--claims", "--batch", "2"), ["--claims runs alone"]),
        (("-r", 0), ["-r"]),
        (("-p", "many"), ["-p", "'many'"]),
        (("--fail-under", 0.9), ["--compare OLD.json"]),
        (("--fail-under", 0), ["--fail-under"]),
        (("--compare", "nowhere.json"), ["nowhere.json", "No such file"]),
        (("--plot", "speed.pdf"), [".png", ".svg"]),
        (("--claims", "--peer", "transformers"), ["--claims runs alone"]),
        (("--claims", "-n", 0), ["nothing to measure"]),
        (("--claims", "--device", "cuda"), ["on the CPU"]),
        (("--peer", "llama.cpp", "--device", "cuda"), ["does not run on cuda"]),
        (("--peer", "transformers", "--device", "auto"), ["does not run on auto"]),
        (("--claims", "--window", 256), ["256"]),
        (("-o", "xml"), ["xml"]),
        (("--quant", "q3"), ["q3"]),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(tiny, options, fragments):
    assert_refused(call("bench", "-m", tiny, *options), 2, *fragments)


def test_a_depth_beyond_the_context_is_refused_with_the_figures(tiny):
    ran = call("bench", "-m", tiny, "-p", 100, "-n", 4, "-d", "0,200")
    assert_refused(ran, 6, "depth of 200", "301", "has 256", "lower -d")


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("n_sequences", [2, 5])
def test_sequences_together_start_at_the_depth(window, n_sequences):
    engine = engine_of(replace(SMALL, sliding_window=window), prefill_chunk=16)
    runner = EngineRunner(engine)
    for depth in (40, 0, 40):
        runner.prepare(depth, n_sequences)
        runner.prefill(20)
        lengths = sorted(len(held.ids) for held in engine.rows.list_held())
        assert lengths[-n_sequences:] == [depth + 20] * n_sequences
        runner.prepare(depth, n_sequences)
        assert len(runner.decode(6)) == 6


def test_a_batch_whose_caches_memory_cannot_hold_is_refused(tiny, monkeypatch):
    def load_with_little_left(*model):
        runner = yield from load_runner(*model)
        left = SimpleNamespace(available=1 << 10, total=1 << 30)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: left)
        return runner

    monkeypatch.setattr(speeds, "load_runner", load_with_little_left)
    assert_refused(
        call("bench", "-m", tiny, *QUICK, "-d", 0, "--batch", 256), 5, "the cache of 256 sequences"
    )


def test_a_model_that_memory_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 28, total=1 << 30))
    assert_refused(call("bench", "--random-weights", "--variant", "base-v0.1"), 5, "MiB are free")


def test_a_device_that_is_not_here_is_refused(tiny):
    missing = "mps" if torch.cuda.is_available() else "cuda"
    assert_refused(call("bench", "-m", tiny, *QUICK, "-d", 0, "--device", missing), 5, "no device", missing)


def test_speeds_of_a_device_are_those_of_its_memory_and_its_arithmetic():
    assert machine.copy_bandwidth("cpu", seconds=0.01) > 0.1
    assert machine.multiply_rate("cpu", torch.float32, side=64, seconds=0.01) > 0


# claims


def test_the_claims_of_the_paper_are_4_and_8_times_fewer_bytes(monkeypatch):
    """The model is Mistral 7B with vectors of 64 in place of 4096, its heads and positions as they are."""
    small = replace(
        ModelConfig.of_variant(VARIANTS["base-v0.1"]), dim=64, hidden_dim=64, n_layers=1, vocab_size=96
    )
    monkeypatch.setattr(ModelConfig, "of_variant", classmethod(lambda cls, variant: small))
    report = call("bench", "--claims", "-n", 2, "-r", 1, "-o", "json").answer
    grouped, window = report["claims"]
    assert report["depth"] == 32768 - 2 - 1
    assert (grouped["kv_ratio"], grouped["kv_bytes"]) == (4, 32768 * 2 * 8 * 128 * 2)
    assert (window["kv_ratio"], window["kv_bytes_without"]) == (8, 32768 * 2 * 8 * 128 * 2)
    assert window["allocated_ratio"] == pytest.approx(32768 / 4607)
    for claim in report["claims"]:
        assert claim["decode_ratio"] == pytest.approx(claim["decode_tps"] / claim["decode_tps_without"])


@pytest.mark.parametrize("format", ["table", "md", "csv", "jsonl"])
def test_claims_of_a_checkpoint_are_written_in_every_format(tiny, format):
    ran = call("bench", "--claims", "-m", tiny, "-n", 2, "-r", 1, "-o", format)
    assert (ran.code, ran.err) == (0, "")
    assert len([line for line in ran.out.splitlines() if "window of 16" in line]) == 1


def test_stacked_layers_see_as_far_as_the_paper_says_and_no_further():
    """The formula and the numbers are the paper's; what moves is measured."""
    measured = run_with_progress(measure_reach(), lambda text: None)
    assert {(reach.layers, reach.window): reach.tokens for reach in measured} == {
        (1, 8): 7, (2, 8): 14, (3, 8): 21, (2, 16): 30, (3, 4): 9,
    }  # fmt: skip
    for reach in measured:
        assert reach.moved_at_edge > 1e-4
        assert reach.moved_beyond == 0


def test_claims_are_measured_in_the_layers_that_fit(monkeypatch):
    pairs, work = pair_shapes(SMALL, 16), Work(0, 4, 200)

    def fitting(n_bytes):
        monkeypatch.setattr(claims_module, "free_memory", lambda: n_bytes)
        try:
            return count_fitting_layers(pairs, work, torch.bfloat16, 512)
        except OutOfResources:
            return 0

    layers = [fitting(n_bytes) for n_bytes in range(0, 4 << 20, 20_000)]
    assert layers == sorted(layers)
    assert set(layers) == {0, 1, 2, 3}


def test_a_window_shows_each_token_itself_and_those_before_it_at_any_depth():
    engine = engine_of(replace(SMALL, sliding_window=16), prefill_chunk=8)
    fill(engine.cache, engine.rows.main, 100)
    assert main_row(engine).length == 100
    seen = visible(torch.tensor([100]), main_row(engine).slot_positions(101), 16)
    assert seen.sum().item() == 16
