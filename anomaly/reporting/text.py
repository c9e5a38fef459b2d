"""The figures of an evaluation as lines of text for a terminal."""

from collections.abc import Mapping, Sequence

from anomaly.evaluation.classification import CLASSES, FIGURES
from anomaly.evaluation.figures import (
    ClassificationFigures,
    ClassifierFigures,
    KindFigures,
    LocalizationFigures,
    Metrics,
    ScoreFigures,
)
from anomaly.formatting import markdown, number, with_interval
from anomaly.reporting.operating import operating_lines
from preprocessing.wording import counted


def summary(figures: Metrics) -> list[str]:
    """Every figure: a table each by film, study and patient, then by kind, of pixels, and as a classifier."""
    if all(row.roc_auc is None for row in figures.film.values()):
        return ["no ROC-AUC: it needs normal and abnormal films with known labels", *operating_lines(figures)]
    films = f"{'SYNTHETIC films, ' if figures.synthetic else ''}split {figures.split}"
    lines = list(figures.notes)
    for unit, scores in figures.units.items():
        heading = f"by {unit} ({films}, {figures.settings.level:.0%} confidence intervals over patients)"
        lines += ["", heading, *score_table(scores)]
    for column, kinds in figures.kinds.items():
        heading = f"{figures.score} by {column} ({films}; its abnormal films against all normal films)"
        lines += ["", heading, *kind_table(kinds, (figures.score, *figures.settings.trivial))]
    for column, values in figures.columns.items():
        heading = f"{figures.score} by {column} ({films}; the films of each value alone)"
        lines += ["", heading, *value_table(column, values, (figures.score, *figures.settings.trivial))]
    if figures.operating:
        lines += ["", *operating_lines(figures)]
    if figures.localization:
        lines += ["", *localization_lines(figures.localization, films)]
    for unit, classifier in (figures.classes or {}).items():
        lines += _classifier(unit, classifier, films, figures.chosen_on or 0)
    return [*lines, ""]


def localization_lines(figures: LocalizationFigures, films: str) -> list[str]:
    """The main figures of heatmaps against ground truth in two lines, or one that says why there are none.

    films  which ones, in words.
    """
    if not figures.n_lesions:
        return [no_localization(figures)]
    return [
        f"pixels ({films}; {counted(figures.n_lesions, 'lesion')} on {counted(figures.n_films, 'abnormal film')}, "
        f"ground truth: {figures.ground_truth}): AUPRO .3 {with_interval(*figures.value('aupro_30'))}, "
        f"AP {with_interval(*figures.value('ap'))} at prevalence {number(figures.prevalence)}, "
        f"ROC-AUC {with_interval(*figures.value('roc_auc'))}",
        f"peak in a lesion on {with_interval(*figures.value('peak_in_lesion'))} of these films; FROC (mean share of "
        f"lesions found at 1/8 to 8 false marks a film) {with_interval(*figures.value('froc_mean'))}",
    ]


def no_localization(figures: LocalizationFigures) -> str:
    """The reason why there are no figures of heatmaps against ground truth."""
    if figures.n_hidden:
        return f"no pixel figures: all {counted(figures.n_hidden, 'marked lesion')} lie outside the foreground mask"
    unmarked = counted(figures.n_unmarked, "abnormal film")
    return f"no pixel figures: none of the {unmarked} has a mask or boxes"


def _classifier(unit: str, classifier: ClassifierFigures, films: str, chosen_on: int) -> list[str]:
    """The figures at both thresholds and the Brier score; of films class by class, too."""
    reliability = classifier.reliability
    lines = [
        "",
        f"as a classifier by {unit} ({films}; second threshold chosen on {counted(chosen_on, 'validation film')})",
        *classifier_table(classifier),
        f"Brier score {with_interval(reliability.brier, reliability.brier_interval)}; "
        f"{number(reliability.brier_of_prevalence)} for a constant prediction of the prevalence",
    ]
    if unit == "film":
        for threshold, figures in _thresholds(classifier).items():
            lines += ["", f"class by class {threshold} ({films})", *report_table(figures)]
    return lines


