"""Each way to hold a weight, through the production loader, against transformers and float32."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from m7b.errors import UsageError
from m7b.runtime import kernels
from m7b.runtime.backends import choose_backend
from m7b.runtime.backends.cpu import FusedTransformer
from m7b.runtime.checkpoints import Blocks, open_checkpoint
from m7b.runtime.kernels import BlockType
from m7b.runtime.linears.blocks import BlockLinear, StockBlockLinear
from m7b.runtime.linears.bnb import FourBitLinear, Int8Linear, LevelLinear, make_four_bit_factory
from m7b.runtime.linears.dense import DenseLinear, PrepackedLinear
from tests.support.blocks import draw_blocks
from tests.support.checkpoints import engine, logits, main_row, mistral, read, write_gguf, write_hf

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 16}
IDS = [(7 * i) % 60 + 1 for i in range(40)]
NATIVE = pytest.mark.skipif(kernels.instruction_set() is None, reason="the kernels were not built")


@pytest.fixture(scope="module")
def model():
    return mistral(**SHAPE)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return write_hf(model, tmp_path_factory.mktemp("hf"))


def without_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "_native", None)


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# How far the logits of this random model may be from float32, as a share of their length: twice what
# was measured. Random weights are the hardest to quantize, and errors of four layers add up.
@pytest.mark.parametrize(
    ("quant", "dtype", "tolerance"),
    [
        ("none", "bfloat16", 0.03),
        ("q8_0", "bfloat16", 0.04),
        ("q8_0", "float32", 0.03),
        ("int8", "bfloat16", 0.05),
        ("q4_0", "bfloat16", 0.5),
        ("nf4", "bfloat16", 0.5),
        ("fp4", "bfloat16", 0.6),
    ],
)
def test_logits_stay_near_those_of_float32(folder, quant, dtype, tolerance):
    exact = logits(engine(folder), IDS)
    found = logits(engine(folder, quant=quant, dtype=dtype), IDS)
    assert 0 < distance(found, exact) < tolerance


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_without_kernels_the_same_weights_are_multiplied_by_torch(folder, quant, monkeypatch):
    native = logits(engine(folder, quant=quant), IDS)
    without_kernels(monkeypatch)
    assert distance(logits(engine(folder, quant=quant), IDS), native) < 0.03


@NATIVE
@pytest.mark.parametrize("quant", ["none", "q8_0", "q4_0"])
def test_decode_agrees_with_prefill(folder, quant):
    """Blocks give a token the same bits in any chunk; attention and bfloat16 tiles may round otherwise,
    more so where the processor multiplies bfloat16 itself."""
    ran = engine(folder, quant=quant, dtype="bfloat16", prefill_chunk=16)
    together = logits(ran, IDS)
    ran.forget()
    alone = torch.cat([read(ran, [token]) for token in IDS])
    assert distance(alone, together) < 0.03


def block_file(model, folder, type):
    """A GGUF file of `model` with its matrices in blocks of `type`."""
    plain = write_gguf(model, folder / "plain.gguf")
    reader, file = GGUFReader(plain), folder / f"{type}.gguf"
    writer = GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        data = np.array(tensor.data, dtype=np.float32)
        if data.ndim == 2:
            rows = quants.quantize(data, GGMLQuantizationType[type])
            writer.add_tensor(tensor.name, rows, raw_dtype=GGMLQuantizationType[type])
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@NATIVE
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("quant", ["none", "q8_0", "q4_0"])
@pytest.mark.parametrize("n_tokens", [1, 3, 9])
def test_one_call_for_whole_layers_gives_the_bits_of_one_call_an_operation(folder, quant, window, n_tokens):
    """The ring wraps several times; keys and values are compared too."""
    ids = [(11 * i) % 60 + 1 for i in range(60)]
    found = []
    for is_whole in (True, False):
        running = engine(folder, quant=quant, dtype="bfloat16", prefill_chunk=9, window=window)
        assert isinstance(running._scheduler._forward, FusedTransformer)
        running = running if is_whole else running.unfuse()
        answers = [read(running, ids[at : at + n_tokens]) for at in range(0, len(ids), n_tokens)]
        row = main_row(running)
        filled = min(len(ids), row.capacity)
        found.append([*answers, *(ring[:, :filled] for ring in (*row.keys, *row.values))])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize(("quant", "dtype"), [("none", "float32"), ("q8_0", "float32"), ("nf4", "bfloat16")])
def test_other_layers_are_run_one_by_one(folder, quant, dtype):
    running = engine(folder, quant=quant, dtype=dtype)
    assert running._scheduler._forward is running.model


@NATIVE
@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_of_a_gguf_file_reach_the_kernel_untouched(model, tmp_path, type):
    checkpoint = open_checkpoint(block_file(model, tmp_path, type))
    for name in ("layers.0.attention.wq.weight", "layers.1.feed_forward.w2.weight"):
        blocks = checkpoint.read_blocks(name)
        assert blocks.type == type
        # The rows of q and k are put into canonical order, and their blocks are whole.
        expected = quants.dequantize(blocks.data.numpy(), GGMLQuantizationType[type])
        assert torch.equal(torch.from_numpy(expected), checkpoint.read(name))


@NATIVE
@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_gguf_file_runs_as_stored_unless_told_otherwise(model, tmp_path, type):
    file = block_file(model, tmp_path, type)
    stored = engine(file, dtype=None)
    assert isinstance(stored.model.layers[0].attention.wq, BlockLinear)
    assert stored.model.layers[0].attention.wq.block_type is BlockType[type]
    exact = engine(file)  # float32 was asked for
    assert not isinstance(exact.model.layers[0].attention.wq, BlockLinear)
    assert distance(logits(stored, IDS), logits(exact, IDS)) < 0.05


@NATIVE
def test_another_quantization_of_a_gguf_file_rounds_again_and_says_so(model, tmp_path):
    checkpoint = open_checkpoint(block_file(model, tmp_path, "Q4_1"))
    assert checkpoint.find_requantized("q8_0") == "Q4_1"
    assert checkpoint.find_requantized("none") == ""
    assert open_checkpoint(block_file(model, tmp_path, "Q4_0")).find_requantized("q4_0") == ""


def test_a_tied_embedding_is_quantized_as_the_output_alone(tmp_path):
    tied = mistral(**SHAPE, tied=True)
    folder = write_hf(tied, tmp_path)
    exact = engine(folder)
    found = engine(folder, quant="q8_0", dtype="float32")
    assert torch.equal(found.model.tok_embeddings.weight, exact.model.tok_embeddings.weight)
    assert 0 < distance(logits(found, IDS), logits(exact, IDS)) < 0.03


def test_a_tied_embedding_in_bfloat16_is_held_once(tmp_path):
    folder = write_hf(mistral(**SHAPE, tied=True), tmp_path)
    ran = engine(folder, dtype="bfloat16")
    if isinstance(ran.model.output, DenseLinear):
        assert ran.model.output.weight.data_ptr() == ran.model.tok_embeddings.weight.data_ptr()


@pytest.mark.parametrize("layer", [PrepackedLinear, Int8Linear], ids=lambda layer: layer.__name__)
def test_layers_that_other_processors_choose_multiply_as_well(layer):
    torch.manual_seed(0)
    weight, x = torch.randn(48, 64), torch.randn(6, 64)
    made = layer(64, 48)
    made.set_weight(weight)
    tolerance = {PrepackedLinear: 1e-5, Int8Linear: 0.03}[layer]
    assert distance(made(x).float(), x @ weight.T) < tolerance


@pytest.mark.parametrize("type", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("n_out", "n_in", "dtype"),
    [
        (64, 128, torch.bfloat16),
        (48, 128, torch.bfloat16),
        (64, 96, torch.bfloat16),
        (64, 128, torch.float32),
    ],
    ids=str,
)
def test_four_bits_of_bitsandbytes_multiply_in_either_order(n_out, n_in, dtype, type):
    """bitsandbytes has an order of its own for whole panels in bfloat16, where the processor suits it."""
    from bitsandbytes.functional import dequantize_4bit, has_avx512bf16, quantize_4bit

    torch.manual_seed(0)
    weight, x = torch.randn(n_out, n_in).to(dtype), torch.randn(6, n_in).to(dtype)
    made = FourBitLinear(n_in, n_out, type, dtype)
    made.set_weight(weight)
    is_ordered = getattr(made._layer.weight.quant_state, "packing_format_for_cpu", False)
    assert is_ordered == (has_avx512bf16() and (n_out, n_in, dtype) == (64, 128, torch.bfloat16))
    exact = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type=type)).float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert distance(made(x).float(), x.float() @ exact.T) < tolerance
    assert distance(made(x[:1]).float(), x[:1].float() @ exact.T) < tolerance
    assert made.n_bytes < n_out * n_in * 0.6


@NATIVE
@pytest.mark.parametrize("type", ["nf4", "fp4"])
def test_four_bits_are_ours_where_bitsandbytes_has_no_kernel(type, monkeypatch):
    from bitsandbytes import functional

    torch.manual_seed(0)
    weight, x = torch.randn(48, 128).bfloat16(), torch.randn(6, 128).bfloat16()
    theirs = FourBitLinear(128, 48, type, torch.bfloat16)
    monkeypatch.setattr(functional, "has_avx512bf16", lambda: False)
    ours = make_four_bit_factory(type, torch.bfloat16, has_kernels=True)(128, 48)
    for layer in (theirs, ours):
        layer.set_weight(weight)
    assert isinstance(ours, LevelLinear)
    assert distance(ours(x).float(), theirs(x).float()) < 0.01
    assert ours.n_bytes == theirs.n_bytes
    for has_kernels, dtype, n_in in (
        (False, torch.bfloat16, 128),
        (True, torch.float32, 128),
        (True, torch.bfloat16, 96),
    ):
        factory = make_four_bit_factory(type, dtype, has_kernels=has_kernels)
        assert isinstance(factory(n_in, 48), FourBitLinear)


@pytest.mark.parametrize(
    ("quant", "device", "dtype", "told"),
    [
        ("q5_k", "cpu", torch.bfloat16, "--quant is 'q5_k'"),
        ("q4_0", "cuda", torch.bfloat16, "runs on the CPU only"),
        ("q8_0", "cpu", torch.float16, "does not run in float16"),
        ("nf4", "auto", torch.bfloat16, "with --device auto"),
    ],
)
def test_what_cannot_run_is_refused_before_loading(folder, quant, device, dtype, told):
    with pytest.raises(UsageError, match=told):
        choose_backend(open_checkpoint(folder), quant, device, dtype)


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_rows_that_are_no_whole_blocks_are_refused_by_name(tmp_path, quant):
    folder = write_hf(mistral(hidden_size=48, intermediate_size=64, head_dim=16), tmp_path)
    with pytest.raises(UsageError, match=r"blocks of 32, tok_embeddings.weight has rows of 48"):
        engine(folder, quant=quant)


@NATIVE
@pytest.mark.parametrize("type", list(BlockType), ids=lambda type: type.name)
def test_the_stock_layer_and_the_kernel_hold_the_same_weight(type):
    torch.manual_seed(0)
    n_in = 3 * type.n_values
    blocks = Blocks(type.stored, draw_blocks(type, 40, n_in))
    x = torch.randn(3, n_in)
    native, stock = BlockLinear(n_in, 40, type), StockBlockLinear(n_in, 40, type)
    native.set_weight(blocks)
    stock.set_weight(blocks)
    assert distance(native(x), stock(x)) < 0.01
