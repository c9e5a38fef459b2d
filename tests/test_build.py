import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
import tifffile

from preprocessing import InputError
from preprocessing import build as build_module
from preprocessing import prepare as prepare_module
from preprocessing.build import BuildOptions, Progress, build, cache_path
from preprocessing.cache.reader import Cache
from preprocessing.cache.writer import Writer
from preprocessing.recipe import Localization, Nets, Recipe
from preprocessing.sources import Record, open_source

RECIPE = Recipe(name="limb", size=32, mask="otsu", carrier="none")
VARIANTS = ("raw", "full-he")


class Net:
    """What a trained net tells of itself."""

    name, run, digest = "ssd", "/runs/ssd", "0123456789ab"


class Slow(Net):
    """A localiser that takes its time, so that a test can interrupt it."""

    def __call__(self, film):
        time.sleep(0.02)


class Deadly(Net):
    """A localiser that ends its process at films of one width, as a lack of memory does."""

    def __init__(self, width):
        self.width = width

    def __call__(self, film):
        if film.shape[1] == self.width:
            os._exit(1)


class Failing(Net):
    """A localiser with a bug."""

    def __call__(self, film):
        raise ZeroDivisionError("no\nluck")


def draw(path, seed, shape=(48, 40), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).random(shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc = ((y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2) < (min(shape) / 3) ** 2
    levels = np.iinfo(dtype).max * (0.1 * noise + 0.7 * disc)
    assert cv2.imwrite(str(path), levels.astype(dtype))
    return disc


def tree(root, films=9, shape=(48, 40)):
    """A folder as MURA has it, two films a study, every third study abnormal."""
    for i in range(films):
        study = i // 2
        label = "positive" if study % 3 == 2 else "negative"
        draw(root / f"patient{study:05}/study1_{label}/image{i % 2 + 1}.png", i, shape)
    return root


@pytest.fixture
def films(tmp_path):
    return tree(tmp_path / "films")


def make(folder, path, nets=Nets(), on_progress=None, **options):
    options = BuildOptions(**({"variants": VARIANTS, "workers": 1} | options))
    return build(open_source(folder), RECIPE, path, nets, options, on_progress)


def test_a_cache_holds_what_the_recipe_makes(films, tmp_path):
    seen = []
    report = make(films, tmp_path / "t.h5", on_progress=seen.append, command="anomaly preprocess films --size 32")
    cache = Cache(report.path)
    assert (report.rows, report.failures, report.reused, report.kept) == (9, [], False, 0)
    assert len(cache) == 9
    assert cache.verify() == []
    assert (cache.dtype, cache.size, cache.variants, cache.command) == (
        np.uint8,
        32,
        VARIANTS,
        "anomaly preprocess films --size 32",
    )
    assert (cache.source, cache.source_kind, cache.source_path) == ("films", "mura", str(films))
    assert Recipe.from_json(cache.recipe_json) == RECIPE
    assert cache.index["path"].tolist() == [record.path for record in open_source(films).records]
    assert cache.index["label"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert set(cache.index["height"]) == {48} and set(cache.index["width"]) == {40}
    assert cache.films("full-he", slice(None)).any(axis=(1, 2)).all()
    assert seen[-1] == Progress("films", 9, 9)
    assert {progress.phase for progress in seen} == {"depth", "films"}


def test_the_content_is_the_same_for_any_number_of_workers(films, tmp_path):
    caches = [Cache(make(films, tmp_path / f"{n}.h5", workers=n).path) for n in (1, 2, 3)]
    assert len({cache.content_hash for cache in caches}) == 1
    for cache in caches[1:]:
        np.testing.assert_array_equal(cache.films("full-he", slice(None)), caches[0].films("full-he", slice(None)))


def test_deep_films_make_a_deep_cache(films, tmp_path):
    draw(films / "patient99999/study1_negative/image1.png", 0, dtype=np.uint16)
    cache = Cache(make(films, tmp_path / "t.h5").path)
    assert cache.dtype == np.uint16
    assert cache.index["depth"].tolist() == [8] * 9 + [16]
    assert cache.films("raw", slice(None)).max(axis=(1, 2)).tolist() == [65535] * 10


def test_given_boxes_masks_and_truth_are_taken(tmp_path):
    root = tmp_path / "films"
    disc = draw(root / "a.png", 0)
    draw(root / "b.png", 1)
    assert cv2.imwrite(str(root / "mask.png"), disc.astype(np.uint8) * 255)
    (root / "manifest.csv").write_text(
        "path,label,box,mask,anomaly_mask\na.png,abnormal,4 4 36 44,mask.png,mask.png\nb.png,normal,,,\n"
    )
    cache = Cache(make(root, tmp_path / "t.h5").path)
    np.testing.assert_array_equal(cache.index["box"][0], [4, 4, 36, 44])
    assert cache.has_truth.tolist() == [True, False]
    truth = cache.anomaly("full-he", np.array([0]))
    np.testing.assert_array_equal(truth, cache.masks("full-he", np.array([0])))
    assert 0 < cache.anomaly("raw", np.array([0])).sum() < truth.sum()


def test_films_that_cannot_be_read_are_rows_of_failures(films, tmp_path):
    broken = films / "patient00001/study1_negative/image1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (films / "patient00003/study1_negative/image2.png").write_text("no film")
    for workers in (1, 2):
        report = make(films, tmp_path / f"{workers}.h5", workers=workers)
        assert report.rows == 7
        assert all(path not in reason for path, reason in report.failures)
        assert [path for path, _ in report.failures] == [
            "patient00001/study1_negative/image1.png",
            "patient00003/study1_negative/image2.png",
        ]
        cache = Cache(report.path)
        assert cache.failures == report.failures
        assert cache.verify() == []


def test_without_a_single_good_film_there_is_no_cache(films, tmp_path):
    with pytest.raises(
        InputError, match=r"none of 9 films could be prepared; .*image1.png: ZeroDivisionError: no luck"
    ):
        make(films, tmp_path / "cache/t.h5", nets=Nets(localizer=Failing()))
    assert list((tmp_path / "cache").iterdir()) == []


def test_bad_settings_are_named(films, tmp_path):
    with pytest.raises(InputError, match="no variant 'full-eq'; there are: raw"):
        make(films, tmp_path / "t.h5", variants=["full-eq"])
    with pytest.raises(InputError, match="no compression 'zip'; there are: lzf, gzip"):
        make(films, tmp_path / "t.h5", compression="zip")
    with pytest.raises(InputError, match="-1 workers"):
        make(films, tmp_path / "t.h5", workers=-1)
    (tmp_path / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(InputError, match="folder: is a folder; name a file"):
            make(films, tmp_path / "folder", force=force)
    assert sorted(tmp_path.iterdir()) == [films, tmp_path / "folder"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        make(films, tmp_path / "file/t.h5")


# Hands, boxes, masks, nets


class Pair(Net):
    """A localiser that finds two hands on every other film, and tells which processes it worked in."""

    def __init__(self, folder=None, seconds=0.0):
        self.folder, self.seconds = folder, seconds

    def __call__(self, film):
        if self.folder is not None:
            (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds)
        height, width = film.shape
        hands = ("left", (width / 2, 0.0, float(width), float(height))), ("right", (0.0, 0.0, width / 2, float(height)))
        return Localization(hands[: 1 + int(film[0, 0]) % 2])


def test_two_hands_are_two_rows_of_one_film(films, tmp_path):
    (films / "patient00002/study1_positive/image1.png").write_bytes(b"no film")
    seen = []
    reports = [
        make(films, tmp_path / f"{n}.h5", nets=Nets(localizer=Pair()), workers=n, on_progress=seen.append)
        for n in (1, 2)
    ]
    caches = [Cache(report.path) for report in reports]
    cache, report = caches[0], reports[0]
    assert seen[-1] == Progress("films", 9, 9, 1)
    assert caches[1].content_hash == cache.content_hash and cache.verify() == []
    assert 8 < report.rows == len(cache) < 16
    paths, hands = cache.index["path"].tolist(), cache.index["hand"].tolist()
    good = [record.path for record in open_source(films).records if record.path != report.failures[0][0]]
    assert list(dict.fromkeys(paths)) == good and len(report.failures) == 1
    for path in set(paths):
        mine = [i for i, other in enumerate(paths) if other == path]
        assert [hands[i] for i in mine] in ([0], [1, 2])
        assert mine == list(range(mine[0], mine[-1] + 1))
        sides = [cache.index["side"][i] for i in mine]
        assert sides == (["right", "left"] if len(mine) == 2 else ["left"])
    assert len(set(cache.names)) == len(cache)
    assert cache.nets == {"localizer": {"name": "ssd", "run": "/runs/ssd", "digest": "0123456789ab"}}
    assert make(films, tmp_path / "1.h5", nets=Nets(localizer=Pair())).reused
    draw(films / "patient99999/study1_negative/image1.png", 0)
    with pytest.raises(InputError, match=r"the source has changed since \(9 films then, 10 now\)"):
        make(films, tmp_path / "1.h5", nets=Nets(localizer=Pair()))


@pytest.mark.parametrize("after", range(1, 9))
def test_a_build_of_two_handed_films_goes_on_where_it_stopped(films, tmp_path, after):
    def stop(progress):
        if (progress.phase, progress.done) == ("films", after):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path / "t.h5", nets=Nets(localizer=Pair()), on_progress=stop)
    assert make(films, tmp_path / "t.h5", nets=Nets(localizer=Pair())).kept == after
    whole = make(films, tmp_path / "whole.h5", nets=Nets(localizer=Pair()))
    assert Cache(tmp_path / "t.h5").content_hash == Cache(whole.path).content_hash


def boxed(folder, *boxes, **changes):
    """The source of a folder, with these boxes on its first film."""
    source = open_source(folder)
    source.records[0] = replace(source.records[0], boxes=boxes, **changes)
    return source


PLAIN = Recipe(name="plain", size=32)  # films of 40 x 48 lie in it from 3 to 30 across, from 0 to 32 down


def test_boxes_are_carried_into_the_crop(films, tmp_path):
    boxes = ("left hand", 0.0, 0.0, 40.0, 48.0), ("right marker", 10.0, 6.0, 20.0, 12.0), ("left marker", 0, 45, 5, 48)
    build(boxed(films, *boxes), PLAIN, tmp_path / "t.h5", options=BuildOptions(variants=["crop"], workers=1))
    cache = Cache(tmp_path / "t.h5")
    found = cache.boxes(slice(None))
    across, down = 27 / 40, 32 / 48  # the crop's sides are rounded to whole pixels
    expected = [(2, 0, 29, 32, 2), (2 + 10 * across, 6 * down, 2 + 20 * across, 12 * down, 3)]
    np.testing.assert_allclose(found[0, :2], expected, atol=1e-5)
    assert found[0, 2].tolist() == pytest.approx([2, 30, 2 + 5 * across, 32, 4])
    assert not found[0, 3:].any() and not found[1:].any()
    cropped = boxed(films, *boxes, box=(8, 9, 40, 41))
    build(cropped, PLAIN, tmp_path / "c.h5", options=BuildOptions(variants=["full"], workers=1))
    found = Cache(tmp_path / "c.h5").boxes(slice(0, 1))[0]
    # Of the hand just over half is there, cut to the crop; half the right marker; of the left one nothing.
    np.testing.assert_allclose(found[:2], [(0, 0, 32, 32, 2), (2, 0, 12, 3, 3)], atol=1e-5)
    assert not found[2:].any()
    assert not Cache(
        build(cropped, PLAIN, tmp_path / "r.h5", options=BuildOptions(variants=["raw"], workers=1)).path
    ).has_boxes


def test_a_box_on_a_tilted_carrier_holds_what_it_held():
    """Every corner of a box is where the matrix takes it, and the box around them is taken."""
    record = Record("a.png", "p", "s", 0, boxes=(("right hand", 20.0, 30.0, 60.0, 90.0),))
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 40], [np.sin(angle), np.cos(angle), 5]])
    prepared = SimpleNamespace(frame=(0.0, 0.0, 128.0, 128.0), matrices={"crop": turn})
    ((x0, y0, x1, y1, kind),) = prepare_module._boxes_in_crop(record, prepared)
    corners = [turn @ (x - 0.5, y - 0.5, 1) + 0.5 for x in (20, 60) for y in (30, 90)]
    np.testing.assert_allclose([(x0, y0), (x1, y1)], [np.min(corners, axis=0), np.max(corners, axis=0)], rtol=1e-6)
    assert kind == 1


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([("left hand", 0, 0, 9, 9)] * 17, "17 boxes; a film may have 16"),
        ([("left foot", 0, 0, 9, 9)], "a box of class 'left foot'; there are: right hand, left hand, right marker"),
        ([("left hand", 0, 0, 80, 96)], "the box 0 0 80 96 of a left hand is not one on this film of 40 x 48 pixels"),
        ([("left hand", 9, 0, 9, 20)], "the box 9 0 9 20 of a left hand is not one on this film"),
        ([("left hand", 0, 0, float("nan"), 9)], "the box 0 0 nan 9 of a left hand is not one on this film"),
    ],
)
def test_boxes_that_cannot_be_meant_are_failures(films, tmp_path, boxes, reason):
    report = build(boxed(films, *boxes), PLAIN, tmp_path / "t.h5", options=BuildOptions(variants=["crop"], workers=1))
    assert report.rows == 8 and reason in report.failures[0][1]


