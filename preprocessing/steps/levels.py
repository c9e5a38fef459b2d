"""Grey levels under a mask: stretched, equalized as a whole or by tiles, or replaced by their local contrast."""

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.steps.reduction import Mask, Pixels, counted, mapped

SD_FLOOR, SD_TOP = 0.01, 0.5  # of levels in [0, 1]: well below the one is no contrast, above the other is none possible


def equalize(film: Pixels, mask: Mask) -> Pixels:
    """Equalise the histogram of the levels under `mask`; outside it the film becomes 0.

    The levels' cumulated counts are mapped to 0..full range, the darkest level to 0 and left out of the scaling: so
    does cv2.equalizeHist, which has no mask and knows 8 bit alone. In 8 bit rare neighbouring levels merge; in 16 bit,
    where there is room, none do: each keeps a level of its own, in its order. A flat film or an empty mask gives zeros.

    >>> equalize(np.array([[10, 10, 11, 90]], np.uint8), np.ones((1, 4), bool))
    array([[  0,   0, 128, 255]], dtype=uint8)
    """
    top = np.iinfo(film.dtype).max
    counts = counted(film, mask)
    levels = np.flatnonzero(counts)
    if len(levels) < 2:
        return np.zeros_like(film)
    counts = counts[levels]
    shares = (np.cumsum(counts) - counts[0]) / (counts.sum() - counts[0])
    wanted = np.rint(top * shares).astype(np.int64)
    if film.dtype != np.uint8:
        order = np.arange(len(levels))
        wanted = np.maximum.accumulate(wanted - order) + order  # at least one above the level before,
        wanted = np.minimum(wanted, top - order[::-1])  # and leaving one for each to come
    lut = np.zeros(top + 1, film.dtype)
    lut[levels] = wanted
    return mapped(film, lut) * mask


