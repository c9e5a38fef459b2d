"""The exposed field: what lies within straight borders to an unexposed rim that is black or white."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from preprocessing.steps.reduction import Copies, Levels, Mask, Pixels, median

SIDE = 128  # pixels of the longer side on which borders are looked for
TILTS = sorted(np.linspace(-0.12, 0.12, 13), key=abs)  # slopes of a border to its side: up to 7 degrees
BRIGHT, DARK = 200, 12  # levels of 255, stretched: a rim is at least as bright, or at most as bright
SPREAD = 28, 6  # what a bright and a dark rim may differ from its own level
NEAR = 1.5  # rows off a border that still lie on it
ENDS, BROKEN = 0.6, 0.1  # share of a border along which the rim ends, at least, and before which it does, at most
MARGIN = 1.0  # rows of the finer copy beyond a border that are blurred with it
AIR = 0.1  # share of the field that may be as dark as a dark rim
ENDS_DARK = 0.75  # the same as ENDS, of a dark rim: air may be as dark, and a limb nearly straight
SHARP = 0.35, 0.7  # share of the step over 10 rows that the first 2 make, of a bright and of a dark rim, at least
STEEPER = 1.5  # times that levels change faster at a border than beyond it: on a ramp there is none
LEAST = 0.25  # share of the film that a field covers


def find_field(film: Pixels, *, copies: Copies | None = None) -> Mask | None:
    """Find the exposed field of a film whose file does not name it.

    From each of the four sides a rim runs inwards as long as levels stay those of the side, which are about the film's
    darkest or brightest. It counts where it ends along a straight line of any slope of TILTS, but for a share BROKEN
    before it, by a marker for instance; a dark one by a step besides, and where little within is as dark. So neither a
    limb nor air at a side is a rim.

    Returns (H, W) bool, the intersection of the half-planes within the borders found; None where there is no border,
    or where less than LEAST of the film would be left. What it finds on a film it finds on the inverted film as well.
    `copies` are those of other steps, to be shared.

    >>> film = np.tile(np.linspace(60, 160, 64), (64, 1)).astype(np.uint8)
    >>> film[:8] = 255
    >>> field = find_field(film)
    >>> field[:8].any(), bool(field[10:].all())
    (np.False_, True)
    """
    copies = Copies() if copies is None else copies
    small, scale = copies.of(film, SIDE)
    borders = [border for side in range(4) if (border := _border(np.rot90(small, side), side)) is not None]
    level = max((border.level for border in borders if border.level <= DARK), default=-1)
    within = _within(borders, (small.shape[0], small.shape[1]), 1.0)
    if level >= 0 and (small[within] <= level + SPREAD[1]).mean() > AIR:  # the rim is as dark as air: it may be air
        borders = [border for border in borders if border.level >= BRIGHT]
    if not borders:
        return None
    fine, fine_scale = copies.of(film)
    borders = [_refined(np.rot90(fine, border.side), border, fine_scale / scale) for border in borders]
    field = _within(borders, (film.shape[0], film.shape[1]), fine_scale)
    return None if field.all() or field.mean() < LEAST else field


@dataclass(frozen=True)
class _Border:
    """A border of the exposed field, on the reduced film as turned by np.rot90 so often that its side is the first.

    depth  rows of rim in the middle of the film; every column further `slope` rows more     level  of the rim
    """

    side: int
    depth: float
    slope: float
    level: int


def _within(borders: Sequence[_Border], shape: tuple[int, int], scale: float) -> Mask:
    """Give what lies within all borders, on a film of this shape, of which the reduced one is `scale`."""
    field = np.ones(shape, bool)
    for border in borders:
        turned = np.rot90(field, border.side)  # a view: what is cleared in it is cleared in the field
        rows, columns = np.arange(len(turned)), np.arange(turned.size // len(turned))
        first = (border.depth + MARGIN) / scale + border.slope * (columns - (len(columns) - 1) / 2)
        edge = int(np.floor(first.max() - 0.5)) + 1  # beyond it all is within
        turned[: max(0, edge)] &= rows[: max(0, edge), None] >= first - 0.5
    return field


def _border(small: Levels, side: int) -> _Border | None:
    """Find the border of a rim along the first rows."""
    level = int(median(small[:2].ravel()))
    if DARK < level < BRIGHT:
        return None
    height, width = small.shape
    depths = _depths(small, level)
    if median(depths) < 1 or np.quantile(depths, 1 - ENDS) > height / 2:
        return None
    tilted = np.multiply.outer(TILTS, np.arange(width) - (width - 1) / 2)  # (tilts, W), as all of what follows
    lines = median((depths - tilted)[:, depths > 0])[:, None] + tilted
    on_film, apart = lines > 0, depths - lines
    ends = (on_film & (np.abs(apart) <= NEAR)).sum(axis=1)
    before, along = (on_film & (apart < -NEAR)).sum(axis=1), on_film.sum(axis=1)
    counts = np.where((ends >= ENDS * along) & (before <= BROKEN * along), ends, 0)
    best = int(counts.argmax())  # of equals, the least tilted
    if not counts[best]:
        return None
    depth = float(median((depths - tilted[best])[depths > 0]))
    found = _Border(side, depth, float(TILTS[best]), level)
    return found if _is_sharp(small, depths, found) else None


def _depths(small: Levels, level: int) -> NDArray[np.intp]:
    """Count the rows of rim along the first rows, (W,), column by column."""
    other = small < level - SPREAD[0] if level >= BRIGHT else small > level + SPREAD[1]
    return np.where(other.any(axis=0), other.argmax(axis=0), len(small))


def _refined(fine: Levels, border: _Border, scale: float) -> _Border:
    """Find how deep a border lies on a finer copy, so much larger, of the film."""
    depths = _depths(fine, int(median(fine[:2].ravel())))
    rows = depths - border.slope * (np.arange(len(depths)) - (len(depths) - 1) / 2)
    near = np.abs(rows - (border.depth + 0.5) * scale) <= (NEAR + 1) * scale
    return (
        replace(border, depth=float(median(rows[near]))) if near.any() else replace(border, depth=border.depth * scale)
    )


def _is_sharp(small: Levels, depths: NDArray[np.intp], border: _Border) -> bool:
    """Tell whether levels change at a border by a step, not as slowly as where skin meets air or a belly fades."""
    lines = border.depth + border.slope * (np.arange(len(depths)) - (len(depths) - 1) / 2)
    columns = np.flatnonzero(np.abs(depths - lines) <= NEAR)
    before, after, beyond = (
        float(median(small[np.clip(depths[columns] + rows, 0, len(small) - 1), columns])) for rows in (-2, 2, 10)
    )
    if 2 * abs(after - before) <= STEEPER * abs(beyond - after):  # over 4 rows and over 8: levels change alike
        return False
    near, far = abs(after - border.level), abs(beyond - border.level)
    if border.level >= BRIGHT:
        return near > SHARP[0] * far
    return near > SHARP[1] * far and len(columns) >= ENDS_DARK * len(depths)
