"""From decoded pixels to grey levels: luminance, alpha, signs, stretching, orientation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import Pixels
from preprocessing.wording import counted

ORIENTATION = 274  # the tag's number, in TIFF and EXIF alike
BAND_ROWS = 256  # of a film, worked on at a time: in 32 bits or 64 a whole one would take many times its own size
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
    dtype = np.uint8 if depth == 8 else np.uint16
    if pixels.bits is None:
        check_finite(pixels.values)
        values = _luminance(pixels.values)
        low, scale, span = _span(values, shown)
        stretch = partial(_stretched, low=low, scale=scale, span=span, inverted=pixels.inverted)
        return _by_rows(stretch, dtype, values, shown)
    values = _luminance(pixels.values)
    inside = values if shown is None else values[shown]
    low, high = int(inside.min()), int(inside.max())
    lowest, top = _range(low, pixels)
    if low < lowest or high > top:
        raise InputError(f"levels {low}..{high} exceed the {pixels.bits} bits that its header says")
    bits = pixels.bits
    if values.dtype == dtype and lowest == 0 and bits >= 8 and not pixels.inverted and shown is None:
        return np.ascontiguousarray(values)  # levels already, as of most PNG and JPEG files

    def levels(part: NDArray[Any], seen: NDArray[np.bool_] | None) -> NDArray[Any]:
        found = part.astype(np.int32) - lowest if part.dtype.itemsize < 4 else part - lowest
        found = top - lowest - found if pixels.inverted else found
        found = found * 255 // (2**bits - 1) if bits < 8 else found
        return found if seen is None else np.where(seen, found, 0)

    return _by_rows(levels, dtype, values, shown)


def _by_rows(function: Any, dtype: Any, *arrays: Any) -> NDArray[Any]:
    """Apply a function to arrays (H, ...) or None, some rows at a time: what it needs in between stays small."""
    first = arrays[0]
    out = np.empty(first.shape if first.ndim == 2 or dtype is None else first.shape[:2], dtype or first.dtype)
    for top in range(0, len(first), BAND_ROWS):
        rows = slice(top, top + BAND_ROWS)
        out[rows] = function(*(None if array is None else array[rows] for array in arrays))
    return out


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
    if values.dtype.kind in "iu" and (values.dtype.kind == "i" or values.dtype.itemsize > 2):
        return _by_rows(lambda rows: np.rint(_weighted(rows)), values.dtype, values)
    if values.dtype.kind != "u":
        return _by_rows(_weighted, np.float64, values)
    return _by_rows(_fixed_point, values.dtype, values)


def _weighted(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def _fixed_point(values: NDArray[Any]) -> NDArray[np.uint32]:
    red, green, blue = np.moveaxis(values.astype(np.uint32), 2, 0)
    # The three weights add up to 65536, and 65535 * 65536 + 32768 still fits 32 bits.
    return np.asarray((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)


def over_black(planes: NDArray[Any], alpha: NDArray[Any], bits: int) -> NDArray[Any]:
    """Composite (H, W) or (H, W, 3) unsigned planes of `bits` bits over black by alpha (H, W) of the same type."""
    full = 2**bits - 1

    def composite(part: NDArray[Any], cover: NDArray[Any]) -> NDArray[Any]:
        weight = cover.astype(np.uint32) if part.ndim == 2 else cover.astype(np.uint32)[..., None]
        return np.asarray((part * weight + full // 2) // full)

    return _by_rows(composite, None, planes, alpha)


def _span(values: NDArray[Any], shown: NDArray[np.bool_] | None) -> tuple[float, float, float]:
    """Give the lowest of what is shown, what to divide by first, and the range of the quotients."""
    inside = values if shown is None else values[shown]
    low, high = float(inside.min()), float(inside.max())
    # Scaled before subtracting: highest - lowest of huge floats would overflow.
    scale = max(abs(low), abs(high), np.finfo(np.float64).tiny)
    return low, scale, high / scale - low / scale


def _stretched(
    values: NDArray[Any], shown: NDArray[np.bool_] | None, *, low: float, scale: float, span: float, inverted: bool
) -> NDArray[Any]:
    """Map lowest..highest of what is shown to 0..65535, rounded; flat values give zeros."""
    part = values.astype(np.float64) / scale - low / scale
    levels = np.rint(np.clip(part / span, 0, 1) * 65535).astype(np.int32) if span else np.zeros(values.shape, np.int32)
    levels = 65535 - levels if inverted else levels
    return levels if shown is None else np.where(shown, levels, 0)


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
