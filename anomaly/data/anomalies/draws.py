"""Random numbers of made-up anomalies."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate


class Draws:
    """Random numbers for each of `count` films, of shape (count, 1, 1, 1) unless said otherwise.

    They are drawn on the host, by torch's own generator or the one that is given, and sent to the device: so all
    devices get the same anomalies, and none is waited for.
    """

    def __init__(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        """`device` is where the films lie."""
        self._count, self._device, self._generator = count, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        """Return numbers between `low` and `high`."""
        return (low + (high - low) * self._unit(self._count, 1, 1, 1)).to(self._device, non_blocking=True)

    def log_uniform(self, low: float, high: float) -> Tensor:
        """Return numbers between `low` and `high` > 0 whose logarithms are uniform."""
        return self.uniform(math.log(low), math.log(high)).exp()

    def strength(self, low: float, high: float) -> Tensor:
        """Return strengths between `low`, hardly visible, and `high`: half of them in the upper quarter of logarithms.

        What can't be told from grain teaches nothing, so most of what is drawn can be.
        """
        return high * (low / high) ** self.uniform(0, 1).square()

    def chance(self, probability: float) -> Tensor:
        """Return bools that are true with this probability."""
        return self.uniform(0, 1) < probability

    def sign(self, positive: float = 0.5) -> Tensor:
        """Return 1 with the probability `positive`, else -1."""
        return torch.where(self.chance(positive), 1.0, -1.0)

    def number(self, low: float, high: float) -> float:
        """Return one number for all films, between `low` and `high` > 0, its logarithm uniform."""
        return math.exp(math.log(low) + math.log(high / low) * float(self._unit(1)))

    def angle(self) -> Tensor:
        """Return angles, in radians."""
        return self.uniform(-math.pi, math.pi)

    def field(self, shape: torch.Size, wave: float) -> Tensor:
        """Return smooth noise with mean 0 and about unit standard deviation: (count, 1, H, W).

        shape  of the films, (..., H, W)
        wave   distance in pixels between the drawn values, at least 1; those in between are cubic
        """
        cells = [max(2, round(side / max(1.0, wave))) for side in shape[-2:]]
        noise = torch.randn(self._count, 1, *cells, generator=self._generator).to(self._device, non_blocking=True)
        if cells == list(shape[-2:]):
            return noise
        return 1.3 * interpolate(noise, size=shape[-2:], mode="bicubic", align_corners=False)

    def _unit(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)
