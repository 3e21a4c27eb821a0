"""The hub's client library over our own HTTP: one set of proxies, certificates and errors for all sources."""

from collections.abc import Iterator

import httpx2
import requests

from m7b.errors import UsageError
from m7b.hub.transfer.answers import read_body, refuse_gatekeeper, request_once
from m7b.hub.transfer.session import Session
from m7b.network import check_endpoint


def connect() -> None:
    """Let the library send its requests by our session.

    Raises:
        UsageError: its endpoint or its token cannot be sent.
    """
    from huggingface_hub import constants

    check_endpoint(constants.ENDPOINT)
    from huggingface_hub import get_token, set_client_factory
    from huggingface_hub.utils._http import hf_request_event_hook

    token = get_token() or ""
    if bad := next((at for at, letter in enumerate(token, start=1) if not "!" <= letter <= "~"), 0):
        raise UsageError(
            f"the access token holds what no token does, as its letter {bad} of {len(token)}",
            hint="copy it again: see HF_TOKEN, or run hf auth login",
        )
    transport = _Transport()
    set_client_factory(
        lambda: httpx2.Client(
            transport=transport,
            event_hooks={"request": [hf_request_event_hook]},
            follow_redirects=True,
            timeout=None,
        )
    )


class _Transport(httpx2.BaseTransport):
    """Sends what the library asks by a session of ours; its failures are ours too."""

    def __init__(self) -> None:
        self._session = Session()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = str(request.url)
        answer = request_once(self._session, request.method, url, dict(request.headers), request.read())
        refuse_gatekeeper(url, answer)
        return httpx2.Response(
            answer.status_code,
            headers=list(answer.raw.headers.items()),
            stream=_Body(self._session, url, answer),
        )


class _Body(httpx2.SyncByteStream):
    def __init__(self, session: Session, url: str, answer: requests.Response) -> None:
        self._session, self._url, self._answer = session, url, answer

    def __iter__(self) -> Iterator[bytes]:
        return read_body(self._session, self._url, self._answer)

    def close(self) -> None:
        self._answer.close()
