"""A conversation: what the model sees of it each turn, and what stays of it however a turn ends."""

import functools
import itertools
import json
import random
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from m7b.errors import ContextOverflow, InvalidConversation, M7bError, UsageError
from m7b.generation import Finished, PromptProgress, SamplingParams, TextDelta
from m7b.messages import Message
from m7b.models import Model
from m7b.session import Dropped, OnFull, Session
from m7b.store import Store
from m7b.templates import MistralTemplate
from m7b.tokenizer import OfficialVocabulary, load_tokenizer, official_file
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import engine, main_row, mistral, write_hf
from tests.support.fake_chat import STOP, Frames, Scripted, fake_model, saying
from tests.support.tiny import write_tiny

GREEDY = SamplingParams(max_tokens=100, temperature=0)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def said(role, content, **extra):
    return Message(role, content, extra)


def cut_off(text):
    return Message("assistant", text, is_partial=True)


def call_and_result(city):
    function = {"name": "weather", "arguments": json.dumps({"city": city})}
    return [
        said("user", f"How is the weather in {city}?"),
        said("assistant", None, tool_calls=[{"id": "abcdef123", "type": "function", "function": function}]),
        said("tool", '{"celsius": 22}', tool_call_id="abcdef123", name="weather"),
    ]


def seen(*messages):
    """The ids that the fake template makes of `messages`, with the assistant's turn to come."""
    return Frames().encode([message.as_json() for message in messages])


def codes(text):
    return [ord(character) for character in text]


def fake_session(script="fine", *messages, ctx_size=10_000, params=GREEDY, on_full=OnFull.DROP_OLDEST):
    """A session whose model answers `script`, a text or a function as Scripted takes it."""
    choose = saying(codes(script)) if isinstance(script, str) else script
    return Session(fake_model(choose, ctx_size), params, messages=messages, on_full=on_full)


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@functools.cache
def official(name):
    return load_tokenizer(OfficialVocabulary(TokenizerVersion(name)))


# Ten turns on a real engine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint for either template, by its name."""
    v3 = tmp_path_factory.mktemp("v3")
    write_hf(mistral(vocab_size=32768), v3)
    (v3 / "tokenizer.model").write_bytes(official_file(TokenizerVersion.V3).read_bytes())
    return {"v1": write_tiny(tmp_path_factory.mktemp("v1")), "v3": v3}


def real_model(folder, name, **options):
    running = engine(folder, **{"ctx_size": 2048, "threads": 2} | options)
    tokenizer = official(name)
    template = MistralTemplate(tokenizer, TokenizerVersion(name))
    return Model("tiny", running, tokenizer, template, frozenset({2}), 32768, 2048, running.cache.window)


def n_shared(cached, ids):
    """The length of the longest common prefix."""
    return next(
        (at for at, pair in enumerate(zip(cached, ids, strict=False)) if len({*pair}) > 1), len(cached)
    )


def next_logits(running, ids):
    """The logits (V,) after `ids`, by the engine's own way."""
    list(running.generate(ids, SamplingParams(max_tokens=1, temperature=0)))
    return main_logits(running)


def main_logits(running):
    """The logits (V,) after the last prompt."""
    return running.rows[running.rows.main].logits


RINGS = {  # window, chunk, and how many of the nine rewinds the ring honours
    "full": (0, 16, 9),
    "window-16": (16, 16, 0),
    "window-32-chunk-80": (32, 80, 5),
}


@pytest.mark.parametrize(("window", "chunk", "n_rewound"), RINGS.values(), ids=RINGS)
def test_ten_turns_with_system_prompt_and_tools_give_the_logits_of_a_fresh_prefill(
    folders, window, chunk, n_rewound
):
    """The system prompt and the tools move to the last user message, so each turn goes back far."""
    model = real_model(folders["v3"], "v3", window=window, prefill_chunk=chunk)
    messages = [said("system", "You are terse."), *call_and_result("Paris"), said("assistant", "22 degrees.")]
    params = SamplingParams(max_tokens=7, temperature=0)
    session = Session(model, params, messages=messages, tools=TOOLS)
    running, reused = model.engine, []
    for turn in range(1, 11):
        if turn == 5:  # a tool is called in the middle, and the user speaks before the answer
            session.load([*session.messages, *call_and_result("Oslo")])
        question = f"Question {turn}: {'And the next one? ' * (turn % 4)}"
        ids = session.encode_prompt(question)
        held = running.rows[running.rows.main]
        shared = n_shared(held.ids, ids)
        reused.append(shared if main_row(running).holds(shared) else 0)
        *_, finished = session.send(question)
        assert running.rows[running.rows.main].prompt == ids
        assert (finished.usage.prompt_tokens, finished.usage.reused_tokens) == (len(ids), reused[-1])
        fresh = engine(folders["v3"], window=window, ctx_size=2048, prefill_chunk=64)
        torch.testing.assert_close(main_logits(running), next_logits(fresh, ids), rtol=0, atol=1e-5)
    assert sum(n > 0 for n in reused) == n_rewound
    assert window == 0 or main_row(running).length > 2 * main_row(running).capacity


