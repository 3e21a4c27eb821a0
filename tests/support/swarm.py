"""A BitTorrent swarm on loopback: torrents made by hand, a tracker, seeders, and a peer that lies."""

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import libtorrent as lt

Peer = tuple[str, int]


def bencode(value: object) -> bytes:
    """What torrents and trackers speak."""
    match value:
        case int():
            return b"i%de" % value
        case str() | bytes():
            raw = value.encode() if isinstance(value, str) else value
            return b"%d:%s" % (len(raw), raw)
        case dict():
            keyed = {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}
            return b"d" + b"".join(bencode(part) for item in sorted(keyed.items()) for part in item) + b"e"
        case _:
            return b"l" + b"".join(map(bencode, value)) + b"e"


def make_torrent(name: str, files: Mapping[str, bytes], piece: int, announce: str) -> bytes:
    """A version 1 torrent of several files, whose pieces are hashed here."""
    content = b"".join(files.values())
    hashes = [hashlib.sha1(content[i : i + piece]).digest() for i in range(0, len(content), piece)]
    entries = [{"path": path.split("/"), "length": len(data)} for path, data in files.items()]
    info = {"name": name, "files": entries, "piece length": piece, "pieces": b"".join(hashes)}
    return bencode({"announce": announce, "info": info})


def info_hash(torrent: bytes) -> bytes:
    """The name under which peers and trackers know a torrent."""
    return hashlib.sha1(bencode(lt.bdecode(torrent)[b"info"])).digest()


def wait_until(claim: Callable[[], object], seconds: float = 20) -> None:
    """Poll until `claim` holds; fail when it does not in time."""
    until = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < until, f"{claim} does not hold after {seconds} s"
        time.sleep(0.02)


class Tracker:
    """An HTTP tracker of one swarm: whoever announces is told of all the others."""

    def __init__(self) -> None:
        self.peers: set[Peer] = set()
        tracker = self

        class Announce(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query, encoding="latin-1")
                peer = (self.client_address[0], int(query["port"][0]))
                others = b"".join(
                    socket.inet_aton(ip) + struct.pack(">H", port) for ip, port in tracker.peers - {peer}
                )
                change = tracker.peers.discard if query.get("event") == ["stopped"] else tracker.peers.add
                change(peer)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(bencode({"interval": 600, "peers": others}))

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Announce)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/announce"
        self.server.daemon_threads = True  # a proxy may hold a connection
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Seeder:
    """A libtorrent session that has all of a torrent."""

    def __init__(
        self, torrent: bytes, folder: Path, ip: str = "127.0.0.2", *, rate: int = 0, lies: bool = False
    ) -> None:
        quick = {"stop_tracker_timeout": 0, "allow_multiple_connections_per_ip": True}
        off = dict.fromkeys(("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"), False)
        self.session = lt.session({"listen_interfaces": f"{ip}:0", **quick, **off})
        params = lt.load_torrent_buffer(torrent)
        params.save_path = str(folder)
        params.flags = lt.torrent_flags.apply_ip_filter
        params.upload_limit = rate
        self.handle = self.session.add_torrent(params)
        self.address = (ip, self.session.listen_port())
        wait_until(lambda: self.handle.status().is_seeding)

    @property
    def uploaded(self) -> int:
        """Bytes of pieces that were sent to anybody."""
        return int(self.handle.status().total_payload_upload)

    def close(self) -> None:
        self.session.pause()
        self.session.apply_settings({"listen_interfaces": ""})


class Liar(threading.Thread):
    """A peer that dials whoever announces, claims to have everything and answers requests with noise.

    It gives a torrent's metadata as they are, which may be such as no library would publish.
    """

    def __init__(self, torrent: bytes, tracker: Tracker) -> None:
        super().__init__(daemon=True)
        self.hash, self.tracker = info_hash(torrent), tracker
        self.metadata = bencode(lt.bdecode(torrent)[b"info"])
        self.pieces = len(lt.bdecode(torrent)[b"info"][b"pieces"]) // 20
        self.friends = set(tracker.peers)
        self.lies = 0
        self.is_closed = False
        self.start()

    def run(self) -> None:
        while not self.is_closed:
            for victim in self.tracker.peers - self.friends:
                with (
                    suppress(OSError),
                    socket.create_connection(victim, 5, source_address=("127.0.0.3", 0)) as line,
                ):
                    self._lie(line)
            time.sleep(0.05)

    def _lie(self, line: socket.socket) -> None:
        speaks_extensions = bytes([0, 0, 0, 0, 0, 0x10, 0, 0])
        line.sendall(
            b"\x13BitTorrent protocol" + speaks_extensions + self.hash + b"-LI0001-" + os.urandom(12)
        )
        _receive(line, 68)
        every_piece = [i < self.pieces for i in range(-(-self.pieces // 8) * 8)]
        bits = bytes(
            sum(has << 7 - j for j, has in enumerate(every_piece[i : i + 8]))
            for i in range(0, len(every_piece), 8)
        )
        _send(line, 5, bits)
        _send(line, 1)
        _send(line, 20, b"\0" + bencode({"m": {"ut_metadata": 1}, "metadata_size": len(self.metadata)}))
        while not self.is_closed:
            (length,) = struct.unpack(">I", _receive(line, 4))
            message = _receive(line, length)
            if message[:1] == b"\x06":
                index, begin, size = struct.unpack(">III", message[1:])
                _send(line, 7, struct.pack(">II", index, begin) + os.urandom(size))
                self.lies += 1
            elif message[:2] == b"\x14\0":
                theirs = lt.bdecode(message[2:])[b"m"][b"ut_metadata"]
            elif message[:2] == b"\x14\1":
                answer = {"msg_type": 1, "piece": 0, "total_size": len(self.metadata)}
                _send(line, 20, bytes([theirs]) + bencode(answer) + self.metadata)

    def close(self) -> None:
        self.is_closed = True
        self.join(10)


def _send(line: socket.socket, kind: int, content: bytes = b"") -> None:
    line.sendall(struct.pack(">IB", 1 + len(content), kind) + content)


def _receive(line: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        if not (more := line.recv(size - len(received))):
            raise ConnectionError
        received += more
    return received
