"""Padding, shutter, collimator, bits and codings of DICOM: PS3.3 C.7.5.1, C.7.6, C.8.7.3, PS3.5 8 and annex A."""

import io

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEGExtended12Bit,
)

from preprocessing import InputError
from preprocessing.readers import read_film
from tests.film_files import check_film, coded, dicom, quickly, ramp, table, with_elements

PADDING = [  # stored type, bits, PixelPaddingValue and its representation, limit, lowest and highest padding
    (np.uint16, 12, (0, "US"), None, (0, 0)),
    (np.uint16, 16, (65535, "US"), (60000, "US"), (60000, 65535)),
    (np.uint16, 16, (60000, "US"), (65535, "US"), (60000, 65535)),
    (np.uint16, 16, (-1, "SS"), None, (65535, 65535)),  # the wrong representation for unsigned pixels
    (np.int16, 16, (-32768, "SS"), None, (-32768, -32768)),
    (np.int16, 16, (32768, "US"), (33000, "US"), (-32768, -32536)),  # and for signed ones
    (np.int16, 12, (-2000, "SS"), (-1500, "SS"), (-2000, -1500)),
    (np.int16, 12, (4095, "US"), None, (-1, -1)),
]


@pytest.mark.parametrize(("dtype", "bits", "padding", "limit", "range_"), PADDING)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_no_image(
    dtype: type,
    bits: int,
    padding: tuple[int, str],
    limit: tuple[int, str] | None,
    range_: tuple[int, int],
    kind: str,
) -> None:
    low, high = (0, 2**bits) if dtype == np.uint16 else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    values = np.random.default_rng(1).integers(low, high, (24, 20)).astype(dtype)
    values[:6] = range_[0]
    elements = {"PixelPaddingValue": padding}
    if limit:
        elements["PixelPaddingRangeLimit"] = limit
    film = read_film("p.dcm", with_elements(dicom(values, bits=bits, kind=kind), **elements))
    blank = (values >= range_[0]) & (values <= range_[1])
    assert blank[:6].all() and not blank.all()
    assert film.exposed is not None
    np.testing.assert_array_equal(film.exposed, ~blank)
    assert not film.pixels[blank].any()
    plain = np.where(blank, values[~blank].max(), values)  # the image alone, padding replaced by some of it
    same = read_film("q.dcm", dicom(plain.astype(dtype), bits=bits, kind=kind))
    np.testing.assert_array_equal(film.pixels[~blank], same.pixels[~blank])


def test_padding_beyond_the_bits_stored_is_padding() -> None:
    """Scanners of old pad 12-bit pixels with numbers that use all 16 bits of the container."""
    values = ramp(12)
    values[:8] = 63536
    film = read_film("p.dcm", dicom(values, PixelPaddingValue=63536))
    assert film.exposed is not None
    assert not film.exposed[:8].any() and film.exposed[8:].all() and not film.pixels[:8].any()
    np.testing.assert_array_equal(film.pixels[8:], ramp(12)[8:])


def test_padding_is_black_behind_a_window_and_a_table() -> None:
    values = ramp(12)
    for elements in (
        {"WindowCenter": 2048, "WindowWidth": 4096},
        {"ModalityLUTSequence": [table(4095 - np.arange(4096), bits=12)]},
    ):
        film = read_film("w.dcm", dicom(values, PixelPaddingValue=4095, kind="MONOCHROME1", **elements), window=True)
        assert film.exposed is not None and not film.exposed[-1, -1] and film.pixels[-1, -1] == 0


