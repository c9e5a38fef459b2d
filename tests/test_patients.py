"""Who is a patient: read from paths and headers where they say so, and never claimed where they don't."""

from pathlib import Path

import pytest

from preprocessing.sources import identity_from_tags, open_films, open_source
from preprocessing.sources.patients import NEARLY_ALL, identify_all
from preprocessing.wording import patients_note

from .source_trees import by_path, plant


@pytest.mark.parametrize(
    ("path", "patient", "study"),
    [
        ("patient7/study2/a.png", "patient7", "patient7/study2"),
        ("x/Patient0012_b.png", "Patient0012", None),
        ("Patient 4/a.png", "Patient 4", None),
        ("patient_007/study_1/a.png", "patient_007", "patient_007/study_1"),
        ("subject-12_left.png", "subject-12", None),
        ("sub-01/ses-02/xray/sub-01_ses-02_hand.png", "sub-01", "sub-01/ses-02"),
        ("sub-A7/sub-A7_hand.png", "sub-A7", None),
        ("sub-03_ses-pre_hand.png", "sub-03", "sub-03/ses-pre"),
        ("files/p10/p10000032/s50414267/02aa804e.jpg", "p10000032", "p10000032/s50414267"),
    ],
)
def test_names_that_say_so(path: str, patient: str, study: str | None) -> None:
    identities, _ = identify_all([path, "other.png"])
    assert (identities[path].patient, identities[path].study) == (patient, study or path) and identities[path].known
    assert identities["other.png"].patient == "other.png" and not identities["other.png"].known


@pytest.mark.parametrize("path", ["outpatient5.png", "substudy-1/a.png", "submarine.png", "p1000/s1/a.png", "a/b.png"])
def test_names_that_do_not(path: str) -> None:
    assert not identify_all([path, "x.png"])[0][path].known


def test_nih_file_names_where_nearly_all_are_such(tmp_path: Path) -> None:
    files = [f"images_00{n % 2}/images/{n:08d}_{m:03d}.png" for n in range(1, 11) for m in range(2)]
    source = open_source(plant(tmp_path / "nih", *files))
    assert len({record.patient for record in source.records}) == 10 and all(r.patient_known for r in source.records)
    assert source.notes[-1] == "patients are read from file names PATIENT_NUMBER (NIH ChestX-ray14): 10 patients"
    mixed = open_source(plant(tmp_path / "mixed", *files, "x.png", "y.png", "z.png"))
    assert not any(record.patient_known for record in mixed.records)
    assert any(note.startswith("20 file names of 23 like PATIENT_NUMBER") for note in mixed.notes)
    assert NEARLY_ALL > 20 / 23


def test_grazpedwri_file_names(tmp_path: Path) -> None:
    plant(tmp_path, "0001_1297860395_01_WRI-L1_M014.png", "0001_1297860395_02_WRI-L2_M014.png")
    plant(tmp_path, "0002_1297860435_01_WRI-R1_F009.png")
    assert [(r.patient, r.study) for r in open_source(tmp_path).records] == [
        ("0001", "0001/01"),
        ("0001", "0001/02"),
        ("0002", "0002/01"),
    ]


@pytest.mark.parametrize("dates", [("20210304", "20211105"), ("2021-03-04", "2022-11-05")])
def test_dates_below_folders_of_patients(tmp_path: Path, dates: tuple[str, str]) -> None:
    plant(tmp_path, *(f"A{n}/{date}/{film}.png" for n in (17, 18) for date in dates for film in "xy"))
    source = open_source(tmp_path)
    assert {(r.patient, r.study) for r in source.records} == {
        (f"A{n}", f"A{n}/{date}") for n in (17, 18) for date in dates
    }
    assert "patients are read from folders PATIENT/DATE: 2 patients" in source.notes


@pytest.mark.parametrize("tops", [("images",), ("ward", "clinic"), ("train", "test")])
def test_dates_below_other_folders_are_no_patients(tmp_path: Path, tops: tuple[str, ...]) -> None:
    plant(tmp_path, *(f"{top}/2021-03-0{day}/{day}.png" for top in tops for day in (1, 2)))
    assert not any(record.patient_known for record in open_source(tmp_path).records)


def test_days_that_are_none_are_no_dates(tmp_path: Path) -> None:
    plant(tmp_path, "A17/20211304/x.png", "A18/20211304/y.png")
    assert not any(record.patient_known for record in open_source(tmp_path).records)


def test_new_films_keep_what_is_known(tmp_path: Path) -> None:
    plant(tmp_path, "patient3_x.png", "y.png", "d/sub-01_a.png")
    found = by_path(open_films([tmp_path / "patient3_x.png", tmp_path / "y.png", tmp_path / "d"]))
    assert {path: record.patient_known for path, record in found.items()} == {
        "patient3_x.png": True,
        "y.png": False,
        "d/sub-01_a.png": True,
    }


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PatientID": " 4711 ", "StudyInstanceUID": "1.2.3"}, ("4711", "1.2.3")),
        ({"PatientID": "4711", "IssuerOfPatientID": "West"}, ("West:4711", None)),
        ({"PatientID": "0815", "AccessionNumber": "A9"}, ("0815", "A9")),
        ({"PatientID": "ANON0042"}, ("ANON0042", None)),
        ({"PatientName": "Doe^Jane"}, (None, None)),
        ({}, (None, None)),
    ]
    + [
        ({"PatientID": text, "StudyInstanceUID": text}, (None, None))
        for text in (
            *(
                "",
                " ",
                "0",
                "0000",
                "ANONYMOUS",
                "anonymized",
                "Anon",
                "ANON_000",
                "unknown",
                "None",
                "N/A",
                "xxxx",
                "XX-XX",
            ),
            *("null", "NaN", "-", "^", "PatientID", "removed", "TEST", "\0"),
        )
    ],
)
def test_headers(tags: dict[str, str], expected: tuple[str | None, str | None]) -> None:
    assert identity_from_tags(tags) == expected


def test_wording() -> None:
    assert patients_note(0, 3) is None
    assert str(patients_note(1, 3)).startswith("patients unknown for 1 of 3 films: each of these films counts as one")
