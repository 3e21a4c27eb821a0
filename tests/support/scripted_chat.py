"""The real `m7b`, but for its model: a script says what it answers. Imports nothing heavy.

`SCRIPT` names a JSON file:

- `answers`: the answer to each message; any other is answered "echo: " and the message. `{temperature}`
  and the like become the parameters of the request, `{call}` its number, `{model}` the model's name; at
  `⏸` the answer waits for the file `go_on`. One that begins with `☎` begins with the id of calls.
- `delay`, `prefill_delay`: seconds a token, and seconds a chunk of the prompt.
- `ctx_size`, `window`: those of the checkpoint.
- `loads_slowly`: whether the model waits for the file `go_on` before it is loaded.

A token is a byte. Nothing is ever downloaded: the demo that is fetched is an empty file.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from m7b import cli, hub
from m7b.commands import chat
from m7b.commands.shared import fetching
from m7b.errors import CheckpointNotFound
from m7b.generation import EngineOptions, FinishReason, PromptProgress, SamplingParams, Step
from m7b.models import Model, ModelChoice
from m7b.paths import data_folder
from m7b.render import Status
from tests.support import shelf
from tests.support.fake_chat import ROLES, STOP

PAUSE, CALLS = "⏸", "☎"
CALL_ID, TOOLS_ID = 6, 7
_FIRST_BYTE = 16


class Bytes:
    """A tokenizer: a token is a byte behind 16 ids that are no text."""

    vocab_size = _FIRST_BYTE + 256

    @property
    def controls(self) -> dict[str, int]:
        return {"[TOOL_CALLS]": CALL_ID}

    @property
    def edges(self) -> dict[str, Any]:
        return {}

    def encode(self, text: str, *, bos: bool, inside: bool = False) -> list[int]:
        return [_FIRST_BYTE + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token - _FIRST_BYTE for token in ids if token >= _FIRST_BYTE).decode(errors="replace")

    def piece(self, token: int) -> str:
        return f"<{token}>" if self.is_control(token) else self.decode([token])

    def is_control(self, token: int) -> bool:
        return token < _FIRST_BYTE


class Frames:
    """A template: the role's id in front of each text, and the assistant's at the end."""

    description = "frames of the test"
    source = "{{ role }}{{ content }}\n"

    def encode(self, messages: Sequence[dict[str, Any]], tools: object = None) -> list[int]:
        ids = [TOOLS_ID, *Bytes().encode(json.dumps(tools), bos=False)] if tools else []
        for message in messages:
            ids += [ROLES[message["role"]], *Bytes().encode(message["content"] or "", bos=False)]
        return ids if messages[-1].get("prefix") else [*ids, ROLES["assistant"]]


class Script:
    """An engine that answers by the script, and reuses what a prompt shares with the last and its answer."""

    def __init__(self, script: dict[str, Any], name: str, ctx_size: int, chunk: int) -> None:
        self._script, self._name, self._ctx_size, self._chunk = script, name, ctx_size, chunk
        self._cached: list[int] = []
        self._n_calls = 0

    def generate(self, ids: Sequence[int], params: SamplingParams) -> Iterator[PromptProgress | Step]:
        self._n_calls += 1
        total = len(ids)
        pairs = zip(self._cached, ids[:-1], strict=False)
        reused = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(self._cached), total - 1))
        for done in [*range(reused, total, self._chunk), total]:
            self._cached = list(ids[:done])
            yield PromptProgress(done, total, reused)
            time.sleep(self._script["prefill_delay"] if done < total else 0)
        n_left = min(params.max_tokens, self._ctx_size - total)
        for token in self._tokens(ids, params):
            if n_left <= 0:
                return
            n_left -= 1
            finish = (
                FinishReason.STOP
                if token in params.stop_ids
                else FinishReason.LENGTH
                if n_left == 0
                else None
            )
            time.sleep(self._script["delay"])
            yield Step(token, None, finish)
            if finish:
                return
            self._cached.append(token)

    def forget(self) -> None:
        self._cached = []

    def _tokens(self, ids: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """What follows `ids`: the rest of the answer that the script gives to the last message."""
        answer_at = len(ids) - [*ids][::-1].index(ROLES["assistant"])
        question = Bytes().decode(ids[_after_role(ids, answer_at - 1) : answer_at - 1])
        begun = Bytes().decode(ids[answer_at:])
        answer = self._script["answers"].get(question, f"echo: {question}")
        values = {field.name: getattr(params, field.name) for field in fields(params)}
        for name, value in (values | {"call": self._n_calls, "model": self._name}).items():
            answer = answer.replace(f"{{{name}}}", str(value))
        spoken = answer.replace(PAUSE, "").removeprefix(CALLS)
        if not spoken.startswith(begun):
            answer = " and so on"
        elif begun:
            answer = spoken[len(begun) :]
        if answer.startswith(CALLS):
            yield CALL_ID
        for at, part in enumerate(answer.removeprefix(CALLS).split(PAUSE)):
            if at:
                _wait_for(self._script["go_on"])
            yield from Bytes().encode(part, bos=False)
        yield STOP


def load_model(choice: ModelChoice, options: EngineOptions, *, chat_template: str | None = None) -> Model:
    """What stands in for the real one: finds the checkpoint as that does, and reads the script instead."""
    if choice.path is not None and not choice.path.exists():
        raise CheckpointNotFound(f"there is no {choice.path}")
    name = choice.path.name if choice.path else choice.release
    if choice.path is None:
        hub.locate(name)
    script = json.loads(Path(os.environ["SCRIPT"]).read_text(encoding="utf-8"))
    if script["loads_slowly"]:
        Status().show("loading…")
        _wait_for(script["go_on"])
    ctx_size = options.ctx_size or script["ctx_size"]
    window = script["window"] if options.window is None else options.window
    values = {
        "name": name,
        "engine": Script(script, name, ctx_size, options.prefill_chunk),
        "tokenizer": Bytes(),
        "template": Frames(),
        "stop_ids": frozenset({STOP}),
        "vocab_size": _FIRST_BYTE + 256,
        "ctx_size": ctx_size,
        "window": window or None,
        "about": {"model": name, "checkpoint": "none (script)"},
        "license": "license of the test",
    }
    return Model(**values)


def fetch_default(name: str, *, asks: bool) -> None:
    """What stands in for the real one."""
    assert not asks
    shelf.put(data_folder(), name)


def _wait_for(file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.005)


def _after_role(ids: Sequence[int], end: int) -> int:
    """Where the text that ends at `end` begins: behind the id of its role."""
    return next(at for at in range(end, 0, -1) if ids[at - 1] < _FIRST_BYTE)


if __name__ == "__main__":
    chat.load_model = load_model  # type: ignore[assignment]
    fetching.fetch_default = fetch_default  # type: ignore[assignment]
    try:
        cli.run()
    except KeyboardInterrupt:  # as m7b/__main__.py has it
        sys.exit(130)