@pytest.mark.parametrize("name", ["v1", "v3"])
def test_plain_chat_reads_again_nothing_of_what_stands(folders, name):
    """Without a system prompt and tools only the new is read: `</s>`, and the message."""
    model = real_model(folders[name], name, window=0)
    session = Session(model, SamplingParams(max_tokens=4, temperature=0), messages=[])
    biased = dict.fromkeys(official(name).encode("one two three", bos=False), 1000.0)
    session.params = replace(session.params, logit_bias=biased)
    usages = []
    for text in ("Hello", "Go on", "And on"):
        *_, finished = session.send(text)
        usages.append(finished.usage)
    sums = [usage.prompt_tokens + usage.completion_tokens for usage in usages]
    # The last token of an answer was never read, so it is read with the next prompt.
    assert [usage.reused_tokens for usage in usages] == [0, sums[0] - 1, sums[1] - 1]
    list(session.regenerate())
    assert session.usage.reused_tokens == session.usage.prompt_tokens == usages[-1].prompt_tokens


# Continuing: the texts hold what is hard to cut, and what re-encodes to the ids it was cut from

TEXTS = {
    "words": "One two three.",
    "spaces": "a  b   c    d ",
    "emoji": "Yes 🦙🦙 and 你好 é",
    "code": "if x:\n    y = 1\n\n    return\ty",
    "bytes-first": "🫠 ok",
}
MARKERS = {"v1": [733, 28748, 16289, 28793], "v3": [4]}


def scripted_session(name, text, *messages, params=GREEDY, ctx_size=10_000, on_full=OnFull.DROP_OLDEST):
    """A session that answers `text` through a template and a tokenizer of Mistral's."""
    tokenizer = official(name)
    choose = saying(tokenizer.encode(text, bos=False), MARKERS[name], stop=2)
    template = MistralTemplate(tokenizer, TokenizerVersion(name))
    model = Model(
        "scripted", Scripted(choose, ctx_size), tokenizer, template, frozenset({2}), 32768, ctx_size, None
    )
    return Session(model, params, messages=messages, on_full=on_full)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["v1", "v3"])
def test_interrupted_answer_goes_on_where_it_stopped_at_every_event(name, text):
    whole = text_of(scripted_session(name, text).send("Hi"))
    assert whole == text
    for n_events in itertools.count(1):
        session = scripted_session(name, text)
        events = session.send("Hi")
        shown = list(itertools.islice(events, n_events))
        events.close()
        if isinstance(shown[-1], Finished):
            break
        if not text_of(shown):
            continue
        assert session.messages[-1] == cut_off(text_of(shown))
        *_, finished = session.continue_answer()
        assert session.messages == (said("user", "Hi"), said("assistant", text)), n_events
        assert finished.reason == "stop"
    assert n_events > 4


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["v1", "v3"])
def test_answer_cut_by_max_tokens_goes_on_where_it_stopped_at_every_token(name, text):
    """Once half an emoji stayed in the answer as U+FFFD, and what followed was not what the model meant."""
    for n_tokens in range(1, len(official(name).encode(text, bos=False)) + 1):
        session = scripted_session(name, text, params=replace(GREEDY, max_tokens=n_tokens))
        list(session.send("Hi"))
        session.params = GREEDY
        if len(session.messages) == 2:
            assert session.messages[-1].is_partial
            list(session.continue_answer())
            assert session.messages[-1] == said("assistant", text), n_tokens


@pytest.mark.parametrize("name", ["v1", "v3"])
def test_greedy_answer_of_a_real_model_is_the_same_when_it_was_interrupted(folders, name):
    """The model may say whole words alone: any other random ids are not those that their text encodes to."""
    words = "one two three four five six seven eight nine ten and or but the all no"
    biased = dict.fromkeys(official(name).encode(words, bos=False), 1000.0)
    params = SamplingParams(max_tokens=12, temperature=0, logit_bias=biased, frequency_penalty=0.1)
    model = real_model(folders[name], name, window=16)
    whole = text_of(Session(model, params).send("Count"))
    assert len(set(whole.split())) >= 4
    for n_tokens in range(1, 12):
        session = Session(model, params)
        events = session.send("Count")
        pieces = (event for event in events if isinstance(event, TextDelta))
        shown = "".join(event.text for event in itertools.islice(pieces, n_tokens))
        events.close()
        assert session.messages[-1] == cut_off(shown)
        session.params = replace(params, max_tokens=12 - n_tokens)
        assert shown + text_of(session.continue_answer()) == whole == session.messages[-1].text


