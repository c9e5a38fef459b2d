"""The pages of a run: what was trained on what, how well it detects abnormal films, and where it fails."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from anomaly.data.splits import LABELS
from anomaly.evaluation.comparison import Entry, Table
from anomaly.evaluation.evaluation import Evaluation
from anomaly.evaluation.figures import ClassificationFigures, ClassifierFigures, Metrics, Reliability, Unit
from anomaly.evaluation.ranking import has_both_classes, roc_curve
from anomaly.formatting import number, with_interval
from anomaly.reporting.charts import Chart, swatch
from anomaly.reporting.context import ReportContext
from anomaly.reporting.galleries import heat_bar, layer_names, numbered_galleries
from anomaly.reporting.html import compact, flat, png_address, render
from anomaly.reporting.model_card import bench_card, model_card
from anomaly.reporting.tables import footnotes
from preprocessing.wording import counted, plural

_PANELS = 12  # learning curves at most; the run's history.csv has the others
_CURVES = 4  # scores of the model in one ROC picture at most, besides the trivial ones
_SERIES = ("one", "two", "three", "four")  # kinds of line, as the stylesheet colors them
_PLAIN = ("muted dashed", "muted dotted")  # those of the trivial detectors
_BINS = 40
_FIRST = 6  # of the most wrong films, how many the report itself shows
_RULES = {
    "quantile": "chosen on validation normals",
    "youden": "chosen on labelled validation films (Youden's index)",
}


@dataclass(frozen=True)
class BenchRun:
    """A run of a bench, as the bench's page leads to it."""

    model: str  # as the table names it in its rows
    variant: str
    seed: int
    report: str | None  # where its page lies, relative to the bench's; None where it failed or is not done
    failure: str | None = None  # why it failed


