"""A session of libtorrent, and the questions to peers before a download. Knows no folder of the user's."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, OutOfResources, UsageError
from m7b.hub.progress import FileProgress
from m7b.hub.transfer.metainfo import LARGEST_METADATA
from m7b.network import find_certificates, find_proxy

TICK_S = 0.25

_DHT = "dht.libtorrent.org:25401,router.bittorrent.com:6881,dht.transmissionbt.com:6881"


@dataclass(frozen=True, slots=True)
class Network:
    """Where to listen, and how to find peers besides asking a torrent's trackers."""

    listen: str = "0.0.0.0:0,[::]:0"
    dht: bool = True
    lsd: bool = True


INTERNET = Network()


def import_libtorrent() -> Any:
    """Import libtorrent, which is an optional dependency.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import libtorrent
    except ImportError:
        raise UsageError(
            "--source torrent needs libtorrent, which is not installed", hint='pip install "m7b[torrent]"'
        ) from None
    return libtorrent


def read_parameters(source: str) -> Any:
    """Read a magnet link or a .torrent file into libtorrent's parameters.

    A magnet link does not hold the metadata, so its parameters have no `ti`.

    Raises:
        UsageError: `source` is neither.
    """
    lt = import_libtorrent()
    try:
        if source.startswith("magnet:"):
            return lt.parse_magnet_uri(source)
        with Path(source).open("rb") as opened:
            return lt.load_torrent_buffer(opened.read(LARGEST_METADATA))
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(f"{source} is neither a magnet link nor a .torrent file: {error}") from None


@contextmanager
def open_session(network: Network) -> Iterator[Any]:
    """Open a session that leaves the network when the block ends."""
    lt = import_libtorrent()
    if certificates := find_certificates():  # of trackers and web seeds; OpenSSL knows this variable alone
        os.environ["SSL_CERT_FILE"] = str(certificates)
    opened = lt.session(
        {
            "alert_mask": lt.alert_category.error | lt.alert_category.status | lt.alert_category.storage,
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
            **_list_proxy_settings(lt),
        }
    )
    try:
        yield opened
    finally:  # a traceback may keep it from its destructor
        opened.pause()
        opened.apply_settings({"listen_interfaces": "", "enable_dht": False, "enable_lsd": False})


def ask_for_metadata(opened: Any, params: Any, timeout_s: float) -> Iterator[FileProgress]:
    """Ask peers for the metadata that a magnet link leaves out, and put it into `params`.

    The peers who gave it are put there too, so that the download meets them again at once.

    Raises:
        CheckpointNotFound: no peer answered within `timeout_s` seconds.
        DamagedCheckpoint: the metadata make no sense.
    """
    name, until = params.name or "the torrent", time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as nowhere:
        params.save_path, params.flags = nowhere, import_libtorrent().torrent_flags.default_dont_download
        handle = opened.add_torrent(params)
        while not (status := handle.status()).has_metadata:
            if status.errc.value():
                raise DamagedCheckpoint(f"the metadata of {name} are wrong: {status.errc.message()}")
            if time.monotonic() > until:
                raise CheckpointNotFound(
                    f"{status.num_peers} peers are connected, none told in {timeout_s:g} s what {name} holds",
                    hint="see that the network lets BitTorrent through, and start the same command again",
                )
            yield FileProgress(name, 0, 0, "looking for peers")
            time.sleep(TICK_S)
        params.ti = handle.torrent_file()
        params.peers = [*params.peers, *(peer.ip for peer in handle.get_peer_info())]
        opened.remove_torrent(handle)


def _list_proxy_settings(lt: Any) -> dict[str, Any]:
    """List libtorrent's settings for the proxy of the environment.

    Everything goes through one that is for all traffic; trackers and web seeds alone through one of HTTP.
    """
    everything = find_proxy("all://.")
    proxy = everything or find_proxy("https://.") or find_proxy("http://.")
    if proxy is None:
        return {}
    address = urlsplit(proxy)
    kind = address.scheme.rstrip("ah").replace("https", "http")
    if address.username and kind != "socks4":
        kind += "_pw"
    return {
        "proxy_type": int(getattr(lt.proxy_type_t, kind)),
        "proxy_hostname": address.hostname,
        "proxy_port": address.port or (1080 if kind.startswith("socks") else 8080),
        "proxy_username": unquote(address.username or ""),
        "proxy_password": unquote(address.password or ""),
        "proxy_hostnames": address.scheme != "socks5",
        "proxy_peer_connections": everything is not None,
        "proxy_tracker_connections": True,
    }


def pop_alerts(opened: Any) -> Iterator[Any]:
    """Take the alerts that libtorrent has queued; each is valid until the next call.

    Raises:
        OutOfResources: libtorrent could not read or write a file.
    """
    for alert in opened.pop_alerts():
        if alert.what() == "file_error":
            raise OutOfResources(f"cannot write {alert.filename()}: {alert.error.message()}")
        yield alert


def wait_for_alert(what: str, opened: Any, timeout_s: float = 60) -> Any:
    """Wait for the next alert of the kind `what` and return it.

    Raises:
        OutOfResources: the alert did not come within `timeout_s` seconds, because the disk is too slow.
    """
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        opened.wait_for_alert(1000)
        for alert in pop_alerts(opened):
            if alert.what() == what:
                return alert
    raise OutOfResources(f"the disk has not taken the last pieces in {timeout_s:g} s")
