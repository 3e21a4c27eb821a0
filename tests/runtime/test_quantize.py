"""`m7b quantize`: what it writes is what outside readers read, whole or not there at all."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, quants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from m7b.cli import main
from m7b.errors import DamagedCheckpoint, ExitCode, M7bError
from m7b.generation import QuantizeTarget, SamplingParams, Step
from m7b.runtime import kernels
from m7b.runtime.checkpoints import Blocks, open_checkpoint
from m7b.runtime.kernels import BlockType
from m7b.runtime.quantize import Settings, bnb_folder, quantize
from m7b.runtime.quantize.recipe import choose_types
from m7b.runtime.quantize.rounding import best_blocks
from m7b.tokenizer import OfficialVocabulary, TokenizerJson, load_tokenizer, to_gguf
from m7b.variants import TokenizerVersion
from tests.support import llama
from tests.support.checkpoints import (
    engine,
    logits,
    mistral,
    oracle_logits,
    write_gguf,
    write_v3,
)

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4}
IDS = [1, *((37 * i) % 32000 + 300 for i in range(40))]
GGUF = [target for target in QuantizeTarget if target.is_gguf]
MIXES = [target for target in GGUF if target.is_searched and target != "q4_0"]
FOLDERS = [target for target in QuantizeTarget if not target.is_gguf]


# Rows of 64 and 128 are no whole blocks of 256: q3_k_m falls back to Q4_0, and q6_k to Q8_0.
LARGEST_ERROR = {
    "q3_k_m": 0.09,
    "q4_0": 0.09,
    "iq4_nl": 0.08,
    "iq4_xs": 0.08,
    "q4_k_s": 0.045,
    "q4_k_m": 0.045,
    "q5_k_m": 0.038,
    "q6_k": 0.01,
    "q8_0": 0.01,
    "f16": 1e-3,
    "bf16": 1e-9,
}


def made(folder, window=None, tied=False):
    """A random model with the real v0.3 tokenizer, in a Hugging Face folder in bfloat16."""
    model = mistral(window=window, tied=tied, vocab_size=32768, **SHAPE).to(torch.bfloat16)
    return write_v3(folder, model)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return made(tmp_path_factory.mktemp("source"), window=24)


@pytest.fixture(scope="module")
def demo_bf16(demo_file, tmp_path_factory):
    """The demo's weights as numbers, once, which everything here starts from."""
    file = tmp_path_factory.mktemp("demo") / "demo-bf16.gguf"
    written(demo_file, file, "bf16")
    return file


def written(source, out, target, **settings):
    """The relative error of each tensor, by its name."""
    checkpoint = open_checkpoint(source)
    told = quantize(
        checkpoint, load_tokenizer(checkpoint.tokenizer), out, Settings(QuantizeTarget(target), **settings)
    )
    return {tensor.name: tensor.error for tensor in told}


def answer(running, ids, n):
    steps = running.generate(ids, SamplingParams(max_tokens=n, temperature=0))
    return [step.token for step in steps if isinstance(step, Step)]


# What is written, in a model of our own.


@pytest.mark.parametrize("target", GGUF)
def test_a_gguf_file_holds_the_configuration_the_window_and_the_weights(source, tmp_path, target):
    errors = written(source, tmp_path / "out.gguf", target)
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out.gguf")
    assert after.config == before.config
    assert after.config.sliding_window == 24
    assert errors.keys() == before.tensors.keys()
    for name in before.tensors:
        exact, found = before.read(name).float(), after.read(name).float()
        missed = ((found - exact).norm() / exact.norm()).item()
        assert missed == pytest.approx(errors[name], rel=1e-3, abs=1e-7)
        assert missed < LARGEST_ERROR[target]


@pytest.mark.parametrize("target", ["q4_0", "q8_0"])
def test_blocks_go_straight_to_the_kernels(source, tmp_path, target):
    written(source, tmp_path / "out.gguf", target)
    checkpoint = open_checkpoint(tmp_path / "out.gguf")
    name = "layers.1.feed_forward.w1.weight"
    assert checkpoint.read_blocks(name).type == target.upper()
    assert checkpoint.read_blocks("output.weight").type == "Q8_0"
    layer = engine(tmp_path / "out.gguf", dtype=None).model.layers[1].feed_forward.w1
    assert layer.block_type.name == target.upper()


