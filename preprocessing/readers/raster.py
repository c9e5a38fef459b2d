"""PNG, JPEG, JPEG-LS, JPEG 2000 and BMP, decoded by imagecodecs; Pillow reads the orientation tag."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.codestream import Codestream, decode, describe
from preprocessing.readers.header import Header, Pixels, check_size
from preprocessing.readers.levels import ORIENTATION, depth_of, over_black, upright

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_ALPHA = (4, 6)  # colour types of ISO/IEC 15948, 11.2.2
_TAGGED = (b"eXIf", b"exif", b"Exif", b"adobe")
"""One of these stands before all data that can hold an orientation: EXIF in PNG and JPEG, as text, and XMP."""
_PNG_ESSENTIAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_TAGS = (  # chunks, and how they begin, in which Pillow finds an orientation
    (b"eXIf", b""),
    *((kind, b"Raw profile type exif\0") for kind in (b"tEXt", b"zTXt", b"iTXt")),
    (b"iTXt", b"XML:com.adobe.xmp\0"),
)


def open_png(data: bytes) -> Header:
    """Read the header; a file without its end, or of several frames (APNG), is refused."""
    chunks = _png_chunks(data)
    first = dict(reversed(chunks))  # of several of a kind, the first
    if b"IEND" not in first or len(first.get(b"IHDR", b"")) != 13:
        raise InputError("truncated file")
    width, height, bits, color = struct.unpack_from(">IIBB", first[b"IHDR"])
    frames = struct.unpack(">I", first[b"acTL"][:4])[0] if len(first.get(b"acTL", b"")) == 8 else 1
    if frames > 1:
        raise InputError(f"{frames} frames; a film has one: save a single frame")
    check_size(height, width, 4 * (2 if bits == 16 else 1))
    depth = 16 if bits == 16 else 8

    def decode_png() -> Pixels:
        import imagecodecs

        planes = np.asarray(imagecodecs.png_decode(_essential(chunks)))
        if planes.shape[:2] != (height, width) or planes.dtype != (np.uint16 if depth == 16 else np.uint8):
            raise InputError(f"it decodes to {planes.shape} of {planes.dtype}, where its header says otherwise")
        alpha = color in _PNG_ALPHA or (color == 3 and b"tRNS" in first)
        planes = _without_alpha(planes, depth, meant=alpha)
        # Pillow decodes a PNG file to look for tags behind its pixels, so it is asked only where there are any.
        tagged = any(kind == tag and content.startswith(start) for kind, content in chunks for tag, start in _PNG_TAGS)
        return Pixels(upright(planes, _orientation(data, "PNG")) if tagged else planes, depth)

    return Header(height, width, depth, decode_png)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """List the chunks, up to the end of the image; refuse wrong sums of those that hold pixels."""
    chunks, position = [], len(_PNG)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if kind in _PNG_ESSENTIAL and zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise InputError("damaged PNG: a checksum is wrong")
        chunks.append((kind, data[position + 8 : end]))
        position = end + 4
        if kind == b"IEND":
            break
    return chunks


def _essential(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Write the file without what is no pixels: libpng would print warnings about profiles and damaged comments."""
    return _PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
        if kind in _PNG_ESSENTIAL
    )


def _without_alpha(planes: NDArray[Any], bits: int, *, meant: bool) -> NDArray[Any]:
    """(H, W[, 1..4]) to (H, W) or (H, W, 3): a last plane of alpha is composited over black, or dropped."""
    if planes.ndim == 2 or planes.shape[2] in (1, 3):
        return planes[..., 0] if planes.ndim == 3 and planes.shape[2] == 1 else planes
    colors = planes[..., 0] if planes.shape[2] == 2 else planes[..., :3]
    return over_black(colors, planes[..., -1], bits) if meant else colors


def open_jpeg(data: bytes) -> Header:
    """Read the header of JPEG of any precision, lossless JPEG or JPEG-LS."""
    stream = describe(data)
    if stream.samples not in (1, 3, 4):
        raise InputError(f"{stream.kind} of {stream.samples} planes; 1, 3 and 4 are read")

    def decode_jpeg() -> Pixels:
        planes = decode(data, stream)
        if stream.samples == 4:
            planes = _cmyk_as_rgb(planes, inverted=stream.transform is not None, bits=stream.bits)
        return Pixels(upright(planes, _orientation(data, "JPEG")), stream.bits)

    return _header(stream, decode_jpeg)


def open_jpeg_2000(data: bytes) -> Header:
    """Read the header of JPEG 2000, boxed (JP2) or bare."""
    stream = describe(data)
    if stream.samples not in (1, 3):
        raise InputError(f"JPEG 2000 of {stream.samples} planes; 1 and 3 are read")
    return _header(stream, lambda: Pixels(decode(data, stream), stream.bits, signed=stream.signed))


def _header(stream: Codestream, decode_stream: Any) -> Header:
    check_size(stream.height, stream.width, stream.samples * (1 if stream.bits <= 8 else 2))
    return Header(stream.height, stream.width, depth_of(stream.bits), decode_stream)


def open_bmp(data: bytes) -> Header:
    """Read the header of a Windows bitmap; a file shorter than it says is refused."""
    size, _, start, header = struct.unpack_from("<IIII", data, 2)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    (bits,) = struct.unpack_from("<H", data, 24 if header == 12 else 28)
    width, height = abs(width), abs(height)  # rows of a negative height run from the top
    check_size(height, width, 4)
    if len(data) < max(start + (width * bits + 31) // 32 * 4 * height, min(size, 2 * len(data))):
        raise InputError("truncated file")

    def decode_bmp() -> Pixels:
        import imagecodecs

        planes = np.asarray(imagecodecs.bmp_decode(data))
        if planes.shape[:2] != (height, width) or planes.dtype != np.uint8:
            raise InputError(f"it decodes to {planes.shape} of {planes.dtype}, where its header says otherwise")
        return Pixels(_without_alpha(planes, 8, meant=True), 8)

    return Header(height, width, 8, decode_bmp)


def _cmyk_as_rgb(planes: NDArray[Any], *, inverted: bool, bits: int) -> NDArray[Any]:
    """Turn (H, W, 4) ink to (H, W, 3) light; Adobe's JPEGs are `inverted`: they store light."""
    full = 2**bits - 1
    light = planes.astype(np.uint32) if inverted else full - planes.astype(np.uint32)
    return np.asarray((light[..., :3] * light[..., 3:] + full // 2) // full, planes.dtype)


def _orientation(data: bytes, kind: str) -> int:
    """Give the orientation tag of EXIF data, 1..8; 1 without one."""
    if not any(mark in data for mark in _TAGGED):
        return 1  # without Pillow, which takes longer to load than a film to read
    from PIL import Image

    try:
        return int(Image.open(io.BytesIO(data), formats=(kind,)).getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data beside sound pixels: the film is taken as stored
        return 1
