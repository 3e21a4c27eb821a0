"""m7b's own endpoint: commands of this machine ask by it, and get what they would get of a model of theirs.

A request comes as `warm.wire` packs it. The answer is a line of JSON for each thing that happens: remarks,
events of a sample, the end with the answer object if it is wanted, or an error. An answer that has no end was
cut off.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from m7b.completions import CompletionRequest, format_answers
from m7b.completions.remarks import Remarks
from m7b.errors import M7bError, UsageError
from m7b.server.work import Answering
from m7b.warm.wire import pack, pack_error, unpack


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """What a command asks for.

    Attributes:
        request: the request.
        identity: that of the model that is to answer; None for any.
        is_whole: whether the answer object is wanted.
    """

    request: CompletionRequest
    identity: str | None
    is_whole: bool


def read_warm_request(body: bytes) -> WarmRequest:
    """The request in a body.

    Raises:
        UsageError: it is none.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None
    match fields:
        case {"request": packed, "identity": None | str() as identity, "is_whole": bool() as is_whole}:
            request = unpack(packed)
            if isinstance(request, CompletionRequest):
                return WarmRequest(request, identity, is_whole)
    raise UsageError("this is no request of m7b's own")


async def write_lines(
    remarks: Remarks | None, answering: Answering | M7bError, *, is_whole: bool
) -> AsyncIterator[str]:
    """The lines of an answer that was begun, or failed to."""
    if remarks:
        yield _line(remarks=pack(remarks))
    try:
        if isinstance(answering, M7bError):
            raise answering
        while (events := await answering.take()) is not None:
            for index, event in events:
                yield _line(index=index, event=pack(event))
        yield _line(end=format_answers(answering.completions) if is_whole else None)
    except M7bError as error:
        yield _line(error=pack_error(error))


def _line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"
