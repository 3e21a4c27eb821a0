"""Many tokens chosen at once, where the logits are: each is the one that its sampler chooses alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from m7b.errors import DamagedCheckpoint, M7bError, UsageError
from m7b.generation import SamplingParams
from m7b.runtime.engine.device_sampling import Chosen, choose_together
from m7b.runtime.engine.sampling import Sampler, compute_logprob, draw

VOCAB = 50
IDS = st.integers(0, VOCAB - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0, 0.3, 1, 1, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([1, 1, 0.01, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0, 0, 0.01, 0.3, 1]),
    typical_p=st.sampled_from([1, 1, 0.05, 0.6, 0.99]),
    repetition_penalty=st.sampled_from([1, 1, 1.4, 0.7]),
    presence_penalty=st.sampled_from([0, 0, 0.8, -1.5]),
    frequency_penalty=st.sampled_from([0, 0, 0.6]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
    logit_bias=st.one_of(st.just({}), st.dictionaries(IDS, st.sampled_from([-math.inf, -3.0, 5.5]))),
    seed=st.integers(0, 1 << 40),
    logprobs=st.sampled_from([None, None, 0, 1, 4, 100]),
)
MASKS = st.one_of(st.none(), st.sets(IDS, min_size=1))


@st.composite
def requests(draw_one):
    """A sequence: its sampling, its prompt, and what a grammar allows."""
    return draw_one(PARAMS), draw_one(st.lists(IDS, max_size=80)), draw_one(MASKS)


def pack(allowed, n_bytes):
    bits = np.zeros(8 * n_bytes, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def choose_alone(sampler, params, row, mask):
    try:
        token = sampler.choose(row.clone(), mask)
    except M7bError as error:
        return error
    logprob = None if params.logprobs is None else compute_logprob(row, token, params.logprobs)
    return Chosen(token, logprob)


def assert_same_choice(found, expected):
    if isinstance(expected, M7bError):
        assert (type(found), str(found)) == (type(expected), str(expected))
        return
    assert isinstance(found, Chosen)
    assert found.token == expected.token
    if expected.logprob is None:
        assert found.logprob is None
        return
    assert found.logprob.logprob == pytest.approx(expected.logprob.logprob, abs=1e-5)
    values, wanted = ([value for _, value in each.logprob.top] for each in (found, expected))
    assert values == pytest.approx(wanted, abs=1e-5)


@settings(max_examples=400, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=6), st.integers(0, 1 << 30), st.booleans())
def test_what_is_chosen_together_is_what_each_sampler_chooses_alone(asked, seed, has_ties):
    generator = torch.Generator().manual_seed(seed)
    together, alone = ([Sampler(params, prompt, VOCAB) for params, prompt, _ in asked] for _ in range(2))
    masks = [None if mask is None else pack(mask, 7) for *_, mask in asked]
    for _ in range(4):
        logits = 3 * torch.randn(len(asked), VOCAB, generator=generator)
        logits = logits.round() if has_ties else logits
        wishes = [sampler.make_wish(mask) for sampler, mask in zip(together, masks, strict=True)]
        found = choose_together(logits, wishes)
        for sampler, chosen in zip(together, found, strict=True):
            if isinstance(chosen, Chosen):
                sampler.observe(chosen.token)
        for n, (params, *_) in enumerate(asked):
            assert_same_choice(found[n], choose_alone(alone[n], params, logits[n], masks[n]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_no_number_ends_no_other(bad):
    logits = torch.zeros(3, VOCAB)
    logits[1, 7], logits[2, 3] = bad, 1
    banned = SamplingParams(temperature=0, logit_bias=dict.fromkeys(range(VOCAB), -math.inf))
    samplers = [
        Sampler(params, [], VOCAB) for params in (banned, SamplingParams(), SamplingParams(temperature=0))
    ]
    found = choose_together(logits, [sampler.make_wish() for sampler in samplers])
    assert [type(each) for each in found] == [UsageError, DamagedCheckpoint, Chosen]
    assert found[2].token == 3


def test_a_wish_that_nobody_granted_stays_the_same():
    sampler = Sampler(SamplingParams(seed=3), [1], VOCAB)
    first = sampler.make_wish()
    assert sampler.make_wish().noise is first.noise
    sampler.observe(4)
    assert not torch.equal(sampler.make_wish().noise, first.noise)


def test_nothing_without_probability_is_drawn():
    shares = torch.tensor([0, 0.3, 0, 0.2, 0.5, 0], dtype=torch.float64)
    noise = torch.tensor([1e-300, 1, 1e-300, 1, 1, 1e-300], dtype=torch.float64)
    assert draw(shares, noise).tolist() == 4


def test_a_seed_draws_what_it_draws_by_torch():
    """So seeds give the text that they have always given, wherever the token is chosen."""
    logits = torch.randn(2000, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    sampler, generator = Sampler(SamplingParams(seed=9, temperature=1), [], VOCAB), torch.Generator()
    generator.manual_seed(9)
    for row in logits:
        shares = row.double().softmax(-1)
        assert sampler.choose(row) == int(torch.multinomial(shares, 1, generator=generator))


def test_only_the_result_leaves_the_device(monkeypatch):
    """Under fake tensors any look at a value fails; the one that is meant is what is read at the end."""
    params = SamplingParams(
        top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9, repetition_penalty=1.2, logit_bias={3: 1.0}, logprobs=2
    )
    wishes = [Sampler(params, [1, 2], VOCAB).make_wish(pack({1, 2, 3}, 7))] * 2
    read = []
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: read.append(tuple(tensor.shape)) or [])
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match="zip"):
        choose_together(torch.zeros(2, VOCAB), wishes)
    assert read == [(2, 3 + 1 + 2 * 2)]
