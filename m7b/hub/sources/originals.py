"""The places where Mistral AI first published its checkpoints: tars on a web server, and a torrent."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from m7b.errors import CheckpointNotFound
from m7b.hub import checksums, layouts
from m7b.hub.plan import DownloadPlan
from m7b.hub.progress import FileProgress, Retries
from m7b.hub.shelf import File, make_key
from m7b.hub.transfer import http, tarball, torrent
from m7b.hub.transfer.torrent import INTERNET, Network
from m7b.paths import checkpoints_folder

_HOST = "https://models.mistralcdn.com"


@dataclass(frozen=True, slots=True)
class Release:
    """Where the tar of a variant is, and its published checksum, None where none was."""

    url: str
    checksum: str | None


RELEASES = {
    "base-v0.1": Release(
        f"{_HOST}/mistral-7b-v0-1/mistral-7B-v0.1.tar", "md5:37dab53973db2d56b2da0a033a15307f"
    ),
    # The only address that is documented; base-v0.1 was there before it moved, and the host may be gone.
    "instruct-v0.1": Release(
        "https://files.mistral-7b-v0-1.mistral.ai/mistral-7B-instruct-v0.1.tar", checksum=None
    ),
    "instruct-v0.2": Release(
        f"{_HOST}/mistral-7b-v0-2/Mistral-7B-v0.2-Instruct.tar", "md5:fbae55bc038f12f010b4251326e73d39"
    ),
    "base-v0.3": Release(
        f"{_HOST}/mistral-7b-v0-3/mistral-7B-v0.3.tar", "md5:0663b293810d7571dad25dae2f2a5806"
    ),
    "instruct-v0.3": Release(
        f"{_HOST}/mistral-7b-v0-3/mistral-7B-Instruct-v0.3.tar", "md5:80b71fcb6416085bcb4efad86dfb4d52"
    ),
}
"""The release of each variant that has one, by its name."""


@dataclass(frozen=True, slots=True)
class TarSource:
    """The tar of a release on a web server."""

    release: Release
    kind: str = "cdn"

    @property
    def origin(self) -> str:
        """The address of the tar."""
        return self.release.url

    def plan(self, name: str, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Plan the download of the tar; which files it holds shows when it is here."""
        url = self.release.url
        tar = urlsplit(url).path.rpartition("/")[2]
        yield FileProgress(tar, 0, 0, f"asking {urlsplit(url).hostname}")
        size = http.fetch_size(url, retries=retries)
        folder = checkpoints_folder() / make_key(name, "native")
        plan = DownloadPlan(
            "native", url, "", (File(tar, size, self.release.checksum or ""),), folder, folder, is_ours=True
        )
        return replace(plan, n_here=tarball.count_here(plan.work), n_disk=tarball.CHUNK)

    def fetch(self, plan: DownloadPlan, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Fetch the tar and unpack it; unpacking removes it piece by piece."""
        checksum = self.release.checksum
        yield from tarball.fetch(plan.origin, plan.work, checksum=checksum, retries=retries)
        return replace(plan, files=(yield from checksums.checksum_folder(plan.work)))


@dataclass(frozen=True, slots=True)
class TorrentSource:
    """A magnet link or a .torrent file."""

    uri: str = torrent.MAGNET
    network: Network = INTERNET
    kind: str = "torrent"

    @property
    def origin(self) -> str:
        """The link, or the path of the file."""
        return self.uri

    @property
    def name(self) -> str:
        """The name that its author gave it, else that of the file."""
        names = parse_qs(urlsplit(self.uri).query).get("dn", [])
        return names[0] if names else Path(self.uri).stem

    def plan(self, name: str, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Plan the download; for a magnet link, peers are asked which files it holds.

        Raises:
            CheckpointNotFound: no peer answers, or it holds no checkpoint.
        """
        yield FileProgress(name, 0, 0, "asking peers what it holds")
        described = torrent.describe(self.uri, network=self.network)
        format = layouts.detect_format([path for path, _ in described.files])
        if format is None:
            raise CheckpointNotFound(
                f"{described.name} holds no weights as {' or '.join(layouts.DownloadFormat)}"
            )
        folder = checkpoints_folder() / make_key(name, format)
        files = tuple(File(path, size, "") for path, size in described.files)
        path = (
            folder / layouts.find_weights([file.name for file in files], format)[0]
            if format == "gguf"
            else folder
        )
        return DownloadPlan(format, self.uri, "", files, folder, path, is_ours=True)

    def fetch(self, plan: DownloadPlan, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Fetch the pieces that are not here."""
        yield from torrent.fetch(self.uri, plan.work, network=self.network)
        return replace(plan, files=(yield from checksums.checksum_folder(plan.work)))

    def seed(self, folder: Path, ratio: float) -> Generator[FileProgress, None, None]:
        """Upload the files to others, until `ratio` times their size is uploaded."""
        yield from torrent.fetch(self.uri, folder, ratio=ratio, network=self.network)
