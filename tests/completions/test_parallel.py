"""Batches that are answered several requests at once: the answers of one after another, only sooner."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.support.checkpoints import mistral, write_hf
from tests.support.tiny import MODEL, assert_refused, call, lines, write_tiny

PREFIX = "A very long story about a cat, a dog and the sea. " * 6
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "object", "properties": {"a": {"enum": [1, 22]}}}},
}


def request(i):
    """Requests of many kinds, lengths and ends."""
    prompt = PREFIX[: 20 + 17 * i % 200] if i % 3 else PREFIX + f"Number {i}"
    fields = {"id": i, "prompt": prompt, "max_tokens": 3 + i % 9, "seed": i, "temperature": i % 4 / 3}
    more = {
        1: {"n": 3},
        2: {"stop": ["e", "an"]},
        3: {"repetition_penalty": 1.3, "repeat_last_n": 9},
        4: {"logprobs": 2, "echo": True},
        5: {"response_format": SCHEMA, "max_tokens": 40},
        6: {"top_p": 0.8, "top_k": 30, "min_p": 0.01},
    }
    return fields | more.get(i % 8, {})


REQUESTS = [request(i) for i in range(30)]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A folder whose matrices can be turned into blocks, with a tokenizer."""
    folder = write_tiny(tmp_path_factory.mktemp("blocks"))
    write_hf(
        mistral(window=16, **(MODEL | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16})), folder
    )
    return folder


def answers(ran):
    """What answers say, without clocks and drawn ids."""
    assert ran.code in (0, 7), ran.err
    found = []
    for answer in ran.answers:
        for drawn in ("created", "timings"):
            answer.pop(drawn, None)
        found.append(answer)
    return found


@pytest.mark.parametrize(
    "how",
    [
        ["--quant", "q4_0", "--dtype", "bfloat16"],
        ["--quant", "q8_0", "--dtype", "bfloat16"],
        ["--dtype", "bfloat16"],
    ],
    ids=str,
)
@pytest.mark.parametrize("parallel", [4, 16])
def test_every_answer_is_that_of_one_after_another(blocks, how, parallel):
    """Log-probabilities too, to the last bit."""
    command = [
        "complete",
        "-m",
        blocks,
        "--ctx-size",
        512,
        "--prefill-chunk",
        32,
        *how,
        "--jsonl",
        "-",
        "--parallel",
    ]
    alone, together = (answers(call(*command, n, stdin=lines(*REQUESTS))) for n in (1, parallel))
    assert together == alone
    assert [answer["id"] for answer in together] == list(range(30))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def test_bad_lines_fail_alone_and_in_their_place(tiny):
    bad = [b"{", {"id": "long", "prompt": "a " * 300}, {"id": "what", "prompt": "a", "foo": 1}]
    bad += [{"id": "none", "prompt": "a", "logit_bias": {str(n): "-inf" for n in range(9)}}]
    given = [*REQUESTS[:3], bad[0], REQUESTS[6], *bad[1:], REQUESTS[7]]
    ran = call("complete", "-m", tiny, "--jsonl", "-", "--parallel", 4, stdin=lines(*given))
    assert ran.code == 7
    assert [a.get("id") for a in ran.answers] == [0, 1, 2, None, 6, "long", "what", "none", 7]
    assert ["error" in answer for answer in ran.answers] == [0, 0, 0, 1, 0, 1, 1, 1, 0]
    assert ran.err.endswith("m7b: 4 of 9 lines failed; each has its error in the output\n")


def test_how_many_run_at_once_is_told_where_the_user_did_not_say(tiny):
    ran = call("complete", "-m", tiny, "--jsonl", "-", stdin=lines(*REQUESTS[:3]))
    assert ran.err == "m7b: answering up to 16 requests at once; --parallel N changes that\n"
    ran = call("complete", "-m", tiny, "--jsonl", "-", stdin=lines(REQUESTS[0]))
    assert ran.err == ""


@pytest.mark.parametrize("n", ["0", "-1", "x"])
def test_a_number_that_is_none_is_refused(tiny, n):
    assert_refused(call("complete", "-m", tiny, "--jsonl", "-", f"--parallel={n}"), 2, "--parallel")


