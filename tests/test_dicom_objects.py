"""DICOM objects of a finding: valid whatever the source lacks, exact, and the same each time."""

import io
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from pydicom import Dataset
from pydicom.uid import UID

from anomaly.export import dicom_images
from anomaly.export.dicom_objects import KINDS, dicom_bytes, dicom_results, kind_of
from anomaly.export.dicom_source import source_header
from anomaly.export.finding import Finding
from preprocessing import InputError
from tests.conftest import on_path
from tests.dicom_cases import (
    DCIODVFY,
    HEIGHT,
    INVALID,
    NAMES,
    VALID,
    WIDTH,
    errors_of,
    finding,
    source_film,
    source_films,
)

pytest.importorskip("highdicom")
needs_dciodvfy = pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy is not installed: Debian's dicom3tools")
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(result: Dataset) -> Dataset:
    """The object as another program reads it from a file."""
    return pydicom.dcmread(io.BytesIO(dicom_bytes(result)))


def results(source: Dataset, found: Finding | None = None, kinds: tuple[str, ...] = KINDS) -> dict[str, Dataset]:
    return {kind_of(result): read(result) for result in dicom_results(source, found or finding(), kinds)}


def items(dataset: Dataset) -> list[Dataset]:
    """Every content item of a report, in order."""
    found = []
    for item in dataset.get("ContentSequence", ()):
        found += [item, *items(item)]
    return found


def numbers(report: Dataset) -> dict[str, float]:
    """The numbers of a report by the meaning of their names, where there is one alone."""
    measured = [item for item in items(report) if item.ValueType == "NUM"]
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: float(
            item.MeasuredValueSequence[0].get("FloatingPointValue", item.MeasuredValueSequence[0].NumericValue)
        )
        for item in measured
    }


@given(source_films())
@few
def test_whatever_a_film_lacks_its_objects_are_whole_and_exact(source: Dataset) -> None:
    found = finding()
    made = results(source, found)
    assert list(made) == list(KINDS)
    for kind, result in made.items():
        assert result.StudyInstanceUID == "1.2.3", kind
        assert {"PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"} <= set(result.dir()), kind
    values = np.frombuffer(made["pm"].FloatPixelData, "<f4").reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(values, found.map)
    np.testing.assert_array_equal(made["seg"].pixel_array, (found.map >= found.scale) & found.mask)
    assert numbers(made["sr"])["Anomaly score"] == found.score


@needs_dciodvfy
@given(source_films())
@few
def test_dciodvfy_finds_no_error_whatever_a_film_lacks(tmp_path: Path, source: Dataset) -> None:
    for result in dicom_results(source, finding()):
        file = tmp_path / "result.dcm"
        file.write_bytes(dicom_bytes(result))
        assert errors_of(file) == [], kind_of(result)


@pytest.mark.parametrize("charset", NAMES)
def test_names_survive_in_their_character_set(charset: str) -> None:
    patient, physician = NAMES[charset]
    source = source_film(charset=charset, PatientName=patient, ReferringPhysicianName=physician)
    for kind, result in results(source).items():
        assert (str(result.PatientName), str(result.ReferringPhysicianName)) == (patient, physician), kind


def test_a_patient_is_named_in_the_patient_module_alone() -> None:
    source = source_film(PatientName="Roe^Jane", PatientID="4711")
    for result in dicom_results(source, finding()):
        del result.PatientName, result.PatientID
        assert "Roe" not in str(result)
        assert "4711" not in str(result)


@pytest.mark.parametrize("keyword", sorted(set(INVALID) - {"PatientIdentityRemoved"}))
def test_an_invalid_value_is_left_out(keyword: str) -> None:
    source = source_film(**{keyword: INVALID[keyword]})
    for kind, result in results(source).items():
        value = result.get(keyword)
        assert value is None or value == "" or value == [], (kind, value)


