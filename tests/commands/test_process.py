"""The program as a process: exit codes, pipes, signals, terminals, encodings; and the download."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m7b.render import Output, Status, note, printable
from tests.support.tiny import call, write_tiny

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
        [*PROGRAM, *arguments], input=stdin, env=os.environ | (env or {}), timeout=300, **settings
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
        assert process.wait(timeout=300) == 141
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
    done = subprocess.run(line, capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stdout + done.stderr


def test_text_arrives_while_it_is_made_and_ctrl_c_keeps_it(tiny):
    with running(*ENDLESS, "-m", tiny) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
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
