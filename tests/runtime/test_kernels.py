"""The native kernels against float64, on every instruction set that this processor has."""

import functools
import itertools
import os
import subprocess
import sys
import threading
from array import array

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m7b.generation import KvType
from m7b.runtime import kernels
from m7b.runtime.kernels import BlockType, RingSpan, RingSpans
from m7b.runtime.kernels.updates import UpdateArrays
from m7b.runtime.kv import choose_format
from tests.support import llama
from tests.support.blocks import draw_blocks, set_heads

pytestmark = pytest.mark.skipif(kernels.instruction_set() is None, reason="the kernels were not built")
CHOSEN = kernels.instruction_set()
SETS = kernels.available_instruction_sets()
TYPES = list(BlockType)
ROUNDED = [BlockType.Q4_0, BlockType.Q4_1, BlockType.Q8_0, BlockType.INT8]
SEARCHED = [type for type in TYPES if type not in (BlockType.Q8_0, BlockType.INT8)]
SHAPES = [(16, 1), (1, 1), (17, 2), (33, 3), (96, 18), (250, 48)]  # rows, and blocks in one


@pytest.fixture(params=SETS, autouse=True)
def instruction_set(request):
    kernels._native.use(request.param)
    yield request.param
    kernels._native.use(CHOSEN)


# For tests that choose for themselves, or need no choice: once is enough.
once = pytest.mark.parametrize("instruction_set", [CHOSEN], indirect=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def dequantized(type, blocks):
    rows = quants.dequantize(blocks.numpy(), GGMLQuantizationType[type.stored])
    return torch.from_numpy(rows).double()


def rounded_activations(x, type):
    """What the bits of a block type leave of `x`, a scale for 32 values: (T, in) float64, rounded to even."""
    top = 32767 if type is BlockType.Q8_0 else 127
    blocks = x.float().view(x.shape[0], -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 1e-30, top / largest, 0)
    scale = torch.where(largest > 1e-30, largest / top, 0)
    return ((blocks * inverse).round().double() * scale.double()).flatten(1)


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-300)).item()


def weights(kind, n_out, n_in):
    w = torch.randn(n_out, n_in)
    match kind:
        case "one large value a block":
            w.view(n_out, -1, 32)[:, :, 7] *= 1000
        case "scales from 1e-4 to 1e4":
            w *= torch.logspace(-4, 4, n_out)[:, None]
        case "blocks of zeros":
            w.view(n_out, -1, 32)[:, ::2] = 0
        case "all negative":
            w = -w.abs()
    return w


@pytest.mark.parametrize(
    "kind", ["normal", "one large value a block", "scales from 1e-4 to 1e4", "blocks of zeros"]
)
@pytest.mark.parametrize("type", ROUNDED, ids=lambda type: type.name)
def test_quantized_blocks_are_those_of_the_gguf_package(type, kind):
    w = weights(kind, 24, 320)
    expected = quants.quantize(w.numpy(), GGMLQuantizationType[type.stored])
    assert torch.equal(kernels.quantize(type, w), torch.from_numpy(expected))


def weighted_error(type, blocks, w, importance):
    return ((dequantized(type, blocks) - w).square() * importance).sum().item()


@pytest.mark.parametrize("kind", ["plain", "weighted"])
@pytest.mark.parametrize("type", SEARCHED, ids=lambda type: type.name)
def test_searched_blocks_leave_less_error_than_those_of_llama_cpp(type, kind):
    pytest.importorskip("llama_cpp")
    w = torch.distributions.StudentT(5.0).sample((16, 512)) / 50
    importance = torch.ones(512) if kind == "plain" else torch.rand(512).square() + 0.01
    theirs = llama.quantize_weight(type, w, None if kind == "plain" else importance)
    found = weighted_error(type, kernels.quantize(type, w, importance), w, importance)
    assert found < 0.985 * weighted_error(type, theirs, w, importance)


