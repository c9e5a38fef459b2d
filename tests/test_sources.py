"""Sources of every kind are read alike from folders and archives; what cannot be meant is refused, named and placed."""

import json
import multiprocessing
import pickle
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import InputError
from preprocessing.sources import Record, Source, open_films, open_source
from preprocessing.sources.paths import natural_key, safe_name

from .source_trees import DICOM, FILM, by_path, manifest, pack, paths, plant, refused


def mura(root: Path, top: str = "XR_HAND/") -> Path:
    return plant(
        root,
        f"{top}patient00002/study1_positive/image1.png",
        f"{top}patient00001/study1_negative/image10.png",
        f"{top}patient00001/study1_negative/image2.png",
        f"{top}patient00001/study2_positive/image1.jpg",
    )


# ---- MURA


def test_mura_tree_is_read_from_its_root_or_any_parent(tmp_path: Path) -> None:
    mura(tmp_path / "a" / "positive things")
    for root, prefix in ((tmp_path / "a" / "positive things" / "XR_HAND", ""), (tmp_path / "a", "")):
        source = open_source(root)
        assert source.kind == "mura" and not source.synthetic and source.notes == ()
        assert [(r.path, r.patient, r.study, r.label, r.split) for r in source.records] == [
            (prefix + "patient00001/study1_negative/image2.png", "patient00001", "patient00001/study1", 0, ""),
            (prefix + "patient00001/study1_negative/image10.png", "patient00001", "patient00001/study1", 0, ""),
            (prefix + "patient00001/study2_positive/image1.jpg", "patient00001", "patient00001/study2", 1, ""),
            (prefix + "patient00002/study1_positive/image1.png", "patient00002", "patient00002/study1", 1, ""),
        ]
    assert open_source(tmp_path / "a" / "positive things" / "XR_HAND").name == "XR_HAND"


def test_mura_root_may_be_a_patient_or_a_study(tmp_path: Path) -> None:
    mura(tmp_path)
    patient = open_source(tmp_path / "XR_HAND" / "patient00001")
    assert patient.kind == "mura" and {record.patient for record in patient.records} == {"patient00001"}
    study = open_source(tmp_path / "XR_HAND" / "patient00002" / "study1_positive")
    assert [(r.path, r.study, r.label) for r in study.records] == [("image1.png", "patient00002/study1", 1)]


def test_mura_splits(tmp_path: Path) -> None:
    both = tmp_path / "MURA-v1.1"
    plant(
        both, "train/XR_HAND/patient1/study1_negative/image1.png", "valid/XR_HAND/patient2/study1_positive/image1.png"
    )
    plant(both, "train_image_paths.csv")
    source = open_source(both)
    assert [record.split for record in source.records] == ["train", "test"]
    assert source.notes == ("valid is the test split, as MURA's test films are not public",)
    assert [record.split for record in open_source(both / "train").records] == [""]
    plant(both, "test/XR_HAND/patient3/study1_negative/image1.png")
    assert [record.split for record in open_source(both).records] == ["test", "train", "val"]
    alone = plant(tmp_path / "alone", "train/XR_HAND/patient1/study1_negative/image1.png")
    assert [record.split for record in open_source(alone).records] == [""]


def test_mura_regions_keep_studies_apart(tmp_path: Path) -> None:
    plant(tmp_path, "XR_HAND/patient1/study1_negative/image1.png", "XR_WRIST/patient1/study1_positive/image1.png")
    source = open_source(tmp_path)
    assert [record.study for record in source.records] == ["XR_HAND/patient1/study1", "XR_WRIST/patient1/study1"]
    assert {record.patient for record in source.records} == {"patient1"}


