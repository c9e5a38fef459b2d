"""Manifests as pandas, Excel and hospitals write them: read where they can mean one thing, else refused."""

from pathlib import Path

import pytest

from preprocessing import InputError
from preprocessing.sources import Record, open_source
from preprocessing.sources.paths import safe_name

from .source_trees import FILM, manifest, paths, plant, refused


def test_manifest_columns(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "sub/b.png", "c.odd", "m.png", "t.nii")
    plant(tmp_path, "SYNTHETIC.txt")
    lines = [
        "Split,label ,path,patient,study,finding,difficulty,box,mask,anomaly_mask,age",
        'train,Normal,./sub/b.png,p1,s1,"none, really",,,,,7',
        "",
        'valid,1,a.png,p2,p2/s1,crack,hard,"1 2.5 30 40",m.png,t.nii,8',
        "test,,c.odd,,,,,,,,9",
    ]
    text = "\r\n".join(lines)
    source = open_source(manifest(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert source.kind == "manifest" and source.name == safe_name(tmp_path.name) and source.synthetic
    assert source.records == [
        Record(
            *("a.png", "p2", "p2/s1", 1, "val", "crack", "hard", (1.0, 2.5, 30.0, 40.0), "m.png", "t.nii"),
            patient_known=True,
            columns=(("age", "8"),),
        ),
        Record("c.odd", "c.odd", "c.odd", -1, "test", columns=(("age", "9"),)),
        Record("sub/b.png", "p1", "p1/s1", 0, "train", "none, really", patient_known=True, columns=(("age", "7"),)),
    ]
    assert source.read("t.nii") == FILM + b"t.nii"
    named = open_source(manifest(tmp_path, "path,label\na.png,0\n", "hands 2.csv") / "hands 2.csv")
    assert named.name == "hands-2" and paths(named) == ["a.png"]
    with pytest.raises(InputError, match="not a file of this source"):
        named.read("sub/b.png")


def test_manifest_patients_default_to_studies_and_films(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png", "c.png")
    source = open_source(manifest(tmp_path, "path,label,study\na.png,0,s\nb.png,0,s\nc.png,1,\n"))
    assert [(r.patient, r.study) for r in source.records] == [("s", "s"), ("s", "s"), ("c.png", "c.png")]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("film no,label\n7,0\n", 1, "no column 'path'; there are: film no, label (separated by commas)"),
        ("place;label\nleft;0\n", 1, "no column 'path'; there are: place, label (separated by semicolons)"),
        ("path,finding\na.png,0\n", 1, "no column 'label'"),
        ("path,label,Label\na.png,0,0\n", 1, "column 'label' occurs 2 times"),
        ("path,label\na.png,0\nb.png,2\n", 3, "label '2'; there are: 0, normal"),
        ("path,label\n\n\na.png,0.5\n", 4, "label '0.5'"),
        ("path,label\na.png,none\n", 2, "say which it is: --normal none or --abnormal none"),
        ("path,label\na.png,grade 3\n", 2, "--normal 'grade 3' or --abnormal 'grade 3'"),
        ("path,label,split\na.png,0,fold1\n", 2, "split 'fold1'"),
        ("path,label\n,0\n", 2, "an empty path"),
        ("path,label\n../out.png,0\n", 2, "leads out of the manifest's folder"),
        ("path,label\nsub/../a.png,0\n", 2, "leads out"),
        ("path,label\n/etc/passwd,0\n", 2, "leads out"),
        ("path,label\nC:/a.png,0\n", 2, "leads out"),
        ("path,label\nsub\\..\\a.png,0\n", 2, "leads out"),
        ("path,label\nC:\\a.png,0\n", 2, "leads out"),
        ("path,label\n\\\\server\\a.png,0\n", 2, "leads out"),
        ("path,label\na.png,0\nb.png,0\n./a.png,1\n", 4, "a.png was given in line 2 already"),
        ("path,label\na.png\n", 2, "1 cell, the heading has 2"),
        ("path,label\na.png,0,1\n", 2, "3 cells"),
        ('path,label\n"a.png,0\n', 2, "unexpected end of data"),
        ("path,label\n" + "a" * 200_000 + ",0\n", 2, "field"),
        ("path,label,box\na.png,0,1 2 3\n", 2, "box '1 2 3'; write four numbers"),
        ("path,label,box\na.png,0,1 2 x 4\n", 2, "write four numbers"),
        ("path,label,box\na.png,0,5 2 3 4\n", 2, "x0 < x1"),
        ("path,label,box\na.png,0,-1 2 3 4\n", 2, "x0 < x1"),
        ("path,label,box\na.png,0,1 2 nan 4\n", 2, "x0 < x1"),
        ("path,label,box\na.png,0,1 2 inf 4\n", 2, "x0 < x1"),
        ("path,label,box\na.png,0,1 2 3 4;5 6 7 8\n", 2, "2 boxes in column box, which has the one region"),
        ("path,label,lesion_boxes\na.png,1,1 2 3 4;5 6\n", 2, "lesion_boxes '1 2 3 4;5 6'; write four numbers"),
        ("path,label,lesion_boxes\na.png,0,1 2 3 4\n", 2, "a normal film with lesion_boxes"),
        ("path,label,patinet\na.png,0,p\n", 1, "column 'patinet': did you mean patient?"),
        ("path,label,Paciente\na.png,0,p\n", 1, "column 'Paciente': did you mean patient?"),
        ("path,label,case_id\na.png,0,p\n", 1, "column 'case_id': did you mean patient?"),
        ("path,labl\na.png,0\n", 1, "column 'labl': did you mean label?"),
        ("path,label,patient hash\na.png,0,p\n", 1, "column 'patient hash': did you mean patient?"),
        (
            "path,label,bbox\na.png,0,1 2 3 4\n",
            1,
            "did you mean box (the region to prepare, such as the hand) or lesion",
        ),
        ("path,label,mask_path\na.png,0,b.png\n", 1, "did you mean mask (the foreground) or anomaly_mask"),
        ("path,normal\na.png,0\n", 1, "column 'normal': did you mean label (0 normal, 1 abnormal)"),
        ("path,class,target\na.png,0,1\n", 1, "columns 'class' and 'target': which is the label?"),
        ("filename,filepath,label\na.png,a.png,1\n", 1, "columns 'filepath' and 'filename': which is the path?"),
        (
            "path,label,patient,PatientID\na.png,0,1,x\nb.png,0,1,y\n",
            3,
            "columns 'patient' and 'PatientID' both say the patient, but differ",
        ),
        ("path,label,anomaly_mask\na.png,0,../t.png\n", 2, "anomaly_mask '../t.png' leads out"),
    ],
)
def test_manifest_errors_carry_the_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    root = plant(tmp_path / "m", "a.png", "b.png", "sub/a.png")
    plant(tmp_path, "out.png")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    message = refused(manifest(root, text))
    assert f"manifest.csv, line {line}: " in message and reason in message


@pytest.mark.parametrize("text", ["", "path,label\n", "\n\n"])
def test_manifest_without_films(tmp_path: Path, text: str) -> None:
    assert "manifest.csv: no films in it" in refused(manifest(tmp_path, text))


def test_manifest_encoding_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.png")
    assert "not UTF-8 text at byte 11" in refused(manifest(tmp_path, b"path,label\n\xff.png,0\n"))
    assert "perhaps UTF-16 without a byte order mark" in refused(manifest(tmp_path, "path,label".encode("utf-16-le")))
    assert "damaged UTF-16 text" in refused(manifest(tmp_path, b"\xff\xfepa\x00"))
    monkeypatch.setattr("preprocessing.sources.tables.MAX_MANIFEST_BYTES", 20)
    assert "manifest.csv: more than 20 bytes" in refused(manifest(tmp_path, "path,label\na.png,normal\n"))


def test_manifest_contradictions(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    manifest(tmp_path, "path,label,patient,split\na.png,0,p,train\nb.png,0,p,test\n")
    assert "patient 'p' is in two splits, 'train' (a.png) and 'test' (b.png)" in refused(tmp_path)
    manifest(tmp_path, "path,label,patient,split\na.png,0,p,test\nb.png,0,p,\n")
    assert "patient 'p' is in two splits" in refused(tmp_path)
    manifest(tmp_path, "path,label,patient,study\na.png,0,p,s\nb.png,1,p,s\n")
    assert "study 'p/s' has two labels" in refused(tmp_path)
    manifest(tmp_path, "path,label,patient,study\na.png,0,p,s\nb.png,,p,s\n")
    assert [record.label for record in open_source(tmp_path).records] == [0, -1]


# ---- dialects


@pytest.mark.parametrize(
    "data",
    [
        b"path;label;age\na.png;0;7,5\nb.png;1;\n",
        b"path\tlabel\tage\r\na.png\t0\t7,5\r\nb.png\t1\t\r\n",
        b'sep=;\r\npath;label;age\r\n"a.png";0;7,5\r\nb.png;1;\r\n',
        b'\xef\xbb\xbfpath,label,age\na.png,0,"7,5"\nb.png,1,\n',
        'path,label,age\na.png,0,"7,5"\nb.png,1,\n'.encode("utf-16"),
        b"\xfe\xff" + "path;label;age\na.png;0;7,5\nb.png;1;\n".encode("utf-16-be"),
    ],
)
def test_separators_and_encodings(tmp_path: Path, data: bytes) -> None:
    source = open_source(manifest(plant(tmp_path, "a.png", "b.png"), data))
    assert [(r.path, r.label, r.columns) for r in source.records] == [
        ("a.png", 0, (("age", "7,5"),)),
        ("b.png", 1, ()),
    ]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (("0", "0.0", "0.", "0,0", "False", "normal", "Good", "negative", "healthy", "No Finding", "no_findings"), 0),
        (("1", "1.0", "TRUE", "abnormal", "bad", "positive", "Ungood", "defective"), 1),
        (("", "-1", "-1.0", "nan", "NaN", "NA", "n/a", "null", "unknown", "?", "unlabeled", "uncertain"), -1),
    ],
)
def test_words_for_labels(tmp_path: Path, words: tuple[str, ...], label: int) -> None:
    files = [f"{number}.png" for number in range(len(words))]
    lines = "".join(f'{file},"{word}"\n' for file, word in zip(files, words, strict=True))
    source = open_source(manifest(plant(tmp_path, *files), "path,label\n" + lines))
    assert {record.label for record in source.records} == {label} and {r.finding for r in source.records} == {""}


