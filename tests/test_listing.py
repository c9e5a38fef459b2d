"""Which files are films: by suffix or by bytes, links within the source on demand; all others are counted and named."""

import os
from pathlib import Path
from typing import Any

import pytest

from preprocessing.sources import open_source
from preprocessing.sources.storage import Store

from .source_trees import DICOM, pack, paths, plant, refused

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("packed", [False, True])
def test_dicom_is_known_by_its_bytes_whatever_it_is_called(tmp_path: Path, packed: bool) -> None:
    names = ["I1.XRAY", "i2.img", "IM0001", "1.2.840.99", "x.dc3", "deep/y.000", "DICOMDIR"]
    plant(tmp_path / "f", *names, data=DICOM)
    plant(tmp_path / "f", "a.png", "no.xray", "b.img", "readme")
    plant(tmp_path / "f", "picture", data=PNG)
    source = open_source(pack(tmp_path / "f", tmp_path / "f.zip") if packed else tmp_path / "f")
    assert {*paths(source)} == {*names[:-1], "a.png", "picture"}
    notes = " ".join(source.notes)
    assert "films by their first bytes: " in notes and "1 .xray" in notes
    assert "passed over 4 files that are no films: " in notes and "2 without a suffix" in notes


def test_only_files_whose_suffix_says_nothing_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.png", "b.dcm", "c.txt", "d.csv", "e.gif", "f.odd", "g", "h.pdf", "i.h5", "j.json")
    opened = []
    head = Store.head

    def watched(store: Store, relative: str, size: int) -> bytes:
        opened.append((relative, size))
        return head(store, relative, size)

    monkeypatch.setattr(Store, "head", watched)
    assert paths(open_source(tmp_path)) == ["a.png", "b.dcm"]
    assert [relative for relative, size in opened if size <= 1024] == ["f.odd", "g"]


