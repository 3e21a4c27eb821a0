"""The pass of fixed shapes, by which accelerators decode, against the dynamic one; on this processor."""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from m7b.errors import OutOfResources
from m7b.generation import KvType
from m7b.runtime import loader, placement
from m7b.runtime.backends import choose_backend, cuda
from m7b.runtime.backends.cuda import StaticPass, StaticTransformer
from m7b.runtime.backends.eager import TORCH
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.model.batch import Batch, Span
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.transformer import Linear, Transformer
from m7b.runtime.saved_rows import open_row
from m7b.runtime.static_cache import StaticCache
from tests.runtime.test_adapters import answer_together
from tests.runtime.test_scheduler import GREEDY, PARAMS, SHAPE, TEXTS, answer_all, assert_same, steps
from tests.support.adapters import draw_pairs, mixed_engine, write_peft
from tests.support.checkpoints import engine, mistral, write_hf

CHUNK = 4
CONTEXT = 24


@pytest.fixture(autouse=True, scope="module")
def short_passes():
    """Let passes read few slots, so that there are several sizes of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_LEAST_SLOTS", 4)
        yield


def make_model(window):
    config = ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        hidden_dim=48,
        vocab_size=40,
        norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=window,
        max_seq_len=CONTEXT,
        tied_embeddings=False,
    )
    model = Transformer(config, Linear, Linear, TORCH)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def make_batch(spans, ids):
    positions = [position for span in spans for position in range(span.first, span.end)]
    ends = torch.tensor([span.n for span in spans]).cumsum(0) - 1
    return Batch(torch.tensor(ids), torch.tensor(positions), tuple(spans), ends)


def make_caches(model, kv_type=None):
    given = {"prefill_chunk": CHUNK, "dtype": torch.float32, "devices": ["cpu"] * model.config.n_layers}
    dynamic = RollingKVCache(model.config, kv_type=kv_type, **given)
    return dynamic, StaticCache(model.config, ctx_size=CONTEXT, most_rows=6, kv_type=kv_type, **given)


@st.composite
def scripts(draw):
    """What becomes of some rows: each step reads a chunk, decodes several, rewinds, copies, or drops one."""
    kinds = st.sampled_from(["read", "decode", "decode", "decode", "rewind", "copy", "drop"])
    return [(draw(kinds), draw(st.integers(0, 1 << 30))) for _ in range(draw(st.integers(4, 24)))]


class Pair:
    """The same sequences in a dynamic cache and in a static one."""

    def __init__(self, model, kv_type):
        self.model, self.static = model, StaticTransformer(model)
        self.caches = make_caches(model, kv_type)
        self.rows = []  # a pair of numbers each
        self.ids = torch.Generator().manual_seed(1)

    def length(self, pair):
        return self.caches[0][pair[0]].length

    def most(self):
        return CONTEXT if self.model.config.sliding_window is None else 3 * CONTEXT

    def run(self, pairs, n):
        firsts = [self.length(pair) for pair in pairs]
        ids = torch.randint(40, (len(pairs) * n,), generator=self.ids).tolist()
        both = []
        for side, forward in enumerate((self.model, self.static)):
            spans = [Span(pair[side], first, n) for pair, first in zip(pairs, firsts, strict=True)]
            self.caches[side].reserve(spans)
            both.append(forward(make_batch(spans, ids), self.caches[side]))
            self.caches[side].commit(spans)
        return both

    def play(self, kind, number):
        usable = [pair for pair in self.rows if self.length(pair) < self.most()]
        match kind:
            case "read" if len(self.rows) < 5:
                pair = tuple(cache.add_row(CONTEXT) for cache in self.caches)
                self.rows.append(pair)
                return self.run([pair], 1 + number % CHUNK)
            case "decode" if usable:
                return self.run([pair for n, pair in enumerate(usable) if n == 0 or number >> n & 1], 1)
            case "rewind" if self.rows:
                pair = self.rows[number % len(self.rows)]
                length = max(0, self.length(pair) - number // 7 % 6)
                if all(cache[row].holds(length) for cache, row in zip(self.caches, pair, strict=True)):
                    for cache, row in zip(self.caches, pair, strict=True):
                        cache[row].rewind(length)
            case "copy" if self.rows and len(self.rows) < 5:
                source = self.rows[number % len(self.rows)]
                self.rows.append(tuple(cache.add_row(CONTEXT) for cache in self.caches))
                for cache, row, of in zip(self.caches, self.rows[-1], source, strict=True):
                    cache[row].copy_prefix(cache[of], cache[of].length)
            case "drop" if self.rows:
                pair = self.rows.pop(number % len(self.rows))
                for cache, row in zip(self.caches, pair, strict=True):
                    cache.remove_row(row)
        return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([None, 1, 5, 9]), st.sampled_from([None, KvType.Q8_0]), scripts())
def test_a_static_pass_computes_what_a_dynamic_one_does(window, kv_type, script):
    pair = Pair(make_model(window), kv_type)
    for kind, number in script:
        if both := pair.play(kind, number):
            # Where last bits differ, a key now and then is rounded to the next of its 255 values.
            torch.testing.assert_close(both[1], both[0], rtol=0, atol=0.05 if kv_type else 1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(**SHAPE), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("quant", [None, "nf4"])
def test_an_engine_with_static_passes_gives_the_answers_of_one_without(folder, window, quant):
    options = {"window": window, "quant": quant}
    running = [engine(folder, ctx_size=160, is_static=each, **options) for each in (False, True)]
    answers = []
    for each in running:
        sequences = [each.submit(TEXTS[n % 4][: 11 + 7 * n], params) for n, params in enumerate(PARAMS)]
        answers.append([steps(events) for events in answer_all(each, sequences)])
    for ours, theirs in zip(*answers, strict=True):
        assert_same(ours, theirs, to_the_bit=False)


def test_static_passes_add_the_adapter_of_each_row(tmp_path, folder):
    first, second = (
        write_peft(tmp_path / str(rank), draw_pairs(mistral(**SHAPE), rank, std=0.2)) for rank in (3, 5)
    )
    mixes = [[(first, 0.5)], [first], [second], [(first, 0.5), (second, 2.0)]]
    prompts = [(mix, TEXTS[0][: 20 + 3 * mix]) for mix in (0, 1, 2, 3, 1, 0)]
    ours, theirs = (
        answer_together(mixed_engine(folder, mixes, is_static=each), prompts, GREEDY)
        for each in (True, False)
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert [token for token, _ in found] == [token for token, _ in expected]
        logprobs = ([logprob.logprob for _, logprob in each] for each in (found, expected))
        torch.testing.assert_close(*map(torch.tensor, logprobs))


def test_more_rows_than_a_device_has_room_for_wait(folder, monkeypatch):
    monkeypatch.setattr(loader, "MOST_STATIC_ROWS", 3)
    running = engine(folder, ctx_size=160, window=0, is_static=True)
    assert running.suggest_parallel(160) == 3
    sequences = [running.submit(text[:9], GREEDY) for text in (*TEXTS, TEXTS[0][40:])]
    running.step()
    assert sum(sequence.row is not None for sequence in sequences) == 3
    assert all(len(steps(events)) == GREEDY.max_tokens for events in answer_all(running, sequences))
    assert running.cache.n_rows == 3
    with ExitStack() as claims:
        for _ in range(3):
            claims.enter_context(running.rows.claim(160))
        with pytest.raises(OutOfResources, match="MiB of cache and 0 MiB are free"):
            list(running.score(TEXTS[0][:60]))


def test_sequences_wait_where_the_memory_that_was_planned_is_gone(folder, monkeypatch):
    running = engine(folder, ctx_size=160, window=0, is_static=True)
    plain = engine_answers(engine(folder, ctx_size=160, window=0), TEXTS)
    held, make_ring = [], type(running.cache.format).make_ring

    def make_few(format, shape, device):
        held.append(shape)
        if len(held) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_ring(format, shape, device)

    monkeypatch.setattr(type(running.cache.format), "make_ring", make_few)
    assert engine_answers(running, TEXTS) == plain
    assert running.suggest_parallel(160) == running.cache.n_rows == 1


def engine_answers(running, texts):
    """The tokens that follow each text, all asked for at once."""
    sequences = [running.submit(text[:9], GREEDY) for text in texts]
    return [[step.token for step in steps(events)] for events in answer_all(running, sequences)]


def test_a_device_without_room_for_a_row_is_refused_with_figures(folder, monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda: 600 << 20)
    assert engine(folder, ctx_size=160, is_static=True).suggest_parallel(160) == 64
    with pytest.raises(OutOfResources, match=r"2,[\d]+ MiB on cpu and 600 MiB are free") as refused:
        engine(folder, ctx_size=1 << 21, is_static=True)
    assert "--ctx-size" in refused.value.hint


@pytest.mark.parametrize(
    ("device", "quant", "is_static"),
    [
        ("cuda", None, True),
        ("cuda:1", "nf4", True),
        ("cuda", "int8", False),
        ("mps", None, False),
        ("cpu", None, False),
        ("auto", None, False),
    ],
)
def test_graphs_are_for_cuda_and_weights_that_never_ask_the_device(folder, device, quant, is_static):
    backend = choose_backend(open_checkpoint(folder), quant, device, torch.bfloat16)
    assert backend.is_static is is_static


@pytest.mark.parametrize("window", [0, 7])
def test_a_row_side_by_side_with_others_is_kept_in_a_file_like_any(tmp_path, folder, window):
    prompt, file = TEXTS[0][:40], tmp_path / "prompt"
    first, second, plain = (
        engine(folder, ctx_size=160, window=window, is_static=is_static) for is_static in (True, True, False)
    )
    expected = steps(plain.generate(prompt, GREEDY))
    assert_same(steps(first.generate(prompt, GREEDY)), expected, to_the_bit=False)
    first.save(file, [*prompt, expected[0].token], {})
    for each in (second, plain):
        each.forget()
        each.restore(open_row(file), prompt)
        assert each.count_held(prompt) == len(prompt) - 1
        assert_same(steps(each.generate(prompt, GREEDY)), expected, to_the_bit=False)


def make_pass():
    model = make_model(5)
    _, cache = make_caches(model)
    cache.add_row(CONTEXT)
    return StaticPass(model, cache, 1, cache.n_slots)


class Recorder:
    """CUDA's graphs as `StaticPass` sees them: what is recorded runs again on the tensors that were there."""

    def __init__(self, patch):
        self.calls, self._is_recording = [], False
        for name in ("Stream", "current_stream"):
            patch.setattr(torch.cuda, name, lambda *_: SimpleNamespace(wait_stream=lambda _: None))
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        patch.setattr(torch.cuda, "CUDAGraph", self._make_graph)
        patch.setattr(torch.cuda, "graph", self._record)
        compute = StaticPass.compute
        patch.setattr(StaticPass, "compute", lambda step: self._compute(step, compute))

    def _make_graph(self):
        graph = SimpleNamespace(pool=lambda: "pool")
        graph.replay = lambda: graph.run()
        return graph

    @contextmanager
    def _record(self, graph, pool=None, capture_error_mode="global"):
        assert capture_error_mode == "thread_local"
        self.calls.append(pool)
        self._is_recording = True
        yield
        self._is_recording = False
        traced, logits = self._traced
        graph.run = lambda: logits.copy_(traced())

    def _compute(self, step, compute):
        if not self._is_recording:
            return compute(step)
        traced = make_fx(partial(compute, step), tracing_mode="real")()
        logits = traced()
        self._traced = traced, logits
        return logits


