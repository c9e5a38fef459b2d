"""DICOM objects that are no films: left out of a listing by their headers, refused by the reader, each kind counted."""

import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from anomaly.export.finding import MANUFACTURER
from preprocessing import InputError
from preprocessing.readers import OBJECT_HEAD_BYTES, other_object_by_head, read_film
from preprocessing.sources import open_source
from preprocessing.sources.new_films import open_films

from .film_files import dicom, ramp
from .source_trees import pack, paths, plant, refused

STORAGE = "1.2.840.10008.5.1.4.1.1."
CLASSES = {
    "66.4": "Segmentation",
    "66.7": "Segmentation",
    "30": "Parametric Map",
    "88.33": "Structured Report",
    "88.59": "Key Object Selection",
    "11.1": "Presentation State",
    "104.1": "Encapsulated Document",
    "7": None,  # Secondary Capture
    "7.1": None,
    "1": None,
    "1.1.1": None,
    "3.1": None,
}
DERIVED = {"DerivationDescription": "not of this program"}
OWN = {"Manufacturer": MANUFACTURER, "DerivationDescription": "NOT A MEDICAL DEVICE. xray-anomaly cae"}


def film(sop_class: str = "7", syntax: str | None = None, **elements: Any) -> bytes:
    """A film that can be read, said to be of a class."""
    dataset = dcmread(io.BytesIO(dicom(ramp(12))))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = STORAGE + sop_class
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def bare(data: bytes) -> bytes:
    """Without preamble and file meta information."""
    dataset = dcmread(io.BytesIO(data))
    dataset.file_meta, dataset.preamble = FileMetaDataset(), None
    out = io.BytesIO()
    dcmwrite(out, dataset, implicit_vr=True, little_endian=True, force_encoding=True)
    return out.getvalue()


@pytest.mark.parametrize("sop_class", CLASSES)
def test_the_class_says_what_is_no_film(sop_class: str) -> None:
    data, kind = film(sop_class), CLASSES[sop_class]
    for packed in (data, bare(data), gzip.compress(data), film(sop_class, ImplicitVRLittleEndian)):
        assert other_object_by_head(packed[:OBJECT_HEAD_BYTES]) == kind
        if kind is None:
            assert read_film("x", packed).pixels.shape == (64, 64)
        else:
            with pytest.raises(InputError, match=rf"x: a DICOM object that is no film \({kind}\)"):
                read_film("x", packed)


@pytest.mark.parametrize(
    ("elements", "own"),
    [
        (OWN, True),
        ({"Manufacturer": MANUFACTURER}, False),  # a film of no DICOM file, of which --as-study made a study
        (DERIVED, False),  # a screenshot, a digitized film: somebody's real Secondary Capture
        ({"Manufacturer": f"Viewer beside {MANUFACTURER}", **DERIVED}, False),
        ({"SeriesDescription": MANUFACTURER}, False),
        ({**OWN, "SpecificCharacterSet": "ISO-IR 100"}, True),  # which is illegal, and common
    ],
)
@pytest.mark.filterwarnings("ignore:Inc:UserWarning", "ignore:Inv:UserWarning")  # of pydicom, as it is written
def test_a_secondary_capture_is_a_film_unless_this_program_made_it_of_one(elements: dict[str, Any], own: bool) -> None:
    data = film(**elements)
    for packed in (data, bare(data), gzip.compress(data)):
        assert (other_object_by_head(packed[:OBJECT_HEAD_BYTES]) is not None) == own
        if own:
            with pytest.raises(InputError, match="xray-anomaly overlay"):
                read_film("x", packed)
        else:
            assert read_film("x", packed).pixels.shape == (64, 64)


def test_damage_leaves_it_to_the_reader() -> None:
    data = film(**OWN)
    for end in range(0, 700, 7):
        assert other_object_by_head(data[:end]) in (None, "xray-anomaly overlay")
    assert other_object_by_head(gzip.compress(data)[:20]) is None
    assert other_object_by_head(b"\x1f\x8b\x08 no gzip") is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_listing_counts_each_kind_in_one_line(tmp_path: Path, packed: bool) -> None:
    objects = {
        "a.dcm": film("1"),
        "real.sc.dcm": film(**DERIVED),
        "IM0007": film("1.1"),
        "h.sc.dcm": film(**OWN),
        "1.2.840.9": film(**OWN),
        "s1.dcm": film("66.4"),
        "IM0008": film("66.4"),
        "deep/s2.dicom": film("66.4"),
        "report": film("88.33"),
        "map.ima": film("30"),
        "p.dcm.gz": gzip.compress(film("11.1")),
    }
    for name, data in objects.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
    plant(tmp_path / "f", *(f"a.dcm_heatmap.{end}" for end in ("png", "sc.dcm", "seg.dcm", "pm.dcm", "sr.dcm")))
    source = open_source(pack(tmp_path / "f", tmp_path / "f.zip") if packed else tmp_path / "f")
    assert {*paths(source)} == {"a.dcm", "real.sc.dcm", "IM0007"}
    (line,) = [note for note in source.notes if "DICOM headers" in note]
    head, _, kinds = line.partition(": ")
    assert head == "no films, by their DICOM headers" and {*kinds.split(", ")} == {
        "2 xray-anomaly overlays",
        "3 Segmentations",
        "1 Structured Report",
        "1 Parametric Map",
        "1 Presentation State",
    }
    assert "no films: 5 files written by this program (runs, heatmaps)" in source.notes
    assert "films by their first bytes: 1 without a suffix" in source.notes


def test_a_folder_of_results_holds_no_film(tmp_path: Path) -> None:
    (tmp_path / "s.dcm").write_bytes(film("66.4"))
    message = refused(tmp_path)
    assert "no film among 1 file" in message and "by their DICOM headers: 1 Segmentation" in message


def test_what_is_deflated_is_refused_when_it_is_read() -> None:
    data = film(syntax=DeflatedExplicitVRLittleEndian, **OWN)
    assert other_object_by_head(data[:OBJECT_HEAD_BYTES]) is None
    with pytest.raises(InputError, match="xray-anomaly overlay"):
        read_film("x", data)


def test_heatmaps_named_among_films_are_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "a.png_heatmap.png", "a.png_heatmap.sc.dcm")
    source = open_films([tmp_path / "a.png", tmp_path / "a.png_heatmap.png", tmp_path / "a.png_heatmap.sc.dcm"])
    assert paths(source) == ["a.png"] and source.notes == ("no films: 2 files written by this program (heatmaps)",)
    with pytest.raises(InputError, match=r"a\.png_heatmap\.png: a heatmap that this program wrote"):
        open_films([tmp_path / "a.png_heatmap.png"])
    folder = tmp_path / "x_heatmap.png"
    plant(folder, "b.png")
    assert paths(open_films([folder])) == ["b.png"]
