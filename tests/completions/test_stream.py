"""From ids to text that is final: pieces, stop strings and the events of an answer."""

import functools
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from m7b.generation import FinishReason, PromptProgress, SamplingParams, Step, TextDelta, TokenLogprob, Usage
from m7b.runtime.checkpoints import open_checkpoint
from m7b.stream import IncrementalDecoder, StopStrings, stream_events
from m7b.tokenizer import OfficialVocabulary, TokenizerJson, load_tokenizer
from m7b.variants import TokenizerVersion

GOLDEN_FILE = Path(__file__).parent.parent / "golden" / "decode_public.jsonl"
GOLDEN = [json.loads(line) for line in GOLDEN_FILE.read_text("utf-8").splitlines()]
FIRST_BYTE = {"v1": 3, "v3": 771}
TORN = "\ufffd"


@functools.cache
def official(name):
    return load_tokenizer(OfficialVocabulary(TokenizerVersion(name)))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory):
    """A tokenizer.json of the kind that Hugging Face makes of Mistral's: a run of bytes decodes as one."""
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcxyz"]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    model = Backend(models.BPE(vocab, [], byte_fallback=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(parts)
    model.add_special_tokens(["<s>"])
    file = tmp_path_factory.mktemp("byte-fallback") / "tokenizer.json"
    model.save(str(file))
    return load_tokenizer(TokenizerJson(file, "<s>", adds_bos=True))


@pytest.fixture(scope="module")
def byte_level(demo_file):
    return load_tokenizer(open_checkpoint(demo_file).tokenizer)


def stream(engine, tokenizer, ids, params, **named):
    return stream_events(engine.generate(ids, params), tokenizer, len(ids), params, **named)


def pieces_of(tokenizer, ids, *, continues=False):
    decoder = IncrementalDecoder(tokenizer, continues=continues)
    return [*map(decoder.push, ids), decoder.flush()]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_golden_text_is_shown_as_soon_as_its_characters_are_whole_and_no_sooner(case):
    *shown, whole = itertools.accumulate(pieces_of(official(case["tokenizer"]), case["ids"]))
    assert whole == case["decoded"]
    for so_far, prefix in zip(shown, case["prefix_decodes"], strict=True):
        assert whole.startswith(so_far)
        assert so_far == prefix or (prefix.endswith(TORN) and prefix.rstrip(TORN) == so_far.rstrip(TORN))


def ids_of(name):
    """Ids of every kind: whole and broken UTF-8 as bytes, control ids, pieces, words."""
    first = FIRST_BYTE[name]
    utf8 = st.text(alphabet="é你😀\ufffd\n ", max_size=4).map(lambda text: [first + b for b in text.encode()])
    some_bytes = st.sampled_from(b"\xef\xbf\xbd\xf0\x9f\x98\x80\xff")
    torn = st.lists(some_bytes.map(lambda byte: first + byte), max_size=24)
    control = st.integers(0, first - 1).map(lambda token: [token])
    pieces = st.lists(st.integers(0, official(name).vocab_size - 1), max_size=4)
    words = st.text(max_size=6).map(lambda text: official(name).encode(text, bos=False))
    return st.lists(utf8 | torn | control | pieces | words, max_size=6).map(
        lambda runs: [*itertools.chain.from_iterable(runs)]
    )


@pytest.mark.parametrize("name", ["v1", "v3"])
@settings(deadline=None, max_examples=600)
@given(data=st.data())
def test_pieces_add_up_to_what_decode_gives_behind_a_text(name, data):
    tokenizer, before = official(name), data.draw(st.text(max_size=8))
    context = tokenizer.encode(before, bos=data.draw(st.booleans()))
    ids = data.draw(ids_of(name))
    text = tokenizer.decode([*context, *ids])[len(tokenizer.decode(context)) :]
    assert "".join(pieces_of(tokenizer, ids, continues=bool(before))) == text


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_pieces_add_up_where_one_id_holds_parts_of_characters(byte_level, data):
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=16))
    assert "".join(pieces_of(byte_level, ids)) == byte_level.decode(ids)


@pytest.mark.parametrize("before", ["", "a", "你", "😀 a\n", "\n\n"])
@settings(deadline=None)
@given(text=st.text(alphabet="abc xyzé你😀ÿ\n", max_size=12))
def test_pieces_add_up_where_a_run_of_bytes_decodes_as_one(byte_fallback, before, text):
    """Once the context of one id, the last byte of a character, spoilt the character after it."""
    context, ids = byte_fallback.encode(before, bos=True), byte_fallback.encode(text, bos=False)
    expected = byte_fallback.decode([*context, *ids])[len(byte_fallback.decode(context)) :]
    assert "".join(pieces_of(byte_fallback, ids, continues=bool(before))) == expected


RUNS = [b"\xff", b"\xef\xbf\xbd", b"\xe2\x82", b"\xf0\x9f\x98", b"\xef\xef\xbf\xbd"]


