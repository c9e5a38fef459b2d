"""The preprocessing steps, each a pure function of a film.

A film is (H, W), uint8 or uint16, larger is brighter; a mask is (H, W) bool. No step changes its input, none depends on
chance or on earlier films, and a flat film is a valid film. Decisions (inverted? where is the carrier, the hand, the
foreground?) are taken on an 8-bit copy of at most REDUCED pixels a side: GrabCut knows no other depth, and a decision
needs no more. The film itself keeps its depth throughout.

Geometry has one convention: integer coordinates are pixel centres, so a film W pixels wide reaches from -0.5 to
W - 0.5, and a (2, 3) matrix maps (x, y) of one film to (x, y) of another.
"""

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # (H, W) uint8 | uint16
Mask = NDArray[np.bool_]  # (H, W)
Matrix = NDArray[np.float64]  # (2, 3)
Levels = NDArray[np.uint8]  # (h, w) the 8-bit reduced copy
Corners = NDArray[np.float32]  # (4, 2) of (x, y)
Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the last two exclusive

REDUCED = 256  # pixels of the longer side on which carrier and hand are looked for
GRABCUT = 160  # the same for GrabCut, by far the slowest step
BACKGROUND = 64  # the same for the background, which is smooth
CONTRAST = 8  # levels of 255, stretched: what differs by less is one thing
SD_FLOOR, SD_TOP = 0.01, 0.5  # of levels in [0, 1]: well below the one is no contrast, above the other is none possible

ALONG, ACROSS = np.linspace(0.08, 0.92, 48)[:, None], np.linspace(-1, 1, 7)[:, None]  # where a side is probed


# Inversion ------------------------------------------------------------------------------------------------------------