def test_answer_whose_first_id_has_no_space_is_continued_from_other_ids():
    """The limit of continuing a text: `Hello` without its space is encoded with one."""
    tokenizer = official("v3")
    script = [tokenizer.encode("aHello", bos=False)[-1], *tokenizer.encode("world", bos=False)]
    session = scripted_session("v3", "")
    session.model.engine.choose = saying(script, MARKERS["v3"], stop=2)
    events = session.send("Hi")
    next(event for event in events if isinstance(event, TextDelta))
    events.close()
    with pytest.raises(AssertionError, match="another beginning"):
        list(session.continue_answer())


ENDED = {  # an answer that ended by itself, and all that the model would have said
    "nothing-new": ("done", "done"),
    "nothing-new-behind-spaces": ("done  ", "done"),
    "more": ("done", "done and more"),
    "more-behind-spaces": ("done  ", "done and more"),
}


@pytest.mark.parametrize(("before", "script"), ENDED.values(), ids=ENDED)
def test_answer_that_ended_by_itself_can_go_on_and_is_never_lost(before, script):
    messages = (said("user", "Hi"), said("assistant", before))
    session = fake_session(script, *messages)
    *_, finished = session.continue_answer()
    assert finished.reason == "stop"
    assert session.messages[-1] == said("assistant", before if script == "done" else script)
    assert session.model.engine.prompts == [[*seen(messages[0]), *codes("done")]]
    session.load(messages)
    session.continue_answer().close()
    next(session.continue_answer())
    assert session.messages == messages


def test_partial_answer_to_which_the_model_adds_nothing_is_whole():
    session = fake_session("done", said("user", "Hi"), cut_off("done"))
    list(session.continue_answer())
    assert session.messages[-1] == said("assistant", "done")


def test_answer_of_spaces_alone_is_begun_again():
    """Once it stayed in front of the new answer, as a message of its own."""
    session = fake_session("yes", said("user", "Hi"), cut_off("  "))
    assert text_of(session.continue_answer()) == "yes"
    assert session.messages == (said("user", "Hi"), said("assistant", "yes"))


CALL = call_and_result("Paris")[:2]


@pytest.mark.parametrize(
    "messages",
    [(), (said("system", "S"),), (said("user", "Hi"),), CALL],
    ids=["nothing", "system", "user", "call"],
)
def test_only_an_answer_can_be_continued(messages):
    """Once a tool call was taken for an answer, and a second answer was put behind it."""
    session = fake_session("yes", *messages)
    with pytest.raises(UsageError, match="no answer to continue"):
        list(session.continue_answer())
    assert session.messages == tuple(messages)


# A full context

HISTORY = (said("system", "SS"), said("user", "aaaa"), said("assistant", "bbbb"))  # 3 + 5 + 5 tokens
BEFORE = 3 + 5 + 5 + 2  # and two ids around the next message
FULL = {  # on_full, max_tokens, tokens of the prompt in a context of 40: what happens, the answer's tokens
    "error-fits": ("error", 100, 30, "whole", 10),
    "error-full": ("error", 100, 31, "refused", 0),
    "error-short-answer-fits": ("error", 3, 37, "whole", 3),
    "error-short-answer-full": ("error", 3, 38, "refused", 0),
    "error-no-answer-full": ("error", 0, 40, "refused", 0),
    "drop-fits": ("drop-oldest", 100, 30, "whole", 10),
    "drop-full": ("drop-oldest", 100, 31, "dropped", 19),
    "drop-short-answer-fits": ("drop-oldest", 3, 37, "whole", 3),
    "drop-short-answer-full": ("drop-oldest", 3, 38, "dropped", 3),
    "drop-leaves-one": ("drop-oldest", 100, 49, "dropped", 1),
    "drop-never-fits": ("drop-oldest", 100, 50, "refused", 0),
    "roll-fits": ("roll", 1, 39, "whole", 1),
    "roll-full": ("roll", 100, 40, "dropped", 10),
    "roll-leaves-one": ("roll", 100, 49, "dropped", 1),
    "roll-never-fits": ("roll", 100, 50, "refused", 0),
    "stop-fits": ("stop", 100, 39, "whole", 1),
    "stop-full": ("stop", 100, 40, "refused", 0),
}


