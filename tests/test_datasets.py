"""Label files of public data sets, drawn as their documentation describes them: labels, splits, patients, boxes."""

import json
from pathlib import Path

import pytest

from preprocessing.sources import open_films, open_source

from .source_trees import by_path, manifest, paths, plant, refused

CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)


def chexpert_line(film: str, **values: str) -> str:
    cells = {name: "" for name in CHEXPERT.strip().split(",")} | {
        "Path": f"CheXpert-v1.0-small/{film}",
        "Sex": "Female",
    }
    return ",".join((cells | {name.replace("_", " "): value for name, value in values.items()}).values()) + "\n"


def chexpert(root: Path) -> Path:
    films = [f"train/patient0000{n}/study1/view1_frontal.jpg" for n in range(1, 6)]
    plant(root, *films, "valid/patient64541/study1/view1_frontal.jpg", "train/patient00009/study1/view1_frontal.jpg")
    lines = [
        chexpert_line(films[0], No_Finding="1.0", Support_Devices="1.0"),
        chexpert_line(films[1], Edema="1.0", Fracture="-1.0", Cardiomegaly="1.0"),
        chexpert_line(films[2], Pneumonia="-1.0"),
        chexpert_line(films[3]),
        chexpert_line(films[4], No_Finding="1.0", Edema="0.0"),
        chexpert_line("train/patient77777/study1/view1_frontal.jpg", No_Finding="1.0"),
    ]
    manifest(root, CHEXPERT + "".join(lines), "train.csv")
    valid = chexpert_line("valid/patient64541/study1/view1_frontal.jpg", Cardiomegaly="1.0")
    manifest(root, CHEXPERT + valid, "valid.csv")
    return root


def test_chexpert(tmp_path: Path) -> None:
    source = open_source(chexpert(tmp_path / "CheXpert-v1.0-small"))
    assert source.kind == "chexpert"
    assert [(r.patient, r.label, r.finding, r.split) for r in source.records] == [
        ("patient00001", 0, "", "train"),
        ("patient00002", 1, "Cardiomegaly, Edema", "train"),
        ("patient00003", -1, "", "train"),
        ("patient00004", -1, "", "train"),
        ("patient00005", 0, "", "train"),
        ("patient64541", 1, "Cardiomegaly", "test"),
    ]
    first = source.records[0]
    assert first.study == "patient00001/study1" and first.patient_known
    assert dict(first.columns) == {"No Finding": "1.0", "Sex": "Female", "Support Devices": "1.0"}
    assert source.notes == (
        "labels from train.csv, valid.csv (chexpert): 2 films normal, 2 films abnormal, 2 films of unknown label",
        "valid is the test split, as there is no test.csv",
        "2 of unknown label: uncertain, or nothing mentioned",
        "1 film of train.csv, valid.csv not there, such as "
        "CheXpert-v1.0-small/train/patient77777/study1/view1_frontal.jpg",
        "1 film not in train.csv, valid.csv: left out",
    )


def test_a_label_file_named_by_the_user(tmp_path: Path) -> None:
    source = open_source(chexpert(tmp_path / "c") / "valid.csv")
    assert source.kind == "chexpert" and [r.split for r in source.records] == ["test"]
    assert len(open_films([tmp_path / "c"]).records) == 6


def test_nih(tmp_path: Path) -> None:
    plant(tmp_path, "images_001/images/00000001_000.png", "images_001/images/00000001_001.png")
    plant(tmp_path, "images_002/images/00000002_000.png", "README_CHESTXRAY.pdf")
    lines = [
        "00000001_000.png,Cardiomegaly|Effusion,000,1,058Y,F,PA,2682,2749,.14,.14,\n",
        "00000001_001.png,No Finding,001,1,058Y,F,PA,2894,2729,.14,.14\n",
        "00000002_000.png,No Finding,000,2,081Y,M,AP,2500,2048,.17,.17,\n",
        "00000003_000.png,Hernia,000,3,081Y,M,AP,2500,2048,.17,.17,\n",
    ]
    manifest(tmp_path, NIH + "".join(lines), "Data_Entry_2017_v2020.csv")
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Effusion,225.5,547,86.5,79,,,\n"
    manifest(tmp_path, boxes, "BBox_List_2017.csv")
    manifest(tmp_path, "00000001_000.png\n00000001_001.png\n", "train_val_list.txt")
    manifest(tmp_path, "00000002_000.png\n", "test_list.txt")
    source = open_source(tmp_path)
    assert source.kind == "nih"
    assert [(r.patient, r.study, r.label, r.finding, r.split) for r in source.records] == [
        ("1", "1/000", 1, "Cardiomegaly|Effusion", "train"),
        ("1", "1/001", 0, "", "train"),
        ("2", "2/000", 0, "", "test"),
    ]
    assert source.records[0].lesion_boxes == ((225.5, 547, 312, 626),) and all(r.patient_known for r in source.records)
    assert dict(source.records[0].columns)["Patient Gender"] == "F"
    assert "1 film of BBox_List_2017.csv, Data_Entry_2017_v2020.csv" in " ".join(source.notes)
    assert paths(source.where(["View Position=AP"])) == ["images_002/images/00000002_000.png"]


