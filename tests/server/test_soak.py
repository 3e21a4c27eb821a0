"""A server among clients of all kinds at once; `make soak` has it endure them for half an hour."""

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest
import requests

from tests.support.checkpoints import write_v3
from tests.support.served import Served
from tests.support.tiny import call

SECONDS = float(os.environ.get("M7B_SOAK_S", "12"))
MOST_GROWTH = 24 << 20  # bytes from a third of the time to its end
TEXT = "a river of stone and light that nobody had named ran below the old town"
ASKED = [(TEXT[:9], 1), (TEXT[:40], 2), (TEXT, 3), (TEXT, 4), (TEXT, 5), (TEXT[:20], 6)]  # prompts and seeds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("instruct-v3"), max_position_embeddings=1024)


class Crowd:
    """Clients, each a thread that goes on until the time is up.

    Attributes:
        seen: how often each kind of client has had its way.
        wrong: what should not have been.
    """

    def __init__(self, server, alone):
        self.server, self.alone = server, alone
        host, port = server.url.removeprefix("http://").split(":")
        self.place = host, int(port)
        self.until = time.monotonic() + SECONDS
        self.seen, self.wrong = Counter(), []

    def endure(self):
        kinds = [
            self.ask,
            self.ask,
            self.stream,
            self.stream,
            self.vanish,
            self.babble,
            self.flood,
            self.drip,
        ]
        threads = [threading.Thread(target=self._repeat, args=(kind, n)) for n, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        process = psutil.Process(self.server.process.pid)
        time.sleep(SECONDS / 3)
        before = process.memory_info().rss
        for thread in threads:
            thread.join()
        return process.memory_info().rss - before

    def _repeat(self, kind, seed):
        rng = random.Random(seed)
        while time.monotonic() < self.until:
            try:
                kind(rng)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                self.wrong.append(f"{kind.__name__}: {error!r}")
            self.seen[kind.__name__] += 1

    def ask(self, rng):
        (prompt, seed), expected = rng.choice(list(self.alone.items()))
        answer = self.server.post("/v1/completions", prompt=prompt, seed=seed, max_tokens=12, temperature=1.0)
        if answer.status_code != 429:
            assert answer.json()["choices"][0]["text"] == expected

    def stream(self, rng):
        (prompt, seed), expected = rng.choice(list(self.alone.items()))
        fields = {"prompt": prompt, "seed": seed, "max_tokens": 12, "temperature": 1.0, "stream": True}
        with requests.post(
            f"{self.server.url}/v1/completions", json=fields, stream=True, timeout=120
        ) as told:
            if told.status_code == 429:
                return
            lines = [line[6:] for line in told.iter_lines() if line.startswith(b"data: ")]
        assert lines.pop() == b"[DONE]"
        text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
        assert text == expected, (ascii(text), ascii(expected))

    def vanish(self, rng):
        """Ask for a long answer, and go in the middle of it, or of the question."""
        body = json.dumps({"prompt": "x", "stream": rng.random() < 0.5, "max_tokens": 900}).encode()
        with self._open(len(body)) as client:
            client.sendall(body[: rng.choice([1, len(body)])])
            time.sleep(rng.random() / 4)

    def babble(self, rng):
        """Send what is no HTTP, or no JSON."""
        noise = rng.randbytes(rng.randrange(1, 2000))
        with self._open(len(noise)) if rng.random() < 0.5 else socket.create_connection(self.place) as client:
            client.settimeout(60)
            with suppress(ConnectionError):
                client.sendall(noise)
                client.shutdown(socket.SHUT_WR)
                assert b" 500 " not in client.recv(100)
        time.sleep(0.02)

    def flood(self, rng):
        """Send 10 MB."""
        answer = requests.post(
            f"{self.server.url}/v1/completions", data=rng.randbytes(1000) * 10_000, timeout=60
        )
        assert answer.status_code == 413
        time.sleep(0.5)

    def drip(self, rng):
        """Send a byte now and then."""
        with self._open(1000) as client, suppress(ConnectionError):
            for _ in range(rng.randrange(1, 20)):
                client.sendall(b" ")
                time.sleep(0.1)

    def _open(self, length):
        client = socket.create_connection(self.place)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.place[0]}:{self.place[1]}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
        return client


def test_a_crowd_leaves_memory_flat_no_row_lost_and_each_answer_as_alone(tiny):
    alone = {
        (prompt, seed): call(
            "complete", "-m", tiny, "-n", 12, "--seed", seed, "--temperature", 1, "--json", prompt
        ).answer["choices"][0]["text"]
        for prompt, seed in ASKED
    }
    with Served(tiny, "--parallel", 3, "--queue", 4) as server:
        crowd = Crowd(server, alone)
        growth = crowd.endure()
        assert crowd.wrong == []
        assert len(crowd.seen) == 6, crowd.seen
        deadline = time.monotonic() + 60
        while server.count("m7b_sequences_running") + server.count("m7b_requests_waiting"):
            assert time.monotonic() < deadline, "a row is lost"
            time.sleep(0.1)
        assert growth < MOST_GROWTH, (growth, crowd.seen)
        print(f"{dict(crowd.seen)}, {growth / 1e6:.1f} MB more")
        crowd.ask(random.Random(0))
        assert "Traceback" not in "".join(server.log)