def test_given_masks_are_known_from_estimated_ones(tmp_path):
    root = tmp_path / "films"
    disc = draw(root / "a.png", 0)
    draw(root / "b.png", 1)
    draw(root / "c.png", 2)
    assert cv2.imwrite(str(root / "mask.png"), disc.astype(np.uint8) * 255)
    assert cv2.imwrite(str(root / "empty.png"), disc.astype(np.uint8) * 0)
    (root / "manifest.csv").write_text("path,label,mask\na.png,0,mask.png\nb.png,0,\nc.png,0,empty.png\n")
    cache = Cache(make(root, tmp_path / "t.h5").path)
    assert cache.index["given"].tolist() == [True, False, False]
    assert cache.index["fallbacks"].tolist() == ["", "", "mask"]


# A source that changes while it is read


def at(done, act):
    """Do something once, when so many films are done."""
    waiting = [act]

    def on_progress(progress):
        if (progress.phase, progress.done) == ("films", done) and waiting:
            waiting.pop()()

    return on_progress


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_film_that_changes_while_the_source_is_read_is_noticed(tmp_path, packed, workers):
    root = plain_tree(tmp_path / "films")
    source = tmp_path / "films.zip" if packed else root

    def pack():
        if packed:
            with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
                for film in sorted(root.iterdir()):
                    archive.write(film, film.name)
            (tmp_path / "new.zip").replace(source)

    def change():
        alter(root / "1.tif")
        os.utime(root / "1.tif", (10**9, 10**9))
        pack()

    pack()
    path = tmp_path / "t.h5"
    with pytest.raises(InputError, match=r"films(\.zip)?: 1\.tif changed while the source was read; .* command"):
        make(source, path, workers=workers, on_progress=at(3, change))
    assert not path.exists()
    again = make(source, path, workers=workers)
    assert (again.kept, again.rows, again.notes) == (1, 4, ())
    whole = make(source, tmp_path / "whole.h5")
    assert Cache(path).content_hash == Cache(whole.path).content_hash
    touched = make(source, tmp_path / "u.h5", on_progress=at(3, lambda: (root / "1.tif").touch() or pack()))
    assert touched.rows == 4  # newer, but the same