def rsna(root: Path) -> Path:
    plant(root, *(f"stage_2_train_images/{name}.dcm" for name in ("a1", "b2", "c3")), "stage_2_test_images/d4.dcm")
    text = (
        "patientId,x,y,width,height,Target\na1,,,,,0\nb2,264.0,152.0,213.0,379.0,1\nb2,562.0,152,256,453,1\nc3,,,,,0\n"
    )
    return manifest(root, text, "stage_2_train_labels.csv")


def test_rsna(tmp_path: Path) -> None:
    unsure = open_source(rsna(tmp_path))
    assert [record.label for record in unsure.records] == [-1, 1, -1]
    assert "Target 0 is no opacity, not a normal film: unknown without stage_2_detailed_class_info.csv" in unsure.notes
    classes = "patientId,class\na1,Normal\nb2,Lung Opacity\nb2,Lung Opacity\nc3,No Lung Opacity / Not Normal\n"
    manifest(tmp_path, classes, "stage_2_detailed_class_info.csv")
    source = open_source(tmp_path)
    assert [(r.label, r.finding) for r in source.records] == [
        (0, ""),
        (1, "Lung Opacity"),
        (1, "No Lung Opacity / Not Normal"),
    ]
    assert source.records[1].lesion_boxes == ((264, 152, 477, 531), (562, 152, 818, 605))
    assert not any(record.patient_known for record in source.records)
    assert "1 film not in stage_2_detailed_class_info.csv, stage_2_train_labels.csv: left out" in source.notes


VINDR = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
READINGS = [
    *(f"f1,R{n},No finding,,,,\n" for n in (1, 2, 3)),
    "f2,R1,Cardiomegaly,10,20,30.5,40\n",
    "f2,R1,Pleural effusion,1,2,3,4\n",
    "f2,R2,Cardiomegaly,11,20,30,40\n",
    "f2,R3,No finding,,,,\n",
    "f3,R1,Nodule/Mass,5,5,9,9\n",
    *(f"f3,R{n},No finding,,,,\n" for n in (2, 3)),
]


def test_vindr_from_physionet(tmp_path: Path) -> None:
    plant(tmp_path, *(f"train/f{n}.dicom" for n in (1, 2, 3)), "test/t1.dicom", "test/t2.dicom")
    (tmp_path / "annotations").mkdir()
    manifest(tmp_path / "annotations", VINDR + "".join(READINGS), "annotations_train.csv")
    test = "image_id,class_name,x_min,y_min,x_max,y_max\nt1,No finding,,,,\nt2,No finding,,,,\n"
    manifest(tmp_path / "annotations", test, "annotations_test.csv")
    labels = "image_id,Aortic enlargement,COPD,No finding\nt1,0,0,1\nt2,0,1,0\n"
    manifest(tmp_path / "annotations", labels, "image_labels_test.csv")
    found = by_path(open_source(tmp_path))
    assert {path: (r.label, r.finding, r.split) for path, r in found.items()} == {
        "train/f1.dicom": (0, "", "train"),
        "train/f2.dicom": (1, "Cardiomegaly, Pleural effusion", "train"),
        "train/f3.dicom": (-1, "", "train"),
        "test/t1.dicom": (0, "", "test"),
        "test/t2.dicom": (1, "COPD", "test"),
    }
    assert found["train/f2.dicom"].lesion_boxes == ((10, 20, 30.5, 40), (1, 2, 3, 4), (11, 20, 30, 40))


