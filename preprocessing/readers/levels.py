"""From decoded values to grey levels: luminance, alpha, stretching, orientation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.wording import counted

ORIENTATION = 274  # the tag's number, in TIFF and EXIF alike


def to_levels(values: NDArray[Any], depth: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Apply the rules that `film` states: (H, W) or (H, W, 3) of any real type to (H, W) grey levels."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        check_finite(values)
        values = _stretch(_luminance(values))
    elif values.dtype.kind == "i":
        values = _luminance(values)
        values = values.astype(np.int32) - min(int(values.min()), 0)
    else:
        values = _luminance(values)
    return np.ascontiguousarray(values, np.uint8) if depth == 8 else np.ascontiguousarray(values, np.uint16)


def _luminance(values: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) to (H, W), weights 299, 587, 114 per mille; unsigned integers in 16.16 fixed point, rounded."""
    if values.ndim == 2:
        return values
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        return np.asarray(values.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))
    red, green, blue = np.moveaxis(values.astype(np.uint32), 2, 0)
    # The three weights add up to 65536, and 65535 * 65536 + 32768 still fits 32 bits.
    return np.asarray((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)


def over_black(planes: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Composite (H, W) or (H, W, 3) unsigned planes over black by alpha (H, W) of the same type."""
    full = int(np.iinfo(planes.dtype).max)
    weight = alpha.astype(np.uint32) if planes.ndim == 2 else alpha.astype(np.uint32)[..., None]
    return ((planes * weight + full // 2) // full).astype(planes.dtype)


def _stretch(values: NDArray[Any]) -> NDArray[np.float64]:
    """Map lowest..highest to 0..65535, rounded; flat values give zeros."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    # Scaled before subtracting: highest - lowest of huge floats would overflow.
    scale = max(abs(low), abs(high), np.finfo(np.float64).tiny)
    span = high / scale - low / scale
    return np.zeros_like(values) if span == 0 else np.rint((values / scale - low / scale) / span * 65535)


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
