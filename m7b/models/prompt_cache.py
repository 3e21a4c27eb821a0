"""What was read of a prompt, kept in files between processes: which file, and when it is worth one."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m7b.errors import M7bError, OutOfResources, UsageError
from m7b.models.fingerprint import digest
from m7b.models.model import Model
from m7b.paths import prompts_folder

if TYPE_CHECKING:
    from m7b.runtime.saved_rows import SavedRow

AUTO = "auto"
LIMIT_BYTES = 8 << 30
"""What all files of the folder may take together; the longest unused go first."""

_SUFFIX = ".safetensors"
_WORTH_LOOKING = 32  # tokens left to read, from which it is worth looking for a file
_WORTH_MORE = 32  # tokens read, from which a file is written again with them at its end
_WORTH_ANOTHER = 256  # tokens read, and an eighth of them all, from which they are worth a file of their own
_SPARE_BYTES = 1 << 30  # that a file of the folder leaves free on the disk


class PromptCache:
    """Keeps what a model has read of prompts, to go on from there in another process.

    Args:
        place: a file, or `auto` for a folder of m7b's own, with a file for each prompt.
        report: called with a line on what was not kept, and why.
        keeps: whether what is read may be written.

    Raises:
        UsageError: there cannot be such a file.
    """

    def __init__(self, place: str, report: Callable[[str], None], *, keeps: bool = True) -> None:
        self._file = None if place == AUTO else Path(place).expanduser()
        self._report, self._keeps = report, keeps
        self._last: tuple[Model, Sequence[int]] | None = None
        if self._file and self._file.exists():
            _open(self._file)
        elif self._file and not (folder := self._file.absolute().parent).is_dir():
            raise UsageError(f"there is no folder {folder}", hint="make it first")

    def check(self, model: Model) -> None:
        """See that the file was written by `model`.

        Raises:
            UsageError: it was not.
            DamagedCheckpoint: it cannot be read.
        """
        if not (self._file and self._file.exists()):
            return
        about = _open(self._file).about
        for label, ours in model.fingerprint.items():
            if (theirs := about.get(label)) != ours:
                raise UsageError(
                    f"{self._file} was written with another {label}: {theirs}, here it is {ours}",
                    hint="name another file, or remove it",
                )

    def restore(self, model: Model, ids: Sequence[int]) -> None:
        """Let the engine of `model` hold the beginning of `ids` if a file has more of it than the engine."""
        self._last = model, ids
        n_held = model.engine.count_held(ids)
        if len(ids) - n_held < _WORTH_LOOKING:
            return
        try:
            n_shared, source = self._find(model, ids)
            if source and n_shared > n_held:
                model.engine.restore(source, ids)
                self._mark_used(source.file)
        except M7bError as error:
            self._report(f"the prompt is read anew: {error}")

    def save(self, model: Model, ids: Sequence[int], *, is_exact: bool = True) -> None:
        """Write what the engine of `model` holds of `ids` and behind them, if that is worth it.

        Args:
            model: has read them.
            ids: a prompt.
            is_exact: whether to leave out what was generated: a fresh prefill would round it otherwise.
        """
        if not self._keeps:
            return
        try:
            held = model.engine.list_held(ids, is_exact=is_exact)
            n_shared, source = self._find(model, held)
            if not self._is_worth(held, n_shared, source):
                return
            file = self._file or self._make_room(model, held)
            model.engine.save(file, held, model.fingerprint)
            if source and source.file != file and _is_beginning(source, n_shared):
                source.file.unlink(missing_ok=True)
        except (M7bError, OSError) as error:
            self._report(f"the prompt is not kept: {error}")

    def save_last(self) -> None:
        """Write what was read last, with what was generated behind it."""
        if self._last:
            self.save(*self._last, is_exact=False)

    def _mark_used(self, file: Path) -> None:
        if self._file is None:
            with suppress(OSError):
                os.utime(file)

    def _is_worth(self, held: Sequence[int], n_shared: int, source: "SavedRow | None") -> bool:
        n_more = len(held) - n_shared
        if source is None:
            is_foreign = self._file is not None and self._file.exists()
            return not is_foreign and n_more >= (1 if self._file else _WORTH_ANOTHER)
        if _is_beginning(source, n_shared):
            return n_more >= _WORTH_MORE
        return n_more >= max(_WORTH_ANOTHER, len(held) // 8)

    def _find(self, model: Model, ids: Sequence[int]) -> tuple[int, "SavedRow | None"]:
        """The file of this model that begins most like `ids`, and how many they share."""
        found: tuple[int, SavedRow | None] = (0, None)
        for file in self._list_files(model):
            try:
                row = _open(file)
            except M7bError as error:
                self._report(str(error))
                continue
            n_shared = row.count_shared(ids)
            if row.about == model.fingerprint and (found[1] is None or n_shared > found[0]):
                found = n_shared, row
        return found

    def _list_files(self, model: Model) -> list[Path]:
        if self._file:
            return [self._file] if self._file.exists() else []
        return sorted(prompts_folder().glob(f"{digest(model.fingerprint)}-*{_SUFFIX}"))

    def _make_room(self, model: Model, ids: Sequence[int]) -> Path:
        """A file of the folder for `ids`; those that were not used for longest make room for it.

        Raises:
            OutOfResources: the disk has none.
        """
        n_bytes = model.engine.count_bytes(len(ids))
        folder = prompts_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if n_bytes > min(LIMIT_BYTES, free - _SPARE_BYTES):
            raise OutOfResources(f"it takes {n_bytes >> 20:,} MiB, and {free >> 20:,} MiB of disk are free")
        left = LIMIT_BYTES - n_bytes
        for prompt in sorted(list_prompts(), key=lambda each: -each.used):
            left -= prompt.n_bytes
            if left < 0:
                prompt.file.unlink(missing_ok=True)
        return folder / f"{digest(model.fingerprint)}-{digest(list(ids))}{_SUFFIX}"


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """A file of the folder of prompts, and when it was `used` last, in seconds since 1970."""

    file: Path
    n_bytes: int
    used: float


def list_prompts() -> list[KeptPrompt]:
    """All files of the folder of prompts, those too that nobody has written to their end.

    Raises:
        NoHome: nothing says where it is.
    """
    from m7b.runtime.saved_rows import UNFINISHED

    files = [file for pattern in (f"*{_SUFFIX}", f"{UNFINISHED}*") for file in prompts_folder().glob(pattern)]
    states = [(file, file.stat()) for file in sorted(files)]
    return [KeptPrompt(file, state.st_size, state.st_mtime) for file, state in states]


def _is_beginning(source: "SavedRow", n_shared: int) -> bool:
    """Whether next to nothing is lost where what begins with `n_shared` of its tokens takes its place."""
    return len(source.ids) - n_shared < _WORTH_MORE


def _open(file: Path) -> "SavedRow":
    from m7b.runtime.saved_rows import open_row

    return open_row(file)