@pytest.mark.parametrize("target", ["q4_0", "nf4"])
def test_two_runs_write_the_same_bytes(source, tmp_path, target):
    for name in ("one", "two"):
        written(source, tmp_path / name, target)
    one, two = (sorted(p for p in (tmp_path / n).rglob("*")) or [tmp_path / n] for n in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("target", FOLDERS)
def test_transformers_loads_a_folder_and_gives_our_logits(tmp_path, target, tied):
    out = tmp_path / "out"
    written(made(tmp_path / "source", window=24, tied=tied), out, target)
    # Against the same quantized numbers in float32 the roundings of bfloat16 are left; LLM.int8() also rounds
    # each token's activations to 8 bits under one scale.
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, device_map="cpu").eval()
    expected = oracle_logits(theirs, IDS)
    stored, exact = logits(engine(out, dtype=None), IDS), logits(engine(out, quant="none"), IDS)
    distance = (stored - expected).norm() / expected.norm()
    assert distance < 0.03
    assert (stored - exact).norm() / exact.norm() < (0.15 if target == "int8" else 0.03)
    assert open_checkpoint(out).config == open_checkpoint(tmp_path / "source").config


def test_a_folder_is_one_file_or_several_with_an_index_where_it_is_large(source, tmp_path, monkeypatch):
    written(source, tmp_path / "one", "nf4")
    monkeypatch.setattr(bnb_folder, "MAX_FILE_BYTES", 3_000_000)  # the embedding and the output are larger
    written(source, tmp_path / "several", "nf4")
    assert [file.name for file in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    shards = sorted(file.name for file in (tmp_path / "several").glob("model-*"))
    assert shards == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    one = load_file(tmp_path / "one" / "model.safetensors")
    several = {name: load_file(tmp_path / "several" / name) for name in shards}
    assert one.keys() == index["weight_map"].keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, several[index["weight_map"][name]][name])
    assert open_checkpoint(tmp_path / "several").config == open_checkpoint(tmp_path / "one").config


def test_bitsandbytes_does_not_speak_on_stderr(source, tmp_path):
    command = [sys.executable, "-c", RUN, str(source), str(tmp_path / "out"), "nf4"]
    assert "kernels" not in subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_double_quantized_scales_are_read_back(source, tmp_path):
    written(source, tmp_path / "out", "nf4", double_quant=True)
    single = written(source, tmp_path / "single", "nf4")
    name = "layers.0.attention.wq.weight"
    exact = open_checkpoint(source).read(name).float()
    found = open_checkpoint(tmp_path / "out").read(name).float()
    assert (found - exact).norm() / exact.norm() == pytest.approx(single[name], rel=0.05)
    file = tmp_path / "out" / "model.safetensors"
    assert b"nested_absmax" in file.read_bytes()


