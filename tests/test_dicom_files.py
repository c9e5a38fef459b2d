"""DICOM objects of heatmaps as files: which films have them, what is written, and what is said."""

import dataclasses
import errno
import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from anomaly.cli.scoring import heatmap as heatmap_verb
from anomaly.evaluation.calibration import FlagRule
from anomaly.export.dicom_objects import KINDS
from anomaly.export.dicom_report import structured_report
from anomaly.export.dicom_source import SourceHeader
from anomaly.export.dicom_study import LooseFilm, film_as_study
from anomaly.pipeline.dicom_files import DicomFiles, creation_time
from anomaly.pipeline.map_files import MapFiles, write_heatmaps
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import HeatmapOptions
from anomaly.pipeline.selection import recorded_films
from anomaly.pipeline.software_device import software_device
from anomaly.runs import Run, write_atomic
from anomaly.service.detector import OpenRunFolder, Task
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.readers import read_dicom_header, read_film
from preprocessing.sources import open_source

from .dicom_cases import DCIODVFY, errors_of, finding
from .film_files import dicom, png

pytest.importorskip("highdicom")
IDENTITY = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.5", "PatientID": "4711"}
HEIGHT, WIDTH = 90, 70


def hand(seed: int = 0) -> np.ndarray:
    """A film of 12 bits: a bright shape on a dark, noisy ground."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    shape = np.hypot((rows - 45) / 35, (columns - 32) / 24) < 1
    noise = np.random.default_rng(seed).integers(0, 200, shape.shape)
    return (shape * 2500 + rows * 8 + noise).astype(np.uint16)


def write_film(path: Path, **elements: Any) -> Path:
    path.write_bytes(dicom(hand(), **(IDENTITY | elements)))
    return path


def heatmaps(run: Run, out: Path, *paths: Path, formats: str = "dicom", **options: Any) -> dict[str, Dataset]:
    """Run the verb; return what it wrote in DICOM, by the end of its name."""
    heatmap_verb(HeatmapOptions(run.path, paths, formats=formats, out=out, device="cpu", workers=1, **options))
    return {path.name.partition("_")[2]: pydicom.dcmread(path) for path in out.rglob("*.dcm")}


def test_a_film_gets_four_objects_of_the_map_on_the_film(run: Run, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", PixelSpacing=[0.3, 0.2], PatientName="Roe^Jane")
    written = heatmaps(run, tmp_path / "out", film, formats="npy,dicom")
    assert set(written) == {f"heatmap.{kind}.dcm" for kind in KINDS}
    values = np.load(tmp_path / "out" / "film.dcm_heatmap.npy")
    assert values.shape == (HEIGHT, WIDTH)  # that of the film, without --space film
    np.testing.assert_array_equal(written["heatmap.pm.dcm"].pixel_array, values)
    segmented = written["heatmap.seg.dcm"].pixel_array.astype(bool)
    scale = open_run(run, "cpu").calibration.map_scale
    np.testing.assert_array_equal(segmented, values >= scale)
    for kind, result in written.items():
        assert result.PatientName == "Roe^Jane", kind
        assert result.StudyInstanceUID == "1.2.3", kind
        assert result.SoftwareVersions, kind


def test_low_is_white_films_have_the_same_map(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(dicom(4095 - hand(), kind="MONOCHROME1", **IDENTITY))
    (tmp_path / "two.dcm").write_bytes(dicom(hand(), kind="MONOCHROME2", **IDENTITY))
    maps = [heatmaps(run, tmp_path / name, tmp_path / f"{name}.dcm", formats="dicom-pm") for name in ("one", "two")]
    first, second = (written["heatmap.pm.dcm"].pixel_array for written in maps)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


def test_formats_choose_the_kinds(run: Run, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm")
    assert set(heatmaps(run, tmp_path / "out", film, formats="dicom-sr,png,dicom-sc")) == {
        "heatmap.sc.dcm",
        "heatmap.sr.dcm",
    }
    assert (tmp_path / "out" / "film.dcm_heatmap.png").is_file()


def test_the_same_command_gives_the_same_bytes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    film = write_film(tmp_path / "film.dcm")
    contents = []
    for out in ("first", "second"):
        heatmaps(run, tmp_path / out, film)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == len(KINDS)


def test_the_time_is_now_or_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert creation_time().tzinfo is not None
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert creation_time().isoformat() == "1970-01-01T00:00:00+00:00"
    for wrong in ("yesterday", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(InputError, match="seconds since 1970"):
            creation_time()


def test_films_without_a_study_are_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    write_film(films / "good.dcm")
    (films / "picture.png").write_bytes(png(hand()))
    (films / "bare.dcm").write_bytes(dicom(hand()))
    with pytest.raises(InputError, match=r"2 of 3 films .* the first: bare.dcm: no valid StudyInstanceUID.*--as-study"):
        heatmaps(run, tmp_path / "out", films)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^picture.png is no DICOM film.*--as-study"):
        heatmaps(run, tmp_path / "out", films / "picture.png")


def test_films_of_a_study_of_their_own_are_written_and_referred_to(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").write_bytes(png(hand()))
    written = heatmaps(run, tmp_path / "out", tmp_path / "picture.png", as_study=True)
    assert "1 film (the first: picture.png): it names no study, so it got one of its own" in capsys.readouterr().err
    film = written["film.dcm"]
    np.testing.assert_array_equal(film.pixel_array, hand())
    for kind in KINDS:
        result = written[f"heatmap.{kind}.dcm"]
        assert result.StudyInstanceUID == film.StudyInstanceUID, kind
        assert result.PatientID == film.PatientID, kind
    assert written["heatmap.pm.dcm"].SourceImageSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
    if DCIODVFY:
        assert [errors_of(path) for path in (tmp_path / "out").iterdir()] == [[]] * 5


def test_two_hands_of_a_film_get_objects_each(run: Run, cache: Cache, films: Path, tmp_path: Path) -> None:
    selection = recorded_films(run, "test", cache.path)
    first, second = selection.films.rows[:2]
    index = selection.films.cache.index
    for name in ("path", "sha256"):
        index[name][second] = index[name][first]
    index["hand"][first], index["hand"][second] = 1, 2
    originals = open_source(films)
    dicom_files = DicomFiles(selection, originals, ("sr",), as_study=True)
    files = MapFiles(tmp_path / "maps", (), dicom_files)
    write_heatmaps(open_run(run, "cpu"), selection, files, originals=originals)
    film = tmp_path / "maps" / str(index["path"][first])
    reports = [pydicom.dcmread(film.with_name(f"{film.name}-{hand}_heatmap.sr.dcm")) for hand in (1, 2)]
    assert [report.InstanceNumber for report in reports] == [1, 2]
    assert len({report.SeriesInstanceUID for report in reports}) == 1
    study = pydicom.dcmread(film.with_name(f"{film.name}_film.dcm")).StudyInstanceUID
    assert {report.StudyInstanceUID for report in reports} == {study}
    assert dicom_files.notes()[0].startswith(f"{len(set(index['path'][selection.films.rows]))} films")


def test_films_of_one_patient_share_a_study(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png(hand(ord(name))))
    (tmp_path / "manifest.csv").write_text("path,label,patient,study\na.png,0,P1,S1\nb.png,0,P1,S1\nc.png,0,P2,S1\n")
    heatmaps(run, tmp_path / "out", tmp_path / "manifest.csv", formats="dicom-sr", as_study=True)
    films = [pydicom.dcmread(tmp_path / "out" / f"{name}.png_film.dcm") for name in ("a", "b", "c")]
    assert [film.PatientID for film in films] == ["P1", "P1", "P2"]
    assert films[0].StudyInstanceUID == films[1].StudyInstanceUID != films[2].StudyInstanceUID
    assert len({film.SOPInstanceUID for film in films}) == 3


def test_a_films_own_objects_are_kept_apart_from_its_patients_name(run: Run, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", PatientName="Roe^Jane")
    heatmaps(run, tmp_path / "out", film, formats="png,npy,tiff,dicom")
    others = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".dcm"]
    assert others
    assert not [path for path in others if b"Roe" in path.read_bytes() or "Roe" in path.name]


def test_an_area_of_an_earlier_time_goes(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_film(tmp_path / "film.dcm")
    assert "heatmap.seg.dcm" in heatmaps(run, tmp_path / "out", film)
    monkeypatch.setattr("anomaly.export.dicom_images.segmented", lambda found: np.zeros(found.map.shape, np.bool_))
    assert "heatmap.seg.dcm" not in heatmaps(run, tmp_path / "out", film)
    assert "no pixel of its map is above the normal range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "cache"}, "DICOM objects lie on the original film"),
        ({"formats": "png", "as_study": True}, "--as-study applies to --formats dicom"),
        ({"formats": "dicom-rt"}, "no format 'dicom-rt'; there are: png, tiff, npy, dicom, dicom-sc, dicom-seg"),
        ({"source": Path("elsewhere")}, "elsewhere"),
    ],
)
def test_options_that_disagree_are_refused(run: Run, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        heatmaps(run, tmp_path / "out", **options)


def test_films_that_are_gone_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nowhere; give their place with --source"):
        heatmaps(run, tmp_path / "out", source=tmp_path / "nowhere", as_study=True)


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission denied")]
)
def test_a_file_that_cannot_be_written_leaves_no_part(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    film = write_film(tmp_path / "film.dcm")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    def write(path: Path, content: bytes) -> None:
        with monkeypatch.context() as broken:
            broken.setattr("anomaly.runs.os.fsync", fail)
            write_atomic(path, content)

    monkeypatch.setattr("anomaly.pipeline.dicom_files.write_atomic", write)
    with pytest.raises((InputError, OSError), match=expected):
        heatmaps(run, tmp_path / "out", film)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("formats", ["dicom", "png,dicom"])
def test_a_film_that_can_t_be_drawn_in_dicom_ends_no_list(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], formats: str
) -> None:
    (films := tmp_path / "films").mkdir()
    for name in ("a", "b", "c"):
        write_film(films / f"{name}.dcm", SOPInstanceUID=f"1.2.{ord(name)}", PatientID=name)

    def fails(header: SourceHeader, *others: Any) -> Dataset:
        if header.dataset.PatientID == "b":
            raise ValueError("'' is not a valid SpecificCharacterSetValues")
        return structured_report(header, *others)

    monkeypatch.setattr("anomaly.export.dicom_objects.structured_report", fails)
    with pytest.raises(InputError, match="1 of 3 films can't have DICOM objects, named above; the others are done"):
        heatmaps(run, tmp_path / "out", films, formats=formats)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{name}.dcm_heatmap.{kind}.dcm" for name in "ac" for kind in ("sc", "sr")} <= written
    assert [name for name in written if name.startswith("b")] == ["b.dcm_heatmap.png"] * ("png" in formats)
    assert "no DICOM objects: b.dcm: making them failed (unexpected ValueError: ''" in capsys.readouterr().err


def test_what_was_not_valid_in_the_film_is_said_for_all_films_at_once(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name in ("a", "b"):
        write_film(films / f"{name}.dcm", SOPInstanceUID=f"1.2.{ord(name)}", PatientSex="FEMALE")
    heatmaps(run, tmp_path / "out", films, formats="dicom-sr")
    error = capsys.readouterr().err
    assert "2 films (the first: " in error
    assert "left empty in its results: PatientSex" in error
    assert "FEMALE" not in error


def test_the_example_of_the_page_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "dicom.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    write_film(tmp_path / "film.dcm")
    shutil.copytree(run.path, tmp_path / "runs" / "cae-1")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "dicom.md", "exec"), {})
    assert sorted(path.name for path in tmp_path.glob("result.*")) == ["result.sc.dcm", "result.sr.dcm"]


def test_a_service_keeps_the_score_of_a_film_that_can_t_be_drawn_in_dicom(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_film(tmp_path / "film.dcm", PatientSex="FEMALE")
    detector = OpenRunFolder(run.path, device="cpu")()
    task = Task("1", film, tmp_path / "out", "film", ("png",), dicom=KINDS)
    (whole,) = detector.score([task])
    assert "heatmap.png" in whole.parts[0].files and {f"{kind}.dcm" for kind in KINDS} <= set(whole.parts[0].files)
    assert any("left empty in its results: PatientSex" in note for note in whole.notes)

    def fails(*arguments: object) -> Dataset:
        raise TypeError("not a code")

    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("anomaly.export.dicom_objects.structured_report", fails)
    (result,) = detector.score([task])
    assert (result.state, result.parts[0].score) == ("scored", whole.parts[0].score)
    assert result.parts[0].files == ["heatmap.png"] and not list((tmp_path / "out").glob("*.dcm"))
    (said,) = (note for note in result.notes if note.startswith("no DICOM objects: "))
    assert "unexpected TypeError: not a code" in said


# --- the header, the device, the film ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["as it is", "gzip"])
def test_a_header_is_read_without_pixels(pack: Callable[[bytes], bytes]) -> None:
    header = read_dicom_header("film.dcm", pack(dicom(hand(), **IDENTITY)))
    assert header is not None
    assert header.StudyInstanceUID == "1.2.3"
    assert "PixelData" not in header
    assert read_dicom_header("picture.png", png(hand())) is None
    assert read_dicom_header("nothing", b"") is None


def test_a_header_longer_than_its_first_bytes_is_read_whole(run: Run, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", EncapsulatedDocument=b"x" * 400_000)
    assert "heatmap.sr.dcm" in heatmaps(run, tmp_path / "out", film, formats="dicom-sr")


def test_another_calibration_or_score_is_another_device(run: Run) -> None:
    opened = open_run(run, "cpu")
    first = software_device(opened, "mse")
    assert first == software_device(opened, "mse")
    assert first.digest != software_device(opened, "mae").digest
    other = opened.calibration.applying(FlagRule(kind="threshold", value=1.0), "mse")

    assert first.digest != software_device(dataclasses.replace(opened, calibration=other), "mse").digest
    assert (first.model, first.run, len(first.digest)) == ("cae", run.path.name, 64)


@pytest.mark.parametrize(("dtype", "depth"), [(np.uint8, 8), (np.uint16, 10), (np.uint16, 16)])
def test_a_film_that_was_no_dicom_reads_back_as_it_was(dtype: type, depth: int, tmp_path: Path) -> None:
    levels = (np.arange(60 * 40).reshape(60, 40) * 7 % 2**depth).astype(dtype)
    made = film_as_study(LooseFilm(levels, depth, "ab" * 32, "films", "Jörg 1", "s"), finding().created)
    made.save_as(file := tmp_path / "film.dcm", enforce_file_format=True)
    film = read_film("film.dcm", file.read_bytes())
    np.testing.assert_array_equal(film.pixels, levels)
    assert film.depth == depth
    assert pydicom.dcmread(file).PatientID == "Jörg 1"


@pytest.mark.parametrize(
    "changes",
    [
        {"patient": ""},
        {"patient": "P" * 100},
        {"spacing": (0.14, 0.28)},
        {"aspect": (2, 1)},
        {"levels": np.zeros((40, 40), np.uint16), "depth": 12},
    ],
)
@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy is not installed: Debian's dicom3tools")
def test_dciodvfy_finds_no_error_in_a_film_that_was_no_dicom(changes: dict[str, Any], tmp_path: Path) -> None:
    values = {"levels": np.zeros((40, 40), np.uint8), "depth": 8, "sha256": "ab" * 32, "source": "films"}
    made = film_as_study(LooseFilm(**(values | {"patient": "P1", "study": "s"} | changes)), finding().created)
    made.save_as(file := tmp_path / "film.dcm", enforce_file_format=True)
    assert errors_of(file) == []
