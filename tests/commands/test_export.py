"""The commands for other engines: words of a shell, each option where the checkpoint needs it."""

import json
import shlex
import shutil

import pytest

from m7b.tokenizer import official_file
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import mistral, write_hf, write_native
from tests.support.tiny import assert_refused, call

TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "mistral"]


@pytest.fixture
def model():
    return mistral(vocab_size=32768, window=16)


def with_vocabulary(folder):
    shutil.copyfile(official_file(TokenizerVersion.V3), folder / "tokenizer.model.v3")
    return folder


def ask(*arguments):
    """The words of both commands, and stderr."""
    ran = call("export", "vllm", *arguments)
    assert ran.code == 0, ran.err
    serve, batch = (shlex.split(line) for line in ran.out.splitlines())
    return serve, batch, ran.err


def test_a_folder_with_mistrals_vocabulary_runs_with_mistrals_tokens_and_tools(model, tmp_path):
    folder = tmp_path / "it's a model"
    folder.mkdir()
    with_vocabulary(write_hf(model, folder))
    serve, batch, _ = ask("-m", folder, "--chat-template", "v3", "-i", tmp_path / "my batch.jsonl")
    options = ["--served-model-name", folder.name, "--tokenizer-mode", "mistral", *TOOLS]
    assert serve == ["vllm", "serve", str(folder), *options]
    paths = ["-i", str(tmp_path / "my batch.jsonl"), "-o", str(tmp_path / "my batch-answers.jsonl")]
    assert batch == ["vllm", "run-batch", *paths, "--model", str(folder), *options]


@pytest.mark.parametrize(("given", "told"), [("8", 8), ("off", None)])
def test_a_window_and_a_context_of_ones_own_are_said(given, told, model, tmp_path):
    with_vocabulary(write_hf(model, tmp_path))
    serve, _, _ = ask("-m", tmp_path, "--window", given, "--ctx-size", 100)
    assert json.loads(serve[serve.index("--hf-overrides") + 1]) == {"sliding_window": told}
    assert serve[serve.index("--max-model-len") + 1] == "100"


def test_the_checkpoints_own_window_needs_no_word(model, tmp_path):
    with_vocabulary(write_hf(model, tmp_path))
    assert "--hf-overrides" not in ask("-m", tmp_path)[0]


def test_gguf_needs_a_plug_in_and_a_tokenizer(demo_file):
    serve, _, told = ask("-m", demo_file)
    assert serve == ["vllm", "serve", str(demo_file), "--served-model-name", demo_file.name]
    assert "vllm-gguf-plugin" in told
    assert "--tokenizer" in told


def test_a_template_of_ones_own_goes_along(model, tmp_path):
    with_vocabulary(write_hf(model, tmp_path))
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    serve, _, _ = ask("-m", tmp_path, "--chat-template", template)
    assert serve[serve.index("--chat-template") + 1] == str(template)
    assert "--tool-call-parser" not in serve


def test_native_folders_are_read_as_mistral_writes_them(model, tmp_path):
    serve, _, _ = ask("-m", with_vocabulary(write_native(model, tmp_path / "safe")))
    assert serve[serve.index("--load-format") + 1] == "mistral"
    folder = with_vocabulary(write_native(model, tmp_path / "pickled", pickle=True))
    assert_refused(call("export", "vllm", "-m", folder), 2, "reads no .pth")


def test_the_settings_count_here_too(model, tmp_path, monkeypatch):
    """They reached no command within a group."""
    monkeypatch.setenv("M7B_MODEL", str(with_vocabulary(write_hf(model, tmp_path / "mine"))))
    monkeypatch.setenv("M7B_CTX_SIZE", "99")
    serve, _, _ = ask()
    assert serve[2] == str(tmp_path / "mine")
    assert serve[serve.index("--max-model-len") + 1] == "99"


def test_a_model_that_is_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    assert_refused(call("export", "vllm", "--variant", "base-v0.1"), 3, "m7b download --variant base-v0.1")
