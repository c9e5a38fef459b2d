"""Convolutional blocks of the autoencoders."""

from torch import nn


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
