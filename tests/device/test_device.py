"""An engine on an accelerator: the answers of transformers there, and of our engine on the CPU."""

import pytest
import torch

from m7b.errors import OutOfResources
from m7b.generation import SamplingParams, Step
from m7b.runtime.backends.cuda import StaticPass
from tests.runtime.test_adapters import answer_together
from tests.runtime.test_scheduler import GREEDY, PARAMS, SHAPE, TEXTS, answer_all
from tests.support.adapters import draw_pairs, mixed_engine, write_peft
from tests.support.checkpoints import engine, logits, mistral, write_hf

CLOSE = {"rtol": 0, "atol": 1e-3}
LIMITS = {"full attention": {"window": 0}, "a window that wraps": {"window": 7, "prefill_chunk": 5}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(**SHAPE), tmp_path_factory.mktemp("model"))


@pytest.fixture(params=sorted(LIMITS))
def pair(request, folder, device):
    """An engine on the CPU and one on the device."""
    options = {"ctx_size": 160, **LIMITS[request.param]}
    return engine(folder, **options), engine(folder, device=device, is_static=True, **options)


def answer(running, requests):
    """The steps of each answer, all asked for at once."""
    sequences = [running.submit(prompt, params) for prompt, params in requests]
    return [[e for e in events if isinstance(e, Step)] for events in answer_all(running, sequences)]


def assert_same_answers(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [(step.token, step.finish) for step in ours] == [(step.token, step.finish) for step in theirs]
        for one, other in zip(ours, theirs, strict=True):
            if one.logprob is not None:
                assert one.logprob.logprob == pytest.approx(other.logprob.logprob, abs=1e-3)


def test_answers_are_those_of_the_cpu_whatever_the_sampling_and_the_grammar(pair):
    requests = [(TEXTS[n % 4][: 11 + 7 * n], params) for n, params in enumerate(PARAMS)]
    on_cpu, on_device = (answer(running, requests) for running in pair)
    assert_same_answers(on_device, on_cpu)


def test_logits_of_prompts_are_those_of_the_cpu(pair):
    on_cpu, on_device = (logits(running, TEXTS[0]) for running in pair)
    torch.testing.assert_close(on_device, on_cpu, **CLOSE)


@pytest.mark.parametrize("window", [None, 7])
def test_long_greedy_answers_are_those_of_transformers_on_the_device(tmp_path, device, window):
    model = mistral(window=window, **SHAPE)
    write_hf(model, tmp_path)
    running = engine(tmp_path, ctx_size=160, prefill_chunk=5, device=device, is_static=True)
    (ours,) = answer(running, [(TEXTS[0][:20], SamplingParams(max_tokens=60, temperature=0))])
    ids = [*TEXTS[0][:20], *(step.token for step in ours)]
    with torch.inference_mode():
        theirs = model.to(device)(torch.tensor([ids], device=device), use_cache=False).logits[0, 19:-1]
    best = theirs.max(-1).values
    chosen = theirs.gather(-1, torch.tensor(ids[20:], device=device)[:, None])[:, 0]
    torch.testing.assert_close(chosen, best, **CLOSE)  # the likeliest, or one that is as likely


@pytest.mark.parametrize("n_sequences", [1, 2, 3, 9, 17])
def test_a_batch_gets_what_each_sequence_gets_alone(folder, device, n_sequences):
    running = engine(folder, ctx_size=160, window=0, device=device, is_static=True)
    params = SamplingParams(max_tokens=12, temperature=1.1, top_p=0.95, seed=5, logprobs=1)
    requests = [(TEXTS[n % 4][n : 40 + n], params) for n in range(n_sequences)]
    together, alone = answer(running, requests), []
    for request in requests:
        running.forget()
        alone += answer(running, [request])
    assert_same_answers(together, alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("quant", [None, "nf4", "fp4", "int8"])
def test_other_weights_and_numbers_run_and_repeat_themselves(tmp_path, device, dtype, quant):
    write_hf(mistral(**SHAPE | {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 512}), tmp_path)
    if device == "cpu" and quant is not None:
        pytest.skip("on a CPU tests/runtime tests them, with matrices that are large enough for bitsandbytes")
    # Whether LLM.int8() can be captured is no question: its passes are dynamic.
    is_static = None if quant == "int8" else True
    options = {"dtype": dtype, "quant": quant, "ctx_size": 160, "window": 7}
    running = engine(tmp_path, device=device, is_static=is_static, **options)
    first = answer(running, [(TEXTS[0][:20], GREEDY)])
    running.forget()
    assert answer(running, [(TEXTS[0][:20], GREEDY)]) == first
    exact = logits(engine(tmp_path, ctx_size=160, window=7), TEXTS[0][:20])
    error = (logits(running, TEXTS[0][:20]) - exact).norm() / exact.norm()
    assert error < (0.05 if quant is None else 0.4)


def test_8_bit_keys_run(folder, device):
    options = {"ctx_size": 160, "window": 7, "kv_type": "q8_0"}
    on_cpu = logits(engine(folder, **options), TEXTS[0])
    running = engine(folder, device=device, is_static=True, **options)
    torch.testing.assert_close(logits(running, TEXTS[0]), on_cpu, rtol=0, atol=0.05)
    assert len(answer(running, [(TEXTS[0], GREEDY)])[0]) == GREEDY.max_tokens


def test_each_row_has_its_adapter(tmp_path, folder, device):
    adapters = [write_peft(tmp_path / str(n), draw_pairs(mistral(**SHAPE), n, std=0.2)) for n in (3, 5)]
    mixes = [[], [adapters[0]], [adapters[1]], [(adapters[0], 0.5), (adapters[1], 2.0)]]
    prompts = [(mix, TEXTS[0][: 20 + 3 * mix]) for mix in (0, 1, 2, 3, 1, 0)]
    on_device = mixed_engine(folder, mixes, device=device, is_static=True)
    ours, theirs = (
        answer_together(running, prompts, GREEDY) for running in (on_device, mixed_engine(folder, mixes))
    )
    assert [[token for token, _ in each] for each in ours] == [
        [token for token, _ in each] for each in theirs
    ]


def test_what_does_not_fit_is_refused_with_figures(folder, device):
    with pytest.raises(OutOfResources, match=rf"MiB on {device}(:0)? and [\d,]+ MiB are free"):
        engine(folder, ctx_size=1 << 31, device=device, is_static=True)


def test_a_graph_replays_what_the_pass_computes(folder, card):
    running = engine(folder, ctx_size=160, window=7, device=card)
    answer(running, [(TEXTS[n][:30], GREEDY) for n in range(3)])
    step = StaticPass(running.model, running.cache, 4, running.cache.n_slots)
    at = torch.arange(3, device=card)
    with torch.inference_mode():
        replayed = step.run(at + 3, at + 40, at).clone()
        torch.testing.assert_close(step.compute(), replayed, rtol=0, atol=1e-5)


def test_a_pass_waits_for_nothing(folder, card):
    running = engine(folder, ctx_size=160, window=7, device=card)
    step = StaticPass(running.model, running.cache, 1, running.cache.n_slots)
    at = torch.zeros(1, dtype=torch.int64, device=card)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            step.run(at, at, at)
    finally:
        torch.cuda.set_sync_debug_mode("default")