def test_a_film_that_goes_while_the_source_is_read_is_noticed(tmp_path):
    films = plain_tree(tmp_path / "films")
    with pytest.raises(InputError, match=r"2\.tif changed while the source was read"):
        make(films, tmp_path / "t.h5", on_progress=at(3, (films / "2.tif").unlink))
    assert make(films, tmp_path / "t.h5").rows == 3


def test_a_film_that_was_still_being_written_is_noticed(tmp_path):
    """It was a failure, and as large as it is now that it is whole."""
    films = plain_tree(tmp_path / "films")
    whole = (films / "0.tif").read_bytes()
    (films / "0.tif").write_bytes(bytes(len(whole)))
    with pytest.raises(InputError, match=r"0\.tif changed while the source was read"):
        make(films, tmp_path / "t.h5", on_progress=at(3, lambda: (films / "0.tif").write_bytes(whole)))
    report = make(films, tmp_path / "t.h5")
    assert (report.kept, report.rows, report.failures) == (0, 4, [])


def test_a_mask_that_changes_while_the_source_is_read_is_noticed(tmp_path):
    root = tmp_path / "films"
    disc = draw(root / "a.png", 0)
    draw(root / "b.png", 1)
    tifffile.imwrite(root / "mask.tif", disc.astype(np.uint8) * 255)
    (root / "manifest.csv").write_text("path,label,mask\na.png,0,\nb.png,0,mask.tif\n")
    with pytest.raises(InputError, match=r"b\.png changed while the source was read"):
        make(root, tmp_path / "t.h5", on_progress=at(2, lambda: alter(root / "mask.tif")))
    assert make(root, tmp_path / "t.h5").kept == 1


