"""The way of a film through a U-Net (Ronneberger et al. 2015): levels down, levels up, skip connections by
concatenation. What a level is made of, each network decides.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d


def encode(down: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Return the output of each level, the first at full size, each further one at half the side of the one before.

    (N, C, H, W), both sides divisible by 2 ^ (levels - 1) -> [(N, C1, H, W), (N, C2, H / 2, W / 2), ...]
    """
    levels: list[Tensor] = []
    for level in down:
        levels.append(level(max_pool2d(levels[-1], 2) if levels else x))
    return levels


def decode(up: Iterable[nn.Module], levels: list[Tensor]) -> Tensor:
    """Return what the levels up make of the outputs of `encode`: the deepest is doubled in side and concatenated with
    the one above it, over and over: -> (N, C, H, W).
    """
    *skipped, x = levels
    for level, skip in zip(up, reversed(skipped), strict=True):
        x = level(torch.cat([interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
    return x