def test_mura_sidecars(tmp_path: Path) -> None:
    study = "XR_HAND/patient1/study1_positive/"
    plant(tmp_path, *(study + name for name in ("image1.png", "image1_hand.png", "image1_anomaly.png", "image2.png")))
    plant(tmp_path, study + "._image1.png", study + ".hidden/image3.png", study + "cat.png", "XR_HAND/notes.txt")
    (tmp_path / study / "image1.json").write_text(json.dumps({"finding": "fracture", "difficulty": None, "box": [1]}))
    plant(tmp_path, "SYNTHETIC.txt")
    source = open_source(tmp_path)
    assert source.synthetic
    assert "1 film not named as MURA's patient/study/image: left out" in source.notes
    assert "passed over 1 file that is no film: 1 .txt" in source.notes
    first, second = source.records
    assert (first.finding, first.difficulty, first.box, first.mask) == ("fracture", "", None, None)
    assert first.anomaly_mask == study + "image1_anomaly.png" and second.anomaly_mask is None
    assert source.read(study + "image1_anomaly.png").startswith(FILM)
    for unnamed in ("image1_hand.png", "image1.json", "cat.png"):
        with pytest.raises(InputError, match="not a file of this source"):
            source.read(study + unnamed)
    assert open_source(tmp_path / "XR_HAND").synthetic
    assert open_films([tmp_path / study / "image1.png"]).synthetic


@pytest.mark.parametrize("content", ["{", "[1]", '{"finding": 3}', "[" * 100_000])
def test_broken_sidecar_is_named(tmp_path: Path, content: str) -> None:
    plant(tmp_path, "patient1/study1_negative/image1.png")
    (tmp_path / "patient1/study1_negative/image1.json").write_text(content)
    assert refused(tmp_path).startswith("patient1/study1_negative/image1.json: ")


def test_contradictions_are_named(tmp_path: Path) -> None:
    labels = plant(tmp_path / "a", "patient1/study1_negative/image1.png", "patient1/study1_positive/image1.png")
    assert "study 'patient1/study1' has two labels" in refused(labels)
    splits = plant(
        tmp_path / "b", "train/patient7/study1_negative/image1.png", "valid/patient7/study2_negative/image1.png"
    )
    assert "patient 'patient7' is in two splits, 'train'" in refused(splits)
    assert len(open_films([labels, splits]).records) == 4


# ---- plain folders


def test_plain_folder(tmp_path: Path) -> None:
    plant(tmp_path, "b/film2.PNG", "b/film10.tiff", "a.nii.gz", "c.dcm", ".hidden.png", ".git/x.png", "note.txt")
    plant(tmp_path, "IM0001", "1.2.840.7", data=DICOM)
    plant(tmp_path, "README", "DICOMDIR", "film.gif")
    source = open_source(tmp_path)
    assert source.kind == "folder"
    assert source.notes == (
        "films by their first bytes: 1 .7, 1 without a suffix",
        "passed over 4 files that are no films: 2 without a suffix, 1 .gif, 1 .txt; .gif may hold films, but are not "
        "read: save them as PNG, TIFF or DICOM",
    )
    assert paths(source) == ["1.2.840.7", "IM0001", "a.nii.gz", "b/film2.PNG", "b/film10.tiff", "c.dcm"]
    assert {record.label for record in source.records} == {0}
    assert {record.label for record in open_source(tmp_path, unlabelled=-1).records} == {-1}
    assert len({record.patient for record in source.records}) == 6
    assert source.read("IM0001").startswith(DICOM)


def test_a_lone_folder_at_the_top_is_entered(tmp_path: Path) -> None:
    plant(tmp_path, "download/chest/train/normal/1.png", "download/chest/test/abnormal/2.png")
    source = open_source(tmp_path)
    assert source.kind == "classes" and paths(source) == ["test/abnormal/2.png", "train/normal/1.png"]
    assert source.root == tmp_path / "download" / "chest"
    assert source.read("train/normal/1.png").startswith(FILM)


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "no film among 0 files; looked for .bmp, .dcm" in refused(tmp_path / "empty")
    plant(tmp_path / "text", "a.txt", "b.gif")
    assert "no film among 2 files" in refused(tmp_path / "text")
    assert "neither a folder nor a .zip nor a .csv" in refused(plant(tmp_path, "film.png") / "film.png")
    with pytest.raises(InputError, match="no films named"):
        open_films([])


