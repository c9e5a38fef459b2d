"""A run's detector as PyTorch computes it. Of the way from films to scores, only this side imports torch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.batch import as_batch, batches
from anomaly.data.dataset import Films, FilmSet, Targets
from anomaly.evaluation.scorer import Backend, Prediction
from anomaly.models import find_detector
from anomaly.models.base import Detector, Model
from anomaly.runs import Run
from anomaly.training.device import choose_device
from anomaly.training.weights import load_best_checkpoint, load_weights

PROCESSOR_PIXELS, LEAST_FILMS = 2**18, 4
"""Pixels of the films that go through a network at a time on a processor, and films at least. At 128 px batches of 16
are a fifth faster than of 64 (CAE, DCGAN)."""


class TorchScorer:
    """A detector on a device, in evaluation mode."""

    backend: Backend = "torch"

    def __init__(self, detector: Detector, device: torch.device) -> None:
        self.detector, self.device = detector, device

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores it gives; the first one is reported first."""
        return self.detector.score_names

    @property
    def map_unit(self) -> str:
        """The unit of its maps."""
        return self.detector.map_unit

    @property
    def targets(self) -> Targets:
        """What it learned from."""
        return self.detector.targets

    @property
    def refits(self) -> bool:
        """Whether what its scores compare with can be fitted to other films."""
        return type(self.detector).fit_reference is not Model.fit_reference

    def predict_films(self, films: Films, *, maps: bool = False) -> Prediction:
        """Return scores, reconstruction and, where asked for, maps of films, from one pass and in float32."""
        parts = []
        with torch.inference_mode():
            for some in self._parts(films):
                parts.append(self.detector.predict(as_batch(some, self.device), maps=maps))
        return Prediction(
            {
                name: np.concatenate([part.scores[name].double().cpu().numpy() for part in parts])
                for name in parts[0].scores
            },
            _array([part.map for part in parts]),
            _array([part.reconstruction for part in parts]),
        )

    def _parts(self, films: Films) -> Iterator[Films]:
        """Yield the films as the network takes them: on a processor, as many as its cache holds the maps of."""
        count = len(films)
        if self.device.type == "cpu":
            count = max(LEAST_FILMS, PROCESSOR_PIXELS // films.film.shape[1] ** 2)
        for start in range(0, max(1, len(films)), max(1, count)):
            yield films.part(slice(start, start + count))

    def fit_reference(self, films: FilmSet) -> None:
        """Fit what scores compare with to normal films."""
        with torch.inference_mode():
            self.detector.fit_reference(batches(films, self.device))


def trained_scorer(run: Run, device: str, refitted: Path | None = None) -> TorchScorer:
    """Return the detector of a finished run; refitted: a file of tensors in place of those of the run."""
    chosen = choose_device(device)
    return TorchScorer(load_weights(run, find_detector(run.config.model), chosen, refitted), chosen)


def best_scorer(run: Run, device: str) -> tuple[TorchScorer, int, int]:
    """Return the best detector so far of an unfinished run, the epoch it is of, and how many epochs are done.

    What its scores compare with is not fitted yet.
    """
    chosen = choose_device(device)
    detector, best_epoch, epochs = load_best_checkpoint(run, find_detector(run.config.model), chosen)
    return TorchScorer(detector, chosen), best_epoch, epochs


def _array(parts: list[torch.Tensor | None]) -> NDArray[np.float32] | None:
    """Return pictures (k, 1, S, S) of some films each as one array (n, S, S), or None where there are none."""
    drawn = [part[:, 0].float().cpu().numpy() for part in parts if part is not None]
    return np.concatenate(drawn) if drawn else None
