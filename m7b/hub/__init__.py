"""Fetch checkpoints and find them again. Knows places and checksums; nothing about what is inside.

A source makes a plan (`plan`), which the user sees; `fetch` carries the plan out and ends with a record. A
checkpoint that has a record is whole. `sources` and `removal` import the libraries that talk to servers, so
they are imported only where they are used.
"""

import os
from pathlib import Path

from m7b.errors import CheckpointNotFound, UsageError
from m7b.hub import shelf
from m7b.hub.addresses import expand_address, parse_address
from m7b.hub.download import check_disk, describe_made, fetch, repair, verify
from m7b.hub.layouts import DownloadFormat, fits
from m7b.hub.plan import DownloadPlan, Source, Wish
from m7b.hub.progress import FileProgress, Retries
from m7b.hub.shelf import CheckpointRecord, File
from m7b.variants import VARIANTS

__all__ = [
    "CheckpointRecord",
    "DownloadFormat",
    "DownloadPlan",
    "File",
    "FileProgress",
    "Retries",
    "Source",
    "Wish",
    "check_disk",
    "describe_made",
    "fetch",
    "find",
    "find_all",
    "find_path",
    "find_present",
    "is_offline",
    "locate",
    "make_not_found_error",
    "parse_address",
    "refuse_offline",
    "repair",
    "require",
    "shelf",
    "verify",
]


def find_all(name: str, format: str | None = None) -> list[CheckpointRecord]:
    """Find the records of the checkpoints called `name`, the latest first.

    `name` may be an address on a hub; where it says which file or revision is meant, no other counts.

    Raises:
        UsageError: it is an address of something else than a model.
    """
    records = shelf.find_records(name, format)
    if not records and (address := parse_address(name)):
        found = shelf.find_records(address.repo_id, format)
        found = [one for one in found if one.is_revision(address.revision)]
        records = [one for one in found if any(fits(file.name, address.include) for file in one.files)]
    return records


def find(name: str) -> CheckpointRecord | None:
    """Find the record of the latest checkpoint called `name`, as `find_all` does, if any."""
    return next(iter(find_all(name)), None)


def require(name: str, format: str | None = None) -> list[CheckpointRecord]:
    """Find the records of `name`, as `find_all` does, at least one.

    Raises:
        UsageError: there is none; the hint lists the names that exist.
    """
    found = find_all(name, format)
    if not found:
        known = ", ".join(shelf.list_names())
        raise UsageError(
            f"{name} is not on this machine" + (f" as {format}" if format else ""),
            hint=f"there are {known}" if known else "nothing was downloaded yet: see m7b download --help",
        )
    return found


def find_path(name: str) -> Path | None:
    """Find the path of the checkpoint of that name or address, None where it was never fetched."""
    record = find(name)
    return Path(record.path) if record else None


def locate(name: str) -> Path:
    """Find the path of the checkpoint of that name or address, and mark the checkpoint as used now.

    Raises:
        CheckpointNotFound: it is not on this machine; the hint is the command that fetches it.
    """
    record = find(name)
    if record is None:
        raise make_not_found_error(name)
    shelf.mark_used(record)
    return Path(record.path)


def find_present(name: str, source: Source, wish: Wish) -> CheckpointRecord | None:
    """Find the record that fulfils `wish` already. Files that m7b quantized from a download do not count.

    Where the wish says which source it is, nothing from elsewhere counts.

    Raises:
        UsageError: another path is known by the name that this one would get.
    """
    wish = expand_address(wish)
    named = [one for one in shelf.find_records(name) if one.source != shelf.MADE]
    records = [one for one in named if wish.format in (None, one.format) and one.is_revision(wish.revision)]
    records = [one for one in records if any(fits(file.name, wish.include) for file in one.files)]
    if wish.source is not None:
        records = [one for one in records if (one.source, one.origin) == (source.kind, source.origin)]
    if wish.copies:
        records = [one for one in records if one.is_ours]
    is_nameless = (wish.variant or wish.reference) is None
    if is_nameless and any(one.origin != source.origin for one in named):
        raise UsageError(
            f"{name} is the name of {named[0].origin} already",
            hint=f"give this one another: m7b download NAME --source {source.origin}",
        )
    return next(iter(records), None)


def make_not_found_error(name: str) -> CheckpointNotFound:
    """Make the error that says that a checkpoint is not on this machine."""
    if name in VARIANTS:
        return CheckpointNotFound(
            f"{name} is not on this machine", hint=f"fetch it with: m7b download --variant {name}"
        )
    return CheckpointNotFound(
        f"{name} is neither a path nor a checkpoint that was downloaded",
        hint=f"if it is a hub id, fetch it with: m7b download {name}",
    )


def is_offline() -> bool:
    """Whether `M7B_OFFLINE`, which `--offline` sets, forbids the network."""
    return os.environ.get("M7B_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def refuse_offline(what: str) -> None:
    """Refuse to do `what`, which needs the network, when the user forbids the network.

    Raises:
        CheckpointNotFound: the network is forbidden.
    """
    if is_offline():
        raise CheckpointNotFound(f"cannot {what} offline", hint="leave out --offline, and unset M7B_OFFLINE")