def test_links_are_not_followed(tmp_path: Path) -> None:
    plant(tmp_path / "out", "secret.png", "secret.txt")
    inside = plant(tmp_path / "in", "a.png", "deep/b.png")
    (inside / "again.png").symlink_to(inside / "a.png")
    (inside / "loop").symlink_to(inside)
    (inside / "nowhere.png").symlink_to(inside / "missing.png")
    (inside / "notes.txt").symlink_to(tmp_path / "out" / "secret.txt")
    source = open_source(inside)
    assert paths(source) == ["a.png", "deep/b.png"]
    assert source.notes == (
        "2 links are not followed; --follow-links does, within the source",
        "passed over 2 files that are broken links or special",
    )
    (tmp_path / "link").symlink_to(inside)
    assert paths(open_source(tmp_path / "link")) == ["a.png", "deep/b.png"]
    (inside / "a.png").unlink()
    (inside / "a.png").symlink_to(tmp_path / "out" / "secret.png")
    with pytest.raises(InputError, match="leads out of the source"):
        source.read("a.png")
    assert "a link out of the source" in refused(inside)
    (inside / "a.png").unlink()
    (inside / "folder").symlink_to(tmp_path / "out")
    assert "a link out of the source" in refused(inside)


# ---- archives


def layouts(root: Path) -> dict[str, Path]:
    plant(root / "manifest", "a.png", "sub/b.png", "m.png")
    manifest(root / "manifest", "path,label,mask\nsub/b.png,0,m.png\na.png,1,\n")
    plant(root / "classes", "train/normal/1.png", "val/normal/patient3_2.png", "test/abnormal/3.png")
    plant(root / "folder", "x/1.png", "y/2.png", "note.txt", ".hidden.png")
    plant(root / "folder", "x/IM1", data=DICOM)
    plant(mura(root / "mura"), "SYNTHETIC.txt")
    return {kind: root / kind for kind in ("manifest", "classes", "folder", "mura")}


@pytest.mark.parametrize("kind", ["manifest", "classes", "folder", "mura"])
@pytest.mark.parametrize("prefix", ["", "top/", "down/load/"])
def test_an_archive_reads_like_its_folder(tmp_path: Path, kind: str, prefix: str) -> None:
    folder = layouts(tmp_path)[kind]
    one, two = open_source(folder), open_source(pack(folder, tmp_path / f"{kind}.ZIP", prefix))
    assert one.kind == two.kind == kind and one.records == two.records
    assert (one.synthetic, one.notes, one.name) == (two.synthetic, two.notes, two.name)
    assert one.listing_hash() == two.listing_hash()
    for record in one.records:
        for file in record.files():
            assert one.read(file) == two.read(file)


def test_meaningful_top_folder_of_an_archive_stays(tmp_path: Path) -> None:
    plant(tmp_path / "a", "abnormal/1.png")
    source = open_source(pack(tmp_path / "a", tmp_path / "a.zip"))
    assert [(r.path, r.label) for r in source.records] == [("abnormal/1.png", 1)]


def write_zip(path: Path, name: str, *, mode: int = 0o100644, flag: int = 0, times: int = 1) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for _ in range(times):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.create_system = 3
            out.writestr(info, FILM)
    data = path.read_bytes()
    if flag:  # the two places that say how the file is packed
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = data.index(mark) + offset
            data = data[:at] + bytes([flag]) + data[at + 1 :]
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png", "C:/a.png", "..\\a.png", "a/./../b.png"])
def test_archive_names_that_climb_are_refused(tmp_path: Path, name: str) -> None:
    assert "leads out of the archive" in refused(write_zip(tmp_path / "bad.zip", name))


