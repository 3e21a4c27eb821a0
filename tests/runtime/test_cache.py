"""The rolling cache: what it holds, what it lets a query see, and that none of it shows in the logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m7b.generation import SamplingParams, Step
from m7b.runtime.cache import CacheRow, RollingKVCache, visible
from m7b.runtime.model.batch import Span
from m7b.runtime.model.config import ModelConfig
from m7b.variants import VARIANTS
from tests.support.checkpoints import engine, logits, main_row, mistral, read, rewind, write_hf

WINDOWS = (None, 1, 2, 4, 5, 16)
IDS = torch.randint(0, 64, (80,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one_shot(folder):
    """Logits (T, V) of all of IDS read in one pass, for each window."""
    return read_at_once(folder, None)


@pytest.fixture(scope="module")
def one_shot_in_blocks(folder):
    """The same with keys and values in 8 bits."""
    return read_at_once(folder, "q8_0")


def read_at_once(folder, kv_type):
    options = {"prefill_chunk": len(IDS), "kv_type": kv_type}
    return {window: logits(engine(folder, window=window or 0, **options), IDS) for window in WINDOWS}


def make_row(window, prefill_chunk, ctx_size=64) -> CacheRow:
    config = ModelConfig(
        dim=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, hidden_dim=8, vocab_size=8, norm_eps=1e-5,
        rope_theta=1e4, sliding_window=window, max_seq_len=64, tied_embeddings=False,
    )  # fmt: skip
    cache = RollingKVCache(config, prefill_chunk=prefill_chunk, dtype=torch.float32, devices=["cpu"])
    return cache[cache.add_row(ctx_size)]


def take_up(row, length):
    """Write `length` tokens, each its position as its key; returns the positions that each of them sees."""
    span = Span(0, row.length, length)
    row.reserve(span)
    positions = torch.arange(span.first, span.end)
    keys, _ = row.write(0, span, *[positions[None, :, None].expand(1, length, 4).float()] * 2)
    row.commit(span)
    seen = visible(positions, row.slot_positions(span.end), row.window)
    return [sorted(keys[0, each, 0].int().tolist()) for each in seen]


def held(row):
    """The positions that stand in the slots."""
    return row.keys[0][0, : min(row.length, row.capacity), 0].int().tolist()


def test_the_worked_example_of_the_module():
    row = make_row(window=3, prefill_chunk=2)
    for _ in range(3):
        take_up(row, 2)
    assert row.capacity == 4
    assert held(row) == row.slot_positions(6).tolist() == [4, 5, 2, 3]
    assert take_up(row, 1) == [[4, 5, 6]]


@pytest.mark.parametrize("window", [1, 2, 3, 7, None])
@pytest.mark.parametrize("prefill_chunk", [1, 2, 3, 7, 8])
def test_every_token_sees_exactly_its_window(window, prefill_chunk):
    row = make_row(window, prefill_chunk)
    position = 0
    while position < 40:
        length = min(1 + position % prefill_chunk, 40 - position)
        for seen in take_up(row, length):
            first = 0 if window is None else max(0, position - window + 1)
            assert seen == list(range(first, position + 1))
            position += 1


def test_visible_counts_the_token_itself_among_the_window():
    seen = visible(torch.tensor([5]), torch.arange(-1, 8), window=3)
    assert seen.tolist() == [[False, False, False, False, True, True, True, False, False]]


@pytest.mark.parametrize("length", [3, 4, 5, 8, 9])  # W-1, W, W+1, 2W, 2W+1 for W = 4
@pytest.mark.parametrize("chunk", [1, 3, 4, 6])
def test_chunks_around_the_window_equal_one_shot(folder, one_shot, length, chunk):
    running = engine(folder, window=4, prefill_chunk=chunk)
    torch.testing.assert_close(logits(running, IDS[:length]), one_shot[4][:length], rtol=0, atol=1e-5)


MOVES = st.lists(st.tuples(st.sampled_from(["read", "rewind"]), st.integers(0, 80)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(window=st.sampled_from(WINDOWS), prefill_chunk=st.integers(1, 20), moves=MOVES)
def test_any_chunking_and_any_legal_rewind_equal_one_shot(folder, one_shot, window, prefill_chunk, moves):
    """Reads of any size and rewinds in any order: each logit is that of the whole sequence at once."""
    running = engine(folder, window=window or 0, prefill_chunk=prefill_chunk)
    follow(running, one_shot[window], prefill_chunk, moves, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(window=st.sampled_from(WINDOWS), prefill_chunk=st.integers(1, 20), moves=MOVES)
def test_so_do_they_with_keys_and_values_in_blocks(folder, one_shot_in_blocks, window, prefill_chunk, moves):
    """A last bit can decide how a key is rounded, which then shows by the width of its blocks."""
    running = engine(folder, window=window or 0, prefill_chunk=prefill_chunk, kv_type="q8_0")
    follow(running, one_shot_in_blocks[window], prefill_chunk, moves, atol=0.05)


def follow(running, expected, prefill_chunk, moves, *, atol):
    at = 0
    for move, size in moves:
        if move == "rewind":
            target = min(size, at)
            at = target if main_row(running).holds(target) else 0
            rewind(running, at)
            continue
        end = min(at + max(1, size % (prefill_chunk + 1)), len(IDS))
        if end > at:
            ours = read(running, IDS[at:end])
            torch.testing.assert_close(ours, expected[at:end], rtol=0, atol=atol)
            at = end


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from(WINDOWS),
    chunk=st.integers(1, 20),
    length=st.integers(1, 80),
    keep=st.integers(0, 80),
)
def test_rewinding_a_wrapped_cache_is_refused_only_where_a_key_is_lost(window, chunk, length, keep):
    row = make_row(window, chunk, ctx_size=80)
    position = 0
    while position < length:
        step = min(chunk, length - position)
        take_up(row, step)
        position += step
    keep = min(keep, length)
    needed = set(range(0 if window is None else max(0, keep - window + 1), keep))
    assert row.holds(keep) == (needed <= set(held(row)) or keep == 0)


def test_an_interrupt_inside_a_pass_leaves_the_cache_usable(folder, one_shot, monkeypatch):
    """Ctrl-C between two layers: the reserved slots count for nothing, even where they had wrapped."""
    for window, n_before in ((4, 3), (4, 30), (None, 10)):
        running = engine(folder, window=window or 0, prefill_chunk=6)
        for i in range(0, n_before, 6):
            read(running, IDS[i : min(i + 6, n_before)])
        with monkeypatch.context() as patch:
            patch.setattr(running.model.layers[1], "forward", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                read(running, IDS[n_before : n_before + 6])
        ours = torch.cat([read(running, IDS[i : i + 1]) for i in range(n_before, n_before + 12)])
        torch.testing.assert_close(ours, one_shot[window][n_before : n_before + 12], rtol=0, atol=1e-5)


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_second_prompt_reuses_what_it_shares_with_the_first(folder):
    running = engine(folder, window=0, prefill_chunk=16)
    params = SamplingParams(max_tokens=5, temperature=0)
    first = list(running.generate(IDS[:40], params))
    fresh = engine(folder, window=0, prefill_chunk=16)
    changed = [*IDS[:30], 7, 8, 9]
    again, expected = list(running.generate(changed, params)), list(fresh.generate(changed, params))
    assert first[0].reused == 0
    assert again[0].reused == 30
    assert [step.token for step in again if isinstance(step, Step)] == [
        step.token for step in expected if isinstance(step, Step)
    ]


def test_a_prompt_that_the_ring_has_lost_is_read_again(folder):
    running = engine(folder, window=4, prefill_chunk=3)
    params = SamplingParams(max_tokens=1, temperature=0)
    list(running.generate(IDS[:40], params))
    assert next(iter(running.generate(IDS[:20], params))).reused == 0
    list(running.generate(IDS[:40], params))
    assert next(iter(running.generate([*IDS[:38], 1], params))).reused == 38  # within the chunk's slack


def test_twenty_windows_leave_the_cache_as_large_as_before(folder):
    running = engine(folder, window=16, prefill_chunk=8, ctx_size=10_000)
    before = running.cache.n_bytes
    addresses = list(main_row(running).addresses)
    for start in range(0, 20 * 16, 8):
        read(running, [IDS[(start + i) % len(IDS)] for i in range(8)])
    assert main_row(running).length == 20 * 16
    assert (
        running.cache.n_bytes == before == (16 + 8 - 1) * 2 * 2 * 2 * 4 * 4
    )  # slots, k+v, layers, heads, D, float32
    assert addresses == [ring.data_ptr() for ring in main_row(running).list_rings()]


@pytest.mark.parametrize(
    ("variant", "ctx_size", "chunk", "expected"),
    [
        ("base-v0.1", 32768, 1, 536_870_912),  # the window alone
        ("base-v0.1", 32768, 512, 536_870_912 + 511 * 131_072),
        ("base-v0.1", 4096, 512, 536_870_912),  # no context beyond the window, no chunk beyond the context
        ("instruct-v0.3", 8192, 512, 1 << 30),
        ("instruct-v0.3", 32768, 512, 4 << 30),
    ],
)
def test_cache_bytes_at_the_true_shape(variant, ctx_size, chunk, expected):
    config = ModelConfig.of_variant(VARIANTS[variant])
    devices = ["meta"] * config.n_layers
    cache = RollingKVCache(config, prefill_chunk=chunk, dtype=torch.bfloat16, devices=devices)
    cache.add_row(ctx_size)
    assert cache.n_bytes == cache.row_bytes(ctx_size) == expected


def test_blocks_of_8_bits_take_half_the_memory_at_the_true_shape():
    config = ModelConfig.of_variant(VARIANTS["instruct-v0.3"])
    cache = RollingKVCache(
        config,
        prefill_chunk=512,
        dtype=torch.bfloat16,
        devices=["meta"] * config.n_layers,
        kv_type="q8_0",
    )
    cache.add_row(32768)
    assert cache.n_bytes == cache.row_bytes(32768) == 32768 * 2 * 32 * 8 * (128 + 4 * 2)
    assert cache.n_bytes < 0.54 * (4 << 30)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("window", [0, 5])
def test_a_copied_row_of_blocks_continues_as_one_that_was_read(folder, window, dtype):
    """Copies between sequences go slot by slot, whatever a slot holds."""
    params = SamplingParams(max_tokens=12, temperature=0)
    options = {"window": window, "prefill_chunk": 4, "dtype": dtype, "kv_type": "q8_0"}
    running = engine(folder, **options)
    both = [running.submit(IDS[:n], params, is_exact=False) for n in (40, 44)]
    while not all(each.is_done for each in both):
        running.step()
        found = [each.ids for each in both]
        [each.take() for each in both]
    for ids, n in zip(found, (40, 44), strict=True):
        alone_engine = engine(folder, **options)
        alone = alone_engine.submit(IDS[:n], params)
        while not alone.is_done:
            alone_engine.step()
            alone.take()
        assert ids == alone.ids


def test_the_kernels_and_torch_agree_over_blocks(tmp_path):
    """In bfloat16 by the kernels and in float32 by torch: the same but for the rounding of bfloat16."""
    wide = write_hf(mistral(hidden_size=128, num_attention_heads=4, num_key_value_heads=2), tmp_path)
    found = [
        logits(engine(wide, window=24, prefill_chunk=16, dtype=dtype, kv_type=kv_type), IDS)
        for dtype, kv_type in (("bfloat16", None), ("bfloat16", "q8_0"), ("float32", "q8_0"))
    ]
    errors = [(each.float() - found[2]).norm() / found[2].norm() for each in found[:2]]
    assert errors[1] < 1.1 * errors[0] + 1e-3


def test_numbers_left_by_one_prompt_do_not_reach_the_next(folder):
    """Once a NaN that a prompt had left in a slot spoilt every prompt that shared its first token."""
    running = engine(folder, window=0, prefill_chunk=16)
    params = SamplingParams(max_tokens=3, temperature=0)
    list(running.generate(IDS[:10], params))
    main_row(running).values[0][:, 5:].fill_(float("nan"))
    ours = [step.token for step in running.generate([*IDS[:4], 9, 9], params) if isinstance(step, Step)]
    fresh = engine(folder, window=0, prefill_chunk=16).generate([*IDS[:4], 9, 9], params)
    assert ours == [step.token for step in fresh if isinstance(step, Step)]


@pytest.mark.parametrize("window", [0, 16])
def test_a_sample_is_the_same_alone_and_after_others(folder, window):
    """In bfloat16 too, where the rounding of a prompt depends on the chunks it was read in."""
    options = {"window": window, "prefill_chunk": 16, "dtype": "bfloat16"}
    params = [SamplingParams(max_tokens=30, temperature=1, seed=seed) for seed in range(4)]
    running = engine(folder, **options)
    together = [list(running.generate(IDS[:40], each))[-30:] for each in params]
    alone = [list(engine(folder, **options).generate(IDS[:40], each))[-30:] for each in params]
    assert together == alone
    running.forget()
    assert list(running.generate(IDS[:40], params[0]))[-30:] == alone[0]
