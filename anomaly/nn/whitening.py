"""Principal components of features, each brought to mean 0 and variance 1."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from anomaly.nn.fitted import Fitted
from preprocessing import InputError

NEGLIGIBLE = 1e-6
"""Variance along an axis, as a share of the first one's, below which it is rounding."""


class Whitening(Fitted):
    """An affine map of features to their principal components, found from features that are standardized first."""

    projection: Tensor  # (C, A)
    offset: Tensor  # (A,)

    fitted: ClassVar = ("projection", "offset")

    def __init__(self, axes: int, *, equal_spread: bool) -> None:
        """Keep `axes` components at most; `equal_spread` brings each to variance 1, or else leaves what it has."""
        super().__init__()
        self.axes, self.equal_spread = axes, equal_spread

    def fit(self, features: Iterable[Tensor]) -> None:
        """Find the axes from features, each (M, C), streamed; InputError where they are fewer than the axes."""
        count, first, second = 0, torch.zeros(()), torch.zeros(())
        for some in features:
            values = some.double()
            count, first, second = count + len(some), values.sum(dim=0) + first, values.T @ values + second
        if count <= min(self.axes, len(first)):
            raise InputError(
                f"the normal films have {count} cells under their masks, too few for {self.axes} axes: take more "
                "films, or lower --set axes="
            )
        mean = first / count
        covariance = second / count - mean[:, None] * mean
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        deviation = deviation.clamp(min=1e-6 * float(deviation.max()) + 1e-12)
        variance, axes = torch.linalg.eigh(covariance / (deviation[:, None] * deviation))
        variance, axes = variance.flip(0)[: self.axes], axes.flip(1)[:, : self.axes]
        usable = variance > NEGLIGIBLE * variance[0]
        spread = variance[usable].sqrt() if self.equal_spread else torch.ones_like(variance[usable])
        projection = axes[:, usable] / deviation[:, None] / spread
        self.projection, self.offset = projection.float(), (mean @ projection).float()

    def forward(self, features: Tensor) -> Tensor:
        """Return the components of features: (M, C) -> (M, A)."""
        return features @ self.projection - self.offset
