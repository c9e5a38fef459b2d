"""Reliability diagrams: whether films that get a probability are abnormal that often."""

from collections.abc import Mapping

from anomaly.evaluation.figures import Reliability, Unit
from anomaly.formatting import with_interval
from anomaly.reporting.charts.png import png
from anomaly.reporting.charts.scene import Axis, Chart, Panel
from preprocessing.wording import counted, plural

_UNITS: tuple[Unit, ...] = ("film", "study")


def reliability_diagram(unit: Unit, reliability: Reliability) -> Panel:
    """The observed share of abnormal ones over the predicted probability, and below it how many are in each bin."""
    bins = reliability.bins
    probability = "predicted probability of being abnormal"
    shares = Chart(
        Axis(0, 1), Axis(0, 1, "observed share abnormal"), f"Observed share abnormal over {probability}, by {unit}.",
        height=330,
    )  # fmt: skip
    counts = Chart(
        Axis(0, 1, probability),
        Axis(0, max(group.n for group in bins), plural(unit), whole=True),
        f"How many {plural(unit)} have which {probability}.",
        height=120,
    )
    shares.line((0, 1), (0, 1), "chance")
    for group in bins:
        mean, share, interval = group.mean_probability, group.share, group.share_interval
        if interval is not None:
            shares.segment((mean, interval[0]), (mean, interval[1]), "one thick")
        shares.point(
            mean,
            share,
            "one",
            radius=4.2,
            title=f"{counted(group.n, unit)} at {mean:.2f}: {with_interval(share, interval)}",
        )
        counts.steps((group.low, group.high), (group.n,), "one")
    brier = with_interval(reliability.brier, reliability.brier_interval)
    return Panel(f"By {unit}, Brier score {brier}", (shares, counts))


def reliability_diagrams(reliabilities: Mapping[Unit, Reliability]) -> list[Panel]:
    """The diagrams of films and of studies."""
    return [reliability_diagram(unit, reliabilities[unit]) for unit in _UNITS if unit in reliabilities]


def reliability_png(reliabilities: Mapping[Unit, Reliability], *, synthetic: bool) -> bytes | None:
    """The same diagrams as a PNG file, or None where there are none."""
    panels = reliability_diagrams(reliabilities)
    return png(panels, columns=len(panels), synthetic=synthetic) if panels else None
