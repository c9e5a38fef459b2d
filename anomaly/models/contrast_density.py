"""Training-free floor: how usual a film's local contrast is among those of normal films."""

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Prediction, Settings
from anomaly.nn.atypicality import GRID, Atypicality, cells
from preprocessing.steps import local_contrast


class ContrastDensityConfig(Settings):
    """Settings of the local contrast; see `preprocessing.steps.local_contrast`."""

    clip_limit: float = Field(default=2.0, gt=0)
    """Clip limit of the adaptive histogram equalization."""
    tiles: int = Field(default=8, ge=1, le=64)
    """Its tiles a side."""
    sigma: float = Field(default=0.045, gt=0, le=0.5)
    """Standard deviation of the window of the local contrast, as a share of the film's side."""


class ContrastDensity(Detector):
    """Learns nothing: keeps the normals' maps of local contrast, and scores by their `Atypicality`.

    The floor under every table: a network that does not beat it has learnt no more than where films are rich in detail.
    """

    Config = ContrastDensityConfig
    presets: ClassVar = {name: {"epochs": 1, "augmentation": "none"} for name in ("standard", "fast")}
    score_names = ("atypicality",)
    map_unit = "squared standard deviations of local contrast"

    def __init__(self, config: ContrastDensityConfig, size: int) -> None:
        """Films of any size: the map has 14 x 14 cells."""
        super().__init__()
        self.config, self.size = config, size
        self.atypicality = Atypicality()

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Keep the normals' maps."""
        self.atypicality.fit(torch.cat([self._contrast(batch) for batch in normals]))

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return how unusual the map of local contrast is, in standard deviations of normal films.

        The map is how far each cell's contrast lies from the normals', squared, in their standard deviations.
        """
        contrast = self._contrast(batch)  # (N, D)
        scores = {"atypicality": self.atypicality(contrast)}
        if not maps:
            return Prediction(scores)
        deviation = self.atypicality.maps.std(dim=0, correction=0).clamp(min=1e-3)  # (D,)
        grid = ((contrast - self.atypicality.center) / deviation).square().nan_to_num(0).reshape(-1, 1, GRID, GRID)
        fine = interpolate(grid, size=batch.film.shape[2:], mode="bilinear", align_corners=False)
        return Prediction(scores, fine * batch.mask)

    def _contrast(self, batch: Batch) -> Tensor:
        levels = torch.round(batch.film[:, 0] * 65535).cpu().numpy().astype(np.uint16)
        made = [
            local_contrast(film, mask, clip=self.config.clip_limit, tiles=self.config.tiles, sigma=self.config.sigma)
            for film, mask in zip(levels, batch.mask[:, 0].cpu().numpy(), strict=True)
        ]
        unit = torch.from_numpy(np.stack(made).astype(np.float32) / 65535).to(batch.film.device)
        return cells(unit[:, None], batch.mask)
