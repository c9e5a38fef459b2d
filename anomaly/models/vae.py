"""Variational autoencoder: Davletshina et al. 2020, section 3.1 and their table of layers; Kingma & Welling 2014."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from anomaly.data.batch import Batch
from anomaly.models.base import Prediction, Settings, Step
from anomaly.models.reconstructor import Reconstructor
from anomaly.models.search_space import Choice, Range
from anomaly.nn.losses import gaussian_kl, masked_mean, squared_error, topk_mean

COLLAPSED = 0.1
"""Nats: a code that says less than this of a film, all its numbers together, says nothing."""


class VAEConfig(Settings):
    """Settings of the variational autoencoder; the defaults are the paper's network."""

    width: int = Field(default=8, ge=1, le=64)
    """A 64th of the channels of the last convolution (the paper: 8, so 512); each one before has half as many."""
    latent: int = Field(default=1024, ge=1, le=8192)
    """Numbers in the code."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the KL term: 1 is the evidence lower bound itself, any other Higgins et al. 2017."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the weight of the KL term grows from 0 to `beta` (Sønderby et al. 2016)."""
    topk: float = Field(default=200, gt=0)
    """Pixels in `mse_topk` and `l1_topk`: a number (the paper: 200) or, below 1, a share of the mask."""


class VAE(Reconstructor):
    """Convolutions 4/2 without padding down to 2 x 2, a Gaussian code, and back: (N, 1, S, S) -> (N, 1, S, S).

    A film of 512 px takes seven of them, as in the paper; each halving of the film takes one less.
    """

    Config = VAEConfig
    presets: ClassVar = {
        "standard": {"epochs": 100, "batch_size": 16, "learning_rate": 1e-3, "augmentation": "flips", "patience": 15},
        "paper": {
            "size": 512,
            "epochs": 500,
            "batch_size": 32,
            "learning_rate": 5e-5,
            "augmentation": "flips",
            "patience": 0,
            "keep": "last",
        },
        "fast": {
            "width": 4,
            "latent": 128,
            "epochs": 30,
            "learning_rate": 2e-3,
            "augmentation": "flips",
            "patience": 10,
        },
    }
    # Not `beta`, which weighs the loss itself. A wider code pays for itself there, so `latent` can be chosen by it.
    space: ClassVar = {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "beta1": Range(0.5, 0.95),
        "batch_size": Choice((8, 16, 32)),
        "augmentation": Choice(("none", "flips", "advanced")),
        "width": Choice((4, 8, 16)),
        "latent": Range(64, 2048, log=True, integer=True),
    }
    replayable = True
    low_precision = True
    score_names = (*Reconstructor.score_names, "mse_kld", "l1", "l1_kld", "l1_topk", "kld")

    step: Tensor  # () int64, training steps so far: kept with the weights, so that a resumed warm-up goes on

    def __init__(self, config: VAEConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels, a power of two."""
        super().__init__(size, config.topk)
        self.config = config
        layers = size.bit_length() - 3  # 512 -> 7
        width = [config.width * 64 >> (layers - 1 - i) for i in range(layers)]  # 8, 16, ..., 512
        down = [
            nn.Sequential(nn.Conv2d(i, o, 4, 2), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in zip([1, *width], width, strict=False)
        ]
        self.encoder = nn.Sequential(*down, nn.Flatten())  # (N, 1, S, S) -> (N, 4 C)
        self.mean, self.logvar = (nn.Linear(4 * width[-1], config.latent) for _ in range(2))  # -> (N, Z)
        back = width[::-1]
        up = [
            nn.Sequential(nn.ConvTranspose2d(i, o, 4, 2), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in pairwise(back)
        ]
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, 4 * width[-1]),
            nn.Unflatten(1, (width[-1], 2, 2)),
            *up,
            nn.ConvTranspose2d(back[-1], 1, 6, 2),  # 6 where the others have 4: this makes the side S again
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @classmethod
    def check_size(cls, config: VAEConfig, size: int) -> str | None:
        """Halvings down to 2: the side is a power of two."""
        layers = size.bit_length() - 3
        if size < 16 or size & (size - 1):
            return "needs a film side that is a power of two"
        return (
            None if config.width * 64 >> (layers - 1) else f"needs --set width={2 ** (layers - 7)} or more at {size} px"
        )

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"autoencoder": [self.encoder, self.mean, self.logvar, self.decoder]}

    def encode(self, film: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the code: (N, 1, S, S) -> (N, Z), (N, Z) in float32."""
        features = self.encoder(film)
        return self.mean(features).float(), self.logvar(features).float()

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """Lower the negative evidence lower bound of each film, in nats a pixel of its mask."""
        mean, logvar = self.encode(batch.model_input)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        weight = self.config.beta * ((self.step + 1) / max(1, self.config.warmup)).clamp(max=1)
        self.step += 1
        reconstruction = masked_mean(self._nats(batch.film, self.decoder(z)), batch.mask)  # (N,)
        kl = gaussian_kl(mean, logvar) / _area(batch.mask)  # (N,)
        yield Step(
            "autoencoder",
            watch={"kl_nats": gaussian_kl(mean, logvar).mean()},
            reconstruction=reconstruction.mean(),
            kl=(weight * kl).mean(),
        )

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say so where the code tells nothing of the film."""
        if figures["kl_nats"] >= COLLAPSED:
            return []
        return [
            f"the posterior collapses (the code says {figures['kl_nats']:.2g} nats about a film): every film gets the "
            "same reconstruction; take a lower --set beta=, or --set warmup= of some epochs' steps"
        ]

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the negative lower bound at the code's mean, in nats a pixel, with the full weight of the KL term."""
        mean, logvar = self.encode(batch.film)
        reconstruction = masked_mean(self._nats(batch.film, self.decoder(mean)), batch.mask)
        return reconstruction + self.config.beta * gaussian_kl(mean, logvar) / _area(batch.mask)

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the scores of the residual and the paper's own, from the code's mean rather than from a random draw.

        `l1`, the mean absolute error under the mask, and `l1_topk`, that of its largest pixels; `kld` the KL divergence
        of the code in nats; `_kld` the error plus the divergence per pixel of the mask, so that both count by the
        pixel.
        """
        mean, logvar = self.encode(batch.film)
        reconstruction = torch.sigmoid(self.decoder(mean).float())
        squared = squared_error(batch.film, reconstruction, batch.mask)
        absolute, kld = squared.sqrt(), gaussian_kl(mean, logvar)
        residual, area = self.residual_prediction(batch, reconstruction, maps=maps), _area(batch.mask)
        l1 = masked_mean(absolute, batch.mask)
        own = {
            "mse_kld": residual.scores["mse"] + kld / area,
            "l1": l1,
            "l1_kld": l1 + kld / area,
            "l1_topk": topk_mean(absolute, batch.mask, self.config.topk),
            "kld": kld,
        }
        return replace(residual, scores=residual.scores | own)

    def generate(self, count: int) -> Tensor:
        """Return films of codes drawn from the prior."""
        codes = torch.randn(count, self.config.latent, generator=torch.Generator().manual_seed(0))
        return torch.sigmoid(self.decoder(codes.to(self.mean.weight.device)).float())

    def reconstruct(self, film: Tensor) -> Tensor:
        """Return the reconstruction from the code's mean, unmasked."""
        return torch.sigmoid(self.decoder(self.encode(film)[0]).float())

    @staticmethod
    def _nats(film: Tensor, logits: Tensor) -> Tensor:
        """Return -log p(film | code) of each pixel, in nats, for grey as the chance of white: (N, 1, S, S)."""
        return binary_cross_entropy_with_logits(logits.float(), film, reduction="none")


def _area(mask: Tensor) -> Tensor:
    return mask.sum(dim=(1, 2, 3)).clamp(min=1)  # (N,)
