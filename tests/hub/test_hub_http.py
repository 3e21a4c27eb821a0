"""Downloads over bad lines and from bad servers: bit-identical in the end, or refused with the figures."""

import os
import random
import resource
import shutil
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, M7bError, OutOfResources
from m7b.hub.progress import Retries
from m7b.hub.transfer import answers, http
from tests.support.http_server import Answer, serving
from tests.support.lengths import N_KILLS

ROOT = Path(__file__).parent.parent.parent
DATA = random.Random(7).randbytes((1 << 20) + 4321)
SIZE = len(DATA)
HALF = SIZE // 2
CLOSED = "http://127.0.0.1:1/weights/model.tar"


class Patient(Retries):
    """Retries that do not wait, and note what they were asked."""

    def __init__(self, limit=8):
        super().__init__(limit, first_s=0.0)
        self.asked, self.reasons = [], []

    def count_failure(self, why, retry_after_s=None):
        self.asked.append(retry_after_s)
        self.reasons.append(why)
        super().count_failure(why)
        return 0.0


def fetch(url, to, size=SIZE, retries=None):
    return list(http.fetch(url, to, size=size, retries=retries or Patient()))


def ranges(server):
    return [request.headers.get("Range") for request in server.requests]


def test_fifty_drops_in_a_row_cost_no_byte_twice(tmp_path):
    positions = [0, *sorted(random.Random(1).sample(range(1, SIZE), 50))]
    drops = [Answer(drop_after=b - a) for a, b in pairwise(positions)]
    to = tmp_path / "partial"
    with serving(DATA, *drops) as server:
        told = fetch(server.url, to)
    assert to.read_bytes() == DATA
    assert ranges(server) == [None, *(f"bytes={position}-" for position in positions[1:])]
    assert server.sent == SIZE
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, SIZE)
    assert list(tmp_path.iterdir()) == [to], "nothing else is left"
    assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}


def test_a_whole_file_is_settled_on_the_disk(tmp_path, monkeypatch):
    sync, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size) or sync(handle))
    with serving(DATA) as server:
        fetch(server.url, tmp_path / "partial")
    assert synced == [SIZE]


def test_fifty_resets_in_a_row_are_survived(tmp_path):
    rng = random.Random(2)
    resets = [Answer(drop_after=rng.randrange(20_000), resets=True) for _ in range(50)]
    with serving(DATA, *resets) as server:
        fetch(server.url, tmp_path / "partial", retries=Patient(limit=50))
    assert (tmp_path / "partial").read_bytes() == DATA
    assert len(server.requests) == 51


