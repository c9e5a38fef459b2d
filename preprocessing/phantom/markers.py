"""Side markers: a letter, mostly on a plate, at times with its owner's initials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.phantom.hand import Array

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, pixels, the last ones excluded


@dataclass(frozen=True)
class Marker:
    """A letter on its plate, where it lies on the film."""

    side: str
    box: Box
    plate: Array  # (H, W) float32, how much of a pixel it covers, 0..1; zeros without a plate
    letter: Array  # (H, W) float32, alike
    level: float  # the plate's grey, 0..1

    def over(self, film: Array) -> Array:
        """The film (H, W), 0..1, with the marker on it."""
        film = film * (1 - 0.75 * self.plate) + 0.75 * self.plate * self.level
        return np.asarray(film + self.letter * (0.97 - film))


def place_markers(
    sides: Sequence[str], hand: NDArray[np.bool_], depth: Array, unit: float, rng: np.random.Generator
) -> list[Marker]:
    """Side markers beside the hands; without room for one, none."""
    height, width = hand.shape
    markers: list[Marker] = []
    occupied = cv2.dilate(hand.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    for side in sides:
        tall = unit * rng.uniform(26, 46)
        wide = tall * rng.uniform(0.75, 1.1)
        angle = rng.normal(0, 10) + rng.choice([0, 0, 0, 90, -90])
        level = rng.choice([0.03, 0.25, 0.0]) + rng.uniform(0, 0.1)
        plated, wanted = rng.random() < 0.6, rng.random() < 0.85
        initials = rng.random() < 0.3
        stroke = rng.uniform(0.09, 0.14) * (0.6 if initials else 1)
        places = rng.uniform(0, 1, (60, 2)) * (width, height)
        if not wanted:
            continue
        turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2]
        corners = np.array([[-wide, -tall], [wide, -tall], [wide, tall], [-wide, tall]]) / 2 @ turn.T
        reach = np.abs(corners).max(0) + 1
        for x, y in places:
            x0, y0 = int(x - reach[0]), int(y - reach[1])
            x1, y1 = int(np.ceil(x + reach[0])), int(np.ceil(y + reach[1]))
            if x0 < 0 or y0 < 0 or x1 >= width or y1 >= height:
                continue
            spot = (slice(y0, y1 + 1), slice(x0, x1 + 1))
            if occupied[spot].any() or float(depth[spot].min()) < 2 * unit:
                continue
            plate, letter = np.zeros(hand.shape, np.uint8), np.zeros(hand.shape, np.uint8)
            cv2.fillConvexPoly(plate, _fixed_point(corners + np.array([x, y])), 255, cv2.LINE_AA, 4)
            for line in _letter(side, initials):
                points = (line * (0.62 * wide, 0.74 * tall)) @ turn.T + np.array([x, y])
                for a, b in pairwise(points):
                    across = (b - a)[::-1] * (-1, 1) / max(float(np.hypot(*(b - a))), 1e-6) * stroke * tall / 2
                    bar = np.stack([a + across, b + across, b - across, a - across])
                    cv2.fillConvexPoly(letter, _fixed_point(bar), 255, cv2.LINE_AA, 4)
                    cv2.circle(letter, _fixed_point(b).tolist(), round(8 * stroke * tall), 255, -1, cv2.LINE_AA, 4)
            occupied[spot] = True
            box = (x0, y0, x1 + 1, y1 + 1)
            cover = plate / np.float32(255) * plated
            markers.append(Marker(side, box, cover, letter / np.float32(255), float(level)))
            break
    return markers


def _letter(side: str, initials: bool) -> list[Array]:
    """L or R as strokes in -.5..+.5, smaller where a plate has its owner's initials below."""
    if side == "left":
        strokes = [[(-0.4, -0.5), (-0.4, 0.5), (0.4, 0.5)]]
    else:
        bowl = [(-0.4 + 0.45 + 0.32 * np.sin(a), -0.25 - 0.25 * np.cos(a)) for a in np.linspace(0, np.pi, 9)]
        strokes = [[(-0.4, 0.5), (-0.4, -0.5), *bowl, (-0.4, 0.0)], [(0.02, 0.0), (0.42, 0.5)]]
    lines = [np.array(stroke, float) for stroke in strokes]
    if not initials:
        return lines
    marks = [
        [(-0.4, 0.5), (-0.4, 0.28)],
        [(-0.15, 0.28), (0.05, 0.5), (0.05, 0.28)],
        [(0.25, 0.28), (0.42, 0.28), (0.42, 0.5), (0.25, 0.5)],
    ]
    return [line * (1, 0.62) - (0, 0.19) for line in lines] + [np.array(mark, float) for mark in marks]


def _fixed_point(points: Array) -> NDArray[np.int32]:
    """Points in OpenCV's fixed point with 4 bits after the point."""
    fixed: NDArray[np.int32] = np.rint(np.asarray(points) * 16).astype(np.int32)
    return fixed
