"""Carry out a plan: fetch the files, put them in place, write the record.

Knows the order of these steps in which nobody ever sees half a checkpoint.
"""

import os
import shutil
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from m7b.errors import OutOfResources, UsageError
from m7b.hub import checksums, shelf
from m7b.hub.plan import DownloadPlan, Source
from m7b.hub.progress import FileProgress, Retries, map_progress, report_file
from m7b.hub.shelf import MADE, CheckpointRecord, File

_MARGIN = 64 << 20  # bytes for records, locks and other small files


def check_disk(plan: DownloadPlan) -> None:
    """Check that the bytes still to be fetched fit on the disk.

    Raises:
        OutOfResources: they do not; the message has both figures.
    """
    folder = next(place for place in (plan.folder, *plan.folder.parents) if place.exists())
    free, needed = shutil.disk_usage(folder).free, plan.n_left + plan.n_disk + _MARGIN
    if free < needed:
        raise OutOfResources(
            f"the download needs {needed / 1e9:.2f} GB of disk and {free / 1e9:.2f} GB are free in {folder}",
            hint="free some, set M7B_HOME (or HF_HOME) to a folder on another disk, or insist with --force",
        )


def fetch(
    name: str, source: Source, plan: DownloadPlan, retries: Retries | None = None
) -> Generator[FileProgress, None, CheckpointRecord]:
    """Fetch what was planned, and record it as `name` when all of it is there.

    The call goes on where an interrupted one stopped. Where another process fetches the same checkpoint, it
    waits for that process.

    Raises:
        CheckpointNotFound: the source does not have it, or cannot be reached.
        DamagedCheckpoint: a file is not what the source announced.
        OutOfResources: there is not enough disk.
    """
    retries = retries or Retries()
    key = shelf.make_key(name, plan.format)
    started = time.time()
    with shelf.lock(key) as waiting:
        yield from waiting
        for meanwhile in shelf.find_records(name, plan.format):
            if meanwhile.fetched > started and meanwhile.path == str(plan.path):
                return meanwhile
        try:
            if plan.is_ours:
                plan.work.mkdir(parents=True, exist_ok=True)
            plan = yield from map_progress(
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
        record = _make_record(name, source.kind, plan)
        shelf.put(record)
    return record


def verify(record: CheckpointRecord) -> Generator[FileProgress, None, list[File]]:
    """Find the damaged files of a checkpoint: missing, of another size or of other content."""
    damaged, done = [], 0
    for file in record.files:
        running = checksums.verify_file(Path(record.folder) / file.name, file.size, file.checksum)
        is_sound = yield from report_file(running, file.name, done, record.n_bytes, "checking")
        if not is_sound:
            damaged.append(file)
        done += file.size
    return damaged


def describe_made(record: CheckpointRecord, path: Path) -> Generator[FileProgress, None, CheckpointRecord]:
    """Build the record of the GGUF file `path`, which was made from the checkpoint of `record`."""
    files = yield from checksums.checksum_files(path.parent, [path.name])
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


def repair(record: CheckpointRecord, source: Source) -> Generator[FileProgress, None, CheckpointRecord]:
    """Fetch damaged files again. From a source that does not give single files, fetch the whole checkpoint.

    Raises:
        UsageError: the files belong to the user.
        CheckpointNotFound: the source does not have them any more, or cannot be reached.
    """
    if source.kind == "path":
        raise UsageError(
            f"{record.name} lies in {record.folder}, and nobody else has it",
            hint="bring its files back by other means, or remove it with m7b rm",
        )
    plan = replace((yield from source.plan(record.name, Retries())), requested=record.requested)
    if source.kind == "torrent":  # libtorrent compares the pieces and fetches those that differ
        os.replace(record.folder, plan.work)
    return (yield from fetch(record.name, source, plan))


def _make_record(name: str, kind: str, plan: DownloadPlan) -> CheckpointRecord:
    return CheckpointRecord(
        name=name,
        format=plan.format,
        source=kind,
        origin=plan.origin,
        revision=plan.revision,
        path=str(plan.path),
        folder=str(plan.folder),
        files=plan.files,
        is_ours=plan.is_ours,
        fetched=time.time(),
        verified=time.time(),
        requested=plan.requested,
    )


def _put_in_place(plan: DownloadPlan) -> None:
    if plan.folder.exists():
        shutil.rmtree(plan.folder)
    os.replace(plan.work, plan.folder)
