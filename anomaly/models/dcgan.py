"""DCGAN: Davletshina et al. 2020, section 3.2 and their table of layers; Radford et al. 2016, Salimans et al. 2016."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Prediction, Settings, Step
from anomaly.models.search_space import Choice, Range
from anomaly.nn.adversarial import (
    MinibatchDiscrimination,
    as_real,
    chance_of_generated,
    halvings,
    normalized,
    saturation,
    signed,
    unit,
    watch,
)
from anomaly.nn.blocks import Convolution, FromPoint, ToPoint, TransposedConvolution
from anomaly.nn.losses import masked_mean

SLOPE = 0.01
"""Of the LeakyReLUs below zero."""
KERNELS = 16
"""Features of minibatch discrimination."""
KERNEL_WIDTH = 128
"""Numbers of which each of them is a distance."""
DRAWN = 64
"""Generated films that validation compares with."""


class DCGANConfig(Settings):
    """Settings of the DCGAN; the defaults are the paper's network."""

    width: int = Field(default=16, ge=1, le=64)
    """A 64th of the channels of the generator's first convolution (the paper: 16, so 1,024) and a 32nd of those of the
    discriminator's last (512)."""
    latent: int = Field(default=2048, ge=1, le=8192)
    """Numbers in the code."""
    batch_norm: bool = False
    """Batch normalization in the generator, before every LeakyReLU (Radford et al. 2016; the paper has none). Under
    spectral normalization alone a code hardly reaches the film, and all films come out alike. Never in the
    discriminator: it sees real and generated films in batches of their own, whose means would tell them apart."""
    spectral_norm: bool = True
    """Spectral normalization of every layer of both players."""
    soft_labels: float = Field(default=0.01, ge=0, lt=0.5)
    """The discriminator's targets lie at random up to this far from 0 and 1; 0 makes them hard."""
    discriminator_rate: float = Field(default=1.0, gt=0)
    """The discriminator's learning rate as a share of the training's, which is the generator's."""
    references: int = Field(default=128, ge=1, le=4096)
    """Normal films of the training that minibatch discrimination compares a film with when it is scored."""


def _initialized(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, spectral: bool) -> nn.Module:
    """Return the layer with weights from N(0, .02²), biases 0, as Radford et al. 2016 begin."""
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return normalized(layer, spectral)


