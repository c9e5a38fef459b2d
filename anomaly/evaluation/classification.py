"""How well probabilities call films normal or abnormal: accuracy, precision, recall, F1, kappa, reliability, tables.

`metrics` asks how films are ranked; here a threshold turns probabilities into calls: a film at or above it is called
abnormal. Labels are 0 normal, 1 abnormal. Every figure is a share of films, or made of such shares:

- accuracy: of all films, those called right. Says little where one class is rare.
- precision: of the films called abnormal, the abnormal ones.    recall (sensitivity): of the abnormal films, those
  called so.    specificity: of the normal films, those called normal.
- F1: the harmonic mean of precision and recall.
- kappa (Cohen 1960): the agreement of calls with labels beyond what the same two mixes would reach by chance, from -1
  to 1; 0 where calls or labels are all alike. It is the figure that MURA (Rajpurkar et al. 2018) reports.
- Brier score (1950): the mean squared error of the probabilities, lower is better. Calibrated probabilities beat what
  the prevalence itself would get if it were always said.

What is 0 / 0 is None: no film called abnormal, no precision. Accuracy, precision and F1 move with the prevalence of the
films at hand; recall and specificity do not.

**Intervals** answer "what if other patients had come?", by the draws and the rule of `metrics` ((kappa + 1) / 2 for
kappa): the standard error is that of the drawn figures themselves, divided by the slope p (1 - p) of the logit, as a
share is coarse, and many draws of few errors hold none at all, whose logits have no spread to measure (held half a film
short of 1, they covered .88 of true accuracies of .97). Degrees of freedom are the patients that the figure rests on,
less one: those with a film in its denominator, and those of the rarer class for kappa. Degenerate cases:

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
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap, logistic, mean_interval
from anomaly.evaluation.figures import Pooling, aggregate
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
) -> dict[str, Any]:
    """Every figure of calling films abnormal at or above a threshold, as plain data that JSON can hold.

    labels  (N,) 0 or 1.    scores  (N,) finite.    patients  (N,) whose film it is.    One class only will do; no film
    at all raises ValueError.

    Returns "threshold", "n", "n_abnormal", "n_patients"; "accuracy", "precision", "recall", "f1", "specificity" and
    "kappa", each with its "_interval" [low, high] or None; "confusion" with "counts" [[normal called normal, called
    abnormal], [abnormal called normal, called abnormal]] and "normalized", its rows as shares, None where a class is
    missing; and "report": {"normal" | "abnormal" | "macro avg" | "weighted avg": {"precision", "recall", "f1",
    "support"}, "accuracy": {"f1", "support"}}, as scikit-learn lays it out, but for an average over what cannot be
    told, which cannot be told either.

    >>> figures = classify([0, 0, 1, 1], [0.1, 0.7, 0.6, 0.9], ["a", "b", "c", "d"], 0.5)
    >>> figures["accuracy"], figures["recall"], figures["kappa"], figures["confusion"]["counts"]
    (0.75, 1.0, 0.5, [[1, 1], [0, 2]])
    """
    from sklearn.metrics import classification_report, cohen_kappa_score, confusion_matrix

    truth, score = _some(labels, scores)
    called = (score >= threshold).astype(np.int64)
    both = {"labels": [0, 1]}
    counts = confusion_matrix(truth, called, **both)
    sheet = classification_report(truth, called, target_names=CLASSES, output_dict=True, zero_division=math.nan, **both)
    alike = len(np.unique(np.r_[truth, called])) == 1
    rows = {name: _row(sheet[name]) for name in CLASSES}
    values = {
        "accuracy": float(sheet["accuracy"]),
        **{name: rows["abnormal"][name] for name in ("precision", "recall", "f1")},
        "specificity": rows["normal"]["recall"],
        "kappa": None if alike else float(cohen_kappa_score(truth, called, **both)),
    }

    draws = PatientBootstrap(truth, patients, resamples=resamples, seed=seed)
    cells = np.zeros((draws.counts.shape[1], 4))  # (P, 4) films of each patient: called right and wrong, of each class
    np.add.at(cells, (draws.patient, 2 * truth + called), 1)
    drawn, rests = _figures(draws.counts @ cells), _rests(cells > 0)
    figures: dict[str, Any] = {
        "threshold": float(threshold),
        "n": len(truth),
        "n_abnormal": int(truth.sum()),
        "n_patients": len(cells),
    }
    for name in FIGURES:
        told = draws.enough or name in ("accuracy", "recall", "specificity")
        figures[name] = values[name]
        figures[f"{name}_interval"] = _interval(
            values[name], drawn[name], rests[name] if told else 0, level, lowest=-1.0 if name == "kappa" else 0.0
        )
    figures["confusion"] = {
        "counts": counts.tolist(),
        "normalized": [(row / row.sum()).tolist() if row.any() else None for row in counts],
    }
    figures["report"] = {
        **rows,
        "accuracy": {"f1": values["accuracy"], "support": len(truth)},
        "macro avg": _average(rows, [1, 1]),
        "weighted avg": _average(rows, [row["support"] for row in rows.values()]),
    }
    return figures


def reliability(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether films called abnormal with a probability are abnormal that often, as plain data that JSON can hold.

    labels  (N,) 0 or 1.    probabilities  (N,) in [0, 1], else ValueError, as with no film.    patients  (N,) whose
    film it is.    bins  into how many equal parts [0, 1] is cut.

    Returns "brier", "brier_interval" [low, high] or None, "brier_of_prevalence", what always saying these films' own
    prevalence gets, and "bins": those that have films, low <= probability < high (the last holds 1 as well), each with
    "low", "high", "n", "mean_probability", "share" of abnormal films, "share_interval" [low, high] or None.

    >>> result = reliability([0, 1, 1], [0.1, 0.8, 1.0], ["a", "b", "c"], bins=2)
    >>> round(result["brier"], 4), [(part["n"], part["share"]) for part in result["bins"]]
    (0.0167, [(1, 0.0), (2, 1.0)])
    """
    truth, said = _some(labels, probabilities)
    if bins < 1:
        raise ValueError(f"{bins} bins: there must be at least 1")
    if said.min() < 0 or said.max() > 1:
        raise ValueError(f"probabilities from {said.min():g} to {said.max():g}; they must lie in [0, 1]")
    brier, limits = mean_interval(np.square(said - truth), patients, level=level)
    prevalence = float(truth.mean())

    edges = np.arange(bins + 1) / bins
    part = np.minimum(np.searchsorted(edges, said, side="right") - 1, bins - 1)  # (N,)
    draws = PatientBootstrap(truth, patients, resamples=resamples, seed=seed)
    films, abnormal = np.zeros((2, draws.counts.shape[1], bins))  # (P, bins) each
    np.add.at(films, (draws.patient, part), 1)
    np.add.at(abnormal, (draws.patient, part), truth)
    drawn = ratio(draws.counts @ abnormal, draws.counts @ films)  # (B, bins)
    seen = []
    for index in np.unique(part):
        inside = part == index
        share = float(truth[inside].mean())
        seen.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "n": int(inside.sum()),
                "mean_probability": float(said[inside].mean()),
                "share": share,
                "share_interval": _interval(share, drawn[:, index], int((films[:, index] > 0).sum()), level),
            }
        )
    return {
        "brier": brier,
        "brier_interval": interval_or_none(*np.clip(limits, 0, 1).tolist()),
        "brier_of_prevalence": prevalence * (1 - prevalence),
        "bins": seen,
    }


