"""How atypical a map is among those of normal films.

On diffuse disease the amount of error misleads: an opaque lung is smooth, and reconstructs better than a healthy one.
Where the error lies, and how large it is there, is a pattern that normal films share; this measures the distance of a
film's pattern from theirs, whichever way it departs.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anomaly.nn.filters import exact
from anomaly.nn.fitted import Fitted

GRID = 14
"""Cells per side: coarse enough that films need not be registered."""
NEIGHBORS, AXES, PLANE = 5, 50, 16
"""Nearest neighbors; principal components of the Mahalanobis distance; those of the residual's subspace."""
MAX_MAPS = 4096
"""Normal maps kept at most, taken evenly from all: bounds memory and the file."""
FOLDS = 5
"""Of the cross-validation that distances are standardized by."""


def cells(value: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `value` under the mask in each of GRID x GRID cells: (N, 1, H, W) -> (N, GRID²).

    A cell of which less than a quarter lies under the mask is NaN: it says nothing about the film.
    """
    share = adaptive_avg_pool2d(exact(mask.float()), GRID)
    mean = adaptive_avg_pool2d(exact(value * mask), GRID) / share.clamp(min=1e-6)
    # A quarter, whichever way its rounding went.
    return torch.where(share >= 0.25 - 1e-6, mean, torch.nan).flatten(1).float()


@dataclass(frozen=True)
class _Normals:
    """What distances are measured from; D = GRID² cells."""

    maps: NDArray[np.float64]  # (R, D), NaN replaced
    center: NDArray[np.float64]  # (D,) mean
    axes: NDArray[np.float64]  # (P, D) principal axes, each divided by the standard deviation along it
    plane: NDArray[np.float64]  # (Q, D) first principal axes, unit length


def _fitted(maps: NDArray[np.float64]) -> _Normals:
    """Return what distances from normal maps are measured from; maps are (R, D) with NaN.

    Few maps give fewer axes, which would otherwise overfit them.
    """
    count = len(maps)
    known = ~np.isnan(maps)
    center = np.where(known, maps, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    complete = np.where(known, maps, center)
    _, singular, axes = np.linalg.svd(complete - center, full_matrices=False)
    deviation = singular / np.sqrt(max(1, count - 1))
    usable = int((deviation > 1e-6 * max(deviation[0], 1e-12)).sum())
    mahalanobis, residual = min(AXES, count // 4, usable), min(PLANE, count // 8, usable)
    return _Normals(complete, center, axes[:mahalanobis] / deviation[:mahalanobis, None], axes[:residual])


class Atypicality(Fitted):
    """The mean of three standardized distances of a map from those of normal films.

    Mean Euclidean distance to the 5 nearest normals; Mahalanobis distance on their first 50 principal components; norm
    of the residual off their first 16. Each is standardized by the same distance of normals in cross-validation: 0 is a
    typical normal film, 1 about one standard deviation above it.
    """

    maps: Tensor  # (R, D) float32
    center: Tensor  # (D,)
    axes: Tensor  # (P, D)
    plane: Tensor  # (Q, D)
    shift: Tensor  # (3,) mean of each distance among normals
    scale: Tensor  # (3,) and its standard deviation

    fitted: ClassVar = ("maps", "center", "axes", "plane", "shift", "scale")

    def fit(self, maps: Tensor) -> None:
        """Take the maps of normal films, (R, GRID²) from `cells`, R >= 2; films of one patient follow each other."""
        device = self.maps.device
        rows = np.linspace(0, len(maps) - 1, min(len(maps), MAX_MAPS)).round().astype(int)
        normal = maps.detach().cpu().double().numpy()[rows]
        # Folds are consecutive films, not every fifth one, so that they hardly share patients.
        held_out = []
        for fold in np.array_split(np.arange(len(normal)), min(FOLDS, len(normal))):
            self._take(_fitted(np.delete(normal, fold, axis=0)))
            held_out.append(self._distances(torch.from_numpy(normal[fold]).float()))
        self._take(_fitted(normal))
        distances = torch.cat(held_out).double()
        self.shift = distances.mean(dim=0).float()
        self.scale = distances.std(dim=0, correction=0).clamp(min=1e-6).float()
        self.to(device)

    def _take(self, normals: _Normals) -> None:
        for name in ("maps", "center", "axes", "plane"):
            setattr(self, name, torch.from_numpy(getattr(normals, name)).float())

    def _distances(self, maps: Tensor) -> Tensor:
        """Return the three distances: (N, D) with NaN -> (N, 3)."""
        x = exact(torch.where(maps.isnan(), self.center, maps))
        normals, center, axes, plane = (part.to(x.dtype) for part in (self.maps, self.center, self.axes, self.plane))
        # Not by a matrix product, whose rounding depends on the other films of the batch.
        pairs = torch.cdist(x, normals, compute_mode="donot_use_mm_for_euclid_dist")  # (N, R)
        nearest = pairs.topk(min(NEIGHBORS, len(self.maps)), dim=1, largest=False).values.mean(dim=1)
        centered = x - center
        mahalanobis = (centered @ axes.T).square().sum(dim=1).sqrt()
        residual = (centered - centered @ plane.T @ plane).square().sum(dim=1).sqrt()
        return torch.stack([nearest, mahalanobis, residual], dim=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return how atypical maps are: (N, GRID²) from `cells` -> (N,)."""
        self.check_fitted()
        distances = self._distances(maps.float())
        return ((distances - self.shift) / self.scale).mean(dim=1).float()
