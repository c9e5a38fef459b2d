"""PNG, JPEG, TIFF, DICOM and NIfTI to one grey array at full depth.

How stored numbers become the levels of a `Film`, whatever the format:

- Unsigned integers of up to 16 bits stay as stored. Below 8 bits (1-bit PNG, 4-bit DICOM) they are spread over 0..255.
- Signed integers of up to 16 bits stay as stored too; if any is negative, all are moved up so that the lowest is 0.
- Floats, integers of more than 16 bits and scaled NIfTI are stretched linearly, lowest..highest to 0..65535; a flat
  film gives zeros, NaN or infinity is refused. Floats have no range of their own that could be kept.
- Where the file says that low is white (DICOM MONOCHROME1, TIFF MinIsWhite), levels are turned: highest - level.
- Colour becomes luminance, (299 R + 587 G + 114 B) / 1000, at the depth of its planes: equal planes give that plane.
- Alpha is composited over black, so a cut-out hand stands on 0; a single transparent colour (PNG tRNS) is ignored.
- The orientation tag of JPEG, PNG and TIFF is applied: the film is as every viewer shows it, and boxes and masks given
  with it mean that view.

DICOM: a rescale (slope, intercept) keeps the order of the levels, so it is not carried out, except that a negative
slope turns them; a modality table (not linear) is looked up. So a 12-bit film has the levels 0..4095. The display
window (VOI, the first one) is applied only on demand, as it clips levels for good; what it shows is then spread over
the film's bits. One frame only. JPEG baseline, JPEG 2000 and RLE are read by what is installed anyway; JPEG lossless
and JPEG-LS need the extra `xray-anomaly[dicom]`.

NIfTI: one 2-D film or one slice. Its affine says where the axes point, and the film is turned to what DICOM viewers
show: columns run to the patient's left (sagittal: to the back), rows to the back (coronal, sagittal: to the feet).

The format is told by the first bytes, not by the name: a DICOM file needs no suffix. Sizes are read from headers
before anything is decoded. Nothing is half-read: a truncated file is refused.
"""

from __future__ import annotations

import gzip
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Films of more pixels are refused before they are decoded; the largest X-ray plates have about 25 million."""

MIN_SIDE = 16
"""Films with a shorter side, in pixels, are refused: nothing could be seen on them."""

MAX_BYTES = 2**28
"""Larger files are refused, and so is what unpacks to more."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".nii", ".nii.gz"})
"""Lower-case endings by which films are found in folders."""

_MAX_DIRECTORIES = 1000
_SUB_DIRECTORIES = 330  # the tag's number; a directory is what TIFF keeps of a page
_PNG_END = b"IEND\xae\x42\x60\x82"
_MASK_FORMATS = ("PNG", "TIFF", "NIfTI")
_ORIENTATION = 274  # the tag's number, in TIFF and EXIF alike
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CODECS = "pip install -e '.[dicom]'"
_CODECS_12_BIT = "pip install pylibjpeg pylibjpeg-libjpeg"  # the only one for 12-bit JPEG; GPL, so not in the extra


