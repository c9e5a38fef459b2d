"""From decoded pixels to grey levels: luminance, alpha, signs, stretching, orientation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import Pixels
from preprocessing.wording import counted

ORIENTATION = 274  # the tag's number, in TIFF and EXIF alike
_AIR = 1024  # Hounsfield units begin at -1024: PS3.3 C.11.1.1.2 and CT scanners' 12 bits


def depth_of(bits: int | None) -> int:
    """Give the depth of a film whose integers have `bits` significant bits; 16 where there is no range to keep."""
    return 16 if bits is None else max(bits, 8)


def to_levels(pixels: Pixels) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Apply the rules that `film` states: pixels to (H, W) grey levels, 0..2 ** depth - 1.

    Raises `InputError` for NaN, infinity, values beyond the bits they are said to have, and a film all of which is
    blank.
    """
    shown = None if pixels.blank is None else ~pixels.blank
    if shown is not None and not shown.any():
        raise InputError("no image: every pixel is padding or lies beyond the shutter")
    depth = depth_of(pixels.bits)
    if pixels.bits is None:
        check_finite(pixels.values)
        levels = _stretch(_luminance(pixels.values), shown)
        top = 65535
    else:
        values = _luminance(pixels.values)
        if values.dtype.itemsize < 4:
            values = values.astype(np.int32)
        inside = values if shown is None else values[shown]
        low, high = int(inside.min()), int(inside.max())
        lowest, top = _range(low, pixels)
        if low < lowest or high > top:
            raise InputError(f"levels {low}..{high} exceed the {pixels.bits} bits that its header says")
        levels, top = values - lowest, top - lowest
    if pixels.inverted:
        levels = top - levels
    if pixels.bits is not None and pixels.bits < 8:
        levels = levels * 255 // (2**pixels.bits - 1)
    if shown is not None:
        levels = np.where(shown, levels, 0)
    return np.ascontiguousarray(levels, np.uint8) if depth == 8 else np.ascontiguousarray(levels, np.uint16)


def _range(low: int, pixels: Pixels) -> tuple[int, int]:
    """Give the least and greatest value that become levels: least becomes level 0.

    Signed values stay as they are, unless some are negative: then those down to -1024, or all that the bits allow.
    """
    assert pixels.bits is not None
    if not pixels.signed:
        return 0, int(2**pixels.bits - 1)
    half = int(2 ** (pixels.bits - 1))
    if low >= 0:
        return 0, half - 1
    return (-_AIR if low >= -_AIR and half > _AIR else -half), half - 1


def _luminance(values: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) to (H, W), weights 299, 587, 114 per mille; unsigned integers in 16.16 fixed point, rounded."""
    if values.ndim == 2:
        return values
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        weighted = values.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        return np.asarray(np.rint(weighted), values.dtype) if values.dtype.kind in "iu" else np.asarray(weighted)
    red, green, blue = np.moveaxis(values.astype(np.uint32), 2, 0)
    # The three weights add up to 65536, and 65535 * 65536 + 32768 still fits 32 bits.
    return np.asarray((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)


def over_black(planes: NDArray[Any], alpha: NDArray[Any], bits: int) -> NDArray[Any]:
    """Composite (H, W) or (H, W, 3) unsigned planes of `bits` bits over black by alpha (H, W) of the same type."""
    full = 2**bits - 1
    weight = alpha.astype(np.uint32) if planes.ndim == 2 else alpha.astype(np.uint32)[..., None]
    return np.asarray((planes * weight + full // 2) // full, planes.dtype)


def _stretch(values: NDArray[Any], shown: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Map lowest..highest of what is shown to 0..65535, rounded; flat values give zeros."""
    values = values.astype(np.float64)
    inside = values if shown is None else values[shown]
    low, high = float(inside.min()), float(inside.max())
    # Scaled before subtracting: highest - lowest of huge floats would overflow.
    scale = max(abs(low), abs(high), np.finfo(np.float64).tiny)
    span = high / scale - low / scale
    if span == 0:
        return np.zeros(values.shape, np.int32)
    return np.rint(np.clip((values / scale - low / scale) / span, 0, 1) * 65535).astype(np.int32)


def check_finite(values: NDArray[Any]) -> None:
    """Refuse complex numbers, records, NaN and infinity."""
    if values.dtype.kind not in "biuf":
        raise InputError(f"pixels of type {values.dtype}; real numbers are needed")
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"NaN or infinity in {counted(bad, 'pixel')}; give every pixel a gray level")


def upright(planes: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, ...) by the orientation tag, 1..8, of TIFF 6.0; any other number means 1."""
    if orientation in (5, 6, 7, 8):
        planes = planes.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        planes = planes[::-1]
    if orientation in (2, 3, 6, 7):
        planes = planes[:, ::-1]
    return planes
