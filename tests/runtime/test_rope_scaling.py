"""Scalings of RoPE, beside transformers and llama.cpp, within the original context and beyond it."""

import json
import shutil

import pytest
import torch
from transformers import MistralForCausalLM

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint, UsageError
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.checkpoints.scaling import write_scaling
from m7b.runtime.model.scaling import DynamicScaling, LinearScaling, YarnScaling
from m7b.tokenizer import official_file
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import (
    engine,
    llama_cpp_logits,
    logits,
    mistral,
    oracle_logits,
    read,
    write_gguf,
    write_hf,
    write_native,
)
from tests.support.tiny import call

IDS = torch.randint(0, 64, (60,), generator=torch.Generator().manual_seed(1)).tolist()
HEAD = {"head_dim": 32}  # pairs of all speeds, so that a ramp has something between its ends

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 160}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 40, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": YARN,
    "yarn of a short context": YARN | {"original_max_position_embeddings": 16},
    "yarn of a long context": YARN | {"original_max_position_embeddings": 8192, "factor": 16.0},
    "yarn with its own ramp": YARN | {"beta_fast": 5.0, "beta_slow": 0.5, "truncate": False},
    "yarn with its own attention": YARN | {"attention_factor": 1.3},
    "yarn with mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "llama3": LLAMA3,
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "default": {"rope_type": "default"},
}


def scaled(rope, window=None, theta=1e4, **changes):
    """A random model; transformers reads its `rope_parameters` anew when it is loaded from the folder."""
    model = mistral(window=window, **HEAD, **changes)
    config = model.config
    config.rope_parameters = {"rope_theta": theta} | rope
    renewed = MistralForCausalLM(config).eval()
    renewed.load_state_dict(model.state_dict())
    return renewed


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("name", SCALINGS)
def test_logits_equal_those_of_transformers(name, theta, window, tmp_path):
    """All kinds but the last were refused."""
    model = scaled(SCALINGS[name], window, theta, max_position_embeddings=64)
    ours = logits(engine(write_hf(model, tmp_path), prefill_chunk=7, ctx_size=64), IDS)
    torch.testing.assert_close(ours, oracle_logits(model, IDS), rtol=0, atol=1e-5)


NATIVE = {"factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("native", "converted"),
    [
        ({}, {}),
        ({"beta": 5.0, "alpha": 0.5}, {"beta_fast": 5.0, "beta_slow": 0.5}),
        ({"apply_scale": False}, {"mscale": 1.0, "mscale_all_dim": 1.0}),
        ({"apply_scale": True, "alpha": 1, "beta": 32}, {}),
    ],
    ids=str,
)
def test_yarn_of_mistrals_own_format_runs_as_the_converted_config_does(native, converted, tmp_path):
    """params.json with `yarn` was refused."""
    model = scaled(YARN | NATIVE | converted, max_position_embeddings=64)
    folder = write_native(model, tmp_path, yarn=NATIVE | native, **HEAD)
    ours = logits(engine(folder, prefill_chunk=7, ctx_size=64), IDS)
    torch.testing.assert_close(ours, oracle_logits(model, IDS), rtol=0, atol=1e-5)
    assert open_checkpoint(folder).config.max_seq_len == 64


@pytest.mark.parametrize(
    ("yarn", "kind", "match"),
    [
        (True, UnsupportedCheckpoint, "yarn has True"),
        (NATIVE | {"mscale": 2}, UnsupportedCheckpoint, "yarn has mscale"),
        ({"factor": 4.0}, DamagedCheckpoint, r"yarn\.original_max_position_embeddings"),
        (NATIVE | {"factor": "x"}, DamagedCheckpoint, r"yarn\.factor"),
    ],
    ids=str,
)
def test_yarn_of_mistrals_own_format_that_is_not_known_is_named(yarn, kind, match, tmp_path):
    with pytest.raises(kind, match=match):
        open_checkpoint(write_native(mistral(), tmp_path, yarn=yarn))


@pytest.mark.parametrize("name", ["linear", "yarn", "llama3"])
def test_decoding_token_by_token_gives_the_logits_of_one_pass(name, tmp_path):
    model = scaled(SCALINGS[name], 16)
    running = engine(write_hf(model, tmp_path))
    ours = torch.cat([read(running, [token]) for token in IDS])
    torch.testing.assert_close(ours, oracle_logits(model, IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_turn_by_the_same_angles(dtype, tmp_path):
    folder = write_hf(scaled(SCALINGS["yarn"], 16), tmp_path)
    ours, exact = logits(engine(folder, dtype=dtype), IDS), logits(engine(folder), IDS)
    assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


def edit(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    "old",
    [
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 160, "finetuned": True},
        {"rope_type": "yarn", "type": "linear", "factor": 4.0, "original_max_position_embeddings": 160},
    ],
)
def test_elder_spelling_means_the_same(old, tmp_path):
    folder = edit(write_hf(scaled(YARN), tmp_path), rope_parameters=..., rope_scaling=old, rope_theta=10000.0)
    found = open_checkpoint(folder).config.rope_scaling
    assert found == YarnScaling(4.0, 160, pytest.approx(1.1386294))


@pytest.mark.parametrize(
    "rope",
    [None, {}, {"type": "default"}, {"rope_type": "default"}, {"type": "linear", "factor": 1.0}],
    ids=str,
)
def test_scaling_that_changes_nothing_is_none(rope, tmp_path):
    folder = edit(write_hf(mistral(), tmp_path), rope_parameters=..., rope_scaling=rope, rope_theta=10000.0)
    assert open_checkpoint(folder).config.rope_scaling is None


@pytest.mark.parametrize(
    ("rope", "kind", "word"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, UnsupportedCheckpoint, "longrope"),
        ({"rope_type": ["yarn"]}, UnsupportedCheckpoint, "rope_parameters"),
        ("yarn", UnsupportedCheckpoint, "rope_parameters"),
        ({"full_attention": {"rope_type": "yarn"}}, UnsupportedCheckpoint, "all layers"),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            UnsupportedCheckpoint,
            "partial_rotary_factor",
        ),
        ({"rope_type": "yarn"}, DamagedCheckpoint, r"rope_parameters\.factor"),
        ({"rope_type": "linear", "factor": 0}, DamagedCheckpoint, r"rope_parameters\.factor"),
        ({"rope_type": "linear", "factor": float("nan")}, DamagedCheckpoint, r"rope_parameters\.factor"),
        (YARN | {"beta_fast": "x"}, DamagedCheckpoint, "beta_fast"),
        (YARN | {"original_max_position_embeddings": 0.5}, DamagedCheckpoint, "original_max_position"),
        (LLAMA3 | {"high_freq_factor": 1.0}, DamagedCheckpoint, "high_freq_factor"),
    ],
    ids=str,
)
def test_scaling_that_cannot_be_is_refused(rope, kind, word, tmp_path):
    folder = edit(write_hf(mistral(), tmp_path), rope_parameters=rope)
    with pytest.raises(kind, match=word):
        open_checkpoint(folder)


