"""What `m7b complete` answers: sources, sampling, stops, the JSON object, and batches."""

import re
import subprocess
import sys

import pytest
import torch

from m7b.completions import format_answer
from m7b.runtime import loader
from m7b.tokenizer import OfficialVocabulary, load_tokenizer
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import oracle_logits
from tests.support.tiny import CTX_SIZE, Ran, assert_refused, call, lines, tiny_model, write_tiny

PROMPT = "The capital of France is"
TOKENIZER = load_tokenizer(OfficialVocabulary(TokenizerVersion.V1))
IDS = TOKENIZER.encode(PROMPT, bos=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def complete(tiny):
    """Runs `m7b complete` on the tiny checkpoint, 12 tokens of seed 5 unless told otherwise."""

    def run(*arguments, stdin=b"", seed=5, n=12):
        seeded = [] if seed is None else ["--seed", seed]
        return call("complete", "-m", tiny, "-n", n, *seeded, *arguments, stdin=stdin)

    return run


def succeeded(ran):
    assert (ran.code, ran.err) == (0, "")
    return ran


def choice(ran):
    (only,) = succeeded(ran).answer["choices"]
    return only


# where the prompt comes from


def test_argument_file_and_stdin_give_the_same_answer(complete, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8")
    expected = succeeded(complete(PROMPT)).out
    assert len(expected) > 12
    for arguments, stdin in (["-f", file], ""), ([], PROMPT), (["-"], PROMPT), (["-f", "-"], PROMPT + "\n"):
        assert succeeded(complete(*arguments, stdin=stdin)).out == expected


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        ([], "a\n", "a"),
        ([], "a\n\n", "a\n"),
        ([], "a", "a"),
        (["--keep-newline"], "a\n", "a\n"),
        (["a\n"], "", "a\n"),
        (["-f", "prompt.txt"], "", "a\n"),
        (["á\t你\U0001f600"], "", "á\t你\U0001f600"),
    ],
)
def test_only_stdin_loses_one_final_newline(arguments, stdin, prompt, complete, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_bytes(b"a\n")
    assert succeeded(complete("--echo", *arguments, stdin=stdin, n=0)).out == prompt + "\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["b"], "a\n", "a\nb"),
        (["b"], "a", "ab"),
        (["c", "-f", "a", "-f", "b"], "", "abc"),
        (["-f", "a", "-f", "b"], "x\n", "x\nab"),
        (["c", "-f", "a", "-f", "-", "-f", "b"], "x\n", "ax\nbc"),
        (["-", "-f", "a"], "x\n", "ax"),
    ],
)
def test_pipe_files_and_argument_are_one_prompt(arguments, stdin, prompt, complete, tmp_path, monkeypatch):
    """The pipe was dropped beside an argument."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert succeeded(complete("--echo", *arguments, stdin=stdin, n=0)).out == prompt + "\n"


def test_stdin_is_read_once(complete):
    assert_refused(complete("-", "-f", "-", stdin="other"), 2, "- is given twice")


def test_messages_and_a_prompt_are_refused(complete):
    messages = '[{"role": "user", "content": "Hi"}]'
    assert_refused(complete("--chat", "Ho", stdin=messages), 2, "messages in JSON and a prompt")


def test_a_pipe_that_stays_open_is_told(tiny):
    command = [sys.executable, "-m", "m7b", "complete", "-m", str(tiny), "-n", "0", "--echo", "b"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert b"waiting for the end of stdin; < /dev/null leaves it out" in process.stderr.readline()
        assert process.communicate(b"a")[0] == b"ab\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_text(encoding, complete, tmp_path):
    """It broke messages, schemas and batches, and with --chat it made a prompt of messages."""
    prompt, messages, schema = tmp_path / "prompt", tmp_path / "messages", tmp_path / "schema"
    prompt.write_text("á你", encoding)
    messages.write_text('[{"role": "user", "content": "Hi"}]', encoding)
    schema.write_text('{"const": 7}', encoding)
    assert succeeded(complete("--echo", "-f", prompt, n=0)).out == "á你\n"
    assert succeeded(complete("--echo", stdin=prompt.read_bytes(), n=0)).out == "á你\n"
    template = tmp_path / "template"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding)
    chat = ("--chat", "--chat-template", template, "--json")
    usages = [succeeded(complete(*chat, *one, n=1)).answer["usage"] for one in (["-f", messages], ["Hi"])]
    assert usages[0] == usages[1]
    assert succeeded(complete("-j", schema, "x")).out == "7\n"


def test_a_byte_order_mark_in_front_of_a_line_is_no_part_of_it(complete):
    batch = (
        b"\xef\xbb\xbf" + lines({"id": 1, "prompt": "a"}) + b"\xef\xbb\xbf" + lines({"id": 2, "prompt": "b"})
    )
    answers = succeeded(complete("--parallel", 2, "--jsonl", "-", stdin=batch, n=1)).answers
    assert [answer["id"] for answer in answers] == [1, 2]


@pytest.mark.parametrize("prompt", ["- item", "-5 degrees", "-not this", "-force is", "--- x", "--5 x", "-5"])
def test_a_prompt_that_begins_with_a_dash_is_told_where_it_goes(prompt, complete):
    assert_refused(complete(prompt), 2, "a text that begins with a dash goes last, behind --")
    assert succeeded(complete("--echo", "--", prompt, n=0)).out == prompt + "\n"


def test_a_wrong_option_is_not_taken_for_a_text(complete):
    assert "dash" not in complete("--temprature", "1", "--stop=a b", "x").err


@pytest.mark.parametrize("source", ["argument", "file", "stdin"])
def test_a_prompt_that_is_not_utf8_is_refused_with_its_byte(source, complete, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"ab\xff")
    arguments = {"argument": ["ab\udcff"], "file": ["-f", file], "stdin": []}[source]
    assert_refused(complete(*arguments, stdin=b"ab\xff"), 2, "not UTF-8: byte 0xff at offset 2")


def test_an_empty_prompt_begins_with_bos(complete):
    answer = succeeded(complete("", "--json")).answer
    assert answer["usage"]["prompt_tokens"] == 1
    assert answer["choices"][0]["text"]


# the answer


def test_plain_text_is_the_text_of_the_json_and_one_newline(complete):
    assert complete(PROMPT).out == choice(complete(PROMPT, "--json"))["text"] + "\n"


@pytest.mark.parametrize(
    "arguments", [["--no-stream"], ["--stream"], ["--prefill-chunk", "1"], ["--threads", "1"]]
)
def test_options_of_speed_do_not_change_the_text(arguments, complete):
    assert succeeded(complete(PROMPT, *arguments)).out == complete(PROMPT).out


def test_the_json_object_has_openais_shape_and_ours(complete, tiny):
    answer = succeeded(complete(PROMPT, "--json")).answer
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage", "timings"}
    assert (answer["id"][:5], answer["object"], answer["model"]) == ("cmpl-", "text_completion", tiny.name)
    assert set(answer["choices"][0]) == {"index", "text", "token_ids", "finish_reason", "logprobs"}
    timings = answer["timings"]
    assert set(timings) == {"load_s", "ttft_s", "prefill_s", "decode_s", "prefill_tps", "decode_tps"}
    assert min(timings.values()) > 0
    assert timings["ttft_s"] == timings["prefill_s"]
    assert timings["prefill_tps"] == pytest.approx(len(IDS) / timings["prefill_s"])
    assert timings["decode_tps"] == pytest.approx(11 / timings["decode_s"])


def test_timings_tell_of_drafts_where_there_were_any(complete):
    text = "na na na na na na na na"
    plain, drafted = (
        succeeded(complete(text, "--json", "--temperature", 0, "-n", 60, "--draft", draft)).answer
        for draft in ("off", "lookup")
    )
    assert drafted["choices"] == plain["choices"]
    assert 0 <= drafted["timings"]["taken_tokens"] <= drafted["timings"]["drafted_tokens"]
    assert "drafted_tokens" not in plain["timings"]


def test_text_tokens_and_usage_agree(complete):
    answer = succeeded(complete(PROMPT, "--json", "-N", 3)).answer
    for sample in answer["choices"]:
        assert PROMPT + sample["text"] == TOKENIZER.decode(IDS + sample["token_ids"])
        assert (sample["finish_reason"], len(sample["token_ids"])) == ("length", 12)
    assert answer["usage"] == {
        "prompt_tokens": len(IDS),
        "completion_tokens": 36,
        "total_tokens": len(IDS) + 36,
    }


def test_no_tokens_wanted_gives_an_empty_answer(complete):
    answer = succeeded(complete(PROMPT, "--json", n=0)).answer
    (only,) = answer["choices"]
    assert (only["text"], only["token_ids"], only["finish_reason"]) == ("", [], "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert complete(PROMPT, n=0).out == "\n"


def test_echo_puts_the_prompt_in_front(complete):
    assert complete(PROMPT, "--echo").out == PROMPT + complete(PROMPT).out
    assert choice(complete(PROMPT, "--echo", "--json"))["text"] == complete(PROMPT, "--echo").out[:-1]


# seeds and samples


def test_the_same_seed_gives_the_same_text_and_no_seed_another(complete):
    assert complete(PROMPT).out == complete(PROMPT).out
    assert len({complete(PROMPT, seed=seed).out for seed in (5, 6, None, None)}) == 4


def test_temperature_0_needs_no_seed(complete):
    greedy = [complete(PROMPT, "--temperature", 0, seed=seed).out for seed in (None, None, 5)]
    assert len(set(greedy)) == 1


def test_sample_i_is_the_answer_to_seed_plus_i(complete):
    alone = [complete(PROMPT, seed=seed).out for seed in (7, 8, 9)]
    assert succeeded(complete(PROMPT, "-N", 3, seed=7)).out == "".join(alone)
    choices = succeeded(complete(PROMPT, "-N", 3, "--json", seed=7)).answer["choices"]
    assert [(c["index"], c["text"] + "\n") for c in choices] == list(enumerate(alone))


def test_a_bias_decides_the_token(complete):
    assert choice(complete(PROMPT, "--logit-bias", "22557=1000", "--json"))["token_ids"] == [22557] * 12
    greedy = choice(complete(PROMPT, "--temperature", 0, "--json", n=1))["token_ids"][0]
    ran = complete(PROMPT, "--temperature", 0, "--logit-bias", f"{greedy}=-inf", "--json", n=1)
    assert choice(ran)["token_ids"] != [greedy]


EXTREMES = [
    "--temperature 1e-50",
    "--top-k 99999999999999999999",
    "--repetition-penalty 1e-45",
    "--presence-penalty 1e300",
    "--presence-penalty 1e300 --temperature 0",
    "--frequency-penalty -1e300",
    "--repeat-last-n 99999999999999999999 --frequency-penalty 1",
    "--logit-bias 5=1e300",
    "--threads 1000000000000",
    "--window 100000000000000000000",
    "--window 1",
    "--ctx-size 99999999999999999999",
    "--prefill-chunk 99999999999999999999",
    "--max-tokens 99999999999999999999 --ctx-size 20",
    "--logprobs 99999999999999999999 --json --max-tokens 1",
]


@pytest.mark.parametrize("extreme", EXTREMES)
def test_an_extreme_number_is_obeyed_or_refused_but_never_a_bug(extreme, complete):
    ran = complete(PROMPT, *extreme.split(), n=3)
    assert ran.code in (0, 2, 5), ran.err
    assert ran.err.count("\n") == (ran.code != 0)


# where an answer ends


def test_a_stop_string_ends_the_answer_before_it(complete):
    full = choice(complete(PROMPT, "--json"))
    text = full["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 5]
    cut = choice(complete(PROMPT, "--json", "--stop", "not in it", "--stop", stop))
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert cut["token_ids"] == full["token_ids"][: len(cut["token_ids"])]
    assert complete(PROMPT, "--stop", stop).out == cut["text"] + "\n"


def test_a_stop_string_that_never_comes_changes_nothing(complete):
    text = complete(PROMPT).out
    assert complete(PROMPT, "--stop", text[-4:-1] + "!?").out == text


def test_the_stop_id_ends_the_answer_and_is_no_part_of_it(complete):
    ran = complete(PROMPT, "--logit-bias", "2=1000", "--json", "--logprobs", 1)
    only = choice(ran)
    assert (only["text"], only["token_ids"], only["finish_reason"]) == ("", [], "stop")
    assert set(map(len, only["logprobs"].values())) == {0}
    assert ran.answer["usage"]["completion_tokens"] == 0


def test_the_end_of_the_context_is_a_finish_reason(complete):
    answer = succeeded(complete(PROMPT, "--json", "--ctx-size", len(IDS) + 4)).answer
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == len(IDS) + 4
    assert succeeded(complete(PROMPT, "--json", n=10**6)).answer["usage"]["total_tokens"] == CTX_SIZE


@pytest.mark.parametrize("ctx_size", [1, len(IDS)])
def test_a_prompt_that_leaves_no_room_exits_6_with_both_numbers(ctx_size, complete):
    assert_refused(complete(PROMPT, "--ctx-size", ctx_size), 6, f"{len(IDS)} tokens", f"holds {ctx_size};")


# log-probabilities


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_are_those_of_transformers(echo, complete):
    only = choice(complete(PROMPT, "--json", "--logprobs", 3, *["--echo"][: int(echo)]))
    ids = IDS + only["token_ids"]
    log_probs = oracle_logits(tiny_model(), ids).log_softmax(-1)
    expected = [float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids))]
    tops = log_probs.topk(3).values.tolist()[:-1]
    report, start = only["logprobs"], 0 if echo else len(IDS) - 1
    ours, top = report["token_logprobs"], report["top_logprobs"]
    if echo:
        assert (ours.pop(0), top.pop(0)) == (None, None)
    torch.testing.assert_close(ours, expected[start:], rtol=0, atol=1e-4)
    torch.testing.assert_close([sorted(t.values())[::-1][:3] for t in top], tops[start:], rtol=0, atol=1e-4)


def test_the_greedy_token_has_the_largest_logprob(complete):
    report = choice(complete(PROMPT, "--json", "--logprobs", 2, "--temperature", 0))["logprobs"]
    for token, logprob, top in zip(
        report["tokens"], report["token_logprobs"], report["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())


@pytest.mark.parametrize("extra", [[], ["--echo"]], ids=["answer", "echo"])
def test_text_offset_is_where_each_token_begins(extra, complete):
    only = choice(complete(PROMPT, "--json", "--logprobs", 0, *extra, n=100))
    report, text = only["logprobs"], only["text"]
    tokens, offsets = report["tokens"], report["text_offset"]
    assert offsets[0] == 0
    ends = [*offsets[1:], len(text)]
    slices = [text[start:end] for start, end in zip(offsets, ends, strict=True)]
    assert "".join(slices) == text
    skipped = 2 if extra else 0  # <s> is no text, and the first word loses its space
    wrong = [
        (token, part)
        for token, part in list(zip(tokens, slices, strict=True))[skipped:]
        if token != part and not re.fullmatch(r"<0x[0-9A-F]{2}>", token)
    ]
    assert wrong == []


def test_of_alternatives_that_read_alike_the_likelier_stands(complete):
    """The letter A and the byte 0x41 are two ids that read alike: the worse one took the other's place."""
    report = choice(complete("a", "--json", "--logprobs", 32000, n=1))["logprobs"]
    log_probs = oracle_logits(tiny_model(), TOKENIZER.encode("a", bos=True))[-1].log_softmax(-1)
    letter, byte = TOKENIZER.encode("aA", bos=False)[-1], 3 + 0x41
    likelier = float(max(log_probs[letter], log_probs[byte]))
    assert report["top_logprobs"][0]["A"] == pytest.approx(likelier, abs=1e-4)


