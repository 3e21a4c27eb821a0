"""Adapters by the commands: what each takes, says and refuses."""

import json

import pytest
import requests
import torch

from m7b import load, score
from m7b.generation import AdapterChoice, read_adapter
from m7b.runtime.checkpoints import open_checkpoint
from tests.support.adapters import add_to, draw_pairs, write_gguf_adapter, write_peft
from tests.support.checkpoints import write_hf
from tests.support.served import Served
from tests.support.tiny import assert_refused, call, tiny_model, write_tiny

GREEDY = ("--temperature", 0, "-n", 8, "--dtype", "float32")
PROMPT = "Once upon a time"
WHOLE_BLOCKS = {"intermediate_size": 64, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The tiny model, two adapters for it, and the model that the first makes of it."""
    folder = tmp_path_factory.mktemp("adapters")
    model = tiny_model(**WHOLE_BLOCKS)
    first, second = draw_pairs(model, 8, std=0.3), draw_pairs(model, 4, targets=["v_proj"], seed=3, std=0.5)
    write_hf(model, write_tiny(folder / "base"))
    write_peft(folder / "pirate", first)
    write_gguf_adapter(folder / "poet.gguf", second, model)
    write_hf(add_to(tiny_model(**WHOLE_BLOCKS), first, 1.0), write_tiny(folder / "merged"))
    return folder


def complete(*options):
    ran = call("complete", PROMPT, *GREEDY, *options)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran.out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder", AdapterChoice("folder")),
        ("a/b.gguf:0.5", AdapterChoice("a/b.gguf", 0.5)),
        ("org/name:-1.5e-1", AdapterChoice("org/name", -0.15)),
        ("C:\\adapters\\one", AdapterChoice("C:\\adapters\\one")),
        ("hf.co/org/name:Q8_0", AdapterChoice("hf.co/org/name:Q8_0")),
        ("a:", AdapterChoice("a:")),
        ("a:b:2", AdapterChoice("a:b", 2.0)),
    ],
)
def test_a_scale_may_stand_behind_the_path(text, expected):
    assert read_adapter(text) == expected


def test_a_path_that_ends_like_a_scale_is_meant_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:0.5").mkdir()
    assert read_adapter("odd:0.5") == AdapterChoice("odd:0.5")


@pytest.mark.parametrize("scale", ["nan", "inf", "-1e9"])
def test_scales_that_are_no_sensible_numbers_are_refused(paths, scale):
    ran = call("complete", PROMPT, "-m", paths / "base", "--adapter", f"{paths / 'pirate'}:{scale}")
    assert_refused(ran, 2, "the scale of", "pirate", "from -1000 to 1000")


def test_complete_answers_with_an_adapter_as_the_merged_model_does(paths):
    adapted = complete("-m", paths / "base", "--adapter", f"{paths / 'pirate'}:1")
    assert adapted != complete("-m", paths / "base")
    # The configuration's alpha of 8 over a rank of 8 is a scale of 1.
    assert adapted == complete("-m", paths / "merged")


def test_adapters_add_up_and_the_answer_says_which(paths):
    both = ("--adapter", paths / "pirate", "--adapter", f"{paths / 'poet.gguf'}:0.5")
    ran = call("complete", PROMPT, "-m", paths / "base", *GREEDY, "--json", *both)
    assert ran.answer["model"] == "base + pirate + poet.gguf:0.5"


@pytest.mark.parametrize(
    ("adapter", "code", "words"),
    [
        ("nowhere/at/all", 3, ["nowhere/at/all"]),
        ("org/none", 3, ["org/none", "m7b download org/none"]),
        ("base", 3, ["a model, not an adapter", "-m"]),
        ("wide", 4, ["q_proj", "4x128", "4x32"]),
        ("pirate:half", 2, ["the scale of pirate", "'half'", "no number"]),
        ("", 2, ["an adapter has no name"]),
    ],
)
def test_what_cannot_be_added_is_refused_in_one_line(paths, monkeypatch, adapter, code, words):
    monkeypatch.chdir(paths)
    wide = draw_pairs(tiny_model(hidden_size=128), targets=["q_proj"])
    write_peft(paths / "wide", wide)
    ran = call("complete", PROMPT, "-m", "base", "--offline", "--adapter", adapter)
    assert_refused(ran, code, *words)


@pytest.mark.parametrize("command", ["complete", "info"])
def test_an_adapter_in_the_place_of_a_model_is_told_from_one(paths, command):
    prompt = [PROMPT] if command == "complete" else []
    ran = call(command, *prompt, "-m", paths / "pirate")
    assert_refused(ran, 3, "an adapter, not a model", "--adapter")
    ran = call(command, *prompt, "-m", paths / "poet.gguf")
    assert_refused(ran, 3, "a LoRA adapter, not a model", "--adapter")


def test_perplexity_and_bench_take_adapters(paths, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 4)
    text = ("perplexity", tmp_path / "text.txt", "--dtype", "float32", "--json")
    adapted = call(*text, "-m", paths / "base", "--adapter", paths / "pirate").answer
    assert adapted["model"] == "base + pirate"
    merged = call(*text, "-m", paths / "merged").answer
    assert adapted["perplexity"] == pytest.approx(merged["perplexity"], rel=1e-4)
    work = ("-p", 8, "-n", 4, "-d", 0, "-r", 1, "--warmup", 0, "-o", "json")
    ran = call("bench", "-m", paths / "base", "--adapter", f"{paths / 'pirate'}:0.5", *work)
    assert ran.answer["model"]["adapters"] == ["pirate:0.5"], ran.err
    ran = call("bench", "-m", paths / "base", "--adapter", paths / "pirate", *work, "--claims")
    assert_refused(ran, 2, "--adapter", "--claims")


def test_programs_take_adapters_by_texts(paths):
    options = {"dtype": "float32", "ctx_size": 128}
    adapted = load(paths / "base", adapter=str(paths / "pirate"), **options)
    merged = load(paths / "merged", **options)
    assert adapted.name == "base + pirate"
    found, expected = ([each.logprob for each in score(model, PROMPT)] for model in (adapted, merged))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)


def test_a_chat_keeps_with_which_adapters_it_was_made(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    chat = ("chat", "Hello", "-n", 4, "--chat-template", "v1", "-m", paths / "base")
    ran = call(*chat, "--adapter", f"{paths / 'pirate'}:0.5")
    assert ran.code == 0, ran.err
    assert "base + pirate:0.5" in call("sessions", "list").out
    ran = call(*chat, "--continue")
    assert "this conversation was with base + pirate:0.5 until now" in ran.err


def test_a_chat_is_carried_on_with_all_that_is_listed(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    for name, folder in (("someone/pirate", "pirate"), ("someone/base", "base")):
        assert call("download", name, "--source", paths / folder).code == 0
    chat = ("chat", "Hello", "-n", 4, "--chat-template", "v1")
    ran = call(*chat, "-m", "someone/base", "--adapter", "someone/pirate:0.5")
    assert ran.code == 0, ran.err
    ran = call(*chat, "--continue")
    assert (ran.code, "until now" in ran.err) == (0, False), ran.err
    assert "someone/base + someone/pirate:0.5" in call("sessions", "list").out
    ran = call(*chat, "--continue", "--adapter", paths / "poet.gguf")  # what is given wins
    assert "someone/base + poet.gguf" in call("sessions", "list").out
    ran = call(*chat, "--continue", "-m", paths / "base")
    assert "was with someone/base + poet.gguf until now" in ran.err


# ---- served: each is a model of its own ------------------------------------------------------------------


def test_a_server_has_a_model_for_each_adapter(paths):
    options = ("--dtype", "float32", "--adapter", paths / "pirate", "--adapter", paths / "poet.gguf")
    with Served(paths / "base", *options) as served:
        listed = requests.get(served.url + "/v1/models", timeout=60).json()["data"]
        assert [(each["id"], each.get("parent")) for each in listed] == [
            ("base", None),
            ("pirate", "base"),
            ("poet.gguf", "base"),
        ]
        assert requests.get(served.url + "/v1/models/pirate", timeout=60).json()["id"] == "pirate"
        ask = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        answers = {
            name: served.post("/v1/completions", model=name, **ask).json()
            for name in ("base", "pirate", "poet.gguf", "pirate", "base")
        }
        assert {name: answer["model"] for name, answer in answers.items()} == {name: name for name in answers}
        texts = {name: answer["choices"][0]["text"] for name, answer in answers.items()}
        assert texts["pirate"] + "\n" == complete("-m", paths / "base", "--adapter", paths / "pirate")
        assert texts["base"] + "\n" == complete("-m", paths / "base")
        assert texts["poet.gguf"] + "\n" == complete("-m", paths / "base", "--adapter", paths / "poet.gguf")
        assert served.post("/v1/completions", **ask).json()["choices"][0]["text"] == texts["base"]
        refused = served.post("/v1/completions", model="other", **ask)
        assert refused.status_code == 404
        assert "'base', 'pirate', 'poet.gguf' are" in refused.json()["error"]["message"]


def test_no_server_answers_for_adapters_that_it_keeps_apart(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    adapter = ("--adapter", paths / "pirate")
    expected = complete("-m", paths / "base", *adapter)
    with Served(paths / "base", "--dtype", "float32", *adapter):
        assert complete("-m", paths / "base", *adapter) == expected
        assert complete("-m", paths / "base") != expected


def test_adapters_of_one_name_are_refused_by_a_server(paths):
    serve = ("serve", "-m", paths / "base", "--port", 0, "--keep-alive", 5)
    ran = call(*serve, "--adapter", paths / "pirate", "--adapter", paths / "pirate")
    assert ran.code == 2
    assert "two models would be called pirate" in ran.err


# ---- merged, and kept on the shelf -----------------------------------------------------------------------


@pytest.mark.parametrize("to", ["q8_0", "bf16", "nf4"])
def test_quantize_merges_before_it_rounds(paths, tmp_path, to):
    out = [tmp_path / "merged", tmp_path / "expected"]
    options = ("--to", to, "--no-report")
    ran = call("quantize", paths / "base", "--adapter", paths / "pirate", "-o", out[0], *options)
    assert ran.code == 0, ran.err
    assert call("quantize", paths / "merged", "-o", out[1], *options).code == 0
    found, expected = map(open_checkpoint, out)
    for name in expected.tensors:
        theirs = expected.read(name)
        assert (found.read(name) != theirs).float().mean() < 1e-3, name


def test_the_report_of_a_merged_model_compares_with_the_adapted_one(paths, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 9)
    out = tmp_path / "out.gguf"
    given = ("--adapter", f"{paths / 'pirate'}:0.5", "--eval-file", tmp_path / "text.txt")
    ran = call("quantize", paths / "base", "-o", out, "--to", "q8_0", *given)
    assert ran.code == 0, ran.err
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert report["original"]["model"] == "base + pirate:0.5"
    assert report["mean_kl"] < 0.01
    poet = paths / "poet.gguf"
    ran = call("quantize", paths / "base", "--adapter", poet, "-o", poet, "--to", "q8_0", "--force")
    assert_refused(ran, 2, "poet.gguf is an adapter that is read", "-o")


def test_an_adapter_is_listed_verified_run_and_removed_by_its_name(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    ran = call("download", "someone/pirate", "--source", paths / "pirate", "--copy")
    assert ran.code == 0, ran.err
    (entry,) = call("list", "--json").answer
    assert (entry["name"], entry["format"]) == ("someone/pirate", "peft")
    assert {file["name"] for file in entry["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
    assert complete("-m", paths / "base", "--adapter", "someone/pirate") == complete("-m", paths / "merged")
    told = call("info", "-m", paths / "base", "--adapter", "someone/pirate:2", "--json").answer["adapters"]
    assert [(each["name"], each["scale"], each["ranks"], each["base"]) for each in told] == [
        ("someone/pirate", 2.0, [8], "org/base")
    ]
    line = "adapter           someone/pirate (peft, rank 8, 14 linears, made for org/base)"
    assert line in call("info", "-m", paths / "base", "--adapter", "someone/pirate").out
    assert call("verify").code == 0
    weights = next(tmp_path.rglob("adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    assert call("verify", "someone/pirate").code == 4
    assert_refused(
        call("complete", PROMPT, "-m", "someone/pirate"), 3, "an adapter, not a model", "--adapter"
    )
    assert call("rm", "someone/pirate", "-y").code == 0
    assert call("list", "--json").answer == []
