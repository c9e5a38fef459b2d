"""Films of every format keep their levels; what is no film is refused with its name and the reason."""

import gzip
import io
import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from preprocessing import InputError
from preprocessing.readers import MAX_PIXELS, Film, peek_depth, read_film, read_mask

quickly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sides = array_shapes(min_dims=2, max_dims=2, min_side=16, max_side=40)


def pictures(dtype: type, *, planes: int = 0) -> st.SearchStrategy[np.ndarray]:
    """Random levels drawn by numpy from a seed: cheaper than one draw a pixel, and still of any shape."""

    def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
        full = shape + (planes,) * bool(planes)
        return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, full, dtype=dtype, endpoint=True)

    return st.builds(draw, sides, st.integers(0, 2**32))


def picture(dtype: type = np.uint8, *, planes: int = 0, shape: tuple[int, int] = (24, 20)) -> np.ndarray:
    full = shape + (planes,) * bool(planes)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, full, dtype=dtype, endpoint=True)


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def dicom(
    pixels: np.ndarray | bytes | None,
    *,
    shape: tuple[int, int] | None = None,
    bits: int = 12,
    kind: str = "MONOCHROME2",
    syntax: UID = ExplicitVRLittleEndian,
    **elements: Any,
) -> bytes:
    array = pixels if isinstance(pixels, np.ndarray) else np.zeros(shape or (24, 20), np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "DX"
    if pixels is not None:
        dataset.Rows, dataset.Columns = shape or array.shape[:2]
        dataset.SamplesPerPixel = 3 if array.ndim == 3 else 1
        if array.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = kind
        dataset.BitsAllocated = 8 * array.dtype.itemsize
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelRepresentation = int(array.dtype.kind == "i")
        dataset.PixelData = pixels.tobytes() if isinstance(pixels, np.ndarray) else pixels
        dataset["PixelData"].VR = "OB" if bits <= 8 or syntax.is_encapsulated else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1]) if affine is None else affine).to_bytes()