def test_archives_refused(tmp_path: Path) -> None:
    assert "a.png is a link" in refused(write_zip(tmp_path / "link.zip", "a.png", mode=0o120777))
    assert "a.png is encrypted" in refused(write_zip(tmp_path / "locked.zip", "a.png", flag=1))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = write_zip(tmp_path / "twice.zip", "a.png", times=2)
    assert "a.png is in it twice" in refused(twice)
    assert "no readable zip archive" in refused(plant(tmp_path, "text.zip") / "text.zip")
    whole = pack(plant(tmp_path / "f", "a.png", "b.png"), tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    assert "no readable zip archive" in refused(tmp_path / "cut.zip")
    assert "no film among 0 files" in refused(write_zip(tmp_path / "mac.zip", "__MACOSX/._a.png"))


def test_archive_members_are_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(b"\0" * 100_000)
    archive = pack(tmp_path / "f", tmp_path / "bomb.zip")
    monkeypatch.setattr("preprocessing.sources.storage.MAX_BYTES", 50_000)
    with pytest.raises(InputError, match=r"a\.png: 100000 bytes; the limit is 50000"):
        open_source(archive).read("a.png")


def test_damaged_archive_member_is_named(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", "a.png")
    source = open_source(archive)
    archive.write_bytes(archive.read_bytes().replace(FILM, b"bytes film"))
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        source.read("a.png")


# ---- reading, pickling, hashing


def test_reading_stays_in_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "out.png")
    source = open_source(plant(tmp_path / "in", "a.png", "b.png", "note.txt"))
    for path in ("../out.png", str(tmp_path / "out.png"), "note.txt", "missing.png", "", "."):
        with pytest.raises(InputError, match="not a file of this source"):
            source.read(path)
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        source.read("a.png")
    with pytest.raises(InputError, match=r"b\.png: more than 5 bytes"):
        source.store.read("b.png", 5)


def read_all(source: Source) -> list[bytes]:
    return [source.read(record.path) for record in source.records]


@pytest.mark.parametrize("packed", [False, True])
def test_sources_travel_to_other_processes(tmp_path: Path, packed: bool) -> None:
    folder = layouts(tmp_path)["mura"]
    source = open_source(pack(folder, tmp_path / "m.zip") if packed else folder)
    expected = read_all(source)  # the archive is open now
    copy = pickle.loads(pickle.dumps(source))
    assert copy.records == source.records and read_all(copy) == expected
    assert copy.listing_hash() == source.listing_hash()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(source.read, [record.path for record in source.records] * 20) == expected * 20


def test_listing_hash_knows_fields_and_sizes(tmp_path: Path) -> None:
    source = open_source(layouts(tmp_path)["mura"])
    digest = source.listing_hash()
    assert len(digest) == 64 and open_source(tmp_path / "mura").listing_hash() == digest
    first = source.records[0]
    changes = {"label": 1 - first.label, "box": (0.0, 0.0, 5.0, 5.0)}
    for field in fields(Record):
        if field.name in ("path", "mask", "anomaly_mask"):
            continue
        changed = replace(first, **{field.name: changes.get(field.name, "other")})
        source.records[0] = changed
        assert source.listing_hash() != digest, field.name
    plant(tmp_path / "mura", "XR_HAND/patient00002/study1_positive/image1.png", data=b"longer than before")
    assert open_source(tmp_path / "mura").listing_hash() != digest


@given(st.lists(st.text("ab/._0123456789", min_size=1, max_size=8), unique=True))
def test_natural_order_is_total_and_numeric(names: list[str]) -> None:
    once = sorted(names, key=natural_key)
    assert sorted(reversed(names), key=natural_key) == once


def test_natural_order_of_numbers() -> None:
    names = ["a10.png", "a9.png", "a09.png", "a1/b.png", "a.png", "b" + "9" * 5000, "A1.png"]
    assert sorted(names, key=natural_key)[:5] == ["A1.png", "a1/b.png", "a09.png", "a9.png", "a10.png"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("XR_HAND", "XR_HAND"),
        ("my films (2)", "my-films-2"),
        ("Röntgen", "R-ntgen"),
        ("...", "films"),
        ("x" * 99, "x" * 40),
    ],
)
def test_names_are_safe_for_files(name: str, safe: str) -> None:
    assert safe_name(name) == safe


# ---- new films


