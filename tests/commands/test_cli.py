"""Commands and their exit codes, in process: info, tokenize, detokenize, and what every command refuses."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file

from m7b.commands.shared.expansion import read_option
from m7b.commands.shared.options import ENGINE
from m7b.errors import M7bError
from tests.support.tiny import WINDOW, assert_refused, call, lines, write_tiny

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANT_OF = {"v1": "base-v0.1", "v3": "base-v0.3"}
COMMANDS = (
    "bench",
    "complete",
    "download",
    "info",
    "perplexity",
    "quantize",
    "tokenize",
    "detokenize",
)
V1 = ("--variant", "base-v0.1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch, tmp_path_factory):
    """No test depends on what this machine has downloaded or set."""
    monkeypatch.setenv("M7B_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("M7B_VARIANT", raising=False)


def golden(name):
    """The vectors of one file for the tokenizers that a variant has."""
    with (GOLDEN / name).open(encoding="utf-8") as file:
        return [vector for vector in map(json.loads, file) if vector["tokenizer"] in VARIANT_OF]


# help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=repr)
def test_help_names_every_command(arguments):
    ran = call(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert [name for name in COMMANDS if f"\n  {name} " not in ran.out] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_each_example_on_one_line(name):
    ran = call(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    examples = re.findall(r"^    (\S.*)$", ran.out.partition("\nOptions:")[0], re.MULTILINE)
    assert [f"m7b {name} " in line for line in examples] == [True, True], examples


# the golden vectors


@pytest.mark.parametrize(("option", "expected"), [("--bos", "ids_bos"), ("--no-bos", "ids")])
def test_tokenize_gives_the_golden_ids(option, expected):
    vectors = golden("encode_public.jsonl")
    requests = [{"id": v["id"], "text": v["text"], "variant": VARIANT_OF[v["tokenizer"]]} for v in vectors]
    ran = call("tokenize", option, "--jsonl", "-", stdin=lines(*requests))
    assert (ran.code, ran.err) == (0, "")
    assert ran.answers == [{"id": v["id"], "tokens": v[expected]} for v in vectors]


@pytest.mark.parametrize("name", ["decode_public.jsonl", "encode_public.jsonl"])
def test_detokenize_gives_the_golden_text(name):
    vectors = golden(name)
    requests = [{"id": v["id"], "tokens": v["ids"], "variant": VARIANT_OF[v["tokenizer"]]} for v in vectors]
    ran = call("detokenize", "--jsonl", "-", stdin=lines(*requests))
    assert (ran.code, ran.err) == (0, "")
    assert ran.answers == [{"id": v["id"], "text": v["decoded"]} for v in vectors]


@pytest.mark.parametrize("vector", golden("decode_public.jsonl"), ids=lambda vector: vector["id"])
def test_detokenize_shows_the_golden_pieces(vector):
    ran = call("detokenize", "--variant", VARIANT_OF[vector["tokenizer"]], "--json", *vector["ids"])
    assert ran.code == 0
    assert ran.answer == {"text": vector["decoded"], "pieces": vector["pieces"]}


# tokenize and detokenize


def test_tokenize_prints_an_id_and_its_piece_a_line():
    assert call("tokenize", *V1, "Hello").out == "     1  <s>\n 22557  ▁Hello\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "text"),
    [
        (["a\n"], "", "a\n"),
        ([], "a\n", "a"),
        (["-"], "a\n", "a"),
        ([], "a\n\n", "a\n"),
        (["--keep-newline"], "a\n", "a\n"),
        ([], "a", "a"),
        ([], "", ""),
    ],
)
def test_tokenize_drops_one_final_newline_of_stdin(arguments, stdin, text):
    ran = call("tokenize", *V1, "--json", *arguments, stdin=stdin)
    assert call("detokenize", *V1, "--json", stdin=ran.out).answer["text"] == text


def test_tokenize_takes_the_tokenizer_of_a_checkpoint(tiny):
    assert call("tokenize", "-m", tiny, "Hello").out == call("tokenize", *V1, "Hello").out


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["22557", "28725", "1526"], ""),
        (["22557,28725, 1526"], ""),
        (["[22557, 28725, 1526]"], ""),
        ([], '{"tokens": [1, 22557, 28725, 1526], "pieces": []}\n'),
        ([], "22557\n28725\n1526\n"),
    ],
)
def test_detokenize_reads_ids_however_they_are_written(arguments, stdin):
    ran = call("detokenize", *V1, *arguments, stdin=stdin)
    assert (ran.code, ran.out, ran.err) == (0, "Hello, world\n", "")


BAD_LINES = {
    "no JSON": (b"{", "not JSON"),
    "a list": (b"[1]", "object"),
    "no UTF-8": (b"\xff", "not JSON"),
    "wrong type": ({"id": 1, "text": 5, "tokens": "5"}, "must be"),
    "no text": ({"id": 1}, "must be"),
    "unknown field": ({"id": 1, "text": "a", "tokens": [1], "foo": 1}, "'foo'"),
    "unknown variant": ({"id": 1, "text": "a", "tokens": [1], "variant": "nope"}, "'nope'"),
    "variant that is absent": ({"id": 1, "text": "a", "tokens": [1], "variant": "demo"}, "demo"),
    "variant that is a list": ({"id": 1, "text": "a", "tokens": [1], "variant": ["nope"]}, "nope"),
    "null, or an id outside": ({"id": 1, "text": None, "tokens": [32000]}, ""),
}


@pytest.mark.parametrize("case", BAD_LINES)
@pytest.mark.parametrize("command", ["tokenize", "detokenize"])
def test_a_bad_line_is_answered_in_place(command, case):
    bad, fragment = BAD_LINES[case]
    foreign = {"tokenize": "tokens", "detokenize": "text"}[command]
    if isinstance(bad, dict):
        bad = {key: value for key, value in bad.items() if key != foreign}
    good = {"tokenize": {"id": "g", "text": "a"}, "detokenize": {"id": "g", "tokens": [264]}}[command]
    ran = call(command, *V1, "--jsonl", "-", stdin=lines(good, bad, good))
    assert ran.err == "m7b: 1 of 3 lines failed; each has its error in the output\n"
    assert ran.code == 7
    first, answer, last = ran.answers
    assert first == last
    assert first["id"] == "g"
    assert answer["id"] == (1 if isinstance(bad, dict) else None)
    assert fragment in answer["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    ['"id": "\\ud800", "text": "a"', '"id": NaN, "text": "a"', '"id": 1, "text": "\\ud800"'],
    ids=["half a surrogate pair as id", "NaN as id", "half a surrogate pair as text"],
)
def test_what_json_or_utf8_cannot_say_fails_its_line_only(fields):
    ran = call("tokenize", *V1, "--jsonl", "-", stdin=f'{{{fields}}}\n{{"id": 2, "text": "a"}}\n')
    assert ran.code == 7, ran.err
    first, second = ran.answers
    assert "error" in first
    assert second == {"id": 2, "tokens": [1, 264]}


# info


def info(*arguments):
    ran = call("info", "--json", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return ran.answer


def test_info_describes_the_checkpoint_that_is_there(tiny):
    weights = load_file(tiny / "model.safetensors").values()
    report = info("-m", tiny)
    assert report["parameters"] == sum(weight.numel() for weight in weights)
    assert report["checkpoint"] == {
        "path": str(tiny),
        "format": "hf",
        "dtypes": ["F32"],
        "bytes": sum(weight.nbytes for weight in weights),
        "stop_ids": [2],
    }
    assert report["config"]["sliding_window"] == WINDOW
    assert (report["tokenizer"]["vocab_size"], report["tokenizer"]["adds_bos"]) == (32000, True)
    assert (report["name"], report["chat_template"]) == (tiny.name, None)
    assert set(report["memory"]["fits"].values()) == {True}


def test_info_loads_no_weights(tiny, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    for name in ("m7b.runtime.checkpoints.torch_files.read", "m7b.runtime.loader.load_engine"):
        monkeypatch.setattr(name, refuse)
    assert info("-m", tiny)["parameters"] > 0


@pytest.mark.parametrize(
    ("variant", "parameters", "vocab_size", "window", "template"),
    [
        ("base-v0.1", 7_241_732_096, 32000, 4096, None),
        ("instruct-v0.1", 7_241_732_096, 32000, 4096, "Mistral v1"),
        ("instruct-v0.2", 7_241_732_096, 32000, None, "Mistral v1"),
        ("base-v0.3", 7_248_023_552, 32768, None, None),
        ("instruct-v0.3", 7_248_023_552, 32768, None, "Mistral v3"),
        ("demo", 134_515_008, 49152, None, None),
    ],
)
def test_info_knows_a_variant_that_is_not_here(variant, parameters, vocab_size, window, template):
    report = info("--variant", variant)
    assert report["checkpoint"] is None
    assert report["parameters"] == parameters
    assert report["config"]["vocab_size"] == vocab_size
    assert report["config"]["sliding_window"] == window
    assert report["chat_template"] == template


def test_info_gives_the_published_cache_sizes():
    """The window of v0.1 takes 512 MiB where full attention at 32768 would take 4 GiB."""
    last = info("--variant", "base-v0.1")["cache"]["contexts"][-1]
    assert last["context"] == 32768
    assert last["window_bytes"] == 536_870_912
    assert last["full_attention_bytes"] == 4_294_967_296
    assert last["bytes"] == (4096 + 512 - 1) * 131_072  # the chunk has its slots too


@pytest.mark.parametrize(
    ("arguments", "window", "slots"),
    [
        ([], 4096, 4607),
        (["--window", "1024"], 1024, 1535),
        (["--window", "1024", "--prefill-chunk", "1"], 1024, 1024),
        (["--window", "off"], None, 32768),
        (["--window", "999999"], 999_999, 32768),
    ],
)
def test_info_shows_what_a_window_of_the_user_costs(arguments, window, slots):
    report = info("--variant", "base-v0.1", *arguments)
    assert report["config"]["sliding_window"] == window
    assert report["cache"]["contexts"][-1]["bytes"] == slots * report["cache"]["bytes_per_token"]


@pytest.mark.parametrize("variant", ["base-v0.1", "base-v0.3", "demo"])
def test_info_for_people_has_the_figures_of_its_json(variant):
    report, ran = info("--variant", variant), call("info", "--variant", variant)
    assert (ran.code, ran.err) == (0, "")
    figures = [report["parameters"], *report["weight_bytes"].values()]
    figures += [at["bytes"] for at in report["cache"]["contexts"]]
    figures += [at["full_attention_bytes"] for at in report["cache"]["contexts"]]
    assert [figure for figure in figures if f"{figure:,}" not in ran.out] == []
    assert f"sliding_window  {report['config']['sliding_window'] or 'off'}\n" in ran.out


# options


@pytest.mark.parametrize(("text", "window"), [("off", 0), ("1", 1), ("4096", 4096)])
def test_a_window_is_tokens_or_off(text, window):
    assert read_option(ENGINE["window"], text) == window


@pytest.mark.parametrize("text", ["0", "-1", "", "4k", "1.5", "OFF", "²"])
def test_any_other_window_is_refused(text):
    with pytest.raises(typer.BadParameter, match="off"):
        read_option(ENGINE["window"], text)


def test_the_variant_of_the_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("M7B_VARIANT", "base-v0.3")
    assert info()["name"] == "base-v0.3"
    assert info("--variant", "base-v0.1")["name"] == "base-v0.1"
    monkeypatch.setenv("M7B_VARIANT", "nope")
    assert_refused(call("info"), 2, "M7B_VARIANT", "'nope'", "base-v0.1")


@pytest.mark.parametrize("command", [("complete", "hi"), ("info",), ("tokenize", "hi"), ("detokenize", "1")])
def test_a_model_and_a_variant_exclude_each_other(command, tiny):
    assert_refused(call(*command, *V1, "-m", tiny), 2, "--variant", "--model")


BAD_COMMANDS = [
    ("nope", ["'nope'", "m7b --help"]),
    ("--nope", ["--nope", "m7b --help"]),
    ("complete --nope", ["--nope", "m7b complete --help"]),
    ("complete a b", ["(b)", "m7b complete --help"]),
    ("info --variant nope", ["--variant", "'nope'", "base-v0.1"]),
    ("info --window 4k", ["--window", "'4k'", "off"]),
    ("info --prefill-chunk 0", ["--prefill-chunk", "0"]),
    ("download", ["--variant", "demo"]),
    ("download --variant demo --revision x", ["--revision", "hub"]),
    ("tokenize hi --jsonl -", ["--jsonl", "TEXT"]),
    ("tokenize --variant base-v0.1 --jsonl /nope", ["/nope"]),
    ("detokenize 1 --jsonl -", ["--jsonl", "ids"]),
    ("detokenize --variant base-v0.1 x", ["'x'"]),
    ("detokenize --variant base-v0.1 [1,", ["'[1,'"]),
    ("detokenize --variant base-v0.1 {}", ["tokens"]),
    ("detokenize --variant base-v0.1 32000", ["32000", "0 to 31999"]),
    ("detokenize --variant base-v0.1 -- -1", ["-1", "0 to 31999"]),
    ("complete hi -n 12x", ["--max-tokens", "12x"]),
    ("complete hi --top-p 0,5", ["--top-p", "0,5"]),
    ("complete hi --threads 0", ["--threads", "0"]),
    ("complete hi --dtype int8", ["--dtype", "int8", "bfloat16"]),
    ("complete hi -n -1", ["max_tokens", "-1", "at least 0"]),
    ("complete hi --temperature -1", ["temperature", "-1", "from 0"]),
    ("complete hi --temperature inf", ["temperature", "inf", "from 0"]),
    ("complete hi --top-p 1.5", ["top_p", "1.5", "to 1"]),
    ("complete hi --repetition-penalty 0", ["repetition_penalty is 0"]),
    ("complete hi --presence-penalty nan", ["presence_penalty", "nan", "to 100"]),
    ("complete hi -N 0", ["n is 0"]),
    ("complete hi --logprobs 2", ["--logprobs", "--json"]),
    ("complete hi --json --logprobs -1", ["logprobs", "-1"]),
    ("complete hi --stop=", ["stop", "empty"]),
    ("complete hi --logit-bias 5", ["--logit-bias", "'5'", "ID=BIAS"]),
    ("complete hi --logit-bias 5=nan", ["logit_bias", "5", "nan"]),
    ("complete hi --jsonl -", ["--jsonl", "PROMPT"]),
    ("complete hi -f /nope", ["--file"]),
    ("complete -f /nope", ["/nope", "No such file"]),
    ("complete -f /", ["/", "directory"]),
    ("complete hi -o x", ["--output", "--jsonl"]),
    ("complete --jsonl /nope", ["/nope", "no such file"]),
    ("complete --jsonl / ", ["/", "directory"]),
    ("complete --jsonl - --resume", ["--resume", "--output"]),
    ("complete --jsonl - -o /", ["/"]),
]


@pytest.mark.parametrize(("line", "fragments"), BAD_COMMANDS, ids=[line for line, _ in BAD_COMMANDS])
def test_bad_usage_is_one_line_that_names_it(line, fragments):
    assert_refused(call(*line.split()), 2, *fragments)


def test_ids_nested_beyond_all_reason_are_refused_in_one_line():
    """json gives up with RecursionError, which is no ValueError."""
    assert_refused(call("detokenize", *V1, stdin="[" * 100_000), 2, "list of token ids")


def test_a_home_of_nobody_is_named(monkeypatch):
    monkeypatch.setenv("M7B_HOME", "~no-such-user/m7b")
    ran = call("info", "--variant", "demo")
    assert ran.code in (0, 2, 5), ran.err
    assert ran.code == 0 or "~no-such-user/m7b" in ran.err


# the other exit codes


def test_a_bug_shows_its_traceback_and_exits_1(monkeypatch):
    monkeypatch.setattr("m7b.commands.tokenize.load_chosen_tokenizer", lambda *_: 1 / 0)
    ran = call("tokenize", "hi")
    assert ran.code == 1
    assert "ZeroDivisionError" in ran.err
    assert ran.err.splitlines()[-1].startswith("m7b: this is a bug in m7b")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["-m", "/nope"], ["/nope"]),
        (["-m", "x" * 300], ["x" * 300]),
        (["-m", __file__], [__file__, "not a GGUF file"]),
        (["-m", "two\nlines"], ["two", "lines"]),
        (["-m", str(GOLDEN)], [str(GOLDEN), "no checkpoint"]),
        (["--variant", "demo"], ["demo", "m7b download --variant demo"]),
        (["--variant", "base-v0.1"], ["m7b download --variant base-v0.1"]),
        ([], ["demo", "m7b download --variant demo"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_checkpoint_exits_3_and_says_how_to_get_one(arguments, fragments):
    assert_refused(call("complete", "hi", *arguments), 3, *fragments)


@pytest.mark.parametrize(
    ("damage", "code", "fragments"),
    [
        ({"num_hidden_layers": 3}, 4, ["9 of 30 tensors", "missing"]),
        ({"hidden_size": "32"}, 4, ["config.json", "hidden_size", '"32"']),
        ({"model_type": "bert"}, 3, ["config.json", "model_type", "'bert'"]),
        (None, 4, ["model.safetensors", "fetch it again"]),
    ],
    ids=["layers missing", "wrong type", "another model", "cut short"],
)
def test_a_bad_checkpoint_is_named_with_what_is_wrong(damage, code, fragments, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    if damage is None:
        os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | damage))
    assert_refused(call("info", "-m", folder), code, *fragments)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--window", "off", "--ctx-size", "2000000000"], ["MiB", "free", "--ctx-size"]),
        (["--device", "mps" if torch.accelerator.is_available() else "cuda"], ["device", "--device cpu"]),
    ],
)
def test_what_this_machine_cannot_give_exits_5(arguments, fragments, tiny):
    assert_refused(call("complete", "hi", "-m", tiny, *arguments), 5, *fragments)


def test_ctrl_c_exits_130_without_a_word(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("m7b.commands.tokenize.load_chosen_tokenizer", interrupt)
    ran = call("tokenize", "hi")
    assert (ran.code, ran.out, ran.err) == (130, "", "")


@pytest.mark.parametrize("error", M7bError.__subclasses__())
def test_every_error_reaches_the_exit_code_of_its_class(error, monkeypatch):
    def fail(*_):
        raise error("figures", hint="way out")

    monkeypatch.setattr("m7b.commands.tokenize.load_chosen_tokenizer", fail)
    assert_refused(call("tokenize", "hi"), error.exit_code, "m7b: figures; way out")
