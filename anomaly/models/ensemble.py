"""Several trained detectors as one: the mean of their standardized scores."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anomaly.data.batch import Batch
from anomaly.models import find_detector
from anomaly.models.base import Detector, Prediction, Settings


class EnsembleConfig(Settings):
    """Who is in it; written by `anomaly ensemble`, not by hand."""

    members: list[dict[str, Any]]
    """Model and settings of each: {"model": name, "settings": {...}}."""


class Ensemble(Detector):
    """The members' scores in standard deviations of normal films, and their mean.

    A score that is positive on every normal film is taken by its logarithm first: errors are spread over orders of
    magnitude, and one member's large errors must not drown the others.
    """

    Config = EnsembleConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    map_unit = "times the scale of its members"

    shift: Tensor  # (members, scores) mean on normal films
    spread: Tensor  # (members, scores) and standard deviation
    logarithm: Tensor  # (members, scores) bool: whether of the logarithm
    scale: Tensor  # (members,) greatest usual value of each member's map on normal films; 0 where it draws none

    def __init__(self, config: EnsembleConfig, size: int) -> None:
        """Build the members; every film has `size` x `size` pixels for all of them."""
        super().__init__()
        models = [_build(member, size) for member in config.members]
        self.members = nn.ModuleList(models)
        # Asked of the members, not of their classes: an ensemble, which may be a member too, knows it only when built.
        shared = set.intersection(*(set(model.score_names) for model in models))
        self.score_names = tuple(name for name in models[0].score_names if name in shared)  # type: ignore[misc]
        labelled = all(model.targets == "labels" for model in models)
        self.targets = "labels" if labelled else "none"  # type: ignore[misc]
        shape = len(models), len(self.score_names)
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("logarithm", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("scale", torch.zeros(len(models)))

    @classmethod
    def check_size(cls, config: EnsembleConfig, size: int) -> str | None:
        """What its members say."""
        for member in config.members:
            kind = find_detector(member["model"])
            if reason := kind.check_size(kind.Config(**member["settings"]), size):
                return reason
        return None

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Take mean and spread of each member's scores on normal films that it was not trained on."""
        parts = [self._scores_of(self._predictions(batch, maps=False)) for batch in normals]
        values = torch.cat(parts).double()  # (n, members, scores)
        self.logarithm = (values > 0).all(dim=0)
        values = torch.where(self.logarithm, values.clamp(min=TINY).log(), values)
        self.shift = values.mean(dim=0).float()
        self.spread = values.std(dim=0, correction=0).clamp(min=TINY).float()

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the mean of the members' standardized scores, name by name: 0 is the usual normal film.

        Of supervised members the mean of their probabilities: that is one too. The map is the mean of the members'
        maps, each divided by its own scale; the reconstruction the mean of theirs.
        """
        predictions = self._predictions(batch, maps=maps)
        values = self._scores_of(predictions)
        if self.targets != "labels":
            values = torch.where(self.logarithm, values.clamp(min=TINY).log(), values)
            values = (values - self.shift) / self.spread
        scores = dict(zip(self.score_names, values.mean(dim=1).unbind(dim=1), strict=True))
        scaled = [
            prediction.map / scale
            for prediction, scale in zip(predictions, self.scale.tolist(), strict=True)
            if scale > 0 and prediction.map is not None
        ]
        films = [prediction.reconstruction for prediction in predictions if prediction.reconstruction is not None]
        return Prediction(
            scores,
            torch.stack(scaled).mean(dim=0) if scaled else None,
            torch.stack(films).mean(dim=0) if films else None,
        )

    def _predictions(self, batch: Batch, *, maps: bool) -> list[Prediction]:
        """Return every member's prediction."""
        members: list[Any] = list(self.members)
        return [member.predict(batch, maps=maps) for member in members]

    def _scores_of(self, predictions: list[Prediction]) -> Tensor:
        """Return every member's shared scores: (N, members, scores)."""
        rows = [torch.stack([p.scores[name].float() for name in self.score_names], dim=1) for p in predictions]
        return torch.stack(rows, dim=1)


def _build(member: Mapping[str, Any], size: int) -> Detector:
    kind = find_detector(member["model"])
    return kind(kind.Config(**member["settings"]), size)


TINY = 1e-12
"""A score of exactly 0 has no logarithm."""
