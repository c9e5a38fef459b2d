"""Several trained detectors as one: the mean of their standardized scores."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anomaly.data.batch import Batch
from anomaly.models import find_detector
from anomaly.models.base import Detector, Settings, Step


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
        # Asked of the members, not of their classes: an ensemble, which may be a member too, knows it only when made.
        shared = set.intersection(*(set(model.score_names) for model in models))
        self.score_names = tuple(name for name in models[0].score_names if name in shared)  # type: ignore[misc]
        self.supervised = all(model.supervised for model in models)  # type: ignore[misc]
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

    def players(self) -> dict[str, list[nn.Module]]:
        """Its members are trained already."""
        return {}

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """No step."""
        return iter(())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Nothing is chosen: 0."""
        return torch.zeros(len(batch.film), device=batch.film.device)

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Take mean and spread of each member's scores on normal films that it was not trained on."""
        parts = [self._members(batch) for batch in normals]
        values = torch.cat(parts).double()  # (n, members, scores)
        self.logarithm = (values > 0).all(dim=0)
        values = torch.where(self.logarithm, values.clamp(min=TINY).log(), values)
        self.shift = values.mean(dim=0).float()
        self.spread = values.std(dim=0, correction=0).clamp(min=TINY).float()

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean of the members' standardized scores, name by name: 0 is the usual normal film.

        Of supervised members the mean of their probabilities: that is one too.
        """
        values = self._members(batch)
        if self.supervised:
            return dict(zip(self.score_names, values.mean(dim=1).unbind(dim=1), strict=True))
        values = torch.where(self.logarithm, values.clamp(min=TINY).log(), values)
        mean = ((values - self.shift) / self.spread).mean(dim=1)  # (N, scores)
        return dict(zip(self.score_names, mean.unbind(dim=1), strict=True))

    def anomaly_map(self, batch: Batch) -> Tensor | None:
        """Return the mean of the members' maps, each divided by its own scale."""
        maps = [
            member.anomaly_map(batch) / scale
            for member, scale in zip(self._detectors(), self.scale.tolist(), strict=True)
            if scale > 0
        ]
        return torch.stack(maps).mean(dim=0) if maps else None

    def reconstruct(self, batch: Batch) -> Tensor | None:
        """Return the mean of the members' reconstructions."""
        made = [x for member in self._detectors() if (x := member.reconstruct(batch)) is not None]
        return torch.stack(made).mean(dim=0) if made else None

    def _members(self, batch: Batch) -> Tensor:
        """Return every member's score: (N, members, scores)."""
        each = [member.scores(batch) for member in self._detectors()]
        return torch.stack([torch.stack([s[name].float() for name in self.score_names], dim=1) for s in each], dim=1)

    def _detectors(self) -> list[Any]:
        return list(self.members)


def _build(member: Mapping[str, Any], size: int) -> Detector:
    kind = find_detector(member["model"])
    return kind(kind.Config(**member["settings"]), size)


TINY = 1e-12
"""A score of exactly 0 has no logarithm."""
