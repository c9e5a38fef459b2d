"""A coreset: few cells that stand for all that normal films have, as PatchCore keeps them (Roth et al. 2022)."""

from typing import ClassVar

import torch
from torch import Tensor

from anomaly.nn.fitted import Fitted


class Coreset(Fitted):
    """Scores a cell by its distance to the nearest member."""

    members: Tensor  # (K, A)

    fitted: ClassVar = ("members",)

    def fit(self, cells: Tensor, count: int, generator: torch.Generator) -> None:
        """Choose `count` of the cells (M, A), each the one farthest from those chosen before (greedy k-center).

        The first is drawn by `generator`, on the CPU. Time is M x count x A; memory M x A.
        """
        chosen = int(torch.randint(len(cells), (), generator=generator))
        members = []
        distance = torch.full((len(cells),), torch.inf, device=cells.device)
        for _ in range(count):
            members.append(chosen)
            distance = torch.minimum(distance, (cells - cells[chosen]).square().sum(dim=1))
            chosen = int(distance.argmax())
        self.members = cells[members].clone()

    def forward(self, cells: Tensor) -> Tensor:
        """Return how far the cells of one film are from the nearest member: (M, A) -> (M,)."""
        self.check_fitted()
        nearest = torch.addmm(self.members.square().sum(dim=1), cells, self.members.T, alpha=-2).argmin(dim=1)
        # Of the difference itself: as one of squares, a distance near 0 would be their rounding.
        return (cells - self.members[nearest]).square().sum(dim=1).sqrt()
