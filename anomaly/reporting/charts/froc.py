"""FROC curves: lesions found over false marks a film."""

from anomaly.evaluation.figures import LocalizationFigures
from anomaly.formatting import with_interval
from anomaly.reporting.charts.scene import Axis, Chart, Panel


def froc_chart(figures: LocalizationFigures, level: float) -> Panel:
    """The share of lesions found over the number of false marks a film, with its interval at each number.

    figures  with at least one lesion.    level  of the intervals.
    """
    mean = with_interval(*figures.value("froc_mean"))
    points = figures.froc
    chart = Chart(
        Axis(points[0].false_marks, points[-1].false_marks, "false marks a film", log=True),
        Axis(0, 1, "lesions found"),
        f"Share of lesions found over false marks a film (FROC), {100 * level:g} % intervals over patients; "
        f"mean {mean}.",
    )
    limits = {point.false_marks: point.found_interval for point in points if point.found_interval is not None}
    if limits:
        low, high = zip(*limits.values(), strict=True)
        chart.band(list(limits), low, high, "one")
    found = [point.found or 0.0 for point in points]
    chart.line([point.false_marks for point in points], found, "one thick")
    for point, share in zip(points, found, strict=True):
        title = f"{with_interval(point.found, point.found_interval)} at {point.false_marks:g} false marks a film"
        chart.point(point.false_marks, share, "one", title=title)
    return Panel(f"FROC, mean {mean}", (chart,))
