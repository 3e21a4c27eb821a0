"""Homes that are relative, unknown, read-only or full: what needs none works, and says what is not kept."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from m7b import hub
from tests.support.chat_home import ChatHome
from tests.support.checkpoints import mistral, write_gguf
from tests.support.tiny import assert_refused, call

OURS = ("HOME", "M7B_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user without a home and without an entry in the system's list."""

    def refuse(uid):
        raise KeyError(uid)

    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", refuse)
    monkeypatch.chdir(tmp_path)
    yield {}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("~")], "a folder called ~"


@pytest.fixture
def unwritable(monkeypatch, tmp_path):
    """A home below a file, which nobody can make."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "file" / "home"))
    return {"M7B_HOME": str(tmp_path / "file" / "home")}


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """A home on a disk that cannot be written."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root mounts disks")
    monkeypatch.setenv("M7B_HOME", str(folder / "home"))
    yield {"M7B_HOME": str(folder / "home")}
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["homeless", "unwritable", "read_only"])
def home(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("list",), 0),
        (("list", "--json"), 0),
        (("verify",), 0),
        (("config", "show"), 0),
        (("sessions", "list"), 0),
        (("sessions", "search", "x"), 0),
        (("info", "--variant", "base-v0.1"), 0),
        (("tokenize", "--variant", "base-v0.1", "hi"), 0),
        (("info", "-m", "org/x"), 3),
        (("complete", "hi"), 3),
        (("rm", "demo", "-y"), 2),
        (("sessions", "show", "1"), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_needs_no_home_works_without(home, arguments, code):
    """Found: without a home, a folder called `~` was made where the user stood."""
    ran = call(*arguments)
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") <= 1


@pytest.mark.parametrize("arguments", [("download", "x", "--source"), ("config", "edit")])
def test_what_needs_a_home_says_so_in_one_line(home, arguments, tmp_path):
    if arguments[0] == "download":
        arguments = (*arguments, write_gguf(mistral(), tmp_path / "tiny.gguf"))
    ran = call(*arguments)
    assert (ran.code, ran.err.count("\n")) == (5, 1), ran.err
    assert (home.get("M7B_HOME", "M7B_HOME")).rpartition("/")[0] in ran.err


def test_one_question_is_answered_and_said_not_to_be_kept(home, tmp_path, monkeypatch):
    """Found: it ended before the answer."""
    (tmp_path / "chat").mkdir()
    chat = ChatHome(tmp_path / "chat")
    env = chat.environment() | home
    for name in OURS if not home else ():
        env.pop(name, None)
    monkeypatch.setattr(ChatHome, "environment", lambda self, *given, **named: env)
    ran = chat.ask("hello", "-m", chat.work)
    assert (ran.code, ran.out) == (0, "echo: hello\n"), ran.err
    assert ran.err.startswith("m7b: this conversation is not kept: ")
    assert ran.err.count("\n") == 1
    assert (chat.ask("hello", "-m", chat.work, "--no-save").err) == ""
    assert_refused(chat.ask("hello", "-m", chat.work, "--session", "x"), 5)


def test_a_disk_that_fills_up_costs_no_answer(tmp_path, monkeypatch):
    chat = ChatHome(tmp_path)
    from m7b.errors import OutOfResources
    from m7b.store import Store

    def refuse(*given, **named):
        raise OutOfResources("the disk is full")

    monkeypatch.setattr(Store, "save", refuse)
    ran = chat.ask("hello")
    assert (ran.code, ran.out) == (0, "echo: hello\n")
    assert "this conversation is not kept: the disk is full" in ran.err


def test_a_relative_home_is_the_same_from_every_folder(tmp_path, monkeypatch):
    """Found: records held the relative path, and the checkpoint was gone from another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M7B_HOME", "./home")
    path = write_gguf(mistral(), tmp_path / "tiny.gguf")
    assert call("download", "tiny", "--source", "./tiny.gguf", "--copy").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    found = hub.find_path("tiny")
    assert found.is_absolute()
    assert found.read_bytes() == path.read_bytes()
    assert call("verify", "tiny").code == 0
    monkeypatch.setenv("M7B_HOME", "../home")
    assert hub.find_path("tiny") == found


def test_a_relative_cache_of_the_hub_is_recorded_whole(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from m7b.hub.sources.huggingface import cache_folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "hf/hub")
    assert cache_folder() == tmp_path / "hf" / "hub"


def test_a_folder_that_is_gone_ends_nothing_in_a_traceback(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("M7B_HOME", "relative")
    for arguments in (("list",), ("config", "show"), ("info", "-m", "x"), ("complete", "hi"), ("doctor",)):
        ran = call(*arguments)
        assert "Traceback" not in ran.err, arguments
    os.chdir(Path("/"))
