"""Servers that keep a model for m7b's own commands: processes as users start, use, end and kill them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from m7b.generation import CallDelta, CallPart, Finished, FinishReason, SamplingParams, TextDelta, Usage
from tests.support.checkpoints import write_v3
from tests.support.tiny import call

CONTEXT = 512
V3 = ("--chat-template", "v3")
SCHEMA = '{"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Ålesund"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def write_model(folder):
    return write_v3(folder, max_position_embeddings=CONTEXT)


class Home:
    """The files of a user, and that user's command line."""

    def __init__(self, folder):
        self.folder = folder
        self.environ = os.environ | {"M7B_HOME": str(folder)}
        self.run_folder = folder / "run"

    def run(self, *words, stdin="", **environ):
        """What a command did."""
        return subprocess.run(
            self.command(*words),
            env=self.environ | environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def command(self, *words):
        return [sys.executable, "-m", "m7b", *map(str, words)]

    def start(self, model, *words):
        """A server in the background; returns its pid."""
        done = self.run("serve", "--background", "-m", model, "--keep-alive", "10m", *words)
        assert done.returncode == 0, done.stderr
        return int(re.findall(r"is ready: .*\(pid (\d+)\)\n$", done.stdout)[0])

    def stop(self):
        self.run("serve", "--stop", "--grace", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def served(model):
    """A home with a server of the model, which has Mistral's template."""
    with tempfile.TemporaryDirectory() as folder:  # short, as paths of sockets are
        home = Home(Path(folder))
        home.start(model, *V3)
        yield home
        home.stop()


@pytest.fixture
def home():
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        yield home
        home.stop()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def strip(out):
    """What a command printed, without what no two runs share."""
    if '"object"' not in out:
        return out
    answer = json.loads(out, parse_float=lambda digits: round(float(digits), 4))
    for name in ("id", "created", "timings"):
        answer.pop(name)
    for choice in answer["choices"]:
        for made in choice.get("message", {}).get("tool_calls", []):
            made.pop("id")
    return answer


@pytest.mark.parametrize(
    "words",
    [
        ["Once", "--temperature", 0],
        ["Once", "--seed", 3, "--top-p", 0.9, "--min-p", 0.01],
        ["Once", "--seed", 3, "--json", "-N", 3, "--logprobs", 2],
        ["Once", "--seed", 4, "-N", 2],
        ["Once", "--seed", 4, "--no-stream"],
        ["Once upon a time", "--echo", "--json", "--logprobs", 1, "--temperature", 0],
        ["Once", "--seed", 5, "--stop", "a", "--stop", "[INST]"],
        ["Once", "--seed", 6, "--logit-bias", "5=-inf", "--logit-bias", "900=40"],
        ["Once", "--seed", 7, "-j", SCHEMA],
        ["Once", "--seed", 7, "--regex", "[a-c]{4} é*"],
        ["[INST] Hi [/INST]", "--special", "--seed", 8],
        ["\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "--seed", 9],
        ["Hello", "--chat", "--seed", 10],
        ["Hello", "--chat", "--seed", 10, "--json", "--logprobs", 1],
        ["Hello", "--chat", "--seed", 11, "--tools", "tools.json", "--tool-choice", "any"],
        ["Hello", "--chat", "--seed", 11, "--tools", "tools.json", "--tool-choice", "any", "--json"],
        ["Once", "-n", 0],
        ["word " * 900],
        ["Once", "--regex", "a(?=b)"],
        ['[{"role": "robot", "content": "a"}]', "--chat"],
        ["Once", "--logit-bias", "99999=1"],
        ["", "--seed", 1],
    ],
    ids=lambda words: " ".join(map(str, words))[:60],
)
def test_a_server_answers_as_the_process_would(words, served, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tools.json").write_text(json.dumps(TOOLS), "utf-8")
    if "--chat" in words:
        words = [*words, *V3]
    templates = () if "--chat" in words else V3
    line = ["complete", "-m", model, "-n", 12, *words]
    if templates:  # the template is part of what a server is, and goes with --chat: let the name do
        address = f"unix:{next(served.run_folder.glob('*.sock'))}"
        warm = served.run(*line, "--server", address)
        assert warm.returncode == 2, "it has another template"
        warm = served.run(*[word for word in line if word not in ("-m", model)], "--server", address)
    else:
        warm = served.run(*line, "-v")
        assert "answers" in warm.stderr
    monkeypatch.setenv("M7B_HOME", str(served.folder))
    cold = call(*line, "--server", "off")
    told = [row for row in warm.stderr.splitlines() if "unix:" not in row]
    assert (warm.returncode, strip(warm.stdout), told) == (cold.code, strip(cold.out), cold.err.splitlines())


def test_a_warm_command_imports_no_torch(served, model):
    code = "import sys; from m7b.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = ["complete", "-m", str(model), "Hi", "-n", "2", "--chat", *V3]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=served.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    "words",
    [["--ctx-size", 100], ["--quant", "q8_0"], ["--dtype", "float32"], ["--window", 9], ["--threads", 1]],
    ids=lambda words: words[0],
)
def test_other_settings_are_another_model(words, served, model):
    line = ["complete", "-m", model, "--chat", *V3, "Hi", "-n", 1, "-v", *words]
    assert "answers" not in served.run(*line).stderr


def test_a_checkpoint_that_was_written_anew_is_another_model(home, tmp_path):
    model = write_model(tmp_path / "model")
    home.start(model)
    assert "answers" in home.run("complete", "-m", model, "Hi", "-n", 1, "-v").stderr
    write_model(model)
    assert "answers" not in home.run("complete", "-m", model, "Hi", "-n", 1, "-v").stderr


def test_two_models_are_served_side_by_side(home, model, tmp_path):
    other = write_model(tmp_path / "other")
    pids = [home.start(model), home.start(other)]
    status = home.run("serve", "--status")
    assert (status.returncode, status.stdout.count("\n")) == (0, 2)
    assert all(f"pid {pid} " in status.stdout for pid in pids)
    for one in (model, other):
        assert "answers" in home.run("complete", "-m", one, "Hi", "-n", 1, "-v").stderr
    assert home.run("serve", "--stop", "-m", other).returncode == 0
    assert [is_alive(pid) for pid in pids] == [True, False]
    assert f"pid {pids[0]} " in home.run("serve", "--status").stdout


def test_a_second_start_tells_of_the_first(home, model):
    pid = home.start(model)
    again = home.run("serve", "--background", "-m", model)
    assert (again.returncode, again.stderr) == (0, "")
    assert f"served already: unix:{home.run_folder}" in again.stdout
    assert f"(pid {pid})" in again.stdout


def test_a_second_start_elsewhere_is_refused(home, model):
    """Found: it told of the first, and nobody listened where it was to be."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert home.run("serve", "--background", "-m", model, "--port", port).returncode == 0
    again = home.run("serve", "--background", "-m", model, "--port", port)
    assert (again.returncode, again.stderr) == (0, "")
    for elsewhere in (("--port", port - 1), ("--host", "127.0.0.2", "--port", port), ("--uds", "other.sock")):
        refused = home.run("serve", "--background", "-m", model, *elsewhere)
        assert refused.returncode == 2
        assert f"served already, at http://127.0.0.1:{port}" in refused.stderr
        assert "--stop" in refused.stderr


def test_starts_at_once_make_one_server(home, model):
    line = home.command("serve", "--background", "-m", model)
    started = [subprocess.Popen(line, env=home.environ, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [one.wait(120) for one in started] == [0, 0, 0]
    deadline = time.monotonic() + 60
    while home.run("serve", "--status").returncode and time.monotonic() < deadline:
        time.sleep(0.2)
    assert home.run("serve", "--status").stdout.count("\n") == 1


def test_a_stopped_server_leaves_nothing_but_its_log(home, model):
    pid = home.start(model)
    stopped = home.run("serve", "--stop")
    assert (stopped.returncode, is_alive(pid)) == (0, False)
    assert [path.suffix for path in home.run_folder.iterdir()] == [".log"]
    for words in (["--stop"], ["--status"]):
        none = home.run("serve", *words)
        assert (none.returncode, none.stdout) == (9, "")
        assert "m7b serve --background" in none.stderr


def test_a_killed_server_is_forgotten(home, model):
    os.kill(home.start(model), signal.SIGKILL)
    done = home.run("complete", "-m", model, "Hi", "-n", 1, "--temperature", 0, "-v")
    assert (done.returncode, "answers" in done.stderr) == (0, False)
    assert len(list(home.run_folder.glob("*.sock"))) == 1, "the socket is stale"
    assert home.run("serve", "--status").returncode == 9
    assert [path.suffix for path in home.run_folder.iterdir()] == [".log"]
    assert is_alive(home.start(model))


def test_a_socket_without_a_record_is_replaced(home, model):
    os.kill(home.start(model), signal.SIGKILL)
    next(home.run_folder.glob("*.json")).unlink()
    assert is_alive(home.start(model))
    assert "answers" in home.run("complete", "-m", model, "Hi", "-n", 1, "-v").stderr


def test_files_are_the_owners_alone(served):
    paths = [served.run_folder, *served.run_folder.iterdir()]
    assert [path.name for path in paths if path.stat().st_mode & 0o077] == []


def test_a_folder_that_others_may_open_is_not_used(home, model):
    home.start(model)
    home.run_folder.chmod(0o755)
    done = home.run("complete", "-m", model, "Hi", "-n", 1, "-v")
    assert (done.returncode, "answers" in done.stderr) == (0, False)
    assert "owner" in done.stderr
    refused = home.run("serve", "--background", "-m", model)
    assert refused.returncode == 5
    assert f"chmod 700 {home.run_folder}" in refused.stderr
    home.run_folder.chmod(0o700)


def test_a_server_that_cannot_start_says_why(home, tmp_path):
    refused = home.run("serve", "--background", "-m", tmp_path)
    cold = home.run("complete", "-m", tmp_path, "Hi")
    assert (refused.returncode, refused.stdout) == (cold.returncode, "")
    assert refused.stderr == cold.stderr
    assert home.run("serve", "--status").returncode == 9


def test_a_server_that_is_not_there(home, model, tmp_path):
    for address in (f"unix:{tmp_path}/none", "http://127.0.0.1:9"):
        done = home.run("complete", "-m", model, "Hi", "--server", address)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (9, "", 1)
        assert address in done.stderr
    assert home.run("complete", "Hi", "--server", "ftp://x").returncode == 2


def test_a_port_is_served_too(home, model):
    done = home.run("serve", "--background", "-m", model, "--port", 0, "--api-key", "secret")
    address = re.findall(r"http://[\d.:]+", done.stdout)[0]
    line = ["complete", "Hi", "-n", 2, "--temperature", 0, "--server", address]
    assert home.run(*line).returncode == 9
    let_in = home.run(*line, M7B_API_KEY="secret")
    assert let_in.returncode == 0
    assert let_in.stdout == home.run(*line[:-2], "-m", model).stdout


def test_a_setting_says_who_answers(served, model):
    line = ["complete", "-m", model, "--chat", *V3, "Hi", "-n", 1, "-v"]
    assert "answers" in served.run(*line).stderr
    assert "answers" not in served.run(*line, M7B_SERVER="off").stderr


def start_long(home, model):
    """A command whose answer takes a while, once there is text."""
    line = home.command("complete", "-m", model, "Once", "-n", 480, "--logit-bias", "2=-inf", "-v")
    process = subprocess.Popen(
        line,
        env=home.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.read(1)
    return process


def test_a_server_that_dies_ends_the_command_with_one_line(home, model):
    pid = home.start(model)
    process = start_long(home, model)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    told = [line for line in err.decode().splitlines() if "answers" not in line]
    assert (process.returncode, len(told)) == (9, 1)
    assert "ended in the middle of the answer" in told[0]


def test_an_interrupt_frees_the_server(home, model):
    home.start(model, "--parallel", 1)
    process = start_long(home, model)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.count(b"\n")) == (130, 1)
    started = time.monotonic()
    assert "answers" in home.run("complete", "-m", model, "Hi", "-n", 1, "-v").stderr
    assert time.monotonic() - started < 30


def test_stop_ends_answers_within_its_grace(home, model):
    home.start(model)
    process = start_long(home, model)
    started = time.monotonic()
    assert home.run("serve", "--stop", "--grace", 0).returncode == 0
    assert time.monotonic() - started < 20
    process.communicate(timeout=300)
    assert process.returncode in (0, 9)


def test_garbage_is_refused_and_harms_nobody(served):
    path = next(served.run_folder.glob("*.sock"))
    wrong_type = {"kind": "CompletionRequest", "items": {"prompt": 5, "params": None}}
    for packed in (None, 5, [], {}, {"kind": "Path", "items": {}}, {"kind": "dict", "items": 5}, wrong_type):
        body = json.dumps({"request": packed, "identity": None, "is_whole": False}).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            head = f"POST /m7b/answer HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert client.makefile("rb").readline().split()[1] == b"400", packed


def test_many_commands_at_once_are_answered(served, model):
    line = ["complete", "-m", model, "--chat", *V3, "Hi", "-n", 8, "--seed", 1, "-v"]
    done = []
    threads = [threading.Thread(target=lambda: done.append(served.run(*line))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.stdout for one in done}) == 1
    assert all("answers" in one.stderr for one in done)


def test_what_goes_over_the_wire_comes_back():
    from m7b.completions import ChatPrompt, CompletionRequest
    from m7b.constraint import AnyJson
    from m7b.warm.wire import pack, unpack

    usage = Usage(1, 0, 2, 0.5, 0.25)
    chat = ChatPrompt([{"role": "user", "content": "é", "kind": "dict", "items": [1]}])
    for value in (
        CompletionRequest((1, 2), SamplingParams(logit_bias={3: float("-inf")}, stop=("a",))),
        CompletionRequest("", SamplingParams(), conversation=chat, allowed_tools=frozenset("ab")),
        CompletionRequest("a", SamplingParams(), grammar=AnyJson()),
        TextDelta("a\ud800"),
        CallDelta("x", (CallPart(0, "abc", "name"),)),
        Finished(FinishReason.TOOL_CALLS, (1,), (), usage),
    ):
        assert unpack(json.loads(json.dumps(pack(value)))) == value
