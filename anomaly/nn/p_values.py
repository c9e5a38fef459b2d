"""How seldom normal values are as large as a given one, beyond the resolution of their number too."""

from math import ceil, log, sqrt

import numpy as np
import torch
from torch import Tensor, nn

KNOTS = 256
"""Points of the empirical distribution that are kept, evenly spaced in -log p."""
LEAST_TAIL = 10
"""Normal values that the tail is fitted to, at least; with fewer than twice as many, half of them."""
TINY = 1e-12
"""A value of exactly 0 has no logarithm."""


class PValue(nn.Module):
    """-log p of values, p the share of normal ones that are at least as large.

    Up to the greatest sqrt(n) (at least 10) of n normal values, p is empirical: the j-th smallest has p = 1 - j /
    (n + 1), its expectation (Weibull's plotting position), and -log p is linear in between. An empirical p ends at 1 /
    (n + 1), where all that is clearly abnormal would be tied; so beyond, p falls off exponentially, with the mean
    excess of the greatest normal values as its scale: the generalized Pareto distribution of shape 0 (Pickands 1975).
    Values that have a natural zero, none of the normal ones being negative, are taken by their logarithm, which makes
    the tail a power law with Hill's estimate (1975) of its exponent. The shape isn't fitted: from some tens of values
    it is mostly noise, and a negative one gives p = 0.

    -log p never falls as the value rises, and rises strictly between distinct normal values and beyond them, so that a
    ranking by it is the values' own. Of normal values its mean is about 1.
    """

    knots: Tensor  # (KNOTS,) values, or their logarithms
    levels: Tensor  # (KNOTS,) -log p of each
    scale: Tensor  # () mean excess over the last knot
    logarithm: Tensor  # () bool

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(0, 1, KNOTS))
        self.register_buffer("levels", torch.linspace(0, 1, KNOTS))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("logarithm", torch.zeros((), dtype=torch.bool))

    def fit(self, values: Tensor) -> None:
        """Take the values of normal films or pixels, (n,), n >= 2 and finite; raises ValueError on others."""
        count = len(values)
        if values.ndim != 1 or count < 2 or not values.isfinite().all():
            raise ValueError(f"values {tuple(values.shape)} must be (n,), n >= 2, and finite")
        x = np.sort(values.detach().cpu().double().numpy())
        tail = min(max(LEAST_TAIL, ceil(sqrt(count))), count // 2)
        start = count - tail - 1  # the place of the value that the tail begins at
        logarithm = bool(x[0] >= 0 and x[start] > 0)
        if logarithm:
            x = np.log(np.maximum(x, TINY))
        levels = np.linspace(log((count + 1) / count), log((count + 1) / (tail + 1)), KNOTS)
        knots = np.quantile(x, -np.expm1(-levels), method="weibull")
        excess = float((x[start + 1 :] - x[start]).mean())
        device = self.knots.device
        self.knots = torch.from_numpy(knots).float().to(device)
        self.levels = torch.from_numpy(levels).float().to(device)
        # All of the greatest values being one, there is no scale but their own unit.
        self.scale = torch.tensor(excess or 1.0, dtype=torch.float32, device=device)
        self.logarithm = torch.tensor(logarithm, device=device)

    def forward(self, values: Tensor) -> Tensor:
        """Return -log p of each value, >= 0, in float32: any shape -> the same."""
        x = values.float().contiguous()
        x = torch.where(self.logarithm, x.clamp(min=TINY).log(), x)
        # The first knot that is at least as large: among equal ones the one with the greatest p.
        above = torch.searchsorted(self.knots, x).clamp(1, KNOTS - 1)
        low, high = self.knots[above - 1], self.knots[above]
        share = ((x - low) / (high - low).clamp(min=TINY)).clamp(0, 1)
        inside = torch.lerp(self.levels[above - 1], self.levels[above], share)
        # Below the smallest normal value -log p goes to 0 without reaching it: no ties there either.
        reach = (self.knots[-1] - self.knots[0]).clamp(min=TINY)
        below = torch.exp((x - self.knots[0]).clamp(max=0) / reach)
        return inside * below + (x - self.knots[-1]).clamp(min=0) / self.scale
