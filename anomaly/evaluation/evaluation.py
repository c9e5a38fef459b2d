"""Every figure of scored films, computed once; scores.csv, metrics.json, the terminal and the page render it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anomaly.evaluation.bootstrap import ESTIMATES, Metric, PatientBootstrap
from anomaly.evaluation.classification import HALF, classification_figures, reliability_figures
from anomaly.evaluation.cohort import ScoredCohort
from anomaly.evaluation.figures import (
    UNITS,
    ClassifierFigures,
    Difference,
    Interval,
    KindFigures,
    LocalizationFigures,
    Metrics,
    ScoreFigures,
    Unit,
)
from anomaly.evaluation.operating import operating_points
from anomaly.evaluation.ranking import Floats, at_threshold, finite_or_none, interval_or_none, share


@dataclass(frozen=True)
class Evaluation:
    """Scored films and their figures."""

    scored: ScoredCohort
    figures: Metrics


def evaluate(
    scored: ScoredCohort,
    *,
    main: str,
    thresholds: Mapping[Unit, Mapping[str, float]] | None = None,
    chosen: Mapping[Unit, Mapping[str, float]] | None = None,
    localization: LocalizationFigures | None = None,
    chosen_on: int | None = None,
    run: str = "",
    command: str = "",
) -> Evaluation:
    """Compute every figure of every score for films, studies, patients and kinds of abnormal films.

    main        the score that flags, ranks and is reported first.
    thresholds  unit -> score -> value from which films (studies, patients) are flagged, found on validation films.
    chosen      the same for the classifier's figures, where those are evaluated at other thresholds.
    localization  figures of the heatmaps, where there are any.
    chosen_on   how many labelled validation films chose the thresholds, where the main score is the probability of
                being abnormal: it is then evaluated as a classifier too, and must lie in [0, 1].
    run, command  where the figures come from, for the record.

    Films of unknown label count nowhere. Raises ValueError where the main score, or its threshold for a classifier, is
    missing.
    """
    if main not in scored.scores:
        raise ValueError(f"no score {main!r}; there are: {', '.join(sorted(scored.scores))}")
    cohort, settings = scored.cohort, scored.settings
    flagging: Mapping[Unit, Mapping[str, float]] = thresholds or {}
    units = {
        unit: score_figures(
            scored.bootstraps[unit],
            scored.groups[unit].known_scores,
            level=settings.level,
            thresholds=flagging.get(unit, {}),
            trivial=settings.trivial,
        )
        for unit in UNITS
    }
    flags_from = {unit: flagging[unit][main] for unit in UNITS if main in flagging.get(unit, {})}
    figures = Metrics(
        settings=settings,
        film=units["film"],
        study=units["study"],
        patient=units["patient"],
        finding=_by_kind(scored, cohort.finding),
        difficulty=_by_kind(scored, cohort.difficulty),
        run=run,
        split="+".join(sorted(set(cohort.split.tolist()))),
        synthetic=cohort.synthetic,
        score=main,
        command=command,
        unknown_patients=cohort.unknown_patients,
        films=len(cohort.film),
        columns={name: _by_value(scored, values) for name, values in cohort.columns.items()},
        localization=localization,
        classes=None if chosen_on is None else _classifier(scored, main, chosen or flagging),
        chosen_on=chosen_on,
        operating=operating_points(scored, main, flags_from) if len(flags_from) == len(UNITS) else None,
    )
    return Evaluation(scored, figures)


def score_figures(
    bootstrap: PatientBootstrap,
    scores: Mapping[str, Floats],
    *,
    level: float = 0.95,
    thresholds: Mapping[str, float] | None = None,
    trivial: Sequence[str] = (),
) -> dict[str, ScoreFigures]:
    """The figures of each score on one set of films, studies or patients, all from the same resampled patients.

    scores  name -> (N,) finite, in the order of the bootstrap's labels.    thresholds  score -> value from which films
    are flagged.    trivial  the scores that the others are compared with.
    """
    drawn = {name: bootstrap.figures(values, "roc_auc") for name, values in scores.items()}
    kinds = {name: _kind_figures(bootstrap, values, drawn[name], level) for name, values in scores.items()}
    rivals = [name for name in trivial if name in kinds]

    def against(name: str) -> dict[str, Difference] | None:
        value = kinds[name].roc_auc
        if name in trivial or value is None or not rivals:
            return None
        differences = {}
        for rival in rivals:
            other = kinds[rival].roc_auc
            assert other is not None  # the same films have both classes for one score as for another
            differences[rival] = bootstrap.comparison(value - other, drawn[name] - drawn[rival], level).figures()
        return differences

    result = {}
    for name, values in scores.items():
        ap, limits = _estimate(bootstrap, values, bootstrap.figures(values, "ap"), "ap", level)
        flagged = None
        if thresholds and name in thresholds:
            flagged = at_threshold(bootstrap.labels, values, thresholds[name])
        result[name] = ScoreFigures(
            **dict(kinds[name]), ap=ap, ap_interval=limits, threshold=flagged, against=against(name)
        )
    return result


def _kind_figures(bootstrap: PatientBootstrap, values: Floats, drawn: Floats, level: float) -> KindFigures:
    """The ROC-AUC of a score, (N,), from its value in every draw, (B,), and what it was measured on."""
    labels = bootstrap.labels
    roc_auc, limits = _estimate(bootstrap, values, drawn, "roc_auc", level)
    return KindFigures(
        roc_auc=roc_auc,
        roc_auc_interval=limits,
        n=len(labels),
        n_abnormal=int((labels == 1).sum()),
        n_patients=bootstrap.n_patients,
        prevalence=share(labels == 1, np.ones(labels.shape, np.bool_)),
    )


def _estimate(
    bootstrap: PatientBootstrap, values: Floats, drawn: Floats, metric: Metric, level: float
) -> tuple[float | None, Interval | None]:
    """A figure and its interval, each None where it is undefined."""
    estimate = ESTIMATES[metric](bootstrap.labels, values)
    return finite_or_none(estimate), interval_or_none(*bootstrap.interval(estimate, drawn, level))


def _by_kind(scored: ScoredCohort, kinds: np.ndarray) -> dict[str, dict[str, KindFigures]]:
    """The figures of the abnormal films of each kind against all normal films; kinds (N,), "" for none.

    Each kind is a set of films with patients of its own, hence a bootstrap of its own.
    """
    label = scored.cohort.label
    return {
        kind: _of_rows(scored, (label == 0) | ((label == 1) & (kinds == kind)))
        for kind in sorted({str(kind) for kind in kinds[label == 1]} - {""})
    }


def _by_value(scored: ScoredCohort, column: np.ndarray) -> dict[str, dict[str, KindFigures]]:
    """The figures of the films of each value of a column, (N,), normal and abnormal ones of that value alone."""
    known = scored.cohort.label >= 0
    return {value: _of_rows(scored, known & (column == value)) for value in sorted({str(v) for v in column[known]})}


def _of_rows(scored: ScoredCohort, rows: np.ndarray) -> dict[str, KindFigures]:
    """The figures of each score on some films, (N,) bool, all of known label."""
    settings, cohort = scored.settings, scored.cohort
    bootstrap = PatientBootstrap(
        cohort.label[rows], cohort.patient[rows], resamples=settings.resamples, seed=settings.seed
    )
    return {
        name: _kind_figures(bootstrap, values[rows], bootstrap.figures(values[rows], "roc_auc"), settings.level)
        for name, values in scored.scores.items()
    }


def _classifier(
    scored: ScoredCohort, main: str, thresholds: Mapping[Unit, Mapping[str, float]]
) -> dict[Unit, ClassifierFigures]:
    """The main score as a classifier by film, study and patient; empty where no label is known."""
    result: dict[Unit, ClassifierFigures] = {}
    for unit in UNITS:
        bootstrap, values, level = scored.bootstraps[unit], scored.known_scores(unit, main), scored.settings.level
        if not len(values):
            continue
        if main not in thresholds.get(unit, {}):
            raise ValueError(f"no threshold of {main} by {unit}: a classifier needs one chosen on validation films")
        result[unit] = ClassifierFigures(
            half=classification_figures(bootstrap, values, HALF, level=level),
            chosen=classification_figures(bootstrap, values, thresholds[unit][main], level=level),
            reliability=reliability_figures(bootstrap, values, level=level),
        )
    return result
