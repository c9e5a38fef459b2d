"""Films of several sets, passed over one after the other."""

from collections.abc import Iterator, Sequence

import numpy as np

from anomaly.data.batch import Batch, Batches


class JoinedBatches(Batches):
    """The films of several sets, at least one, those of the first one first."""

    def __init__(self, parts: Sequence[Batches]) -> None:
        self._parts = [part for part in parts if part.films]
        self.films = sum(part.films for part in self._parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts:
            yield from part

    def evenly(self, count: int) -> Batches:
        """Return `count` films taken evenly from all, or all where there are no more."""
        if count >= self.films:
            return self
        places = np.linspace(0, self.films - 1, count).round()
        ends = np.cumsum([part.films for part in self._parts])
        shares = np.diff(np.searchsorted(places, ends, side="left"), prepend=0)
        return JoinedBatches([part.evenly(int(n)) for part, n in zip(self._parts, shares, strict=True) if n])