def test_a_film_that_changed_before_a_build_was_interrupted_is_noticed_by_the_next(tmp_path):
    films = plain_tree(tmp_path / "films")

    def change_and_stop():
        alter(films / "0.tif")
        time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path / "t.h5", on_progress=at(3, change_and_stop))
    report = make(films, tmp_path / "t.h5")
    assert (report.kept, report.rows) == (0, 4)
    assert "discarded, 0.tif has changed since" in report.notes[0]


# What is there already


def test_a_complete_cache_is_returned_as_it_is(films, tmp_path):
    first = make(films, tmp_path / "t.h5")
    stamp = first.path.stat().st_mtime_ns
    again = make(films, tmp_path / "t.h5", variants=VARIANTS[::-1])
    assert again.reused and again.rows == 9
    assert first.path.stat().st_mtime_ns == stamp
    forced = make(films, tmp_path / "t.h5", force=True)
    assert not forced.reused
    assert first.path.stat().st_mtime_ns != stamp


def test_a_cache_of_something_else_is_replaced_by_force_alone(films, tmp_path):
    path = make(films, tmp_path / "t.h5").path
    before = path.read_bytes()
    with pytest.raises(InputError, match="a cache of another variants; `--force` replaces it"):
        make(films, path, variants=["raw"])
    with pytest.raises(InputError, match="a cache of another recipe; `--force` replaces it"):
        make(films, path, nets=Nets(localizer=Slow()))
    draw(films / "patient99999/study1_negative/image1.png", 0)
    with pytest.raises(
        InputError,
        match=r"the source has changed since \(9 films then, 10 now\); `--force` replaces it, and runs trained",
    ):
        make(films, path)
    with pytest.raises(InputError, match=rf"a cache of another source \({films}\); `--force` replaces it"):
        make(tree(tmp_path / "others/films", 3), path)
    assert path.read_bytes() == before
    assert make(films, path, force=True).rows == 10


