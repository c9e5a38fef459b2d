"""Blocks, losses and warnings of adversarial training."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from anomaly.nn.attention import SelfAttention
from anomaly.nn.blocks import Convolution, FromPoint, TransposedConvolution
from anomaly.nn.spectral import spectral_norm

Attention = Literal["full", "pooled", "none"]


def normalized(layer: nn.Module, on: bool) -> nn.Module:
    """Return `layer`, with spectral normalization if `on`: its weight divided by its largest singular value.

    Miyato et al. 2018; one power iteration per training step, none in evaluation mode.
    """
    return spectral_norm(layer) if on else layer


def halvings(size: int) -> int:
    """Return how many times a film of `size` px is halved to reach 4 px.

    >>> halvings(128)
    5
    """
    return size.bit_length() - 3


def unfit(size: int, width: int) -> str | None:
    """Return why `trunk` and `Generator` can't take films of `size` px, as the end of a sentence, or None if they can.

    >>> unfit(96, 64)
    'needs a film side that is a power of two, 16 or more'
    """
    if size < 16 or size & (size - 1):
        return "needs a film side that is a power of two, 16 or more"
    least = 2 ** max(0, halvings(size) - 5)
    return None if width * 16 >> (halvings(size) - 1) else f"needs --set width={least} or more at {size} px"


def trunk(size: int, width: int, *, attention: Attention, norm: Literal["spectral", "batch"] | None) -> nn.Sequential:
    """Return the first layers of encoders and discriminators: films (N, 1, S, S) -> features (N, 16 width, 4, 4).

    Convolutions 4/2/1 with LeakyReLU(.1), self-attention on the last two maps (Davletshina et al. 2020, section 3.2).
    The last convolution has 16 x `width` channels, each one before it half as many: at 128 px the first has `width`,
    and a film of half the side lacks the narrowest. `norm` says how convolutions are normalized: spectrally, by batch
    statistics without parameters, or not at all.
    """
    count = halvings(size)
    channels = [1] + [width * 16 >> (count - 1 - i) for i in range(count)]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(channels)):
        layers.append(normalized(Convolution(before, after, 4, 2, padding=1), norm == "spectral"))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(after, affine=False))
        layers.append(nn.LeakyReLU(0.1))
        if attention != "none" and i >= count - 2:
            layers.append(SelfAttention(after, pool=attention == "pooled"))
    return nn.Sequential(*layers)


class Generator(nn.Module):
    """Codes (N, Z) -> films (N, 1, S, S) in [-1, 1]: transposed convolutions with batch normalization and ReLU, tanh.

    Davletshina et al. 2020, section 3.2: the first one 4/1/0 to 4 x 4 pixels, the others 4/2/1, self-attention on the
    last two maps before the film, spectral normalization on all but the last. The first has 16 x `width` channels, each
    further one half as many; a film of half the side lacks the narrowest.
    """

    def __init__(self, size: int, latent: int, width: int, *, attention: Attention, spectral: bool) -> None:
        super().__init__()
        count = halvings(size)
        channels = [latent] + [width * 16 >> i for i in range(count)]
        layers: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
        for i, (before, after) in enumerate(pairwise(channels)):
            upsample = TransposedConvolution(before, after, 4, 2, padding=1) if i else FromPoint(before, after, 4)
            layers += [normalized(upsample, spectral), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if attention != "none" and i >= count - 2:
                layers.append(SelfAttention(after, pool=attention == "pooled"))
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 1, 4, 2, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Generate the film of each code, in float32."""
        return torch.tanh(self.layers(z).float())

    def both(self, encoded: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the films of codes from the encoder and of codes from the prior, N each, generated in one pass.

        Batch normalization then sees the same mixture in every training pass. Passes of one kind alone would be
        normalized by other statistics than the running ones, which are of both kinds and with which films are scored.
        """
        first, second = self(torch.cat([encoded, drawn])).chunk(2)
        return first, second

    def fixed(self, count: int, latent: int) -> Tensor:
        """Return films in [0, 1] of `count` codes, the same in every call: (count, 1, S, S)."""
        codes = torch.randn(count, latent, generator=torch.Generator().manual_seed(0))
        return unit(self(codes.to(next(self.parameters()).device)))


def signed(film: Tensor) -> Tensor:
    """Return a film of [0, 1] in [-1, 1], the range of generators and discriminators."""
    return 2 * film - 1


def unit(film: Tensor) -> Tensor:
    """Return a film of [-1, 1] in [0, 1]."""
    return (film + 1) / 2


def on_black(film: Tensor, mask: Tensor) -> Tensor:
    """Return a film of [-1, 1] set to black, -1, off the mask, as real films are: (N, 1, S, S)."""
    return torch.where(mask, film, -1)


class MinibatchDiscrimination(nn.Module):
    """Append how close a film lies to others: (N, A) -> (N, A + B). Salimans et al. 2016, section 3.2.

    Feature b of film i is the mean over the other films j of exp(-|M_i - M_j|) with M = x T in R^(B x C), and L1 over
    C. In training the others are those of its batch; in scoring they are a frozen set of normal films, kept as M rather
    than as films, so that a score doesn't depend on the batch. (Salimans sums; a mean does not grow with the batch.)
    """

    reference: Tensor  # (R, B, C)

    def __init__(self, features: int, kernels: int, width: int, references: int) -> None:
        """`features` A, `kernels` B, `width` C, `references` R: how many films scores compare with."""
        super().__init__()
        # |M_i - M_j| of unit-variance features is then about 1 for each kernel: exp(-1), neither 0 nor 1.
        self.projection = nn.Parameter(torch.randn(features, kernels, width) / (features**0.5 * width))
        self.register_buffer("reference", torch.zeros(references, kernels, width))

    def project(self, x: Tensor) -> Tensor:
        """Return M: (N, A) -> (N, B, C)."""
        # Autocast would round M to 8 bits, and the distances, which are differences of it, to fewer.
        with torch.autocast(x.device.type, enabled=False):
            return torch.einsum("na,abc->nbc", x.float(), self.projection.float())

    def forward(self, x: Tensor) -> Tensor:
        """Append the B features."""
        projected = self.project(x)
        others = projected if self.training else self.reference
        similarity = torch.exp(-(projected[:, None] - others[None]).abs().sum(dim=3)).sum(dim=1)  # (N, B)
        # In training without the film itself; the only film of a batch counts as infinitely far from others.
        mean = (similarity - 1) / max(1, len(x) - 1) if self.training else similarity / len(others)
        return torch.cat([x.float(), mean], dim=1)

    def freeze(self, x: Tensor) -> None:
        """Take the features of normal films, (n, A) with n >= 1, as the reference of scoring."""
        projected = self.project(x)
        count, device = len(self.reference), projected.device
        rows = torch.linspace(0, len(projected) - 1, count, device=device).round().long()  # repeated where n < R
        self.reference.copy_(projected[rows])


def as_real(logit: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(logit), in nats: the cross-entropy with the class "real"."""
    return softplus(-logit.float()).mean()


def as_generated(logit: Tensor) -> Tensor:
    """Return the mean of -log(1 - sigmoid(logit)), in nats: the cross-entropy with the class "generated"."""
    return softplus(logit.float()).mean()


def chance_of_generated(logit: Tensor) -> Tensor:
    """Return 1 - sigmoid(logit), the probability of being generated, without cancellation for large logits.

    >>> chance_of_generated(torch.tensor(30.0)) > 0
    tensor(True)
    """
    return torch.sigmoid(-logit.float())


def watch(real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """Return the mean probability of being real, of real and of generated films, from logits."""
    return {"d_real": torch.sigmoid(real.float()).mean(), "d_fake": torch.sigmoid(generated.float()).mean()}


def saturation(figures: Mapping[str, float], *, rate: str) -> list[str]:
    """Return warnings about a discriminator from an epoch's `d_real` and `d_fake`; `rate` names the setting of its
    learning rate.
    """
    real, fake = figures["d_real"], figures["d_fake"]
    values = f"D(real) {real:.3f}, D(fake) {fake:.3f}"
    if real > 0.99 and fake < 0.01:
        return [f"the discriminator saturates ({values}): the generator gets no gradient; lower --set {rate}="]
    if abs(real - fake) < 0.02:  # at .5, or at 1/3 where there are two kinds of generated films for a real one
        return [f"the discriminator separates nothing ({values}): its score will be chance; raise --set {rate}="]
    return []
