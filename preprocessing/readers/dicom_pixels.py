"""The stored pixels of a DICOM file: how they lie, and their decoding, PS3.5 section 8 and annex A."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.codestream import decode, describe, is_codestream
from preprocessing.readers.dicom_header import is_little_endian, number, text, transfer_syntax
from preprocessing.wording import counted

_RLE = "1.2.840.10008.1.2.5"
_ITEM = b"\xfe\xff\x00\xe0"  # the tag (FFFE,E000), little endian, as encapsulated pixels always are
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_SHAPES = {"INVERSE": "MONOCHROME1", "IDENTITY": "MONOCHROME2"}


@dataclass(frozen=True)
class Layout:
    """How pixels are stored, as the header says: C.7.6.3.

    allocated  bits of a container: 1, 8 or 16         bits    stored of it
    shift      bits below the lowest one stored        signed  whether negative ones are meant
    planar     whether colour planes lie one after the other
    """

    height: int
    width: int
    samples: int
    photometric: str
    allocated: int
    bits: int
    shift: int
    signed: bool
    planar: bool

    @property
    def is_monochrome(self) -> bool:
        """Whether it is grey."""
        return self.photometric in ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class Stored:
    """Decoded pixels.

    values     (H, W) or (H, W, 3) int32, of `bits` bits, `signed` or not.
    container  the same as stored, with whatever lies beyond those bits.
    """

    values: NDArray[np.int32]
    container: NDArray[np.int32]
    bits: int
    signed: bool


def layout_of(dataset: Any) -> Layout:
    """Read how pixels are stored; `InputError` for what is not read or not known."""
    frames = int(number(dataset, "NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(f"{frames} frames; a film has one: export a single frame")
    height, width, allocated = (_needed(dataset, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    samples = int(number(dataset, "SamplesPerPixel") or 1)
    bits = int(number(dataset, "BitsStored") or allocated)
    if not 1 <= bits <= 16 or allocated > 16:
        raise InputError(f"{counted(max(bits, allocated), 'bit')} a pixel; films have 1 to 16")
    if allocated not in (1, 8, 16) or bits > allocated:
        raise InputError(f"{bits} of {allocated} bits stored; 1, 8 and 16 bits allocated are supported")
    high = number(dataset, "HighBit")
    shift = 0 if high is None else int(high) + 1 - bits
    if not 0 <= shift <= allocated - bits:
        raise InputError(f"high bit {high:g} for {bits} of {allocated} bits stored: damaged header")
    signed = number(dataset, "PixelRepresentation") == 1  # C.7.6.3: without it, radiographs are unsigned
    photometric = text(dataset, "PhotometricInterpretation").upper() or _photometric(dataset, samples)
    _check_colors(photometric, samples, signed)
    planar = number(dataset, "PlanarConfiguration") == 1
    return Layout(height, width, samples, photometric, allocated, bits, shift, signed, planar)


def _needed(dataset: Any, keyword: str) -> int:
    value = number(dataset, keyword)
    if value is None:
        raise InputError(f"DICOM without {keyword}: damaged header")
    return int(value)


def _photometric(dataset: Any, samples: int) -> str:
    """Give the interpretation that a header leaves out, where its presentation says the same: C.7.6.1."""
    shape = text(dataset, "PresentationLUTShape").upper()
    if samples == 1 and shape in _SHAPES:
        return _SHAPES[shape]
    raise InputError("DICOM without PhotometricInterpretation: which end of its levels is black is not known")


def _check_colors(photometric: str, samples: int, signed: bool) -> None:
    if photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        if samples != 1 or (signed and photometric == "PALETTE COLOR"):
            raise InputError(f"{counted(samples, 'sample')} a pixel for {photometric}: damaged header")
    elif photometric not in _COLORS:
        raise InputError(
            f"photometric interpretation {photometric!r}; there are: MONOCHROME1, MONOCHROME2, PALETTE COLOR, "
            f"{', '.join(_COLORS)}"
        )
    elif samples != 3 or signed:
        raise InputError(f"{counted(samples, 'sample')} a pixel for {photometric}: damaged header")


def peek_bits(dataset: Any, layout: Layout) -> int:
    """Give the bits stored, from the header alone; those of the codestream where 8 or fewer are promised falsely."""
    if layout.bits <= 8 and _is_encapsulated(dataset):
        frame = _frame(dataset)
        if is_codestream(frame):
            return max(layout.bits, describe(frame).bits)
    return layout.bits


def read_pixels(dataset: Any, layout: Layout) -> Stored:
    """Decode the frame, drop what lies beyond the bits stored, and give negative numbers their sign."""
    if not _is_encapsulated(dataset):
        return _unpack(_native(dataset, layout), layout)
    frame = _frame(dataset)
    if transfer_syntax(dataset) == _RLE:
        return _unpack(_run_length(frame, layout), layout)
    if not is_codestream(frame):
        name = getattr(transfer_syntax(dataset), "name", "an unknown transfer syntax")
        raise InputError(f"pixels in {name} are not read, or damaged; save them as JPEG 2000 or uncompressed")
    stream = describe(frame)
    expected = layout.height, layout.width, layout.samples
    if (stream.height, stream.width, stream.samples) != expected:
        raise InputError(
            f"{stream.kind} of {stream.height} x {stream.width} x {stream.samples}, where the header says "
            f"{' x '.join(map(str, expected))}"
        )
    values = decode(frame, stream, raw_color=True).astype(np.int32) & (2**stream.bits - 1)
    return _unpack_coded(values, layout, stream.bits, overlay=_has_overlay_in_pixels(dataset))


def _unpack(container: NDArray[np.int32], layout: Layout) -> Stored:
    """Take the bits stored out of their containers; those above and below may hold overlays, PS3.5 8.1.1."""
    values = (container >> layout.shift) & (2**layout.bits - 1)
    if layout.signed:
        values = _with_sign(values, layout.bits)
        container = _with_sign(container, layout.allocated)
    return Stored(values, container, layout.bits, layout.signed)


def _unpack_coded(values: NDArray[np.int32], layout: Layout, coded: int, *, overlay: bool) -> Stored:
    """Reconcile the bits of a codestream with those that the header says.

    Decoders give numbers at the low end. Where some need more bits than are said to be stored, and no overlay lies in
    them, the codestream is believed: it knows what was coded.
    """
    bits, fits = layout.bits, int(values.max()) < 2**layout.bits
    if layout.shift and coded > bits and not fits:
        return _unpack(values, layout)
    if fits or overlay:
        # Signed numbers were coded in the bits stored or fewer, or, sign-extended, in more.
        stored = _unpack(values, replace(layout, shift=0, bits=min(bits, coded)))
        return replace(stored, bits=bits)
    if layout.signed:
        values = _with_sign(values, coded)
        fits = int(values.min()) >= -(2 ** (bits - 1)) and int(values.max()) < 2 ** (bits - 1)
        return Stored(values, values, bits if fits else coded, True)
    return Stored(values, values, coded, False)


def _with_sign(values: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    sign = 2 ** (bits - 1)
    return np.asarray((values ^ sign) - sign)


def _has_overlay_in_pixels(dataset: Any) -> bool:
    """Whether an overlay plane lies in unused bits of the pixels: C.9.2 of older editions."""
    positions = [dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2)]
    return any(position is not None and int(position.value or 0) > 0 for position in positions)


def _is_encapsulated(dataset: Any) -> bool:
    """Whether pixels lie in fragments: by the transfer syntax; where none is named, by their length and first item."""
    syntax = transfer_syntax(dataset)
    if syntax is not None and not syntax.is_private and syntax.is_transfer_syntax:
        return bool(syntax.is_encapsulated)
    return bool(dataset["PixelData"].is_undefined_length) and bytes(dataset.PixelData[:4]) == _ITEM


def _frame(dataset: Any) -> bytes:
    """Join the fragments of the one frame, PS3.5 A.4; `InputError` where there are several frames."""
    data = bytes(dataset.PixelData)
    items, position = [], 0
    while data[position : position + 4] == _ITEM:
        (length,) = struct.unpack_from("<I", data, position + 4)
        position += 8 + length
        items.append(data[position - length : position])
    if position > len(data) or len(items) < 2:  # the first item is the table of offsets
        raise InputError("truncated file")
    fragments = items[1:]
    frames = max(len(items[0]) // 4, sum(map(is_codestream, fragments)))
    if frames > 1:
        raise InputError(f"{frames} frames; a film has one: export a single frame")
    return b"".join(fragments)


def _run_length(frame: bytes, layout: Layout) -> NDArray[np.int32]:
    """Decode PS3.5 annex G: planes one after the other."""
    import imagecodecs

    kind = np.dtype(np.uint8 if layout.allocated <= 8 else "<u2")
    size = layout.height * layout.width * layout.samples * kind.itemsize
    planes = np.frombuffer(imagecodecs.dicomrle_decode(frame, kind, out=size), kind)
    if planes.nbytes != size or layout.allocated == 1:
        raise InputError("run lengths that do not fill the frame: damaged file")
    planes = planes.reshape(layout.samples, layout.height, layout.width)
    return (planes[0] if layout.samples == 1 else np.moveaxis(planes, 0, 2)).astype(np.int32)


def _native(dataset: Any, layout: Layout) -> NDArray[np.int32]:
    """Take pixels that are not compressed: (H, W) or (H, W, 3)."""
    data = bytes(dataset.PixelData)
    halved = layout.photometric == "YBR_FULL_422" and layout.samples == 3
    samples = 2 if halved else layout.samples
    count = layout.height * layout.width * samples
    size = -(-count * layout.allocated // 8)
    if len(data) < size:
        raise InputError(f"truncated: {len(data)} bytes of pixels, {size} are needed")
    if len(data) >= 2 * size > 16:
        raise InputError(f"{len(data) // size} frames; a film has one: export a single frame")
    little = is_little_endian(dataset)
    if layout.allocated == 16:
        flat = np.frombuffer(data, "<u2" if little else ">u2", count)
    else:
        if not little and dataset["PixelData"].VR == "OW":  # 8-bit pixels, swapped in pairs: PS3.5 7.3
            data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
        flat = np.frombuffer(data, np.uint8, size)
        if layout.allocated == 1:  # PS3.5 8.1.1: the first pixel is the lowest bit
            flat = np.unpackbits(flat, bitorder="little")[:count]
    if halved:
        return _whole_chroma(flat, layout)
    if samples == 1:
        return flat.reshape(layout.height, layout.width).astype(np.int32)
    if layout.planar:
        flat = np.moveaxis(flat.reshape(samples, layout.height, layout.width), 0, 2)
    return np.asarray(flat.reshape(layout.height, layout.width, samples), np.int32)


def _whole_chroma(flat: NDArray[Any], layout: Layout) -> NDArray[np.int32]:
    """Give each pixel its colour where two share one, C.7.6.3.1.2: Y, Y, Cb, Cr."""
    if layout.width % 2:
        raise InputError(f"YBR_FULL_422 of {layout.width} columns, an odd number: damaged header")
    pairs = flat.reshape(layout.height, layout.width // 2, 4).astype(np.int32)
    luma = pairs[..., :2].reshape(layout.height, layout.width)
    chroma = np.repeat(pairs[..., 2:], 2, axis=1)
    return np.concatenate([luma[..., None], chroma], axis=2)


def to_rgb(planes: NDArray[np.int32], photometric: str, bits: int) -> NDArray[np.int32]:
    """Turn YBR_FULL to RGB, C.7.6.3.1.2; JPEG 2000 has undone YBR_RCT and YBR_ICT itself."""
    if not photometric.startswith("YBR_FULL"):
        return planes
    luma, blue, red = np.moveaxis(planes.astype(np.float64), 2, 0)
    blue, red = blue - 2 ** (bits - 1), red - 2 ** (bits - 1)
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    return np.asarray(np.clip(np.rint(rgb), 0, 2**bits - 1), np.int32)
