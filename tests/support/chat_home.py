"""A data folder of its own for one test, and the scripted chat started in it."""

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from m7b.messages import Message
from m7b.store import Store
from tests.support import scripted_chat, shelf
from tests.support.terminal import Terminal
from tests.support.tiny import Ran, call

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-m", "tests.support.scripted_chat"]
DEFAULTS = {
    "answers": {},
    "delay": 0.0,
    "prefill_delay": 0.0,
    "ctx_size": 4096,
    "window": None,
    "loads_slowly": False,
}
_FOREIGN = {"NO_COLOR", "COLUMNS", "LINES", "VISUAL", "EDITOR", "LANG", "LC_ALL", "LC_CTYPE", "HOME", "TERM"}


@dataclass(frozen=True, slots=True)
class ChatHome:
    """A folder with the data folder `home`, the working directory `work` and the script of the model.

    Args:
        folder: an empty folder.
        variants: what seems to be downloaded.
    """

    folder: Path
    variants: tuple[str, ...] = ("demo",)

    def __post_init__(self) -> None:
        self.work.mkdir()
        for variant in self.variants:
            shelf.put(self.home, variant)

    @property
    def home(self) -> Path:
        """The data folder."""
        return self.folder / "home"

    @property
    def work(self) -> Path:
        """The working directory."""
        return self.folder / "work"

    @property
    def files(self) -> list[Path]:
        """All that is in the data folder; not the mark that a model was used."""
        return sorted(path for path in self.home.rglob("*") if path.suffix != ".used")

    @property
    def history(self) -> Path:
        """The file of what was typed."""
        return self.home / "history"

    @property
    def sessions(self) -> Path:
        """The file of the conversations."""
        return self.home / "sessions.sqlite3"

    def environment(self, env: dict[str, str] | None = None, **script: Any) -> dict[str, str]:
        """The environment of the program, whose model follows `script`."""
        file = self.folder / "script.json"
        whole = DEFAULTS | {"go_on": str(self.folder / "go_on")} | script
        file.write_text(json.dumps(whole), encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if k not in _FOREIGN and not k.startswith("M7B_")}
        ours = {"M7B_HOME": str(self.home), "SCRIPT": str(file), "PYTHONPATH": str(ROOT)}
        ours |= {"HOME": str(self.folder), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        return kept | ours | (env or {})

    def chat(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        columns: int = 80,
        rows: int = 24,
        is_ready: bool = True,
        is_mute: bool = False,
        background: str | None = None,
        **script: Any,
    ) -> Terminal:
        """`m7b chat` on a terminal, at its first prompt where it `is_ready`; a mute one never answers."""
        terminal = Terminal(
            [*PROGRAM, "chat", *map(str, arguments)],
            env=self.environment(env, **script),
            cwd=str(self.work),
            columns=columns,
            rows=rows,
            answers=not is_mute,
            background=background,
        )
        if is_ready:
            try:
                terminal.wait_for_prompt()
            except AssertionError:
                terminal.__exit__()
                raise
        return terminal

    def ask(
        self, *arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None, **script: Any
    ) -> Ran:
        """`m7b chat` on pipes in this process, from start to end."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.environ", self.environment(env, **script))
            patch.setattr("m7b.commands.chat.load_model", scripted_chat.load_model)
            patch.setattr("m7b.commands.shared.fetching.fetch_default", scripted_chat.fetch_default)
            patch.chdir(self.work)
            return call("chat", *arguments, stdin=stdin)

    def asking(
        self, *arguments: object, env: dict[str, str] | None = None, **script: Any
    ) -> "subprocess.Popen[bytes]":
        """`m7b chat` on pipes, on its way."""
        return subprocess.Popen(
            [*PROGRAM, "chat", *map(str, arguments)],
            env=self.environment(env, **script),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def go_on(self) -> None:
        """Let an answer go on that waits."""
        (self.folder / "go_on").touch()

    def executable(self, name: str, text: str) -> str:
        """A shell script; its path."""
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o700)
        return str(file)

    def messages(self, reference: str | None = None) -> list[Message]:
        """The stored messages of a conversation, the latest unless another is named."""
        with Store(self.sessions) as store:
            found = store.find(reference) if reference else store.find_latest()
            return store.load_messages(found.id) if found else []

    def texts(self, reference: str | None = None) -> list[str]:
        """The texts of these messages."""
        return [message.text for message in self.messages(reference)]


def mode_of(file: Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(file.stat().st_mode)
