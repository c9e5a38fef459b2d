"""DICOM films of one frame, by pydicom; section numbers in comments are those of the standard's part 3."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import MAX_BYTES, Header
from preprocessing.wording import counted

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CODECS = "pip install -e '.[dicom]'"
_CODECS_12_BIT = "pip install pylibjpeg pylibjpeg-libjpeg"  # the only one for 12-bit JPEG; GPL, so not in the extra


def open_dicom(data: bytes, *, window: bool) -> Header:
    """Read the header; `InputError` for several frames, and for pixels that are absent, floats or of over 16 bits."""
    import pydicom

    _check_deflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:  # reports, plans, waveforms; parametric maps keep floats elsewhere
        raise InputError(f"a DICOM file without integer pixels (modality {dataset.get('Modality', 'unknown')})")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(f"{frames} frames; a film has one: export a single frame")
    bits = int(dataset.BitsStored)
    if not 1 <= bits <= 16 or int(dataset.BitsAllocated) > 16:
        raise InputError(f"{counted(bits, 'bit')} a pixel; films have 1 to 16")
    bits = _table_bits(dataset) or bits
    return Header(
        int(dataset.Rows), int(dataset.Columns), min(max(bits, 8), 16), lambda: _decode_dicom(dataset, window)
    )


def _table_bits(dataset: Any) -> int | None:
    """Give the bits of what the file's modality or colour table turns its pixels into; None without a table."""
    if "ModalityLUTSequence" in dataset:
        return int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return int(dataset.RedPaletteColorLookupTableDescriptor[2])
    return None


def _check_deflated(data: bytes) -> None:
    """Refuse a deflated data set that unpacks to more than `MAX_BYTES`: pydicom would unpack it all at once."""
    if _DEFLATED not in data:
        return
    if data[132:136] != b"\x02\0\0\0":
        raise InputError("deflated, and its file meta information does not begin with its length")
    start = 144 + struct.unpack_from("<I", data, 140)[0]  # 132 bytes of preamble, 12 of the length itself
    if _DEFLATED in data[144:start]:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise InputError(f"it unpacks to more than {MAX_BYTES} bytes, the limit")


def _decode_dicom(dataset: Any, window: bool) -> NDArray[Any]:
    """Decode one frame: (H, W) or (H, W, 3), low is dark."""
    from pydicom.pixels.processing import apply_color_lut

    values = _decompress(dataset)
    kind = dataset.PhotometricInterpretation
    if values.shape[:2] != (dataset.Rows, dataset.Columns):
        raise InputError(f"the pixels measure {values.shape}, the header says {dataset.Rows} x {dataset.Columns}")
    if kind == "PALETTE COLOR":
        return np.asarray(apply_color_lut(values, dataset))[..., :3]
    if values.ndim == 3:
        return np.asarray(values)
    if not kind.startswith("MONOCHROME"):
        raise InputError(
            f"photometric interpretation {kind!r}; MONOCHROME1, MONOCHROME2, RGB, YBR and palette are supported"
        )

    bits = int(dataset.BitsStored)
    if "HighBit" in dataset and int(dataset.HighBit) != bits - 1:
        raise InputError(f"high bit {dataset.HighBit} for {bits} bits stored; {bits - 1} is supported")
    values = values.astype(np.int32) & (2**bits - 1)  # the bits above may hold an overlay
    signed = bool(dataset.PixelRepresentation)
    if signed:
        sign = 2 ** (bits - 1)
        values = (values ^ sign) - sign
    if "ModalityLUTSequence" in dataset:
        values = _apply_table(values, dataset.ModalityLUTSequence[0], signed=signed)
        bits, signed = _table_bits(dataset) or bits, False
    slope = float(dataset.get("RescaleSlope") or 1)
    if window and ("VOILUTSequence" in dataset or "WindowCenter" in dataset):
        values, signed = (
            _apply_window(values * slope + float(dataset.get("RescaleIntercept") or 0), dataset, bits),
            False,
        )
        slope = 1.0  # it is in what the window shows
    if (kind == "MONOCHROME1") != (slope < 0):
        values = -values if signed else 2**bits - 1 - values
    if signed:
        values = values - min(int(values.min()), 0)
    elif bits < 8:
        values = values * 255 // (2**bits - 1)
    return np.asarray(values, np.uint16)


def _apply_window(values: NDArray[Any], dataset: Any, bits: int) -> NDArray[Any]:
    """Show rescaled values through the film's first display window, over 0..2**bits - 1: C.11.2."""
    top = 2**bits - 1
    if "VOILUTSequence" in dataset:
        table = dataset.VOILUTSequence[0]
        shown = _apply_table(np.rint(values).astype(np.int32), table, signed=bool(dataset.PixelRepresentation))
        return np.asarray(shown * top // (2 ** int(table.LUTDescriptor[2]) - 1))
    center, width = (float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - center) / max(width, 1e-6)))
    elif function == "LINEAR_EXACT":
        share = (values - center) / max(width, 1e-6) + 0.5
    else:
        share = (values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5
    return np.asarray(np.rint(np.clip(share, 0, 1) * top), np.int32)


def _apply_table(values: NDArray[Any], table: Any, *, signed: bool) -> NDArray[Any]:
    """Look values up in a modality table, C.11.1; values beyond it take its ends."""
    entries, first = int(table.LUTDescriptor[0]) or 65536, int(table.LUTDescriptor[1])
    if signed and first > 32767:
        first -= 65536
    levels = table.LUTData
    levels = np.frombuffer(levels, "<u2") if isinstance(levels, bytes) else np.asarray(levels)
    levels = levels[:entries].astype(np.int32)
    return np.asarray(levels[np.clip(values - first, 0, len(levels) - 1)])


def _decompress(dataset: Any) -> NDArray[Any]:
    """Decode the pixels as pydicom gives them, YBR as RGB; where a codec is missing, say how to get it."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    codecs = _CODECS_12_BIT if syntax == JPEGExtended12Bit else _CODECS
    if not decoder.is_available:
        raise InputError(f"{syntax.name} needs a codec that is not installed: {codecs}")
    try:
        return np.asarray(dataset.pixel_array)
    except Exception as error:
        if any(need.startswith(("gdcm", "pylibjpeg")) for need in decoder.missing_dependencies):
            raise InputError(f"damaged, or a kind of {syntax.name} that needs another codec: {codecs}") from error
        raise
