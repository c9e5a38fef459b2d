"""The detectors that `anomaly auto` tries, from the simplest and cheapest on, and what each costs on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

from anomaly.data.batch import as_batch, batches
from anomaly.data.dataset import Films, FilmSet
from anomaly.models.base import Detector
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import Prepared
from anomaly.training.config import Precision
from anomaly.training.device import choose_device
from anomaly.training.trainer import Trainer
from preprocessing import InputError

PROBED = 6
"""Films that a candidate's cost is measured on; more where its reference needs more."""
PATIENCE_SECONDS = 3.0
"""What takes longer on these is not measured a second time."""
OVERHEAD_SECONDS = 5.0
"""Of a candidate: opening, pictures, writing."""
LEAST_EPOCHS = 0.4
"""Share of its epochs that a training must get: less would say nothing about the detector."""


@dataclass(frozen=True)
class Candidate:
    """A detector with settings, and the few of its scores that may be chosen, the likeliest first."""

    name: str  # of its run folder
    model: str
    preset: str
    scores: tuple[str, ...]
    size: int | None = None  # side in pixels that it is given films at; None: that of the cache
    settings: tuple[str, ...] = ()
    floor: bool = False  # whether it is what the others have to beat

    def plan(self, base: Plan, cache_size: int, epochs: int | None = None) -> Plan:
        """Return what is trained: of `base` the films, the seeds, the device.

        epochs  at most, where the preset's don't fit.
        """
        settings = [*self.settings]
        settings += [f"size={self.size}"] if self.size is not None and self.size < cache_size else []
        settings += [f"epochs={epochs}"] if epochs is not None else []
        return Plan(
            self.model,
            base.cache,
            base.variant,
            self.preset,
            tuple(settings),
            base.seed,
            base.split_seed,
            base.device,
            base.precision,
            base.where,
        )


CANDIDATES = (
    Candidate("contrast_density", "contrast_density", "standard", ("atypicality",), floor=True),
    Candidate(
        "feature_mixture-small", "feature_mixture", "diffuse", ("top50", "max"), 128, settings=("components=200",)
    ),
    Candidate("feature_mixture-fast", "feature_mixture", "fast", ("top50", "max")),
    Candidate("cae-small", "cae", "fast", ("mixture", "mse"), 64, settings=("code_channels=4",)),
    Candidate("feature_mixture-standard", "feature_mixture", "standard", ("top50", "max")),
    Candidate("feature_mixture-diffuse", "feature_mixture", "diffuse", ("top50", "max")),
    Candidate("feature_mixture-focal", "feature_mixture", "focal", ("max", "top50")),
    Candidate("synthetic-small", "synthetic", "fast", ("peak", "mixture"), 128),
)
"""Of several figures within half a standard error, that of the first is chosen. No VAE: on the sets measured it was no
better than the CAE (docs/results.md)."""


@dataclass(frozen=True)
class Cost:
    """What a candidate takes on this machine, in seconds, by a probe on a few films."""

    fixed: float  # its reference, its calibration, its scores of validation films
    epoch: float  # of training; 0 where nothing is trained
    epochs: int  # that its preset has, at most
    predict: float  # of one film

    @property
    def least(self) -> float:
        """The seconds of the shortest training that is worth while."""
        return self.fixed + self.least_epochs * self.epoch

    @property
    def least_epochs(self) -> int:
        """The epochs of that."""
        return max(1, round(LEAST_EPOCHS * self.epochs)) if self.epoch else 0

    def fitting_epochs(self, seconds: float) -> int:
        """Return how many epochs fit, of those that the preset has."""
        return self.epochs if not self.epoch else min(self.epochs, int((seconds - self.fixed) / self.epoch))

    def seconds(self, epochs: int) -> float:
        """Return what so many epochs take, with all that comes after."""
        return self.fixed + epochs * self.epoch

    def at_pace(self, pace: float) -> "Cost":
        """Return it for a machine that is so many times slower than the probe found."""
        return Cost(self.fixed * pace, self.epoch * pace, self.epochs, self.predict * pace)


def probe(prepared: Prepared, scored: int) -> Cost:
    """Measure a candidate on a few of its training films.

    scored  films that it is to score after the training. Raises InputError where it can't be fitted to these films.
    """
    films, device = prepared.films("train"), choose_device(prepared.plan.device)
    torch.manual_seed(prepared.plan.seed)
    model = cast("Detector", prepared.model(prepared.model_config, prepared.config.size)).to(device)
    if prepared.config.weights:
        model.load_pretrained(Path(prepared.config.weights.file))
    part = _some(films, PROBED)
    epoch = _epoch_seconds(model, prepared, part) * len(films) if model.players() else 0.0
    model.eval()
    reference, part = _reference_seconds(model, films, part, device)
    few = part.part(slice(0, PROBED))
    predict = _seconds(lambda: model.predict(as_batch(few, device), maps=True)) / len(few)
    # The films are calibrated on once with maps, and scored once more.
    fixed = OVERHEAD_SECONDS + reference * len(films) + predict * (len(prepared.films("val")) + scored)
    return Cost(fixed, epoch, prepared.training.most_epochs, predict)


def _some(films: FilmSet, count: int) -> Films:
    places = np.linspace(0, len(films) - 1, min(count, len(films))).round().astype(np.int64)
    return films.part(np.unique(places))


def _epoch_seconds(model: Detector, prepared: Prepared, part: Films) -> float:
    """Return the seconds that a film takes in an epoch."""
    trainer = Trainer(
        model,
        prepared.training,
        part,
        part.part(np.arange(min(2, len(part)))),
        seed=0,
        device=choose_device(prepared.plan.device),
        precision=cast("Precision", prepared.config.precision),
        workers=0,
    )
    return min(trainer.train_epoch(number)["seconds"] for number in (1, 2)) / len(part)


def _reference_seconds(model: Detector, films: FilmSet, part: Films, device: torch.device) -> tuple[float, Films]:
    """Return the seconds that a film takes when the reference is fitted, and the films that it was fitted to.

    Where these are too few for it, three times as many are taken, up to all.
    """
    while True:
        try:
            return _seconds(partial(model.fit_reference, batches(part, device))) / len(part), part
        except InputError:
            if len(part) >= len(films):
                raise
            part = _some(films, 3 * len(part))


def _seconds(work: Callable[[], object]) -> float:
    """Return what some work takes: the shorter of two times, as the first call of a network prepares its kernels.

    What takes long is not done twice.
    """
    first = _once(work)
    return min(first, _once(work)) if first < PATIENCE_SECONDS else first


def _once(work: Callable[[], object]) -> float:
    start = time.monotonic()
    with torch.inference_mode():
        work()
    return time.monotonic() - start
