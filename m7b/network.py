"""The way out of this machine: proxies and certificates, as the environment says. Sends nothing itself.

The libraries below read different variables in different ways; whoever sends asks here instead, so a variable
means the same for every source. Names are matched as curl matches them.
"""

import os
import re
import ssl
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from m7b.errors import UsageError

_PORTS = {"http": 80, "https": 443}
_SCHEMES = {
    **{scheme: scheme for scheme in ("http", "https", "socks4", "socks4a", "socks5", "socks5h")},
    "socks": "socks5h",  # what GNOME writes; the names of hosts are the proxy's to look up
}
_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_FOLDERS = "SSL_CERT_DIR"


def is_web_address(text: str) -> bool:
    """Whether `text` is an address of HTTP or HTTPS: with a host that can be looked up, and no odd port."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in _PORTS
            and bool((parts.hostname or "").encode("idna"))
            and parts.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def find_proxy(url: str) -> str | None:
    """Find the address of the proxy for `url`, None where there is none; for `all://.` that of all traffic.

    Raises:
        UsageError: the variable that names it makes no sense.
    """
    target = urlsplit(url)
    proxies = urllib.request.getproxies()  # of the system where no variable is set; small letters win
    if _is_exempt(target, proxies.get("no", "")):
        return None
    kind = next((kind for kind in (target.scheme, "all") if proxies.get(kind)), None)
    return _read_proxy(f"{kind}_proxy", proxies[kind]) if kind else None


def check_endpoint(endpoint: str | None = None) -> None:
    """See that the hub's address is one; None takes that of HF_ENDPOINT.

    huggingface_hub, and what imports it, cannot be imported where its port is none.

    Raises:
        UsageError: it is none.
    """
    endpoint = os.environ.get("HF_ENDPOINT") if endpoint is None else endpoint
    if endpoint is not None and not is_web_address(endpoint):
        meant = f"https://{endpoint.rpartition('://')[2]}"
        raise UsageError(
            f"HF_ENDPOINT is {endpoint!r}, which is no address",
            hint=f"it looks like {meant if is_web_address(meant) else 'https://huggingface.co'}",
        )


def check_way(url: str) -> None:
    """See that the variables on the way to `url` make sense.

    Raises:
        UsageError: one does not.
    """
    make_tls_context()
    find_proxy(url)


def name_proxy(proxy: str) -> str:
    """Name a proxy in messages: its host and port, without user and password."""
    return proxy.rpartition("@")[2].rpartition("://")[2].rstrip("/")


def make_tls_context() -> ssl.SSLContext:
    """Make the rules by which certificates are believed.

    Where variables name certificates, those count and no others; else those of the system, and Mozilla's.

    Raises:
        UsageError: a variable names what is not there, or holds no certificate.
    """
    named = [name for name in (*_FILES, _FOLDERS) if os.environ.get(name)]
    if not named:
        import certifi
        import truststore

        context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certifi.where())
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the named one need not be the first of its line
    places = {
        path: name for name in named for path in _list_places(name)
    }  # each once: reading takes its time
    for path, name in places.items():
        _trust(context, name, path)
    return context


def find_certificates() -> Path | None:
    """Find the one file of certificates that a variable names, None where none does.

    Raises:
        UsageError: it is not there.
    """
    named = next((name for name in _FILES if os.environ.get(name)), None)
    return next((path for path in _list_places(named) if path.is_file()), None) if named else None


def _is_exempt(target: SplitResult, exempt: str) -> bool:
    """Whether a host needs no proxy: by its name, a name that it ends with, or its network."""
    host = (target.hostname or "").rstrip(".")
    port = target.port or _PORTS.get(target.scheme)
    if not urllib.request.getproxies_environment():
        return bool(urllib.request.proxy_bypass(host))  # the list of the system
    return any(_fits(entry, host, port) for entry in re.split(r"[,\s]+", exempt) if entry)


def _fits(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    name, wanted = entry.lower(), None
    if found := re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", name):
        name, wanted = found[1], int(found[2])
    name = name.strip("[]").removeprefix("*").strip(".")
    if wanted not in (None, port) or not name:
        return False
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:  # one of them is a name
        return host == name or host.endswith(f".{name}")


def _read_proxy(variable: str, text: str) -> str:
    """Read the address of a proxy; one without a scheme is of HTTP."""
    scheme, _, rest = text.strip().rpartition("://")
    shown = name_proxy(text)
    known = _SCHEMES.get(scheme.lower() or "http")
    try:
        address = urlsplit(f"{known}://{rest}")
        is_sound = bool(known and address.hostname) and (address.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound:
        raise UsageError(
            f"{variable} names no proxy that m7b can use: {scheme or 'http'}://{shown}",
            hint="it looks like http://HOST:PORT or socks5h://HOST:PORT",
        )
    return f"{known}://{rest}"


def _list_places(variable: str) -> Iterator[Path]:
    """List the files and folders that a variable of certificates names.

    Raises:
        UsageError: one is not there; of several folders, all.
    """
    text = os.environ[variable]
    paths = [Path(one) for one in text.split(os.pathsep) if one] if variable == _FOLDERS else [Path(text)]
    there = [path for path in paths if path.exists()]
    if not there:
        raise UsageError(
            f"{variable} is {text}, and there is nothing",
            hint="set it to the certificates of your network, or unset it",
        )
    yield from there


def _trust(context: ssl.SSLContext, variable: str, path: Path) -> None:
    """Believe the certificates in a file or a folder.

    Raises:
        UsageError: a file holds none, or cannot be read.
    """
    files = [path]
    if path.is_dir():
        context.load_verify_locations(capath=path)
        # OpenSSL looks for files named by a hash alone; where nobody has made those, read what is there.
        is_hashed = any(re.fullmatch(r"[0-9a-f]{8}\.\d+", one.name) for one in path.iterdir())
        files = [] if is_hashed else [one for one in path.iterdir() if one.suffix in (".pem", ".crt", ".cer")]
    for file in files:
        try:
            context.load_verify_locations(cafile=file)
        except OSError as error:  # also ssl.SSLError
            why = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificate"
            raise UsageError(
                f"{variable} names {file}, and {why}", hint="it is to be a file of certificates in PEM"
            ) from None
