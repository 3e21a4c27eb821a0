"""JSONL in, JSONL out: one request a line, one answer a line, in order, and a way to carry on."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from m7b.errors import M7bError, SomeFailed, UsageError
from m7b.render import Output

AnswerLine = Callable[[dict[str, Any]], dict[str, Any]]
"""What turns the object on a line into the object of its answer."""


class Batch:
    """The lines of `source` and where their answers go.

    Args:
        source: the requests; `-` is stdin.
        target: the answers, stdout where None.
        resume: keep the whole lines that `target` already has and skip as many requests.

    Raises:
        UsageError: `source` cannot be read, or `target` exists and `resume` is not set.
    """

    def __init__(self, source: Path, target: Path | None = None, *, resume: bool = False) -> None:
        if resume and not target:
            raise UsageError("--resume needs --output", hint="name the file to carry on with")
        if target and target.exists() and not resume:
            raise UsageError(
                f"{target} exists", hint="add --resume to carry on with it, or name another file"
            )
        if str(source) == "-" and sys.stdin is None:
            raise UsageError("stdin is closed", hint="--jsonl - reads requests from it")
        if str(source) != "-" and (source.is_dir() or not os.access(source, os.R_OK)):
            reason = "a directory" if source.is_dir() else "no such file, or not readable"
            raise UsageError(f"{source}: {reason}", hint="--jsonl takes a file or -")
        if target and not os.access(target if target.exists() else target.parent, os.W_OK):
            raise UsageError(f"cannot write {target}", hint="its folder must exist and be writable")
        self._source = source
        self._target = target
        self._resume = resume

    def run(self, answer: AnswerLine) -> None:
        """Answer every line that is not blank; an M7bError becomes the answer of its line.

        Raises:
            SomeFailed: some lines did.
            UsageError: the answers kept are not those of these requests.
        """
        kept, kept_bytes = self._kept_answers() if self._resume else ([], 0)
        n_failed = sum("error" in result for result in kept)
        n_lines = 0
        with ExitStack() as stack:
            lines = self._lines(stack)
            for result, line in zip(kept, lines, strict=False):  # stops before it takes a line too many
                n_lines += 1
                self._check_kept(n_lines, result, line)
            if n_lines < len(kept):
                raise UsageError(
                    f"{self._target} holds {len(kept)} answers to {n_lines} requests",
                    hint="name another file",
                )
            write = self._writer(stack, kept_bytes)
            for result in answer_lines(lines, answer):
                n_lines += 1
                n_failed += "error" in result
                write(result)
        if n_failed:
            raise SomeFailed(f"{n_failed} of {n_lines} lines failed", hint="each has its error in the output")

    def _lines(self, stack: ExitStack) -> Iterator[bytes]:
        source = (
            sys.stdin.buffer if str(self._source) == "-" else stack.enter_context(self._source.open("rb"))
        )
        return (line for line in source if line.strip())

    def _writer(self, stack: ExitStack, kept_bytes: int) -> Callable[[dict[str, Any]], None]:
        if self._target is None:
            return Output().write_json
        try:
            file = stack.enter_context(self._target.open("a", encoding="utf-8", newline="\n"))
            file.truncate(kept_bytes)
        except OSError as error:
            raise UsageError(f"cannot write {self._target}: {error.strerror}") from None
        return Output(file).write_json

    def _kept_answers(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines of the target and their bytes, without half a line that a crash left."""
        assert self._target is not None
        if not self._target.exists():
            return [], 0
        whole = self._target.read_bytes().rpartition(b"\n")[0]
        answers = []
        for line in filter(None, whole.split(b"\n")):
            try:
                answers.append(json_object(line))
            except UsageError as error:
                raise UsageError(f"{self._target}: {error.message}", hint="name another file") from None
            if not answers[-1].keys() & {"choices", "error"}:
                raise UsageError(
                    f"{self._target}: line {len(answers)} is no answer", hint="name another file"
                )
        return answers, len(whole) + 1 if whole else 0

    def _check_kept(self, number: int, result: dict[str, Any], line: bytes) -> None:
        wanted = request_id(line)
        if wanted is not None and result.get("id") != wanted:
            raise UsageError(
                f"line {number} of {self._target} answers {result.get('id')!r}, the request is {wanted!r}",
                hint="these are the answers of other requests: name another file",
            )


def answer_lines(lines: Iterator[bytes], answer: AnswerLine) -> Iterator[dict[str, Any]]:
    """The answers to lines, in their order; an M7bError becomes the answer of its line."""
    for line in lines:
        try:
            yield answer(json_object(line))
        except M7bError as error:
            yield {"id": request_id(line), "error": error.report()}


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object on one line.

    Raises:
        UsageError: it is none.
    """
    try:
        value = json.loads(line.strip().decode("utf-8"), parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair cannot be answered
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"a JSON {type(value).__name__} instead of an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def request_id(line: bytes) -> Any:
    """The `id` on a line that may be bad otherwise, None where it has none."""
    try:
        found = json.loads(line)["id"]
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found
