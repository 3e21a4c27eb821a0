"""The peers of `m7b bench`: they run the very model that we run, and leave nothing behind."""

import os
import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from gguf import GGMLQuantizationType

from m7b.bench.runs import Work, repeat
from m7b.errors import OutOfResources, UsageError
from m7b.runtime.bench import peers
from m7b.runtime.bench.measure import EngineRunner
from m7b.runtime.bench.peers import PeerName, Task, check_peer, open_peer
from m7b.runtime.bench.peers.gguf_file import file_bytes, read_bytes, write_gguf
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.checkpoints.random import random_checkpoint
from m7b.runtime.loader import EngineOptions, load_engine
from m7b.runtime.model.rope import half_split_to_interleaved, interleaved_to_half_split
from tests.support.tiny import CONFIG, assert_refused, call, write_tiny

IDS = torch.randint(0, CONFIG.vocab_size, (40,), generator=torch.Generator().manual_seed(3)).tolist()
TRANSFORMERS, LLAMA_CPP = PeerName.TRANSFORMERS, PeerName.LLAMA_CPP


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    """Temporary files go where the test can count them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def checkpoint_of(config=CONFIG):
    """Random weights, large enough that every position matters."""
    made = random_checkpoint("tiny", config)
    return replace(made, read=lambda name: made.read(name) * (10 if name.count("norm") == 0 else 1))


def task_of(config=CONFIG, dtype=torch.float32, quant=None, *, is_random=False):
    return Task(checkpoint_of(config), config, dtype, quant, config.max_seq_len, is_random)


def engine_of(task):
    window = task.config.sliding_window or 0
    options = EngineOptions(
        dtype=str(task.dtype).removeprefix("torch."), quant=task.quant, window=window, ctx_size=task.ctx_size
    )
    loading = load_engine(task.checkpoint, options)
    while True:
        try:
            next(loading)
        except StopIteration as done:
            return done.value


def installed(name):
    """Skips where a peer is not there to be measured."""
    pytest.importorskip("transformers" if name == TRANSFORMERS else "llama_cpp")


def logits_of(runner, ids):
    """The peer's logits (V,) after `ids`, in an empty cache."""
    runner.prepare(0)
    if runner.name == TRANSFORMERS:
        return runner._forward(torch.tensor([ids]))[0].float()
    n = len(ids)
    runner._read(np.array(ids), np.arange(n), np.zeros(n), np.ones(n))
    return torch.from_numpy(runner.logits().copy())


# the same model


@pytest.mark.parametrize(
    ("name", "changes", "dtype", "tolerance"),
    [
        pytest.param(TRANSFORMERS, {}, torch.float32, 1e-4, id="transformers"),
        pytest.param(TRANSFORMERS, {"sliding_window": 8}, torch.float32, 1e-4, id="transformers, window"),
        pytest.param(TRANSFORMERS, {"tied_embeddings": True}, torch.float32, 1e-4, id="transformers, tied"),
        pytest.param(LLAMA_CPP, {}, torch.float32, 5e-3, id="llama.cpp"),
        pytest.param(LLAMA_CPP, {"tied_embeddings": True}, torch.float32, 5e-3, id="llama.cpp, tied"),
        pytest.param(LLAMA_CPP, {"rope_theta": 1e6}, torch.float32, 5e-3, id="llama.cpp, theta"),
    ],
)
def test_a_peer_has_our_logits(name, changes, dtype, tolerance):
    installed(name)
    task = task_of(replace(CONFIG, **changes), dtype)
    ours = next(engine_of(task).logits(IDS))[-1]
    with open_peer(name, task) as runner:
        theirs = logits_of(runner, IDS)
    assert ours.std() > 0.5
    torch.testing.assert_close(theirs, ours, atol=tolerance * ours.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("name", "quant", "theirs_is"),
    [
        (TRANSFORMERS, "nf4", "nf4"),
        (TRANSFORMERS, "fp4", "fp4"),
        (TRANSFORMERS, "int8", "int8"),
        (LLAMA_CPP, "q8_0", "q8_0"),
        (LLAMA_CPP, "int8", "q8_0"),
        (LLAMA_CPP, "q4_0", "q4_0"),
    ],
)
def test_a_quantized_peer_has_our_logits_but_for_rounding(name, quant, theirs_is):
    installed(name)
    task = task_of(dtype=torch.bfloat16, quant=quant)
    ours, dense = next(engine_of(task).logits(IDS))[-1], next(engine_of(task_of()).logits(IDS))[-1]
    with open_peer(name, task) as runner:
        theirs = logits_of(runner, IDS)
    assert runner.reads.weights.startswith(theirs_is)
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.97
    assert not torch.equal(theirs, dense)


