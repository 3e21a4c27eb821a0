"""Guesses at the next tokens: whatever they are, the answer is the one without them, to the bit."""

import contextlib
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralForCausalLM

from m7b.generation import SamplingParams
from m7b.runtime.engine import Sequence
from m7b.runtime.engine import sequence as sequence_module
from m7b.runtime.engine.lookup import Lookup
from m7b.runtime.model.batch import Batch
from tests.runtime.test_scheduler import (
    GREEDY,
    LIMITS,
    NATIVE,
    PARAMS,
    SHAPE,
    TEXTS,
    TO_THE_BIT,
    VOCAB,
    WAYS,
    answer_all,
    assert_same,
    steps,
)
from tests.support.checkpoints import engine, mistral, write_hf

EXACT = ("q4_0", "q8_0", "int8")
LONG = tuple(replace(params, max_tokens=30) for params in PARAMS)
LONG += (replace(LONG[4], logprobs=1), replace(LONG[2], min_p=0.05, presence_penalty=0.4, logprobs=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(**SHAPE), tmp_path_factory.mktemp("model"))


class Pair:
    """An engine without drafts and one with them, for each way and limit."""

    def __init__(self, folder):
        self._folder, self._engines = folder, {}

    def fresh(self, way, limits):
        if (way, limits) not in self._engines:
            options = WAYS[way] | LIMITS[limits] | {"ctx_size": 160}
            self._engines[way, limits] = [
                engine(self._folder, draft=draft, **options) for draft in ("off", "lookup")
            ]
        for each in self._engines[way, limits]:
            each.forget()
        return self._engines[way, limits]


@pytest.fixture(scope="module")
def pair(folder):
    return Pair(folder)


class Prophet:
    """Guesses what is known to follow, with faults here and there, and goes on beyond the answer's end."""

    def __init__(self, ids, answers, rng, p_fault):
        self._ids, self._n_prompt, self._answer = ids, len(ids), answers[tuple(ids)]
        self._rng, self._p_fault = rng, p_fault

    def guess(self, most, cost, n_sequences=1):
        rest = [*self._answer[len(self._ids) - self._n_prompt :], *[5] * 8][: max(0, most)]
        return [self._rng.randrange(VOCAB) if self._rng.random() < self._p_fault else id for id in rest]


def foretell(patch, answers, seed=0, p_fault=0.0):
    """Let engines guess `answers`, by prompt, with faults drawn by `seed`."""
    prophet = partial(Prophet, answers=answers, rng=random.Random(seed), p_fault=p_fault)
    patch.setattr(sequence_module, "Lookup", prophet)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(0, len(LONG) - 1)),
    min_size=1,
    max_size=3,
    unique_by=lambda each: (each[0], each[1]),
).filter(lambda requests: len({tuple(TEXTS[text][:n]) for text, n, _ in requests}) == len(requests))


@NATIVE
@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    limits=st.sampled_from(sorted(LIMITS)),
    requests=REQUESTS,
    seed=st.integers(0, 99),
    p_fault=st.sampled_from([0, 0.1, 0.5]),
    p_interrupt=st.sampled_from([0, 0.2]),
)
def test_an_answer_with_drafts_is_the_one_without(pair, way, limits, requests, seed, p_fault, p_interrupt):
    plain, drafting = pair.fresh(way, limits)
    expected, answers = [], {}
    for text, n, params in requests:
        plain.forget()
        expected.append(steps(plain.generate(TEXTS[text][:n], LONG[params])))
        answers[tuple(TEXTS[text][:n])] = [step.token for step in expected[-1]]
    with pytest.MonkeyPatch.context() as patch:
        foretell(patch, answers, seed, p_fault)
        patch.setattr(Sequence, "advance", interrupting(random.Random(seed), p_interrupt))
        sequences = [drafting.submit(TEXTS[text][:n], LONG[params]) for text, n, params in requests]
        found = [[] for _ in requests]
        while any(not sequence.is_done for sequence in sequences):
            with contextlib.suppress(KeyboardInterrupt):
                drafting.step()
            for sequence, events in zip(sequences, found, strict=True):
                events += sequence.take()
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(steps(ours), theirs, to_the_bit=way in TO_THE_BIT)


