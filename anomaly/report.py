"""One run as one page: what was trained on what, how well it tells abnormal films, against what, and where it fails.

The page is a single HTML file, and so is the page beside it of the films that the run gets most wrong. Pictures lie in
them as base64 PNG, they load nothing and run nothing (their content security policy forbids both), every text from
files is escaped, and they are readable in light, in dark and on paper.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly import heatmap, metrics
from anomaly.data import LABELS

_TEMPLATES = Path(__file__).parent / "templates"
_WIDEST = 360  # pixels of a film in the gallery
_PANELS = 12  # learning curves at most; the run's history.csv has the others
_CURVES = 4  # scores of the model in one ROC picture at most, besides the trivial ones
_PLURALS = {"film": "films", "study": "studies"}
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
    heat: NDArray[np.uint8] | None = None  # (H', W', 3) RGB, best from `heatmap.blend`; None where the model has no map
    facts: Mapping[str, str] = field(default_factory=dict)  # name -> text: finding, study, patient; "" is not shown


@dataclass(frozen=True)
class ReportContext:
    """What a page is made of: plain data and numpy arrays."""

    title: str
    model: str
    data: str  # what it was trained and tested on, in words
    synthetic: bool  # the films were drawn, not taken: said in capitals
    score: str  # the main score, a key of scores: histogram, gallery and verdict speak of it
    labels: ArrayLike  # (N,) of the test films: -1, 0 or 1
    studies: ArrayLike  # (N,)
    scores: Mapping[str, ArrayLike]  # name -> (N,), the trivial ones among them
    metrics: Mapping[str, Any]  # from `metrics.evaluate`; "classes" from `classification.evaluate_classes`, or none
    config: Mapping[str, Any] = field(default_factory=dict)  # nested as you like
    facts: Mapping[str, str] = field(default_factory=dict)  # lines of the header: seed, duration, versions
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # column -> rows; None, nan: no value
    threshold: float | None = None  # of the main score, for films
    rule: str = "quantile"  # how thresholds were found: quantile, youden
    pixels: Mapping[str, Any] | None = None  # from `metrics.pixel_roc_auc`
    map_scale: float | None = None  # from `heatmap.map_scale`
    map_unit: str = "squared error"
    highest: Sequence[Shown] = ()
    wrong: Sequence[Shown] = ()  # for the page of their own, worst first; the report shows the first few
    failures: Sequence[tuple[str, str]] = ()  # path, reason
    notes: Sequence[str] = ()  # sentences the reader should know first


def render_report(context: ReportContext) -> str:
    """The page as HTML. Raises ValueError where the main score is not among the scores.

    With wrong films it has a link to `wrong.html`, the page of `render_wrong`.
    """
    if context.score not in context.scores:
        raise ValueError(f"no score {context.score!r}; there are: {', '.join(sorted(context.scores))}")
    levels = {level: context.metrics.get(level, {}) for level in ("film", "study", "patient")}
    kinds = {column: context.metrics.get(column, {}) for column in ("finding", "difficulty")}
    trivial = context.metrics.get("settings", {}).get("trivial", metrics.TRIVIAL)
    classes = context.metrics.get("classes", {})
    return _page(
        "report.html",
        context=context,
        levels={level: figures for level, figures in levels.items() if figures},
        kinds={column: figures for column, figures in kinds.items() if figures},
        trivial=trivial,
        verdict=verdict(context.metrics, context.score),
        settings=_flat(context.config),
        curves=_learning_curves(context.history),
        hidden_curves=sum(len(columns) for columns in list(_panels(context.history)[1].values())[_PANELS:]),
        roc=_roc_curves(context, trivial),
        histogram=_histogram(context),
        threshold_rule=_RULES[context.rule],
        classes={level: _thresholds_of(figures) for level, figures in classes.items()},
        reliabilities={level: figures["reliability"] for level, figures in classes.items()},
        reliability=_reliability_chart(classes),
        galleries={
            "Highest scores": [_card(shown, context.threshold) for shown in context.highest],
            "Most wrong": [_card(shown, context.threshold) for shown in context.wrong[:_FIRST]],
        },
        bar=_heat_bar(context),
    )


def render_wrong(context: ReportContext) -> str:
    """The page of the wrong films as HTML, to lie beside the report as `wrong.html`."""
    by_label = {
        label: [_card(shown, context.threshold) for shown in context.wrong if shown.label == label] for label in (0, 1)
    }
    galleries = {"Normal films that score high": by_label[0], "Abnormal films that score low": by_label[1]}
    return _page("wrong.html", context=context, galleries=galleries, bar=_heat_bar(context))


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
        "number": metrics.number,
        "with_interval": metrics.with_interval,
        "compact": _compact,
        "label": LABELS.__getitem__,
    }
    return pages.get_template(template).render(**given)


def gallery_rows(labels: ArrayLike, scores: ArrayLike, count: int = 6) -> tuple[list[int], list[int]]:
    """Rows of the films that score highest, and of the most wrong ones, each worst first.

    labels  (N,) -1, 0 or 1.    scores  (N,) finite.    How wrong a film is: the share of the other class on its wrong
    side, that is of abnormal films that score lower than a normal one, of normal films that score higher than an
    abnormal one. Films that no film of the other class contradicts are not wrong; with one class none is.

    >>> gallery_rows([0, 0, 1, 1], [0.1, 0.9, 0.2, 0.8], count=3)
    ([1, 3, 2], [1, 2, 3])
    """
    truth, score = np.asarray(labels), np.asarray(scores, np.float64)
    normal, abnormal = np.sort(score[truth == 0]), np.sort(score[truth == 1])
    wrong = np.zeros(len(score))
    if len(normal) and len(abnormal):
        lower = np.searchsorted(abnormal, score, side="left") / len(abnormal)
        higher = 1 - np.searchsorted(normal, score, side="right") / len(normal)
        wrong = np.where(truth == 0, lower, np.where(truth == 1, higher, 0.0))
    worst = [int(row) for row in np.argsort(-wrong, kind="stable")[:count] if wrong[row] > 0]
    return [int(row) for row in np.argsort(-score, kind="stable")[:count]], worst


def verdict(figures: Mapping[str, Any], score: str) -> list[str]:
    """Sentences that say whether the main score is a detector: its ROC-AUC on films, set against the trivial ones.

    figures  from `metrics.evaluate`. Empty where there is no ROC-AUC.
    """
    film = figures.get("film", {}).get(score)
    if not film or film["roc_auc"] is None:
        return []
    value = metrics.with_interval(film["roc_auc"], film["roc_auc_interval"])
    lines = [
        f"ROC-AUC {value} on {film['n']} films of {film['n_patients']} patients, "
        f"{film['n_abnormal']} of them abnormal ({100 * film['prevalence']:.0f} %)."
    ]
    for rival, versus in film.get("against", {}).items():
        gap = metrics.with_interval(versus["difference"], versus["interval"])
        if versus["interval"] is None:
            lines.append(f"Against {rival}: {gap}; too few patients to tell.")
        elif versus["interval"][0] > 0:
            lines.append(f"Better than {rival} by {gap}.")
        elif versus["interval"][1] < 0:
            lines.append(f"WORSE than {rival}: {gap}.")
        else:
            lines.append(f"NOT shown to be better than {rival}: {gap}.")
    return lines


# ----------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class _Ink:
    """The colours of a chart: the series can be told apart by colour-blind readers (Okabe & Ito 2008)."""

    text: str
    muted: str
    grid: str
    series: tuple[str, ...]
    normal: str
    abnormal: str


_INKS = {
    "light": _Ink("#1c1f23", "#6a7078", "#dfe3e8", ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), "#0072b2", "#d55e00"),
    "dark": _Ink("#e6e8eb", "#9aa2ab", "#3a4048", ("#56b4e9", "#ff9a52", "#35c79b", "#e59ac4"), "#56b4e9", "#ff9a52"),
}


@dataclass(frozen=True)
class _Chart:
    """A chart as two data addresses, for light and dark pages, and what it shows, in words."""

    light: str
    dark: str
    words: str


def _chart(draw: Callable[[Any, _Ink], None], size: tuple[float, float], words: str) -> _Chart:
    """Draw a figure, size in inches, once in each ink."""
    return _Chart(**{name: _data(_drawn(draw, size, ink)) for name, ink in _INKS.items()}, words=words)


def _drawn(draw: Callable[[Any, _Ink], None], size: tuple[float, float], ink: _Ink, paper: str = "none") -> bytes:
    """A figure in one ink as PNG; the paper is a colour, transparent unasked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor=paper)
    draw(figure, ink)
    for axes in figure.axes:
        _dress(axes, ink)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=160, metadata={"Software": None})
    return data.getvalue()


