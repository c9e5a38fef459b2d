"""The seam between the evaluation and what computes scores: torch for a run, onnxruntime for a bundle.

Everything above a `Scorer` sees NumPy arrays alone and does not know which of the two it has.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import Films, Targets

Backend = Literal["torch", "onnxruntime"]


@dataclass(frozen=True)
class Prediction:
    """What a detector says of k films."""

    scores: dict[str, NDArray[np.float64]]  # name -> (k,), higher is more abnormal
    map: NDArray[np.float32] | None  # (k, S, S) >= 0, 0 off the mask; None: not asked for, or not drawn
    reconstruction: NDArray[np.float32] | None  # (k, S, S) in [0, 1]; None where the model doesn't reconstruct


class Scorer(Protocol):
    """A trained detector, ready to score films: the one thing that `evaluation.predict` needs of either backend."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores it gives; the first one is reported first."""

    @property
    def map_unit(self) -> str:
        """The unit of its maps."""

    @property
    def targets(self) -> Targets:
        """What it learned from: "none", normal films alone, or "labels"."""

    @property
    def refits(self) -> bool:
        """Whether what its scores compare with can be fitted to other films."""

    @property
    def backend(self) -> Backend:
        """What computes."""

    def predict_films(self, films: Films, *, maps: bool = False) -> Prediction:
        """Return scores, reconstruction and, where asked for, maps of films, from one pass and in float32."""
