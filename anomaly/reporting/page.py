"""One run as one page, and one bench as one page: what was trained on what, how well it tells abnormal films, against
what, where it fails, and what it is not for.

A page is a single HTML file, and so is the page beside a run's of the films that the run gets most wrong. Pictures lie
in it as base64 PNG and charts as SVG; it loads nothing, and runs one script of its own, which its content security
policy names by hash and which only moves sliders. Every text from files is escaped. Pages are readable in light, in
dark, on a phone and on paper, and everything on them is reached by keyboard.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from anomaly.data.splits import LABELS
from anomaly.evaluation.comparison import Entry, Table
from anomaly.evaluation.evaluation import Evaluation
from anomaly.evaluation.figures import ClassificationFigures, ClassifierFigures, Metrics, Reliability, Unit
from anomaly.evaluation.ranking import has_both_classes, roc_curve
from anomaly.formatting import number, with_interval
from anomaly.reporting.charts import Chart, swatch
from anomaly.reporting.heatmap import CLEAR, REACH, color_bar, png
from anomaly.reporting.tables import footnotes
from preprocessing.wording import counted, plural

_TEMPLATES = Path(__file__).parent / "templates"
_WIDEST = 360  # pixels of a film in the gallery
_PANELS = 12  # learning curves at most; the run's history.csv has the others
_CURVES = 4  # scores of the model in one ROC picture at most, besides the trivial ones
_SERIES = ("one", "two", "three", "four")  # kinds of line, as the stylesheet colors them
_PLAIN = ("muted dashed", "muted dotted")  # those of the trivial detectors
_BINS = 40
_FIRST = 6  # of the most wrong films, how many the report itself shows
_RULES = {
    "quantile": "found on validation normals",
    "youden": "chosen on labelled validation films (Youden's index)",
}


@dataclass(frozen=True)
class Shown:
    """A film of the gallery."""

    name: str
    label: int  # 0 normal, 1 abnormal, -1 unknown
    score: float  # of the report's main score
    film: NDArray[Any]  # (H, W) float in [0, 1]
    layers: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Name -> (H', W') grey or (H', W', 3) RGB: what the slider lays over the film, the first one unasked. Any names;
    "heatmap" is best from `heatmap.blend`."""
    facts: Mapping[str, str] = field(default_factory=dict)  # name -> text: finding, study, patient; "" is not shown


@dataclass(frozen=True)
class ReportContext:
    """What a page is made of: plain data and numpy arrays."""

    title: str
    model: str
    data: str  # what it was trained and tested on, in words
    evaluation: Evaluation  # of the films shown
    about: str = ""  # a sentence on the model
    supervised: bool = False  # trained on labelled films, not on normal ones alone
    trainings: int = 1  # how many it is made of; an ensemble: its members
    films: Mapping[str, int] = field(default_factory=dict)  # how many trained and validated: "train", "val", ...
    config: Mapping[str, Any] = field(default_factory=dict)  # nested as you like
    facts: Mapping[str, str] = field(default_factory=dict)  # lines of the header: seed, data hash
    origin: Mapping[str, str] = field(default_factory=dict)  # lines of how it was made: commands, precision, date
    versions: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # column -> rows; None, nan: no value
    rule: str = "quantile"  # how thresholds were found: quantile, youden
    map_scale: float | None = None  # from `heatmap.map_scale`
    map_unit: str = "squared error"
    highest: Sequence[Shown] = ()
    wrong: Sequence[Shown] = ()  # for the page of their own, worst first; the report shows the first few
    lowest: Sequence[Shown] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # what they show, in words -> PNG of the training
    failures: Sequence[tuple[str, str]] = ()  # path, reason
    notes: Sequence[str] = ()  # sentences the reader should know first

    @property
    def figures(self) -> Metrics:
        """The figures of the evaluation."""
        return self.evaluation.figures

    @property
    def score(self) -> str:
        """The main score: histogram, gallery and verdict speak of it."""
        return self.figures.score

    @property
    def threshold(self) -> float | None:
        """From where a film is flagged by the main score."""
        flagged = self.figures.main.threshold
        return None if flagged is None else flagged.threshold


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
    galleries = _galleries(
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
        "made": "How it was made",
        "card": "Model card",
    }
    return _page(
        "report.html",
        context=context,
        figures=figures,
        synthetic=figures.synthetic,
        sections={name: title for name, title in sections.items() if title},
        verdict=verdict(figures),
        settings=_flat(context.config),
        curves=panels[:_PANELS],
        hidden_curves=len(panels[_PANELS:]),
        roc=_roc_curves(evaluation),
        histograms=[_histogram(evaluation, name) for name in scores],
        threshold_rule=_RULES[context.rule],
        classes={unit: _thresholds_of(classifier) for unit, classifier in classes.items()},
        reliabilities={unit: classifier.reliability for unit, classifier in classes.items()},
        reliability=_reliability_charts(classes),
        galleries=galleries,
        layers=_layers(galleries),
        bar=_heat_bar(context),
        pictures={words: _data(picture) for words, picture in context.pictures.items()},
        card=model_card(context),
    )


