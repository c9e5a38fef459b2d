"""What a recipe works on: a film with square pixels, what is to be made of it, and what was located on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocessing import InputError, steps
from preprocessing.cache.schema import stage_of
from preprocessing.crop import Box4, clip_box, place_box
from preprocessing.nets import Nets, Side

if TYPE_CHECKING:
    from preprocessing.readers import Film

ASPECT = 8.0  # of a pixel, at most, and 1 / ASPECT at least: no detector has pixels as long

IDENTITY: steps.Matrix = np.eye(2, 3)


Hands = tuple[tuple[Side, steps.Box | None], ...]  # side of the body, and box on the upright film; None: all of it


@dataclass(frozen=True)
class Request:
    """What is to be made of a film, and what came with it."""

    variants: tuple[str, ...]
    dtype: np.dtype[Any]
    box: Box4 | None
    mask: steps.Mask | None
    anomaly: steps.Mask | None
    nets: Nets

    @property
    def stages(self) -> set[str]:
        """The stages that the variants need."""
        return {stage_of(variant) for variant in self.variants}


@dataclass(frozen=True)
class Scene:
    """A film with its hands located: what all of them have in common.

    film        as read, with square pixels                     pixels      (H, W) the same, bones bright
    to_square   film (x, y) as read -> with square pixels       exposed     (H, W) bool, the exposed field; None: all
    upright     (h, w) the carrier, turned upright              to_upright  film (x, y), square -> upright (x, y)
    markers     boxes of side markers on the upright film       fallbacks   steps that found nothing so far
    """

    film: Film
    pixels: steps.Pixels
    to_square: steps.Matrix
    inverted: bool
    exposed: steps.Mask | None
    carrier: steps.Corners | None
    upright: steps.Pixels
    to_upright: steps.Matrix
    hands: Hands
    markers: tuple[Box4, ...]
    turns: int
    fallbacks: tuple[str, ...]


def squared(film: Film, request: Request) -> tuple[Film, Request, steps.Matrix]:
    """Resample a film, and what was given with it, so that its pixels are square; the matrix to where they lie then."""
    if film.aspect == 1:
        return film, request, IDENTITY
    if not 1 / ASPECT <= film.aspect <= ASPECT:
        raise InputError(f"its pixels are {film.aspect:g} times as high as wide; at most {ASPECT:g} times is plausible")
    pixels, matrix = steps.square(film.pixels, film.aspect)
    shape = pixels.shape[0], pixels.shape[1]
    exposed, mask, anomaly = (
        None if old is None else steps.warp_mask(old, matrix, shape)
        for old in (film.exposed, request.mask, request.anomaly)
    )
    box = None if request.box is None else place_box(request.box, matrix)
    return replace(film, pixels=pixels, exposed=exposed), replace(request, box=box, mask=mask, anomaly=anomaly), matrix


def given_region(box: Box4, shape: tuple[int, ...]) -> steps.Box:
    """Give the whole pixels of a box that was given with a film."""
    region = clip_box(box, shape)
    if region is None:
        raise InputError(
            f"the box {box} lies beside the film of {shape[1]} x {shape[0]} pixels; "
            "give x0 y0 x1 y1 in pixels of the film"
        )
    return region