@pytest.mark.parametrize(
    ("on_full", "max_tokens", "n_prompt", "outcome", "n_answer"), FULL.values(), ids=FULL
)
def test_full_context_at_its_exact_boundary(on_full, max_tokens, n_prompt, outcome, n_answer):
    """Once no room at all was asked for an answer of no tokens, and the engine refused what had passed."""
    params = replace(GREEDY, max_tokens=max_tokens)
    session = fake_session("x" * 99, *HISTORY, ctx_size=40, params=params, on_full=OnFull(on_full))
    asked = said("user", "u" * (n_prompt - BEFORE))
    assert len(session.encode_prompt(asked.text)) == n_prompt
    if outcome == "refused":
        with pytest.raises(ContextOverflow, match=r"the prompt has \d+ tokens and the context holds 40"):
            list(session.send(asked.text))
        assert (session.messages, session.n_dropped, session.usage) == (HISTORY, 0, None)
        assert session.model.engine.prompts == []
        return
    events = list(session.send(asked.text))
    dropped = [event for event in events if isinstance(event, Dropped)]
    kept = (*HISTORY, asked)
    if outcome == "dropped":
        assert events[0] == Dropped(2, 10)
        kept = (HISTORY[0], asked)
    assert len(dropped) == (outcome == "dropped") == session.n_dropped // 2
    assert session.model.engine.prompts[0] == seen(*kept)
    assert text_of(events) == "x" * n_answer
    assert session.messages[:4] == (*HISTORY, asked)


def turns(n_turns, n_characters=3):
    """Turns of eight tokens each, the letter says which."""
    letters = "abcdefghijkl"[:n_turns]
    return [said(role, letter * n_characters) for letter in letters for role in ("user", "assistant")]


@pytest.mark.parametrize("on_full", [OnFull.DROP_OLDEST, OnFull.ROLL])
def test_dropping_takes_the_fewest_whole_turns_that_halve_the_prompt(on_full):
    """A tool call goes with its result, and with the message that led to it."""
    called = [said("user", "q"), said("assistant", None, tool_calls=[{}]), said("tool", "r")]  # 2 + 3 + 2
    answered = [*called, said("assistant", "ok")]  # and 3: ten tokens in four messages
    system, history = said("system", "SS"), [*turns(2), *answered, *turns(3)]
    session = fake_session("y", system, *history, ctx_size=60, on_full=on_full)
    asked = said("user", "?" * 17)
    assert len(session.encode_prompt(asked.text)) == 3 + 16 + 10 + 24 + 19 == 30 + 16 + 10 + 16
    assert next(session.send(asked.text)) == Dropped(2 + 2 + 4 + 2 + 2, 16 + 10 + 16)
    list(session.send(asked.text))
    assert session.model.engine.prompts[-1] == seen(system, *turns(3)[-2:], asked)
    assert session.messages == (system, *history, asked, said("assistant", "y"))
    assert session.n_dropped == 12


def test_what_was_dropped_stays_out_of_sight_without_another_word():
    session = fake_session("y", *turns(5), ctx_size=44)
    dropped = [[event for event in session.send("q") if isinstance(event, Dropped)] for _ in range(4)]
    assert dropped == [[Dropped(6, 24)], [], [], []]
    assert session.model.engine.prompts[-1][:4] == [2, *codes("ddd")]
    assert len(session.messages) == 10 + 8


def test_a_second_dropping_counts_only_what_is_newly_dropped():
    session = fake_session("y", *turns(5), ctx_size=44)
    list(session.send("q"))
    first, *_, last = session.send("q" * 30)
    assert first == Dropped(4 + 2, 16 + 4)
    assert session.n_dropped == 12 == len(session.messages) - 2
    assert last.usage.prompt_tokens == 32


def test_tokens_that_the_error_names_are_those_of_what_cannot_be_left_out():
    """Once it counted the turns that would have been dropped, and named a size that nobody could mend."""
    session = fake_session("y", *turns(8), ctx_size=40)
    with pytest.raises(ContextOverflow, match="the prompt has 52 tokens and the context holds 40, 1 of them"):
        list(session.send("q" * 50))


ALPHABET = "".join(map(chr, range(0x21, 0x7F)))


