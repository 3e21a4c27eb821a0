"""Tools offered to a model, calls told from text, and conversations of several rounds of calls."""

import functools
import json
import shutil

import jsonschema
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV3
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

from m7b.errors import UsageError
from m7b.generation import CallDelta, Finished, FinishReason, PromptProgress, SamplingParams, Step, TextDelta
from m7b.models import Model
from m7b.offer import CallConstraint, Offer
from m7b.session import Session
from m7b.store import Store
from m7b.stream import CallSyntax, stream_events
from m7b.templates import MistralTemplate
from m7b.tokenizer import OfficialVocabulary, load_tokenizer, official_file
from m7b.variants import TokenizerVersion
from tests.support.call_templates import NESTED
from tests.support.calls import build_calls_schema
from tests.support.checkpoints import mistral, write_hf, write_v3
from tests.support.fake_chat import Characters
from tests.support.fine_tunes import write_fine_tune
from tests.support.tiny import assert_refused, call, lines

CALL_ID, EOS, VOCAB = 5, 2, 32768


def tool(name, description="", /, **properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER = tool("weather", "The weather in a city", city={"enum": ["Oslo", "Ålesund"]})
PLUS = tool("plus", "", a={"type": "integer", "minimum": 0, "maximum": 99}, b={"type": "boolean"})
TOOLS = [WEATHER, PLUS]


@functools.cache
def v3():
    return load_tokenizer(OfficialVocabulary(TokenizerVersion.V3))


def ids_of(text):
    return v3().encode(text, bos=False)


def calling(*calls):
    """The ids of an answer that calls (name, arguments)."""
    text = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    return [CALL_ID, *ids_of(text), EOS]


def saying(text):
    return [*ids_of(text), EOS]


class Answers:
    """An engine that gives one answer after another, and notes the prompts and the constraints."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.prompts, self.constraints = [], []

    def generate(self, ids, params):
        self.prompts.append(list(ids))
        self.constraints.append(params.constraint)
        yield PromptProgress(len(ids), len(ids), 0)
        for n, token in enumerate(self.answers.pop(0), 1):
            stopped = token in params.stop_ids
            finish = FinishReason.STOP if stopped else FinishReason.LENGTH if n == params.max_tokens else None
            yield Step(token, None, finish)
            if finish:
                return

    def forget(self):
        pass


def session_of(*answers, messages=(), max_tokens=200, **options):
    model = Model(
        "fake", Answers(*answers), v3(), MistralTemplate(v3()), frozenset({EOS}), VOCAB, 10_000, None
    )
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    return Session(model, params, messages=messages, tools=TOOLS, **options)


def ended(events):
    """The last event, where all are pulled."""
    *_, last = events
    assert isinstance(last, Finished)
    return last


def allowed(matcher):
    bits = matcher.pack_mask()
    everything = set(range(VOCAB))
    if bits is None:
        return everything
    number = int.from_bytes(bits, "little")
    return {token for token in everything if number >> token & 1}


# What is offered


@pytest.mark.parametrize("choice", ["auto", "any", "none", "weather", "plus"])
def test_an_offer_takes_the_choices_there_are(choice):
    offer = Offer(TOOLS, choice)
    assert offer.syntax(v3()) == (None if choice == "none" else CallSyntax(CALL_ID, False))


@pytest.mark.parametrize("choice", ["required", "", "Weather", "nope"])
def test_a_choice_of_no_tool_is_refused_and_the_tools_are_named(choice):
    with pytest.raises(UsageError, match="tool choice") as error:
        Offer(TOOLS, choice)
    assert "auto, any, none, weather, plus" in error.value.hint


@pytest.mark.parametrize("choice", ["any", "weather"])
def test_without_a_constraint_no_call_can_be_asked_for(choice):
    with pytest.raises(UsageError, match="only a constraint"):
        Offer(TOOLS, choice, is_constrained=False)
    assert Offer(TOOLS, "auto", is_constrained=False).constraint(v3(), vocab_size=VOCAB, stop_ids={2}) is None


def constraint_of(choice):
    return Offer(TOOLS, choice).constraint(v3(), vocab_size=VOCAB, stop_ids=frozenset({EOS}))


def test_calls_may_begin_with_the_first_token_only():
    matcher = constraint_of("auto").start_matcher()
    assert (matcher.find_forced(), allowed(matcher)) == ([], set(range(VOCAB)))
    for token in ids_of("Hello there"):
        matcher.accept(token)
        assert (matcher.find_forced(), allowed(matcher)) == ([], set(range(VOCAB)) - {CALL_ID})


@pytest.mark.parametrize("choice", ["any", "plus"])
def test_calls_that_are_required_are_forced(choice):
    matcher = constraint_of(choice).start_matcher()
    assert matcher.find_forced() == [CALL_ID]
    matcher.accept(CALL_ID)
    run = matcher.find_forced()
    assert v3().decode(run).startswith('[{"name": "' + ("plus" if choice == "plus" else ""))
    assert CALL_ID not in run


def test_no_call_begins_where_there_are_to_be_none():
    matcher = constraint_of("none").start_matcher()
    for token in ids_of("a b"):
        assert (matcher.find_forced(), allowed(matcher)) == ([], set(range(VOCAB)) - {CALL_ID})
        matcher.accept(token)


def test_behind_the_first_token_the_calls_are_kept_to_their_schema():
    matcher = constraint_of("auto").start_matcher()
    for token in calling(("plus", {"a": 7, "b": True}))[:-1]:
        assert token in allowed(matcher)
        matcher.accept(token)
    assert EOS in allowed(matcher)
    matcher = constraint_of("auto").start_matcher()
    matcher.accept(CALL_ID)
    assert EOS not in allowed(matcher)
    assert ids_of("Hello")[0] not in allowed(matcher)


# Calls told from text

SYNTAX, IN_TEXT = CallSyntax(6, False), CallSyntax(None, True)
ANYWHERE = CallSyntax(6, True, frozenset({"f"}))
CALLS = '[{"name": "f", "arguments": {"a": "STOP"}}]'
F_CALL = [("f", {"a": "STOP"})]
TELLING = {
    "by id": ([6, *map(ord, CALLS)], SYNTAX, "", CALLS, F_CALL, "tool_calls"),
    "an id later is no call": ([*map(ord, "a"), 6, *map(ord, "b")], SYNTAX, "ab", "", [], "stop"),
    "by id, text of a call": ([*map(ord, CALLS[:14])], SYNTAX, CALLS[:14], "", [], "stop"),
    "by text": ([*map(ord, CALLS)], IN_TEXT, "", CALLS, F_CALL, "tool_calls"),
    "by text behind a space": ([*map(ord, " " + CALLS)], IN_TEXT, "", " " + CALLS, F_CALL, "tool_calls"),
    "looks like calls": ([*map(ord, "[1] is a list")], IN_TEXT, "[1] is a list", "", [], "stop"),
    "looks like calls to the end": (
        [*map(ord, '[{"a": 1}]')],
        IN_TEXT,
        '[{"a": 1}]',
        '[{"a": 1}]',
        [],
        "stop",
    ),
    "a bracket": ([*map(ord, " [")], IN_TEXT, " [", "", [], "stop"),
    "text": ([*map(ord, "a [b]")], IN_TEXT, "a [b]", "", [], "stop"),
    "unconstrained, behind prose": (
        [*map(ord, f"Sure. {CALLS} Done.")],
        ANYWHERE,
        f"Sure. {CALLS} Done.",
        "",
        F_CALL,
        "tool_calls",
    ),
    "unconstrained, alone": ([*map(ord, CALLS[1:-1])], ANYWHERE, CALLS[1:-1], "", F_CALL, "tool_calls"),
    "unconstrained, another tool": (
        [*map(ord, 'As {"name": "g", "arguments": {}}')],
        ANYWHERE,
        'As {"name": "g", "arguments": {}}',
        "",
        [],
        "stop",
    ),
    "nothing behind the id": ([6], SYNTAX, "", "", [], "stop"),
    "no tools": ([*map(ord, CALLS[:14])], None, CALLS[:14], "", [], "stop"),
}


def told(tokens, syntax, *, is_cut=False, stop=()):
    """The text, the text of calls, the calls and the end of an answer."""
    steps = [Step(token, None, None) for token in tokens]
    if is_cut:
        steps[-1] = Step(tokens[-1], None, FinishReason.LENGTH)
    else:
        steps.append(Step(0, None, FinishReason.STOP))
    events = list(stream_events(steps, Characters(), 1, SamplingParams(stop=stop), calls=syntax))
    finished = events[-1]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    call_text = "".join(event.text for event in events if isinstance(event, CallDelta))
    calls = [(call.name, json.loads(call.arguments)) for call in finished.calls]
    return text, call_text, calls, finished.reason.value


@pytest.mark.parametrize("case", TELLING.values(), ids=TELLING)
def test_calls_are_told_from_text(case):
    tokens, syntax, *expected = case
    assert told(tokens, syntax) == tuple(expected)


def test_stop_strings_cut_text_and_no_calls():
    assert told([6, *map(ord, CALLS)], SYNTAX, stop=["STOP"]) == ("", CALLS, F_CALL, "tool_calls")
    assert told([*map(ord, "go STOP on")], SYNTAX, stop=["STOP"]) == ("go ", "", [], "stop")


def test_text_that_looked_like_calls_is_cut_at_stop_strings():
    assert told([*map(ord, '[{"a": STOP')], IN_TEXT, stop=["STOP"])[0] == '[{"a": '


@pytest.mark.parametrize("syntax", [SYNTAX, IN_TEXT], ids=["by id", "by text"])
def test_calls_that_are_cut_off_are_none(syntax):
    tokens = [*([6] if syntax.call_id else []), *map(ord, CALLS)]
    for end in range(2, len(tokens) + 1):
        text, call_text, calls, reason = told(tokens[:end], syntax, is_cut=True)
        assert (text, calls, reason) == ("", [], "length")
        assert CALLS.startswith(call_text)


def test_stop_strings_cut_no_calls_in_text():
    """They did: stops were looked for until the first piece had shown that the answer is of calls."""
    assert told([*map(ord, CALLS)], IN_TEXT, stop=["STOP", "[{"])[2:] == (F_CALL, "tool_calls")


# Conversations


def test_a_call_that_was_demanded_is_demanded_once():
    """The model was made to call again with every result, up to the limit."""
    session = session_of(calling(("plus", {"a": 1, "b": True})), [*ids_of("Two."), EOS])
    session.tool_choice = "plus"
    forced, generate = [], session.model.engine.generate

    def watched(ids, params):
        forced.append(params.constraint.start_matcher().find_forced())
        return generate(ids, params)

    session.model.engine.generate = watched
    (call,) = ended(session.send("Hi")).calls
    assert ended(session.return_results([(call, "2")])).reason is FinishReason.STOP
    assert forced == [[CALL_ID], []]


def test_calls_are_kept_in_openais_shape_with_ids_of_our_own():
    session = session_of(calling(("weather", {"city": "Ålesund"}), ("plus", {"a": 1, "b": True})))
    finished = ended(session.send("Hi"))
    assert finished.reason is FinishReason.TOOL_CALLS
    message = session.messages[-1].as_json()
    assert (message["role"], message["content"]) == ("assistant", None)
    assert [entry["function"] for entry in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Ålesund"}'},
        {"name": "plus", "arguments": '{"a": 1, "b": true}'},
    ]
    ids = [entry["id"] for entry in message["tool_calls"]]
    assert all(len(id) == 9 and id.isalnum() and id.isascii() for id in ids)
    assert len(set(ids)) == 2


RESULTS = ["22", "007", " 3.140 ", "null", '"q"', "", '{"ü": [1e5, 1.10, {"a": null}]}', "plain ▁ text", "[]"]
ROUNDS = [
    [[("weather", {"city": "Oslo"}), ("plus", {"a": 1, "b": False})], [("plus", {"a": 2, "b": True})]],
    [],
    [[("plus", {"a": 3, "b": True})] * 3],
    [[("weather", {"city": "Ålesund"})], [("weather", {"city": "Oslo"})], [("plus", {"a": 9, "b": True})]],
]


@functools.cache
def oracle():
    return InstructTokenizerV3(SentencePieceTokenizer(official_file(TokenizerVersion.V3)))


def as_mistral_common(messages, tools=TOOLS):
    """The prompt that mistral-common makes of OpenAI's messages."""
    request = ChatCompletionRequest.from_openai([dict(message) for message in messages], tools=tools)
    from mistral_common.protocol.instruct.normalize import get_normalizer
    from mistral_common.tokens.tokenizers.base import TokenizerVersion as Version

    normalizer = get_normalizer(Version.v3, None)
    return oracle().encode_instruct(normalizer.from_chat_completion_request(request)).tokens


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_conversations_of_several_rounds_encode_as_mistral_common_does(system, tmp_path):
    answers = [
        saying("fine") if calls is None else calling(*calls) for turn in ROUNDS for calls in [*turn, None]
    ]
    session = session_of(*answers)
    session.system = system
    results, n_prompts = iter(RESULTS * 3), 0

    def check(finished):
        """The prompt was mistral-common's of the messages before the answer."""
        nonlocal n_prompts
        messages = [message.as_json() for message in session.messages[:-1]]
        assert session.model.engine.prompts[n_prompts] == as_mistral_common(messages)
        n_prompts += 1
        return finished

    for n, turn in enumerate(ROUNDS):
        finished = check(ended(session.send(f"question {n}")))
        for calls in turn:
            assert [(c.name, json.loads(c.arguments)) for c in finished.calls] == calls
            answered = [(entry, next(results)) for entry in finished.calls]
            finished = check(ended(session.return_results(answered)))
        assert finished.calls == ()
    assert n_prompts == len(answers)
    with Store(tmp_path / "store.db") as store:
        kept = store.create("fake")
        store.save(kept, session.messages)
        loaded = session_of(saying("fine"), messages=store.load_messages(kept))
    assert loaded.messages == session.messages
    ended(loaded.send("And now?"))
    asked = [message.as_json() for message in loaded.messages[:-1]]
    assert loaded.model.engine.prompts == [as_mistral_common(asked)]


WEATHER_TURN = [calling(("weather", {"city": "Oslo"})), saying("cold")]


def weather_turn(session, text="Hi"):
    """Ask, call, and answer."""
    finished = ended(session.send(text))
    return ended(session.return_results([(entry, "22") for entry in finished.calls]))


def test_undo_and_regenerate_take_a_turn_with_all_its_calls():
    session = session_of(saying("hello"), *WEATHER_TURN, *WEATHER_TURN)
    ended(session.send("Hello"))
    before = session.messages
    weather_turn(session)
    assert [message.role for message in session.messages[2:]] == ["user", "assistant", "tool", "assistant"]
    finished = ended(session.regenerate())
    assert [message.role for message in session.messages[2:]] == ["user", "assistant"]
    ended(session.return_results([(entry, "23") for entry in finished.calls]))
    assert [message.text for message in session.messages[4:]] == ["23", "cold"]
    assert len(session.undo()) == 4
    assert session.messages == before


def test_calls_cannot_be_continued_or_replaced_and_an_answer_after_results_can():
    session = session_of(*WEATHER_TURN, saying("and wet"))
    finished = ended(session.send("Hi"))
    with pytest.raises(UsageError, match="no answer to continue"):
        session.continue_answer()
    with pytest.raises(UsageError, match="calls tools"):
        session.replace_answer("x")
    ended(session.return_results([(entry, "22") for entry in finished.calls]))
    ended(session.continue_answer())
    assert session.messages[-1].text == "cold and wet"
    assert session.model.engine.constraints[-1] is None, "an answer that is begun is text"


def test_results_stay_when_the_answer_to_them_is_interrupted_before_it_begins():
    session = session_of(*WEATHER_TURN, saying("cold"), saying("well"))
    finished = ended(session.send("Hi"))
    events = session.return_results([(entry, "22") for entry in finished.calls])
    next(events)
    events.close()
    assert [message.role for message in session.messages] == ["user", "assistant", "tool"]
    ended(session.send("And?"))
    assert session.messages[-1].text == "cold"


def test_calls_that_were_never_answered_leave_the_conversation_usable():
    """The template refused every further message: as after a kill while a tool ran."""
    session = session_of(
        calling(("weather", {"city": "Oslo"}), ("plus", {"a": 1, "b": True})), saying("well")
    )
    ended(session.send("Hi"))
    ended(session.send("And?"))
    roles = [message.role for message in session.messages]
    assert roles == ["user", "assistant", "tool", "tool", "user", "assistant"]
    asked = [message.as_json() for message in session.messages[:-1]]
    assert session.model.engine.prompts[-1] == as_mistral_common(asked)


def test_calls_that_are_cut_off_leave_the_conversation_as_it_was():
    session = session_of(calling(("weather", {"city": "Oslo"})), max_tokens=5)
    assert ended(session.send("Hi")).reason is FinishReason.LENGTH
    assert session.messages == ()


def test_the_last_round_may_not_call():
    session = session_of(*WEATHER_TURN)
    finished = ended(session.send("Hi"))
    ended(session.return_results([(entry, "22") for entry in finished.calls], may_call=False))
    first, last = session.model.engine.constraints
    assert isinstance(first, CallConstraint)
    assert first.calls
    assert last.calls is None


# Real engines


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random checkpoint with the tokenizer of v0.3, and its template."""
    return write_v3(tmp_path_factory.mktemp("instruct-v3"), max_position_embeddings=2048)


JINJA = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or m.tool_calls | tojson }}\n{% endfor %}"
    "<|assistant|>"
)


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory):
    """A random checkpoint whose tokenizer has no id for calls, but whose template has a place for tools."""
    folder = tmp_path_factory.mktemp("fine-tune")
    write_hf(mistral(vocab_size=32000, max_position_embeddings=2048), folder)
    shutil.copyfile(official_file(TokenizerVersion.V1), folder / "tokenizer.model")
    (folder / "chat_template.jinja").write_text(JINJA)
    return folder


@pytest.fixture
def tool_file(tmp_path):
    """A file of tools that leave a mark when one of them runs."""
    file = tmp_path / "weather.py"
    file.write_text(
        "from pathlib import Path\nfrom typing import Literal\n\n"
        "def weather(city: Literal['Oslo', 'Ålesund']) -> str:\n"
        f"    'The weather.'\n    Path({str(tmp_path / 'ran')!r}).touch()\n    return 'cold'\n\n"
        "def plus(a: int, b: bool = False) -> int:\n"
        f"    'Add.'\n    Path({str(tmp_path / 'ran')!r}).touch()\n    return a\n"
    )
    return file


def complete(folder, *arguments, **options):
    template = ("--chat-template", "v3") if "instruct" in folder.name else ()
    return call(
        "complete",
        "--chat",
        *template,
        "--model",
        folder,
        "--dtype",
        "float32",
        "--threads",
        2,
        *arguments,
        **options,
    )


def assert_valid_calls(choice, tools):
    """OpenAI's shape, and the schema of every call."""
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", None)
    functions = [entry["function"] for entry in message["tool_calls"]]
    calls = [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions]
    jsonschema.validate(calls, build_calls_schema(tools))
    for entry in message["tool_calls"]:
        assert entry.keys() == {"id", "type", "function"}
        assert (entry["type"], len(entry["id"])) == ("function", 9)


OFFERED = [WEATHER, tool("plus", "", a={"type": "integer"}, b={"type": "boolean"})]
OFFERED[1]["function"]["parameters"]["required"] = ["a"]


@pytest.mark.parametrize("choice", ["any", "weather"])
@pytest.mark.parametrize("model", ["tiny", "fine_tune"])
def test_required_calls_are_valid_and_never_executed(model, choice, tool_file, request):
    folder = request.getfixturevalue(model)
    ran = complete(
        folder,
        "Hi",
        "--tools",
        tool_file,
        "--tool-choice",
        choice,
        "--json",
        "-n",
        600,
        "--temperature",
        1.5,
        "--seed",
        1,
        "-N",
        6,
    )
    assert ran.code == 0, ran.err
    choices = ran.answer["choices"]
    assert {choice["finish_reason"] for choice in choices} <= {"tool_calls", "length"}
    called = [choice for choice in choices if choice["finish_reason"] == "tool_calls"]
    for entry in called:
        assert_valid_calls(entry, OFFERED if choice == "any" else OFFERED[:1])
        if model == "tiny":
            assert entry["token_ids"][0] == CALL_ID
    assert len(called) >= 3
    assert not tool_file.with_name("ran").exists()


@pytest.mark.parametrize("model", ["tiny", "fine_tune"])
def test_under_auto_an_answer_is_text_or_valid_calls(model, tool_file, request):
    folder = request.getfixturevalue(model)
    bias = () if model == "tiny" else ("--logit-bias", "21156=100")  # "▁[{"
    kinds = set()
    for extra in ((), bias or ("--logit-bias", f"{CALL_ID}=1000")):
        ran = complete(
            folder,
            "Hi",
            "--tools",
            tool_file,
            "--json",
            "-n",
            250,
            "--temperature",
            1.5,
            "--seed",
            3,
            "-N",
            3,
            *extra,
        )
        assert ran.code == 0, ran.err
        for entry in ran.answer["choices"]:
            kinds.add(entry["finish_reason"])
            if entry["finish_reason"] == "tool_calls":
                assert_valid_calls(entry, OFFERED)
            elif entry["finish_reason"] == "stop":
                assert "tool_calls" not in entry["message"]
    assert "tool_calls" in kinds
    assert not tool_file.with_name("ran").exists()


CHOICES = [
    ("required", ["weather", "plus"]),
    ({"type": "function", "function": {"name": "plus"}}, ["plus"]),
    ("none", []),
]


def test_tool_choice_in_jsonl_is_openais(tiny, tool_file):
    requests = [{"prompt": "Hi", "tool_choice": choice, "seed": 4} for choice, _ in CHOICES]
    ran = complete(
        tiny,
        "--jsonl",
        "-",
        "--tools",
        tool_file,
        "-n",
        400,
        stdin=lines(*requests, {"prompt": "x", "tool_choice": {}}),
    )
    assert ran.code == 7
    *answers, refused = ran.answers
    assert "tool_choice is of no known form" in refused["error"]["message"]
    for (_, names), answer in zip(CHOICES, answers, strict=True):
        (entry,) = answer["choices"]
        if not names:
            assert "tool_calls" not in entry["message"]
            assert CALL_ID not in entry["token_ids"]
        elif entry["finish_reason"] == "tool_calls":
            assert {c["function"]["name"] for c in entry["message"]["tool_calls"]} <= set(names)
            assert_valid_calls(entry, OFFERED)
        else:
            assert entry["token_ids"][0] == CALL_ID
    assert not tool_file.with_name("ran").exists()


def test_tools_in_a_request_are_checked_as_those_of_files(tiny):
    bad = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "array"}}}
    ran = complete(tiny, "--jsonl", "-", "-n", 4, stdin=lines({"prompt": "Hi", "tools": [bad]}))
    assert "the parameters of f must be a JSON schema of an object" in ran.answer["error"]["message"]


