"""Self-attention over the places of a map. Zhang et al. 2019 (SAGAN)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

PRODUCTS = 2**20
"""Of queries and keys that are in memory at a time: 2 MB, which stay in a processor's cache."""


class SelfAttention(nn.Module):
    """x + gamma * attention(x) over the positions of a map: (N, C, H, W) -> (N, C, H, W).

    Query and key have C / 8 channels, gamma starts at 0. Key and value are pooled by 2, as in SAGAN, where `pool` is
    set: a quarter of the work.
    """

    def __init__(self, channels: int, *, pool: bool) -> None:
        super().__init__()
        narrow = max(1, channels // 8)
        self.query, self.key = nn.Conv2d(channels, narrow, 1), nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all positions."""
        query, key, value = self.query(x), self.pool(self.key(x)), self.pool(self.value(x))
        out = attend(*(part.flatten(2).transpose(1, 2) for part in (query, key, value)))  # (N, HW, C)
        # In the width of what it is added to: a float32 sum would be cast back by the next layer.
        return x + self.gamma.to(out.dtype) * out.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key') value: (N, P, A), (N, K, A), (N, K, C) -> (N, P, C). SAGAN doesn't scale the product.

    In bfloat16 on a processor by blocks of queries; elsewhere by torch's fused kernel.
    """
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and not torch.compiler.is_compiling():
        out: Tensor = _ByBlocks.apply(query, key, value)
        return out
    # The fused kernel takes one width for all three: query and key are padded with zeros, which changes no product.
    missing = value.shape[2] - query.shape[2]
    query, key = (pad(part, (0, missing)) for part in (query, key))
    return scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]


class _ByBlocks(torch.autograd.Function):
    """What the fused kernel computes, in two thirds of its time where queries are narrow.

    Errors are those of bfloat16, as the kernel's, of outputs and gradients alike (below 1.5 %); where products of
    hundreds leave a query one key, what little gradient is left to it is coarser than the kernel's (22 against 5 %).

    What has to be subtracted before the exponential, or from the gradient, comes out of the product itself as two more
    columns, a number and the rest that its rounding left: the product is summed in float32, and its rounding is then
    that of a small difference, not of two large numbers.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = _with_ones(key)
        out = value.new_empty(*query.shape[:2], value.shape[2])
        logs = torch.empty(*query.shape[:2], 1)  # of each query's sum of exponentials
        for film, some in _blocks(query, key):
            own = query[film, some]
            most = (own @ key[film].T).amax(dim=1, keepdim=True).float()
            chances = torch.mm(_less(own, most), keys[film].T).exp_()  # (some, K), not yet over their sum
            total = chances.sum(dim=1, keepdim=True, dtype=torch.float32)
            out[film, some] = torch.mm(chances, value[film]) / total
            logs[film, some] = most + total.log()
        ctx.save_for_backward(query, keys, value, out, logs)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        query, keys, value, out, logs = ctx.saved_tensors
        key = keys[..., : query.shape[2]]
        along = (gradient * out).sum(dim=2, keepdim=True, dtype=torch.float32)
        queries, changes, values = _less(query, logs), _less(gradient, along), _with_ones(value)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for film, some in _blocks(query, key):
            chances = torch.mm(queries[film, some], keys[film].T).exp_()
            d_value[film].addmm_(chances.T, gradient[film, some])
            chances *= torch.mm(changes[film, some], values[film].T)
            d_query[film, some] = torch.mm(chances, key[film])
            d_key[film].addmm_(chances.T, query[film, some])
        return d_query, d_key, d_value


def _blocks(query: Tensor, key: Tensor) -> list[tuple[int, slice]]:
    """Return each film with some of its queries at a time."""
    step = max(1, PRODUCTS // key.shape[1])
    return [(film, slice(at, at + step)) for film in range(len(query)) for at in range(0, query.shape[1], step)]


def _with_ones(x: Tensor) -> Tensor:
    """Return `x` with two more columns of ones."""
    return pad(x, (0, 2), value=1.0)


def _less(x: Tensor, taken: Tensor) -> Tensor:
    """Return `x` with two more columns, which times ones take a number, (..., 1) in float32, away from each product."""
    coarse = taken.to(x.dtype)
    return torch.cat([x, -coarse, -(taken - coarse.float()).to(x.dtype)], dim=-1)
