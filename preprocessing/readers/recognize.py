"""Which format a file has, by its first bytes."""

from __future__ import annotations

import struct
import zlib

HEAD_BYTES = 1024
"""So many first bytes of a file are enough to recognize it."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2", ".j2k", ".j2c", ".jpc", ".jls"}
    | {".dcm", ".dicom", ".ima", ".dcm.gz", ".nii", ".nii.gz"}
)
"""Lower-case endings of files that are taken for films; what ends otherwise, `recognize` knows by its bytes."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the header that follows, of every version
_GZIP = b"\x1f\x8b\x08"
_DIRECTORY = b"1.2.840.10008.1.3.10"  # PS3.4 annex B.5: the class of a DICOMDIR, which lists films and is none

# PS3.5 6.2: value representations, and those whose length has 32 bits (7.1.2).
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_PLAUSIBLE_ELEMENTS = 3


def recognize(head: bytes) -> str | None:
    """Name the format of a film by the first bytes of its file, `HEAD_BYTES` of them or the whole file.

    Returns PNG, JPEG (JPEG-LS, too), JPEG 2000, TIFF, BMP, DICOM or NIfTI, also where gzip packs the last two, and None
    for anything else, a DICOMDIR included. DICOM without a preamble is known by three well-formed elements in order, of
    which the first belongs to the file meta information or the identifying group: PS3.10 section 7, PS3.5 section 7.

    >>> recognize(b"\\x89PNG\\r\\n\\x1a\\n"), recognize(b"%PDF-1.7")
    ('PNG', None)
    """
    if head.startswith(_GZIP):
        head = _unpacked(head)
        # Anything else that gzip packs has a format of its own, which is not read packed.
        return name if (name := _recognize_unpacked(head)) in ("DICOM", "NIfTI") else None
    return _recognize_unpacked(head)


def is_bare_dicom(data: bytes) -> bool:
    """Whether it is DICOM without preamble and prefix."""
    return data[128:132] != b"DICM" and any(_elements_in_order(data, order) for order in "<>")


def is_gzip(data: bytes) -> bool:
    """Whether gzip packed it."""
    return data.startswith(_GZIP)


def _recognize_unpacked(head: bytes) -> str | None:
    if head[128:132] == b"DICM":  # first: the 128 bytes ahead may be anything, and some hold a TIFF header
        return None if _DIRECTORY in head else "DICOM"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in _TIFF:
        return "TIFF"
    if head.startswith(_JPEG_2000):
        return "JPEG 2000"
    if head.startswith(b"BM") and len(head) >= 26 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "BMP"
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "NIfTI"
    return "DICOM" if is_bare_dicom(head) else None


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _elements_in_order(data: bytes, order: str) -> bool:
    """Whether data elements begin at the first byte, explicit or implicit VR, and go on in order of their tags."""
    position, last, seen = 0, 0, 0
    while seen < _PLAUSIBLE_ELEMENTS:
        if position + 12 > len(data):
            return False
        group, element = struct.unpack_from(order + "HH", data, position)
        tag = group << 16 | element
        if (not seen and group not in (2, 8)) or tag <= last or group > 0x7FE0 or (group & 1 and group < 9):
            return False
        representation = data[position + 4 : position + 6]
        if representation in _LONG:
            length, head = struct.unpack_from(order + "I", data, position + 8)[0], 12
        elif representation in _SHORT:
            length, head = struct.unpack_from(order + "H", data, position + 6)[0], 8
        elif order == "<" and group != 2:  # implicit VR is little endian, and file meta information explicit
            length, head = struct.unpack_from("<I", data, position + 4)[0], 8
        else:
            return False
        if length == 0xFFFFFFFF or length % 2:  # a sequence among the very first elements is not expected
            return False
        last, seen, position = tag, seen + 1, position + head + length
    return True