def _dress(axes: Any, ink: _Ink) -> None:
    """Quiet axes: a faint grid, no frame; texts taken as they are, never as formulas."""
    axes.set_facecolor("none")
    axes.grid(color=ink.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=ink.muted, labelsize=8, length=0)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set(color=ink.text, size=9, parse_math=False)
    if axes.get_legend():
        for text in axes.get_legend().get_texts():
            text.set(color=ink.text, parse_math=False)


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


def _learning_curves(history: Mapping[str, Sequence[float | None]]) -> _Chart | None:
    """A small picture per panel."""
    (name, across), every = _panels(history)
    panels = dict(list(every.items())[:_PANELS])
    if not panels:
        return None

    def draw(figure: Any, ink: _Ink) -> None:
        grid = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).ravel()
        for axes, (title, columns) in zip(grid, panels.items(), strict=False):
            for column, values in columns.items():
                told, second = np.isfinite(values), column != title
                marker = "o" if told.sum() <= 30 else None
                colour, label = (ink.series[1], "validation") if second else (ink.series[0], "training")
                axes.plot(
                    across[told], values[told], color=colour, linewidth=1.4, marker=marker, markersize=2.5, label=label
                )
            if len(columns) > 1:
                axes.legend(fontsize=7, frameon=False)
            axes.set(title=title, xlabel=name)
        for axes in grid[len(panels) :]:
            axes.remove()

    return _chart(draw, (9, 2.1 * -(-len(panels) // 3)), f"Learning curves of {', '.join(panels)} over {name}.")


def _roc_curves(context: ReportContext, trivial: Sequence[str]) -> _Chart | None:
    """ROC curves of films and of studies, side by side; None with one class only."""
    labels = np.asarray(context.labels)
    how = context.metrics.get("settings", {}).get("aggregate", "mean")
    units = {}
    for unit, ids in (("film", np.arange(len(labels))), ("study", np.asarray(context.studies))):
        groups = {name: metrics.aggregate(ids, score, labels, how) for name, score in context.scores.items()}
        truth = groups[context.score].labels
        if {0, 1} <= set(truth.tolist()):
            known = truth >= 0
            units[unit] = {name: (truth[known], group.scores[known]) for name, group in groups.items()}
    own = [context.score, *(name for name in context.scores if name != context.score and name not in trivial)]
    plain = [name for name in context.scores if name in trivial]

    def draw(figure: Any, ink: _Ink) -> None:
        for axes, (unit, groups) in zip(np.ravel(figure.subplots(1, len(units))), units.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=ink.grid, linewidth=1)
            lines, names = [], []
            for name in (*reversed(plain), *reversed(own[:_CURVES])):
                normal, abnormal = metrics.roc_curve(*groups[name])
                style: dict[str, Any] = (
                    {"color": ink.muted, "linestyle": ("--", ":")[plain.index(name) % 2], "linewidth": 1.1}
                    if name in plain
                    else {"color": ink.series[own.index(name)], "linewidth": 2.2 if name == context.score else 1.3}
                )
                lines += axes.plot(normal, abnormal, **style)
                figures = context.metrics.get(unit, {}).get(name, {})
                value = metrics.with_interval(figures.get("roc_auc"), figures.get("roc_auc_interval"))
                names.append(f"{name}  {value}")
            axes.legend(lines[::-1], names[::-1], loc="lower right", fontsize=7, frameon=False)
            axes.set(title=f"by {unit}", xlabel="normal flagged", ylabel="abnormal flagged", aspect="equal")
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))

    return _chart(draw, (4.6 * len(units), 4.4), f"ROC curves by {' and by '.join(units)}.") if units else None


def _histogram(context: ReportContext) -> _Chart | None:
    """The main score in each class, and the threshold; the outermost half percents are in the end bins."""
    labels, scores = np.asarray(context.labels), np.asarray(context.scores[context.score], np.float64)
    if not len(scores):
        return None
    low, high = np.quantile(scores, [0.005, 0.995])
    if context.threshold is not None:
        low, high = min(low, context.threshold), max(high, context.threshold)
    room = (high - low) * 0.02 or 0.5
    edges = np.linspace(low - room, high + room, 41)

    def draw(figure: Any, ink: _Ink) -> None:
        axes = figure.subplots()
        colours = {0: ink.normal, 1: ink.abnormal, -1: ink.muted}
        for label, colour in colours.items():
            own = np.clip(scores[labels == label], edges[0], edges[-1])
            if len(own):
                shares = np.histogram(own, edges)[0] / len(own)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
                axes.stairs(shares, edges, color=colour, linewidth=1.6, label=f"{LABELS[label]} ({len(own)})")
        if context.threshold is not None:
            axes.axvline(
                context.threshold,
                color=ink.text,
                linewidth=1.2,
                linestyle="--",
                label=f"threshold {context.threshold:.4g}",
            )
        axes.legend(fontsize=8, frameon=False)
        axes.set(xlabel=context.score, ylabel="share of the class")

    return _chart(draw, (9, 2.9), f"Histogram of {context.score} by class.")


def reliability_png(classes: Mapping[str, Any], *, synthetic: bool) -> bytes | None:
    """The reliability of films and studies as a PNG on white, or None where there is none.

    classes  from `classification.evaluate_classes`.
    """
    units = _reliabilities(classes)
    if not units:
        return None

    def draw(figure: Any, ink: _Ink) -> None:
        if synthetic:
            figure.suptitle("SYNTHETIC films", color=ink.text, fontsize=11, fontweight="bold")
        _draw_reliability(figure, ink, units)

    return _drawn(draw, (4.6 * len(units), 5.6 + 0.3 * synthetic), _INKS["light"], "white")


def _reliability_chart(classes: Mapping[str, Any]) -> _Chart | None:
    """The same for the page, whose banner says what the films are."""
    units = _reliabilities(classes)

    def draw(figure: Any, ink: _Ink) -> None:
        _draw_reliability(figure, ink, units)

    words = f"Share of abnormal ones over their probability, by {' and by '.join(units)}."
    return _chart(draw, (4.6 * len(units), 5.6), words) if units else None


def _reliabilities(classes: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The units drawn, those of the ROC curves, and the reliability of each."""
    return {unit: classes[unit]["reliability"] for unit in ("film", "study") if unit in classes}


def _draw_reliability(figure: Any, ink: _Ink, units: Mapping[str, Mapping[str, Any]]) -> None:
    """Per unit: over each bin's mean probability its share of abnormal ones, and under it how many are in the bin."""
    grid = figure.subplots(2, len(units), squeeze=False, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    for (axes, below), (unit, figures) in zip(grid.T, units.items(), strict=True):
        bins = figures["bins"]
        axes.plot([0, 1], [0, 1], color=ink.muted, linewidth=1, linestyle="--")
        for one in bins:
            if one["share_interval"] is not None:
                axes.plot([one["mean_probability"]] * 2, one["share_interval"], color=ink.series[0], linewidth=1.6)
        points = np.array([(one["mean_probability"], one["share"]) for one in bins])
        axes.plot(*points.T, color=ink.series[0], linewidth=0, marker="o", markersize=5)
        below.bar(
            [one["low"] for one in bins],
            [one["n"] for one in bins],
            [one["high"] - one["low"] for one in bins],
            align="edge",
            color=ink.series[0],
            alpha=0.45,
            edgecolor=ink.series[0],
        )
        brier = metrics.with_interval(figures["brier"], figures["brier_interval"])
        axes.set(title=f"by {unit}  (Brier score {brier})", ylabel="share abnormal")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        below.set(xlabel="probability of being abnormal", ylabel=_PLURALS[unit])


def _thresholds_of(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One level of `classification.evaluate_classes` as the page needs it: at one half, then as chosen."""
    half, chosen = figures["half"], figures["chosen"]
    titles = (f"at {_compact(half['threshold'])}", f"at {_compact(chosen['threshold'])}, chosen on validation")
    return [
        {"title": title, "figures": one, "confusion": _confusion(one["confusion"])}
        for title, one in zip(titles, (half, chosen), strict=True)
    ]


def _confusion(matrix: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Truth -> its cells, each with count and share of the row, None where the row is empty."""
    return {
        LABELS[truth]: [
            {"count": count, "share": share}
            for count, share in zip(matrix["counts"][truth], matrix["normalised"][truth] or (None, None), strict=True)
        ]
        for truth in (0, 1)
    }


def _heat_bar(context: ReportContext) -> dict[str, str] | None:
    """The colours of the heat, and what they mean in words; None where no map is drawn."""
    scale = context.map_scale
    if scale is None:
        return None
    reach, clear = _compact(heatmap.REACH * scale), _compact(heatmap.CLEAR * scale)
    words = (
        f"≥ {reach} {context.map_unit}; clear below {clear}; "
        f"one scale for all films: {_compact(scale)}, from validation normals"
    )
    return {"picture": _data(heatmap.png(heatmap.colour_bar(320, 14))), "words": words}


def _card(shown: Shown, threshold: float | None) -> dict[str, Any]:
    """A film of the gallery as the page needs it."""
    grey = np.rint(np.clip(shown.film, 0, 1) * 255).astype(np.uint8)
    return {
        "shown": shown,
        "film": _data(heatmap.png(_small(grey))),
        "heat": None if shown.heat is None else _data(heatmap.png(_small(shown.heat))),
        "flagged": None if threshold is None else shown.score >= threshold,
    }


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
