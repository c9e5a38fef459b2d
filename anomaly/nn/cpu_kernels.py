"""What exists only for a processor's speed: the same numbers as torch's own layers, computed in another way.

Convolutions on small maps under wide weights: torch's kernel (oneDNN) is half as fast there as the product of the
weight with the windows it is applied to, and five times slower for the weight's gradient. Self-attention in bfloat16:
computed by blocks of queries it takes two thirds of the time of torch's fused kernel where queries are narrow.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

SMALL_MAP = 16
"""Positions of the smaller map up to which convolutions are trained as products. From 64 on oneDNN is as fast."""
BLOCK_PRODUCTS = 2**20
"""Products of queries and keys in memory at a time: 2 MB, which stay in a processor's cache."""


# --- convolutions as products ---------------------------------------------------------------------------------------


def small_map_convolution(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """Return the layer's output as a matrix product, (N, C, H, W) -> (N, F, h, w), or None where that is not faster."""
    tiling = _faster_tiling(layer, x, (x.shape[2], x.shape[3]))
    if tiling is None:
        return None
    padding = int(layer.padding[0])
    framed = pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    windows: Tensor = _Unfold.apply(framed, tiling)
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)  # (F, K K C), no copy: it lies channels last
    return linear(windows, weight, layer.bias).view(len(x), *tiling.grid, -1).permute(0, 3, 1, 2)


def small_map_transposed_convolution(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor | None:
    """Return the layer's output as a matrix product, (N, C, h, w) -> (N, F, H, W), or None where that is not faster."""
    side, stride, padding = (int(pair[0]) for pair in (layer.kernel_size, layer.stride, layer.padding))
    height, width = ((size - 1) * stride - 2 * padding + side for size in x.shape[2:])
    tiling = _faster_tiling(layer, x, (height, width))
    if tiling is None:
        return None
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, C)
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)  # (C, K K F)
    framed: Tensor = _Fold.apply(torch.mm(rows, weight), tiling)
    output = framed[:, padding : padding + height, padding : padding + width].permute(0, 3, 1, 2)
    return output if layer.bias is None else output + layer.bias.to(output.dtype)[:, None, None]


def _faster_tiling(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, larger_map: tuple[int, int]) -> "_Tiling | None":
    """Return the tiling of a layer in training whose product is faster than its convolution, or None."""
    if not layer.training or x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    tiling = _Tiling.of(layer, *larger_map)
    return tiling if tiling and tiling.grid[0] * tiling.grid[1] <= SMALL_MAP else None


