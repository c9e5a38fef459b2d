"""`ContrastDensity` in the operations that ONNX has: OpenCV's adaptive histogram equalization, to the level.

CLAHE as OpenCV computes it in 8 bit (Pizer et al. 1987, with the clipped counts spread evenly; modules/imgproc, clahe):
a histogram of each tile, clipped and summed up to a table of levels, and between the centers of four tiles their tables
interpolated, in float32.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomaly.data.batch import Batch
from anomaly.models.base import Prediction
from anomaly.models.contrast_density import ContrastDensity
from anomaly.nn.atypicality import GRID, cells
from preprocessing.steps.levels import SD_FLOOR, SD_TOP

LEVELS = 256
DEPTH = 65535.0


class ContrastDensityForm(nn.Module):
    """`ContrastDensity`: `preprocessing.steps.local_contrast` of a batch, and its `Atypicality`, a form."""

    bins: Tensor
    corners: Tensor
    shares: Tensor
    smoothing: Tensor
    spread: Tensor
    center: Tensor

    def __init__(self, model: ContrastDensity) -> None:
        super().__init__()
        config, size = model.config, model.size
        self.atypicality = model.atypicality
        self.tiles = config.tiles
        # Where the side isn't a multiple, OpenCV mirrors the film beyond its right and lower edge.
        padded = size if size % self.tiles == 0 else size + self.tiles - size % self.tiles
        self.side = padded // self.tiles  # of a tile, pixels
        self.limit = max(int(config.clip_limit * self.side**2 / LEVELS), 1)
        mirrored = np.pad(np.arange(size), (0, padded - size), mode="reflect")
        tile = np.arange(padded) // self.side
        self.bins = nn.Buffer(torch.from_numpy((tile[:, None] * self.tiles + tile).ravel() * LEVELS))  # (P²,)
        self.source = torch.from_numpy((mirrored[:, None] * size + mirrored).ravel())  # (P²,) the pixel that is there
        self.corners, self.shares = (nn.Buffer(torch.from_numpy(x)) for x in self._between(size))
        self.smoothing = nn.Buffer(torch.from_numpy(_smoothing(size, config.sigma)))
        maps = model.atypicality.maps
        assert isinstance(maps, Tensor)
        center = model.atypicality.center
        assert isinstance(center, Tensor)
        self.spread, self.center = nn.Buffer(maps.std(dim=0, correction=0).clamp(min=1e-3)), nn.Buffer(center.clone())

    def _between(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the tables of the four tiles about each pixel, where they begin, and their shares: (4, S²) each."""
        place = np.arange(size, dtype=np.float32) * np.float32(1 / np.float32(self.side)) - np.float32(0.5)
        first = np.floor(place).astype(np.int64)
        share = (place - first.astype(np.float32)).astype(np.float32)
        tiles = np.stack([np.maximum(first, 0), np.minimum(first + 1, self.tiles - 1)])  # (2, S)
        shares = np.stack([np.float32(1) - share, share])
        pairs = [(y, x) for y in (0, 1) for x in (0, 1)]
        corners = [(tiles[y][:, None] * self.tiles + tiles[x]).ravel() * LEVELS for y, x in pairs]
        rows = [np.broadcast_to(shares[y][:, None], (size, size)).ravel() for y in (0, 1)]
        columns = [np.broadcast_to(shares[x], (size, size)).ravel() for x in (0, 1)]
        return np.stack(corners), np.stack([*rows, *columns])

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """`ContrastDensity.predict`."""
        contrast = cells(self.local_contrast(batch.film, batch.mask), batch.mask)  # (N, D)
        grid = ((contrast - self.center) / self.spread).square()
        grid = torch.where(grid.isnan(), 0, grid).reshape(-1, 1, GRID, GRID)
        fine = interpolate(grid, size=batch.film.shape[2:], mode="bilinear", align_corners=False)
        return Prediction({"atypicality": self.atypicality(contrast)}, fine * batch.mask)

    def local_contrast(self, film: Tensor, mask: Tensor) -> Tensor:
        """Return the local contrast of films of 16-bit levels, over the largest level: (N, 1, S, S) float32."""
        levels = self._stretched(film, mask)  # (N, S²) int64
        inside = mask.flatten(1)
        count = inside.sum(dim=1, keepdim=True).double()
        mean = ((levels * inside).sum(dim=1, keepdim=True) / count.clamp(min=1)).round().long()
        filled = torch.where(inside, levels, mean)
        equalized = (self._equalized(filled).double() / 255 - 0.5).reshape(mask.shape)
        weight = mask.double()
        moments = torch.cat([weight, weight * equalized, weight * equalized.square()], dim=1)
        smooth = self.smoothing @ moments @ self.smoothing.T
        total = torch.where(mask, smooth[:, :1], 1)
        first, second = smooth[:, 1:2] / total, smooth[:, 2:] / total
        deviation = (second - first.square()).clamp(min=0).sqrt()
        scaled = (torch.log1p(deviation / SD_FLOOR) / np.log1p(SD_TOP / SD_FLOOR)).clamp(max=1)
        flat = (levels == 0).all(dim=1)[:, None, None, None]
        return torch.where(mask & ~flat, (scaled * DEPTH).round(), 0).float() / DEPTH

    def _stretched(self, film: Tensor, mask: Tensor) -> Tensor:
        """Return levels of 0 to 255 from the darkest to the brightest under the mask, 0 off it: (N, S²) int64."""
        levels, inside = (film * DEPTH).round().double().flatten(1), mask.flatten(1)
        low = torch.where(inside, levels, DEPTH).amin(dim=1, keepdim=True)
        high = torch.where(inside, levels, 0).amax(dim=1, keepdim=True)
        # A division: torch multiplies by the reciprocal where the dividend is a number, and ties round another way.
        scale = torch.full_like(high, DEPTH) / (high - low).clamp(min=1)
        full = ((levels - low) * scale).round().clamp(0, DEPTH)
        return torch.where(inside & (high > low), (full * (255 / DEPTH)).round(), 0).long()

    def _equalized(self, levels: Tensor) -> Tensor:
        """Return CLAHE of levels of 8 bit: (N, S²) int64 -> (N, S²) float32, whole numbers."""
        tables = self.tiles**2
        places = self.bins + levels[:, self.source]  # (N, P²)
        empty = torch.zeros_like(places[:, :1]).expand(-1, tables * LEVELS)
        counts = empty.scatter_add(1, places, torch.ones_like(places)).reshape(-1, tables, LEVELS)
        clipped = (counts - self.limit).clamp(min=0).sum(dim=2, keepdim=True)
        each = clipped.div(LEVELS, rounding_mode="floor")
        rest = clipped - each * LEVELS
        step = torch.full_like(rest, LEVELS).div(rest.clamp(min=1), rounding_mode="floor").clamp(min=1)
        level = torch.arange(LEVELS)
        turn = level.div(step, rounding_mode="floor")
        extra = (level == turn * step) & (turn < rest)
        counts = counts.clamp(max=self.limit) + each + extra.long()
        scale = float(np.float32(LEVELS - 1) / np.float32(self.side**2))
        lut = (counts.cumsum(dim=2).float() * scale).round().clamp(0, 255).flatten(1)  # (N, tables * 256)
        a, b, c, d = (lut.gather(1, corner + levels) for corner in self.corners)
        top, bottom, left, right = self.shares
        between: Tensor = (a * left + b * right) * top + (c * left + d * right) * bottom
        return between.round().clamp(0, 255)


def _smoothing(size: int, sigma: float) -> NDArray[np.float64]:
    """Return the matrix of `preprocessing.steps.levels._smoothed` along a side, (S, S): all of it is linear."""
    width = sigma * size
    cell = max(1, int(width / 4))
    count = -(-size // cell)
    averages = _resized(size, count, cv2.INTER_AREA)
    spread = width / cell
    kernel = cv2.getGaussianKernel(round(spread * 8 + 1) | 1, spread, cv2.CV_64F)
    blur = cv2.sepFilter2D(np.eye(count), cv2.CV_64F, np.ones(1), kernel, borderType=cv2.BORDER_CONSTANT)
    finer = _resized(count, size, cv2.INTER_LINEAR)
    return np.asarray(finer @ blur @ averages, np.float64)


def _resized(size: int, target: int, how: int) -> NDArray[np.float64]:
    """Return the matrix of OpenCV's `resize` along a side, of three channels as there: (target, size)."""
    return np.asarray(cv2.resize(np.dstack([np.eye(size)] * 3), (size, target), interpolation=how)[:, :, 0])
