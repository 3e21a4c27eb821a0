"""`--prompt-cache`: what one process has read, another need not; and what was read otherwise is not used."""

import json
import os

import pytest

from m7b.models import prompt_cache as module
from tests.support.adapters import draw_pairs, write_peft
from tests.support.checkpoints import write_hf
from tests.support.tiny import assert_refused, call, tiny_model, write_tiny

LONG = "It was a dark and stormy night, and the wind blew over the moor. " * 6  # some 100 tokens
WHOLE_BLOCKS = {"intermediate_size": 64, "max_position_embeddings": 512}
CHATTY = ("--chat-template", "v1")
SMALL = ("--window", "off", "--prefill-chunk", 16)  # without kernels whole chunks are shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(tiny_model(**WHOLE_BLOCKS), write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "_WORTH_ANOTHER", 64)  # the tiny model has no room for more
    return tmp_path / "home"


def complete(folder, *options, prompt=LONG, code=0):
    ran = call("complete", prompt, "-m", folder, *SMALL, "-n", 6, "--json", "--logprobs", 2, *options)
    assert ran.code == code, ran.err
    return ran


def count_reused(ran):
    return ran.answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_the_second_process_reads_only_what_is_new(folder, tmp_path):
    file = tmp_path / "prompt"
    options = ("--temperature", 1, "--seed", 3)
    first = complete(folder, *options, "--prompt-cache", file)
    assert count_reused(first) == 0
    written = file.read_bytes()
    for prompt in (LONG, LONG + "And then", LONG[:-30] + "in June"):
        found = complete(folder, *options, "--prompt-cache", file, prompt=prompt)
        expected = complete(folder, *options, prompt=prompt)
        assert found.answer["choices"] == expected.answer["choices"]  # log-probabilities, to the last bit
        assert count_reused(found) >= 80
    assert file.read_bytes() == written, "a few tokens more are not worth writing all of it again"


def test_a_longer_prompt_takes_the_place_of_its_beginning(folder, tmp_path):
    file = tmp_path / "prompt"
    complete(folder, "--prompt-cache", file, prompt=LONG[:200])
    complete(folder, "--prompt-cache", file, prompt=LONG)
    assert count_reused(complete(folder, "--prompt-cache", file, prompt=LONG)) > 90


def test_samples_share_the_prompt_that_was_kept(folder, tmp_path):
    options = ("-N", 3, "--temperature", 1, "--seed", 5)
    complete(folder, "--prompt-cache", tmp_path / "prompt")
    found = complete(folder, *options, "--prompt-cache", tmp_path / "prompt")
    assert found.answer["choices"] == complete(folder, *options).answer["choices"]


@pytest.fixture(scope="module")
def others(folder, tmp_path_factory):
    """Options with which another process reads otherwise, and the label under which that is told."""
    place = tmp_path_factory.mktemp("others")
    changed = write_hf(tiny_model(**WHOLE_BLOCKS, rope_theta=5e4), write_tiny(place / "tiny"))
    template = place / "template.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    adapter = place / "adapter"
    write_peft(adapter, draw_pairs(tiny_model(**WHOLE_BLOCKS), 4))
    return {
        "checkpoint": ("-m", changed),
        "quantization": ("--quant", "q8_0"),
        "number format": ("--dtype", "bfloat16"),
        "format of keys and values": ("--kv-type", "q8_0"),
        "window": ("--window", 8),
        "prefill chunk": ("--prefill-chunk", 32),
        "chat template": ("--chat", "--chat-template", template),
        "adapter": ("--adapter", adapter),
    }


LABELS = (
    "checkpoint",
    "quantization",
    "number format",
    "format of keys and values",
    "window",
    "prefill chunk",
    "chat template",
    "adapter",
)


@pytest.mark.parametrize("label", LABELS)
def test_what_another_model_has_read_is_refused(folder, tmp_path, others, label):
    file = tmp_path / "prompt"
    base = ("-m", folder, "--dtype", "float32", "-n", 2)
    assert call("complete", LONG, *base, "--prompt-cache", file).code == 0
    written = file.read_bytes()
    ran = call("complete", LONG, *base, *others[label], "--prompt-cache", file)
    assert_refused(ran, 2, str(file), f"another {label}", "name another file")
    assert file.read_bytes() == written


def test_a_checkpoint_that_was_written_again_is_another(folder, tmp_path):
    mine, file = write_tiny(tmp_path / "mine"), tmp_path / "prompt"
    complete(mine, "--prompt-cache", file)
    write_tiny(mine)
    weights = next(mine.glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    assert_refused(complete(mine, "--prompt-cache", file, code=2), 2, "another checkpoint")


def test_what_is_no_prompt_cache_is_refused_before_anything_is_loaded(folder, tmp_path):
    precious = tmp_path / "letter.txt"
    precious.write_text("Dear Sir")
    assert_refused(
        complete("/nowhere", "--prompt-cache", precious, code=2), 2, str(precious), "no prompt cache"
    )
    assert precious.read_text() == "Dear Sir"
    place = tmp_path / "missing" / "prompt"
    assert_refused(complete("/nowhere", "--prompt-cache", place, code=2), 2, "no folder", str(place.parent))
    assert_refused(complete("/nowhere", "--prompt-cache", tmp_path, code=2), 2, str(tmp_path))


def test_a_damaged_file_is_refused(folder, tmp_path):
    file = tmp_path / "prompt"
    complete(folder, "--prompt-cache", file)
    os.truncate(file, file.stat().st_size // 2)
    assert_refused(complete(folder, "--prompt-cache", file, code=4), 4, str(file), "remove it")


def test_keys_that_have_changed_are_read_anew(folder, tmp_path):
    """The header is whole, so that this shows only when they are wanted."""
    file = tmp_path / "prompt"
    complete(folder, "--prompt-cache", file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    ran = complete(folder, "--temperature", 0, "--prompt-cache", file)
    assert "read anew" in ran.err
    assert str(file) in ran.err
    assert ran.answer["choices"] == complete(folder, "--temperature", 0).answer["choices"]


def test_a_batch_has_no_prompt_to_keep(folder, tmp_path, monkeypatch):
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"prompt": "Hello", "max_tokens": 1}) + "\n")
    ran = call("complete", "--jsonl", requests, "-m", folder, "--prompt-cache", "auto")
    assert_refused(ran, 2, "--prompt-cache goes with one prompt")
    monkeypatch.setenv("M7B_PROMPT_CACHE", "auto")  # a setting is for all commands
    assert call("complete", "--jsonl", requests, "-m", folder).code == 0


