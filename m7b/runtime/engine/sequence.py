"""One prompt and its answer on their way through the scheduler. Knows ids; knows no tensors but logits."""

from collections import deque
from collections.abc import Sequence as Ids

from torch import Tensor

from m7b.errors import M7bError
from m7b.generation import FinishReason, PromptProgress, SamplingParams, Step, TokenLogprob
from m7b.runtime.backends import Drafting
from m7b.runtime.engine.choices import Choices
from m7b.runtime.engine.device_sampling import Chosen
from m7b.runtime.engine.lookup import Lookup
from m7b.runtime.engine.sampling import Sampler, Wish, compute_logprob


class Sequence:
    """What was asked for, how far it is, and what has happened since somebody looked.

    Args:
        ids: the prompt, within the vocabulary.
        params: sampling and stops.
        budget: the most tokens that the answer may have, at least one.
        vocab_size: V.
        is_exact: whether the answer must be the same whatever was read before, to the last bit.
        drafting: what guesses at the answer cost, None for no guesses.
        adapter: the number of the mix of adapters that all goes through.

    Attributes:
        ids: the prompt and what was chosen of the answer.
        draft: guesses at what follows them, which the next pass checks.
        n_prompt: how many of them are the prompt.
        n_read: how many of them the cache holds.
        row: where it holds them, None while the sequence waits.
        is_done: whether nothing more will happen.

    Raises:
        UsageError: `params` name an id outside the vocabulary.
    """

    def __init__(
        self,
        ids: Ids[int],
        params: SamplingParams,
        budget: int,
        vocab_size: int,
        *,
        is_exact: bool,
        drafting: Drafting | None = None,
        adapter: int = 0,
    ) -> None:
        self.ids = list(ids)
        self.draft: list[int] = []
        self._drafted_from = self.n_prompt = len(self.ids)
        self.n_read = 0
        self.row: int | None = None
        self.is_done = False
        self.is_exact = is_exact
        self.adapter = adapter
        self.longest = self.n_prompt + budget  # tokens of prompt and answer
        self._params, self._n_left = params, budget
        sampler = Sampler(params, self.ids, vocab_size)
        # In a run there are no logits to report.
        self._choices = Choices(sampler, params.constraint, longest=budget if params.logprobs is None else 1)
        self._drafting, self._lookup = drafting, Lookup(self.ids) if drafting else None
        self._n_reused = 0
        self._events: deque[PromptProgress | Step | M7bError] = deque()

    @property
    def prompt(self) -> list[int]:
        """The ids before the answer."""
        return self.ids[: self.n_prompt]

    @property
    def reads_prompt(self) -> bool:
        """Whether the next tokens to read are of the prompt."""
        return self.n_read < self.n_prompt

    @property
    def n_given(self) -> int:
        """The ids behind which nothing is chosen: all that are known but the last."""
        return len(self.ids) - 1

    @property
    def has_events(self) -> bool:
        """Whether something happened that nobody has taken yet."""
        return bool(self._events)

    @property
    def is_ahead(self) -> bool:
        """Whether there are tokens of the answer that nobody has taken yet."""
        return bool(self._events) and isinstance(self._events[-1], Step)

    def take(self) -> list[PromptProgress | Step]:
        """What has happened since the last call, in order.

        Raises:
            M7bError: the sequence failed, once all that came before is taken.
        """
        taken: list[PromptProgress | Step] = []
        while self._events:
            event = self._events[0]
            if isinstance(event, M7bError):
                if taken:
                    break
                self._events.clear()
                raise event
            taken.append(event)
            self._events.popleft()
        return taken

    def start(self, row: int, n_reused: int) -> None:
        """Begin in `row`, which holds the first `n_reused` ids already."""
        self.row, self.n_read, self._n_reused = row, n_reused, n_reused
        self._events.append(PromptProgress(n_reused, self.n_prompt, n_reused))

    def guess(self, most: int, n_sequences: int) -> None:
        """Draft what follows, so that at most `most` tokens are to be read, while `n_sequences` decode."""
        self.draft, self._drafted_from = [], len(self.ids)
        if self._lookup and self._drafting:
            n_unread = len(self.ids) - self.n_read
            n_useful = self._n_left - 1  # what is chosen behind the last guess comes without one
            self.draft = self._lookup.guess(min(most - n_unread, n_useful), self._drafting.cost, n_sequences)

    def make_wish(self) -> Wish | None:
        """What the next token is to be chosen by; None where that takes more than a wish."""
        return None if self.draft or self.is_done else self._choices.make_wish()

    def advance(self, n: int, logits: Tensor | None) -> None:
        """Count `n` more ids as read; the answer goes on by `logits` where all are.

        They are (1 + D, V): those after the last id, and those after each of `draft`, which hold as far as
        the draft is what is chosen. Each token is chosen as it would be without a draft.
        """
        self._count(n)
        if logits is None:
            return
        self._choose(logits[0])
        for guess, row in zip(self.draft, logits[1:], strict=True):
            if self.is_done or self._must_read_apart or self.ids[self.n_read] != guess:
                return
            self.n_read += 1
            if self.n_read == len(self.ids):
                self._choose(row)

    def follow(self, n: int, chosen: Chosen) -> None:
        """Count `n` more ids as read, which are all; the answer goes on by what was chosen by its wish."""
        self._count(n)
        self._choices.accept(chosen.token)
        self._add(chosen.token, chosen.logprob)

    def cancel(self) -> None:
        """Want no more: the engine lets go of it before it does anything else."""
        self.is_done = True

    def fail(self, error: M7bError) -> None:
        """End with `error`."""
        self._events.append(error)
        self.is_done = True

    @property
    def _must_read_apart(self) -> bool:
        """Whether the next ids are a run that is longer than what is read like single tokens."""
        return self._drafting is not None and len(self.ids) - self.n_read > self._drafting.widest

    def _count(self, n: int) -> None:
        self.n_read += n
        if self.n_read <= self.n_prompt and n:
            self._events.append(PromptProgress(self.n_read, self.n_prompt, self._n_reused))

    def _choose(self, logits: Tensor) -> None:
        params = self._params
        for token in self._choices.next(logits)[: self._n_left]:
            logprob = None if params.logprobs is None else compute_logprob(logits, token, params.logprobs)
            self._add(token, logprob)
            if self.is_done:
                return

    def _add(self, token: int, logprob: TokenLogprob | None) -> None:
        """Let the answer go on by `token`."""
        self._n_left -= 1
        n_guessed = len(self.ids) - self._drafted_from
        is_taken = self.draft[: n_guessed + 1] == [*self.ids[self._drafted_from :], token]
        drafted = 0 if n_guessed else len(self.draft)
        self.ids.append(token)
        is_stopped = token in self._params.stop_ids
        finish = FinishReason.STOP if is_stopped else FinishReason.LENGTH if self._n_left == 0 else None
        self._events.append(Step(token, logprob, finish, drafted, is_taken))
        self.is_done = finish is not None
