"""JSONL in, JSONL out: one request a line, one answer a line, in order, and a way to carry on."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from m7b.completions.feed import LineFeed
from m7b.completions.line import find_id, is_error, parse_object
from m7b.errors import M7bError, SomeFailed, UsageError
from m7b.render import Output

AnswerLine = Callable[[dict[str, Any]], dict[str, Any]]
"""What turns the object on a line into the object of its answer."""

AnswerLines = Callable[[LineFeed], Iterator[dict[str, Any]]]
"""What turns lines into the objects of their answers, in order."""


class RequestFile:
    """The lines of `source` and where their answers go.

    Args:
        source: the requests; `-` is stdin.
        target: the answers, stdout where None.
        resume: keep the whole lines that `target` already has and skip as many requests.

    Raises:
        UsageError: `source` cannot be read, or `target` exists and `resume` is not set, or it is no file.
    """

    def __init__(self, source: Path, target: Path | None = None, *, resume: bool = False) -> None:
        if resume and not target:
            raise UsageError("--resume needs --output", hint="name the file to carry on with")
        if target and target.exists() and not target.is_file():
            raise UsageError(
                f"{target} is no regular file", hint="name another, or leave out -o to write to stdout"
            )
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
        """Answer every line that is not blank, one after another; an M7bError becomes the answer of its line.

        Raises: as `run_together`.
        """

        def answer_or_error(line: bytes) -> dict[str, Any]:
            try:
                return answer(parse_object(line))
            except M7bError as error:
                return {"id": find_id(line, "id"), "error": error.report()}

        self.run_together(lambda lines: map(answer_or_error, lines))

    def run_together(self, answer_lines: AnswerLines) -> None:
        """Answer all lines that are not blank, and write what comes as it comes.

        Raises:
            SomeFailed: some answers are errors.
            UsageError: the answers kept are not those of these requests.
        """
        kept, kept_bytes = self._kept_answers() if self._resume else ([], 0)
        n_failed, n_lines = sum(map(is_error, kept)), 0
        with ExitStack() as stack:
            feed = self._open_feed(stack)
            for result, line in zip(kept, feed, strict=False):  # stops before it takes a line too many
                n_lines += 1
                self._check_kept(n_lines, result, line)
            if n_lines < len(kept):
                raise UsageError(
                    f"{self._target} holds {len(kept)} answers to {n_lines} requests",
                    hint="name another file",
                )
            write = self._writer(stack, kept_bytes)
            for result in answer_lines(feed):
                n_lines += 1
                n_failed += is_error(result)
                write(result)
        if n_failed:
            raise SomeFailed(f"{n_failed} of {n_lines} lines failed", hint="each has its error in the output")

    def count_left(self) -> int | None:
        """How many requests are not answered yet; None where they come from a pipe."""
        if str(self._source) == "-":
            return None
        kept = len(self._kept_answers()[0]) if self._resume else 0
        with self._source.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines) - kept

    def _open_feed(self, stack: ExitStack) -> LineFeed:
        if str(self._source) == "-":
            return LineFeed(sys.stdin.buffer)
        return LineFeed(stack.enter_context(self._source.open("rb")))

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
        """The answers that the target holds, and their bytes."""
        assert self._target is not None
        return read_answers(self._target) if self._target.exists() else ([], 0)

    def _check_kept(self, number: int, result: dict[str, Any], line: bytes) -> None:
        if found := find_mismatch(line, result):
            raise UsageError(
                f"line {number} of {self._target} answers {found[0]!r}, the request is {found[1]!r}",
                hint="these are the answers of other requests: name another file",
            )


def read_answers(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the answers on the whole lines of `file`, and their bytes, without half a line that a crash left.

    Raises:
        UsageError: a line is no answer.
    """
    whole = file.read_bytes().rpartition(b"\n")[0]
    answers = []
    for line in filter(None, whole.split(b"\n")):
        try:
            answers.append(parse_object(line))
        except UsageError as error:
            raise UsageError(f"{file}: {error.message}", hint="name another file") from None
        if not answers[-1].keys() & {"choices", "error"}:
            raise UsageError(f"{file}: line {len(answers)} is no answer", hint="name another file")
    return answers, len(whole) + 1 if whole else 0


def find_mismatch(line: bytes, answer: dict[str, Any]) -> tuple[Any, Any] | None:
    """What `answer` names as its request, and what the request on `line` is called, where these differ."""
    for name in ("custom_id", "id"):
        wanted, found = find_id(line, name), answer.get(name)
        if wanted is not None:
            return None if found == wanted else (found, wanted)
    return None
