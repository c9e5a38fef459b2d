"""U-Net that learns to segment made-up anomalies on normal films, and so finds what is focal and small.

In the spirit of Zavrtanik et al. 2021 (DRAEM), Tan et al. 2021 (foreign patches, Poisson blending) and Li et al. 2021
(CutPaste). The network sees normal films only, most of them with one or two of the anomalies that
`anomaly.data.anomalies` makes, and gives each pixel its logit of being damaged. One family of anomalies is never
trained on: its loss on the validation normals chooses the checkpoint, so that no label is needed.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from anomaly.data.anomalies.families import FAMILIES
from anomaly.data.anomalies.synthesis import CHANCES, Damaged, synthesize
from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Prediction, Settings, Step
from anomaly.models.search_space import Choice, Range
from anomaly.nn.atypicality import Atypicality, cells
from anomaly.nn.blocks import convolution
from anomaly.nn.filters import local_mean
from anomaly.nn.losses import masked_mean, soft_dice, topk_mean
from anomaly.nn.unet import decode, encode

DICE = 0.3
"""Weight of the Dice loss beside the cross-entropy."""
WINDOW = 0.045
"""Standard deviation of the window over which the normals' logits are averaged, as a share of the film's side: hands
aren't registered."""
PEAK = 5 / 512
"""That of the window of `peak`."""
LEAST_DEVIATION = 0.25
"""Least standard deviation of the logit at a place, so that where all normal films are alike no rounding counts."""
SEED = 17
"""Of the anomalies of validation, to which each batch adds the area of its masks."""


class SyntheticConfig(Settings):
    """Settings of the detector of made-up anomalies."""

    width: int = Field(default=16, ge=1, le=128)
    """Channels of the first level; the others have 2, 4, 8, 8, ... times as many."""
    levels: int = Field(default=5, ge=2, le=6)
    """Levels of the U-Net, each at half the side of the one before: the side is a multiple of 2 ^ (levels - 1)."""
    held_out: Literal["none", "patch", "warp", "fracture", "contrast", "shape", "structure"] = "structure"
    """Family of anomalies that the network isn't trained on and the checkpoint is chosen by; none trains on all and
    chooses by all."""


class _Normals(nn.Module):
    """What is kept of the logits of normal films."""

    mean: Tensor  # (1, 1, S, S) of the logits in a window about each pixel
    deviation: Tensor  # (1, 1, S, S) and their standard deviation

    def __init__(self, size: int) -> None:
        super().__init__()
        self.atypicality = Atypicality()
        self.register_buffer("mean", torch.zeros(1, 1, size, size))
        self.register_buffer("deviation", torch.ones(1, 1, size, size))