def test_transformers_runs_its_nf4_beside_q4_0():
    with open_peer(TRANSFORMERS, task_of(dtype=torch.bfloat16, quant="nf4")) as runner:
        expected = logits_of(runner, IDS)
    with open_peer(TRANSFORMERS, task_of(dtype=torch.bfloat16, quant="q4_0")) as runner:
        assert runner.reads.weights == "nf4"
        assert torch.equal(logits_of(runner, IDS), expected)


@pytest.mark.parametrize("quant", ["nf4", "fp4", None])
def test_transformers_reads_the_bytes_that_we_read(quant):
    task = task_of(dtype=torch.bfloat16, quant=quant)
    with open_peer(TRANSFORMERS, task) as runner:
        assert runner.reads.weight_bytes == EngineRunner(engine_of(task), quant).reads.weight_bytes


def test_a_gguf_file_is_run_as_it_is(demo_file, temporary):
    installed(LLAMA_CPP)
    checkpoint = open_checkpoint(demo_file)
    task = Task(checkpoint, checkpoint.config, torch.bfloat16, None, 64, is_random=False)
    with open_peer(LLAMA_CPP, task) as runner:
        assert list(temporary.iterdir()) == []
        assert runner.reads.weights == "Q4_1 (GGUF)"
        assert checkpoint.n_bytes < runner.reads.weight_bytes < checkpoint.n_bytes * 1.001
        repeat(runner, Work(4, 2, 0))


# the file that is written for llama.cpp


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_written_file_holds_the_same_weights(tmp_path, dtype, tied):
    task = task_of(replace(CONFIG, tied_embeddings=tied), dtype)
    write_gguf(task, tmp_path / "model.gguf")
    written = open_checkpoint(tmp_path / "model.gguf")
    assert written.config == task.config
    for name in written.tensors:
        torch.testing.assert_close(written.read(name).float(), task.checkpoint.read(name).to(dtype).float())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quant", [None, "q8_0", "q4_0"])
def test_the_sizes_are_those_of_the_written_file(tmp_path, quant, tied):
    task = task_of(replace(CONFIG, tied_embeddings=tied), torch.bfloat16, quant, is_random=True)
    write_gguf(task, tmp_path / "model.gguf")
    tensors = open_checkpoint(tmp_path / "model.gguf").tensors
    embedding = tensors["tok_embeddings.weight"]
    assert file_bytes(task) == sum(tensor.n_bytes for tensor in tensors.values())
    unread = 0 if tied else embedding.n_bytes
    assert read_bytes(task) == file_bytes(task) - unread + embedding.n_bytes // CONFIG.vocab_size


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_random_blocks_are_as_spread_as_random_weights(tmp_path, quant):
    task = replace(task_of(quant=quant, is_random=True), checkpoint=random_checkpoint("tiny", CONFIG))
    write_gguf(task, tmp_path / "model.gguf")
    written = open_checkpoint(tmp_path / "model.gguf")
    assert written.tensors["output.weight"].dtype == GGMLQuantizationType[quant.upper()].name
    for name in ("layers.1.feed_forward.w2.weight", "output.weight"):
        theirs, ours = written.read(name).float(), task.checkpoint.read(name).float()
        assert theirs.std() == pytest.approx(ours.std().item(), rel=0.1)


def test_rows_are_interleaved_as_our_reader_undoes_it():
    weight = torch.arange(24.0 * 3).view(24, 3)
    torch.testing.assert_close(interleaved_to_half_split(half_split_to_interleaved(weight, 4), 4), weight)


# one repetition


@pytest.mark.parametrize("name", PeerName)
def test_a_repetition_has_a_time_for_every_token(name):
    installed(name)
    with open_peer(name, task_of()) as runner:
        sample = repeat(runner, Work(prompt_tokens=9, decode_tokens=5, depth=30))
    assert len(sample.step_s) == 5
    assert min(sample.step_s) > 0
    assert 0 < sample.prefill_s <= sample.ttft_s