def test_an_engine_answers_by_replaying_what_was_recorded_once(folder, monkeypatch):
    plain = engine_answers(engine(folder, ctx_size=160, window=7), TEXTS)
    recorder = Recorder(monkeypatch)
    init = StaticPass.__init__

    def record(step, model, cache, n_rows, n_slots, pool=None):
        init(step, model, cache, n_rows, n_slots, pool)
        step._replay = step._capture(torch.device("cpu"))

    monkeypatch.setattr(StaticPass, "__init__", record)
    assert engine_answers(engine(folder, ctx_size=160, window=7, is_static=True), TEXTS) == plain
    assert len(recorder.calls) < 10, "far fewer than there were passes"
    assert {None, "pool"} >= set(recorder.calls)


def test_no_shape_of_a_static_pass_hangs_on_data():
    with FakeTensorMode(allow_non_fake_inputs=False):  # which refuses to tell any value
        step = make_pass()
        assert step.compute().shape == (1, 40)
        with pytest.raises(Exception, match="local_scalar_dense"):
            step.positions.tolist()


def test_a_static_pass_is_one_graph():
    step = make_pass()
    step.tokens[0], step.positions[0] = 3, 0
    plain = step.compute()
    compiled = torch.compile(step.compute, fullgraph=True, backend="eager")()
    torch.testing.assert_close(compiled, plain)
