"""Charts as inline SVG: axes, lines, bands, steps, bars, points, whiskers. Text in, markup out, nothing else.

Colors are classes (`one` to `four`, `normal`, `abnormal`, `muted`) that the page's stylesheet fills in, so that a
chart follows the page into the dark and onto paper; every text is escaped. A chart is drawn for about the width of a
phone and scales with its place, letters too. Pixels are written with one decimal: the same data give the same bytes.
"""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
_LETTER = 6.2  # mean width of a letter at the size of the ticks, pixels


class Chart:
    """Axes from `across` and `up` (low, high), on which things are drawn in data units, later ones over earlier ones.

    Values outside are cut at the edge; what is not finite breaks a line and leaves a point out.
    """

    def __init__(
        self,
        across: tuple[float, float],
        up: tuple[float, float],
        *,
        xlabel: str = "",
        ylabel: str = "",
        width: int = WIDTH,
        height: int = HEIGHT,
        left: int = _LEFT,
    ) -> None:
        self.across, self.up = _opened(across), _opened(up)
        self.width, self.height, self.left = width, height, left
        self.bottom = height - (_BOTTOM if xlabel else _BOTTOM - 16)
        self.xlabel, self.ylabel = xlabel, ylabel
        self.marks: list[Markup] = []

    def line(self, x: Iterable[float], y: Iterable[float], kind: str, *, dots: bool = False) -> None:
        """A line through points, and with `dots` the points too."""
        parts: list[list[str]] = [[]]
        for a, b in zip(x, y, strict=True):
            if math.isfinite(a) and math.isfinite(b):
                parts[-1].append(f"{self._x(a)},{self._y(b)}")
                if dots:
                    self.point(a, b, kind, radius=2.2)
            elif parts[-1]:
                parts.append([])
        path = "".join(f"M{'L'.join(part)}" for part in parts if part)
        self._add('<path class="line {}" d="{}"/>', kind, path)

    def band(self, x: Sequence[float], low: Iterable[float], high: Iterable[float], kind: str) -> None:
        """The room between two lines."""
        above = [f"{self._x(a)},{self._y(b)}" for a, b in zip(x, high, strict=True)]
        below = [f"{self._x(a)},{self._y(b)}" for a, b in zip(x, low, strict=True)]
        self._add('<path class="band {}" d="M{}Z"/>', kind, "L".join([*above, *reversed(below)]))

    def steps(self, edges: Sequence[float], values: Sequence[float], kind: str) -> None:
        """A filled histogram: (K + 1) edges, (K,) values."""
        base = self._y(self.up[0])
        path = f"M{self._x(edges[0])},{base}"
        for low, high, value in zip(edges[:-1], edges[1:], values, strict=True):
            path += f"L{self._x(low)},{self._y(value)}L{self._x(high)},{self._y(value)}"
        path += f"L{self._x(edges[-1])},{base}"
        self._add('<path class="area {}" d="{}Z"/>', kind, path)

    def point(self, x: float, y: float, kind: str, *, radius: float = 3.6, title: str = "") -> None:
        """A dot; `title` is what a pointer that rests on it is told."""
        if math.isfinite(x) and math.isfinite(y):
            told = Markup("<title>{}</title>").format(title) if title else ""
            self._add(
                '<circle class="dot {}" cx="{}" cy="{}" r="{}">{}</circle>', kind, self._x(x), self._y(y), radius, told
            )

    def diamond(self, x: float, y: float, kind: str, *, title: str = "") -> None:
        """A hollow diamond, for a figure that is somebody else's."""
        a, b = float(self._x(x)), float(self._y(y))
        path = f"M{a - 4.6:.1f},{b:.1f}L{a:.1f},{b - 4.6:.1f}L{a + 4.6:.1f},{b:.1f}L{a:.1f},{b + 4.6:.1f}Z"
        self._add('<path class="hollow {}" d="{}"><title>{}</title></path>', kind, path, title)

    def upright(self, x: float, low: float, high: float, kind: str) -> None:
        """A stroke from low to high at x."""
        self._stroke(self._x(x), self._x(x), self._y(low), self._y(high), kind)

    def level(self, y: float, low: float, high: float, kind: str) -> None:
        """A stroke from low to high at height y."""
        self._stroke(self._x(low), self._x(high), self._y(y), self._y(y), kind)

    def text(self, y: float, words: str, kind: str) -> None:
        """Words left of the axes at height y, shortened in the middle to the room there is."""
        room = int((self.left - 8) / _LETTER)
        half = max(1, (room - 1) // 2)
        shown = words if len(words) <= room else f"{words[:half]}…{words[-half:]}"
        told = Markup("<title>{}</title>").format(words) if shown != words else ""
        self._add(
            '<text class="row {}" x="{}" y="{}">{}{}</text>', kind, self.left - 8, f"{float(self._y(y)) + 3.8:.1f}",
            shown, told,
        )  # fmt: skip

    def svg(self, words: str, *, rows: bool = False) -> Markup:
        """The whole chart; `words` say what it shows. With `rows`, heights are named by `text` and have no ticks."""
        parts = [
            Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
                self.width, self.height, words
            )
        ]
        for value in ticks(*self.across, most=6):
            x = self._x(value)
            parts.append(
                Markup('<path class="grid" d="M{},{}V{}"/><text class="tick" x="{}" y="{}">{}</text>').format(
                    x, _TOP, self.bottom, x, self.bottom + 15, short(value)
                )
            )
        for value in () if rows else ticks(*self.up, most=6):
            y = self._y(value)
            parts.append(
                Markup('<path class="grid" d="M{},{}H{}"/><text class="tick side" x="{}" y="{}">{}</text>').format(
                    self.left, y, self.width - _RIGHT, self.left - 6, f"{float(y) + 3.6:.1f}", short(value)
                )
            )
        parts += self.marks
        if self.xlabel:
            middle = (self.left + self.width - _RIGHT) / 2
            parts.append(
                Markup('<text class="axis" x="{}" y="{}">{}</text>').format(middle, self.height - 7, self.xlabel)
            )
        if self.ylabel:
            middle = (_TOP + self.bottom) / 2
            parts.append(
                Markup('<text class="axis" transform="translate(11 {}) rotate(-90)">{}</text>').format(
                    middle, self.ylabel
                )
            )
        return Markup("").join([*parts, Markup("</svg>")])

    def _x(self, value: float) -> str:
        return self._place(value, self.across, self.left, self.width - _RIGHT)

    def _y(self, value: float) -> str:
        return self._place(value, self.up, self.bottom, _TOP)

    @staticmethod
    def _place(value: float, span: tuple[float, float], first: float, last: float) -> str:
        share = min(1.0, max(0.0, (value - span[0]) / (span[1] - span[0])))
        return f"{first + share * (last - first):.1f}"

    def _stroke(self, x0: str, x1: str, y0: str, y1: str, kind: str) -> None:
        self._add('<path class="stroke {}" d="M{},{}L{},{}"/>', kind, x0, y0, x1, y1)

    def _add(self, markup: str, *given: object) -> None:
        self.marks.append(Markup(markup).format(*given))


def _opened(span: tuple[float, float]) -> tuple[float, float]:
    """A span that has a width."""
    low, high = span
    if high > low:
        return low, high
    room = abs(low) / 2 or 0.5
    return low - room, high + room


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers from low to high, at most so many, evenly apart by 1, 2 or 5 times a power of ten.

    >>> ticks(0, 1, most=6)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(0.013, 0.021, most=4)
    [0.015, 0.02]
    """
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-6)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-6) + 1)]


def short(value: float) -> str:
    """A tick's number in the fewest letters.

    >>> short(0.4), short(-0.05), short(20000.0), short(3.0), short(0.0)
    ('.4', '-.05', '2e4', '3', '0')
    """
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.3g}".partition("e")[::2] if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    text = f"{value:.6g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def swatch(kind: str) -> Markup:
    """A line as a legend shows it."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><path class="line {}" d="M0,4H22"/></svg>'
    ).format(escape(kind))
