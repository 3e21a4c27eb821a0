"""Every command in environments drawn at random: an answer, or one line and a documented code."""

import io
import os
import pwd
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m7b import cli, hub
from m7b.errors import ExitCode
from tests.support.shelf import put

COMMANDS = (
    *(
        "--version",
        "--help",
        "chat --help",
        "nope",
        "list",
        "list --json",
        "verify",
        "verify foo",
        "prune -y",
    ),
    *("rm foo -y", "rm demo", "config path", "config show", "config show --json", "config edit"),
    *("sessions list", "sessions show 1", "sessions search é", "sessions export 1", "sessions rm 1 -y"),
    *("info", "info --variant base-v0.1", "info --variant base-v0.1 --json", "info -m foo", "info -m org/x"),
    *("info -m ./nowhere", "tokenize --variant base-v0.1 hé", "tokenize --variant base-v0.1 --json -"),
    *("tokenize -m foo hi", "detokenize --variant base-v0.1 1 2 3", "complete hi", "complete -m foo hi"),
    *(
        "complete -f nowhere",
        "chat hi",
        "chat -m foo é",
        "chat -c hi",
        "chat -s x hi",
        "chat",
        "quantize foo",
    ),
    *("download org/x -y", "download hf.co/org/x:Q4_0 -y", "download --variant demo -y", "download x -y"),
    *("download nowhere.torrent -y", "download foo --source nowhere/x", "download org/x --offline"),
    *("perplexity nowhere -m foo", "complete --jsonl - -m foo"),
)
ODD = ("", " ", "~", "~nobody/x", "relative", "/dev/null/x", "/proc/x", "/", "é\udcff", "x" * 5000)
PROXIES = (
    "",
    "127.0.0.1:1",
    "http://127.0.0.1:1",
    "socks://127.0.0.1:1",
    "socks5h://a:b@127.0.0.1:1",
    "ftp://x",
    "[",
)
WEB = (
    "http://127.0.0.1:1",
    "127.0.0.1:1",
    "https://127.0.0.1:1",
    "http://",
    "http://[",
    "http://127.0.0.1:x",
    "http://127.0.0.1:99999",
    "http://a..b",
    "http://a b",
)
VALUES = {
    **dict.fromkeys(("HOME", "M7B_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR", "HF_HOME"), ODD),
    **dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), ODD),
    **dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), PROXIES),
    "no_proxy": ("*", "[", "::1/x,,", "127.0.0.1"),
    "HF_TOKEN": ("hf_x", "é", "\n", "a b"),
    **dict.fromkeys(("HF_ENDPOINT", "PIP_INDEX_URL"), WEB),
    "TERM": ("", "dumb", "xterm", "é"),
    **dict.fromkeys(("LANG", "LC_ALL"), ("", "C", "de_DE.ISO-8859-1", "nowhere")),
    **dict.fromkeys(("COLUMNS", "LINES"), ("", "0", "-1", "x", "1", "99999999999")),
    **dict.fromkeys(("EDITOR", "VISUAL", "PAGER"), ("", "true", "false", "/nowhere", "'", "é\udcff")),
    **dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "M7B_OFFLINE"), ("", "1", "é")),
    **dict.fromkeys(
        ("M7B_TEMPERATURE", "M7B_MODEL", "M7B_VARIANT", "M7B_SAVE"), ("", "x", "0", "é\udcff", "-1")
    ),
}
HOMES = ("whole", "empty", "below a file", "drawn")
STREAMS = ("utf-8", "ascii", "latin-1", "cp1252", "full", "pipe", "none")


@st.composite
def environments(draw):
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=5, unique=True))
    return {name: draw(st.sampled_from(VALUES[name])) for name in names}


def open_stream(kind, stack, errors="strict"):
    """A stream to write to that is as `kind` says."""
    match kind:
        case "none":  # what Python makes of one that is closed
            return None
        case "full":
            return stack.enter_context(Path("/dev/full").open("w", encoding="utf-8", buffering=1))
        case "pipe":
            reader, writer = os.pipe()
            os.close(reader)
            return os.fdopen(writer, "w", encoding="utf-8")
    return io.TextIOWrapper(io.BytesIO(), encoding=kind, errors=errors)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(COMMANDS),
    environments(),
    st.sampled_from(HOMES),
    st.sampled_from(STREAMS),
    st.sampled_from(("utf-8", "ascii", "none", "full")),
    st.sampled_from((b"", b"hi", b"\xff\xfe", b"\xef\xbb\xbf{}", None)),
    st.booleans(),
)
def test_no_environment_makes_a_traceback(command, environment, home, out, err, given_in, is_known):
    """`is_known`: whether the system has an entry for the user."""
    caught = []
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name in VALUES:
            patch.delenv(name, raising=False)
        patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        prepare(home, Path(place), patch)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", environment.get("HF_ENDPOINT", WEB[0]))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(hub.Retries.__init__, "__defaults__", (0, 0.0, 0.0))
        if not is_known:
            patch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
        patch.setattr("traceback.print_exc", lambda: caught.append(sys.exception()))
        patch.chdir(place)
        stdin = given_in if given_in is None else io.TextIOWrapper(io.BytesIO(given_in), encoding="utf-8")
        for name, stream in (
            ("stdin", stdin),
            ("stdout", open_stream(out, stack)),
            ("stderr", open_stream(err, stack, "backslashreplace")),
        ):
            patch.setattr(sys, name, stream)
        try:
            code = cli.main(command.split())
        except SystemExit as end:
            code = end.code
        for stream in (sys.stdout, sys.stderr):
            abandon(stream)
    assert not caught, caught
    assert code in set(ExitCode) - {ExitCode.BUG}


def prepare(home, place, patch):
    match home:
        case "whole":
            put(place / "home", "foo")
            patch.setenv("M7B_HOME", str(place / "home"))
        case "empty":
            patch.setenv("M7B_HOME", str(place / "home"))
        case "below a file":
            (place / "file").touch()
            patch.setenv("M7B_HOME", str(place / "file" / "home"))


def abandon(stream):
    """Close a stream that may be full."""
    if isinstance(stream, io.TextIOWrapper) and not stream.closed:
        with suppress(OSError):
            stream.close()