@pytest.mark.parametrize("max_tokens", [5, 12, 13, 25, 60, 94, 200])
def test_roll_goes_on_in_the_middle_of_an_answer(max_tokens):
    """Three turns fill 26 of 38 tokens with the question; then they go, and later nothing is left to go."""
    params = replace(GREEDY, max_tokens=max_tokens)
    history = [said("system", "S"), *turns(3)]
    session = fake_session(ALPHABET, *history, ctx_size=40, params=params, on_full=OnFull.ROLL)
    *events, finished = session.send("u")
    expected = ALPHABET[: min(max_tokens, 40 - 5)]  # system prompt and question stay
    assert text_of(events) == expected
    assert session.messages[-1] == cut_off(expected)
    assert finished.reason == "length"
    assert finished.tokens == tuple(codes(expected))
    assert finished.usage == session.usage
    assert finished.usage.completion_tokens == len(expected)
    prompts = session.model.engine.prompts
    dropped = [event for event in events if isinstance(event, Dropped)]
    assert prompts[0] == seen(*history, said("user", "u"))
    n_first = 40 - len(prompts[0])
    assert n_first == 11
    if max_tokens <= n_first:
        assert (prompts[1:], dropped, session.n_dropped) == ([], [], 0)
        return
    # 16 tokens more would be in the way of halving: the first two turns go, or all three
    assert prompts[-1][:5] == [1, ord("S"), 2, ord("u"), 3]
    assert sum(event.n_messages for event in dropped) == session.n_dropped == 6
    assert sum(event.n_tokens for event in dropped) == 24
    assert [event.done for event in events if isinstance(event, PromptProgress)] == [
        done for prompt in prompts for done in (0, len(prompt))
    ]
    assert finished.usage.prompt_tokens + finished.usage.completion_tokens <= 40
    assert finished.usage.prompt_tokens == 5


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["v1", "v3"])
def test_rolled_answer_has_every_space_and_character_wherever_it_rolls(name, text):
    """Once a space in front of the place came twice, and a character that lay across it became U+FFFD."""
    history = [said("user", "Hello"), said("assistant", "Hello")]
    n_question = len(scripted_session(name, text).encode_prompt("Hi"))
    n_prompt = len(scripted_session(name, text, *history).encode_prompt("Hi"))
    n_answer = len(official(name).encode(text, bos=False))
    n_rolled = 0
    for ctx_size in range(max(n_prompt, n_question + n_answer), n_prompt + n_answer + 2):
        session = scripted_session(name, text, *history, ctx_size=ctx_size + 1, on_full=OnFull.ROLL)
        *events, finished = session.send("Hi")
        assert text_of(events) == text == session.messages[-1].text, ctx_size
        assert (finished.reason, session.messages[-1].is_partial) == ("stop", False)
        n_rolled += session.n_dropped > 0
    assert n_rolled > 3


def test_stop_string_across_the_place_where_an_answer_rolls_ends_it():
    """Once its first half was shown when the context was full, and its second half began an answer."""
    params = replace(GREEDY, stop=("STOP",))
    for ctx_size in range(14, 34):
        session = fake_session("abcSTOPdef", *turns(1), params=params, ctx_size=ctx_size, on_full=OnFull.ROLL)
        *events, finished = session.send("uuu")
        assert text_of(events) == "abc", ctx_size
        assert finished.reason == "stop"
        assert session.messages[-1] == said("assistant", "abc")


def test_seconds_of_another_prompt_in_the_middle_count_as_prefill(monkeypatch):
    """Not as slow decoding."""
    ticks = itertools.count()
    monkeypatch.setattr(
        "m7b.stream.stream_events.__kwdefaults__", {"continues": False, "clock": ticks.__next__}
    )
    session = fake_session("abcdef", *turns(1), ctx_size=16, on_full=OnFull.ROLL)
    *_, finished = session.send("uuu")
    # The first token of each go ends a prefill; the stop id is no decoding.
    assert (finished.usage.prefill_s, finished.usage.decode_s) == (2, 4)


def test_stop_ends_the_answer_where_the_context_does():
    session = fake_session(ALPHABET, *turns(2), ctx_size=30, on_full=OnFull.STOP)
    *events, finished = session.send("uuu")
    assert not [event for event in events if isinstance(event, Dropped)]
    assert text_of(events) == ALPHABET[: 30 - 21]
    assert (finished.reason, session.messages[-1].is_partial) == ("length", True)


def test_refused_turn_leaves_a_conversation_that_goes_on():
    session = fake_session("y", *turns(2), ctx_size=40, on_full=OnFull.ERROR)
    with pytest.raises(ContextOverflow):
        list(session.send("u" * 30))
    assert session.messages == tuple(turns(2))
    assert text_of(session.send("u")) == "y"
    assert session.model.engine.prompts == [seen(*turns(2), said("user", "u"))]


# Interrupts


def events_until(events, engine, n_events, *, by):
    """The first `n_events` of a turn that is closed between two events, or interrupted inside the engine."""
    engine.interrupt_at = n_events if by == "interrupt" else None
    try:
        yield from itertools.islice(events, n_events if by == "close" else None)
    except KeyboardInterrupt:
        assert by == "interrupt"
    events.close()
    engine.interrupt_at = None


