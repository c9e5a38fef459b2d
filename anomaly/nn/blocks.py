"""Convolutional blocks: those of the autoencoders, and layers that are matrix products and are computed as such.

Where the map is as large as the kernel, a convolution is the product of each film's map with the weight, and a
transposed one that of each film's point. oneDNN takes four times as long for the same numbers by its own way. So it
does for the gradient of a weight that is wider than its map is large, and there the product is formed here.
"""

from typing import Any

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

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no size to choose
        """Multiply each point by the weight."""
        weight = self.weight.permute(0, 2, 3, 1)  # (C, K, K, F): as it lies
        out = torch.mm(x.flatten(1), weight.flatten(1)).view(len(x), *weight.shape[1:])
        if self.bias is not None:
            out = out + self.bias
        return out.permute(0, 3, 1, 2)


POINTS = 16
"""Of the smaller map, up to which a processor takes a weight's gradient as a product. From 64 on oneDNN is as fast."""


class Convolution(nn.Conv2d):
    """A convolution of square kernel, stride and padding, whose weight's gradient is a product on small maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, C, H, W) -> (N, F, h, w)."""
        side, stride, pad = (int(pair[0]) for pair in (self.kernel_size, self.stride, self.padding))
        points = ((x.shape[2] + 2 * pad - side) // stride + 1) * ((x.shape[3] + 2 * pad - side) // stride + 1)
        weight = self.weight
        if not _by_product(points, weight):
            return super().forward(x)
        out = nn.functional.conv2d(x, weight.detach(), None, stride, pad)
        out = out + _OfWeight.apply(weight, x.detach().to(out.dtype), out.shape, stride, pad)
        return _with_bias(out, self.bias)


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution of square kernel, stride and padding, likewise."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no size to choose
        """Convolve: (N, C, h, w) -> (N, F, H, W)."""
        stride, pad = (int(pair[0]) for pair in (self.stride, self.padding))
        weight = self.weight
        if not _by_product(x.shape[2] * x.shape[3], weight):
            return super().forward(x)
        out = nn.functional.conv_transpose2d(x, weight.detach(), None, stride, pad)
        out = out + _OfWeight.apply(weight, x.detach().to(out.dtype), out.shape, stride, pad)
        return _with_bias(out, self.bias)


def _with_bias(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]


def _by_product(points: int, weight: Tensor) -> bool:
    asked = weight.requires_grad and torch.is_grad_enabled()
    return points <= POINTS and asked and weight.device.type == "cpu" and not torch.compiler.is_compiling()


class _OfWeight(torch.autograd.Function):
    """Zeros in the shape of a convolution's output, whose gradient is that of its weight.

    As a term of its own it is asked only where the weight is: gradients for a film alone pass it by.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, given: Tensor, shape: torch.Size, stride: int, pad: int) -> Tensor:
        ctx.save_for_backward(given)
        ctx.stride, ctx.pad, ctx.side, ctx.dtype = stride, pad, weight.shape[2], weight.dtype
        return given.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # A convolution's film is the larger map, a transposed one's the smaller.
        small, large = sorted((*gradients, *ctx.saved_tensors), key=lambda map: map.shape[2])
        rows = small.permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, F)
        windows = _windows(large, ctx.side, ctx.stride, ctx.pad)  # (N h w, K K C)
        weight = torch.mm(rows.T, windows).view(small.shape[1], ctx.side, ctx.side, -1).permute(0, 3, 1, 2)
        return weight.to(ctx.dtype), None, None, None, None


def _windows(x: Tensor, side: int, stride: int, pad: int) -> Tensor:
    """Return what a kernel sees at each place: (N, C, H, W) -> (N h w, side side C), channels last."""
    count, channels, height, width = x.shape
    framed = x.new_zeros(count, height + 2 * pad, width + 2 * pad, channels)
    framed[:, pad : pad + height, pad : pad + width] = x.permute(0, 2, 3, 1)
    film, row, point, one = framed.stride()
    places = ((height + 2 * pad - side) // stride + 1, (width + 2 * pad - side) // stride + 1)
    windows = framed.as_strided(
        (count, *places, side, side * channels), (film, stride * row, stride * point, row, one)
    )  # neighbours in a row lie beside each other
    return windows.reshape(-1, side * side * channels)


def convolution(channels: int, features: int, kernel: int, stride: int, *, batch_norm: bool) -> nn.Sequential:
    """Return convolution (padding 1), batch normalisation, ReLU: (N, channels, H, W) -> (N, features, H / stride, W /
    stride).

    The convolution has a bias only where no batch normalisation follows: that one has its own.
    """
    layers: list[nn.Module] = [Convolution(channels, features, kernel, stride, padding=1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(features))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def upconvolution(channels: int, features: int, *, batch_norm: bool) -> nn.Sequential:
    """Return transposed convolution 4/2/1, batch normalisation, ReLU: (N, channels, H, W) -> (N, features, 2H, 2W)."""
    layers: list[nn.Module] = [TransposedConvolution(channels, features, 4, 2, padding=1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(features))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))