def test_a_folder_keeps_tokenizer_and_template(source, tmp_path):
    folder = made(tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    written(folder, tmp_path / "out", "nf4")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.tokenizer == OfficialVocabulary(TokenizerVersion.V3)
    assert checkpoint.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("quant_map", lambda value: value[:3].clone(), "should be 16 of F32"),
        ("absmax", lambda value: value[:-1].clone(), "absmax should be"),
        ("absmax", lambda value: value.to(torch.uint8), "absmax should be"),
        ("quant_state.bitsandbytes__nf4", lambda value: value[:9].clone(), "is unreadable"),
        (
            "quant_state.bitsandbytes__nf4",
            lambda value: torch.tensor(list(b"{}"), dtype=torch.uint8),
            "unread",
        ),
        ("quant_state.bitsandbytes__nf4", "shape", "not of the size that it claims"),
        ("quant_state.bitsandbytes__nf4", "blocksize", "not of the size that it claims"),
        ("quant_state.bitsandbytes__nf4", "nested_blocksize", "has blocks of"),
        ("", lambda value: value[:-1].clone(), "not of the size that it claims"),
    ],
)
def test_scales_that_do_not_fit_their_weight_are_refused_before_anything_reads_them(
    source, tmp_path, key, change, told
):
    written(source, tmp_path / "out", "nf4")
    file = tmp_path / "out" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.self_attn.q_proj.weight"
    key = f"{name}.{key}" if key else name
    if isinstance(change, str):
        state = json.loads(bytes(tensors[key].tolist())) | {change: {"shape": [1 << 40, 64]}.get(change, 7)}
        tensors[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    else:
        tensors[key] = change(tensors[key])
    save_file(tensors, file)
    with pytest.raises(DamagedCheckpoint, match=told):
        open_checkpoint(tmp_path / "out")


@pytest.fixture(scope="module", params=["whole blocks", "rows of 64"])
def deep(request, tmp_path_factory):
    """A model of 16 layers, some of which a mix treats better than others, and of 4 queries to a key."""
    dim = 256 if request.param == "whole blocks" else 64
    shape = {"hidden_size": dim, "intermediate_size": 2 * dim, "head_dim": dim // 8, "vocab_size": 512}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 16}
    return write_gguf(mistral(**shape, **heads), tmp_path_factory.mktemp("deep") / "f32.gguf")


@pytest.mark.parametrize("kind", ["plain", "weighted"])
@pytest.mark.parametrize("target", MIXES)
def test_the_types_of_a_mix_are_those_of_llama_cpp(deep, tmp_path, target, kind):
    pytest.importorskip("llama_cpp")
    config = open_checkpoint(deep).config
    importance = {
        name: torch.ones(shape[1]) for name, shape in config.tensor_shapes().items() if len(shape) > 1
    }
    is_weighted = kind == "weighted"
    llama.quantize(deep, tmp_path / "theirs.gguf", target, importance if is_weighted else None)
    types = choose_types(config, target, has_importance=is_weighted)
    theirs = open_checkpoint(tmp_path / "theirs.gguf").tensors
    assert {name: type.stored for name, type in types.items()} == {name: theirs[name].dtype for name in types}


@pytest.mark.parametrize("target", ["q4_k_m", "iq4_xs"])
def test_a_file_names_its_mix_as_llama_cpp_does(source, tmp_path, target):
    written(source, tmp_path / "out.gguf", target)
    metadata = GGUFReader(tmp_path / "out.gguf").fields
    assert metadata["general.file_type"].contents() == LlamaFileType[f"MOSTLY_{target.upper()}"]


# Rounding.


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_searched_scales_leave_less_error_than_those_that_span_the_values(kind):
    torch.manual_seed(0)
    weight = torch.randn(64, 256) * torch.logspace(-2, 2, 64)[:, None]
    importance = torch.ones(256) if kind == "plain" else torch.rand(256).square()
    plain = torch.from_numpy(quants.quantize(weight.numpy(), GGMLQuantizationType.Q4_0))

    def error(blocks):
        missed = Blocks("Q4_0", blocks).dequantize(torch.float32) - weight
        return (missed.square() * importance).sum(1)

    found = best_blocks(BlockType.Q4_0, weight, importance)
    assert (error(found) <= error(plain) * 1.001).all()
    assert error(found).sum() < 0.97 * error(plain).sum()


def test_the_search_in_torch_is_nearly_as_good_as_that_of_the_kernels(monkeypatch):
    weight = torch.randn(40, 320)
    weight[3] = 0
    importance = torch.rand(320)

    def error(blocks):
        missed = Blocks("Q4_0", blocks).dequantize(torch.float32) - weight
        return (missed.square() * importance).sum()

    native = error(best_blocks(BlockType.Q4_0, weight, importance))
    monkeypatch.setattr(kernels, "_native", None)
    twin = best_blocks(BlockType.Q4_0, weight, importance)
    assert error(twin) < 1.02 * native
    assert not Blocks("Q4_0", twin).dequantize(torch.float32)[3].any()


# Tokenizers.


@pytest.mark.parametrize("version", list(TokenizerVersion))
def test_an_official_tokenizer_survives_the_metadata(version):
    source = OfficialVocabulary(version)
    tokenizer = load_tokenizer(source)
    again = load_tokenizer(to_gguf(source, tokenizer, tokenizer.vocab_size + 5))
    text = (Path(__file__).parent.parent / "data" / "alice.txt").read_text() + " ü€𐍈\t\n  [INST] </s>"
    assert again.encode(text, bos=True) == tokenizer.encode(text, bos=True)
    assert again.vocab_size == tokenizer.vocab_size + 5


def test_a_byte_level_tokenizer_survives_a_folder_and_the_metadata(demo_file, demo_bf16, tmp_path):
    text = (Path(__file__).parent.parent / "data" / "alice.txt").read_text() + " ü€𐍈\t\n 12345 <|im_end|>"
    before = load_tokenizer(open_checkpoint(demo_file).tokenizer)
    written(demo_file, tmp_path / "folder", "nf4")
    folder = open_checkpoint(tmp_path / "folder")
    assert isinstance(folder.tokenizer, TokenizerJson)
    assert folder.chat_template == open_checkpoint(demo_file).chat_template
    through_json = load_tokenizer(folder.tokenizer, folder.chat_template)
    metadata = to_gguf(folder.tokenizer, through_json, folder.config.vocab_size)
    for again in (open_checkpoint(demo_bf16).tokenizer, folder.tokenizer, metadata):
        assert load_tokenizer(again).encode(text, bos=False) == before.encode(text, bos=False)
    assert metadata.pre == "smollm"


# The demo's weights through outside readers.

PROMPTS = (
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    3 * "do re mi fa sol la ti " + "do re",
    3 * "the cat sat on the mat and the dog lay by the door, " + "the cat",
)
DOUBT = 0.8  # of two logits that are closer, either may lead: each reader rounds activations in its own way


@pytest.mark.parametrize("target", GGUF)
def test_llama_cpp_continues_a_file_with_the_same_tokens(demo_bf16, tmp_path, target):
    llama_cpp = pytest.importorskip("llama_cpp")
    file = demo_bf16 if target == "bf16" else tmp_path / "out.gguf"
    if file != demo_bf16:
        written(demo_bf16, file, target)
    theirs = llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, verbose=False, **llama.THREADS)
    tokenizer, ours = load_tokenizer(open_checkpoint(file).tokenizer), engine(file, dtype=None, ctx_size=256)
    n_certain = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, bos=False)
        assert theirs.tokenize(prompt.encode(), add_bos=False) == ids
        continued = ids + answer(ours, ids, 24)
        best = logits(ours, continued)[len(ids) - 1 : -1].topk(2, dim=1)
        theirs.reset()
        theirs.eval(continued)
        likeliest = theirs.scores[len(ids) - 1 : len(continued) - 1].argmax(1).tolist()
        is_certain = (best.values[:, 0] - best.values[:, 1] > DOUBT).tolist()
        steps = zip(continued[len(ids) :], likeliest, is_certain, strict=True)
        assert all(our == their for our, their, certain in steps if certain)
        n_certain += sum(is_certain)
    assert n_certain > 36  # of 72 steps


