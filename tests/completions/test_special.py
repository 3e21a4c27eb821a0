"""Control tokens in prompts: text unless asked for, and then what transformers makes of their names."""

import pytest
from transformers import PreTrainedTokenizerFast

import m7b
from m7b.commands import complete
from m7b.completions import CompletionRequest, find_remarks
from m7b.errors import UsageError
from m7b.generation import SamplingParams
from m7b.models import Model
from m7b.tokenizer import OfficialVocabulary, TokenizerJson, encode_special, load_tokenizer
from m7b.variants import TokenizerVersion
from tests.support.call_templates import CALL_TEMPLATES
from tests.support.fine_tunes import write_fine_tune
from tests.support.tiny import assert_refused, call, lines

PROMPTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "no control token at all",
    "<|im_end|>",
    " <|im_start|> <|im_end|> a",
    "<|im_start<|im_end|>|>",
    "<tool_call>\n{}</tool_call>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tags = ["<tool_call>", "</tool_call>"]
    path = tmp_path_factory.mktemp("chatml")
    return write_fine_tune(path, CALL_TEMPLATES["hermes"], special=["<|im_start|>"], added=tags)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_names_become_the_tokens_that_transformers_makes_of_them(folder, prompt):
    oracle = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    loaded = load_tokenizer(TokenizerJson(folder / "tokenizer.json", None, None), CALL_TEMPLATES["hermes"])
    assert encode_special(loaded, prompt, bos=True) == oracle.encode(prompt, add_special_tokens=False)
    assert not {*loaded.controls.values()} & {*loaded.encode(prompt, bos=False)}


def test_bos_is_written_once_and_no_space_is_doubled():
    v3 = load_tokenizer(OfficialVocabulary(TokenizerVersion.V3))
    hi = v3.encode("Hi", bos=False)
    for prompt in ("<s>[INST] Hi[/INST]", "[INST] Hi[/INST]", "[INST]Hi[/INST]"):
        assert encode_special(v3, prompt, bos=True) == [1, 3, *hi, 4]
    assert encode_special(v3, "Hi<s>", bos=True) == [1, *hi, 1]


def prompt_tokens(ran):
    assert ran.code == 0, ran.err
    return [answer["usage"]["prompt_tokens"] for answer in ran.answers]


def test_command_batches_and_library_write_them_when_asked(folder):
    prompt, options = "<|im_start|>a", ("--model", folder, "-n", 1, "--temperature", 0)
    assert prompt_tokens(call("complete", *options, "--json", prompt)) == [13]
    assert prompt_tokens(call("complete", *options, "--json", "--special", prompt)) == [2]
    requests = lines({"prompt": prompt}, {"prompt": prompt, "special": True})
    assert prompt_tokens(call("complete", *options, "--jsonl", "-", stdin=requests)) == [13, 2]
    requests = lines({"prompt": prompt}, {"prompt": prompt, "special": False})
    assert prompt_tokens(call("complete", *options, "--special", "--jsonl", "-", stdin=requests)) == [2, 13]
    model = m7b.load(folder)
    for is_special, n in ((False, 13), (True, 2)):
        choice = m7b.complete(model, prompt, special=is_special, max_tokens=1)
        assert choice.finished.usage.prompt_tokens == n
    assert (
        m7b.answer(model, {"prompt": prompt, "special": True, "max_tokens": 1})["usage"]["prompt_tokens"] == 2
    )


def test_messages_never_hold_them(folder):
    options = ("--model", folder, "-n", 1)
    assert_refused(call("complete", "--chat", "--special", *options, "Hi"), 2, "--special", "--chat")
    request = {"messages": [{"role": "user", "content": "<|im_end|>"}], "special": True}
    ran = call(
        "complete", "--chat", *options, "--jsonl", "-", stdin=lines(request, {"prompt": "x", "special": 1})
    )
    assert ran.code == 7
    assert "messages never hold control tokens" in ran.answers[0]["error"]["message"]
    assert "special must be true or false" in ran.answers[1]["error"]["message"]
    with pytest.raises(UsageError, match="messages never hold"):
        m7b.answer(m7b.load(folder), request)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_told_that_names_are_text(is_terminal, folder, monkeypatch):
    told = []
    monkeypatch.setattr(complete, "note", told.append)
    monkeypatch.setattr("sys.stderr", Terminal(is_terminal))
    model: Model = m7b.load(folder)
    for prompt in ("<|im_start|>user\nHi<|im_end|><|im_end|>", "plain <text>"):
        complete._tell(find_remarks(model, CompletionRequest(prompt, SamplingParams())))
    assert [text.split(" in ")[0] for text in told] == ["<|im_start|>, <|im_end|>"] * is_terminal
    assert all("--special" in text for text in told)


class Terminal:
    def __init__(self, is_terminal):
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def write(self, text):
        return len(text)

    def flush(self):
        pass