@pytest.mark.parametrize("by", ["close", "interrupt"])
@pytest.mark.parametrize("n_events", range(7))  # two of progress, four letters, the stop id or the end
def test_interrupt_keeps_what_was_shown_and_the_next_turn_goes_on_from_it(n_events, by):
    before = (said("system", "S"), *turns(1))
    session = fake_session("fine", *before)
    shown = text_of(events_until(session.send("Hello"), session.model.engine, n_events, by=by))
    assert shown == "fine"[: max(0, n_events - 2)]
    begun = (said("user", "Hello"), cut_off(shown)) if shown else ()
    assert session.messages == (*before, *begun)
    assert text_of(session.send("Again")) == "fine"
    assert session.model.engine.prompts[-1] == seen(*before, *begun, said("user", "Again"))


def test_answer_closed_at_its_end_is_whole():
    session = fake_session("fine")
    events = session.send("Hello")
    assert isinstance(next(event for event in events if isinstance(event, Finished)), Finished)
    events.close()
    assert session.messages == (said("user", "Hello"), said("assistant", "fine"))


def test_question_is_there_to_be_saved_while_its_answer_has_not_begun():
    """Once an empty answer stood behind it, which no template takes if the program dies there."""
    session = fake_session("fine", *turns(1))
    events = session.send("Hello")
    assert isinstance(next(events), PromptProgress)
    assert session.messages == (*turns(1), said("user", "Hello"))
    texts = [session.messages[-1] for event in events if isinstance(event, TextDelta)]
    assert texts == [cut_off("fine"[: n + 1]) for n in range(4)]


def test_dropping_is_taken_back_with_the_turn_that_came_to_nothing():
    session = fake_session("y", *turns(5), ctx_size=44)
    events = session.send("q")
    assert next(events) == Dropped(6, 24)
    events.close()
    assert (session.n_dropped, session.messages) == (0, tuple(turns(5)))
    assert next(session.send("q")) == Dropped(6, 24)


@pytest.mark.parametrize("stop", [{"stop_ids": frozenset({ord("n")})}, {"stop": ("n",)}], ids=str)
def test_stops_of_the_parameters_end_an_answer_beside_those_of_the_model(stop):
    """Once the model's stop ids took the place of the parameters'."""
    session = fake_session("fine", params=replace(GREEDY, **stop))
    assert text_of(session.send("Hello")) == "fi"
    session.params = GREEDY
    assert text_of(session.send("Hello")) == "fine"


@pytest.mark.parametrize("max_tokens", [0, 10])
def test_turn_without_an_answer_leaves_the_conversation_as_it_was(max_tokens):
    session = fake_session("", *turns(1), params=replace(GREEDY, max_tokens=max_tokens))
    *_, finished = session.send("Hello")
    assert isinstance(finished, Finished)
    assert session.messages == tuple(turns(1))


# Taking things back


def test_regenerate_replaces_the_answer_with_other_parameters_once():
    session = fake_session("anew", *turns(2))
    list(session.regenerate(replace(GREEDY, max_tokens=2)))
    assert session.messages == (*turns(2)[:3], cut_off("an"))
    list(session.regenerate())
    assert session.messages == (*turns(2)[:3], said("assistant", "anew"))
    assert session.model.engine.prompts == [seen(*turns(2)[:3])] * 2


def test_regenerate_answers_a_question_without_answer():
    session = fake_session("fine", said("user", "Hello"))
    list(session.regenerate())
    assert session.messages == (said("user", "Hello"), said("assistant", "fine"))


@pytest.mark.parametrize("by", ["close", "interrupt"])
@pytest.mark.parametrize("n_events", range(4))
def test_regenerate_keeps_the_old_answer_until_the_new_one_has_text(n_events, by):
    """Once the old answer was gone from what is saved while the prompt was read, and lost by a kill then."""
    session = fake_session("anew", *turns(2))
    events = events_until(session.regenerate(), session.model.engine, n_events, by=by)
    meanwhile = [session.messages for _ in events]
    assert meanwhile[:2] == [tuple(turns(2))] * min(2, n_events)
    assert session.messages == ((*turns(2)[:3], cut_off("a")) if n_events == 3 else tuple(turns(2)))


def test_regenerate_that_brings_nothing_keeps_the_old_answer():
    history = (said("user", "Hello"), cut_off("old"))
    session = fake_session("", *history)
    list(session.regenerate())
    assert session.messages == history


@pytest.mark.parametrize(
    ("n_turns", "n_kept"), [(1, 9), (2, 5), (3, 3), (4, 1)], ids=["one", "with-tools", "three", "all"]
)
def test_undo_takes_back_whole_turns(n_turns, n_kept):
    answered = [*call_and_result("Paris"), said("assistant", "Mild.")]
    messages = [said("system", "S"), *turns(2), *answered, said("user", "Bye"), said("assistant", "Bye")]
    session = fake_session("fine", *messages)
    assert session.undo(n_turns) == messages[n_kept:]
    assert session.messages == tuple(messages[:n_kept])