def evaluate_classes(
    columns: Mapping[str, ArrayLike],
    probabilities: ArrayLike,
    thresholds: Mapping[str, float],
    *,
    how: Pooling = "mean",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Probabilities as a classifier, for films, studies and patients, as plain data that JSON can hold.

    columns  "label" (N,) -1, 0 or 1; "patient" and "study" (N,) names.    probabilities  (N,) in [0, 1].
    thresholds  "film", "study", "patient" -> where to call abnormal, chosen on validation films.    how  films ->
    study, patient.    Films, studies and patients without a known label do not count; where no label is known, the
    result is empty.

    Returns {"film" | "study" | "patient": {"half": `classify` at .5, "chosen": `classify` at the chosen threshold,
    "reliability": `reliability`}}.
    """
    label, patient = np.asarray(columns["label"]), np.asarray(columns["patient"])
    result: dict[str, Any] = {}
    for unit, ids in {"film": np.arange(len(label)), "study": np.asarray(columns["study"]), "patient": patient}.items():
        groups = aggregate(ids, probabilities, label, how)
        known = groups.labels >= 0
        if not known.any():
            continue
        films = groups.labels[known], groups.scores[known], patient[groups.first][known]
        result[unit] = {
            name: classify(*films, threshold, level=level, resamples=resamples, seed=seed)
            for name, threshold in (("half", HALF), ("chosen", thresholds[unit]))
        }
        result[unit]["reliability"] = reliability(*films, level=level, resamples=resamples, seed=seed)
    return result


# ------------------------------------------------------------------------------------------------------------ helpers


def _some(labels: ArrayLike, scores: ArrayLike) -> tuple[Integers, Floats]:
    """Labels and scores, checked, of at least one film."""
    truth, score = checked_scores(labels, scores)
    if not len(truth):
        raise ValueError("no film with a known label: there is nothing to tell")
    return truth, score


def _figures(cells: Floats) -> dict[str, Floats]:
    """The figures of each draw, (B,), from its films (B, 4): normal called normal and abnormal, abnormal called so."""
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


def _rests(has: NDArray[np.bool_]) -> dict[str, int]:
    """How many patients each figure rests on; has (P, 4): whether a patient has films of each kind of `_figures`."""
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
) -> list[float] | None:
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
    return [lowest + span * low, lowest + span * high]


def _row(row: Mapping[str, float]) -> dict[str, Any]:
    """A row of scikit-learn's report under our names, None for nan."""
    figures = {name: finite_or_none(row[name]) for name in ("precision", "recall")}
    return figures | {"f1": finite_or_none(row["f1-score"]), "support": int(row["support"])}


def _average(rows: Mapping[str, Mapping[str, Any]], weights: Sequence[int]) -> dict[str, Any]:
    """The mean of the classes' rows; a class that weighs nothing need not be told."""
    result: dict[str, Any] = {}
    for name in ("precision", "recall", "f1"):
        pairs = [(row[name], weight) for row, weight in zip(rows.values(), weights, strict=True) if weight]
        told = all(value is not None for value, _ in pairs)
        result[name] = sum(value * weight for value, weight in pairs) / sum(weights) if told else None
    return result | {"support": sum(row["support"] for row in rows.values())}