def test_a_request_may_offer_tools_as_openais_clients_do(tiny):
    """Tools without parameters were refused, and calls could not be limited to some tools, or to one call."""
    bare = {"name": "bare", "description": None, "parameters": None, "strict": None}
    other = {"name": "other", "parameters": {}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    request = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [*({"type": "function", "function": each} for each in (bare, other)), WEATHER],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed},
        "parallel_tool_calls": False,
        "temperature": 1.5,
        "max_completion_tokens": 90,
    }
    ran = complete(tiny, "--jsonl", "-", stdin=lines(*(request | {"seed": seed} for seed in range(4))))
    assert ran.code == 0, ran.err
    for answer in ran.answers:
        (entry,) = answer["choices"]
        assert entry["finish_reason"] == "tool_calls"
        assert [made["function"]["name"] for made in entry["message"]["tool_calls"]] == ["weather"]


def test_reasoning_that_is_left_out_is_told_once(tiny):
    thought = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    messages = [{"role": "user", "content": "Hi"}, thought, {"role": "user", "content": "Hi"}]
    asked = {"messages": messages}
    ran = complete(tiny, "--jsonl", "-", "--parallel", 2, "-n", 2, stdin=lines(asked, asked))
    assert (ran.code, ran.err) == (
        0,
        "m7b: parts of 2 requests are left out: the template has no place for them\n",
    )
    ran = complete(tiny, "-n", 2, stdin=json.dumps(messages).encode())
    told = "m7b: messages[1].reasoning_content is left out: the template has no place for it\n"
    assert (ran.code, ran.err) == (0, told)