def test_undo_of_all_that_is_in_sight_brings_back_what_was_dropped():
    """Once nothing of the conversation was in sight after it, and no word was said about that."""
    session = fake_session("y", *turns(3), ctx_size=24)
    list(session.send("uuuuuuuuu"))
    assert session.n_dropped == 6
    session.undo()
    assert session.n_dropped == 0
    list(session.send("u"))
    assert session.model.engine.prompts[-1] == seen(*turns(3)[4:], said("user", "u"))


REFUSALS = {
    "undo-nothing": ((), lambda session: session.undo()),
    "undo-too-many": (turns(2), lambda session: session.undo(3)),
    "undo-none": (turns(2), lambda session: session.undo(0)),
    "undo-fewer-than-none": (turns(2), lambda session: session.undo(-1)),
    "regenerate-nothing": ([said("system", "S")], lambda session: session.regenerate()),
    "last-of-none": ([said("system", "S")], lambda session: session.find_last("assistant")),
    "replace-nothing": (turns(1)[:1], lambda session: session.replace_answer("new")),
    "replace-with-nothing": (turns(1), lambda session: session.replace_answer("")),
    # Once a text took the place of a tool call, and its result was left without one.
    "replace-a-tool-call": (call_and_result("Oslo"), lambda session: session.replace_answer("new")),
}


