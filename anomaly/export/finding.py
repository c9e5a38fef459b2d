"""What a detector says of one film, as plain values: what its DICOM objects are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from preprocessing.readers.dicom_objects import MANUFACTURER

__all__ = ["MANUFACTURER", "UNLIKE", "Finding", "SoftwareDevice"]

UNLIKE = "unlike the films of the training (another body part?)"
"""Of a film that is out of domain: what is said of it then does not hold."""


@dataclass(frozen=True)
class SoftwareDevice:
    """The detector as a device: what TID 1004, TID 4019 and the General Equipment module say of it."""

    model: str  # of the registry: "cae", "feature_mixture", ...
    version: str  # of this package
    run: str  # name of the run, of a bundle that of the run it was made of
    digest: str  # SHA-256, 64 hex digits: weights, calibration and main score; with the source it makes the UIDs
    parameters: Mapping[str, str]  # what else a reader may want to know: "variant" -> "crop", ...
    trained_on_synthetic: bool = False  # on films drawn by this program: of patients it knows nothing


@dataclass(frozen=True)
class Finding:
    """What a detector says of one film, or of one hand of a film that shows two.

    `map` and `mask` lie in the geometry of the source film: H = Rows, W = Columns.
    """

    film: NDArray[np.float32]  # (H, W) in [0, 1], bright is dense: as the overlay shows it
    map: NDArray[np.float32]  # (H, W) finite, >= 0, in `unit`; 0 outside the mask
    mask: NDArray[np.bool_]  # (H, W) where the map holds
    scale: float  # > 0, in `unit`: the quantile of validation normals' pixels that colors and segmentation go by
    unit: str  # of the map, such as "squared error"
    score_name: str  # the score that flags
    scores: Mapping[str, float]  # every score by name, that one among them
    threshold: float  # of `score_name`: flagged from here on
    device: SoftwareDevice
    created: datetime  # aware: when the objects are made
    p_value: float | None = None  # conformal; None where the run keeps no scores of normal films
    p_interval: tuple[float, float] | None = None  # 95 %, of the share of normal films that score as high
    hand: int = 0  # 0: the film's only one; 1, 2: of two, left to right
    synthetic: bool = False  # the film was drawn by this program
    out_of_domain: bool | None = None  # whether it shows something else than the films of the training; None: not known

    @property
    def score(self) -> float:
        """The score that flags."""
        return self.scores[self.score_name]

    @property
    def flagged(self) -> bool:
        """Whether the score reaches the threshold."""
        return self.score >= self.threshold