@pytest.mark.parametrize("run", RUNS, ids=bytes.hex)
def test_long_run_of_bad_bytes_is_shown_as_it_comes_and_decoded_in_short_windows(run):
    tokenizer, lengths = official("v1"), []

    class Spy:
        encode = staticmethod(tokenizer.encode)
        is_control = staticmethod(tokenizer.is_control)

        def decode(self, ids):
            lengths.append(len(ids))
            return tokenizer.decode(ids)

    ids = [FIRST_BYTE["v1"] + byte for byte in run * (900 // len(run))]
    pieces = pieces_of(Spy(), ids)
    text = tokenizer.decode(ids)
    assert "".join(pieces) == text
    assert len("".join(pieces[:-1])) >= len(text) - 3
    assert max(lengths) <= 64


def stopped(chunks, stops):
    """What StopStrings lets through of `chunks`, and whether a stop ended it."""
    passing, shown = StopStrings(stops), ""
    for chunk in chunks:
        safe, found = passing.push(chunk)
        shown += safe
        if found:
            return shown, True
    return shown + passing.flush(), False


@st.composite
def chunked_texts(draw):
    text = draw(st.text(alphabet="abc", max_size=14))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    return text, chunks, draw(st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))


@settings(deadline=None, max_examples=1500)
@given(chunked_texts())
def test_stop_that_is_complete_first_wins_however_the_text_is_chunked(case):
    """Where stops hold one another, too; otherwise the one complete first is the one that starts first."""
    text, chunks, stops = case
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stopped(chunks, stops) == (text[: min(ends)[1]] if ends else text, bool(ends))


@settings(deadline=None, max_examples=500)
@given(chunked_texts())
def test_text_is_held_back_only_while_it_may_begin_a_stop(case):
    _, chunks, stops = case
    passing, seen, shown = StopStrings(stops), "", ""
    for chunk in chunks:
        safe, found = passing.push(chunk)
        seen, shown = seen + chunk, shown + safe
        if found:
            break
        held = seen.removeprefix(shown)
        assert seen == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)


class FakeEngine:
    """Yields `ids`, a stop id as the real engine does, and knows whether it was closed."""

    ctx_size = 100

    def __init__(self, ids):
        self.ids = ids
        self.closed = False

    def generate(self, ids, params):
        try:
            if params.max_tokens:
                yield PromptProgress(2, len(ids), reused=2)
            for n, token in enumerate(self.ids[: params.max_tokens], start=1):
                finish = FinishReason.LENGTH if n == params.max_tokens else None
                finish = FinishReason.STOP if token in params.stop_ids else finish
                yield Step(token, None if params.logprobs is None else TokenLogprob(token, -n), finish)
        finally:
            self.closed = True


HELLO = official("v1").encode("Hello, world! 🫠 ok", bos=False)
ANSWERS = {
    "stop-id": ([*HELLO, 2, *HELLO], {}, "Hello, world! 🫠 ok", HELLO, "stop"),
    "stop-id-alone": ([2], {}, "", [], "stop"),
    "length": (HELLO, {"max_tokens": 3}, "Hello, world", HELLO[:3], "length"),
    "none-wanted": (HELLO, {"max_tokens": 0}, "", [], "length"),
    "torn-end": (HELLO, {"max_tokens": 7}, f"Hello, world! {TORN * 2}", HELLO[:7], "length"),
    "stop-string": (HELLO, {"stop": ("wor",)}, "Hello, ", HELLO[:3], "stop"),
    "straddling-stop-string": (HELLO, {"stop": ("lo, w",)}, "Hel", HELLO[:3], "stop"),
    "stop-string-at-the-length": (HELLO, {"stop": ("wor",), "max_tokens": 3}, "Hello, ", HELLO[:3], "stop"),
    "half-a-stop-string": ([*HELLO, 2], {"stop": ("okay",)}, "Hello, world! 🫠 ok", HELLO, "stop"),
    "stop-in-the-flush": (HELLO, {"stop": (TORN,), "max_tokens": 7}, "Hello, world! ", HELLO[:7], "stop"),
}


@pytest.mark.parametrize(("ids", "fields", "text", "tokens", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_answer_holds_the_text_tokens_and_reason_up_to_its_end(ids, fields, text, tokens, reason):
    params = SamplingParams(stop_ids=frozenset({2}), logprobs=0, **fields)
    *events, finished = stream(FakeEngine(ids), official("v1"), [1, 5, 6], params)
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(deltas) == text
    assert "" not in deltas
    assert finished.tokens == tuple(tokens)
    assert finished.reason == reason
    assert [entry.token for entry in finished.logprobs] == tokens


@pytest.mark.parametrize(
    ("continues", "text"), [(False, "Hello, world! 🫠 ok"), (True, " Hello, world! 🫠 ok")]
)
def test_space_in_front_of_the_answer_counts_only_where_it_carries_on(continues, text):
    events = stream(FakeEngine(HELLO), official("v1"), [1, 5], SamplingParams(), continues=continues)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text


@pytest.mark.parametrize(
    ("ids", "n_tokens", "prefill_s", "decode_s"), [([*HELLO[:3], 2], 3, 3.0, 1.5), ([2], 0, 3.0, 0.0)]
)
def test_usage_counts_tokens_and_the_seconds_between_them(ids, n_tokens, prefill_s, decode_s):
    ticks = iter([10.0, 13.0, 13.5, 14.5, 16.0])  # the request, three tokens, the stop id
    params = SamplingParams(stop_ids=frozenset({2}))
    *_, finished = stream(FakeEngine(ids), official("v1"), [1, 5, 6], params, clock=ticks.__next__)
    assert finished.usage == Usage(3, 2, n_tokens, prefill_s, decode_s)


def test_closing_the_stream_closes_the_engine():
    engine = FakeEngine(HELLO)
    events = stream(engine, official("v1"), [1, 5, 6], SamplingParams())
    next(event for event in events if isinstance(event, TextDelta))
    assert not engine.closed
    events.close()
    assert engine.closed
