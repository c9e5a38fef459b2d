"""The figures of new labelled films in a few lines of a terminal; metrics.json and the page have them all."""

from anomaly.evaluation.figures import Metrics, ScoreFigures
from anomaly.formatting import with_interval
from anomaly.reporting.operating import MOST_KINDS, at_work, operating_lines
from anomaly.reporting.text import localization_lines
from preprocessing.wording import counted


def external_lines(figures: Metrics) -> list[str]:
    """Return how well the score ranks, the threshold at work, both by kind and column, and pixel figures.

    The least important ones come last: a terminal may have no room for the values of many columns.
    """
    films = f"{'SYNTHETIC ' * figures.synthetic}films"
    lines = [*_ranking(figures, films), *operating_lines(figures)]
    if figures.localization and figures.main.roc_auc is not None:
        lines += localization_lines(figures.localization, films)
    return [*lines, *_columns(figures)]


def _ranking(figures: Metrics, films: str) -> list[str]:
    """Return the ROC-AUC of the main score and of the trivial ones, or that there is one class alone."""
    main = figures.main
    if main.roc_auc is None:
        classes = "abnormal" if main.n_abnormal else "normal"
        return [f"all {main.n} {films} of known label are {classes}: no ROC-AUC"]

    def ranks(figure: ScoreFigures) -> str:
        return with_interval(figure.roc_auc, figure.roc_auc_interval)

    units = [f"{ranks(scores[figures.score])} by {unit}" for unit, scores in figures.units.items()]
    trivial = [f"{name} {ranks(figures.film[name])}" for name in figures.settings.trivial if name in figures.film]
    level = f"{figures.settings.level:.0%} confidence intervals over patients"
    return [
        f"ROC-AUC of {figures.score} ({main.n} {films}, {main.n_abnormal} abnormal, of "
        f"{counted(main.n_patients, 'patient')}; {level}): {', '.join(units)}; {', '.join(trivial)}"
    ]


def _columns(figures: Metrics) -> list[str]:
    """Return a line for each value of the columns that were asked for."""
    if figures.operating is None:
        return []
    lines = []
    for name, values in figures.operating.columns.items():
        for value, at in list(values.items())[:MOST_KINDS]:
            kind = figures.columns[name][value][figures.score]
            ranked = "" if kind.roc_auc is None else f"ROC-AUC {with_interval(kind.roc_auc, kind.roc_auc_interval)}, "
            lines.append(f"{name} {value or 'none'}: {ranked}{at_work(at, 'film')}")
        if len(values) > MOST_KINDS:
            lines.append(f"{name}: {len(values) - MOST_KINDS} more values in metrics.json")
    return lines