@pytest.mark.parametrize("keyword", ["PatientSex", "StudyDate", "AccessionNumber"])
def test_what_was_not_taken_over_is_said_without_its_value(keyword: str) -> None:
    (note,) = source_header(source_film(**{keyword: INVALID[keyword]})).notes
    assert keyword in note
    assert str(INVALID[keyword]) not in note
    assert source_header(source_film(**{keyword: VALID[keyword]})).notes == ()


def test_a_removed_identity_says_that_the_film_does_not_say_how() -> None:
    for result in results(source_film(PatientIdentityRemoved="YES")).values():
        assert result.DeidentificationMethod == "NOT STATED BY THE SOURCE"
    told = source_film(PatientIdentityRemoved="YES", DeidentificationMethod="names cut")
    assert results(told, kinds=("sc",))["sc"].DeidentificationMethod == "names cut"


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
def test_a_film_that_cannot_be_referred_to_is_refused(keyword: str) -> None:
    source = source_film()
    del source[keyword]
    with pytest.raises(InputError, match=f"no valid {keyword}"):
        dicom_results(source, finding())


def test_what_is_no_image_is_refused() -> None:
    source = source_film()
    del source.Rows
    with pytest.raises(InputError, match="no Rows and Columns"):
        dicom_results(source, finding())


def test_another_size_than_the_films_is_refused() -> None:
    with pytest.raises(InputError, match="need the map on the original film"):
        dicom_results(source_film(), finding(height=8, width=8))
    with pytest.raises(InputError, match="no kind 'png'"):
        dicom_results(source_film(), finding(), ("png",))


@pytest.mark.parametrize("kind", ["CR", "SC of frames", "private"])
def test_references_name_the_films_true_class(kind: str) -> None:
    source = source_film(kind)
    for name, result in results(source).items():
        referred: list[Dataset] = []

        def collect(dataset: Dataset, element: Any, into: list[Dataset] = referred) -> None:
            if element.keyword == "ReferencedSOPInstanceUID":
                into.append(dataset)

        result.walk(collect)
        to_film = [item for item in referred if item.ReferencedSOPInstanceUID == source.SOPInstanceUID]
        assert to_film, name
        assert {item.ReferencedSOPClassUID for item in to_film} == {source.SOPClassUID}, name


def test_the_report_refers_to_the_segmentation() -> None:
    made = results(source_film())
    report = made["sr"]
    referred = [item.ReferencedSOPSequence[0] for item in items(report) if item.ValueType == "IMAGE"]
    assert made["seg"].SOPInstanceUID in {item.ReferencedSOPInstanceUID for item in referred}
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence}
    assert named == {"1.2.3.4", made["seg"].SOPInstanceUID}


def test_the_report_reads_back() -> None:
    import highdicom as hd

    (result,) = dicom_results(source_film(PixelSpacing=["0.2", "0.1"]), found := finding(), ("sr",))
    report = hd.sr.ComprehensiveSR.from_dataset(read(result))
    (group,) = report.content.get_image_measurement_groups()
    told = {item.name.meaning: item.value for item in group.get_measurements()}
    assert told["Anomaly score"] == found.score
    assert told["Anomaly score from which a film is flagged"] == found.threshold
    assert told["Conformal p-value of the anomaly score"] == found.p_value
    assert told["Upper limit of the anomaly map on normal films"] == found.scale
    assert told["Another anomaly score"] == found.scores["ssim"]
    answers = {item.name.meaning: item.value.meaning for item in group.get_qualitative_evaluations()}
    assert answers["Flagged by the threshold"] == "Yes"
    device = {item.ConceptNameCodeSequence[0].CodeMeaning: item.get("TextValue", "") for item in items(read(result))}
    assert device["Device Observer Serial Number"] == found.device.digest
    assert device["Algorithm Name"].startswith("xray-anomaly")


def test_the_area_is_measured_where_distances_are_known() -> None:
    found = finding()
    pixels = int(((found.map >= found.scale) & found.mask).sum())
    told = numbers(results(source_film(PixelSpacing=["0.2", "0.1"]))["sr"])
    assert told["Area"] == pytest.approx(pixels * 0.02)
    share = pixels / found.mask.sum()
    assert told["Share of the examined area above the normal range"] == pytest.approx(share)
    assert "Area" not in numbers(results(source_film(ImagerPixelSpacing=["0.2", "0.1"]))["sr"])