@pytest.mark.parametrize(("messages", "act"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_changes_nothing(messages, act):
    session = fake_session("fine", *messages)
    with pytest.raises(UsageError):
        act(session)
    assert session.messages == tuple(messages)


def test_replaced_answer_is_whole_and_what_the_model_sees():
    session = fake_session("fine", said("user", "Hello"), cut_off("ol"))
    session.replace_answer("new")
    assert session.messages == (said("user", "Hello"), said("assistant", "new"))
    list(session.send("Bye"))
    assert session.model.engine.prompts[-1] == seen(*session.messages[:3])


def test_system_prompt_is_set_replaced_and_removed_in_front():
    session = fake_session("fine", *turns(1))
    for text in ("one", "two", "", ""):
        session.system = text
        assert session.system == text
        assert session.messages == ((said("system", text),) if text else ()) + tuple(turns(1))


def test_clear_and_load_begin_with_all_in_sight():
    session = fake_session("y", said("system", "S"), *turns(5), ctx_size=44)
    list(session.send("q"))
    assert session.n_dropped
    session.clear()
    assert (session.messages, session.n_dropped, session.usage) == ((said("system", "S"),), 0, None)
    list(session.send("q"))
    session.load(turns(2))
    assert (session.messages, session.n_dropped, session.usage) == (tuple(turns(2)), 0, None)


def test_message_that_the_template_refuses_leaves_the_conversation_as_it_was():
    messages = (said("user", "Hi"), said("assistant", ""))
    session = scripted_session("v3", "fine", *messages)
    with pytest.raises(InvalidConversation):
        list(session.send("Hello"))
    assert session.messages == messages


# Any operations in any order

CTX_SIZE = 60
TEXT = st.text(alphabet="ab ", min_size=1, max_size=20)


def noise(ids):
    """A token that depends on every id: a letter, a space, a newline or, one time in eight, the end."""
    return [*codes("abcd \n"), ord("e"), STOP][hash(tuple(ids)) % 8]


class AnyConversation(RuleBasedStateMachine):
    """A session under random operations, each of them complete, cut off, or refused without a trace."""

    def __init__(self):
        super().__init__()
        self.session = fake_session(noise, ctx_size=CTX_SIZE, params=replace(GREEDY, max_tokens=20))

    def take(self, turn, n_events):
        """Follow a turn for `n_events`; what it shows is what it keeps, or it leaves no trace."""
        session = self.session
        before, n_dropped = session.messages, session.n_dropped
        kept = lambda: (session.messages, session.n_dropped)  # noqa: E731
        try:
            events = turn()
            shown = list(itertools.islice(events, n_events))
            events.close()
        except M7bError:
            assert kept() == (before, n_dropped)
            return
        dropped = [event for event in shown if isinstance(event, Dropped)]
        if text_of(shown):
            assert session.n_dropped == n_dropped + sum(event.n_messages for event in dropped)
            assert session.messages[-1].role == "assistant"
            assert session.messages[-1].text.endswith(text_of(shown))
            ended = isinstance(shown[-1], Finished) and shown[-1].reason == "stop"
            assert session.messages[-1].is_partial != ended
        elif session.messages != before:  # an answer that turned out to be whole
            assert session.messages == (*before[:-1], replace(before[-1], is_partial=False))

    @rule(text=TEXT, n_events=st.integers(0, 30))
    def send(self, text, n_events):
        self.take(lambda: self.session.send(text), n_events)

    @rule(max_tokens=st.integers(0, 30), n_events=st.integers(0, 30))
    def regenerate(self, max_tokens, n_events):
        params = replace(GREEDY, max_tokens=max_tokens)
        self.take(lambda: self.session.regenerate(params), n_events)

    @rule(n_events=st.integers(0, 30))
    def continue_answer(self, n_events):
        self.take(self.session.continue_answer, n_events)

    @rule(n_turns=st.integers(0, 3))
    def undo(self, n_turns):
        before = self.session.messages
        n_asked = sum(message.role == "user" for message in before)
        if 0 < n_turns <= n_asked:
            taken = self.session.undo(n_turns)
            assert (*self.session.messages, *taken) == before
            assert sum(message.role == "user" for message in taken) == n_turns
        else:
            with pytest.raises(UsageError):
                self.session.undo(n_turns)

    @precondition(lambda self: any(message.role == "assistant" for message in self.session.messages))
    @rule(text=st.text(alphabet="ab", min_size=1, max_size=5))
    def replace_answer(self, text):
        if self.session.find_last("assistant").content is not None:
            self.session.replace_answer(text)

    @rule(text=st.text(alphabet="sS", max_size=5))
    def set_system(self, text):
        self.session.system = text

    @rule(on_full=st.sampled_from(OnFull))
    def set_on_full(self, on_full):
        self.session.on_full = on_full

    @rule()
    def clear(self):
        self.session.clear()

    @rule(messages=st.sampled_from([[], turns(3), [said("system", "s"), *call_and_result("Oslo")]]))
    def load(self, messages):
        self.session.load(messages)

    @invariant()
    def system_prompt_is_first_or_absent(self):
        assert "system" not in [message.role for message in self.session.messages[1:]]

    @invariant()
    def whole_turns_are_dropped_and_never_all(self):
        behind = self.session.messages[bool(self.session.system) :]
        assert 0 <= self.session.n_dropped <= max(0, len(behind) - 1)
        assert self.session.n_dropped == 0 or behind[self.session.n_dropped].role == "user"

    @invariant()
    def no_answer_is_empty(self):
        assert "" not in [message.content for message in self.session.messages]

    @invariant()
    def template_takes_the_conversation(self):
        messages = [message.as_json() for message in (*self.session.messages, said("user", "x"))]
        MistralTemplate(official("v3")).encode(messages, TOOLS)


TestAnyConversation = AnyConversation.TestCase
TestAnyConversation.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


# Saving, and a kill in the middle of it

CHILD = """
import sys, time
from pathlib import Path
import m7b.repl.autosaver as autosaver
from m7b.generation import SamplingParams
from m7b.session import Session
from m7b.store import Store
from tests.support.fake_chat import fake_model, saying

autosaver._INTERVAL_S = 0.0

def choose(ids, say=saying([ord(c) for c in sys.argv[2]])):
    time.sleep(0.0005)
    return say(ids)

with Store(Path(sys.argv[1])) as store:
    latest = store.find_latest()
    messages = store.load_messages(latest.id) if latest else ()
    session = Session(fake_model(choose), SamplingParams(temperature=0), messages=messages)
    kept = autosaver.Autosaver(store, latest, store.load_messages(latest.id) if latest else ())
    events = session.send("0")
    if messages:
        ended = messages[-1].role == "assistant" and not messages[-1].is_partial
        events = events if ended else session.regenerate()
        events = session.continue_answer() if messages[-1].is_partial else events
    for n in range(1, 1000):
        for event in events:
            kept.save_if_due(session)
            print(flush=True)
        kept.save(session)
        print(len(session.messages), flush=True)
        events = session.send(str(n))
"""


def test_kill_between_any_two_tokens_leaves_all_turns_whole_and_the_last_perhaps_partial(tmp_path):
    answer, path = "The quick brown fox jumps.", tmp_path / "store.db"
    n_partial, wait = 0, random.Random(5)
    for _ in range(8):
        command = [sys.executable, "-c", CHILD, path, answer]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            lines = [child.stdout.readline() for _ in range(wait.randrange(1, 80))]
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        with Store(path) as store:
            messages = store.load_messages(store.find_latest().id)
        n_whole = max([0, *(int(line) for line in lines if line.strip())])
        *earlier, last = messages
        assert [message.role for message in messages] == [
            role for role, _ in zip(itertools.cycle(("user", "assistant")), messages, strict=False)
        ]
        assert [message.text for message in earlier if message.role == "assistant"] == [answer] * (
            len(earlier) // 2
        )
        assert not any(message.is_partial for message in earlier)
        assert last.text
        assert len(messages) >= n_whole
        if last.role == "assistant":
            assert answer.startswith(last.text)
            assert last.text == answer or last.is_partial
            n_partial += last.is_partial
    assert n_partial > 3
