"""Rows of the cache in files: who goes on from one gets the bits of who has read all of it."""

import contextlib
import os

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from m7b.errors import DamagedCheckpoint, M7bError, OutOfResources, UsageError
from m7b.generation import PromptProgress, SamplingParams, Step
from m7b.runtime import kernels
from m7b.runtime.saved_rows import open_row
from tests.support.checkpoints import engine, mistral, write_hf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
VOCAB = 64
TEXTS = torch.randint(3, VOCAB, (2, 120), generator=torch.Generator().manual_seed(7)).tolist()
GREEDY = SamplingParams(max_tokens=9, temperature=0, logprobs=2)
READ = SamplingParams(max_tokens=1, temperature=0)
ABOUT = {"model": "tiny"}
IN_EACH_EXAMPLE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

WAYS = {
    "blocks": {"quant": "q4_0", "dtype": "bfloat16"},
    "bfloat16": {"dtype": "bfloat16"},
    "8-bit keys": {"quant": "q8_0", "dtype": "bfloat16", "kv_type": "q8_0"},
    "float32": {"dtype": "float32"},
}
LIMITS = {
    "a window that wraps": {"window": 7, "prefill_chunk": 5},
    "a window of a chunk": {"window": 16, "prefill_chunk": 16},
    "full attention": {"window": 0, "prefill_chunk": 16},
    "one chunk": {"window": 0, "prefill_chunk": 512},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(mistral(**SHAPE), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def make(folder):
    """Engines by way and limits, each made once and empty whenever it is asked for."""
    made = {}

    def make(way, limits, number=0):
        key = way, limits, number
        if key not in made:
            made[key] = engine(folder, ctx_size=160, **WAYS[way], **LIMITS[limits])
        made[key].forget()
        return made[key]

    return make


def run(engine, ids, params=GREEDY):
    """The steps of an answer, and how many tokens of the prompt were not read again."""
    sequence = engine.submit(ids, params)
    events = []
    while sequence.has_events or not sequence.is_done:
        events += sequence.take()
        if not sequence.is_done:
            engine.step()
    engine.cancel(sequence)
    progress = [event for event in events if isinstance(event, PromptProgress)]
    return [event for event in events if isinstance(event, Step)], progress[0].reused


def save(engine, ids, file, *, is_exact=True):
    engine.save(file, engine.list_held(ids, is_exact=is_exact), ABOUT)
    return open_row(file)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("way", WAYS)
@settings(IN_EACH_EXAMPLE, max_examples=12)
@given(n=st.integers(1, 100), n_common=st.integers(0, 100), n_own=st.integers(1, 20))
@example(n=60, n_common=60, n_own=2)
def test_who_goes_on_gets_the_bits_of_who_has_read_it_all(make, tmp_path, way, limits, n, n_common, n_own):
    first, second = make(way, limits), make(way, limits, 1)
    ids = TEXTS[0][:n]
    run(first, ids, READ)
    saved = save(first, ids, tmp_path / "row")
    prompt = TEXTS[0][: min(n, n_common)] + TEXTS[1][:n_own]
    second.restore(saved, prompt)
    found, n_reused = run(second, prompt)
    first.forget()
    expected, _ = run(first, prompt)
    if kernels.instruction_set() and way != "float32":
        assert found == expected
    else:
        assert [step.token for step in found] == [step.token for step in expected]
    if kernels.instruction_set() and way == "blocks" and LIMITS[limits]["window"] == 0:
        n_shared = next((at for at, pair in enumerate(zip(ids, prompt, strict=False)) if len({*pair}) > 1), n)
        assert n_reused == min(n_shared, len(prompt) - 1)


def test_a_prompt_that_has_rolled_out_in_part_serves_a_question_behind_it(make, tmp_path):
    first, second = make("blocks", "a window of a chunk"), make("blocks", "a window of a chunk", 1)
    run(first, TEXTS[0][:90], READ)
    saved = save(first, TEXTS[0][:90], tmp_path / "row")
    assert 0 < saved.first <= 90 - 16
    for n_common, n_reused in ((90, 90), (80, 80), (40, 0)):  # what has rolled out serves nobody
        prompt = TEXTS[0][:n_common] + TEXTS[1][:3]
        second.forget()
        second.restore(saved, prompt)
        assert run(second, prompt, READ)[1] == n_reused


@pytest.mark.parametrize("limits", LIMITS)
def test_a_conversation_goes_on_as_it_would_have(make, tmp_path, limits):
    first, second = make("blocks", limits), make("blocks", limits, 1)
    asked = TEXTS[0][:50]
    answer = [step.token for step in first.generate(asked, GREEDY) if isinstance(step, Step)]
    saved = save(first, asked, tmp_path / "row", is_exact=False)
    assert saved.ids == asked + answer[:-1]  # nobody has read the last token
    assert saved.n_exact == 50
    more = asked + answer + TEXTS[1][:10]
    second.restore(saved, more)
    assert list(second.generate(more, GREEDY)) == list(first.generate(more, GREEDY))


@settings(IN_EACH_EXAMPLE, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_bit_that_has_flipped_is_never_used(make, tmp_path, place, bit):
    first, second = make("blocks", "full attention"), make("blocks", "full attention", 1)
    ids = TEXTS[0][:40]
    run(first, ids, READ)
    file = tmp_path / "row"
    save(first, ids, file)
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    prompt = [*ids, 5]
    with contextlib.suppress(UsageError, DamagedCheckpoint):
        second.restore(open_row(file), prompt)
    found, _ = run(second, prompt)
    first.forget()
    assert found == run(first, prompt)[0]


@settings(IN_EACH_EXAMPLE, max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short_is_refused_by_its_header(make, tmp_path, place):
    first = make("blocks", "full attention")
    run(first, TEXTS[0][:40], READ)
    file = tmp_path / "row"
    save(first, TEXTS[0][:40], file)
    os.truncate(file, int(place * file.stat().st_size))
    with pytest.raises((UsageError, DamagedCheckpoint), match="row"):
        open_row(file)


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"num_key_value_heads": 1}, {"head_dim": 32}, {}],
)
def test_a_row_of_another_shape_is_refused(make, tmp_path, changes):
    """Whatever its header says of the model."""
    ids = TEXTS[0][:40]
    other = engine(write_hf(mistral(**SHAPE | changes), tmp_path / "other"), ctx_size=160, dtype="bfloat16")
    run(other, ids, READ)
    saved = save(other, ids, tmp_path / "row")
    mine = make("bfloat16" if changes else "float32", "one chunk")
    with pytest.raises(DamagedCheckpoint):
        mine.restore(saved, ids)
    assert mine.count_held(ids) == 0
    assert run(mine, ids)[1] == 0


def test_what_cannot_be_written_leaves_nothing_behind(make, tmp_path, monkeypatch):
    first = make("blocks", "full attention")
    run(first, TEXTS[0][:40], READ)
    file = tmp_path / "row"
    save(first, TEXTS[0][:40], file)
    before = file.read_bytes()

    def refuse(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutOfResources, match="No space left"):
        save(first, TEXTS[0][:40], file)
    assert [path.name for path in tmp_path.iterdir()] == ["row"]
    assert file.read_bytes() == before


def test_a_row_is_for_its_owner_alone(make, tmp_path):
    first = make("blocks", "full attention")
    run(first, TEXTS[0][:40], READ)
    save(first, TEXTS[0][:40], tmp_path / "row")
    assert (tmp_path / "row").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"", b"text", b"\0" * 64, b"\x10" + b"\0" * 7 + b'{"__metadata__":'])
def test_other_files_are_named(tmp_path, data):
    (tmp_path / "row").write_bytes(data)
    with pytest.raises(M7bError, match="is no prompt cache"):
        open_row(tmp_path / "row")
