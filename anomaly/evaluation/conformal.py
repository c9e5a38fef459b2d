"""Conformal p-values: how often a normal patient would score as high, whatever the distribution of the scores.

One exchangeable unit a patient. Of n calibration patients each weighs 1, and one of m films counts each of them 1/m;
the p-value of a score s is (1 + weight of the calibration scores >= s) / (n + 1). Ties count against the film, nothing
is drawn at random, and the smallest p-value is 1 / (n + 1).

What holds (super-uniform: P(p <= a) <= a for every a):

- One value a patient (unit "patient", or one film each): exact, in finite samples and for any detector, if the new
  normal patient is exchangeable with the calibration patients (Vovk, Gammerman and Shafer 2005, chapter 2; as a test
  for outliers: Bates, Candès, Lei, Romano and Sesia 2023, section 2). "Given these calibration patients" the
  false-alarm rate varies: it has a Beta distribution (Vovk 2012, section 3), which `Reference.false_alarm_rate` tells.
- Several films or studies a patient: for one film drawn at random of a new normal patient p is super-uniform too (Lee,
  Barber and Willett 2023, hierarchical conformal prediction: weights 1 / ((n + 1) m)), slightly conservative. Films of
  one patient are dependent: among the films of a few patients alarms come in clusters.
- The intervals take n patients as n draws of yes or no: exact for one value a patient without ties; with several they
  err on the wide side, since the share of a patient's films varies at most as much as yes or no does.
- Benjamini and Hochberg's procedure controls the expected share of false ones among those flagged at its level, for
  p-values that share one calibration sample too (Bates et al. 2023, theorem 2), where the units on the list are
  independent: patients. For films or studies of the same patients it is not proven.

What doesn't: nothing holds for films of another distribution than the calibration normals (another site, another
device), for films that the detector was trained on, or to the last digit where the same normals also chose the
checkpoint of the training.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.distributions import beta_quantile
from anomaly.evaluation.ranking import Floats
from preprocessing.wording import counted

LEVEL = 0.95
"""Of the intervals."""
_DIGITS = 9  # a patient's weights of 1/m add up to 1 again


@dataclass(frozen=True)
class Reference:
    """The scores of calibration patients, as p-values and thresholds need them."""

    values: Floats  # (K,) the distinct scores, rising
    above: Floats  # (K,) weight of the scores that are at least as high, from n down
    patients: int  # n
    single: bool  # every patient has one score

    @classmethod
    def of(cls, scores: ArrayLike, patients: ArrayLike) -> "Reference":
        """Make one of the scores of films, studies or patients, (M,), and the patient of each, (M,).

        Raises ValueError where there is none, or a score is not finite.
        """
        score, owner = np.asarray(scores, np.float64), np.asarray(patients)
        if score.ndim != 1 or score.shape != owner.shape or not len(score) or not np.isfinite(score).all():
            raise ValueError(f"scores {score.shape} and patients {owner.shape} must both be (M,), M >= 1, and finite")
        _, index, count = np.unique(owner, return_inverse=True, return_counts=True)
        values, place = np.unique(score, return_inverse=True)
        weight = np.bincount(place, weights=1 / count[index])
        return cls(values, np.round(np.cumsum(weight[::-1])[::-1], _DIGITS), len(count), bool((count == 1).all()))

    @property
    def smallest(self) -> float:
        """The smallest p-value, and the smallest false-alarm rate that can be told: 1 / (n + 1)."""
        return 1 / (self.patients + 1)

    def weight_from(self, scores: ArrayLike) -> Floats:
        """Return the weight of the calibration scores that are at least as high as each of some, (N,) -> (N,)."""
        place = np.searchsorted(self.values, np.asarray(scores, np.float64), side="left")
        return np.asarray(np.append(self.above, 0.0)[place], np.float64)

    def p_values(self, scores: ArrayLike) -> Floats:
        """Return the conformal p-value of each score, (N,) -> (N,) in [1 / (n + 1), 1]; it falls as the score rises."""
        return np.asarray((1 + self.weight_from(scores)) / (self.patients + 1), np.float64)

    def intervals(self, scores: ArrayLike, level: float = LEVEL) -> NDArray[np.float64]:
        """Return a confidence interval of the share of normals that score as high, (N,) -> (N, 2) in [0, 1]."""
        return binomial_interval(self.weight_from(scores), self.patients, level)

    def threshold(self, rate: float) -> float:
        """Return the value from which on p <= `rate`: scores >= it are flagged, and no others.

        It is the next number above the lowest calibration score that may not be flagged. Raises ValueError where the
        rate is below 1 / (n + 1): not even the highest score has such a p-value.
        """
        if not self.smallest <= rate < 1:
            raise ValueError(f"a rate of {rate} must lie in [1 / {self.patients + 1}, 1)")
        kept = np.flatnonzero((1 + self.above) / (self.patients + 1) > rate)  # the lowest score has p = 1
        return math.nextafter(float(self.values[kept[-1]]), math.inf)

    def false_alarm_rate(self, threshold: float, level: float = LEVEL) -> tuple[float, float, float]:
        """Return the share of normals that a threshold of `threshold()` flags: expected, and its interval.

        Of one score a patient, and given the calibration patients, it has the distribution Beta(k, n + 1 - k), k = 1 +
        the weight flagged: its mean, and the limits that hold it with probability `level`. Of several scores a patient
        the mean is a bound, the more so the less they depend on each other, and the lower limit that of weight / n.
        """
        weight, n = float(self.weight_from([threshold])[0]), self.patients
        low, high = _beta_limits(1 + weight, n - weight, level)
        if not self.single:
            low = float(binomial_interval([weight], n, level)[0, 0])
        return (1 + weight) / (n + 1), low, high

    def share_from(self, threshold: float, level: float = LEVEL) -> tuple[float, float, float]:
        """Return the share of calibration normals at or above any value, and its confidence interval."""
        low, high = self.intervals([threshold], level)[0]
        return float(self.weight_from([threshold])[0]) / self.patients, float(low), float(high)


def binomial_interval(hits: ArrayLike, n: float, level: float = LEVEL) -> NDArray[np.float64]:
    """Return the exact interval of a share from `hits` of n, (N,) -> (N, 2) (Clopper and Pearson 1934).

    hits and n may be fractional, as of an effective sample: the quantiles of the beta distribution lie in between.

    >>> binomial_interval([0, 7], 412).round(4).tolist()
    [[0.0, 0.0089], [0.0069, 0.0347]]
    """
    k, place = np.unique(np.asarray(hits, np.float64), return_inverse=True)
    tail = (1 - level) / 2
    limits = np.tile([0.0, 1.0], (len(k), 1))
    limits[k > 0, 0] = beta_quantile(tail, k[k > 0], n - k[k > 0] + 1)
    limits[k < n, 1] = beta_quantile(1 - tail, k[k < n] + 1, n - k[k < n])
    return limits[place]


def _beta_limits(a: float, b: float, level: float) -> tuple[float, float]:
    if b <= 0:  # all of them
        return 1.0, 1.0
    low, high = beta_quantile([(1 - level) / 2, (1 + level) / 2], a, b)
    return float(low), float(high)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Return q-values, (N,) -> (N,): the level at which each p-value is the last to be called a discovery.

    Benjamini and Hochberg 1995: q of the i-th smallest of N is the smallest N p_j / j over j >= i. Raises ValueError
    outside [0, 1].

    >>> benjamini_hochberg([0.01, 0.5, 0.03]).round(3).tolist()
    [0.03, 0.5, 0.045]
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values {p.shape} must be (N,) and lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    rising = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(rising[::-1])[::-1]
    return np.minimum(q, 1.0)


def more_abnormal_than(p_value: float, interval: tuple[float, float], patients: int) -> str:
    """Say in words what a p-value means, with the share of calibration patients that score lower and its interval.

    interval  of the share of normals that score as high, as `Reference.intervals` gives it.

    >>> more_abnormal_than(8 / 413, (0.0069, 0.0347), 412)
    'more abnormal than 98.3 % of 412 normal patients [96.5, 99.3]'
    >>> more_abnormal_than(1 / 413, (0.0, 0.0089), 412)
    'more abnormal than all 412 normal patients [99.1, 100.0]'
    """
    weight = round(p_value * (patients + 1) - 1, _DIGITS)
    digits = 1 if patients < 1000 else 2
    limits = f"[{100 * (1 - interval[1]):.{digits}f}, {100 * (1 - interval[0]):.{digits}f}]"
    whom = counted(patients, "normal patient")
    if weight <= 0:
        return f"more abnormal than {'the' if patients == 1 else 'all'} {whom} {limits}"
    return f"more abnormal than {100 * (1 - weight / patients):.{digits}f} % of {whom} {limits}"


def in_percent(rate: tuple[float, float, float]) -> str:
    """Return a rate and its interval in percent.

    >>> in_percent((0.0484, 0.03, 0.071))
    '4.8 % [3.0, 7.1]'
    """
    value, low, high = (100 * one for one in rate)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"
