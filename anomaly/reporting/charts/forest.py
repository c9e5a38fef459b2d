"""A forest plot of one column of a bench."""

from anomaly.evaluation.comparison import Table
from anomaly.formatting import number, with_interval
from anomaly.reporting.charts.scene import Axis, Chart, Panel

_ROW = 20  # pixels


def forest_plot(table: Table, column: str) -> Panel:
    """The rows of one column of a bench, the best first, each with its interval, and the paper's figures beside."""
    rows = [
        (" ".join(row), entry, entry.mean)
        for row in table.rows
        if (entry := table.entries[(*row, column)]).mean is not None
    ]
    rows.sort(key=lambda row: -row[2])
    ends = [value for _, entry, mean in rows for value in (mean, *(entry.interval or ()))]
    ends += [entry.paper[0] for _, entry, _ in rows if entry.paper]
    bottom = -len(rows) - 0.5
    chart = Chart(
        Axis(max(0, min([0.45, *ends]) - 0.02), min(1, max([0.65, *ends]) + 0.02), "ROC-AUC"),
        Axis(bottom, 0.5, ticked=False),
        f"ROC-AUC of every row on {column}, the best first.",
        width=460,
        height=_ROW * max(1, len(rows)) + 54,
        left=150,
    )
    chart.segment((0.5, bottom), (0.5, 0.5), "chance")
    legend = [("one", "the best, and rows not significantly different from it"), ("muted", "the others")]
    for place, (name, entry, mean) in enumerate(rows):
        y = -place - 0.5
        style = "one" if entry.best or entry.tied else "muted"
        chart.row_label(y, name, "strong" if entry.best else "")
        if entry.interval is not None:
            chart.segment((entry.interval[0], y), (entry.interval[1], y), f"{style} thick")
        tooltip = f"{name}: {with_interval(mean, entry.interval)}"
        chart.point(mean, y, style, radius=4.4 if entry.best else 3.4, title=tooltip)
        if entry.paper is not None:
            chart.diamond(entry.paper[0], y, "two", title=f"paper: {number(entry.paper[0])}")
    if any(entry.paper is not None for _, entry, _ in rows):
        legend.append(("two", "the paper's figure (diamond)"))
    return Panel(column, (chart,), tuple(legend))
