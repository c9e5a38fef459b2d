"""How well scores rank abnormal films above normal ones: ROC-AUC, average precision, thresholds.

Scores go into rank statistics as they are: float64, higher is more abnormal, no sigmoid, no scaling, never flipped (a
ROC-AUC below .5 is reported below .5). Labels are 0 normal, 1 abnormal.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.figures import Interval, ThresholdFigures

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


# ------------------------------------------------------------------------------------------------------------ figures


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that an abnormal film scores above a normal one, ties counting half; nan with one class only.

    labels  (N,) 0 or 1.    scores  (N,) finite, any range.    Raises ValueError on anything else.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    truth, score = checked_scores(labels, scores)
    return float(roc_auc_score(truth, score)) if has_both_classes(truth) else math.nan


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """The precision averaged over the recall it is reached at, without interpolation; nan with one class only.

    labels  (N,) 0 or 1.    scores  (N,) finite, any range.    A score without information gets the prevalence, not .5.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 3)
    0.833
    """
    from sklearn.metrics import average_precision_score

    truth, score = checked_scores(labels, scores)
    return float(average_precision_score(truth, score)) if has_both_classes(truth) else math.nan


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Shares of normal and of abnormal films at or above every threshold, (K,) and (K,), each from 0 to 1.

    Raises ValueError with one class only: there is no such curve.
    """
    from sklearn.metrics import roc_curve as curve

    truth, score = checked_scores(labels, scores)
    if not has_both_classes(truth):
        raise ValueError("a ROC curve needs normal and abnormal films; there is one class only")
    flagged_normal, flagged_abnormal, _ = curve(truth, score)
    return flagged_normal, flagged_abnormal


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> ThresholdFigures:
    """The result of flagging every film that scores at or above a threshold.

    labels  (N,) 0 or 1.    scores  (N,) finite.    A share of nothing is None: no abnormal film, no sensitivity.

    >>> flagged = at_threshold([0, 0, 1, 1], [1, 3, 2, 4], threshold=3)
    >>> flagged.sensitivity, flagged.specificity, flagged.precision, flagged.n_flagged
    (0.5, 0.5, 0.5, 2)
    """
    truth, score = checked_scores(labels, scores)
    flagged, abnormal = score >= threshold, truth == 1
    return ThresholdFigures(
        threshold=float(threshold),
        sensitivity=share(flagged & abnormal, abnormal),
        specificity=share(~flagged & ~abnormal, ~abnormal),
        precision=share(flagged & abnormal, flagged),
        n_flagged=int(flagged.sum()),
    )


def weighted_roc_auc(abnormal: Floats, normal: Floats) -> Floats:
    """ROC-AUC from the weights of each class at each of G rising scores: (B, G), (B, G) -> (B,)."""
    below = np.cumsum(normal, axis=1) - normal / 2
    return ratio((abnormal * below).sum(axis=1), abnormal.sum(axis=1) * normal.sum(axis=1))


def weighted_average_precision(abnormal: Floats, normal: Floats) -> Floats:
    """Average precision from the weights of each class at each of G rising scores: (B, G), (B, G) -> (B,)."""
    hits = np.cumsum(abnormal[:, ::-1], axis=1)
    flagged = hits + np.cumsum(normal[:, ::-1], axis=1)
    gains = abnormal[:, ::-1] * np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    total = abnormal.sum(axis=1)
    return ratio(gains.sum(axis=1), np.where(normal.sum(axis=1) > 0, total, 0.0))


# ------------------------------------------------------------------------------------------------------------ helpers


def checked_scores(labels: ArrayLike, scores: ArrayLike, *, known: bool = True) -> tuple[Integers, Floats]:
    """Labels and scores as arrays of one length, or a ValueError that says what is wrong with them."""
    truth, score = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise ValueError(f"labels {truth.shape} and scores {score.shape} must both be (N,)")
    allowed = (0, 1) if known else (-1, 0, 1)
    strange = np.setdiff1d(truth, allowed)
    if strange.size:
        raise ValueError(f"label {strange[0]!s}; there are: {', '.join(map(str, allowed))}")
    wrong = np.flatnonzero(~np.isfinite(score))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} of {score.size} scores are not finite, the first ({score[wrong[0]]}) in row {wrong[0]}"
        )
    return truth.astype(np.int64), score


def has_both_classes(labels: Integers) -> bool:
    """Whether there are normal and abnormal films among labels, (N,)."""
    return bool((labels == 0).any() and (labels == 1).any())


def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    """Return how much of the whole the part is, both (N,); None of nothing."""
    total = int(whole.sum())
    return int(part.sum()) / total if total else None


def ratio(part: Floats, whole: Floats) -> Floats:
    """Part / whole, nan where the whole is 0."""
    out: Floats = np.divide(part, whole, out=np.full(part.shape, math.nan), where=whole > 0)
    return out


def finite_or_none(value: float) -> float | None:
    """Return the value, or None for nan: JSON has no nan."""
    return None if math.isnan(value) else float(value)


def interval_or_none(low: float, high: float) -> Interval | None:
    """Return an interval as a pair, or None where it is undefined (nan)."""
    return None if math.isnan(low) else (low, high)
