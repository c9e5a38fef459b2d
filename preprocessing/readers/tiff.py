"""TIFF and BigTIFF of one page: tifffile reads the layout, imagecodecs the blocks, and both are held to the header.

There is one way for every film: each strip or tile is decoded and put where the layout says. So the same film has the
same pixels in any byte order, compression, tiling, predictor and order of planes. Sections are those of TIFF 6.0.
"""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.codestream import describe
from preprocessing.readers.header import Header, Pixels, check_size
from preprocessing.readers.levels import ORIENTATION, depth_of, over_black, upright
from preprocessing.readers.tiff_directories import check_directories
from preprocessing.wording import counted

_JPEG, _JPEG_2000 = 7, 34712
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, 50000, _JPEG_2000})
"""None; CCITT modified Huffman, groups 3, 4; LZW, JPEG, deflate (two numbers), PackBits, LZMA, Zstandard, JPEG 2000."""
_WHITE, _BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE: 1, _BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}  # samples of each photometric
_MAX_EXTRA = 4
_ASSOCIATED, _UNASSOCIATED = 1, 2
_INK_SET, _STK_PLANES = 332, 33629


def open_tiff(data: bytes) -> Header:
    """Read the header; `InputError` unless there is one page, beside which reduced copies and masks may stand."""
    import tifffile

    check_directories(data)
    # In ScanImage's layout tifffile would make up a page for every stretch up to the file's end.
    tiff: Any = tifffile.TiffFile(io.BytesIO(data), is_scanimage=False)
    page, count = None, 0
    for other in tiff.pages:  # never all of them in memory
        if not (other.is_reduced or other.is_mask):
            page, count = page or other, count + 1
    if page is None:
        raise InputError("no page: truncated file")
    count = max(count, _stacked(page))
    if count > 1:
        raise InputError(f"{count} pages; a film has one: split the file")
    _check_layout(page)
    check_size(page.imagelength, page.imagewidth, page.samplesperpixel * page.dtype.itemsize)
    _check_blocks(page, len(data))
    return Header(page.imagelength, page.imagewidth, depth_of(_bits(page)), lambda: _decode_tiff(data, page))


def _stacked(page: Any) -> int:
    """Count the pages of a stack that has one directory: those of ImageJ, tifffile and MetaMorph."""
    description = page.description or ""
    if description.startswith("ImageJ="):
        images = re.search(r"^images=(\d{1,9})", description, re.MULTILINE)
        return int(images[1]) if images else 1
    if _STK_PLANES in page.tags:
        return int(page.tags[_STK_PLANES].count)
    if not description.startswith('{"shape":'):
        return 1
    try:
        shape = [int(side) for side in json.loads(description)["shape"]]
    except (ValueError, TypeError, KeyError):
        return 1
    size = page.imagelength * page.imagewidth * page.samplesperpixel
    pages, rest = divmod(math.prod(shape), max(size, 1))
    return pages if not rest and 0 < pages < 2**31 else 1


def _check_layout(page: Any) -> None:
    """Refuse by name what is not read."""
    compression, photometric, samples = int(page.compression), int(page.photometric), page.samplesperpixel
    if compression not in _COMPRESSIONS:
        raise InputError(f"TIFF compression {_name(page.compression)} is not read; save it with LZW, deflate or none")
    if photometric not in _COLORS or (photometric == _YCBCR and compression != _JPEG):
        raise InputError(f"TIFF colours {_name(page.photometric)} are not read; save it in grey or RGB")
    if not 0 <= samples - _COLORS[photometric] <= _MAX_EXTRA or (photometric == _PALETTE and samples > 1):
        raise InputError(f"{counted(samples, 'sample')} a pixel for {_name(page.photometric)}; save it in grey or RGB")
    if page.imagedepth != 1 or page.dtype is None or not isinstance(page.bitspersample, int):
        raise InputError(
            f"{counted(page.imagedepth, 'plane')} of {page.bitspersample} bits; save it as 8 or 16 bits a pixel"
        )
    kind, whole = page.dtype.kind, page.bitspersample == 8 * page.dtype.itemsize
    if kind not in "buif" or (kind == "i" and not whole) or (_bits(page) is None and photometric in (_PALETTE, _CMYK)):
        raise InputError(f"{page.bitspersample} bits of {page.dtype}; save it as 8 or 16 bits a pixel")
    if photometric == _CMYK and page.tags.valueof(_INK_SET, default=1) != 1:
        raise InputError("TIFF of inks that are not CMYK; save it in grey or RGB")
    alpha = _alpha(page)
    if alpha is not None and kind not in "bu":
        raise InputError(f"alpha of {page.dtype}; save it without alpha, or as 8 or 16 bits a pixel")


