"""Choose the source that a wish means. Knows the values of the options, and every source."""

import glob
import re
from dataclasses import replace
from pathlib import Path

from m7b.errors import UsageError
from m7b.hub.addresses import expand_address
from m7b.hub.layouts import DownloadFormat
from m7b.hub.plan import Source, Wish
from m7b.hub.shelf import CheckpointRecord
from m7b.hub.sources.huggingface import HubSource
from m7b.hub.sources.imported import PathSource
from m7b.hub.sources.originals import RELEASES, TarSource, TorrentSource
from m7b.hub.sources.pypi import PypiSource
from m7b.parts import name_whole
from m7b.paths import parse_path
from m7b.variants import VARIANTS


def choose_source(wish: Wish) -> tuple[str, Source]:
    """Choose the name that the checkpoint gets here, and the source it comes from.

    Raises:
        UsageError: the wish contradicts itself, or there is no such source for it.
    """
    if wish.reference in VARIANTS and wish.variant is None:
        wish = replace(wish, variant=wish.reference, reference=None)
    if (wish.variant is None) == (wish.reference is None) and not _is_path(wish.source):
        raise UsageError(
            "both --variant and a hub id are given" if wish.variant else "nothing to download is named",
            hint=f"name one: --variant {', '.join(VARIANTS)}, or a hub id such as mistralai/Mistral-7B-v0.1",
        )
    wish = expand_address(wish)
    kind = _choose_kind(wish)
    _check_options(wish, kind)
    name = wish.variant or wish.reference or ""
    match kind:
        case "hub":
            repo_id = VARIANTS[wish.variant].hub_id if wish.variant else name
            return name, HubSource(repo_id, wish.revision, wish.format, wish.include)
        case "cdn":
            if name not in RELEASES:
                raise UsageError(
                    f"there is no tarball of {name}", hint=f"there are those of {', '.join(RELEASES)}"
                )
            return name, TarSource(RELEASES[name])
        case "torrent":
            if wish.variant not in (None, "base-v0.1"):
                raise UsageError(f"{name} was not published by torrent", hint="only base-v0.1 was")
            source = TorrentSource() if wish.variant else TorrentSource(name)
            return wish.variant or _check_name(source.name), source
        case "pypi":
            if name != "demo":
                raise UsageError(f"{name} is on no package index", hint="--source pypi is for --variant demo")
            return name, PypiSource()
    place = parse_path(wish.source or "")
    return _check_name(name or Path(name_whole(place.resolve().name)).stem), PathSource(place, wish.copies)


def _check_options(wish: Wish, kind: str) -> None:
    """Refuse options that are for another source than `kind`."""
    for value, option, needed in (
        (wish.format, "--format", "hub"),
        (wish.revision, "--revision", "hub"),
        (wish.include, "--include", "hub"),
        (wish.copies, "--copy", "path"),
    ):
        if value and kind != needed:
            raise UsageError(f"{option} with --source {kind}", hint=f"it is for --source {needed}")


def _check_name(text: str) -> str:
    """Return `text` where it can be the name of a checkpoint.

    Raises:
        UsageError: it cannot.
    """
    if not re.fullmatch(r"[^\W_][\w. /-]{,95}", text):
        raise UsageError(
            f"a checkpoint cannot be called {text!r}",
            hint="a name has at most 96 letters, digits, spaces and ._-/, a letter or a digit first",
        )
    return text


def recreate_source(record: CheckpointRecord) -> Source:
    """Make the source again that a checkpoint came from."""
    match record.source:
        case "hub":
            file = Path(record.path).relative_to(record.folder).as_posix()
            include = glob.escape(file) if record.format == "gguf" else None
            return HubSource(record.origin, record.revision, DownloadFormat(record.format), include)
        case "cdn":
            return TarSource(RELEASES[record.name])
        case "torrent":
            return TorrentSource(record.origin)
        case "pypi":
            return PypiSource()
    return PathSource(Path(record.origin), copies=record.is_ours)


def _choose_kind(wish: Wish) -> str:
    if wish.source in ("hub", "cdn", "torrent", "pypi"):
        return wish.source
    if _is_path(wish.source):
        return "path"
    if wish.source is not None:
        raise UsageError(
            f"--source is {wish.source!r}", hint="it can be hub, cdn, torrent, pypi, or a path that is there"
        )
    reference = wish.reference or ""
    if reference.startswith("magnet:") or reference.endswith(".torrent"):
        return "torrent"
    return "pypi" if wish.variant == "demo" else "hub"


def _is_path(source: str | None) -> bool:
    return source is not None and (
        source.startswith((".", "/", "~", "'", '"')) or "/" in source or Path(source).exists()
    )
