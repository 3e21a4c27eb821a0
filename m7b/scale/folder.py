"""The folder with the answers of a batch: a file for each part, whole or absent. Knows no model, no Ray."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m7b.completions import find_mismatch, is_error, read_answers
from m7b.errors import SomeFailed, UsageError
from m7b.scale.parts import Part, Rows, list_sources

_ROWS_A_PART = 256
"""The most rows that are done again where an actor dies."""

_PARTS_AN_ACTOR = 4
"""The fewest parts that each actor gets, so that none waits long for the last."""

_NAME = re.compile(r"(.+)-(\d{10,})-(\d{10,})\.jsonl")


@dataclass(frozen=True, slots=True)
class Tally:
    """How many rows were answered, and how many of the answers are errors."""

    n_rows: int = 0
    n_failed: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.n_rows + other.n_rows, self.n_failed + other.n_failed)


class AnswerFolder:
    """Where the answers to the requests in `source`, a file or a folder of them, go.

    Args:
        source: lines of JSON, or Parquet with a column for each field.
        target: the folder.
        resume: keep the answers that it has.

    Attributes:
        kept: what is answered already.
        n_rows: how many requests there are.

    Raises:
        UsageError: there are no requests, or the folder holds other answers.
    """

    def __init__(self, source: Path, target: Path, *, resume: bool = False) -> None:
        if str(source) == "-":
            raise UsageError("--ray reads files, not stdin", hint="write the requests into one")
        if not os.access(source, os.R_OK):
            raise UsageError(f"{source}: no such file, or not readable", hint="--jsonl takes a file or -")
        if target.exists() and not target.is_dir():
            raise UsageError(f"{target} is no folder", hint="--ray writes many files: name a folder for them")
        if target.exists() and any(target.iterdir()) and not resume:
            raise UsageError(
                f"{target} exists", hint="add --resume to carry on with it, or name another folder"
            )
        self._target = target
        self._names = self._list_names()
        self._rows = [Rows(file) for file in list_sources(source.absolute())]
        self.n_rows = sum(map(len, self._rows))
        self._kept = {rows.source: self._find_kept(rows) for rows in self._rows}
        self._refuse_others()
        parts = [part for kept in self._kept.values() for part in kept]
        self.kept = sum(map(self._check, parts), Tally())

    def cut(self, n_actors: int) -> list[Part]:
        """Cut what is not answered into parts for so many actors."""
        n_left = self.n_rows - self.kept.n_rows
        size = max(1, min(_ROWS_A_PART, math.ceil(n_left / (n_actors * _PARTS_AN_ACTOR))))
        return [part for rows in self._rows for part in rows.cut(self._kept[rows.source], size)]

    def prepare(self) -> Path:
        """Make the folder, without what a crash left; its path.

        Raises:
            UsageError: it cannot be made.
        """
        try:
            self._target.mkdir(exist_ok=True)
            for rest in self._target.glob(".*.part"):
                rest.unlink()
        except OSError as error:
            raise UsageError(f"cannot write {self._target}: {error.strerror}") from None
        return self._target.absolute()

    def finish(self, parts: Sequence[Part], tally: Tally, reason: str) -> None:
        """Say what is wrong with the answers to `parts`, of which `tally` came; `reason` is why some did not.

        Raises:
            SomeFailed: some are missing, or are errors.
        """
        missing = sum(part.n_rows for part in parts if not (self._target / part.name).exists())
        if missing:
            raise SomeFailed(
                f"{missing} of {self.n_rows} rows have no answer: {reason}",
                hint="--resume does them again",
            )
        if n_failed := (self.kept + tally).n_failed:
            raise SomeFailed(
                f"{n_failed} of {self.n_rows} lines failed", hint="each has its error in the output"
            )

    def _find_kept(self, rows: Rows) -> list[Part]:
        """The parts of `rows` that are answered, in order."""
        kept: list[Part] = []
        for name, first, last in self._names.get(rows.source.name, ()):
            if not 1 <= first <= last <= len(rows):
                raise self._make_foreign_error(
                    f"{name} answers other rows than the {len(rows)} of {rows.source.name}"
                )
            if kept and first <= kept[-1].last:
                raise self._make_foreign_error(f"{name} and {kept[-1].name} answer the same rows")
            kept.append(rows.part(first, last))
        return kept

    def _list_names(self) -> dict[str, list[tuple[str, int, int]]]:
        """The files of answers by their source, in order: name, first and last row."""
        found: dict[str, list[tuple[str, int, int]]] = {}
        for name in sorted(os.listdir(self._target)) if self._target.exists() else ():
            if match := _NAME.fullmatch(name):
                found.setdefault(match[1], []).append((name, int(match[2]), int(match[3])))
        return found

    def _refuse_others(self) -> None:
        others = sorted(self._names.keys() - {rows.source.name for rows in self._rows})
        if others:
            raise self._make_foreign_error(f"it answers {others[0]}, which is not among the requests")

    def _check(self, part: Part) -> Tally:
        """What the file of `part` holds, which must be answers to these rows."""
        answers, _ = read_answers(self._target / part.name)
        if len(answers) != part.n_rows:
            raise UsageError(
                f"{self._target / part.name} holds {len(answers)} answers to {part.n_rows} rows",
                hint="remove it to have them answered again",
            )
        for number, (line, answer) in enumerate(zip(part.read(), answers, strict=True), part.first):
            if found := find_mismatch(line, answer):
                raise self._make_foreign_error(
                    f"{part.name} answers {found[0]!r} in row {number}, the request is {found[1]!r}"
                )
        return tally_answers(answers)

    def _make_foreign_error(self, what: str) -> UsageError:
        return UsageError(
            f"{self._target}: {what}", hint="these are the answers of other requests: name another folder"
        )


def tally_answers(answers: Iterable[dict[str, object]]) -> Tally:
    """Count answers, and the errors among them."""
    failed = [is_error(answer) for answer in answers]
    return Tally(len(failed), sum(failed))


def write_part(target: Path, name: str, text: str) -> None:
    """Write a file of answers so that it is whole or not there."""
    unfinished = target / f".{name}.{os.getpid()}.part"
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(target / name)
