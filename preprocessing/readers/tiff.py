"""TIFF and BigTIFF of one page: tifffile reads the header, and tifffile, Pillow or OpenCV the pixels."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import Header
from preprocessing.readers.levels import ORIENTATION, over_black, upright
from preprocessing.readers.raster import decode_with_opencv, decode_with_pillow, open_with_pillow
from preprocessing.wording import counted

_MAX_DIRECTORIES = 1000  # a directory describes a page
_SUB_DIRECTORIES = 330  # the tag's number


def open_tiff(data: bytes) -> Header:
    """Read the header; `InputError` unless there is one page, beside which reduced copies and masks may stand."""
    import tifffile

    _check_directories(data)
    # In ScanImage's layout tifffile would make up a page for every stretch up to the file's end.
    tiff: Any = tifffile.TiffFile(io.BytesIO(data), is_scanimage=False)
    page, count = None, 0
    for other in tiff.pages:  # never all of them in memory
        if not (other.is_reduced or other.is_mask):
            page, count = page or other, count + 1
    if page is None:
        raise InputError("no page: truncated file")
    if count > 1:
        raise InputError(f"{count} pages; a film has one: split the file")
    if page.imagedepth != 1 or page.dtype is None:
        raise InputError(
            f"{counted(page.imagedepth, 'plane')} of {page.bitspersample} bits; save it as 8 or 16 bits a pixel"
        )
    if any(start + size > len(data) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise InputError("truncated file")
    small = page.dtype.kind in "biu" and page.dtype.itemsize == 1
    return Header(page.imagelength, page.imagewidth, 8 if small else 16, lambda: _decode_tiff(data, page))


def _check_directories(data: bytes) -> None:
    """Refuse a TIFF whose directories form a cycle, are too many, or claim the same bytes over and over.

    tifffile follows the chain of pages wherever it leads. A chain that breaks off is left to tifffile to judge.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    number, counter, start, inline = ("Q", "Q", 8, 8) if big else ("I", "H", 4, 4)
    entry = struct.Struct(f"{order}HH{number}{inline}s")
    head, link = struct.Struct(order + counter), struct.Struct(order + number)
    sizes = {1: 1, 2: 1, 6: 1, 7: 1, 3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8, 17: 8, 18: 8}

    waiting = [(link.unpack_from(data, start)[0], True)] if len(data) >= start + link.size else []
    seen: set[int] = set()
    claimed = 0
    while waiting:
        offset, in_chain = waiting.pop()
        if not 0 < offset <= len(data) - head.size:
            continue
        if offset in seen:
            raise InputError(f"its pages form a cycle: the one at byte {offset} is reached twice; save the file again")
        seen.add(offset)
        if len(seen) > _MAX_DIRECTORIES:
            raise InputError(f"more than {_MAX_DIRECTORIES} pages; a film has one: split the file")
        (tags,) = head.unpack_from(data, offset)
        first, end = offset + head.size, offset + head.size + tags * entry.size
        if tags > 4096 or end > len(data):
            continue
        claimed += end - offset
        for code, kind, count, value in entry.iter_unpack(data[first:end]):
            length = count * sizes.get(kind, 0)
            outside = length > inline
            place = link.unpack(value)[0] if outside else 0
            if place + length > len(data):
                continue  # tifffile leaves such a tag out
            claimed += length if outside else 0
            # An honest file claims each byte once, save a few values that tags or pages share.
            if claimed > 4 * len(data) + 2**20:
                raise InputError("its pages claim the same bytes over and over; save the file again")
            if code == _SUB_DIRECTORIES and kind in (4, 13, 16, 18):
                stored = data[place : place + length] if outside else value
                below = f"{order}{min(count, _MAX_DIRECTORIES + 1)}{'I' if sizes[kind] == 4 else 'Q'}"
                waiting += [(other, False) for other in struct.unpack_from(below, stored)]
        if in_chain and end + link.size <= len(data):
            waiting.append((link.unpack_from(data, end)[0], True))


def _decode_tiff(data: bytes, page: Any) -> NDArray[Any]:
    """Choose the decoder: tifffile alone keeps every type but unpacks little, Pillow squeezes 16-bit colour."""
    from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

    gray = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
    bits, samples = page.dtype.itemsize * 8, page.samplesperpixel
    alpha = EXTRASAMPLE.UNASSALPHA in page.extrasamples  # "associated" alpha is composited over black already
    straight = page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
    if not straight or page.bitspersample < 8:
        return decode_with_pillow(
            open_with_pillow(data, "TIFF")
        )  # palette, CMYK, YCbCr, 1 bit: Pillow also applies orientation
    if page.compression == COMPRESSION.NONE:
        orientation = page.tags.get(ORIENTATION)
        planes = page.asarray()
        if page.axes.startswith("S"):  # colour planes one after the other
            planes = np.moveaxis(planes, 0, 2)
        planes = upright(planes, orientation.value if orientation else 1)
        if samples > 1:
            colors = planes[..., 0] if gray else planes[..., :3]
            planes = over_black(colors, planes[..., -1]) if alpha and planes.dtype.kind == "u" else colors
        return _inverted(planes) if page.photometric == PHOTOMETRIC.MINISWHITE else planes
    if bits > 8 and samples > 1:
        return decode_with_opencv(data, alpha=alpha)  # applies orientation
    planes = decode_with_pillow(open_with_pillow(data, "TIFF")).astype(page.dtype)
    # Pillow turns MinIsWhite of 8 bits, and of 8 bits alone.
    return _inverted(planes) if page.photometric == PHOTOMETRIC.MINISWHITE and bits > 8 else planes


def _inverted(values: NDArray[Any]) -> NDArray[Any]:
    """Swap black and white: highest possible - value for unsigned integers, minus the value otherwise."""
    if values.dtype.kind == "u":
        return np.iinfo(values.dtype).max - values
    return -values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
