"""Ray's stage on a cluster of two workers: every row once, answered as one process answers it."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pyarrow
import pytest
from pyarrow import parquet

import m7b
from tests.completions.test_parallel import request
from tests.support.checkpoints import mistral, write_hf
from tests.support.tiny import MODEL, Ran, assert_refused, call, lines, write_tiny

if find_spec("ray") is None:
    pytest.skip("needs m7b[ray]", allow_module_level=True)
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"
EXACT = ["--quant", "q8_0", "--dtype", "bfloat16"]
LONG = {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.8, "logit_bias": {"2": -100}}
BAD = [b"{", {"id": "long", "prompt": "a " * 300}, {"id": "what", "prompt": "a", "foo": 1}]
OURS = [*(LONG | {"id": i, "seed": i} for i in range(16)), *BAD, *map(request, range(8))]
BATCH = [
    {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "seed": i}}
    for i in range(6)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model whose matrices can be turned into blocks, so that answers are exact whatever is beside them."""
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    shape = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    write_hf(mistral(window=16, **(MODEL | shape)), folder)
    return folder


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster on this machine, in a process of its own."""

    process: subprocess.Popen
    address: str
    environment: dict

    def find_actors(self):
        """The processes of its actors."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if "MapWorker" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def cluster():
    """A cluster with two CPUs, which only those enter who have its token."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    code = """
import ray, sys
ray.init("local", num_cpus=2, object_store_memory=1 << 27, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Cluster(process, process.stdout.readline().strip(), environment)
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def start(cluster, tiny):
    """Starts `m7b complete --ray` on the cluster, in a process of its own."""

    def start(source, target, *arguments):
        command = [sys.executable, "-m", "m7b", "complete", "-m", tiny, "--jsonl", source, "-o", target]
        command += [*EXACT, "--ray", "--address", cluster.address, *arguments]
        return subprocess.Popen(
            [str(word) for word in command],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def answers(texts):
    """What lines of answers say, without clocks and drawn ids."""
    found = []
    for text in texts:
        answer = json.loads(text)
        body = answer.get("response", {}).get("body", answer)
        for drawn in ("created", "timings"):
            body.pop(drawn, None)
        if "response" in answer:
            answer["id"] = body["id"] = answer["response"]["request_id"] = "drawn"
        found.append(answer)
    return found


def read_folder(folder):
    return [
        line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").split("\n")[:-1]
    ]


def test_rows_of_an_actor_that_was_killed_are_answered_once_as_by_one_process(cluster, start, tiny, tmp_path):
    """Lines of ours and of OpenAI's, and Parquet, in one folder; bad rows are errors in their place."""
    source, target = tmp_path / "requests", tmp_path / "answers"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(*OURS))
    (source / "b.jsonl").write_bytes(lines(*BATCH))
    rows = [LONG | {"id": f"p{i}", "seed": i} for i in range(6)]
    table = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(pyarrow.table(table), source / "c.parquet")
    wanted = answers(
        call("complete", "-m", tiny, *EXACT, "--jsonl", "-", stdin=lines(*OURS, *BATCH, *rows)).out.split(
            "\n"
        )[:-1]
    )

    run = start(source, target, "--actors", 2)
    while not any(target.glob("*.jsonl")):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    victim = cluster.find_actors()[0]
    victim.kill()
    out, err = run.communicate(timeout=600)
    assert (run.returncode, out) == (7, ""), err
    assert "m7b: 3 of 39 lines failed; each has its error in the output\n" in err
    assert not victim.is_running()
    assert answers(read_folder(target)) == wanted
    assert not list(target.glob(".*"))


def test_what_does_not_fit_the_cluster_is_refused(start, tmp_path):
    (tmp_path / "requests.jsonl").write_bytes(lines(*OURS))
    run = start(tmp_path / "requests.jsonl", tmp_path / "answers", "--actors", 3)
    out, err = run.communicate(timeout=600)
    assert_refused(Ran(run.returncode, out, err), 5, "room for 2", "--actors")


def test_the_python_of_the_page_runs(cluster, demo_home, tmp_path):
    """A dataset of the user's own, from Parquet to Parquet."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    rows = {
        "id": ["a", "b", "c"],
        "prompt": ["Hello", "Once", None],
        "max_tokens": [3, 3, 3],
        "seed": [1] * 3,
    }
    (tmp_path / "prompts").mkdir()
    parquet.write_table(pyarrow.table(rows), tmp_path / "prompts" / "a.parquet")
    done = subprocess.run(
        [sys.executable, "-c", block.replace("/shared", str(tmp_path))],
        cwd=tmp_path,
        env=cluster.environment | {"RAY_ADDRESS": cluster.address, "M7B_HOME": str(demo_home)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "answers").to_pydict()
    found = dict(zip(table["id"], map(json.loads, table["answer"]), strict=True))
    assert "prompt must be a string" in found.pop("c")["error"]["message"]
    model = m7b.load(demo_home / "checkpoints" / "demo.gguf")
    for name, prompt in (("a", "Hello"), ("b", "Once")):
        choice = m7b.complete(model, prompt, max_tokens=3, seed=1)
        assert found[name]["choices"][0]["text"] == choice.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ray", "--jsonl", "requests.jsonl"], "--ray goes with --jsonl and -o"),
        (["--ray", "-o", "answers"], "--ray goes with --jsonl and -o"),
        (["--actors", 2, "--jsonl", "requests.jsonl"], "--actors goes with --ray"),
        (["--threads-per-actor", 2, "hi"], "--threads-per-actor goes with --ray"),
        (["--address", "auto", "hi"], "--address goes with --ray"),
        (["--ray", "--actors", 0, "--jsonl", "requests.jsonl", "-o", "answers"], "not at least 1"),
        (["--ray", "--jsonl", "-", "-o", "answers"], "--ray reads files, not stdin"),
        (["--ray", "--jsonl", "none.jsonl", "-o", "answers"], "none.jsonl: no such file"),
        (["--ray", "--jsonl", "requests.jsonl", "-o", "requests.jsonl"], "is no folder"),
        (["--ray", "--jsonl", "requests.jsonl", "-o", "no/answers"], "cannot write no/answers"),
        (["--ray", "--jsonl", "requests.jsonl", "-o", "answers", "hi"], "brings its own prompts"),
        (["--ray", "--address", "ray://x:1", "--jsonl", "requests.jsonl", "-o", "answers"], "a client's"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_before_ray_begins(
    arguments, words, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_bytes(lines(LONG))
    assert_refused(call("complete", "-m", tiny, *arguments), 2, words)


def test_a_missing_ray_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "requests.jsonl").write_bytes(lines(LONG))
    ran = call(
        "complete", "-m", tiny, "--ray", "--jsonl", tmp_path / "requests.jsonl", "-o", tmp_path / "out"
    )
    assert_refused(ran, 2, "ray", "pip install 'm7b[ray]'")


def test_a_model_that_cannot_chat_is_refused_before_ray_begins(tiny, tmp_path):
    (tmp_path / "requests.jsonl").write_bytes(lines(LONG))
    where = ["--jsonl", tmp_path / "requests.jsonl", "-o", tmp_path / "out"]
    assert_refused(call("complete", "-m", tiny, "--ray", "--chat", *where), 2, "no chat template")