def test_without_the_constraint_anything_may_come(tiny, tool_file):
    ran = complete(tiny, "Hi", "--tools", tool_file, "--no-constrain", "--json", "-n", 8, "--seed", 1)
    assert ran.code == 0, ran.err
    refused = complete(tiny, "Hi", "--tools", tool_file, "--no-constrain", "--tool-choice", "any", "-n", 8)
    assert_refused(refused, 2, "only a constraint makes a model call a tool")


def test_a_model_without_a_place_for_tools_is_refused(demo_file, tool_file):
    for command in ("complete", "chat"):
        options = ("--chat",) if command == "complete" else ("--no-save",)
        ran = call(command, *options, "--model", demo_file, "Hi", "--tools", tool_file, "-n", 5)
        assert_refused(ran, 2, "no place for tools", "instruct-v0.3", "--chat-template")


REFUSED = [
    (("--tool-choice", "nope"), "'nope'"),
    (("--format", "json"), "cannot both keep to a grammar and call tools"),
    (("--tools", "missing.py"), "missing.py"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_what_does_not_go_with_tools_is_refused(tiny, tool_file, options, reason):
    assert_refused(complete(tiny, "Hi", "--tools", tool_file, "-n", 5, *options), 2, reason)


def test_tools_need_a_conversation(tiny, tool_file):
    assert_refused(call("complete", "--model", tiny, "Hi", "--tools", tool_file), 2, "--chat")


def test_text_that_looks_like_calls_is_printed_once():
    """It was printed twice, as the text of calls that formed and as the text that it turned out to be."""
    from m7b.commands.complete import select_text

    events = [CallDelta("[1"), CallDelta("] x"), TextDelta("[1] x")]
    assert "".join(select_text(iter(events))) == "[1] x"
    assert "".join(select_text(iter([TextDelta("a"), TextDelta("b")]))) == "ab"


def test_a_form_of_calls_that_is_not_known_is_told(tmp_path, tool_file):
    folder = write_fine_tune(tmp_path, NESTED, special=["<|im_start|>"])
    ran = complete(
        folder, "Hi", "--tools", tool_file, "--tool-choice", "weather", "--json", "-n", 300, "--seed", 1
    )
    assert ran.code == 0, ran.err
    assert ran.err.startswith("m7b: the chat template of this model shows no form of calls that m7b knows")
    assert ran.err.count("\n") == 1
    assert_valid_calls(ran.answer["choices"][0], OFFERED[:1])
