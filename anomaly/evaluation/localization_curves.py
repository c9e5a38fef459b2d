"""Figures of pixels and marks from cumulative counts at falling thresholds, for one sample or many resampled ones.

Everywhere B is the number of samples (draws of patients, or 1 for the films as they are) and G the number of groups of
abnormal pixels, in order of falling value. Normal pixels of the same value as a group are ties with it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.ranking import Floats, ratio

FALSE_MARKS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False marks a film at which the FROC curve is read: those of LUNA16 (Setio et al. 2017)."""


@dataclass(frozen=True)
class PixelCurves:
    """Abnormal pixels in groups of falling value, and the normal pixels among them; a figure is nan where it is 0 / 0.

    abnormal  (B, G) pixels of each group.    covered  (B, G) share that these pixels are of their lesions, summed: over
    all groups, the number of lesions.    above, upto  (B, G) normal pixels whose value is larger than the group's, and
    larger or equal.    normal  (B,) all normal pixels.
    """

    abnormal: NDArray[Any]
    covered: NDArray[Any]
    above: NDArray[Any]
    upto: NDArray[Any]
    normal: NDArray[Any]

    @cached_property
    def hits(self) -> NDArray[Any]:
        """Abnormal pixels at or above the value of each group, (B, G)."""
        return np.cumsum(self.abnormal, axis=1)

    @cached_property
    def total(self) -> Floats:
        """All abnormal pixels, (B,)."""
        total: Floats = self.abnormal.sum(axis=1, dtype=np.float64)
        return total

    @property
    def prevalence(self) -> Floats:
        """The share of abnormal pixels, (B,)."""
        return ratio(self.total, self.total + self.normal)

    def roc_auc(self) -> Floats:
        """The chance that an abnormal pixel lies above a normal one, a tie counting half, (B,)."""
        lost = (self.abnormal * (self.above + self.upto)).sum(axis=1, dtype=np.float64) / 2
        return 1 - ratio(lost, self.total * self.normal)

    def average_precision(self) -> Floats:
        """The precision averaged over the recall it is reached at, without interpolation, (B,)."""
        flagged = self.hits + self.upto
        precision = np.divide(self.hits, flagged, out=np.zeros(flagged.shape), where=flagged > 0)
        known = np.where(self.normal > 0, self.total, 0.0)
        return ratio((self.abnormal * precision).sum(axis=1), known)

    def f1_max(self) -> Floats:
        """The highest F1 of any threshold, (B,): the Dice coefficient of all pixels together."""
        either = self.hits + self.upto + self.total[:, None]
        f1 = np.divide(2 * self.hits, either, out=np.zeros(either.shape), where=either > 0)
        return np.where((self.total > 0) & (self.normal > 0), f1.max(axis=1, initial=0.0), math.nan)

    def aupro(self, limit: float) -> Floats:
        """The per-region overlap integrated over the false-positive rate from 0 to a limit, over the limit, (B,).

        The overlap is the mean over lesions of the share of each that is found (Bergmann et al. 2021); the curve is
        linear between thresholds, and cut at the limit itself rather than at the threshold before or after it.
        """
        overlap = ratio_of(np.cumsum(self.covered, axis=1), self.covered.sum(axis=1))
        before = np.concatenate([np.zeros((len(overlap), 1)), overlap[:, :-1]], axis=1)
        rise, end = (ratio_of(counts, self.normal) for counts in (self.above, self.upto))  # where ties begin and end
        after = np.concatenate([rise[:, 1:], np.ones((len(rise), 1))], axis=1)  # where the next group's ties begin
        sloped = np.clip(limit - rise, 0, end - rise)  # the part of the ties that lies below the limit
        slope = np.divide(overlap - before, end - rise, out=np.zeros(rise.shape), where=end > rise)
        level = np.clip(np.minimum(after, limit) - end, 0, None)
        area: Floats = (sloped * (before + slope * sloped / 2) + level * overlap).sum(axis=1)
        return area / limit


def froc(found: NDArray[Any], false: NDArray[Any], lesions: NDArray[Any], films: NDArray[Any]) -> Floats:
    """The share of lesions found at each of `FALSE_MARKS`, (B, 7); nan without a lesion.

    found, false  (B, G) lesions found, and false marks made, at the values of the lesions' highest marks, falling.
    lesions, films  (B,) how many there are. At each rate the lowest threshold counts that makes no more false marks a
    film; there is no interpolation.
    """
    allowed = np.outer(films, FALSE_MARKS)  # (B, 7)
    reached = (false[:, None, :] <= allowed[:, :, None]).sum(axis=2)  # (B, 7) how many thresholds
    from_none = np.concatenate([np.zeros((len(found), 1)), found], axis=1)
    return ratio_of(np.take_along_axis(from_none, reached, axis=1), lesions)


def ratio_of(parts: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Rows of parts (B, G) over their whole (B,); nan where the whole is 0."""
    return ratio(np.asarray(parts, np.float64), np.broadcast_to(whole[:, None], parts.shape))
