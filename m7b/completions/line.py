"""One line of a batch: a request of ours, or one of OpenAI's batches, answered as they answer it."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from m7b.errors import M7bError, UsageError
from m7b.text_input import decode_text

_URLS = {"/v1/chat/completions": True, "/v1/completions": False}
"""What the address of a request of OpenAI's says: whether it is a chat."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a line asks for.

    `fields` are those of the request. `is_chat` says that it has messages. `custom_id` names it where
    it is a line of OpenAI's batches, `id` where it is ours.
    """

    fields: dict[str, Any]
    is_chat: bool
    custom_id: str | None = None

    def wrap(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The `answer` as the line wants it."""
        return answer if self.custom_id is None else _wrap(self.custom_id, 200, answer)


def parse_line(line: bytes, *, is_chat: bool) -> Line:
    """What `line` asks for; `is_chat` is what lines of ours are.

    Raises:
        UsageError: it is no JSON object, or no request that can be answered here.
    """
    fields = parse_object(line)
    if "custom_id" not in fields:
        return Line(fields, is_chat)
    match fields:
        case {"custom_id": str() as custom_id, "url": str() as url, "body": dict() as body}:
            pass
        case _:
            raise UsageError(
                "custom_id goes with url and body", hint='write {"custom_id": …, "url": …, "body": {…}}'
            )
    if fields.get("method", "POST") != "POST":
        raise UsageError(f"method is {fields['method']!r}", hint="it must be POST")
    if url not in _URLS:
        raise UsageError(f"url is {url!r}", hint=f"it can be {' or '.join(_URLS)}")
    return Line(body, _URLS[url], custom_id)


def wrap_error(line: bytes, error: M7bError) -> dict[str, Any]:
    """The answer of a `line` that failed, which may be bad in any way."""
    custom_id = find_id(line, "custom_id")
    if isinstance(custom_id, str):
        return _wrap(custom_id, 400, {"error": error.report()})
    return {"id": find_id(line, "id"), "error": error.report()}


def is_error(answer: dict[str, Any]) -> bool:
    """Whether `answer` tells of an error."""
    match answer:
        case {"response": {"status_code": int() as status}}:
            return status != 200
    return answer.get("error") is not None


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on one line.

    Raises:
        UsageError: it is none.
    """
    try:
        text = decode_text("the line", line)
    except UsageError as error:
        raise UsageError(f"not JSON: {error.message}", hint=error.hint) from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair cannot be answered
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"a JSON {type(value).__name__} instead of an object")
    return value


def find_id(line: bytes, name: str) -> Any:
    """The field `name` on a line that may be bad otherwise, None where it has none."""
    try:
        found = json.loads(line)[name]
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _wrap(custom_id: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """A line of OpenAI's batch output."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body},
        "error": None,
    }
