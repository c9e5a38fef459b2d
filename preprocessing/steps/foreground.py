"""The limb on its background: its box and its mask."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.steps.reduction import (
    CONTRAST,
    REDUCED,
    Box,
    Copies,
    Levels,
    Mask,
    Pixels,
    blurred,
    counted,
    flattened,
    median,
    otsu,
    peeled,
    percentiles,
    reduced,
)

OUTLINED = 160  # pixels of the longer side on which the outline of a mask is refined
BRIGHT = 0.4  # of the way from air to Otsu's level: from there on all is limb, however much brighter bone is
WINDOW = 0.12  # share of the longer side within which air and limb have one level each
SOLID = 0.93  # share of its convex hull that a plate fills, and no limb
FAINT = 0.015  # share of what is found that lies beyond the bright part, if that left faint tissue out
STEEP = 0.2, 0.9  # its outline's gradient as a share of its level above air, at least; and of a trunk, at most
VARY = 0.6  # how much its levels vary, as such a share, at least
UNEVEN = 0.55  # how much those of the air may, as such a share
MARKER = 0.15  # share of it that may be bright
EVEN = 0.75  # share of the air beside a trunk that has no gradient, at least
TRUNK = 0.08  # the same of a trunk, on which more than faint tissue is left out
FILLED = 0.53  # share of the film that a trunk fills


def find_hand(film: Pixels, *, margin: float = 0.05, copies: Copies | None = None) -> Box | None:
    """Find the box of the hand, or of both hands, on an upright carrier.

    The hand is the largest of what stands out of the background, frames peeled off; what is half as large belongs
    to it, side markers do not. `margin` widens the box on every side by this share of its longer side, within the film.
    Returns (x0, y0, x1, y1), the last two exclusive, or None where nothing stands out. `copies` are those of other
    steps, to be shared.

    >>> film = np.zeros((64, 64), np.uint8)
    >>> film[20:60, 28:36] = film[36:44, 16:48] = 200
    >>> find_hand(film, margin=0.0), find_hand(film, margin=0.1)
    ((15, 19, 49, 61), (11, 15, 53, 64))
    """
    small, scale = (Copies() if copies is None else copies).of(film)
    blob = _blob(small)
    if blob is None:
        return None
    x, y, width, height = cv2.boundingRect(blob[0].astype(np.uint8))
    extra = margin * max(width, height)
    x0, y0 = max(0.0, x - extra) / scale, max(0.0, y - extra) / scale
    x1, y1 = (x + width + extra) / scale, (y + height + extra) / scale
    return round(x0), round(y0), min(film.shape[1], round(x1)), min(film.shape[0], round(y1))


def foreground(
    film: Pixels, *, method: Literal["local", "grabcut", "otsu", "none"] = "local", iterations: int = 2
) -> Mask | None:
    """Separate the hand from its background.

    "otsu" parts them at one level; "local" and "grabcut" refine the outline of that mask on a copy of at most OUTLINED
    pixels a side: by a level half way between air and limb on either side of it, read between the copy's pixels, or by
    GrabCut in so many `iterations`, with OpenCV's random numbers seeded. The mask depends on the film alone. "none"
    takes all of the film.

    Returns (H, W) bool without holes, or None where no mask is plausible (under 3 % or over 97 % of the film).

    >>> film = np.full((64, 64), 30, np.uint8)
    >>> film[20:60, 28:36] = film[36:44, 16:48] = 200
    >>> mask = foreground(film)
    >>> bool(mask[film == 200].all()), mask[[0, -1]].any()
    (True, np.False_)
    """
    if method == "none":
        return np.ones(film.shape, bool)
    small, scale = reduced(film, REDUCED if method == "otsu" else OUTLINED)
    blob = _blob(small)
    if blob is None:
        return None
    mask, level = blob
    if method == "grabcut":
        mask = _grabcut(small, mask, level, iterations)
    inside = _inside(small, mask, level) if method == "local" else mask.astype(np.float32)
    if not 0.03 <= (inside >= 0.5).mean() <= 0.97:
        return None
    if scale < 1:
        inside = np.asarray(cv2.resize(inside, (film.shape[1], film.shape[0]), interpolation=cv2.INTER_LINEAR))
    return np.asarray(inside >= 0.5)


def largest(mask: Mask) -> Mask | None:
    """Keep the largest component and those half as large, holes filled; None under 3 % or over 97 % of the film.

    >>> mask = np.zeros((10, 20), bool)
    >>> mask[2:8, 2:8] = mask[1:9, 10:18] = mask[0, 0] = True
    >>> mask[4, 13] = False  # a hole
    >>> kept = largest(mask)
    >>> bool(kept[0, 0]), bool(kept[4, 13]), int(kept.sum())
    (False, True, 100)
    """
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    areas = np.bincount(labels.ravel())[1:]  # a quarter of the time of OpenCV's statistics
    kept = np.concatenate([[False], areas * 2 >= areas.max()]).take(np.asarray(labels, np.int32))
    contours, _ = cv2.findContours(kept.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0
    return np.asarray(filled) if 0.03 <= filled.mean() <= 0.97 else None


def _blob(small: Levels) -> tuple[Mask, int | None] | None:
    """Give the largest component that stands out, with those at least half as large; None where nothing does.

    A component as solid as its convex hull is a plate rather than a limb: the limb is then looked for within it. None
    also where air can't be told from tissue. Beside it stands the level that parts faint tissue from air, where there
    is faint tissue.
    """
    inner, rows, columns = peeled(small)
    smooth = flattened(blurred(inner))
    found = largest(_brighter(smooth, np.ones(inner.shape, bool)))
    if found is None:
        return None
    if _solidity(found) > SOLID:
        reach = max(3, max(small.shape) // 20) | 1
        plate = cv2.erode(found.astype(np.uint8), np.ones((reach, reach), np.uint8), borderValue=1) > 0
        within = largest(_brighter(smooth, plate))
        if within is not None and 0.1 < within.sum() / found.sum() < 0.8:
            found = within
    faint, level = _faint(smooth, found), None
    if faint is not None:
        found, level = faint
        if not found.any():
            return None
    blob = np.zeros(small.shape, bool)
    blob[rows, columns] = found
    return blob, level


def _faint(smooth: Levels, bright: Mask) -> tuple[Mask, int] | None:
    """Look for faint tissue that Otsu's level leaves out beside bright bone, thick parts, or a trunk: toes, an arm.

    What is dark is parted once more. What stands out of the air so, and reaches further than the bright part, is
    tissue where its outline is an edge (a slope of the background has none), where its levels vary (those of a plate
    do not), and where it holds little that is bright itself (a marker does). Of a film that it nearly fills more may be
    bright; is the air uneven there, it cannot be told from tissue, and the film is better left whole.

    Returns what was found with the bright part, an empty mask for a film to be left whole, and the level that parts it
    from air; None where nothing is faint.
    """
    level = otsu(smooth)
    below = None if level is None else otsu(smooth[smooth <= level])
    if level is None or below is None:
        return None
    first, dark, third = percentiles(smooth[smooth <= below], (0.25, 0.5, 0.75))
    reach = 2 * max(2, max(smooth.shape) // 40) + 1
    apart = cv2.dilate(bright.astype(np.uint8), np.ones((reach, reach), np.uint8)) == 0
    lighter = smooth > dark + max(0.3 * (below - dark), third - dark + 1)
    found = largest(lighter) if (lighter & apart).sum() >= FAINT * bright.sum() else None
    if found is None:
        return None
    found = _joined(found, bright)
    beyond = found & apart
    outline = beyond & (cv2.erode(found.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    if beyond.sum() < FAINT * found.sum() or not outline.any():
        return None
    inside = smooth[beyond]
    low, middle, high = percentiles(inside, (0.15, 0.5, 0.85))
    gap = max(1.0, float(middle) - dark)
    gradient = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    steep, uneven = float(median(gradient[outline])) / gap, float(third - first) / gap
    if gap < CONTRAST or steep < STEEP[0] or high - low < VARY * gap:
        return None
    if uneven <= UNEVEN and (inside > dark + 0.3 * (level - dark)).mean() <= MARKER:
        return (found, below) if found.mean() >= FILLED or _solidity(found) <= SOLID else None
    trunk = found.mean() >= FILLED and steep <= STEEP[1] and beyond.sum() >= TRUNK * found.sum()
    if not trunk or (gradient[~found] < CONTRAST - 1).mean() < EVEN:
        return None
    return found if uneven <= UNEVEN / 2 else np.zeros_like(found), below


def _solidity(mask: Mask) -> float:
    """Give the share of its convex hull that a mask fills."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), cv2.convexHull(np.concatenate(contours)), 1)
    return float(mask.sum() / hull.sum())


