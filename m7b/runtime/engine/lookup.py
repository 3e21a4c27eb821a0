"""Guesses at what follows, looked up in the text so far. Knows ids; asks no model.

Where the last ids stand earlier too, the guess is what followed them there. How likely that is depends on how
many of them agree, which is counted on the way: also while nothing is guessed, so that guessing begins and
ends by itself.
"""

_LONGEST = 16  # ids that agree, beyond which more of them say nothing new
_PRIOR = tuple(n * n / (n * n + 8) for n in range(_LONGEST + 1))
_WEIGHT = 1 / 16  # of the last guess in a rate
_MOST_PLACES = 32  # of one pair of ids that are compared


class Lookup:
    """The text of one sequence, ready to be searched.

    Args:
        ids: prompt and answer; the sequence adds to them.
    """

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids
        self._n_seen = 0
        self._behind: dict[int, int] = {}  # an id -> the position behind its last place
        self._places: dict[tuple[int, int], list[int]] = {}  # two ids -> the positions behind them
        self._at, self._n_agreeing = 0, 0  # where the guess stands, and how many ids before it agree
        self._rates = list(_PRIOR)  # how often guesses came true, by how many ids agreed

    def guess(self, most: int, cost: float, n_sequences: int = 1) -> list[int]:
        """The next ids, at most `most`, as far as each is likely enough to be worth checking.

        A pass takes 1 for its first token and `cost` for each other one, and each of `n_sequences` gets a
        token of it for certain. A guess is worth it while it raises tokens by time.
        """
        self._catch_up()
        guesses: list[int] = []
        if not self._n_agreeing:
            return guesses
        chance, n_tokens, time = 1.0, float(n_sequences), 1 + cost * (n_sequences - 1)
        while len(guesses) < most:
            chance *= self._rates[min(self._n_agreeing + len(guesses), _LONGEST)]
            if chance * time <= cost * n_tokens:
                break
            back = self._at + len(guesses) - len(self._ids)  # a text that repeats itself runs into its guess
            guesses.append(self._ids[back] if back < 0 else guesses[back])
            n_tokens, time = n_tokens + chance, time + cost
        return guesses

    def _catch_up(self) -> None:
        """Take note of the ids that are new."""
        for position in range(self._n_seen, len(self._ids)):
            self._follow(position)
            self._behind[self._ids[position]] = position + 1
            if position:
                pair = self._ids[position - 1], self._ids[position]
                self._places.setdefault(pair, []).append(position + 1)
        self._n_seen = len(self._ids)

    def _follow(self, position: int) -> None:
        """Judge the guess at the id at `position` by it, and find the place that looks most like here."""
        if self._n_agreeing:
            is_right = self._ids[self._at] == self._ids[position]
            bucket = min(self._n_agreeing, _LONGEST)
            self._rates[bucket] += _WEIGHT * (is_right - self._rates[bucket])
            if is_right:
                self._at, self._n_agreeing = self._at + 1, self._n_agreeing + 1
                return
        pair = (self._ids[position - 1], self._ids[position]) if position else None
        places = self._places.get(pair, [])[-_MOST_PLACES:] if pair else []
        if places:
            # Of places that agree as far, the last.
            self._n_agreeing, self._at = max((self._count_agreeing(at, position + 1), at) for at in places)
        else:
            self._at = self._behind.get(self._ids[position], 0)
            self._n_agreeing = int(self._at > 0)

    def _count_agreeing(self, first: int, second: int) -> int:
        """How many ids before both positions are the same, `_LONGEST` at most."""
        n = 0
        while n < min(first, _LONGEST) and self._ids[first - 1 - n] == self._ids[second - 1 - n]:
            n += 1
        return n