def is_inverted(film: Pixels, *, carrier: Corners | None = None) -> bool:
    """Tell whether the film shows dark bones on a bright background.

    A hand lies in the middle and the background reaches the rim: a film is inverted where the middle half of what lies
    inside `carrier` (of the whole film without one), frames peeled off, is darker than its rim. Levels alone say
    nothing: a hand on a near-white plate is bright everywhere, yet brighter than its plate. A flat film is not.

    >>> hand = np.full((64, 64), 40, np.uint8)
    >>> hand[20:, 24:40] = 180
    >>> is_inverted(hand), is_inverted(invert(hand))
    (False, True)
    """
    small, scale = _reduced(film)
    if carrier is not None:
        small, _ = rectify(small, (carrier + 0.5) * np.float32(scale) - np.float32(0.5))
    small, _, _ = _peeled(small, slopes=True)
    height, width = small.shape
    edge, quarter = max(1, min(height, width) // 16), max(1, min(height, width) // 4)
    rim = np.ones(small.shape, bool)
    rim[edge:-edge, edge:-edge] = False
    middle = small[quarter:-quarter, quarter:-quarter]
    return middle.size > 0 and float(middle.mean()) < float(np.median(small[rim]))


def invert(film: Pixels) -> Pixels:
    """Swap bright and dark within the range the film uses, so that a 12-bit film stays within its 12 bits.

    >>> invert(np.array([[10, 20, 90]], np.uint16))
    array([[90, 80, 10]], dtype=uint16)
    """
    turned: Pixels = film.max() - (film - film.min())
    return turned


# Geometry -------------------------------------------------------------------------------------------------------------


def find_carrier(
    film: Pixels, *, min_area: float = 0.1, min_rectangularity: float = 0.85, min_support: float = 0.6
) -> Corners | None:
    """Find the image carrier: the plate, or the collimated field, that holds the exposure.

    The film is parted at Otsu's level, at Otsu's of its dark part and of its bright part, and so once more; above and
    below each. The candidates are the smallest rotated rectangles around the parts. One counts where it covers
    `min_area` of the film, where the part's hull fills `min_rectangularity` of it, where edges run along `min_support`
    of each of its sides (the film's own border is no side), and where the film beside it is plain. The best by area,
    rectangularity and edges is taken, not the first.

    Returns (4, 2) float32 corners (x, y) of its outline, clockwise from the top left one once it is upright, or None
    where no rectangle counts, as on a film that its field fills. Corners may lie beside the film.

    >>> film = np.zeros((64, 64), np.uint8)
    >>> film[10:50, 20:60] = 90
    >>> film[20:50, 30:40] = 200
    >>> find_carrier(film)
    array([[20.5, 10.5],
           [58.5, 10.5],
           [58.5, 48.5],
           [20.5, 48.5]], dtype=float32)
    """
    small, scale = _reduced(film)
    blurred = _blurred(small)
    detail = cv2.morphologyEx(blurred, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > CONTRAST
    best, best_score, seen = None, 0.0, set()
    for level in _levels(blurred):
        for binary in (blurred > level, blurred <= level):
            contours, _ = cv2.findContours(binary.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            for contour in contours:
                _, _, width, height = cv2.boundingRect(contour)
                if width * height < min_area * small.size:
                    continue
                hull = cv2.convexHull(contour)
                rectangle = cv2.minAreaRect(hull)
                area = rectangle[1][0] * rectangle[1][1]
                rectangularity = cv2.contourArea(hull) / max(1.0, area)
                if area < min_area * small.size or rectangularity < min_rectangularity or rectangle in seen:
                    continue
                seen.add(rectangle)
                corners = _upright(cv2.boxPoints(rectangle).astype(np.float64))
                sides = _support(small, corners)
                if not sides or min(sides) < min_support or not _holds_the_detail(detail, corners):
                    continue
                score = float(area) ** 0.5 * rectangularity * sum(sides)
                if score > best_score:
                    best, best_score = corners, score
    if best is None:
        return None
    centre = best.mean(axis=0)
    best = centre + (best - centre) * (1 - 1.5 / np.abs(best - centre).max())  # into the carrier, off its blurred edge
    if np.ptp(best[:2, 1]) < 1 and np.ptp(best[1:3, 0]) < 1:  # upright: whole pixels of the film, a slice
        low, high = (best[[0, 2]] + 0.5) / scale
        low, high = np.ceil(low - 1e-3) - 0.5, np.floor(high + 1e-3) - 0.5
        low, high = np.maximum(low, -0.5), np.minimum(high, (film.shape[1] - 0.5, film.shape[0] - 0.5))
        return np.array([low, (high[0], low[1]), high, (low[0], high[1])], np.float32)
    return np.asarray((best + 0.5) / scale - 0.5, np.float32)


def rectify(film: Pixels, corners: Corners) -> tuple[Pixels, Matrix]:
    """Turn the carrier with these corners upright and cut it out.

    Returns the carrier (h, w) at the film's own scale, and the matrix from film (x, y) to carrier (x, y). An upright
    carrier on whole pixels is a plain slice; any other is resampled once, bilinearly. Where the carrier leaves the film
    the nearest pixel is repeated; `warp_mask` of a mask of ones tells where.

    >>> film = np.arange(256, dtype=np.uint8).reshape(16, 16)
    >>> carrier, matrix = rectify(film, np.array([[1.5, 2.5], [9.5, 2.5], [9.5, 6.5], [1.5, 6.5]], np.float32))
    >>> bool((carrier == film[3:7, 2:10]).all()), matrix.tolist()
    (True, [[1.0, 0.0, -2.0], [0.0, 1.0, -3.0]])
    """
    top_left, top_right, _, bottom_left = corners.astype(np.float64)
    across, down = top_right - top_left, bottom_left - top_left
    width, height = (max(1, round(float(np.hypot(*side)))) for side in (across, down))
    back = np.stack([across / width, down / height], axis=1)  # (2, 2): one carrier pixel, in film pixels
    origin = top_left + back @ (0.5, 0.5)  # the film's point under the carrier's first pixel
    forward = np.linalg.inv(back)
    matrix = np.hstack([forward, -(forward @ origin)[:, None]])
    x, y = np.rint(origin).astype(int)
    whole = np.allclose(matrix, [[1, 0, -x], [0, 1, -y]], atol=1e-3)
    if whole and x >= 0 and y >= 0 and x + width <= film.shape[1] and y + height <= film.shape[0]:
        return film[y : y + height, x : x + width].copy(), np.array([[1, 0, -x], [0, 1, -y]], np.float64)
    upright = cv2.warpAffine(film, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return upright, matrix


def find_hand(film: Pixels, *, margin: float = 0.05) -> Box | None:
    """Find the box of the hand, or of both hands, on an upright carrier.

    The hand is the largest of what stands out of the background, frames peeled off; what is half as large belongs
    to it, side markers do not. `margin` widens the box on every side by this share of its longer side, within the film.
    Returns (x0, y0, x1, y1), the last two exclusive, or None where nothing stands out.

    >>> film = np.zeros((64, 64), np.uint8)
    >>> film[20:60, 28:36] = film[36:44, 16:48] = 200
    >>> find_hand(film, margin=0.0), find_hand(film, margin=0.1)
    ((15, 19, 49, 61), (11, 15, 53, 64))
    """
    small, scale = _reduced(film)
    blob = _blob(small)
    if blob is None:
        return None
    x, y, width, height = cv2.boundingRect(blob.astype(np.uint8))
    extra = margin * max(width, height)
    x0, y0 = max(0.0, x - extra) / scale, max(0.0, y - extra) / scale
    x1, y1 = (x + width + extra) / scale, (y + height + extra) / scale
    return round(x0), round(y0), min(film.shape[1], round(x1)), min(film.shape[0], round(y1))


def fit(film: Pixels, mask: Mask, size: int) -> tuple[Pixels, Mask, Matrix]:
    """Scale film and mask together to (size, size), aspect kept, centred on zeros.

    The film is averaged over areas when it shrinks, so that nothing aliases, and bilinear when it grows; a mask pixel
    is set where at least half of it was. Returns film, mask and the matrix from the old (x, y) to the new.

    >>> film, mask, matrix = fit(np.full((4, 8), 7, np.uint8), np.ones((4, 8), bool), 4)
    >>> film.tolist()
    [[0, 0, 0, 0], [7, 7, 7, 7], [7, 7, 7, 7], [0, 0, 0, 0]]
    >>> mask.any(axis=1).tolist(), matrix.tolist()
    ([False, True, True, False], [[0.5, 0.0, -0.25], [0.0, 0.5, 0.75]])
    """
    return _placed(film, size), fit_mask(mask, size), fit_matrix(film.shape, size)


def fit_mask(mask: Mask, size: int) -> Mask:
    """Scale a mask as `fit` does.

    >>> fit_mask(np.array([[True, True, False, False], [True, False, False, False]]), 2).tolist()
    [[True, False], [False, False]]
    """
    return _placed(mask.astype(np.uint8) * np.uint8(255), size) >= 128


def fit_matrix(shape: tuple[int, ...], size: int) -> Matrix:
    """Give the matrix of `fit` for a film of this shape; the two scales differ by the rounding to whole pixels.

    >>> fit_matrix((100, 50), 50).tolist()
    [[0.5, 0.0, 11.75], [0.0, 0.5, -0.25]]
    """
    top, left, height, width = _place(shape, size)
    down, across = height / shape[0], width / shape[1]
    return np.array([[across, 0, across / 2 - 0.5 + left], [0, down, down / 2 - 0.5 + top]])


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """Join two maps: first `inner`, then `outer`.

    >>> compose(np.array([[2.0, 0, 0], [0, 2, 0]]), np.array([[1.0, 0, 3], [0, 1, 4]])).tolist()
    [[2.0, 0.0, 6.0], [0.0, 2.0, 8.0]]
    """
    return np.asarray(outer @ np.vstack([inner, (0.0, 0.0, 1.0)]))


def warp_mask(mask: Mask, matrix: Matrix, shape: tuple[int, int]) -> Mask:
    """Carry a mask through `matrix` onto a film of `shape`; what comes from outside the mask's frame is False.

    >>> warp_mask(np.array([[True, False]]), np.array([[1.0, 0, 1], [0, 1, 0]]), (1, 3)).tolist()
    [[False, True, False]]
    """
    levels = mask.astype(np.uint8) * np.uint8(255)
    return np.asarray(cv2.warpAffine(levels, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR) >= 128)


# Foreground -----------------------------------------------------------------------------------------------------------


def foreground(
    film: Pixels, *, method: Literal["grabcut", "otsu", "none"] = "grabcut", iterations: int = 2
) -> Mask | None:
    """Separate the hand from its background.

    Returns (H, W) bool without holes, or None where no mask is plausible (under 3 % or over 97 % of the film); "none"
    takes all of it. GrabCut refines Otsu's mask for so many `iterations`, on a copy of at most GRABCUT pixels a side,
    with OpenCV's random numbers seeded: the mask depends on the film alone.

    >>> film = np.full((64, 64), 30, np.uint8)
    >>> film[20:60, 28:36] = film[36:44, 16:48] = 200
    >>> mask = foreground(film)
    >>> bool(mask[film == 200].all()), mask[[0, -1]].any()
    (True, np.False_)
    """
    if method == "none":
        return np.ones(film.shape, bool)
    small, scale = _reduced(film, GRABCUT if method == "grabcut" else REDUCED)
    mask = _blob(small)
    if mask is None:
        return None
    if method == "grabcut":
        mask = _grabcut(small, mask, iterations)
    if not 0.03 <= mask.mean() <= 0.97:
        return None
    if scale == 1:
        return mask
    grown = cv2.resize(mask.astype(np.float32), (film.shape[1], film.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(grown >= 0.5)


def largest(mask: Mask) -> Mask | None:
    """Keep the largest component and those half as large, holes filled; None under 3 % or over 97 % of the film.

    >>> mask = np.zeros((10, 20), bool)
    >>> mask[2:8, 2:8] = mask[1:9, 10:18] = mask[0, 0] = True
    >>> mask[4, 13] = False  # a hole
    >>> kept = largest(mask)
    >>> bool(kept[0, 0]), bool(kept[4, 13]), int(kept.sum())
    (False, True, 100)
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.concatenate([[False], areas * 2 >= areas.max()])[labels]
    contours, _ = cv2.findContours(kept.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0
    return np.asarray(filled) if 0.03 <= filled.mean() <= 0.97 else None


# Grey levels ----------------------------------------------------------------------------------------------------------


def equalize(film: Pixels, mask: Mask) -> Pixels:
    """Equalise the histogram of the levels under `mask`; outside it the film becomes 0.

    The levels' cumulated counts are mapped to 0..full range, the darkest level to 0 and left out of the scaling: so
    does cv2.equalizeHist, which has no mask and knows 8 bit alone. In 8 bit rare neighbouring levels merge; in 16 bit,
    where there is room, none do: each keeps a level of its own, in its order. A flat film or an empty mask gives zeros.

    >>> equalize(np.array([[10, 10, 11, 90]], np.uint8), np.ones((1, 4), bool))
    array([[  0,   0, 128, 255]], dtype=uint8)
    """
    top = np.iinfo(film.dtype).max
    counts = np.bincount(film[mask], minlength=top + 1)
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
    return np.where(mask, lut[film], 0).astype(film.dtype)


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


def stretch(film: Pixels, mask: Mask) -> Pixels:
    """Map the levels under `mask`, darkest to brightest, to the full range of the film's type; outside it becomes 0.

    A flat film or an empty mask gives zeros.

    >>> stretch(np.array([[10, 20, 30, 250]], np.uint8), np.array([[True, True, True, False]]))
    array([[  0, 128, 255,   0]], dtype=uint8)
    """
    inside = film[mask]
    low, high = (int(inside.min()), int(inside.max())) if inside.size else (0, 0)
    if low == high:
        return np.zeros_like(film)
    top = np.iinfo(film.dtype).max
    lut = np.clip(np.rint((np.arange(top + 1) - low) * (top / (high - low))), 0, top).astype(film.dtype)
    return np.where(mask, lut[film], 0).astype(film.dtype)


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


# The parts ------------------------------------------------------------------------------------------------------------


def _place(shape: tuple[int, ...], size: int) -> tuple[int, int, int, int]:
    """Give where a film of this shape comes to lie in (size, size): top, left, height, width."""
    height, width = (max(1, round(side * size / max(shape))) for side in shape)
    return (size - height) // 2, (size - width) // 2, height, width


def _placed(film: NDArray[Any], size: int) -> NDArray[Any]:
    top, left, height, width = _place(film.shape, size)
    out = np.zeros((size, size), film.dtype)
    by = cv2.INTER_AREA if size < max(film.shape) else cv2.INTER_LINEAR
    out[top : top + height, left : left + width] = cv2.resize(film, (width, height), interpolation=by)
    return out


def _reduced(film: Pixels, side: int = REDUCED) -> tuple[Levels, float]:
    """Give an 8-bit copy of at most `side` pixels a side, with its scale.

    Its levels are stretched, all but one in a thousand at either end: a few burnt pixels must not flatten the rest.
    """
    scale = min(1.0, side / max(film.shape))
    if scale < 1:
        size = max(1, round(film.shape[1] * scale)), max(1, round(film.shape[0] * scale))
        film = cv2.resize(film, size, interpolation=cv2.INTER_AREA)
    counts = np.cumsum(np.bincount(film.ravel()))
    low, high = (int(np.searchsorted(counts, share * film.size, side="right")) for share in (0.001, 0.999))
    levels = (film.astype(np.float32) - low) * (255 / max(1, high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8), scale


def _blurred(small: Levels) -> Levels:
    return np.asarray(cv2.GaussianBlur(small, (0, 0), max(0.5, max(small.shape) / 170)), np.uint8)


def _otsu(levels: Levels) -> int | None:
    """Give Otsu's level (the brighter part lies above it), or None for a flat film."""
    if levels.size == 0 or levels.min() == levels.max():
        return None
    return int(cv2.threshold(levels.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)[0])


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


def _levels(levels: Levels) -> list[int]:
    """Give Otsu's level, Otsu's of the part below it and of the part below that, and likewise above."""
    middle = _otsu(levels)
    if middle is None:
        return []
    below, above = _otsu(levels[levels <= middle]), _otsu(levels[levels > middle])
    lowest = None if below is None else _otsu(levels[levels <= below])
    highest = None if above is None else _otsu(levels[levels > above])
    return [level for level in (lowest, below, middle, above, highest) if level is not None]


def _upright(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Order a rectangle's corners clockwise from the one that is top left after a turn of at most 45 degrees.

    The corners given are pixel centres; those returned are half a pixel further out, the outline.
    """
    centre = points.mean(axis=0)
    points = points[np.argsort(np.arctan2(*(points - centre).T[::-1]))]  # clockwise, as y points down
    sides = np.roll(points, -1, axis=0) - points
    points = np.roll(points, -int(np.argmin(np.abs(np.arctan2(sides[:, 1], sides[:, 0])))), axis=0)
    across, down = points[1] - points[0], points[3] - points[0]
    across, down = across / max(1e-6, np.hypot(*across)) / 2, down / max(1e-6, np.hypot(*down)) / 2
    return np.asarray(points + np.array([-across - down, across - down, across + down, down - across]))


def _support(small: Levels, corners: NDArray[np.float64]) -> list[float]:
    """Give, for each side of a rectangle that lies within the film, the share of it that runs along an edge.

    A side that no straight edge follows has none, however much it crosses: the profiles across it have no common step.
    """
    height, width = small.shape
    reach = max(1.5, 0.015 * max(small.shape))
    sides = np.roll(corners, -1, axis=0) - corners  # (4, 2)
    normals = np.stack([-sides[:, 1], sides[:, 0]], axis=1) / np.maximum(1e-6, np.hypot(*sides.T))[:, None]
    along = corners[:, None] + ALONG * sides[:, None]  # (4, points along, 2)
    points = along[:, :, None] + reach * ACROSS * normals[:, None, None]  # (4, points along, points across, 2)
    inside = ((points >= 0) & (points <= (width - 1, height - 1))).all(axis=(2, 3))  # (4, points along)
    flat = points.reshape(4, -1, 2).astype(np.float32)
    profiles = np.asarray(cv2.remap(small, flat[..., 0], flat[..., 1], cv2.INTER_LINEAR)).reshape(points.shape[:3])
    supports = []
    for on_film, profile in zip(inside, profiles, strict=True):
        if on_film.mean() >= 0.3:
            common = np.ptp(np.median(profile[on_film], axis=0)) > CONTRAST / 2
            supports.append(float((np.ptp(profile[on_film], axis=1) > CONTRAST).mean()) if common else 0.0)
    return supports


def _holds_the_detail(detail: Mask, corners: NDArray[np.float64]) -> bool:
    """Tell whether the film beside a rectangle is plainer than within it: half of the exposed field is no carrier."""
    line = max(3, max(detail.shape) // 20)
    points = [np.rint(corners).astype(np.int32)]
    filled = cv2.fillPoly(np.zeros(detail.shape, np.uint8), points, 1)
    edges = cv2.polylines(np.zeros(detail.shape, np.uint8), points, True, 1, line)
    inside, beside = (filled == 1) & (edges == 0), (filled == 0) & (edges == 0)
    return int(detail[beside].sum()) < 0.2 * int(detail[beside | inside].sum())


def _blob(small: Levels) -> Mask | None:
    """Give the largest component that stands out, with those at least half as large; None where nothing does.

    A component as solid as its convex hull is a plate rather than a hand: the hand is then looked for within it.
    """
    peeled, rows, columns = _peeled(small)
    blurred = _flattened(_blurred(peeled))
    found = largest(_brighter(blurred, np.ones(peeled.shape, bool)))
    if found is None:
        return None
    contours, _ = cv2.findContours(found.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.fillConvexPoly(np.zeros(found.shape, np.uint8), cv2.convexHull(np.concatenate(contours)), 1)
    if found.sum() > 0.93 * hull.sum():
        reach = max(3, max(small.shape) // 20) | 1
        plate = cv2.erode(found.astype(np.uint8), np.ones((reach, reach), np.uint8), borderValue=1) > 0
        within = largest(_brighter(blurred, plate))
        if within is not None and 0.1 < within.sum() / found.sum() < 0.8:
            found = within
    blob = np.zeros(small.shape, bool)
    blob[rows, columns] = found
    return blob


def _brighter(blurred: Levels, where: Mask) -> Mask:
    """Part off what stands out of its background.

    Soft tissue, fingertips most of all, is far fainter than bone, so Otsu's level only tells what is background. The
    level taken is 0.3 of the way from the background's median to Otsu's; more where the background is uneven: up to 0.6
    for what its upper half spreads, up to 0.45 for its lower half, which is as often a limb's soft tissue (the median)
    and the background (below) as it is a plate and the film around it. What Otsu parts by less than CONTRAST is noise.
    """
    inside = blurred[where]
    level = _otsu(inside)
    if level is None:
        return np.zeros(blurred.shape, bool)
    ordered = np.sort(inside, kind="stable")  # bytes: by radix, faster than each of the percentiles
    parted = int(np.searchsorted(ordered, level, side="right"))
    lower, dark, upper = (int(ordered[int(share * parted)]) for share in (0.16, 0.5, 0.6))  # above, it is soft tissue
    if int(ordered[(parted + len(ordered)) // 2]) - dark < CONTRAST:
        return np.zeros(blurred.shape, bool)
    way = level - dark
    uneven = max(min(0.45 * way, 2 * (dark - lower)), min(0.6 * way, 2 * (upper - dark)))
    return where & (blurred > dark + max(0.3 * way, uneven))


def _flattened(levels: Levels) -> Levels:
    """Take off the background that grows towards a side: exposure strips, vignettes, what is left of frames.

    The background along a side is what nearly all of a line reaches, and no more than the lines between it and the side
    do, so that a limb amid the film is none. Lines are mirrored at their ends: a strip may stop short of one of them.
    At most half of the way to Otsu's level is taken off: where a limb fills the film from side to side, it stays.
    """
    scale = min(1.0, BACKGROUND / max(levels.shape))
    size = max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale))
    coarse = np.asarray(cv2.resize(levels, size, interpolation=cv2.INTER_AREA), np.uint8)
    level = _otsu(coarse)
    if level is None:
        return levels
    dark = float(np.median(coarse[coarse <= level]))
    background = np.zeros_like(coarse)
    for lines, found in ((coarse, background), (coarse.T, background.T)):
        long = max(1, round(0.9 * lines.shape[1]))
        mirrored = cv2.copyMakeBorder(np.ascontiguousarray(lines), 0, 0, long, long, cv2.BORDER_REFLECT)
        opened = cv2.morphologyEx(mirrored, cv2.MORPH_OPEN, np.ones((1, long), np.uint8))[:, long:-long]
        for inwards in (np.s_[:], np.s_[::-1]):
            np.maximum(found[inwards], np.minimum.accumulate(opened[inwards]), out=found[inwards])
    background = np.minimum(background, np.uint8((dark + level) / 2))
    grown = cv2.resize(background, levels.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.subtract(levels, grown), np.uint8)


def _peeled(small: Levels, *, slopes: bool = False) -> tuple[Levels, slice, slice]:
    """Peel off frames: what lies, near a side, beyond a step that most of a line takes; give what is left, where.

    A step is steeper than what follows it further inwards: a slope of the background, on which fingertips may lie, is
    none, unless `slopes` are to be peeled off too.
    """
    kept = []
    for lines in (small.astype(np.int16), small.T.astype(np.int16)):
        reach, further = len(lines) // 12, max(2, len(lines) // 32)  # an edge is no wider
        cuts = []
        for ends in (lines[: reach + further + 2], lines[: -reach - further - 3 : -1]):
            rises = np.abs(np.median(ends[2:] - ends[:-2], axis=1))  # two lines apart, as an edge is blurred
            steps = rises[:reach] > CONTRAST + (0 if slopes else rises[further : further + reach])
            cuts.append(int(np.flatnonzero(steps).max(initial=-1)) + 1)
        kept.append(slice(cuts[0], len(lines) - cuts[1]))
    return small[kept[0], kept[1]], kept[0], kept[1]


def _grabcut(small: Levels, mask: Mask, iterations: int) -> Mask:
    """Refine a mask by GrabCut, in a band along its outline; where that finds nothing sensible the mask stays.

    GrabCut models both sides by their levels, and would take faint soft tissue for background beside bright bone. So
    levels are cut off half way to Otsu's: above that all is hand.
    """
    small = _flattened(small)
    background = small[~mask]
    level, dark = _otsu(small), float(np.median(background)) if background.size else 0.0
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