class Synthetic(Detector):
    """A U-Net with batch normalization: film (N, 1, S, S) -> logits of being damaged (N, 1, S, S).

    The map is the softplus of the calibrated logit: its distance from the mean of normal films at the same place, in
    their standard deviations, smoothly cut at zero. Scores, none of them chosen by labels:

    `peak`         the largest locally averaged value of the map
    `top01`        mean of the largest .1 % of the map's values under the mask
    `top1`         mean of the largest 1 %
    `mean`         mean of the map under the mask
    `atypicality`  how unusual the map of the locally averaged logit is among those of normal films (`Atypicality`)
    """

    Config = SyntheticConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 40,
            "batch_size": 16,
            "crop": 128,
            "crops_per_film": 2,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "augmentation": "advanced",
            "patience": 0,
        },
        "fast": {
            "levels": 4,
            "epochs": 10,
            "batch_size": 32,
            "crop": 64,
            "crops_per_film": 4,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "augmentation": "flips",
            "patience": 0,
        },
    }
    # Not `held_out`, which is the yardstick.
    space: ClassVar = {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "batch_size": Choice((8, 16, 32)),
        "augmentation": Choice(("none", "flips", "advanced")),
        "width": Choice((8, 16, 24, 32)),
        "levels": Choice((4, 5, 6)),
    }
    low_precision = True
    takes_crops = True
    score_names = ("peak", "top01", "top1", "mean", "atypicality")
    map_unit = "softplus of standard deviations of the logit"

    def __init__(self, config: SyntheticConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels; its weights do not depend on the size."""
        super().__init__()
        self.config, self.size = config, size
        width = [config.width * min(8, 2**level) for level in range(config.levels)]
        self.down = nn.ModuleList(_level(i, o) for i, o in pairwise([1, *width]))
        self.up = nn.ModuleList(_level(deep + skip, skip) for skip, deep in reversed(list(pairwise(width))))
        self.last = nn.Conv2d(width[0], 1, 1)
        nn.init.constant_(self.last.bias, -2.0)  # type: ignore[arg-type]  # damage is rare
        self.normals = _Normals(size)

    @classmethod
    def check_size(cls, config: SyntheticConfig, size: int) -> str | None:
        """Each level but the first halves the side."""
        least = 2 ** (config.levels - 1)
        return None if size % least == 0 else f"needs a film side that is a multiple of {least}"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"segmenter": [self.down, self.up, self.last]}

    def forward(self, film: Tensor) -> Tensor:
        """Return logits: (N, 1, H, W) in [0, 1], sides as in `check_size` -> (N, 1, H, W), float32."""
        logits: Tensor = self.last(decode(self.up, encode(self.down, film)))
        return logits.float()

    # --- training ---

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """One step down the loss on films that are damaged anew; watched: the mean probability where damage is, and
        where none is.
        """
        families = [name for name in FAMILIES if name != self.config.held_out]
        damaged = synthesize(batch.film, batch.mask, self.size, families)
        logits = self(damaged.film)
        entropy, dice = _losses(logits, damaged, batch.mask)
        probability = logits.detach().sigmoid()
        rest = batch.mask & ~damaged.target
        watched = {
            "probability_damaged": (probability * damaged.target).sum() / damaged.target.sum().clamp(min=1),
            "probability_normal": (probability * rest).sum() / rest.sum().clamp(min=1),
        }
        yield Step("segmenter", watch=watched, entropy=entropy.mean(), dice=DICE * dice.mean())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the loss on anomalies of the family held out, the same ones in every epoch: (N,)."""
        families = list(FAMILIES) if self.config.held_out == "none" else [self.config.held_out]
        generator = torch.Generator().manual_seed(SEED + int(batch.mask.sum()))
        chances = (1.0, *CHANCES[1:])
        damaged = synthesize(batch.film, batch.mask, self.size, families, chances=chances, generator=generator)
        entropy, dice = _losses(self(damaged.film), damaged, batch.mask)
        return entropy + DICE * dice

    # --- what it says of a film ---

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the scores named above; the map is that of the calibrated logit."""
        logits = self(batch.film)
        calibrated = softplus((logits - self.normals.mean) / self.normals.deviation) * batch.mask
        scores = {
            "peak": local_mean(calibrated, batch.mask, self.size * PEAK).amax(dim=(1, 2, 3)),
            "top01": topk_mean(calibrated, batch.mask, 0.001),
            "top1": topk_mean(calibrated, batch.mask, 0.01),
            "mean": masked_mean(calibrated, batch.mask),
            "atypicality": self.normals.atypicality(cells(logits, batch.mask)),
        }
        return Prediction(scores, calibrated if maps else None)

    def preview(self, batch: Batch) -> Prediction:
        """Return the probability of damage, not calibrated yet, as the map."""
        return Prediction({}, self(batch.film).sigmoid() * batch.mask)

    def fit_reference(self, normals: Iterable[Batch]) -> None:
        """Keep mean and standard deviation of the normals' logits about each pixel, and their maps on 14 x 14 cells."""
        patterns = []
        total, squares, seen = (torch.zeros_like(self.normals.mean) for _ in range(3))
        for batch in normals:
            logits = self(batch.film)
            patterns.append(cells(logits, batch.mask).cpu())
            total += (logits * batch.mask).sum(dim=0, keepdim=True)
            squares += (logits.square() * batch.mask).sum(dim=0, keepdim=True)
            seen += batch.mask.sum(dim=0, keepdim=True)
        self.normals.atypicality.fit(torch.cat(patterns))
        there, count = seen > 0, seen.sum().clamp(min=1)
        # Windows weigh each place by the films that were seen there, as all pixels of all films count alike.
        weight = local_mean(seen, there, self.size * WINDOW).clamp(min=1e-6)
        mean, square = (local_mean(x, there, self.size * WINDOW) / weight for x in (total, squares))
        # A pixel that lies under no normal film's mask counts as the average one.
        mean = torch.where(there, mean, total.sum() / count)
        square = torch.where(there, square, squares.sum() / count)
        self.normals.mean = mean
        self.normals.deviation = (square - mean.square()).clamp(min=LEAST_DEVIATION**2).sqrt()


def _level(channels: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels, features, 3, 1, batch_norm=True), convolution(features, features, 3, 1, batch_norm=True)
    )


def _losses(logits: Tensor, damaged: Damaged, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy in nats, its pixels weighted by `Damaged.weight`, and soft Dice loss of each film: (N,)."""
    target = damaged.target.float()
    entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return masked_mean(damaged.weight * entropy, mask), soft_dice(logits.sigmoid(), target, mask)