class TestAuto:
    def list(self, home):
        return sorted((home / "prompts").glob("*.safetensors"))

    def test_each_prompt_has_its_file(self, home, folder):
        other = "Call me Ishmael. Some years ago, never mind how long precisely. " * 6
        for prompt in (LONG, other, LONG, other):
            last = complete(folder, "--prompt-cache", "auto", prompt=prompt)
        assert len(self.list(home)) == 2
        assert count_reused(last) > 90
        assert (home / "prompts").stat().st_mode & 0o777 == 0o700

    def test_short_prompts_are_not_kept(self, home, folder):
        complete(folder, "--prompt-cache", "auto", prompt="Hello")
        assert not self.list(home)

    def test_other_models_have_other_files(self, home, folder):
        for options in ((), ("--kv-type", "q8_0"), ("--quant", "q8_0")):
            assert count_reused(complete(folder, "--prompt-cache", "auto", *options)) == 0
        assert len(self.list(home)) == 3

    def test_what_is_damaged_is_told_and_written_anew(self, home, folder):
        complete(folder, "--prompt-cache", "auto")
        (file,) = self.list(home)
        size = file.stat().st_size
        os.truncate(file, 1000)
        ran = complete(folder, "--prompt-cache", "auto")
        assert str(file) in ran.err
        assert self.list(home) == [file]
        assert file.stat().st_size == size

    def test_the_longest_unused_go_first(self, home, folder, monkeypatch):
        complete(folder, "--prompt-cache", "auto")
        (first,) = self.list(home)
        monkeypatch.setattr(module, "LIMIT_BYTES", int(2.5 * first.stat().st_size))
        other = "Call me Ishmael. Some years ago, never mind how long precisely. " * 6
        complete(folder, "--prompt-cache", "auto", prompt=other)
        os.utime(first)  # used again
        complete(folder, "--prompt-cache", "auto", prompt=other[::-1])
        assert len(self.list(home)) == 2
        assert first in self.list(home)

    def test_a_disk_without_room_is_no_failure(self, home, folder, monkeypatch):
        monkeypatch.setattr(module, "_SPARE_BYTES", 1 << 62)
        ran = complete(folder, "--prompt-cache", "auto")
        assert "not kept" in ran.err
        assert not self.list(home)

    def test_prune_removes_them_and_nothing_else(self, home, folder):
        complete(folder, "--prompt-cache", "auto")
        (home / "prompts" / "note.txt").write_text("mine")
        ran = call("prune", "--caches")
        assert (ran.code, str(*self.list(home)) in ran.err) == (2, True)
        assert len(self.list(home)) == 1
        assert call("prune", "-y").code == 0
        assert len(self.list(home)) == 1
        ran = call("prune", "--caches", "-y")
        assert ran.code == 0
        assert "are free again" in ran.err
        assert [file.name for file in (home / "prompts").iterdir()] == ["note.txt"]
        assert "nothing to prune" in call("prune", "--caches", "-y").err


class TestChat:
    def chat(self, folder, *arguments, code=0):
        ran = call("chat", "-m", folder, "--window", "off", *CHATTY, "-n", 4, "--temperature", 0, *arguments)
        assert ran.code == code, ran.err
        return ran

    def test_a_conversation_is_carried_on_where_it_was(self, home, folder, monkeypatch):
        self.chat(folder, LONG, "-s", "long", "--prompt-cache", "auto")
        restored = []
        restore = module.PromptCache.restore

        def watch(self, model, ids):
            restore(self, model, ids)
            restored.append((model.engine.count_held(ids), len(ids)))

        monkeypatch.setattr(module.PromptCache, "restore", watch)
        self.chat(folder, "Who are you?", "-s", "long", "--prompt-cache", "auto")
        ((n_held, n),) = restored
        assert n_held > 80
        assert n - n_held < 30
        assert len(list((home / "prompts").iterdir())) == 1  # the longer one alone

    def test_no_save_keeps_nothing_but_what_is_named(self, home, folder, tmp_path):
        self.chat(folder, LONG, "--no-save", "--prompt-cache", "auto")
        assert not (home / "prompts").exists()
        self.chat(folder, LONG, "--no-save", "--prompt-cache", tmp_path / "named")
        assert (tmp_path / "named").exists()

    def test_off_is_off(self, home, folder, monkeypatch):
        monkeypatch.setenv("M7B_PROMPT_CACHE", "auto")
        self.chat(folder, LONG, "--prompt-cache", "off")
        assert not (home / "prompts").exists()
        self.chat(folder, LONG)
        assert (home / "prompts").exists()

    def test_another_model_s_file_is_refused(self, home, folder, tmp_path):
        self.chat(folder, LONG, "--prompt-cache", tmp_path / "named")
        ran = self.chat(folder, LONG, "--prompt-cache", tmp_path / "named", "--kv-type", "q8_0", code=2)
        assert_refused(ran, 2, "format of keys and values")