def render_report(context: ReportContext) -> str:
    """The page as HTML. With wrong films it has a link to `wrong.html`, the page of `render_wrong`."""
    evaluation, figures = context.evaluation, context.figures
    classes = figures.classes or {}
    panels = _learning_curves(context.history)
    galleries = numbered_galleries(
        {
            "Most abnormal": context.highest,
            "Most wrong": context.wrong[:_FIRST],
            "Most normal": context.lowest,
        },
        context.threshold,
    )
    scores = sorted(evaluation.scored.scores, key=lambda name: name != context.score)  # the main one first
    sections = {
        "scores": "Scores",
        "films": "Films" if any(galleries.values()) else "",
        "figures": "Figures",
        "classifier": "As a classifier" if classes else "",
        "kinds": "By kind" if figures.kinds else "",
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
        roc=_roc_curves(evaluation),
        histograms=[_histogram(evaluation, name) for name in scores],
        threshold_rule=_RULES[context.rule],
        classes={unit: _thresholds_of(classifier) for unit, classifier in classes.items()},
        reliabilities={unit: classifier.reliability for unit, classifier in classes.items()},
        reliability=_reliability_charts(classes),
        galleries=galleries,
        layers=layer_names(galleries),
        bar=heat_bar(context.map_scale, context.map_unit),
        pictures={words: png_address(picture) for words, picture in context.pictures.items()},
        card=model_card(context),
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


def render_bench(table: Table, runs: Sequence[BenchRun], settings: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The page of a bench as HTML: its table, a forest plot a column, and the way to every run's own page.

    settings  what makes the bench, nested as you like.    notes  sentences the reader should know first; what the table
    has to say of itself stands beneath it.
    """
    by_model: dict[str, dict[str, list[BenchRun]]] = {}
    for run in runs:
        by_model.setdefault(run.model, {}).setdefault(run.variant, []).append(run)
    reasons = table.failures
    return render(
        "bench.html",
        table=table,
        synthetic=table.synthetic,
        sections={
            "table": "Table",
            "forest": "Differences",
            "runs": "Runs",
            "made": "Provenance",
            "card": "Model card",
        },
        trivial=set(table.settings.trivial),
        notes=notes,
        failures=reasons,
        footnotes=footnotes(table, best="best")[: -len(reasons) or None],
        winners=_winners(table),
        forests=[_forest(table, column) for column in table.columns],
        runs=by_model,
        settings=flat({**table.facts, **settings}),
        card=bench_card(table),
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
            lines.append(f"Compared with {rival}: {gap}; too few patients for a confidence interval.")
        elif versus.interval[0] > 0:
            lines.append(f"Better than {rival} by {gap}.")
        elif versus.interval[1] < 0:
            lines.append(f"WORSE than {rival}: {gap}.")
        else:
            lines.append(f"NOT shown to be better than {rival}: {gap}.")
    return lines


# ------------------------------------------------------------------------------------------------------------- charts

Panel = dict[str, Any]
"""A chart on the page: "title", "chart", its SVG, and "legend", pairs of a swatch and its words."""


def _panel(title: str, chart: Markup, legend: Sequence[tuple[str, str]] = ()) -> Panel:
    return {"title": title, "chart": chart, "legend": [(swatch(kind), words) for kind, words in legend]}


def _roc_curves(evaluation: Evaluation) -> list[Panel]:
    """ROC curves of films and of studies, the main score's with its band; none with one class only."""
    scored, figures = evaluation.scored, evaluation.figures
    trivial = figures.settings.trivial
    others = [name for name in scored.scores if name != figures.score and name not in trivial]
    trained = [figures.score, *others][:_CURVES]
    plain = [name for name in scored.scores if name in trivial]
    kinds = dict(zip(trained, _SERIES, strict=False)) | {name: _PLAIN[i % 2] for i, name in enumerate(plain)}
    units: tuple[Unit, ...] = ("film", "study")
    panels = []
    for unit in units:
        bootstrap = scored.bootstraps[unit]
        if not has_both_classes(bootstrap.labels):
            continue
        chart = Chart((0, 1), (0, 1), xlabel="normal flagged", ylabel="abnormal flagged", height=380)
        at = np.linspace(0, 1, 101)
        band = bootstrap.roc_band(scored.known_scores(unit, figures.score), at, figures.settings.level)
        if band:
            chart.band(at.tolist(), *band, "one")
        chart.line((0, 1), (0, 1), "chance")
        legend = []
        for name in (*reversed(plain), *reversed(trained)):
            curve = roc_curve(bootstrap.labels, scored.known_scores(unit, name))
            chart.line(*curve, kinds[name] + " thick" * (name == figures.score))
            value = figures.units[unit][name]
            legend.append((kinds[name], f"{name} {with_interval(value.roc_auc, value.roc_auc_interval)}"))
        words = f"ROC curves by {unit}: {'; '.join(words for _, words in reversed(legend))}."
        panels.append(_panel(f"ROC curves by {unit}", chart.svg(words), legend[::-1]))
    return panels


def _histogram(evaluation: Evaluation, name: str) -> Panel:
    """A score in each class, and its threshold; the outermost half percents are in the end bins."""
    labels, scores = evaluation.scored.cohort.label, evaluation.scored.scores[name]
    flagged = evaluation.figures.film[name].threshold
    threshold = None if flagged is None else flagged.threshold
    low, high = np.quantile(scores, [0.005, 0.995])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    room = (high - low) * 0.02 or 0.5
    edges = np.linspace(low - room, high + room, _BINS + 1)
    shares = {}
    for label in LABELS:
        values = np.clip(scores[labels == label], edges[0], edges[-1])
        if len(values):
            shares[label] = np.histogram(values, edges)[0] / len(values)
    top = float(max(values.max() for values in shares.values()))
    chart = Chart((edges[0], edges[-1]), (0, top * 1.05), xlabel=name, ylabel="share of the class", height=240)
    legend = []
    for label, values in shares.items():
        kind = "muted" if label < 0 else LABELS[label]
        chart.steps(edges.tolist(), values.tolist(), kind)
        legend.append((kind, f"{LABELS[label]} ({int((labels == label).sum())})"))
    if threshold is not None:
        chart.upright(threshold, 0, top * 1.05, "ink dashed")
        legend.append(("ink dashed", f"threshold {compact(threshold)}"))
    return _panel(name, chart.svg(f"Histogram of {name}: {', '.join(words for _, words in legend)}."), legend)


def _series(
    history: Mapping[str, Sequence[float | None]],
) -> tuple[tuple[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """The horizontal axis (its name, its values) of a history, and the columns to draw over it."""
    columns = {
        name: np.array([math.nan if v is None else v for v in values], np.float64) for name, values in history.items()
    }
    rows = max((len(values) for values in columns.values()), default=0)
    axis = next((name for name in ("step", "epoch") if name in columns), None)
    across = ("row", np.arange(rows, dtype=np.float64)) if axis is None else (axis, columns[axis])
    drawn = {
        name: values
        for name, values in columns.items()
        if name not in ("step", "epoch") and np.isfinite(values).any() and len(values) == len(across[1])
    }
    return across, drawn


def _panels(
    history: Mapping[str, Sequence[float | None]],
) -> tuple[tuple[str, NDArray[np.float64]], dict[str, dict[str, NDArray[np.float64]]]]:
    """The horizontal axis of a history, and title -> column -> values: a panel a column, for their units differ, but
    what was watched in training and in validation lies in one (`accuracy` and `validation_accuracy`).
    """
    across, columns = _series(history)
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, values in columns.items():
        watched = name.removeprefix("validation_")
        panels.setdefault(watched if watched in columns else name, {})[name] = values
    return across, panels


def _learning_curves(history: Mapping[str, Sequence[float | None]]) -> list[Panel]:
    """A small chart a panel."""
    (name, across), panels = _panels(history)
    drawn = []
    for title, columns in panels.items():
        values = np.concatenate(list(columns.values()))
        told = values[np.isfinite(values)]
        room = (told.max() - told.min()) * 0.05
        span = (float(told.min() - room), float(told.max() + room))
        chart = Chart((float(across.min()), float(across.max())), span, xlabel=name, height=210)
        legend = []
        for column, line in columns.items():
            kind, words = ("two", "validation") if column != title else ("one", "training")
            chart.line(across.tolist(), line.tolist(), kind, dots=np.isfinite(line).sum() <= 30)
            legend.append((kind, words))
        drawn.append(_panel(title, chart.svg(f"{title} over {name}."), legend if len(columns) > 1 else ()))
    return drawn


def _reliability_charts(classes: Mapping[Unit, ClassifierFigures]) -> list[Panel]:
    """Over each bin's mean probability its share of abnormal ones, and under it how many are in the bin."""
    panels = []
    for unit, figures in _reliabilities(classes).items():
        chart = Chart((0, 1), (0, 1), ylabel="share abnormal", height=330)
        chart.line((0, 1), (0, 1), "chance")
        most = max(part.n for part in figures.bins)
        below = Chart((0, 1), (0, most), xlabel="probability of being abnormal", ylabel=plural(unit), height=120)
        for part in figures.bins:
            if part.share_interval is not None:
                low, high = part.share_interval
                chart.upright(part.mean_probability, low, high, "one thick")
            words = (
                f"{counted(part.n, unit)} with a mean probability of {part.mean_probability:.2f}: "
                f"{with_interval(part.share, part.share_interval)} abnormal"
            )
            chart.point(part.mean_probability, part.share, "one", radius=4.2, title=words)
            below.steps((part.low, part.high), (part.n,), "one")
        brier = with_interval(figures.brier, figures.brier_interval)
        both = chart.svg(f"Reliability diagram by {unit}: share of abnormal ones over predicted probability.")
        both += below.svg(f"Number of {plural(unit)} in each bin of predicted probability.")
        panels.append(_panel(f"By {unit}, Brier score {brier}", both))
    return panels


def _forest(table: Table, column: str) -> Panel:
    """The rows of one column of a bench, the best first, each with its interval, and the paper's figures beside."""
    rows: list[tuple[tuple[str, str], Entry]] = [
        (row, entry) for row in table.rows if (entry := table.entries.get((*row, column))) and entry.mean is not None
    ]
    rows.sort(key=lambda row: -(row[1].mean or 0.0))
    ends = [limit for _, entry in rows for limit in (entry.interval or ())] + [
        value for _, entry in rows for value in (entry.mean, entry.paper and entry.paper[0]) if value is not None
    ]
    low, high = min([0.45, *ends]), max([0.65, *ends])
    height = 20 * max(1, len(rows)) + 54
    chart = Chart(
        (max(0, low - 0.02), min(1, high + 0.02)), (-len(rows) - 0.5, 0.5), xlabel="ROC-AUC", width=460, height=height,
        left=150,
    )  # fmt: skip
    chart.upright(0.5, -len(rows) - 0.5, 0.5, "chance")
    legend = [("one", "the best, and what cannot be told apart from it"), ("muted", "the others")]
    for place, ((model, score), entry) in enumerate(rows):
        assert entry.mean is not None
        kind = "one" if entry.best or entry.tied else "muted"
        told = f"{model} {score}: {with_interval(entry.mean, entry.interval)}"
        chart.text(-place - 0.5, f"{model} {score}", "strong" if entry.best else "")
        if entry.interval is not None:
            chart.level(-place - 0.5, *entry.interval, f"{kind} thick")
        chart.point(entry.mean, -place - 0.5, kind, radius=4.4 if entry.best else 3.4, title=told)
        if entry.paper is not None:
            chart.diamond(entry.paper[0], -place - 0.5, "two", title=f"paper: {number(entry.paper[0])}")
    if any(entry.paper is not None for _, entry in rows):
        legend.append(("two", "the paper's figure"))
    return _panel(column, chart.svg(f"ROC-AUC of every row on {column}, the best first.", rows=True), legend)


def _winners(table: Table) -> list[str]:
    """A sentence a column: which row is best, and how many cannot be told apart from it."""
    lines = []
    for column in table.columns:
        entries = {row: entry for row in table.rows if (entry := table.entries.get((*row, column)))}
        best = next((row for row, entry in entries.items() if entry.best), None)
        if best is None:
            lines.append(f"{column}: no figure.")
            continue
        others = [entry for row, entry in entries.items() if row != best and entry.mean is not None]
        tied, value = (
            sum(entry.tied for entry in others),
            with_interval(entries[best].mean, entries[best].interval),
        )
        told = f"{tied} of {len(others)} others cannot be told apart from it" if others else "no other row to compare"
        part = entries[best].state
        lines.append(f"{column}: {' '.join(best)} is the best, {value}{f' ({part})' if part else ''}; {told}.")
    return lines


def reliability_png(classes: Mapping[Unit, ClassifierFigures], *, synthetic: bool) -> bytes | None:
    """The reliability diagrams of films and studies as a PNG on white, to show elsewhere; None where there are none."""
    units = _reliabilities(classes)
    if not units:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(units), 5.6 + 0.3 * synthetic), layout="constrained", facecolor="white")
    if synthetic:
        figure.suptitle("SYNTHETIC films", fontsize=11, fontweight="bold")
    grid = figure.subplots(2, len(units), squeeze=False, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    blue, quiet = "#0072b2", "#6a7078"
    for (axes, below), (unit, figures) in zip(grid.T, units.items(), strict=True):
        bins = figures.bins
        axes.plot([0, 1], [0, 1], color=quiet, linewidth=1, linestyle="--")
        for part in bins:
            if part.share_interval is not None:
                axes.plot([part.mean_probability] * 2, part.share_interval, color=blue, linewidth=1.6)
        points = np.array([(part.mean_probability, part.share) for part in bins])
        axes.plot(*points.T, color=blue, linewidth=0, marker="o", markersize=5)
        low, high, count = np.array([(part.low, part.high, part.n) for part in bins]).T
        below.bar(low, count, high - low, align="edge", color=blue, alpha=0.45, edgecolor=blue)
        brier = with_interval(figures.brier, figures.brier_interval)
        axes.set(ylabel="share abnormal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_title(f"by {unit}  (Brier score {brier})", fontsize=9)
        below.set(xlabel="probability of being abnormal", ylabel=plural(unit))
        for each in (axes, below):
            each.grid(color="#dfe3e8", linewidth=0.6)
            each.set_axisbelow(True)
            each.spines[:].set_visible(False)
            each.tick_params(colors=quiet, labelsize=8, length=0)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=160, metadata={"Software": None})
    return data.getvalue()


def _reliabilities(classes: Mapping[Unit, ClassifierFigures]) -> dict[Unit, Reliability]:
    """The units drawn, those of the ROC curves, and the reliability of each."""
    units: tuple[Unit, ...] = ("film", "study")
    return {unit: classes[unit].reliability for unit in units if unit in classes}


def _thresholds_of(figures: ClassifierFigures) -> list[tuple[str, ClassificationFigures]]:
    """Title and figures of both thresholds: at one half, then as chosen."""
    chosen = f"at {compact(figures.chosen.threshold)}, chosen on validation"
    return [(f"at {compact(figures.half.threshold)}", figures.half), (chosen, figures.chosen)]
