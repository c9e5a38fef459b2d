"""PNG, JPEG, JPEG 2000, BMP, TIFF, DICOM and NIfTI to one grey array at full depth.

How stored numbers become the levels of a `Film`, whatever the format:

- Unsigned integers of up to 16 bits stay as stored, whatever their number of bits: a film of 12 bits has the levels
  0..4095. Below 8 bits (1-bit PNG, 4-bit DICOM) they are spread over 0..255.
- Signed integers of up to 16 bits stay as stored too where none is negative. Otherwise all are moved up by a number
  that does not depend on the film's darkest pixel: by 1024 where nothing lies below -1024 (Hounsfield units), else by
  half of what their bits allow. So zero lies at the same level in all films of one kind, and one dead pixel does not
  make a film brighter than its neighbours.
- Floats, integers of more than 16 bits and scaled NIfTI are stretched linearly, lowest..highest to 0..65535; a flat
  film gives zeros, NaN or infinity is refused. Floats have no range of their own that could be kept.
- Where the file says that low is white (DICOM MONOCHROME1, TIFF MinIsWhite), levels are inverted: highest - level.
- Colour becomes luminance, (299 R + 587 G + 114 B) / 1000, at the depth of its planes: equal planes give that plane.
- Alpha is composited over black, so a cut-out hand lies on 0; a single transparent colour (PNG tRNS) is ignored.
- The orientation tag of JPEG, PNG and TIFF is applied: the film is as every viewer shows it, and boxes and masks given
  with it refer to that view.
- No level exceeds 2 ** depth - 1; a file whose numbers need more bits than it says is refused.

DICOM (PS3.3 C.7.6.3, C.7.5.1.1.2, C.11):

- A rescale (slope, intercept) keeps the order of the levels, so it is not applied, except that a negative slope inverts
  them; a modality table (not linear) is looked up, and stands in place of the rescale.
- Padding, and what lies behind the display shutter, is no image: it is 0 (black) whatever the polarity, has no say in
  the rule for signed integers, and is False in `exposed`. What lies beyond the collimator's edges stays, and is False
  in `exposed`. A film that is padding altogether is refused.
- Bits above or below the stored ones (overlays) are dropped. Where a codestream holds numbers of more bits than the
  header says, and no overlay lies in them, the codestream's bits count.
- A table's bits are those of its descriptor, unless its greatest entry needs more, or leaves the top four unused.
- The display window (VOI: the first table, else the first window) is applied only on demand, as it clips levels for
  good; what it shows is then spread over the film's bits.
- Attributes that are empty count as absent. Without a preamble or transfer syntax the data set is read as pydicom finds
  it; without PixelRepresentation pixels are unsigned; without PhotometricInterpretation the film is refused, unless
  its presentation LUT shape says the same.

NIfTI: one 2-D film or one slice. Its affine says where the axes point, and the film is turned to the view of DICOM
viewers: columns run to the patient's left (sagittal: to the back), rows to the back (coronal, sagittal: to the feet).

The format is recognized by the first bytes, not by the name: a DICOM file needs no suffix. Sizes are read from headers
before anything is decoded. Nothing is read in part: a truncated file is refused. One page, frame or slice only.
"""

from __future__ import annotations

import gzip
import io
import logging
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.dicom import open_dicom
from preprocessing.readers.dicom_objects import LAST_TAG, MANUFACTURER, kind_in_head, other_object
from preprocessing.readers.header import MAX_BYTES, MIN_SIDE, Header, Pixels
from preprocessing.readers.levels import check_finite, depth_of, to_levels
from preprocessing.readers.nifti import open_nifti
from preprocessing.readers.raster import open_bmp, open_jpeg, open_jpeg_2000, open_png
from preprocessing.readers.recognize import HEAD_BYTES, is_bare_dicom, is_gzip, recognize
from preprocessing.readers.tiff import open_tiff

if TYPE_CHECKING:
    from pydicom import Dataset

OBJECT_HEAD_BYTES = 4096
"""So many first bytes of a file say what kind of DICOM object it is."""
_FORMATS = ("PNG", "JPEG", "JPEG 2000", "BMP", "TIFF", "DICOM", "NIfTI")
_MASK_FORMATS = ("PNG", "TIFF", "NIfTI")


@dataclass(frozen=True)
class Film:
    """One grey film.

    pixels          (H, W) uint8 where `depth` is 8, otherwise uint16; larger is brighter as displayed.
    depth           significant bits of the source, 8..16: levels lie in 0..2 ** depth - 1.
    polarity_known  whether the file says which end of its levels is black, as DICOM does; otherwise dark bones on a
                    bright background may be an inverted film.
    exposed         (H, W) bool, False where the file says that there is no image: padding, and what lies beyond the
                    shutter or collimator; None where it says nothing.
    aspect          height of a pixel divided by its width.
    spacing         of pixel rows and columns in mm, or None where the file says nothing.
    tags            what the header says of the patient and view, by DICOM keyword, those that are not empty alone:
                    PatientID, StudyInstanceUID, Laterality, BodyPartExamined, ViewPosition, ...; {} without a header.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    depth: int
    polarity_known: bool = False
    exposed: NDArray[np.bool_] | None = None
    aspect: float = 1.0
    spacing: tuple[float, float] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def read_film(name: str, data: bytes, *, window: bool = False) -> Film:
    """Read one film from the bytes of its file; `name` is for messages only.

    window  whether to apply a DICOM film's display window; a film without one stays as it is.

    Raises `InputError` for what is not a film: unknown or damaged format, several frames or slices, no pixels, a side
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
        decoded = header.decode()
        levels = to_levels(decoded)
    return Film(
        levels,
        depth_of(decoded.bits),
        polarity_known=header.polarity_known,
        exposed=_exposed(decoded),
        aspect=header.aspect,
        spacing=header.spacing,
        tags=header.tags,
    )


