"""A bundle's detector as onnxruntime computes it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import Films, Targets
from anomaly.evaluation.scorer import Backend, Prediction
from anomaly.export.bundle import MODEL, Bundle, read_bundle
from anomaly.export.onnx_session import open_session
from preprocessing import InputError


class OnnxScorer:
    """A detector whose graph takes film and mask, and gives scores, map and reconstruction."""

    backend: Backend = "onnxruntime"
    refits = False

    def __init__(self, bundle: Bundle, session: Any, path: Path) -> None:
        self.bundle, self.path, self._session = bundle, path, session
        self._outputs = [output.name for output in session.get_outputs()]

    @classmethod
    def open(cls, folder: Path, device: str = "cpu", threads: int | None = None) -> "OnnxScorer":
        """Open a bundle, checked against its hashes; `device` and `threads` as for `open_session`.

        Raises InputError where the bundle is damaged or of another format, or can't be opened.
        """
        bundle = read_bundle(folder)
        scorer = cls(bundle, open_session(folder / MODEL, device, threads), folder / MODEL)
        if lacking := {"scores", *(output.name for output in bundle.outputs)} - set(scorer._outputs):
            raise InputError(f"{folder / MODEL} lacks the outputs {', '.join(sorted(lacking))}; export the run again")
        return scorer

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores it gives; the first one is reported first."""
        return tuple(self.bundle.score_names)

    @property
    def map_unit(self) -> str:
        """The unit of its maps."""
        return self.bundle.map_unit

    @property
    def targets(self) -> Targets:
        """What it learned from."""
        return "labels" if self.bundle.labelled else "none"

    def predict_films(self, films: Films, *, maps: bool = False) -> Prediction:
        """Return scores, reconstruction and, where asked for, maps of films, from one pass and in float32."""
        mask = films.mask[:, None]
        wanted = [name for name in self._outputs if name != "map" or maps]
        # What lies off the mask is not part of the film, whatever a cache says of it: no score may see it.
        given = {"film": films.unit()[:, None] * mask, "mask": mask}
        try:
            found = dict(zip(wanted, self._session.run(wanted, given), strict=True))
        except Exception as error:  # onnxruntime has error types of its own, without a common base
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path} can't score films of {mask.shape[-1]} px ({reason})") from None
        scores = np.asarray(found["scores"], np.float64)
        return Prediction(
            {name: scores[:, column] for column, name in enumerate(self.score_names)},
            _pictures(found.get("map")),
            _pictures(found.get("reconstruction")),
        )


def _pictures(output: NDArray[Any] | None) -> NDArray[np.float32] | None:
    """Return an output (N, 1, S, S) as (N, S, S)."""
    return None if output is None else np.asarray(output[:, 0], np.float32)
