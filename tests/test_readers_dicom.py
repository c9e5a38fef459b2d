"""DICOM films are read by the letter of the standard, or refused by name."""

import gzip
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from preprocessing import InputError
from preprocessing.readers import HEAD_BYTES, MAX_PIXELS, Film, peek_depth, read_film, recognize
from tests.film_files import check_film, dicom, jpeg2000, luminance, picture, pillow, quickly, ramp


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


@quickly
@given(st.integers(9, 16), st.integers(0, 2**32))
def test_signed_levels_keep_their_zero(bits: int, seed: int) -> None:
    """Zero lies at one level in all films of a kind, whatever the darkest pixel is."""
    half = 2 ** (bits - 1)
    values = np.random.default_rng(seed).integers(0, half, (20, 20)).astype(np.int16)
    for lowest, zero in ((0, 0), (-1, min(1024, half)), (-half, half), (-min(1024, half), min(1024, half))):
        values[3, 4] = lowest
        check_film(read_film("s.dcm", dicom(values, bits=bits)), values.astype(int) + zero, bits)
        mirrored = read_film("s.dcm", dicom(values, bits=bits, kind="MONOCHROME1"))
        check_film(mirrored, half - 1 - values.astype(int), bits)


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
        (lambda: dicom(np.zeros((24, 20), np.uint16), HighBit=16), "high bit 16"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), HighBit=3), "high bit 3"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), kind="ARGB"), "'ARGB'"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), Rows=30000, Columns=30000), str(MAX_PIXELS)),
        (lambda: dicom(np.zeros((24, 20), np.uint16), Rows=25), "truncated: 960 bytes of pixels, 1000"),
        (lambda: dicom(np.zeros((48, 20), np.uint16), Rows=24), "2 frames; a film has one"),
        (lambda: dicom(encapsulate([b"\xff\xd8\xff\xc3"]), syntax=JPEGLosslessSV1), "truncated"),
        (lambda: dicom(encapsulate([b"\xff\x4f\xff\x51junk"]), syntax=JPEG2000Lossless), "truncated"),
        (
            lambda: dicom(encapsulate([b"no codestream"]), syntax=MPEG2MPML),
            "MPEG2 Main Profile / Main Level are not read",
        ),
        (lambda: dicom(encapsulate([b"\xff\xd8\xff"] * 3), syntax=JPEGLosslessSV1), "3 frames; a film has one"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), kind=""), "DICOM without PhotometricInterpretation"),
        (lambda: dicom(np.zeros((24, 20), np.uint16), PixelPaddingValue=0), "every pixel is padding"),
        (lambda: b"\0" * 128 + b"DICM", "bad.dcm"),
    ],
)
def test_dicom_refused(data: Callable[[], bytes], reason: str) -> None:
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