def interrupting(rng, p_interrupt):
    """`Sequence.advance` with Ctrl-C now and then between a pass and its tokens."""
    advance = Sequence.advance

    def advance_or_raise(self, n, logits):
        if rng.random() < p_interrupt:
            raise KeyboardInterrupt
        advance(self, n, logits)

    return advance_or_raise


@NATIVE
@settings(max_examples=20, deadline=None)
@given(
    way=st.sampled_from(EXACT),
    limits=st.sampled_from(sorted(LIMITS)),
    length=st.integers(1, 60),
    n_kept=st.integers(0, 20),
    params=st.integers(0, len(LONG) - 1),
    seed=st.integers(0, 99),
)
def test_going_back_into_an_answer_with_drafts_changes_nothing(
    pair, way, limits, length, n_kept, params, seed
):
    """A turn is left in the middle and another goes on from a part of it, past a window that wraps."""
    plain, drafting = pair.fresh(way, limits)
    prompt = TEXTS[0][:length]
    answer = [step.token for step in steps(plain.generate(prompt, LONG[params]))]
    second = [*prompt, *answer[:n_kept], 7]
    plain.forget()
    expected = steps(plain.generate(second, LONG[params]))
    answers = {tuple(prompt): answer, tuple(second): [step.token for step in expected]}
    with pytest.MonkeyPatch.context() as patch:
        foretell(patch, answers, seed, p_fault=0.2)
        turn = drafting.generate(prompt, LONG[params])
        for _ in zip(range(n_kept), turn, strict=False):
            pass
        turn.close()
        assert steps(drafting.generate(second, LONG[params])) == expected


@pytest.mark.parametrize("window", [0, 9])
def test_greedy_answers_with_lookup_are_those_of_transformers(folder, window):
    theirs = MistralForCausalLM.from_pretrained(
        folder, attn_implementation="eager", sliding_window=window or None
    ).eval()
    running = engine(folder, ctx_size=160, dtype="float32", window=window, draft="lookup")
    n_taken = 0
    for text in TEXTS:
        prompt = text[:10] * 3
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        found = steps(running.generate(prompt, replace(GREEDY, max_tokens=60)))
        assert [step.token for step in found] == expected
        n_taken += sum(step.is_taken for step in found)
    assert n_taken > 20


@pytest.fixture
def passes(monkeypatch):
    """The spans of every pass that engines make from now on."""
    seen = []
    original = Batch.__init__

    def note(self, tokens, positions, spans, wanted):
        seen.append(spans)
        original(self, tokens, positions, spans, wanted)

    monkeypatch.setattr(Batch, "__init__", note)
    return seen


@NATIVE
@pytest.mark.parametrize("params", [GREEDY, LONG[3], LONG[6]], ids=["greedy", "drawn", "grammar"])
def test_right_guesses_give_eight_tokens_a_pass(pair, monkeypatch, passes, params):
    params = replace(params, max_tokens=33, stop_ids=frozenset())
    plain, drafting = pair.fresh("q4_0", "one chunk")
    expected = steps(plain.generate(TEXTS[0][:20], params))
    foretell(monkeypatch, {tuple(TEXTS[0][:20]): [step.token for step in expected]})
    del passes[:]
    found = steps(drafting.generate(TEXTS[0][:20], params))
    assert found == expected
    assert [spans[0].n for spans in passes] == [20, 8, 8, 8, 8]  # the last token is not read
    assert sum(step.drafted for step in found) == sum(step.is_taken for step in found) == 4 * 7


