"""The films of an evaluation, and their scores put together by film, study and patient: grouped and resampled once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.figures import UNITS, EvaluationSettings, Pooling, Unit
from anomaly.evaluation.ranking import Floats, Integers, checked_scores


@dataclass(frozen=True)
class Cohort:
    """What is known of N films; raises ValueError where columns differ in length or a label is not -1, 0 or 1."""

    film: NDArray[Any]  # (N,) names
    study: NDArray[Any]  # (N,) names
    patient: NDArray[Any]  # (N,) names
    label: Integers  # (N,) 0 normal, 1 abnormal, -1 unknown
    split: NDArray[Any]  # (N,) train, val, test, or new for films of no cache
    finding: NDArray[Any]  # (N,) kind of abnormality, "" where there is none
    difficulty: NDArray[Any]  # (N,) "" where there is none
    synthetic: bool  # drawn, not taken of patients
    unknown_patients: int = 0  # films of which the patient isn't known: each counts as one, or its study does
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # name -> (N,): figures are wanted by its values

    def __post_init__(self) -> None:
        apart = ("synthetic", "unknown_patients", "columns")
        columns = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in apart}
        for name, value in {**columns, **self.columns}.items():
            if np.shape(value) != (len(self.film),):
                raise ValueError(f"{name} {np.shape(value)} must be ({len(self.film)},): one a film")
        checked_scores(self.label, np.zeros(len(self.film)), known=False)


@dataclass(frozen=True)
class Groups:
    """Films put together by film, study or patient, in the order of their first film."""

    ids: NDArray[Any]  # (G,) name of the film, study or patient
    labels: Integers  # (G,) the largest of its films: one abnormal film makes it abnormal; -1 where all are unknown
    films: Integers  # (G,) how many films it has
    first: Integers  # (G,) row of its first film
    scores: Mapping[str, Floats]  # name -> (G,) the mean or the largest score of its films

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which have a known label, (G,)."""
        return self.labels >= 0

    @property
    def known_scores(self) -> dict[str, Floats]:
        """The scores of those with a known label, name -> (K,)."""
        return {name: values[self.known] for name, values in self.scores.items()}


def group(ids: ArrayLike, labels: ArrayLike, scores: Mapping[str, ArrayLike], pooling: Pooling = "mean") -> Groups:
    """Put films together by their study or patient: one label and one value of each score.

    ids  (N,) the study or patient of each film.    labels  (N,) -1, 0 or 1.    scores  name -> (N,) finite.    pooling
    "max" flags a study for its worst view and grows with the number of views; "mean" does not. Raises ValueError on
    anything else.

    >>> groups = group(["b", "a", "b"], [0, -1, 1], {"mse": [1.0, 5.0, 3.0]})
    >>> groups.ids.tolist(), groups.scores["mse"].tolist(), groups.labels.tolist(), groups.films.tolist()
    (['b', 'a'], [2.0, 5.0], [1, -1], [2, 1])
    """
    names, first, index, films = np.unique(np.asarray(ids), return_index=True, return_inverse=True, return_counts=True)
    truth, _ = checked_scores(labels, np.zeros(np.shape(labels)), known=False)
    if index.shape != truth.shape:
        raise ValueError(f"{len(truth)} labels but {index.size} ids: one id a film")
    label = np.full(len(names), -1)
    np.maximum.at(label, index, truth)
    order = np.argsort(first)
    pooled: dict[str, Floats] = {}
    for name, values in scores.items():
        _, score = checked_scores(truth, values, known=False)
        if pooling == "mean":
            value = np.bincount(index, weights=score, minlength=len(names)) / films
        elif pooling == "max":
            value = np.full(len(names), -math.inf)
            np.maximum.at(value, index, score)
        else:
            raise ValueError(f"no pooling {pooling!r}; there are: max, mean")
        pooled[name] = value[order]
    return Groups(names[order], label[order], films[order].astype(np.int64), first[order].astype(np.int64), pooled)


@dataclass(frozen=True)
class ScoredCohort:
    """Films with their scores; grouped, and their patients resampled, once for whatever is computed or drawn of them.

    scores  name -> (N,) finite, those of trivial detectors among them.
    """

    cohort: Cohort
    scores: Mapping[str, Floats]
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)

    @cached_property
    def groups(self) -> Mapping[Unit, Groups]:
        """The films by film (each on its own), study and patient."""
        label, pooling = self.cohort.label, self.settings.aggregate
        films = group(np.arange(len(label)), label, self.scores, pooling)
        return {
            "film": replace(films, ids=self.cohort.film),
            "study": group(self.cohort.study, label, self.scores, pooling),
            "patient": group(self.cohort.patient, label, self.scores, pooling),
        }

    @cached_property
    def bootstraps(self) -> Mapping[Unit, PatientBootstrap]:
        """The resampled patients of films, studies and patients of known label: one set serves every figure."""
        return {unit: self._resampled(unit) for unit in UNITS}

    def _resampled(self, unit: Unit) -> PatientBootstrap:
        groups = self.groups[unit]
        patients = self.cohort.patient[groups.first][groups.known]
        return PatientBootstrap(
            groups.labels[groups.known], patients, resamples=self.settings.resamples, seed=self.settings.seed
        )

    def known_scores(self, unit: Unit, name: str) -> Floats:
        """A score of the films, studies or patients of known label, (K,), in the order of their bootstrap's labels."""
        groups = self.groups[unit]
        return groups.scores[name][groups.known]
