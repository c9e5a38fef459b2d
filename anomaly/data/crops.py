"""Random crops of training films at full resolution."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anomaly.data.batch import Batch

LEAST_SHARE = 0.25
"""Of a crop, the least that lies under the mask, where the film has such a crop."""


@dataclass(frozen=True)
class Crops:
    """Crops of `side` x `side` pixels, `per_film` of each film."""

    side: int
    per_film: int = 1

    def cut(self, batch: Batch, seed: int) -> Batch:
        """Return crops of each film of a batch, those of one film in a row.

        Each is drawn from all crops of which a quarter or more lies under the mask; of a film that has none, from those
        with the most. The draws are made on the host from the seed alone: all devices crop alike, and none is waited
        for.

        batch  of films and masks alone, (N, 1, H, W), no side shorter than the crops'; returns (N per_film, 1, side,
        side)
        """
        side = self.side
        mask = batch.mask[:, 0]
        table = torch.zeros(len(mask), mask.shape[1] + 1, mask.shape[2] + 1, dtype=torch.int32, device=mask.device)
        table[:, 1:, 1:] = mask.to(torch.int32).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
        # Pixels under the mask, of the crop whose upper left corner is at each place: (N, h, w).
        inside = table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]
        enough = inside >= inside.amax(dim=(1, 2), keepdim=True).clamp(max=int(LEAST_SHARE * side**2))
        places = enough.flatten(1).cumsum(1, dtype=torch.int32)  # (N, h w)
        drawn = torch.rand(len(mask), self.per_film, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn = drawn.to(torch.float32).clamp(max=1 - 2**-24).to(mask.device, non_blocking=True)
        wanted = (drawn * places[:, -1:]).to(torch.int32).minimum(places[:, -1:] - 1)
        index = torch.searchsorted(places, wanted, right=True).flatten()  # (N per_film,)
        columns = inside.shape[2]
        film = torch.arange(len(mask), device=mask.device).repeat_interleave(self.per_film)
        top, left = index // columns, index % columns
        within = torch.arange(side, device=mask.device)
        rows, across = (top[:, None] + within)[:, :, None], (left[:, None] + within)[:, None]

        def cut(value: Tensor) -> Tensor:
            return value[film[:, None, None], 0, rows, across][:, None]

        return replace(batch, film=cut(batch.film), mask=cut(batch.mask), label=batch.label[film])
