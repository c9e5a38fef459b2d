"""How often pixel values occur over any number of films, in bounded memory: in coarse bins, or value by value."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint32]
Counts = NDArray[np.int64]


def value_keys(values: NDArray[Any]) -> Keys:
    """Whole numbers that rank as the values do: the bits of each as float32; ValueError where one is not in [0, inf).

    >>> value_keys(np.array([0.0, -0.0, 1.0])).tolist()
    [0, 0, 1065353216]
    """
    flat = np.ascontiguousarray(values, np.float32).ravel()
    if flat.size and not (flat.min() >= 0 and flat.max() < math.inf):
        raise ValueError("a map must be finite and not negative")
    return (flat + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0


# -------------------------------------------------------------------------------------------------------- coarse bins


class StreamingHistogram:
    """Counts how often each pixel value occurs, in bounded memory and without knowing the range beforehand.

    The upper bits of a non-negative float32 rise with its value: 20 of them (8 exponent, 12 fraction) make 2**20 bins,
    each at most 2**-12 = .025 % wide relative to its value, for values from 1e-38 to 3e38 (smaller ones count as such
    tiny values or 0).
    """

    BINS = 2**20

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count values, any shape, finite and not negative; raises ValueError on others."""
        self.counts += np.bincount(value_keys(values) >> 11, minlength=self.BINS)

    def quantile(self, q: float) -> float:
        """The value at or below which a share q of the counted values lies: the upper end of its bin, and 0 for 0."""
        total = int(self.counts.sum())
        if not total:
            raise ValueError("no pixel was counted: there is no quantile")
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, math.ceil(q * total))))
        return float(np.array([(place + 1) << 11], np.uint32).view(np.float32)[0]) if place else 0.0


# ------------------------------------------------------------------------------------------------ counts by any value


class ValueCounts:
    """How many values lie at or above any value: exact up to `limit` distinct float32 values, condensed beyond.

    limit  so many distinct values, of 12 bytes each, are kept before they are condensed; that takes five times as much
    for a moment. See `condensed`: the 50,000 largest values stay as they are, and rank statistics stay within 1e-6 of
    the exact ones, which the tests show.
    """

    def __init__(self, limit: int = 2**21) -> None:
        self.limit = limit
        self.total = 0
        self._parts: list[tuple[Keys, Counts]] = []

    def add(self, rising: Keys) -> None:
        """Count the values of one film by their keys, (n,) in rising order."""
        self.total += len(rising)
        self._parts.append(distinct(rising))
        if sum(len(keys) for keys, _ in self._parts) > self.limit:
            keys, counts = _merged(self._parts)
            if len(keys) > self.limit // 2:  # else most are ties, and there is room again
                keys, counts = condensed(keys, counts, finest=2e-5, coarsest=4e-6)
            self._parts = [(keys, counts)]

    def at_or_above(self, keys: Keys) -> tuple[Counts, Counts]:
        """How many counted values lie above each key, and how many at it or above, (k,) and (k,)."""
        own, counts = self._sorted()
        beyond = np.zeros(len(own) + 1, np.int64)  # how many lie at or above each of the own keys, and none above all
        beyond[:-1] = np.cumsum(counts[::-1])[::-1]
        return beyond[np.searchsorted(own, keys, "right")], beyond[np.searchsorted(own, keys, "left")]

    def largest(self, ranks: NDArray[np.int64]) -> Keys:
        """The key of the value of each rank: 1 for the largest, up to `total`."""
        own, counts = self._sorted()
        place = np.searchsorted(np.cumsum(counts[::-1]), ranks)
        return own[len(own) - 1 - place]

    def _sorted(self) -> tuple[Keys, Counts]:
        """Distinct keys, rising, and the count of each."""
        self._parts = [_merged(self._parts)]
        return self._parts[0]


def condensed(keys: Keys, counts: Counts, *, finest: float, coarsest: float) -> tuple[Keys, Counts]:
    """Fewer keys for the same values: groups of neighbors, each at the key of its middle value.

    keys  (k,) rising.    counts  (k,) values of each.    A group holds about a share `finest` of the values above it,
    hence the 1 / `finest` largest values stay as they are, and about a share `coarsest` of all values at most; a key of
    more values is a group of its own with what little lies beside it. Of two middle values the lower and the upper one
    are taken in turn: no rank is shifted on average.
    """
    largest = max(coarsest * int(counts.sum()), 1.0)  # values of a group
    beyond = np.cumsum(counts[::-1])[::-1]  # (k,) values at or above each key
    single, even = 1 / finest, largest / finest  # ranks up to which, and from which on, groups are of one size
    group = np.minimum(beyond, single) + np.log(np.clip(beyond, single, even) / single) / finest
    group += np.maximum(beyond - even, 0) / largest
    starts = _starts(np.floor(group))
    values = np.add.reduceat(counts, starts)
    turn = np.arange(len(starts)) % 2
    middles = np.cumsum(values) - values + (values - 1 + turn) // 2  # (g,) places among all values, rising
    return keys[np.searchsorted(np.cumsum(counts), middles, "right")], values


def distinct(rising: Keys) -> tuple[Keys, Counts]:
    """The distinct values of a sorted array, and the count of each."""
    starts = _starts(rising)
    return rising[starts], np.diff(np.r_[starts, len(rising)])


def _starts(values: NDArray[Any]) -> NDArray[np.int64]:
    """Where each new value of an array begins."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)


def _merged(parts: list[tuple[Keys, Counts]]) -> tuple[Keys, Counts]:
    """The distinct keys of several films together, and the count of each."""
    if len(parts) == 1:
        return parts[0]
    keys = np.concatenate([np.zeros(0, np.uint32), *(keys for keys, _ in parts)])
    counts = np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in parts)])
    order = np.argsort(keys, kind="stable")  # merges the sorted runs
    rising = keys[order]
    starts = _starts(rising)
    return rising[starts], np.add.reduceat(counts[order], starts) if len(starts) else counts
