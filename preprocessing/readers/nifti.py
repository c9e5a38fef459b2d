"""NIfTI-1 and NIfTI-2 images of one film or one slice, packed by gzip or not, by nibabel."""

from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import MAX_BYTES, Header, Pixels, check_size
from preprocessing.readers.levels import depth_of


def open_nifti(data: bytes) -> Header:
    """Read the header; `InputError` for several slices or frames, and where nibabel is missing."""
    try:
        import nibabel
    except ImportError:
        raise InputError("a NIfTI film needs nibabel: `pip install nibabel`") from None

    packed = data.startswith(b"\x1f\x8b")
    head = gzip.GzipFile(fileobj=io.BytesIO(data)).read(540) if packed else data[:540]
    if head[344:348] != b"n+1\0" and head[4:8] != b"n+2\0":
        raise InputError("what the gzip file holds is no NIfTI image")
    first = head[344:348] == b"n+1\0"
    image_class: Any = nibabel.Nifti1Image if first else nibabel.Nifti2Image
    header = image_class.header_class(head[:348] if first else head)
    shape = header.get_data_shape()
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    if len(axes) != 2 or axes[-1] > 2:
        raise InputError(f"shape {shape}; a film is one 2-D image or one slice: save a single slice")
    transposed, _, _ = _display(header.get_best_affine(), axes)
    width, height = (int(shape[axis]) for axis in (axes[::-1] if transposed else axes))
    kind = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise InputError(f"pixels of type {kind}; real numbers are needed")
    check_size(height, width, kind.itemsize)
    bits = 8 * kind.itemsize if kind.kind in "iu" and kind.itemsize <= 2 and _unscaled(header) else None
    size = int(header.get_data_offset()) + height * width * kind.itemsize

    def decode() -> Pixels:
        if size > MAX_BYTES:
            raise InputError(f"it unpacks to {size} bytes; the limit is {MAX_BYTES}")
        # One byte more, so that a sound file is read to its end, where its checksum is.
        raw = gzip.GzipFile(fileobj=io.BytesIO(data)).read(size + 1) if packed else data
        proxy = image_class.from_bytes(raw).dataobj
        values = proxy.get_unscaled() if _unscaled(header) else np.asarray(proxy)
        film = _orient(values.astype(values.dtype.newbyteorder("=")), header.get_best_affine(), axes)
        return Pixels(film, bits, signed=kind.kind == "i" and bits is not None)

    spacing = _spacing(header, axes, transposed)
    aspect = 1.0 if spacing is None else spacing[0] / spacing[1]
    return Header(height, width, depth_of(bits), decode, aspect=aspect, spacing=spacing)


def _spacing(header: Any, axes: list[int], transposed: bool) -> tuple[float, float] | None:
    """Give the distance of rows and of columns in mm; None unless the header counts in units of length."""
    scale = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}.get(header.get_xyzt_units()[0])
    first, second = (float(header.get_zooms()[axis]) for axis in axes)
    if scale is None or not (0 < first < 1e6 and 0 < second < 1e6):
        return None
    rows, columns = (first, second) if transposed else (second, first)
    return rows * scale, columns * scale


def _unscaled(header: Any) -> bool:
    """Whether stored values are meant as they are."""
    slope, intercept = header.get_slope_inter()
    return slope in (None, 1) and intercept in (None, 0)


def _display(affine: NDArray[np.float64], axes: list[int]) -> tuple[bool, bool, bool]:
    """Say how two axes of an image lie on the display: (second axis runs across, flip across, flip down)."""
    import nibabel

    axis_codes: Any = nibabel.aff2axcodes  # not annotated there
    codes = [code or "LPI"[axis] for axis, code in enumerate(axis_codes(affine))]
    first, second = (codes[axis] for axis in axes)
    rank = {letter: order for order, letters in enumerate(("LR", "PA", "IS")) for letter in letters}
    transposed = rank[first] > rank[second]
    across, down = (second, first) if transposed else (first, second)
    return transposed, across in "RAS", down in "RAS"


def _orient(values: NDArray[Any], affine: NDArray[np.float64], axes: list[int]) -> NDArray[Any]:
    """Turn an image of two proper `axes` to (rows, columns) as displayed."""
    transposed, flip_across, flip_down = _display(affine, axes)
    film = values.reshape([values.shape[axis] for axis in axes])
    film = film if transposed else film.T
    film = film[:, ::-1] if flip_across else film
    return film[::-1] if flip_down else film
