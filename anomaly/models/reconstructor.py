"""Detectors that reconstruct: every score of a residual, the same for all of them."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Prediction
from anomaly.nn.atypicality import Atypicality
from anomaly.nn.atypicality import cells as pattern_cells
from anomaly.nn.filters import gaussian_blur, local_mean, structural_dissimilarity
from anomaly.nn.losses import masked_mean, squared_error, topk_mean
from anomaly.nn.residual_mixture import CellSample, ResidualMixture, residual_cells

WINDOW = 0.045
"""Standard deviation of the window over which a residual is averaged, as a share of the film's side."""
PEAK = 5 / 512
"""That of the window of `peak`: the paper's 5 pixels at 512, in its heatmaps."""
FLOOR = 1e-6
"""Added to a mean squared error before its logarithm: about the rounding error of 8-bit levels."""


class _Normals(nn.Module):
    """What is kept of the residuals of normal films."""

    variance: Tensor  # (1, 1, S, S) mean squared error of each pixel, locally averaged

    def __init__(self, size: int) -> None:
        super().__init__()
        self.atypicality = Atypicality()
        self.mixture = ResidualMixture()
        self.register_buffer("variance", torch.ones(1, 1, size, size))


class Reconstructor(Detector):
    """A detector that draws a film anew; what differs is the anomaly.

    `mse`         mean squared error under the mask (Davletshina et al. 2020, section 4)
    `mse_topk`    that of its `topk` largest pixels (the same)
    `atypicality`  how unusual the map of the locally averaged error is among those of normal films (`Atypicality`)
    `weighted`    mean of the squared error / that of normal films at the same place: errors count where they are rare
    `peak`        the largest locally averaged error
    `ssim`        mean structural dissimilarity, (1 - SSIM) / 2
    `mixture`     how unusual local errors are, for the film's contrast at their place (`ResidualMixture`)
    """

    reconstructs = True
    score_names: ClassVar[tuple[str, ...]] = ("mse", "mse_topk", "atypicality", "weighted", "peak", "ssim", "mixture")

    def __init__(self, size: int, topk: float) -> None:
        """`size` is the side of the films in pixels, `topk` as in `topk_mean`."""
        super().__init__()
        self.size, self.topk = size, topk
        self.normals = _Normals(size)

    @abstractmethod
    def reconstruct(self, film: Tensor) -> Tensor:
        """Return the reconstruction, unmasked: (N, 1, S, S) -> (N, 1, S, S) in [0, 1], float32."""

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return every score of the residual; the map is the squared error under the mask."""
        return self.residual_prediction(batch, self.reconstruct(batch.film), maps=maps)

    def preview(self, batch: Batch) -> Prediction:
        """Return the reconstruction and the map."""
        reconstruction = self.reconstruct(batch.film)
        return Prediction({}, squared_error(batch.film, reconstruction, batch.mask), reconstruction)

    def residual_prediction(self, batch: Batch, reconstruction: Tensor, *, maps: bool) -> Prediction:
        """Return the scores named above, for models that have further ones to add."""
        error = squared_error(batch.film, reconstruction, batch.mask)
        scores = {
            "mse": masked_mean(error, batch.mask),
            "mse_topk": topk_mean(error, batch.mask, self.topk),
            "atypicality": self.normals.atypicality(self._pattern(error, batch.mask)),
            "weighted": masked_mean(error / (self.normals.variance + FLOOR), batch.mask),
            "peak": local_mean(error, batch.mask, self.size * PEAK).amax(dim=(1, 2, 3)),
            "ssim": masked_mean(structural_dissimilarity(batch.film, reconstruction, batch.mask), batch.mask),
            "mixture": self.normals.mixture.of_films(batch.film, reconstruction, batch.mask),
        }
        return Prediction(scores, error if maps else None, reconstruction)

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Keep the maps of the normals' residuals, the mean residual of each pixel, and the mixture of local ones."""
        sample = CellSample()
        patterns, total = [], torch.zeros_like(self.normals.variance)
        seen = torch.zeros_like(total)  # films with this pixel under their mask
        for batch in normals:
            reconstruction = self.reconstruct(batch.film)
            for cells in residual_cells(batch.film, reconstruction, batch.mask):
                sample.add(cells)
            error = squared_error(batch.film, reconstruction, batch.mask)
            patterns.append(self._pattern(error, batch.mask).cpu())
            total, seen = total + error.sum(dim=0, keepdim=True), seen + batch.mask.sum(dim=0, keepdim=True)
        self.normals.atypicality.fit(torch.cat(patterns))
        self.normals.mixture.fit(sample.cells().to(total.device))
        # Over the window: a pixel's own mean over some hundred films is noise, and hands aren't registered. A film with
        # the mean error everywhere is added, so that a place that no normal film's mask reaches counts as average.
        mean = total.sum() / seen.sum().clamp(min=1)
        total, seen = (gaussian_blur(values, self.size * WINDOW) for values in (total, seen))
        self.normals.variance = (total + mean) / (seen + 1)

    def _pattern(self, error: Tensor, mask: Tensor) -> Tensor:
        mean = local_mean(error, mask, self.size * WINDOW)
        # `pattern_cells` averages once more, so that a map of other size gives the same kind of pattern.
        return torch.log(pattern_cells(mean, mask) + FLOOR)