@dataclass(frozen=True)
class Film:
    """One grey film.

    pixels  (H, W) uint8 where `depth` is 8, otherwise uint16; larger is brighter as displayed.
    depth   significant bits of the source, 8..16: levels lie in 0..2 ** depth - 1.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    depth: int


@dataclass(frozen=True)
class _Header:
    """What the header says, and how to get at the pixels: (H, W) or (H, W, 3), any real type, low is dark."""

    height: int
    width: int
    depth: int
    decode: Callable[[], NDArray[Any]]


def read_film(name: str, data: bytes, *, window: bool = False) -> Film:
    """Read one film from the bytes of its file; `name` serves the messages alone.

    window  whether a DICOM film is seen through the display window that it names; one that names none stays as it is.

    Raises `InputError` for what is no film: unknown or damaged format, several frames or slices, no pixels, a side
    under `MIN_SIDE`, more than `MAX_PIXELS` pixels or `MAX_BYTES` bytes. An all-black or all-white film is a film.

    >>> import cv2
    >>> ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    >>> film = read_film("ramp.png", cv2.imencode(".png", ramp)[1].tobytes())
    >>> film.depth, bool((film.pixels == ramp).all())
    (16, True)
    """
    with _refusing(name):
        header = _open(data, window=window)
        if min(header.height, header.width) < MIN_SIDE:
            raise InputError(
                f"{header.width} x {header.height} pixels; a film needs at least {MIN_SIDE} pixels on its shorter side"
            )
        pixels = _levels(header.decode(), header.depth)
    return Film(pixels, header.depth)


def peek_depth(name: str, data: bytes) -> int:
    """Tell the significant bits of a film, 8..16, from its header alone; raises `InputError` like `read_film`."""
    with _refusing(name):
        return _open(data).depth


def read_mask(name: str, data: bytes) -> NDArray[np.bool_]:
    """Read a mask, (H, W) bool, from a PNG, TIFF or NIfTI file: whatever is not zero (not black) is inside.

    Orientation is treated as in `read_film`, so a mask and a film written alike stay together. JPEG is refused: its
    compression smears the edge. Raises `InputError` like `read_film`, except that any size from 1 x 1 will do.
    """
    with _refusing(name):
        if _recognise(data) not in _MASK_FORMATS:
            raise InputError(f"no {', '.join(_MASK_FORMATS)} file, one of which a mask must be")
        values = _open(data).decode()
        _check_finite(values)
        return np.ascontiguousarray((values != 0).any(axis=2) if values.ndim == 3 else values != 0)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `InputError` that names the film, and keep its warnings to itself."""
    from PIL import Image

    try:
        with _quiet:
            yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{name}: {_too_many_pixels('its image')}") from None
    except Exception as error:  # decoders raise anything on damaged files: struct.error, SyntaxError, IndexError
        text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", str(error))  # such an address differs from run to run
        reason = " ".join(text.split())[:200] or type(error).__name__
        raise InputError(f"{name}: damaged or unusual file, it does not decode ({reason})") from error


class _Quiet:
    """Warnings while films are read: none is shown or logged, Pillow's over-large image is an error.

    Filters belong to the whole process, so threads share one set: the first one in sets it, the last one out restores.
    """

    _LOGGERS = tuple(logging.getLogger(name) for name in ("tifffile", "pydicom", "nibabel.global"))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        from PIL import Image

        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                for logger in self._LOGGERS:
                    logger.addFilter(_nothing)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)
                for logger in self._LOGGERS:
                    logger.removeFilter(_nothing)


_quiet = _Quiet()


def _nothing(record: logging.LogRecord) -> bool:
    """A filter that lets no message through."""
    return False


def _open(data: bytes, *, window: bool = False) -> _Header:
    """Read the header and check its size."""
    if len(data) > MAX_BYTES:
        raise InputError(f"{len(data)} bytes; the limit is {MAX_BYTES}")
    openers = {"PNG": _open_png, "JPEG": _open_jpeg, "TIFF": _open_tiff, "NIfTI": _open_nifti}
    openers["DICOM"] = partial(_open_dicom, window=window)
    header = openers[_recognise(data)](data)
    if header.height * header.width > MAX_PIXELS:
        raise InputError(_too_many_pixels(f"{header.width} x {header.height}"))
    return header


