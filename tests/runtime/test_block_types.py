"""GGUF files in every type of blocks, as llama.cpp writes them: run as stored, and at least as exactly."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.generation import SamplingParams, Step
from m7b.runtime import kernels
from m7b.runtime.backends.cpu import FusedTransformer
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.kernels import BlockType
from m7b.runtime.linears.blocks import BlockEmbedding, BlockLinear
from tests.support import llama
from tests.support.blocks import set_heads
from tests.support.checkpoints import engine, logits, mistral, write_gguf

pytestmark = pytest.mark.skipif(kernels.instruction_set() is None, reason="the kernels were not built")

IDS = [(7 * i) % 60 + 1 for i in range(48)]
# llama.cpp's names of files, with the types that must be among those of their matrices.
MIXES = {
    "Q4_0": {"Q4_0"},
    "Q5_0": {"Q5_0"},
    "Q5_1": {"Q5_1"},
    "Q8_0": {"Q8_0"},
    "Q2_K": {"Q2_K", "Q3_K"},
    "Q3_K_M": {"Q3_K", "Q4_K"},
    "Q4_K_S": {"Q4_K"},
    "Q4_K_M": {"Q4_K", "Q6_K"},
    "Q5_K_M": {"Q5_K", "Q6_K"},
    "Q6_K": {"Q6_K"},
    "IQ4_NL": {"IQ4_NL"},
    "IQ4_XS": {"IQ4_XS"},
}
# The types that only the gguf package knows, which turns any bits into numbers.
RARE = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rows of whole blocks of 256."""
    model = mistral(hidden_size=256, intermediate_size=512, head_dim=32, num_hidden_layers=4)
    return write_gguf(
        model, tmp_path_factory.mktemp("f32") / "f32.gguf", **{"tokenizer.ggml.model": "no_vocab"}
    )


@pytest.fixture(scope="module")
def odd_source(tmp_path_factory):
    """Rows of 288, like the demo's no multiple of 256, for which llama.cpp takes other types."""
    model = mistral(
        hidden_size=288, intermediate_size=768, head_dim=32, num_attention_heads=9, num_key_value_heads=3
    )
    file = tmp_path_factory.mktemp("odd") / "f32.gguf"
    return write_gguf(model, file, **{"tokenizer.ggml.model": "no_vocab"})


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def stored_types(file):
    return {tensor.dtype for name, tensor in open_checkpoint(file).tensors.items() if len(tensor.shape) == 2}


def assert_as_exact_as_llama_cpp(file):
    """Nearer to what float32 makes of the same blocks, or as near: we round to bfloat16 between layers."""
    expected = logits(engine(file), IDS)
    ours = distance(logits(engine(file, dtype=None), IDS), expected)
    theirs = distance(llama.logits(file, IDS), expected)
    assert 0 < ours < 1.1 * theirs


@pytest.mark.parametrize("mix", MIXES)
def test_a_file_of_llama_cpp_runs_as_stored_and_no_less_exactly(source, tmp_path, mix):
    file = llama.quantize(source, tmp_path / f"{mix}.gguf", mix)
    assert MIXES[mix] <= stored_types(file)
    running = engine(file, dtype=None)
    assert isinstance(running._scheduler._forward, FusedTransformer)
    assert isinstance(running.model.tok_embeddings, BlockEmbedding)
    for name, layer in running.model.named_modules():
        if isinstance(layer, BlockLinear):
            assert layer.block_type.stored == open_checkpoint(file).tensors[f"{name}.weight"].dtype
    assert_as_exact_as_llama_cpp(file)


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"])
def test_rows_that_are_no_multiple_of_256_run_in_the_types_that_take_their_place(odd_source, tmp_path, mix):
    file = llama.quantize(odd_source, tmp_path / f"{mix}.gguf", mix)
    assert len(stored_types(file)) > 1
    assert_as_exact_as_llama_cpp(file)


