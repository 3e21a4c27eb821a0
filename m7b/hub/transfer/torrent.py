"""Fetch a checkpoint by BitTorrent. Knows magnets, pieces and peers; nothing of what files mean."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m7b.errors import CheckpointNotFound, OutOfResources
from m7b.hub.progress import FileProgress
from m7b.hub.transfer.metainfo import TorrentInfo, parse_info
from m7b.hub.transfer.peers import (
    INTERNET,
    TICK_S,
    Network,
    ask_for_metadata,
    import_libtorrent,
    open_session,
    pop_alerts,
    read_parameters,
    wait_for_alert,
)

__all__ = ["INTERNET", "MAGNET", "Network", "TorrentInfo", "describe", "fetch"]

MAGNET = (
    "magnet:?xt=urn:btih:208b101a0f51514ecf285885a8b0f6fb1a1e4d7d&dn=mistral-7B-v0.1"
    "&tr=udp://tracker.opentrackr.org:1337/announce&tr=udp://open.demonii.com:1337/announce"
    "&tr=udp://open.stealth.si:80/announce&tr=udp://tracker.torrent.eu.org:451/announce"
)

_RESUME = ".torrent-resume"


def describe(source: str, *, timeout_s: float = 120, network: Network = INTERNET) -> TorrentInfo:
    """Find out what a torrent holds: read the .torrent file, or ask the peers of the magnet link.

    Raises:
        UsageError: `source` is neither, or libtorrent is not installed.
        CheckpointNotFound: no peer answered within `timeout_s` seconds.
        DamagedCheckpoint: the torrent is hostile.
    """
    params = read_parameters(source)
    if not params.ti:
        with open_session(network) as opened:
            for _ in ask_for_metadata(opened, params, timeout_s):
                pass
    return _parse_contents(params)


def fetch(
    source: str, folder: Path, *, ratio: float = 0.0, timeout_s: float = 300, network: Network = INTERNET
) -> Iterator[FileProgress]:
    """Download a torrent's files into `folder`, then seed them until `ratio` times their size is uploaded.

    However this call ends, the next one goes on with the pieces that are there. After an orderly end the
    folder's `.torrent-resume` lists them; after a kill it lists none, and libtorrent checks the hash of each.

    Raises:
        UsageError: `source` is no torrent, or libtorrent is not installed.
        CheckpointNotFound: no byte has come for `timeout_s` seconds.
        DamagedCheckpoint: the torrent is hostile; nothing has been fetched.
        OutOfResources: the disk is full or cannot be written.
    """
    lt, params = import_libtorrent(), read_parameters(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _read_resume(folder / _RESUME, params)
        if earlier:
            params.ti, params.total_uploaded = earlier.ti, earlier.total_uploaded
        with open_session(network) as opened:
            if not params.ti:
                yield from ask_for_metadata(opened, params, timeout_s)
            torrent = _parse_contents(params)
            _check_disk(folder, torrent)
            is_fresh = earlier and not _has_changed_since(folder / _RESUME, folder, torrent)
            _shorten_files(folder, torrent)
            params.flags = lt.torrent_flags.update_subscribe | lt.torrent_flags.apply_ip_filter
            params.save_path, params.file_priorities = str(folder), []
            params.renamed_files = {index: path for index, (path, _) in enumerate(torrent.files)}
            # It lists no pieces until an orderly end.
            _replace_file(folder / _RESUME, lt.write_resume_data_buf(params))
            if is_fresh:
                params.have_pieces, params.unfinished_pieces = earlier.have_pieces, earlier.unfinished_pieces
            handle = opened.add_torrent(params)
            try:
                yield from _transfer(opened, handle, torrent, ratio, timeout_s)
            finally:
                _save_state(opened, handle, folder, torrent)
    except OSError as error:
        raise OutOfResources(f"cannot write to {folder}: {error}") from None


def _parse_contents(params: Any) -> TorrentInfo:
    return parse_info(
        import_libtorrent().bdecode(params.ti.info_section()), reserved=(_RESUME, f"{_RESUME}.new")
    )


def _transfer(
    opened: Any, handle: Any, torrent: TorrentInfo, ratio: float, timeout_s: float
) -> Iterator[FileProgress]:
    most, moved_at = -1, time.monotonic()
    while True:
        list(pop_alerts(opened))
        status = handle.status()
        uploaded = status.all_time_upload / torrent.total
        yield FileProgress(
            torrent.name, status.total_done, torrent.total, _describe_status(status, uploaded, ratio)
        )
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
        time.sleep(TICK_S)


def _describe_status(status: Any, uploaded: float, ratio: float) -> str:
    if _is_checking(status):
        return "checking"
    if status.is_seeding:
        return f"seeding, ratio {uploaded:.1f} of {ratio:.1f}" if ratio else ""
    if not status.num_peers:
        return "looking for peers"
    return f"{status.download_payload_rate / 1e6:.1f} MB/s from {status.num_peers} peers"


def _is_checking(status: Any) -> bool:
    return status.state.name in ("checking_files", "checking_resume_data")


def _save_state(opened: Any, handle: Any, folder: Path, torrent: TorrentInfo) -> None:
    """Write everything to the disk, then write which pieces are there; remove that note where all are."""
    lt, status = import_libtorrent(), handle.status()
    if status.errc.value() or _is_checking(status):
        return
    handle.pause()
    wait_for_alert("torrent_paused", opened)
    handle.save_resume_data(lt.save_resume_flags_t.save_info_dict)
    pieces = lt.write_resume_data_buf(wait_for_alert("save_resume_data", opened).params)
    for path, _ in _list_present(folder, torrent):
        with path.open("rb+") as file:
            os.fsync(file)
    if status.is_seeding:
        (folder / _RESUME).unlink(missing_ok=True)
    else:
        _replace_file(folder / _RESUME, pieces)


def _read_resume(resume: Path, params: Any) -> Any:
    """Read the notes of an earlier call about the same torrent, None where there are none."""
    try:
        earlier = import_libtorrent().read_resume_data(resume.read_bytes())
    except (RuntimeError, OSError):
        return None
    return earlier if earlier.ti and earlier.info_hashes == params.info_hashes else None


def _list_present(folder: Path, torrent: TorrentInfo) -> list[tuple[Path, int]]:
    """List the files that exist, each with the size that it is to have."""
    return [(folder / path, size) for path, size in torrent.files if (folder / path).is_file()]


def _has_changed_since(note: Path, folder: Path, torrent: TorrentInfo) -> bool:
    written = note.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > written for path, _ in _list_present(folder, torrent))


def _shorten_files(folder: Path, torrent: TorrentInfo) -> None:
    """Shorten files that are too long: no piece covers their ends."""
    for path, size in _list_present(folder, torrent):
        if path.stat().st_size > size:
            os.truncate(path, size)


def _check_disk(folder: Path, torrent: TorrentInfo) -> None:
    here = sum(path.stat().st_blocks * 512 for path, _ in _list_present(folder, torrent))  # the rest is holes
    needed, free = torrent.total - here, shutil.disk_usage(folder).free
    if needed > free:
        raise OutOfResources(
            f"the torrent needs {needed >> 20} MiB more of disk and {free >> 20} MiB are free in {folder}",
            hint="free some, or set M7B_HOME to a folder on another disk",
        )


def _replace_file(file: Path, content: bytes) -> None:
    """Replace a file so that after a kill it is the old one or the new one."""
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as opened:
        opened.write(content)
        os.fsync(opened)
    os.replace(new, file)
