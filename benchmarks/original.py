"""The original's preprocessing rules, written anew from a description of what they do: what ours is measured against.

"The original" is the public code of Davletshina et al. 2020 (arXiv 2001.10883). PAPER and a number name the section of
this project's page of facts about that code; no line of the code itself is here. What the description leaves open is
settled to the original's advantage and said so. Its hand detector can't be rendered, as its weights were never
published; what became of a perfect detector's box can.

A film is (H, W) uint8, larger is brighter; corners are (4, 2) float32 pixel centers (x, y); a box is (x0, y0, x1, y1),
the last two exclusive.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Film = NDArray[np.uint8]  # (H, W)
Mask = NDArray[np.bool_]  # (H, W)
Corners = NDArray[np.float32]  # (4, 2)
Box = tuple[int, int, int, int]

LEVELS = range(0, 256, 26)[:10]  # 0, 26 ... 234
MIN_AREA = 100_000  # pixels, whatever the film's size
MAX_COSINE = 0.45
CORNER = 50  # pixels a side of the patches that tell the background
BRIGHT = 127.5
DEMO_RECTANGLE = (25, 25, 400, 290)  # x, y, width, height


def find_carrier(film: Film) -> Corners | None:
    """Find the image carrier: the first quadrilateral of any level, not the largest or the best. PAPER 1.1.

    Returns the corners of the smallest rotated rectangle around it, clockwise from the one that is top left once it is
    upright, or None where there is no quadrilateral: the whole film is then kept as it is. The order is to the
    original's advantage: its own relied on an angle convention that OpenCV has changed since.
    """
    first = next(quadrilaterals(film), None)
    if first is None:
        return None
    corners = cv2.boxPoints(cv2.minAreaRect(first))  # in order around the rectangle, which corner is first is OpenCV's
    center = corners.mean(axis=0)
    corners = corners[np.argsort(np.arctan2(*(corners - center).T[::-1]))]  # clockwise, as y points down
    sides = np.roll(corners, -1, axis=0) - corners
    flattest = int(np.argmin(np.abs(np.arctan2(sides[:, 1], sides[:, 0]))))  # the top: it runs to the right
    return np.asarray(np.roll(corners, -flattest, axis=0), np.float32)


def quadrilaterals(film: Film) -> Iterator[NDArray[np.int32]]:
    """Yield every polygon that counts as a carrier, (K >= 4, 2) corners (x, y), in the order of search. PAPER 1.1.

    The film is blurred (Gaussian 5 x 5) and parted ten times: at level 0 by Canny (0, 50, aperture 5), its edges
    dilated 3 x 3, then by fixed thresholds of 26, 52 ... 234. A contour (list mode) is made a polygon with a tolerance
    of .02 of its perimeter, and counts with at least four corners, an area of at least MIN_AREA pixels, convex, and no
    |cosine| of its first four corners of MAX_COSINE or more.
    """
    blurred = cv2.GaussianBlur(film, (5, 5), 0)
    for level in LEVELS:
        if level == 0:
            parted = cv2.dilate(cv2.Canny(blurred, 0, 50, apertureSize=5), np.ones((3, 3), np.uint8))
        else:
            parted = cv2.threshold(blurred, level, 255, cv2.THRESH_BINARY)[1]
        contours, _ = cv2.findContours(parted, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:
            polygon = cv2.approxPolyDP(contour, 0.02 * cv2.arcLength(contour, True), True)
            if len(polygon) < 4 or cv2.contourArea(polygon) < MIN_AREA or not cv2.isContourConvex(polygon):
                continue
            corners = np.asarray(polygon, np.int32)[:, 0]
            if max_cosine(corners) < MAX_COSINE:
                yield corners


def max_cosine(corners: NDArray[np.int32]) -> float:
    """Return the largest |cosine| of the angles at the first four corners of a polygon, (K >= 4, 2). PAPER 1.1."""
    ahead, behind = ((np.roll(corners, turn, axis=0) - corners)[:4].astype(np.float64) for turn in (-1, 1))
    lengths = np.hypot(*ahead.T) * np.hypot(*behind.T)
    return float(np.abs((ahead * behind).sum(axis=1) / lengths).max())


def cut_carrier(film: Film, corners: Corners) -> tuple[Film, NDArray[np.float64]]:
    """Warp the carrier upright by perspective, and turn it by 270 degrees if it is wider than high. PAPER 1.1.

    Returns the carrier (h, w), h >= w, at the film's own scale, and the (3, 3) perspective matrix from film (x, y) to
    carrier (x, y). Degrees are counted counter-clockwise.
    """
    width, height = (
        max(2, round(float(np.hypot(*side))) + 1) for side in (corners[1] - corners[0], corners[3] - corners[0])
    )
    upright = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, upright)
    carrier = cv2.warpPerspective(film, matrix, (width, height))
    if width > height:
        carrier = np.ascontiguousarray(np.rot90(carrier, 3))
        matrix = np.array([[0.0, -1, height - 1], [1, 0, 0], [0, 0, 1]]) @ matrix
    return np.asarray(carrier, np.uint8), np.asarray(matrix, np.float64)


def hand_crop(box: Box, shape: tuple[int, int]) -> Box:
    """Return what is cut out for a detected box, on a film of `shape` (H, W). PAPER 1.2, bug (a).

    The crop's end is bottom + top and right + left rather than bottom and right, as if they were height and width; what
    exceeds the film is clipped. So only the left and top margins are taken off.
    """
    x0, y0, x1, y1 = box
    return x0, y0, min(shape[1], x1 + x0), min(shape[0], y1 + y0)


def is_inverted(film: Film, *, corners_only: bool = False) -> bool:
    """Tell whether a film is taken for one with a bright background. PAPER 1.3.

    It is where the mean of the four corner patches of 50 x 50 pixels exceeds 127.5, or the mean of the whole film does;
    `corners_only` asks the corners alone, as a notebook of the original does.
    """
    near, far = slice(None, CORNER), slice(-CORNER, None)
    corners = float(np.mean([film[rows, columns].mean() for rows in (near, far) for columns in (near, far)]))
    return corners > BRIGHT or (not corners_only and float(film.mean()) > BRIGHT)


def invert(film: Film) -> Film:
    """Return 255 minus the film. PAPER 1.3."""
    return np.asarray(255 - film, np.uint8)


def grabcut_demo(
    film: Film, *, rectangle: tuple[int, int, int, int] | None = DEMO_RECTANGLE, iterations: int = 5
) -> Mask:
    """Separate the foreground by GrabCut from a rectangle (x, y, width, height). PAPER 1.4.

    All beside the rectangle is background. In the original this is a demonstration on one image, its rectangle fixed:
    its masks were made by hand. None takes the rectangle's margins, 25 pixels, on all four sides instead of its size.
    The film must be larger than twice the margins; the rectangle is clipped to it. OpenCV's random numbers are seeded:
    the mask depends on the film alone.
    """
    left, top = DEMO_RECTANGLE[:2]
    x, y, width, height = rectangle or (left, top, film.shape[1] - 2 * left, film.shape[0] - 2 * top)
    inner = x, y, min(width, film.shape[1] - x), min(height, film.shape[0] - y)
    mask = np.zeros(film.shape, np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(cv2.merge([film] * 3), mask, inner, *models, iterations, cv2.GC_INIT_WITH_RECT)
    return np.asarray(mask % 2 == 1)


def otsu_filter(film: Film) -> Mask:
    """Return what the Otsu filter keeps: equalized, median of 19 pixels, above Otsu's level. PAPER 1.5, row 3.

    Off by default in the original, and unused in every run it reports.
    """
    smooth = cv2.medianBlur(cv2.equalizeHist(film), 19)
    return np.asarray(cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1] > 0)
