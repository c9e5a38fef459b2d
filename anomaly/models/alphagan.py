"""alpha-GAN with self-attention: Davletshina et al. 2020, section 3.2; Rosca et al. 2017."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
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
    MinibatchDiscrimination,
    as_generated,
    as_real,
    chance_of_generated,
    normalized,
    on_black,
    saturation,
    signed,
    trunk,
    unfit,
    unit,
    watch,
)
from anomaly.nn.blocks import ToPoint
from anomaly.nn.losses import gaussian_kl, masked_mean, squared_error

COLLAPSED = 0.1
"""Nats: a code that says less than this of a film, all its numbers together, says nothing."""
LOGVAR = (-8.0, 4.0)
"""Limits of the code's log-variance: standard deviations of 0.02 to 7."""
KERNELS, KERNEL_WIDTH, REFERENCES = 64, 16, 128
"""Minibatch discrimination: features, which fill 4 maps of 4 x 4; numbers behind each; films that scoring looks at."""


class AlphaGANConfig(Settings):
    """Settings of the alpha-GAN; the defaults are the paper's network."""

    width: int = Field(default=64, ge=1, le=256)
    """A 16th of the channels of the widest convolutions (the paper: 64, so 1,024)."""
    latent: int = Field(default=100, ge=1, le=4096)
    """Numbers in the code."""
    attention: Attention = "full"
    """Self-attention in generator, encoder and discriminator; `pooled` halves the side of its keys and values, as
    SAGAN itself does: at 128 px about a quarter of the work."""
    spectral_norm: bool = True
    """Spectral normalization of all convolutions but the generator's last and the encoder's two heads."""
    encoder_norm: Literal["spectral", "batch"] = "spectral"
    """Normalization of the encoder: spectral, of its convolutions, as in the paper; or batch normalization without
    parameters, of its features and code. Under the former, codes of an untrained encoder differ by about .003 between
    films, those of the prior by 1; under the latter, each number has the prior's mean and variance over films."""
    joint: bool = False
    """Whether encoder and generator move in one step, rather than in turns as in the paper: in turns each step undoes
    part of the other's (on twelve films at a rate of .005, 80 steps took the L1 to .22 in turns, to .09 at once)."""
    l1_weight: float = Field(default=0.01, ge=0)
    """Weight of the masked L1 between film and reconstruction, both in [-1, 1] (Rosca's lambda; the paper: .01)."""
    discriminator_rate: float = Field(default=1.0, gt=0)
    """The discriminator's learning rate as a share of the training's."""
    code_rate: float = Field(default=1.0, gt=0)
    """The code discriminator's learning rate as a share of the training's."""
    topk: float = Field(default=200, gt=0)
    """Pixels in `mse_topk`: a number (the paper: 200) or, below 1, a share of the mask."""


class _Encoder(nn.Module):
    """Films (N, 1, S, S) in [-1, 1] -> mean and log-variance of the code, (N, Z) each, in float32."""

    def __init__(self, config: AlphaGANConfig, size: int) -> None:
        super().__init__()
        self.trunk = trunk(size, config.width, attention=config.attention, norm=config.encoder_norm)
        self.mean, self.logvar = (ToPoint(16 * config.width, config.latent, 4) for _ in range(2))
        batch = config.encoder_norm == "batch"
        self.norm = nn.BatchNorm1d(config.latent, affine=False) if batch else nn.Identity()

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(film)
        mean, logvar = (head(features).flatten(1).float() for head in (self.mean, self.logvar))
        return self.norm(mean), logvar.clamp(*LOGVAR)