def test_pictures_that_are_not_read_are_named(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.gif", "c.webp", "d.WEBP", "e.gz")
    assert open_source(tmp_path).notes == (
        "passed over 4 files that are no films: 2 .webp, 1 .gif, 1 .gz; .gif, .gz, .webp may hold films, but are not "
        "read: save them as PNG, TIFF or DICOM",
    )
    plant(tmp_path / "none", "a.gif", "b.xyz")
    assert "no film among 2 files" in refused(tmp_path / "none")
    assert "passed over 2 files that are no films: 1 .gif, 1 .xyz; .gif may hold films" in refused(tmp_path / "none")


def test_masks_are_no_films(tmp_path: Path) -> None:
    plant(tmp_path / "a", "x.png", "x_mask.png", "y.dcm", "y-seg.png", "left_hand.png")
    assert paths(open_source(tmp_path / "a")) == ["left_hand.png", "x.png", "y.dcm"]
    plant(tmp_path / "b", "images/x.png", "masks/x.png", "ground_truth/x.png", "Annotations/x.png", "labels/x.tif")
    assert paths(open_source(tmp_path / "b")) == ["images/x.png"]
    plant(tmp_path / "c", "imagesTr/x_0000.png", "labelsTr/x.png", "imagesTs/y_0000.nii.gz", "labelsTs/y.nii.gz")
    assert paths(open_source(tmp_path / "c")) == ["imagesTr/x_0000.png", "imagesTs/y_0000.nii.gz"]
    plant(tmp_path / "e", "x.png", "ManualMask/left mask/x.png", "lung_segmentations/x.png")
    assert paths(open_source(tmp_path / "e")) == ["x.png"]
    plant(tmp_path / "f", "x.png", "x_gt.png", "x.mask.png", "xMask.png", "x label 2.png", "y_mask_1.png", "y_gt.png")
    assert paths(open_source(tmp_path / "f")) == ["x.png", "y_gt.png"]  # `y_gt` is beside no film `y`
    plant(tmp_path / "g", "images/x.png", "predictions/x.png", "gradcam/x.png")
    assert paths(open_source(tmp_path / "g")) == ["images/x.png"]
    assert "masks/: 1 mask" in refused(plant(tmp_path / "d", "masks/x.png"))


def test_what_this_program_wrote_is_no_film(tmp_path: Path) -> None:
    plant(tmp_path, "films/a.png", "runs/cae-1/run.json", "runs/cae-1/samples.png", "runs/cae-1/maps/a.png_heatmap.png")
    plant(
        tmp_path, "runs/bench-1/bench.json", "runs/bench-1/x/y.png", "maps/a.png_heatmap.png", "maps/a.png_heatmap.tiff"
    )
    source = open_source(tmp_path)
    assert paths(source) == ["films/a.png"]
    assert "no films: 7 files written by this program (runs, heatmaps)" in source.notes
    assert "written by this program" in refused(tmp_path / "runs" / "cae-1")


def test_names_that_are_no_text_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b/c.png")
    for name in (b"r\xf6ntgen.png", b"b/\xff.png"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(PNG)
    source = open_source(tmp_path)
    assert paths(source) == ["a.png", "b/c.png"]
    assert source.notes == ("passed over 2 files of which the name is not UTF-8: rename what should be read",)


# ---- links


def farm(root: Path) -> Path:
    plant(root, "a.png", "deep/b.png", ".store/c.png", ".store/more/d.png", ".store/more/e.txt")
    (root / "c.png").symlink_to(root / ".store" / "c.png")
    (root / "linked").symlink_to(root / ".store" / "more")
    (root / ".store" / "more" / "loop").symlink_to(root)
    (root / "again.png").symlink_to("a.png")
    (root / "once more").symlink_to(root / ".store" / "more")
    return root


def test_links_are_followed_on_demand_and_add_nothing_twice(tmp_path: Path) -> None:
    root = farm(tmp_path / "f")
    plain, followed = open_source(root), open_source(root, follow_links=True)
    assert paths(plain) == ["a.png", "deep/b.png"]
    assert "4 links are not followed; --follow-links does, within the source" in plain.notes
    assert paths(followed) == ["a.png", "c.png", "deep/b.png", "linked/d.png"]
    assert "3 links to files listed already: passed over" in followed.notes
    assert all(followed.read(path).endswith(path[-5:].encode()) for path in paths(followed))


@pytest.mark.parametrize("options", [{}, {"follow_links": True}])
def test_links_out_of_the_source_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    root = farm(tmp_path / "f")
    plant(tmp_path / "out", "x.png")
    (root / ".store" / "more" / "out").symlink_to(tmp_path / "out")
    if options:
        assert "a link out of the source" in refused(root, **options)
    (root / "x.png").symlink_to(tmp_path / "out" / "x.png")
    assert "x.png: a link out of the source" in refused(root, **options)


# ---- choosing films


def test_where_chooses_by_fields_and_columns(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{n}.png" for n in range(5)))
    lines = ["0.png,normal,Hand,F", "1.png,abnormal,hand,M", "2.png,,wrist,F", "3.png,normal,,F", "4.png,normal,foot,"]
    (tmp_path / "manifest.csv").write_text("path,label,Region,sex\n" + "\n".join(lines))
    source = open_source(tmp_path)

    def chosen(*conditions: str) -> list[str]:
        return [path.removesuffix(".png") for path in paths(source.where(conditions))]

    assert chosen() == ["0", "1", "2", "3", "4"]
    assert chosen("region=hand") == chosen("Region = HAND ") == ["0", "1"]
    assert chosen("region=hand,wrist") == ["0", "1", "2"]
    assert chosen("region=hand,foot", "label=normal") == ["0", "4"]
    assert chosen("label=unknown") == ["2"] and chosen("region=") == ["3"]
    assert chosen("path=3.png") == ["3"]
    assert source.where(["sex=M"]).read("1.png").endswith(b"1.png")
    assert source.where(["sex=M"]).listing_hash() != source.listing_hash()
    for condition, message in (
        (
            "region",
            "write column=value; there are: path, patient, study, label, split, finding, difficulty, Region, sex",
        ),
        ("site=x", "no column 'site'; there are: path"),
        (
            "region=knee",
            "no film has region 'knee'; there are: Hand (1), hand (1), wrist (1), none (1), foot (1)",
        ),
        ("label=0", "no film has label '0'; there are: normal (3), abnormal (1), unknown (1)"),
    ):
        with pytest.raises(Exception, match="--where") as caught:
            source.where([condition])
        assert message in str(caught.value)
    with pytest.raises(Exception, match="none of 5 films meets all of --where sex=M --where label=normal"):
        source.where(["sex=M", "label=normal"])
