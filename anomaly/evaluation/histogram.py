"""A histogram of pixel values in bounded memory."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ------------------------------------------------------------------------------------------------------------- pixels


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
        flat = np.ascontiguousarray(values, np.float32).ravel()
        if flat.size and not (flat.min() >= 0 and flat.max() < math.inf):
            raise ValueError("a map must be finite and not negative")
        self.counts += np.bincount((flat + 0.0).view(np.uint32) >> 11, minlength=self.BINS)  # + 0.0 turns -0.0 into 0.0

    def quantile(self, q: float) -> float:
        """The value at or below which a share q of the counted values lies: the upper end of its bin, and 0 for 0."""
        total = int(self.counts.sum())
        if not total:
            raise ValueError("no pixel was counted: there is no quantile")
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, math.ceil(q * total))))
        return float(np.array([(place + 1) << 11], np.uint32).view(np.float32)[0]) if place else 0.0
