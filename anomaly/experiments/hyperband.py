"""Hyperband: which trials of a search are stopped early.

Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", with the rungs decided as
each trial reaches them (asynchronous successive halving, Li et al. 2020, algorithm 2), so that nobody waits for others.

Nothing here depends on how often trials were begun: a trial that was interrupted and begun again has the place of the
first, its bracket, and the rivals that the first had.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

REDUCTION = 3
"""One trial in so many goes on from a rung to the next."""


@dataclass(frozen=True)
class Hyperband:
    """The brackets of a search of one seed, whose trials are trained for `least` to `most` epochs."""

    least: int
    most: int
    seed: int

    @property
    def brackets(self) -> int:
        """How many there are: in the first the first rung is at `least` epochs, in each other at `REDUCTION` times."""
        return math.floor(math.log(self.most / self.least, REDUCTION) + 1e-9) + 1

    def bracket(self, place: int) -> int:
        """Return the bracket of the trial that has this place among those of its search, counted from 0.

        Brackets get shares of the trials as the source's algorithm 1 gives them, the first the most.
        """
        shares = [math.ceil(self.brackets * REDUCTION**s / (s + 1)) for s in reversed(range(self.brackets))]
        drawn = zlib.crc32(f"{self.seed}_{place}".encode()) % sum(shares)
        return next(i for i in range(len(shares)) if drawn < sum(shares[: i + 1]))

    def is_rung(self, place: int, epoch: int) -> bool:
        """Whether it is decided after an epoch, counted from 1, if the trial of this place goes on."""
        first = self.least * REDUCTION ** self.bracket(place)
        return any(epoch == first * REDUCTION**i for i in range(self.brackets))


def falls_behind(value: float, rivals: Sequence[float]) -> bool:
    """Whether a trial stops at a rung: its value, the lower the better, is not in the first third there.

    rivals  the values at this rung of the other trials of the bracket that have reached it. The best of fewer than
    `REDUCTION` goes on.

    >>> falls_behind(2.0, [3.0, 4.0]), falls_behind(2.0, [1.0]), falls_behind(float("nan"), [])
    (False, True, True)
    """
    everyone = sorted([value, *rivals])
    return not value <= everyone[max(len(everyone) // REDUCTION, 1) - 1]
