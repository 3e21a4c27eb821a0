"""The places where Mistral AI put its checkpoints before any hub: tarballs on a web server, and a torrent."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from m7b.errors import CheckpointNotFound
from m7b.hub import checksums, layouts
from m7b.hub.plan import Plan
from m7b.hub.progress import Progress, Retries
from m7b.hub.shelf import File, key_of
from m7b.hub.sources.releases import Release
from m7b.hub.transfer import http, tarball, torrent
from m7b.hub.transfer.torrent import INTERNET, Network
from m7b.paths import checkpoints_folder


@dataclass(frozen=True, slots=True)
class TarSource:
    """A tarball on the web."""

    release: Release
    kind: str = "cdn"

    def look(self, name: str, retries: Retries) -> Generator[Progress, None, Plan]:
        """What would be fetched: the tar; what is in it shows when it is here."""
        url = self.release.url
        tar = urlsplit(url).path.rpartition("/")[2]
        yield Progress(tar, 0, 0, f"asking {urlsplit(url).hostname}")
        size = http.remote_size(url, retries=retries)
        folder = checkpoints_folder() / key_of(name, "native")
        plan = Plan(
            "native", url, "", (File(tar, size, self.release.checksum or ""),), folder, folder, is_ours=True
        )
        return replace(plan, n_here=tarball.n_here(plan.work), n_disk=tarball.CHUNK)

    def fetch(self, plan: Plan, retries: Retries) -> Generator[Progress, None, Plan]:
        """Fetch the tar and unpack it, which uses it up."""
        checksum = self.release.checksum
        yield from tarball.fetch(plan.origin, plan.work, checksum=checksum, retries=retries)
        return replace(plan, files=(yield from checksums.all_measured(plan.work)))


@dataclass(frozen=True, slots=True)
class TorrentSource:
    """A magnet link or a .torrent file."""

    uri: str = torrent.MAGNET
    network: Network = INTERNET
    kind: str = "torrent"

    @property
    def name(self) -> str:
        """What its author calls it, or the file."""
        names = parse_qs(urlsplit(self.uri).query).get("dn", [])
        return names[0] if names else Path(self.uri).stem

    def look(self, name: str, retries: Retries) -> Generator[Progress, None, Plan]:
        """What would be fetched; a magnet's peers are asked for it.

        Raises:
            CheckpointNotFound: no peer answers, or it holds no checkpoint.
        """
        yield Progress(name, 0, 0, "asking peers what it holds")
        described = torrent.describe(self.uri, network=self.network)
        format = layouts.format_of([path for path, _ in described.files])
        if format is None:
            raise CheckpointNotFound(f"{described.name} holds no weights as {' or '.join(layouts.Format)}")
        folder = checkpoints_folder() / key_of(name, format)
        files = tuple(File(path, size, "") for path, size in described.files)
        path = (
            folder / layouts.weights([file.name for file in files], format)[0] if format == "gguf" else folder
        )
        return Plan(format, self.uri, "", files, folder, path, is_ours=True)

    def fetch(self, plan: Plan, retries: Retries) -> Generator[Progress, None, Plan]:
        """Fetch the pieces that are not here."""
        yield from torrent.fetch(self.uri, plan.work, network=self.network)
        return replace(plan, files=(yield from checksums.all_measured(plan.work)))

    def seed(self, folder: Path, ratio: float) -> Generator[Progress, None, None]:
        """Give to others what is here, until `ratio` times its size is given."""
        yield from torrent.fetch(self.uri, folder, ratio=ratio, network=self.network)
