"""What folders say of labels and splits: known words are read, what only looks like classes is asked about."""

from pathlib import Path

import pytest

from preprocessing.sources import open_films, open_source

from .source_trees import by_path, paths, plant, refused


@pytest.mark.parametrize(
    "names", [("normal", "abnormal"), ("NORMAL", "PNEUMONIA"), ("good", "crack"), ("negative", "positive")]
)
def test_class_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    good, bad = names
    source = open_source(plant(tmp_path, f"{good}/a.png", f"{bad}/deep/b.jpeg", f"{good}/readme.txt"))
    assert source.kind == "classes" and "passed over 1 file that is no film: 1 .txt" in source.notes
    found = by_path(source)
    assert found[f"{good}/a.png"].label == 0 and found[f"{good}/a.png"].finding == ""
    finding = "" if bad in ("abnormal", "positive") else bad
    assert found[f"{bad}/deep/b.jpeg"].label == 1 and found[f"{bad}/deep/b.jpeg"].finding == finding
    assert len({record.patient for record in source.records}) == 2


def test_class_folders_with_splits_and_truth(tmp_path: Path) -> None:
    plant(tmp_path, "train/good/1.png", "test/good/1.png", "test/crack/2.png", "ground_truth/crack/2_mask.png")
    found = by_path(open_source(tmp_path))
    assert [found[path].split for path in sorted(found)] == ["test", "test", "train"]
    assert found["test/crack/2.png"].anomaly_mask == "ground_truth/crack/2_mask.png"
    for spelling in ("val", "valid", "validation"):
        other = plant(
            tmp_path / spelling / "x", "train/normal/1.png", f"{spelling}/normal/2.png", "Test/abnormal/3.png"
        )
        assert sorted(record.split for record in open_source(other).records) == ["test", "train", "val"]
    lone = plant(tmp_path / "lone", "train/normal/1.png", "train/abnormal/2.png")
    assert {record.split for record in open_source(lone).records} == {""}
    held_out = plant(tmp_path / "held", "test/normal/1.png", "test/abnormal/2.png")
    assert {record.split for record in open_source(held_out).records} == {"test"}


def test_patients_are_read_from_names(tmp_path: Path) -> None:
    plant(tmp_path, "normal/patient7_1.png", "abnormal/patient7_2.png", "normal/patient71.png", "normal/x.png")
    plant(tmp_path, "normal/Patient9/study3/a.png", "normal/outpatient5.png")
    found = by_path(open_source(tmp_path))
    assert found["normal/patient7_1.png"].patient == found["abnormal/patient7_2.png"].patient == "patient7"
    assert found["normal/patient71.png"].patient == "patient71"
    assert found["normal/x.png"].patient == found["normal/x.png"].study == "normal/x.png"
    assert found["normal/Patient9/study3/a.png"].study == "Patient9/study3"
    assert found["normal/outpatient5.png"].patient == "normal/outpatient5.png"
    plant(tmp_path / "s", "train/normal/patient1_a.png", "test/normal/patient1_b.png")
    assert "patient 'patient1' is in two splits" in refused(tmp_path / "s")


def test_films_outside_class_folders_are_refused(tmp_path: Path) -> None:
    plant(tmp_path / "a", "normal/a.png", "abnormal/b.png", "stray.png")
    assert "stray.png: lies outside the class folders" in refused(tmp_path / "a")
    plant(tmp_path / "b", "train/normal/a.png", "test/normal/b.png", "extra/normal/c.png")
    assert "extra/normal/c.png: lies outside train, val or test" in refused(tmp_path / "b")
    assert len(open_films([tmp_path / "a"]).records) == 3


def test_class_folders_too_deep_are_not_taken_for_normal_films(tmp_path: Path) -> None:
    plant(tmp_path, "one/normal/a.png", "two/abnormal/b.png")
    assert "one/normal: a class folder, but neither at the top" in refused(tmp_path)


