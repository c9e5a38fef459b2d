"""Which of several detectors to take: the simplest that can't be told from the best.

The best of many is partly the luckiest, so the highest figure alone does not decide. Of the contenders whose figure is
within TIE standard errors of the best one's, the first is taken, in the order from the simplest on (after the
one-standard-error rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3, with half of it).
The standard error is that of the difference, over the same draws of patients: contenders that err on the same films are
told apart sooner than their intervals suggest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.figures import Interval
from anomaly.evaluation.ranking import Floats, interval_or_none, roc_auc

TIE = 0.5
"""Standard errors of the difference within which two are as good: the simpler one is truly the better one, then, in 31
or more of 100 cases. A whole one, tried first, cost up to .06 on test films (docs/results.md)."""
LEVEL = 0.95
RESAMPLES = 1000
LEAST_PATIENTS = 5
"""Patients of each class that a choice by labels needs: with fewer, the spread over patients can't be estimated."""


@dataclass(frozen=True)
class Contender:
    """One score of one detector, and its figure on the films that the choice is made on."""

    detector: str
    score: str
    figure: float  # higher is better, in [0, 1]
    interval: Interval | None  # at LEVEL, over patients
    drawn: Floats  # (B,) the figure of every draw of patients, the same draws for all contenders; nan where undefined

    @property
    def name(self) -> str:
        """The detector and its score."""
        return f"{self.detector} {self.score}"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and beside what."""

    chosen: Contender
    best: Contender  # the one with the highest figure
    tied: tuple[Contender, ...]  # all within TIE standard errors of the best, itself among them, the simplest first
    error: float  # standard error of the difference of the chosen from the best; 0 where they are one


def choose(contenders: Sequence[Contender]) -> Choice:
    """Return the first of the contenders, which are given from the simplest on, that is tied with the best.

    Raises ValueError where there is none.
    """
    if not contenders:
        raise ValueError("there is nothing to choose from")
    best = max(contenders, key=lambda one: one.figure)  # the first of equals
    errors = {one.name: _error_of_difference(best, one) for one in contenders}
    tied = tuple(one for one in contenders if best.figure - one.figure <= TIE * errors[one.name])
    return Choice(tied[0], best, tied, errors[tied[0].name])


def _error_of_difference(best: Contender, other: Contender) -> float:
    """Return the standard error of the difference over the draws; 0 where they can't tell it."""
    gaps = best.drawn - other.drawn
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.std(ddof=1)) if best is not other and len(gaps) > 1 else 0.0


def labelled_contender(detector: str, score: str, values: Floats, draws: PatientBootstrap) -> Contender:
    """Return a contender judged by labels: the ROC-AUC of films, with its interval over patients.

    values  (N,) the score of each film, in the order of the labels of `draws`, which have both classes.
    """
    figure, drawn = roc_auc(draws.labels, values), draws.figures(values, "roc_auc")
    return Contender(detector, score, figure, interval_or_none(*draws.interval(figure, drawn, LEVEL)), drawn)


def enough_to_choose_by(labels: NDArray[Any], patients: NDArray[Any]) -> bool:
    """Whether labelled films, (N,) and (N,), have LEAST_PATIENTS patients of each class."""
    return all(len(np.unique(patients[labels == label])) >= LEAST_PATIENTS for label in (0, 1))
