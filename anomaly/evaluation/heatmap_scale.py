"""Smoothing a map inside its mask, and the one scale of a run's maps."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.histogram import StreamingHistogram

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


# ----------------------------------------------------------------------------------------------------------- the map

QUANTILE = 0.995
"""Share of the validation normals' pixels that lie below the scale of the maps."""


def smooth(map: NDArray[Any], mask: Bools, sigma: float) -> Floats:
    """A Gaussian mean of the map over the mask alone: the zero background neither bleeds in nor dims the border.

    map  (H, W) finite.    mask  (H, W) bool.    sigma  pixels; 0 only cuts the map to its mask. Returns (H, W), 0
    outside the mask; a constant inside stays that constant. An empty mask gives zeros. This is normalized convolution
    (Knutsson & Westin 1993): blur(map x mask) / blur(mask).

    >>> smooth(np.array([[3.0, 3.0, 9.0]]), np.array([[True, True, False]]), sigma=1.0).round(3).tolist()
    [[3.0, 3.0, 0.0]]
    """
    import cv2

    inside = checked_map(map, mask) * mask
    if sigma < 0:
        raise ValueError(f"sigma {sigma}: a width in pixels, 0 or more")
    if sigma == 0:
        return inside
    total = cv2.GaussianBlur(inside, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    out: Floats = np.divide(total, weight, out=np.zeros_like(total), where=mask)
    return out


def map_scale(maps: Iterable[tuple[NDArray[Any], Bools]], quantile: float = QUANTILE) -> float:
    """The value that all but a small share of the validation normals' pixels stay below: the run's one scale.

    maps  (map (H, W) at least 0, mask (H, W) bool) of normal films, one at a time; pixels outside the mask do not
    count, and memory does not grow with the films. Precise to .025 %, rounded up (see `StreamingHistogram`). Where that
    quantile is 0, as for maps that are empty on most normal films, it is the largest value; where that too is 0, it is
    1. Without a pixel: ValueError.

    >>> map_scale([(np.array([[0.25, 0.5, 99.0]]), np.array([[True, True, False]]))], quantile=0.5) > 0.25
    True
    """
    histogram = StreamingHistogram()
    for values, mask in maps:
        histogram.add(values[mask])
    return scale_of(histogram, quantile)


def scale_of(histogram: StreamingHistogram, quantile: float = QUANTILE) -> float:
    """The scale, as `map_scale` gives it, of pixel values that were counted elsewhere."""
    return histogram.quantile(quantile) or histogram.quantile(1.0) or 1.0


def checked_map(map: NDArray[Any], mask: Bools) -> Floats:
    """The map as float32, or a ValueError that says what is wrong with it."""
    values = np.asarray(map, np.float32)
    if values.ndim != 2 or values.shape != mask.shape or mask.dtype != np.bool_:
        raise ValueError(f"map {values.shape} and mask {mask.shape} {mask.dtype} must both be (H, W), the mask bool")
    if not np.isfinite(values).all():
        raise ValueError("a map must be finite")
    return values
