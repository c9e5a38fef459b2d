"""Where pixels come to lie: cutting out, scaling to the cache's size, and matrices.

Geometry has one convention: integer coordinates are pixel centres, so a film W pixels wide reaches from -0.5 to
W - 0.5, and a (2, 3) matrix maps (x, y) of one film to (x, y) of another.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.steps.reduction import Corners, Mask, Matrix, Pixels, percentiles


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


def square(film: Pixels, aspect: float) -> tuple[Pixels, Matrix]:
    """Resample a film whose pixels are `aspect` times as high as wide so that they are square; it only grows.

    Returns the film and the matrix from the old (x, y) to the new.

    >>> film, matrix = square(np.array([[0, 90], [0, 90]], np.uint8), 2.0)
    >>> film.shape, matrix.tolist()
    ((4, 2), [[1.0, 0.0, 0.0], [0.0, 2.0, 0.5]])
    """
    height, width = film.shape
    size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    across, down = size[0] / width, size[1] / height
    grown = np.asarray(cv2.resize(film, size, interpolation=cv2.INTER_LINEAR))
    return grown, np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5]])


def fill(film: Pixels, exposed: Mask | None) -> Pixels:
    """Give what lies beyond the exposed field the level that a twentieth of the field is darker than.

    So it takes no part in decisions that part bright from dark. Without a field, or a film within it, nothing changes.

    >>> fill(np.array([[255, 9, 9, 70]], np.uint8), np.array([[False, True, True, True]])).tolist()
    [[9, 9, 9, 70]]
    """
    if exposed is None or exposed.all() or not exposed.any():
        return film
    return np.where(exposed, film, percentiles(film, (0.05,), exposed)[0]).astype(film.dtype)


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
    if mask.all():  # which needs no averaging
        top, left, height, width = _place(mask.shape, size)
        out = np.zeros((size, size), bool)
        out[top : top + height, left : left + width] = True
        return out
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


def warp_mask(mask: Mask, matrix: Matrix, shape: tuple[int, ...]) -> Mask:
    """Carry a mask through `matrix` onto a film of `shape`; what comes from outside the mask's frame is False.

    >>> warp_mask(np.array([[True, False]]), np.array([[1.0, 0, 1], [0, 1, 0]]), (1, 3)).tolist()
    [[False, True, False]]
    """
    x, y = (round(float(shift)) for shift in matrix[:2, 2])
    if (matrix == [[1, 0, x], [0, 1, y]]).all():  # a slice
        out = np.zeros((shape[0], shape[1]), bool)
        top, left = max(0, y), max(0, x)
        moved = mask[max(0, -y) :, max(0, -x) :][: max(0, shape[0] - top), : max(0, shape[1] - left)]
        out[top : top + moved.shape[0], left : left + moved.shape[1]] = moved
        return out
    levels = mask.astype(np.uint8) * np.uint8(255)
    return np.asarray(cv2.warpAffine(levels, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR) >= 128)


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
