"""U-Net that segments the foreground of a film: four levels, dropout, Dice loss (Ronneberger et al. 2015).

The layers are those of Bruhn and Mahmood, "X-ray image segmentation for fracture prediction": 32, 64, 128 and 128
channels, two convolutions per level with dropout between them, nearest upsampling, concatenation.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from anomaly.localization.segmentation import Loss, SegmentationModel
from anomaly.models.base import Settings
from anomaly.models.search_space import Choice, Range
from anomaly.nn.unet import decode, encode

Initializer = Literal["he_normal", "he_uniform", "glorot_normal", "glorot_uniform"]


INITIALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "he_normal": nn.init.kaiming_normal_,
    "he_uniform": nn.init.kaiming_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "glorot_uniform": nn.init.xavier_uniform_,
}


class UNetConfig(Settings):
    """Settings of the U-Net; the defaults are the source's network."""

    width: int = Field(default=32, ge=1, le=256)
    """Channels of the first level; the others have 2, 4 and 4 times as many."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout probability between the two convolutions of a level."""
    initializer: Initializer = "he_normal"
    """How the weights of convolutions are initialized."""
    loss: Loss = "dice+bce"
    """`dice` alone, as in the source, can collapse to an empty mask; with the binary cross-entropy it does not."""


class UNet(SegmentationModel):
    """Four levels down and up with skip connections: film (N, 1, S, S) -> logits of the foreground (N, 1, S, S)."""

    Config = UNetConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 40,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "augmentation": "flips",
            "schedule": "cosine",
            "patience": 0,
        },
        "femur": {
            "epochs": 100,
            "batch_size": 8,
            "learning_rate": 3e-4,
            "augmentation": "none",
            "loss": "dice",
            "patience": 20,
        },
        "fast": {
            "width": 16,
            "epochs": 16,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "augmentation": "flips",
            "schedule": "cosine",
            "patience": 0,
        },
    }
    space: ClassVar = {
        "initializer": Choice(("he_normal", "glorot_uniform")),
        "dropout": Range(0.1, 0.5),
        "beta1": Range(0.1, 0.95),
        "beta2": Range(0.99, 0.9995),
        "learning_rate": Range(1e-4, 5e-3, log=True),
    }

    def __init__(self, config: UNetConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels; its weights do not depend on the size."""
        super().__init__(config.loss)
        self.config = config
        a, b, c, d = (config.width * m for m in (1, 2, 4, 4))
        self.down = nn.ModuleList(self._level(i, o) for i, o in ((1, a), (a, b), (b, c), (c, d)))
        self.up = nn.ModuleList(self._level(i, o) for i, o in ((d + c, b), (b + b, b), (b + a, a)))
        self.last = nn.Conv2d(a, 1, 1)
        initialize = INITIALIZERS[config.initializer]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                initialize(module.weight)
                nn.init.zeros_(module.bias)

    def _level(self, channels: int, features: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, features, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(self.config.dropout),
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    @classmethod
    def check_size(cls, config: UNetConfig, size: int) -> str | None:
        """The film is halved three times."""
        return None if size % 8 == 0 else "needs a film side that is a multiple of 8"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"segmenter": [self.down, self.up, self.last]}

    def forward(self, film: Tensor) -> Tensor:
        """Return logits: (N, 1, S, S) -> (N, 1, S, S), float32."""
        logits: Tensor = self.last(decode(self.up, encode(self.down, film)))
        return logits.float()