# ---- what names mean


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [
        ("Normals", "Abnormals"),
        ("01_normal", "02_abnormal"),
        ("Normal images", "COVID-19"),
        ("negative", "positive"),
        ("no_findings", "findings"),
        ("NoFinding", "Lung_Opacity"),
        ("healthy", "Viral Pneumonia"),
        ("ok", "nok"),
        ("controls", "osteoporosis"),
        ("hand normal", "hand fractured"),
        ("not abnormal", "non-normal"),
        ("normal1", "abnormal1"),
    ],
)
def test_known_words_in_any_spelling(tmp_path: Path, normal: str, abnormal: str) -> None:
    source = open_source(plant(tmp_path, f"{normal}/a.png", f"{normal}/b.png", f"{abnormal}/c.png"))
    assert {record.path.split("/")[0]: record.label for record in source.records} == {normal: 0, abnormal: 1}
    (said,) = source.notes
    assert f"{normal}/: 2 films normal" in said and f"{abnormal}/: 1 film abnormal" in said


@pytest.mark.parametrize(
    "names",
    [
        ("0", "1"),
        ("COVID", "non-COVID"),
        ("fracture", "no fracture"),
        ("benign", "malignant"),
        ("yes", "no"),
        ("class A", "class B"),
        ("KL0", "KL1", "KL2"),
        ("Osteoid", "Osteoma"),
        ("normal", "rest"),
        ("normal", "2021-03-04"),
        ("good", "todo later"),
    ],
)
def test_what_looks_like_classes_and_is_not_known_is_asked(tmp_path: Path, names: tuple[str, ...]) -> None:
    plant(tmp_path, *(f"{name}/{number}.png" for name in names for number in "ab"))
    message = refused(tmp_path)
    assert f"folders {', '.join(sorted(names))} look like classes; say which is normal" in message
    told = open_source(tmp_path, normal=[names[0]])
    assert {record.path.split("/")[0]: record.label for record in told.records} == {names[0]: 0} | dict.fromkeys(
        names[1:], 1
    )
    assert {record.label for record in open_source(tmp_path, normal=["*"]).records} == {0}
    assert len(open_films([tmp_path]).records) == len(open_source(tmp_path, strict=False).records) == 2 * len(names)


@pytest.mark.parametrize(
    "folders",
    [
        ("2021-03-04", "2021-03-05"),
        ("P001", "P002"),
        ("Hospital West", "Hospital East"),
        ("site A", "site B"),
        ("hand", "wrist"),
        ("AP", "lateral"),
        ("patient1", "patient2"),
        ("1.2.840.1", "1.2.840.2"),
        ("scan 1", "scan 2"),
        ("a/b", "a/c/d", "e"),
        ("images", "misc"),
    ],
)
def test_mere_folders_of_normal_films_stay_that(tmp_path: Path, folders: tuple[str, ...]) -> None:
    source = open_source(plant(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in "xy")))
    assert source.kind == "folder" and {record.label for record in source.records} == {0}


def test_many_folders_are_no_classes(tmp_path: Path) -> None:
    names = [f"{first}{second}" for first in "abcdef" for second in "ghij"]
    assert open_source(plant(tmp_path, *(f"{name}/{n}.png" for name in names for n in "12"))).kind == "folder"


def test_unlabelled_masks_and_other_pictures_beside_normal(tmp_path: Path) -> None:
    asides = ("unlabelled", "New", "unsorted")
    pictures = ("masks", "Thumbnails", "previews", "segmentations", "overlays", "labelsTr")
    plant(tmp_path, "normal/a.png", "abnormal/b.png", *(f"{name}/c.png" for name in (*asides, *pictures)))
    source = open_source(tmp_path)
    assert {record.path.split("/")[0]: record.label for record in source.records} == {
        "normal": 0,
        "abnormal": 1,
        **dict.fromkeys(asides, -1),
    }
    notes = " ".join(source.notes)
    assert "unlabelled/: 1 film of unknown label" in notes
    assert "masks/: 1 mask" in notes and "Thumbnails/: 1 picture beside films" in notes


def test_films_in_a_folder_of_unlabelled_ones_alone_are_not_assumed_to_be_normal(tmp_path: Path) -> None:
    source = open_source(plant(tmp_path, "unlabelled/a.png", "unlabelled/b.png"))
    assert {record.label for record in source.records} == {-1}
    assert source.notes == ("unlabelled/: films of unknown label",)


def test_findings_are_taken_from_folders_at_any_depth(tmp_path: Path) -> None:
    plant(tmp_path, "normal/a.png", "abnormal/fracture/b.png", "abnormal/c.png")
    found = by_path(open_source(tmp_path))
    assert found["abnormal/fracture/b.png"].finding == "fracture" and found["abnormal/c.png"].finding == ""
    plant(tmp_path, "normal/fracture/d.png")
    assert "normal/fracture/d.png: lies in folders that contradict each other" in refused(tmp_path)


