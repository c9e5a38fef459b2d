"""Convolutional blocks: those of the autoencoders, and convolutions between a map and a point or a small map."""

import torch
from torch import Tensor, nn

from anomaly.nn.cpu_kernels import small_map_convolution, small_map_transposed_convolution


class Convolution(nn.Conv2d):
    """`nn.Conv2d`, trained on small maps as a matrix product where a processor is faster with one."""

    products = True
    """Whether products are taken at all; `anomaly.training.measured.choose_kernels` knows where not."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, C, H, W) -> (N, F, h, w)."""
        output = small_map_convolution(self, x) if self.products else None
        return super().forward(x) if output is None else output


class TransposedConvolution(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, trained on small maps as a matrix product where a processor is faster with one."""

    products = True
    """As in `Convolution`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no output size to choose
        """Convolve: (N, C, h, w) -> (N, F, H, W)."""
        output = small_map_transposed_convolution(self, x) if self.products else None
        return super().forward(x) if output is None else output


class ToPoint(nn.Conv2d):
    """A convolution whose kernel covers the whole map: (N, C, K, K) -> (N, F, 1, 1).

    It is the product of each film's map with the weight; oneDNN takes four times as long for the same numbers.
    """

    def __init__(self, channels: int, features: int, kernel: int) -> None:
        super().__init__(channels, features, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each map by the weight."""
        x, weight = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, self.weight))  # no copies: they lie channels last
        output: Tensor = nn.functional.linear(x, weight, self.bias)
        return output[:, :, None, None]


class FromPoint(nn.ConvTranspose2d):
    """A transposed convolution of a single point, its product with the weight: (N, C, 1, 1) -> (N, F, K, K)."""

    def __init__(self, channels: int, features: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(channels, features, kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no output size to choose
        """Multiply each point by the weight."""
        weight = self.weight.permute(0, 2, 3, 1)  # (C, K, K, F), no copy: it lies channels last
        output = torch.mm(x.flatten(1), weight.flatten(1)).view(-1, *weight.shape[1:])
        if self.bias is not None:
            output = output + self.bias
        return output.permute(0, 3, 1, 2)


def convolution(channels: int, features: int, kernel: int, stride: int, *, batch_norm: bool) -> nn.Sequential:
    """Return convolution (padding 1), batch normalization, ReLU: (N, channels, H, W) -> (N, features, H / stride, W /
    stride).

    The convolution has a bias only where no batch normalization, which has its own, follows.
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
