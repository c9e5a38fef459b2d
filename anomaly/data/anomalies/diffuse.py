"""Made-up anomalies of a large part of a film, as diffuse disease is: the same signature as the focal families.

No model is trained on them. They are general image operations like the others: detail that is lost, levels that are
raised or lowered, a pattern that is added, over a region of a fifth to a half of the film's side.
"""

from collections.abc import Mapping

from torch import Tensor

from anomaly.data.anomalies.families import Family
from anomaly.data.anomalies.site import Site, blob
from anomaly.nn.filters import gaussian_blur

RADIUS = (50, 130)
"""Least and largest radius of the region, in 512ths of the film's side."""


def opacity(site: Site) -> Tensor:
    """Return films of which a large region is whiter, and its detail fainter."""
    draws, unit = site.draws, site.unit
    low = gaussian_blur(site.film, unit * draws.number(6, 16))
    veil = draws.strength(0.08, 0.6)
    return site.film + _region(site) * veil * ((1 - low) * draws.uniform(0.3, 0.8) + (low - site.film))


def haze(site: Site) -> Tensor:
    """Return films of which a large region has lost detail, its levels kept."""
    draws = site.draws
    low = gaussian_blur(site.film, site.unit * draws.number(3, 12))
    return site.film + _region(site) * draws.strength(0.25, 1.0) * (low - site.film)


def density(site: Site) -> Tensor:
    """Return films of which a large region has other levels, its detail kept in proportion."""
    draws = site.draws
    return site.film * (1 + _region(site) * draws.sign() * draws.strength(0.06, 0.5))


def mottle(site: Site) -> Tensor:
    """Return films of which a large region has a coarse pattern added, in proportion to its levels."""
    draws = site.draws
    pattern = draws.field(site.film.shape, site.unit * draws.number(5, 20))
    return site.film + _region(site) * draws.strength(0.03, 0.25) * pattern * (0.2 + site.film)


def _region(site: Site) -> Tensor:
    middle, radius = site.radius(*RADIUS)
    region: Tensor = blob(site, site.place(0.0), radius, middle)
    return region


DIFFUSE: Mapping[str, Family] = {"opacity": opacity, "haze": haze, "density": density, "mottle": mottle}
