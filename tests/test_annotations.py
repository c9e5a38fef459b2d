"""Boxes and masks are found beside the films, in folders as in archives; what cannot be meant is refused in a line."""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import InputError
from preprocessing.cache.schema import BOX_CLASSES, MAX_BOXES
from preprocessing.phantom import write_phantoms
from preprocessing.readers import read_film, read_mask
from preprocessing.sources import Source, open_source
from preprocessing.sources.annotations import MAX_SIDECAR_BYTES, Box, What, annotate

HAND: Box = ("right hand", 3.0, 4.0, 30.0, 40.5)
MARKER: Box = ("left marker", 0.0, 1.0, 5.0, 6.0)
MURA = "patient1/study1_positive/image"


def plant(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for file, data in files.items():
        place = root / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as out:
        for place in sorted(folder.rglob("*")):
            if place.is_file():
                out.write(place, "top/" + place.relative_to(folder).as_posix())
    return archive


def sidecar(*boxes: Box) -> str:
    return json.dumps({"view": "frontal", "boxes": [{"class": name, "box": edges} for name, *edges in boxes]})


def voc(*boxes: Box, size: str = "") -> str:
    objects = "".join(
        f"<object><name>\n {name}\n </name><bndbox><xmax>{x1}</xmax><xmin>\n{x0}\n</xmin>"
        f"<ymax>{y1}</ymax><ymin>{y0}</ymin></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><annotation><filename>other.png</filename>{size}{objects}</annotation>'
    )


def table(*rows: tuple[Any, ...], heading: str = "path,class,x0,y0,x1,y1") -> str:
    return "\n".join([heading, *(",".join(str(cell) for cell in row) for row in rows)]) + "\n"


def found(source: Source, what: What) -> dict[str, Any]:
    return {r.path: r.boxes if what == "boxes" else r.mask for r in annotate(source, what).records}


def refused(source: Source | Path, what: What = "boxes") -> str:
    opened = source if isinstance(source, Source) else open_source(source)
    with pytest.raises(InputError) as caught:
        annotate(opened, what)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def rows(film: str) -> Callable[..., str]:
    return lambda *boxes: table(*((film, *box) for box in boxes))


BOXED: dict[str, tuple[str, dict[str, Any]]] = {  # kind: the film that has HAND and MARKER, and the other files
    "built-in": (MURA + "1.png", {MURA + "1.json": sidecar, MURA + "2.png": "", MURA + "2.json": "{}"}),
    "built-in, in any folder": ("a/x.dcm", {"a/x.json": sidecar, "b.png": ""}),
    "voc": ("a/x.y.png", {"a/x.y.xml": voc, "b.png": ""}),
    "voc, any film": ("a/x.nii.gz", {"a/x.xml": voc, "b.png": ""}),
    "voc beside the folder": ("a/images/x.png", {"a/annotations/x.xml": voc, "b.png": ""}),
    "voc devkit": ("JPEGImages/x.jpg", {"Annotations/x.xml": voc, "b.png": ""}),
    "voc at the top": ("a/b/x.png", {"annotations/x.xml": voc, "b.png": ""}),
    "voc, film at the top": ("x.png", {"Annotations/x.xml": voc, "b.png": ""}),
    "table": ("a/x.png", {"boxes.csv": rows("./a/x.png"), "b.png": ""}),
    "table, manifest": (
        "a/x.png",
        {"boxes.csv": rows("a/x.png"), "manifest.csv": "path,label\na/x.png,0\nb.png,1\n", "b.png": ""},
    ),
    "table, for the first is empty": (
        "a.png",
        {"boxes.csv": rows("a.png"), "a.xml": voc(), "a.json": "[1]", "b.png": ""},
    ),
    "json before voc before table": (
        "a.png",
        {"a.json": sidecar, "a.xml": voc(HAND), "boxes.csv": rows("a.png"), "b.png": ""},
    ),
    "voc before table": ("a.png", {"a.xml": voc, "boxes.csv": rows("a.png")(HAND), "b.png": ""}),
}


@pytest.mark.parametrize("kind", BOXED)
@pytest.mark.parametrize("packed", [False, True])
def test_boxes_of_every_kind(kind: str, packed: bool, tmp_path: Path) -> None:
    film, others = BOXED[kind]
    files = {name: text(HAND, MARKER) if callable(text) else text for name, text in others.items()}
    plant(tmp_path / "top", files | {film: ""})
    source = open_source(pack(tmp_path / "top", tmp_path / "top.zip") if packed else tmp_path / "top")
    before = {record.path: record for record in source.records}
    listed = dict(source.store.sizes)
    boxed = annotate(source, "boxes")
    assert boxed.records == [replace(before[film], boxes=(HAND, MARKER))]
    assert {type(edge) for box in boxed.records[0].boxes for edge in box[1:]} == {float}
    assert list(before.values()) == source.records and source.store.sizes == listed, "the source has changed"
    assert set(boxed.store.sizes) == {film}, "more can be read than the records name"
    assert replace(boxed, records=[], store=source.store) == replace(source, records=[])
    assert pickle.loads(pickle.dumps(boxed)).read(film) == boxed.part(boxed.records).read(film) == b""


MASKED = {  # files: the film and its mask, and then others which are no films
    "built-in": [MURA + "1.png", MURA + "1_hand.png"],
    "built-in, in any folder": ["a/image12.jpg", "a/image12_hand.png"],
    "beside": ["a/x.jpg", "a/x_mask.png"],
    "masks": ["a/images/x.png", "a/masks/x.png"],
    "masks, film at the top": ["x.tif", "masks/x.tif"],
    "labels": ["train/images/x.png", "train/labels/x.png"],
    "labels of a jpeg": ["images/x.jpg", "labels/x.png"],
    "masks before labels": ["images/x.png", "masks/x.png", "labels/x.png"],
    "classes": ["normal/x.png", "masks/x.png", "masks/no film of its own.png"],
    "stops in the name": ["images/1.2.840.png", "masks/1.2.840.png"],
    "nifti": ["images/x.nii.gz", "labels/x.nii.gz"],
    "nifti, one packed": ["images/x.nii", "labels/x.nii.gz"],
    "nifti, the other packed": ["images/x.nii.gz", "labels/x.nii"],
    "nnU-Net": ["imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz"],
    "nnU-Net, test": ["imagesTs/x_0000.nii.gz", "labelsTs/x.nii.gz"],
    "nnU-Net, png": ["imagesTr/x_0000.png", "labelsTr/x.png"],
    "nifti mask beside": ["x.nii", "x_mask.nii.gz"],
    "nifti seg beside": ["a/x.nii.gz", "a/x_seg.nii.gz"],
}


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("packed", [False, True])
def test_masks_of_every_kind(kind: str, packed: bool, tmp_path: Path) -> None:
    film, mask, *others = MASKED[kind]
    plant(tmp_path / "top", {name: name for name in (film, mask, *others)})
    bare = {"built-in": MURA + "2.png", "classes": "abnormal/bare.png"}.get(kind, "z/bare.png")
    plant(tmp_path / "top", {bare: ""})
    source = open_source(pack(tmp_path / "top", tmp_path / "top.zip") if packed else tmp_path / "top")
    before = {record.path: record for record in source.records}
    masked = annotate(source, "masks")
    assert masked.records == [replace(before[film], mask=mask)]
    assert len(source.records) - len(masked.records) == 1, "the bare film alone is left out"
    assert masked.read(mask) == masked.part(masked.records).read(mask) == mask.encode()
    assert source.records == list(before.values())


def test_boxes_are_of_films_and_never_of_their_masks(tmp_path: Path) -> None:
    names = ["images/x.png", "masks/x.png", "images/x_mask.png", "labels/deep/x.nii.gz"]
    plant(tmp_path, dict.fromkeys(names, "") | {"annotations/x.xml": voc(HAND), "annotations/x_mask.xml": voc(HAND)})
    plant(tmp_path, {"boxes.csv": table(*((name, *HAND) for name in names))})
    assert found(open_source(tmp_path), "boxes") == {"images/x.png": (HAND,)}


def test_films_whose_names_only_resemble_masks_stay(tmp_path: Path) -> None:
    names = ["left_hand.png", "masked/a.png", "image1_hand.png", "unmask.png", "a_0000.png", "labels.png"]
    plant(tmp_path, dict.fromkeys(names, ""))
    assert {record.path for record in open_source(tmp_path).records} == set(names)


def test_built_in_films_have_the_boxes_and_masks_of_their_truth(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "films", seed=3, patients=4, size=96)
    source = open_source(tmp_path / "films")
    both = annotate(annotate(source, "masks"), "boxes")
    assert [record.path for record in both.records] == [record.path for record in source.records]
    assert both.records == annotate(annotate(source, "boxes"), "masks").records
    for record in both.records:
        assert record.mask is not None
        height, width = read_film(record.path, both.read(record.path)).pixels.shape
        mask = read_mask(record.mask, both.read(record.mask))
        assert mask.shape == (height, width) and mask.any()
        truth = json.loads((both.root / record.path).with_suffix(".json").read_text())["boxes"]
        assert [(name, list(edges)) for name, *edges in record.boxes] == [(b["class"], b["box"]) for b in truth]
        assert all(x1 <= width and y1 <= height for _, _, _, x1, y1 in record.boxes)
        if [name for name, *_ in record.boxes if name.endswith("hand")] == [record.boxes[0][0]]:
            ys, xs = np.nonzero(mask)
            assert record.boxes[0][1:] == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_archive_and_folder_agree_and_a_second_call_keeps_the_first(tmp_path: Path) -> None:
    plant(
        tmp_path / "top", {"a.png": "1", "a.json": sidecar(HAND), "a_mask.png": "2", "b.png": "3", "b.xml": voc(HAND)}
    )
    folder = open_source(tmp_path / "top")
    packed = open_source(pack(tmp_path / "top", tmp_path / "top.zip"))
    orders: tuple[tuple[What, ...], ...] = (
        ("boxes", "masks"),
        ("masks", "boxes"),
        ("boxes", "boxes", "masks", "masks"),
    )
    for order in orders:
        one, two = folder, packed
        for what in order:
            one, two = annotate(one, what), annotate(two, what)
        assert one.records == two.records and one.listing_hash() == two.listing_hash()
        assert [(r.path, r.mask, r.boxes) for r in one.records] == [("a.png", "a_mask.png", (HAND,))]


def test_a_manifest_s_masks_stay_and_the_others_are_looked_for(tmp_path: Path) -> None:
    plant(
        tmp_path,
        dict.fromkeys(
            ["a.png", "m.png", "a_mask.png", "b.png", "b_mask.png", "c.png", "d_mask.png", "masks/e.png"], ""
        ),
    )
    plant(
        tmp_path,
        {"manifest.csv": "path,label,mask\na.png,0,m.png\nb.png,1,\nc.png,0,\nd_mask.png,0,c.png\nmasks/e.png,0,\n"},
    )
    source = open_source(tmp_path)
    assert found(source, "masks") == {"a.png": "m.png", "b.png": "b_mask.png", "d_mask.png": "c.png"}


def test_sources_with_other_boxes_or_masks_hash_differently(tmp_path: Path) -> None:
    plant(tmp_path, {"a.png": "", "a.json": sidecar(HAND), "a_mask.png": "m", "b.png": "", "b.json": sidecar(MARKER)})
    source = open_source(tmp_path)
    boxes, masks = annotate(source, "boxes").listing_hash(), annotate(source, "masks").listing_hash()
    both = annotate(annotate(source, "boxes"), "masks").listing_hash()
    assert annotate(open_source(tmp_path), "boxes").listing_hash() == boxes
    plant(tmp_path, {"a.json": sidecar((*HAND[:4], 41.0)), "a_mask.png": "longer"})
    changed = annotate(source, "boxes").listing_hash(), annotate(source, "masks").listing_hash()
    assert len({source.listing_hash(), boxes, masks, both, *changed}) == 6


def edges(least: float, most: float, decimals: int) -> st.SearchStrategy[tuple[float, float]]:
    numbers = st.floats(least, most).map(lambda number: round(number, decimals))
    return st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)  # type: ignore[arg-type]


