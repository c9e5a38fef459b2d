"""BiGAN with self-attention: Davletshina et al. 2020, section 3.2; Donahue et al. 2017, Dumoulin et al. 2017."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anomaly.data.batch import Batch
from anomaly.models.base import Prediction, Settings, Step
from anomaly.models.reconstructor import Reconstructor
from anomaly.models.search_space import Choice, Range
from anomaly.nn.adversarial import (
    Attention,
    Generator,
    as_generated,
    as_real,
    chance_of_generated,
    normalized,
    saturation,
    signed,
    trunk,
    unfit,
    unit,
    watch,
)
from anomaly.nn.blocks import ToPoint
from anomaly.nn.losses import masked_mean, squared_error

MOMENTUM = 0.19
"""Of batch normalization's running statistics, 1 - .9 ** 2: what two passes a step would give torch's own .1. With one
pass they would lag behind the weights (by a tenth more error where twelve films were learnt by heart)."""


class BiGANConfig(Settings):
    """Settings of the BiGAN; the defaults are the paper's network."""

    width: int = Field(default=64, ge=1, le=256)
    """A 16th of the channels of the widest convolutions (the paper: 64, so 1,024)."""
    latent: int = Field(default=100, ge=1, le=4096)
    """Numbers in the code."""
    attention: Attention = "full"
    """Self-attention in generator, encoder and discriminator; `pooled` halves the side of its keys and values, as
    SAGAN itself does: at 128 px about a quarter of the work."""
    spectral_norm: bool = True
    """Spectral normalization of the convolutions, and of the discriminator's layers, but for each network's last."""
    encoder_norm: Literal["spectral", "batch"] = "spectral"
    """Normalization of the encoder: spectral, of its convolutions, as in the paper; or batch normalization without
    parameters, of its features and code. Under the former, codes of an untrained encoder differ by about .003 between
    films, those of the prior by 1; under the latter, each number has the prior's mean and variance over films."""
    cycle: float = Field(default=0.0, ge=0)
    """Weight of the masked L1 between film and reconstruction, both in [-1, 1], in the generator's and encoder's loss
    (Zenati et al. 2018, ALAD). 0, the paper's, leaves it to the discriminator alone that G(E(x)) resembles x."""
    discriminator_rate: float = Field(default=1.0, gt=0)
    """The discriminator's learning rate as a share of the training's."""
    instance_noise: float = Field(default=0.0, ge=0)
    """Standard deviation, at the first step, of noise on all films that the discriminator sees, in units of [-1, 1]."""
    instance_noise_steps: int = Field(default=178, ge=1)
    """Steps after which the noise has fallen to a half; after n times as many, to 1 / (n + 1)."""
    topk: float = Field(default=200, gt=0)
    """Pixels in `mse_topk`: a number (the paper: 200) or, below 1, a share of the mask."""


class _Encoder(nn.Module):
    """Films (N, 1, S, S) in [-1, 1] -> codes (N, Z) in float32."""

    def __init__(self, config: BiGANConfig, size: int) -> None:
        super().__init__()
        self.trunk = trunk(size, config.width, attention=config.attention, norm=config.encoder_norm)
        self.code = ToPoint(16 * config.width, config.latent, 4)
        batch = config.encoder_norm == "batch"
        self.norm = nn.BatchNorm1d(config.latent, affine=False) if batch else nn.Identity()

    def forward(self, film: Tensor) -> Tensor:
        out: Tensor = self.norm(self.code(self.trunk(film)).flatten(1).float())
        return out


