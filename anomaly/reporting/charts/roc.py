"""ROC curves of several scores on the same films or studies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.evaluation import Evaluation
from anomaly.evaluation.figures import Unit
from anomaly.evaluation.ranking import has_both_classes, roc_curve
from anomaly.formatting import with_interval
from anomaly.reporting.charts.scene import Axis, Chart, Panel

Floats = NDArray[np.float64]

_COLORS = ("one", "two", "three", "four")  # a curve each; further scores of a model are left out
_BASELINES = ("muted dashed", "muted dotted")


@dataclass(frozen=True)
class RocCurve:
    """One score: its curve, its ROC-AUC, and whether it is a trivial detector."""

    name: str
    false_positive_rate: Floats  # (K,) rising
    true_positive_rate: Floats  # (K,) rising
    roc_auc: float | None
    interval: Sequence[float] | None
    trivial: bool = False


def roc_chart(unit: str, curves: Sequence[RocCurve], band: tuple[Floats, Floats, Floats] | None = None) -> Panel:
    """ROC curves by `unit`, the first of them the main one and on top.

    curves  at most four that are not trivial.    band  of the main curve: false positive rates, lower and upper
    true positive rates, (K,) each.
    """
    own = [curve for curve in curves if not curve.trivial]
    trivial = [curve for curve in curves if curve.trivial]
    styles = dict(zip((curve.name for curve in own), _COLORS, strict=False))
    styles |= {curve.name: _BASELINES[place % 2] for place, curve in enumerate(trivial)}
    legend = tuple(
        (styles[curve.name], f"{curve.name} {with_interval(curve.roc_auc, curve.interval)}")
        for curve in (*own, *trivial)
    )
    chart = Chart(
        Axis(0, 1, "false positive rate (normal flagged)"),
        Axis(0, 1, "true positive rate (abnormal flagged)"),
        f"ROC curves by {unit}: {'; '.join(text for _, text in legend)}.",
        height=380,
    )
    if band is not None:
        x, low, high = (values.tolist() for values in band)
        chart.band(x, low, high, "one")
    chart.line((0, 1), (0, 1), "chance")
    for curve in (*reversed(trivial), *reversed(own)):
        style = styles[curve.name] + " thick" * (curve is curves[0])
        chart.line(curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist(), style)
    return Panel(f"ROC curves by {unit}", (chart,), legend)


def roc_charts(evaluation: Evaluation) -> list[Panel]:
    """The ROC curves of films and of studies, the main score's with its band; none of a unit with one class only."""
    scored, figures = evaluation.scored, evaluation.figures
    trivial = figures.settings.trivial
    others = [name for name in scored.scores if name != figures.score and name not in trivial]
    names = [figures.score, *others][: len(_COLORS)] + [name for name in scored.scores if name in trivial]
    units: tuple[Unit, ...] = ("film", "study")
    panels = []
    for unit in units:
        bootstrap = scored.bootstraps[unit]
        if not has_both_classes(bootstrap.labels):
            continue
        curves = []
        for name in dict.fromkeys(names):
            rates = roc_curve(bootstrap.labels, scored.known_scores(unit, name))
            figure = figures.units[unit][name]
            curves.append(RocCurve(name, *rates, figure.roc_auc, figure.roc_auc_interval, trivial=name in trivial))
        at = np.linspace(0, 1, 101)
        band = bootstrap.roc_band(scored.known_scores(unit, figures.score), at, figures.settings.level)
        panels.append(roc_chart(unit, curves, (at, *band) if band else None))
    return panels
