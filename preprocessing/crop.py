"""Where a film is cut: boxes, quarter turns, and the side markers that are blanked in what is cut out."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from preprocessing import steps

Box4 = tuple[float, float, float, float]  # x0, y0, x1, y1; edges

RING = 0.25  # width of what is looked at around a marker, as a share of the longer side of its box
CLOSE = 0.015  # to the hand, as a share of the crop's longer side: there nothing is covered
COVER = 0.02  # share of a marker's box that may lie on what stands out as the hand: more, and it stays


def clip_box(box: Box4, shape: tuple[int, ...]) -> steps.Box | None:
    """Give the whole pixels of a film that a box touches, or None where it lies beside the film or is no box."""
    if not all(math.isfinite(side) for side in box):
        return None
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x1, y1 = min(shape[1], math.ceil(box[2])), min(shape[0], math.ceil(box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def widen_box(box: Box4, margin: float) -> Box4:
    """Widen a box on every side by this share of its longer side."""
    x0, y0, x1, y1 = box
    extra = margin * max(x1 - x0, y1 - y0)
    return x0 - extra, y0 - extra, x1 + extra, y1 + extra


def move_box(box: Box4, x: float, y: float) -> Box4:
    """Move a box."""
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def place_box(box: Box4, matrix: steps.Matrix) -> Box4:
    """Give where a box comes to lie through a matrix that scales and moves alone, and maps pixel centres."""
    (x0, y0), (x1, y1) = (
        matrix[:, :2] @ (np.array(corner) - 0.5) + matrix[:, 2] + 0.5 for corner in (box[:2], box[2:])
    )
    return float(x0), float(y0), float(x1), float(y1)


def place_frame(shape: tuple[int, int], matrix: steps.Matrix) -> Box4:
    """Give where the edges of a film of this shape come to lie through a matrix, which maps pixel centres."""
    return place_box((0, 0, shape[1], shape[0]), matrix)


def rotation_matrix(turns: int, shape: tuple[int, ...]) -> steps.Matrix:
    """Give the matrix from (x, y) of a film of this shape to (x, y) of np.rot90(film, turns)."""
    matrix: steps.Matrix = np.eye(2, 3)
    height, width = shape[:2]
    for _ in range(turns):
        matrix = steps.compose(np.array([[0.0, 1, 0], [-1, 0, width - 1]]), matrix)
        height, width = width, height
    return matrix


def blank_markers(crop: steps.Pixels, markers: Sequence[Box4]) -> tuple[steps.Pixels, int]:
    """Cover side markers by the median level around them; the crop, and how many of them were covered.

    A marker that lies on the hand, by as little as COVER of its box, stays: what is blank cannot be fractured. So does
    one on a crop in which no hand stands out, for then there is no telling. Of one that is covered, what lies close to
    the hand stays as it is: fingertips are fainter than what stands out.
    """
    boxes = [box for marker in markers if (box := clip_box(marker, crop.shape)) is not None]
    hand = steps.foreground(crop, method="otsu") if boxes else None
    if hand is None:
        return crop, 0
    blank, count = crop.copy(), 0
    wide = 2 * max(1, round(CLOSE * max(crop.shape))) + 1
    far = cv2.dilate(hand.astype(np.uint8), np.ones((wide, wide), np.uint8)) == 0
    for x0, y0, x1, y1 in boxes:
        reach = max(2, round(RING * max(x1 - x0, y1 - y0)))
        around = slice(max(0, y0 - reach), y1 + reach), slice(max(0, x0 - reach), x1 + reach)
        ring = ~hand
        ring[y0:y1, x0:x1] = False
        levels = crop[around][ring[around]]
        if levels.size and hand[y0:y1, x0:x1].mean() <= COVER:
            blank[y0:y1, x0:x1][far[y0:y1, x0:x1]] = np.median(levels)
            count += 1
    return blank, count