@pytest.mark.parametrize("damage", ["cut", "label", "schema", "empty"])
def test_a_cache_that_cannot_be_used_is_replaced_by_force(films, tmp_path, damage):
    path = make(films, tmp_path / "t.h5").path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        with h5py.File(path, "r+") as file:
            if damage == "label":
                file["index/label"][0] = 1
            else:
                file.attrs["schema"] = 0
    with pytest.raises(InputError, match=r"t\.h5: [^;]*; `--force` replaces it$"):
        make(films, path)
    assert make(films, path, force=True).rows == 9


def test_no_other_file_is_ever_replaced(films, tmp_path):
    path = tmp_path / "notes.py"
    path.write_text("my notes")
    with pytest.raises(InputError, match=r"not a cache \(not an HDF5 file\); name another file with `--out`"):
        make(films, path)
    with pytest.raises(InputError, match="not a cache, so `--force` does not replace it; name another file"):
        make(films, path, force=True)
    assert path.read_text() == "my notes"
    assert sorted(tmp_path.iterdir()) == [films, path]


def alter(path):
    """Draw another film into a file without changing its size, as its levels' bytes are stored plainly."""
    data = bytearray(path.read_bytes())
    data[-500] ^= 1
    path.write_bytes(data)


def plain_tree(root):
    """Films of a format that stores every level plainly."""
    for i in range(4):
        path = root / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.random.default_rng(i).integers(0, 255, (48, 40), np.uint8))
    return root


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_film_changed_at_the_same_size_is_noticed(tmp_path, packed):
    root = plain_tree(tmp_path / "films")
    source = tmp_path / "films.zip" if packed else root

    def pack():
        if packed:
            with zipfile.ZipFile(source, "w") as archive:
                for film in sorted(root.iterdir()):
                    archive.write(film, film.name)

    pack()
    path = make(source, tmp_path / "t.h5").path
    for film in root.iterdir():
        film.touch()
    pack()
    assert make(source, path).reused  # newer, but the same
    alter(root / "2.tif")
    os.utime(root / "2.tif", (10**9, 10**9))  # as an unpacked file brings its time along
    pack()
    with pytest.raises(
        InputError, match=r"the source has changed since \(4 films then, 4 now, another 2\.tif\); `--force` replaces it"
    ):
        make(source, path)
    assert Cache(make(source, path, force=True).path).verify() == []


def test_an_interrupted_build_notices_a_film_changed_at_the_same_size(tmp_path):
    def stop(progress):
        if (progress.phase, progress.done) == ("films", 3):
            raise KeyboardInterrupt

    films = plain_tree(tmp_path / "films")
    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path / "t.h5", on_progress=stop)
    alter(films / "1.tif")
    report = make(films, tmp_path / "t.h5")
    assert (report.kept, report.rows) == (0, 4)
    assert "discarded, 1.tif has changed since" in report.notes[0]


