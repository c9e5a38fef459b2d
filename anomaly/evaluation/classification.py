"""How well probabilities call films normal or abnormal: accuracy, precision, recall, F1, kappa, calibration.

`anomaly.evaluation.ranking` asks how films are ranked; here a threshold turns probabilities into calls: a film at or
above it is called abnormal. Labels are 0 normal, 1 abnormal. Every figure is a share of films, or made of such shares:

- accuracy: of all films, those called right. Says little where one class is rare.
- precision: of the films called abnormal, the abnormal ones.    recall (sensitivity): of the abnormal films, those
  called so.    specificity: of the normal films, those called normal.
- F1: the harmonic mean of precision and recall.
- kappa (Cohen 1960): the agreement of calls with labels beyond what the same two mixes would reach by chance, from -1
  to 1; 0 where calls or labels are all alike. It is the figure that MURA (Rajpurkar et al. 2018) reports.
- Brier score (1950): the mean squared error of the probabilities, lower is better. Calibrated probabilities beat a
  constant prediction of the prevalence.

What is 0 / 0 is None: no film called abnormal, no precision. Accuracy, precision and F1 move with the prevalence of the
films at hand; recall and specificity do not.

**Intervals** answer "what if other patients had come?", by the draws and the rule of `anomaly.evaluation.bootstrap`
((kappa + 1) / 2 for kappa): the standard error is that of the drawn figures themselves, divided by the slope p (1 - p)
of the logit, as a share is coarse, and many draws of few errors hold none at all, whose logits have no spread to
measure (held half a film short of 1, they covered .88 of true accuracies of .97). Degrees of freedom are the patients
that the figure rests on, less one: those with a film in its denominator, and those of the rarer class for kappa.
Degenerate cases:

- A figure of exactly 0 or 1 differs in no draw; its far limit is the binomial one, (alpha / 2)^(1 / n) for 1, with n
  the patients it rests on.
- Fewer than two such patients, or a figure strictly between 0 and 1 that differs in no draw: no interval. Precision, F1
  and kappa set one class against the other and also need two patients of each.

In simulations at 95 % (2000 cohorts each, one to three films a patient that share half of their variance or none,
recall and specificity from .5 to .97) every figure was covered .94 to .99 from 10 patients against 10 to 200 against
200, and .95 to 1 with 2 to 6 patients of one class. Where the numbers of patients of each class were held fixed, which
the draws do not know, it was .93 (kappa, 3 patients against 40) to 1. The shares of `reliability` had .95 to 1.
The Brier score's interval is that of `mean_interval`: .94 to .95 from 60 patients to 800, .93 with 10 abnormal
ones of 70, .91 with 20 patients.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap, logistic, mean_interval
from anomaly.evaluation.figures import (
    AccuracyRow,
    ClassificationFigures,
    ClassRow,
    Interval,
    Reliability,
    ReliabilityBin,
)
from anomaly.evaluation.ranking import Floats, Integers, checked_scores, finite_or_none, interval_or_none, ratio

FIGURES = ("accuracy", "precision", "recall", "f1", "specificity", "kappa")
CLASSES = ("normal", "abnormal")
HALF = 0.5  # where a probability is as often right as wrong


# ---------------------------------------------------------------------------------------------------------- threshold


def youden(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold that makes sensitivity + specificity largest (Youden 1950), films at or above it called abnormal.

    labels  (N,) 0 or 1.    scores  (N,) finite.    It lies midway between neighbouring scores, so that no film lies on
    it; of equally good places it is in the widest gap, then the lowest. Where every place is worse than to call all
    films normal, it is the next number above the largest score. Raises ValueError with one class only.

    >>> youden([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9])
    0.4
    """
    truth, score = checked_scores(labels, scores)
    normal, abnormal = int((truth == 0).sum()), int((truth == 1).sum())
    if not normal or not abnormal:
        raise ValueError("a threshold needs normal and abnormal films; there is one class only")
    values, place = np.unique(score, return_inverse=True)
    above = np.bincount(place, weights=truth * normal - (1 - truth) * abnormal)[::-1].cumsum()[::-1]  # (V,)
    gain = above[1:]  # (V - 1,) of calling films abnormal from each next score on; whole numbers, so ties are exact
    if not gain.size or gain.max() < 0:
        return float(np.nextafter(values[-1], math.inf))
    gap = values[1:] / 2 - values[:-1] / 2
    chosen = int(np.lexsort((-gap, -gain))[0])
    low, high = float(values[chosen]), float(values[chosen + 1])
    middle = low / 2 + high / 2
    return middle if low < middle else high  # neighbouring numbers have nothing between them


# ------------------------------------------------------------------------------------------------------------ figures


