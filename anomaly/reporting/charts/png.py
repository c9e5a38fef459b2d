"""Panels of charts as a PNG file on white, with the page's light colors, to show elsewhere.

A chart lies in axes of its own whose units are the scene's pixels, so that both renderers share one layout.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from anomaly.reporting.charts.scene import TOP, Chart, Diamond, Dot, Mark, Panel, Path, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "ink": "#16191d",
    "muted": "#5d666f",
    "line": "#dde2e7",
    "one": "#0067a3",
    "two": "#b84f00",
    "three": "#007a59",
    "four": "#a8447c",
}
"""The light theme of the page's stylesheet, by the names of its variables."""
_SAME = {"normal": "one", "abnormal": "two", "chance": "muted"}
_DASHES = {"chance": (3, 3), "dashed": (5, 3), "dotted": (1.5, 3)}

_INCH = 100  # pixels of the scene
_DPI = 200
_POINT = 72 / _INCH  # of a pixel
_MARGIN, _GAP = 16, 26
_TITLE, _LEGEND, _HEADING = 22, 18, 30  # heights of a line, pixels


def png(panels: Sequence[Panel], *, columns: int, synthetic: bool) -> bytes:
    """The panels beside and below each other, in so many columns; SYNTHETIC above where the films are.

    Raises ValueError without a panel.
    """
    if not panels:
        raise ValueError("no panel to draw")
    from matplotlib.figure import Figure

    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    widths = [max(_width(panel) for panel in panels[column::columns]) for column in range(min(columns, len(panels)))]
    heading = _HEADING * synthetic
    width = sum(widths) + _GAP * (len(widths) - 1) + 2 * _MARGIN
    height = sum(heights) + _GAP * (len(heights) - 1) + 2 * _MARGIN + heading
    figure = Figure(figsize=(width / _INCH, height / _INCH), facecolor="white")
    if synthetic:
        page = _axes(figure, 0, 0, width, height)
        _text(page, _MARGIN, _MARGIN + 14, "SYNTHETIC films", size=15, weight="bold", color=COLORS["ink"])
    top = _MARGIN + heading
    for row, row_height in zip(rows, heights, strict=True):
        left = _MARGIN
        for panel, column_width in zip(row, widths, strict=False):
            _draw_panel(figure, panel, left, top, column_width)
            left += column_width + _GAP
        top += row_height + _GAP
    data = BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()


def _width(panel: Panel) -> int:
    return max(chart.width for chart in panel.charts)


def _height(panel: Panel) -> int:
    return _TITLE + _LEGEND * len(_legend_lines(panel)) + sum(chart.height for chart in panel.charts)


def _axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes whose units are pixels, from their upper left corner."""
    full_width, full_height = figure.get_size_inches() * _INCH
    box = (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(box, xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _draw_panel(figure: "Figure", panel: Panel, left: float, top: float, width: float) -> None:
    lines = _legend_lines(panel)
    head = _TITLE + _LEGEND * len(lines)
    axes = _axes(figure, left, top, width, head)
    _text(axes, 0, 14, panel.title, size=12.5, weight="bold", color=COLORS["ink"])
    for number, line in enumerate(lines):
        y = _TITLE + _LEGEND * number + 8
        for x, style, text in line:
            axes.plot([x, x + 22], [y, y], **_stroke("line", f"{style} thick"))
            _text(axes, x + 28, y + 4, text, size=11.5, color=COLORS["ink"])
    top += head
    for chart in panel.charts:
        _draw_chart(_axes(figure, left, top, chart.width, chart.height), chart)
        top += chart.height


def _legend_lines(panel: Panel) -> list[list[tuple[float, str, str]]]:
    """The entries of the legend in lines of the panel's width, each with its distance from the left."""
    lines: list[list[tuple[float, str, str]]] = []
    x, width = 0.0, _width(panel)
    for style, text in panel.legend:
        entry = 28 + _text_width(text, 11.5) + 14
        if not lines or x + entry > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, style, text))
        x += entry
    return lines


def _text_width(text: str, size: float) -> float:
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size, usetex=False).get_extents().width) if text.strip() else 0.0


def _draw_chart(axes: "Axes", chart: Chart) -> None:
    grid: dict[str, Any] = {"color": COLORS["line"], "linewidth": _POINT}
    for value in chart.x.ticks:
        x, _ = chart.place(value, chart.y.low)
        axes.plot([x, x], [TOP, chart.bottom], **grid)
        _text(axes, x, chart.bottom + 15, short(value), ha="center")
    for value in chart.y.ticks:
        _, y = chart.place(chart.x.low, value)
        axes.plot([chart.left, chart.right], [y, y], **grid)
        _text(axes, chart.left - 6, y + 3.6, short(value), ha="right")
    for mark in chart.marks:
        _draw_mark(axes, mark, chart)
    if chart.x.label:
        _text(axes, (chart.left + chart.right) / 2, chart.height - 7, chart.x.label, size=12, ha="center")
    if chart.y.label:
        _text(axes, 8, (TOP + chart.bottom) / 2, chart.y.label, size=12, ha="center", rotation=90, va="center")


def _draw_mark(axes: "Axes", mark: Mark, chart: Chart) -> None:
    color = _color(mark.style)
    if isinstance(mark, Path):
        for part in mark.parts:
            x, y = zip(*part, strict=True)
            if mark.kind in ("band", "area"):
                axes.fill(x, y, facecolor=color, alpha=0.16 if mark.kind == "band" else 0.24, linewidth=0)
            if mark.kind != "band":
                axes.plot(x, y, **_stroke(mark.kind, mark.style))
    elif isinstance(mark, Dot):
        axes.plot(mark.x, mark.y, marker="o", markersize=2 * mark.radius * _POINT, markeredgewidth=0, color=color)
    elif isinstance(mark, Diamond):
        axes.fill(*zip(*mark.corners, strict=True), fill=False, edgecolor=color, linewidth=1.5 * _POINT)
    else:
        weight = "bold" if "strong" in mark.style.split() else "normal"
        _text(axes, chart.left - 8, mark.y + 3.8, mark.shown, ha="right", weight=weight, color=COLORS["ink"])


def _color(style: str) -> str:
    """The color of the last name of a style that has one."""
    names = [_SAME.get(name, name) for name in style.split()]
    return next((COLORS[name] for name in reversed(names) if name in COLORS), COLORS["ink"])


def _stroke(kind: str, style: str) -> dict[str, Any]:
    names = style.split()
    width = {"line": 1.5, "stroke": 1.5, "area": 1.3}[kind]
    if "chance" in names:
        width = 1.0
    elif "thick" in names:
        width = {"line": 2.6, "stroke": 2.2}[kind]
    dash = next((_DASHES[name] for name in names if name in _DASHES), None)
    look: dict[str, Any] = {"color": _color(style), "linewidth": width * _POINT}
    if dash:
        return look | {"linestyle": (0, tuple(length / width for length in dash))}  # matplotlib scales by the width
    return look | {"solid_capstyle": "round", "solid_joinstyle": "round"}


def _text(axes: "Axes", x: float, y: float, text: str, *, size: float = 11.5, **look: Any) -> None:
    """A text whose baseline is at y; its characters are taken as they are."""
    look = {"color": COLORS["muted"], "va": "baseline"} | look
    axes.text(x, y, text, fontsize=size * _POINT, parse_math=False, **look)