def test_new_films_of_any_mix(tmp_path: Path) -> None:
    kinds = layouts(tmp_path)
    archive = pack(kinds["classes"], tmp_path / "c.zip")
    lone = plant(tmp_path, "lone.weird") / "lone.weird"
    study = kinds["mura"] / "XR_HAND" / "patient00002" / "study1_positive" / "image1.png"
    source = open_films([lone, study, kinds["manifest"], archive, kinds["folder"], kinds["folder"] / "x" / "1.png"])
    found = by_path(source)
    assert source.root == tmp_path and source.synthetic
    assert {(r.split, r.finding, r.anomaly_mask) for r in source.records} == {("", "", None)}
    assert len(source.records) == 2 + 2 + 3 + 3
    tops = [path.split("/")[0] for path in paths(source)]
    assert list(dict.fromkeys(tops)) == ["lone.weird", "mura", "manifest", "c.zip", "folder"]  # as they were named
    assert found["manifest/sub/b.png"].mask == "manifest/m.png"
    assert found["lone.weird"].patient == found["lone.weird"].study == "lone.weird"
    assert found["c.zip/test/abnormal/3.png"].study == "c.zip/test/abnormal/3.png"
    assert found["c.zip/val/normal/patient3_2.png"].patient == "c.zip/patient3"
    assert found["mura/XR_HAND/patient00002/study1_positive/image1.png"].study == "mura/XR_HAND/patient00002/study1"
    for record in pickle.loads(pickle.dumps(source)).records:
        assert all(source.read(file).endswith(Path(file).name.encode()) for file in record.files())
    with pytest.raises(InputError, match="not a file of this source"):
        source.read("mura/XR_HAND/patient00001/study1_negative/image2.png")


def test_labels_of_new_films_are_kept(tmp_path: Path) -> None:
    plant(tmp_path, "x/normal/a.png", "x/fracture/b.png", "x/train/c.png", "m/d.png", "m/t.png", "lone.png")
    (tmp_path / "x" / "train" / "c.png").unlink()
    text = "path,label,split,anomaly_mask,lesion_boxes,site\nd.png,1,test,t.png,1 2 3 4,North\n"
    manifest(tmp_path / "m", text)
    places = [tmp_path / "x", tmp_path / "m", tmp_path / "lone.png"]
    found = by_path(open_films(places))
    assert {path: (r.label, r.finding, r.split) for path, r in found.items()} == {
        "x/normal/a.png": (0, "", ""),
        "x/fracture/b.png": (1, "fracture", ""),
        "m/d.png": (1, "", ""),
        "lone.png": (-1, "", ""),
    }
    truth = found["m/d.png"]
    assert (
        truth.anomaly_mask == "m/t.png"
        and truth.lesion_boxes == ((1, 2, 3, 4),)
        and truth.columns == (("site", "North"),)
    )
    assert open_films(places).read("m/t.png").endswith(b"t.png")


def test_new_films_of_one_tree_keep_its_names(tmp_path: Path) -> None:
    mura(tmp_path)
    whole = open_films([tmp_path / "XR_HAND"])
    assert whole.kind == "mura" and whole.name == "XR_HAND"
    assert {record.study for record in whole.records} == {
        "patient00001/study1",
        "patient00001/study2",
        "patient00002/study1",
    }
    some = open_films(sorted((tmp_path / "XR_HAND" / "patient00001").rglob("image*"), reverse=True))
    assert [(r.path, r.patient, r.study) for r in some.records] == [
        ("study2_positive/image1.jpg", "patient00001", "patient00001/study2"),
        ("study1_negative/image2.png", "patient00001", "patient00001/study1"),
        ("study1_negative/image10.png", "patient00001", "patient00001/study1"),
    ]


def test_films_of_a_temporary_folder_have_names_of_their_own(tmp_path: Path) -> None:
    plant(tmp_path, "films/a.png", "films/b.png", "hidden/array-1.tif")
    paths_, memory = [tmp_path / f"films/{name}.png" for name in "ba"], tmp_path / "hidden/array-1.tif"
    source = open_films([paths_[0], memory, paths_[1]], names={memory: "array-1"})
    assert paths(source) == ["b.png", "array-1", "a.png"] and source.root == tmp_path / "films"
    assert by_path(source)["array-1"].patient == "array-1" and source.read("array-1").endswith(b"array-1.tif")
    with pytest.raises(InputError, match=r"films/a\.png: a\.png is the name of a film in memory"):
        open_films([memory, *paths_], names={memory: "a.png"})


def test_new_films_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "films/a.png")
    monkeypatch.chdir(tmp_path)
    assert paths(open_films([Path("films")])) == ["a.png"]
    assert open_source(Path("films")).name == "films"
    monkeypatch.chdir("films")
    assert open_source(Path()).name == "films" and paths(open_films([Path("a.png")])) == ["a.png"]
    with pytest.raises(InputError, match=r"gone\.png"):
        open_films([Path("gone.png")])
