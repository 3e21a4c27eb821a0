"""The one HTTP session of all downloads: it goes by the proxies and certificates of `m7b.network`."""

from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from m7b.errors import UsageError
from m7b.network import find_proxy, make_tls_context, name_proxy


class Session(requests.Session):
    """A session of requests. It knows which hosts have answered it: `answered`.

    Raises:
        UsageError: a variable of the environment names certificates that are not there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answered: set[str] = set()
        adapter = _Adapter(make_tls_context())
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def send_once(self, method: str, url: str, **named: Any) -> requests.Response:
        """Send one request, follow no redirect; the body of the answer is not yet read."""
        answer = self.request(method, url, stream=True, allow_redirects=False, **named)
        self.answered.add(_host(url))
        return answer

    def has_answered(self, url: str) -> bool:
        """Whether the host of `url` has answered already."""
        return _host(url) in self.answered


class _Adapter(HTTPAdapter):
    """Takes proxies and certificates from us, whatever requests has read from the environment."""

    def __init__(self, tls: Any) -> None:
        self._tls = tls
        super().__init__()

    def init_poolmanager(self, *given: Any, **named: Any) -> None:
        super().init_poolmanager(*given, ssl_context=self._tls, **named)

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        if proxy.startswith("socks"):
            _require_socks(proxy)
            return super().proxy_manager_for(proxy, ssl_context=self._tls, **named)
        return super().proxy_manager_for(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls, **named)

    def cert_verify(self, *given: Any, **named: Any) -> None:
        """Leave the certificates to the context."""

    def send(self, request: requests.PreparedRequest, *given: Any, **named: Any) -> requests.Response:
        proxy = find_proxy(request.url or "")
        named |= {"proxies": {"all": proxy} if proxy else {}, "verify": True}
        return super().send(request, *given, **named)


def _require_socks(proxy: str) -> None:
    try:
        import socks  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise UsageError(
            f"the proxy {name_proxy(proxy)} speaks SOCKS, which needs PySocks", hint="pip install PySocks"
        ) from None


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
