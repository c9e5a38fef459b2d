"""Tables and windows of DICOM: PS3.3 C.11."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from preprocessing import InputError
from preprocessing.readers import peek_depth, read_film
from tests.film_files import check_film, dicom, picture, ramp, rewritten, table

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