def classify(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> ClassificationFigures:
    """Every figure of calling films abnormal at or above a threshold.

    labels  (N,) 0 or 1.    scores  (N,) finite.    patients  (N,) whose film it is.    One class only will do; no film
    at all raises ValueError.

    >>> figures = classify([0, 0, 1, 1], [0.1, 0.7, 0.6, 0.9], ["a", "b", "c", "d"], 0.5)
    >>> figures.accuracy, figures.recall, figures.kappa, figures.confusion.counts
    (0.75, 1.0, 0.5, ((1, 1), (0, 2)))
    """
    truth, score = _checked_nonempty(labels, scores)
    bootstrap = PatientBootstrap(truth, patients, resamples=resamples, seed=seed)
    return classification_figures(bootstrap, score, threshold, level=level)


def classification_figures(
    bootstrap: PatientBootstrap, scores: Floats, threshold: float, *, level: float = 0.95
) -> ClassificationFigures:
    """`classify` of the films of a bootstrap: scores (N,) finite, in the order of its labels, N >= 1.

    The report is laid out as scikit-learn's, but for an average over an undefined figure, which is undefined too.
    """
    from sklearn.metrics import classification_report, cohen_kappa_score, confusion_matrix

    truth = bootstrap.labels
    called = (scores >= threshold).astype(np.int64)
    both = {"labels": [0, 1]}
    counts = confusion_matrix(truth, called, **both)
    sheet = classification_report(truth, called, target_names=CLASSES, output_dict=True, zero_division=math.nan, **both)
    alike = len(np.unique(np.r_[truth, called])) == 1
    normal, abnormal = rows = [_row(sheet[name]) for name in CLASSES]
    values = {
        "accuracy": float(sheet["accuracy"]),
        "precision": abnormal.precision,
        "recall": abnormal.recall,
        "f1": abnormal.f1,
        "specificity": normal.recall,
        "kappa": None if alike else float(cohen_kappa_score(truth, called, **both)),
    }
    matrix = {
        "counts": counts.tolist(),
        "normalized": [(row / row.sum()).tolist() if row.any() else None for row in counts],
    }
    report = {
        "normal": normal,
        "abnormal": abnormal,
        "accuracy": AccuracyRow(f1=values["accuracy"], support=len(truth)),
        "macro avg": _average(rows, [1, 1]),
        "weighted avg": _average(rows, [row.support for row in rows]),
    }
    size = {"n": len(truth), "n_abnormal": int(truth.sum()), "n_patients": bootstrap.n_patients}
    intervals = _intervals(bootstrap, called, values, level)
    return ClassificationFigures.model_validate(
        {"threshold": float(threshold), **size, **values, **intervals, "confusion": matrix, "report": report}
    )


def _intervals(
    bootstrap: PatientBootstrap, called: Integers, values: Mapping[str, float | None], level: float
) -> dict[str, Interval | None]:
    """The interval of each figure under its name in `ClassificationFigures`; called (N,) 1 where called abnormal."""
    cells = np.zeros((bootstrap.n_patients, 4))  # (P, 4) films of each patient: called right and wrong, of each class
    np.add.at(cells, (bootstrap.patient, 2 * bootstrap.labels + called), 1)
    drawn, patients = figures_of_cells(bootstrap.counts @ cells), _patients_behind(cells > 0)
    intervals = {}
    for name in FIGURES:
        defined = bootstrap.enough or name in ("accuracy", "recall", "specificity")
        lowest = -1.0 if name == "kappa" else 0.0
        behind = patients[name] if defined else 0
        intervals[f"{name}_interval"] = _interval(values[name], drawn[name], behind, level, lowest=lowest)
    return intervals


def reliability(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Reliability:
    """Calibration: whether films called abnormal with a probability are abnormal that often.

    labels  (N,) 0 or 1.    probabilities  (N,) in [0, 1], else ValueError, as with no film.    patients  (N,) whose
    film it is.    bins  into how many equal parts [0, 1] is cut.

    >>> result = reliability([0, 1, 1], [0.1, 0.8, 1.0], ["a", "b", "c"], bins=2)
    >>> round(result.brier, 4), [(part.n, part.share) for part in result.bins]
    (0.0167, [(1, 0.0), (2, 1.0)])
    """
    truth, probability = _checked_nonempty(labels, probabilities)
    bootstrap = PatientBootstrap(truth, patients, resamples=resamples, seed=seed)
    return reliability_figures(bootstrap, probability, bins=bins, level=level)


def reliability_figures(
    bootstrap: PatientBootstrap, probabilities: Floats, *, bins: int = 10, level: float = 0.95
) -> Reliability:
    """`reliability` of the films of a bootstrap: probabilities (N,), in the order of its labels, N >= 1."""
    truth = bootstrap.labels
    if bins < 1:
        raise ValueError(f"{bins} bins: there must be at least 1")
    lowest, highest = probabilities.min(), probabilities.max()
    if lowest < 0 or highest > 1:
        raise ValueError(f"probabilities from {lowest:g} to {highest:g}; they must lie in [0, 1]")
    brier, limits = mean_interval(np.square(probabilities - truth), bootstrap.patient, level=level)
    prevalence = float(truth.mean())

    edges = np.arange(bins + 1) / bins
    part = np.minimum(np.searchsorted(edges, probabilities, side="right") - 1, bins - 1)  # (N,)
    films, abnormal = np.zeros((2, bootstrap.n_patients, bins))  # (P, bins) each
    np.add.at(films, (bootstrap.patient, part), 1)
    np.add.at(abnormal, (bootstrap.patient, part), truth)
    drawn = ratio(bootstrap.counts @ abnormal, bootstrap.counts @ films)  # (B, bins)

    def bin_of(index: int) -> ReliabilityBin:
        inside = part == index
        share = float(truth[inside].mean())
        return ReliabilityBin(
            low=edges[index],
            high=edges[index + 1],
            n=int(inside.sum()),
            mean_probability=float(probabilities[inside].mean()),
            share=share,
            share_interval=_interval(share, drawn[:, index], int((films[:, index] > 0).sum()), level),
        )

    return Reliability(
        brier=brier,
        brier_interval=interval_or_none(*np.clip(limits, 0, 1).tolist()),
        brier_of_prevalence=prevalence * (1 - prevalence),
        bins=tuple(bin_of(int(index)) for index in np.unique(part)),
    )


# ------------------------------------------------------------------------------------------------------------ helpers


def _checked_nonempty(labels: ArrayLike, scores: ArrayLike) -> tuple[Integers, Floats]:
    """Labels and scores, checked, of at least one film."""
    truth, score = checked_scores(labels, scores)
    if not len(truth):
        raise ValueError("no film with a known label: there is nothing to evaluate")
    return truth, score


def figures_of_cells(cells: Floats) -> dict[str, Floats]:
    """The figures of each of B confusion matrices, name -> (B,), nan where undefined.

    cells  (B, 4) films: normal called normal, normal called abnormal, abnormal called normal, abnormal called abnormal.
    """
    tn, fp, fn, tp = cells.T
    chance = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return {
        "accuracy": ratio(tp + tn, cells.sum(axis=1)),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "kappa": ratio(2 * (tp * tn - fp * fn), chance),
    }


def _patients_behind(has: NDArray[np.bool_]) -> dict[str, int]:
    """How many patients each figure rests on; has (P, 4): whether a patient has films in each of a matrix's cells."""
    tn, fp, fn, tp = has.T
    recall, specificity = int((fn | tp).sum()), int((tn | fp).sum())
    return {
        "accuracy": len(has),
        "precision": int((fp | tp).sum()),
        "recall": recall,
        "specificity": specificity,
        "f1": int((fp | fn | tp).sum()),
        "kappa": min(recall, specificity),
    }


def _interval(
    value: float | None, drawn: Floats, patients: int, level: float, *, lowest: float = 0.0
) -> Interval | None:
    """The interval of a figure from lowest to 1, by the rule at the top of this file, or None.

    drawn  (B,) the figure of every draw, nan where it has none.    patients  that it rests on.
    """
    from scipy.special import stdtrit

    if value is None or patients < 2:
        return None
    span, tail = 1 - lowest, (1 - level) / 2
    share, shares = (value - lowest) / span, (drawn[~np.isnan(drawn)] - lowest) / span
    if min(share, 1 - share) < 1e-12:
        far = tail ** (1 / patients)
        low, high = (far, 1.0) if share > 0.5 else (0.0, 1 - far)
    else:
        error = float(shares.std(ddof=1)) if len(shares) > 1 else 0.0
        if error < 1e-12:
            return None
        half = float(stdtrit(patients - 1, 1 - tail)) * error / (share * (1 - share))
        center = math.log(share / (1 - share))
        low, high = logistic(center - half), logistic(center + half)
    return lowest + span * low, lowest + span * high


def _row(row: Mapping[str, float]) -> ClassRow:
    """A row of scikit-learn's report, None for nan."""
    return ClassRow(
        precision=finite_or_none(row["precision"]),
        recall=finite_or_none(row["recall"]),
        f1=finite_or_none(row["f1-score"]),
        support=int(row["support"]),
    )


def _average(rows: Sequence[ClassRow], weights: Sequence[int]) -> ClassRow:
    """The weighted mean of the classes' rows, None where a class of any weight is undefined."""

    def mean(values: Sequence[float | None]) -> float | None:
        total = 0.0
        for value, weight in zip(values, weights, strict=True):
            if weight and value is None:
                return None
            total += (value or 0.0) * weight
        return total / sum(weights)

    return ClassRow(
        precision=mean([row.precision for row in rows]),
        recall=mean([row.recall for row in rows]),
        f1=mean([row.f1 for row in rows]),
        support=sum(row.support for row in rows),
    )
