"""Choosing the next token: filters against transformers' own, and the Sampler against definitions."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
import transformers

from m7b.errors import DamagedCheckpoint, UsageError
from m7b.generation import SamplingParams
from m7b.runtime.engine import sampling
from m7b.runtime.engine.sampling import Sampler, compute_logprob
from tests.support.checkpoints import mistral

FILTERS = {
    "top_k": (sampling.keep_top_k, transformers.TopKLogitsWarper, (1, 2, 7, 50, 1000)),
    "top_p": (sampling.keep_top_p, transformers.TopPLogitsWarper, (0.0, 0.01, 0.3, 0.8, 0.95, 0.999)),
    "min_p": (sampling.keep_min_p, transformers.MinPLogitsWarper, (0.001, 0.05, 0.3, 1.0)),
    "typical_p": (sampling.keep_typical, transformers.TypicalLogitsWarper, (0.05, 0.2, 0.7, 0.95)),
    "temperature": (sampling.apply_temperature, transformers.TemperatureLogitsWarper, (0.05, 0.7, 1.0, 3.0)),
}
LOGITS = torch.tensor([1.0, -2.0, 3.0, 0.5, 2.0, -1.0])


def sampler_of(params: SamplingParams, prompt: list[int], vocab_size: int, seed: int) -> Sampler:
    return Sampler(replace(params, seed=seed), prompt, vocab_size)


def random_logits(n: int = 100, least: int = 2):
    """Logits (V,) of many sizes and scales, from flat to peaked; float32 draws this few do not tie."""
    generator = torch.Generator().manual_seed(5)
    for i in range(n):
        size = int(torch.randint(least, 300, (), generator=generator))
        yield torch.randn(size, generator=generator) * (0.1, 1.0, 3.0, 10.0)[i % 4]


def theirs(processor: transformers.LogitsProcessor, logits: torch.Tensor, history: list[int]) -> torch.Tensor:
    return processor(torch.tensor([history], dtype=torch.int64), logits[None].clone())[0]


def assert_same_choice(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Same survivors, and values that differ by one constant: softmax cannot tell them apart."""
    assert (ours > -math.inf).tolist() == (expected > -math.inf).tolist()
    torch.testing.assert_close(ours - ours.max(), expected - expected.max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, _, values) in FILTERS.items() for value in values]
)
def test_filter_equals_that_of_transformers(name, value):
    ours, oracle, _ = FILTERS[name]
    for logits in random_logits():
        assert_same_choice(ours(logits, value), theirs(oracle(value), logits, []))