@NATIVE
def test_a_pass_has_room_for_guesses_of_few_sequences_and_none_beside_prompts(pair, monkeypatch, passes):
    plain, drafting = pair.fresh("bfloat16", "a window of a chunk")
    prompts = [text[:n] for text, n in zip(TEXTS, (3, 4, 5, 6), strict=True)]
    answers = {
        tuple(prompt): [step.token for step in steps(plain.generate(prompt, GREEDY))] for prompt in prompts
    }
    foretell(monkeypatch, answers, p_fault=0.3)
    sequences = [drafting.submit(prompt, GREEDY) for prompt in prompts]
    answer_all(drafting, sequences)
    generated = [[span.n for span in spans if not span.is_prompt] for spans in passes]
    assert max(map(sum, generated)) <= 8
    assert all(
        sum(ns) == len(ns) for ns, spans in zip(generated, passes, strict=True) if len(ns) < len(spans)
    )
    assert any(len(ns) == 4 and max(ns) == 2 for ns in generated)


class Runs:
    """A grammar without text: behind every third id, 12 are forced."""

    def start_matcher(self):
        return Running()


class Running:
    def __init__(self):
        self._n_left = 0

    def find_forced(self):
        return ([1, 2] * 6)[12 - self._n_left :]

    def pack_mask(self):
        return None

    def accept(self, token):
        self._n_left = self._n_left - 1 if self._n_left else 12 * (token % 3 == 0)


@NATIVE
@pytest.mark.parametrize("way", ["bfloat16", "q4_0"])
def test_a_run_that_is_longer_than_a_draft_is_read_in_one_piece(folder, monkeypatch, passes, way):
    """More than eight tokens round differently, so no part of them is checked as a guess."""
    params = SamplingParams(max_tokens=60, temperature=1, seed=2, constraint=Runs())
    plain, drafting = (engine(folder, ctx_size=160, draft=draft, **WAYS[way]) for draft in ("off", "lookup"))
    expected = steps(plain.generate(TEXTS[0][:9], params))
    n_runs = sum(spans[0].n == 12 for spans in passes)
    assert n_runs > 1
    del passes[:]
    foretell(monkeypatch, {tuple(TEXTS[0][:9]): [step.token for step in expected]})
    assert steps(drafting.generate(TEXTS[0][:9], params)) == expected
    assert sum(spans[0].n == 12 for spans in passes) == n_runs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_where_tokens_round_otherwise_together_nothing_is_guessed(tmp_path, dtype):
    """Heads of 4 numbers run on torch's operations."""
    running = engine(write_hf(mistral(), tmp_path), ctx_size=160, draft="lookup", dtype=dtype)
    found = steps(running.generate(TEXTS[0][:9] * 3, replace(GREEDY, max_tokens=40)))
    assert sum(step.drafted for step in found) == 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_a_guess_followed_the_longest_ids_that_look_like_the_last(ids):
    lengths = {at: count_agreeing(ids, at) for at in range(1, len(ids))}
    longest = max(lengths.values(), default=0)
    likely = {ids[at] for at, length in lengths.items() if length == longest}
    guesses = Lookup(ids).guess(1, cost=0)
    assert (guesses == []) == (longest == 0)
    assert set(guesses) <= likely


def count_agreeing(ids, at):
    n = 0
    while n < min(at, 16) and ids[at - 1 - n] == ids[len(ids) - 1 - n]:
        n += 1
    return n


def test_a_text_that_repeats_itself_is_guessed_beyond_its_end():
    assert Lookup([1, 2, 3] * 9).guess(8, cost=0.1) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_texts_without_repetition_are_seldom_guessed_and_the_dearer_a_token_the_less():
    rng = random.Random(1)
    n_guessed = []
    for cost in (0.1, 0.3):
        ids = [rng.randrange(40) for _ in range(300)]
        lookup = Lookup(ids)
        n_guessed.append(0)
        for _ in range(400):
            n_guessed[-1] += len(lookup.guess(7, cost))
            ids.append(rng.randrange(40))
    assert n_guessed[1] <= n_guessed[0] < 40
