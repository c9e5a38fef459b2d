"""Charts as scenes: axes and marks in data units, laid out in pixels, which `svg` and `png` render alike.

A style is one or more names with spaces between: a color (`one` to `four`, `normal`, `abnormal`, `muted`, `ink`,
`chance`) and how the stroke looks (`thick`, `dashed`, `dotted`). The page's stylesheet and `png` give them their
meaning. A chart is laid out for about the width of a phone and scales with its place, letters too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 400, 300
TOP, RIGHT = 10, 12  # margins, pixels
_LEFT, _BOTTOM = 46, 40
_LETTER = 6.2  # mean width of a letter of a row label, pixels

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Path:
    """A line through points in pixels, one part after the other; closed and filled as a `band` or an `area`."""

    parts: tuple[Points, ...]
    style: str
    kind: str = "line"  # line, stroke, band, area


@dataclass(frozen=True)
class Dot:
    """A dot at a point in pixels; `title` is its tooltip."""

    x: float
    y: float
    radius: float
    style: str
    title: str


@dataclass(frozen=True)
class Diamond:
    """A hollow diamond around a point in pixels; `title` is its tooltip."""

    x: float
    y: float
    style: str
    title: str

    @property
    def corners(self) -> Points:
        """Left, top, right, bottom."""
        x, y, reach = self.x, self.y, 4.6
        return ((x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach))


@dataclass(frozen=True)
class Label:
    """The name of a row, left of the axes at a height in pixels; `shown` is `text`, shortened to the room."""

    y: float
    shown: str
    text: str
    style: str


Mark = Path | Dot | Diamond | Label


@dataclass(frozen=True)
class Axis:
    """One axis: its range of values, its name, and where its ticks lie."""

    low: float
    high: float
    label: str = ""
    log: bool = False  # logarithmic; low must be above 0
    whole: bool = False  # ticks at whole numbers only
    ticked: bool = True

    def __post_init__(self) -> None:
        if self.log and not self.low > 0:
            raise ValueError(f"a logarithmic axis from {self.low:g}: it must be above 0")
        if not self.high > self.low:  # so that it has an extent
            room = abs(self.low) / 2 or 0.5
            object.__setattr__(self, "high", self.low + room)
            object.__setattr__(self, "low", self.low - room)

    @property
    def ticks(self) -> list[float]:
        """The values at which it has a tick."""
        if not self.ticked:
            return []
        return (
            log_ticks(self.low, self.high, most=6) if self.log else ticks(self.low, self.high, most=6, whole=self.whole)
        )

    def share(self, value: float) -> float:
        """How far along the axis a value lies, from 0 to 1; values outside lie at its ends."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))


@dataclass(eq=False)
class Chart:
    """Two axes on which marks are drawn in data units, later ones over earlier ones.

    Values outside the axes are cut at the edge; what is not finite breaks a line and leaves a point out.
    """

    x: Axis
    y: Axis
    description: str  # what it shows, for those who cannot see it
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    marks: list[Mark] = field(default_factory=list)

    @property
    def right(self) -> int:
        """The right edge of the axes, pixels."""
        return self.width - RIGHT

    @property
    def bottom(self) -> int:
        """The lower edge of the axes, pixels."""
        return self.height - (_BOTTOM if self.x.label else _BOTTOM - 16)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point in pixels, from the upper left corner of the chart."""
        return (
            self.left + self.x.share(x) * (self.right - self.left),
            self.bottom + self.y.share(y) * (TOP - self.bottom),
        )

    def line(self, x: Iterable[float], y: Iterable[float], style: str, *, dots: bool = False) -> None:
        """A line through points, and with `dots` the points too."""
        parts: list[list[tuple[float, float]]] = [[]]
        for a, b in zip(x, y, strict=True):
            if math.isfinite(a) and math.isfinite(b):
                parts[-1].append(self.place(a, b))
                if dots:
                    self.point(a, b, style, radius=2.2)
            elif parts[-1]:
                parts.append([])
        self.marks.append(Path(tuple(tuple(part) for part in parts if part), style))

    def band(self, x: Sequence[float], low: Iterable[float], high: Iterable[float], style: str) -> None:
        """The room between two lines."""
        upper = [self.place(a, b) for a, b in zip(x, high, strict=True)]
        lower = [self.place(a, b) for a, b in zip(x, low, strict=True)]
        self.marks.append(Path(((*upper, *reversed(lower)),), style, "band"))

    def steps(self, edges: Sequence[float], values: Sequence[float], style: str) -> None:
        """A filled histogram: (K + 1) edges, (K,) values."""
        corners = [self.place(edges[0], self.y.low)]
        for low, high, value in zip(edges[:-1], edges[1:], values, strict=True):
            corners += [self.place(low, value), self.place(high, value)]
        corners.append(self.place(edges[-1], self.y.low))
        self.marks.append(Path((tuple(corners),), style, "area"))

    def point(self, x: float, y: float, style: str, *, radius: float = 3.6, title: str = "") -> None:
        """A dot, with a tooltip."""
        if math.isfinite(x) and math.isfinite(y):
            self.marks.append(Dot(*self.place(x, y), radius, style, title))

    def diamond(self, x: float, y: float, style: str, *, title: str = "") -> None:
        """A hollow diamond, with a tooltip, for a figure that was not measured here."""
        self.marks.append(Diamond(*self.place(x, y), style, title))

    def segment(self, start: tuple[float, float], stop: tuple[float, float], style: str) -> None:
        """A straight stroke between two points."""
        self.marks.append(Path(((self.place(*start), self.place(*stop)),), style, "stroke"))

    def row_label(self, y: float, text: str, style: str = "") -> None:
        """A text left of the axes at height y, its middle cut out where it is too long."""
        room = int((self.left - 8) / _LETTER)
        half = max(1, (room - 1) // 2)
        shown = text if len(text) <= room else f"{text[:half]}…{text[-half:]}"
        self.marks.append(Label(self.place(self.x.low, y)[1], shown, text, style))


@dataclass(frozen=True)
class Panel:
    """Charts below each other with a title and a legend."""

    title: str
    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, str], ...] = ()  # style of a line, what it is


# -------------------------------------------------------------------------------------------------------------- ticks


def ticks(low: float, high: float, *, most: int, whole: bool = False) -> list[float]:
    """Round numbers from low to high, at most so many, evenly apart by 1, 2 or 5 times a power of ten.

    whole  whole numbers only.

    >>> ticks(0, 1, most=6)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(0.013, 0.021, most=4)
    [0.015, 0.02]
    >>> ticks(0, 2, most=6, whole=True)
    [0.0, 1.0, 2.0]
    """
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-6)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-6) + 1)]


def log_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Powers of ten from low to high, at most so many; where they are few, 1, 2 and 5 times these.

    >>> log_ticks(0.0008, 2, most=6), log_ticks(0.04, 0.6, most=6), log_ticks(1e-12, 1, most=6)
    ([0.001, 0.01, 0.1, 1.0], [0.05, 0.1, 0.2, 0.5], [1e-12, 1e-09, 1e-06, 0.001, 1.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [power for power in powers if low <= float(f"1e{power}") <= high]
    if len(inside) > 2:
        return [float(f"1e{power}") for power in inside[:: -(-len(inside) // most)]]
    values = [float(f"{times}e{power}") for power in powers for times in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def short(value: float) -> str:
    """A tick's number in the fewest letters.

    >>> short(0.4), short(-0.05), short(20000.0), short(3.0), short(0.0)
    ('.4', '-.05', '2e4', '3', '0')
    """
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    text = f"{value:.6g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
