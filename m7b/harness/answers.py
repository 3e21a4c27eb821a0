"""What the model has said to each request of an evaluation, kept in a file that survives a kill."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from m7b.errors import UsageError


def name_requests(kind: str, requests: Iterable[Sequence[Any]]) -> list[str]:
    """Name each request by what it asks. The same one again, to be voted on, gets another name."""
    seen: Counter[str] = Counter()
    names = []
    for request in requests:
        text = json.dumps([kind, *request], sort_keys=True, default=str)
        seen[text] += 1
        names.append(hashlib.sha256(f"{seen[text]} {text}".encode()).hexdigest()[:32])
    return names


class Answers:
    """A file of JSON lines: what was run, then one answer each, by the name of its request.

    Args:
        file: where they are kept; None keeps them in memory.
        about: what they depend on: the model and how it runs.
        resumes: whether answers that are there are taken over.

    Raises:
        UsageError: the file is there and is not to be resumed, or was made by another model.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any], *, resumes: bool = False) -> None:
        self._answers: dict[str, Any] = {}
        self._stream = None
        if file is None:
            return
        if file.exists():
            if not resumes:
                raise UsageError(
                    f"{file} is already there", hint="--resume goes on with it; -o names another"
                )
            self._read(file, about)
        self._stream = file.open("a", encoding="utf-8")
        if self._stream.tell() == 0:
            self._write({"about": about})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, name: str) -> bool:
        return name in self._answers

    def __getitem__(self, name: str) -> Any:
        return self._answers[name]

    def keep(self, name: str, answer: Any) -> None:
        """Keep the answer to the request of this name."""
        self._answers[name] = answer
        self._write({"request": name, "answer": answer})

    def close(self) -> None:
        """Close the file."""
        if self._stream:
            self._stream.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._stream:
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()  # behind this, a kill takes nothing

    def _read(self, file: Path, about: Mapping[str, Any]) -> None:
        """Take over what is whole, and cut off the rest of a line that a kill left behind."""
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for at, line in enumerate(whole.splitlines()):
            try:
                fields = json.loads(line)
                if at == 0:
                    _check_same(file, fields["about"], json.loads(json.dumps(about)))
                else:
                    self._answers[fields["request"]] = fields["answer"]
            except (ValueError, KeyError, TypeError):
                raise UsageError(
                    f"{file}: line {at + 1} is no answer of an evaluation", hint="name another folder with -o"
                ) from None
        if len(whole) < len(content):
            with file.open("r+b") as stream:
                stream.truncate(len(whole))


def _check_same(file: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise UsageError(
                f"{file} was made with {key} {was.get(key)}, and this is {now.get(key)}",
                hint="run it as it was, or name another folder with -o",
            )
