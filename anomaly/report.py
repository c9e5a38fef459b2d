"""One run as one page: what was trained on what, how well it tells abnormal films, against what, and where it fails.

The page is a single HTML file. Pictures lie in it as base64 PNG, it loads nothing and runs nothing (its content
security policy forbids both), every text from files is escaped, and it is readable in light, in dark and on paper.
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


@dataclass(frozen=True)
class Shown:
    """A film of the gallery."""

    name: str
    label: int  # 0 normal, 1 abnormal, -1 unknown
    score: float  # of the report's main score
    film: NDArray[Any]  # (H, W) float in [0, 1]
    heat: NDArray[np.uint8] | None = None  # (H', W', 3) RGB, best from `heatmap.blend`; None where the model has no map
    note: str = ""  # finding, difficulty, study


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
    metrics: Mapping[str, Any]  # from `metrics.evaluate`
    config: Mapping[str, Any] = field(default_factory=dict)  # nested as you like
    facts: Mapping[str, str] = field(default_factory=dict)  # lines of the header: seed, duration, versions
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # column -> rows; None, nan: no value
    threshold: float | None = None  # of the main score, for films
    pixels: Mapping[str, Any] | None = None  # from `metrics.pixel_roc_auc`
    map_scale: float | None = None  # from `heatmap.map_scale`
    map_unit: str = "squared error"
    highest: Sequence[Shown] = ()
    wrong: Sequence[Shown] = ()
    failures: Sequence[tuple[str, str]] = ()  # path, reason
    notes: Sequence[str] = ()  # sentences the reader should know first


def render_report(context: ReportContext) -> str:
    """The page as HTML. Raises ValueError where the main score is not among the scores."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if context.score not in context.scores:
        raise ValueError(f"no score {context.score!r}; there are: {', '.join(sorted(context.scores))}")
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
    levels = {level: context.metrics.get(level, {}) for level in ("film", "study", "patient")}
    kinds = {column: context.metrics.get(column, {}) for column in ("finding", "difficulty")}
    trivial = context.metrics.get("settings", {}).get("trivial", metrics.TRIVIAL)
    return pages.get_template("report.html").render(
        context=context,
        levels={level: figures for level, figures in levels.items() if figures},
        kinds={column: figures for column, figures in kinds.items() if figures},
        trivial=trivial,
        verdict=verdict(context.metrics, context.score),
        settings=_flat(context.config),
        curves=_learning_curves(context.history),
        hidden_curves=max(0, len(_series(context.history)[1]) - _PANELS),
        roc=_roc_curves(context, trivial),
        histogram=_histogram(context),
        galleries={
            "Highest scores": [_card(shown, context.threshold) for shown in context.highest],
            "Most wrong": [_card(shown, context.threshold) for shown in context.wrong],
        },
        colour_bar=_data(heatmap.png(heatmap.colour_bar(320, 14))) if context.map_scale else None,
        reach=heatmap.REACH,
        clear=heatmap.CLEAR,
    )


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
    from matplotlib.figure import Figure

    addresses = {}
    for name, ink in _INKS.items():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, ink)
        for axes in figure.axes:
            _dress(axes, ink)
        data = BytesIO()
        figure.savefig(data, format="png", dpi=160, transparent=True, metadata={"Software": None})
        addresses[name] = _data(data.getvalue())
    return _Chart(**addresses, words=words)


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


def _learning_curves(history: Mapping[str, Sequence[float | None]]) -> _Chart | None:
    """A small picture per column: their units differ."""
    (name, across), columns = _series(history)
    panels = dict(list(columns.items())[:_PANELS])
    if not panels:
        return None

    def draw(figure: Any, ink: _Ink) -> None:
        grid = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).ravel()
        for axes, (title, values) in zip(grid, panels.items(), strict=False):
            told = np.isfinite(values)
            marker = "o" if told.sum() <= 30 else None
            axes.plot(across[told], values[told], color=ink.series[0], linewidth=1.4, marker=marker, markersize=2.5)
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
