"""Confidence intervals over patients, and comparisons of scores on the same patients.

**Intervals** answer "what if other patients had come?". Patients are drawn with replacement, all their films with them,
and the standard error of the figure over these draws, divided by the slope p (1 - p) of the logit, is that of its
logit. The interval is symmetric there around the estimate, with Student's t at (patients of the rarer class - 1)
degrees of freedom: it stays inside [0, 1], and keeps its nominal coverage where patients are few. In simulations at
95 % (`benchmarks/coverage.py`: 30, 100 and 300 patients, half of them abnormal, three films each, true ROC-AUC .60, .75
and .95) it covers .944 to .974, the plain percentile bootstrap by patient .852 to .948, one that draws films .722 to
.790; with 5 patients against 40 to 20 against 80 it covered .937 to .982, with 2 against 40 always. Degenerate cases:

- One class only: the figure and its interval are nan (None in metrics.json, as JSON has no nan).
- Fewer than two patients of a class: the figure stands, its interval is nan.
- Complete separation (figure 0 or 1): no draw differs, so the draws say nothing. n disjoint pairs of patients were all
  ranked alike, an event of probability AUC^n, so the far limit is the binomial one, (alpha / 2)^(1 / n) for 1, with n
  the patients of the rarer class.
- A draw that misses a class is left out.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from anomaly.evaluation.figures import Difference
from anomaly.evaluation.ranking import (
    Floats,
    Integers,
    average_precision,
    checked_scores,
    finite_or_none,
    interval_or_none,
    ratio,
    roc_auc,
    weighted_average_precision,
)

Metric = Literal["roc_auc", "ap"]

_CELLS = 2**18  # films x draws at a time: the resampling takes megabytes, which a processor has at hand


# ---------------------------------------------------------------------------------------------------------- intervals


def interval(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    metric: Metric = "roc_auc",
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The confidence interval of a figure over patients, by the rule at the top of this file; (nan, nan) if undefined.

    labels  (N,) 0 or 1.    scores  (N,) finite.    patients  (N,) whose film it is, any names.    The same seed and
    patients give the same draws, whatever the scores: intervals of several scores can be compared.
    """
    truth, score = checked_scores(labels, scores)
    draws = PatientBootstrap(truth, patients, resamples=resamples, seed=seed)
    return draws.interval(ESTIMATES[metric](truth, score), draws.figures(score, metric), level)


