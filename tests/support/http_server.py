"""A server of one file on loopback that misbehaves as it is told, one answer after another."""

import os
import re
import socket
import struct
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1 << 14


@dataclass
class Answer:
    """What one answer does other than that of a good server; a header that is None is left out."""

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    drop_after: int | None = None  # bytes of the body, then the connection ends
    resets: bool = False  # it ends with a reset
    stalls: bool = False  # it does not end: nothing more comes
    ignores_range: bool = False
    ignores_if_range: bool = False
    is_chunked: bool = False
    raw: bytes | None = None  # instead of everything


class Server(ThreadingHTTPServer):
    """Serves `data` at any path; counts what it sends. `answers` are used up, then it behaves."""

    daemon_threads = True

    def __init__(self, data, answers=(), etag='"1"', rate=None, tls=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.answers, self.etag, self.rate = data, deque(answers), etag, rate
        self.requests, self.sent, self.released = [], 0, threading.Event()
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}/weights/model.tar"

    def handle_error(self, request, client_address):
        """Clients that are killed are what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(self)
        answer = server.answers.popleft() if server.answers else Answer()
        body, status = server.data, 200
        headers = {"ETag": server.etag}
        fits = answer.ignores_if_range or self.headers.get("If-Range") in (None, server.etag)
        if wanted and fits and not answer.ignores_range:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            body = body[int(first) : int(last) + 1 if last else None]
            status = 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{len(server.data)}"
        if answer.raw is not None:
            self.close_connection = True
            self.wfile.write(answer.raw)
            return
        if answer.status and answer.status != status:
            headers, body, status = {}, b"", answer.status
        body = body if answer.body is None else answer.body
        headers["Content-Length"] = str(len(body))
        if answer.is_chunked:
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        headers |= answer.headers
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body, answer, headers["Content-Length"] is None)

    do_HEAD = do_GET

    def send_body(self, body, answer, is_endless):
        for at in range(0, len(body[: answer.drop_after]), BLOCK):
            block = body[: answer.drop_after][at : at + BLOCK]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if answer.is_chunked else block)
            self.server.sent += len(block)
            if self.server.rate:
                time.sleep(len(block) / self.server.rate)
        if answer.stalls:
            self.server.released.wait(30)
        if answer.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        if answer.is_chunked and answer.drop_after is None:
            self.wfile.write(b"0\r\n\r\n")
        elif is_endless or answer.drop_after is not None:
            self.close_connection = True

    def log_message(self, format, *arguments):
        """Keep quiet."""


@contextmanager
def serving(data, *answers, **options):
    """A server at work."""
    with Server(data, answers, **options) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
