"""The threshold at work: how often it flags normal and abnormal films, studies and patients, and how far that is known.

Every figure is a share of units: of the abnormal ones flagged (sensitivity), of the normal ones not flagged
(specificity), of the flagged ones abnormal (PPV), of the others normal (NPV), of all flagged (flag rate). PPV and NPV
are those at the prevalence of these very films.

**Intervals** answer "what if other patients had come?". Where every patient has one unit in the denominator, they are
the exact binomial ones (Clopper and Pearson 1934). Where a patient has several, these vary together, and the exact
interval is taken at the effective number of units (Korn and Graubard 1998, Survey Methodology 24, 193-201):
n* = p (1 - p) / v, with v the variance of the share by the patients' summed residuals, and with Student's quantiles for
the few patients it rests on; it is never more than the units there are. A share of 0 or 1 has no residuals: its
effective number is that of the patients. Unlike an interval by resampling it needs one class alone, and it holds where
a share is 0 or 1. `tests/test_external.py` simulates its coverage.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.cohort import ScoredCohort
from anomaly.evaluation.conformal import binomial_interval
from anomaly.evaluation.figures import UNITS, OperatingFigures, OperatingPoints, Rate, Unit

Bools = NDArray[np.bool_]


def rate(part: Bools, whole: Bools, patients: ArrayLike, *, level: float = 0.95) -> Rate:
    """Return how many of some units have a property, with the interval over patients.

    part     (N,) which units have it.    whole  (N,) which units are asked about.
    patients (N,) whose each unit is, any names.

    >>> rate(np.array([True, False, True]), np.array([True, True, False]), ["a", "b", "c"]).value
    0.5
    """
    hits = part[whole].astype(np.float64)
    names, whose = np.unique(np.asarray(patients)[whole], return_inverse=True)
    n, count = len(hits), len(names)
    total = int(hits.sum())
    if not n:
        return Rate(value=None, interval=None, count=0, n=0, n_patients=0)
    value = total / n
    effective = float(n) if count == n else _effective(hits, whose, count, level)
    low, high = binomial_interval([value * effective], effective, level)[0].tolist()
    return Rate(value=value, interval=(low, high), count=total, n=n, n_patients=count)


def _effective(hits: NDArray[np.float64], whose: NDArray[np.int64], count: int, level: float) -> float:
    """Return the number of independent units that would know the share as well as these do: (n,) 0 or 1, (n,) -> n*."""
    from scipy.special import stdtrit

    n, value = len(hits), float(hits.mean())
    if count < 2:
        return 1.0  # one patient is one observation, however many units it has
    if value in (0.0, 1.0):
        return float(count)
    residual = np.bincount(whose, weights=hits - value, minlength=count)  # (patients,)
    variance = count / (count - 1) * float(np.square(residual).sum()) / n**2
    quantile = 0.5 + level / 2
    students = (float(stdtrit(n - 1, quantile)) / float(stdtrit(count - 1, quantile))) ** 2
    known_as = n if variance == 0 else value * (1 - value) / variance
    return min(known_as * students, float(n))


def operating_figures(
    labels: NDArray[np.int64],
    values: NDArray[np.float64],
    patients: ArrayLike,
    threshold: float,
    *,
    level: float = 0.95,
) -> OperatingFigures:
    """Return the result of flagging every unit at or above a threshold.

    labels  (N,) 0 or 1.    values  (N,) finite scores.    patients  (N,) whose each unit is.    One class alone leaves
    the other one's share, PPV and NPV without a value.
    """
    flagged, abnormal, everything = values >= threshold, labels == 1, np.ones(len(labels), np.bool_)
    both = bool(abnormal.any()) and not bool(abnormal.all())  # else PPV and NPV are 0 or 1 by what was given

    def of(part: Bools, whole: Bools) -> Rate:
        return rate(part, whole, patients, level=level)

    nothing = np.zeros(len(labels), np.bool_)
    return OperatingFigures(
        threshold=float(threshold),
        flag_rate=of(flagged, everything),
        sensitivity=of(flagged, abnormal),
        specificity=of(~flagged, ~abnormal),
        ppv=of(abnormal, flagged if both else nothing),
        npv=of(~abnormal, ~flagged if both else nothing),
    )


def operating_points(scored: ScoredCohort, main: str, thresholds: Mapping[Unit, float]) -> OperatingPoints:
    """Return the thresholds at work by film, study and patient, and by kind and column value of films.

    main  the score that flags.    thresholds  from which films, studies and patients are flagged. Units of unknown
    label count nowhere.
    """
    cohort, level = scored.cohort, scored.settings.level
    units = {}
    for unit in UNITS:
        groups = scored.groups[unit]
        known = groups.known
        units[unit] = operating_figures(
            groups.labels[known],
            groups.scores[main][known],
            cohort.patient[groups.first][known],
            thresholds[unit],
            level=level,
        )
    flagged = scored.scores[main] >= thresholds["film"]
    kinds = {
        name: {
            kind: rate(flagged, (cohort.label == 1) & (values == kind), cohort.patient, level=level)
            for kind in sorted({str(kind) for kind in values[cohort.label == 1]} - {""})
        }
        for name, values in (("finding", cohort.finding), ("difficulty", cohort.difficulty))
    }
    columns: dict[str, dict[str, OperatingFigures]] = {}
    for name, values in cohort.columns.items():
        known = cohort.label >= 0
        columns[name] = {
            value: operating_figures(
                cohort.label[rows],
                scored.scores[main][rows],
                cohort.patient[rows],
                thresholds["film"],
                level=level,
            )
            for value in sorted({str(value) for value in values[known]})
            for rows in [known & (values == value)]
        }
    return OperatingPoints(**units, kinds={name: rates for name, rates in kinds.items() if rates}, columns=columns)
