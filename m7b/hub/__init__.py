"""Fetching checkpoints and finding them again. Knows places and checksums; nothing about what is inside.

A source is looked at (`look`), which gives a plan to show; `fetch` carries it out and ends with a record.
What has a record is whole. `sources` and `removal` import what talks to servers, and wait until it is needed.
"""

import os
from pathlib import Path

from m7b.errors import CheckpointNotFound
from m7b.hub import shelf
from m7b.hub.download import MADE, check_disk, fetch, made, repair, verify
from m7b.hub.layouts import Format
from m7b.hub.plan import Plan, Source, Wish
from m7b.hub.progress import Progress, Retries
from m7b.hub.shelf import File, Record
from m7b.variants import VARIANTS

__all__ = [
    "File",
    "Format",
    "Plan",
    "Progress",
    "Record",
    "Retries",
    "Source",
    "Wish",
    "check_disk",
    "fetch",
    "find",
    "installed",
    "is_offline",
    "locate",
    "made",
    "not_found",
    "present",
    "refuse_offline",
    "repair",
    "shelf",
    "verify",
]


def find(name: str) -> Record | None:
    """The latest checkpoint of that name on this machine."""
    return next(iter(shelf.named(name)), None)


def installed(name: str) -> Path | None:
    """Where the checkpoint of a variant or a hub id is, None where it was never fetched."""
    record = find(name)
    return Path(record.path) if record else None


def locate(name: str) -> Path:
    """Where the checkpoint of a variant or a hub id is; from now on it counts as used.

    Raises:
        CheckpointNotFound: it is not on this machine; the hint is the command that helps.
    """
    record = find(name)
    if record is None:
        raise not_found(name)
    shelf.used(record)
    return Path(record.path)


def present(name: str, wish: Wish) -> Record | None:
    """What is here already and fulfils a wish; what was made of it here does not."""
    records = [one for one in shelf.named(name, wish.format) if one.source != MADE]
    return next((one for one in records if wish.revision in (None, one.revision)), None)


def not_found(name: str) -> CheckpointNotFound:
    """The error where a checkpoint is not on this machine."""
    if name in VARIANTS:
        return CheckpointNotFound(
            f"{name} is not on this machine", hint=f"fetch it with: m7b download --variant {name}"
        )
    return CheckpointNotFound(
        f"{name} is neither a path nor a checkpoint that was downloaded",
        hint=f"if it is a hub id, fetch it with: m7b download {name}",
    )


def is_offline() -> bool:
    """Whether the network is not to be touched: `M7B_OFFLINE`, which `--offline` sets."""
    return os.environ.get("M7B_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def refuse_offline(what: str) -> None:
    """Refuse what needs the network, where it is not to be touched.

    Raises:
        CheckpointNotFound: it is not.
    """
    if is_offline():
        raise CheckpointNotFound(f"cannot {what} offline", hint="leave out --offline, and unset M7B_OFFLINE")
