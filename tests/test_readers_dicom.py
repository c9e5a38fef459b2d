"""DICOM films keep their levels, or are refused by name."""

import gzip
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from preprocessing import InputError
from preprocessing.readers import MAX_PIXELS, Film, peek_depth, read_film
from tests.film_files import (
    check_film,
    dicom,
    jpeg2000,
    luminance,
    picture,
    pillow,
    quickly,
    ramp,
)


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
