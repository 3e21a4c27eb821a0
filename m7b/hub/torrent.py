"""Fetching files by BitTorrent. Knows magnets, pieces and peers; nothing of what is inside the files."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, OutOfResources, UsageError
from m7b.hub.metainfo import LARGEST_METADATA, TorrentInfo, contents
from m7b.hub.progress import Progress

MAGNET = (
    "magnet:?xt=urn:btih:208b101a0f51514ecf285885a8b0f6fb1a1e4d7d&dn=mistral-7B-v0.1"
    "&tr=udp://tracker.opentrackr.org:1337/announce&tr=udp://open.demonii.com:1337/announce"
    "&tr=udp://open.stealth.si:80/announce&tr=udp://tracker.torrent.eu.org:451/announce"
)

_DHT = "dht.libtorrent.org:25401,router.bittorrent.com:6881,dht.transmissionbt.com:6881"
_RESUME = ".torrent-resume"
_TICK_S = 0.25
_FLUSH_S = 60


@dataclass(frozen=True, slots=True)
class Network:
    """Where to listen, and how to find peers besides asking a torrent's trackers."""

    listen: str = "0.0.0.0:0,[::]:0"
    dht: bool = True
    lsd: bool = True


INTERNET = Network()


def describe(source: str, *, timeout_s: float = 120, network: Network = INTERNET) -> TorrentInfo:
    """What the torrent of a magnet link or of a .torrent file holds. A magnet's peers are asked for it.

    Raises:
        UsageError: `source` is neither, or libtorrent is not installed.
        CheckpointNotFound: no peer has answered in time.
        DamagedCheckpoint: the torrent is hostile.
    """
    lt = _libtorrent()
    params = _parsed(lt, source)
    if not params.ti:
        with _session(lt, network) as session:
            for _ in _ask_peers(lt, session, params, timeout_s):
                pass
    return _contents(lt, params)