def test_the_name_of_a_cache_tells_recipes_and_variants_apart(films):
    source = open_source(films)
    path = cache_path(source, RECIPE, VARIANTS)
    assert path.parent == Path("cache")
    assert path.name.startswith("films-limb-32-") and len(path.stem.rpartition("-")[2]) == 8
    assert cache_path(source, RECIPE, VARIANTS[::-1]) == path
    others = {
        cache_path(source, RECIPE, ["raw"]),
        cache_path(source, Recipe(name="limb", size=32), VARIANTS),
        cache_path(source, RECIPE, VARIANTS, nets=Nets(localizer=Slow())),
        cache_path(source, RECIPE, VARIANTS, nets=Nets(segmenter=Slow())),
        path,
    }
    assert len(others) == 5


# Interruptions

BUILD = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from preprocessing.cache import writer
from test_build import InputError, Nets, Slow, make
writer.FLUSH_SECONDS = 0.02
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
if __name__ == "__main__":
    try:
        make(Path({films!r}), Path({path!r}), workers={workers}, compression={compression!r}, nets=Nets(Slow()))
    except InputError as error:
        print(error)
"""


def start(films, path, *, workers=1, compression=None, limit=0):
    script = BUILD.format(
        tests=str(Path(__file__).parent),
        films=str(films),
        path=str(path),
        workers=workers,
        compression=compression,
        limit=limit,
    )
    file = path.with_suffix(".py")
    file.write_text(script)
    return subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(path.parent)},
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, workers, how):
    films, path = tree(tmp_path / "films", 60), tmp_path / "t.h5"
    process = start(films, path, workers=workers)
    journal = path.with_name("t.h5.partial.rows")
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == (workers if workers > 1 else 0)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C does
    else:
        process.kill()  # the parent alone: its workers end with it
        process.wait()
    out, err = process.communicate()
    assert process.returncode == -how, out + err
    assert how == signal.SIGKILL or err.count("Traceback") == 1, (
        err
    )  # the parent's own, which a command turns to a line
    assert not path.exists()
    deadline = time.monotonic() + 30  # the machine may be busy
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{child}").exists() for child in children)  # workers end with their parent

    report = make(films, path, nets=Nets(localizer=Slow()))
    assert 10 <= report.kept < 60
    assert report.rows == 60
    assert not any("discarded" in note for note in report.notes)
    assert not any(path.parent.glob("*.partial*"))
    whole = make(films, tmp_path / "whole.h5", nets=Nets(localizer=Slow()), workers=2)
    assert Cache(path).content_hash == Cache(whole.path).content_hash
    assert Cache(path).verify() == []


def test_a_journal_that_a_kill_left_beside_the_finished_cache_goes(tmp_path):
    films, path = tree(tmp_path / "films", 4), tmp_path / "t.h5"
    make(films, path)
    journal = path.with_name("t.h5.partial.rows")
    for partial in (True, False):  # with a partial cache it is another build's, by --force
        journal.write_text("{}\n")
        if partial:
            path.with_name("t.h5.partial").touch()
        assert make(films, path).reused
        assert journal.exists() == partial
        path.with_name("t.h5.partial").unlink(missing_ok=True)


def test_ctrl_c_while_workers_start_is_quiet(tmp_path):
    process = start(tree(tmp_path / "films", 20), tmp_path / "t.h5", workers=2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 2:
        time.sleep(0.01)
    time.sleep(0.1)  # they import now
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1, err


def test_there_are_no_more_workers_than_films(films, tmp_path, monkeypatch):
    asked = []

    def run_in_order(function, tasks, *, workers, ahead):
        asked.append(workers)
        return (function(task) for task in tasks)

    monkeypatch.setattr(build_module, "run_in_order", run_in_order)
    make(films, tmp_path / "t.h5", workers=64)
    assert asked == [9]
    make(tree(tmp_path / "one", 1), tmp_path / "one.h5", workers=64)
    assert asked == [9]  # a single film is prepared in this process


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_done(films, tmp_path, workers):
    def stop(progress):
        if (progress.phase, progress.done) == ("films", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path / "t.h5", workers=workers, on_progress=stop)
    assert make(films, tmp_path / "t.h5").kept == 4


def test_two_builds_of_one_cache_do_not_meet(films, tmp_path):
    def meet(progress):
        if progress.phase == "films" and progress.done == 3:
            with pytest.raises(InputError, match="another process is writing this cache"):
                make(films, tmp_path / "t.h5")

    assert make(films, tmp_path / "t.h5", on_progress=meet).rows == 9


def test_a_changed_source_starts_anew(films, tmp_path):
    def stop(progress):
        if (progress.phase, progress.done) == ("films", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path / "t.h5", on_progress=stop)
    draw(films / "patient99999/study1_negative/image1.png", 0)
    report = make(films, tmp_path / "t.h5")
    assert (report.kept, report.rows) == (0, 10)
    assert "begun with another source_hash, total" in report.notes[0]


def test_a_film_that_ends_its_worker_is_a_failure(tmp_path):
    films = tree(tmp_path / "films", 20)
    draw(films / "patient00004/study1_negative/image1.png", 0, (48, 44))
    report = make(films, tmp_path / "t.h5", nets=Nets(localizer=Deadly(44)), workers=2)
    assert report.rows == 19
    assert [path for path, _ in report.failures] == ["patient00004/study1_negative/image1.png"]
    assert "the worker process ended" in report.failures[0][1]


def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    films, workers = tree(tmp_path / "films", 60), tmp_path / "workers"
    workers.mkdir()

    def kill():
        (pid, *_) = [int(file.name) for file in workers.iterdir()]
        os.kill(pid, signal.SIGKILL)

    report = make(
        films, tmp_path / "t.h5", nets=Nets(localizer=Pair(workers, 0.01)), workers=2, on_progress=at(10, kill)
    )
    assert len(list(workers.iterdir())) > 2  # others took its place
    whole = make(films, tmp_path / "whole.h5", nets=Nets(localizer=Pair()))
    assert report.failures == [] and report.rows == whole.rows > 60
    assert Cache(report.path).content_hash == Cache(whole.path).content_hash
    assert Cache(report.path).verify() == []


class Torn(Net):
    """A localiser, once of which the worker dies with half of its next result in the pipe."""

    def __init__(self, mark=None):
        self.mark = mark

    def __call__(self, film):
        if self.mark is not None and not self.mark.exists():
            self.mark.touch()

            def send(connection, data, write=os.write):
                write(connection.fileno(), bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

            Connection._send = send
        return


def test_a_worker_that_dies_in_the_middle_of_a_result_is_noticed(tmp_path):
    films = tree(tmp_path / "films", 24)
    report = make(films, tmp_path / "t.h5", nets=Nets(localizer=Torn(tmp_path / "mark")), workers=2)
    whole = make(films, tmp_path / "whole.h5", nets=Nets(localizer=Torn()))
    assert (tmp_path / "mark").exists() and report.failures == []
    assert Cache(report.path).content_hash == Cache(whole.path).content_hash


# A cluster


def test_a_cluster_makes_the_same_cache_and_gets_over_the_loss_of_a_worker(tmp_path, cluster):
    address, processes = cluster
    films, workers = tree(tmp_path / "films", 40), tmp_path / "workers"
    workers.mkdir()
    net = Pair(workers, 0.01)

    def stop(progress):
        if (progress.phase, progress.done) == ("films", 10):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path / "t.h5", nets=Nets(localizer=net), cluster=address, on_progress=stop)
    report = make(
        films, tmp_path / "t.h5", nets=Nets(localizer=net), cluster=address, on_progress=at(20, processes[1].kill)
    )
    assert (report.kept, report.failures) == (10, [])
    assert {int(file.name) for file in workers.iterdir()} <= {process.pid for process in processes[1:]}
    whole = make(films, tmp_path / "whole.h5", nets=Nets(localizer=Pair()))
    assert Cache(report.path).content_hash == Cache(whole.path).content_hash
    assert Cache(report.path).verify() == []
    with pytest.raises(InputError, match=r"the cluster failed .* the same command resumes"):
        make(films, tmp_path / "u.h5", nets=Nets(localizer=net), cluster=address, on_progress=at(10, processes[0].kill))
    assert make(films, tmp_path / "u.h5", nets=Nets(localizer=net)).kept >= 10


def test_a_cluster_that_does_not_answer_is_named(films, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("preprocessing.cluster.CLUSTER_SECONDS", 0.5)
    for address in ("tcp://127.0.0.1:9", "127.0.0.1:9", "nonsense", "ftp://127.0.0.1:9"):
        with pytest.raises(InputError, match=rf"^{address}: no Dask scheduler answered within 0.5 s") as caught:
            make(films, tmp_path / "t.h5", cluster=address)
        assert "\n" not in str(caught.value)


def test_without_dask_there_is_no_cluster(films, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"no cluster without Dask .*; run `pip install xray-anomaly\[cluster\]`"):
        make(films, tmp_path / "t.h5", cluster="tcp://127.0.0.1:9")


# Disks


def test_a_disk_that_is_too_small_is_refused_at_once(films, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(InputError, match=r"0\.0 MB free, this cache needs .* MB; free some space"):
        make(films, tmp_path / "cache/t.h5")
    assert list((tmp_path / "cache").iterdir()) == []
    assert make(films, tmp_path / "cache/t.h5", compression="gzip").rows == 9


def test_a_disk_that_becomes_full_keeps_what_is_done(films, tmp_path, monkeypatch):
    append = Writer.append

    def full(writer, *rows, **settings):
        if writer.done == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(writer, *rows, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "append", full)
        with pytest.raises(InputError, match=r"the disk is full; .* repeat the command: it resumes$"):
            make(films, tmp_path / "t.h5")
    assert make(films, tmp_path / "t.h5").kept == 5


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_that_may_not_grow_is_told_in_one_line(tmp_path, compression):
    films, path = tree(tmp_path / "films", 60), tmp_path / "t.h5"
    process = start(films, path, compression=compression, limit=60_000)
    out, err = process.communicate()
    assert out.count("\n") == 1 and "the disk is full" in out, out + err
    assert out.rstrip().endswith("repeat the command: it resumes")
    assert err == ""
    report = make(films, path, nets=Nets(localizer=Slow()), compression=compression)
    assert report.rows == 60
    assert Cache(path).verify() == []
    assert not any("discarded" in note for note in report.notes)


LIMITED = """
import resource, sys
sys.dont_write_bytecode = True  # a limit also cuts bytecode files short, and the next import of one fails
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
sys.argv = ["anomaly", *{arguments!r}]
from anomaly.cli.app import main
main()
"""


@pytest.mark.parametrize("compression", [None, "lzf"])
def test_the_command_ends_with_one_line_wherever_the_disk_becomes_full(tmp_path, compression):
    """Not by a signal, as HDF5 does that is asked to write again; with room the same command completes the cache."""
    films, out = tree(tmp_path / "films", 12), tmp_path / "t.h5"
    arguments = ["preprocess", str(films), "--size", "64", "--workers", "1", "--out", str(out)]
    arguments += [] if compression is None else ["--compression", compression]
    settings = {"variants": ["full-he"], "workers": 1, "compression": compression}
    whole = build(open_source(films), Recipe(size=64), tmp_path / "whole.h5", options=BuildOptions(**settings))
    size = whole.path.stat().st_size

    def run(limit):
        script = LIMITED.format(limit=limit, arguments=arguments)
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)

    for limit in (300, size // 3, size - 9000, size - 2000):
        done = run(limit)
        assert done.returncode == 2, (limit, done)
        assert done.stderr.count("\n") == 1 and "the disk is full" in done.stderr, (limit, done.stderr)
        assert not out.exists()
    assert run(-1).returncode == 0
    assert Cache(out).content_hash == Cache(whole.path).content_hash
    assert Cache(out).verify() == []


def test_a_cluster_whose_workers_are_gone_for_good_ends_the_build(tmp_path, cluster, monkeypatch):
    address, processes = cluster
    monkeypatch.setattr("preprocessing.cluster.POLL_SECONDS", 0.2)
    monkeypatch.setattr("preprocessing.cluster.GONE_SECONDS", 1.0)
    films, workers = tree(tmp_path / "films", 40), tmp_path / "workers"
    workers.mkdir()

    def end_workers(progress):
        if (progress.phase, progress.done) == ("films", 4):
            for process in processes[1:]:
                process.kill()

    net = Pair(workers, 0.05)
    with pytest.raises(
        InputError, match=r"has had no worker for 1 s; start some with .*, and the same command resumes"
    ):
        make(films, tmp_path / "t.h5", nets=Nets(localizer=net), cluster=address, on_progress=end_workers)
    assert make(films, tmp_path / "t.h5", nets=Nets(localizer=net)).kept >= 4


def test_a_worker_with_another_version_of_the_package_is_refused(tmp_path, cluster, monkeypatch):
    address, _ = cluster
    monkeypatch.setattr("preprocessing.cluster.package_version", lambda: "0.0.1")
    with pytest.raises(InputError, match=r"worker tcp://\S+: has version \S+ of this program, not 0\.0\.1; it needs"):
        make(tree(tmp_path / "films", 4), tmp_path / "t.h5", cluster=address)
