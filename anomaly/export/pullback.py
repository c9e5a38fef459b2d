"""Gradients as part of a graph: ONNX has no automatic differentiation, and Grad-CAM needs one gradient.

The vector-Jacobian product of each kind of layer that the classifiers are made of, in evaluation mode, written out in
the operations of the forward pass.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, silu
from torchvision.models.densenet import _DenseBlock, _DenseLayer
from torchvision.models.efficientnet import MBConv
from torchvision.ops.misc import SqueezeExcitation

Pull = Callable[[Tensor], Tensor]
"""From the gradient of a layer's output to that of its input."""


class UnknownLayer(Exception):
    """A layer whose gradient isn't known here; the message is its class."""


def pullback(layer: nn.Module, x: Tensor) -> tuple[Tensor, Pull]:
    """Return a layer's output, and what brings a gradient of it back to its input. UnknownLayer where that isn't known.

    >>> y, pull = pullback(nn.ReLU(), torch.tensor([[-1.0, 2.0]]))
    >>> pull(torch.ones_like(y))
    tensor([[0., 1.]])
    """
    match layer:
        case nn.Sequential():
            return _chain(list(layer), x)
        case nn.Dropout():
            return x, lambda gradient: gradient
        case nn.ReLU():
            return x.relu(), lambda gradient: gradient * (x > 0)
        case nn.Sigmoid():
            y = x.sigmoid()
            return y, lambda gradient: gradient * y * (1 - y)
        case nn.SiLU():
            y = x.sigmoid()
            return silu(x), lambda gradient: gradient * y * (1 + x * (1 - y))
        case nn.Flatten():
            shape = x.shape
            return x.flatten(1), lambda gradient: gradient.reshape(shape)
        case nn.Linear():
            return layer(x), lambda gradient: gradient @ layer.weight
        case nn.BatchNorm2d():
            assert layer.running_var is not None
            scale = (layer.weight / (layer.running_var + layer.eps).sqrt())[:, None, None]
            return layer(x), lambda gradient: gradient * scale
        case nn.Conv2d():
            return layer(x), partial(_convolution, layer, x)
        case nn.MaxPool2d() if layer.kernel_size == layer.stride == 2:
            return _max_pool(x)
        case nn.AvgPool2d() if layer.kernel_size == layer.stride == 2:
            return layer(x), lambda gradient: _doubled(gradient, x) / 4
        case nn.AdaptiveAvgPool2d():
            return _adaptive_pool(layer, x)
        case SqueezeExcitation():
            return _squeeze_excitation(layer, x)
        case MBConv():
            y, pull = pullback(layer.block, x)
            return (y + x, lambda g: pull(g) + g) if layer.use_res_connect else (y, pull)
        case _DenseBlock():
            return _dense_block(layer, x)
        case _DenseLayer():
            return _chain([layer.norm1, layer.relu1, layer.conv1, layer.norm2, layer.relu2, layer.conv2], x)
    raise UnknownLayer(type(layer).__name__)


def averages(size: int, cells: int) -> Tensor:
    """Return the matrix of adaptive average pooling along a side, (cells, size) float64: torch's AdaptiveAvgPool2d.

    >>> averages(3, 2)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    matrix = torch.zeros(cells, size, dtype=torch.float64)
    for cell in range(cells):
        start, end = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix


def _chain(layers: list[nn.Module], x: Tensor) -> tuple[Tensor, Pull]:
    pulls: list[Pull] = []
    for layer in layers:
        x, pull = pullback(layer, x)
        pulls.append(pull)

    def back(gradient: Tensor) -> Tensor:
        for pull in reversed(pulls):
            gradient = pull(gradient)
        return gradient

    return x, back


def _convolution(layer: nn.Conv2d, x: Tensor, gradient: Tensor) -> Tensor:
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    # What the strides left over at the end: pixels that no window ended on.
    rest = (int(x.shape[2]) + 2 * padding - kernel) % stride
    return conv_transpose2d(gradient, layer.weight, None, stride, padding, rest, layer.groups)


def _max_pool(x: Tensor) -> tuple[Tensor, Pull]:
    """2 x 2 windows: the gradient goes to the first of the largest pixels, as in torch."""
    height, width = (int(side) // 2 for side in x.shape[2:])
    channels = int(x.shape[1])
    even = x[:, :, : 2 * height, : 2 * width]
    windows = even.reshape(-1, channels, height, 2, width, 2).permute(0, 1, 2, 4, 3, 5).flatten(4)  # (N, C, h, w, 4)
    first = windows.argmax(dim=4, keepdim=True) == torch.arange(4)

    def back(gradient: Tensor) -> Tensor:
        spread = (gradient[..., None] * first).reshape(-1, channels, height, width, 2, 2)
        return _framed(spread.permute(0, 1, 2, 4, 3, 5).reshape(-1, channels, 2 * height, 2 * width), x)

    return windows.amax(dim=4), back


def _doubled(gradient: Tensor, x: Tensor) -> Tensor:
    return _framed(gradient.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), x)


def _framed(gradient: Tensor, x: Tensor) -> Tensor:
    """Return a gradient with zeros on the last row and column, where windows of 2 left one of `x` out."""
    rest = [int(a) - int(b) for a, b in zip(x.shape[2:], gradient.shape[2:], strict=True)]
    return nn.functional.pad(gradient, (0, rest[1], 0, rest[0])) if any(rest) else gradient


def _adaptive_pool(layer: nn.AdaptiveAvgPool2d, x: Tensor) -> tuple[Tensor, Pull]:
    cells = layer.output_size
    down, across = (cells, cells) if isinstance(cells, int) else cells or (None, None)
    assert down is not None and across is not None
    rows, columns = averages(int(x.shape[2]), down).to(x.dtype), averages(int(x.shape[3]), across).to(x.dtype)
    return rows @ x @ columns.T, lambda gradient: rows.T @ gradient @ columns


def _squeeze_excitation(layer: SqueezeExcitation, x: Tensor) -> tuple[Tensor, Pull]:
    scale, pull = _chain([layer.avgpool, layer.fc1, layer.activation, layer.fc2, layer.scale_activation], x)
    return x * scale, lambda gradient: gradient * scale + pull((gradient * x).sum(dim=(2, 3), keepdim=True))


def _dense_block(block: _DenseBlock, x: Tensor) -> tuple[Tensor, Pull]:
    widths, pulls = [int(x.shape[1])], []
    for layer in block.values():
        y, pull = pullback(layer, x)
        pulls.append(pull)
        widths.append(int(y.shape[1]))
        x = torch.cat([x, y], dim=1)

    def back(gradient: Tensor) -> Tensor:
        for pull, width in zip(reversed(pulls), reversed(widths[1:]), strict=True):
            before = int(gradient.shape[1]) - width
            gradient = gradient[:, :before] + pull(gradient[:, before:])
        return gradient

    return x, back