def test_what_is_not_known_is_not_reported() -> None:
    told = numbers(results(source_film(), finding(p_value=None, p_interval=None))["sr"])
    assert not [name for name in told if "p-value" in name or "95%" in name]


def test_without_a_pixel_above_the_scale_there_is_no_segmentation() -> None:
    made = results(source_film(), finding(scale=1.0))
    assert list(made) == ["sc", "pm", "sr"]
    assert "Share of the examined area above the normal range" not in numbers(made["sr"])


def test_pixels_outside_the_mask_are_not_segmented() -> None:
    hot = np.full((HEIGHT, WIDTH), 5, np.float32)
    mask = np.zeros(hot.shape, np.bool_)
    mask[3, 4] = True
    segmented = results(source_film(), finding(map=hot, mask=mask))["seg"]
    assert np.argwhere(segmented.pixel_array).tolist() == [[3, 4]]
    assert "quantile of normal" in segmented.SegmentSequence[0].SegmentDescription


def test_highdicom_reads_segmentation_and_map_of_the_film() -> None:
    import highdicom as hd

    found = finding()
    by_kind = {kind_of(result): result for result in dicom_results(source_film(), found)}
    segmentation = hd.seg.segread(io.BytesIO(dicom_bytes(by_kind["seg"])))
    (area,) = segmentation.get_pixels_by_source_instance(["1.2.3.4"], combine_segments=True)
    np.testing.assert_array_equal(area.astype(bool), (found.map >= found.scale) & found.mask)
    mapped = hd.pm.ParametricMap.from_dataset(read(by_kind["pm"]))  # refuses what is not consistent
    np.testing.assert_array_equal(mapped.pixel_array, found.map)


@pytest.mark.parametrize(
    ("orientation", "rows", "columns"),
    [
        (["L", "F"], (1, 0, 0), (0, 0, -1)),
        (["P", "FL"], (0, 1, 0), (0, 0, -1)),
        (["AR", "H"], (0, -1, 0), (0, 0, 1)),
    ],
)
def test_directions_of_the_film_are_kept(orientation: list[str], rows: Any, columns: Any) -> None:
    made = results(source_film(PatientOrientation=orientation))
    for kind in ("sc", "seg", "pm"):
        assert list(made[kind].PatientOrientation) == orientation, kind
    plane = made["pm"].SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    assert tuple(plane.ImageOrientationPatient) == (*rows, *columns)


@pytest.mark.parametrize("orientation", [["L", "R"], ["L", "L"], ["LR", "F"], ["X", "F"], ["L"], ["LL", "F"], None])
def test_directions_that_are_none_are_left_empty(orientation: list[str] | None) -> None:
    made = results(source_film(PatientOrientation=orientation))
    for kind in ("sc", "seg", "pm"):
        assert not made[kind].PatientOrientation, kind
    assert "directions not known, assumed" in made["pm"].DerivationDescription


def test_directions_of_an_animal_are_left_empty() -> None:
    source = source_film(PatientOrientation=["L", "F"], AnatomicalOrientationType="QUADRUPED")
    assert not results(source, kinds=("sc",))["sc"].PatientOrientation


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"ImageLaterality": "B"}, "B"),
        ({"Laterality": "R"}, "R"),
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"BodyPartExamined": "CHEST"}, "U"),
        ({"BodyPartExamined": "HAND"}, None),
        ({}, None),
    ],
)
def test_the_side_is_the_films(said: dict[str, str], expected: str | None) -> None:
    made = results(source_film(**said))
    for kind in ("sc", "seg", "pm"):
        assert made[kind].get("ImageLaterality") == expected, kind


