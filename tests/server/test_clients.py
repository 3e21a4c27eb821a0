"""Clients of other people, as they are used, against a served model. `make clients` installs them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.checkpoints import write_v3
from tests.support.served import Served

MESSAGES = [{"role": "user", "content": "What is the weather in Oslo?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Ålesund"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}
NODE = os.environ.get("M7B_NODE_MODULES", "")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where a random checkpoint called `tiny` is served with the tokenizer and the template of v0.3."""
    folder = tmp_path_factory.mktemp("clients") / "tiny"
    write_v3(folder, max_position_embeddings=2048)
    with Served(folder, "--chat-template", "v3", "--parallel", 4) as server:
        yield server.url


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


def check_call(name, arguments):
    assert name == "weather"
    jsonschema.validate(arguments, PARAMETERS)


def test_litellm(url):
    litellm = pytest.importorskip("litellm")
    fields = {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none", "seed": 1}
    whole = litellm.completion(**fields, messages=MESSAGES, max_tokens=10).choices[0].message.content
    chunks = litellm.completion(**fields, messages=MESSAGES, max_tokens=10, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    called = litellm.completion(
        **fields, messages=MESSAGES, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    function = called.choices[0].message.tool_calls[0].function
    check_call(function.name, json.loads(function.arguments))


def test_mistralai(url):
    client = pytest.importorskip("mistralai.client").Mistral(api_key="none", server_url=url)
    fields = {"model": "tiny", "messages": MESSAGES, "random_seed": 1}
    assert [model.id for model in client.models.list().data] == ["tiny"]
    whole = client.chat.complete(**fields, max_tokens=10).choices[0].message.content
    events = client.chat.stream(**fields, max_tokens=10)
    assert "".join(event.data.choices[0].delta.content or "" for event in events) == whole
    called = client.chat.complete(**fields, tools=[TOOL], tool_choice="any", parallel_tool_calls=False)
    function = called.choices[0].message.tool_calls[0].function
    check_call(function.name, json.loads(function.arguments))


@pytest.mark.parametrize("uses_responses", [False, True])
def test_langchain(url, uses_responses):
    openai = pytest.importorskip("langchain_openai")

    def connect(max_tokens):
        address = {"base_url": f"{url}/v1", "api_key": "none", "use_responses_api": uses_responses}
        return openai.ChatOpenAI(model="tiny", temperature=0, max_tokens=max_tokens, **address)

    model = connect(12)
    whole = model.invoke("Hello").text
    assert "".join(chunk.text for chunk in model.stream("Hello")) == whole
    assert [answer.text for answer in model.batch(["Hello"] * 3)] == [whole] * 3
    calling = connect(100).bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    called = calling.invoke("Hello").tool_calls[0]
    check_call(called["name"], called["args"])


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_instructor(url, mode):
    instructor = pytest.importorskip("instructor")
    import openai
    from pydantic import BaseModel

    class Verdict(BaseModel):
        is_good: bool

    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=instructor.Mode[mode]
    )
    fields = {"parallel_tool_calls": False} if mode == "TOOLS" else {}
    made = client.chat.completions.create(
        model="tiny", response_model=Verdict, messages=MESSAGES, max_tokens=200, max_retries=0, **fields
    )
    assert isinstance(made, Verdict)


def test_llm(url, tmp_path):
    pytest.importorskip("llm")
    entry = {"model_id": "tiny", "model_name": "tiny", "api_base": f"{url}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.dump([entry]))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [
        shutil.which("llm") or "llm",
        "-m",
        "tiny",
        "-o",
        "max_tokens",
        "8",
        "-o",
        "seed",
        "1",
        "Hello",
    ]
    whole, streamed = (
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300)
        for more in ([], ["--no-stream"])
    )
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == streamed.stdout != "\n"


SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.argv[2], apiKey: "none", maxRetries: 0});
const asked = {model: "tiny", messages: [{role: "user", content: "Hello"}], seed: 1};
const tools = [JSON.parse(process.argv[3])];
const whole = (await client.chat.completions.create({...asked, max_tokens: 10})).choices[0].message.content;
let text = "";
for await (const chunk of await client.chat.completions.create({...asked, max_tokens: 10, stream: true}))
  text += chunk.choices[0]?.delta?.content ?? "";
const calling = client.chat.completions.stream(
  {...asked, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200});
let pieces = 0;
calling.on("tool_calls.function.arguments.delta", () => pieces++);
const call = (await calling.finalChatCompletion()).choices[0].message.tool_calls[0].function;
const answer = client.responses.stream({model: "tiny", input: "Hello", max_output_tokens: 8});
let told = "";
for await (const event of answer) if (event.type === "response.output_text.delta") told += event.delta;
const output = (await answer.finalResponse()).output_text;
console.log(JSON.stringify({whole, text, call, pieces, told, output}));
"""


@pytest.mark.skipif(
    not (NODE and shutil.which("node")), reason="M7B_NODE_MODULES names no folder with openai"
)
def test_openai_for_node(url, tmp_path):
    (tmp_path / "node_modules").symlink_to(Path(NODE).resolve())
    script = tmp_path / "try.mjs"
    script.write_text(SCRIPT)
    command = ["node", str(script), f"{url}/v1", json.dumps(TOOL)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout)
    assert told["text"] == told["whole"] != ""
    assert told["told"] == told["output"] != ""
    check_call(told["call"]["name"], json.loads(told["call"]["arguments"]))
    assert told["pieces"] > 2
