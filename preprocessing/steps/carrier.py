"""The image carrier: the plate, or the collimated field, that holds the exposure."""

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.steps.reduction import CONTRAST, Copies, Corners, Levels, Mask, Pixels, blurred, median, otsu

ALONG, ACROSS = np.linspace(0.08, 0.92, 48)[:, None], np.linspace(-1, 1, 7)[:, None]  # where a side is probed


def find_carrier(
    film: Pixels,
    *,
    min_area: float = 0.1,
    min_rectangularity: float = 0.85,
    min_support: float = 0.6,
    copies: Copies | None = None,
) -> Corners | None:
    """Find the image carrier: the plate, or the collimated field, that holds the exposure.

    The film is parted at Otsu's level, at Otsu's of its dark part and of its bright part, and so once more; above and
    below each. The candidates are the smallest rotated rectangles around the parts. One counts where it covers
    `min_area` of the film, where the part's hull fills `min_rectangularity` of it, where edges run along `min_support`
    of each of its sides (the film's own border is no side), and where the film beside it is plain. The best by area,
    rectangularity and edges is taken, not the first.

    Returns (4, 2) float32 corners (x, y) of its outline, clockwise from the top left one once it is upright, or None
    where no rectangle counts, as on a film that its field fills. Corners may lie beside the film. `copies` are those of
    other steps, to be shared.

    >>> film = np.zeros((64, 64), np.uint8)
    >>> film[10:50, 20:60] = 90
    >>> film[20:50, 30:40] = 200
    >>> find_carrier(film)
    array([[20.5, 10.5],
           [58.5, 10.5],
           [58.5, 48.5],
           [20.5, 48.5]], dtype=float32)
    """
    small, scale = (Copies() if copies is None else copies).of(film)
    smooth = blurred(small)
    detail = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > CONTRAST
    best, best_score, seen = None, 0.0, set()
    for level in _levels(smooth):
        for binary in (smooth > level, smooth <= level):
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
                if float(area) ** 0.5 * rectangularity * 4 <= best_score:  # four sides at most, each fully along edges
                    continue
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


def _levels(levels: Levels) -> list[int]:
    """Give Otsu's level, Otsu's of the part below it and of the part below that, and likewise above."""
    middle = otsu(levels)
    if middle is None:
        return []
    below, above = otsu(levels[levels <= middle]), otsu(levels[levels > middle])
    lowest = None if below is None else otsu(levels[levels <= below])
    highest = None if above is None else otsu(levels[levels > above])
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
            common = np.ptp(median(profile[on_film], axis=0)) > CONTRAST / 2
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
