"""What a film's header says, what its decoded pixels mean, and the limits that both are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from preprocessing import InputError

MAX_PIXELS = 64_000_000
"""Films of more pixels are refused before they are decoded; the largest X-ray plates have about 25 million."""

MIN_SIDE = 16
"""Films with a shorter side, in pixels, are refused: nothing could be seen on them."""

MAX_BYTES = 2**28
"""Larger files are refused, and so is what unpacks or decodes to more."""


@dataclass(frozen=True)
class Pixels:
    """Decoded pixels and what they mean; `levels.to_levels` turns them into the levels of a film.

    values    (H, W) or (H, W, 3) of any real type.
    bits      significant bits of integers, 1..16: values lie in 0..2 ** bits - 1, or, if `signed`, from
              -2 ** (bits - 1) to 2 ** (bits - 1) - 1. None for floats and wider integers, which have no range to keep.
    signed    whether integers of `bits` bits are signed.
    inverted  whether low is white.
    blank     (H, W) bool, True where there is no image and black is to be shown: padding, shutter; or None.
    beyond    (H, W) bool, True where there is no image, but what is there stays: collimator; or None.
    """

    values: NDArray[Any]
    bits: int | None
    signed: bool = False
    inverted: bool = False
    blank: NDArray[Any] | None = None
    beyond: NDArray[Any] | None = None


@dataclass(frozen=True)
class Header:
    """What the header says, and how to decode the pixels; the last four fields are those of a `Film`.

    height, width  in pixels, before an orientation tag swaps them.
    depth          significant bits, 8..16.
    decode         returns the pixels.
    """

    height: int
    width: int
    depth: int
    decode: Callable[[], Pixels]
    polarity_known: bool = False
    aspect: float = 1.0
    spacing: tuple[float, float] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def check_size(height: int, width: int, bytes_per_pixel: int) -> None:
    """Refuse an image that has no pixels, or too many of them or of their bytes once decoded."""
    if height < 1 or width < 1:
        raise InputError(f"{width} x {height} pixels: damaged header")
    if height * width > MAX_PIXELS:
        raise InputError(f"{width} x {height} has more than {MAX_PIXELS} pixels, the limit; shrink the film")
    if height * width * bytes_per_pixel > MAX_BYTES:
        raise InputError(
            f"{width} x {height} pixels of {bytes_per_pixel} bytes decode to more than {MAX_BYTES} bytes, the limit"
        )
