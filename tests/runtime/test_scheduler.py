"""Many sequences in one engine: each gets what it gets alone, to the bit, whatever happens beside it."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralForCausalLM

from m7b.errors import OutOfResources, UsageError
from m7b.generation import FinishReason, PromptProgress, SamplingParams, Step
from m7b.runtime import kernels
from m7b.runtime.engine import Sequence
from m7b.runtime.engine import rows as rows_module
from m7b.runtime.model.batch import Batch, Span
from tests.support.checkpoints import engine, mistral, write_hf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
NATIVE = pytest.mark.skipif(kernels.instruction_set() is None, reason="the kernels were not built")
VOCAB = 64
TEXTS = torch.randint(3, VOCAB, (4, 90), generator=torch.Generator().manual_seed(5)).tolist()
TEXTS[1][:40] = TEXTS[0][:40]  # a prefix that two of them share
GREEDY = SamplingParams(max_tokens=12, temperature=0, logprobs=2)


class EvenThenOdd:
    """A grammar without text: ids go even, odd, even, …; after a multiple of 8 the next three are forced."""

    def start_matcher(self):
        return Alternating()


class Alternating:
    def __init__(self):
        self._parity, self._run = 0, 0

    def find_forced(self):
        return [1, 2, 3][3 - self._run :] if self._run else []

    def pack_mask(self):
        return bytes([0x55 if self._parity == 0 else 0xAA] * (VOCAB // 8))

    def accept(self, token):
        if self._run:
            self._run -= 1
        elif token % 8 == 0:
            self._run = 3
        self._parity = 1 - token % 2


PARAMS = (
    GREEDY,
    SamplingParams(max_tokens=20, temperature=1.2, seed=3, logprobs=1),
    SamplingParams(max_tokens=9, temperature=0.8, top_p=0.9, top_k=20, seed=4, repetition_penalty=1.3),
    SamplingParams(max_tokens=15, temperature=1, seed=5, frequency_penalty=0.5, repeat_last_n=8, logprobs=0),
    SamplingParams(max_tokens=16, temperature=0, constraint=EvenThenOdd()),
    SamplingParams(max_tokens=16, temperature=1, seed=6, constraint=EvenThenOdd(), stop_ids=frozenset({9})),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(**SHAPE), tmp_path_factory.mktemp("model"))


WAYS = {
    "q4_0": {"quant": "q4_0", "dtype": "bfloat16"},
    "q8_0": {"quant": "q8_0", "dtype": "bfloat16"},
    "int8": {"quant": "int8", "dtype": "bfloat16"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
    "static": {"dtype": "float32", "is_static": True},
}
TO_THE_BIT = ("q4_0", "q8_0", "int8", "bfloat16")
LIMITS = {
    "a window that wraps": {"window": 7, "prefill_chunk": 5},
    "a window of a chunk": {"window": 16, "prefill_chunk": 16},
    "full attention": {"window": 0, "prefill_chunk": 16},
    "one chunk": {"window": 0, "prefill_chunk": 512},
}


class Alone:
    """What each request gets from an engine of its own, computed once."""

    def __init__(self, folder):
        self._folder, self._engines, self._answers = folder, {}, {}

    def engine(self, way, limits):
        if (way, limits) not in self._engines:
            options = WAYS[way] | LIMITS[limits]
            self._engines[way, limits] = [engine(self._folder, ctx_size=160, **options) for _ in range(2)]
        return self._engines[way, limits]

    def answer(self, way, limits, text, length, params):
        key = (way, limits, text, length, params)
        if key not in self._answers:
            alone, _ = self.engine(way, limits)
            alone.forget()
            self._answers[key] = steps(alone.generate(TEXTS[text][:length], PARAMS[params]))
        return self._answers[key]


@pytest.fixture(scope="module")
def alone(folder):
    return Alone(folder)


def steps(events):
    return [event for event in events if isinstance(event, Step)]


def assert_same(found, expected, *, to_the_bit):
    """Every step of `found` is that of `expected`; without bits, log-probabilities are within 1e-5."""
    if to_the_bit:
        assert found == expected
        return
    assert [(step.token, step.finish) for step in found] == [(step.token, step.finish) for step in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if ours.logprob is not None:
            assert abs(ours.logprob.logprob - theirs.logprob.logprob) < 1e-5


REQUESTS = st.tuples(st.integers(0, 3), st.integers(1, 90), st.integers(0, len(PARAMS) - 1))
MOVES = st.one_of(
    st.tuples(st.just("submit"), REQUESTS),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("converse"), st.tuples(REQUESTS, st.integers(1, 30))),
    st.tuples(st.just("interrupt"), st.integers(0, 1)),
    st.tuples(st.just("score"), st.integers(1, 90)),
    st.tuples(st.just("forget"), st.none()),
)


@NATIVE
@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    limits=st.sampled_from(sorted(LIMITS)),
    moves=st.lists(MOVES, min_size=3, max_size=25),
)
def test_whatever_happens_beside_it_each_sequence_is_answered_as_alone(alone, way, limits, moves):
    _, shared = alone.engine(way, limits)
    shared.forget()
    running = []
    for move, detail in moves:
        if move == "submit":
            text, length, params = detail
            running.append((detail, shared.submit(TEXTS[text][:length], PARAMS[params]), []))
        elif move == "step":
            for _ in range(detail):
                advance(shared, running)
        elif move == "cancel" and detail < len(running):
            shared.cancel(running.pop(detail)[1])
        elif move == "converse":  # a call in between, left in the middle of its answer
            (text, length, params), n_events = detail
            conversation = shared.generate(TEXTS[text][:length], PARAMS[params])
            for _ in zip(range(n_events), conversation, strict=False):
                pass
            conversation.close()
        elif move == "interrupt":
            interrupt(shared, detail)
        elif move == "score":
            list(shared.score(TEXTS[2][:detail]))
        elif move == "forget":
            shared.forget()
    while any(not sequence.is_done for _, sequence, _ in running):
        advance(shared, running)
    for request, sequence, found in running:
        found += sequence.take()
        assert_same(steps(found), alone.answer(way, limits, *request), to_the_bit=way in TO_THE_BIT)


def advance(shared, running):
    shared.step()
    for _, sequence, found in running:
        found += sequence.take()


def interrupt(shared, layer):
    """Ctrl-C in the middle of a pass."""
    block = shared.model.layers[layer]
    handle = block.ffn_norm.register_forward_pre_hook(_raise_interrupt)
    forward, shared._scheduler._forward = shared._scheduler._forward, shared.model
    try:
        shared.step()
    except KeyboardInterrupt:
        pass
    finally:
        handle.remove()
        shared._scheduler._forward = forward


def _raise_interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["q4_0", "float32"])
def test_an_interrupt_between_a_pass_and_its_tokens_costs_that_pass_alone(folder, way, monkeypatch):
    running, fresh = (engine(folder, window=7, prefill_chunk=5, ctx_size=160, **WAYS[way]) for _ in range(2))
    expected = [steps(fresh.generate(text[:20], GREEDY)) for text in TEXTS[:3] if not fresh.forget()]
    sequences = [running.submit(text[:20], GREEDY) for text in TEXTS[:3]]
    found, advance, n_calls = [[], [], []], Sequence.advance, itertools.count()

    def raise_at_times(self, n, logits):
        if next(n_calls) % 7 == 3:
            raise KeyboardInterrupt
        advance(self, n, logits)

    monkeypatch.setattr(Sequence, "advance", raise_at_times)
    while any(not sequence.is_done for sequence in sequences):
        with contextlib.suppress(KeyboardInterrupt):
            running.step()
        for sequence, events in zip(sequences, found, strict=True):
            events += sequence.take()
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(steps(ours), theirs, to_the_bit=way == "q4_0")
    held = [held for held in running.rows.list_held() if held.ids]
    assert all(each.ids in [sequence.ids[: len(each.ids)] for sequence in sequences] for each in held)


@pytest.mark.parametrize("way", ["q4_0", "bfloat16", "float32"])
def test_another_sequence_in_between_changes_nothing(folder, way):
    """A reads, B reads in a row of its own, A goes on: once B's keys overwrote those of A, silently."""
    running = engine(folder, ctx_size=160, prefill_chunk=64, **WAYS[way])
    row, other = running.rows.main, running.cache.add_row(60)
    expected = read(running, row, [TEXTS[0][:30], TEXTS[0][30:31]])
    running.forget()
    first = read(running, row, [TEXTS[0][:30]])
    read(running, other, [TEXTS[2][:50]])
    second = read(running, row, [TEXTS[0][30:31]])
    assert torch.equal(torch.cat([first, second]), expected)


