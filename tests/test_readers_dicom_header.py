"""What a DICOM header leaves out, contradicts, and says of geometry and patient."""

import gzip
import io

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ImplicitVRLittleEndian,
)

from preprocessing import InputError
from preprocessing.readers import HEAD_BYTES, peek_depth, read_film, recognize
from tests.film_files import (
    check_film,
    coded,
    dicom,
    luminance,
    picture,
    ramp,
    rewritten,
    table,
)


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
