"""Frozen ImageNet networks as feature extractors: every film becomes a grid of cells, a vector of features each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from anomaly.nn.efficientnet_lite import DEVIATION, MEAN, EfficientNetLite, blocks_of

BackboneName = Literal["lite0", "lite1", "lite2", "efficientnet_b0"]
LEAST_SIZE = 32
"""Smallest side of a film in pixels: less leaves no cell of the deepest maps."""


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map lie along one side of the film: cell i is centered on pixel offset + stride * i."""

    stride: int
    offset: float
    side: int  # cells

    def positions(self, device: torch.device) -> Tensor:
        """Return the pixel that each cell is centered on: (side,)."""
        return self.offset + self.stride * torch.arange(self.side, device=device, dtype=torch.float32)


def resampling(source: Grid, target: Grid, device: torch.device) -> Tensor:
    """Return the matrix that brings a map from the cells of `source` to those of `target`: (target, source), rows of
    sum 1.

    A finer map is averaged under a triangle as wide as two cells of the target, a coarser one interpolated linearly;
    beyond the outermost cells of `source` their value stays.

    >>> resampling(Grid(2, 0.5, 4), Grid(4, 1.5, 2), torch.device("cpu"))
    tensor([[0.4286, 0.4286, 0.1429, 0.0000],
            [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    origins = source.positions(device)
    centers = target.positions(device).clamp(origins[0], origins[-1])
    reach = max(source.stride, target.stride)
    weights = (1 - (centers[:, None] - origins).abs() / reach).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def resample(maps: Tensor, matrix: Tensor) -> Tensor:
    """Return maps on other cells, rows and columns alike: (..., source, source) -> (..., target, target)."""
    return matrix @ maps @ matrix.T


def block_count(name: BackboneName) -> int:
    """Return how many blocks a network has."""
    return len(blocks_of(_variant(name)))


def channel_count(name: BackboneName, blocks: tuple[int, ...]) -> int:
    """Return the number of features a cell has from these blocks."""
    layout = blocks_of(_variant(name))
    return sum(layout[index].outputs for index in blocks)


def _variant(name: BackboneName) -> str:
    # EfficientNet-B0 has the blocks of Lite0, each with squeeze-and-excitation besides.
    return "lite0" if name == "efficientnet_b0" else name


class Backbone(nn.Module):
    """The first blocks of an ImageNet network, without parameters: all its tensors are buffers, nothing is trained.

    On a processor features of one film at a time: a batch is no faster there, and its rounding would depend on its
    size.
    """

    shift: Tensor  # (1, 3, 1, 1) mean of the normalization
    spread: Tensor  # (1, 3, 1, 1) and its standard deviation

    def __init__(self, name: BackboneName, blocks: tuple[int, ...], stride: int, size: int) -> None:
        """Features are the outputs of `blocks`, counted from 0, on the cells of the first map of this `stride`.

        The weights are drawn anew; `load_published` takes up others. `size` is the side of the films in pixels.
        """
        super().__init__()
        self.name, self.blocks, depth = name, blocks, max(blocks) + 1
        self.network = _PublishedB0(depth) if name == "efficientnet_b0" else EfficientNetLite(name, depth)
        _freeze(self.network)
        mean, deviation = _normalization(name)
        for key, values in (("shift", mean), ("spread", deviation)):
            self.register_buffer(key, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        grids = _grids(name, size)
        self.cells = next(grid for grid in grids if grid.stride == stride)
        self.maps = {index: grids[index] for index in blocks}

    def forward(self, films: Tensor) -> Tensor:
        """Return the features of the cells of each film, row by row: (N, 1, S, S) in [0, 1] -> (N, G², C)."""
        x = ((films - self.shift) / self.spread).contiguous(memory_format=torch.channels_last)
        features = []
        for index, output in enumerate(self.network(x)):
            if index in self.maps:
                grid = self.maps[index]
                aligned = output.contiguous()  # (N, C, h, w)
                if grid != self.cells:
                    aligned = resample(aligned, resampling(grid, self.cells, films.device))
                features.append(aligned)
        return torch.cat(features, dim=1).flatten(2).transpose(1, 2).contiguous()

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up weights under the names of the published network; KeyError or RuntimeError where they don't fit."""
        self.network.load_state_dict(self.network.tensors_of(tensors))


def _freeze(network: nn.Module) -> None:
    """Make buffers of all parameters: they are saved with the network, and no optimizer can own them."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())


def _normalization(name: BackboneName) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that the network's authors normalized the three channels by."""
    if name == "efficientnet_b0":
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return (MEAN,) * 3, (DEVIATION,) * 3


def _grids(name: BackboneName, size: int) -> list[Grid]:
    """Return where the cells of each block's output lie on a film of `size` pixels.

    Convolutions of torchvision's network pad symmetrically, so that cell 0 stays on pixel 0; TensorFlow's pad the odd
    pixel on the right: each halving then moves the cells by half of one to the right.
    """
    grids: list[Grid] = []
    stride, offset, side = 1, 0.0, size
    layers = [(3, 2), *((block.kernel, block.stride) for block in blocks_of(_variant(name)))]
    for kernel, step in layers:
        reduced = -(-side // step)
        left = max((reduced - 1) * step + kernel - side, 0) // 2
        if name != "efficientnet_b0" and step > 1:
            offset += stride * ((kernel - 1) // 2 - left)
        stride, side = stride * step, reduced
        grids.append(Grid(stride, offset, side))
    return grids[1:]


class _PublishedB0(nn.Module):
    """The stem and the first blocks of torchvision's EfficientNet-B0."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        from torchvision.models import efficientnet_b0

        stem, *stages = efficientnet_b0(weights=None).features[:-1]
        self.stem = stem
        self.blocks = nn.ModuleList([block for stage in stages for block in stage][:depth])
        # The same block as torchvision's file calls it: the stage, counted from 1, and the block in it.
        places = [f"{number}.{index}" for number, stage in enumerate(stages, 1) for index in range(len(stage))]
        self.places = places[:depth]

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output of each block: (N, 3, H, W) normalized -> (N, C, h, w)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            yield x

    def train(self, mode: bool = True) -> "_PublishedB0":
        """Stay in evaluation mode: a frozen network keeps its running statistics and drops nothing."""
        return super().train(False)

    def tensors_of(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this network's tensors from those of torchvision's file, whose head is left out."""
        own: dict[str, Tensor] = {}
        for name in self.state_dict():
            part, _, rest = name.partition(".")
            if part == "blocks":
                index, _, rest = rest.partition(".")
                part = self.places[int(index)]
            else:
                part = "0"
            own[name] = published[f"features.{part}.{rest}"]
        return own
