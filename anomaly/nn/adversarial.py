"""Blocks, losses and warning signs of adversarial training."""

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
    """Return `layer` under spectral normalization where `on`: its weight divided by its largest singular value.

    Miyato et al. 2018; one power iteration a training step, none when scoring.
    """
    return spectral_norm(layer) if on else layer


def halvings(size: int) -> int:
    """Return how often a film of `size` px is halved down to 4 px.

    >>> halvings(128)
    5
    """
    return size.bit_length() - 3


def unfit(size: int, width: int) -> str | None:
    """Return why `trunk` and `generator` can't take films of `size` px, as the end of a sentence, or None if they can.

    >>> unfit(96, 64)
    'needs a film side that is a power of two, 16 or more'
    """
    if size < 16 or size & (size - 1):
        return "needs a film side that is a power of two, 16 or more"
    least = 2 ** max(0, halvings(size) - 5)
    return None if width * 16 >> (halvings(size) - 1) else f"needs --set width={least} or more at {size} px"


def trunk(size: int, width: int, *, attention: Attention, norm: Literal["spectral", "batch"] | None) -> nn.Sequential:
    """Return what encoders and discriminators begin with: films (N, 1, S, S) -> features (N, 16 width, 4, 4).

    Convolutions 4/2/1 with LeakyReLU(.1), self-attention on the last two maps (Davletshina et al. 2020, section 3.2).
    At 128 px `width` is the number of channels of the first one, and doubles from there; the last one always has
    16 x `width`, so that each halving of the film's side takes the narrowest one away. `norm` says how convolutions are
    normalized: spectrally, by batch statistics without parameters, or not at all.
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
    further one half as many; each halving of the film's side takes the narrowest one away.
    """

    def __init__(self, size: int, latent: int, width: int, *, attention: Attention, spectral: bool) -> None:
        super().__init__()
        count = halvings(size)
        channels = [latent] + [width * 16 >> i for i in range(count)]
        layers: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
        for i, (before, after) in enumerate(pairwise(channels)):
            grow = TransposedConvolution(before, after, 4, 2, padding=1) if i else FromPoint(before, after, 4)
            layers += [normalized(grow, spectral), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if attention != "none" and i >= count - 2:
                layers.append(SelfAttention(after, pool=attention == "pooled"))
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 1, 4, 2, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Draw the film of each code, in float32."""
        return torch.tanh(self.layers(z).float())

    def both(self, encoded: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the films of encoded films' codes and of codes drawn from the prior, N each, made in one pass.

        Batch normalization then sees the same mixture in every pass of the training. Passes of one kind alone would be
        normalized by other means than the running ones, which are of both kinds and with which films are scored.
        """
        first, second = self(torch.cat([encoded, drawn])).chunk(2)
        return first, second

    def fixed(self, count: int, latent: int) -> Tensor:
        """Return films in [0, 1] of the same `count` codes every time: (count, 1, S, S)."""
        codes = torch.randn(count, latent, generator=torch.Generator().manual_seed(0))
        return unit(self(codes.to(next(self.parameters()).device)))


def signed(film: Tensor) -> Tensor:
    """Return a film of [0, 1] in [-1, 1], as generators draw it and discriminators see it."""
    return 2 * film - 1


def unit(film: Tensor) -> Tensor:
    """Return a film of [-1, 1] in [0, 1]."""
    return (film + 1) / 2


def on_black(film: Tensor, mask: Tensor) -> Tensor:
    """Return a film of [-1, 1] with black, -1, off the mask, as real films have it there: (N, 1, S, S)."""
    return torch.where(mask, film, -1)


class MinibatchDiscrimination(nn.Module):
    """Features of how close a film lies to others: (N, A) -> (N, A + B). Salimans et al. 2016, section 3.2.

    Feature b of film i is the mean over the other films j of exp(-|M_i - M_j|) with M = x T in R^(B x C), and L1 over
    C. In training the others are those of its batch; in scoring they are a frozen set of normal films, kept as M and
    never as films, so that a score doesn't depend on its company. (Salimans sums; a mean does not grow with the batch.)
    """

    reference: Tensor  # (R, B, C)

    def __init__(self, features: int, kernels: int, width: int, references: int) -> None:
        """`features` A, `kernels` B, `width` C, `references` R, the films compared with in scoring."""
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
        made = self.project(x)
        others = made if self.training else self.reference
        near = torch.exp(-(made[:, None] - others[None]).abs().sum(dim=3)).sum(dim=1)  # (N, B)
        # In training less itself; a film alone has no others, and is as far from them as can be.
        mean = (near - 1) / max(1, len(x) - 1) if self.training else near / len(others)
        return torch.cat([x.float(), mean], dim=1)

    def freeze(self, x: Tensor) -> None:
        """Take the features of normal films, (n, A) with any n >= 1, as what scoring compares with."""
        made = self.project(x)
        count = len(self.reference)
        rows = torch.linspace(0, len(made) - 1, count, device=made.device).round().long()  # few films are repeated
        self.reference.copy_(made[rows])


def as_real(logit: Tensor) -> Tensor:
    """Return -log sigmoid(logit), the cross-entropy of calling something real, in nats: mean over all."""
    return softplus(-logit.float()).mean()


def as_generated(logit: Tensor) -> Tensor:
    """Return -log(1 - sigmoid(logit)), the cross-entropy of calling something generated, in nats: mean over all."""
    return softplus(logit.float()).mean()


def chance_of_generated(logit: Tensor) -> Tensor:
    """Return 1 - sigmoid(logit), the probability of being generated; written so that sure cases don't all round to 0.

    >>> chance_of_generated(torch.tensor(30.0)) > 0
    tensor(True)
    """
    return torch.sigmoid(-logit.float())


def watch(real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """Return the mean probability of being real, of real and of generated films, from their logits."""
    return {"d_real": torch.sigmoid(real.float()).mean(), "d_fake": torch.sigmoid(generated.float()).mean()}


def saturation(figures: Mapping[str, float], *, rate: str) -> list[str]:
    """Say what is wrong with a discriminator by an epoch's `d_real` and `d_fake`; `rate` names its rate's setting."""
    real, fake = figures["d_real"], figures["d_fake"]
    seen = f"D(real) {real:.3f}, D(fake) {fake:.3f}"
    if real > 0.99 and fake < 0.01:
        return [f"the discriminator saturates ({seen}): the generator is left without a signal; lower --set {rate}="]
    if abs(real - fake) < 0.02:  # at .5, or at 1/3 where there are two kinds of generated films for a real one
        return [f"the discriminator tells nothing apart ({seen}): its score will be chance; raise --set {rate}="]
    return []