def test_deflated_dicom_is_unpacked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(np.zeros((600, 600), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("preprocessing.readers.dicom.MAX_BYTES", 100_000)
    assert len(data) < 100_000
    with pytest.raises(InputError, match="unpacks to more than 100000 bytes"):
        read_film("bomb.dcm", data)


# ---- padding, shutter, collimator


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


def with_elements(data: bytes, **elements: tuple[object, str]) -> bytes:
    """Add elements of given value representations."""
    dataset = dcmread(io.BytesIO(data))
    for name, (value, representation) in elements.items():
        dataset.add_new(name, representation, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


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


# ---- tables and windows


def table(
    entries: np.ndarray | bytes,
    *,
    bits: int,
    first: tuple[int, str] = (0, "US"),
    kind: str = "US",
    count: int | None = None,
) -> Dataset:
    """A lookup table; `entries` are given as they are to be stored."""
    item = Dataset()
    number = len(entries) if count is None else count
    item.add_new("LUTDescriptor", first[1], [number % 65536, first[0], bits])
    stored = entries if isinstance(entries, bytes) or kind == "US" else entries.astype("<u2").tobytes()
    item.add_new("LUTData", kind, stored if isinstance(stored, bytes) else [int(entry) for entry in stored])
    item.ModalityLUTType = "US"
    return item


RISING = np.rint(np.linspace(0, 1, 4096) ** 0.5 * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("entries", "kind", "bits", "expected", "depth"),
    [
        (RISING.tobytes(), "OW", 8, RISING, 8),  # a byte an entry
        (RISING.tobytes(), "OB", 8, RISING, 8),
        (RISING, "US", 8, RISING, 8),  # a word an entry
        (RISING.view("<u2"), "US", 8, RISING, 8),  # two entries a word
        (RISING.astype("<u2").tobytes(), "OW", 8, RISING, 8),
        (RISING.astype("<u2").tobytes(), "OW", 16, RISING, 8),  # the descriptor promises more than there is
        (RISING.astype(np.uint16) * 16, "US", 8, RISING.astype(int) * 16, 12),  # and less
        (RISING.astype(np.uint16) * 16, "US", 12, RISING.astype(int) * 16, 12),
        (RISING.astype(np.uint16) * 16, "US", 16, RISING.astype(int) * 16, 12),
        (RISING.astype(np.uint16) * 2, "US", 10, RISING.astype(int) * 2, 10),
    ],
)
def test_tables_of_any_width_are_read(
    entries: np.ndarray | bytes, kind: str, bits: int, expected: np.ndarray, depth: int
) -> None:
    item = table(entries, bits=bits, kind=kind, count=4096)
    values = ramp(12)
    film = read_film("m.dcm", dicom(values, ModalityLUTSequence=[item], RescaleSlope=-3, RescaleIntercept=7))
    check_film(film, expected[values], depth)
    assert peek_depth("m.dcm", dicom(values, ModalityLUTSequence=[item])) == depth
    shown = read_film("v.dcm", dicom(values, VOILUTSequence=[item]), window=True)
    check_film(shown, np.rint(expected[values] * (4095 / (2**depth - 1))), 12)
    check_film(read_film("v.dcm", dicom(values, VOILUTSequence=[item])), values, 12)


def test_a_table_of_65536_entries_is_called_one_of_0() -> None:
    entries = np.arange(65536)[::-1].astype("<u2").tobytes()
    values = picture(np.uint16)
    film = read_film(
        "m.dcm", dicom(values, bits=16, ModalityLUTSequence=[table(entries, bits=16, kind="OW", count=65536)])
    )
    check_film(film, 65535 - values.astype(int), 16)


@pytest.mark.parametrize("first", [(-100, "SS"), (65436, "US")])
def test_the_first_value_of_a_modality_table_is_signed_as_the_pixels_are(first: tuple[int, str]) -> None:
    values = np.arange(-200, 200, dtype=np.int16).reshape(20, 20)
    film = read_film("m.dcm", dicom(values, ModalityLUTSequence=[table(np.arange(200) * 5, bits=10, first=first)]))
    check_film(film, np.clip(values.astype(int) + 100, 0, 199) * 5, 10)
    high = table(np.arange(200) * 5, bits=10, first=(65436, "US"))
    unsigned = np.arange(65336, 65536, dtype=np.uint16).repeat(2).reshape(20, 20)
    film = read_film("m.dcm", dicom(unsigned, bits=16, ModalityLUTSequence=[high]))
    check_film(film, np.clip(unsigned.astype(int) - 65436, 0, 199) * 5, 10)


@pytest.mark.parametrize("first", [(-1024, "SS"), (64512, "US")])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_first_value_of_a_display_table_is_signed_as_rescaled_values_are(
    first: tuple[int, str], syntax: UID
) -> None:
    values = ramp(12)
    item = table(np.arange(4096), bits=12, first=first)
    data = dicom(values, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[item])
    check_film(read_film("v.dcm", rewritten(data, syntax), window=True), values, 12)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("kind", "bits"), [("US", 8), ("US", 12), ("OW", 12)])
def test_tables_in_any_byte_order(syntax: UID, kind: str, bits: int) -> None:
    entries = RISING if bits == 8 else RISING.astype(np.uint16) * 16
    stored = entries.astype(">u2").tobytes() if kind == "OW" and not syntax.is_little_endian else entries
    item = table(stored, bits=bits, kind=kind, count=4096)
    data = rewritten(dicom(ramp(12), ModalityLUTSequence=[item]), syntax)
    check_film(read_film("m.dcm", data), entries[ramp(12)], bits)


def rewritten(data: bytes, syntax: UID) -> bytes:
    """Write an uncompressed file in another syntax."""
    dataset = dcmread(io.BytesIO(data))
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    dcmwrite(stream, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return stream.getvalue()


def test_a_table_cut_short_is_refused() -> None:
    item = table(np.arange(100), bits=12, count=4096)
    with pytest.raises(InputError, match="a lookup table of 4096 entries that holds 100"):
        read_film("m.dcm", dicom(ramp(12), ModalityLUTSequence=[item]))


def empty_table() -> Dataset:
    item = Dataset()
    item.LUTDescriptor = None
    item.LUTExplanation = "nothing"
    return item


@pytest.mark.parametrize(
    "elements",
    [
        {"ModalityLUTSequence": []},
        {"ModalityLUTSequence": [Dataset()]},
        {"ModalityLUTSequence": [empty_table()]},
        {"VOILUTSequence": []},
        {"VOILUTSequence": [empty_table()]},
        {"WindowCenter": 100},
        {"WindowCenter": 100, "WindowWidth": None},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 100, "WindowWidth": 0},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"PixelPaddingValue": None, "PixelSpacing": None, "PixelAspectRatio": None},
        {"NumberOfFrames": None, "SmallestImagePixelValue": None},
        {"ShutterShape": None, "CollimatorShape": None, "PresentationLUTShape": None},
    ],
)
def test_what_is_empty_counts_as_absent(elements: dict[str, object]) -> None:
    film = read_film("e.dcm", dicom(ramp(12), **elements), window=True)
    check_film(film, ramp(12), 12)
    assert film.exposed is None and film.aspect == 1 and film.spacing is None and film.polarity_known


def test_an_empty_table_leaves_its_place_to_the_window() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 1025}
    alone = read_film("w.dcm", dicom(ramp(12), **window), window=True)
    both = read_film("w.dcm", dicom(ramp(12), VOILUTSequence=[empty_table()], **window), window=True)
    assert len(np.unique(alone.pixels)) < 4096
    np.testing.assert_array_equal(both.pixels, alone.pixels)