@pytest.mark.parametrize("penalty", [0.3, 0.9, 1.0, 1.1, 2.0])
def test_repetition_penalty_equals_that_of_transformers(penalty):
    for logits in random_logits(least=8):
        history = [0, 3, 3, 7, 3]
        counts = torch.tensor(history).bincount(minlength=len(logits))
        ours = sampling.penalize_repetition(logits, counts, penalty)
        expected = theirs(transformers.RepetitionPenaltyLogitsProcessor(penalty), logits, history)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
        {"temperature": 2.5, "top_k": 30, "top_p": 0.5},
        {"temperature": 0.4, "top_p": 0.95, "min_p": 0.1},
        {"temperature": 1.7, "top_p": 0.8, "typical_p": 0.6, "repetition_penalty": 1.8},
        {"temperature": 1.3, "top_k": 40, "logit_bias": {5: 4.0, 17: -3.0, 40: 6.0, 41: -50.0}},
        {"temperature": 1.0, "logit_bias": {1: 3.0, 8: 5.0, 9: -2.0}, "repetition_penalty": 1.5},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_filters_come_in_the_order_of_transformers_generate(settings):
    """Raw and processed logits of `generate` on a tiny model, step by step."""
    prompt = [1, 8, 9, 8]
    config = {"top_k": 0, "do_sample": True, "max_new_tokens": 12, "pad_token_id": 0} | settings
    if bias := config.pop("logit_bias", None):
        config["sequence_bias"] = {(token,): value for token, value in bias.items()}
    report = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    torch.manual_seed(0)
    answer = mistral().generate(
        torch.tensor([prompt]), generation_config=transformers.GenerationConfig(**config, **report)
    )
    ids = answer.sequences[0].tolist()
    for i, (raw, expected) in enumerate(zip(answer.logits, answer.scores, strict=True)):
        sampler = sampler_of(SamplingParams(**settings), ids[: len(prompt) + i], raw.shape[-1], seed=0)
        assert_same_choice(sampler.filter_logits(raw[0].float()).float(), expected[0].float())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"presence_penalty": 0.5}, [0.5, -2.0, 2.5, 0.5, 2.0, -1.5]),
        ({"frequency_penalty": 0.25}, [0.75, -2.0, 2.25, 0.5, 2.0, -1.25]),
        ({"presence_penalty": 1.0, "frequency_penalty": 0.5}, [-0.5, -2.0, 0.5, 0.5, 2.0, -2.5]),
        ({"presence_penalty": 1.0, "repeat_last_n": 2}, [0.0, -2.0, 2.0, 0.5, 2.0, -1.0]),
        ({"frequency_penalty": 1.0, "repeat_last_n": 3}, [0.0, -2.0, 1.0, 0.5, 2.0, -1.0]),
        ({"presence_penalty": 1.0, "repeat_last_n": 0}, [1.0, -2.0, 3.0, 0.5, 2.0, -1.0]),
        ({"presence_penalty": 1.0, "repeat_last_n": 99}, [0.0, -2.0, 2.0, 0.5, 2.0, -2.0]),
        ({"repetition_penalty": 2.0, "repeat_last_n": 2}, [0.5, -2.0, 1.5, 0.5, 2.0, -1.0]),
        ({"logit_bias": {1: 7.5, 5: -0.5}}, [1.0, 5.5, 3.0, 0.5, 2.0, -1.5]),
        ({"logit_bias": {2: -math.inf}}, [1.0, -2.0, -math.inf, 0.5, 2.0, -1.0]),
    ],
    ids=str,
)
def test_penalties_and_bias_follow_their_definitions(settings, expected):
    """Worked by hand: token 2 was seen three times, 0 and 5 once, most lately 2 and 0."""
    sampler = sampler_of(SamplingParams(temperature=0, **settings), [5, 2, 2, 0, 2], len(LOGITS), seed=0)
    assert sampler.filter_logits(LOGITS).tolist() == expected


