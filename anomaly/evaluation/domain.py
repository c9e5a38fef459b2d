"""Whether a film shows what the films of a training show, or another part of the body.

It looks at the prepared film alone, so that one way serves every model. A film becomes a thumbnail of its foreground,
cut to the box around it, of mean 0 and variance 1: the box takes out the shape of the detector plate, and the
standardization the exposure; neither makes another body part. A film lies as far from normal ones as the five nearest
thumbnails of theirs do on average, each cell in standard deviations of normal films. It is out of domain where it lies
farther, by a margin, than every normal film lies from those of the other patients.

Measured on films of chests, hands, legs, hips, shoulders, pelves and wrists (docs/results.md). Against chests, which
all look alike, other parts are told one by one. Against limbs, whose poses vary, hardly any is: there a set of films is
told by how their distances are distributed (`shift`), and in such a set a film needn't lie beyond every normal one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.ranking import Floats

SIDE = 16
"""Cells a side of a thumbnail."""
INSIDE = 0.25
"""Share of foreground from which a cell has a gray level."""
NEIGHBORS = 5
CLIP = 4.0
"""Standard deviations at which a cell's departure is cut off: a drawn marker is no body part."""
LEAST_SPREAD = 0.05
"""Standard deviation at least taken for a cell: one that never varies must not make any departure endless."""
LEAST_FILMS = 50
"""Normal films below which no film can be told to be out of domain: too few to know what is usual."""
MARGIN = 1.04
"""The limit, as a multiple of the largest distance of a normal film from those of other patients."""
TAIL = 3.0
"""The limit lies at most this many times as far above the median as the 95th percentile does: one odd film among the
normal ones must not make everything usual."""


def thumbnails(film: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return thumbnails of films, (n, S, S) in [0, 1] with their masks, as (n, SIDE * SIDE), 0 off the foreground.

    A film without foreground is taken whole.
    """
    out = np.empty((len(film), SIDE * SIDE), np.float32)
    for row, (pixels, inside) in enumerate(zip(film, mask, strict=True)):
        out[row] = _thumbnail(pixels, inside if inside.any() else np.ones_like(inside))
    return out


def _thumbnail(film: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    import cv2

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    how = cv2.INTER_AREA if min(np.ptp(rows), np.ptp(columns)) >= SIDE else cv2.INTER_LINEAR
    share = cv2.resize(mask[box].astype(np.float32), (SIDE, SIDE), interpolation=how)
    level = cv2.resize((film[box] * mask[box]).astype(np.float32), (SIDE, SIDE), interpolation=how)
    total = max(float(share.sum()), 1e-6)
    level = np.where(share > INSIDE, level / np.maximum(share, INSIDE) - level.sum() / total, 0)
    deviation = max(float(np.sqrt((level**2 * share).sum() / total)), 1e-3)
    return np.asarray(level / deviation, np.float32).ravel()


@dataclass(frozen=True)
class Domain:
    """What normal films look like."""

    films: NDArray[np.float32]  # (N, D) their thumbnails
    limit: float  # distance beyond which a film is out of domain
    usual: float  # the same for a film of a set that shows something else: 95 % of normal films lie within it

    @classmethod
    def fit(cls, films: NDArray[np.float32], patient: NDArray[Any]) -> tuple["Domain", Floats]:
        """Return the domain of normal films, (N, D) of patients (N,), and how far each lies from other patients', (N,).

        Raises ValueError below `LEAST_FILMS` films, or where one patient has all but a few of them.
        """
        domain = cls(np.asarray(films, np.float32), np.inf, np.inf)
        owner = np.unique(patient, return_inverse=True)[1]
        if len(films) < LEAST_FILMS or len(films) - np.bincount(owner).max() < NEIGHBORS:
            raise ValueError(f"{len(films)} films of {owner.max() + 1} patients are too few for a domain")
        distances = np.concatenate(
            [domain._nearest(domain.films[rows], owner[rows], owner) for rows in _chunks(len(films))]
        )
        middle, high = np.median(distances), np.quantile(distances, 0.95)
        limit = min(MARGIN * distances.max(), middle + TAIL * (high - middle))
        return cls(domain.films, float(limit), float(high)), distances

    def distances(self, films: NDArray[np.float32]) -> Floats:
        """Return how far films lie from the normal ones, thumbnails (n, D) -> (n,) >= 0, in standard deviations."""
        if not len(films):
            return np.zeros(0)
        return np.concatenate([self._nearest(films[rows]) for rows in _chunks(len(films))])

    @cached_property
    def _center(self) -> NDArray[np.float32]:
        return np.asarray(self.films.mean(axis=0))

    @cached_property
    def _spread(self) -> NDArray[np.float32]:
        return np.asarray(np.maximum(self.films.std(axis=0), LEAST_SPREAD))

    @cached_property
    def _standard(self) -> Floats:
        return self._standardized(self.films)

    def _standardized(self, films: NDArray[np.float32]) -> Floats:
        return np.asarray(np.clip((films - self._center) / self._spread, -CLIP, CLIP), np.float64)

    def _nearest(
        self, films: NDArray[np.float32], patient: NDArray[Any] | None = None, owner: NDArray[Any] | None = None
    ) -> Floats:
        """Return the mean distance to the nearest normal films, (n, D) -> (n,): root mean square over cells.

        patient, owner  (n,), (N,): a film isn't compared with normal ones of its own patient.
        """
        x = self._standardized(films)
        square = (x**2).sum(axis=1)[:, None] + (self._standard**2).sum(axis=1) - 2 * x @ self._standard.T  # (n, N)
        distance = np.sqrt(np.maximum(square, 0) / x.shape[1])
        if patient is not None and owner is not None:
            distance[patient[:, None] == owner] = np.inf
        return np.asarray(np.partition(distance, NEIGHBORS - 1, axis=1)[:, :NEIGHBORS].mean(axis=1))


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + 512) for start in range(0, count, 512)]
