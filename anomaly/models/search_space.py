"""What `anomaly tune` may search: ranges and choices of settings."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, that `anomaly tune` may give a setting.

    >>> Range(1e-4, 1e-2, log=True).bounds()
    (0.0001, 0.01)
    >>> Range(3, 1)
    Traceback (most recent call last):
    ValueError: no range from 3 to 1
    """

    low: float
    high: float
    log: bool = False  # whether each power of ten is as likely as the next; needs low > 0
    integer: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"no range from {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"no logarithm of {self.low}, where a range begins")
        if self.integer and not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise ValueError(f"{self.low} and {self.high} bound a range of integers, and are not both one")

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest value."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """Values of which `anomaly tune` may give a setting any one.

    >>> Choice(("none", "flips")).bounds()
    ('none', 'flips')
    """

    options: tuple[str | int | float | bool, ...]

    def __post_init__(self) -> None:
        if len(set(self.options)) != len(self.options) or len(self.options) < 2:
            raise ValueError(f"{self.options} is no choice: it takes two options or more, all different")

    def bounds(self) -> tuple[str | int | float | bool, ...]:
        """Return all values."""
        return self.options


Space = Mapping[str, Range | Choice]
"""Name of a setting, of the model or of the training -> the values to search."""
