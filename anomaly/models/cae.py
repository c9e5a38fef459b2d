"""Convolutional autoencoder: Davletshina et al. 2020, section 3.1 and their table of layers."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anomaly.data.batch import Batch
from anomaly.models.base import Settings, Step
from anomaly.models.reconstructor import Reconstructor
from anomaly.models.search_space import Choice, Range
from anomaly.nn.blocks import convolution, upconvolution
from anomaly.nn.losses import masked_mean, squared_error


class CAEConfig(Settings):
    """Settings of the convolutional autoencoder; the defaults are the paper's network."""

    width: int = Field(default=16, ge=1, le=128)
    """Channels of the first layer; the others are fixed multiples of it (the paper: 16)."""
    code_channels: int = Field(default=0, ge=0, le=4096)
    """Channels of the code, at 1/32 of the film's side; 0 is 32 x width (the paper: 512, one number for two pixels)."""
    batch_norm: bool = True
    """Batch normalization before every ReLU."""
    output: Literal["sigmoid", "relu-tanh"] = "sigmoid"
    """Last activation. The paper's tanh(relu(x)) has no gradient wherever its input is negative, so a pixel that
    starts black stays black; the sigmoid covers the same range (0, 1) and always has one."""
    weigh: Literal["film", "pixel"] = "film"
    """Whether each film counts alike in the loss, or each pixel under a mask (the paper: larger hands weigh more)."""
    topk: float = Field(default=200, gt=0)
    """Pixels in `mse_topk`: a number (the paper: 200) or, below 1, a share of the mask."""


class CAE(Reconstructor):
    """Ten convolutions down to a code of 1/32 of the side, six transposed ones back: (N, 1, S, S) -> (N, 1, S, S)."""

    Config = CAEConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 100,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "augmentation": "advanced",
            "patience": 15,
        },
        "paper": {
            "size": 512,
            "epochs": 1000,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "augmentation": "advanced",
            "patience": 0,
            "keep": "last",
            "output": "relu-tanh",
            "weigh": "pixel",
        },
        "fast": {
            "width": 8,
            "epochs": 30,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "augmentation": "flips",
            "patience": 10,
        },
    }
    # Not `width` and `code_channels`: the wider the code, the lower the loss, up to a copy that has no anomalies.
    space: ClassVar = {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "beta1": Range(0.5, 0.95),
        "batch_size": Choice((8, 16, 32)),
        "augmentation": Choice(("none", "flips", "advanced")),
        "weigh": Choice(("film", "pixel")),
    }
    replayable = True
    takes_crops = True
    low_precision = True

    def __init__(self, config: CAEConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels; the layers are the same at every size."""
        super().__init__(size, config.topk)
        self.config = config
        norm = config.batch_norm
        width = [config.width * m for m in (1, 2, 2, 4, 4, 8, 8, 16, 16)] + [config.code_channels or config.width * 32]
        self.encoder = nn.Sequential(
            *(
                convolution(i, o, kernel, stride, batch_norm=norm)
                for i, o, (kernel, stride) in zip([1, *width], width, [(3, 1), (4, 2)] * 5, strict=False)
            )
        )  # (N, 1, S, S) -> (N, 32 width, S/32, S/32)
        back = [config.width * m for m in (16, 8, 4, 2, 1)]
        self.decoder = nn.Sequential(
            *(upconvolution(i, o, batch_norm=norm) for i, o in zip([width[-1], *back], back, strict=False)),
            nn.ConvTranspose2d(back[-1], 1, 3, 1, padding=1, bias=not norm),
        )

    @classmethod
    def check_size(cls, config: CAEConfig, size: int) -> str | None:
        """Five halvings: the side is a multiple of 32."""
        return None if size >= 32 and size % 32 == 0 else "needs a film side that is a multiple of 32"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"autoencoder": [self.encoder, self.decoder]}

    def forward(self, film: Tensor) -> Tensor:
        """Return the reconstruction: (N, 1, S, S) -> (N, 1, S, S) in [0, 1], float32."""
        x: Tensor = self.decoder(self.encoder(film)).float()
        return torch.sigmoid(x) if self.config.output == "sigmoid" else torch.tanh(torch.relu(x))

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """Lower the masked squared error: L_M of the paper, with the square that its formula lost."""
        error = squared_error(batch.film, self(batch.model_input), batch.mask)
        if self.config.weigh == "pixel":
            yield Step("autoencoder", mse=error.sum() / batch.mask.sum().clamp(min=1))
        else:
            yield Step("autoencoder", mse=masked_mean(error, batch.mask).mean())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the `mse` score."""
        return masked_mean(squared_error(batch.film, self(batch.film), batch.mask), batch.mask)

    def reconstruct(self, film: Tensor) -> Tensor:
        """Return `forward`."""
        out: Tensor = self(film)
        return out
