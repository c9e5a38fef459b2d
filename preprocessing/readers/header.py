"""What a film's header says, and the limits that it is held to before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

MAX_PIXELS = 64_000_000
"""Films of more pixels are refused before they are decoded; the largest X-ray plates have about 25 million."""

MIN_SIDE = 16
"""Films with a shorter side, in pixels, are refused: nothing could be seen on them."""

MAX_BYTES = 2**28
"""Larger files are refused, and so is what unpacks to more."""


@dataclass(frozen=True)
class Header:
    """What the header says, and how to decode the pixels.

    height, width  in pixels, before an orientation tag swaps them.
    depth          significant bits, 8..16.
    decode         returns the pixels, (H, W) or (H, W, 3) of any real type; low is dark.
    """

    height: int
    width: int
    depth: int
    decode: Callable[[], NDArray[Any]]


def too_many_pixels(image: str) -> str:
    """Say that an image has too many of them."""
    return f"{image} has more than {MAX_PIXELS} pixels, the limit; shrink the film"