def _recognise(data: bytes) -> str:
    """Name the format by its signature."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[128:132] == b"DICM":  # before TIFF: the 128 bytes ahead may be anything, and some hold a TIFF header
        return "DICOM"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data.startswith(b"\x1f\x8b") or data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0":
        return "NIfTI"
    if not data:
        raise InputError("the file is empty")
    raise InputError(f"no PNG, JPEG, TIFF, DICOM or NIfTI file (it begins with {data[:8]!r})")


def _too_many_pixels(found: str) -> str:
    return f"{found} has more than {MAX_PIXELS} pixels, the limit; shrink the film"


# ---- from values to levels


def _levels(values: NDArray[Any], depth: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Carry out the rule of the module's docstring: (H, W) or (H, W, 3) of any real type to (H, W) grey levels."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        _check_finite(values)
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


def _over_black(planes: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
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


def _check_finite(values: NDArray[Any]) -> None:
    if values.dtype.kind not in "biuf":
        raise InputError(f"pixels of type {values.dtype}; real numbers are needed")
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"{bad} pixels are NaN or infinite; give them a grey level")


def _upright(planes: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, ...) by the orientation tag 1..8 of TIFF 6.0; another number means 1."""
    if orientation in (5, 6, 7, 8):
        planes = planes.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        planes = planes[::-1]
    if orientation in (2, 3, 6, 7):
        planes = planes[:, ::-1]
    return planes


# ---- PNG and JPEG


def _open_png(data: bytes) -> _Header:
    if _PNG_END not in data:  # Pillow is content once it has the pixels
        raise InputError("truncated file")
    image = _pillow(data, "PNG")
    deep = data[24] == 16
    colour = data[25] != 0

    def decode() -> NDArray[Any]:
        image.load()
        # Pillow squeezes 16-bit colour to 8 bits; OpenCV keeps it, but leaves it to Pillow to notice damage.
        planes = _opencv(data, alpha=data[25] in (4, 6)) if deep and colour else _planes(image)
        return _upright(planes, _exif_orientation(image))

    return _Header(image.height, image.width, 16 if deep else 8, decode)


def _open_jpeg(data: bytes) -> _Header:
    image = _pillow(data, "JPEG")
    return _Header(image.height, image.width, 8, lambda: _upright(_planes(image), _exif_orientation(image)))