def _exposed(decoded: Pixels) -> NDArray[np.bool_] | None:
    """Join what is blank with what lies beyond the collimator."""
    outside = [part for part in (decoded.blank, decoded.beyond) if part is not None]
    return ~np.logical_or.reduce(outside) if outside else None


def peek_depth(name: str, data: bytes) -> int:
    """Return the significant bits of a film, 8..16, from its header alone; raises `InputError` like `read_film`."""
    with _refusing(name):
        return _open(data).depth


def read_dicom_header(name: str, data: bytes) -> Dataset | None:
    """Read the data set of a DICOM film without its pixels, from the bytes of its file or the first of them.

    None for what is no DICOM. Raises `InputError` for a damaged header, or where it goes on beyond these bytes.
    """
    import pydicom

    with _refusing(name):
        if not data or recognize(data[:HEAD_BYTES]) != "DICOM":
            return None
        unpacked = _unpacked(data) if is_gzip(data) else data
        return pydicom.dcmread(io.BytesIO(unpacked), stop_before_pixels=True, force=is_bare_dicom(unpacked))


def other_object_by_head(head: bytes) -> str | None:
    """Name what a DICOM object is that is no film by the first `OBJECT_HEAD_BYTES` of its file: see `other_object`.

    None for films, and for what these bytes leave open, as damage and deflation do; `read_film` refuses it then.
    """
    unpacked = head
    if is_gzip(head):
        try:
            unpacked = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, OBJECT_HEAD_BYTES)
        except zlib.error:
            return None
    bare = is_bare_dicom(unpacked)
    kind = kind_in_head(unpacked if bare else unpacked[132:])  # 128 bytes of preamble, which may be anything, and DICM
    if kind is not None or MANUFACTURER.encode() not in unpacked:  # only what may be a result of this program is parsed
        return kind
    from pydicom.filereader import read_partial

    try:
        with quiet:
            return other_object(read_partial(io.BytesIO(unpacked), lambda tag, *_: tag > LAST_TAG, force=bare))
    except Exception:  # pydicom has many reasons; the reader says what is wrong with the file
        return None


def read_mask(name: str, data: bytes) -> NDArray[np.bool_]:
    """Read a mask, (H, W) bool, from a PNG, TIFF or NIfTI file: whatever is not zero (not black) is inside.

    Orientation is treated as in `read_film`, so a mask and a film written alike stay aligned. JPEG is refused: its
    compression smears the edge. Raises `InputError` like `read_film`, except that any size from 1 x 1 will do.
    """
    with _refusing(name):
        if _recognized(data) not in _MASK_FORMATS:
            raise InputError(f"not a {', '.join(_MASK_FORMATS[:-1])} or {_MASK_FORMATS[-1]} file, which a mask must be")
        decoded = _open(data).decode()
        check_finite(decoded.values)
        values = decoded.values
        if decoded.inverted and decoded.bits is not None and not decoded.signed:
            values = 2**decoded.bits - 1 - values
        return np.ascontiguousarray((values != 0).any(axis=2) if values.ndim == 3 else values != 0)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `InputError` that names the film, and suppress its warnings."""
    try:
        with quiet:
            yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except Exception as error:  # decoders raise anything on damaged files: struct.error, SyntaxError, IndexError
        text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", str(error))  # such an address differs from run to run
        reason = " ".join(text.split())[:200] or type(error).__name__
        raise InputError(f"{name}: damaged or unusual file, it does not decode ({reason})") from error


class _Quiet:
    """While films are read no warning is shown or logged.

    Filters belong to the whole process, so threads share one set: the first to enter sets it, the last to leave
    restores it.
    """

    _LOGGERS = tuple(logging.getLogger(name) for name in ("tifffile", "pydicom", "nibabel.global"))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                for logger in self._LOGGERS:
                    logger.addFilter(_suppress)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)
                for logger in self._LOGGERS:
                    logger.removeFilter(_suppress)


quiet = _Quiet()


def _suppress(record: logging.LogRecord) -> bool:
    """A filter that lets no message through."""
    return False


def _open(data: bytes, *, window: bool = False) -> Header:
    """Read the header."""
    if len(data) > MAX_BYTES:
        raise InputError(f"{len(data)} bytes; the limit is {MAX_BYTES}")
    name = _recognized(data)
    openers = {"PNG": open_png, "JPEG": open_jpeg, "JPEG 2000": open_jpeg_2000, "BMP": open_bmp, "TIFF": open_tiff}
    if name in openers:
        return openers[name](data)
    if name == "NIfTI":
        return open_nifti(data)  # unpacks as much as its header says
    return open_dicom(_unpacked(data) if is_gzip(data) else data, window=window)


def _recognized(data: bytes) -> str:
    name = recognize(data[:HEAD_BYTES])
    if name is not None:
        return name
    if not data:
        raise InputError("the file is empty")
    if data[128:132] == b"DICM":
        raise InputError("a DICOMDIR: it lists films and is none")
    if is_gzip(data):
        raise InputError("what the gzip file holds is neither NIfTI nor DICOM; unpack it")
    if data.startswith(b"PK\x03\x04"):
        raise InputError("a ZIP archive, not a film: unpack it and give the films in it")
    raise InputError(f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file (it begins with {data[:8]!r})")


def _unpacked(data: bytes) -> bytes:
    """Unpack gzip up to the limit; its checksum is checked."""
    unpacked = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
    if len(unpacked) > MAX_BYTES:
        raise InputError(f"it unpacks to more than {MAX_BYTES} bytes, the limit")
    return unpacked