@pytest.mark.parametrize("window", [None, 16])
def test_transformers_starts_every_phase_at_the_depth(window):
    with open_peer(TRANSFORMERS, task_of(replace(CONFIG, sliding_window=window))) as runner:
        for depth in (30, 7, 0, 100):
            runner.prepare(depth)
            assert runner._cache.get_seq_length() == depth
            runner.decode(3)
            assert runner._cache.get_seq_length() == depth + 3


def test_llama_cpp_starts_every_phase_at_the_depth():
    api = pytest.importorskip("llama_cpp.llama_cpp")
    with open_peer(LLAMA_CPP, task_of()) as runner:
        memory = api.llama_get_memory(runner._context)
        for depth in (30, 7, 0, 100, 100):
            runner.prepare(depth)
            assert api.llama_memory_seq_pos_max(memory, 0) == depth - 1
            runner.decode(3)
            assert api.llama_memory_seq_pos_max(memory, 0) == depth + 2


@pytest.mark.parametrize(
    ("policy", "build", "is_told"),
    [
        ("passive", b"AVX2 = 1 | OPENMP = 1 | ", True),
        ("PASSIVE", b"OPENMP = 1 | ", True),
        ("active", b"OPENMP = 1 | ", False),
        ("passive", b"AVX2 = 1 | ", False),
    ],
)
def test_a_llama_cpp_that_has_to_sleep_while_it_waits_is_told_of(monkeypatch, policy, build, is_told):
    """There is one OpenMP in a process, and it waits as torch likes best."""
    api = pytest.importorskip("llama_cpp.llama_cpp")
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with open_peer(LLAMA_CPP, task_of()) as runner:
        monkeypatch.setattr(api, "llama_print_system_info", lambda: build)
        assert ("GGML_OPENMP=off" in runner.note) == is_told


# several sequences together


PROMPTS = [IDS[:12], IDS[12:24], IDS[24:36]]


def continue_together(runner, prompts, n=8):
    """The `n` likeliest tokens after each of `prompts` (of one length), each step of one token a sequence."""
    n_sequences, length = len(prompts), len(prompts[0]) - 1
    runner.prepare(0, n_sequences)
    read, last = np.array([ids[:-1] for ids in prompts]), [ids[-1] for ids in prompts]
    if runner.name == TRANSFORMERS:
        runner._forward(torch.tensor(read))
        last = torch.tensor(last)[:, None]
    else:
        positions, sequences = np.tile(np.arange(length), n_sequences), np.repeat(range(n_sequences), length)
        runner._read(read.reshape(-1), positions, sequences, np.ones(read.size))
        runner._length = length
    return [list(tokens) for tokens in zip(*runner._generate(last, n), strict=True)]


@pytest.mark.parametrize("name", PeerName)
def test_a_peer_continues_several_sequences_as_it_does_each_alone(name):
    installed(name)
    with open_peer(name, replace(task_of(), n_sequences=3)) as runner:
        alone = [continue_together(runner, [ids])[0] for ids in PROMPTS]
        assert continue_together(runner, PROMPTS) == alone
        assert continue_together(runner, PROMPTS[:1] * 3) == alone[:1] * 3
    assert len({tuple(tokens) for tokens in alone}) == 3


@pytest.mark.parametrize("name", PeerName)
def test_a_repetition_of_several_sequences_has_a_time_for_every_step(name):
    installed(name)
    with open_peer(name, replace(task_of(), n_sequences=3)) as runner:
        for n_sequences in (3, 1):
            work = Work(prompt_tokens=9, decode_tokens=5, depth=30, n_sequences=n_sequences)
            sample = repeat(runner, work)
            assert len(sample.step_s) == 5
            assert min(sample.step_s) > 0
            assert 0 < sample.prefill_s <= sample.ttft_s


def test_llama_cpp_brings_every_sequence_to_the_depth():
    api = pytest.importorskip("llama_cpp.llama_cpp")
    with open_peer(LLAMA_CPP, replace(task_of(), n_sequences=3)) as runner:
        runner.prepare(30)
        (alone,) = zip(*runner._generate([IDS[0]], 8), strict=True)
        for depth, n_sequences in ((30, 3), (7, 3), (30, 3), (0, 3), (30, 2)):
            runner.prepare(depth, n_sequences)
            memory = api.llama_get_memory(runner._context)
            ends = [api.llama_memory_seq_pos_max(memory, n) for n in range(n_sequences)]
            assert ends == [depth - 1] * n_sequences
            together = list(zip(*runner._generate([IDS[0]] * n_sequences, 8), strict=True))
            assert (together == [alone] * n_sequences) == (depth == 30)


