"""The contract of the networks that prepare films: one locates hands and side markers, the others the foreground.

They are trained by the same loop as the detectors, on films whose boxes or masks are known. `predict` runs them,
`evaluate` measures them, `draw` shows what they detect and `nets` hands them to the preprocessing.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.data.batch import Batch
from anomaly.models.base import Model
from anomaly.runs import Record

HANDS = 2
"""The classes of boxes from 1 to this one are hands; class 0 stands for no box."""


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


class LocalizationModel(Model):
    """A model that locates something on a film, for the preprocessing."""

    targets: ClassVar[Literal["boxes", "masks"]]
    recipe: ClassVar[Mapping[str, Any]]
    """Settings of the recipe that prepares its films, in training and in use alike."""
    variant: ClassVar[str] = "crop"
    """The variant of the films it takes."""
    variants: ClassVar[Sequence[str]]
    """The variants its cache needs: that of its films and that of its targets."""
    thresholds: ClassVar[Sequence[float]]
    """The scores from which on something counts as detected, in ascending order: validation chooses one of them."""

    @abstractmethod
    def detect(self, batch: Batch) -> list[Detection]:
        """Return what is on each film, as it follows from that film and the weights alone."""
