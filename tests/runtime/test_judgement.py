"""How likely endings are: read beside each other from what they share, they get what each gets alone."""

import pytest
import torch

from m7b.errors import ContextOverflow, UsageError
from m7b.generation import SamplingParams
from m7b.runtime import kernels
from tests.support.checkpoints import engine, mistral, write_hf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
WAYS = {
    "q4_0": {"quant": "q4_0", "dtype": "bfloat16"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
}
LIMITS = {
    "a window that wraps": {"window": 7, "prefill_chunk": 5},
    "full attention": {"window": 0, "prefill_chunk": 16},
    "one chunk": {"window": 0, "prefill_chunk": 512},
}
IDS = torch.randint(3, 64, (300,), generator=torch.Generator().manual_seed(6)).tolist()
SHOTS = IDS[:60]
QUESTIONS = [SHOTS + IDS[60 + 20 * n : 80 + 20 * n] for n in range(4)]
ENDINGS = [IDS[200:201], IDS[201:202], IDS[202:212], IDS[202:206], IDS[214:218]]
GREEDY = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(**SHAPE), tmp_path_factory.mktemp("model"))


def judged(running, pairs, n_at_once):
    """The likelihoods of endings behind contexts, so many of which are read at once."""
    queue, begun = list(pairs), []
    while queue or any(not each.is_done for each in begun):
        while queue and sum(not each.is_done for each in begun) < n_at_once:
            context, ending = queue.pop(0)
            begun.append(running.judge(context, ending[:-1], ending[-1:]))
        running.step()
    return [each.take()[0] for each in begun]


def scored(running, context, ending):
    """What `score` says, which reads every text from its beginning."""
    running.forget()
    return sum(each.logprob for each in list(running.score([*context, *ending]))[len(context) - 1 :])


PAIRS = [(question, ending) for question in QUESTIONS for ending in ENDINGS]


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("n_at_once", [1, 3, 20])
def test_an_ending_is_as_likely_beside_others_as_when_its_text_is_scored_alone(
    folder, way, limits, n_at_once
):
    if way.get("quant") and kernels.instruction_set() is None:
        pytest.skip("the kernels were not built")
    running = engine(folder, **way, **limits)
    found = [each.logprob for each in judged(running, PAIRS, n_at_once)]
    alone = engine(folder, **way, **limits)
    within = 0.3 if way["dtype"] == "bfloat16" and "quant" not in way else 1e-4
    assert found == pytest.approx([scored(alone, *pair) for pair in PAIRS], abs=within)


@pytest.mark.parametrize("way", ["float32", "q4_0"])
def test_what_argmax_would_choose_is_greedy_and_nothing_else(folder, way):
    running = engine(folder, window=0, **WAYS[way])
    answer = [step.token for step in running.generate(QUESTIONS[0], GREEDY) if hasattr(step, "token")]
    other = [*answer[:3], (answer[3] + 1) % 64, *answer[4:]]
    found = judged(running, [(QUESTIONS[0], answer), (QUESTIONS[0], other), (QUESTIONS[0], answer[:1])], 3)
    assert [each.is_greedy for each in found] == [True, False, True]


def test_endings_of_one_token_are_read_once(folder):
    running = engine(folder, window=0, **WAYS["float32"])
    finals = [7, 8, 9, 63]
    together = running.judge(QUESTIONS[0], [], finals)
    running.step()
    apart = judged(running, [(QUESTIONS[0], [token]) for token in finals], 1)
    assert [each.logprob for each in together.take()] == pytest.approx([e.logprob for e in apart], abs=1e-5)


def test_a_common_beginning_is_read_once(folder):
    running = engine(folder, window=0, **WAYS["float32"])
    n_read = 0
    compute = running._scheduler._forward

    def count(batch, cache):
        nonlocal n_read
        n_read += len(batch.tokens)
        return compute(batch, cache)

    running._scheduler._forward = count
    judged(running, PAIRS, 20)
    n_questions, n_endings = 20 * len(QUESTIONS), len(QUESTIONS) * sum(len(e) for e in ENDINGS)
    assert n_read <= len(SHOTS) + n_questions + n_endings


def test_answers_and_judgements_run_beside_each_other(folder):
    way = WAYS["float32"]
    running, alone = engine(folder, window=0, **way), engine(folder, window=0, **way)
    answer = running.submit(QUESTIONS[1], GREEDY)
    judgement = running.judge(QUESTIONS[0], ENDINGS[2][:-1], ENDINGS[2][-1:])
    steps = []
    while not (answer.is_done and judgement.is_done):
        running.step()
        steps += answer.take()
    assert judgement.take()[0].logprob == pytest.approx(scored(alone, QUESTIONS[0], ENDINGS[2]), abs=1e-4)
    expected = [step.token for step in alone.generate(QUESTIONS[1], GREEDY) if hasattr(step, "token")]
    assert [step.token for step in steps if hasattr(step, "token")] == expected


def test_what_does_not_fit_or_is_no_token_is_refused(folder):
    running = engine(folder, window=0, ctx_size=32, **WAYS["float32"])
    with pytest.raises(ContextOverflow, match=r"33 tokens.*32"):
        running.judge(IDS[:30], IDS[30:33], [5])
    with pytest.raises(UsageError, match="token 64"):
        running.judge([5], [], [64])
    with pytest.raises(UsageError, match="empty"):
        running.judge([], [], [5])
