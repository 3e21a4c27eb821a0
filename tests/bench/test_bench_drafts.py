"""`m7b bench --drafts`: known answers, decoded plainly and with guesses by every engine."""

import numpy as np
import pytest
import torch

from m7b.bench import ReportFormat
from m7b.bench.drafts import DraftSpeed, DraftsReport
from m7b.bench.formats import render
from m7b.bench.runs import KnownAnswer
from m7b.runtime.bench.measure import EngineRunner
from m7b.runtime.bench.peers import PeerName, Task, open_peer
from m7b.runtime.checkpoints.random import random_checkpoint
from m7b.texts import TASKS, read_task
from tests.support.checkpoints import engine, write_hf
from tests.support.tiny import CONFIG, assert_refused, call, tiny_model, write_tiny

FABLE = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
REPEATS = KnownAnswer("repeats", tuple(FABLE * 3), tuple(FABLE * 2 + [40, 41] + FABLE))
NEW = KnownAnswer("new", tuple(range(3, 30)), tuple(range(30, 60)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    return write_hf(tiny_model(max_position_embeddings=4096), write_tiny(place))


def test_the_texts_are_whole_and_repeat_as_much_as_they_say():
    for name in TASKS:
        prompt, answer = read_task(name)
        assert len(prompt) > 40
        assert len(answer) > 400
        known = {prompt[at : at + 20] for at in range(len(prompt))}
        share = sum(answer[at : at + 20] in known for at in range(len(answer))) / len(answer)
        assert (share > 0.3) == (name in ("code", "rewriting", "summary")), (name, share)


def test_the_report_has_each_text_with_guesses_and_without(folder):
    rows = call("bench", "--drafts", "-m", folder, "-r", 1, "--window", "off", "-o", "json").answer["drafts"]
    assert [row["text"] for row in rows] == list(TASKS)
    taken = {row["text"]: row["taken"] / row["tokens"] for row in rows}
    assert taken["prose"] < 0.1 < taken["summary"] < taken["code"]
    assert all(0 <= row["taken"] <= row["drafted"] and row["ratio"] > 0 for row in rows)


def test_the_table_has_a_line_for_each_engine_and_text():
    speeds = (
        DraftSpeed("m7b", "code", 9, 10.0, 20.5, 2.05, 8, 6),
        DraftSpeed("peer", "code", 9, 10.0, 9.0, 0.9, None, None),
    )
    machine = {"cpu": "a processor", "cores": 2, "threads": 2}
    model = {"name": "tiny", "random_weights": False, "parameters": 1000, "weights": "q4_0"}
    table = render(DraftsReport(machine, model, speeds), ReportFormat.TABLE)
    assert "m7b     code       9  10.00   20.50  2.05x        8      6\n" in table
    assert "peer    code       9  10.00    9.00  0.90x        -      -\n" in table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--claims",), ["--drafts runs alone"]),
        (("--batch", "2"), ["--drafts runs alone"]),
        (("--plot", "a.png"), ["--drafts runs alone"]),
    ],
)
def test_drafts_run_alone(folder, options, words):
    assert_refused(call("bench", "--drafts", "-m", folder, *options), 2, *words)


def test_a_context_that_is_too_short_is_told(tmp_path):
    short = write_tiny(tmp_path / "tiny")
    assert_refused(call("bench", "--drafts", "-m", short), 6, "a context of 256", "tokens")


def test_ours_decodes_the_known_answer_and_counts(folder):
    runner = EngineRunner(engine(folder, ctx_size=512, draft="lookup"))
    plain, guessing = (runner.answer(REPEATS, drafts=drafts) for drafts in (False, True))
    assert (plain.drafted, plain.taken) == (0, 0)
    assert guessing.taken > 20
    assert runner.answer(NEW, drafts=True).taken == 0


@pytest.mark.parametrize("name", list(PeerName))
def test_peers_decode_the_known_answer(name):
    pytest.importorskip("transformers" if name == PeerName.TRANSFORMERS else "llama_cpp")
    task = Task(random_checkpoint("tiny", CONFIG), CONFIG, torch.float32, None, 256, True)
    with open_peer(name, task) as runner:
        for text in (REPEATS, NEW):
            for drafts in (False, True):
                assert runner.answer(text, drafts=drafts).seconds > 0
        runner.prepare(8)  # what was measured before can be measured after
        assert len(runner.decode(3)) == 3


def test_llama_cpp_takes_what_its_own_lookup_finds():
    """Told by walking over the text, without a model."""
    speculative = pytest.importorskip("llama_cpp.llama_speculative")
    look_up = speculative.LlamaPromptLookupDecoding()
    ids, answer = [*REPEATS.prompt, REPEATS.answer[0]], list(REPEATS.answer[1:])
    drafted = taken = 0
    while answer:
        guesses = list(look_up(np.array(ids, np.intc)))[: len(answer) - 1]
        n = next((n for n, (a, b) in enumerate(zip(guesses, answer, strict=False)) if a != b), len(guesses))
        drafted, taken = drafted + len(guesses), taken + n
        ids, answer = ids + answer[: n + 1], answer[n + 1 :]
    task = Task(random_checkpoint("tiny", CONFIG), CONFIG, torch.float32, None, 256, True)
    with open_peer(PeerName.LLAMA_CPP, task) as runner:
        found = runner.answer(REPEATS, drafts=True)
    assert (found.drafted, found.taken) == (drafted, taken)
    assert taken > 20
