"""One text on its way through the scheduler that is read to judge how it ends. Nothing is chosen."""

from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from m7b.errors import M7bError
from m7b.generation import Likelihood


class Judgement:
    """What is to be judged, and how far it is.

    Endings that differ in their last token alone are read once: `context` [5, 6], `ending` [7] and `finals`
    [8, 9] judge [7, 8] and [7, 9] behind [5, 6].

    Args:
        context: what is given, at least one id.
        ending: the ids behind it, but for the last.
        finals: the last ids, of one ending each.
        is_exact: whether the result must be the same whatever was read before, to the last bit.
        adapter: the number of the mix of adapters that all goes through.

    Attributes:
        ids: what is read.
        draft: nothing: there are no guesses.
        n_prompt: the length of `ids`.
        n_read: how many of them the cache holds.
        n_given: the ids behind which nothing is judged.
        row: where it holds them, None while the text waits.
        is_done: whether nothing more will happen.
        longest: the tokens that its row needs room for.
    """

    def __init__(
        self, context: Ids[int], ending: Ids[int], finals: Ids[int], *, is_exact: bool, adapter: int = 0
    ) -> None:
        self.ids = [*context, *ending]
        self.draft: list[int] = []
        self.n_prompt = self.longest = len(self.ids)
        self.n_given = len(context) - 1
        self.n_read = 0
        self.row: int | None = None
        self.is_done: bool = False
        self.is_exact = is_exact
        self.adapter = adapter
        self._finals = list(finals)
        self._logprob, self._is_greedy = 0.0, True  # of `ending`
        self._likelihoods: list[Likelihood] = []
        self._error: M7bError | None = None

    @property
    def prompt(self) -> list[int]:
        """All that is read."""
        return self.ids

    @property
    def reads_prompt(self) -> bool:
        """Whether there is something left to read."""
        return self.n_read < self.n_prompt

    @property
    def is_ahead(self) -> bool:
        """Never: nobody has to take what is read before it goes on."""
        return False

    def start(self, row: int, n_reused: int) -> None:
        """Begin in `row`, which holds the first `n_reused` ids already."""
        self.row, self.n_read = row, n_reused

    def advance(self, n: int, logits: Tensor | None) -> None:
        """Count `n` more ids as read; `logits` (M, V) are those after the last M of them that were read."""
        self.n_read += n
        if logits is not None:
            self._judge(self.n_read - len(logits), logits)
        self.is_done = not self.reads_prompt

    def cancel(self) -> None:
        """Want no more: the engine lets go of it before it does anything else."""
        self.is_done = True

    def fail(self, error: M7bError) -> None:
        """End with `error`."""
        self._error, self.is_done = error, True

    def take(self) -> list[Likelihood]:
        """The likelihood of each ending, once it is done.

        Raises:
            M7bError: the reading failed.
        """
        if self._error:
            raise self._error
        assert self.is_done, "it is still being read"
        return self._likelihoods

    def _judge(self, first: int, logits: Tensor) -> None:
        """Judge what follows the ids from `first` on."""
        log_probs, best = logits.log_softmax(-1), logits.argmax(-1)  # (M, V), (M,)
        if followers := self.ids[first + 1 : self.n_read + 1]:
            targets = torch.tensor(followers)
            told = log_probs[: len(followers)].gather(1, targets[:, None])
            self._logprob += float(told.double().sum())
            self._is_greedy &= bool((best[: len(followers)] == targets).all())
        if self.n_read == self.n_prompt:
            self._likelihoods = [
                Likelihood(
                    self._logprob + float(log_probs[-1, token]), self._is_greedy and int(best[-1]) == token
                )
                for token in self._finals
            ]