@dataclass(frozen=True)
class _Tiling:
    """How windows of `side` pixels lie on a padded map of `size` (H, W) pixels, `stride` apart."""

    size: tuple[int, int]
    side: int
    stride: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d, height: int, width: int) -> Self | None:
        """Return that of a layer on its larger map, or None where windows do not tile it evenly."""
        side, stride, padding = (int(pair[0]) for pair in (layer.kernel_size, layer.stride, layer.padding))
        size = (height + 2 * padding, width + 2 * padding)
        square = all(len({*pair}) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
        plain = layer.groups == 1 and set(layer.dilation) == {1} and set(layer.output_padding) == {0}
        even = not (side % stride or size[0] % stride or size[1] % stride)
        return cls(size, side, stride) if square and plain and even and layer.padding_mode == "zeros" else None

    @property
    def grid(self) -> tuple[int, int]:
        """Windows down and across: the size of the smaller map."""
        down, across = ((size - self.side) // self.stride + 1 for size in self.size)
        return down, across

    def unfold(self, framed: Tensor) -> Tensor:
        """Return the pixels of each window: (N, H, W, C) -> (N h w, K K C)."""
        film, row, column, channel = framed.stride()
        shape = (len(framed), *self.grid, self.side, self.side * framed.shape[3])  # a window's row lies in one piece
        windows = framed.as_strided(shape, (film, self.stride * row, self.stride * column, row, channel))
        return windows.reshape(-1, self.side * shape[-1])

    def fold(self, windows: Tensor) -> Tensor:
        """Return at each pixel the sum over the windows it lies in: (N h w, K K C) -> (N, H, W, C)."""
        (height, width), (down, across), stride = self.size, self.grid, self.stride
        steps = self.side // stride  # windows that a pixel lies in, down as across
        channels = windows.shape[1] // self.side**2
        parts = windows.view(-1, down, across, steps, stride, steps, stride * channels)
        framed = windows.new_zeros(len(parts), height, width, channels)
        tiles = framed.view(len(parts), height // stride, stride, width // stride, stride * channels)
        for i in range(steps):
            for j in range(steps):
                tiles[:, i : i + down, :, j : j + across] += parts[:, :, :, i, :, j].transpose(2, 3)
        return framed


class _Unfold(torch.autograd.Function):
    """`_Tiling.unfold`, whose gradient is `fold`."""

    @staticmethod
    def forward(ctx: Any, framed: Tensor, tiling: _Tiling) -> Tensor:
        ctx.tiling = tiling
        return tiling.unfold(framed.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.tiling.fold(gradients[0].contiguous()), None


class _Fold(torch.autograd.Function):
    """`_Tiling.fold`, whose gradient is `unfold`."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, tiling: _Tiling) -> Tensor:
        ctx.tiling = tiling
        return tiling.fold(windows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.tiling.unfold(gradients[0].contiguous()), None


# --- attention by blocks --------------------------------------------------------------------------------------------


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """Return softmax(query key') value, (N, P, A), (N, K, A), (N, K, C) -> (N, P, C), or None where torch's fused
    kernel is to be taken: in other precisions than bfloat16 and on other devices than a processor.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    output: Tensor = _BlockwiseAttention.apply(query, key, value)
    return output


class _BlockwiseAttention(torch.autograd.Function):
    """Attention by blocks of queries.

    Errors are those of bfloat16, like the fused kernel's, of outputs and gradients alike (below 1.5 %); where products
    in the hundreds leave a query a single key, its small gradient is coarser than the kernel's (22 % against 5 %).

    What is subtracted before the exponential, or from the gradient, is subtracted by the matrix product itself: two
    more columns hold the number and its rounding error. The product is summed in float32, so that it is the small
    difference that is rounded, not two large numbers.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = _with_ones(key)
        output = value.new_empty(*query.shape[:2], value.shape[2])
        log_sums = torch.empty(*query.shape[:2], 1)  # of each query's exponentials
        for film, block in _blocks(query, key):
            queries = query[film, block]
            peak = (queries @ key[film].T).amax(dim=1, keepdim=True).float()
            weights = torch.mm(_minus(queries, peak), keys[film].T).exp_()  # (block, K), not yet normalized
            total = weights.sum(dim=1, keepdim=True, dtype=torch.float32)
            output[film, block] = torch.mm(weights, value[film]) / total
            log_sums[film, block] = peak + total.log()
        ctx.save_for_backward(query, keys, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        query, keys, value, output, log_sums = ctx.saved_tensors
        key = keys[..., : query.shape[2]]
        mean_gradient = (gradient * output).sum(dim=2, keepdim=True, dtype=torch.float32)
        queries, deviations, values = _minus(query, log_sums), _minus(gradient, mean_gradient), _with_ones(value)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for film, block in _blocks(query, key):
            weights = torch.mm(queries[film, block], keys[film].T).exp_()
            d_value[film].addmm_(weights.T, gradient[film, block])
            weights *= torch.mm(deviations[film, block], values[film].T)
            d_query[film, block] = torch.mm(weights, key[film])
            d_key[film].addmm_(weights.T, query[film, block])
        return d_query, d_key, d_value


def _blocks(query: Tensor, key: Tensor) -> list[tuple[int, slice]]:
    """Return the blocks of queries of each film."""
    step = max(1, BLOCK_PRODUCTS // key.shape[1])
    return [(film, slice(at, at + step)) for film in range(len(query)) for at in range(0, query.shape[1], step)]


def _with_ones(x: Tensor) -> Tensor:
    """Return `x` with two more columns of ones."""
    return pad(x, (0, 2), value=1.0)


def _minus(x: Tensor, subtrahend: Tensor) -> Tensor:
    """Return `x` with two more columns, which times ones subtract a number, (..., 1) float32, from each product."""
    rounded = subtrahend.to(x.dtype)
    return torch.cat([x, -rounded, -(subtrahend - rounded.float()).to(x.dtype)], dim=-1)