def _joined(found: Mask, bright: Mask) -> Mask:
    """Drop from what was found what hangs on the bright part by a thread, markers for instance."""
    thick = max(3, max(found.shape) // 50) | 1
    core = cv2.erode((found | bright).astype(np.uint8), np.ones((thick, thick), np.uint8), borderValue=1)
    count, labels = cv2.connectedComponents(core, connectivity=4)
    holds = np.zeros(count, bool)
    holds[labels[bright & (core > 0)]] = True
    kept = holds.take(np.asarray(labels, np.int32))
    return bright | (found & (cv2.dilate(kept.astype(np.uint8), np.ones((thick, thick), np.uint8)) > 0))


def _brighter(smooth: Levels, where: Mask) -> Mask:
    """Part off what stands out of its background.

    Soft tissue, fingertips most of all, is far fainter than bone, so Otsu's level only tells what is background. The
    level taken is 0.3 of the way from the background's median to Otsu's; more where the background is uneven: up to 0.6
    for what its upper half spreads, up to 0.45 for its lower half, which is as often a limb's soft tissue (the median)
    and the background (below) as it is a plate and the film around it. What Otsu parts by less than CONTRAST is noise.
    """
    inside = smooth[where]
    level = otsu(inside)
    if level is None:
        return np.zeros(smooth.shape, bool)
    counts = np.cumsum(counted(inside))
    parted = int(counts[level])
    ranks = *(int(share * parted) for share in (0.16, 0.5, 0.6)), (parted + inside.size) // 2
    lower, dark, upper, bright = (int(found) for found in np.searchsorted(counts, ranks, side="right"))
    if bright - dark < CONTRAST:  # above `upper`, it is soft tissue
        return np.zeros(smooth.shape, bool)
    way = level - dark
    uneven = max(min(0.45 * way, 2 * (dark - lower)), min(0.6 * way, 2 * (upper - dark)))
    return where & (smooth > dark + max(0.3 * way, uneven))


def _inside(small: Levels, mask: Mask, level: int | None) -> NDArray[np.float32]:
    """Refine a mask in a band along its outline; gives (h, w) values of 0.5 and above within it, less beside it.

    A pixel of the band is within the mask where it is brighter than half way between the mean levels of the air and of
    the limb around it. Levels count from the median of the air beside it to BRIGHT of the way to Otsu's, or to the
    `level` that parts faint tissue from air: bone beside faint soft tissue does not move the outline. Between pixels
    the outline lies where interpolated values cross 0.5, so a film several times as large gets no steps.
    """
    even, unit, levels = flattened(small), max(small.shape) / 64, mask.astype(np.uint8)
    core = cv2.erode(levels, _disc(unit / 3)).view(bool)
    air = cv2.dilate(levels, _disc(1.5 * unit)) == 0
    beside = air & (cv2.dilate(levels, np.ones((2 * round(6 * unit) + 1,) * 2, np.uint8)) > 0)
    if not core.any() or not beside.any():
        return mask.astype(np.float32)
    dark = percentiles(even[beside], (0.5,))[0]
    level = level or otsu(even)
    if level is not None and level < dark + CONTRAST:  # it parts a plate from what is around it
        level = otsu(even[even > dark])
    if level is None:
        return mask.astype(np.float32)
    shares = np.minimum((np.arange(256) - dark) / max(1, level - dark), BRIGHT).astype(np.float32)[even]
    inside = shares - (_mean_around(shares, air, 0.0) + _mean_around(shares, core, BRIGHT)) / 2
    found = largest(((inside >= 0) | core) & ~air)
    if found is None:
        return mask.astype(np.float32)
    least = np.float32(0.02)  # what was dropped, filled or certain is so between pixels as well
    inside = np.where(found, np.maximum(inside, np.where(core, 5 * least, least)), np.minimum(inside, -least))
    return np.asarray(inside + np.float32(0.5), np.float32)


def _mean_around(values: NDArray[np.float32], where: Mask, otherwise: float) -> NDArray[np.float32]:
    """Give the mean of what lies at `where` within a window around each pixel; another value where nothing does."""
    side = int(WINDOW * max(values.shape)) | 1
    weight = where.astype(np.float32)
    sums, weights = (np.asarray(cv2.blur(field, (side, side)), np.float32) for field in (values * weight, weight))
    return np.where(weights > 0.01, sums / np.maximum(weights, np.float32(0.01)), np.float32(otherwise))


def _grabcut(small: Levels, mask: Mask, level: int | None, iterations: int) -> Mask:
    """Refine a mask by GrabCut, in a band along its outline; where that finds nothing sensible the mask stays.

    GrabCut models both sides by their levels, and would take faint soft tissue for background beside bright bone. So
    levels are cut off half way to Otsu's, or to the `level` that parts faint tissue from air: above that all is limb.
    """
    small = flattened(small)
    background = small[~mask]
    level, dark = level or otsu(small), float(np.median(background)) if background.size else 0.0
    if level is None or not background.size:
        return mask
    shown = np.clip(40 + (small - dark) * (400 / max(1.0, level - dark)), 0, 255).astype(np.uint8)
    unit = max(small.shape) / 64
    trimap = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[cv2.erode(mask.astype(np.uint8), _disc(unit / 3)) > 0] = cv2.GC_FGD
    trimap[cv2.dilate(mask.astype(np.uint8), _disc(unit)) == 0] = cv2.GC_BGD
    if not (trimap == cv2.GC_BGD).any() or not (trimap == cv2.GC_FGD).any():
        return mask
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(cv2.merge([shown] * 3), trimap, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)
    found = largest(np.asarray(trimap % 2 == 1))
    return mask if found is None else found


def _disc(radius: float) -> Levels:
    side = 2 * max(1, round(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)
