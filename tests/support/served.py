"""`m7b serve` in a process of its own."""

import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import requests


class Served:
    """A server on a free port, ready when the block begins.

    Attributes:
        url: where it listens.
        log: the lines of its stderr so far.
    """

    def __init__(self, model: Path, *options: object) -> None:
        command = [sys.executable, "-m", "m7b", "serve", "-m", model, "--port", 0, *options]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        assert self._is_ready.wait(120), self.log
        assert self.process.poll() is None, self.log
        self.url = re.findall(r"listening on (\S+),", self.log[0])[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join(10)

    def post(self, path: str, **fields: object) -> requests.Response:
        """The answer to a request of JSON."""
        return requests.post(self.url + path, json=fields, timeout=120)

    def count(self, name: str) -> float:
        """The value of a metric."""
        text = requests.get(f"{self.url}/metrics", timeout=60).text
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if "is ready" in line:
                self._is_ready.set()
        self._is_ready.set()