def _name(number: Any) -> str:
    return str(getattr(number, "name", number))


def _check_blocks(page: Any, length: int) -> None:
    """Refuse a page whose strips or tiles are too few, too large, empty, or beyond the file's end."""
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    if page.is_tiled:
        check_size(page.tilelength, page.tilewidth, page.samplesperpixel * page.dtype.itemsize)
        count = math.ceil(page.imagelength / page.tilelength) * math.ceil(page.imagewidth / page.tilewidth)
    else:
        count = math.ceil(page.imagelength / max(page.rowsperstrip, 1))
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(places) < count * planes or any(not size or start + size > length for start, size in places):
        raise InputError("truncated file")


def _bits(page: Any) -> int | None:
    """Give the significant bits of a page's levels; None for floats and integers of over 16 bits."""
    if page.dtype.kind == "f" or page.bitspersample > 16:
        return None
    return (8 if _is_narrow(page.colormap) else 16) if page.photometric == _PALETTE else int(page.bitspersample)


def _is_narrow(colormap: NDArray[np.uint16]) -> bool:
    """Whether a palette's 16-bit entries hold 8 bits each, widened by 256 or 257."""
    return bool((colormap & 255 == 0).all() or (colormap % 257 == 0).all())


def _alpha(page: Any) -> int | None:
    """Give the plane of alpha that colours are still to be multiplied by; None where there is none.

    Associated alpha is in the colours already.
    """
    colors = _COLORS[int(page.photometric)]
    for plane, extra in enumerate(page.extrasamples, colors):
        if extra == _UNASSOCIATED and plane < page.samplesperpixel:
            return plane
    return None


def _decode_tiff(data: bytes, page: Any) -> Pixels:
    """Decode all blocks, then the meaning of their samples."""
    planes = _assembled(data, page)
    bits = _bits(page)
    orientation = page.tags.get(ORIENTATION)
    planes = upright(planes, orientation.value if orientation else 1)
    photometric = int(page.photometric)
    if photometric == _PALETTE:
        colors = np.moveaxis(page.colormap[:, planes[..., 0]], 0, 2)
        return Pixels((colors >> 8).astype(np.uint8) if bits == 8 else colors, bits)
    colors = planes[..., 0] if _COLORS[photometric] == 1 else planes[..., :3]
    inverted = photometric == _WHITE
    if photometric == _CMYK:
        assert bits is not None
        full = 2**bits - 1
        light = full - planes[..., :4].astype(np.uint32)
        colors = ((light[..., :3] * light[..., 3:] + full // 2) // full).astype(planes.dtype)
    alpha = _alpha(page)
    if alpha is not None:
        if bits is None:
            raise InputError(f"alpha of {page.bitspersample} bits; save it without alpha, or as 8 or 16 bits a pixel")
        colors = 2**bits - 1 - colors if inverted else colors
        return Pixels(over_black(colors, planes[..., alpha], bits), bits)
    return Pixels(colors, bits, signed=planes.dtype.kind == "i" and bits is not None, inverted=inverted)


def _assembled(data: bytes, page: Any) -> NDArray[Any]:
    """Decode every strip or tile, and put it where the layout says: (H, W, samples)."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    kind = np.dtype(np.uint8) if page.dtype.kind == "b" else page.dtype.newbyteorder("=")
    separate = page.planarconfig == 2 and samples > 1
    image = np.zeros((samples, height, width, 1) if separate else (1, height, width, samples), kind)
    filled = 0
    tables = {"jpegtables": page.jpegtables} if page.compression == _JPEG else {}
    for index, (start, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        block = data[start : start + size]
        if page.compression in (_JPEG, _JPEG_2000):
            stream = describe(block)
            check_size(stream.height, stream.width, stream.samples * (1 if stream.bits <= 8 else 2))
        part, (plane, _, top, left, _), _ = page.decode(block, index, **tables)
        rows, columns = max(min(part.shape[1], height - top), 0), max(min(part.shape[2], width - left), 0)
        same = np.can_cast(part.dtype, kind, "equiv") or (part.dtype.kind == "b" and kind == np.uint8)
        if plane >= image.shape[0] or part.shape[3] != image.shape[3] or not same:
            raise InputError(f"a block of {part.shape} of {part.dtype} does not fit its header")
        image[plane, top : top + rows, left : left + columns] = part[0, :rows, :columns]
        filled += rows * columns
    if filled != image.shape[0] * height * width:
        raise InputError("its blocks do not fill the film: damaged file")
    return np.moveaxis(image[..., 0], 0, 2) if separate else image[0]
