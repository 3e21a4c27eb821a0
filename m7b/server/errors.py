"""Errors as OpenAI's clients expect them: a status, and an object that says which field is at fault."""

from typing import Any

from starlette.responses import JSONResponse

from m7b.errors import ContextOverflow, M7bError, UsageError
from m7b.server.work import Busy, Stopping

_RETRY_S = 1


class HttpError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def translate_error(error: M7bError) -> HttpError:
    """What `error` is over HTTP."""
    match error:
        case ContextOverflow():
            return HttpError(400, str(error), code="context_length_exceeded", param="messages")
        case UsageError():
            return HttpError(400, str(error), param=error.param or None)
        case Busy():
            return HttpError(429, str(error), code="queue_full")
        case Stopping():
            return HttpError(503, str(error), code="shutting_down")
        case _:
            return HttpError(500, str(error))


def format_error(error: HttpError) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status, kind)
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def make_error_response(error: HttpError) -> JSONResponse:
    """The whole answer."""
    headers = {"Retry-After": str(_RETRY_S)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(format_error(error), error.status, headers)
