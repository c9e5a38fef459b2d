"""How usual a map is among those of normal films.

On diffuse disease the amount of error is the wrong question: an opaque lung is smooth, and reconstructs better than a
healthy one. Where the error lies, and how much of it, is a pattern that normal films share; this measures how far a
film's pattern is from theirs, whichever way it departs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

GRID = 14
"""Cells a side: coarse enough that films need not be registered."""
NEIGHBOURS, AXES, PLANE = 5, 50, 16
"""Nearest neighbours; principal components of the Mahalanobis distance; those of the residual's plane."""
MOST = 4096
"""Normal maps kept at most, evenly taken from all: bounds memory and the file."""
FOLDS = 5


def cells(value: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `value` under the mask in each of GRID x GRID cells: (N, 1, H, W) -> (N, GRID²).

    A cell of which less than a quarter lies under the mask is not a number: it says nothing of the film.
    """
    share = adaptive_avg_pool2d(mask.float(), GRID)
    mean = adaptive_avg_pool2d(value * mask, GRID) / share.clamp(min=1e-6)
    return torch.where(share >= 0.25, mean, torch.nan).flatten(1)


@dataclass(frozen=True)
class _Normals:
    """What distances are measured from, D = GRID² cells."""

    maps: NDArray[np.float64]  # (R, D), no gaps
    center: NDArray[np.float64]  # (D,) their mean
    axes: NDArray[np.float64]  # (P, D) principal axes / standard deviation along each
    plane: NDArray[np.float64]  # (Q, D) the first principal axes, of length 1


def _described(maps: NDArray[np.float64]) -> _Normals:
    """Describe normal maps (R, D) with gaps; few of them give fewer axes, so that they can't be described by heart."""
    count = len(maps)
    there = ~np.isnan(maps)
    center = np.where(there, maps, 0).sum(axis=0) / np.maximum(1, there.sum(axis=0))
    full = np.where(there, maps, center)
    _, size, axes = np.linalg.svd(full - center, full_matrices=False)
    spread = size / np.sqrt(max(1, count - 1))
    usable = int((spread > 1e-6 * max(spread[0], 1e-12)).sum())
    long, flat = min(AXES, count // 4, usable), min(PLANE, count // 8, usable)
    return _Normals(full, center, axes[:long] / spread[:long, None], axes[:flat])


class Atypicality(nn.Module):
    """The mean of three z-scored distances of a map from those of normal films.

    Mean Euclidean distance to the 5 nearest normals; Mahalanobis distance on their first 50 principal components; what
    their first 16 leave over. Each is z-scored by the same distance of normals that were left out in turn, so 0 is the
    usual normal film, and 1 about one standard deviation above it.
    """

    maps: Tensor  # (R, D) float32
    center: Tensor  # (D,)
    axes: Tensor  # (P, D)
    plane: Tensor  # (Q, D)
    shift: Tensor  # (3,) mean of each distance among normals
    scale: Tensor  # (3,) and its standard deviation

    def __init__(self) -> None:
        super().__init__()
        for name in ("maps", "center", "axes", "plane", "shift", "scale"):
            self.register_buffer(name, torch.zeros(0))

    def fit(self, maps: Tensor) -> None:
        """Take in the maps of normal films, (R, GRID²) from `cells`, R >= 2; films of a patient beside each other."""
        device = self.maps.device
        rows = np.linspace(0, len(maps) - 1, min(len(maps), MOST)).round().astype(int)
        normal = maps.detach().cpu().double().numpy()[rows]
        # Whole stretches are left out, not every fifth film: films of one patient follow each other.
        apart = []
        for out in np.array_split(np.arange(len(normal)), min(FOLDS, len(normal))):
            self._take(_described(np.delete(normal, out, axis=0)))
            apart.append(self._distances(torch.from_numpy(normal[out]).float()))
        self._take(_described(normal))
        distances = torch.cat(apart).double()
        self.shift = distances.mean(dim=0).float()
        self.scale = distances.std(dim=0, correction=0).clamp(min=1e-6).float()
        self.to(device)

    def _take(self, normals: _Normals) -> None:
        for name in ("maps", "center", "axes", "plane"):
            setattr(self, name, torch.from_numpy(getattr(normals, name)).float())

    def _distances(self, maps: Tensor) -> Tensor:
        """Return the three distances: (N, D) with gaps -> (N, 3)."""
        x = torch.where(maps.isnan(), self.center, maps)
        # Without the shortcut by a matrix product: its rounding depends on the films beside this one.
        pairs = torch.cdist(x, self.maps, compute_mode="donot_use_mm_for_euclid_dist")  # (N, R)
        near = pairs.topk(min(NEIGHBOURS, len(self.maps)), dim=1, largest=False).values.mean(dim=1)
        off = x - self.center
        along = (off @ self.axes.T).square().sum(dim=1).sqrt()
        left = (off - off @ self.plane.T @ self.plane).square().sum(dim=1).sqrt()
        return torch.stack([near, along, left], dim=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return how unusual maps are: (N, GRID²) from `cells` -> (N,)."""
        if not len(self.maps):
            raise RuntimeError("fit() comes before the first score")
        distances = self._distances(maps.float())
        return ((distances - self.shift) / self.scale).mean(dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Give the buffers the size of what is to be loaded: it depends on the films they came from."""
        for name in dict(self.named_buffers()):
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=self.maps.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
