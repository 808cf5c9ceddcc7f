"""A loss curve of bounded size: means of equally many steps, twice as many each time the curve is full.

    100 steps, 4 points at most     25 → 32 steps a point: 32, 32, 32 and the 4 last ones

Knows: numbers.  Knows nothing of: who trains, how a curve is drawn.
"""

from collections.abc import Sequence

MOST_POINTS = 40
LATELY = 8
"""Steps of the loss that is shown as a number."""


class Curve:
    """Takes in a list that grows, each value once: a step costs no more the longer its run is."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self.per = 1
        """Steps of a point; of the last one as many as there are."""
        self.seen = 0
        self.lately = 0.0
        """Mean of the last few."""
        self._sums: list[float] = []

    def follow(self, losses: Sequence[float]) -> None:
        """Take in what is new; a list that became shorter was rolled back, and is read from its beginning."""
        n = len(losses)  # once: it may grow meanwhile
        if n < self.seen:
            self._begin()
        for loss in losses[self.seen : n]:
            self._add(loss)
        last = losses[max(0, n - LATELY) : n]
        self.lately = sum(last) / len(last) if last else 0.0

    def _add(self, loss: float) -> None:
        if self.seen == self._most * self.per:
            self._sums = [sum(self._sums[at : at + 2]) for at in range(0, len(self._sums), 2)]
            self.per *= 2
        if self.seen % self.per == 0:
            self._sums.append(0.0)
        self._sums[-1] += loss
        self.seen += 1

    def points(self) -> list[float]:
        """The mean of each ``per`` steps, in order; at most so many as were asked for."""
        last = self.seen - self.per * (len(self._sums) - 1)
        counts = [self.per] * (len(self._sums) - 1) + [last]
        return [total / count for total, count in zip(self._sums, counts, strict=False)]
