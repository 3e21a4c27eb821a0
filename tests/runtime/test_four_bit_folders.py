"""Folders that GPTQ, AWQ and MLX have quantized to 4 bits: read as numbers, and kept as blocks."""

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime import kernels
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.hf import NAMES
from tests.support.checkpoints import engine, logits, mistral, oracle_logits, write_hf
from tests.support.four_bit import Folder, dequantized, write_awq, write_gptq, write_mlx

SHAPE = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
}
IDS = list(range(1, 30))

Write = Callable[..., Folder]
OLD_AWQ = {
    "settings_file": "quant_config.json",
    "bits": ...,
    "w_bit": 4,
    "group_size": ...,
    "q_group_size": 32,
}
KINDS: dict[str, Write] = {
    "gptq-32": partial(write_gptq, group=32),
    "gptq-64": partial(write_gptq, group=64),
    "gptq-128": partial(write_gptq, group=128, symmetric=True),
    "gptq-row": partial(write_gptq, group=-1),
    "gptq-v2": partial(write_gptq, checkpoint_format="gptq_v2"),
    "gptq-old": partial(write_gptq, settings_file="quantize_config.json", has_order=False),
    "awq-32": partial(write_awq, group=32),
    "awq-64": partial(write_awq, group=64),
    "awq-128": partial(write_awq, group=128),
    "awq-old": partial(write_awq, **OLD_AWQ),
    "mlx-32": partial(write_mlx, group=32),
    "mlx-64": partial(write_mlx, group=64, dtype=torch.float16),
    "mlx-128": partial(write_mlx, group=128, mode="affine"),
}
SHUFFLED = {
    "gptq-act-order": partial(write_gptq, shuffled=True),
    "gptq-act-order-64": partial(write_gptq, group=64, shuffled=True, symmetric=True),
}


def source_name(name: str) -> str:
    return translate_name(name, NAMES)


def is_matrix(name: str) -> bool:
    return "attention.w" in name or "feed_forward.w" in name


