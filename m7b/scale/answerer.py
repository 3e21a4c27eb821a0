"""A model that answers batches of rows, as an actor of Ray Data or by itself. Imports no Ray."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m7b.completions import CompletionRequest, LineFeed, Together
from m7b.errors import UsageError
from m7b.generation import EngineOptions, SamplingParams
from m7b.models import ModelChoice, load_model, require_template
from m7b.offer import check_template
from m7b.scale.parts import as_line

if TYPE_CHECKING:
    from pyarrow import Table


class Answerer:
    """Answers batches of requests, several at once, by a model of its own: a class for `map_batches`.

    Args:
        name: a variant, a path or what `m7b list` shows, found on each machine.
        is_chat: whether rows have messages.
        defaults: what rows leave out.
        parallel: how many requests run at once; as many as pay and fit if not given.
        chat_template: `v1`, `v3` or a Jinja file, instead of the model's own.
        **options: fields of `EngineOptions`, as `threads=8`.
    """

    def __init__(
        self,
        name: str | Path | ModelChoice = "demo",
        *,
        is_chat: bool = False,
        defaults: CompletionRequest | None = None,
        parallel: int | None = None,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        choice = name if isinstance(name, ModelChoice) else ModelChoice.from_name(str(name))
        self._model = load_model(choice, EngineOptions(**options), chat_template=chat_template)
        self._is_chat = is_chat
        self._defaults = defaults or CompletionRequest("", SamplingParams())
        chat = self._defaults.conversation
        if is_chat and chat and chat.tools:
            check_template(self._model.chat_template)
        elif is_chat:
            require_template(self._model.name, self._model.template)
        self._parallel = parallel or self._model.engine.suggest_parallel(
            self._defaults.params.max_tokens + EngineOptions().prefill_chunk
        )

    def __call__(self, batch: "Table") -> "Table":
        """Add the column `answer` to the batch: what `m7b complete --jsonl` writes for each row.

        Rows have a request in JSON in the column `request`, or else a column for each field.

        Raises:
            UsageError: the batch is not of pyarrow's format.
        """
        if not hasattr(batch, "append_column"):
            raise UsageError(f"the batch is a {type(batch).__name__}", hint='say batch_format="pyarrow"')
        import pyarrow

        answers = self.answer([_read_request(row) for row in batch.to_pylist(maps_as_pydicts="lossy")])
        texts = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        return batch.append_column("answer", pyarrow.array(texts, pyarrow.large_string()))

    def answer(self, lines: list[bytes]) -> list[dict[str, Any]]:
        """Answer lines of JSON, in order; an error is the answer of its line."""
        # A line break in JSON is a space, and LineFeed passes over blank lines.
        text = b"\n".join(b" ".join(line.splitlines()).strip() or b"null" for line in lines)
        together = Together(
            self._model,
            self._defaults,
            is_chat=self._is_chat,
            parallel=self._parallel,
            report=lambda progress: None,
        )
        return list(together.answer(LineFeed(io.BytesIO(text))))


def _read_request(row: dict[str, Any]) -> bytes:
    """The line of JSON that a row is, or has in its column `request`."""
    if "request" not in row:
        return as_line(row)
    request = row["request"]
    if isinstance(request, str):
        return request.encode("utf-8", "surrogatepass")
    return request if isinstance(request, bytes) else as_line(request or {})
