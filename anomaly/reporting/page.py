"""The pages of a run: what was trained on what, how well it detects abnormal films, and where it fails."""

import math
from typing import Any

from anomaly.evaluation.figures import ClassificationFigures, ClassifierFigures, Metrics
from anomaly.evaluation.film_localization import LARGEST_SHARE, MARK_RADIUS, POINTING_TOLERANCE
from anomaly.formatting import with_interval
from anomaly.reporting.charts.froc import froc_chart
from anomaly.reporting.charts.histogram import score_histograms
from anomaly.reporting.charts.learning import learning_curves
from anomaly.reporting.charts.reliability import reliability_diagrams
from anomaly.reporting.charts.roc import roc_charts
from anomaly.reporting.checklists import SUBGROUP_HEAD, subgroups
from anomaly.reporting.context import ReportContext
from anomaly.reporting.galleries import heat_bar, layer_names, numbered_galleries
from anomaly.reporting.html import compact, flat, png_address, render
from anomaly.reporting.model_card import checklists, filled, model_card
from anomaly.reporting.text import no_localization
from preprocessing.wording import counted

_PANELS = 12  # learning curves at most; the run's history.csv has the others
_FIRST = 6  # of the most wrong films, how many the report itself shows


def render_report(context: ReportContext) -> str:
    """The page as HTML. With wrong films it has a link to `wrong.html`, the page of `render_wrong`."""
    evaluation, figures = context.evaluation, context.figures
    classes = figures.classes or {}
    reliabilities = {unit: classifier.reliability for unit, classifier in classes.items()}
    panels = learning_curves(context.history)
    galleries = numbered_galleries(
        {
            "Most abnormal": context.highest,
            "Most wrong": context.wrong[:_FIRST],
            "Most normal": context.lowest,
        },
        context.threshold,
    )
    sections = {
        "scores": "Scores",
        "films": "Films" if any(galleries.values()) else "",
        "localization": "Localization" if figures.localization else "",
        "figures": "Figures",
        "threshold": "Threshold" if figures.operating else "",
        "classifier": "As a classifier" if classes else "",
        "kinds": "By kind" if figures.kinds else "",
        "columns": "By column" if figures.columns else "",
        "training": "Training" if panels or context.pictures else "",
        "made": "Provenance",
        "card": "Model card",
    }
    return render(
        "report.html",
        context=context,
        figures=figures,
        synthetic=figures.synthetic,
        sections={name: title for name, title in sections.items() if title},
        verdict=verdict(figures),
        settings=flat(context.config),
        curves=panels[:_PANELS],
        hidden_curves=len(panels[_PANELS:]),
        roc=roc_charts(evaluation),
        histograms=score_histograms(evaluation),
        localization=_localization(figures),
        classes={unit: _by_threshold(classifier) for unit, classifier in classes.items()},
        reliabilities=reliabilities,
        reliability=reliability_diagrams(reliabilities),
        galleries=galleries,
        layers=layer_names(galleries),
        bar=heat_bar(context.map_scale, context.map_unit),
        pictures={words: png_address(picture) for words, picture in context.pictures.items()},
        card=model_card(context),
        subgroups=[SUBGROUP_HEAD, *(group.cells() for group in subgroups(figures))] if subgroups(figures) else [],
        checklists={title: (filled(items), items) for title, items in checklists(context).items()},
    )


def render_wrong(context: ReportContext) -> str:
    """The page of the wrong films as HTML, to lie beside the report as `wrong.html`."""
    by_label = {label: [shown for shown in context.wrong if shown.label == label] for label in (0, 1)}
    galleries = numbered_galleries(
        {"Normal films that score high": by_label[0], "Abnormal films that score low": by_label[1]}, context.threshold
    )
    return render(
        "wrong.html",
        context=context,
        synthetic=context.figures.synthetic,
        sections={},
        galleries=galleries,
        layers=layer_names(galleries),
        bar=heat_bar(context.map_scale, context.map_unit),
    )


def verdict(figures: Metrics) -> list[str]:
    """Sentences on whether the main score is a detector: its ROC-AUC on films, compared with the trivial ones.

    Empty where there is no ROC-AUC.
    """
    film = figures.main
    if film.roc_auc is None or film.prevalence is None:
        return []
    value = with_interval(film.roc_auc, film.roc_auc_interval)
    lines = [
        f"ROC-AUC {value} on {counted(film.n, 'film')} of {counted(film.n_patients, 'patient')}, "
        f"{film.n_abnormal} of them abnormal ({100 * film.prevalence:.0f} %)."
    ]
    for rival, versus in (film.against or {}).items():
        gap = with_interval(versus.difference, versus.interval)
        if versus.interval is None:
            lines.append(
                f"Compared with {rival}: difference in ROC-AUC {gap}; too few patients for a confidence interval."
            )
        elif versus.interval[0] > 0:
            lines.append(f"Better than {rival} by {gap}.")
        elif versus.interval[1] < 0:
            lines.append(f"WORSE than {rival}: difference in ROC-AUC {gap}.")
        else:
            lines.append(f"NOT shown to be better than {rival}: difference in ROC-AUC {gap}.")
    return lines


def _localization(figures: Metrics) -> dict[str, Any] | None:
    """What the page says of heatmaps against ground truth: the reason why there are no figures, or table and chart."""
    found = figures.localization
    if found is None:
        return None
    if not found.n_lesions:
        return {"reason": no_localization(found)}
    return {
        "reason": "",
        "froc": [froc_chart(found, figures.settings.level)],
        "rows": {"all lesions": {"": found}, **found.kinds},
        "mark_radius": f"1/{round(1 / MARK_RADIUS)}",
        "tolerance": f"{100 * POINTING_TOLERANCE:.1f} %",
        "sizes": ", ".join(
            f"{size} below {100 * share:g} %" for size, share in LARGEST_SHARE.items() if math.isfinite(share)
        ),
    }


def _by_threshold(figures: ClassifierFigures) -> list[tuple[str, ClassificationFigures]]:
    """Title and figures of both thresholds: at one half, then as chosen."""
    chosen = f"at {compact(figures.chosen.threshold)}, chosen on validation"
    return [(f"at {compact(figures.half.threshold)}", figures.half), (chosen, figures.chosen)]
