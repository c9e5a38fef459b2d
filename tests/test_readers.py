"""Films of every format keep their levels, and masks stay masks."""

import gzip
import io
import struct
import threading
import warnings
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from preprocessing import InputError
from preprocessing.readers import HEAD_BYTES, peek_depth, read_film, read_mask, recognize
from tests.film_files import (
    bad_floats,
    check_film,
    every_format,
    luminance,
    nifti,
    picture,
    pictures,
    pillow,
    png,
    quickly,
    ramp,
    refused,
    sides,
    tiff,
)


@quickly
@given(pictures(np.uint16))
def test_16_bit_png_and_tiff_keep_every_level(levels: np.ndarray) -> None:
    for data in (png(levels), tiff(levels), tiff(levels, byteorder=">"), tiff(levels, compression="zlib")):
        check_film(read_film("film", data), levels, 16)
        assert peek_depth("film", data) == 16


@quickly
@given(pictures(np.uint8))
def test_8_bit_png_and_tiff_keep_every_level(levels: np.ndarray) -> None:
    packed = pillow(Image.fromarray(levels), "TIFF", compression="tiff_lzw")
    for data in (png(levels), tiff(levels), packed):
        check_film(read_film("film", data), levels, 8)
        assert peek_depth("film", data) == 8


@quickly
@given(pictures(np.uint16, planes=3))
def test_16_bit_colour_becomes_luminance_at_full_depth(planes: np.ndarray) -> None:
    lzw = cv2.imencode(".tif", planes[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1]
    separate = tiff(np.moveaxis(planes, 2, 0).copy(), photometric="rgb", planarconfig="separate")
    for data in (png(planes), tiff(planes, photometric="rgb"), separate, lzw.tobytes()):
        film = read_film("film", data)
        assert film.depth == 16 and film.pixels.dtype == np.uint16
        assert np.abs(film.pixels - luminance(planes)).max() <= 1  # weights are in 16.16 fixed point


@given(st.integers(0, 65535))
def test_equal_colour_planes_give_that_level(level: int) -> None:
    film = read_film("film.png", png(np.full((16, 16, 3), level, np.uint16)))
    assert (film.pixels == level).all()


def test_jpeg_grey_colour_and_cmyk() -> None:
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))
    colour = np.stack([smooth, smooth[::-1], 255 - smooth], axis=2)
    grey = read_film("g.jpg", pillow(Image.fromarray(smooth), "JPEG", quality=95))
    assert grey.depth == 8 and np.abs(grey.pixels.astype(int) - smooth).max() <= 8
    rgb = read_film("c.jpeg", pillow(Image.fromarray(colour), "JPEG", quality=95, subsampling=0))
    assert np.abs(rgb.pixels - luminance(colour)).max() <= 8
    cmyk = read_film("k.jpg", pillow(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(cmyk.pixels - luminance(colour)).max() <= 8


def test_one_bit_and_palette_images() -> None:
    bits = picture() > 127
    for kind, options in (("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})):
        check_film(read_film("bits", pillow(Image.fromarray(bits), kind, **options)), bits * np.uint8(255), 8)
    palette = Image.fromarray(np.tile(np.array([0, 1, 2, 1], np.uint8), (20, 5))).convert("P")
    palette.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
    for kind in ("PNG", "TIFF"):
        film = read_film("palette", pillow(palette, kind))
        check_film(film, np.tile(np.array([0, 90, 255, 90], np.uint8), (20, 5)), 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_composited_over_black(dtype: type) -> None:
    full = np.iinfo(dtype).max
    planes = np.full((20, 20, 4), full, dtype)
    planes[:10, :, 3] = 0
    planes[10:15, :, 3] = full // 2
    expected = np.repeat([0] * 10 + [full // 2] * 5 + [full] * 5, 20).reshape(20, 20)
    bgra = cv2.imencode(".png", planes)[1].tobytes()
    for data in (bgra, tiff(planes, photometric="rgb", extrasamples=["unassalpha"])):
        check_film(read_film("cut.png", data), expected, 8 * np.dtype(dtype).itemsize)


def test_grey_with_alpha() -> None:
    grey = Image.fromarray(np.stack([np.full((20, 20), 200, np.uint8), np.full((20, 20), 51, np.uint8)], axis=2), "LA")
    check_film(read_film("la.png", pillow(grey, "PNG")), np.full((20, 20), 40), 8)


@given(st.integers(1, 8))
@settings(deadline=None)
def test_orientation_tags_mean_the_same_everywhere(orientation: int) -> None:
    levels = picture()
    tag = [(274, "H", 1, orientation, True)]
    exif = Image.Exif()
    exif[274] = orientation
    expected = np.asarray(
        {
            1: levels,
            2: levels[:, ::-1],
            3: np.rot90(levels, 2),
            4: levels[::-1],
            5: levels.T,
            6: np.rot90(levels, -1),
            7: np.rot90(levels, 2).T,
            8: np.rot90(levels),
        }[orientation]
    )
    image = Image.fromarray(levels)
    for data in (
        tiff(levels, extratags=tag),
        tiff(levels, extratags=tag, compression="zlib"),
        pillow(image, "PNG", exif=exif),
    ):
        check_film(read_film("turned", data), expected, 8)
    jpeg = read_film("turned.jpg", pillow(image, "JPEG", exif=exif))
    plain = read_film("plain.jpg", pillow(image, "JPEG"))
    assert jpeg.pixels.shape == expected.shape
    assert sorted(jpeg.pixels.ravel()) == sorted(plain.pixels.ravel())


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_films_are_films(level: int) -> None:
    check_film(read_film("flat.png", png(np.full((16, 16), level, np.uint8))), np.full((16, 16), level), 8)


def test_warnings_stay_inside_and_filters_are_restored_under_threads() -> None:
    data = pillow(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(io.BytesIO(data)).getexif()
    before = list(warnings.filters)
    errors: list[Exception] = []

    def read_many() -> None:
        try:
            for _ in range(10):
                read_film("warned.jpg", data)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert warnings.filters == before


# ---- one frame, and every kind of PNG, BMP, JPEG and JPEG 2000


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(levels: np.ndarray, bits: int, *, extra: bytes = b"") -> bytes:
    """A grey or colour PNG of 1, 2, 4, 8 or 16 bits, after ISO/IEC 15948, with further chunks ahead of its data."""
    color = 0 if levels.ndim == 2 else {2: 4, 3: 2, 4: 6}[levels.shape[2]]
    flat = levels.reshape(len(levels), -1)
    if bits < 8:
        ones = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(ones.reshape(len(flat), -1).astype(np.uint8), axis=1)
    else:
        rows = flat.astype(">u2" if bits == 16 else np.uint8).view(np.uint8)
    data = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # no filter
    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], bits, color, 0, 0, 0)
    chunks = png_chunk(b"IHDR", head) + extra + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png_of_any_depth_and_colour(bits: int, samples: int) -> None:
    if bits < 8 and samples > 1:
        return
    top = 2**bits - 1
    shape = (24, 20, samples) if samples > 1 else (24, 20)
    levels = np.random.default_rng(bits).integers(0, top + 1, shape).astype(np.uint32)
    colors = levels if samples == 1 else levels[..., 0] if samples == 2 else levels[..., :3]
    if samples in (2, 4):
        colors = (colors * (levels[..., -1:] if samples == 4 else levels[..., -1]) + top // 2) // top
    weights = np.array([19595, 38470, 7471])
    expected = colors if colors.ndim == 2 else (colors.astype(int) @ weights + 32768) >> 16
    expected = expected * (255 // top) if bits < 8 else expected
    check_film(read_film("film.png", png_of(levels, bits)), expected, max(bits, 8))


def test_an_animated_png_is_refused_and_one_of_one_frame_is_a_film() -> None:
    levels = picture()
    for frames in (2, 9):
        animated = png_of(levels, 8, extra=png_chunk(b"acTL", struct.pack(">II", frames, 0)))
        assert f"{frames} frames; a film has one" in refused("a.png", animated)
    single = png_of(levels, 8, extra=png_chunk(b"acTL", struct.pack(">II", 1, 0)))
    check_film(read_film("one.png", single), levels, 8)


def test_a_transparent_colour_is_ignored() -> None:
    levels = picture()
    data = png_of(levels, 8, extra=png_chunk(b"tRNS", struct.pack(">H", int(levels[0, 0]))))
    check_film(read_film("t.png", data), levels, 8)


@pytest.mark.parametrize("planes", [0, 3])
def test_bmp_is_read(planes: int) -> None:
    levels = picture(planes=planes, shape=(24, 21))
    expected = levels if not planes else np.asarray(read_film("t.tif", tiff(levels, photometric="rgb")).pixels)
    data = pillow(Image.fromarray(levels), "BMP")
    assert recognize(data[:HEAD_BYTES]) == "BMP"
    check_film(read_film("film.bmp", data), expected, 8)
    assert "truncated" in refused("film.bmp", data[:-8])


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("codecformat", ["JP2", "J2K"])
def test_jpeg_2000_files_keep_every_level(bits: int, codecformat: str) -> None:
    levels = ramp(bits)
    data = imagecodecs.jpeg2k_encode(levels, level=0, codecformat=codecformat, bitspersample=bits)
    check_film(read_film("film.jp2", data), levels, bits)
    assert peek_depth("film.jp2", data) == bits


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_and_jpeg_ls_files_keep_every_level(bits: int) -> None:
    levels = ramp(bits)
    check_film(read_film("l.jpg", imagecodecs.jpeg8_encode(levels, lossless=True, bitspersample=bits)), levels, bits)
    # Its encoder states 8 or 16 bits.
    check_film(read_film("l.jls", imagecodecs.jpegls_encode(levels)), levels, 8 if bits == 8 else 16)


# ---- formats are known by their first bytes


def test_every_format_is_recognized_by_its_first_bytes() -> None:
    names = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "dcm": "DICOM", "nii": "NIfTI", "gz": "NIfTI", "bmp": "BMP"}
    names |= {"jp2": "JPEG 2000", "jls": "JPEG"}
    for name, data in every_format().items():
        expected = "DICOM" if name == "packed.dcm.gz" else names[name.rsplit(".", 1)[1]]
        assert recognize(data[:HEAD_BYTES]) == expected, name


def test_noise_and_text_are_not_recognized() -> None:
    generator = np.random.default_rng(0)
    for length in [*range(64), *[HEAD_BYTES] * 500]:
        assert recognize(generator.bytes(length)) is None
        assert recognize(bytes(length)) is None
        assert recognize(b"\x08\0" + generator.bytes(length)) is None  # the first group of DICOM, and nothing of it
    for text in ("path,label\na.png,1\n" * 40, "{}", "BM is no bitmap, nor is this line of some length", "n+1"):
        assert recognize(text.encode()) is None


def test_packed_files_that_are_neither_nifti_nor_dicom_are_not_recognized() -> None:
    for inside in (png(picture()), tiff(picture()), gzip.compress(nifti(picture())), b"text"):
        assert recognize(gzip.compress(inside)[:HEAD_BYTES]) is None
        assert "neither NIfTI nor DICOM" in refused("film.gz", gzip.compress(inside))


@quickly
@given(arrays(np.bool_, sides))
def test_masks_of_png_tiff_and_nifti(inside: np.ndarray) -> None:
    one = inside.astype(np.uint8)
    for data in (
        png(one),
        png(one * 255),
        png(one.astype(np.uint16) * 300),
        pillow(Image.fromarray(inside), "PNG"),
        tiff(one),
        nifti(one.T),
        nifti(one.T.astype(np.float32)),
        gzip.compress(nifti(one.T.astype(np.int16))),
    ):
        mask = read_mask("mask", data)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, inside)


def test_a_dark_blue_mask_is_inside() -> None:
    blue = np.zeros((20, 20, 3), np.uint8)
    blue[5:, :, 2] = 1  # its luminance rounds to zero
    np.testing.assert_array_equal(read_mask("blue.png", png(blue)), blue.any(axis=2))


@pytest.mark.parametrize("data", [b"", b"text", pillow(Image.fromarray(picture()), "JPEG"), bad_floats(np.nan)])
def test_masks_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^mask: "):
        read_mask("mask", data)


def test_orientation_of_png_files_in_every_chunk_that_pillow_reads() -> None:
    levels = picture()
    exif = Image.Exif()
    exif[274] = 3
    hexed = exif.tobytes().hex()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="3"/>'
    for compressed in (False, True):
        text = PngInfo()
        text.add_text("Raw profile type exif", f"\nexif\n{len(hexed) // 2}\n{hexed}", zip=compressed)
        xmp_text = PngInfo()
        xmp_text.add_itxt("XML:com.adobe.xmp", xmp, zip=compressed)
        for info in (text, xmp_text):
            data = pillow(Image.fromarray(levels), "PNG", pnginfo=info)
            check_film(read_film("turned.png", data), np.rot90(levels, 2), 8)
    other = PngInfo()
    other.add_text("Software", "XML:com.adobe.xmp, Raw profile type exif")
    check_film(read_film("plain.png", pillow(Image.fromarray(levels), "PNG", pnginfo=other)), levels, 8)


def test_films_that_are_levels_already_are_read_as_they_are() -> None:
    levels = picture()
    for pixels in (levels, levels.astype(np.uint16) * 257):
        for data in (png(pixels), tiff(pixels)):
            film = read_film("film", data)
            check_film(film, pixels, 8 * pixels.dtype.itemsize)
            assert film.pixels.flags.c_contiguous and film.pixels.flags.writeable