def test_vindr_as_the_challenge_has_it(tmp_path: Path) -> None:
    plant(tmp_path, *(f"train/f{n}.dicom" for n in (1, 2, 3)))
    lines = []
    for line in READINGS:
        film, reader, name, *edges = line.strip().split(",")
        lines.append(",".join([film, name, "14", reader, *edges]))
    manifest(tmp_path, "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n" + "\n".join(lines), "train.csv")
    source = open_source(tmp_path)
    assert source.kind == "vindr" and [(r.label, r.split) for r in source.records] == [(0, ""), (1, ""), (-1, "")]
    assert "1 of unknown label: radiologists disagree" in source.notes


def test_medianomaly(tmp_path: Path) -> None:
    plant(tmp_path, *(f"images/{name}.png" for name in "abcdef"))
    content = {
        "train": {"0": ["a.png", "gone.png"], "unlabeled": {"0": ["b.png"], "1": ["c.png"]}},
        "test": {"0": ["d.png"], "1": ["images/e.png"]},
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    source = open_source(tmp_path)
    assert source.kind == "medianomaly"
    assert [(r.label, r.split) for r in source.records] == [
        (0, "train"),
        (0, "train"),
        (1, "train"),
        (0, "test"),
        (1, "test"),
    ]
    assert source.notes[1:] == ("1 film of data.json not there, such as gone.png", "1 film not in data.json: left out")
    (tmp_path / "data.json").write_text(json.dumps({"train": {"0": ["a.png"]}, "test": {"1": ["a.png"]}}))
    assert "data.json: a.png is in two lists" in refused(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"train": {"2": ["a.png"]}}))
    assert "data.json, train: '2' is no list of file names" in refused(tmp_path)


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "{", '{"train": [1]}'])
def test_any_other_data_json_says_nothing(tmp_path: Path, content: str) -> None:
    plant(tmp_path, "a.png")
    (tmp_path / "data.json").write_text(content)
    assert open_source(tmp_path).kind == "folder"


def mura(root: Path, *studies: str) -> Path:
    return plant(root, *(f"train/XR_HAND/patient0000{n}/{study}/image1.png" for n, study in enumerate(studies, 1)))


def test_mura_label_files_agree_with_the_folders_and_stand_in_for_them(tmp_path: Path) -> None:
    lines = [
        f"MURA-v1.1/train/XR_HAND/patient0000{n}/study1_{word}/,{label}\n"
        for n, word, label in ((1, "positive", 1), (2, "negative", 0), (3, "positive", 1))
    ]
    mura(tmp_path, "study1_positive", "study1", "study1")
    manifest(tmp_path, "".join(lines), "train_labeled_studies.csv")
    source = open_source(tmp_path)
    assert source.kind == "mura" and [record.label for record in source.records] == [1, 0, 1]
    manifest(tmp_path, lines[0].replace(",1", ",0"), "train_labeled_studies.csv")
    assert "train_labeled_studies.csv, line 1: label 0, but the folder of" in refused(tmp_path)
    manifest(tmp_path, "train/XR_HAND/patient1/study1,2\n", "train_labeled_studies.csv")
    assert "line 1: a study's folder and its label, 0 or 1, are expected" in refused(tmp_path)


def test_label_files_without_their_films(tmp_path: Path) -> None:
    root = plant(chexpert(tmp_path / "c") / "elsewhere", "x.png")
    manifest(root, CHEXPERT + chexpert_line("train/patient1/study1/a.jpg", No_Finding="1"), "train.csv")
    assert "none of the 1 film of train.csv is there, such as 'CheXpert-v1.0-small/train/" in refused(root)


def test_numbers_that_are_none_are_refused_with_their_line(tmp_path: Path) -> None:
    rsna(tmp_path)
    manifest(tmp_path, "patientId,x,y,width,height,Target\na1,,,,,0\nb2,1,2,wide,4,1\n", "stage_2_train_labels.csv")
    assert "stage_2_train_labels.csv, line 3: 'wide' is not a number" in refused(tmp_path)


def test_two_films_of_one_name(tmp_path: Path) -> None:
    rsna(tmp_path)
    plant(tmp_path, "copy/a1.png")
    assert "a1 is copy/a1.png or stage_2_train_images/a1.dcm? leave one of them out" in refused(tmp_path)