@torch.inference_mode()
def read(running, row, pieces):
    """The logits after each of the `pieces`, read into `row` by the model itself."""
    found = []
    for ids in pieces:
        span = Span(row, running.cache[row].length, len(ids))
        positions = torch.arange(span.first, span.end)
        running.cache.reserve([span])
        batch = Batch(torch.tensor(ids), positions, (span,), torch.tensor([len(ids) - 1]))
        found.append(running._scheduler._forward(batch, running.cache))
        running.cache.commit([span])
    return torch.cat(found)


def test_interleaved_calls_each_get_their_own_answer(folder):
    running, fresh = (engine(folder, window=0, prefill_chunk=16, ctx_size=160) for _ in range(2))
    expected = []
    for text in TEXTS[:3]:
        fresh.forget()
        expected.append(steps(fresh.generate(text[:30], GREEDY)))
    calls = [running.generate(text[:30], GREEDY) for text in TEXTS[:3]]
    found = [[], [], []]
    while any(calls):
        for i, call in enumerate(calls):
            event = next(call, None) if call else None
            if event is None:
                calls[i] = None
            elif isinstance(event, Step):
                found[i].append(event)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, to_the_bit=False)


def test_a_batch_agrees_with_that_of_transformers(folder):
    """Prompts of several lengths, likeliest tokens: padded on the left there, in rows of their own here."""
    lengths = (3, 17, 30, 41)
    theirs = MistralForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    longest = max(lengths)
    ids = torch.tensor([[0] * (longest - n) + text[:n] for n, text in zip(lengths, TEXTS, strict=True)])
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()
    running = engine(folder, ctx_size=160, dtype="float32")
    params = replace(GREEDY, max_tokens=20)
    sequences = [running.submit(text[:n], params) for n, text in zip(lengths, TEXTS, strict=True)]
    found = answer_all(running, sequences)
    assert [[step.token for step in steps(events)] for events in found] == expected


