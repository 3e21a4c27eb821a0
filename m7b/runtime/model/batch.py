"""What one forward pass works on: tokens of one sequence or of several. Knows positions and rows of a cache.

Worked example: sequence A (row 0) decodes position 7 while four tokens of the prompt of B (row 2) are read
from position 0 on, and the logits after the last of them are wanted as well as those of A:

    tokens     a7 b0 b1 b2 b3
    positions   7  0  1  2  3
    spans      Span(row=0, first=7, n=1), Span(row=2, first=0, n=4, is_prompt=True)
    wanted      0  4
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens that follow each other in one sequence: those at positions [first, first + n).

    `row` is the row of the cache that holds the sequence. `adapter` is the number of the mix of adapters that
    the tokens go through. `is_prompt` tokens are read, others were generated:
    a backend may compute the two kinds by different roads, but never lets the choice hang on other sequences.
    """

    row: int
    first: int
    n: int
    is_prompt: bool = False
    adapter: int = 0

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.first + self.n


@dataclass(frozen=True, slots=True)
class Batch:
    """The N tokens of some spans, one span behind the other.

    `tokens` and `positions` are (N,); `wanted` (M,) are the rows whose logits are asked for. All three are on
    the device on which the model takes its tokens.
    """

    tokens: Tensor
    positions: Tensor
    spans: tuple[Span, ...]
    wanted: Tensor