def test_dynamic_scaling_ends_where_it_would_change_the_keys_in_the_cache(tmp_path):
    """transformers turns every key anew for a longer text, unless it is in its cache; then it does not."""
    rope = {"rope_type": "dynamic", "factor": 2.0}
    folder = write_hf(scaled(rope, max_position_embeddings=64), tmp_path)
    assert open_checkpoint(folder).config.rope_scaling == DynamicScaling(2.0, 64)
    with pytest.raises(UsageError, match="ctx-size is 65"):
        engine(folder, ctx_size=65)


# ---- GGUF ------------------------------------------------------------------------------------------------

_KEYS = {
    "tokenizer.ggml.model": "no_vocab", "{}.attention.key_length": 32, "{}.attention.value_length": 32,
    "{}.rope.dimension_count": 32,
}  # fmt: skip
_YARN = {"type": "yarn", "factor": 8.0, "original_context_length": 100}


def gguf(file, arch="llama", **scaling):
    keys = {key.format(arch): value for key, value in _KEYS.items()}
    keys |= {f"{arch}.rope.scaling.{key}": value for key, value in scaling.items()}
    return write_gguf(mistral(**HEAD), file, arch=arch, **keys)


@pytest.mark.parametrize("arch", ["llama", "mistral3"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0}, {"factor": 4.0}, {"type": "none", "factor": 4.0}, _YARN,
        {"type": "yarn", "factor": 4.0}, _YARN | {"attn_factor": 1.3}, _YARN | {"yarn_ext_factor": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_gguf_runs_as_llama_cpp_runs_it(scaling, arch, tmp_path):
    file = gguf(tmp_path / "model.gguf", arch, **scaling)
    assert torch.allclose(logits(engine(file, prefill_chunk=7), IDS), llama_cpp_logits(file, IDS), atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "longrope", "factor": 4.0}, {"type": "yarn"}, _YARN | {"yarn_beta_fast": 5.0},
        _YARN | {"yarn_ext_factor": 0.5}, _YARN | {"yarn_log_multiplier": 1.0},
        _YARN | {"yarn_attn_factor": 2.0}, {"type": "linear", "factor": 4.0, "attn_factor": 1.3},
    ],
    ids=str,
)  # fmt: skip
def test_gguf_scaling_that_is_in_doubt_is_refused(scaling, tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match=r"rope\.scaling"):
        open_checkpoint(gguf(tmp_path / "model.gguf", **scaling))


# ---- writing ---------------------------------------------------------------------------------------------


def write_whole(rope, folder):
    """A folder with a tokenizer too."""
    write_hf(scaled(rope, vocab_size=32000), folder)
    shutil.copyfile(official_file(TokenizerVersion.V1), folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("name", ["linear", "yarn", "yarn with its own attention"])
def test_quantized_file_scales_as_its_source(name, tmp_path):
    folder = write_whole(SCALINGS[name], tmp_path / "source")
    ran = call("quantize", folder, "--to", "f16", "-o", tmp_path / "model.gguf", "--no-report")
    assert ran.code == 0, ran.err
    ours, source = open_checkpoint(tmp_path / "model.gguf").config, open_checkpoint(folder).config
    assert type(ours.rope_scaling) is type(source.rope_scaling)
    assert torch.allclose(
        logits(engine(tmp_path / "model.gguf"), IDS), logits(engine(folder), IDS), atol=2e-3
    )


@pytest.mark.parametrize("name", ["llama3", "yarn with its own ramp"])
def test_scaling_that_gguf_cannot_tell_is_not_written(name, tmp_path):
    folder = write_whole(SCALINGS[name], tmp_path / "source")
    ran = call("quantize", folder, "--to", "f16", "-o", tmp_path / "model.gguf", "--no-report")
    assert (ran.code, "cannot be told in GGUF" in ran.err) == (2, True)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_is_written_as_it_is_read(name, tmp_path):
    folder = write_hf(scaled(SCALINGS[name]), tmp_path)
    config = open_checkpoint(folder).config
    edit(
        folder,
        rope_parameters=...,
        rope_theta=config.rope_theta,
        rope_scaling=write_scaling(config.rope_scaling),
    )
    assert open_checkpoint(folder).config == config


def test_factor_of_linear_scaling_is_the_decimal_that_was_written(tmp_path):
    file = gguf(tmp_path / "model.gguf", type="linear", factor=1.3)
    assert open_checkpoint(file).config.rope_scaling == LinearScaling(1.3)
