"""From a plan to a record: fetch, put in place. Knows the order that keeps half a checkpoint unseen."""

import os
import shutil
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from m7b.errors import OutOfResources, UsageError
from m7b.hub import checksums, shelf
from m7b.hub.plan import Plan, Source
from m7b.hub.progress import Progress, Retries, retold, within
from m7b.hub.shelf import File, Record

MADE = "quantize"
"""The source of what was made here of a download."""

_MARGIN = 64 << 20  # for all that is small


def check_disk(plan: Plan) -> None:
    """See that what is still to come fits the disk.

    Raises:
        OutOfResources: it does not; both figures are told.
    """
    folder = next(place for place in (plan.folder, *plan.folder.parents) if place.exists())
    free, needed = shutil.disk_usage(folder).free, plan.n_left + plan.n_disk + _MARGIN
    if free < needed:
        raise OutOfResources(
            f"the download needs {needed / 1e9:.2f} GB of disk and {free / 1e9:.2f} GB are free in {folder}",
            hint="free some, set M7B_HOME (or HF_HOME) to a folder on another disk, or insist with --force",
        )


def fetch(
    name: str, source: Source, plan: Plan, retries: Retries | None = None
) -> Generator[Progress, None, Record]:
    """Fetch what was planned, and record it as `name` when all of it is there.

    A call that was cut off is gone on with; a second one at the same time waits for the first.

    Raises:
        CheckpointNotFound: the source does not have it, or cannot be reached.
        DamagedCheckpoint: what came is not what was announced.
        OutOfResources: there is not enough disk.
    """
    retries = retries or Retries()
    key = shelf.key_of(name, plan.format)
    started = time.time()
    with shelf.locked(key) as waiting:
        yield from waiting
        meanwhile = next(iter(shelf.named(name, plan.format)), None)
        if meanwhile and meanwhile.fetched > started:
            return meanwhile
        try:
            if plan.is_ours:
                plan.work.mkdir(parents=True, exist_ok=True)
            plan = yield from retold(
                source.fetch(plan, retries),
                lambda progress: replace(
                    progress, note=progress.note or retries.trouble
                ),  # why nothing comes
            )
            if plan.is_ours:
                _put_in_place(plan)
        except OSError as error:
            where = plan.work if plan.is_ours else plan.folder
            raise OutOfResources(f"cannot write to {where}: {error.strerror or error}") from None
        record = Record(
            name=name,
            format=plan.format,
            source=source.kind,
            origin=plan.origin,
            revision=plan.revision,
            path=str(plan.path),
            folder=str(plan.folder),
            files=plan.files,
            is_ours=plan.is_ours,
            fetched=time.time(),
            verified=time.time(),
        )
        shelf.put(record)
    return record


def verify(record: Record) -> Generator[Progress, None, list[File]]:
    """The files of a checkpoint that are not what they were: missing, of another size or content."""
    damaged, done = [], 0
    for file in record.files:
        running = checksums.checking(Path(record.folder) / file.name, file.size, file.checksum)
        is_sound = yield from within(running, file.name, done, record.n_bytes, "checking")
        if not is_sound:
            damaged.append(file)
        done += file.size
    return damaged


def made(record: Record, path: Path) -> Generator[Progress, None, Record]:
    """The record of a GGUF file that was made of a downloaded checkpoint."""
    files = yield from checksums.measured(path.parent, [path.name])
    now = time.time()
    return replace(
        record,
        format="gguf",
        source=MADE,
        origin=record.path,
        path=str(path),
        folder=str(path.parent),
        files=files,
        is_ours=True,
        fetched=now,
        verified=now,
    )


def repair(record: Record, source: Source) -> Generator[Progress, None, Record]:
    """Fetch again what is not as it was; a source that gives no single files is fetched whole.

    Raises:
        UsageError: the files are the user's own.
        CheckpointNotFound: the source does not have them any more, or cannot be reached.
    """
    if source.kind == "path":
        raise UsageError(
            f"{record.name} lies in {record.folder}, and nobody else has it",
            hint="bring its files back by other means, or remove it with m7b rm",
        )
    plan = yield from source.look(record.name, Retries())
    if source.kind == "torrent":  # it compares the pieces, and fetches those that differ
        os.replace(record.folder, plan.work)
    return (yield from fetch(record.name, source, plan))


def _put_in_place(plan: Plan) -> None:
    if plan.folder.exists():
        shutil.rmtree(plan.folder)
    os.replace(plan.work, plan.folder)
