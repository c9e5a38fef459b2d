"""What the networks that prepare films say of a film, whatever computes them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.runs import Record

HANDS = 2
"""The classes of boxes from 1 to this one are hands; class 0 stands for no box."""
SCORE_FLOOR = 0.05
"""Boxes of lower scores are dropped before suppression."""
NMS_IOU = 0.45
"""Of two boxes that overlap by more than this IoU the one with the higher score is kept."""


@dataclass(frozen=True)
class Detection:
    """What a network detects on one film: boxes or the foreground.

    boxes       (n, 5) float32: x0, y0, x1, y1 in pixels from the film's edge, class; highest score first
    scores      (n,) confidence of each box, 0..1
    foreground  (S, S) float32: probability that a pixel belongs to the foreground, 0..1
    """

    boxes: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    foreground: NDArray[np.float32] | None = None

    def scored_boxes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the boxes and their scores; ValueError for a detection of the foreground."""
        if self.boxes is None or self.scores is None:
            raise ValueError("this detection has no boxes")
        return self.boxes, self.scores


class LocalizationCalibration(Record):
    """calibration.json of a run of such a network."""

    threshold: float
    """The score from which on something counts as detected, chosen on validation films."""
    films: int
    """How many validation films those were."""