def mean_interval(values: ArrayLike, patients: ArrayLike, *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """The mean over films and its interval over patients; (nan, nan) with fewer than two patients.

    values  (N,) finite.    patients  (N,) whose film it is.    The films of a patient vary together: the variance is
    that of the patients' summed residuals (Liang and Zeger 1986), the quantile Student's with one degree of freedom
    less than there are patients.

    >>> mean_interval([1.0, 3.0], ["a", "b"])[0]
    2.0
    """
    value = np.asarray(values, np.float64)
    _, whose = np.unique(np.asarray(patients), return_inverse=True)
    mean, count = float(value.mean()), int(whose.max()) + 1
    if count < 2:
        return mean, (math.nan, math.nan)
    from scipy.special import stdtrit

    residual = np.bincount(whose, weights=value - mean)  # (patients,)
    deviation = math.sqrt(count / (count - 1) * float(np.square(residual).sum())) / len(value)
    reach = float(stdtrit(count - 1, 0.5 + level / 2)) * deviation
    return mean, (mean - reach, mean + reach)


@dataclass(frozen=True)
class Comparison:
    """A difference of two ROC-AUCs on the same films, its interval, and the two-sided p-value of no difference.

    low, high and p are nan where they are undefined: one class only, fewer than two patients of a class, or no draw
    that differs.
    """

    difference: float
    low: float
    high: float
    p: float

    def figures(self) -> Difference:
        """As figures for JSON, None for nan."""
        return Difference(
            difference=self.difference, interval=interval_or_none(self.low, self.high), p=finite_or_none(self.p)
        )


def paired(
    labels: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    patients: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """ROC-AUC of score a minus that of score b, both on the same draws of patients.

    Normal interval and p-value with the standard error of the difference over the draws. Scores that rank alike differ
    by 0 with p = 1. labels  (N,) 0 or 1.    a, b  (N,) finite.    patients  (N,) whose film it is.
    """
    truth, first = checked_scores(labels, a)
    _, second = checked_scores(labels, b)
    draws = PatientBootstrap(truth, patients, resamples=resamples, seed=seed)
    return draws.comparison(
        roc_auc(truth, first) - roc_auc(truth, second),
        draws.figures(first, "roc_auc") - draws.figures(second, "roc_auc"),
        level,
    )


class PatientBootstrap:
    """Patients drawn with replacement, kept as how often each patient was drawn: one set serves every score and figure.

    labels  (N,) 0 or 1.    patients  (N,) whose film it is, any names.    resamples  B draws, at least 2. The same seed
    and patients give the same draws. Raises ValueError on lengths that differ or fewer draws.
    """

    def __init__(self, labels: Integers, patients: ArrayLike, *, resamples: int, seed: int) -> None:
        names, self.patient = np.unique(np.asarray(patients), return_inverse=True)  # (P,), (N,)
        if self.patient.shape != labels.shape:
            raise ValueError(f"{len(labels)} labels but {self.patient.size} patients: one patient a film")
        if resamples < 2:
            raise ValueError(f"{resamples} resamples: a standard error needs at least 2")
        self.labels = labels
        self.resamples = resamples
        self.classes = [np.unique(self.patient[labels == label]).size for label in (0, 1)]
        self.counts = np.zeros((resamples, len(names)), np.uint16)  # (B, P)
        generator = np.random.default_rng(seed)
        for row in range(resamples if len(names) else 0):
            self.counts[row] = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))

    @property
    def n_patients(self) -> int:
        """How many patients the films are of."""
        return int(self.counts.shape[1])

    @property
    def enough(self) -> bool:
        """Whether there are enough patients for an interval: two of each class."""
        return min(self.classes) >= 2

    def restricted(self, labels: Integers, patient: Integers) -> "PatientBootstrap":
        """The same draws for other films of these patients, so that figures of both can be compared draw by draw.

        labels  (n,) 0 or 1.    patient  (n,) whose film it is, as an index into the patients drawn (see `patient`).
        """
        subset = copy.copy(self)
        subset.labels, subset.patient = labels, patient
        subset.classes = [np.unique(patient[labels == label]).size for label in (0, 1)]
        return subset

    def figures(self, scores: Floats, metric: Metric) -> Floats:
        """The figure of every draw, (B,): a film counts as often as its patient came. Nan where a class is missing."""
        if not self.enough:
            return np.full(self.resamples, math.nan)
        if metric == "roc_auc":
            return self._roc_auc(scores)
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # (G,) where a new score begins
        abnormal, patient = self.labels[order] == 1, self.patient[order]
        step = max(1, _CELLS // len(scores))
        parts = []
        for start in range(0, self.resamples, step):
            weight = self.counts[start : start + step][:, patient].astype(np.float64)  # (b, N)
            parts.append(
                weighted_average_precision(
                    np.add.reduceat(weight * abnormal, starts, axis=1),
                    np.add.reduceat(weight * ~abnormal, starts, axis=1),
                )
            )
        return np.concatenate(parts)

    def _roc_auc(self, scores: Floats) -> Floats:
        """The ROC-AUC of every draw, (B,), from whole and half numbers of pairs won, which float64 keeps exactly."""
        order = np.argsort(scores, kind="stable")
        abnormal = self.labels[order] == 1
        above, rivals = scores[order[abnormal]], scores[order[~abnormal]]  # (A,), (M,) rising
        owners, others = self.patient[order[abnormal]], self.patient[order[~abnormal]]
        below, upto = np.searchsorted(rivals, above), np.searchsorted(rivals, above, "right")  # (A,) normal films
        step = max(1, _CELLS // len(scores))
        parts = []
        for start in range(0, self.resamples, step):
            counts = np.ascontiguousarray(self.counts[start : start + step].T)  # (P, b)
            beaten = np.zeros((len(rivals) + 1, counts.shape[1]))  # normal films by the rising scores
            np.cumsum(counts[others], axis=0, dtype=np.float64, out=beaten[1:])
            weight = counts[owners].astype(np.float64)  # (A, b)
            won = np.einsum("ab,ab->b", weight, beaten[below] + beaten[upto]) / 2  # a tie is half of either
            parts.append(ratio(won, weight.sum(axis=0) * beaten[-1]))
        return np.concatenate(parts)

    def roc_band(self, scores: Floats, at: Floats, level: float = 0.95) -> tuple[Floats, Floats] | None:
        """A pointwise confidence band of the ROC curve: its lower and upper limit over the shares `at`, (K,) and (K,).

        scores  (N,) finite.    at  (K,) rising, in [0, 1]: shares of normal films flagged. Each draw gives a curve, a
        film counting as often as its patient was drawn, and at each share the middle `level` of the drawn shares of
        abnormal films flagged is kept (vertical averaging: Fawcett 2006, section 8). None with fewer than two patients
        of a class.
        """
        if not self.enough:
            return None
        order = np.argsort(-scores, kind="stable")
        ranked, abnormal, patient = scores[order], self.labels[order] == 1, self.patient[order]
        ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # (G,) the last film of each score
        curves = []
        for counts in self.counts:
            weight = counts[patient].astype(np.float64)  # (N,)
            false, true = (np.cumsum(weight * which)[ends] for which in (~abnormal, abnormal))  # (G,) each
            if false[-1] and true[-1]:
                curves.append(np.interp(at, np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]]))
        low, high = np.quantile(np.array(curves), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def interval(self, estimate: float, drawn: Floats, level: float) -> tuple[float, float]:
        """The interval around an estimate from its figures in every draw."""
        from scipy.special import stdtrit

        if not self.enough:
            return math.nan, math.nan
        tail, rarer = (1 - level) / 2, min(self.classes)
        if min(estimate, 1 - estimate) < 1e-12:
            far = tail ** (1 / rarer)
            return (far, 1.0) if estimate > 0.5 else (0.0, 1 - far)
        error = float(drawn[~np.isnan(drawn)].std(ddof=1)) / (estimate * (1 - estimate))  # of the logit, by its slope
        half = float(stdtrit(rarer - 1, 1 - tail)) * error
        center = math.log(estimate / (1 - estimate))
        return logistic(center - half), logistic(center + half)

    def comparison(self, difference: float, drawn: Floats, level: float) -> Comparison:
        """The difference of two figures with its interval and p-value, from its value in every draw."""
        drawn = drawn[~np.isnan(drawn)]
        error = float(drawn.std(ddof=1)) if self.enough else math.nan
        if difference == 0 and error == 0:
            return Comparison(0.0, 0.0, 0.0, 1.0)
        if not error > 0:
            return Comparison(difference, math.nan, math.nan, math.nan)
        normal = NormalDist()
        half = normal.inv_cdf(0.5 + level / 2) * error
        p = 2 * normal.cdf(-abs(difference) / error)
        return Comparison(difference, max(-1.0, difference - half), min(1.0, difference + half), p)


ESTIMATES: dict[Metric, Callable[[ArrayLike, ArrayLike], float]] = {"roc_auc": roc_auc, "ap": average_precision}


def logistic(x: float) -> float:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