def test_distances_of_the_film_are_kept() -> None:
    spacing = results(source_film(PixelSpacing=["0.2", "0.1"], ImagerPixelSpacing=["0.3", "0.3"]))
    # The overlay of so small a film is enlarged by a whole factor.
    zoom = math.ceil(384 / WIDTH)
    assert [float(v) for v in spacing["sc"].PixelSpacing] == pytest.approx([0.2 / zoom, 0.1 / zoom])
    assert [float(v) for v in spacing["sc"].ImagerPixelSpacing] == pytest.approx([0.3 / zoom, 0.3 / zoom])
    for kind in ("seg", "pm"):
        measures = spacing[kind].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert [float(v) for v in measures.PixelSpacing] == [0.2, 0.1], kind
    aspect = results(source_film(PixelAspectRatio=["2", "1"]))
    assert [int(v) for v in aspect["sc"].PixelAspectRatio] == [2, 1]
    assert "distances not known" in aspect["pm"].DerivationDescription


def test_the_overlay_is_that_of_the_picture_and_says_what_it_is() -> None:
    from anomaly.reporting.heatmap import blend

    found = finding(height=400, width=300)
    source = source_film()
    source.Rows, source.Columns = 400, 300
    overlay = results(source, found, ("sc",))["sc"]
    picture = overlay.pixel_array
    heat = blend(found.film, found.map, found.mask, found.scale)
    top = next(row for row in range(len(picture)) if (picture[row : row + 400, :300] == heat).all())
    assert picture[:top, :300].max() > 200  # the text above
    assert overlay.BurnedInAnnotation == "YES"
    assert "NOT A MEDICAL DEVICE" in overlay.SeriesDescription
    assert "NOT A MEDICAL DEVICE" in overlay.DerivationDescription


def test_the_same_gives_the_same_bytes_and_other_contents_have_other_uids() -> None:
    source = source_film(**VALID)
    first, again = ([dicom_bytes(r) for r in dicom_results(source, finding())] for _ in range(2))
    assert first == again
    device = finding().device
    changed = [
        finding(),
        finding(hand=1),
        finding(hand=2),
        finding(device=replace(device, digest="cd" * 32)),
        finding(device=replace(device, version="0.2.0")),
    ]
    uids = [UID(result.SOPInstanceUID) for found in changed for result in dicom_results(source, found)]
    assert len(set(uids)) == len(uids) == len(changed) * len(KINDS)
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)


@pytest.mark.parametrize("outside", [True, False, None])
def test_a_film_unlike_those_of_the_training_is_said_to_be_in_every_object(
    outside: bool | None, tmp_path: Path
) -> None:
    made = results(source_film(), finding(out_of_domain=outside))
    for kind in ("sc", "seg", "pm"):
        comment = made[kind].get("ImageComments", "")
        assert ("unlike the films of the training" in comment and "p-value" in comment) == bool(outside), kind
    for text in (made["sc"].DerivationDescription, made["pm"].DerivationDescription):
        assert ("unlike the films of the training" in text) == bool(outside)
    assert ("unlike" in made["seg"].SegmentSequence[0].SegmentDescription) == bool(outside)
    said = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.ConceptCodeSequence[0].CodeMeaning
        for item in items(made["sr"])
        if item.ValueType == "CODE"
    }
    answer = {True: "Yes", False: "No", None: None}[outside]
    assert said.get("Film is unlike the films of the training") == answer
    flagged = said["Flagged by the threshold"]
    assert flagged == ("Flagged, but neither flag nor p-value holds for this film" if outside else "Yes")
    if DCIODVFY is not None:
        for kind, result in made.items():
            result.save_as(file := tmp_path / "result.dcm", enforce_file_format=True)
            assert errors_of(file) == [], kind


