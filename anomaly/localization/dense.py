"""Two dense layers that segment the foreground: the baseline that a U-Net is measured against (Bruhn and Mahmood)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from anomaly.localization.segmentation import Loss, SegmentationModel
from anomaly.models.base import Settings
from anomaly.models.search_space import Range


class DenseConfig(Settings):
    """Settings of the dense baseline; the defaults are the source's network."""

    hidden: int = Field(default=1024, ge=1, le=65536)
    """Units of the hidden layer."""
    loss: Loss = "dice"
    """`dice`, as in the source, or its sum with the binary cross-entropy."""


class Dense(SegmentationModel):
    """Flatten, hidden layer, one unit per pixel: film (N, 1, S, S) -> logits of the foreground (N, 1, S, S)."""

    Config = DenseConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 200,
            "batch_size": 8,
            "learning_rate": 5e-5,
            "augmentation": "none",
            "patience": 30,
        },
        "fast": {"hidden": 256, "epochs": 20, "batch_size": 8, "learning_rate": 2e-4, "augmentation": "none"},
    }
    space: ClassVar = {
        "hidden": Range(128, 2048, log=True, integer=True),
        "beta1": Range(0.1, 0.95),
        "learning_rate": Range(1e-5, 1e-3, log=True),
    }

    def __init__(self, config: DenseConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels, which decides the number of its weights."""
        super().__init__(config.loss)
        self.config, self.size = config, size
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(size * size, config.hidden), nn.ReLU(), nn.Linear(config.hidden, size * size)
        )

    @classmethod
    def check_size(cls, config: DenseConfig, size: int) -> str | None:
        """Every pixel has its own weights: a large film would take billions of them."""
        return None if size <= 256 else "takes film sides up to 256: its weights grow with the fourth power of the side"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"segmenter": [self.layers]}

    def forward(self, film: Tensor) -> Tensor:
        """Return logits: (N, 1, S, S) -> (N, 1, S, S), float32."""
        logits: Tensor = self.layers(film)
        return logits.float().reshape(film.shape)