# batches

REQUESTS = [
    {"id": "a", "prompt": PROMPT, "max_tokens": 5},
    {"id": 2, "prompt": "Hello", "temperature": 0, "n": 2, "echo": True, "model": "x", "user": "y"},
    {"id": "c", "prompt": PROMPT, "seed": 9, "stop": ["e", "i"], "logit_bias": {"5": -5}, "metadata": {}},
    {"id": "d", "prompt": PROMPT, "logprobs": 1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
]


def contents(text):
    """What answers say, without clocks."""
    return [
        (answer["id"], [(c["text"], c["token_ids"]) for c in answer["choices"]])
        if "choices" in answer
        else answer
        for answer in Ran(0, text, "").answers
    ]


def test_a_batch_answers_each_line_in_order_as_if_it_were_alone(complete, tmp_path):
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b"\n".join([lines(request) for request in REQUESTS]) + b" \n")  # blank lines are none
    ran = succeeded(complete("--parallel", 3, "--jsonl", file))
    assert [answer["id"] for answer in ran.answers] == ["a", 2, "c", "d"]
    alone = [complete("--parallel", 3, "--jsonl", "-", stdin=lines(request)).out for request in REQUESTS]
    assert contents(ran.out) == contents("".join(alone))


def test_a_line_means_what_the_options_of_its_names_mean(complete):
    ran = complete("--parallel", 3, "--jsonl", "-", stdin=lines(*REQUESTS))
    options = [["-n", 5], ["--temperature", 0, "-N", 2, "--echo"]]
    options += [["--seed", 9, "--stop", "e", "--stop", "i", "--logit-bias", "5=-5"]]
    options += [["--presence-penalty", 0.5, "--frequency-penalty", 0.5]]
    for answer, request, option in zip(ran.answers, REQUESTS, options, strict=True):
        single = succeeded(complete(request["prompt"], "--json", *option)).answer
        assert [c["text"] for c in answer["choices"]] == [c["text"] for c in single["choices"]]
        assert answer["usage"] == single["usage"]