class _Discriminator(nn.Module):
    """Films (N, 1, S, S) in [-1, 1] -> logits of being real (N,), by the film and by how alike its batch is."""

    def __init__(self, config: AlphaGANConfig, size: int) -> None:
        super().__init__()
        wide = 16 * config.width
        self.trunk = trunk(
            size, config.width, attention=config.attention, norm="spectral" if config.spectral_norm else None
        )
        self.minibatch = MinibatchDiscrimination(wide, KERNELS, KERNEL_WIDTH, REFERENCES)
        self.last = normalized(ToPoint(wide + KERNELS // 16, 1, 4), config.spectral_norm)

    def forward(self, film: Tensor) -> Tensor:
        features = self.trunk(film)
        return self._logits(features, self._alike(features.mean(dim=(2, 3))))

    def judged(self, *films: Tensor) -> list[Tensor]:
        """Judge several batches in one pass, in training each film beside those of its own batch."""
        features = self.trunk(torch.cat(films))
        counts = [len(batch) for batch in films]
        alike = torch.cat([self._alike(own) for own in torch.split(features.mean(dim=(2, 3)), counts)])
        return list(torch.split(self._logits(features, alike), counts))

    def _logits(self, features: Tensor, alike: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([features, alike], dim=1))
        return out.flatten().float()

    def _alike(self, pooled: Tensor) -> Tensor:
        features: Tensor = self.minibatch(pooled)[:, pooled.shape[1] :]
        return features.view(-1, KERNELS // 16, 4, 4)

    def pooled(self, film: Tensor) -> Tensor:
        """Return what minibatch discrimination compares films by: (N, 16 width)."""
        features: Tensor = self.trunk(film)
        return features.mean(dim=(2, 3))


class AlphaGAN(Reconstructor):
    """A variational autoencoder whose two terms are judged by discriminators: of films, and of codes.

    The first tells films from reconstructions and from films of the prior's codes; the second tells codes of films from
    codes of the prior, in place of the KL divergence.
    """

    Config = AlphaGANConfig
    presets: ClassVar = {
        "standard": {
            "attention": "pooled",
            "encoder_norm": "batch",
            "joint": True,
            "l1_weight": 40.0,
            "discriminator_rate": 4.0,
            "code_rate": 4.0,
            "epochs": 200,
            "batch_size": 16,
            "learning_rate": 3e-4,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
        },
        "paper": {
            "discriminator_rate": 0.1,
            "code_rate": 0.001,
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
            "joint": True,
            "l1_weight": 40.0,
            "discriminator_rate": 0.3,
            "code_rate": 1.0,
            "epochs": 30,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "beta1": 0.5,
            "augmentation": "flips",
            "patience": 0,
        },
    }
    # Not `l1_weight`: the reconstruction's weight lowers its error, whatever becomes of the games beside it.
    space: ClassVar = {
        "learning_rate": Range(5e-5, 2e-3, log=True),
        "beta1": Range(0.0, 0.9),
        "batch_size": Choice((8, 16, 32)),
        "augmentation": Choice(("none", "flips", "advanced")),
        "discriminator_rate": Range(0.1, 10.0, log=True),
        "code_rate": Range(0.1, 10.0, log=True),
    }
    replayable = True
    self_attention = True
    low_precision = True
    score_names = (*Reconstructor.score_names, "discriminator", "code", "discriminator_code")

    def __init__(self, config: AlphaGANConfig, size: int) -> None:
        """Build the networks for films of `size` x `size` pixels, a power of two."""
        super().__init__(size, config.topk)
        self.config = config
        self.encoder = _Encoder(config, size)
        self.generator = Generator(
            size, config.latent, config.width, attention=config.attention, spectral=config.spectral_norm
        )
        self.discriminator = _Discriminator(config, size)
        half, quarter = max(1, config.latent // 2), max(1, config.latent // 4)
        self.code = nn.Sequential(
            nn.Linear(config.latent, half),
            nn.LeakyReLU(0.1),
            nn.Linear(half, quarter),
            nn.LeakyReLU(0.1),
            nn.Linear(quarter, 1),
            nn.Flatten(0),
        )  # codes (N, Z) -> logits of being drawn from the prior (N,)

    @classmethod
    def check_size(cls, config: AlphaGANConfig, size: int) -> str | None:
        """Halvings down to 4: the side is a power of two."""
        return unfit(size, config.width)

    def players(self) -> dict[str, list[nn.Module]]:
        """Encoder and generator, at once or in turns, against two discriminators."""
        against: dict[str, list[nn.Module]] = {"discriminator": [self.discriminator], "code": [self.code]}
        if self.config.joint:
            return {"generator": [self.generator, self.encoder], **against}
        return {"encoder": [self.encoder], "generator": [self.generator], **against}

    def rates(self) -> dict[str, float]:
        """The discriminators have their own."""
        return {"discriminator": self.config.discriminator_rate, "code": self.config.code_rate}

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """Move encoder and generator, then the two discriminators (Rosca et al. 2017).

        Where a discriminator stands for an unknown ratio of likelihoods, what it judges lowers -log D + log(1 - D),
        which is minus its logit.
        """
        for player in ("generator",) if self.config.joint else ("encoder", "generator"):
            yield self._drawing(batch, player)

        x, mask = signed(batch.film), batch.mask
        # A pass of its own, of the weights that have moved. One pass before all steps would save an eighth and leave
        # the running statistics of batch normalization, with which films are scored, a step behind the weights.
        with torch.no_grad():
            code = _draw(*self.encoder(signed(batch.model_input)))
            reconstruction, generated = self.generator.both(code, torch.randn_like(code))
        real, redrawn, fake = self.discriminator.judged(x, on_black(reconstruction, mask), generated)
        yield Step(
            "discriminator",
            watch=watch(real, fake),
            real=as_real(real),
            reconstructed=as_generated(redrawn),
            generated=as_generated(fake),
        )

        prior, encoded = self.code(torch.randn_like(code)).float(), self.code(code).float()
        accuracy = ((prior > 0).float().mean() + (encoded < 0).float().mean()) / 2
        yield Step("code", watch={"code_accuracy": accuracy}, prior=as_real(prior), encoded=as_generated(encoded))

    def _drawing(self, batch: Batch, player: str) -> Step:
        """Return the step of the encoder, of the generator, or, where they move at once, of both as "generator"."""
        x, mask = signed(batch.film), batch.mask
        mean, logvar = self.encoder(signed(batch.model_input))
        code = _draw(mean, logvar)
        reconstruction, generated = self.generator.both(code, torch.randn_like(code))
        terms = {"l1": self.config.l1_weight * masked_mean((x - reconstruction).abs(), mask).mean()}
        if player == "generator":
            redrawn, fake = self.discriminator.judged(on_black(reconstruction, mask), generated)
            terms["reconstructed"], terms["generated"] = -redrawn.mean(), -fake.mean()
        if player == "encoder" or self.config.joint:
            terms["code"] = -self.code(code).float().mean()
        return Step(player, watch={"kl_nats": gaussian_kl(mean, logvar).mean()}, **terms)

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say so where a discriminator wins or learns nothing, and where the code tells nothing of the film."""
        said = saturation(figures, rate="discriminator_rate")
        if abs(figures["code_accuracy"] - 0.5) < 0.01:
            said.append(
                f"the code discriminator is at chance (accuracy {figures['code_accuracy']:.3f}): the `code` score will "
                "be, too, and nothing ties codes to the prior; raise --set code_rate="
            )
        if figures["kl_nats"] < COLLAPSED:
            said.append(
                f"the posterior collapses: the code says {figures['kl_nats']:.2g} nats about a film, so every film "
                "gets the same reconstruction; raise --set l1_weight="
            )
        return said

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the `mse` score.

        The adversarial losses say who is winning, not how good either is, and a rising one is no worse model. How well
        normal films that no gradient saw are drawn anew does fall as the networks improve, and needs no label.
        """
        return masked_mean(squared_error(batch.film, self.reconstruct(batch.film), batch.mask), batch.mask)

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Keep what minibatch discrimination compares a film with, beside what every model that reconstructs keeps."""
        pooled: list[Tensor] = []

        def passing() -> Iterator[Batch]:  # one pass over the films for both
            for batch in normals:
                pooled.append(self.discriminator.pooled(signed(batch.film)))
                yield batch

        super().fit_reference(passing())
        self.discriminator.minibatch.freeze(torch.cat(pooled))

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the scores of the residual and the paper's own, from the code's mean rather than from a random draw.

        `discriminator` is 1 - D(x), `code` 1 - C(mean code), `discriminator_code` their mean.
        """
        x = signed(batch.film)
        mean, _ = self.encoder(x)
        film, code = chance_of_generated(self.discriminator(x)), chance_of_generated(self.code(mean))
        own = {"discriminator": film, "code": code, "discriminator_code": (film + code) / 2}
        residual = self.residual_prediction(batch, unit(self.generator(mean)), maps=maps)
        return replace(residual, scores=residual.scores | own)

    def generate(self, count: int) -> Tensor:
        """Return films of codes drawn from the prior."""
        return self.generator.fixed(count, self.config.latent)

    def reconstruct(self, film: Tensor) -> Tensor:
        """Return the reconstruction from the code's mean, unmasked."""
        return unit(self.generator(self.encoder(signed(film))[0]))


def _draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return a code of each film's Gaussian, (N, Z)."""
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
