"""Ceilings, not detectors: how well observers that know a lesion's place and shape tell built-in films apart.

Each abnormal film of a set by `anomaly phantom` (SYNTHETIC) is drawn again at 256 px, beside its normal twin: the same
hand, view and noise without the finding. Two observers, both linear and both told place and shape:

ideal            to whom structure is noise, independent from pixel to pixel: the mean over films of Phi(d' / sqrt(2)),
                 d' as the film's JSON has it under `detectability`; so much is the ROC-AUC of two normal distributions
                 of equal variance whose means lie d' standard deviations apart.
matched filter   that must use the structure as it is: the change, divided by the twin's local variance, is correlated
                 with the film less its local mean (Gaussian, 6 pixels), for the film and for its twin; ROC-AUC over
                 films and twins together. The template is taken from noise-free drawings.

The first is a ceiling for any detector. The second shows how much of it the structure of an unknown hand costs one
simple observer; across kinds its responses are not comparable, so that pooled figures lie below those of kinds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import erf

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.ranking import roc_auc
from preprocessing.phantom import FilmPlan, observe

RESAMPLES = 1000


@dataclass(frozen=True)
class Observed:
    """One abnormal film and what the observers make of it."""

    plan: FilmPlan
    detectability: float  # d'
    response: float  # of the matched filter to the film, in units of its noise
    response_to_twin: float


def observe_films(plans: Iterable[FilmPlan], seed: int) -> Iterator[Observed]:
    """Let the observers look at every abnormal film among those planned; `seed` is that of the set."""
    for plan in plans:
        if plan.finding:
            seen = observe(plan, seed=seed)
            shown = [film - cv2.GaussianBlur(film, (0, 0), 6.0) for film in (seen.film, seen.twin)]
            responses = [float((seen.template * film).sum()) for film in shown]
            yield Observed(plan, seen.visibility.detectability, *responses)


def mean_ideal(films: Sequence[Observed]) -> float:
    """The ideal observer's ROC-AUC, mean over films."""
    return float(np.mean([0.5 + 0.5 * erf(film.detectability / 2) for film in films]))


def matched_filter(films: Sequence[Observed]) -> float:
    """The matched filter's ROC-AUC, films against twins."""
    responses = [film.response for film in films] + [film.response_to_twin for film in films]
    return roc_auc([1] * len(films) + [0] * len(films), responses)


def observer_interval(
    films: Sequence[Observed], figure: Callable[[Sequence[Observed]], float], *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of an observer's figure over draws of patients."""
    by_patient: dict[int, list[Observed]] = {}
    for film in films:
        by_patient.setdefault(film.plan.patient, []).append(film)
    groups = list(by_patient.values())
    rng = np.random.default_rng(seed)
    drawn: NDArray[np.int64] = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    figures = [figure([film for number in row for film in groups[number]]) for row in drawn]
    low, high = np.quantile(figures, (0.025, 0.975))
    return float(low), float(high)
