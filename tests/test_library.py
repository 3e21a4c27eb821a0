"""What `import m7b` offers: it is light, and gives what the commands print."""

import subprocess
import sys

import pytest

import m7b
from m7b.errors import CheckpointNotFound, UsageError
from m7b.models import Loading
from tests.support.checkpoints import write_v3
from tests.support.tiny import CTX_SIZE, WINDOW, call, write_tiny

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Hello!"}]
SAMPLING = {"max_tokens": 12, "seed": 5}
FLAGS = ["-n", 12, "--seed", 5]
HEAVY = {"torch", "numpy", "tokenizers", "transformers", "mistral_common", "typer", "rich", "prompt_toolkit"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny):
    return m7b.load(tiny, chat_template="v1")


@pytest.mark.parametrize("code", ["import m7b", "from m7b import load, chat"], ids=["module", "names"])
def test_importing_it_imports_nothing_heavy(code):
    code = f"import sys; {code}; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "set()\n", done.stderr


def test_every_name_it_lists_is_there():
    assert [name for name in m7b.__all__ if not hasattr(m7b, name)] == []
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        m7b.nothing_of_the_kind  # noqa: B018


def test_a_prompt_completes_names_that_were_not_asked_for_yet():
    """A fresh `m7b.` and Tab, in Python or a notebook, listed modules and none of the names."""
    code = 'import rlcompleter, m7b; print(rlcompleter.Completer({"m7b": m7b}).complete("m7b.lo", 0))'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("m7b.load"), done.stdout + done.stderr


def test_a_path_is_loaded_as_text_or_as_a_path(tiny):
    for name in (tiny, str(tiny)):
        model = m7b.load(name, ctx_size=100, window=0)
        assert (model.name, model.ctx_size, model.window) == (tiny.name, 100, None)
    model = m7b.load(tiny)
    assert (model.ctx_size, model.window) == (CTX_SIZE, WINDOW)


def test_a_variant_and_a_hub_id_are_found_where_downloads_are(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    for name in ("instruct-v0.1", "org/name"):
        with pytest.raises(CheckpointNotFound):
            m7b.load(name)
    arguments = ["download", "--source", tiny, "--copy", "--yes"]
    assert call(*arguments, "--variant", "instruct-v0.1").code == 0
    assert m7b.load("instruct-v0.1").name == "instruct-v0.1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ctx_size": 0}, "ctx_size is 0"),
        ({"threads": 5000}, "from 1 to 1024"),
        ({"dtype": "int8"}, "bfloat16, float16, float32"),
        ({"quant": "q5_k"}, "q8_0"),
    ],
)
def test_an_option_that_means_nothing_is_refused(options, words, tiny):
    with pytest.raises(UsageError, match=words):
        m7b.load(tiny, **options)


def test_loading_prints_nothing_and_tells_how_far_it_is(tiny, capfd):
    events = []
    m7b.load(tiny, report=events.append)
    assert capfd.readouterr() == ("", "")
    assert all(isinstance(event, Loading) for event in events)
    assert events[-1].done == events[-1].total > 0


def test_complete_and_generate_give_what_the_command_prints(model, tiny):
    printed = call("complete", PROMPT, "-m", tiny, *FLAGS).out
    choice = m7b.complete(model, PROMPT, **SAMPLING)
    events = list(m7b.generate(model, PROMPT, **SAMPLING))
    assert choice.text + "\n" == printed
    assert "".join(event.text for event in events if isinstance(event, m7b.TextDelta)) == choice.text
    assert isinstance(events[-1], m7b.Finished)
    assert events[-1].tokens == choice.finished.tokens


def test_a_stop_may_be_one_text(model):
    whole = m7b.complete(model, PROMPT, **SAMPLING).text
    stop = whole[len(whole) // 2 :][:3]
    cut = m7b.complete(model, PROMPT, stop=stop, **SAMPLING).text
    assert cut == m7b.complete(model, PROMPT, stop=[stop], **SAMPLING).text == whole[: whole.index(stop)]


def test_a_schema_is_kept_to_as_by_the_command(model, tiny):
    printed = call("complete", PROMPT, "-m", tiny, "-n", 40, "--seed", 5, "-j", '{"const": 1}').out
    choice = m7b.complete(model, PROMPT, grammar=m7b.JsonSchema({"const": 1}), max_tokens=40, seed=5)
    assert choice.text + "\n" == printed


def test_asking_in_a_chat_gives_what_the_command_prints(model, tiny):
    flags = ["-m", tiny, "--chat-template", "v1", "--no-save", "--system", "Be brief."]
    printed = call("chat", "Hello!", *flags, *FLAGS).out
    session = m7b.chat(model, system="Be brief.", **SAMPLING)
    answer = m7b.ask(session, "Hello!")
    assert answer.text.strip() == printed.strip()
    assert [message.role for message in session.messages] == ["system", "user", "assistant"]


def test_nothing_said_is_not_the_answer_before(model):
    said = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good day."}]
    session = m7b.chat(model, messages=said, logit_bias={2: 100.0}, max_tokens=5)
    assert m7b.ask(session, "And now?").text == ""
    assert len(session.messages) == 2


def test_a_call_that_is_cut_off_is_told(tmp_path):
    """Found: the answer before came once more, or "there is no assistant message yet"."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    model = m7b.load(write_v3(tmp_path / "v3"), chat_template="v3")
    session = m7b.chat(model, tools=[tool], tool_choice="look", max_tokens=4)
    with pytest.raises(UsageError, match="4 tokens hold no text and no whole call; set max_tokens to more"):
        m7b.ask(session, "Hello!")


def test_a_model_without_a_template_cannot_chat(tiny):
    with pytest.raises(UsageError, match="no chat template"):
        m7b.chat(m7b.load(tiny))


@pytest.mark.parametrize("request_", [{"prompt": PROMPT}, {"messages": MESSAGES}], ids=["text", "chat"])
def test_a_request_is_answered_as_a_line_of_a_batch(request_, model, tiny, tmp_path):
    request = request_ | SAMPLING | {"id": "a", "n": 2, "logprobs": 1}
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{request}".replace("'", '"'), encoding="utf-8")
    chat = ["--chat", "--chat-template", "v1"] if "messages" in request else []
    written = call("complete", "-m", tiny, "--jsonl", file, *chat).answer
    answered = m7b.answer(model, request)
    for answer in (written, answered):
        del answer["created"], answer["timings"]
    assert answered == written


def test_scores_are_those_that_the_command_reports(model, tiny):
    ran = call("complete", PROMPT, "-m", tiny, "-n", 0, "--echo", "--json", "--logprobs", 1)
    report = ran.answer["choices"][0]["logprobs"]
    scores = m7b.score(model, PROMPT, top=1)
    assert [score.logprob for score in scores] == report["token_logprobs"][1:]
    assert [score.token for score in scores] == m7b.tokenize(model, PROMPT)[1:]


def test_tokens_are_those_that_the_command_shows(model, tiny):
    for flag, bos in ((), None), (["--bos"], True), (["--no-bos"], False):
        shown = call("tokenize", PROMPT, "-m", tiny, "--json", *flag).answer["tokens"]
        assert m7b.tokenize(model, PROMPT, bos=bos) == shown
        assert m7b.detokenize(model, shown) == PROMPT
    chat = ["--chat", "--chat-template", "v1", "-"]
    shown = call("tokenize", "-m", tiny, "--json", *chat, stdin=f"{MESSAGES}".replace("'", '"'))
    assert m7b.tokenize(model, MESSAGES) == shown.answer["tokens"]