@pytest.mark.parametrize(
    "kind",
    ["one large value a block", "scales from 1e-4 to 1e4", "blocks of zeros", "all negative"],
)
@pytest.mark.parametrize("type", SEARCHED, ids=lambda type: type.name)
def test_searched_blocks_follow_values_of_any_kind(type, kind):
    pytest.importorskip("llama_cpp")
    w = weights(kind, 10, 512)
    theirs = dequantized(type, llama.quantize_weight(type, w)) - w
    found = dequantized(type, kernels.quantize(type, w, torch.ones(512))) - w
    each = found.norm(dim=1) / theirs.norm(dim=1)
    assert each.mean() < 1.001  # the same where all but one value become 0
    assert each.max() < 2


@pytest.mark.parametrize("type", SEARCHED, ids=lambda type: type.name)
def test_values_that_a_type_can_hold_are_found_again(type):
    """Of the blocks that are drawn only the values matter: different bits may stand for the same ones."""
    w = dequantized(type, kernels.quantize(type, torch.randn(4, 512), torch.ones(512))).float()
    again = dequantized(type, kernels.quantize(type, w, torch.ones(512)))
    assert relative_error(again, w.double()) < 0.01


@once
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_the_table_of_types_is_that_of_the_gguf_package(type):
    stored = GGMLQuantizationType(type.ggml_id)
    assert stored.name == type.stored
    assert GGML_QUANT_SIZES[stored] == (type.n_values, type.n_bytes)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_dequantized_values_are_those_of_the_gguf_package(type):
    blocks = draw_blocks(type, 24, 3 * type.n_values)
    expected = quants.dequantize(blocks.numpy(), GGMLQuantizationType[type.stored])
    assert torch.equal(kernels.dequantize(type, blocks), torch.from_numpy(expected))


