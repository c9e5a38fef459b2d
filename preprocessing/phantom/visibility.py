"""How visible a finding is, measured against the film's normal twin, and what each grade of difficulty asks for."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.phantom.exposure import Noise
from preprocessing.phantom.hand import Array
from preprocessing.phantom.projection import Window

MEASURED_SIZE = 256  # pixels of the film's longer side at which all of this is measured
_AROUND = 6.0  # pixels: standard deviation of the Gaussian window of `contrast_to_structure`
_BESIDE = 6  # pixels: side of the square window of `detectability`
_ROUNDING = 1 / 12 / 255**2  # variance of rounding to 8 bits


@dataclass(frozen=True)
class Visibility:
    """How visible a finding is on a film whose longer side is `MEASURED_SIZE` pixels; gray is 0..1.

    contrast_to_structure  r, >= 0: mean absolute change of gray in the ground truth's mask over the mean, in that mask,
                           of the normal twin's local standard deviation. That is the root of the variance of its gray
                           without noise in a Gaussian window of 6 pixels (standard deviation), plus the noise's
                           variance. A finding of r < 1 changes gray by less than it differs around there anyway.
    detectability          d', >= 0, of a linear observer who knows the finding's place and shape and to whom the hand's
                           structure is noise, independent from pixel to pixel: sqrt(sum over the mask of change² /
                           variance), the variance that of the normal twin's gray in a square of 6 x 6 pixels, plus the
                           noise's and that of rounding to 8 bits. With Gaussian noise the ROC-AUC of that observer is
                           Phi(d' / sqrt(2)) (Barrett and Myers, Foundations of Image Science, 2004, chapter 13).
    length                 the mask's largest diameter, pixels.
    """

    contrast_to_structure: float
    detectability: float
    length: float

    def ground_truth(self) -> dict[str, float]:
        """The figures by name, rounded, as the JSON file beside a film holds them."""
        return {
            "contrast_to_structure": round(self.contrast_to_structure, 3),
            "detectability": round(self.detectability, 2),
            "length": round(self.length, 1),
        }


@dataclass(frozen=True)
class Grade:
    """What a finding of one difficulty must measure."""

    contrast: tuple[float, float]  # contrast_to_structure at least, and less than
    detectability: float  # at least
    length: float = 0.0  # pixels, at least

    def met_by(self, measured: Visibility) -> bool:
        """Whether a finding measures all of that."""
        strong = measured.detectability >= self.detectability and measured.length >= self.length
        return strong and self.contrast[0] <= measured.contrast_to_structure < self.contrast[1]

    def factors(self, measured: Visibility) -> tuple[float, float]:
        """By what the strength of a visible finding must be multiplied at least and at most, were all proportional."""
        low, high = (bound / measured.contrast_to_structure for bound in self.contrast)
        return max(low, self.detectability / measured.detectability), high


GRADES = {  # by the names of `DIFFICULTIES`
    "obvious": Grade((0.6, inf), detectability=15, length=10),
    "medium": Grade((0.35, 0.6), detectability=8),
    "subtle": Grade((0.15, 0.35), detectability=5),
}


@dataclass(frozen=True)
class NormalTwin:
    """A film (H, W) without its finding and without noise, 0..1, with what its structure and noise hide."""

    film: Array
    around: Array  # local standard deviation by which contrast is measured
    beside: Array  # local variance that the observer has for noise

    @classmethod
    def of(cls, film: Array, noise: Noise) -> NormalTwin:
        """Measure a film once for all findings that are tried on it."""
        film = np.clip(film, 0, 1)
        noisy = noise.variance * noise.amplitude(film) ** 2
        mean, square = (cv2.GaussianBlur(power, (0, 0), _AROUND) for power in (film, film**2))
        around = np.sqrt(np.maximum(square - mean**2, 0) + noisy)
        mean, square = (cv2.blur(power, (_BESIDE, _BESIDE)) for power in (film, film**2))
        return cls(film, around, np.maximum(square - mean**2, 0) + noisy + _ROUNDING)

    def measure(self, window: Window, sick: Array, mask: NDArray[np.bool_]) -> Visibility:
        """Measure a finding in a window (h, w): the film with it and its mask, empty for none to be seen."""
        if not mask.any():
            return Visibility(0.0, 0.0, 0.0)
        change = (np.clip(sick, 0, 1) - self.film[window])[mask]
        return Visibility(
            contrast_to_structure=float(np.abs(change).mean() / self.around[window][mask].mean()),
            detectability=float(np.sqrt((change**2 / self.beside[window][mask]).sum())),
            length=_diameter(mask),
        )


def _diameter(mask: NDArray[np.bool_]) -> float:
    """The largest distance between two pixels of a mask that isn't empty, their own width included."""
    hull = cv2.convexHull(np.argwhere(mask).astype(np.int32))[:, 0].astype(float)
    return float(np.hypot(*(hull[:, None] - hull[None]).T).max()) + 1
