"""A chat model whose tokens are characters, for tests that count; light enough for a subprocess."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from m7b.errors import ContextOverflow
from m7b.generation import FinishReason, PromptProgress, SamplingParams, Step
from m7b.models import Model

ROLES = {"system": 1, "user": 2, "assistant": 3, "tool": 4}
STOP = 5


class Characters:
    """A tokenizer: one id a character; ids below 9 are no text."""

    def encode(self, text: str, *, bos: bool, inside: bool = False) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids if token > 8)


class Frames:
    """A template: the role's id in front of each text, and the assistant's at the end."""

    def encode(self, messages: Sequence[dict[str, Any]], tools: object = None) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [ROLES[message["role"]], *map(ord, message["content"] or "{}")]
        return ids if messages[-1].get("prefix") else [*ids, ROLES["assistant"]]


class Scripted:
    """An engine that chooses each token by all the ids before it, and notes the prompts.

    Before the step of number `interrupt_at`, progress included, it is interrupted.
    """

    def __init__(self, choose: Callable[[list[int]], int], ctx_size: int = 10_000) -> None:
        self.choose = choose
        self.ctx_size = ctx_size
        self.prompts: list[list[int]] = []
        self.interrupt_at: int | None = None

    def generate(self, ids: Sequence[int], params: SamplingParams) -> Iterator[PromptProgress | Step]:
        for n, step in enumerate(self._steps(ids, params)):
            if n == self.interrupt_at:
                raise KeyboardInterrupt
            yield step

    def _steps(self, ids: Sequence[int], params: SamplingParams) -> Iterator[PromptProgress | Step]:
        self.prompts.append(list(ids))
        if len(ids) >= self.ctx_size:
            raise ContextOverflow("the session should have seen to it")
        budget = min(params.max_tokens, self.ctx_size - len(ids))
        if budget:
            yield PromptProgress(0, len(ids), 0)
            yield PromptProgress(len(ids), len(ids), 0)
        seen = list(ids)
        for n_left in reversed(range(budget)):
            token = self.choose(seen)
            finish = FinishReason.LENGTH if n_left == 0 else None
            finish = FinishReason.STOP if token in params.stop_ids else finish
            yield Step(token, None, finish)
            if finish:
                return
            seen.append(token)


def saying(script: Sequence[int], marker: Sequence[int] = (ROLES["assistant"],), stop: int = STOP):
    """Chooses the ids of `script` behind the last `marker`; what stands there must be their beginning."""

    def choose(ids: list[int]) -> int:
        size = len(marker)
        start = next(at for at in range(len(ids), 0, -1) if ids[at - size : at] == list(marker))
        begun = ids[start:]
        assert begun == list(script[: len(begun)]), "the model sees another beginning than it gave"
        return [*script, stop][len(begun)]

    return choose


def fake_model(choose: Callable[[list[int]], int], ctx_size: int = 10_000) -> Model:
    """Characters, frames and a scripted engine."""
    engine: Any = Scripted(choose, ctx_size)
    parts: Any = (Characters(), Frames())
    return Model("fake", engine, *parts, frozenset({STOP}), 0x110000, ctx_size, None)