@pytest.mark.parametrize(
    "bad",
    [
        *(pytest.param(Answer(status=status), id=str(status)) for status in (429, 500, 502, 503, 504, 522)),
        pytest.param(Answer(status=416), id="416"),
        pytest.param(Answer(status=416, headers={"Content-Range": f"bytes */{SIZE}"}), id="416 length"),
        pytest.param(Answer(ignores_range=True), id="200 of the same version"),
        pytest.param(Answer(ignores_range=True, drop_after=HALF // 2), id="200 cut off before anything new"),
        *(
            pytest.param(Answer(headers={"Content-Range": told}, body=b"wrong"), id=f"206 of {told}")
            for told in (f"bytes 5-9/{SIZE}", f"bytes 0-4/{SIZE}", "bytes */*", "what?", None)
        ),
        pytest.param(Answer(headers={"Content-Encoding": "gzip"}, body=b"wrong"), id="compressed"),
        pytest.param(Answer(drop_after=10), id="truncated"),
        pytest.param(Answer(drop_after=40_000, is_chunked=True), id="truncated between chunks"),
        pytest.param(Answer(drop_after=10, headers={"Content-Length": None}), id="truncated, no length"),
        pytest.param(Answer(is_chunked=True), id="chunked"),
        pytest.param(Answer(body=b"", headers={"Content-Length": "0"}), id="206 without a body"),
        pytest.param(Answer(headers={"ETag": None}), id="no version"),
        pytest.param(Answer(raw=b"\x16\x03\x01 no HTTP"), id="no HTTP"),
        pytest.param(Answer(raw=b"HTTP/1.1 206 OK\r\nContent-Le"), id="half a header"),
        pytest.param(Answer(raw=b""), id="no answer"),
    ],
)
def test_one_bad_answer_is_survived(tmp_path, bad):
    with serving(DATA, Answer(drop_after=HALF), bad) as server:
        told = fetch(server.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA
    assert told == sorted(told), "and nothing is thrown away"


def test_a_server_without_ranges_or_versions_is_read_from_the_start(tmp_path):
    plain = {"ETag": None}
    with serving(
        DATA, Answer(headers=plain, drop_after=HALF), Answer(headers=plain, ignores_range=True)
    ) as s:
        told = fetch(s.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA
    assert told != sorted(told)
    assert s.sent == HALF + SIZE


def test_a_server_that_says_nothing_more_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "_TIMEOUTS_S", (5.0, 0.2))
    stalls = [Answer(drop_after=1000, stalls=True), Answer(raw=b"HTTP/1.1 200 OK\r\n", stalls=True)]
    with serving(DATA, *stalls) as server:
        fetch(server.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA
    assert ranges(server)[1] == "bytes=1000-"


NEW = bytes(SIZE - 1) + b"!"


@pytest.mark.parametrize(
    ("first", "second", "obeys"),
    [
        ('"1"', '"2"', True),
        ('"1"', '"2"', False),
        ('W/"1"', 'W/"2"', True),
        ('W/"1"', '"2"', True),
    ],
    ids=["If-Range obeyed", "If-Range ignored", "weak names", "weak and strong"],
)
def test_a_file_that_changes_on_the_server_starts_again(tmp_path, first, second, obeys):
    with serving(DATA, Answer(drop_after=HALF), etag=first) as server:
        told = http.fetch(server.url, tmp_path / "partial", size=SIZE, retries=Patient())
        while next(told) < HALF:
            pass
        server.data, server.etag = NEW, second
        server.answers.append(Answer(ignores_if_range=not obeys))
        assert min(told) < HALF
    assert (tmp_path / "partial").read_bytes() == NEW
    assert server.requests[1].headers.get("If-Range") == (None if first.startswith("W/") else first)


def test_the_version_is_remembered_over_processes(tmp_path):
    with serving(DATA, Answer(drop_after=HALF)) as server:
        with pytest.raises(CheckpointNotFound):
            fetch(server.url, tmp_path / "partial", retries=Patient(limit=0))
        server.data, server.etag = NEW, '"2"'
        fetch(server.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == NEW


@pytest.mark.parametrize("name", ["", '"', '"half', "x\x00\x01", '"a b"', '"é"'])
def test_a_damaged_name_of_a_version_does_no_harm(tmp_path, name):
    (tmp_path / "partial").write_bytes(DATA[:HALF])
    (tmp_path / "partial.etag").write_text(name, "latin-1")
    with serving(DATA) as server:
        fetch(server.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA


def test_a_server_that_always_changes_does_not_last_for_ever(tmp_path):
    changing = [Answer(drop_after=HALF, headers={"ETag": f'"{n}"'}, ignores_range=True) for n in range(1000)]
    with serving(DATA, *changing) as server, pytest.raises(CheckpointNotFound, match="in a row"):
        fetch(server.url, tmp_path / "partial")
    assert len(server.requests) <= 10


@pytest.mark.parametrize(
    ("answer", "have"),
    [
        (Answer(), 0),
        (Answer(), 100),
        (Answer(ignores_range=True), 100),
        (Answer(status=416, headers={"Content-Range": f"bytes */{SIZE}"}), 100),
    ],
    ids=["200", "206", "200 for 206", "416"],
)
def test_another_length_is_refused_with_both_figures(tmp_path, answer, have):
    (tmp_path / "partial").write_bytes(DATA[:have])
    with serving(DATA, answer) as server, pytest.raises(DamagedCheckpoint) as caught:
        fetch(server.url, tmp_path / "partial", size=SIZE + 1000)
    assert f"{SIZE:,}" in str(caught.value)
    assert f"{SIZE + 1000:,}" in str(caught.value)
    assert len(server.requests) == 1
    assert (tmp_path / "partial").read_bytes() == DATA[:have]


@pytest.mark.parametrize("form", [{"is_chunked": True}, {"headers": {"Content-Length": None}}])
def test_no_more_than_the_size_is_written(tmp_path, form):
    to, lengths = tmp_path / "partial", []
    with serving(DATA, Answer(body=DATA + b"more", **form)) as server:
        running = http.fetch(server.url, to, size=SIZE)
        with pytest.raises(DamagedCheckpoint, match="more"):
            lengths.extend(to.stat().st_size for _ in running)
    assert max(lengths) <= SIZE
    assert to.stat().st_size <= SIZE


def test_what_is_there_already_needs_no_server(tmp_path):
    (tmp_path / "partial").write_bytes(DATA)
    assert fetch(CLOSED, tmp_path / "partial") == [SIZE]


def test_a_partial_file_that_is_too_long_is_another_one(tmp_path):
    (tmp_path / "partial").write_bytes(bytes(SIZE + 1))
    with serving(DATA) as server:
        fetch(server.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA


@pytest.mark.parametrize("status", [401, 403, 404, 410, 400, 204, 304])
def test_a_refusal_is_final_and_tells_no_secret(tmp_path, status):
    with serving(DATA, Answer(status=status)) as server:
        url = server.url.replace("//", "//me:hush@") + "?token=hush#hush"
        with pytest.raises(CheckpointNotFound) as caught:
            fetch(url, tmp_path / "partial")
    assert len(server.requests) == 1
    assert server.requests[0].path.endswith("?token=hush")
    assert f"{server.host}/weights/model.tar" in str(caught.value)
    assert str(status) in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://me:hush@127.0.0.1:1/weights/x?hush#hush", "refused"),
        ("http://me:hush@[bad/weights/x?hush", "not the address"),
        ("http://me:hush@127.0.0.1:99999999/weights/x?hush", "not the address"),
        ("ftp://me:hush@127.0.0.1/weights/x?hush", "not the address"),
        ("file:///weights/x?hush", "not the address"),
        ("/weights/x?hush", "not the address"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_without_its_secrets(tmp_path, url, why):
    with pytest.raises(CheckpointNotFound) as caught:
        fetch(url, tmp_path / "partial", retries=Patient(limit=1))
    assert why in str(caught.value)
    assert "weights/x" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("7", 7),
        ("0", 0),
        (timedelta(seconds=1000), 1000),
        (timedelta(seconds=-1000), 0),
        ("soon", None),
        ("-5", None),
        ("9" * 5000, None),
        (None, None),
    ],
    ids=["seconds", "none", "a date", "a past date", "a word", "negative", "endless", "nothing"],
)
def test_retry_after_is_what_the_wait_is_asked_for(tmp_path, told, asked):
    retries = Patient()
    if isinstance(told, timedelta):
        told = format_datetime(datetime.now(UTC) + told, usegmt=True)
    with serving(DATA, Answer(status=503, headers={"Retry-After": told})) as server:
        fetch(server.url, tmp_path / "partial", retries=retries)
    assert retries.asked == [asked if asked is None else pytest.approx(asked, abs=60)]


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_retry_after_breaks_anything(text):
    answer = answers.requests.Response()
    answer.headers["Retry-After"] = text
    wait = answers._parse_retry_after(answer)
    assert wait is None or wait >= 0


def test_the_wait_is_real_and_tells_that_it_lasts(tmp_path):
    begin = time.monotonic()
    with serving(DATA, Answer(status=429, headers={"Retry-After": "1"})) as server:
        told = list(http.fetch(server.url, tmp_path / "partial", size=SIZE, retries=Retries()))
    assert time.monotonic() - begin >= 1
    assert told.count(0) >= 4


def test_a_dead_server_ends_it_and_what_came_stays(tmp_path):
    with (
        serving(DATA, Answer(drop_after=HALF), *[Answer(status=500)] * 20) as server,
        pytest.raises(CheckpointNotFound, match="500"),
    ):
        fetch(server.url, tmp_path / "partial")
    assert len(server.requests) == 1 + 8
    assert (tmp_path / "partial").read_bytes() == DATA[:HALF]


def moved(to):
    return Answer(status=302, headers={"Location": to})


def test_redirects_are_followed(tmp_path):
    with serving(DATA) as origin, serving(b"", moved("/else/where"), Answer(status=503)) as first:
        first.answers += [moved("?signed=1"), moved(origin.url)]
        fetch(first.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA
    assert [request.path for request in first.requests][1] == "/else/where"


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("file:///etc/passwd", "file"),
        ("ftp://127.0.0.1/x", "ftp"),
        ("data:,x", "data"),
        ("http://[bad/x", "not the address"),
        ("/weights/model.tar", "more than"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_refused(tmp_path, to, why):
    with serving(DATA, *[moved(to)] * 50) as server, pytest.raises(CheckpointNotFound, match=why):
        fetch(server.url, tmp_path / "partial")
    assert len(server.requests) < 20


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
def test_a_redirect_from_https_to_http_is_refused(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-nodes",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving(DATA) as plain, serving(DATA, moved(plain.url), tls=tls) as secure:
        with pytest.raises(CheckpointNotFound, match="certificate"):
            fetch(secure.url, tmp_path / "partial", retries=Patient(limit=0))
        assert secure.requests == [], "a certificate that nobody vouches for is refused"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with pytest.raises(CheckpointNotFound, match="from https to http"):
            fetch(secure.url, tmp_path / "partial")
        assert plain.requests == []
        plain.answers.append(moved(secure.url))
        fetch(plain.url, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == DATA


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [Answer(status=405)],
        [Answer(status=403)],
        [Answer(headers={"Content-Length": None})],
        [Answer(headers={"Content-Encoding": "gzip"})],
        [Answer(status=405), Answer(ignores_range=True)],
        [Answer(status=503), Answer(raw=b""), Answer(status=405), Answer(status=429)],
        [moved("/else/where"), Answer(status=405), moved("/else/where")],
    ],
    ids=["HEAD", "405", "403", "no length", "compressed", "no ranges", "busy", "redirects"],
)
def test_the_size_is_told(bad):
    with serving(DATA, *bad) as server:
        assert http.fetch_size(server.url, retries=Patient()) == SIZE
    assert server.sent <= SIZE


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([Answer(status=404)] * 2, "404"),
        ([Answer(status=405), Answer(is_chunked=True, ignores_range=True)], "length"),
        ([Answer(status=503)] * 20, "503"),
    ],
    ids=["404", "no length at all", "always busy"],
)
def test_no_size_is_an_error(bad, why):
    with serving(DATA, *bad) as server, pytest.raises(CheckpointNotFound, match=why):
        http.fetch_size(server.url, retries=Patient())


FETCH = """
import sys
from pathlib import Path
from m7b.errors import OutOfResources
from m7b.hub.transfer import http
try:
    for _ in http.fetch(sys.argv[1], Path(sys.argv[2]), size=int(sys.argv[3])):
        pass
except OutOfResources as error:
    sys.exit(str(error))
"""


def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    data, to, rng = random.Random(3).randbytes(3 << 20), tmp_path / "partial", random.Random(4)
    command = [sys.executable, "-c", FETCH]
    with serving(data, rate=4 << 20) as server:
        for kill in range(N_KILLS):
            enough = server.sent + rng.randrange(1, 2_000_000 // N_KILLS)
            child = subprocess.Popen([*command, server.url, to, str(len(data))], cwd=ROOT)
            while server.sent < enough:
                time.sleep(0.001)
                assert child.poll() is None
            child.kill()
            assert child.wait() == -9
            assert data.startswith(to.read_bytes()), f"kill {kill}"
        server.rate = None
        subprocess.run([*command, server.url, to, str(len(data))], cwd=ROOT, check=True)
    assert to.read_bytes() == data
    assert ranges(server)[-1], "the last one went on"
    assert server.sent <= len(data) + N_KILLS * (1 << 18)


def test_a_limit_on_the_file_keeps_what_fits(tmp_path):
    to, limit = tmp_path / "partial", 300_001
    with serving(DATA) as server:
        done = subprocess.run(
            [sys.executable, "-c", FETCH, server.url, to, str(SIZE)],
            cwd=ROOT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        assert f"{SIZE:,}" in done.stderr
        assert "too large" in done.stderr
        assert to.read_bytes() == DATA[:limit]
        fetch(server.url, to)
    assert to.read_bytes() == DATA
    assert ranges(server)[-1] == f"bytes={limit}-"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, less than DATA."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root mounts a small disk")
def test_a_full_disk_keeps_what_fits(tmp_path, small_disk):
    to = small_disk / "partial"
    with serving(DATA) as server:
        with pytest.raises(OutOfResources) as caught:
            fetch(server.url, to)
        assert "No space left" in str(caught.value)
        assert "0 bytes are free" in str(caught.value)
        assert SIZE > to.stat().st_size > 900_000
        assert DATA.startswith(to.read_bytes())
        subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
        fetch(server.url, to)
    assert to.read_bytes() == DATA


@pytest.mark.parametrize("place", ["missing/partial", "."])
def test_a_place_that_cannot_be_written_is_told(tmp_path, place):
    with serving(DATA) as server, pytest.raises(M7bError) as caught:
        fetch(server.url, tmp_path / place)
    assert type(caught.value) is OutOfResources
    assert server.requests == []
