"""A hub on loopback: repositories, their files behind a redirect to another host, and faults on demand."""

import hashlib
import json
import re
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLOCK = 1 << 14


class Hub(ThreadingHTTPServer):
    """Serves `files` as the repository `repo_id`; those ending in weights' suffixes are in LFS.

    `faults` are used up, one for each request that fits: (pattern of the path, status or what it does).
    """

    daemon_threads = True

    def __init__(self, repo_id, files, *, token=None, gated=False, rate=None, tls=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo_id, self.files, self.token, self.gated, self.rate = repo_id, files, token, gated, rate
        self.faults, self.requests, self.sent = deque(), [], Counter()
        self.announced = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.sizes = {name: len(data) for name, data in files.items()}
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server_port}"
        self.cdn = f"{scheme}://localhost:{self.server_port}/cdn"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.commit = COMMIT

    def is_lfs(self, name):
        return name.endswith((".safetensors", ".bin", ".gguf", ".pth", "tokenizer.model"))

    def git_id(self, name):
        data = self.files[name]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def fault(self, path):
        """What is to go wrong with this request, None if nothing."""
        for fault in self.faults:
            if re.search(fault[0], path):
                self.faults.remove(fault)
                return fault[1]
        return None

    def handle_error(self, request, client_address):
        """Clients that are killed are what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers)))
        fault = hub.fault(path)
        if isinstance(fault, dict):
            self.answer(fault["status"], fault["headers"], fault["body"])
        elif isinstance(fault, int):
            self.answer(fault, {"Retry-After": "1"} if fault == 429 else {})
        elif path.startswith("/cdn/"):
            self.send_file(path.removeprefix("/cdn/"), fault)
        elif found := re.fullmatch(rf"/api/models/{hub.repo_id}(/revision/([^/]+))?", path):
            self.send_listing(found[2] or "main")
        elif found := re.fullmatch(rf"/{hub.repo_id}/resolve/([^/]+)/(.+)", path):
            self.resolve(found[1], found[2])
        else:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def send_listing(self, revision):
        hub = self.server
        if revision not in ("main", hub.commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name in hub.files:
            entry = {"rfilename": name, "size": hub.sizes[name], "blobId": hub.git_id(name)}
            if hub.is_lfs(name):
                entry["lfs"] = {"sha256": hub.announced[name], "size": hub.sizes[name], "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps(
            {"id": hub.repo_id, "modelId": hub.repo_id, "sha": hub.commit, "siblings": siblings}
        )
        self.answer(200, {"Content-Type": "application/json"}, body.encode())

    def resolve(self, revision, name):
        hub = self.server
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            if self.headers.get("Authorization"):
                self.answer(403)
            else:
                self.answer(401, {"X-Error-Code": "GatedRepo"} if hub.gated else {})
            return
        if name not in hub.files or revision not in ("main", hub.commit):
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hub.announced[name] if hub.is_lfs(name) else hub.git_id(name)
        headers = {
            "X-Repo-Commit": hub.commit,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(hub.sizes[name]),
        }
        self.answer(302, {**headers, "ETag": f'"{etag}"', "Location": f"{hub.cdn}/{name}?signature=secret"})

    def send_file(self, name, fault):
        hub = self.server
        body, status, headers = hub.files[name], 200, {"ETag": f'"{hub.announced[name]}"'}
        if fault == "corrupt":
            body = bytes(byte ^ 1 for byte in body)
        if fault == "another length":
            body += b"more"
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body, status = body[first:], 206
        headers["Content-Length"] = str(len(body))
        if isinstance(fault, tuple):  # ("drop", after how many bytes)
            body, self.close_connection = body[: fault[1]], True
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        for at in range(0, len(body) if self.command == "GET" else 0, BLOCK):
            self.wfile.write(body[at : at + BLOCK])
            hub.sent[name] += len(body[at : at + BLOCK])
            if hub.rate:
                time.sleep(BLOCK / hub.rate)

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for header, value in {**dict(headers), "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *arguments):
        """Keep quiet."""


@contextmanager
def serving_hub(repo_id, files, **options):
    """A hub at work."""
    with Hub(repo_id, files, **options) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