def rewrite(source, file, type_, heads=0.001):
    """`source` with random bits of `type_` for blocks, under scales of `heads`; None: random too."""
    reader, writer = GGUFReader(source), GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    draw = np.random.default_rng(0)
    for tensor in reader.tensors:
        data = np.array(tensor.data, dtype=np.float32)
        if data.ndim == 2:
            blocks = _draw(type_, data.shape, draw, heads)
            writer.add_tensor(tensor.name, blocks, raw_dtype=type_)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _draw(type_, shape, draw, heads):
    n_values, n_bytes = GGML_QUANT_SIZES[type_]
    blocks = draw.integers(0, 256, (shape[0], shape[1] // n_values, n_bytes), dtype=np.uint8)
    if heads is None:
        return blocks.reshape(shape[0], -1)
    half = np.frombuffer(np.float16(heads).tobytes(), np.uint8)
    known = {type.ggml_id: type for type in BlockType}
    match type_.name:
        case _ if type_.value in known:
            set_heads(known[type_.value], torch.from_numpy(blocks), heads)
        case "MXFP4":
            blocks[..., 0] = 117  # 2^(117 - 127) / 2
        case "IQ1_M":  # the float16 is in the high nibbles of the last eight bytes
            bits = int(np.float16(heads).view(np.uint16))
            for i in range(4):
                at = n_bytes - 8 + 2 * i + 1
                blocks[..., at] = (blocks[..., at] & 15) | (bits >> 4 * i & 15) << 4
        case "TQ1_0" | "TQ2_0":
            blocks[..., -2:] = half
        case _:
            blocks[..., :2] = half
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("name", RARE)
def test_a_rare_type_is_held_in_8_bits_and_said_to_be(source, tmp_path, name):
    file = rewrite(source, tmp_path / f"{name}.gguf", GGMLQuantizationType[name])
    checkpoint = open_checkpoint(file)
    assert checkpoint.list_unknown() == {name}
    running = engine(file, dtype=None)
    layer = running.model.layers[0].feed_forward.w2
    assert layer.block_type is BlockType.Q8_0
    stored = next(t for t in GGUFReader(file).tensors if t.name == "blk.0.ffn_down.weight")
    expected = torch.from_numpy(quants.dequantize(stored.data, GGMLQuantizationType[name]))
    assert torch.equal(checkpoint.read("layers.0.feed_forward.w2.weight"), expected)
    x = torch.eye(expected.shape[1])
    assert distance(layer(x).T, expected) < 0.01


def test_a_type_that_nobody_can_read_is_refused_by_name(source, tmp_path):
    data = bytearray(source.read_bytes())
    name = b"blk.0.ffn_down.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions and both of them
    data[place : place + 4] = (27).to_bytes(4, "little")  # I64
    file = tmp_path / "odd.gguf"
    file.write_bytes(data)
    with pytest.raises(UnsupportedCheckpoint, match="I64"):
        open_checkpoint(file)


@pytest.mark.parametrize("heads", [0.001, None, float("nan"), float("inf"), 65504.0], ids=str)
@pytest.mark.parametrize("type", list(BlockType), ids=lambda type: type.name)
def test_blocks_of_hostile_scales_are_refused_or_run(source, tmp_path, type, heads):
    """Whatever the bits are, nothing dies and no answer is made of what is no number."""
    file = rewrite(source, tmp_path / "hostile.gguf", GGMLQuantizationType(type.ggml_id), heads)
    running = engine(file, dtype=None)
    params = SamplingParams(max_tokens=4, temperature=0)
    try:
        tokens = [step.token for step in running.generate(IDS, params) if isinstance(step, Step)]
    except DamagedCheckpoint:  # the logits are not numbers
        assert heads != 0.001
    else:
        assert len(tokens) == 4


@pytest.mark.parametrize("type", list(BlockType), ids=lambda type: type.name)
def test_rows_that_blocks_cannot_fill_are_refused(source, tmp_path, type):
    file = rewrite(source, tmp_path / "whole.gguf", GGMLQuantizationType(type.ggml_id))
    data = bytearray(file.read_bytes())
    name = b"blk.0.ffn_down.weight"
    place = data.index(name) + len(name) + 4
    data[place : place + 8] = (500).to_bytes(8, "little")
    file.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=f"blocks of {type.n_values} cannot fill"):
        open_checkpoint(file)
