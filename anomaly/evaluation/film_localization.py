"""What is kept of one film to measure how well its map points at its lesions: a few kilobytes instead of its pixels.

A **lesion** is an 8-connected component of the ground truth: of a mask, or of the filled rectangles where boxes were
given (boxes that touch are one lesion). Of a lesion, only pixels under the foreground mask count. **Normal pixels** are
those under the foreground mask and outside the ground truth.

A **mark** is a place at which a map points: a pixel above 0 whose value is the largest within a square of
`MARK_RADIUS` on either side, a plateau of equal values being one mark at the middle of its pixels. It hits the lesion
on whose pixels (or in whose box) it lies. All lengths are shares of the film's side, so that figures do not depend on
its size.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.histogram import Keys, condensed, distinct, value_keys
from anomaly.evaluation.ranking import Floats

Bools = NDArray[np.bool_]
Size = Literal["small", "medium", "large"]

MARK_RADIUS = 16 / 512
"""How far apart marks are at least, as a share of the film's side: a little over three widths of the smoothing."""
POINTING_TOLERANCE = 15 / 512
"""How far from a lesion the map's peak still counts in the pointing game, as a share of the film's side.

15 pixels are the margin of Zhang et al. (2018), "Top-down neural attention by excitation backprop".
"""
LARGEST_SHARE: dict[Size, float] = {"small": 0.005, "medium": 0.02, "large": math.inf}
"""Share of the foreground below which a lesion is small, medium, large: .5 % and 2 %, the same on all films."""
VALUES_KEPT = 8192
"""So many distinct values of a lesion are kept as they are; more are condensed to about as many."""

_EXACT_RANKS = 32
_RANK_STEP = 1.03


@dataclass(frozen=True)
class Lesion:
    """One lesion: 4 bytes a pixel, 8 where values are tied, and at most about 100 KB."""

    keys: Keys  # (k,) of its pixels' values under the mask, rising
    counts: NDArray[np.float32]  # (k,) pixels of each value
    area: int  # pixels under the mask
    size: Size
    peak: float  # share of the map's largest pixels that lie in it: 0 or 1 unless several are equally large
    pointed: float  # the same within `POINTING_TOLERANCE` of it
    mark: float  # value of the highest mark in it, -1 if it has none


@dataclass(frozen=True)
class FilmLocalization:
    """One film: its lesions, and about 1.4 KB for the values of its normal pixels and 4 bytes for every false mark."""

    lesions: tuple[Lesion, ...]
    hidden: int  # lesions that lie outside the foreground mask altogether
    n_normal: int  # normal pixels
    values: NDArray[np.float32]  # (r,) falling: the normal values of ranks `kept_ranks(n_normal)`
    false_marks: NDArray[np.float32]  # (f,) rising: values of the marks that lie in no lesion
    roc_auc: float | None  # of its pixels
    best_dice: float | None  # the highest Dice coefficient that any threshold reaches on it

    def normals_from(self, values: Floats) -> Floats:
        """About how many normal pixels lie at or above each value, interpolated between ranks: (v,) -> (v,)."""
        if not self.n_normal:
            return np.zeros(len(values))
        kept = len(self.values) - np.searchsorted(self.values[::-1], values, "left")  # of the kept ones, those >= value
        upper, lower = np.maximum(kept - 1, 0), np.minimum(kept, len(self.values) - 1)
        drop = self.values[upper].astype(np.float64) - self.values[lower]
        share = np.divide(self.values[upper] - values, drop, out=np.zeros(len(values)), where=drop > 0)
        ranks = kept_ranks(self.n_normal)
        between = ranks[upper] + share * np.maximum(ranks[lower] - ranks[upper] - 1, 0)
        inner: Floats = np.where(kept > 0, between, 0.0)
        return np.where(kept == len(self.values), float(self.n_normal), inner)


def measure_film(map: NDArray[Any], ground_truth: Bools, mask: Bools) -> tuple[FilmLocalization, Keys]:
    """What is kept of a film, and the keys of its normal pixels' values in rising order.

    map  (H, W) finite, at least 0 under the mask.    ground_truth  (H, W) bool, nowhere set for a normal film.    mask
    (H, W) bool: the foreground. Raises ValueError on other values and on shapes that differ.
    """
    if map.ndim != 2 or not map.shape == ground_truth.shape == mask.shape:
        raise ValueError(
            f"map {map.shape}, ground truth {ground_truth.shape} and mask {mask.shape} must have one shape, (H, W)"
        )
    if ground_truth.dtype != np.bool_ or mask.dtype != np.bool_:
        raise ValueError(f"ground truth {ground_truth.dtype} and mask {mask.dtype} must both be bool")
    values = np.where(mask, map, 0).astype(np.float32)
    normal = np.sort(value_keys(values[mask & ~ground_truth]))
    components, boxes = _components(ground_truth)
    marked, marks = _marks(values, components)
    lesions = []
    for number, box in enumerate(boxes, start=1):
        one = components[box] == number
        keys = np.sort(value_keys(values[box][one & mask[box]]))
        if len(keys):
            peak, pointed = _pointing(values, one, box, mask)
            mark = float(marks[marked == number].max(initial=-1))
            lesions.append(Lesion(*_kept(keys), len(keys), _size(len(keys) / int(mask.sum())), peak, pointed, mark))
    roc_auc, dice = _film_figures(normal, np.sort(value_keys(values[ground_truth & mask])))
    film = FilmLocalization(
        lesions=tuple(lesions),
        hidden=len(boxes) - len(lesions),
        n_normal=len(normal),
        values=normal[len(normal) - kept_ranks(len(normal))].view(np.float32),
        false_marks=np.sort(marks[marked == 0]),
        roc_auc=roc_auc,
        best_dice=dice,
    )
    return film, normal