@pytest.mark.parametrize("n_out", [16, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_rows_that_are_looked_up_are_those_that_were_packed(type, n_out, dtype):
    blocks = draw_blocks(type, n_out, 3 * type.n_values)
    rows = torch.tensor([0, n_out - 1, 7, 7, 3])
    found = kernels.look_up(kernels.pack(type, blocks), rows, dtype)
    assert torch.equal(found, kernels.dequantize(type, blocks)[rows].to(dtype))


@pytest.mark.parametrize(("n_out", "n_blocks"), SHAPES)
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_linear_equals_float64_up_to_the_rounding_of_activations(type, n_out, n_blocks):
    n_in = n_blocks * type.n_values
    blocks = draw_blocks(type, n_out, n_in)
    x = torch.randn(23, n_in)
    packed = kernels.pack(type, blocks)
    y = kernels.linear(x, packed)
    expected = rounded_activations(x, type) @ dequantized(type, blocks).T
    assert y.shape == (23, n_out)
    assert packed.panels.nbytes == kernels.count_packed_bytes(type, n_out, n_in)
    # One activation in a thousand lies so near the middle of two integers that it may round either way.
    assert relative_error(y, expected) < 1e-3


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_out=st.integers(1, 70),
    n_blocks=st.integers(1, 5),
    T=st.integers(1, 40),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    draw=st.integers(0, 1 << 31),
)
def test_linear_equals_float64_for_any_shape(type, n_out, n_blocks, T, size, draw):
    torch.manual_seed(draw)
    n_in = n_blocks * type.n_values
    blocks, x = draw_blocks(type, n_out, n_in), torch.randn(T, n_in) * size
    expected = rounded_activations(x, type) @ dequantized(type, blocks).T
    # Here a single activation that rounds the other way is a larger part of the whole.
    assert relative_error(kernels.linear(x, kernels.pack(type, blocks)), expected) < 1e-2


@pytest.mark.parametrize("heads", ["from 1e-7 to 1e4", "every other one 0", "all negative"])
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_linear_survives_adversarial_scales(type, heads):
    n_out, n_blocks = 48, 8
    drawn = {
        "from 1e-7 to 1e4": torch.logspace(-7, 4, n_out)[:, None, None],
        "every other one 0": torch.tensor([0.0, 1.0] * (n_blocks // 2))[None, :, None],
        "all negative": -1.0,
    }
    blocks = draw_blocks(type, n_out, n_blocks * type.n_values, drawn[heads])
    x = torch.randn(5, n_blocks * type.n_values) * torch.logspace(-6, 6, n_blocks * type.n_values)
    y = kernels.linear(x, kernels.pack(type, blocks))
    expected = rounded_activations(x, type) @ dequantized(type, blocks).T
    size = rounded_activations(x, type).abs() @ dequantized(type, blocks).abs().T
    assert ((y.double() - expected).abs() <= 1e-3 * size + 1e-30).all()


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_the_largest_products_do_not_overflow(type):
    """Every quant and every activation at its extreme, which 16-bit sums could not hold by accident."""
    n_in = 4 * type.n_values
    blocks = torch.zeros(64, 4, type.n_bytes, dtype=torch.uint8)
    for rows, byte in zip(blocks.split(16), (0x80, 0x7F, 0xFF, 0), strict=True):
        rows[:] = byte
    set_heads(type, blocks, 1.0)
    blocks = blocks.flatten(1)
    for sign, mixed in itertools.product((1, -1), (False, True)):
        x = torch.full((20, n_in), 127.0 * sign)
        if mixed:
            x[:, ::2] *= -1
        for T in (4, 20):
            y = kernels.linear(x[:T], kernels.pack(type, blocks))
            expected = x[:T].double() @ dequantized(type, blocks).T
            size = x[:T].double().abs() @ dequantized(type, blocks).abs().T
            # What is a sum of whole numbers of fewer than 24 bits is exact.
            assert ((y.double() - expected).abs() <= (size >= 2**24) * size * 1e-6).all()


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_out", [40, 200, 3000])
def test_a_token_gets_the_same_bits_whatever_is_beside_it(type, dtype, n_out):
    """However many there are, and whether or not panels are left over from those that are read at once."""
    n_in = 3 * type.n_values
    weight = kernels.pack(type, draw_blocks(type, n_out, n_in))
    x = torch.randn(50, n_in).to(dtype)
    alone = torch.cat([kernels.linear(row[None], weight) for row in x])
    for T in (*range(1, 21), 31, 32, 33, 39, 50):
        assert torch.equal(kernels.linear(x[:T], weight), alone[:T]), T


@once
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_the_instruction_sets_of_a_processor_give_the_same_bits(type):
    n_in = (34 if type.n_values == 32 else 5) * type.n_values
    weight = kernels.pack(type, draw_blocks(type, 72, n_in))
    x, found = torch.randn(50, n_in), []
    for name in SETS:
        if name != "portable":  # whose products and sums are rounded one after the other
            kernels._native.use(name)
            found.append([kernels.linear(x[:T], weight) for T in (*range(1, 21), 33, 50)])
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize(
    ("T", "n_out", "n_in"), [(1, 64, 96), (5, 70, 100), (4, 3, 40), (8, 1, 33), (9, 1, 33), (31, 131, 1100)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bfloat16_linear_equals_float64(T, n_out, n_in, dtype):
    w, x = torch.randn(n_out, n_in).bfloat16(), torch.randn(T, n_in).to(dtype)
    y = kernels.linear_bf16(w, x)
    assert relative_error(y, x.double() @ w.double().T) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize(
    ("T", "n_out", "n_in"), [(1, 64, 128), (5, 70, 64), (8, 3, 640), (9, 1, 64), (31, 131, 1088)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("levels", ["nf4", "fp4"])
def test_a_linear_of_16_levels_is_that_of_bitsandbytes(T, n_out, n_in, dtype, levels):
    w, x = torch.randn(n_out, n_in).bfloat16(), torch.randn(T, n_in).to(dtype)
    quants, state = quantize_4bit(w, blocksize=64, quant_type=levels)
    y = kernels.linear_levels(x, kernels.LevelWeight(quants, state.absmax, state.code), n_out)
    widened = dequantize_4bit(quants, state)
    assert relative_error(y, x.double() @ widened.double().T) < (1e-6 if dtype == torch.float32 else 4e-3)


def attention(q, k, v, seen):
    _, H, D = q.shape
    k, v = (x.double().repeat_interleave(H // x.shape[0], 0) for x in (k, v))
    scores = torch.einsum("thd,hsd->hts", q.double(), k) / D**0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hts,hsd->thd", weights, v)


def make_rings(spans, K, D, kv_type=KvType.BF16):
    """Keys and values (K, capacity, D) for each of `spans` (capacity, first, n, window), full of old ones."""
    form = choose_format(kv_type, torch.bfloat16, D)
    return [tuple(form.encode(torch.randn(K, capacity, D)) for _ in range(2)) for capacity, *_ in spans]


def attend(q, k, v, spans, rings, *, is_prompt):
    """The kernels' attention in the only layer of `rings`."""
    addresses = [array("q", [ring.data_ptr() for ring in pair]) for pair in rings]
    is_q8 = rings[0][0].dtype == torch.uint8
    described = [RingSpan(a, *span, is_prompt, is_q8) for a, span in zip(addresses, spans, strict=True)]
    return kernels.attend(q, k, v, RingSpans(described), 0)


@functools.cache
def visible_slots(capacity, first, n, window):
    """Which slots (n, capacity) each token sees, position by position as the definition has it."""
    slots = torch.zeros(n, capacity, dtype=torch.bool)
    for position in range(first, first + n):
        oldest = max(0, position - window + 1) if window else 0
        for other in range(oldest, position + 1):
            slots[position - first, other % capacity] = True
    return slots


# Of each sequence: the slots of its ring, its first position, its tokens and its window. The last positions
# of a span overwrite what its first token no longer sees.
BATCHES = {
    "one token": [(1300, 1299, 1, 0)],
    "one token of a ring that has wrapped": [(700, 12_345, 1, 600)],
    "a prompt": [(300, 0, 60, 0)],
    "a prompt across the end of the ring": [(359, 1040, 60, 300)],
    "a prompt's first chunks, window of one": [(60, 0, 60, 1)],
    "the beginning": [(1, 0, 1, 0)],
    "sequences of every kind": [
        (300, 0, 60, 0),
        (77, 76, 1, 0),
        (519, 2000, 7, 513),
        (400, 390, 9, 0),
        (16, 40, 1, 5),
    ],
}


# Of bfloat16, and of blocks, the last of which is short where D is no multiple of 32.
@pytest.mark.parametrize(
    ("kv_type", "H", "K", "D"),
    [
        *((KvType.BF16, *heads) for heads in [(32, 8, 128), (9, 3, 64), (4, 4, 16), (8, 2, 32)]),
        *((KvType.Q8_0, *heads) for heads in [(32, 8, 128), (9, 3, 64), (4, 4, 16), (7, 1, 48)]),
    ],
)
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("is_prompt", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_equals_float64_over_rings(spans, kv_type, H, K, D, dtype, is_prompt):
    N = sum(n for _, _, n, _ in spans)
    q, rings = torch.randn(N, H, D).to(dtype), make_rings(spans, K, D, kv_type)
    form = choose_format(kv_type, torch.bfloat16, D)
    k, v = (torch.randn(N, K, D).bfloat16() for _ in range(2))
    out, at = attend(q, k, v, spans, rings, is_prompt=is_prompt), 0
    for (capacity, first, n, window), (keys, values) in zip(spans, rings, strict=True):
        here, at = slice(at, at + n), at + n
        slots = [position % capacity for position in range(first, first + n)]
        assert torch.equal(keys[:, slots], form.encode(k[here].transpose(0, 1)))
        assert torch.equal(values[:, slots], form.encode(v[here].transpose(0, 1)))
        keys, values = (form.decode(ring, torch.float32) for ring in (keys, values))
        expected = attention(q[here], keys, values, visible_slots(capacity, first, n, window))
        assert relative_error(out[here], expected) < (1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("kv_type", KvType)
@pytest.mark.parametrize("is_prompt", [False, True])
def test_attention_of_a_sequence_is_the_same_to_the_bit_beside_others(is_prompt, kv_type):
    H, K, D, spans = 9, 3, 64, BATCHES["sequences of every kind"]
    N = sum(n for _, _, n, _ in spans)
    q, rings = torch.randn(N, H, D).bfloat16(), make_rings(spans, K, D, kv_type)
    k, v = (torch.randn(N, K, D).bfloat16() for _ in range(2))
    together, at = attend(q, k, v, spans, rings, is_prompt=is_prompt), 0
    for span, ring in zip(spans, rings, strict=True):
        here, at = slice(at, at + span[2]), at + span[2]
        alone = attend(q[here], k[here], v[here], [span], [ring], is_prompt=is_prompt)
        assert torch.equal(together[here], alone)


@pytest.mark.parametrize("kv_type", KvType)
def test_a_generated_token_attends_by_the_same_bits_alone_and_with_others_of_its_answer(kv_type):
    """Up to eight tokens are checked at once, whose queries share the keys as they are read."""
    H, K, D, capacity, first = 8, 2, 64, 333, 320
    q, (ring,) = torch.randn(8, H, D), make_rings([(capacity, first, 8, 0)], K, D, kv_type)
    k, v = (torch.randn(8, K, D).bfloat16() for _ in range(2))
    together = attend(q, k, v, [(capacity, first, 8, 0)], [ring], is_prompt=False)
    for t in range(8):
        one = slice(t, t + 1)
        alone = attend(q[one], k[one], v[one], [(capacity, first + t, 1, 0)], [ring], is_prompt=False)
        assert torch.equal(together[one], alone)


def test_what_is_no_number_stays_so_in_blocks_and_spoils_only_its_block():
    form = choose_format(KvType.Q8_0, torch.bfloat16, 64)
    k = torch.zeros(1, 5, 64).bfloat16()
    k[0, 0, 3], k[0, 1, 40], k[0, 2, 5], k[0, 3, 0] = torch.nan, torch.inf, 3.3895314e38, 1e-40
    ring = tuple(torch.zeros(5, 1, 68, dtype=torch.uint8) for _ in range(2))
    attend(torch.randn(1, 5, 64), k, k, [(1, 0, 1, 0)], [ring], is_prompt=False)
    assert torch.equal(ring[0][:, 0], form.encode(k[0]))
    found = form.decode(ring[0][:, 0], torch.float32)
    assert found[:2].isnan().nonzero().tolist() == [
        *([0, d] for d in range(32)),
        *([1, d] for d in range(32, 64)),
    ]
    assert not found[:2].nan_to_num(0).any()
    torch.testing.assert_close(found[2:], k[0, 2:].float(), rtol=4e-3, atol=1e-40)


def test_attention_with_scores_far_apart_does_not_overflow():
    q = torch.full((1, 4, 32), 90.0)
    keys = torch.linspace(-9, 9, 700)[None, :, None].expand(1, 700, 32).bfloat16().contiguous()
    values = torch.randn(1, 700, 32).bfloat16()
    k, v = (ring[:, -1:].clone().transpose(0, 1) for ring in (keys, values))
    out = attend(q, k, v, [(700, 699, 1, 0)], [(keys, values)], is_prompt=False)
    seen = torch.ones(1, 700, dtype=torch.bool)
    assert relative_error(out, attention(q, keys, values, seen)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [16, 100, 576])
def test_norm_rotation_and_swiglu_equal_torch(dim, dtype):
    from m7b.runtime.backends.eager import TORCH

    x, w, up = torch.randn(11, dim).to(dtype), torch.randn(dim).to(dtype), torch.randn(11, dim).to(dtype)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1.6e-2, "atol": 1e-3}
    torch.testing.assert_close(kernels.rms_norm(x, w, 1e-5), TORCH.rms_norm(x, w, 1e-5), **close)
    torch.testing.assert_close(kernels.swiglu(x * 30, up), TORCH.swiglu(x * 30, up), **close)
    angles = torch.rand(11, 1, dim // 2) * 9
    heads = x.view(11, 1, dim).expand(11, 3, dim)
    turned = kernels.rotate(heads, angles.cos(), angles.sin())
    torch.testing.assert_close(turned, TORCH.rotate(heads, angles.cos(), angles.sin()), **close)


@pytest.mark.parametrize(
    ("T", "n_in", "n_out", "rank"), [(1, 100, 70, 16), (5, 4200, 33, 32), (3, 64, 2100, 48)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_update_adds_what_float64_does(T, n_in, n_out, rank, dtype):
    down, up = torch.randn(rank, n_in).bfloat16(), torch.randn(rank, n_out).bfloat16()
    scales, x, y = torch.randn(rank), torch.randn(T, n_in).to(dtype), torch.randn(T, n_out).to(dtype)
    expected = y.double() + (x.double() @ down.double().T * scales) @ up.double()
    kernels.add_update(x, y, UpdateArrays(down, up, scales))
    assert relative_error(y, expected) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_results_are_rounded_to_bfloat16_as_torch_rounds_them():
    """Many products lie half way between two numbers; among the rest are infinities and a NaN."""
    from m7b.runtime.backends.eager import TORCH

    x = torch.randn(40, 3, 34).bfloat16()
    x[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x[1, 0, :2] = torch.tensor([3.3895314e38, 1e-40])  # the largest, and one that is not normal
    cos, sin = 1 + torch.randint(512, (40, 1, 17)) / 512, torch.zeros(40, 1, 17)
    found, expected = kernels.rotate(x, cos, sin), TORCH.rotate(x, cos, sin)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_the_number_of_threads_changes_no_bit():
    weight = kernels.pack(BlockType.Q4_0, kernels.quantize(BlockType.Q4_0, torch.randn(500, 512)))
    x, q = torch.randn(20, 512), torch.randn(1, 8, 64)
    ring, k = make_rings([(3000, 2999, 1, 0)], 2, 64), torch.randn(1, 2, 64).bfloat16()
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            found.append(
                (
                    kernels.linear(x, weight),
                    attend(q, k, k, [(3000, 2999, 1, 0)], ring, is_prompt=False),
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


def test_two_python_threads_may_call_at_once():
    weight = kernels.pack(BlockType.Q8_0, kernels.quantize(BlockType.Q8_0, torch.randn(64, 64)))
    xs = [torch.randn(n, 64) for n in (1, 33)]
    expected = [kernels.linear(x, weight) for x in xs]
    wrong = []

    def work(i):
        for _ in range(300):
            if not torch.equal(kernels.linear(xs[i], weight), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_computes_too():
    """The threads of a pool do not survive a fork: the child must make its own."""
    weight = kernels.pack(BlockType.Q4_0, kernels.quantize(BlockType.Q4_0, torch.randn(640, 64)))
    x = torch.randn(1, 64)
    expected = kernels.linear(x, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(kernels.linear(x, weight), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_byte_sum_reads_every_byte():
    data = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 3_000_001, dtype=np.uint8))
    assert kernels.read_sum(data) == data.sum().item()


@once
@pytest.mark.parametrize(("value", "told"), [("portable", "portable"), ("off", "None")])
def test_a_variable_names_the_instruction_set(value, told):
    code = "from m7b.runtime import kernels; print(kernels.instruction_set())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"M7B_KERNELS": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == told


@once
def test_an_instruction_set_that_is_not_there_is_refused():
    code = "from m7b.runtime import kernels"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"M7B_KERNELS": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "M7B_KERNELS is 'mmx'" in ran.stderr