def test_the_overlay_says_that_flag_and_p_value_do_not_hold() -> None:
    title = dicom_images._title(finding(out_of_domain=True)).split("\n")
    assert title[1] == "UNLIKE THE FILMS OF THE TRAINING (ANOTHER BODY PART?): the score means nothing"
    assert title[2] == "mse 0.3333, flagged (from 0.3) and p = 0.14 do not hold"
    (state,) = (line for line in dicom_images._title(finding(out_of_domain=True, p_value=None)).split("\n")[2:3])
    assert state == "mse 0.3333, flagged (from 0.3) does not hold"
    for known in (False, None):
        lines = dicom_images._title(finding(out_of_domain=known)).split("\n")
        assert lines[1] == "mse 0.3333, flagged (from 0.3), p = 0.14" and len(lines) == 3


@pytest.mark.parametrize("place", ["secondary_capture", "segmentation", "parametric_map", "structured_report"])
def test_what_a_library_raises_is_an_error_of_the_film(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("no such\nterm")

    monkeypatch.setattr(f"anomaly.export.dicom_objects.{place}", fail)
    with pytest.raises(InputError, match=r"making them failed \(unexpected KeyError: 'no such\\nterm'\)"):
        dicom_results(source_film(), finding())


def test_that_memory_ran_out_is_no_error_of_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("anomaly.export.dicom_objects.secondary_capture", fail)
    with pytest.raises(MemoryError):
        dicom_results(source_film(), finding())


def test_films_of_patients_are_not_called_synthetic_where_the_training_s_were() -> None:
    device = replace(finding().device, trained_on_synthetic=True)
    assert dicom_images.parameters(finding(device=device))["trained on"] == "SYNTHETIC films"
    assert ", trained on SYNTHETIC films;" in dicom_images._title(finding(device=device))
    assert ", SYNTHETIC film;" in dicom_images._title(finding(device=device, synthetic=True))
    assert "SYNTHETIC" not in dicom_images._title(finding())
    assert "trained on" not in dicom_images.parameters(finding())


def test_another_process_gives_the_same_uids_and_needs_no_torch() -> None:
    program = (
        "import sys;"
        "from tests.dicom_cases import finding, source_film; from anomaly.export.dicom_objects import *;"
        "results = dicom_results(source_film(), finding(), ('seg', 'pm'));"
        "print(*(result.SOPInstanceUID for result in results), 'torch' in sys.modules)"
    )
    found = on_path(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=found)
    here = [r.SOPInstanceUID for r in dicom_results(source_film(), finding(), ("seg", "pm"))]
    assert done.stdout.split() == [*here, "False"]


def test_dates_are_those_of_the_finding_in_the_films_zone() -> None:
    for kind, result in results(source_film()).items():
        assert (result.ContentDate, result.ContentTime) == ("20260228", "233005"), kind
    for kind, result in results(source_film(TimezoneOffsetFromUTC="+0530")).items():
        assert (result.ContentDate, result.ContentTime) == ("20260301", "050005"), kind
        assert result.TimezoneOffsetFromUTC == "+0530", kind
    later = finding(created=datetime(2027, 1, 1, tzinfo=UTC))
    for kind, result in results(source_film(), later).items():
        text = str(result)
        assert "20260228" not in text, kind
        assert datetime.now(UTC).strftime("%Y%m%d") not in text, kind


def test_two_hands_make_one_series_of_each_kind() -> None:
    left, right = (results(source_film(), finding(hand=hand)) for hand in (1, 2))
    for kind in KINDS:
        assert left[kind].SeriesInstanceUID == right[kind].SeriesInstanceUID
        assert (left[kind].InstanceNumber, right[kind].InstanceNumber) == (1, 2)
    series = [left[kind].SeriesInstanceUID for kind in KINDS]
    assert all(a != b for a, b in pairwise(sorted(series)))


def test_text_of_a_model_that_is_not_built_in_fits_every_character_set() -> None:
    odd = finding(unit="Å² \\ pixel " + "x" * 80, score_name="größe", scores={"größe": 1.0, "naïve": 2.0})
    for charset in NAMES:
        for result in results(source_film(charset=charset), odd).values():
            result.decode()


def test_without_highdicom_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.export.dicom_objects.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'xray-anomaly\[dicom\]'"):
        dicom_results(source_film(), finding())
