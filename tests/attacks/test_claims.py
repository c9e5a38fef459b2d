"""What a file claims of its size costs nothing before it is refused; what is read takes a small multiple of it."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile

from preprocessing import InputError
from preprocessing.readers import MAX_BYTES, read_film

SIDE = 2000


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """What numpy and Python have taken at most meanwhile, in bytes."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def png(side: int, color: int, bits: int, claimed: int | None = None) -> bytes:
    """A PNG of one level, which packs well: color types 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + b"\1" * (side * {0: 1, 2: 3, 4: 2, 6: 4}[color] * bits // 8)
    head = struct.pack(">IIBBBBB", claimed or side, claimed or side, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * side, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("color", "planes"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_takes_a_small_multiple_of_its_pixels(color, planes, bits):
    data = png(SIDE, color, bits)
    with peak() as taken:
        film = read_film("film.png", data)
        assert taken() < 2.6 * SIDE * SIDE * planes * bits // 8 + 2**24
    assert film.pixels.shape == (SIDE, SIDE)


@pytest.mark.parametrize("levels", [np.float32, np.float64, np.uint32], ids=str)
def test_a_tiff_of_wide_numbers_takes_a_small_multiple_of_its_pixels(levels):
    ramp = np.broadcast_to(np.arange(SIDE, dtype=levels), (SIDE, SIDE))
    file = io.BytesIO()
    tifffile.imwrite(file, ramp, compression="zlib", photometric="minisblack", metadata=None)
    with peak() as taken:
        film = read_film("film.tif", file.getvalue())
        assert taken() < 3 * ramp.nbytes + 2**24
    assert film.pixels[0, 0] == 0 and film.pixels[0, -1] == 65535


def test_the_bytes_of_a_film_are_counted_not_its_pixels_alone():
    with peak() as taken:
        with pytest.raises(InputError, match=f"decode to more than {MAX_BYTES} bytes, the limit"):
            read_film("film.png", png(4, 6, 16, claimed=8000))
        assert taken() < 2**20


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"\1" * 64) -> bytes:
    """A TIFF of these entries (tag, type, count, value) over a few bytes of pixels."""
    known = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    known |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, 8), 279: (4, 1, len(data))}
    known |= {tag: (kind, count, value) for tag, kind, count, value in entries}
    lines = [struct.pack("<HHII", tag, *known[tag]) for tag in sorted(known)]
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(lines)) + b"".join(lines) + bytes(4)
    )


@pytest.mark.parametrize(
    "claim",
    [
        [(277, 3, 1, 65535)],
        [(277, 3, 1, 65535), (258, 3, 65535, 8)],
        [(277, 3, 1, 65535), (262, 3, 1, 2), (284, 3, 1, 2)],
        [(277, 3, 1, 65535), (256, 4, 1, 6000), (257, 4, 1, 6000), (278, 4, 1, 6000)],
        [(277, 3, 1, 65535), (322, 4, 1, 512), (323, 4, 1, 512), (324, 4, 1, 8), (325, 4, 1, 64)],
        [(256, 4, 1, 2**31), (257, 4, 1, 2**31)],
        [(258, 3, 1, 65535)],
    ],
    ids=["samples", "samples of bits", "planes", "samples of a large film", "tiles", "sides", "bits"],
)
def test_what_a_tiff_claims_is_refused_before_anything_is_made_of_it(claim):
    with peak() as taken:
        with pytest.raises(InputError, match=r"^film\.tif: [^\n]+$"):
            read_film("film.tif", tiff(*claim))
        assert taken() < 2**22
