"""Whether a film shows dark bones on a bright background."""

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.steps.reduction import Copies, Levels, Mask, Pixels

SIDE = 96  # pixels of the longer side on which evidence is taken

# Evidence and its weight, by benchmarks.preparation: a logistic regression without an intercept.
WEIGHTS = {
    "ridges": 12.0,
    "ridges_amid": 12.9,
    "border": -2.8,
    "tail": 4.8,
    "across": -3.7,
    "flanks": 2.8,
    "down": 2.0,
}


def is_inverted(film: Pixels, *, exposed: Mask | None = None) -> bool:
    """Tell whether the film shows dark bones on a bright background.

    `polarity_odds` says so; a film without evidence, a flat one for instance, is not inverted.

    >>> hand = np.full((64, 64), 40, np.uint8)
    >>> hand[20:, 24:40] = 180
    >>> is_inverted(hand), is_inverted(invert(hand))
    (False, True)
    """
    return polarity_odds(film, exposed=exposed) < 0


def polarity_odds(film: Pixels, *, exposed: Mask | None = None, copies: Copies | None = None) -> float:
    """Weigh the evidence that bones are brighter than what is around them; below 0 it says that they are darker.

    The weighted sum (WEIGHTS) of the `evidence` is the log-odds of a film that is not inverted, where as many films are
    as are not. Every piece of evidence changes its sign with the film's, but for rounding, and none depends on gain,
    offset or depth. `exposed` (H, W) bool is the exposed field: what lies beyond has no say. `copies` are those of
    other steps, to be shared.
    """
    found = evidence(film, exposed=exposed, copies=copies)
    return float(sum(WEIGHTS[name] * value for name, value in found.items()))


def evidence(film: Pixels, *, exposed: Mask | None = None, copies: Copies | None = None) -> dict[str, float]:
    """Take the evidence of a film's polarity, name -> value, on levels stretched to -1..1 at SIDE pixels:

    ridges        thin bright structures (white top-hat) less thin dark ones (black top-hat), as a share of both: bone
                  edges, trabeculae, ribs, lead letters; -1..1
    ridges_amid   the same without an eighth of the film on each side
    border        how much brighter the film's border is than the film, median less mean, in standard deviations
    tail          which tail of the middle's levels is longer, 5th and 95th percentile about the median; -1..1
    across        correlation of the columns' means with the squared distance from the middle; -1..1
    flanks        the same with a wave that is high at the middle and at both sides, and low between: lungs
    down          correlation of the rows' means with the squared distance from the middle
    """
    levels = _levels(film, exposed, Copies() if copies is None else copies)
    height, width = levels.shape
    mean, spread = float(levels.mean()), float(levels.std()) + 1e-3
    kernel = np.ones((3, 3), np.uint8)
    bright, dark = (
        np.asarray(cv2.morphologyEx(levels, kind, kernel), np.float32)
        for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT)
    )
    amid = np.s_[height // 8 : height - height // 8, width // 8 : width - width // 8]
    edge = SIDE // 24
    border = np.concatenate([levels[:edge].ravel(), levels[-edge:].ravel(), levels[:, :edge].ravel()])
    border = np.concatenate([border, levels[:, -edge:].ravel()])
    middle = levels[height // 6 : height - height // 6, width // 6 : width - width // 6]
    low, median, high = np.percentile(middle, (5, 50, 95))
    columns = levels[height // 8 : height - height // 8].mean(axis=0)
    rows = levels.mean(axis=1)
    x, y = (np.linspace(-1, 1, len(profile)) for profile in (columns, rows))
    return {
        "ridges": _balance(bright, dark),
        "ridges_amid": _balance(bright[amid], dark[amid]),
        "border": (float(np.median(border)) - mean) / spread,
        "tail": float((high + low - 2 * median) / (high - low + 0.02)),
        "across": _correlation(columns, x * x),
        "flanks": _correlation(columns, np.cos(1.5 * np.pi * x)),
        "down": _correlation(rows, y * y),
    }


def invert(film: Pixels) -> Pixels:
    """Swap bright and dark within the range the film uses, so that a 12-bit film stays within its 12 bits.

    >>> invert(np.array([[10, 20, 90]], np.uint16))
    array([[90, 80, 10]], dtype=uint16)
    """
    turned: Pixels = film.max() - (film - film.min())
    return turned


def _levels(film: Pixels, exposed: Mask | None, copies: Copies) -> NDArray[np.float32]:
    """Give (h, w) levels of -1..1, SIDE pixels the longer side; beyond the field its median."""
    if exposed is not None and exposed.any():
        rows, columns = np.flatnonzero(exposed.any(axis=1)), np.flatnonzero(exposed.any(axis=0))
        field = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        film, exposed = film[field], exposed[field]
        if not exposed.all():
            film = np.where(exposed, film, np.median(film[exposed]).astype(film.dtype))
    small, _ = copies.of(film)
    scale = SIDE / max(small.shape)
    size = max(8, round(small.shape[1] * scale)), max(8, round(small.shape[0] * scale))
    by = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized: Levels = np.asarray(cv2.resize(small, size, interpolation=by), np.uint8)
    return resized.astype(np.float32) / np.float32(127.5) - 1


def _balance(bright: NDArray[np.float32], dark: NDArray[np.float32]) -> float:
    return float((bright.mean() - dark.mean()) / (bright.mean() + dark.mean() + 0.01))


def _correlation(profile: NDArray[np.float32], shape: NDArray[np.float64]) -> float:
    centred, shape = profile - profile.mean(), shape - shape.mean()
    norm = float(np.linalg.norm(centred) * np.linalg.norm(shape))
    return float(centred @ shape) / norm if np.ptp(profile) > 1e-3 else 0.0
