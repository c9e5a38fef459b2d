"""Films with made-up anomalies, and where these can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly.data.anomalies.diffuse import DIFFUSE
from anomaly.data.anomalies.draws import Draws
from anomaly.data.anomalies.families import FAMILIES
from anomaly.data.anomalies.site import Site
from anomaly.nn.filters import gaussian_blur

ALL = {**FAMILIES, **DIFFUSE}
"""Families by name: those that models are trained on, and the diffuse ones."""
VISIBLE = 0.014
"""Least smoothed absolute change of the level that counts as damage: fainter ones can't be told from grain."""
SMOOTHING = 1.5
"""Standard deviation of the window that a change is smoothed in, in 512ths of a film's side."""
CHANCES = (0.75, 0.25)
"""That a film in training gets a first anomaly, and a second one: a fifth of the films stays as it is."""
TYPICAL_AREA = 100.0
"""Area of an anomaly of weight 3, in squared 512ths of a film's side."""


@dataclass(frozen=True)
class Damaged:
    """Normal films with made-up anomalies."""

    film: Tensor  # (N, 1, H, W) in [0, 1], 0 off the mask
    target: Tensor  # (N, 1, H, W) bool: where an anomaly can be seen
    weight: Tensor  # (N, 1, H, W) >= .9 where there is one, else 1: what a pixel counts in a loss


def instance_weight(area: Tensor, unit: float) -> Tensor:
    """Return what each pixel of an anomaly of `area` pixels counts in a loss: 3 sqrt(100 / area), from .9 to 9.

    Else large anomalies, which have most of all pixels, would be all that is learned. `unit` is as in `Site`.

    >>> instance_weight(torch.tensor([1.0, 100.0, 10_000.0]), unit=1.0)
    tensor([9.0000, 3.0000, 0.9000])
    """
    return 3 * (TYPICAL_AREA * unit**2 / area.clamp(min=1)).sqrt().clamp(0.3, 3)


@torch.no_grad()
def synthesize(
    film: Tensor,
    mask: Tensor,
    side: int,
    families: Sequence[str],
    *,
    chances: Sequence[float] = CHANCES,
    generator: torch.Generator | None = None,
) -> Damaged:
    """Return films with anomalies of these families, each film's family and place drawn at random.

    film       (N, 1, H, W) in [0, 1], mask (N, 1, H, W) bool
    side       of the whole films in pixels, of which the given ones may be crops
    chances    of a first anomaly in a film, a second, ...
    generator  of the host, that everything is drawn from; none takes torch's own
    """
    unit, count = side / 512, len(film)
    target, weight = torch.zeros_like(mask), torch.ones_like(film)
    with torch.autocast(film.device.type, enabled=False):
        donors = torch.randint(1, max(2, count), (1,), generator=generator).item()
        for chance in chances:
            damaged = torch.rand(count, generator=generator) < chance
            kind = torch.randint(len(families), (count,), generator=generator)
            for number, name in enumerate(families):
                chosen = (damaged & (kind == number)).nonzero()[:, 0]
                if not len(chosen):
                    continue
                donor = (chosen + int(donors)) % count
                rows, donor = (places.to(film.device, non_blocking=True) for places in (chosen, donor))
                draws = Draws(len(chosen), film.device, generator)
                site = Site(film[rows], mask[rows], film[donor], mask[donor], unit, draws)
                changed, visible = _seen(site, ALL[name](site))
                film = film.index_copy(0, rows, changed)
                area = visible.sum(dim=(1, 2, 3), keepdim=True)
                heavier = torch.maximum(weight[rows], instance_weight(area, unit))
                # Where two anomalies overlap, the smaller one is what is hard to find.
                own = torch.where(target[rows], heavier, instance_weight(area, unit))
                weight = weight.index_copy(0, rows, torch.where(visible, own, weight[rows]))
                target = target.index_copy(0, rows, target[rows] | visible)
    return Damaged(film, target, weight)


def _seen(site: Site, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changed films, and where the change can be seen; films where it can't are given back as they were."""
    changed = changed.clamp(0, 1) * site.mask
    difference = gaussian_blur((changed - site.film).abs(), max(0.6, SMOOTHING * site.unit))
    visible = (difference >= VISIBLE) & site.mask
    return torch.where(visible.any(dim=(2, 3), keepdim=True), changed, site.film), visible