def boxes_within(width: float, height: float) -> st.SearchStrategy[list[Box]]:
    one = st.builds(
        lambda name, across, down: (name, across[0], down[0], across[1], down[1]),
        st.sampled_from(BOX_CLASSES),
        edges(0, width, 6),
        edges(0, height, 6),
    )
    return st.lists(one, min_size=1, max_size=MAX_BOXES)


@given(boxes_within(512, 384), st.sampled_from(["json", "xml", "csv"]))
def test_what_is_written_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[Box], kind: str
) -> None:
    size = "<size><width>512</width><height> 384 </height><depth>1</depth></size>"
    file, text = {
        "json": ("a.json", sidecar(*boxes)),
        "xml": ("a.xml", voc(*boxes, size=size)),
        "csv": ("boxes.csv", table(*(("a.png", *box) for box in boxes))),
    }[kind]
    source = open_source(plant(tmp_path_factory.mktemp("round"), {"a.png": "", file: text}))
    assert found(source, "boxes") == {"a.png": tuple(boxes)}


@pytest.mark.parametrize(("short", "name"), list(zip(("rh", "lh", "rl", "ll"), BOX_CLASSES, strict=True)))
def test_the_original_s_class_names(short: str, name: str, tmp_path: Path) -> None:
    plant(
        tmp_path, {"a.png": "", "a.xml": voc((short, *HAND[1:])), "b.png": "", "b.xml": voc((name.title(), *HAND[1:]))}
    )
    expected = ((name, *HAND[1:]),)
    assert found(open_source(tmp_path), "boxes") == {"a.png": expected, "b.png": expected}


