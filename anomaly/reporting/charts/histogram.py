"""How a score is distributed in each class."""

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.evaluation import Evaluation
from anomaly.reporting.charts.scene import Axis, Chart, Panel
from preprocessing.where import LABELS

_BINS = 40


def score_histogram(
    name: str, labels: NDArray[np.int64], scores: NDArray[np.float64], threshold: float | None
) -> Panel:
    """Histograms of a score, one a class, and its threshold; the end bins hold the outermost half percent on each side.

    labels  (N,) -1, 0 or 1, N at least 1.    scores  (N,) finite.
    """
    low, high = np.quantile(scores, [0.005, 0.995])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    room = (high - low) * 0.02 or 0.5
    edges = np.linspace(low - room, high + room, _BINS + 1)
    shares, legend = {}, []
    for label, title in LABELS.items():
        values = np.clip(scores[labels == label], edges[0], edges[-1])
        if len(values):
            style = "muted" if label < 0 else title
            shares[style] = np.histogram(values, edges)[0] / len(values)
            legend.append((style, f"{title} ({len(values)})"))
    if threshold is not None:
        legend.append(("ink dashed", f"threshold {threshold:.4g}"))
    top = 1.05 * float(max(values.max() for values in shares.values()))
    chart = Chart(
        Axis(float(edges[0]), float(edges[-1]), name),
        Axis(0, top, "share of the class"),
        f"Histogram of {name}: {', '.join(text for _, text in legend)}.",
        height=240,
    )
    for style, values in shares.items():
        chart.steps(edges.tolist(), values.tolist(), style)
    if threshold is not None:
        chart.segment((threshold, 0), (threshold, top), "ink dashed")
    return Panel(name, (chart,), tuple(legend))


def score_histograms(evaluation: Evaluation) -> list[Panel]:
    """A histogram a score with the threshold of films, the main score first."""
    scored, figures = evaluation.scored, evaluation.figures
    panels = []
    for name in sorted(scored.scores, key=lambda name: name != figures.score):
        flagged = figures.film[name].threshold
        threshold = None if flagged is None else flagged.threshold
        panels.append(score_histogram(name, scored.cohort.label, scored.scores[name], threshold))
    return panels
