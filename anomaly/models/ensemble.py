"""Several trained detectors as one: by the p-values of their scores, and by the mean of the scores they share."""

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
from anomaly.nn.p_values import TINY, PValue
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

    `fisher`       mean of -log p over the members, p the share of held-out normal films whose score is as high
                   (`PValue`): Fisher's combination of tests (1932), divided by their number. About 1 on a usual normal
                   film. One member that is sure outweighs others that see nothing, as detectors of different findings
                   need it. Members aren't independent, so that it has no chi-square distribution: what is usual of
                   normal films is measured, not computed.
    any other      of the scores that all members have, the mean, each in standard deviations of held-out normal films.
                   A score that is positive on all of them is taken by its logarithm first: errors are spread over
                   orders of magnitude, and one member's large errors must not drown the others. 0 on a usual one.

    Members that all learned from labels have the mean of their probabilities, a probability too, and no `fisher`. The
    map is Fisher's combination pixel by pixel: the mean of -log p, p the share of pixels of normal films as high.
    """

    Config = EnsembleConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    map_unit = "mean -log p among pixels of normal films"

    shift: Tensor  # (members, shared scores) mean on normal films
    spread: Tensor  # (members, shared scores) and standard deviation
    logarithm: Tensor  # (members, shared scores) bool: whether of the logarithm

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
        shape = len(models), len(self.shared)
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("logarithm", torch.zeros(shape, dtype=torch.bool))
        self.score_p = nn.ModuleList(PValue() for _ in models)
        self.map_p = nn.ModuleList(PValue() for _ in models)

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

        Raises InputError where a score is the same on all of them.
        """
        parts = []
        for batch in normals:
            predictions = self._predictions(batch, maps=False)
            parts.append((self._shared_scores(predictions), self._chosen_scores(predictions)))
        shared, chosen = (torch.cat(columns).double() for columns in zip(*parts, strict=True))
        self.logarithm = (shared > 0).all(dim=0)
        values = torch.where(self.logarithm, shared.clamp(min=TINY).log(), shared)
        self.shift = values.mean(dim=0).float()
        self.spread = values.std(dim=0, correction=0).clamp(min=TINY).float()
        if FISHER not in self.score_names:
            return
        for number, (name, p_value) in enumerate(zip(self.chosen, self.score_p, strict=True)):
            own = chosen[:, number]
            if own.min() == own.max():
                raise InputError(
                    f"score {name} of member {number + 1} is {own[0]:g} on all {len(own)} normal validation films, "
                    "so that none is seldom: name another score of it with RUN:SCORE, or leave it out"
                )
            p_value.fit(own)  # type: ignore[operator]

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
        values = self._shared_scores(predictions)
        if self.targets != "labels":
            values = torch.where(self.logarithm, values.clamp(min=TINY).log(), values)
            values = (values - self.shift) / self.spread
        scores = dict(zip(self.shared, values.mean(dim=1).unbind(dim=1), strict=True))
        if FISHER in self.score_names:
            chosen = self._chosen_scores(predictions)
            each = [p_value(chosen[:, i]) for i, p_value in enumerate(self.score_p)]
            scores = {FISHER: torch.stack(each).mean(dim=0), **scores}
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

    def _shared_scores(self, predictions: list[Prediction]) -> Tensor:
        """Return every member's shared scores: (N, members, shared scores)."""
        count = len(next(iter(predictions[0].scores.values())))
        columns = [p.scores[name].float() for p in predictions for name in self.shared]
        rows = torch.stack(columns, dim=1) if columns else self.shift.new_zeros(count, 0)
        return rows.view(count, len(predictions), len(self.shared))

    def _chosen_scores(self, predictions: list[Prediction]) -> Tensor:
        """Return the score of each member that enters `fisher`: (N, members)."""
        each = [prediction.scores[name].float() for prediction, name in zip(predictions, self.chosen, strict=True)]
        return torch.stack(each, dim=1)


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
