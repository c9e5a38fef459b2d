"""Convolutional blocks: those of the autoencoders, and two layers that are matrix products and are computed as such.

Where the map is as large as the kernel, a convolution is the product of each film's map with the weight, and a
transposed one that of each film's point. oneDNN takes four times as long for the same numbers by its own way.
"""

import torch
from torch import Tensor, nn


class ToPoint(nn.Conv2d):
    """A convolution whose kernel covers the whole map: (N, C, K, K) -> (N, F, 1, 1)."""

    def __init__(self, channels: int, features: int, kernel: int) -> None:
        super().__init__(channels, features, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each map by the weight."""
        x, weight = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, self.weight))  # no copies: they lie channels last
        out: Tensor = nn.functional.linear(x, weight, self.bias)
        return out[:, :, None, None]


class FromPoint(nn.ConvTranspose2d):
    """A transposed convolution of a single point: (N, C, 1, 1) -> (N, F, K, K)."""

    def __init__(self, channels: int, features: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(channels, features, kernel, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Multiply each point by the weight."""
        weight = self.weight.permute(0, 2, 3, 1)  # (C, K, K, F): as it lies
        out = torch.mm(x.flatten(1), weight.flatten(1)).view(len(x), *weight.shape[1:])
        if self.bias is not None:
            out = out + self.bias
        return out.permute(0, 3, 1, 2)


def convolution(channels: int, features: int, kernel: int, stride: int, *, batch_norm: bool) -> nn.Sequential:
    """Return convolution (padding 1), batch normalisation, ReLU: (N, channels, H, W) -> (N, features, H / stride, W /
    stride).

    The convolution has a bias only where no batch normalisation follows: that one has its own.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, features, kernel, stride, padding=1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(features))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def upconvolution(channels: int, features: int, *, batch_norm: bool) -> nn.Sequential:
    """Return transposed convolution 4/2/1, batch normalisation, ReLU: (N, channels, H, W) -> (N, features, 2H, 2W)."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(channels, features, 4, 2, padding=1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(features))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))
