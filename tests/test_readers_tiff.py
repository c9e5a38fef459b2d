"""The same film has the same pixels, however a TIFF stores it."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing import InputError
from preprocessing.readers import peek_depth, read_film, read_mask
from tests.film_files import check_film, luminance, picture, pillow, quickly, refused, tiff


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_min_is_white_is_turned(dtype: type, compression: str | None) -> None:
    levels = np.linspace(0, 255, 400).reshape(20, 20).astype(dtype)
    turned = read_film("w", tiff(levels, photometric="miniswhite", compression=compression)).pixels
    plain = read_film("b", tiff(levels, compression=compression)).pixels
    top = 65535 if np.dtype(dtype).itemsize > 1 else 255
    np.testing.assert_array_equal(turned, top - plain)


def test_tiff_floats_and_signed_integers() -> None:
    heights = np.linspace(-3.5, 7.25, 400).reshape(20, 20)
    film = read_film("f.tif", tiff(heights.astype(np.float32)))
    assert film.depth == 16 and film.pixels.min() == 0 and film.pixels.max() == 65535
    assert (np.diff(film.pixels.ravel().astype(int)) > 0).all()
    signed = np.arange(-200, 200, dtype=np.int16).reshape(20, 20)
    check_film(read_film("s.tif", tiff(signed)), signed.astype(int) + 1024, 16)
    check_film(read_film("p.tif", tiff(np.abs(signed))), np.abs(signed), 16)
    flat = read_film("flat.tif", tiff(np.full((20, 20), 7.5, np.float32)))
    check_film(flat, np.zeros((20, 20)), 16)


def tiff_of(following: list[int], *, big: bool = False, below: dict[int, list[int]] | None = None) -> bytes:
    """A TIFF of equal pages of 24 x 20: page i is followed by page `following[i]`, the last one named -1.

    below  pages that a page names in its SubIFDs tag, two or more of them.
    """
    offset, counter, start, inline = ("<Q", "<Q", 16, 8) if big else ("<I", "<H", 8, 4)
    pixels = picture().tobytes()
    tags = {256: 20, 257: 24, 258: 8, 259: 1, 262: 1, 273: start, 277: 1, 278: 24, 279: len(pixels)}
    first = start + len(pixels)
    directory = struct.calcsize(counter) + (len(tags) + 1) * (8 + 8 * big + 4) + inline
    places = [first + page * directory for page in range(len(following))]
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if big else struct.pack("<2sHI", b"II", 42, first)
    data = bytearray(header)
    data += pixels
    lists = b""
    for page, successor in enumerate(following):
        named = [places[other] for other in (below or {}).get(page, [])]
        data += struct.pack(counter, len(tags) + 1)
        for code, value in tags.items():
            data += struct.pack("<HH", code, 4) + struct.pack(offset, 1) + struct.pack("<I", value).ljust(inline, b"\0")
        stored = first + len(following) * directory + len(lists) if named else 0
        # Without pages below, a tag of its own stands there, so that all directories have one length.
        data += struct.pack("<HH", *((330, 13 + 5 * big) if named else (65000, 4)))
        data += struct.pack(offset, len(named) or 1)
        data += struct.pack(offset, stored) + struct.pack(offset, places[successor] if successor >= 0 else 0)
        lists += b"".join(struct.pack(offset, place) for place in named)
    return bytes(data + lists)


def names_itself() -> bytes:
    """A page of 16 x 10 pixels that names itself as the next one, in 318 bytes."""
    levels = bytes(range(0, 256, 16)) * 10
    tags = [(256, 16), (257, 10), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 10), (279, 160)]
    directory = struct.pack("<H", 12) + b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags)
    directory += b"".join(struct.pack("<HHII", 65000 + code, 4, 1, 0) for code in range(3))
    return struct.pack("<2sHI", b"II", 42, 168) + levels + directory + struct.pack("<I", 168)


def same_bytes_claimed_over_and_over() -> bytes:
    """Pages whose descriptions are all the same large part of the file."""
    filler = 300_000
    directories = b""
    for page in range(400):
        place = 8 + filler + (page + 1) * 18
        directories += struct.pack("<HHHIII", 1, 270, 2, filler, 8, place if page < 399 else 0)
    return struct.pack("<2sHI", b"II", 42, 8 + filler) + b"a" * filler + directories


def scanimage() -> bytes:
    """Pages at equal distances that claim a description of ScanImage, then a megabyte of nothing."""
    pages = bytearray(tiff_of([*range(1, 6), -1]))
    description = b"state.config=1\0"
    end = len(pages)
    for place in range(len(pages) - 12):
        if struct.unpack_from("<HHI", pages, place) == (65000, 4, 1):
            struct.pack_into("<HHII", pages, place, 270, 2, len(description), end)
        elif struct.unpack_from("<HHI", pages, place) == (273, 4, 1):
            struct.pack_into("<I", pages, place + 8, place)  # each page's pixels are to come after its directory begins
    return bytes(pages) + description + bytes(1_000_000)


CYCLES = {
    "one page": names_itself,
    "one page, BigTIFF": lambda: tiff_of([0], big=True),
    "three pages": lambda: tiff_of([1, 2, 0]),
    "three pages after two": lambda: tiff_of([1, 2, 3, 4, 2]),
    "150 pages": lambda: tiff_of([*range(1, 150), 0]),
    "SubIFDs": lambda: tiff_of([-1, -1, -1], below={0: [1, 2], 2: [1, 0]}),
    "SubIFDs, BigTIFF": lambda: tiff_of([-1, -1, -1], big=True, below={0: [1, 2], 1: [1, 2]}),
}


@pytest.mark.parametrize("data", [pytest.param(make, id=name) for name, make in CYCLES.items()])
def test_a_tiff_whose_pages_form_a_cycle_is_refused_in_little_memory(data: Callable[[], bytes]) -> None:
    check_refused_in_little_memory(data(), "its pages form a cycle: the one at byte ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: tiff_of([*range(1, 5000), -1]), "more than 1000 pages; a film has one"),
        (lambda: tiff_of([-1, *[-1] * 1200], below={0: [*range(1, 1201)]}), "more than 1000 pages; a film has one"),
        (lambda: tiff_of([*range(1, 150), -1]), "150 pages; a film has one: split the file"),
        (same_bytes_claimed_over_and_over, "claim the same bytes over and over"),
        (scanimage, "6 pages; a film has one: split the file"),
    ],
)
def test_tiffs_of_many_pages_are_refused_in_little_memory(data: Callable[[], bytes], reason: str) -> None:
    check_refused_in_little_memory(data(), reason)


def check_refused_in_little_memory(data: bytes, reason: str) -> None:
    refused("warm up.tif", tiff_of([1, -1]))
    for read in (read_film, peek_depth, read_mask):
        tracemalloc.start()
        try:
            with pytest.raises(InputError) as caught:
                read("film.tif", data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert str(caught.value).startswith("film.tif: ") and reason in str(caught.value)
        assert peak < len(data) + 4_000_000


def test_a_page_of_its_own_beside_small_copies_masks_and_sub_directories_is_a_film() -> None:
    levels = picture(np.uint16, shape=(64, 48))
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(levels, subifds=2)
        for step in (2, 4):
            writer.write(levels[::step, ::step], subfiletype=1)
        for step in (2, 4):
            writer.write(levels[::step, ::step], subfiletype=1)
        writer.write(levels > 0, subfiletype=4)
    check_film(read_film("pyramid.tif", stream.getvalue()), levels, 16)
    check_film(read_film("shared.tif", tiff_of([-1, -1, -1], below={0: [1, 2]})), picture(), 8)


# ---- one rule for every layout


def luminance_of(planes: np.ndarray) -> np.ndarray:
    """The readers' fixed-point weights: equal to the last level."""
    red, green, blue = np.moveaxis(planes.astype(np.uint32), 2, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


LAYOUTS = [
    {"compression": compression, "tile": tile, "byteorder": order, "predictor": predictor, "planarconfig": planes}
    for compression in (None, "zlib", "lzw", "packbits", "zstd", "lzma")
    for tile in (None, (16, 32))
    for order in "<>"
    for predictor in (False, True)
    for planes in ("contig", "separate")
    if not (predictor and compression in (None, "packbits"))
]


def stored(levels: np.ndarray, photometric: str, layout: dict[str, Any]) -> bytes:
    """Write levels, (H, W) or (H, W, samples), in a layout."""
    options = {**layout, "photometric": photometric, "bigtiff": layout["byteorder"] == ">"}
    planes = options.pop("planarconfig")
    if not options["predictor"]:
        del options["predictor"]
    elif levels.dtype.kind == "f":
        options["predictor"] = 3
    else:
        options["predictor"] = 2
    if options["tile"] is None:
        options["rowsperstrip"] = 7
    if levels.ndim == 3:
        options["planarconfig"] = planes
        options["extrasamples"] = ["unassalpha"] if levels.shape[2] in (2, 4) else []
        levels = np.moveaxis(levels, 2, 0).copy() if planes == "separate" else levels
    return tiff(levels, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_the_same_film_has_the_same_pixels_in_every_layout(dtype: type, samples: int) -> None:
    levels = picture(dtype, planes=samples if samples > 1 else 0, shape=(45, 37))
    full = np.iinfo(dtype).max
    colors = levels if samples == 1 else levels[..., 0] if samples == 2 else levels[..., :3]
    if samples in (2, 4):
        alpha = levels[..., -1:] if samples == 4 else levels[..., -1]
        colors = (colors.astype(np.uint32) * alpha + full // 2) // full
    expected = colors if colors.ndim == 2 else luminance_of(colors)
    for layout in LAYOUTS:
        data = stored(levels, "minisblack" if samples < 3 else "rgb", layout)
        for _ in range(2):
            film = read_film("film.tif", data)
            assert film.pixels.dtype == dtype
            np.testing.assert_array_equal(film.pixels, expected, err_msg=str(layout))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_signed_and_real_films_have_the_same_pixels_in_every_layout(dtype: type, photometric: str) -> None:
    levels = np.random.default_rng(0).integers(-100, 100, (45, 37)).astype(dtype)
    plain = read_film("film.tif", tiff(levels, photometric=photometric)).pixels
    assert len(np.unique(plain)) == len(np.unique(levels))
    for layout in LAYOUTS:
        if layout["planarconfig"] == "contig":
            film = read_film("film.tif", stored(levels, photometric, layout))
            np.testing.assert_array_equal(film.pixels, plain, err_msg=str(layout))


def written_tiff(tags: dict[int, tuple[int, list[int]]], blocks: list[bytes], *, order: str) -> bytes:
    """A TIFF of one directory from tags (number -> type, values) and blocks, whose places are put in tags 273, 279."""
    data = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    places = []
    for block in blocks:
        places.append(len(data))
        data += block + bytes(len(block) % 2)
    tags = {**tags, 273: (4, places), 279: (4, [len(block) for block in blocks])}
    entries = b""
    for number, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = len(data)
            data += packed + bytes(len(packed) % 2)
            packed = struct.pack(order + "I", place)
        entries += struct.pack(order + "HHI", number, kind, len(values)) + packed.ljust(4, b"\0")
    struct.pack_into(order + "I", data, 4, len(data))
    return bytes(data + struct.pack(order + "H", len(tags)) + entries + bytes(4))


def packed_rows(levels: np.ndarray, bits: int) -> bytes:
    """Rows of samples of so many bits, highest bit first, each filled up to whole bytes: TIFF 6.0, sections 3 and 8."""
    flat = levels.reshape(len(levels), -1)
    ones = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(len(flat), -1).astype(np.uint8), axis=1).tobytes()


def packed_tiff(
    levels: np.ndarray, bits: int, *, order: str, deflated: bool, separate: bool, photometric: int
) -> bytes:
    samples = 1 if levels.ndim == 2 else levels.shape[2]
    planes = [levels[..., plane] for plane in range(samples)] if separate and samples > 1 else [levels]
    strips = [plane[top : top + 9] for plane in planes for top in range(0, len(levels), 9)]
    blocks = [packed_rows(strip, bits) for strip in strips]
    if bits == 16:
        blocks = [strip.astype(f"{order}u2").tobytes() for strip in strips]
    tags = {
        256: (4, [levels.shape[1]]),
        257: (4, [levels.shape[0]]),
        258: (3, [bits] * samples),
        259: (3, [8 if deflated else 1]),
        262: (3, [photometric]),
        277: (3, [samples]),
        278: (4, [9]),
        284: (3, [2 if separate else 1]),
    }
    return written_tiff(tags, [zlib.compress(block) for block in blocks] if deflated else blocks, order=order)


@quickly
@given(st.integers(1, 16), st.sampled_from("<>"), st.booleans(), st.booleans(), st.sampled_from([0, 1, 2]))
def test_samples_of_any_number_of_bits(bits: int, order: str, deflated: bool, separate: bool, photometric: int) -> None:
    samples = (3,) if photometric == 2 else ()
    levels = np.random.default_rng(bits).integers(0, 2**bits, (31, 29, *samples)).astype(np.uint16)
    data = packed_tiff(levels, bits, order=order, deflated=deflated, separate=separate, photometric=photometric)
    top = 2**bits - 1
    expected = luminance_of(levels) if photometric == 2 else top - levels if photometric == 0 else levels
    if bits < 8:
        expected = expected.astype(int) * 255 // top
    check_film(read_film("p.tif", data), expected, max(bits, 8))
    assert peek_depth("p.tif", data) == max(bits, 8)


@pytest.mark.parametrize(
    "compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "tiff_deflate", None]
)
def test_one_bit_films_of_every_fax_coding(compression: str | None) -> None:
    bits = picture(shape=(33, 47)) > 127
    data = pillow(Image.fromarray(bits), "TIFF", compression=compression)
    check_film(read_film("fax.tif", data), bits * np.uint8(255), 8)


def test_jpeg_in_tiff_of_grey_and_colour() -> None:
    smooth = np.add.outer(np.arange(48) * 2, np.arange(64) * 2).astype(np.uint8)
    grey = pillow(Image.fromarray(smooth), "TIFF", compression="jpeg", quality=95)
    assert np.abs(read_film("j.tif", grey).pixels.astype(int) - smooth).max() <= 8
    planes = np.stack([smooth, smooth[::-1], 255 - smooth], axis=2)
    for options in ({}, {"tile": (16, 16)}):
        data = tiff(planes, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, **options)
        assert np.abs(read_film("j.tif", data).pixels - luminance(planes)).max() <= 10


def test_palettes_and_inks() -> None:
    planes = picture(planes=4)
    light = 255 - planes.astype(np.uint32)
    expected = luminance_of((light[..., :3] * light[..., 3:] + 127) // 255)
    for options in ({}, {"compression": "lzw", "predictor": True}, {"planarconfig": "separate"}):
        array = np.moveaxis(planes, 2, 0).copy() if "planarconfig" in options else planes
        check_film(read_film("k.tif", tiff(array, photometric="separated", **options)), expected, 8)
    index = picture() >> 4
    colormap = np.tile(np.linspace(0, 65535, 256).astype(np.uint16) | 1, (3, 1))
    film = read_film("p.tif", tiff(index, photometric="palette", colormap=colormap))
    check_film(film, colormap[0][index], 16)


def test_alpha_wherever_it_stands() -> None:
    levels, ones = picture(planes=3), np.full((24, 20, 1), 255, np.uint8)
    half = np.full((24, 20, 1), 51, np.uint8)
    faded = luminance_of((levels.astype(np.uint32) * 51 + 127) // 255)
    for extras, order in ((["unassalpha"], [half]), (["unspecified", "unassalpha"], [ones, half])):
        data = tiff(np.concatenate([levels, *order], axis=2), photometric="rgb", extrasamples=extras)
        check_film(read_film("a.tif", data), faded, 8)
    associated = tiff(np.concatenate([levels, half], axis=2), photometric="rgb", extrasamples=["assocalpha"])
    check_film(read_film("a.tif", associated), luminance_of(levels), 8)
    white = np.concatenate([levels[..., :1], half], axis=2)
    data = tiff(white, photometric="miniswhite", extrasamples=["unassalpha"], planarconfig="contig")
    check_film(read_film("w.tif", data), ((255 - levels[..., 0].astype(np.uint32)) * 51 + 127) // 255, 8)


def one_directory_of_two_pages() -> bytes:
    """As tifffile writes a stack that it is told to truncate."""
    return tiff(picture(), description='{"shape": [2, 24, 20], "truncated": true}', metadata=None) + bytes(480)


def imagej_stack(pages: int) -> bytes:
    """A stack as ImageJ writes it beyond 4 GB: one directory, and the other pages' pixels behind the first."""
    levels = picture(np.uint16)
    description = f"ImageJ=1.53\nimages={pages}\nslices={pages}\n".encode() + b"\0"
    stream = io.BytesIO()
    tifffile.imwrite(stream, levels, description=description[:-1], metadata=None)
    return stream.getvalue() + levels.tobytes() * (pages - 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: imagej_stack(7), "7 pages; a film has one"),
        (lambda: tiff(np.zeros((2, 24, 20), np.uint16), metadata=None, photometric="minisblack"), "2 pages"),
        (lambda: tiff(np.zeros((5, 24, 20), np.uint8), imagej=True), "5 pages"),
        (one_directory_of_two_pages, "2 pages; a film has one"),
        (lambda: tiff(picture(planes=3), photometric="rgb", compression="webp"), "TIFF compression WEBP is not read"),
        (lambda: tiff(picture(planes=3), photometric="cielab"), "TIFF colours CIELAB are not read"),
        (lambda: tiff(np.zeros((24, 20), np.complex64)), "save it as 8 or 16 bits"),
        (lambda: many_samples(65535), "65535 samples a pixel"),
        (lambda: many_samples(9), "9 samples a pixel"),
    ],
)
def test_tiff_refused_by_name(data: Callable[[], bytes], reason: str) -> None:
    message = refused("film.tif", data())
    assert reason in message and "does not decode" not in message


def test_a_stack_of_one_is_a_film() -> None:
    check_film(read_film("one.tif", imagej_stack(1)), picture(np.uint16), 16)


def many_samples(samples: int) -> bytes:
    tags = {
        256: (4, [8000]),
        257: (4, [8000]),
        258: (3, [8] * min(samples, 8)),
        259: (3, [1]),
        262: (3, [2]),
        277: (3, [samples]),
        278: (4, [8000]),
    }
    return written_tiff(tags, [bytes(1000)], order="<")


def test_a_tiff_that_leaves_strips_out_is_refused() -> None:
    levels = picture(np.uint16)
    tags = {256: (4, [20]), 257: (4, [24]), 258: (3, [16]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1]), 278: (4, [12])}
    strips = [levels[:12].tobytes(), levels[12:].tobytes()]
    check_film(read_film("two.tif", written_tiff(tags, strips, order="<")), levels, 16)
    for blocks in (strips[:1], [strips[0], b""], [strips[0], strips[1][:-100]]):
        refused("few.tif", written_tiff(tags, blocks, order="<"))