def answer_all(running, sequences):
    found = [[] for _ in sequences]
    while any(not sequence.is_done or sequence.has_events for sequence in sequences):
        running.step()
        for sequence, events in zip(sequences, found, strict=True):
            events += sequence.take()
    return found


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
def test_prompts_with_one_beginning_read_it_once(folder, passes):
    running = engine(folder, ctx_size=160, **WAYS["q4_0"])
    prompts = [[*TEXTS[0][:80], 5, n] for n in range(3, 19)]
    sequences = [running.submit(prompt, replace(GREEDY, max_tokens=2)) for prompt in prompts]
    answer_all(running, sequences)
    assert sum(span.n for spans in passes for span in spans if span.is_prompt) == 80 + 2 + 15


@NATIVE
def test_samples_of_one_prompt_read_it_once_and_decode_together(folder, passes):
    running = engine(folder, ctx_size=160, **WAYS["bfloat16"])
    params = [SamplingParams(max_tokens=6, temperature=1, seed=seed) for seed in range(4)]
    found = answer_all(running, [running.submit(TEXTS[0][:50], each) for each in params])
    assert sum(span.n for spans in passes for span in spans if span.is_prompt) == 50
    assert max(len(spans) for spans in passes) == 4
    fresh = engine(folder, ctx_size=160, **WAYS["bfloat16"])
    for each, ours in zip(params, found, strict=True):
        fresh.forget()
        assert steps(fresh.generate(TEXTS[0][:50], each)) == steps(ours)


