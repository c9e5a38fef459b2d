"""How unusual the residuals of a film are for the structure they lie on: a mixture of Gaussians over local ones.

An error is larger along edges than in flat places, on every film. What says that something is wrong is an error that
doesn't go with the film's own contrast there: too large, too small, or to one side.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomaly.nn.filters import area_resize, blurred_at, exact
from anomaly.nn.mixture import GaussianMixture, k_means, polynomials, powers
from anomaly.nn.whitening import Whitening

WINDOWS = (0.02, 0.045, 0.09)
"""Standard deviations of the windows, as shares of the film's side."""
FINEST = 128
"""Side in pixels that local means are taken at: larger films are reduced by an area filter, which keeps them."""
CELLS = 32
"""Cells a side: their spacing is that at which the smallest window doesn't miss anything."""
KEPT = 2**18
"""Cells of normal films that the mixture is fitted to, at most: bounds memory."""
COMPONENTS, LEAST_CELLS = 100, 50
"""Gaussians of the mixture, or fewer, so that each has so many cells on average."""
SHRINKAGE = 0.1
"""Share of the covariance of all cells in that of each Gaussian: there are few features, and many cells."""
FLOOR = 1e-6
"""Added to mean squares before a logarithm: about the rounding error of 8-bit levels."""


def residual_cells(film: Tensor, reconstruction: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the features of the cells of each film whose center lies under its mask, or of all where none does.

    film, reconstruction  (N, 1, S, S) in [0, 1].    mask  (N, 1, S, S) bool. Returns N times (M, 9), as `grid_cells`.
    """
    return [own[under] for own, under in zip(*grid_cells(film, reconstruction, mask), strict=True)]


def grid_cells(film: Tensor, reconstruction: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of all cells, (N, G², 9), and which of them count, (N, G²) bool; arguments as above.

    The features are, in each of three windows, the logarithm of the mean squared error, the mean error over the root of
    that, and the logarithm of the film's variance.
    """
    film, error = film.float() * mask, (film - reconstruction).float() * mask
    channels = torch.cat([mask.float(), error, error * error, film, film * film], dim=1)
    if film.shape[3] > FINEST:
        channels = area_resize(channels, FINEST)
    side = int(channels.shape[3])
    channels = exact(channels)
    step = -(-side // CELLS)
    centers = slice(step // 2, None, step)
    features = []
    for blurred in blurred_at(channels, [window * side for window in WINDOWS], centers):
        mean, square, level, level_square = (blurred[:, 1:] / blurred[:, :1].clamp(min=1e-6)).unbind(dim=1)
        variance = (level_square - level * level).clamp(min=0)
        features += [(square + FLOOR).log(), mean / (square + FLOOR).sqrt(), (variance + FLOOR).log()]
    cells = torch.stack(features, dim=3).flatten(1, 2).float()  # (N, G², 9)
    inside = interpolate(mask.float(), size=(side, side), mode="nearest")[:, 0, centers, centers].flatten(1) > 0
    return cells, inside | ~inside.any(dim=1, keepdim=True)


class ResidualMixture(nn.Module):
    """The mixture of the cells of normal films, whitened; a film's score is the mean over its cells.

    Not of their positions: normals needn't be registered, and on chests, which nearly are, it is better without.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whitening = Whitening(3 * len(WINDOWS), equal_spread=True)
        self.mixture = GaussianMixture()

    def fit(self, cells: Tensor) -> None:
        """Fit to cells of normal films, (M, 9); InputError where there are too few for the features."""
        self.whitening.fit([cells])
        white = self.whitening(cells)
        count = min(COMPONENTS, max(1, len(white) // LEAST_CELLS))
        means = k_means(white, count, torch.Generator().manual_seed(0))
        self.mixture.fit(means, [white], SHRINKAGE)

    def forward(self, films: list[Tensor]) -> Tensor:
        """Return the mean over each film's cells of -2 log of the likeliest component's density, up to a constant.

        N times (M, 9) -> (N,) float64.
        """
        components = self._components()
        white = torch.cat([self.whitening(cells) for cells in films])
        # Each film is multiplied by itself: the rounding of a product may depend on its number of rows.
        parts = torch.split(powers(white), [len(cells) for cells in films])
        return torch.stack([(part @ components).amin(dim=1).mean() for part in parts])

    def of_films(self, film: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
        """Return `forward` of the cells of films: arguments as in `residual_cells` -> (N,)."""
        if film.device.type == "cpu":
            score: Tensor = self(residual_cells(film, reconstruction, mask))
            return score
        # All cells, also those that don't count: to choose them a GPU would be waited for, film by film.
        cells, inside = grid_cells(film, reconstruction, mask)
        return mean_over_grid(self.whitening(cells), inside, self._components())

    def _components(self) -> Tensor:
        self.mixture.check_fitted()
        return polynomials(self.mixture.means, self.mixture.factors, self.mixture.constants)


def mean_over_grid(cells: Tensor, inside: Tensor, components: Tensor) -> Tensor:
    """Return the mean over a film's cells inside of the likeliest component's score, all films at once.

    cells  (N, G², A), whitened.    inside  (N, G²) bool.    components  as from `polynomials`. Returns (N,) float64.
    """
    score = (powers(cells.flatten(0, 1)) @ components).amin(dim=1).view(inside.shape)
    mean: Tensor = (score * inside).sum(dim=1) / inside.sum(dim=1)
    return mean


class CellSample:
    """At most KEPT cells of any number of films, evenly: every cell, or every second, fourth, ... of all in a row."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []  # numbers of cells (K,), and the cells (K, C)
        self._step, self._next, self._count = 1, 0, 0

    def add(self, cells: Tensor) -> None:
        """Take the cells of a film, (M, C)."""
        numbers = self._next + torch.arange(len(cells))
        # One number is left out between films: or else a step that divides a film's cells would see the same places.
        self._next += len(cells) + 1
        self._parts.append(self._thinned(numbers, cells.cpu()))
        self._count += len(self._parts[-1][0])
        while self._count > KEPT:
            self._step *= 2
            numbers, kept = (torch.cat(columns) for columns in zip(*self._parts, strict=True))
            self._parts = [self._thinned(numbers, kept)]
            self._count = len(self._parts[0][0])

    def _thinned(self, numbers: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        kept = numbers % self._step == 0
        return numbers[kept], cells[kept]

    def cells(self) -> Tensor:
        """Return them, (K, C)."""
        return torch.cat([cells for _, cells in self._parts])