@pytest.mark.parametrize("kind", KINDS | SHUFFLED)
def test_numbers_are_those_that_the_format_means(tmp_path, kind):
    """Packed and unpacked by two programs that share nothing; to the bit but for MLX, which has sums."""
    folder = (KINDS | SHUFFLED)[kind](mistral(**SHAPE), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for name in checkpoint.tensors:
        expected = torch.from_numpy(folder.values[source_name(name)])
        read = checkpoint.read(name)
        if "mlx" in kind:
            assert torch.allclose(read.double(), expected, rtol=1e-6, atol=1e-7), name
        else:
            assert torch.equal(read.double(), expected), name


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_the_same_numbers_but_for_offsets_in_float16(tmp_path, kind):
    KINDS[kind](mistral(**SHAPE), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype != "Q4_1":
            continue
        blocks = checkpoint.read_blocks(name)
        assert blocks.type == "Q4_1"
        numbers = checkpoint.read(name)
        step = numbers.abs().max() / 8
        error = (blocks.dequantize(torch.float32) - numbers).abs().max()
        assert error <= step * 2**-8, name
        if kind == "gptq-128":  # a zero of 8 times a scale is exact
            assert error == 0
    stored = {tensor.dtype for name, tensor in checkpoint.tensors.items() if is_matrix(name)}
    assert stored == {"Q4_1"}


@pytest.mark.parametrize("kind", SHUFFLED)
def test_shuffled_groups_are_said_to_be_held_in_8_bits(tmp_path, kind):
    SHUFFLED[kind](mistral(**SHAPE), tmp_path)
    assert open_checkpoint(tmp_path).list_unknown() == {"GPTQ with desc_act"}


@pytest.mark.parametrize("kind", KINDS | SHUFFLED)
def test_bytes_are_those_in_the_file(tmp_path, kind):
    """But for what is not counted: the order of columns, and biases that are 0."""
    (KINDS | SHUFFLED)[kind](mistral(**SHAPE), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    counted = sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith((".g_idx", ".bias")))
    assert open_checkpoint(tmp_path).n_bytes == counted


@pytest.mark.parametrize("kind", KINDS | SHUFFLED)
def test_logits_are_those_of_transformers_with_the_same_numbers(tmp_path, kind):
    model = mistral(**SHAPE)
    folder = (KINDS | SHUFFLED)[kind](model, tmp_path)
    expected = oracle_logits(dequantized(model, folder), IDS)
    assert torch.allclose(logits(engine(tmp_path), IDS), expected, atol=1e-4)


@pytest.mark.skipif(kernels.instruction_set() is None, reason="no native kernels here")
@pytest.mark.parametrize("kind", KINDS | SHUFFLED)
def test_blocks_run_natively_and_near_the_numbers(tmp_path, kind):
    model = mistral(**SHAPE)
    folder = (KINDS | SHUFFLED)[kind](model, tmp_path)
    native = engine(tmp_path, dtype=None)
    wanted = "Q8_0" if kind in SHUFFLED else "Q4_1"
    assert native.model.layers[0].attention.wq.block_type.name == wanted
    expected = oracle_logits(dequantized(model, folder), IDS)
    found = logits(native, IDS)
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.999


def test_tied_embeddings_of_mlx_serve_as_output(tmp_path):
    model = mistral(tied=True, **SHAPE)
    folder = write_mlx(model, tmp_path)
    found = logits(engine(tmp_path, dtype=None), IDS)
    model.load_state_dict({"lm_head.weight": model.state_dict()["model.embed_tokens.weight"]}, strict=False)
    expected = oracle_logits(dequantized(model, folder), IDS)
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.999


def test_a_layer_of_mlx_can_have_a_group_of_its_own_or_none(tmp_path):
    folder = write_mlx(mistral(**SHAPE), tmp_path, group=64)
    settings = json.loads((tmp_path / "config.json").read_text())
    layer = "model.layers.0.self_attn.q_proj"
    settings["quantization"] = {"group_size": 32, "bits": 4, "lm_head": {"group_size": 64, "bits": 4}} | {
        name.removesuffix(".weight"): {"group_size": 64, "bits": 4}
        for name in folder.values
        if "proj" in name
    }
    settings["quantization"]["model.embed_tokens"] = {"group_size": 64, "bits": 4}
    settings["quantization"]["model.layers.9"] = False
    (tmp_path / "config.json").write_text(json.dumps(settings))
    read = open_checkpoint(tmp_path).read("layers.0.attention.wq.weight").double()
    assert torch.allclose(read, torch.from_numpy(folder.values[f"{layer}.weight"]), rtol=1e-6, atol=1e-7)


def test_the_lone_weights_of_old_gptq_folders_are_found(tmp_path):
    write_gptq(mistral(**SHAPE), tmp_path, settings_file="quantize_config.json")
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")
    assert open_checkpoint(tmp_path).tensors["layers.0.attention.wq.weight"].dtype == "Q4_1"


def test_a_word_of_zeros_is_counted_up_as_a_whole(tmp_path):
    """A zero of 0 less 1 borrows from its neighbour, and GPTQModel gives it back so."""
    write_gptq(mistral(**SHAPE), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.qzeros"][:] = 0x7777776F
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    read = checkpoint.read("layers.0.attention.wq.weight")
    quants = torch.stack([(tensors[f"{name}.qweight"] >> 4 * place) & 15 for place in range(8)], dim=1)
    scales = tensors[f"{name}.scales"].repeat_interleave(32, dim=0)
    zeros = torch.tensor([0, 8, 8, 8, 8, 8, 8, 8]).repeat(16)
    assert torch.equal(read, ((quants.flatten(0, 1) - zeros) * scales.float()).T)


# ---- what is not read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *(("quantization_config", {"quant_method": name}, [name]) for name in ("fp8", "exl2", "hqq", "aqlm")),
        (
            "quantization_config",
            {"quant_method": "compressed-tensors", "format": "x"},
            ["compressed-tensors"],
        ),
        ("quantization_config", {"quant_method": 5}, ["quantization_config"]),
        ("quantization_config", [1], ["quantization_config is [1]"]),
        *(("quantization_config", {"quant_method": "gptq", "bits": n}, [f"bits is {n}"]) for n in (2, 3, 8)),
        *(
            ("quantization_config", {"quant_method": "awq", "bits": n}, [f"bits is {n}"])
            for n in (3, 8, None)
        ),
        (
            "quantization_config",
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            ["marlin"],
        ),
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, ["marlin"]),
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "dynamic": {"x": {}}}, ["dynamic"]),
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "pack_dtype": "int64"}, ["int64"]),
        ("quantization_config", {"quant_method": "awq", "bits": 4, "version": "gemv"}, ["version is gemv"]),
        ("quantization_config", {"quant_method": "awq", "bits": 4, "zero_point": False}, ["zero_point"]),
        *(("quantization", {"group_size": 32, "bits": n}, [f"bits {n}"]) for n in (2, 3, 6, 8)),
        ("quantization", {"group_size": 32, "bits": 4, "mode": "mxfp4"}, ["mxfp4"]),
        (
            "quantization",
            {"group_size": 32, "bits": 4, "lm_head": {"group_size": 32, "bits": 8}},
            ["lm_head", "bits 8"],
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_its_name(tmp_path, key, value, words):
    write_mlx(mistral(**SHAPE), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization"]
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UnsupportedCheckpoint) as caught:
        open_checkpoint(tmp_path)
    assert [word for word in [*words, "config.json", "m7b reads"] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("adapter_config.json", '{"peft_type": "LORA"}', "an adapter, not a model; name the model"),
        ("config.json", '{"quantization_config": {"quant_method": "exl2"}}', "quantization_config is exl2"),
        ("qmodel.pt", "", "quantized by HQQ"),
        ("weights.npz", "", "MLX folder of before safetensors"),
        ("config.json", "{}", "no checkpoint in this folder"),
    ],
)
def test_a_folder_without_weights_that_are_read_is_said_to_be_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    (tmp_path / "output.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedCheckpoint, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_git_lfs_pointer_are_said_to_be_one(tmp_path, file):
    """Found: "not a whole safetensors file: header too large; fetch it again"."""
    write_hf(mistral(**SHAPE), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DamagedCheckpoint, match="Git LFS pointer, not the file itself; run git lfs pull"):
        open_checkpoint(tmp_path)
