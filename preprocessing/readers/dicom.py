"""DICOM films of one frame; section numbers in comments are those of the standard's parts 3 and 5.

pydicom parses the data set; `dicom_pixels` decodes, `dicom_lut` applies tables and windows, `dicom_header` and
`dicom_exposed` read what the header says of geometry, patient, padding, shutter and collimator.
"""

from __future__ import annotations

import io
import struct
import zlib
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.dicom_exposed import beyond_collimator, is_padding, shuttered
from preprocessing.readers.dicom_header import geometry, number, polarity_known, present, tags, text
from preprocessing.readers.dicom_lut import Table, apply_window, modality_table, palette_table, voi_of
from preprocessing.readers.dicom_objects import other_object
from preprocessing.readers.dicom_pixels import Layout, Stored, layout_of, peek_bits, read_pixels, to_rgb
from preprocessing.readers.header import MAX_BYTES, Header, Pixels, check_size
from preprocessing.readers.levels import depth_of
from preprocessing.readers.recognize import is_bare_dicom

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_FILE_META_LENGTH = b"\x02\0\0\0"


def open_dicom(data: bytes, *, window: bool) -> Header:
    """Read the header.

    `InputError` for several frames, for pixels that are absent, floats or of over 16 bits, and for what is no film.
    """
    import pydicom

    bare = is_bare_dicom(data)
    _check_deflated(data, 0 if bare else 132)  # 128 bytes of preamble, 4 of prefix
    dataset = pydicom.dcmread(io.BytesIO(data), force=bare)
    if (kind := other_object(dataset)) is not None:
        raise InputError(f"a DICOM object that is no film ({kind})")
    if not present(dataset, "PixelRepresentation"):
        # What is implicitly US or SS would stay bytes. C.7.6.3: pixels that are not said to be signed are not.
        dataset.PixelRepresentation = 0
    if "PixelData" not in dataset:  # reports, plans, waveforms; parametric maps keep floats elsewhere
        raise InputError(f"a DICOM file without integer pixels (modality {text(dataset, 'Modality') or 'unknown'})")
    layout = layout_of(dataset)
    check_size(layout.height, layout.width, layout.samples * (1 if layout.allocated <= 8 else 2))
    table = modality_table(dataset, signed=layout.signed) if layout.is_monochrome else None
    bits = table.bits if table else peek_bits(dataset, layout)
    decode = partial(_decode, dataset, layout, table, window)
    if layout.photometric == "PALETTE COLOR":
        colors, bits = palette_table(dataset, layout.bits)
        decode = partial(_colored, dataset, layout, colors, bits)
    aspect, spacing = geometry(dataset)
    return Header(
        layout.height,
        layout.width,
        depth_of(bits),
        decode,
        polarity_known=polarity_known(dataset, layout.photometric),
        aspect=aspect,
        spacing=spacing,
        tags=tags(dataset),
    )


def _check_deflated(data: bytes, start: int) -> None:
    """Refuse a deflated data set that unpacks to more than `MAX_BYTES`: pydicom would unpack it all at once."""
    if _DEFLATED not in data:
        return
    if data[start : start + 4] != _FILE_META_LENGTH:
        raise InputError("deflated, and its file meta information does not begin with its length")
    end = start + 12 + struct.unpack_from("<I", data, start + 8)[0]  # 12 bytes of the length itself
    if _DEFLATED in data[start:end]:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[end:], MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise InputError(f"it unpacks to more than {MAX_BYTES} bytes, the limit")


def _colored(dataset: Any, layout: Layout, colors: NDArray[np.uint16], bits: int) -> Pixels:
    """Look the colours of a palette up."""
    values = read_pixels(dataset, layout).values
    if int(values.max()) >= len(colors):
        raise InputError(f"colour {int(values.max())} of a palette of {len(colors)}: damaged file")
    return Pixels(colors[values].astype(np.uint8 if bits <= 8 else np.uint16), bits)


def _decode(dataset: Any, layout: Layout, table: Table | None, window: bool) -> Pixels:
    """Decode the frame, and find out where there is no image."""
    stored = read_pixels(dataset, layout)
    if layout.samples == 3:
        values, bits = to_rgb(stored.values, layout.photometric, stored.bits), stored.bits
        return Pixels(values.astype(np.uint8 if bits <= 8 else np.uint16), bits)
    pixels = _monochrome(dataset, layout, stored, table, window)
    blank, shutter = is_padding(dataset, stored), shuttered(dataset, stored.values.shape)
    if shutter is not None:
        blank = shutter if blank is None else blank | shutter
    beyond = beyond_collimator(dataset, stored.values.shape)
    return Pixels(pixels.values, pixels.bits, pixels.signed, pixels.inverted, blank, beyond)


def _monochrome(dataset: Any, layout: Layout, stored: Stored, table: Table | None, window: bool) -> Pixels:
    """Apply the modality table, or know the rescale's direction; then, on demand, the display window."""
    values, bits, signed = stored.values, stored.bits, layout.signed
    slope, intercept = 1.0, 0.0
    if table:  # C.11.1.1: in place of the rescale
        values, bits, signed = table.look_up(values), table.bits, False
    else:
        slope = number(dataset, "RescaleSlope") or 1.0
        intercept = number(dataset, "RescaleIntercept") or 0.0
    low_is_white = layout.photometric == "MONOCHROME1"
    if window:
        # C.11.2.1.1: the table's first value is signed where the rescaled range reaches below 0.
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        negative = min(end * slope + intercept for end in ends) < 0
        shown = voi_of(dataset, negative=negative)
        if shown is not None:
            # The slope's sign is in what the window shows.
            levels = apply_window(values * slope + intercept, shown, bits)
            return Pixels(levels, bits, inverted=low_is_white)
    return Pixels(values, bits, signed, inverted=low_is_white != (slope < 0))