def test_a_window_is_in_the_metadata_that_llama_cpp_reads(source, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    written(source, tmp_path / "out.gguf", "q8_0")
    theirs = llama_cpp.Llama(str(tmp_path / "out.gguf"), vocab_only=True, verbose=False)
    assert theirs.metadata["llama.attention.sliding_window"] == "24"


# Nothing half-made.


def refused(*arguments):
    try:
        return main(["quantize", *map(str, arguments)])
    except M7bError as error:  # pragma: no cover - main tells it
        return error.exit_code


def test_what_is_there_is_kept_unless_told_otherwise(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    assert refused(source, "-o", out, "--to", "q8_0", "--no-report") == ExitCode.USAGE
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert refused(source, "-o", out, "--to", "q8_0", "--no-report", "--force") == 0
    assert open_checkpoint(out).config.dim == 64


def test_the_source_is_not_overwritten(source, capsys):
    assert refused(source, "-o", source, "--to", "nf4", "--no-report", "--force") == ExitCode.USAGE
    assert "is the checkpoint that is read" in capsys.readouterr().err


def test_too_little_disk_is_told_with_both_figures_before_anything_is_written(
    source, tmp_path, capsys, monkeypatch
):
    usage = shutil._ntuple_diskusage(10_000_000, 9_000_000, 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert refused(source, "-o", tmp_path / "out", "--to", "nf4", "--no-report") == ExitCode.RESOURCES
    told = capsys.readouterr().err
    assert "1,000,000 free" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["q4_0", "nf4"])
def test_a_full_disk_leaves_nothing(source, tmp_path, target):
    out, seen = tmp_path / "out", 0
    checkpoint = open_checkpoint(source)
    running = quantize(
        checkpoint, load_tokenizer(checkpoint.tokenizer), out, Settings(QuantizeTarget(target))
    )
    for seen, _ in enumerate(running):
        if seen == 3:
            with pytest.raises(OSError, match="full"):
                running.throw(OSError("disk full"))
            break
    assert seen == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "q8_0", "--double-quant"], "--double-quant means nothing to q8_0"),
        (["--to", "q4_0", "--compute-dtype", "float32"], "--compute-dtype means nothing to q4_0"),
        (["--to", "nf4", "--calibrate", "x"], "--calibrate or --imatrix means nothing to nf4"),
        (["--to", "q8_0", "--imatrix", "x"], "--calibrate or --imatrix means nothing to q8_0"),
        (["--to", "q4_k_m", "--imatrix", "x", "--calibrate", "y"], "takes the place of --calibrate"),
        (["--to", "q4_k_m", "--save-imatrix", "x"], "--save-imatrix needs it"),
    ],
)
def test_options_that_mean_nothing_are_refused(source, tmp_path, capsys, options, told):
    assert refused(source, "-o", tmp_path / "out", *options) == ExitCode.USAGE
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "target", "told"),
    [
        ("x.safetensors", "q4_0", "q4_0 is written as a GGUF file"),
        ("x.gguf", "nf4", "nf4 is written as a folder"),
        ("x.safetensors", "nf4", "nf4 is written as a folder"),
    ],
)
def test_a_name_of_another_format_is_refused(source, tmp_path, capsys, name, target, told):
    assert refused(source, "-o", tmp_path / name, "--to", target) == ExitCode.USAGE
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_importance_matrix_takes_the_place_of_its_text(source, tmp_path):
    text, kept = tmp_path / "text.txt", tmp_path / "kept.gguf"
    text.write_text("It was a bright cold day in April. " * 8)
    common = [source, "--to", "q4_0", "--no-report"]
    calibrated = refused(*common, "-o", tmp_path / "1.gguf", "--calibrate", text, "--save-imatrix", kept)
    assert calibrated == refused(*common, "-o", tmp_path / "2.gguf", "--imatrix", kept) == 0
    one, two = (open_checkpoint(tmp_path / name) for name in ("1.gguf", "2.gguf"))
    for name in one.tensors:
        # Sums of float32 are divided again: a quant on the edge may go to the other side.
        assert (one.read(name) == two.read(name)).float().mean() > 0.99


