"""Convolutional blocks: those of the autoencoders, and layers that are matrix products and are computed as such.

Where the map is as large as the kernel, a convolution is the product of each film's map with the weight, and a
transposed one that of each film's point. oneDNN takes four times as long for the same numbers by its own way. On small
maps under wide weights it is half as fast as the product of the weight with what its windows see, five times slower for
the weight's gradient, and there the product is formed here.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


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
"""Of the smaller map, up to which a processor trains convolutions as products. From 64 on oneDNN is as fast."""


class Convolution(nn.Conv2d):
    """A convolution of square kernel, stride and padding, in training a product where it leads to a small map."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, C, H, W) -> (N, F, h, w)."""
        tiling = _Tiling.of(self, x.shape[2], x.shape[3])
        if not (self.training and tiling and tiling.small(x)):
            return super().forward(x)
        frame = int(self.padding[0])
        windows: Tensor = _Windows.apply(pad(x.permute(0, 2, 3, 1), (0, 0, frame, frame, frame, frame)), tiling)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # as it lies: (F, K K C)
        out = nn.functional.linear(windows, weight, self.bias)
        return out.view(len(x), *tiling.places, -1).permute(0, 3, 1, 2)


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution of square kernel, stride and padding, in training a product where it comes from one."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no size to choose
        """Convolve: (N, C, h, w) -> (N, F, H, W)."""
        side, stride, frame = (int(pair[0]) for pair in (self.kernel_size, self.stride, self.padding))
        height, width = ((size - 1) * stride - 2 * frame + side for size in x.shape[2:])
        tiling = _Tiling.of(self, height, width)
        if not (self.training and tiling and tiling.small(x)):
            return super().forward(x)
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, C)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (C, K K F)
        framed: Tensor = _Folded.apply(torch.mm(rows, weight), tiling)
        out = framed[:, frame : frame + height, frame : frame + width].permute(0, 3, 1, 2)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]


@dataclass(frozen=True)
class _Tiling:
    """How windows of `side` pixels lie on a framed map of `size` (H, W) pixels, `stride` apart."""

    size: tuple[int, int]
    side: int
    stride: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d, height: int, width: int) -> Self | None:
        """Return that of a layer on its larger map, or None where it is no plain tiling."""
        side, stride, frame = (int(pair[0]) for pair in (layer.kernel_size, layer.stride, layer.padding))
        size = (height + 2 * frame, width + 2 * frame)
        squares = all(len({*pair}) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
        plain = layer.groups == 1 and set(layer.dilation) == {1} and set(layer.output_padding) == {0}
        tiled = not (side % stride or size[0] % stride or size[1] % stride)
        return cls(size, side, stride) if squares and plain and tiled and layer.padding_mode == "zeros" else None

    @property
    def places(self) -> tuple[int, int]:
        """Windows down and across: the size of the smaller map."""
        down, across = ((size - self.side) // self.stride + 1 for size in self.size)
        return down, across

    def small(self, x: Tensor) -> bool:
        """Whether a product is what the device of `x` is faster with."""
        down, across = self.places
        return down * across <= POINTS and x.device.type == "cpu" and not torch.compiler.is_compiling()

    def windows(self, framed: Tensor) -> Tensor:
        """Return what each window sees: (N, H, W, C) -> (N h w, K K C)."""
        film, row, point, one = framed.stride()
        shape = (len(framed), *self.places, self.side, self.side * framed.shape[3])  # what is side by side lies so
        windows = framed.as_strided(shape, (film, self.stride * row, self.stride * point, row, one))
        return windows.reshape(-1, self.side * shape[-1])

    def folded(self, windows: Tensor) -> Tensor:
        """Return the sum, at each pixel, over the windows that see it: (N h w, K K C) -> (N, H, W, C)."""
        (height, width), (down, across), stride = self.size, self.places, self.stride
        steps = self.side // stride  # windows that see a pixel, down as across
        channels = windows.shape[1] // self.side**2
        parts = windows.view(-1, down, across, steps, stride, steps, stride * channels)
        framed = windows.new_zeros(len(parts), height, width, channels)
        tiles = framed.view(len(parts), height // stride, stride, width // stride, stride * channels)
        for i in range(steps):
            for j in range(steps):
                tiles[:, i : i + down, :, j : j + across] += parts[:, :, :, i, :, j].transpose(2, 3)
        return framed


class _Windows(torch.autograd.Function):
    """`_Tiling.windows`, whose gradient is `folded`."""

    @staticmethod
    def forward(ctx: Any, framed: Tensor, tiling: _Tiling) -> Tensor:
        ctx.tiling = tiling
        return tiling.windows(framed.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.tiling.folded(gradients[0].contiguous()), None


class _Folded(torch.autograd.Function):
    """`_Tiling.folded`, whose gradient is `windows`."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, tiling: _Tiling) -> Tensor:
        ctx.tiling = tiling
        return tiling.folded(windows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.tiling.windows(gradients[0].contiguous()), None


def convolution(channels: int, features: int, kernel: int, stride: int, *, batch_norm: bool) -> nn.Sequential:
    """Return convolution (padding 1), batch normalization, ReLU: (N, channels, H, W) -> (N, features, H / stride, W /
    stride).

    The convolution has a bias only where no batch normalization follows: that one has its own.
    """
    layers: list[nn.Module] = [Convolution(channels, features, kernel, stride, padding=1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(features))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def upconvolution(channels: int, features: int, *, batch_norm: bool) -> nn.Sequential:
    """Return transposed convolution 4/2/1, batch normalization, ReLU: (N, channels, H, W) -> (N, features, 2H, 2W)."""
    layers: list[nn.Module] = [TransposedConvolution(channels, features, 4, 2, padding=1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(features))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))
