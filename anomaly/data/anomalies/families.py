"""Families of made-up anomalies, one signature: the films of a `Site` -> the same films, each with one anomaly.

All of them are general image operations, drawn from hardly visible to obvious; none knows a disease. Sizes are in
512ths of the side of a whole film (`Site.unit`), levels in shares of the greatest one.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from anomaly.data.anomalies.site import Site, blob, sampled, soft, turned
from anomaly.nn.filters import gaussian_blur

Family = Callable[[Site], Tensor]


def patch(site: Site) -> Tensor:
    """Return films with a region of another film, or of another place of the same one.

    Half of the patches are flipped copies to the pixel, the others also turned and scaled. Of most the levels are
    shifted so that they meet the film's at the border: the difference at the border is continued smoothly inwards, as
    Poisson blending does exactly (Perez et al. 2003); others keep their levels under the soft border.
    """
    draws = site.draws
    place, source = site.place(0.5), site.donor_place()
    middle, radius = site.radius(5, 40)
    alpha = blob(site, place, radius, middle)
    right, down = site.offsets(place)
    right, down = right * draws.sign(), down * draws.sign()
    exact = draws.chance(0.5)
    along, across = turned(right, down, torch.where(exact, 0.0, draws.angle()))
    scale = torch.where(exact, 1.0, draws.log_uniform(0.7, 1.4))
    x, y = source.x + scale * along, source.y + scale * across
    foreign = sampled(site.donor, x, y)
    alpha = alpha * (sampled(site.donor_mask.to(foreign.dtype), x, y) > 0.5)
    outside = (1 - alpha) * site.mask
    difference = gaussian_blur(torch.cat([(site.film - foreign) * outside, outside], dim=1), middle)
    shift = difference[:, :1] / difference[:, 1:].clamp(min=1e-3)
    foreign = torch.where(draws.chance(0.75), foreign + shift, foreign)
    return site.film + alpha * draws.strength(0.3, 1.0) * (foreign - site.film)


def warp(site: Site) -> Tensor:
    """Return films of which a region is bent: shifted, swollen or shrunk, twisted, or crumpled."""
    draws = site.draws
    place = site.place(0.8)
    middle, radius = site.radius(8, 50)
    right, down = site.offsets(place)
    along, across = turned(right, down, draws.angle())
    stretch = draws.log_uniform(0.6, 1.6)
    distance = ((along / stretch).square() + (across * stretch).square()).sqrt() / radius
    window = torch.exp(-0.5 * distance.square().square())  # flat inside, steep at the border
    depth = radius * draws.strength(0.08, 0.6)
    shift, swelling, twist, crumpling = (draws.uniform(-1, 1) * draws.chance(0.5) for _ in range(4))
    angle, wave = draws.angle(), middle * draws.number(0.3, 1.0)
    move_x = shift * angle.cos() + (swelling * right - twist * down) / radius
    move_y = shift * angle.sin() + (swelling * down + twist * right) / radius
    move_x = move_x + 0.5 * crumpling * draws.field(site.film.shape, wave)
    move_y = move_y + 0.5 * crumpling * draws.field(site.film.shape, wave)
    depth = depth * window
    return sampled(site.film, right + place.x + depth * move_x, down + place.y + depth * move_y)


def fracture(site: Site) -> Tensor:
    """Return films with a thin line across an edge, most of them dark, and a step: one side of it is displaced.

    The line runs about along the gradient, so across the bone of which the edge is the border; it is wavy or jagged.
    The displacement is that of the film beyond the line, fading with the distance. One of line and step may be missing.
    """
    draws, unit = site.draws, site.unit
    place = site.place(0.9)
    _, reach = site.radius(8, 45)
    right, down = site.offsets(place)
    angle = place.angle + draws.uniform(-0.6, 0.6)
    along, across = turned(right, down, angle)
    fine, coarse = (draws.field(site.film.shape, unit * draws.number(*span)) for span in ((2, 6), (8, 30)))
    across = across + unit * (draws.log_uniform(0.2, 1.5) * fine + draws.log_uniform(0.5, 4) * coarse)
    # The line ends softly at both ends; the step fades about the place.
    ends = soft(reach - along.abs(), 0.1 * reach)
    beyond = soft(across, 0.4 * unit) * torch.exp(-0.5 * (across / reach).square().square()) * ends
    step = unit * draws.strength(0.7, 10) * draws.chance(0.7)
    slip = angle + torch.where(draws.chance(0.6), draws.uniform(-0.4, 0.4), draws.uniform(1.2, 1.9))  # along, or apart
    slip = slip + math.pi * draws.chance(0.5)
    moved = sampled(
        site.film,
        right + place.x + step * beyond * slip.cos(),
        down + place.y + step * beyond * slip.sin(),
    )
    width = unit * draws.log_uniform(0.5, 2.5)
    line = torch.exp(-0.5 * (across / width).square()) * ends * (0.75 + 0.25 * fine).clamp(0, 1.5)
    level = draws.sign(0.25) * draws.strength(0.04, 0.6) * (draws.chance(0.8) | (step == 0))
    # A line shows in proportion to what it breaks.
    return moved + level * line * (0.3 + moved)


def contrast(site: Site) -> Tensor:
    """Return films of which a region is blurred or sharpened, has other levels, or another texture."""
    draws, unit = site.draws, site.unit
    place = site.place(0.5)
    middle, radius = site.radius(6, 50)
    alpha = blob(site, place, radius, middle)
    low = gaussian_blur(site.film, unit * draws.number(1.2, 8))
    kind = draws.uniform(0, 1)
    blurred, sharpened = -draws.strength(0.3, 1), draws.strength(0.4, 2.5)
    detail = torch.where(kind < 0.3, blurred, torch.where(kind < 0.5, sharpened, 0.0))
    level = torch.where((kind > 0.5) & (kind < 0.75), draws.sign() * draws.strength(0.06, 0.6), 0.0)
    texture = torch.where(kind > 0.75, draws.strength(0.03, 0.35), 0.0)
    grain = draws.field(site.film.shape, unit * draws.number(2.5, 10))
    # Holes rather than grain of both signs: what is destroyed is patchy and of one level.
    grain = torch.where(draws.chance(0.5), grain, draws.sign(0.4) * 1.5 * soft(grain - 0.5, 0.2))
    return site.film + alpha * (detail * (site.film - low) + level * low + texture * grain)


def shape(site: Site) -> Tensor:
    """Return films with something bright or dark drawn in: a blob with or without a rim, a plate with or without
    holes, or a wire; faint or opaque.
    """
    draws, unit = site.draws, site.unit
    place = site.place(0.6)
    middle, radius = site.radius(3, 32)
    region = blob(site, place, radius, middle)
    rim = 4 * region * (1 - region)  # 1 where the border lies
    sign = draws.sign(0.45)
    drawn = region - torch.where(draws.chance(0.4), draws.uniform(0.2, 1), 0.0) * rim
    along, across = turned(*site.offsets(place), draws.angle())
    # A plate: long, straight or slightly bent, with a sharp border.
    length, bend = radius * draws.log_uniform(1.2, 3), draws.uniform(-0.3, 0.3)
    across = across + bend * along.square() / length
    sharp = unit * draws.log_uniform(0.5, 2)
    half = length / draws.log_uniform(2.5, 6)
    plate = soft(length - along.abs(), sharp) * soft(half - across.abs(), sharp)
    spacing = half * draws.uniform(2, 3)
    from_hole = ((torch.remainder(along, spacing) - spacing / 2).square() + across.square()).sqrt()
    plate = plate * (1 - soft(0.6 * half - from_hole, sharp) * draws.chance(0.5))
    wire = soft(1.3 * length - along.abs(), sharp) * soft(unit * draws.log_uniform(0.7, 2.5) - across.abs(), 0.5 * unit)
    kind = draws.uniform(0, 1)
    metal = kind > 0.6
    drawn = torch.where(metal, torch.where(kind > 0.8, wire, plate), drawn)
    sign = torch.where(metal, draws.sign(0.85), sign)
    amount = draws.strength(0.05, 1.0)
    opaque = amount * drawn * (torch.where(sign > 0, 1.0, 0.0) - site.film)  # hides what lies there
    clear = 0.6 * sign * amount * drawn * (0.4 + site.film)  # adds to what lies there
    return site.film + torch.where(draws.chance(0.5), opaque, clear)


def structure(site: Site) -> Tensor:
    """Return films of which a region has lost its edges, has edges that it hadn't, or has them moved.

    Lost: the region is painted in from what surrounds it. New: a curved ridge with another level on one of its sides,
    as a cortex is. Moved: bright structure is thinned or thickened (grey-level erosion and dilation).
    """
    draws, unit = site.draws, site.unit
    place = site.place(0.8)
    middle, radius = site.radius(5, 36)
    alpha = blob(site, place, radius, middle)
    outside = (1 - alpha) * site.mask
    around = gaussian_blur(torch.cat([site.film * outside, outside], dim=1), 0.7 * middle)
    low = gaussian_blur(site.film, 1.5 * unit)
    lost = around[:, :1] / around[:, 1:].clamp(min=1e-3) + 0.7 * (site.film - low)  # its grain is kept
    along, across = turned(*site.offsets(place), draws.angle())
    wave = draws.field(site.film.shape, middle)
    across = across + draws.uniform(-0.4, 0.4) * along.square() / radius + 0.15 * radius * wave
    width, level = unit * draws.log_uniform(0.8, 5), draws.strength(0.05, 0.5)
    ridge = torch.exp(-0.5 * (across / width).square()) + draws.uniform(-1, 1) * (soft(across, width) - 0.5)
    new = site.film + level * ridge * draws.sign(0.8)
    size = 2 * max(1, round(unit * draws.number(1, 4))) + 1
    thinner, thicker = (sign * max_pool2d(sign * site.film, size, stride=1, padding=size // 2) for sign in (-1.0, 1.0))
    moved = torch.where(draws.chance(0.6), thinner, thicker)
    kind = draws.uniform(0, 1)
    other = torch.where(kind < 0.4, lost, torch.where(kind < 0.7, new, moved))
    return site.film + alpha * draws.strength(0.3, 1.0) * (other - site.film)


FAMILIES: Mapping[str, Family] = {
    "patch": patch,
    "warp": warp,
    "fracture": fracture,
    "contrast": contrast,
    "shape": shape,
    "structure": structure,
}
