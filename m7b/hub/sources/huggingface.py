"""Checkpoints of a Hugging Face hub, in the cache that other programs for the hub share.

The client library knows the hub: listings, tokens, redirects, the layout of the cache. This module adds what
a download of 14 GB needs: it keeps bytes over restarts, puts a file into the cache only when it has the
checksum that the hub announced, and tries again where the line is bad. (huggingface_hub 2.4 begins a file
again in every process, and accepts files that do not match their checksum.)
"""

import os
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from m7b.errors import DamagedCheckpoint
from m7b.hub import checksums, layouts, locks
from m7b.hub.plan import DownloadPlan
from m7b.hub.progress import FileProgress, Retries, pause, report_file
from m7b.hub.shelf import File
from m7b.hub.sources.refusals import explain_failure
from m7b.hub.transfer import http
from m7b.paths import make_absolute

_TIMEOUT_S = 30
_MAX_FILES = 10_000
_MAX_BYTES = 1 << 42
PART_SUFFIX = ".m7b-part"
"""The suffix of a file while its bytes come."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of a hub, by its id. Without a `format` it takes the first of hf, native and gguf.

    `include` is a pattern for the names of weight files.
    """

    repo_id: str
    revision: str | None = None
    format: str | None = None
    include: str | None = None
    kind: str = "hub"

    @property
    def origin(self) -> str:
        """The hub id."""
        return self.repo_id

    def plan(self, name: str, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Plan the download of exactly one layout of the weights.

        Raises:
            CheckpointNotFound: there is no such repository, revision or format, or it asks for a token.
            UsageError: this is no hub id, or the pattern fits no weight file, or several GGUF files.
            DamagedCheckpoint: the hub's listing makes no sense.
        """
        from m7b.hub.sources.client import connect

        connect()
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

        del name  # the cache has names of its own
        listing = yield from self._retry(
            lambda: HfApi().model_info(
                self.repo_id, revision=self.revision, files_metadata=True, timeout=_TIMEOUT_S
            ),
            retries,
        )
        commit = str(listing.sha)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise DamagedCheckpoint(f"the hub calls the commit of {self.repo_id} {commit!r}")
        siblings = {str(one.rfilename): one for one in (listing.siblings or ())[:_MAX_FILES]}
        format, names = layouts.choose_files(list(siblings), self.repo_id, self.format, self.include)
        files = tuple(_parse_sibling(siblings[one]) for one in names)
        # Everybody may list the files of a gated repository; this call shows whether the user may read them.
        url = hf_hub_url(self.repo_id, names[0], revision=commit)
        yield from self._retry(lambda: get_hf_file_metadata(url, timeout=_TIMEOUT_S), retries)
        folder = self._repo_folder() / "snapshots" / commit
        return DownloadPlan(
            format=format,
            origin=self.origin,
            revision=commit,
            files=files,
            folder=folder,
            path=folder / names[0] if format == "gguf" else folder,
            n_here=sum(map(self._count_here, files)),
            requested=self.revision or "",
        )

    def fetch(self, plan: DownloadPlan, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Bring every file into the cache: first its bytes, then its checksum, then its name.

        Raises:
            CheckpointNotFound: the hub cannot be reached, or does not give a file.
            DamagedCheckpoint: a file is not what the hub announced, twice.
            OSError: the cache cannot be written.
        """
        done = 0
        for file in plan.files:
            entry, blob = plan.folder / file.name, self._blob_file(file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            here = (
                entry if entry.is_file() and not entry.is_symlink() else blob
            )  # there are disks without links
            # The library's own lock: other homes of m7b, and other programs, share the cache.
            with locks.hold(lock_file(blob), file.name) as waiting:
                yield from waiting
                if not (yield from self._verify(here, file, plan, done)):
                    here.unlink(missing_ok=True)
                    yield from self._fetch_file(file, plan, done, retries)
            yield from self._enter_into_cache(file, plan, done, retries)
            done += file.size
        return plan

    def _fetch_file(
        self, file: File, plan: DownloadPlan, done: int, retries: Retries
    ) -> Generator[FileProgress, None, None]:
        """Fetch one file, and once more where its checksum is not the announced one."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        url = hf_hub_url(self.repo_id, file.name, revision=plan.revision)
        kind = file.checksum.partition(":")[0]
        part = self._part_file(file)
        for _ in range(2):
            arriving = http.fetch(url, part, size=file.size, retries=retries, headers=build_hf_headers())
            yield from report_file(arriving, file.name, done, plan.total)
            found = yield from report_file(
                checksums.compute_checksum(part, kind), file.name, done, plan.total, "checking"
            )
            if found == file.checksum:
                os.replace(part, self._blob_file(file))
                return
            part.unlink()
        raise checksums.make_mismatch_error(file.name, found, file.checksum)

    def _enter_into_cache(
        self, file: File, plan: DownloadPlan, done: int, retries: Retries
    ) -> Generator[FileProgress, None, None]:
        """Let the library link the file in its cache: it finds the blob there, and fetches nothing."""
        from huggingface_hub import hf_hub_download

        entry, blob = plan.folder / file.name, self._blob_file(file)
        if entry.is_symlink() and entry.resolve() != blob.resolve():
            entry.unlink()  # somebody planted it
        yield FileProgress(file.name, done + file.size, plan.total)
        yield from self._retry(
            lambda: hf_hub_download(self.repo_id, file.name, revision=self.revision or "main"), retries
        )
        if entry.resolve() != blob.resolve() and not (yield from self._verify(entry, file, plan, done)):
            raise DamagedCheckpoint(
                f"{self.repo_id} has changed while it was fetched: {file.name} is another file now",
                hint="start the same command again",
            )

    def _verify(
        self, path: Path, file: File, plan: DownloadPlan, done: int
    ) -> Generator[FileProgress, None, bool]:
        checking = checksums.verify_file(path, file.size, file.checksum)
        return (yield from report_file(checking, file.name, done, plan.total, "checking"))

    def _repo_folder(self) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        return cache_folder() / repo_folder_name(repo_id=self.repo_id, repo_type="model")

    def _blob_file(self, file: File) -> Path:
        return self._repo_folder() / "blobs" / file.checksum.partition(":")[2]

    def _part_file(self, file: File) -> Path:
        """The file that holds the bytes until they are complete."""
        return self._blob_file(file).with_suffix(PART_SUFFIX)

    def _count_here(self, file: File) -> int:
        blob, part = self._blob_file(file), self._part_file(file)
        return file.size if blob.exists() else part.stat().st_size if part.exists() else 0

    def _retry(self, call: Callable[[], Result], retries: Retries) -> Generator[FileProgress, None, Result]:
        """Return what `call` returns; call it again after errors that the hub may not have the next time."""
        while True:
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - the library raises dozens of kinds
                why, after_s = explain_failure(error, self.repo_id)
            yield from pause(retries.count_failure(why, after_s), why)


def cache_folder() -> Path:
    """The folder in which huggingface_hub keeps what it has fetched."""
    from huggingface_hub import constants

    return make_absolute(Path(constants.HF_HUB_CACHE))


def lock_file(blob: Path) -> Path:
    """The file by which huggingface_hub locks a blob of its cache; `blob` may have a suffix."""
    repo = blob.parent.parent
    return repo.parent / ".locks" / repo.name / f"{blob.name.partition('.')[0]}.lock"


def _parse_sibling(sibling: Any) -> File:
    """Read one file of the hub's listing; a large one has a sha256, a small one git's checksum.

    Raises:
        DamagedCheckpoint: the listing makes no sense.
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
