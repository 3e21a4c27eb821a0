"""Where an answer ends: what checkpoints say of it, and what stop strings name. The oracle is llama.cpp."""

import json

import pytest

from m7b.models import ModelChoice, find_stop_ids, load_texts, open_model
from m7b.stream import StopStrings
from m7b.templates import JinjaTemplate
from m7b.tokenizer import TokenizerJson, find_end_ids, load_tokenizer
from tests.support.tiny import call
from tests.support.tuned import (
    CHATML,
    N_TEXT,
    OPENCHAT,
    ZEPHYR,
    load_tuned,
    write_tokenizer,
    write_tuned,
    write_tuned_gguf,
)

IM_END, IM_START = N_TEXT, N_TEXT + 1
CHATML_TOKENS = ["<|im_end|>", "<|im_start|>"]
END_LIKE = [
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "<turn|>",
    "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>", "<|flush|>",
    "<|calls|>", "[e~[", "<|fim_pad|>", "<|fim_repo|>", "<|repo_name|>", "<|file_sep|>",
    "<PAD>", "[PAD]", "<reponame>", "<fim_pad>", "<|tool_response>", "<|plamo:eos|>",
]  # fmt: skip
OTHERS = ["<|im_start|>", "<|user|>", "<|start|>", "<start_of_turn>", "<pad>", "[INST]", "<|python_tag|>"]
VOCABULARIES = {
    **{name: [name] for name in END_LIKE},
    **{name: [name] for name in OTHERS},
    "harmony": ["<|return|>", "<|call|>", "<|end|>", "<|start|>"],
    "solar": ["<|flush|>", "<|calls|>", "<|end|>"],
    "half of harmony": ["<|return|>", "<|end|>"],
    "gemma": ["<eos>", "<turn|>", "<|tool_response>"],
    "plamo": ["<|plamo:eos|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
}


def stop_ids(path):
    """The ids at which the model at `path` ends an answer."""
    choice = ModelChoice(path=path)
    files = open_model(choice, window=0)
    return find_stop_ids(files.checkpoint, *load_texts(choice, files, None))


def llama_cpp_ends(file):
    """Those at which llama.cpp does."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(model._model.model)
    return {token for token in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)}


# names


@pytest.mark.parametrize("type_", [1, 3, 4], ids=["normal", "control", "user-defined"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_names_that_end_a_text_are_those_of_llama_cpp(vocabulary, type_, tmp_path):
    """Only the ids in the metadata ended an answer."""
    added = VOCABULARIES[vocabulary]
    file = write_tuned_gguf(tmp_path / "m.gguf", added, [type_] * len(added))
    # Whatever its name, what the metadata calls EOS is one, to us.
    assert stop_ids(file) == llama_cpp_ends(file) | {2}


@pytest.mark.parametrize("key", ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_ids_that_end_a_text_are_those_of_llama_cpp(key, tmp_path):
    file = write_tuned_gguf(tmp_path / "m.gguf", ["<x>"], **{f"tokenizer.ggml.{key}_token_id": N_TEXT})
    assert stop_ids(file) == llama_cpp_ends(file) == {2, N_TEXT}


def test_id_that_the_vocabulary_lacks_ends_nothing(tmp_path):
    file = write_tuned_gguf(tmp_path / "m.gguf", ["<x>"], **{"tokenizer.ggml.eot_token_id": 2**32 - 1})
    assert stop_ids(file) == llama_cpp_ends(file) == {2}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", END_LIKE)
def test_names_end_a_text_in_folders_as_in_files(name, special, tmp_path):
    """Such a token is no text: a message that spells it does not become it."""
    write_tokenizer(tmp_path, [name], special=special)
    tokenizer = load_tuned(tmp_path, "")
    is_end = name not in ("<|plamo:eos|>",)
    assert (N_TEXT in find_end_ids(tokenizer)) == is_end
    if is_end:
        assert N_TEXT not in tokenizer.encode(f"a{name}b", bos=False)


# folders

SAYS_SO = {
    "config.json": ({}, {"eos_token_id": IM_END}, {}),
    "list in config.json": ({}, {"eos_token_id": [2, IM_END]}, {}),
    "generation_config.json": ({"eos_token_id": IM_END}, {}, {}),
    "config.json beside generation_config.json": ({"eos_token_id": 2}, {"eos_token_id": IM_END}, {}),
    "tokenizer_config.json": ({}, {}, {"eos_token": "<|x|>"}),
    "object in tokenizer_config.json": ({}, {}, {"eos_token": {"content": "<|x|>", "special": True}}),
    "special_tokens_map.json": ({}, {}, {"eos_token": None}),
    "the template": ({}, {}, {"chat_template": CHATML.replace("im_end", "x")}),
    "one of several templates": (
        {}, {}, {"chat_template": [{"name": "default", "template": "a"},
                                   {"name": "tool_use", "template": CHATML.replace("im_end", "x")}]}),
}  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("place", SAYS_SO)
def test_answer_ends_where_any_file_says_so(place, special, tmp_path):
    """generation_config.json hid config.json, and nothing else counted."""
    generation, config, tokenizer = SAYS_SO[place]
    folder = write_tuned(tmp_path / "m", ["<|x|>", "<|im_start|>"], special=special, **tokenizer)
    for name, fields in (("generation_config.json", generation), ("config.json", config)):
        file = folder / name
        kept = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(kept | fields))
    if place == "special_tokens_map.json":
        (folder / place).write_text(json.dumps({"eos_token": {"content": "<|x|>"}}))
    assert stop_ids(folder) == {2, IM_END}


@pytest.mark.parametrize("says", [{"eos_token_id": None}, {}])
def test_folder_that_names_no_end_runs(says, tmp_path):
    folder = write_tuned(tmp_path / "m", [], eos_token=None)
    fields = json.loads((folder / "config.json").read_text())
    del fields["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(fields | says))
    assert stop_ids(folder) == {2}


# templates

AT_ONCE = "{% for m in messages %}{{ '<|im_start|>' + m.content + '<|x|>' }}{% endfor %}"
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('x') }}{% endif %}"
WRITTEN = {
    "at once": (AT_ONCE, {IM_END}),
    "behind a space": (AT_ONCE.replace("+ '<|x|>'", "+ ' <|x|>'"), {IM_END}),
    "behind a newline": (AT_ONCE.replace("+ '<|x|>'", "+ '\n<|x|>'"), {IM_END}),
    "with the next turn's start": (AT_ONCE.replace("<|x|>", "\n"), {IM_START}),
    "with a newline": ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", set()),
    "with words": (AT_ONCE.replace("<|x|>", "\n### User:\n"), set()),
    "but for the last": (AT_ONCE.replace("'<|x|>'", "('' if loop.last else '<|x|>')"), {IM_END}),
    "at the last": (AT_ONCE.replace("'<|x|>'", "('<|x|>' if loop.last else '.')"), {IM_END}),
    "with EOS": (AT_ONCE.replace("'<|x|>'", "eos_token"), {2}),
    "with a system prompt": (NEEDS_SYSTEM + AT_ONCE, {IM_END}),
    "not at all": ("{{ raise_exception('no') }}", set()),
    "answers in capitals": (AT_ONCE.replace("m.content", "m.content|upper"), {IM_END}),
    "answers in small letters": (AT_ONCE.replace("m.content", "m.content|lower"), {IM_END}),
    "answers in lists": (AT_ONCE.replace("m.content", "m.content|map(attribute='text')|join"), {IM_END}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_control_token_behind_an_answer_ends_it(name, tmp_path):
    source, expected = WRITTEN[name]
    write_tokenizer(tmp_path, ["<|x|>", "<|im_start|>"])
    tokenizer = load_tuned(tmp_path, source)
    assert JinjaTemplate(source, tokenizer, "</s>").find_ends() == expected


# stop strings


@pytest.mark.parametrize(
    ("stops", "shown"),
    [
        (["<|im_end|>"], "a"),
        (["b"], "a"),
        (["<|im_end|>b"], "a"),
        (["a<|im_end|>"], ""),
        (["<|im_end|>c"], "abcd"),
        (["<|im_end|>b<|im_start|>cd"], "a"),
        (["<|im_start|>", "c"], "ab"),
        (["<|im_end|><|im_end|>"], "abcd"),
    ],
)
def test_stop_strings_see_control_tokens(stops, shown):
    """A control token has no text, so no stop string that names one was ever found."""
    controls = {"<|im_end|>": 500, "<|im_start|>": 501}
    passing, seen, stopped = StopStrings(stops, controls), "", False
    for text, token in (("a", 5), ("", 500), ("b", 6), ("", 501), ("c", 7), ("d", 8)):
        piece, stopped = passing.push(text + passing.mark(token))
        seen += piece
        if stopped:
            break
    assert seen + ("" if stopped else passing.flush()) == shown


def test_stop_string_that_names_a_control_token_is_found_in_text_too():
    passing = StopStrings(["<|im_end|>"], {"<|im_end|>": 500})
    assert passing.push("a<|im_") == ("a", False)
    assert passing.push("end|>b") == ("", True)


# whole answers

FOLDERS = {
    "zephyr": ([], {"chat_template": ZEPHYR}, 2),
    "hermes": (CHATML_TOKENS, {"chat_template": CHATML, "eos_token": "<|im_end|>"}, IM_END),
    "dolphin": (CHATML_TOKENS, {"chat_template": CHATML}, IM_END),
    "openchat": (["<|end_of_turn|>", "<|pad_0|>"], {"chat_template": OPENCHAT}, IM_END),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("tuned")
    return {
        name: write_tuned(home / name, added, special=False, **config)
        for name, (added, config, _) in FOLDERS.items()
    }


def answer(path, *options, messages=({"role": "user", "content": "hi"},), bias=(), n=4):
    biases = [word for token, by in dict(bias).items() for word in ("--logit-bias", f"{token}={by}")]
    arguments = ["complete", "--chat", "--json", "-m", path, "-n", n, "--temperature", 0, *biases, *options]
    ran = call(*arguments, json.dumps(list(messages)))
    assert ran.code == 0, ran.err
    (choice,) = ran.answer["choices"]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("name", FOLDERS)
def test_answer_ends_at_the_end_of_the_turn(name, folders):
    """It went on until its length was spent, and the marker was nowhere to be seen."""
    end = FOLDERS[name][2]
    assert answer(folders[name], bias={end: 1000}) == ("", "stop")
    assert answer(folders[name], bias={ord("x") - 33 + 260: 1000}) == ("xxxx", "length")


def test_answer_of_a_file_ends_at_the_end_of_the_turn(tmp_path):
    file = write_tuned_gguf(tmp_path / "m.gguf", CHATML_TOKENS, **{"tokenizer.chat_template": CHATML})
    assert answer(file, bias={IM_END: 1000}) == ("", "stop")


def test_stop_may_name_a_control_token(folders):
    assert answer(folders["hermes"], bias={IM_START: 1000}) == ("", "length")
    assert answer(folders["hermes"], "--stop", "<|im_start|>", bias={IM_START: 1000}) == ("", "stop")
    assert answer(folders["hermes"], "--stop", "<|im_start|><|im_start|>", bias={IM_START: 1000}) == (
        "",
        "stop",
    )


def test_stop_in_a_request_may_name_a_control_token(folders):
    request = {
        "messages": [{"role": "user", "content": "hi"}],
        "logit_bias": {str(IM_START): 1000},
        "max_tokens": 4,
    }
    lines = "".join(
        json.dumps(request | {"stop": stop}) + "\n" for stop in ("x", "<|im_start|>", ["<|im_start|>"])
    )
    ran = call("complete", "--chat", "-m", folders["hermes"], "--jsonl", "-", stdin=lines)
    assert [one["choices"][0]["finish_reason"] for one in ran.answers] == ["length", "stop", "stop"]


def test_info_shows_every_id_that_ends_an_answer(folders):
    assert call("info", "--json", "-m", folders["hermes"]).answer["checkpoint"]["stop_ids"] == [2, IM_END]


def test_vocabulary_entry_that_is_named_eos_is_a_control_token(tmp_path):
    """It was in the vocabulary and not among the added tokens: templates could not write it."""
    write_tokenizer(tmp_path, [])
    text = (tmp_path / "tokenizer.json").read_text().replace('"~"', '"<end>"')
    (tmp_path / "tokenizer.json").write_text(text)
    tokenizer = load_tokenizer(TokenizerJson(tmp_path / "tokenizer.json", "<s>", True, "<end>"))
    assert tokenizer.controls["<end>"] == tokenizer.eos_id
    assert tokenizer.eos_id not in tokenizer.encode("<end>", bos=False)
