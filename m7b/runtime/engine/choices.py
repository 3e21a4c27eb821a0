"""What comes next in an answer: what the sampler draws, or what a grammar leaves no choice about."""

from torch import Tensor

from m7b.generation import Constraint
from m7b.runtime.engine.sampling import Sampler, Wish


class Choices:
    """The tokens of one answer, one after another or in runs.

    A run is what the grammar forces, in the tokens that its text is usually made of; the model is not asked.
    Cut into runs of one, the answer is the same: nothing is drawn from the sampler within a run.

    Args:
        sampler: draws.
        constraint: keeps the answer to a grammar, if there is one.
        longest: the most tokens of a run.
    """

    def __init__(self, sampler: Sampler, constraint: Constraint | None, *, longest: int) -> None:
        self._sampler = sampler
        self._matcher = constraint.start_matcher() if constraint else None
        self._longest = longest
        self._forced: list[int] = []  # what is left of a run

    def make_wish(self) -> Wish | None:
        """What the next token is to be chosen by; None where there is no choice."""
        if self._matcher is None:
            return self._sampler.make_wish()
        is_forced = bool(self._forced or self._matcher.find_forced())
        return None if is_forced else self._sampler.make_wish(self._matcher.pack_mask())

    def accept(self, token: int) -> None:
        """Go on behind `token`, which somebody has chosen by the wish."""
        self._sampler.observe(token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def next(self, logits: Tensor) -> list[int]:
        """The tokens that follow where the model's logits are `logits` (V,)."""
        if self._matcher is None:
            return [self._sampler.choose(logits)]
        if not self._forced:
            self._forced = self._matcher.find_forced()
        run, self._forced = self._forced[: self._longest], self._forced[self._longest :]
        for token in run:
            self._sampler.observe(token)
        run = run or [self._sampler.choose(logits, self._matcher.pack_mask())]
        for token in run:
            self._matcher.accept(token)
        return run