def test_labels_that_are_findings_and_those_that_the_user_names(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png", "c.png")
    manifest(tmp_path, "path,label\na.png,normal\nb.png,Pleural effusion\nc.png,normal\n")
    assert [(r.label, r.finding) for r in open_source(tmp_path).records] == [(0, ""), (1, "Pleural effusion"), (0, "")]
    manifest(tmp_path, "path,grade,label\na.png,x,KL0\nb.png,y,KL3\nc.png,z,KL1\n")
    assert "label 'KL0'" in refused(tmp_path)
    graded = open_source(tmp_path, normal=["KL0", "kl1"])
    assert [(r.label, r.finding) for r in graded.records] == [(0, ""), (1, "KL3"), (0, "")]
    assert "--normal 'KL 9': no label of that name; there are: KL0, KL1, KL3" in refused(tmp_path, normal=["KL 9"])
    assert [record.label for record in open_source(tmp_path, strict=False).records] == [-1, -1, -1]


def test_yes_and_no_mean_something_under_abnormal_alone(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    manifest(tmp_path, "image,abnormal\na.png,yes\nb.png,no\n")
    assert [record.label for record in open_source(tmp_path).records] == [1, 0]
    assert "label 'yes'" in refused(manifest(tmp_path, "image,label\na.png,yes\nb.png,no\n"))


def test_words_for_splits(tmp_path: Path) -> None:
    splits = {
        "training": "train",
        "TRAIN": "train",
        "dev": "val",
        "valid": "val",
        "testing": "test",
        "hold-out": "test",
    }
    files = [f"{number}.png" for number in range(len(splits) + 1)]
    lines = "".join(f"{file},0,{word}\n" for file, word in zip(files, [*splits, "nan"], strict=True))
    source = open_source(manifest(plant(tmp_path, *files), "path,label,split\n" + lines))
    assert [record.split for record in source.records] == [*splits.values(), ""]


def test_a_split_train_alone_divides_nothing_as_with_folders(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    source = open_source(manifest(tmp_path, "path,label,split\na.png,0,train\nb.png,0,train\n"))
    assert {record.split for record in source.records} == {""}
    assert "split train alone divides nothing, and is left out" in source.notes
    held_out = open_source(manifest(tmp_path, "path,label,split\na.png,0,test\nb.png,0,test\n"))
    assert {record.split for record in held_out.records} == {"test"}


# ---- files


def test_paths_as_windows_and_other_programs_write_them(tmp_path: Path) -> None:
    root = plant(tmp_path / "f", "sub/a.png", "b.PNG", "Caf\u0065\u0301.png", "d\\e.png", "only/here/g.png", "h.dcm")
    lines = [".\\sub\\a.png", f"{root}/b.png", "caf\u00e9.png", "d\\e.png", "g.png", "h"]
    source = open_source(manifest(root, "path,label\n" + "".join(f"{line},0\n" for line in lines)))
    assert {*paths(source)} == {"sub/a.png", "b.PNG", "Caf\u0065\u0301.png", "d\\e.png", "only/here/g.png", "h.dcm"}
    assert source.notes[-2:] == ("2 files found by another spelling", "2 files found by name alone")
    assert all(source.read(path).startswith(FILM) for path in paths(source))
    assert f"path '{tmp_path}/x.png' leads out" in refused(manifest(root, f"path,label\n{tmp_path}/x.png,0\n"))


def test_paths_with_the_folders_above_are_found_by_their_end(tmp_path: Path) -> None:
    plant(tmp_path / "f", "images/a.png", "images/b.png")
    source = open_source(manifest(tmp_path / "f", "path,label\ndata/f/images/a.png,0\nimages/b.png,1\n"))
    assert paths(source) == ["images/a.png", "images/b.png"] and not any(r.missing for r in source.records)
    assert source.notes[-1] == "1 file found by the end of its path"


def test_a_column_of_which_each_cell_names_a_film(tmp_path: Path) -> None:
    plant(tmp_path, "scans/17.png", "scans/18.png", "7.png")
    source = open_source(manifest(tmp_path, "id,age,label\n17,7,0\n18,8,1\n", "list.csv"))
    assert [(r.path, r.label, r.columns) for r in source.records] == [
        ("scans/17.png", 0, (("age", "7"),)),
        ("scans/18.png", 1, (("age", "8"),)),
    ]
    plant(tmp_path, "8.png")  # now the ages could be films as well
    assert "no column 'path'; there are: id, age, label" in refused(tmp_path / "list.csv")


def test_a_bare_name_that_two_files_have_is_missing(tmp_path: Path) -> None:
    root = plant(tmp_path, "one/a.png", "two/a.png", "b.png")
    source = open_source(manifest(root, "path,label\na.png,0\nb.png,0\n"))
    assert [(record.path, record.missing) for record in source.records] == [("a.png", "no such file"), ("b.png", "")]


def test_films_that_are_not_there_stay_with_the_reason(tmp_path: Path) -> None:
    plant(tmp_path / "out", "x.png")
    root = plant(tmp_path / "f", "a.png", "b.png")
    (root / "link.png").symlink_to(tmp_path / "out" / "x.png")
    text = "path,label,mask,anomaly_mask\na.png,0,,\ngone.png,0,,\nb.png,1,,no.png\nlink.png,0,,\n"
    source = open_source(manifest(root, text))
    assert {record.path: record.missing for record in source.records} == {
        "a.png": "",
        "b.png": "anomaly_mask 'no.png': no such file",
        "gone.png": "no such file",
        "link.png": "no such file",
    }
    assert len(source.listing_hash()) == 64 and source.part(source.records).records == source.records
    missing = refused(manifest(root, "path,label\nx.png,0\ny.png,1\n"))
    assert "none of its 2 films is there with its masks, such as 'x.png': no such file" in missing
    assert "such as 'aaa" in refused(manifest(root, "path,label\n" + "a" * 5_000 + ",0\n"))


def test_lines_repeated_word_for_word_are_read_once(tmp_path: Path) -> None:
    source = open_source(manifest(plant(tmp_path, "a.png"), "path,label\na.png,0\n.\\a.png,0.0\n"))
    assert paths(source) == ["a.png"] and "1 line repeated, read once" in source.notes


# ---- columns


@pytest.mark.parametrize(
    "column", ["PatientID", "patient_id", "Patient ID", "subject", "Subject-ID", "MRN", "participant_id", "pat_id"]
)
def test_other_names_of_the_patient(tmp_path: Path, column: str) -> None:
    plant(tmp_path, "a.png", "b.png", "c.png")
    source = open_source(manifest(tmp_path, f"path,label,{column}\na.png,0,007\nb.png,0,007\nc.png,0,\n"))
    assert [(r.patient, r.patient_known) for r in source.records] == [("007", True), ("007", True), ("c.png", False)]
    assert f"manifest.csv: patient from column {column}" in source.notes


def test_placeholders_are_no_patient(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png", "c.png", "d.png")
    source = open_source(
        manifest(tmp_path, "path,label,patient\na.png,0,Anonymous\nb.png,0,ANONYMOUS\nc.png,0,0\nd.png,0,0\n")
    )
    assert [(r.patient, r.patient_known) for r in source.records[:2]] == [("a.png", False), ("b.png", False)]
    assert [(r.patient, r.patient_known) for r in source.records[2:]] == [("0", True)] * 2


@pytest.mark.parametrize("column", ["study_id", "StudyInstanceUID", "exam", "Accession Number", "session"])
def test_other_names_of_the_study(tmp_path: Path, column: str) -> None:
    plant(tmp_path, "a.png", "b.png")
    both = open_source(manifest(tmp_path, f"path,label,subject,{column}\na.png,0,p,1.2\nb.png,0,p,1.3\n"))
    assert [(r.patient, r.study) for r in both.records] == [("p", "p/1.2"), ("p", "p/1.3")]
    alone = open_source(manifest(tmp_path, f"path,label,{column}\na.png,0,1.2\nb.png,0,1.2\n"))
    assert [(r.patient, r.study, r.patient_known) for r in alone.records] == [("1.2", "1.2", False)] * 2
    assert "manifest.csv: films without a patient: each study counts as one patient" in alone.notes


def test_columns_that_say_the_same_of_patients_agree(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    text = "path,label,patient,PatientID,study,StudyInstanceUID\na.png,0,1,x,s,1.2\nb.png,0,2,y,t,1.3\n"
    assert [r.patient for r in open_source(manifest(tmp_path, text)).records] == ["1", "2"]


def test_patients_are_read_from_paths_where_there_is_no_column(tmp_path: Path) -> None:
    plant(tmp_path, "patient1/study1/a.png", "patient1/study2/b.png")
    text = "path,label\npatient1/study1/a.png,0\npatient1/study2/b.png,1\n"
    assert {record.patient for record in open_source(manifest(tmp_path, text)).records} == {"patient1"}


def test_every_other_column_is_kept_as_it_is(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    text = ",path,label,Region,class,patient age,study_date,subset\n0,a.png,0,Hand,x,40Y,2020,A\n1,b.png,1,,y,,,B\n"
    first, second = open_source(manifest(tmp_path, text)).records
    assert first.columns == (
        ("Region", "Hand"),
        ("class", "x"),
        ("patient age", "40Y"),
        ("study_date", "2020"),
        ("subset", "A"),
    )
    assert second.columns == (("class", "y"), ("subset", "B")) and {first.split, second.split} == {""}


def test_boxes_of_hands_and_of_lesions_are_two_columns(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    text = "path,label,box,lesion boxes\na.png,1,[1, 2, 30, 40],1 2 3 4;5 6 7.5 8;\nb.png,0,,\n"
    text = text.replace("[1, 2, 30, 40]", '"[1, 2, 30, 40]"')
    first, second = open_source(manifest(tmp_path, text)).records
    assert first.box == (1, 2, 30, 40) and first.lesion_boxes == ((1, 2, 3, 4), (5, 6, 7.5, 8))
    assert (second.box, second.lesion_boxes) == (None, ())


# ---- tables of other names beside the films


def test_a_table_beside_the_films_is_a_manifest(tmp_path: Path) -> None:
    plant(tmp_path, "films/a.png", "films/b.png", "films/c.png")
    manifest(tmp_path, "filename;diagnosis;site\na.png;normal;x\nb.png;fracture;y\n", "list.csv")
    source = open_source(tmp_path)
    assert source.kind == "manifest" and [(r.path, r.label) for r in source.records] == [
        ("films/a.png", 0),
        ("films/b.png", 1),
    ]
    assert source.notes[0] == "labels from list.csv, which lies beside the films"
    assert "1 film not in list.csv: left out" in source.notes
    manifest(tmp_path, "path,age\na.png,7\n", "ages.csv")
    assert open_source(tmp_path).records == source.records
    manifest(tmp_path, "image,label\na.png,1\n", "second.csv")
    assert "list.csv, second.csv each have paths and labels of films; name the one to read" in refused(tmp_path)
    named = open_source(tmp_path / "second.csv")
    assert [(r.path, r.label) for r in named.records] == [("films/a.png", 1)]


def test_tables_that_name_films_without_a_column_of_labels(tmp_path: Path) -> None:
    plant(tmp_path / "a", "a.png", "b.png")
    manifest(tmp_path / "a", "filename,age\na.png,7\n", "ages.csv")
    manifest(tmp_path / "a", "name,price\nplate,7\n", "stock.csv")
    assert open_source(tmp_path / "a").notes == (
        "ages.csv is not read: it names films, but has no column of labels",
        "stock.csv is not read: it has no column of films",
    )
    for text, name in (("image,normal,pneumonia\na.png,1,0\n", "x.csv"), ("image,code\na.png,1\n", "labels.csv")):
        root = plant(tmp_path / name, "a.png", "b.png")
        assert f"{name}: names films and may label them, but no column is called label" in refused(
            manifest(root, text, name)
        )
        assert len(open_source(root, strict=False).records) == 2
    plant(tmp_path / "labels.csv", "normal/c.png", "abnormal/d.png")
    assert "lies outside the class folders" in refused(tmp_path / "labels.csv")


def test_tables_called_like_splits_are_read_together(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png", "c.png")
    for name, film in (("train", "a"), ("val", "b"), ("test", "c")):
        manifest(tmp_path, f"image,label\n{film}.png,0\n", f"{name}.csv")
    assert [record.split for record in open_source(tmp_path).records] == ["train", "val", "test"]


def test_a_table_that_contradicts_the_folders_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "normal/a.png", "abnormal/b.png")
    manifest(tmp_path, "path,label\nnormal/a.png,0\nabnormal/b.png,1\n", "labels.csv")
    assert [record.label for record in open_source(tmp_path).records] == [1, 0]
    manifest(tmp_path, "path,label\nnormal/a.png,1\nabnormal/b.png,1\n", "labels.csv")
    assert "labels.csv: normal/a.png has label 1, but lies in a folder of label 0" in refused(tmp_path)
