"""What decisions are taken on: a small 8-bit copy of a film, without frames and slopes; and the types of all steps."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # (H, W) uint8 | uint16
Mask = NDArray[np.bool_]  # (H, W)
Matrix = NDArray[np.float64]  # (2, 3)
Levels = NDArray[np.uint8]  # (h, w) the 8-bit reduced copy
Corners = NDArray[np.float32]  # (4, 2) of (x, y)
Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the last two exclusive

REDUCED = 256  # pixels of the longer side on which carrier and limb are looked for
BACKGROUND = 64  # the same for the background, which is smooth
CONTRAST = 8  # levels of 255, stretched: what differs by less is one thing


def reduced(film: Pixels, side: int = REDUCED) -> tuple[Levels, float]:
    """Give an 8-bit copy of at most `side` pixels a side, with its scale.

    Its levels are stretched, all but one in a thousand at either end: a few burnt pixels must not flatten the rest.
    """
    scale = min(1.0, side / max(film.shape))
    if scale < 1:
        size = max(1, round(film.shape[1] * scale)), max(1, round(film.shape[0] * scale))
        film = cv2.resize(film, size, interpolation=cv2.INTER_AREA)
    low, high = percentiles(film, (0.001, 0.999))
    levels = (np.arange(np.iinfo(film.dtype).max + 1, dtype=np.float32) - low) * (255 / max(1, high - low))
    return mapped(film, np.clip(np.rint(levels), 0, 255).astype(np.uint8)), scale


class Copies:
    """Reduced copies of films, each made once: several steps look at the same one."""

    def __init__(self) -> None:
        self._made: list[tuple[Pixels, int, Levels, float]] = []

    def of(self, film: Pixels, side: int = REDUCED) -> tuple[Levels, float]:
        """Return `reduced` of this very array, which must not have changed since."""
        for known, known_side, small, scale in self._made:
            if known is film and known_side == side:
                return small, scale
        small, scale = reduced(film, side)
        self._made.append((film, side, small, scale))
        return small, scale


def counted(levels: Pixels, mask: Mask | None = None) -> NDArray[np.int64]:
    """Count the pixels of each level, all or those under a mask: 8-bit films by OpenCV, ten times as fast as by NumPy.

    >>> counted(np.array([3, 3, 0], np.uint8))[:5].tolist()
    [1, 0, 0, 2, 0]
    """
    top = np.iinfo(levels.dtype).max
    if levels.dtype != np.uint8 or not 0 < levels.size < 2**24:  # OpenCV counts in float32
        return np.bincount((levels if mask is None else levels[mask]).ravel(), minlength=top + 1)
    flat = levels if levels.ndim == 2 else levels.reshape(1, -1)
    where = None if mask is None else mask.view(np.uint8)
    return cv2.calcHist([flat], [0], where, [256], [0, 256]).ravel().astype(np.int64)


def mapped(film: Pixels, table: NDArray[Any]) -> NDArray[Any]:
    """Look every pixel's level up in a table of all levels.

    >>> mapped(np.array([[0, 2]], np.uint8), np.arange(255, -1, -1, dtype=np.uint8)).tolist()
    [[255, 253]]
    """
    return np.asarray(cv2.LUT(film, table)) if film.dtype == table.dtype == np.uint8 else np.take(table, film)


def percentiles(levels: Pixels, shares: tuple[float, ...], mask: Mask | None = None) -> list[int]:
    """Give the levels below which these shares of whole numbers lie, all or those under a mask, by counting.

    >>> percentiles(np.array([3, 3, 5, 9], np.uint8), (0.25, 0.5, 0.75))
    [3, 5, 9]
    """
    counts = np.cumsum(counted(levels, mask))
    return [int(level) for level in np.searchsorted(counts, [share * counts[-1] for share in shares], side="right")]


def median(values: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Give the median along an axis of whole numbers or float64, as np.median does, at a third of its overhead.

    >>> float(median(np.array([9, 2, 4, 1], np.uint8)))
    3.0
    """
    middle, odd = divmod(values.shape[axis], 2)
    ordered = np.partition(values, (middle,) if odd else (middle - 1, middle), axis=axis)
    upper = ordered.take(middle, axis=axis).astype(np.float64)
    return np.asarray(upper if odd else (ordered.take(middle - 1, axis=axis) + upper) / 2)


def blurred(small: Levels) -> Levels:
    """Smooth a reduced copy by about a pixel."""
    return np.asarray(cv2.GaussianBlur(small, (0, 0), max(0.5, max(small.shape) / 170)), np.uint8)


def otsu(levels: Levels) -> int | None:
    """Give Otsu's level (the brighter part lies above it), or None for a flat film."""
    if levels.size == 0 or levels.min() == levels.max():
        return None
    return int(cv2.threshold(levels.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)[0])


def flattened(levels: Levels) -> Levels:
    """Take off the background that grows towards a side: exposure strips, vignettes, what is left of frames.

    The background along a side is what nearly all of a line reaches, and no more than the lines between it and the side
    do, so that a limb amid the film is none. Lines are mirrored at their ends: a strip may stop short of one of them.
    At most half of the way to Otsu's level is taken off: where a limb fills the film from side to side, it stays.
    """
    scale = min(1.0, BACKGROUND / max(levels.shape))
    size = max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale))
    coarse = np.asarray(cv2.resize(levels, size, interpolation=cv2.INTER_AREA), np.uint8)
    level = otsu(coarse)
    if level is None:
        return levels
    dark = float(median(coarse[coarse <= level]))
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


def peeled(small: Levels, *, slopes: bool = False) -> tuple[Levels, slice, slice]:
    """Peel off frames: what lies, near a side, beyond a step that most of a line takes; give what is left, where.

    A step is steeper than what follows it further inwards: a slope of the background, on which fingertips may lie, is
    none, unless `slopes` are to be peeled off too.
    """
    kept = []
    for lines in (small.astype(np.int16), small.T.astype(np.int16)):
        reach, further = len(lines) // 12, max(2, len(lines) // 32)  # an edge is no wider
        cuts = []
        for ends in (lines[: reach + further + 2], lines[: -reach - further - 3 : -1]):
            rises = np.abs(median(ends[2:] - ends[:-2]))  # two lines apart, as an edge is blurred
            steps = rises[:reach] > CONTRAST + (0 if slopes else rises[further : further + reach])
            cuts.append(int(np.flatnonzero(steps).max(initial=-1)) + 1)
        kept.append(slice(cuts[0], len(lines) - cuts[1]))
    return small[kept[0], kept[1]], kept[0], kept[1]
