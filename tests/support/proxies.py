"""Proxies on loopback: HTTP (plain requests and CONNECT) and SOCKS5. To them every name is this machine."""

import base64
import select
import socket
import struct
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit


class Proxy:
    """Leads connections on. `targets` are the hosts it was asked for, `refusals` what it answers first."""

    scheme = ""

    def __init__(self, login=None):
        self.login, self.targets, self.refusals = login, [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        secret = ":".join(login) + "@" if login else ""
        self.url = f"{self.scheme}://{secret}{self.address}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client:
            try:
                server = self.greet(client)
            except OSError:
                return
            if server is None:
                return
            with server:
                _pump(client, server)

    def connect(self, host, port):
        self.targets.append(host)
        return socket.create_connection((host if host.startswith("127.") else "127.0.0.1", port), 10)


class HttpProxy(Proxy):
    scheme = "http"

    def greet(self, client):
        head = _read_until(client, b"\r\n\r\n")
        line, *headers = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        allowed = self.login is None or f"Basic {_basic(self.login)}" in head.decode("latin-1")
        status = 407 if not allowed else self.refusals.pop(0) if self.refusals else None
        if status:
            client.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return None
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            server = self.connect(host, int(port))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            return server
        url = urlsplit(target)
        path = target.split(url.netloc, 1)[1] or "/"
        kept = [one for one in headers if one and not one.lower().startswith(("proxy-", "connection:"))]
        asked = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""])
        server = self.connect(url.hostname, url.port or 80)
        server.sendall(asked.encode("latin-1"))
        answered = _read_until(server, b"\r\n\r\n").removesuffix(b"\r\n")
        client.sendall(answered + b"Connection: close\r\n\r\n")  # or it asks on where nobody listens
        return server


class SocksProxy(Proxy):
    scheme = "socks5h"

    def greet(self, client):
        _, n = _read(client, 2)
        _read(client, n)
        client.sendall(b"\x05\x02" if self.login else b"\x05\x00")
        if self.login:
            _read(client, 1)
            told = tuple(_read(client, _read(client, 1)[0]).decode() for _ in range(2))
            client.sendall(b"\x01\x00" if told == tuple(self.login) else b"\x01\x01")
            if told != tuple(self.login):
                return None
        _, _, _, kind = _read(client, 4)
        match kind:
            case 1:
                host = socket.inet_ntoa(_read(client, 4))
            case 3:
                host = _read(client, _read(client, 1)[0]).decode()
            case _:
                host = socket.inet_ntop(socket.AF_INET6, _read(client, 16))
        (port,) = struct.unpack(">H", _read(client, 2))
        server = self.connect(host, port)
        client.sendall(b"\x05\x00\x00\x01" + bytes(6))
        return server


@contextmanager
def proxying(kind, **options):
    """A proxy at work."""
    proxy = kind(**options)
    try:
        yield proxy
    finally:
        proxy.close()


def _basic(login):
    return base64.b64encode(":".join(login).encode()).decode()


def _read(client, n):
    data = b""
    while len(data) < n:
        got = client.recv(n - len(data))
        if not got:
            raise ConnectionError
        data += got
    return data


def _read_until(client, mark):
    data = b""
    while mark not in data:
        data += _read(client, 1)
    return data


def _pump(*pair):
    while True:
        for ready in select.select(pair, [], [], 30)[0] or [None]:
            data = ready.recv(1 << 16) if ready else b""
            if not data:
                return
            (pair[1] if ready is pair[0] else pair[0]).sendall(data)