class _Discriminator(nn.Module):
    """Films (N, 1, S, S) in [-1, 1] and their codes (N, Z) -> logits of being an encoded real film (N,)."""

    def __init__(self, config: BiGANConfig, size: int) -> None:
        super().__init__()
        wide, spectral = 16 * config.width, config.spectral_norm
        self.film = nn.Sequential(
            trunk(size, config.width, attention=config.attention, norm="spectral" if spectral else None),
            normalized(ToPoint(wide, wide, 4), spectral),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
        )
        self.code = self._layers([config.latent, wide // 2, wide // 2], spectral)
        self.joint = nn.Sequential(self._layers([wide // 2 * 3, wide, wide], spectral), nn.Linear(wide, 1))

    @staticmethod
    def _layers(widths: list[int], spectral: bool) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Sequential(normalized(nn.Linear(i, o), spectral), nn.LeakyReLU(0.1)) for i, o in pairwise(widths))
        )

    def forward(self, film: Tensor, code: Tensor) -> Tensor:
        out: Tensor = self.joint(torch.cat([self.film(film), self.code(code)], dim=1))
        return out[:, 0].float()


class BiGAN(Reconstructor):
    """A generator z -> x, an encoder x -> z, and a discriminator that tells (x, E(x)) from (G(z), z).

    Where it can't tell them apart, encoder and generator are each other's inverse, and G(E(x)) is a reconstruction.
    """

    Config = BiGANConfig
    presets: ClassVar = {
        "standard": {
            "attention": "pooled",
            "encoder_norm": "batch",
            "cycle": 40.0,
            "discriminator_rate": 4.0,
            "epochs": 200,
            "batch_size": 16,
            "learning_rate": 3e-4,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
        },
        "paper": {
            "instance_noise": 5.0,
            "instance_noise_steps": 178,  # an epoch of the paper's 2,846 films: about 5 / epoch
            "discriminator_rate": 0.005,
            "size": 128,
            "epochs": 500,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
            "keep": "last",
        },
        "fast": {
            "width": 8,
            "attention": "none",
            "encoder_norm": "batch",
            "cycle": 40.0,
            "discriminator_rate": 0.3,
            "epochs": 30,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
        },
    }
    # Not `cycle`: the reconstruction's weight lowers its error, whatever becomes of the game beside it.
    space: ClassVar = {
        "learning_rate": Range(5e-5, 2e-3, log=True),
        "beta1": Range(0.0, 0.9),
        "batch_size": Choice((8, 16, 32)),
        "augmentation": Choice(("none", "flips", "advanced")),
        "discriminator_rate": Range(0.1, 10.0, log=True),
    }
    replayable = True
    self_attention = True
    low_precision = True
    score_names = (*Reconstructor.score_names, "discriminator")

    step: Tensor  # () int64, training steps so far: kept with the weights, so that a resumed decay goes on

    def __init__(self, config: BiGANConfig, size: int) -> None:
        """Build the networks for films of `size` x `size` pixels, a power of two."""
        super().__init__(size, config.topk)
        self.config = config
        self.generator = Generator(
            size, config.latent, config.width, attention=config.attention, spectral=config.spectral_norm
        )
        self.encoder = _Encoder(config, size)
        self.discriminator = _Discriminator(config, size)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for layer in self.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = MOMENTUM

    @classmethod
    def check_size(cls, config: BiGANConfig, size: int) -> str | None:
        """Halvings down to 4: the side is a power of two."""
        return unfit(size, config.width)

    def players(self) -> dict[str, list[nn.Module]]:
        """Generator and encoder move together, against the discriminator."""
        return {"discriminator": [self.discriminator], "generator": [self.generator, self.encoder]}

    def rates(self) -> dict[str, float]:
        """The discriminator has its own."""
        return {"discriminator": self.config.discriminator_rate}

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """Discriminator: lower -log D(x, E(x)) - log(1 - D(G(z), z)). Generator, encoder: -log D(G(z), z) -
        log(1 - D(x, E(x))), which unlike the negative of the former has a gradient while the discriminator wins.
        """
        x = signed(batch.film)
        self.step += 1
        # One pass for both steps: the discriminator's doesn't move encoder and generator, so the graph is still right.
        code, z, reconstruction, generated = self._forward(batch)
        real, fake = self._judged(x, code.detach(), generated.detach(), z)
        yield Step("discriminator", watch=watch(real, fake), real=as_real(real), generated=as_generated(fake))

        real, fake = self._judged(x, code, generated, z)
        l1 = masked_mean((x - reconstruction).abs(), batch.mask).mean()
        yield Step("generator", generated=as_real(fake), encoded=as_generated(real), cycle=self.config.cycle * l1)

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say so where the discriminator wins, or learns nothing."""
        return saturation(figures, rate="discriminator_rate")

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the `mse` score.

        The adversarial losses say who is winning, not how good either is, and a rising one is no worse model. How well
        normal films that no gradient saw are drawn anew does fall as the pair improves, and needs no label.
        """
        return masked_mean(squared_error(batch.film, self.reconstruct(batch.film), batch.mask), batch.mask)

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the scores of the residual and `discriminator`, 1 - D(x, E(x))."""
        x = signed(batch.film)
        code = self.encoder(x)
        discriminator = chance_of_generated(self.discriminator(x, code))
        residual = self.residual_prediction(batch, unit(self.generator(code)), maps=maps)
        return replace(residual, scores=residual.scores | {"discriminator": discriminator})

    def generate(self, count: int) -> Tensor:
        """Return films of codes drawn from the prior."""
        return self.generator.fixed(count, self.config.latent)

    def reconstruct(self, film: Tensor) -> Tensor:
        """Return G(E(x)), unmasked."""
        return unit(self.generator(self.encoder(signed(film))))

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return E(x), z from the prior, G(E(x)) and G(z): (N, Z), (N, Z), (N, 1, S, S), (N, 1, S, S)."""
        code = self.encoder(signed(batch.model_input))
        z = torch.randn_like(code)
        return code, z, *self.generator.both(code, z)

    def _judged(self, film: Tensor, code: Tensor, generated: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the discriminator's logits of (x, E(x)) and of (G(z), z)."""
        films = torch.cat([film, generated])
        if self.config.instance_noise:
            spread = self.config.instance_noise / (1 + self.step / self.config.instance_noise_steps)
            films = films + spread * torch.randn_like(films)
        real, fake = self.discriminator(films, torch.cat([code, z])).chunk(2)
        return real, fake
