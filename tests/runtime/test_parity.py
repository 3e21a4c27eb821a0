"""Logits against transformers' MistralForCausalLM, through the production loader."""

import itertools

import pytest
import torch

from tests.support.checkpoints import (
    engine,
    logits,
    mistral,
    oracle_logits,
    write_gguf,
    write_hf,
    write_native,
)

LENGTH = 53  # past 3 windows of 16
IDS = torch.randint(0, 64, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize(
    ("window", "n_kv_heads", "tied", "theta"),
    list(itertools.product([None, 4, 16], [1, 2, 8], [False, True], [1e4, 1e6])),
)
def test_logits_equal_those_of_transformers(tmp_path, window, n_kv_heads, tied, theta):
    model = mistral(window=window, theta=theta, tied=tied, num_key_value_heads=n_kv_heads)
    folder = write_hf(model, tmp_path)
    ours = logits(engine(folder, prefill_chunk=7), IDS)
    torch.testing.assert_close(ours, oracle_logits(model, IDS), rtol=0, atol=1e-5)


def test_head_size_need_not_be_dim_over_heads(tmp_path):
    model = mistral(window=4, head_dim=6)
    ours = logits(engine(write_hf(model, tmp_path)), IDS)
    torch.testing.assert_close(ours, oracle_logits(model, IDS), rtol=0, atol=1e-5)


def test_bfloat16_logits_stay_near_those_of_float32(tmp_path):
    model = mistral(window=16)
    folder = write_hf(model, tmp_path)
    ours, exact = logits(engine(folder, dtype="bfloat16"), IDS), logits(engine(folder), IDS)
    assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_three_formats_of_one_model_give_the_same_logits(tmp_path):
    model = mistral(window=16)
    paths = [
        write_hf(model, tmp_path / "hf"),
        write_native(model, tmp_path / "native"),
        write_native(model, tmp_path / "pth", pickle=True),
        write_gguf(model, tmp_path / "model.gguf"),
    ]
    expected = oracle_logits(model, IDS)
    for path in paths:
        torch.testing.assert_close(logits(engine(path), IDS), expected, rtol=0, atol=1e-5, msg=str(path))


@pytest.mark.parametrize("window", [4, 16])
def test_window_given_by_the_user_overrides_that_of_the_checkpoint(tmp_path, window):
    model = mistral(window=None)
    folder = write_hf(model, tmp_path)
    windowed = mistral(window=window)
    torch.testing.assert_close(
        logits(engine(folder, window=window), IDS), oracle_logits(windowed, IDS), rtol=0, atol=1e-5
    )
    write_hf(windowed, tmp_path)
    torch.testing.assert_close(
        logits(engine(folder, window=0), IDS), oracle_logits(model, IDS), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("prefill_chunk", [1, 3, 4, 32])
def test_one_layer_sees_the_window_to_the_token(tmp_path, prefill_chunk):
    """With one layer and window 4, token i depends on i-3 and not on i-4: four keys in all."""
    folder = write_hf(mistral(window=4, num_hidden_layers=1), tmp_path)
    running = engine(folder, prefill_chunk=prefill_chunk)
    base = logits(running, IDS)
    for changed in (0, 5, 21):
        ids = [*IDS]
        ids[changed] = (ids[changed] + 1) % 64
        difference = (logits(running, ids) - base).abs().amax(-1)
        moved = [position for position in range(LENGTH) if difference[position] > 1e-6]
        assert moved == list(range(changed, changed + 4))


def test_two_layers_reach_twice_as_far(tmp_path):
    """The reach after L layers is L * (window - 1) earlier tokens."""
    running = engine(write_hf(mistral(window=4), tmp_path))
    base = logits(running, IDS)
    ids = [(IDS[0] + 1) % 64, *IDS[1:]]
    difference = (logits(running, ids) - base).abs().amax(-1)
    assert difference[6] > 1e-6
    assert difference[7:].max() == 0