def test_a_batch_loads_the_model_once(complete, monkeypatch):
    loads, load_engine = [], loader.load_engine
    monkeypatch.setattr(loader, "load_engine", lambda *given: loads.append(given) or load_engine(*given))
    succeeded(complete("--parallel", 3, "--jsonl", "-", stdin=lines(*REQUESTS)))
    assert len(loads) == 1


def test_null_stands_for_the_default(complete):
    fields = ["max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "echo", "logit_bias"]
    request = {"id": 1, "prompt": PROMPT} | dict.fromkeys(fields)
    ran = complete("--parallel", 3, "--jsonl", "-", stdin=lines(request, {"id": 1, "prompt": PROMPT}))
    assert contents(ran.out)[0] == contents(ran.out)[1]


BAD_LINES = {
    "no JSON": (b'{"prompt": "a"', "UsageError", "not JSON"),
    "a list": (b"[1]", "UsageError", "object"),
    "no UTF-8": (b'{"prompt": "\xff"}', "UsageError", "0xff"),
    "no prompt": ({}, "UsageError", "prompt"),
    "prompt too long": ({"prompt": "a " * CTX_SIZE}, "ContextOverflow", str(CTX_SIZE)),
    "unknown field": ({"prompt": "a", "best_of": 2}, "UsageError", "'best_of'"),
    "a string for a number": ({"prompt": "a", "max_tokens": "5"}, "UsageError", 'max_tokens is "5"'),
    "a float for a count": ({"prompt": "a", "max_tokens": 1.5}, "UsageError", "max_tokens is 1.5"),
    "NaN": ({"prompt": "a", "temperature": float("nan")}, "UsageError", "NaN is no JSON number"),
    "an integer beyond floats": ({"prompt": "a", "temperature": 10**400}, "UsageError", "temperature"),
    "out of range": ({"prompt": "a", "top_p": 1.5}, "UsageError", "top_p is 1.5"),
    "no sample": ({"prompt": "a", "n": 0}, "UsageError", "n is 0"),
    "bias of no id": ({"prompt": "a", "logit_bias": {"x": 1}}, "UsageError", "logit_bias"),
    "bias outside": ({"prompt": "a", "logit_bias": {"32000": 1}}, "UsageError", "32000"),
    "echo a number": ({"prompt": "a", "echo": 1}, "UsageError", "echo"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_answered_in_place_and_the_rest_goes_on(case, complete):
    bad, kind, fragment = BAD_LINES[case]
    bad = {"id": "bad"} | bad if isinstance(bad, dict) else bad
    ran = complete("--parallel", 3, "--jsonl", "-", stdin=lines(REQUESTS[0], bad, REQUESTS[0]))
    assert ran.err == "m7b: 1 of 3 lines failed; each has its error in the output\n"
    assert ran.code == 7
    first, answer, last = contents(ran.out)
    assert first == last
    assert set(answer) == {"id", "error"}
    assert answer["id"] == ("bad" if isinstance(bad, dict) else None)
    assert answer["error"]["type"] == kind
    assert fragment in answer["error"]["message"]


def test_half_a_surrogate_pair_fails_its_line_only(complete):
    """JSON can spell it and UTF-8 cannot, so no tokenizer takes it."""
    ran = complete("--parallel", 3, "--jsonl", "-", stdin=lines({"id": 1, "prompt": "\ud800"}, REQUESTS[0]))
    assert ran.code == 7, ran.err
    assert ["error" in answer for answer in ran.answers] == [True, False]


# batches that are carried on

BATCH = lines(*({"id": i, "prompt": f"Line {i}", "max_tokens": 3} for i in range(3)), {"id": "bad"})

ANSWERS = lines(*({"id": i, "choices": []} for i in (0, 1, 2, "bad", 4)))


def test_output_goes_to_a_new_file_only(complete, tmp_path):
    file = tmp_path / "answers.jsonl"
    ran = complete("--parallel", 3, "--jsonl", "-", "-o", file, stdin=BATCH)
    assert (ran.code, ran.out) == (7, "")
    written = file.read_bytes()
    assert contents(written.decode()) == contents(complete("--parallel", 3, "--jsonl", "-", stdin=BATCH).out)
    assert_refused(
        complete("--parallel", 3, "--jsonl", "-", "-o", file, stdin=BATCH), 2, str(file), "--resume"
    )
    assert_refused(
        complete("--parallel", 3, "--jsonl", "-", "-o", tmp_path / "no" / "x", stdin=BATCH),
        2,
        str(tmp_path / "no"),
    )
    assert file.read_bytes() == written


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_resume_makes_the_file_that_was_interrupted(kept, complete, tmp_path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    complete("--parallel", 3, "--jsonl", "-", "-o", whole, stdin=BATCH)
    data = whole.read_bytes()
    cut = data[: int(kept * len(data))]
    file.write_bytes(cut)
    ran = complete("--parallel", 3, "--jsonl", "-", "-o", file, "--resume", stdin=BATCH)
    assert (ran.code, ran.err[:24]) == (7, "m7b: 1 of 4 lines failed")
    assert file.read_bytes().startswith(cut[: cut.rfind(b"\n") + 1])
    assert contents(file.read_text("utf-8")) == contents(data.decode())


def test_ctrl_c_leaves_whole_lines_to_carry_on_with(complete, tmp_path, monkeypatch):
    file = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        calls = iter([format_answer, format_answer])
        patch.setattr("m7b.completions.together.format_answer", lambda *given: next(calls, interrupt)(*given))
        assert complete("--parallel", 1, "--jsonl", "-", "-o", file, stdin=BATCH).code == 130
    assert [answer["id"] for answer in Ran(0, file.read_text("utf-8"), "").answers] == [0, 1]
    assert complete("--parallel", 3, "--jsonl", "-", "-o", file, "--resume", stdin=BATCH).code == 7
    assert [answer["id"] for answer in Ran(0, file.read_text("utf-8"), "").answers] == [0, 1, 2, "bad"]


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("target", ["/dev/null", "."])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_answers_go_to_a_file_and_to_nothing_else(target, more, complete):
    ran = complete("--jsonl", "-", "-o", target, *more, stdin=lines(*REQUESTS))
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "no regular file; name another, or leave out -o" in ran.err


@pytest.mark.parametrize(
    "kept",
    [lines({"id": 7, "choices": []}), lines(b"nonsense"), lines(1), lines([1]), BATCH, ANSWERS],
    ids=["other ids", "no JSON", "a number", "a list", "the requests themselves", "too many"],
)
def test_resume_refuses_a_file_of_something_else_and_leaves_it(kept, complete, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(kept)
    assert_refused(
        complete("--parallel", 3, "--jsonl", "-", "-o", file, "--resume", stdin=BATCH), 2, str(file)
    )
    assert file.read_bytes() == kept