def ramp(bits: int) -> np.ndarray:
    levels = np.arange(2**bits, dtype=np.uint16 if bits > 8 else np.uint8)
    return levels.reshape(-1, min(64, 2 ** (bits // 2)))


def luminance(planes: np.ndarray) -> np.ndarray:
    return planes.astype(float) @ np.array([0.299, 0.587, 0.114])


def check_film(film: Film, expected: np.ndarray, depth: int) -> None:
    assert film.depth == depth
    assert film.pixels.dtype == (np.uint8 if depth == 8 else np.uint16)
    assert film.pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(film.pixels, expected)


# ---- levels are kept


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
    check_film(read_film("s.tif", tiff(signed)), signed.astype(int) + 200, 16)
    check_film(read_film("p.tif", tiff(np.abs(signed))), np.abs(signed), 16)
    flat = read_film("flat.tif", tiff(np.full((20, 20), 7.5, np.float32)))
    check_film(flat, np.zeros((20, 20)), 16)


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


# ---- DICOM


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_dicom_ramp_keeps_all_levels_whatever_window_and_rescale_say(bits: int) -> None:
    levels = ramp(bits)
    data = dicom(
        levels,
        bits=bits,
        WindowCenter=20,
        WindowWidth=10,
        RescaleSlope="0.25",
        RescaleIntercept="-1024",
        RescaleType="US",
    )
    check_film(read_film("ramp", data), levels, bits)
    assert peek_depth("ramp", data) == bits


@quickly
@given(st.integers(8, 16), st.integers(0, 2**32))
def test_monochrome1_is_the_mirror_of_monochrome2(bits: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 2**bits, (20, 16)).astype(np.uint16 if bits > 8 else np.uint8)
    one = read_film("one.dcm", dicom(levels, bits=bits, kind="MONOCHROME1"))
    two = read_film("two.dcm", dicom(levels, bits=bits))
    check_film(one, (2**bits - 1) - two.pixels.astype(int), bits)
    negative = read_film("n.dcm", dicom(levels, bits=bits, kind="MONOCHROME1", RescaleSlope="-1", RescaleIntercept="0"))
    check_film(negative, levels, bits)


def test_dicom_signed_pixels_start_at_zero() -> None:
    levels = np.arange(-300, 100, dtype=np.int16).reshape(20, 20)
    check_film(read_film("s.dcm", dicom(levels)), levels.astype(int) + 300, 12)
    check_film(read_film("s.dcm", dicom(levels, kind="MONOCHROME1")), 99 - levels.astype(int), 12)


def test_dicom_overlay_bits_above_the_stored_ones_are_dropped() -> None:
    levels = ramp(12)
    check_film(read_film("o.dcm", dicom(levels | np.uint16(0x8000))), levels, 12)


def test_dicom_few_bits_are_spread_over_eight() -> None:
    levels = np.tile(np.arange(16, dtype=np.uint8), (16, 1))
    check_film(read_film("four.dcm", dicom(levels, bits=4)), levels * 17, 8)


def test_dicom_modality_table_is_looked_up() -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 12]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = [min(16 * level, 4095) for level in range(256)]
    table["LUTData"].VR = "US"
    table.ModalityLUTType = "US"
    data = dicom(ramp(8), bits=8, ModalityLUTSequence=[table])
    check_film(read_film("table.dcm", data), ramp(8).astype(int) * 16, 12)
    assert peek_depth("table.dcm", data) == 12


@pytest.mark.parametrize("planar", [0, 1])
def test_dicom_colour(planar: int) -> None:
    planes = picture(planes=3)
    stored = np.moveaxis(planes, 2, 0).copy() if planar else planes
    data = dicom(stored.tobytes(), shape=(24, 20), bits=8, kind="RGB")
    data = dicom(planes, bits=8, kind="RGB", PlanarConfiguration=planar, PixelData=stored.tobytes())
    film = read_film("c.dcm", data)
    assert film.depth == 8 and np.abs(film.pixels - luminance(planes)).max() <= 1  # weights are in 16.16 fixed point
    grey = np.stack([picture()] * 3, axis=2)
    ybr = grey.copy()
    ybr[..., 1:] = 128  # no colour
    check_film(read_film("y.dcm", dicom(ybr, bits=8, kind="YBR_FULL")), grey[..., 0], 8)


def jpeg2000(array: np.ndarray) -> bytes:
    stream = pillow(Image.fromarray(array), "JPEG2000", irreversible=False, no_jp2=True)
    return encapsulate([stream])


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dicom_jpeg_2000_keeps_every_level(bits: int) -> None:
    levels = ramp(bits)
    data = dicom(jpeg2000(levels), shape=levels.shape, bits=bits, syntax=JPEG2000Lossless)
    if bits == 8:
        data = dicom(levels, bits=8, syntax=JPEG2000Lossless, PixelData=jpeg2000(levels))
    check_film(read_film("j2k.dcm", data), levels, bits)


def test_dicom_jpeg_rle_and_deflated() -> None:
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))
    stream = encapsulate([pillow(Image.fromarray(smooth), "JPEG", quality=95)])
    film = read_film("j.dcm", dicom(smooth, bits=8, syntax=JPEGBaseline8Bit, PixelData=stream))
    assert np.abs(film.pixels.astype(int) - smooth).max() <= 8
    from pydicom.pixels.encoders.base import get_encoder

    levels = ramp(12)
    frame = get_encoder(RLELossless).encode(
        levels,
        rows=64,
        columns=64,
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    check_film(read_film("r.dcm", dicom(encapsulate([frame]), shape=(64, 64), syntax=RLELossless)), levels, 12)
    check_film(read_film("d.dcm", dicom(levels, syntax=DeflatedExplicitVRLittleEndian)), levels, 12)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: dicom(None), "without integer pixels (modality DX)"),
        (lambda: dicom(np.zeros((48, 20), np.uint16), Rows=24, NumberOfFrames=2), "2 frames"),
        (lambda: dicom(np.zeros((24, 20), np.uint32), bits=32), "32 bits a pixel"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), HighBit=15), "high bit 15"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), kind="ARGB"), "'ARGB'"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), Rows=30000, Columns=30000), str(MAX_PIXELS)),
        (lambda: dicom(np.zeros((24, 20), np.uint16), Rows=25), "does not decode"),
        (lambda: dicom(encapsulate([b"\xff\xd8\xff\xc3"]), syntax=JPEGLosslessSV1), "'.[dicom]'"),
        (lambda: dicom(encapsulate([b"\xff\x4f\xff\x51junk"]), syntax=JPEG2000Lossless), "'.[dicom]'"),
        (lambda: b"\0" * 128 + b"DICM", "bad.dcm"),
    ],
)
def test_dicom_refused(data: Callable[[], bytes], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_codecs(monkeypatch)
    with pytest.raises(InputError) as caught:
        read_film("bad.dcm", data())
    assert str(caught.value).startswith("bad.dcm: ") and reason in str(caught.value)


def test_dicom_window_on_demand_alone() -> None:
    """A 12-bit ramp, seen through centre 2048 and width 1025: C.11.2.1.2 of the standard's part 3."""
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    window = {"WindowCenter": [2048, 100], "WindowWidth": [1025, 10]}
    data = dicom(ramp, **window)
    assert (read_film("a.dcm", data).pixels == ramp).all()
    shown = read_film("a.dcm", data, window=True)
    expected = np.rint(np.clip((ramp.astype(float) - 2047.5) / 1024 + 0.5, 0, 1) * 4095)
    assert shown.depth == 12 and (shown.pixels == expected).all()
    turned = read_film("a.dcm", dicom(ramp, kind="MONOCHROME1", **window), window=True)
    assert (turned.pixels == 4095 - expected).all()
    rescaled = dicom(ramp, RescaleSlope=-2, RescaleIntercept=100, WindowCenter=-3996, WindowWidth=2049)
    falling = read_film("a.dcm", rescaled, window=True).pixels.ravel().astype(int)
    assert (np.diff(falling) <= 0).all() and falling[0] == 4095 and falling[-1] == 0
    exact = read_film("a.dcm", dicom(ramp, VOILUTFunction="LINEAR_EXACT", **window), window=True)
    sigmoid = read_film("a.dcm", dicom(ramp, VOILUTFunction="SIGMOID", **window), window=True)
    assert abs(int(exact.pixels[32, 0]) - 2048) <= 2 and abs(int(sigmoid.pixels[32, 0]) - 2048) <= 2
    assert 0 < sigmoid.pixels[0, 0] < 20 and sigmoid.pixels[-1, -1] > 4075
    without = dicom(ramp)
    assert (read_film("a.dcm", without, window=True).pixels == ramp).all()


def hide_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pydicom believe that the extra is not installed."""
    from pydicom.pixels.decoders.base import get_decoder

    for syntax in (JPEGLosslessSV1, JPEG2000Lossless):
        decoder = get_decoder(syntax)
        keep = {name: plugin for name, plugin in decoder._available.items() if name == "pillow"}
        monkeypatch.setattr(decoder, "_available", keep)
        missing = decoder._unavailable | {"gdcm": ("gdcm>=3",)}
        monkeypatch.setattr(decoder, "_unavailable", missing)


def test_deflated_dicom_is_unpacked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(np.zeros((600, 600), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("preprocessing.readers.dicom.MAX_BYTES", 100_000)
    assert len(data) < 100_000
    with pytest.raises(InputError, match="unpacks to more than 100000 bytes"):
        read_film("bomb.dcm", data)


# ---- NIfTI


def test_nifti_written_like_a_dicom_film_comes_back_as_it_was() -> None:
    for levels, depth in ((picture(), 8), (picture(np.uint16), 16)):
        plain = nifti(levels.T)
        for data in (plain, gzip.compress(plain), nifti(levels.T[:, :, None])):
            check_film(read_film("film.nii", data), levels, depth)
            assert peek_depth("film.nii", data) == depth
    second = nibabel.Nifti2Image(picture().T, np.diag([-1, -1, 1, 1])).to_bytes()
    check_film(read_film("film.nii", second), picture(), 8)


def test_nifti_is_turned_by_its_affine() -> None:
    levels = picture()
    # Identity: the first axis runs to the patient's right, the second to the front; the display to left and back.
    check_film(read_film("r.nii", nifti(levels.T, np.eye(4))), levels[::-1, ::-1], 8)
    # The axes swapped: the first runs to the back, the second to the left.
    swapped = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    check_film(read_film("s.nii", nifti(levels, swapped)), levels, 8)
    # Coronal: columns run to the left, rows to the feet.
    check_film(read_film("c.nii", nifti(levels.T[:, None, :], np.diag([-1, 1, -1, 1]))), levels, 8)
    # Sagittal: columns run to the back, rows to the feet.
    check_film(read_film("g.nii", nifti(levels.T[None], np.diag([1, -1, -1, 1]))), levels, 8)


@quickly
@given(
    arrays(np.float32, sides, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.sampled_from([np.float32, np.float64, np.int32]),
)
def test_nifti_floats_fill_the_range_in_order(values: np.ndarray, dtype: type) -> None:
    values = (np.clip(values, -1e9, 1e9) if dtype == np.int32 else values).astype(dtype)
    film = read_film("f.nii", nifti(values))
    assert film.depth == 16 and film.pixels.dtype == np.uint16
    if values.min() == values.max():
        assert not film.pixels.any()
    else:
        assert film.pixels.min() == 0 and film.pixels.max() == 65535
        order = np.argsort(values.T.ravel(), kind="stable")
        assert (np.diff(film.pixels.ravel()[order].astype(int)) >= 0).all()


def test_nifti_of_huge_floats_does_not_overflow() -> None:
    values = np.zeros((20, 20))
    values[0, 0], values[0, 1] = -1.7e308, 1.7e308
    film = read_film("h.nii", nifti(values))
    assert film.pixels[0, 0] == 0 and film.pixels.max() == 65535 and film.pixels[5, 5] == 32768


def test_nifti_scaled_integers_are_stretched() -> None:
    image = nibabel.Nifti1Image(picture(), np.diag([-1, -1, 1, 1]))
    image.header.set_slope_inter(0.5, 3)
    stream = image.to_bytes()
    assert peek_depth("s.nii", stream) == 16
    assert read_film("s.nii", stream).depth == 16


def bad_floats(value: float) -> bytes:
    values = np.zeros((20, 20), np.float32)
    values[3, 4] = value
    return nifti(values)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: bad_floats(np.nan), "NaN or infinity in 1 pixel;"),
        (lambda: bad_floats(np.inf), "NaN or infinity in 1 pixel;"),
        (lambda: nifti(np.zeros((20, 20, 5), np.uint8)), "(20, 20, 5)"),
        (lambda: nifti(np.zeros((20, 20, 1, 3), np.uint8)), "(20, 20, 1, 3)"),
        (lambda: nifti(np.zeros((20, 20), np.complex64)), "complex64"),
        (lambda: nifti(np.zeros((20, 20), np.uint8))[:500], "does not decode"),
        (lambda: gzip.compress(nifti(picture()))[:-30], "does not decode"),
        (lambda: gzip.compress(b"hello" * 100), "holds is no NIfTI"),
        (lambda: nifti_of_shape(30000, 30000), str(MAX_PIXELS)),
    ],
)
def test_nifti_refused(data: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        read_film("bad.nii.gz", data())
    assert str(caught.value).startswith("bad.nii.gz: ") and reason in str(caught.value)


def nifti_of_shape(width: int, height: int) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((width, height))
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + b"\0" * 1000)


def test_gzip_bomb_is_unpacked_no_further_than_its_header_says() -> None:
    inside = nifti(picture().T)
    bomb = gzip.compress(inside + b"\0" * 50_000_000)
    check_film(read_film("bomb.nii.gz", bomb), picture(), 8)


# ---- refusals


def refused(name: str, data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_film(name, data)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    return message


@cache
def every_format() -> dict[str, bytes]:
    levels = picture(np.uint16, shape=(40, 30))
    small = (levels >> 8).astype(np.uint8)
    return {
        "grey.png": png(levels),
        "colour.png": png(np.stack([levels] * 3, axis=2)),
        "film.jpg": pillow(Image.fromarray(small), "JPEG"),
        "progressive.jpg": pillow(Image.fromarray(small), "JPEG", progressive=True),
        "plain.tif": tiff(levels),
        "packed.tif": tiff(levels, compression="zlib"),
        "lzw.tif": pillow(Image.fromarray(levels), "TIFF", compression="tiff_lzw"),
        "film.dcm": dicom(levels, bits=16),
        "j2k.dcm": dicom(jpeg2000(levels), shape=levels.shape, bits=16, syntax=JPEG2000Lossless),
        "film.nii": nifti(levels.T),
        "film.nii.gz": gzip.compress(nifti(levels.T)),
    }


@pytest.mark.parametrize("name", every_format())
def test_truncated_files_are_never_half_decoded(name: str) -> None:
    data = every_format()[name]
    whole = read_film(name, data)
    for end in [*range(0, len(data), max(1, len(data) // 25)), *range(len(data) - 8, len(data))]:
        try:
            film = read_film(name, data[:end])
        except InputError as error:
            assert str(error).startswith(f"{name}: ")
        else:  # nothing but padding, or a directory's last zeros, is missing
            assert end > 0.97 * len(data)
            np.testing.assert_array_equal(film.pixels, whole.pixels)


@quickly
@given(st.data())
def test_damaged_files_raise_nothing_but_input_errors(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(every_format())))
    sound = bytearray(every_format()[name])
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_film, peek_depth, read_mask):
        try:
            read(name, bytes(sound))
        except InputError as error:
            assert str(error).startswith(f"{name}: ")


@given(st.binary(max_size=400))
def test_noise_is_no_film(data: bytes) -> None:
    refused("noise.png", data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is text", "not a PNG, JPEG, TIFF, DICOM or NIfTI file (it begins with b'this is '"),
        (b"GIF89a" + b"\0" * 500, "not a PNG"),
        (png(np.zeros((1, 1), np.uint8)), "1 x 1 pixels; a film needs at least 16"),
        (png(np.zeros((200, 15), np.uint8)), "15 x 200 pixels"),
        (tiff(np.zeros((3, 20, 20), np.uint8), photometric="minisblack"), "3 pages"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff\xe0", "does not decode"),
    ],
)
def test_what_is_no_film(data: bytes, reason: str) -> None:
    assert reason in refused("film.png", data)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 9600, 60000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(MAX_PIXELS) in refused("huge.png", png_header(side, side))
        with pytest.raises(InputError, match=str(MAX_PIXELS)):
            read_mask("huge.png", png_header(side, side))


def test_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.readers.film.MAX_BYTES", 1000)
    assert "limit is 1000" in refused("large.png", png(picture()) + b"\0" * 1000)


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


@pytest.mark.parametrize("data", [b"II*\0\xff\xff\xff\x7f" + bytes(99), b"\xff\xd8\xff" + b"no film" * 30])
def test_a_broken_file_is_told_by_the_error_alone(
    data: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reasons = set()
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            read_film("film", data)
        reasons.add(str(caught.value))
    assert len(reasons) == 1 and " at 0x" not in reasons.pop()
    assert caplog.records == [] and capfd.readouterr() == ("", "")


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


# ---- masks


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