SHAPES = {  # what is inside, rows and columns counted from 1
    "RECTANGULAR": (
        {"LeftVerticalEdge": 4, "RightVerticalEdge": 17, "UpperHorizontalEdge": 3, "LowerHorizontalEdge": 20},
        lambda row, column: (column >= 4) & (column <= 17) & (row >= 3) & (row <= 20),
    ),
    "CIRCULAR": (
        {"CenterOfCircular": [12, 10], "RadiusOfCircular": 7},
        lambda row, column: (row - 12) ** 2 + (column - 10) ** 2 <= 49,
    ),
    "POLYGONAL": (
        {"VerticesOfThePolygonal": [3, 4, 3, 17, 20, 17, 20, 4]},
        lambda row, column: (column >= 4) & (column <= 17) & (row >= 3) & (row <= 20),
    ),
}


@pytest.mark.parametrize("device", ["Shutter", "Collimator"])
@pytest.mark.parametrize("shapes", [["RECTANGULAR"], ["CIRCULAR"], ["POLYGONAL"], ["RECTANGULAR", "CIRCULAR"]])
def test_what_lies_beyond_shutter_and_collimator_is_not_exposed(device: str, shapes: list[str]) -> None:
    values = np.random.default_rng(0).integers(1, 4096, (24, 20)).astype(np.uint16)
    elements: dict[str, object] = {f"{device}Shape": shapes}
    inside = np.ones(values.shape, bool)
    rows, columns = np.mgrid[1:25, 1:21]
    for shape in shapes:
        attributes, expected = SHAPES[shape]
        for name, value in attributes.items():
            keyword = f"{device}{name}" if name.endswith("Edge") else f"{name}{device}"
            elements[keyword] = value
        inside &= expected(rows, columns)
    film = read_film("s.dcm", dicom(values, kind="MONOCHROME1", **elements))
    assert film.exposed is not None
    np.testing.assert_array_equal(film.exposed, inside)
    shown = 4095 - values if device == "Collimator" else np.where(inside, 4095 - values, 0)
    np.testing.assert_array_equal(film.pixels, shown)


def test_shapes_that_say_nothing_are_no_shapes() -> None:
    for elements in (
        {"ShutterShape": "RECTANGULAR"},
        {"CollimatorShape": "CIRCULAR", "CenterOfCircularCollimator": [12, 10]},
        {"CollimatorShape": "RECTANGULAR", **dict.fromkeys(COLLIMATOR, 0)},
        {"ShutterShape": "BITMAP"},
        {"CollimatorShape": "RECTANGULAR", **dict(zip(COLLIMATOR, (-18, 18, 10, 50), strict=True))},  # from the axis
        {"CollimatorShape": "RECTANGULAR", **dict(zip(COLLIMATOR, (1, 700, 1, 900), strict=True))},
        {"CollimatorShape": "RECTANGULAR", **dict(zip(COLLIMATOR, (30, 32, 30, 32), strict=True))},
    ):
        assert read_film("s.dcm", dicom(ramp(12), **elements)).exposed is None


COLLIMATOR = tuple(
    f"Collimator{side}Edge" for side in ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
)