def _pillow(data: bytes, kind: str) -> Image.Image:
    """Open with Pillow, which reads no more than the header here."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=(kind,))


def _planes(image: Image.Image) -> NDArray[Any]:
    """Decode with Pillow: (H, W) or (H, W, 3), alpha composited over black."""
    image.load()
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr", "RGBX", "LAB"):
        image = image.convert("RGB")
    planes = np.asarray(image)
    planes = planes.astype(planes.dtype.newbyteorder("="))
    if image.mode in ("LA", "RGBA"):
        return _over_black(planes[..., 0] if image.mode == "LA" else planes[..., :3], planes[..., -1])
    if image.mode in ("La", "RGBa"):  # composited already
        return planes[..., 0] if image.mode == "La" else planes[..., :3]
    return planes


def _opencv(data: bytes, *, alpha: bool) -> NDArray[Any]:
    """Decode 16-bit colour with OpenCV: (H, W) or (H, W, 3), a fourth plane composited over black if it is `alpha`."""
    import cv2

    planes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if planes is None:
        raise InputError("damaged or unusual file, it does not decode")
    if planes.ndim == 2:
        return planes
    colour = planes[..., 2::-1]  # OpenCV keeps blue first
    return _over_black(colour, planes[..., 3]) if alpha and planes.shape[2] == 4 else colour


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged camera data beside sound pixels: the film stands as stored
        return 1


# ---- TIFF


def _open_tiff(data: bytes) -> _Header:
    import tifffile

    _check_directories(data)
    # ScanImage's layout would be taken for granted as far as the file reaches, one page after the other.
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
        raise InputError(f"{page.imagedepth} planes of {page.bitspersample} bits; save it as 8 or 16 bits a pixel")
    if any(start + size > len(data) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise InputError("truncated file")
    small = page.dtype.kind in "biu" and page.dtype.itemsize == 1
    return _Header(page.imagelength, page.imagewidth, 8 if small else 16, lambda: _decode_tiff(data, page))


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
            raise InputError(f"its pages form a cycle: the one at byte {offset} comes up again; save the file anew")
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
                raise InputError("its pages claim the same bytes again and again; save the file anew")
            if code == _SUB_DIRECTORIES and kind in (4, 13, 16, 18):
                stored = data[place : place + length] if outside else value
                below = f"{order}{min(count, _MAX_DIRECTORIES + 1)}{'I' if sizes[kind] == 4 else 'Q'}"
                waiting += [(other, False) for other in struct.unpack_from(below, stored)]
        if in_chain and end + link.size <= len(data):
            waiting.append((link.unpack_from(data, end)[0], True))


def _decode_tiff(data: bytes, page: Any) -> NDArray[Any]:
    """Choose the decoder: tifffile alone keeps every type but unpacks little, Pillow squeezes 16-bit colour."""
    from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

    grey = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
    bits, samples = page.dtype.itemsize * 8, page.samplesperpixel
    alpha = EXTRASAMPLE.UNASSALPHA in page.extrasamples  # "associated" alpha is composited over black already
    straight = page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
    if not straight or page.bitspersample < 8:
        return _planes(_pillow(data, "TIFF"))  # palette, CMYK, YCbCr, 1 bit: Pillow also applies orientation
    if page.compression == COMPRESSION.NONE:
        orientation = page.tags.get(_ORIENTATION)
        planes = page.asarray()
        if page.axes.startswith("S"):  # colour planes one after the other
            planes = np.moveaxis(planes, 0, 2)
        planes = _upright(planes, orientation.value if orientation else 1)
        if samples > 1:
            colours = planes[..., 0] if grey else planes[..., :3]
            planes = _over_black(colours, planes[..., -1]) if alpha and planes.dtype.kind == "u" else colours
        return _turned(planes) if page.photometric == PHOTOMETRIC.MINISWHITE else planes
    if bits > 8 and samples > 1:
        return _opencv(data, alpha=alpha)  # applies orientation
    planes = _planes(_pillow(data, "TIFF")).astype(page.dtype)
    # Pillow turns MinIsWhite of 8 bits, and of 8 bits alone.
    return _turned(planes) if page.photometric == PHOTOMETRIC.MINISWHITE and bits > 8 else planes


def _turned(values: NDArray[Any]) -> NDArray[Any]:
    """Swap black and white: highest possible - value for unsigned integers, minus the value otherwise."""
    if values.dtype.kind == "u":
        return np.iinfo(values.dtype).max - values
    return -values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


# ---- DICOM


def _open_dicom(data: bytes, *, window: bool) -> _Header:
    import pydicom

    _check_deflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:  # reports, plans, waveforms; parametric maps keep floats elsewhere
        raise InputError(f"a DICOM file without integer pixels (modality {dataset.get('Modality', 'unknown')})")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(f"{frames} frames; a film has one: export the frame that is meant")
    bits = int(dataset.BitsStored)
    if not 1 <= bits <= 16 or int(dataset.BitsAllocated) > 16:
        raise InputError(f"{bits} bits a pixel; films have 1 to 16")
    bits = _table_bits(dataset) or bits
    return _Header(
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

    values = _decompressed(dataset)
    kind = dataset.PhotometricInterpretation
    if values.shape[:2] != (dataset.Rows, dataset.Columns):
        raise InputError(f"the pixels measure {values.shape}, the header says {dataset.Rows} x {dataset.Columns}")
    if kind == "PALETTE COLOR":
        return np.asarray(apply_color_lut(values, dataset))[..., :3]
    if values.ndim == 3:
        return np.asarray(values)
    if not kind.startswith("MONOCHROME"):
        raise InputError(f"photometric interpretation {kind!r}; MONOCHROME1, MONOCHROME2, RGB, YBR or palette is read")

    bits = int(dataset.BitsStored)
    if "HighBit" in dataset and int(dataset.HighBit) != bits - 1:
        raise InputError(f"high bit {dataset.HighBit} for {bits} bits stored; {bits - 1} is read")
    values = values.astype(np.int32) & (2**bits - 1)  # the bits above may hold an overlay
    signed = bool(dataset.PixelRepresentation)
    if signed:
        sign = 2 ** (bits - 1)
        values = (values ^ sign) - sign
    if "ModalityLUTSequence" in dataset:
        values = _looked_up(values, dataset.ModalityLUTSequence[0], signed=signed)
        bits, signed = _table_bits(dataset) or bits, False
    slope = float(dataset.get("RescaleSlope") or 1)
    if window and ("VOILUTSequence" in dataset or "WindowCenter" in dataset):
        values, signed = _windowed(values * slope + float(dataset.get("RescaleIntercept") or 0), dataset, bits), False
        slope = 1.0  # it is in what the window shows
    if (kind == "MONOCHROME1") != (slope < 0):
        values = -values if signed else 2**bits - 1 - values
    if signed:
        values = values - min(int(values.min()), 0)
    elif bits < 8:
        values = values * 255 // (2**bits - 1)
    return np.asarray(values, np.uint16)


def _windowed(values: NDArray[Any], dataset: Any, bits: int) -> NDArray[Any]:
    """Show rescaled values through the film's first display window, over 0..2**bits - 1: C.11.2 of part 3."""
    top = 2**bits - 1
    if "VOILUTSequence" in dataset:
        table = dataset.VOILUTSequence[0]
        shown = _looked_up(np.rint(values).astype(np.int32), table, signed=bool(dataset.PixelRepresentation))
        return np.asarray(shown * top // (2 ** int(table.LUTDescriptor[2]) - 1))
    centre, width = (float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / max(width, 1e-6)))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / max(width, 1e-6) + 0.5
    else:
        share = (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    return np.asarray(np.rint(np.clip(share, 0, 1) * top), np.int32)


def _looked_up(values: NDArray[Any], table: Any, *, signed: bool) -> NDArray[Any]:
    """Look values up in a modality table, C.11.1 of the standard's part 3; values beyond it take its ends."""
    entries, first = int(table.LUTDescriptor[0]) or 65536, int(table.LUTDescriptor[1])
    if signed and first > 32767:
        first -= 65536
    levels = table.LUTData
    levels = np.frombuffer(levels, "<u2") if isinstance(levels, bytes) else np.asarray(levels)
    levels = levels[:entries].astype(np.int32)
    return np.asarray(levels[np.clip(values - first, 0, len(levels) - 1)])


def _decompressed(dataset: Any) -> NDArray[Any]:
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


# ---- NIfTI


def _open_nifti(data: bytes) -> _Header:
    import nibabel

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
        raise InputError(f"shape {shape}; a film is one 2-D image or one slice: save the slice that is meant")
    transposed, _, _ = _display(header.get_best_affine(), axes)
    width, height = (int(shape[axis]) for axis in (axes[::-1] if transposed else axes))
    kind = header.get_data_dtype()
    small = kind.kind in "iu" and kind.itemsize == 1 and _unscaled(header)
    size = int(header.get_data_offset()) + height * width * kind.itemsize

    def decode() -> NDArray[Any]:
        if size > MAX_BYTES:
            raise InputError(f"it unpacks to {size} bytes; the limit is {MAX_BYTES}")
        # One byte more, so that a sound file is read to its end, where its checksum stands.
        raw = gzip.GzipFile(fileobj=io.BytesIO(data)).read(size + 1) if packed else data
        proxy = image_class.from_bytes(raw).dataobj
        values = proxy.get_unscaled() if _unscaled(header) else np.asarray(proxy)
        return _oriented(values.astype(values.dtype.newbyteorder("=")), header.get_best_affine(), axes)

    return _Header(height, width, 8 if small else 16, decode)


def _unscaled(header: Any) -> bool:
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


def _oriented(values: NDArray[Any], affine: NDArray[np.float64], axes: list[int]) -> NDArray[Any]:
    """Turn an image of two proper `axes` to (rows, columns) as displayed."""
    transposed, flip_across, flip_down = _display(affine, axes)
    film = values.reshape([values.shape[axis] for axis in axes])
    film = film if transposed else film.T
    film = film[:, ::-1] if flip_across else film
    return film[::-1] if flip_down else film
