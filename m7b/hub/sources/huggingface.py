"""Checkpoints of a Hugging Face hub, in the cache that every other program of theirs uses.

The client library knows the hub: listings, tokens, redirects, the layout of the cache. On top of it stands
what a download of 14 GB needs: bytes that arrived are kept over restarts, a file gets its name in the cache
when it has the checksum that the hub announced, and a bad line is tried again. (huggingface_hub 2.4 begins a
file again in every process, and takes files that do not match their checksum.)
"""

import os
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from m7b.errors import DamagedCheckpoint
from m7b.hub import checksums, layouts
from m7b.hub.plan import Plan
from m7b.hub.progress import Progress, Retries, pause, within
from m7b.hub.shelf import File
from m7b.hub.sources.refusals import reason
from m7b.hub.transfer import http

_TIMEOUT_S = 30
_MAX_FILES = 10_000
_MAX_BYTES = 1 << 42
PART_SUFFIX = ".m7b-part"
"""What the name of a file ends in while its bytes come."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of a hub, by its id; without a `format` the first of hf, native and gguf that it has.

    `include` is a pattern for the names of weight files.
    """

    repo_id: str
    revision: str | None = None
    format: str | None = None
    include: str | None = None
    kind: str = "hub"

    def look(self, name: str, retries: Retries) -> Generator[Progress, None, Plan]:
        """What would be fetched: exactly one layout of the weights.

        Raises:
            CheckpointNotFound: there is no such repository, revision or format, or it asks for a token.
            UsageError: the id cannot be one, or the pattern fits none of its files, or several.
            DamagedCheckpoint: the hub's listing cannot be.
        """
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

        del name  # the cache has names of its own
        listing = yield from self._trying(
            lambda: HfApi().model_info(
                self.repo_id, revision=self.revision, files_metadata=True, timeout=_TIMEOUT_S
            ),
            retries,
        )
        commit = str(listing.sha)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise DamagedCheckpoint(f"the hub calls the commit of {self.repo_id} {commit!r}")
        siblings = {str(one.rfilename): one for one in (listing.siblings or ())[:_MAX_FILES]}
        format, names = layouts.choose(list(siblings), self.repo_id, self.format, self.include)
        files = tuple(_file(siblings[one]) for one in names)
        # Everybody may list the files of a gated repository: whether this user may read them shows here.
        url = hf_hub_url(self.repo_id, names[0], revision=commit)
        yield from self._trying(lambda: get_hf_file_metadata(url, timeout=_TIMEOUT_S), retries)
        folder = self._cache() / "snapshots" / commit
        return Plan(
            format=format,
            origin=self.repo_id,
            revision=commit,
            files=files,
            folder=folder,
            path=folder / names[0] if format == "gguf" else folder,
            n_here=sum(map(self._n_here, files)),
        )

    def fetch(self, plan: Plan, retries: Retries) -> Generator[Progress, None, Plan]:
        """Bring every file into the cache: first its bytes, then its checksum, then its name.

        Raises:
            CheckpointNotFound: the hub cannot be reached, or does not give a file.
            DamagedCheckpoint: a file is not what the hub announced, twice.
            OSError: the cache cannot be written.
        """
        done = 0
        for file in plan.files:
            entry, blob = plan.folder / file.name, self._blob(file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            here = (
                entry if entry.is_file() and not entry.is_symlink() else blob
            )  # there are disks without links
            if not (yield from self._is_sound(here, file, plan, done)):
                here.unlink(missing_ok=True)
                yield from self._bring(file, plan, done, retries)
            yield from self._enter(file, plan, done, retries)
            done += file.size
        return plan

    def _bring(self, file: File, plan: Plan, done: int, retries: Retries) -> Generator[Progress, None, None]:
        """Fetch one file, once more where it is not what was announced."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        url = hf_hub_url(self.repo_id, file.name, revision=plan.revision)
        kind = file.checksum.partition(":")[0]
        part = self._part(file)
        for _ in range(2):
            arriving = http.fetch(url, part, size=file.size, retries=retries, headers=build_hf_headers())
            yield from within(arriving, file.name, done, plan.total)
            found = yield from within(checksums.reading(part, kind), file.name, done, plan.total, "checking")
            if found == file.checksum:
                os.replace(part, self._blob(file))
                return
            part.unlink()
        raise checksums.mismatch(file.name, found, file.checksum)

    def _enter(self, file: File, plan: Plan, done: int, retries: Retries) -> Generator[Progress, None, None]:
        """Have the library enter the file into its cache: it finds the blob there, and fetches nothing."""
        from huggingface_hub import hf_hub_download

        entry, blob = plan.folder / file.name, self._blob(file)
        if entry.is_symlink() and entry.resolve() != blob.resolve():
            entry.unlink()  # it was planted
        yield Progress(file.name, done + file.size, plan.total)
        yield from self._trying(
            lambda: hf_hub_download(self.repo_id, file.name, revision=self.revision or "main"), retries
        )
        if entry.resolve() != blob.resolve() and not (yield from self._is_sound(entry, file, plan, done)):
            raise DamagedCheckpoint(
                f"{self.repo_id} has changed while it was fetched: {file.name} is another file now",
                hint="start the same command again",
            )

    def _is_sound(self, path: Path, file: File, plan: Plan, done: int) -> Generator[Progress, None, bool]:
        checking = checksums.checking(path, file.size, file.checksum)
        return (yield from within(checking, file.name, done, plan.total, "checking"))

    def _cache(self) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        return cache_folder() / repo_folder_name(repo_id=self.repo_id, repo_type="model")

    def _blob(self, file: File) -> Path:
        return self._cache() / "blobs" / file.checksum.partition(":")[2]

    def _part(self, file: File) -> Path:
        """Where bytes are kept until the file is whole."""
        return self._blob(file).with_suffix(PART_SUFFIX)

    def _n_here(self, file: File) -> int:
        blob, part = self._blob(file), self._part(file)
        return file.size if blob.exists() else part.stat().st_size if part.exists() else 0

    def _trying(self, call: Callable[[], Result], retries: Retries) -> Generator[Progress, None, Result]:
        """What `call` returns, tried again where the hub may do better the next time."""
        while True:
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - the library raises dozens of kinds
                why, after_s = reason(error, self.repo_id)
            yield from pause(retries.delay_s(why, after_s), why)


def cache_folder() -> Path:
    """Where the library keeps what it has fetched."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _file(sibling: Any) -> File:
    """A file as the hub lists it: large ones by their sha256, others by git's checksum.

    Raises:
        DamagedCheckpoint: the listing cannot be.
    """
    name, size = str(sibling.rfilename), sibling.size
    digest = ("sha256", sibling.lfs.sha256) if sibling.lfs else ("git", sibling.blob_id)
    is_digest = isinstance(digest[1], str) and all(c in "0123456789abcdef" for c in digest[1])
    if not is_digest or len(digest[1]) != {"sha256": 64, "git": 40}[digest[0]]:
        raise DamagedCheckpoint(f"the hub lists {name!r} with the checksum {digest[1]!r}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _MAX_BYTES:
        raise DamagedCheckpoint(f"the hub lists {name!r} with {size!r} bytes")
    if not name.isprintable() or "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise DamagedCheckpoint(f"the hub lists {name!r}, which is no name for a file")
    return File(name, size, ":".join(digest))