# ---- bits


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


def coded(values: np.ndarray, bits: int, codec: str) -> tuple[bytes, UID]:
    """Code levels losslessly with a stated precision."""
    if codec == "JPEG 2000":
        options = {"level": 0, "codecformat": "J2K", "bitspersample": bits}
        return imagecodecs.jpeg2k_encode(values, **options), JPEG2000Lossless
    if codec == "HTJ2K":
        return imagecodecs.htj2k_encode(values), HTJ2KLossless
    if codec == "JPEG-LS":
        return imagecodecs.jpegls_encode(values), JPEGLSLossless
    return imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits), JPEGLosslessSV1


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


# ---- headers


def test_dicom_without_preamble_syntax_or_representation() -> None:
    levels = ramp(12)
    whole = dicom(levels)
    dataset = dcmread(io.BytesIO(whole))
    for implicit, little in ((True, True), (False, True), (False, False)):
        if not little:
            dataset.PixelData = levels.astype(">u2").tobytes()
        stream = io.BytesIO()
        meta, dataset.file_meta, dataset.preamble = dataset.file_meta, FileMetaDataset(), None
        dcmwrite(stream, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
        dataset.file_meta, dataset.preamble = meta, bytes(128)
        bare = stream.getvalue()
        assert recognize(bare[:HEAD_BYTES]) == "DICOM" and bare[128:132] != b"DICM"
        check_film(read_film("bare", bare), levels, 12)
    check_film(read_film("no-preamble", whole[132:]), levels, 12)
    del dataset.file_meta.TransferSyntaxUID
    stream = io.BytesIO()
    dataset.PixelData = levels.tobytes()
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    check_film(read_film("no-syntax", stream.getvalue()), levels, 12)
    without = dcmread(io.BytesIO(whole))
    del without.PixelRepresentation, without.HighBit, without.SamplesPerPixel
    stream = io.BytesIO()
    without.save_as(stream)
    check_film(read_film("few", stream.getvalue()), levels, 12)


def test_implicit_values_without_pixel_representation_are_unsigned() -> None:
    """pydicom leaves what is US or SS as bytes there."""
    item = table(np.arange(4096), bits=12, first=(64512, "US"))
    elements = {"PixelPaddingValue": 4095, "RescaleIntercept": -1024, "RescaleSlope": 1, "VOILUTSequence": [item]}
    dataset = dcmread(io.BytesIO(rewritten(dicom(ramp(12), **elements), ImplicitVRLittleEndian)))
    del dataset.PixelRepresentation
    stream = io.BytesIO()
    dataset.save_as(stream)
    film = read_film("i.dcm", stream.getvalue(), window=True)
    assert film.exposed is not None
    np.testing.assert_array_equal(film.exposed, ramp(12) != 4095)
    check_film(film, np.where(film.exposed, ramp(12), 0), 12)


def test_the_depth_of_a_codestream_is_known_from_its_header() -> None:
    values = np.random.default_rng(3).integers(0, 4096, (24, 20)).astype(np.uint16)
    stream, syntax = coded(values, 12, "JPEG Lossless")
    data = dicom(values >> 4, bits=8, BitsAllocated=8, syntax=syntax, PixelData=encapsulate([stream]))
    assert peek_depth("d.dcm", data) == 12
    check_film(read_film("d.dcm", data), values, 12)


def test_a_directory_of_films_is_no_film() -> None:
    data = dicom(None)
    data = data.replace(b"1.2.840.10008.5.1.4.1.1.7\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0")
    assert recognize(data[:HEAD_BYTES]) is None
    with pytest.raises(InputError, match="a DICOMDIR: it lists films and is none"):
        read_film("DICOMDIR", data)


@pytest.mark.parametrize(("shape", "inverted"), [("IDENTITY", False), ("INVERSE", True)])
def test_without_photometric_interpretation_the_presentation_decides(shape: str, inverted: bool) -> None:
    levels = ramp(12)
    film = read_film("p.dcm", dicom(levels, kind="", PresentationLUTShape=shape))
    check_film(film, 4095 - levels if inverted else levels, 12)
    assert film.polarity_known


@pytest.mark.parametrize(
    ("kind", "shape", "known"),
    [
        ("MONOCHROME2", None, True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "IDENTITY", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", False),
        ("MONOCHROME1", "IDENTITY", False),
    ],
)
def test_polarity_is_known_unless_the_header_contradicts_itself(kind: str, shape: str | None, known: bool) -> None:
    assert read_film("p.dcm", dicom(ramp(12), kind=kind, PresentationLUTShape=shape)).polarity_known == known
    assert not read_film("c.dcm", dicom(picture(planes=3), bits=8, kind="RGB")).polarity_known


@pytest.mark.parametrize(
    ("elements", "aspect", "spacing"),
    [
        ({}, 1, None),
        ({"PixelAspectRatio": [4, 3]}, 4 / 3, None),
        ({"PixelAspectRatio": [0, 3]}, 1, None),
        ({"PixelSpacing": [0.2, 0.1]}, 2, (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, 0.5, (0.1, 0.2)),
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.3, 0.3]}, 2, (0.2, 0.1)),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, 1, (0.2, 0.2)),
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [2, 1]}, 2, None),
        ({"PixelSpacing": [0.0002, 0.0001]}, 2, None),
        ({"PixelSpacing": [100, 0.1]}, 1, None),
    ],
)
def test_spacing_and_aspect(elements: dict[str, list[float]], aspect: float, spacing: tuple[float, float]) -> None:
    film = read_film("s.dcm", dicom(ramp(12), **elements))
    assert film.aspect == pytest.approx(aspect) and film.spacing == spacing