def test_killing_it_at_any_moment_leaves_no_model(tmp_path):
    """Ten moments over the time that a whole run takes; what is found is no model, or the whole one."""
    folder = made(tmp_path / "source")
    whole = tmp_path / "whole.gguf"
    written(folder, whole, "q4_0")
    rng, n_unfinished = random.Random(1), 0
    for n in range(10):
        place, is_gguf = tmp_path / f"run{n}", n % 2 == 0
        place.mkdir()
        command = [sys.executable, "-c", RUN, str(folder), str(place / "out"), "q4_0" if is_gguf else "nf4"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # it begins to write
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in place.iterdir():
            if path.name == "out":
                continue  # renamed, and so whole: opened below
            n_unfinished += 1
            with pytest.raises(M7bError):
                open_checkpoint(path)
        if (place / "out").exists():
            checkpoint = open_checkpoint(place / "out")
            assert all(checkpoint.read(name).isfinite().all() for name in checkpoint.tensors)
    assert n_unfinished >= 3


RUN = """
import sys, time
from pathlib import Path
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.quantize import Settings, bnb_folder, quantize
from m7b.generation import QuantizeTarget
from m7b.tokenizer import load_tokenizer
checkpoint = open_checkpoint(Path(sys.argv[1]))
settings = Settings(QuantizeTarget(sys.argv[3]))
tokenizer = load_tokenizer(checkpoint.tokenizer)
print("ready", flush=True)
for written in quantize(checkpoint, tokenizer, Path(sys.argv[2]), settings):
    time.sleep(0.01)
"""


def test_a_run_that_was_killed_does_not_hinder_the_next(source, tmp_path):
    (tmp_path / ".out.gguf.unfinished").write_bytes(b"GGUF of yesterday")
    written(source, tmp_path / "out.gguf", "q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


# The command and its report.


def test_the_report_is_printed_and_kept(source, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "out.gguf"
    text.write_text("It was a bright cold day in April. " * 8)
    assert main(["quantize", str(source), "-o", str(out), "--to", "q8_0", "--eval-file", str(text)]) == 0
    report = json.loads((tmp_path / "out.gguf.report.json").read_text())
    assert report["quantized"]["bytes"] == open_checkpoint(out).n_bytes
    assert 0 < report["mean_kl"] < report["p99_kl"] < 1
    assert len(report["worst_layers"]) == 8
    markdown = (tmp_path / "out.gguf.report.md").read_text()
    printed = capsys.readouterr().out
    for figure in (f"{report['quantized']['perplexity']:.4f}", f"{report['mean_kl']:.5f}"):
        assert figure in markdown
        assert figure in printed
