"""Several trained detectors as one, by the p-values of their scores among normal films."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomaly.data.batch import Batch
from anomaly.models import find_detector
from anomaly.models.base import Detector, Prediction, Settings
from anomaly.nn.filters import area_resize
from anomaly.nn.p_values import PValue
from preprocessing import InputError

FISHER = "fisher"
"""The score that all unsupervised ensembles have."""
PIXELS = 2048
"""Of each normal film's map, taken evenly from under its mask: what p-values of pixels are fitted to."""


class Member(Settings):
    """One of the detectors that an ensemble is made of."""

    model: str
    """Its name."""
    settings: dict[str, Any]
    """Its settings."""
    size: int
    """Side of its films in pixels."""
    score: str
    """The score that enters `fisher`."""


class EnsembleConfig(Settings):
    """Who is in it; written by `anomaly ensemble`, not by hand."""

    members: list[Member]


class Ensemble(Detector):
    """Several detectors, which may be different ones, at different sizes of one film.

    Each score is the mean over the members of -log p, p the share of held-out normal films whose score is as high
    (`PValue`): Fisher's combination of tests (1932), divided by their number. About 1 on a usual normal film. One
    member that is sure outweighs others that see nothing, as detectors of different findings need it. Members aren't
    independent, so that it has no chi-square distribution: what is usual of normal films is measured, not computed.

    `fisher`       of the score that was chosen of each member
    any other      of that score, which all members have

    Members that all learned from labels have the mean of their probabilities, a probability too, and no `fisher`. The
    map is combined in the same way pixel by pixel: the mean of -log p, p the share of pixels of normal films as high.
    """

    Config = EnsembleConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    map_unit = "mean -log p among pixels of normal films"

    def __init__(self, config: EnsembleConfig, size: int) -> None:
        """Build the members; films have `size` x `size` pixels, and are reduced for members that take smaller ones."""
        super().__init__()
        self.sizes = [member.size for member in config.members]
        if max(self.sizes) > size:
            raise ValueError(f"members of {max(self.sizes)} px can't be shown films of {size} px")
        self.chosen = [member.score for member in config.members]
        models = [_build(member) for member in config.members]
        self.members = nn.ModuleList(models)
        # Asked of the members, not of their classes: an ensemble, which may be a member too, knows it only when built.
        common = set.intersection(*(set(model.score_names) for model in models)) - {FISHER}
        self.shared = tuple(name for name in models[0].score_names if name in common)
        labelled = bool(common) and all(model.targets == "labels" for model in models)
        self.targets = "labels" if labelled else "none"  # type: ignore[misc]
        self.score_names = self.shared if labelled else (FISHER, *self.shared)  # type: ignore[misc]
        self.map_p = nn.ModuleList(PValue() for _ in models)
        fitted = 0 if labelled else len(self.score_names) * len(models)
        self.score_p = nn.ModuleList(PValue() for _ in range(fitted))  # of each score, of each member

    @classmethod
    def check_size(cls, config: EnsembleConfig, size: int) -> str | None:
        """What its members say."""
        for member in config.members:
            kind = find_detector(member.model)
            if reason := kind.check_size(kind.Config(**member.settings), member.size):
                return reason
        return None

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Take the distribution of each member's scores on normal films that it was not trained on.

        Raises InputError where the score that enters `fisher` is the same on all of them.
        """
        if self.targets == "labels":
            return
        parts = [self._columns(self._predictions(batch, maps=False)) for batch in normals]
        columns = torch.cat(parts, dim=2)  # (scores, members, n)
        for number, values in enumerate(columns[self.score_names.index(FISHER)]):
            if values.min() == values.max():
                raise InputError(
                    f"score {self.chosen[number]} of member {number + 1} is {values[0]:g} on all {len(values)} normal "
                    "validation films, so that none is seldom: name another score of it with RUN:SCORE, or leave it out"
                )
        for values, p_value in zip(columns.flatten(0, 1), self.score_p, strict=True):
            p_value.fit(values)  # type: ignore[operator]

    def fit_maps(self, normals: Iterable[Batch]) -> None:
        """Take the distribution of the pixels of each member's map on normal films; some 100 films say enough."""
        pixels: list[list[Tensor]] = [[] for _ in self.members]
        for batch in normals:
            for own, prediction in zip(pixels, self._predictions(batch, maps=True), strict=True):
                if prediction.map is not None:
                    own += [_evenly(film[mask]) for film, mask in zip(prediction.map, batch.mask, strict=True)]
        for own, p_value in zip(pixels, self.map_p, strict=True):
            values = torch.cat(own) if own else torch.zeros(0)
            if len(values) >= 2:
                p_value.fit(values)  # type: ignore[operator]

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the scores named above; the map, and the mean reconstruction of members of the ensemble's size."""
        predictions = self._predictions(batch, maps=maps)
        columns = self._columns(predictions)
        if self.targets != "labels":
            pairs = zip(columns.flatten(0, 1), self.score_p, strict=True)
            columns = torch.stack([p_value(values) for values, p_value in pairs]).view_as(columns)
        scores = dict(zip(self.score_names, columns.mean(dim=1), strict=True))
        drawn = [
            p(prediction.map)
            for prediction, p in zip(predictions, self.map_p, strict=True)
            if prediction.map is not None
        ]
        films = [
            prediction.reconstruction
            for prediction in predictions
            if prediction.reconstruction is not None and prediction.reconstruction.shape == batch.film.shape
        ]
        return Prediction(
            scores,
            torch.stack(drawn).mean(dim=0) * batch.mask if drawn else None,
            torch.stack(films).mean(dim=0) if films else None,
        )

    def _predictions(self, batch: Batch, *, maps: bool) -> list[Prediction]:
        """Return every member's prediction, maps at the size of the batch's films."""
        members: list[Any] = list(self.members)
        reduced = {size: _reduced(batch, size) for size in set(self.sizes)}
        predictions = [m.predict(reduced[size], maps=maps) for m, size in zip(members, self.sizes, strict=True)]
        return [
            p if p.map is None or p.map.shape == batch.film.shape else replace(p, map=_enlarged(p.map, batch))
            for p in predictions
        ]

    def _columns(self, predictions: list[Prediction]) -> Tensor:
        """Return the members' scores that each score of the ensemble is made of: (scores, members, N)."""
        names = [self.chosen if name == FISHER else [name] * len(predictions) for name in self.score_names]
        rows = [[p.scores[own].float() for p, own in zip(predictions, row, strict=True)] for row in names]
        return torch.stack([torch.stack(row) for row in rows])


def _build(member: Member) -> Detector:
    kind = find_detector(member.model)
    return kind(kind.Config(**member.settings), member.size)


def _reduced(batch: Batch, size: int) -> Batch:
    """Return the films at `size` x `size` pixels, as `FilmSet` reads them, but for the rounding to stored levels."""
    if size == batch.film.shape[2]:
        return batch
    mask = area_resize(batch.mask.float(), size) >= 0.5
    return replace(batch, film=area_resize(batch.film, size) * mask, mask=mask, corrupted=None, foreground=None)


def _enlarged(map: Tensor, batch: Batch) -> Tensor:
    return interpolate(map, size=batch.film.shape[2:], mode="bilinear", align_corners=False) * batch.mask


def _evenly(values: Tensor) -> Tensor:
    """Return at most PIXELS of the values: (n,) -> (k,)."""
    return values[:: -(-len(values) // PIXELS) or 1].float().cpu()
