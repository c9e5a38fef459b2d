"""JPEG, JPEG-LS and JPEG 2000 codestreams: their own headers, and decoding held to what these say.

Decoders are those of imagecodecs: libjpeg-turbo for 8- and 12-bit and lossless JPEG, CharLS for JPEG-LS, OpenJPEG for
JPEG 2000 and its high-throughput variant. The headers are those of ITU-T T.81 B.2, T.87 C.2 and T.800 A.5 and I.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import check_size
from preprocessing.wording import counted

_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_J2K = b"\xff\x4f\xff\x51"
_JPEG = b"\xff\xd8\xff"
_SEQUENTIAL, _LOSSLESS, _LS = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA}), 0xC3, 0xF7
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {_LS}
_MAX_TILES = 65535  # T.800 A.4.2 numbers them with 16 bits


@dataclass(frozen=True)
class Codestream:
    """What a codestream says of itself.

    kind       JPEG (by cosine transform), lossless JPEG, JPEG-LS or JPEG 2000.
    samples    planes.
    bits       of a sample, 1..16.
    signed     whether samples are signed: JPEG 2000 alone can say so.
    transform  of the Adobe marker of JPEG: 0 for none, 1 YCbCr, 2 YCCK; None without the marker.
    start      of the codestream in the bytes, which may be boxed (JP2).
    """

    kind: Literal["JPEG", "lossless JPEG", "JPEG-LS", "JPEG 2000"]
    height: int
    width: int
    samples: int
    bits: int
    signed: bool = False
    transform: int | None = None
    start: int = 0


def is_codestream(data: bytes) -> bool:
    """Whether bytes begin as one of the codestreams does."""
    return data.startswith((_JPEG, _J2K, _JP2))


def describe(data: bytes) -> Codestream:
    """Read a codestream's own header; `InputError` for kinds that are not read and for what ends too early."""
    try:
        stream = _describe_jpeg(data) if data.startswith(_JPEG) else _describe_jpeg_2000(data)
    except (struct.error, IndexError):
        raise InputError("truncated file") from None
    if not 1 <= stream.bits <= 16:
        raise InputError(f"{stream.kind} of {counted(stream.bits, 'bit')}; films have 1 to 16")
    return stream


def decode(data: bytes, stream: Codestream, *, raw_color: bool = False) -> NDArray[Any]:
    """Decode to (H, W) or (H, W, samples), uint8, uint16, int8 or int16, checked against the codestream's header.

    raw_color   give the planes of JPEG as they are coded, rather than as RGB (or CMYK).

    Raises `InputError` for what is truncated or decodes to anything else than its header says.
    """
    import imagecodecs

    check_size(stream.height, stream.width, stream.samples * (1 if stream.bits <= 8 else 2))
    if stream.kind == "JPEG 2000":
        values = imagecodecs.jpeg2k_decode(data)
    elif stream.kind == "JPEG-LS":
        values = imagecodecs.jpegls_decode(data)
    else:
        # Two equal names, whichever, mean that colours stay as they are coded.
        name = "RGB" if stream.samples == 3 and (raw_color or stream.kind == "lossless JPEG") else None
        values = imagecodecs.jpeg8_decode(data, colorspace=name, outcolorspace=name)
    values = np.asarray(values)
    shape = (stream.height, stream.width) + (stream.samples,) * (stream.samples > 1)
    if values.shape != shape or values.dtype.itemsize != (1 if stream.bits <= 8 else 2):
        raise InputError(f"it decodes to {values.shape} of {values.dtype}, where its header says {shape}")
    return values


def _describe_jpeg(data: bytes) -> Codestream:
    """Walk the markers up to the first scan, and look for the end of the image behind it."""
    position, frame, transform = 2, None, None
    while True:
        if data[position] != 0xFF:
            raise InputError("damaged JPEG: a marker is missing")
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        (length,) = struct.unpack_from(">H", data, position + 1)
        if marker in _FRAMES:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, position + 3)
            frame = marker, height, width, samples, bits
        elif marker == 0xEE and data[position + 3 : position + 8] == b"Adobe":
            transform = data[position + 14]
        elif marker == 0xD9 or length < 2:
            raise InputError("damaged JPEG: no image in it")
        elif marker == 0xDA:
            break
        position += 1 + length
    if frame is None:
        raise InputError("damaged JPEG: a scan before its frame")
    marker, height, width, samples, bits = frame
    kind: Literal["JPEG", "lossless JPEG", "JPEG-LS"]
    if marker in _SEQUENTIAL:
        kind = "JPEG"
    elif marker in (_LOSSLESS, _LS):
        kind = "lossless JPEG" if marker == _LOSSLESS else "JPEG-LS"
    else:
        raise InputError(f"JPEG of the rare process SOF{marker - 0xC0}, which is not read; save it as PNG or TIFF")
    if data.find(b"\xff\xd9", position) < 0:  # decoders would fill what is missing with grey
        raise InputError("truncated file")
    return Codestream(kind, height, width, samples, bits, transform=transform)


def _describe_jpeg_2000(data: bytes) -> Codestream:
    start = _boxed_codestream(data) if data.startswith(_JP2) else 0
    if data[start : start + 4] != _J2K:
        raise InputError("no JPEG, JPEG-LS or JPEG 2000 codestream")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, samples = struct.unpack_from(">8IH", data, start + 8)
    components = [struct.unpack_from(">BBB", data, start + 42 + 3 * sample) for sample in range(min(samples, 8))]
    if not components or len(components) != samples or len(set(components)) > 1 or components[0][1:] != (1, 1):
        raise InputError(f"JPEG 2000 of {samples} planes that differ in size or depth; save it as PNG or TIFF")
    height, width = y1 - y0, x1 - x0
    check_size(height, width, samples)
    tiles = -(-(x1 - tile_x0) // max(tile_x, 1)) * -(-(y1 - tile_y0) // max(tile_y, 1))
    if not 0 < tiles <= _MAX_TILES or not tile_x or not tile_y:
        raise InputError("damaged JPEG 2000 header: tiles do not fit the image")
    depth = components[0][0]
    return Codestream("JPEG 2000", height, width, samples, (depth & 127) + 1, signed=bool(depth & 128), start=start)


def _boxed_codestream(data: bytes) -> int:
    """Find the codestream in the boxes of a JP2 file, T.800 annex I; refuse colours that are no RGB."""
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
            head = 16
        if kind == b"jp2c":
            return position + head
        if kind == b"jp2h":
            length = head  # a box of boxes: walk into it
        elif kind in (b"pclr", b"cdef"):
            raise InputError("JPEG 2000 with a palette or an alpha channel; save it as PNG or TIFF")
        elif kind == b"colr" and data[position + head] == 1:
            (space,) = struct.unpack_from(">I", data, position + head + 3)
            if space not in (16, 17):
                raise InputError(f"JPEG 2000 of colour space {space}, neither sRGB nor grey; save it as PNG or TIFF")
        if length < head:
            break
        position += length
    raise InputError("truncated file")