def test_a_long_prompt_delays_those_that_decode_by_one_chunk(folder, passes):
    running = engine(folder, ctx_size=160, prefill_chunk=16, window=0, quant="q4_0")
    first = running.submit(TEXTS[0][:5], replace(GREEDY, max_tokens=30))
    running.step()
    assert len(first.take()) == 3  # the start, the prompt, a token
    running.submit(TEXTS[2], GREEDY)
    del passes[:]
    for _ in range(5):
        running.step()
        assert len(steps(first.take())) == 1
    assert [sum(span.n for span in spans if span.is_prompt) for spans in passes] == [16] * 5


def test_who_does_not_look_holds_up_nobody(folder):
    running = engine(folder, ctx_size=160)
    idle = running.submit(TEXTS[2][:9], GREEDY)
    busy = running.generate(TEXTS[0][:9], GREEDY)
    assert len(steps(busy)) == GREEDY.max_tokens
    assert len(steps(idle.take())) <= 1
    assert steps(answer_all(running, [idle])[0])[-1].finish is FinishReason.LENGTH


def test_a_fault_of_one_sequence_ends_that_one_alone(folder):
    running = engine(folder, ctx_size=160)
    forbidden = dict.fromkeys(range(VOCAB), float("-inf"))
    bad = running.submit(TEXTS[0][:9], replace(GREEDY, logit_bias=forbidden))
    good = running.submit(TEXTS[0][:9], GREEDY)
    while not good.is_done:
        running.step()
    assert len(steps(good.take())) == GREEDY.max_tokens
    assert bad.is_done
    assert all(isinstance(event, PromptProgress) for event in bad.take())
    with pytest.raises(UsageError, match="rules out every token"):
        bad.take()


def test_more_than_fits_waits_and_what_never_fits_is_refused_with_figures(folder, monkeypatch):
    running = engine(folder, ctx_size=160, window=0)
    row = running.cache.row_bytes(21)
    monkeypatch.setattr(rows_module, "free_memory", lambda: 3 * row)
    prompts = [text[:9] for text in TEXTS]
    sequences = [running.submit(prompt, GREEDY) for prompt in prompts]
    running.step()
    n_admitted = sum(sequence.row is not None for sequence in sequences)
    assert n_admitted == 3  # the first has the row that is always there
    assert all(len(steps(events)) == GREEDY.max_tokens for events in answer_all(running, sequences))
    monkeypatch.setattr(rows_module, "free_memory", lambda: 0)
    with running.rows.claim(160), pytest.raises(OutOfResources, match="MiB of cache"):
        list(running.score(TEXTS[0][:60]))


@pytest.mark.parametrize("n_shared", [1, 15, 40])
@pytest.mark.parametrize("window", [0, 7])
def test_a_copied_prefix_is_as_good_as_one_that_was_read(folder, window, n_shared):
    running = engine(folder, ctx_size=160, window=window, prefill_chunk=64)
    source, target = running.rows.main, running.cache.add_row(60)
    whole = read(running, source, [TEXTS[0][:n_shared], TEXTS[0][n_shared : n_shared + 1]])
    running.cache[source].rewind(n_shared)
    running.cache[target].copy_prefix(running.cache[source], n_shared)
    assert torch.equal(read(running, target, [TEXTS[0][n_shared : n_shared + 1]]), whole[1:])
