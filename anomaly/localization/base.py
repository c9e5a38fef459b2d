"""The contract of the networks that prepare films: one locates hands and side markers, the others the foreground.

They are trained by the same loop as the detectors, on films whose boxes or masks are known. `predict` runs them,
`evaluate` measures them, `draw` shows what they detect and `nets` hands them to the preprocessing.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from anomaly.data.batch import Batch
from anomaly.localization.detection import Detection
from anomaly.models.base import Model


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