def clahe(film: Pixels, mask: Mask, *, clip: float = 3.0, tiles: int = 8) -> Pixels:
    """Equalise the levels under `mask` adaptively, with limited contrast (CLAHE); outside it the film becomes 0.

    The film is parted into `tiles` x `tiles` tiles (fewer on a film of fewer pixels a side). The levels of a tile that
    lie under the mask are counted in 256 bins between the darkest and the brightest level under the whole mask. What a
    bin holds beyond `clip` times its even share is spread evenly over all bins. The cumulated counts, joined by
    straight lines, are the tile's curve. A pixel is mapped by the curves of the four tiles around it, blended
    bilinearly, each weighing as much as there is mask in it: tiles beside the hand have no say. The darkest level under
    the mask becomes 0, the brightest the type's largest.

    A curve is read at the pixel's exact level, so 8 and 16 bit have one mathematics, and 16 bit keeps its levels
    (cv2.createCLAHE knows no mask, and its limit is a count per level, at least 1: in 16 bit nothing is ever clipped).
    What lies outside the mask has no influence; nor have gain and offset of the film's levels. A flat film or an empty
    mask gives zeros. The settings are the paper's, which none of its reported runs used; the method is Zuiderveld's
    (Graphics Gems IV, 1994).

    >>> clahe(np.array([[10, 20, 90, 250]], np.uint16), np.array([[True, True, True, False]]), tiles=1)
    array([[    0,  8672, 65535,     0]], dtype=uint16)
    """
    inside = film[mask]
    low, high = (int(inside.min()), int(inside.max())) if inside.size else (0, 0)
    if low == high:
        return np.zeros_like(film)
    above = (np.clip(film, low, high).astype(np.int32) - low) * 256
    bins = np.minimum(above // (high - low), 255)  # (H, W), in integers, so that a gain moves no level's bin
    within = (above - bins * (high - low)) / (high - low)  # how far into its bin a level lies, 0 to 1

    (row, top, lower), (column, left, right) = (_tiles(side, tiles) for side in film.shape)
    down, across = int(row[-1]) + 1, int(column[-1]) + 1
    tile = row[:, None] * across + column
    counts = np.bincount((tile * 256 + bins)[mask], minlength=down * across * 256).reshape(down, across, 256)
    totals = counts.sum(axis=2, keepdims=True)
    kept = np.minimum(counts, clip / 256 * totals)
    kept += (totals - kept.sum(axis=2, keepdims=True)) / 256
    # The curves at the 257 ends of the bins rise to their tile's total, not to 1: blended so, each has its weight.
    curves = np.concatenate([np.zeros_like(kept[..., :1]), np.cumsum(kept, axis=2)], axis=2)

    shares = np.zeros(film.shape)
    below, beside = np.minimum(top + 1, down - 1), np.minimum(left + 1, across - 1)
    for first in np.unique(top):  # the rows between two rows of tiles; all rows at once would leave the cache
        rows = slice(*np.searchsorted(top, (first, first + 1)))
        upper, under = curves[first], curves[below[rows.start]]
        blended = upper + lower[rows, None, None] * (under - upper)  # (rows, tiles across, 257)
        starts = np.arange(len(blended))[:, None] * (across * 257) + bins[rows]
        for share, of in ((1 - right, left), (right, beside)):
            at = starts + of * 257
            begin = blended.take(at)
            shares[rows] += share * (begin + within[rows] * (blended.take(at + 1) - begin))
        ends = blended[..., -1]
        shares[rows] /= np.maximum(1e-9, ends[:, left] * (1 - right) + ends[:, beside] * right)  # 0 far from the mask
    return np.where(mask, np.rint(np.iinfo(film.dtype).max * shares), 0).astype(film.dtype)


def stretch(film: Pixels, mask: Mask, *, black: int | None = None) -> Pixels:
    """Map the levels under `mask`, darkest to brightest, to the full range of the film's type; outside it becomes 0.

    black   the level that becomes 0 in place of the darkest, where it is darker: what the film shows as black beside
            the mask, from which tissue keeps its distance

    A flat film or an empty mask gives zeros.

    >>> stretch(np.array([[10, 20, 30, 250]], np.uint8), np.array([[True, True, True, False]]))
    array([[  0, 128, 255,   0]], dtype=uint8)
    """
    inside = film[mask]
    low, high = (int(inside.min()), int(inside.max())) if inside.size else (0, 0)
    if low == high:
        return np.zeros_like(film)
    low = low if black is None else min(low, black)
    top = np.iinfo(film.dtype).max
    lut = np.clip(np.rint((np.arange(top + 1) - low) * (top / (high - low))), 0, top).astype(film.dtype)
    return mapped(film, lut) * mask


def local_contrast(film: Pixels, mask: Mask, *, clip: float = 2.0, tiles: int = 8, sigma: float = 0.045) -> Pixels:
    """Replace the levels under `mask` by their local contrast on a fixed logarithmic scale; outside it becomes 0.

    The stretched levels are equalised adaptively (CLAHE: `tiles` x `tiles` tiles, limit `clip`) and brought to [0, 1].
    Local contrast is their standard deviation s in a Gaussian window around each pixel, `sigma` of the film's longer
    side wide (one standard deviation), over pixels under the mask alone: the outline is no edge. The film becomes

        log(1 + s / SD_FLOOR) / log(1 + SD_TOP / SD_FLOOR)

    of its type's largest level, one scale for all films: how much contrast a film has is what tells it apart. What
    lies outside the mask has no influence; nor, but for rounding, have gain and offset of the film's levels. A flat
    film or an empty mask gives zeros. CLAHE's limit is a whole number of pixels, at least one: where a tile has fewer
    than 256 / `clip`, as at 64 px, it limits less than set.

    >>> film = np.zeros((16, 64), np.uint8)
    >>> film[:, 32::2] = 200  # flat, then striped
    >>> contrast = local_contrast(film, np.ones((16, 64), bool))
    >>> contrast[8, 0], contrast[8, 63] > 200
    (np.uint8(0), np.True_)
    """
    top = np.iinfo(film.dtype).max
    levels = np.rint(stretch(film, mask) * (255 / top)).astype(np.uint8)
    if not levels.any():
        return np.zeros_like(film)
    # In 8 bit whatever the film's depth: OpenCV's limit is a count per level, so with 65536 levels nothing is clipped
    # and noise is equalised as if it were anatomy. The outside is filled with the mean under the mask: of zeros the
    # tiles along the outline would count a level that the tissue lacks; the nearest pixel's level is hardly better.
    filled = np.where(mask, levels, np.rint(levels[mask].mean())).astype(np.uint8)
    equalized = np.asarray(cv2.createCLAHE(clip, (tiles, tiles)).apply(filled)) / 255 - 0.5
    inside = mask.astype(np.float64)
    moments = np.dstack([inside, inside * equalized, inside * equalized**2])  # (H, W, 3)
    weight, first, second = np.moveaxis(_smoothed(moments, sigma * max(film.shape)), 2, 0)[:, mask]  # (n,) each
    sd = np.sqrt(np.maximum(0, second / weight - (first / weight) ** 2))
    out = np.zeros_like(film)
    out[mask] = np.rint(top * np.minimum(1, np.log1p(sd / SD_FLOOR) / np.log1p(SD_TOP / SD_FLOOR)))
    return out


def _tiles(side: int, tiles: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Part a side into tiles: give each pixel's own tile, the first of the two it lies between, the second's share."""
    tiles = min(tiles, side)
    place = np.clip((np.arange(side) + 0.5) * tiles / side - 0.5, 0, tiles - 1)
    first = np.minimum(place.astype(np.intp), max(0, tiles - 2))
    return np.arange(side) * tiles // side, first, place - first


def _smoothed(fields: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Blur (H, W, C) by a Gaussian of `sigma` pixels; zeros lie around.

    A wide one is applied to averages of cells a quarter of `sigma` wide, and interpolated: at 512 pixels a side ten
    times as fast.
    """
    height, width, _ = fields.shape
    cell = max(1, int(sigma / 4))
    cells = -(-width // cell), -(-height // cell)
    averages = cv2.resize(fields, cells, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(averages, (0, 0), sigma / cell, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), np.float64)