def test_parallel_goes_with_a_batch(tiny):
    assert_refused(call("complete", "-m", tiny, "--parallel", 2, "hi"), 2, "--parallel", "--jsonl")


OPENAI = [
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "x", "prompt": "Hi", "max_tokens": 3},
    },
    {"id": "ours", "prompt": "Hi", "max_tokens": 3},
    {
        "custom_id": "chat",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    },
    {"custom_id": "get", "method": "GET", "url": "/v1/completions", "body": {"prompt": "Hi"}},
    {"custom_id": "else", "method": "POST", "url": "/v1/embeddings", "body": {"input": "Hi"}},
    {"custom_id": "bare", "method": "POST", "url": "/v1/completions"},
    {
        "custom_id": "field",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "Hi", "max_tokens": "3"},
    },
]


def test_lines_of_openais_batches_are_answered_in_their_shape(tiny, tmp_path):
    command = ["complete", "-m", tiny, "--chat-template", "v1", "--chat", "--temperature", 0]
    ran = call(*command, "--jsonl", "-", stdin=lines(*OPENAI[:1], *OPENAI[2:]))
    plain = call("complete", "-m", tiny, "--temperature", 0, "--json", "-n", 3, "Hi").answer
    chat = call(*command, "--json", "-n", 3, "Hi").answer
    assert [answer["custom_id"] for answer in ran.answers] == ["a", "chat", "get", "else", "bare", "field"]
    assert [answer["response"]["status_code"] for answer in ran.answers] == [200, 200, 400, 400, 400, 400]
    assert all(answer["error"] is None for answer in ran.answers)
    bodies = [answer["response"]["body"] for answer in ran.answers]
    assert bodies[0]["object"] == "text_completion"
    assert bodies[0]["choices"][0]["text"] == plain["choices"][0]["text"]
    assert bodies[1]["object"] == "chat.completion"
    assert bodies[1]["choices"][0]["message"] == chat["choices"][0]["message"]
    assert [
        word for word, body in zip(("GET", "/v1/embeddings", "body", "max_tokens"), bodies[2:], strict=True)
        if word in body["error"]["message"]
    ] == ["GET", "/v1/embeddings", "body", "max_tokens"]  # fmt: skip
    assert ran.code == 7


@pytest.mark.parametrize("kept", [0.2, 0.6, 1.0])
def test_a_batch_of_openais_lines_is_carried_on(tiny, tmp_path, kept):
    given = [*OPENAI[:2], *OPENAI[3:]]
    source, whole, cut = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    source.write_bytes(lines(*given))
    command = ["complete", "-m", tiny, "--temperature", 0, "--jsonl", source, "--parallel", 4, "-o"]
    assert call(*command, whole).code == 7
    data = whole.read_bytes()
    cut.write_bytes(data[: int(kept * len(data))])
    ran = call(*command, cut, "--resume")
    assert (ran.code, ran.err.splitlines()[-1][:24]) == (7, "m7b: 4 of 6 lines failed")
    names = [
        (answer.get("custom_id"), answer["id"]) for answer in map(json.loads, cut.read_bytes().splitlines())
    ]
    assert [name[0] or name[1] for name in names] == ["a", "ours", "get", "else", "bare", "field"]


def test_who_writes_a_line_and_waits_for_its_answer_gets_it(tiny):
    """A pipe that gives nothing more holds up no request that has come."""
    command = [sys.executable, "-m", "m7b", "complete", "-m", str(tiny), "--jsonl", "-", "-n", "4"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as process:
        for i in range(3):
            process.stdin.write(lines({"id": i, "prompt": "Hi"}, {"id": i + 10, "prompt": "Ho"}))
            process.stdin.flush()
            assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [i, i + 10]
            time.sleep(0.1)
        process.stdin.write(b'{"id": 99, "prompt": "without a newline"}')
        process.stdin.close()
        assert json.loads(process.stdout.readline())["id"] == 99
        assert process.wait(30) == 0