def _components(ground_truth: Bools) -> tuple[NDArray[np.int32], list[tuple[slice, slice]]]:
    """The number of each pixel's lesion from 1 on, 0 for none, (H, W); and the rectangle around each lesion."""
    if not ground_truth.any():
        return np.zeros(ground_truth.shape, np.int32), []
    import cv2

    pixels = ground_truth.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels)  # most of a film holds no lesion, and takes time
    inside = (slice(top, top + height), slice(left, left + width))
    components = np.zeros(ground_truth.shape, np.int32)
    _, components[inside], stats, _ = cv2.connectedComponentsWithStats(pixels[inside], connectivity=8)
    boxes = [
        (slice(top + y, top + y + height), slice(left + x, left + x + width))
        for x, y, width, height, _ in stats[1:].tolist()
    ]
    return components, boxes


def _marks(values: NDArray[np.float32], components: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The lesion on which each mark of a film lies, 0 for none, and its value: (m,) and (m,)."""
    import cv2

    reach = max(1, round(max(values.shape) * MARK_RADIUS))
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    highest = cv2.dilate(values, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    peaks = (values == highest) & (values > 0)
    _, plateaus = cv2.connectedComponents(peaks.astype(np.uint8), connectivity=8)
    places = np.flatnonzero(peaks)
    number = plateaus.ravel()[places]
    places = places[np.argsort(number, kind="stable")]  # plateau by plateau, each in the order of reading
    pixels = np.bincount(number)[1:]
    middles = places[np.cumsum(pixels) - pixels + pixels // 2]
    return components.ravel()[middles], values.ravel()[middles]


def _pointing(values: NDArray[np.float32], lesion: Bools, box: tuple[slice, slice], mask: Bools) -> tuple[float, float]:
    """Which share of the map's largest pixels lies in a lesion, and which within the tolerance of it.

    lesion  its pixels within the rectangle around it.
    """
    import cv2

    peak = (values == values[mask].max()) & mask
    total = int(peak.sum())
    tolerance = max(values.shape) * POINTING_TOLERANCE
    reach = math.ceil(tolerance)
    (top, bottom), (left, right) = ((max(0, side.start - reach), side.stop + reach) for side in box)
    near = peak[top:bottom, left:right]
    if not near.any():
        return 0.0, 0.0
    around = np.ones(near.shape, np.uint8)
    rows, columns = (slice(side.start - low, side.stop - low) for side, low in zip(box, (top, left), strict=True))
    around[rows, columns] = ~lesion
    distance = cv2.distanceTransform(around, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return int((near & (around == 0)).sum()) / total, int((near & (distance <= tolerance)).sum()) / total


def _size(share: float) -> Size:
    """The class of a lesion by its share of the foreground."""
    return next(size for size, limit in LARGEST_SHARE.items() if share < limit)


def _kept(rising: Keys) -> tuple[Keys, NDArray[np.float32]]:
    """The values of a lesion and their counts, condensed where there are more than `VALUES_KEPT`."""
    keys, counts = distinct(rising)
    if len(keys) > VALUES_KEPT:
        keys, counts = condensed(keys, counts, finest=1 / 1024, coarsest=1 / VALUES_KEPT)
    if len(keys) == len(rising):
        return keys, np.broadcast_to(np.float32(1), keys.shape)  # takes no memory
    return keys, counts.astype(np.float32)


def kept_ranks(count: int) -> NDArray[np.int64]:
    """The ranks, 1 for the largest, that are kept of so many values: the first 32, then each 3 % further, the last."""
    if count <= _EXACT_RANKS:
        return np.arange(1, count + 1)
    steps = int(math.log(count / _EXACT_RANKS) / math.log(_RANK_STEP))
    further = np.floor(_EXACT_RANKS * _RANK_STEP ** np.arange(1, steps + 1)).astype(np.int64)
    return np.unique(np.r_[np.arange(1, _EXACT_RANKS + 1), further, count])


def _film_figures(normal: Keys, abnormal: Keys) -> tuple[float | None, float | None]:
    """The ROC-AUC and the best Dice coefficient of one film's pixels, from their keys in rising order."""
    if not len(abnormal):
        return None, None
    upto = len(normal) - np.searchsorted(normal, abnormal, "left")  # normal pixels at or above each abnormal one
    above = len(normal) - np.searchsorted(normal, abnormal, "right")
    hits = len(abnormal) - np.searchsorted(abnormal, abnormal, "left")
    dice = float((2 * hits / (hits + upto + len(abnormal))).max())
    return (1 - float((upto + above).mean()) / 2 / len(normal) if len(normal) else None), dice