def test_tags_tell_patient_and_view_and_no_names() -> None:
    film = read_film(
        "t.dcm",
        dicom(
            ramp(12),
            PatientID=" 17 ",
            PatientName="Nobody^Else",
            PatientBirthDate="19700101",
            StudyDate="20200101",
            StudyInstanceUID="1.2.3",
            Laterality="",
            ImageLaterality="L",
            BodyPartExamined="HAND",
            ViewPosition="AP",
            InstitutionName="A" * 64,
        ),
    )
    assert film.tags == {
        "PatientID": "17",
        "StudyInstanceUID": "1.2.3",
        "Modality": "DX",
        "ImageLaterality": "L",
        "BodyPartExamined": "HAND",
        "ViewPosition": "AP",
        "InstitutionName": "A" * 64,
    }


def test_dicom_packed_by_gzip_is_read() -> None:
    packed = gzip.compress(dicom(ramp(12)))
    assert recognize(packed[:HEAD_BYTES]) == "DICOM"
    check_film(read_film("film.dcm.gz", packed), ramp(12), 12)


def test_colours_keep_their_depth() -> None:
    planes = picture(np.uint16, planes=3) >> 4
    film = read_film("c.dcm", dicom(planes, bits=12, kind="RGB"))
    assert film.depth == 12 and np.abs(film.pixels - luminance(planes)).max() <= 1


# ---- the files that come with pydicom


def test_the_files_of_pydicom_equal_its_values_or_are_refused_by_name() -> None:
    """Films that pydicom decodes alone (without further packages) have its values, by the rules of `film`."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    counts = {"read": 0, "refused": 0, "compared": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            try:
                film = read_film("film", data)
            except InputError as error:
                assert str(error).startswith("film: ") and "does not decode" not in str(error), path
                counts["refused"] += 1
                continue
            counts["read"] += 1
            counts["compared"] += compare_with_pydicom(film, path)
    print(counts)
    assert counts["read"] >= 40 and counts["compared"] >= 30, counts


def compare_with_pydicom(film: Film, path: Path) -> bool:
    """Hold a film to pydicom's; False where pydicom needs another package."""
    data = path.read_bytes()
    dataset = dcmread(io.BytesIO(gzip.decompress(data) if path.suffix == ".gz" else data), force=True)
    try:
        values = dataset.pixel_array
    except (AttributeError, RuntimeError):
        return False
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
    if "ModalityLUTSequence" in dataset:
        np.testing.assert_array_equal(film.pixels, apply_modality_lut(values, dataset), err_msg=str(path))
        return True
    if values.ndim == 3:
        assert np.abs(film.pixels - luminance(values)).max() <= 1, path
        return True
    shown = np.ones(values.shape, bool) if film.exposed is None else film.exposed
    low, bits = int(values[shown].min()), int(dataset.BitsStored)
    expected = values.astype(int)
    if low < 0:
        expected = expected + (1024 if low >= -1024 else 2 ** (bits - 1))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 2**bits - 1 - expected
    expected = expected * 255 // (2**bits - 1) if bits < 8 else expected
    np.testing.assert_array_equal(film.pixels, np.where(shown, expected, 0), err_msg=str(path))
    return True