def test_penalties_are_subtracted_in_the_numbers_of_the_logits():
    """They were rounded to float32 on the way, which broke ties that there are."""
    counts = torch.tensor([3, 1, 0])
    found = sampling.penalize_presence_and_frequency(torch.zeros(3, dtype=torch.float64), counts, 0.1, 0.6)
    expected = torch.tensor([-0.1 - 0.6 * 3, -0.1 - 0.6, 0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_chosen_tokens_join_those_that_are_penalized():
    params = SamplingParams(temperature=0, presence_penalty=10, repeat_last_n=2)
    sampler = sampler_of(params, [3], len(LOGITS), seed=0)
    assert [sampler.choose(LOGITS) for _ in range(5)] == [2, 4, 0, 2, 4]


@pytest.mark.parametrize(
    ("logits", "expected"), [([1, 5, 3], 1), ([0, 7, 7, 7], 1), ([2, 2], 0), ([-4, -9, -4], 0)]
)
def test_temperature_0_is_argmax_with_the_lowest_id_on_a_tie(logits, expected):
    sampler = sampler_of(SamplingParams(temperature=0, top_k=2), [0], len(logits), seed=0)
    assert sampler.choose(torch.tensor(logits, dtype=torch.float32)) == expected


@pytest.mark.parametrize("strictest", [{"top_k": 1}, {"top_p": 0}, {"min_p": 1}, {"typical_p": 0}], ids=str)
def test_strictest_setting_of_a_filter_keeps_one_token(strictest):
    for logits in random_logits(40):
        sampler = sampler_of(SamplingParams(temperature=1.5, **strictest), [0], len(logits), seed=0)
        survivors = (sampler.filter_logits(logits) > -math.inf).nonzero().flatten().tolist()
        assert len(survivors) == 1
        assert "typical_p" in strictest or survivors == [int(logits.argmax())]


def tokens(params: SamplingParams, seed: int, n: int) -> list[int]:
    sampler = sampler_of(params, [0], len(LOGITS), seed)
    return [sampler.choose(LOGITS) for _ in range(n)]


def test_seed_alone_decides_the_draws():
    params = SamplingParams(temperature=2.0)
    first = tokens(params, 11, 40)
    torch.manual_seed(99)  # nobody else's generator matters
    assert tokens(params, 11, 40) == first
    assert len({tuple(tokens(params, seed, 40)) for seed in range(8)}) == 8


@pytest.mark.parametrize(
    ("settings", "expected", "critical"),
    [  # the logits of the distribution, and chi-square's 99.9 % quantile for its tokens less one
        ({"temperature": 1.0}, [1, -2, 3, 0.5, 2, -1], 20.5),
        ({"temperature": 2.5}, [0.4, -0.8, 1.2, 0.2, 0.8, -0.4], 20.5),
        ({"temperature": 1.0, "top_k": 3}, [1, -99, 3, -99, 2, -99], 13.8),
        ({"temperature": 1.0, "logit_bias": {2: -math.inf}}, [1, -2, -99, 0.5, 2, -1], 18.5),
    ],
    ids=["plain", "hot", "top_k", "bias"],
)
def test_draws_follow_the_distribution(settings, expected, critical):
    n_draws = 20_000
    drawn = torch.tensor(tokens(SamplingParams(**settings), 3, n_draws)).bincount(minlength=len(LOGITS))
    counts = n_draws * torch.tensor(expected, dtype=torch.float64).softmax(-1)
    chi_square = ((drawn - counts) ** 2 / counts).sum()
    assert chi_square < critical


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_mean_a_damaged_checkpoint(bad):
    logits = LOGITS.clone()
    logits[3] = bad
    with pytest.raises(DamagedCheckpoint, match="not numbers"):
        sampler_of(SamplingParams(), [0], len(logits), seed=0).choose(logits)


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_bias_that_bans_every_token_is_refused(temperature):
    bias = dict.fromkeys(range(len(LOGITS)), -math.inf)
    sampler = sampler_of(SamplingParams(temperature=temperature, logit_bias=bias), [0], len(LOGITS), seed=0)
    with pytest.raises(UsageError, match="logit_bias"):
        sampler.choose(LOGITS)


@pytest.mark.parametrize("token", [-1, 6, 10**30])
def test_bias_outside_the_vocabulary_is_refused(token):
    with pytest.raises(UsageError, match=f"{token}.*from 0 to 5"):
        sampler_of(SamplingParams(logit_bias={token: 1.0}), [0], len(LOGITS), seed=0)


@pytest.mark.parametrize("temperature", [1e-30, 1e-44, 1e-46, 5e-324])
def test_smallest_temperatures_draw_the_argmax(temperature):
    params = SamplingParams(temperature=temperature, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9)
    assert tokens(params, 0, 5) == [2] * 5


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e300},
        *({"repetition_penalty": value} for value in (1e-40, 1e40)),
        *({f"{kind}_penalty": value} for kind in ("presence", "frequency") for value in (1e39, -1e39)),
        *({"logit_bias": {3: value}} for value in (1e39, -1e39)),
        {"logit_bias": {2: 1e308}, "repetition_penalty": 0.01},
        {"logit_bias": dict.fromkeys(range(6), -1e308), "repetition_penalty": 100},
    ],
    ids=str,
)
def test_finite_settings_that_may_overflow_choose_a_token_or_are_refused(extreme):
    """Once a RuntimeError of torch ended the program."""
    with contextlib.suppress(UsageError):
        sampler = sampler_of(SamplingParams(**extreme), [*range(6)], len(LOGITS), seed=0)
        assert 0 <= sampler.choose(LOGITS) < len(LOGITS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        *((field, bad) for field in ("top_p", "min_p", "typical_p") for bad in (-0.01, 1.01, math.nan)),
        *(("temperature", bad) for bad in (-0.1, math.inf, math.nan)),
        ("top_k", -1),
        *(("repetition_penalty", bad) for bad in (0, -1, math.inf, math.nan)),
        *((f"{kind}_penalty", bad) for kind in ("presence", "frequency") for bad in (math.inf, math.nan)),
        ("repeat_last_n", -2),
        ("logprobs", -1),
        *(("seed", bad) for bad in (-1, 2**63, 10**400)),
        ("stop", ("ok", "")),
        *(("logit_bias", {7: bad}) for bad in (math.inf, math.nan)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})


def test_logprobs_are_those_of_log_softmax_best_first():
    for logits in random_logits(10):
        entry = compute_logprob(logits, 1, top=len(logits) + 5)
        expected = logits.double().log_softmax(-1)
        assert (entry.token, entry.logprob) == (1, pytest.approx(float(expected[1]), abs=1e-4))
        ids, values = zip(*entry.top, strict=True)
        assert list(ids) == logits.argsort(descending=True).tolist()
        assert values == pytest.approx(expected[list(ids)].tolist(), abs=1e-4)