@quickly
@given(st.integers(1, 16), st.integers(0, 15), st.booleans(), st.integers(0, 2**32))
def test_bits_stored_anywhere_in_their_containers(bits: int, shift: int, signed: bool, seed: int) -> None:
    shift = min(shift, 16 - bits)
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 2**bits, (20, 16))
    noise = generator.integers(0, 65536, values.shape)
    keep = (2**bits - 1) << shift
    container = ((values << shift) | (noise & ~keep)).astype(np.uint16)
    data = dicom(container, bits=bits, HighBit=bits - 1 + shift, PixelRepresentation=int(signed))
    plain = np.where(values >= 2 ** (bits - 1), values - 2**bits, values).astype(np.int16) if signed else values
    expected = dicom(plain.astype(np.int16 if signed else np.uint16), bits=bits)
    film, other = read_film("h.dcm", data), read_film("p.dcm", expected)
    check_film(film, other.pixels, max(bits, 8))
    if not signed:
        assert film.pixels.max() == (values.max() if bits >= 8 else values.max() * 255 // (2**bits - 1))


CODECS = ["JPEG 2000", "HTJ2K", "JPEG-LS", "JPEG Lossless"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_every_lossless_coding_equals_its_uncompressed_twin(codec: str, bits: int, kind: str) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (24, 20)).astype(np.uint16 if bits > 8 else np.uint8)
    stream, syntax = coded(values, bits, codec)
    twin = dicom(values, bits=bits, kind=kind)
    data = dicom(values, bits=bits, kind=kind, syntax=syntax, PixelData=encapsulate([stream]))
    check_film(read_film("c.dcm", data), read_film("t.dcm", twin).pixels, bits)


@pytest.mark.parametrize("codec", CODECS)
def test_coded_signed_films_equal_their_twins_however_the_sign_was_coded(codec: str) -> None:
    values = np.random.default_rng(3).integers(-2048, 2048, (24, 20)).astype(np.int16)
    twin = read_film("t.dcm", dicom(values))
    patterns = {12: (values & 4095).astype(np.uint16), 16: values.view(np.uint16)}
    for bits, pattern in patterns.items():
        stream, syntax = coded(pattern, bits, codec)
        data = dicom(values, syntax=syntax, PixelData=encapsulate([stream]))
        check_film(read_film("c.dcm", data), twin.pixels, 12)
    stream, syntax = coded(patterns[12], 12, codec)
    sixteen = dicom(values, bits=16, syntax=syntax, PixelData=encapsulate([stream]))  # the header promises more bits
    if codec in ("JPEG 2000", "JPEG Lossless"):  # the other encoders state 16 bits
        check_film(read_film("c.dcm", sixteen), read_film("t.dcm", dicom(values, bits=16)).pixels, 16)
    if codec == "JPEG 2000":
        stream, syntax = coded(values, 12, codec)
        data = dicom(values, syntax=syntax, PixelData=encapsulate([stream]))
        check_film(read_film("c.dcm", data), twin.pixels, 12)


@pytest.mark.parametrize("codec", ["JPEG 2000", "JPEG-LS", "JPEG Lossless"])
def test_bits_stored_below_those_of_the_codestream(codec: str) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (24, 20)).astype(np.uint16)
    code, syntax = coded(values, 16, codec)
    deep = dicom(values, bits=12, syntax=syntax, PixelData=encapsulate([code]))
    check_film(read_film("c.dcm", deep), values, 16)
    dataset = dcmread(io.BytesIO(deep))
    dataset.add_new(0x60000102, "US", 12)
    stream = io.BytesIO()
    dataset.save_as(stream)
    masked = stream.getvalue()
    check_film(read_film("c.dcm", masked), values & 4095, 12)
    code, syntax = coded(values & 4095, 16, codec)  # coded by a program that knows of 8 and 16 bits alone
    shallow = dicom(values, bits=12, syntax=syntax, PixelData=encapsulate([code]))
    check_film(read_film("c.dcm", shallow), values & 4095, 12)


def test_12_bit_jpeg_is_read() -> None:
    values = np.add.outer(np.arange(48) * 60, np.arange(32) * 30).astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(values, level=98, bitspersample=12)
    film = read_film("e.dcm", dicom(values, syntax=JPEGExtended12Bit, PixelData=encapsulate([stream])))
    assert film.depth == 12 and np.abs(film.pixels.astype(int) - values).max() <= 8


def test_a_frame_in_several_fragments_is_one_frame() -> None:
    stream, syntax = coded(ramp(12), 12, "JPEG-LS")
    data = dicom(ramp(12), syntax=syntax, PixelData=encapsulate([stream], fragments_per_frame=4))
    check_film(read_film("f.dcm", data), ramp(12), 12)


def test_a_codestream_of_another_size_is_refused() -> None:
    stream, syntax = coded(ramp(12), 12, "JPEG-LS")
    with pytest.raises(InputError, match="JPEG-LS of 64 x 64 x 1, where the header says 64 x 32 x 1"):
        read_film("f.dcm", dicom(ramp(12), syntax=syntax, Columns=32, PixelData=encapsulate([stream])))
