"""The contract of the nets that prepare films: one finds hands and side markers, the others the foreground.

They are trained by the same loop as the detectors, on films whose boxes or masks are known; `anomaly.finding` measures
them and hands them to the preprocessing.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.data.batch import Batch
from anomaly.models.base import Model

HANDS = 2
"""So many of the caches' classes of boxes, the first, are hands; class 0 is none of them."""


@dataclass(frozen=True)
class Detection:
    """What a net finds on one film: boxes or the foreground.

    boxes       (n, 5) float32: x0, y0, x1, y1 in pixels from the film's edge, class; the surest first
    scores      (n,) how sure, 0..1
    foreground  (S, S) float32: how likely a pixel belongs to the foreground, 0..1
    """

    boxes: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    foreground: NDArray[np.float32] | None = None


class LocalizationModel(Model):
    """A model that finds something on a film, for the preprocessing."""

    learns: ClassVar[Literal["boxes", "masks"]]
    """What its training films bring along."""
    recipe: ClassVar[Mapping[str, Any]]
    """Settings of the recipe that makes its films: it sees films at work as it saw them in training."""
    variant: ClassVar[str] = "crop"
    """The variant of its films."""
    variants: ClassVar[Sequence[str]]
    """The variants its cache needs: of what is to be found, too."""
    thresholds: ClassVar[Sequence[float]]
    """From how sure on something counts as found: those that validation chooses from."""

    @abstractmethod
    def find(self, batch: Batch) -> list[Detection]:
        """Return what is on each film. It depends on the film and the weights alone."""