def fetch(
    source: str, folder: Path, *, ratio: float = 0.0, timeout_s: float = 300, network: Network = INTERNET
) -> Iterator[Progress]:
    """Download a torrent's files into `folder`, then seed them until `ratio` times their size is uploaded.

    However it ends, the next call goes on with the pieces that are there. After an orderly end the folder's
    `.torrent-resume` says which ones; after a kill it says none, and all are checked against their hashes.

    Raises:
        UsageError: `source` is no torrent, or libtorrent is not installed.
        CheckpointNotFound: no byte has come for `timeout_s` seconds.
        DamagedCheckpoint: the torrent is hostile; nothing has been fetched.
        OutOfResources: the disk is full or cannot be written.
    """
    lt = _libtorrent()
    params = _parsed(lt, source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _earlier(lt, folder / _RESUME, params)
        if earlier:
            params.ti, params.total_uploaded = earlier.ti, earlier.total_uploaded
        with _session(lt, network) as session:
            if not params.ti:
                yield from _ask_peers(lt, session, params, timeout_s)
            torrent = _contents(lt, params)
            _check_disk(folder, torrent)
            is_fresh = earlier and not _changed_since(folder / _RESUME, folder, torrent)
            params.flags = lt.torrent_flags.update_subscribe | lt.torrent_flags.apply_ip_filter
            params.save_path, params.file_priorities = str(folder), []
            params.renamed_files = {index: path for index, (path, _) in enumerate(torrent.files)}
            _write(folder / _RESUME, lt.write_resume_data_buf(params))  # says no pieces until an orderly end
            if is_fresh:
                params.have_pieces, params.unfinished_pieces = earlier.have_pieces, earlier.unfinished_pieces
            handle = session.add_torrent(params)
            try:
                yield from _transfer(session, handle, torrent, ratio, timeout_s)
            finally:
                _settle(lt, session, handle, folder, torrent)
    except OSError as error:
        raise OutOfResources(f"cannot write to {folder}: {error}") from None


def _libtorrent() -> Any:
    try:
        import libtorrent
    except ImportError:
        raise UsageError(
            "--source torrent needs libtorrent, which is not installed", hint='pip install "m7b[torrent]"'
        ) from None
    return libtorrent


def _parsed(lt: Any, source: str) -> Any:
    """libtorrent's parameters of a torrent; those of a magnet link have no metadata yet."""
    try:
        if source.startswith("magnet:"):
            return lt.parse_magnet_uri(source)
        with Path(source).open("rb") as opened:
            return lt.load_torrent_buffer(opened.read(LARGEST_METADATA))
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(f"{source} is neither a magnet link nor a .torrent file: {error}") from None


def _contents(lt: Any, params: Any) -> TorrentInfo:
    return contents(lt.bdecode(params.ti.info_section()), reserved=(_RESUME, f"{_RESUME}.new"))


@contextmanager
def _session(lt: Any, network: Network) -> Iterator[Any]:
    category = lt.alert_category
    session = lt.session(
        {
            "alert_mask": category.error | category.status | category.storage,
            "announce_to_all_tiers": True,
            "dht_bootstrap_nodes": _DHT,
            "enable_dht": network.dht,
            "enable_lsd": network.lsd,
            "enable_natpmp": False,
            "enable_upnp": False,
            "listen_interfaces": network.listen,
            "max_metadata_size": LARGEST_METADATA,
            "min_reconnect_time": 5,  # who gave the metadata is met again at once
            "stop_tracker_timeout": 1,
        }
    )
    try:
        yield session
    finally:  # a traceback may keep the session from its destructor
        session.pause()
        session.apply_settings({"listen_interfaces": "", "enable_dht": False, "enable_lsd": False})


def _ask_peers(lt: Any, session: Any, params: Any, timeout_s: float) -> Iterator[Progress]:
    """Put into `params` the metadata that a magnet link leaves out, and the peers who gave them."""
    name, until = params.name or "the torrent", time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as nowhere:
        params.save_path, params.flags = nowhere, lt.torrent_flags.default_dont_download
        handle = session.add_torrent(params)
        while not (status := handle.status()).has_metadata:
            if status.errc.value():
                raise DamagedCheckpoint(f"the metadata of {name} are wrong: {status.errc.message()}")
            if time.monotonic() > until:
                raise CheckpointNotFound(
                    f"of {status.num_peers} peers none has told in {timeout_s:g} s what {name} holds",
                    hint="see that the network lets BitTorrent through, and start the same command again",
                )
            yield Progress(name, 0, 0, "looking for peers")
            time.sleep(_TICK_S)
        params.ti = handle.torrent_file()
        params.peers = [*params.peers, *(peer.ip for peer in handle.get_peer_info())]
        session.remove_torrent(handle)


def _transfer(
    session: Any, handle: Any, torrent: TorrentInfo, ratio: float, timeout_s: float
) -> Iterator[Progress]:
    most, moved_at = -1, time.monotonic()
    while True:
        list(_alerts(session))
        status = handle.status()
        uploaded = status.all_time_upload / torrent.total
        yield Progress(torrent.name, status.total_done, torrent.total, _note(status, uploaded, ratio))
        if status.is_seeding and uploaded >= ratio:
            return
        if status.total_done > most or status.is_seeding or _is_checking(status):
            most, moved_at = max(most, status.total_done), time.monotonic()
        elif time.monotonic() - moved_at > timeout_s:
            raise CheckpointNotFound(
                f"no byte of {torrent.name} has come for {timeout_s:g} s: {status.total_done / 1e9:.2f} of "
                f"{torrent.total / 1e9:.2f} GB are here, {status.num_peers} peers are connected",
                hint="start the same command again: it goes on where it stopped",
            )
        handle.flush_cache()  # libtorrent keeps whole pieces in memory, where a kill would lose them
        time.sleep(_TICK_S)


def _note(status: Any, uploaded: float, ratio: float) -> str:
    if _is_checking(status):
        return "checking"
    if status.is_seeding:
        return f"seeding, ratio {uploaded:.1f} of {ratio:.1f}" if ratio else ""
    if not status.num_peers:
        return "looking for peers"
    return f"{status.download_payload_rate / 1e6:.1f} MB/s from {status.num_peers} peers"


def _is_checking(status: Any) -> bool:
    return status.state.name in ("checking_files", "checking_resume_data")


def _settle(lt: Any, session: Any, handle: Any, folder: Path, torrent: TorrentInfo) -> None:
    """Bring everything to the disk; then note which pieces are there, or nothing where all of them are."""
    status = handle.status()
    if status.errc.value() or _is_checking(status):
        return
    handle.pause()
    _wait_for("torrent_paused", session)
    handle.save_resume_data(lt.save_resume_flags_t.save_info_dict)
    pieces = lt.write_resume_data_buf(_wait_for("save_resume_data", session).params)
    for path in _present(folder, torrent):
        with path.open("rb+") as opened:
            os.fsync(opened)
    if status.is_seeding:
        (folder / _RESUME).unlink(missing_ok=True)
    else:
        _write(folder / _RESUME, pieces)


def _wait_for(what: str, session: Any) -> Any:
    until = time.monotonic() + _FLUSH_S
    while time.monotonic() < until:
        session.wait_for_alert(1000)
        for alert in _alerts(session):
            if alert.what() == what:
                return alert
    raise OutOfResources(f"the disk has not taken the last pieces in {_FLUSH_S} s")


def _alerts(session: Any) -> Iterator[Any]:
    """What libtorrent has to say; an alert lives until the next call."""
    for alert in session.pop_alerts():
        if alert.what() == "file_error":
            raise OutOfResources(f"cannot write {alert.filename()}: {alert.error.message()}")
        yield alert


def _earlier(lt: Any, resume: Path, params: Any) -> Any:
    """What an earlier call has noted of the same torrent, None where there is nothing of use."""
    try:
        earlier = lt.read_resume_data(resume.read_bytes())
    except (RuntimeError, OSError):
        return None
    return earlier if earlier.ti and earlier.info_hashes == params.info_hashes else None


def _present(folder: Path, torrent: TorrentInfo) -> list[Path]:
    return [folder / path for path, _ in torrent.files if (folder / path).is_file()]


def _changed_since(note: Path, folder: Path, torrent: TorrentInfo) -> bool:
    written = note.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > written for path in _present(folder, torrent))


def _check_disk(folder: Path, torrent: TorrentInfo) -> None:
    here = sum(path.stat().st_blocks * 512 for path in _present(folder, torrent))  # the rest is holes
    needed, free = torrent.total - here, shutil.disk_usage(folder).free
    if needed > free:
        raise OutOfResources(
            f"the torrent needs {needed >> 20} MiB more of disk and {free >> 20} MiB are free in {folder}",
            hint="free some, or set M7B_HOME to a folder on another disk",
        )


def _write(file: Path, content: bytes) -> None:
    """Replace a file so that a kill leaves the old one or the new one."""
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as opened:
        opened.write(content)
        os.fsync(opened)
    os.replace(new, file)