def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    text = '\ufeffY1, X1 ,y0,x0,CLASS,note,path\r\n\r\n40.5,30,4,3, rh ,"one, two",b/ä.png\r\n6,5,1,0,ll,,b/ä.png\r\n'
    plant(tmp_path, {"a.png": "", "b/ä.png": "", "boxes.csv": text})
    assert found(open_source(tmp_path), "boxes") == {"b/ä.png": (HAND, MARKER)}


BAD_EDGES = ["3 4 3 9", "9 4 3 9", "3 9 8 4", "-1 4 8 9", "nan 4 8 9", "3 4 inf 9", "3 -inf 8 9"]


@pytest.mark.parametrize("numbers", BAD_EDGES)
def test_impossible_boxes_are_refused_with_their_place(numbers: str, tmp_path: Path) -> None:
    texts = [{"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(number, number) for number in numbers.split()]
    bad = ("rh", *texts)
    listed = f'{{"class": "rh", "box": [{", ".join(texts)}]}}'
    for file, text, place in (
        ("a.json", f'{{"boxes": [{{"class": "lh", "box": [0, 0, 1, 1]}}, {listed}]}}', "a.json, box 2: box "),
        ("a.xml", voc(HAND, bad), "a.xml, object 2: box "),  # type: ignore[arg-type]
        ("boxes.csv", table(("a.png", *HAND), ("a.png", *bad)), f"{tmp_path}/csv/boxes.csv, line 3: box "),
    ):
        message = refused(plant(tmp_path / file.rpartition(".")[2], {"a.png": "", file: text}))
        assert message.startswith(place) and message.endswith("x0 < x1 and y0 < y1 are needed, in pixels from 0")


DOCTYPE = '<!DOCTYPE annotation [<!ENTITY a "rh"><!ENTITY b "&a;&a;">]>'
REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "json cut off": ("a.json", '{"boxes": [', "a.json: not the JSON"),
    "json no text": ("a.json", b"\xff\xfe\xff", "a.json: not the JSON"),
    "json deep": ("a.json", "[" * 100_000, "a.json: not the JSON"),
    "json no list": ("a.json", '{"boxes": 3}', 'a.json: "boxes" must be a list'),
    "json list of numbers": ("a.json", '{"boxes": [[1, 2, 3, 4]]}', "a.json, box 1: write {"),
    "json three": ("a.json", '{"boxes": [{"class": "rh", "box": [1, 2, 3]}]}', "a.json, box 1: write {"),
    "json text": ("a.json", '{"boxes": [{"class": "rh", "box": [1, 2, 3, "4"]}]}', "a.json, box 1: write {"),
    "json true": ("a.json", '{"boxes": [{"class": "rh", "box": [0, 0, true, 4]}]}', "a.json, box 1: write {"),
    "json huge": (
        "a.json",
        '{"boxes": [{"class": "rh", "box": [0, 0, 1%s, 4]}]}' % ("0" * 5000),
        "a.json, box 1: box ",
    ),
    "json class": (
        "a.json",
        sidecar(("foot", 0, 0, 1, 1)),
        "a.json, box 1: class 'foot'; there are: right hand (rh), ",
    ),
    "voc class": (
        "a.xml",
        voc(HAND, ("text", 0, 0, 1, 1)),
        "a.xml, object 2: class 'text'; there are: right hand (rh)",
    ),
    "voc no class": ("a.xml", "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>", "no ymin"),
    "voc no box": ("a.xml", "<annotation><object><name>rh</name></object></annotation>", "object 1: no xmin in its"),
    "voc words": ("a.xml", voc(("rh", "one", 0, 1, 1)), "a.xml, object 1: xmin 'one' is not a number"),  # type: ignore[arg-type]
    "voc beyond": (
        "a.xml",
        voc(HAND, size="<size><width>29</width><height>99</height></size>"),
        "object 1: box ends at 30 40.5, beyond the `size`",
    ),
    "voc below": (
        "a.xml",
        voc(HAND, size="<size><width>0</width><height>40</height></size>"),
        "object 1: box ends at 30 40.5, beyond the `size`",
    ),
    "voc size": ("a.xml", voc(HAND, size="<size><width>wide</width></size>"), "a.xml: size 'wide' is not a number"),
    "xml empty": ("a.xml", "", "a.xml: not readable XML"),
    "xml cut off": ("a.xml", voc(HAND)[:-20], "a.xml: not readable XML"),
    "xml encoding": ("a.xml", '<?xml version="1.0" encoding="none"?><annotation/>', "a.xml: not readable XML"),
    "xml two bytes": ("a.xml", '<?xml version="1.0" encoding="shift_jis"?><annotation/>', "a.xml: not readable XML"),
    "xml undeclared": ("a.xml", "<annotation>&lol;</annotation>", "a.xml: not readable XML"),
    "xml of another sort": ("a.xml", "<svg/>", "a.xml: not a Pascal VOC file, its root is <svg>"),
    "doctype": ("a.xml", "<!DOCTYPE annotation><annotation/>", "a.xml: has a DOCTYPE"),
    "entities": ("a.xml", DOCTYPE + "<annotation>&b;</annotation>", "a.xml: has a DOCTYPE"),
    "entities in utf-16": (
        "a.xml",
        (DOCTYPE + "<annotation>&b;</annotation>").encode("utf-16"),
        "a.xml: has a DOCTYPE",
    ),
    "entity from a file": ("a.xml", '<!DOCTYPE a SYSTEM "file:///etc/hostname"><a/>', "a.xml: has a DOCTYPE"),
    "too long": ("a.xml", "<!--" + "-" * MAX_SIDECAR_BYTES, f"a.xml: more than {MAX_SIDECAR_BYTES} bytes"),
    "too many": (
        "a.xml",
        voc(*[HAND] * (MAX_BOXES + 1)),
        f"a.png: {MAX_BOXES + 1} boxes; a film has at most {MAX_BOXES}",
    ),
    "table heading": ("boxes.csv", "path,x0,y0,x1,y1\n", "line 1: no column 'class'; there are: path, x0, y0, x1, y1"),
    "table twice": ("boxes.csv", table(heading="path,class,x0,y0,x1,y1,X0"), "line 1: 2 columns 'x0'"),
    "table cells": ("boxes.csv", table(("a.png", "rh", 0, 0, 1)), "line 2: 5 cells, the heading has 6"),
    "table class": ("boxes.csv", table(("a.png", *HAND), ("a.png", "", 0, 0, 1, 1)), "line 3: class ''; there are: "),
    "table words": ("boxes.csv", table(("a.png", "rh", 0, 0, "", 1)), "line 2: x1 '' is not a number"),
    "table no film": ("boxes.csv", table(("c.png", *HAND)), "line 2: path 'c.png': no such file in the source"),
    "table climbs": ("boxes.csv", table(("sub/../a.png", *HAND)), "line 2: path 'sub/../a.png' leads out"),
    "table absolute": ("boxes.csv", table(("/a.png", *HAND)), "line 2: path '/a.png' leads out"),
    "table quotes": ("boxes.csv", table() + '"a.png" b,rh,0,0,1,1\n', "line 2: "),
    "table no text": ("boxes.csv", b"path\xff", "boxes.csv: not UTF-8 text at byte 4"),
    "nothing": ("a.txt", "", ": no boxes beside 2 films; looked for NAME.json, NAME.xml"),
    "nothing in them": ("a.xml", voc(), ": no boxes beside 2 films; looked for"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("packed", [False, True])
def test_refused(case: str, packed: bool, tmp_path: Path) -> None:
    file, data, reason = REFUSED[case]
    top = plant(tmp_path / "top", {"a.png": "", "sub/b.png": "", file: data})
    assert reason in refused(pack(top, tmp_path / "top.zip") if packed else top)


def test_no_masks_at_all(tmp_path: Path) -> None:
    plant(tmp_path, {"a.png": "", "masks/b.png": "", "masks/a.jpg": ""})
    assert refused(tmp_path, "masks").startswith(f"{tmp_path}: no masks beside 1 film; looked for NAME_mask.png")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("masks", ["images/x.png", "images/x.tif", "masks/x.png"]),
        ("masks", ["normal/x.png", "broken/x.png", "labels/x.png"]),
        ("boxes", ["x.png", "x.jpg", "x.xml"]),
        ("boxes", ["a/x.png", "b/x.png", "annotations/x.xml"]),
        ("boxes", ["x.png", "x.dcm", "x.json"]),
    ],
)
def test_what_two_films_could_claim_is_refused(what: What, names: list[str], tmp_path: Path) -> None:
    text = {"xml": voc(HAND), "json": sidecar(HAND)}
    plant(tmp_path, {name: text.get(name.rpartition(".")[2], "") for name in names})
    one, two, file = names
    message = refused(tmp_path, what)
    assert message.startswith(f"{file}: belongs to ") and one in message and two in message


def test_links_out_of_the_source_are_never_read(tmp_path: Path) -> None:
    secret = plant(tmp_path / "secret", {"a.xml": "secret", "annotations/b.xml": "secret", "boxes.csv": "secret"})
    root = plant(tmp_path / "films", {"sub/a.png": "", "sub/b.png": "", "c.png": "", "c.xml": voc(MARKER)})
    source = open_source(root)
    (root / "annotations").symlink_to(secret / "annotations")
    (root / "boxes.csv").symlink_to(secret / "boxes.csv")
    (root / "sub" / "a.xml").symlink_to(secret / "a.xml")
    (root / "sub" / "b.json").symlink_to("b.png")  # one that stays inside, to what is no JSON, is followed
    assert refused(source).startswith("sub/b.json: not the JSON")
    (root / "sub" / "b.json").unlink()
    assert found(source, "boxes") == {"c.png": (MARKER,)}


def test_a_mask_that_becomes_a_link_out_is_refused_when_read(tmp_path: Path) -> None:
    plant(tmp_path, {"films/a.png": "", "films/b.png": "", "films/a_mask.png": "", "secret.png": "secret"})
    masked = annotate(open_source(tmp_path / "films"), "masks")
    (tmp_path / "films" / "a_mask.png").unlink()
    (tmp_path / "films" / "a_mask.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match=r"a_mask\.png: a link that leads out"):
        masked.read("a_mask.png")


def nifti(array: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1])).to_bytes()


def test_a_nifti_mask_of_one_slice_is_read_and_a_volume_refused_in_a_line(tmp_path: Path) -> None:
    inside = np.zeros((20, 30), np.uint8)
    inside[3:9, 5:25] = 2
    levels = inside * 100
    plant(tmp_path, {"imagesTr/a_0000.nii": nifti(levels.T), "labelsTr/a.nii": nifti(inside.T[..., None])})
    plant(tmp_path, {"imagesTr/b_0000.nii": nifti(levels.T), "labelsTr/b.nii": nifti(np.stack([inside.T] * 4, 2))})
    masked = annotate(open_source(tmp_path), "masks")
    one, volume = (record.mask or "" for record in masked.records)
    film = read_film("a", masked.read(masked.records[0].path)).pixels
    np.testing.assert_array_equal(read_mask(one, masked.read(one)), inside > 0)
    np.testing.assert_array_equal(film > 0, inside > 0)
    with pytest.raises(InputError, match=r"^labelsTr/b\.nii: shape \(30, 20, 4\); .* one slice") as caught:
        read_mask(volume, masked.read(volume))
    assert "\n" not in str(caught.value)