def render_wrong(context: ReportContext) -> str:
    """The page of the wrong films as HTML, to lie beside the report as `wrong.html`."""
    by_label = {label: [shown for shown in context.wrong if shown.label == label] for label in (0, 1)}
    galleries = _galleries(
        {"Normal films that score high": by_label[0], "Abnormal films that score low": by_label[1]}, context.threshold
    )
    return _page(
        "wrong.html",
        context=context,
        synthetic=context.figures.synthetic,
        sections={},
        galleries=galleries,
        layers=_layers(galleries),
        bar=_heat_bar(context),
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
    return _page(
        "bench.html",
        table=table,
        synthetic=table.synthetic,
        sections={
            "table": "Table",
            "forest": "Differences",
            "runs": "Runs",
            "made": "How it was made",
            "card": "Model card",
        },
        trivial=set(table.settings.trivial),
        notes=notes,
        failures=reasons,
        footnotes=footnotes(table, best="best")[: -len(reasons) or None],
        winners=_winners(table),
        forests=[_forest(table, column) for column in table.columns],
        runs=by_model,
        settings=_flat({**table.facts, **settings}),
        card=bench_card(table),
    )


def _page(template: str, **given: Any) -> str:
    """A template filled in: everything escaped, and what it names but was not given an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "number": number,
        "counted": counted,
        "with_interval": with_interval,
        "signed": _signed,
        "compact": _compact,
        "label": LABELS.__getitem__,
        "quoted": quote,
        "hashed": _hashed,
    }
    return pages.get_template(template).render(**given)


def gallery_rows(labels: ArrayLike, scores: ArrayLike, count: int = 6) -> tuple[list[int], list[int], list[int]]:
    """Rows of the films that score highest, of the most wrong ones, each worst first, and of the lowest, lowest first.

    labels  (N,) -1, 0 or 1.    scores  (N,) finite.    How wrong a film is: the share of the other class on its wrong
    side, that is of abnormal films that score lower than a normal one, of normal films that score higher than an
    abnormal one. Films that no film of the other class contradicts are not wrong; with one class none is. Of equally
    wrong films the normal ones come first, in each class the more extreme score (normal: the higher; abnormal: the
    lower), then the first row.

    >>> gallery_rows([0, 0, 1, 1], [0.1, 0.9, 0.2, 0.8], count=3)
    ([1, 3, 2], [1, 2, 3], [0, 2, 3])
    >>> gallery_rows([0, 1, 0, 1, 1], [0.8, 0.5, 0.9, 0.2, 0.1])[1]
    [2, 0, 4, 3, 1]
    """
    truth, score = np.asarray(labels), np.asarray(scores, np.float64)
    normal, abnormal = np.sort(score[truth == 0]), np.sort(score[truth == 1])
    wrong = np.zeros(len(score))
    if len(normal) and len(abnormal):
        lower = np.searchsorted(abnormal, score, side="left") / len(abnormal)
        higher = 1 - np.searchsorted(normal, score, side="right") / len(normal)
        wrong = np.where(truth == 0, lower, np.where(truth == 1, higher, 0.0))
    extreme = np.where(truth == 1, -score, score)
    worst = [int(row) for row in np.lexsort((-extreme, truth, -wrong))[:count] if wrong[row] > 0]
    highest, lowest = ([int(row) for row in np.argsort(by, kind="stable")[:count]] for by in (-score, score))
    return highest, worst, lowest


def verdict(figures: Metrics) -> list[str]:
    """Sentences that say whether the main score is a detector: its ROC-AUC on films, set against the trivial ones.

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
            lines.append(f"Against {rival}: {gap}; too few patients to tell.")
        elif versus.interval[0] > 0:
            lines.append(f"Better than {rival} by {gap}.")
        elif versus.interval[1] < 0:
            lines.append(f"WORSE than {rival}: {gap}.")
        else:
            lines.append(f"NOT shown to be better than {rival}: {gap}.")
    return lines


# --------------------------------------------------------------------------------------------------------- model cards

_NO_DEVICE = (
    "NOT A MEDICAL DEVICE: nobody has approved it for use on patients. No diagnosis, triage, treatment or discharge "
    "may rest on its scores or heatmaps."
)
_OTHER_FILMS = (
    "Films of other body parts, projections, machines or preparation than it was trained on: it calls what is new to "
    "it abnormal, be it a disease, a marker or a scanner."
)


def model_card(context: ReportContext) -> dict[str, list[str]]:
    """What the model is for and not for, on what it was trained and tested, and its limits: title -> sentences."""
    figures, film = context.figures, context.figures.main
    learned = "labelled films, normal and abnormal" if context.supervised else "films of normal patients alone"
    counts = ", ".join(f"{count} {_SPLIT_WORDS.get(name, name)}" for name, count in context.films.items())
    data = [f"{context.data}{' (SYNTHETIC: drawn, not taken of patients)' if figures.synthetic else ''}."]
    data += [f"Films: {counts}, {len(context.evaluation.scored.cohort.label)} here measured."] if counts else []
    if film.n:
        data.append(
            f"Measured on {counted(film.n, 'film')} of known label of {counted(film.n_patients, 'patient')}; "
            f"{film.n_abnormal} of the films are abnormal. No patient is in two splits."
        )
    if context.failures:
        data.append(f"{len(context.failures)} films could not be used; they are listed above.")
    limits = [] if not figures.synthetic else ["The films were drawn: the figures say nothing about medicine."]
    if film.roc_auc is None:
        limits.append("Nothing is known of how well it tells abnormal films: there are no figures.")
    else:
        rivals = [
            rival
            for rival, versus in (film.against or {}).items()
            if versus.interval is None or versus.interval[0] <= 0
        ]
        if rivals:
            limits.append(f"It is not shown to be better than {' or '.join(rivals)}, which need no training.")
        trainings = (
            "One training with one seed" if context.trainings == 1 else f"One ensemble of {context.trainings} runs"
        )
        limits.append(f"{trainings}; how much another seed changes is for `anomaly bench` to say.")
        limits.append("Measured on films of one source. Expect less elsewhere, and measure there before relying on it.")
    limits.append("How figures differ by age, sex, machine or hospital was not measured.")
    if context.map_scale is not None:
        limits.append("A heatmap shows what moved the score; it outlines no lesion.")
    if not context.supervised:
        limits.append("A score is no probability: it orders films, and its unit has no meaning beyond this run.")
    return {
        "What it is": [
            *([context.about] if context.about else []),
            f"{context.model}, trained on {learned}. A film's score is higher the more abnormal the film looks to it.",
        ],
        "What it is for": [
            "Research: ordering films like those it was trained on by how unusual they are, and comparing detectors on "
            "the same films.",
        ],
        "What it is not for": [_NO_DEVICE, _OTHER_FILMS],
        "Data": data,
        "Limits": limits,
    }


def bench_card(table: Table) -> dict[str, list[str]]:
    """The same for all detectors of a bench."""
    limits = ["The films were drawn: the figures say nothing about medicine."] if table.synthetic else []
    return {
        "What it is for": [
            "Research: which detector, on which preparation of the films, and whether the difference is real.",
        ],
        "What it is not for": [_NO_DEVICE, _OTHER_FILMS],
        "Limits": [
            *limits,
            "Films of one source. An order of detectors here need not be the order elsewhere.",
            "The best of a column was chosen on the films it is measured on: its figure is a little too good.",
            "How figures differ by age, sex, machine or hospital was not measured.",
        ],
    }


_SPLIT_WORDS = {"train": "to train on", "val": "to validate with", "abnormal": "of those to train on abnormal"}


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
        legend.append(("ink dashed", f"threshold {_compact(threshold)}"))
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
    chosen = f"at {_compact(figures.chosen.threshold)}, chosen on validation"
    return [(f"at {_compact(figures.half.threshold)}", figures.half), (chosen, figures.chosen)]


# -------------------------------------------------------------------------------------------------------------- films


def _heat_bar(context: ReportContext) -> dict[str, str] | None:
    """The colors of the heat, and what they mean in words; None where no map is drawn."""
    scale = context.map_scale
    if scale is None:
        return None
    reach, clear = _compact(REACH * scale), _compact(CLEAR * scale)
    words = (
        f"≥ {reach} {context.map_unit}; clear below {clear}; "
        f"one scale for all films: {_compact(scale)}, from validation normals"
    )
    return {"picture": _data(png(color_bar(320, 14))), "words": words}


def _galleries(groups: Mapping[str, Sequence[Shown]], threshold: float | None) -> dict[str, list[dict[str, Any]]]:
    """Title -> films as the page needs them, numbered through: controls of one card share a name on the page."""
    number, galleries = 0, {}
    for title, films in groups.items():
        cards = []
        for shown in films:
            number += 1
            grey = np.rint(np.clip(shown.film, 0, 1) * 255).astype(np.uint8)
            cards.append(
                {
                    "number": number,
                    "counted": counted,
                    "shown": shown,
                    "film": _data(png(_small(grey))),
                    "layers": {name: _data(png(_small(layer))) for name, layer in shown.layers.items()},
                    "flagged": None if threshold is None else shown.score >= threshold,
                }
            )
        galleries[title] = cards
    return galleries


def _layers(galleries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The layers that some film of a page has, in their order."""
    return list(dict.fromkeys(name for cards in galleries.values() for card in cards for name in card["layers"]))


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture, shrunk by an area filter where it is larger than the gallery shows."""
    import cv2

    factor = _WIDEST / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = tuple(max(1, round(side * factor)) for side in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


# --------------------------------------------------------------------------------------------------------------- text


def _data(picture: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _hashed(script: str) -> str:
    """The name by which a content security policy lets a script run, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _signed(value: float) -> str:
    """A difference with its sign.

    >>> _signed(0.012), _signed(-0.3)
    ('+.012', '-.300')
    """
    return ("" if value < 0 else "+") + number(value)


def _compact(value: float) -> str:
    """A number in the fewest digits that tell it."""
    return f"{value:.4g}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as one table: dotted name -> value in JSON, texts without quotes.

    >>> _flat({"model": {"latent": 64, "name": "vae"}, "seed": None})
    {'model.latent': '64', 'model.name': 'vae', 'seed': 'null'}
    """
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = (
                value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            )
    return flat
