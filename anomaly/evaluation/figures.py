"""Every figure of an evaluation: films grouped by study and patient, each score's figures with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.bootstrap import ESTIMATES, Metric, PatientBootstrap
from anomaly.evaluation.ranking import (
    Floats,
    Integers,
    at_threshold,
    checked_scores,
    finite_or_none,
    interval_or_none,
    share,
)

Pooling = Literal["mean", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max")

TRIVIAL = ("mean_grey", "minus_std")


# --------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Groups:
    """Films put together by study or patient, in the order of their first film."""

    ids: NDArray[Any]  # (G,) the study or patient
    labels: (
        Integers  # (G,) the largest label of its films: one abnormal film makes it abnormal; -1 where all are unknown
    )
    scores: Floats  # (G,) the mean or the largest score of its films
    films: Integers  # (G,) how many films it has
    first: Integers  # (G,) row of its first film


def aggregate(ids: ArrayLike, scores: ArrayLike, labels: ArrayLike, how: Pooling = "mean") -> Groups:
    """One score and one label per study or patient.

    ids  (N,) the study or patient of each film.    scores  (N,) finite.    labels  (N,) -1, 0 or 1.    "max" flags a
    study for its worst view and grows with the number of views; "mean" does not.

    >>> groups = aggregate(["b", "a", "b"], [1.0, 5.0, 3.0], [0, -1, 1])
    >>> groups.ids.tolist(), groups.scores.tolist(), groups.labels.tolist(), groups.films.tolist()
    (['b', 'a'], [2.0, 5.0], [1, -1], [2, 1])
    """
    truth, score = checked_scores(labels, scores, known=False)
    names, first, group, films = np.unique(np.asarray(ids), return_index=True, return_inverse=True, return_counts=True)
    if group.shape != score.shape:
        raise ValueError(f"{len(score)} scores but {group.size} ids: one id a film")
    if how == "mean":
        pooled = np.bincount(group, weights=score, minlength=len(names)) / films
    elif how == "max":
        pooled = np.full(len(names), -math.inf)
        np.maximum.at(pooled, group, score)
    else:
        raise ValueError(f"no pooling {how!r}; there are: max, mean")
    label = np.full(len(names), -1)
    np.maximum.at(label, group, truth)
    order = np.argsort(first)
    return Groups(
        names[order], label[order], pooled[order], films[order].astype(np.int64), first[order].astype(np.int64)
    )


def evaluate(
    columns: Mapping[str, ArrayLike],
    scores: Mapping[str, ArrayLike],
    *,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    trivial: Sequence[str] = TRIVIAL,
    how: Pooling = "mean",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of every score, for films, studies and patients, as plain data that JSON can hold.

    columns  "label" (N,) -1, 0 or 1; "patient" and "study" (N,) names; "finding" and "difficulty" (N,) names, "" where
    there is none (both may be missing).    scores  name -> (N,) finite.
    thresholds  level -> score -> value from which films (studies, patients) are flagged, found on validation films.
    trivial  the scores that the others have to beat.    how  films -> study, patient.

    Returns {"settings": ..., "film" | "study" | "patient": {score: figures}, "finding" | "difficulty": {kind: {score:
    figures}}} where figures hold "roc_auc", "ap", their "_interval" [low, high] or None, "n", "n_abnormal",
    "n_patients", "prevalence", and where asked for "threshold" (see `at_threshold`) and "against" {trivial:
    {"difference", "interval", "p"}}. A kind's figures set its abnormal films against all normal films, and have no AP,
    threshold or comparison: the mix would be ours. What cannot be told is None.
    """
    label, patient = np.asarray(columns["label"]), np.asarray(columns["patient"])
    units = {"film": np.arange(len(label)), "study": np.asarray(columns["study"]), "patient": patient}
    settings = {"aggregate": how, "level": level, "resamples": resamples, "seed": seed, "trivial": list(trivial)}
    result: dict[str, Any] = {"settings": settings}
    for unit, ids in units.items():
        groups = {name: aggregate(ids, score, label, how) for name, score in scores.items()}
        whole = aggregate(ids, np.zeros(len(label)), label)
        truth, owner = whole.labels, patient[whole.first]
        known = truth >= 0
        draws = PatientBootstrap(truth[known], owner[known], resamples=resamples, seed=seed)
        result[unit] = _figures(
            draws,
            {name: group.scores[known] for name, group in groups.items()},
            level=level,
            thresholds=(thresholds or {}).get(unit, {}),
            trivial=trivial,
        )
    for column in ("finding", "difficulty"):
        kinds = np.asarray(columns.get(column, np.full(label.shape, "")))
        result[column] = {}
        for kind in sorted({str(kind) for kind in kinds[label == 1]} - {""}):
            rows = (label == 0) | ((label == 1) & (kinds == kind))
            draws = PatientBootstrap(label[rows].astype(np.int64), patient[rows], resamples=resamples, seed=seed)
            chosen = {name: np.asarray(score)[rows] for name, score in scores.items()}
            result[column][kind] = _figures(draws, chosen, level=level, metrics=("roc_auc",))
    return result


def _figures(
    draws: PatientBootstrap,
    scores: Mapping[str, NDArray[Any]],
    *,
    level: float,
    metrics: Sequence[Metric] = ("roc_auc", "ap"),
    thresholds: Mapping[str, float] | None = None,
    trivial: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """The figures of each score on one set of films, studies or patients, all from the same draws."""
    labels = draws.labels
    drawn: dict[str, Floats] = {}
    result: dict[str, dict[str, Any]] = {}
    for name, values in scores.items():
        truth, score = checked_scores(labels, values)
        figures: dict[str, Any] = {}
        for metric in metrics:
            estimate, spread = ESTIMATES[metric](truth, score), draws.figures(score, metric)
            figures[metric] = finite_or_none(estimate)
            figures[f"{metric}_interval"] = interval_or_none(*draws.interval(estimate, spread, level))
            if metric == "roc_auc":
                drawn[name] = spread
        figures["n"] = len(labels)
        figures["n_abnormal"] = int((labels == 1).sum())
        figures["n_patients"] = int(draws.counts.shape[1])
        figures["prevalence"] = share(labels == 1, np.ones(labels.shape, np.bool_))
        if thresholds and name in thresholds:
            figures["threshold"] = at_threshold(truth, score, thresholds[name])
        result[name] = figures
    rivals = [name for name in trivial if name in result]
    for name in [name for name in result if name not in trivial]:
        if rivals and result[name]["roc_auc"] is not None:
            result[name]["against"] = {
                rival: draws.comparison(
                    result[name]["roc_auc"] - result[rival]["roc_auc"], drawn[name] - drawn[rival], level
                ).plain()
                for rival in rivals
            }
    return result
