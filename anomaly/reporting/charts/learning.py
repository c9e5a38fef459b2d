"""Learning curves: what a training wrote down every epoch, a small chart a quantity."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from anomaly.reporting.charts.png import png
from anomaly.reporting.charts.scene import Axis, Chart, Panel

Floats = NDArray[np.float64]
History = Mapping[str, Sequence[float | None]]
"""Column -> rows; None or nan where there is no value."""

_TIME = ("step", "epoch")
_SPEED = ("seconds", "films_per_second")  # of the machine, not of the learning
_DECADE = 10  # losses above 0 that span this factor have a logarithmic axis
_DOTTED = 30  # a curve of so few values shows each as a dot
_PNG_COLUMNS = 3


def learning_curves(history: History) -> list[Panel]:
    """A panel a column over the epochs (or steps, or rows), for their units differ.

    What was measured in training and in validation shares one (`accuracy` and `validation_accuracy`).
    """
    time, columns = _columns(history)
    grouped: dict[str, dict[str, Floats]] = {}
    for name, values in columns.items():
        measured = name.removeprefix("validation_")
        grouped.setdefault(measured if measured in columns else name, {})[name] = values
    return [_panel(title, time, curves) for title, curves in grouped.items()]


def learning_curve_png(history: History, *, synthetic: bool) -> bytes:
    """The learning curves as a PNG file. Raises ValueError where there are none."""
    panels = learning_curves(history)
    return png(panels, columns=min(_PNG_COLUMNS, len(panels)), synthetic=synthetic)


def _columns(history: History) -> tuple[tuple[str, Floats], dict[str, Floats]]:
    """The horizontal axis of a history (its name, its values), and the columns to draw over it."""
    columns = {
        name: np.array([math.nan if v is None else v for v in values], np.float64) for name, values in history.items()
    }
    rows = max((len(values) for values in columns.values()), default=0)
    name = next((name for name in _TIME if name in columns), None)
    time = ("row", np.arange(rows, dtype=np.float64)) if name is None else (name, columns[name])
    drawn = {
        name: values
        for name, values in columns.items()
        if name not in (*_TIME, *_SPEED) and np.isfinite(values).any() and len(values) == len(time[1])
    }
    return time, drawn


def _is_loss(name: str) -> bool:
    """Whether a column is a player's loss ("generator.mse") or the validation loss; others are measured beside them."""
    return "." in name or name == "validation"


def _panel(title: str, time: tuple[str, Floats], curves: Mapping[str, Floats]) -> Panel:
    name, x = time
    values = np.concatenate(list(curves.values()))
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    log = _is_loss(title) and low > 0 and high >= _DECADE * low
    room = (high - low) * 0.05
    y = Axis(low / 1.1, high * 1.1, "logarithmic scale", log=True) if log else Axis(low - room, high + room)
    whole = bool((x == np.rint(x)).all())
    chart = Chart(Axis(float(x.min()), float(x.max()), name, whole=whole), y, f"{title} over {name}.", height=210)
    legend = []
    for column, curve in curves.items():
        style, text = ("one", "training") if column == title else ("two", "validation")
        chart.line(x.tolist(), curve.tolist(), style, dots=bool(np.isfinite(curve).sum() <= _DOTTED))
        legend.append((style, text))
    return Panel(title, (chart,), tuple(legend) if len(curves) > 1 else ())