class _Generator(nn.Module):
    """Codes (N, Z) -> films (N, 1, S, S) in [-1, 1], float32."""

    def __init__(self, config: DCGANConfig, size: int) -> None:
        super().__init__()
        channels = [config.latent] + [config.width * 64 >> i for i in range(halvings(size))]
        layers: list[nn.Module] = [nn.Unflatten(1, (config.latent, 1, 1))]
        for i, (before, after) in enumerate(pairwise(channels)):
            bias = not config.batch_norm
            grow: nn.ConvTranspose2d
            if i:
                grow = TransposedConvolution(before, after, 4, 2, padding=1, bias=bias)
            else:
                grow = FromPoint(before, after, 4, bias=bias)
            layers.append(_initialized(grow, config.spectral_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
        last = nn.ConvTranspose2d(channels[-1], 1, 4, 2, padding=1)
        self.layers = nn.Sequential(*layers, _initialized(last, config.spectral_norm))

    def forward(self, z: Tensor) -> Tensor:
        """Draw the film of each code."""
        return torch.tanh(self.layers(z).float())


class _Discriminator(nn.Module):
    """Films (N, 1, S, S) in [-1, 1] -> logits of being real (N,), float32."""

    def __init__(self, config: DCGANConfig, size: int) -> None:
        super().__init__()
        count = halvings(size) + 1
        channels = [1] + [config.width * 32 >> (count - 1 - i) for i in range(count)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(channels)):
            inner = i < count - 1
            shrink = Convolution(before, after, 4, 2, padding=1) if inner else ToPoint(before, after, 4)
            layers += [_initialized(shrink, config.spectral_norm), nn.LeakyReLU(SLOPE, inplace=True)]
        self.features = nn.Sequential(*layers, nn.Flatten())  # (N, 1, S, S) -> (N, A)
        self.closeness = MinibatchDiscrimination(channels[-1], KERNELS, KERNEL_WIDTH, config.references)  # -> A + B
        self.logit = _initialized(nn.Linear(channels[-1] + KERNELS, 1), config.spectral_norm)

    def forward(self, film: Tensor) -> Tensor:
        """Judge each film, in training beside the others of its batch."""
        return self._logits(self.features(film))

    def judged(self, *films: Tensor) -> list[Tensor]:
        """Judge several batches in one pass, in training each film beside those of its own batch."""
        features = self.features(torch.cat(films)).split([len(batch) for batch in films])
        return [self._logits(own) for own in features]

    def _logits(self, features: Tensor) -> Tensor:
        out: Tensor = self.logit(self.closeness(features))
        return out[:, 0].float()


class DCGAN(Detector):
    """A generator of normal films and a discriminator that tells them from real ones, which then scores.

    The generator takes one transposed convolution a doubling from 4 x 4 pixels, the discriminator one convolution a
    halving: seven at 512 px, as in the paper, each halving of the film one less.

    A generated film has no mask and gets none. Under the mask of some real film it would have that film's outline and
    its own anatomy, which the discriminator can tell from a hand by their mismatch and the generator, which isn't shown
    the mask, can't mend; it would also never learn an outline. So it is judged as drawn, and learns by itself that
    films are black off the hand, as it learns the rest; where the mask is the whole film, as for chests, there is
    nothing to learn. Real films are black off their mask in training and in scoring, so nothing there moves a score.
    """

    Config = DCGANConfig
    presets: ClassVar = {
        "standard": {
            "batch_norm": True,
            "epochs": 200,
            "batch_size": 16,
            "learning_rate": 2e-4,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
        },
        "paper": {
            "discriminator_rate": 0.01,
            "size": 512,
            "epochs": 500,
            "batch_size": 80,
            "learning_rate": 1e-3,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
            "keep": "last",
        },
        "fast": {
            "width": 4,
            "latent": 128,
            "batch_norm": True,
            "epochs": 30,
            "batch_size": 16,
            "learning_rate": 5e-4,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
        },
    }
    space: ClassVar = {
        "learning_rate": Range(5e-5, 2e-3, log=True),
        "beta1": Range(0.0, 0.9),
        "batch_size": Choice((8, 16, 32)),
        "augmentation": Choice(("none", "flips", "advanced")),
        "discriminator_rate": Range(0.1, 10.0, log=True),
        "soft_labels": Range(0.0, 0.1),
        "latent": Range(64, 2048, log=True, integer=True),
    }
    replayable = True
    low_precision = True
    score_names = ("discriminator",)

    def __init__(self, config: DCGANConfig, size: int) -> None:
        """Build the networks for films of `size` x `size` pixels, a power of two."""
        super().__init__()
        self.config = config
        self.generator = _Generator(config, size)
        self.discriminator = _Discriminator(config, size)
        self._drawn: Tensor | None = None  # (64, 1, S / 4, S / 4) what validation compares with

    @classmethod
    def check_size(cls, config: DCGANConfig, size: int) -> str | None:
        """Halvings down to 4: the side is a power of two."""
        if size < 16 or size & (size - 1):
            return "needs a film side that is a power of two, 16 or more"
        least = 2 ** max(0, halvings(size) - 5)
        return None if config.width >= least else f"needs --set width={least} or more at {size} px"

    def players(self) -> dict[str, list[nn.Module]]:
        """One against the other."""
        return {"discriminator": [self.discriminator], "generator": [self.generator]}

    def rates(self) -> dict[str, float]:
        """The discriminator has its own."""
        return {"discriminator": self.config.discriminator_rate}

    def train(self, mode: bool = True) -> Self:
        """Change the mode, and forget the films drawn for validation: weights may have moved since."""
        self._drawn = None
        return super().train(mode)

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """Discriminator: lower -log D(x) - log(1 - D(G(z))), with soft labels. Generator: lower -log D(G(z)), hard.

        The paper calls generated films 1 and real ones 0; here D is the probability of being real, the same loss.
        """
        # Drawn once for both steps: the discriminator's doesn't move the generator, so the graph is still right.
        drawn = self.generator(torch.randn(len(batch.film), self.config.latent, device=batch.film.device))
        real, fake = self.discriminator.judged(signed(batch.film), drawn.detach())
        softness = self.config.soft_labels * torch.rand(2, len(real), device=real.device)
        yield Step(
            "discriminator",
            watch=watch(real, fake),
            real=binary_cross_entropy_with_logits(real, 1 - softness[0]),
            generated=binary_cross_entropy_with_logits(fake, softness[1]),
        )
        yield Step("generator", generated=as_real(self.discriminator(drawn)))

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say so where the discriminator wins, or learns nothing."""
        return saturation(figures, rate="discriminator_rate")

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error under the mask to the closest of 64 generated films, at a quarter of the side.

        The adversarial losses say who is winning, not how good either is. How near the generator comes to normal films
        that no gradient saw falls as it covers more of them, rises when it collapses onto a few, and needs no label;
        coarse films, since no generator hits a film's fine grain. It says nothing of the discriminator but that it has
        taught this generator.
        """
        if self._drawn is None:  # once an epoch
            self._drawn = avg_pool2d(self.generate(DRAWN), 4)
        film, cover = avg_pool2d(batch.film, 4), avg_pool2d(batch.mask.float(), 4)  # (N, 1, S / 4, S / 4)
        return torch.stack([masked_mean((film - one).square(), cover) for one in self._drawn]).amin(dim=0)

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Keep the features of normal films that minibatch discrimination compares with."""
        features = [self.discriminator.features(signed(batch.film)) for batch in normals]
        self.discriminator.closeness.freeze(torch.cat(features))

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return `discriminator`, 1 - D(x): the probability of being generated. It doesn't say where."""
        return Prediction({"discriminator": chance_of_generated(self.discriminator(signed(batch.film)))})

    def generate(self, count: int) -> Tensor:
        """Return films of codes drawn from the prior."""
        codes = torch.randn(count, self.config.latent, generator=torch.Generator().manual_seed(0))
        return unit(self.generator(codes.to(next(self.parameters()).device)))
