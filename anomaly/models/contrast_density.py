"""Training-free floor: how usual a film's local contrast is among those of normal films."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Settings, Step
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
        self.config = config
        self.atypicality = Atypicality()

    @classmethod
    def check_size(cls, config: ContrastDensityConfig, size: int) -> str | None:
        """Any size that a cache has."""
        return None

    def players(self) -> dict[str, list[nn.Module]]:
        """Nothing is trained."""
        return {}

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """No step."""
        return iter(())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Nothing is chosen: 0."""
        return torch.zeros(len(batch.film), device=batch.film.device)

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Keep the normals' maps."""
        self.atypicality.fit(torch.cat([self._contrast(batch) for batch in normals]))

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Return how unusual the map of local contrast is, in standard deviations of normal films."""
        return {"atypicality": self.atypicality(self._contrast(batch))}

    def anomaly_map(self, batch: Batch) -> Tensor:
        """Return how far each cell's contrast lies from the normals', squared, in their standard deviations."""
        maps = self.atypicality.maps  # (R, D)
        off = (self._contrast(batch) - self.atypicality.center) / maps.std(dim=0, correction=0).clamp(min=1e-3)
        grid = off.square().nan_to_num(0).reshape(-1, 1, GRID, GRID)
        return interpolate(grid, size=batch.film.shape[2:], mode="bilinear", align_corners=False) * batch.mask

    def reconstruct(self, batch: Batch) -> None:
        """Nothing is drawn."""
        return

    def _contrast(self, batch: Batch) -> Tensor:
        levels = torch.round(batch.film[:, 0] * 65535).cpu().numpy().astype(np.uint16)
        made = [
            local_contrast(film, mask, clip=self.config.clip_limit, tiles=self.config.tiles, sigma=self.config.sigma)
            for film, mask in zip(levels, batch.mask[:, 0].cpu().numpy(), strict=True)
        ]
        unit = torch.from_numpy(np.stack(made).astype(np.float32) / 65535).to(batch.film.device)
        return cells(unit[:, None], batch.mask)
