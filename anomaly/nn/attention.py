"""Self-attention over the positions of a map. Zhang et al. 2019 (SAGAN)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from anomaly.nn.cpu_kernels import blockwise_attention


class SelfAttention(nn.Module):
    """x + gamma * attention(x) over the positions of a map: (N, C, H, W) -> (N, C, H, W).

    Query and key have C / 8 channels, gamma starts at 0. With `pool`, key and value are pooled by 2, as in SAGAN: a
    quarter of the work.
    """

    by_blocks = True
    """Whether a processor attends by blocks of queries in bfloat16, where `blockwise_attention` can."""

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
        parts = (part.flatten(2).transpose(1, 2) for part in (query, key, value))
        attended = attend(*parts, by_blocks=self.by_blocks)  # (N, HW, C)
        # gamma in the precision of what it scales: a float32 sum would be cast back by the next layer.
        scaled = self.gamma.to(attended.dtype) * attended.view(-1, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        return x + scaled


def attend(query: Tensor, key: Tensor, value: Tensor, *, by_blocks: bool = True) -> Tensor:
    """Return softmax(query key') value: (N, P, A), (N, K, A), (N, K, C) -> (N, P, C).

    The product is not scaled, as in SAGAN. `by_blocks` as in `SelfAttention`.
    """
    attended = blockwise_attention(query, key, value) if by_blocks else None
    if attended is not None:
        return attended
    # The fused kernel takes one width for all three: query and key are padded with zeros, which changes no product.
    missing = value.shape[2] - query.shape[2]
    query, key = (pad(part, (0, missing)) for part in (query, key))
    return scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]
