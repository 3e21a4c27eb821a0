"""The engine: prefill in chunks, decode token by token, keep the cache between calls. Knows no text."""

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from m7b.errors import ContextOverflow, UsageError
from m7b.generation import FinishReason, PromptProgress, SamplingParams, Step, TokenLogprob
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.constrain import Choices
from m7b.runtime.model import Transformer
from m7b.runtime.placement import memory_errors
from m7b.runtime.sampling import Sampler, logprob_of


class Engine:
    """One model and one sequence in its cache.

    A call whose ids begin like those in the cache reads only the rest. Closing a generator at any
    point leaves the engine ready for the next call.

    Args:
        model: the transformer, ready to run.
        cache: empty, made for `model`.
        ctx_size: the most tokens, prompt and answer together, that one sequence may hold.
        device: where the model takes its tokens.
    """

    def __init__(self, model: Transformer, cache: RollingKVCache, ctx_size: int, device: str = "cpu") -> None:
        self._model = model
        self._cache = cache
        self._ctx_size = ctx_size
        self._device = device
        self._cached: list[int] = []  # the ids that the cache has taken up
        self._prompt: list[int] = []  # the last prompt, and the logits (V,) after it
        self._prompt_logits = torch.empty(0)

    @property
    def cache(self) -> RollingKVCache:
        """The cache, to look at."""
        return self._cache

    @property
    def model(self) -> Transformer:
        """The transformer, to look at."""
        return self._model

    def generate(self, ids: Sequence[int], params: SamplingParams) -> Iterator[PromptProgress | Step]:
        """Continue `ids`: progress while the prompt is read, then one step a token.

        The last step carries the finish reason; with `max_tokens` 0 there is no step at all.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            OutOfResources: memory ran out.
            UsageError: `ids` is empty or not of this vocabulary.
        """
        self._check(ids)
        if len(ids) >= self._ctx_size:
            raise ContextOverflow(
                f"the prompt has {len(ids)} tokens and the context holds {self._ctx_size}",
                hint="shorten it or raise --ctx-size",
            )
        sampler = Sampler(params, ids, self._model.config.vocab_size)
        budget = min(params.max_tokens, self._ctx_size - len(ids))
        if budget == 0:
            return
        logits = self._prompt_logits = yield from self._prefill(ids)
        self._prompt = list(ids)
        # In a run there are no logits to report.
        choices = Choices(sampler, params.constraint, longest=budget if params.logprobs is None else 1)
        n_left = budget
        while True:
            tokens = choices.next(logits)[:n_left]
            for token in tokens:
                n_left -= 1
                logprob = None if params.logprobs is None else logprob_of(logits, token, params.logprobs)
                stopped = token in params.stop_ids
                finish = FinishReason.STOP if stopped else FinishReason.LENGTH if n_left == 0 else None
                yield Step(token, logprob, finish)
                if finish:
                    return
            n_read = len(ids) + budget - n_left - len(tokens)
            assert len(self._cached) == n_read, "another call has taken the cache"
            *_, (_, logits) = self._chunks(tokens, 0)

    def forget(self) -> None:
        """Drop all that earlier calls left: the next answer is that of a new engine, to the last bit.

        A prompt that shares its beginning with the last is read in other chunks than one that does
        not, which in bfloat16 rounds differently.
        """
        self._rewind(0)
        self._prompt = []

    def pretend(self, ids: Sequence[int]) -> None:
        """Take the cache to hold `ids`, though it was filled by hand: to measure speed at a depth."""
        assert len(ids) == self._cache.length, "the cache was filled to another length"
        self._cached = list(ids)
        self._prompt = []

    def logits(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """The logits after each of `ids`, chunk by chunk, each (T, V) float32 on the CPU.

        Raises:
            ContextOverflow: `ids` does not fit the context.
            UsageError: `ids` is empty or not of this vocabulary.
        """
        self._check(ids)
        if len(ids) > self._ctx_size:
            raise ContextOverflow(
                f"the text has {len(ids)} tokens and the context holds {self._ctx_size}",
                hint="shorten it or raise --ctx-size",
            )
        self._rewind(0)
        chunk = self._cache.prefill_chunk
        for start in range(0, len(ids), chunk):
            yield self._forward(ids[start : start + chunk], every=True)

    def score(self, ids: Sequence[int], top: int = 0) -> Iterator[TokenLogprob]:
        """The log-probability of each of `ids[1:]` given all before it, with `top` alternatives.

        Raises: as `logits`.
        """
        followers = iter(ids[1:])
        for rows in self.logits(ids):
            for row, token in zip(rows, followers, strict=False):
                yield logprob_of(row, token, top)

    def _prefill(self, ids: Sequence[int]) -> Generator[PromptProgress, None, Tensor]:
        """Bring `ids` into the cache; returns the logits (V,) after the last of them."""
        shared = 0
        for cached, wanted in zip(self._cached, ids, strict=False):
            if cached != wanted:
                break
            shared += 1
        if shared == len(ids) and self._prompt == list(ids) and self._cache.can_rewind(shared):
            self._rewind(shared)
            yield PromptProgress(shared, shared, shared)
            return self._prompt_logits
        reused = min(shared, len(ids) - 1)  # the last token is read again: its logits are wanted
        if not self._cache.can_rewind(reused):
            reused = 0
        self._rewind(reused)
        yield PromptProgress(reused, len(ids), reused)
        logits = torch.empty(0)
        for end, logits in self._chunks(ids, reused):  # noqa: B007 - the last one counts
            yield PromptProgress(end, len(ids), reused)
        return logits

    def _chunks(self, ids: Sequence[int], start: int) -> Iterator[tuple[int, Tensor]]:
        """Read `ids[start:]` chunk by chunk: where each ends, and the logits (V,) after it."""
        for at in range(start, len(ids), self._cache.prefill_chunk):
            chunk = ids[at : at + self._cache.prefill_chunk]
            yield at + len(chunk), self._forward(chunk)[-1]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int], *, every: bool = False) -> Tensor:
        """Logits on the CPU, (T, V) for `every` token or (1, V) for the last."""
        with memory_errors():
            tokens = torch.tensor(ids, device=self._device)
            logits = self._model(tokens, self._cache, last_only=not every)
        self._cached.extend(ids)
        return logits.cpu()

    def _rewind(self, length: int) -> None:
        self._cache.rewind(length)
        del self._cached[length:]

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError("the prompt is empty", hint="give at least one token to continue from")
        vocab_size = self._model.config.vocab_size
        outside = next((token for token in ids if not 0 <= token < vocab_size), None)
        if outside is not None:
            raise UsageError(
                f"the prompt holds token {outside}", hint=f"ids of this model run from 0 to {vocab_size - 1}"
            )
