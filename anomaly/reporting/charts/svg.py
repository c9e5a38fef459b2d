"""A chart as inline SVG: styles are classes that the page's stylesheet fills in, so that a chart follows the page into
the dark and onto paper. Every text is escaped. Pixels have one decimal: the same data give the same bytes.
"""

from markupsafe import Markup

from anomaly.reporting.charts.scene import TOP, Chart, Diamond, Dot, Mark, Path, Points, short


def svg(chart: Chart) -> Markup:
    """The whole chart."""
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            chart.width, chart.height, chart.description
        ),
        *_axes(chart),
        *(_draw(mark, chart) for mark in chart.marks),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def swatch(style: str) -> Markup:
    """A line as a legend shows it."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><path class="line {}" d="M0,4H22"/></svg>'
    ).format(style)


def _axes(chart: Chart) -> list[Markup]:
    parts = []
    for value in chart.x.ticks:
        x = _pixels(chart.place(value, chart.y.low)[0])
        parts.append(
            Markup('<path class="grid" d="M{},{}V{}"/><text class="tick" x="{}" y="{}">{}</text>').format(
                x, TOP, chart.bottom, x, chart.bottom + 15, short(value)
            )
        )
    for value in chart.y.ticks:
        height = chart.place(chart.x.low, value)[1]
        parts.append(
            Markup('<path class="grid" d="M{},{}H{}"/><text class="tick side" x="{}" y="{}">{}</text>').format(
                chart.left, _pixels(height), chart.right, chart.left - 6, _pixels(height + 3.6), short(value)
            )
        )
    if chart.x.label:
        middle = (chart.left + chart.right) / 2
        parts.append(
            Markup('<text class="axis" x="{}" y="{}">{}</text>').format(middle, chart.height - 7, chart.x.label)
        )
    if chart.y.label:
        middle = (TOP + chart.bottom) / 2
        parts.append(
            Markup('<text class="axis" transform="translate(11 {}) rotate(-90)">{}</text>').format(
                middle, chart.y.label
            )
        )
    return parts


def _draw(mark: Mark, chart: Chart) -> Markup:
    if isinstance(mark, Path):
        data = "".join(f"M{_joined(part)}" for part in mark.parts)
        closed = "Z" if mark.kind in ("band", "area") else ""
        return Markup('<path class="{} {}" d="{}{}"/>').format(mark.kind, mark.style, data, closed)
    if isinstance(mark, Dot):
        return Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}">{}</circle>').format(
            mark.style, _pixels(mark.x), _pixels(mark.y), mark.radius, _tooltip(mark.title)
        )
    if isinstance(mark, Diamond):
        return Markup('<path class="hollow {}" d="M{}Z">{}</path>').format(
            mark.style, _joined(mark.corners), _tooltip(mark.title)
        )
    return Markup('<text class="row {}" x="{}" y="{}">{}{}</text>').format(
        mark.style,
        chart.left - 8,
        _pixels(mark.y + 3.8),
        mark.shown,
        _tooltip(mark.text if mark.text != mark.shown else ""),
    )


def _tooltip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _joined(points: Points) -> str:
    return "L".join(f"{_pixels(x)},{_pixels(y)}" for x, y in points)


def _pixels(value: float) -> str:
    return f"{value:.1f}"