def test_names_that_the_user_gives(tmp_path: Path) -> None:
    plant(tmp_path, "Osteoid/a.png", "Osteoma/b.png", "unlabelled/c.png", "unlabelled/d.png")
    assert "--normal nobody: no folder of that name; there are: Osteoid, Osteoma" in refused(
        tmp_path, normal=["nobody"]
    )
    source = open_source(tmp_path, normal=["osteoid"], abnormal=["OSTEOM*"])
    assert [(r.label, r.finding) for r in source.records] == [(0, ""), (1, "Osteoma"), (-1, ""), (-1, "")]


def test_the_name_of_the_source_itself(tmp_path: Path) -> None:
    source = open_source(plant(tmp_path / "abnormal", "a.png", "b.png"))
    assert {record.label for record in source.records} == {1}
    assert "the folder is called abnormal: its films are abnormal" in source.notes


# ---- splits


@pytest.mark.parametrize(
    "layout", ["{cls}/{split}/{name}.png", "{split}/{cls}/{name}.png", "{split}/{cls}/p1/{name}.png"]
)
def test_splits_above_and_below_classes(tmp_path: Path, layout: str) -> None:
    for cls in ("normal", "effusion"):
        for split in ("Training", "testing"):
            plant(tmp_path, layout.format(cls=cls, split=split, name=cls[0] + split))
    records = open_source(tmp_path).records
    assert sorted((r.label, r.split) for r in records) == [(0, "test"), (0, "train"), (1, "test"), (1, "train")]


def test_splits_without_classes_are_kept(tmp_path: Path) -> None:
    plant(tmp_path, "train/a.png", "val/b.png", "test/x/c.png")
    source = open_source(tmp_path)
    assert source.kind == "folder" and [r.split for r in source.records] == ["test", "train", "val"]


# ---- layouts of public data sets


def test_mvtec_with_its_ground_truth(tmp_path: Path) -> None:
    """Bergmann et al. 2019: train/good, test/DEFECT, ground_truth/DEFECT/NAME_mask.png; defects have any name."""
    plant(tmp_path, "train/good/000.png", "test/good/000.png", "test/wobbly/000.png", "test/squashed/001.png")
    plant(tmp_path, "ground_truth/wobbly/000_mask.png", "ground_truth/squashed/001.png")
    found = by_path(open_source(tmp_path))
    assert len(found) == 4 and found["test/wobbly/000.png"].finding == "wobbly"
    assert found["test/wobbly/000.png"].anomaly_mask == "ground_truth/wobbly/000_mask.png"
    assert found["test/squashed/001.png"].anomaly_mask == "ground_truth/squashed/001.png"
    assert found["test/good/000.png"].anomaly_mask is None


def test_bmad_with_labels_of_lesions(tmp_path: Path) -> None:
    """Bao et al. 2024: train/good/img, valid and test with good and Ungood, and label beside img."""
    plant(
        tmp_path, "train/good/img/1.png", "valid/good/img/2.png", "valid/Ungood/img/3.png", "valid/Ungood/label/3.png"
    )
    plant(tmp_path, "test/good/img/4.png", "test/good/label/4.png", "test/Ungood/img/5.png", "test/Ungood/label/5.png")
    records = open_source(tmp_path).records
    assert {(r.path, r.label, r.split, r.finding, r.anomaly_mask) for r in records} == {
        ("train/good/img/1.png", 0, "train", "", None),
        ("valid/good/img/2.png", 0, "val", "", None),
        ("valid/Ungood/img/3.png", 1, "val", "", "valid/Ungood/label/3.png"),
        ("test/good/img/4.png", 0, "test", "", None),
        ("test/Ungood/img/5.png", 1, "test", "", "test/Ungood/label/5.png"),
    }


def test_covid_19_radiography_database(tmp_path: Path) -> None:
    plant(tmp_path, "COVID/images/COVID-1.png", "COVID/masks/COVID-1.png", "Normal/images/Normal-1.png")
    plant(tmp_path, "Normal/masks/Normal-1.png", "Viral Pneumonia/images/v.png", "COVID.metadata.xlsx")
    source = open_source(tmp_path)
    assert paths(source) == ["COVID/images/COVID-1.png", "Normal/images/Normal-1.png", "Viral Pneumonia/images/v.png"]
    assert [record.label for record in source.records] == [1, 0, 1]