def test_a_prompt_longer_than_one_call_is_read_in_each_sequence():
    api = pytest.importorskip("llama_cpp.llama_cpp")
    config = replace(CONFIG, max_seq_len=1200)
    with open_peer(LLAMA_CPP, replace(task_of(config), n_sequences=3)) as runner:
        runner.prepare(0, 3)
        runner.prefill(1100)  # calls take 2048 tokens
        memory = api.llama_get_memory(runner._context)
        assert [api.llama_memory_seq_pos_max(memory, n) for n in range(3)] == [1099] * 3


# what is refused


@pytest.mark.parametrize(
    ("name", "quant"),
    [(TRANSFORMERS, "q8_0"), (LLAMA_CPP, "nf4"), (LLAMA_CPP, "fp4")],
)
def test_a_peer_without_a_quantization_is_refused(name, quant):
    with pytest.raises(UsageError, match=f"--peer {name} knows no {quant}"):
        check_peer(name, quant)


@pytest.mark.parametrize(
    ("name", "missing", "way_out"),
    [
        (TRANSFORMERS, "transformers", "m7b[peers]"),
        (LLAMA_CPP, "llama_cpp", "GGML_NATIVE"),
    ],
)
def test_a_peer_that_is_missing_is_told_with_how_to_install_it(monkeypatch, name, missing, way_out):
    monkeypatch.setattr(peers, "find_spec", lambda module: None if module == missing else object())
    with pytest.raises(UsageError, match=missing) as error:
        check_peer(name, None)
    assert way_out in error.value.hint


@pytest.mark.parametrize("name", PeerName)
def test_a_peer_that_memory_cannot_hold_is_refused_with_the_figures(name, monkeypatch, temporary):
    installed(name)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0, total=1 << 30))
    with pytest.raises(OutOfResources, match=r"MiB of memory and 0 MiB are free"), open_peer(name, task_of()):
        pass
    assert list(temporary.iterdir()) == []


def test_a_file_that_the_disk_cannot_hold_is_refused_before_it_is_written(monkeypatch, temporary):
    installed(LLAMA_CPP)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(OutOfResources, match="GGUF file"), open_peer(LLAMA_CPP, task_of()):
        pass
    assert list(temporary.iterdir()) == []


def test_the_file_is_gone_when_the_peer_is(temporary):
    installed(LLAMA_CPP)
    seen = []

    def interrupted():
        with open_peer(LLAMA_CPP, task_of()):
            (folder,) = temporary.iterdir()
            seen.extend([folder.name[:9], *os.listdir(folder)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # Once the model is mapped its file goes, so not even a process that is killed leaves it behind.
    assert seen == ["m7b-peer-"] + ([] if os.name == "posix" else ["model.gguf"])
    assert list(temporary.iterdir()) == []


# the command


@pytest.mark.parametrize("name", PeerName)
def test_the_command_runs_both_and_prints_the_ratio(name, tmp_path):
    installed(name)
    run = ("bench", "-m", write_tiny(tmp_path), "-p", 8, "-n", 4, "-d", "0,20", "-r", 2, "--peer", name)
    report = call(*run, "-o", "json").answer
    assert [(row["engine"], row["depth"]) for row in report["results"]] == [
        ("m7b", 0),
        (name, 0),
        ("m7b", 20),
        (name, 20),
    ]
    ours, theirs = report["results"][2:]
    ratio = report["ratios"][1]
    assert (ratio["peer"], ratio["depth"]) == (name, 20)
    assert ratio["decode"] == pytest.approx(ours["decode_tps"] / theirs["decode_tps"])
    assert ratio["prefill"] == pytest.approx(ours["prefill_tps"] / theirs["prefill_tps"])


def test_the_command_refuses_a_peer_before_it_loads_anything(tmp_path):
    ran = call("bench", "-m", tmp_path / "nothing", "--peer", "llama.cpp", "--quant", "nf4")
    assert_refused(ran, 2, "llama.cpp knows no nf4", "q4_0")
