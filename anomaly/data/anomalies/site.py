"""Where an anomaly is put, the films it is made of, and the soft shapes that bound it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d, pad

from anomaly.data.anomalies.draws import Draws

CELL = 4
"""Side in pixels of the squares among which the place of an anomaly is drawn."""


@dataclass(frozen=True)
class Site:
    """The films that one family of anomalies changes, and what it may take from others."""

    film: Tensor  # (n, 1, H, W) in [0, 1]
    mask: Tensor  # (n, 1, H, W) bool
    donor: Tensor  # (n, 1, H, W): the film that a foreign patch comes from
    donor_mask: Tensor  # (n, 1, H, W) bool
    unit: float  # pixels in a 512th of a whole film's side: sizes are given in it
    draws: Draws

    def place(self, edges: float) -> "Place":
        """Draw the middle of an anomaly in each film, under the mask; the share `edges` of them prefer strong edges."""
        return _drawn(self.film, self.mask, edges, self.draws)

    def donor_place(self) -> "Place":
        """Draw a place of the film that a foreign patch comes from."""
        return _drawn(self.donor, self.donor_mask, 0.5, self.draws)

    def offsets(self, place: "Place") -> tuple[Tensor, Tensor]:
        """Return how far each pixel lies from a place, to the right and down, in pixels: (n, 1, H, W) each."""
        height, width = self.film.shape[-2:]
        across = torch.arange(width, device=self.film.device, dtype=self.film.dtype)
        down = torch.arange(height, device=self.film.device, dtype=self.film.dtype)[:, None]
        blank = torch.zeros_like(self.film)
        return across - place.x + blank, down - place.y + blank

    def radius(self, low: float, high: float) -> tuple[float, Tensor]:
        """Draw one radius, and about it that of each film, in pixels; `low` and `high` in 512ths of the side."""
        middle = self.unit * self.draws.number(low, high)
        return middle, middle * self.draws.uniform(0.7, 1.4)


@dataclass(frozen=True)
class Place:
    """One place in each film."""

    x: Tensor  # (n, 1, 1, 1) pixels from the left
    y: Tensor  # (n, 1, 1, 1) pixels from the top
    angle: Tensor  # (n, 1, 1, 1) direction in which the film gets brighter there, radians from the right downwards


def _drawn(film: Tensor, mask: Tensor, edges: float, draws: Draws) -> Place:
    """Draw a place in each film; where the mask is empty, the upper left corner."""
    coarse = avg_pool2d(film, CELL)  # (n, 1, h, w)
    share = avg_pool2d(mask.to(film.dtype), CELL)
    padded = pad(coarse, (1, 1, 1, 1), mode="replicate")
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    # The border of the mask is the strongest edge of a film, and says nothing.
    inner = (-max_pool2d(-share, 3, 1, padding=1)).clamp(min=0)
    # Relative to the level, or those of plates and collimators would win over all of bones.
    strength = (right.square() + down.square()).sqrt() / (coarse + 0.1) * inner
    plain = inner + 1e-3 * share
    weight = torch.where(draws.chance(edges), strength + 1e-6 * share, plain).flatten(1)
    total = weight.cumsum(dim=1)  # (n, h w)
    wanted = draws.uniform(0, 1)[:, :, 0, 0] * total[:, -1:]
    index = torch.searchsorted(total, wanted).clamp(max=weight.shape[1] - 1)  # (n, 1)
    columns = coarse.shape[-1]

    def at(value: Tensor) -> Tensor:
        return value.flatten(1).gather(1, index)[:, :, None, None]

    row, column = (index // columns)[:, :, None, None], (index % columns)[:, :, None, None]
    x, y = ((place + draws.uniform(0, 1)) * CELL for place in (column, row))
    return Place(x.floor(), y.floor(), torch.atan2(at(down), at(right)))


def turned(right: Tensor, down: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return offsets along a direction and across it: (n, 1, H, W) each."""
    cos, sin = angle.cos(), angle.sin()
    return right * cos + down * sin, down * cos - right * sin


def sampled(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return an image at places in pixels, between pixels by linear interpolation, beyond its edge that of the edge.

    (n, 1, H, W) each -> (n, 1, H, W)
    """
    height, width = image.shape[-2:]
    grid = torch.cat([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=1).permute(0, 2, 3, 1)
    return grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def soft(inside: Tensor, softness: Tensor | float) -> Tensor:
    """Return a soft step, 0 where `inside` is far below 0 and 1 where it is far above."""
    return torch.sigmoid(inside / softness)


def blob(site: Site, place: Place, radius: Tensor, middle: float) -> Tensor:
    """Return a region about a place with a soft, irregular border, 1 inside and 0 outside: (n, 1, H, W).

    From ellipses over lobed and ragged regions to rounded rectangles, up to twice as long as wide.

    radius  (n, 1, 1, 1) in pixels; `middle` about what it is in all films
    """
    draws = site.draws
    along, across = turned(*site.offsets(place), draws.angle())
    stretch = draws.log_uniform(1, 2).sqrt()
    power = torch.where(draws.chance(0.7), 2.0, draws.log_uniform(1.2, 6))
    u, v = (along / (radius * stretch)).abs() + 1e-6, (across * stretch / radius).abs() + 1e-6
    distance = (u.pow(power) + v.pow(power)).pow(1 / power)
    ragged = draws.uniform(0, 0.45) * draws.field(site.film.shape, max(3 * site.unit, middle * draws.number(0.25, 1.2)))
    return soft(1 + ragged.clamp(-0.7, 0.7) - distance, draws.log_uniform(0.03, 0.3))