# ------------------------------------------------------------------------------------------------------------- tables


def score_table(figures: Mapping[str, ScoreFigures]) -> list[str]:
    """Lines of a Markdown table: a row a score, with intervals, n and prevalence."""
    rows = [
        [
            name,
            with_interval(row.roc_auc, row.roc_auc_interval),
            with_interval(row.ap, row.ap_interval),
            str(row.n),
            str(row.n_abnormal),
            str(row.n_patients),
            number(row.prevalence),
        ]
        for name, row in figures.items()
    ]
    return markdown(["score", "ROC-AUC", "AP", "n", "abnormal", "patients", "prevalence"], rows)


def kind_table(kinds: Mapping[str, Mapping[str, KindFigures]], names: tuple[str, ...]) -> list[str]:
    """Lines of a Markdown table: a row a kind of abnormal films, a column each of the named scores that there are."""
    rows = []
    for kind, scores in kinds.items():
        chosen = [scores[name] for name in names if name in scores]
        values = [with_interval(row.roc_auc, row.roc_auc_interval) for row in chosen]
        rows.append([kind, *values, str(chosen[0].n_abnormal)])
    head = [name for name in names if all(name in scores for scores in kinds.values())]
    return markdown(["kind", *head, "abnormal films"], rows)


def value_table(column: str, values: Mapping[str, Mapping[str, KindFigures]], names: tuple[str, ...]) -> list[str]:
    """Lines of a Markdown table: a row a value of a column, a column each of the named scores that there are."""
    head = [name for name in names if all(name in scores for scores in values.values())]
    rows = []
    for value, scores in values.items():
        first = scores[head[0]]
        figures = [with_interval(scores[name].roc_auc, scores[name].roc_auc_interval) for name in head]
        rows.append([value or "none", *figures, str(first.n), str(first.n_abnormal), str(first.n_patients)])
    return markdown([column, *head, "n", "abnormal", "patients"], rows)


def classifier_table(figures: ClassifierFigures) -> list[str]:
    """Lines of a Markdown table: a row a threshold, with intervals."""
    rows = [
        [threshold, *(with_interval(*row.value(name)) for name in FIGURES)]
        for threshold, row in _thresholds(figures).items()
    ]
    return markdown(["threshold", "accuracy", "precision", "recall", "F1", "specificity", "kappa"], rows)


def _thresholds(figures: ClassifierFigures) -> dict[str, ClassificationFigures]:
    chosen = f"at {number(figures.chosen.threshold)}, chosen on validation"
    return {f"at {number(figures.half.threshold)}": figures.half, chosen: figures.chosen}


def report_table(figures: ClassificationFigures) -> list[str]:
    """Lines of two Markdown tables: the classification report, a blank line, the confusion matrix with shares."""
    report = markdown(
        ["class", "precision", "recall", "F1", "n"],
        [
            [
                name,
                *(number(getattr(row, figure)) if hasattr(row, figure) else "" for figure in ("precision", "recall")),
                number(row.f1),
                str(row.support),
            ]
            for name, row in figures.report.items()
        ],
    )
    confusion = figures.confusion
    matrix = markdown(
        ["label", *(f"called {name}" for name in CLASSES)],
        [
            [name, *(f"{count} ({number(share)})" for count, share in zip(counts, shares or (None, None), strict=True))]
            for name, counts, shares in zip(CLASSES, confusion.counts, confusion.normalized, strict=True)
        ],
    )
    return [*report, "", *matrix]


def flag_table(
    films: Sequence[str], values: Sequence[float], score: str, threshold: float, p_values: Sequence[float | None]
) -> list[str]:
    """Lines of a Markdown table: a row a film, the highest score first, its p-value, and whether it is flagged."""
    order = sorted(range(len(films)), key=lambda row: -values[row])
    rows = [
        (
            films[row],
            f"{values[row]:.6g}",
            number(p_values[row]),
            "flagged" if values[row] >= threshold else "",
        )
        for row in order
    ]
    return markdown(["film", score, "p", f"at {threshold:.6g}"], rows)
