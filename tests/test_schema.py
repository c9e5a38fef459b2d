import errno
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing import InputError
from preprocessing.cache import schema
from preprocessing.cache import writer as writer_module
from preprocessing.cache.disk import OutputFile
from preprocessing.cache.reader import Cache, newest_cache, replaceable
from preprocessing.cache.schema import COLUMNS, Header, Row
from preprocessing.cache.writer import Writer

SIZE = 20  # not a multiple of 8: packed masks end inside a byte
VARIANTS = ("raw", "crop-he", "full", "full-he", "crop-contrast")


def header(**changes):
    values = {
        "variants": VARIANTS,
        "size": SIZE,
        "dtype": "uint8",
        "recipe_json": '{"name": "hand"}',
        "recipe_digest": "0123456789ab",
        "source": "films",
        "source_kind": "mura",
        "source_hash": "cd" * 32,
        "synthetic": True,
        "truth": True,
        "command": "anomaly preprocess films",
    }
    return Header(**(values | changes))


def row(i, dtype="uint8", **changes):
    draw = np.random.default_rng(i)
    levels = np.iinfo(dtype).max
    values = {
        "path": f"a/ü{i}.png",
        "patient": f"p{i // 2}",
        "study": f"p{i // 2}/s1",
        "label": i % 3 - 1,
        "split": "train",
        "finding": "",
        "difficulty": "easy",
        "sha256": f"{i:064x}",
        "height": 100 + i,
        "width": 80,
        "depth": 8,
        "inverted": bool(i % 2),
        "fallbacks": "carrier,mask" if i % 2 else "",
        "carrier": None if i % 2 else np.arange(8, dtype=np.float32).reshape(4, 2),
        "box": (1.5, 2, 3, 4) if i % 2 else None,
        "matrix_raw": np.eye(2, 3),
        "matrix_crop": np.eye(2, 3) / 3,
        "grey": [[0.5, 0.1]] * 3,
        "films": {v: draw.integers(0, levels, (SIZE, SIZE), dtype, endpoint=True) for v in VARIANTS},
        "masks": {s: draw.random((SIZE, SIZE)) > 0.5 for s in ("raw", "crop", "full")},
        "truth": {s: draw.random((SIZE, SIZE)) > 0.9 for s in ("raw", "crop")} if i % 2 else None,
    }
    return Row(**(values | changes))


def write(path, n=5, start=Writer, **kwargs):
    with start(path, header(), total=n + 1, **kwargs) as writer:
        for i in range(writer.done, n):
            if i == 2:
                writer.fail("broken.png", "cut\nshort")
            writer.append(row(i))
        writer.finish()
    return Cache(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "t.h5"


@pytest.fixture
def cache(path):
    return write(path)


def test_every_value_comes_back(cache, path):
    assert len(cache) == 5
    assert (cache.path, cache.size, cache.variants, cache.dtype) == (path, SIZE, VARIANTS, np.uint8)
    assert (cache.recipe_json, cache.recipe_digest) == ('{"name": "hand"}', "0123456789ab")
    assert (cache.source, cache.source_kind, cache.source_hash) == ("films", "mura", "cd" * 32)
    assert cache.synthetic is True
    assert cache.command == "anomaly preprocess films"
    assert cache.failures == [("broken.png", "cut short")]
    assert set(cache.index) == set(COLUMNS)
    assert cache.has_truth.tolist() == [False, True, False, True, False]
    for i in range(5):
        given, nan = row(i), float("nan")
        for name, (dtype, shape) in COLUMNS.items():
            found = cache.index[name]
            assert found.shape == (5, *shape)
            assert found.dtype == (object if dtype == "str" else dtype)
            if name not in ("truth", "checksum"):
                value = getattr(given, name)
                np.testing.assert_array_equal(found[i], np.full(shape, nan) if value is None else value)
        for variant in VARIANTS:
            stage = variant.split("-")[0]
            np.testing.assert_array_equal(cache.films(variant, [i])[0], given.films[variant])
            np.testing.assert_array_equal(cache.masks(variant, [i])[0], given.masks[stage])
            truth = cache.anomaly(variant, [i])[0]
            if given.truth:
                np.testing.assert_array_equal(truth, given.truth["raw" if stage == "raw" else "crop"])
            else:
                assert not truth.any()
    assert isinstance(cache.index["path"][0], str)


@pytest.mark.parametrize(
    "rows",
    [np.array([3, 0, 3, -1]), slice(None), slice(3, 0, -2), np.array([], int), np.arange(5) > 2],
    ids=["repeats", "all", "backwards", "none", "mask"],
)
def test_rows_come_in_the_order_asked_for(cache, rows):
    everything = np.stack([row(i).films["full-he"] for i in range(5)])
    np.testing.assert_array_equal(cache.films("full-he", rows), everything[rows])
    assert cache.masks("full-he", rows).shape == cache.anomaly("full-he", rows).shape == everything[rows].shape
    assert cache.masks("full-he", rows).dtype == bool


def test_a_row_beyond_the_end_is_an_index_error(cache):
    with pytest.raises(IndexError):
        cache.films("raw", np.array([5]))


def test_uint16_films_keep_their_levels(path):
    with Writer(path, header(dtype="uint16"), total=1) as writer:
        writer.append(row(1, "uint16"))
        writer.finish()
    films = Cache(path).films("raw", slice(None))
    assert films.dtype == np.uint16
    np.testing.assert_array_equal(films[0], row(1, "uint16").films["raw"])


def test_without_any_truth_there_is_none(path):
    with Writer(path, header(truth=False), total=1) as writer:
        writer.append(row(0))
        with pytest.raises(ValueError, match="without"):
            writer.append(row(1))
        writer.finish()
    assert Cache(path).anomaly("raw", slice(None)) is None
    assert not Cache(path).has_truth.any()


@pytest.mark.parametrize("compression", ["lzf", "gzip"])
def test_compression_changes_no_content(tmp_path, compression):
    plain, packed = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", compression=compression)
    assert plain.content_hash == packed.content_hash
    assert packed.verify() == []
    with h5py.File(packed.path, locking=False) as file:
        assert file["films/raw"].compression == compression


def test_one_film_is_one_chunk(cache):
    with h5py.File(cache.path) as file:
        assert file["films/raw"].chunks == (1, SIZE, SIZE)
        assert file["masks/full"].shape == (5, SIZE * SIZE // 8)


def test_films_are_read_past_hdf5_where_they_lie_as_they_are(tmp_path, monkeypatch):
    """And through it where they don't: compressed, or where the system gives less than was asked for."""
    plain, packed = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", compression="lzf")
    rows = np.array([3, 0, 3, 4])
    with h5py.File(plain.path, locking=False) as file:
        films, masks = file["films/full-he"][:][rows], file["masks/full"][:][rows]
    asked = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: asked.append(given) or real(*given))
    for cache, past in ((plain, 2 * len(rows)), (packed, 0)):
        cache.films("full-he", rows)  # and all else of these rows, once, to compare them with their checksums
        asked.clear()
        np.testing.assert_array_equal(cache.films("full-he", rows), films)
        np.testing.assert_array_equal(np.packbits(cache.masks("full", rows).reshape(4, -1), axis=1), masks)
        assert len(asked) == past
    monkeypatch.setattr(os, "preadv", lambda *given: 0)
    np.testing.assert_array_equal(Cache(plain.path).films("full-he", rows), films)


def test_a_pickled_cache_opens_anew(cache):
    films = cache.films("raw", slice(None))
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.films("raw", slice(None)), films)
    assert again.index["path"].tolist() == cache.index["path"].tolist()


def test_several_processes_read_at_once(cache):
    cache.films("raw", slice(None))
    read = f"print(len(Cache({str(cache.path)!r}).films('raw', slice(None))))"
    script = f"from preprocessing.cache.reader import Cache; {read}"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "5\n"


# Writing


@pytest.mark.parametrize(
    "changes",
    [
        {"films": {v: np.zeros((SIZE, SIZE + 1), "uint8") for v in VARIANTS}},
        {"films": {v: np.zeros((SIZE, SIZE), "uint16") for v in VARIANTS}},
        {"masks": dict.fromkeys(("raw", "crop", "full"), np.zeros((SIZE, SIZE), "uint8"))},
        {"box": (1, 2, 3)},
    ],
    ids=["film shape", "film type", "mask type", "box"],
)
def test_a_row_unlike_the_header_is_refused_and_leaves_no_trace(tmp_path, changes):
    with Writer(tmp_path / "t.h5", header(), total=1) as writer:
        with pytest.raises(ValueError):
            writer.append(row(0, **changes))
        assert writer.done == 0


@pytest.mark.parametrize("name", ["a\0b.png", "a\udcff.png"])
def test_a_name_that_cannot_be_stored_is_bad_input(tmp_path, name):
    with Writer(tmp_path / "t.h5", header(), total=2) as writer:
        with pytest.raises(InputError, match="rename it"):
            writer.append(row(0, path=name))
        writer.fail(name, "why")
        writer.append(row(0))
        writer.finish()
    assert len(Cache(tmp_path / "t.h5").failures) == 1


def test_finishing_early_is_refused(path):
    with Writer(path, header(), total=2) as writer:
        writer.append(row(0))
        with pytest.raises(ValueError, match="1 of 2"):
            writer.finish()
    assert not path.exists()


def test_a_closed_writer_is_taken_up_again(tmp_path):
    whole = write(tmp_path / "whole.h5")
    path = tmp_path / "t.h5"
    seen = []
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0))
        writer.append(row(1))
        writer.fail("broken.png", "cut short")
    assert not path.exists()
    with Writer(path, header(command="anomaly preprocess ./films"), total=6, on_checked=seen.append) as writer:
        assert (writer.done, writer.rows, writer.failures, writer.notes) == (3, 2, [("broken.png", "cut short")], [])
        for i in range(2, 5):
            writer.append(row(i))
        writer.finish()
    assert seen == [1, 2, 3]
    cache = Cache(path)
    assert cache.content_hash == whole.content_hash
    assert cache.command == "anomaly preprocess ./films"
    assert cache.verify() == []
    assert [p.name for p in tmp_path.iterdir()] in (["whole.h5", "t.h5"], ["t.h5", "whole.h5"])


@pytest.mark.parametrize(
    ("changes", "total", "differs"),
    [({"recipe_digest": "x"}, 6, "recipe_digest"), ({"source_hash": "x"}, 6, "source_hash"), ({}, 7, "total")],
)
def test_the_partial_of_another_build_is_discarded(path, changes, total, differs):
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0))
    with Writer(path, header(**changes), total=total) as writer:
        assert writer.done == 0
        assert f"discarded, begun with another {differs}" in writer.notes[0]


@pytest.mark.parametrize("damage", ["no films", "cut", "text", "no list", "list of nonsense"])
def test_a_damaged_partial_is_discarded(path, damage):
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0))
        partial = writer.partial
    journal = partial.with_name(partial.name + ".rows")
    if damage == "no films":
        partial.unlink()
    elif damage == "cut":
        partial.write_bytes(partial.read_bytes()[:1000])
    elif damage == "text":
        partial.write_text("no HDF5")
    elif damage == "no list":
        journal.unlink()
    else:
        journal.write_bytes(b"\xff[1\n{")
    with Writer(path, header(), total=6) as writer:
        assert writer.done == 0
        assert "discarded, damaged" in writer.notes[0]
        writer.append(row(0))


def test_a_partial_whose_films_have_changed_is_discarded(path):
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0), fingerprint="old")
        writer.fail("broken.png", "cut short", fingerprint="older")
    asked = []

    def changed(films):
        asked.append(list(films))
        return [asked[-1][1][0]] if len(asked) == 2 else []

    for kept in (2, 0):
        with Writer(path, header(), total=6, find_changed=changed) as writer:
            assert writer.done == kept
    assert asked == [[("a/ü0.png", "old"), ("broken.png", "older")]] * 2
    assert writer.notes == [f"{writer.partial}: discarded, broken.png has changed since"]


def test_a_writer_can_be_cut_back_to_its_first_films(path):
    with Writer(path, header(), total=6) as writer:
        two_hands(writer, 0)
        writer.fail("broken.png", "cut short")
        writer.append(row(1))
        writer.keep_first(2)
    assert not path.exists()
    with Writer(path, header(), total=6) as writer:
        assert (writer.done, writer.rows, writer.failures, writer.notes) == (2, 2, [("broken.png", "cut short")], [])
        writer.keep_first(0)
    with Writer(path, header(), total=6) as writer:
        assert (writer.done, writer.rows, writer.notes) == (0, 0, [])


def two_hands(writer, i):
    """Store a film of two hands."""
    writer.append(*(row(i + hand, path=f"two{i}.png", hand=hand, side="left") for hand in (1, 2)))


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("kept", [0, 1, 5, 9])
def test_films_with_two_hands_take_more_room_than_was_laid_out(tmp_path, monkeypatch, compression, kept):
    monkeypatch.setattr(writer_module, "EXTRA_ROWS", 3)
    writers = (
        Writer(tmp_path / "t.h5", header(), total=10, compression=compression),
        Writer(tmp_path / "whole.h5", header(), total=10),
    )
    for i in range(kept):
        two_hands(writers[0], i)
    writers[0].close()
    resumed = Writer(tmp_path / "t.h5", header(), total=10, compression=compression)
    assert (resumed.done, resumed.rows, resumed.notes) == (kept, 2 * kept, [])
    for writer in (resumed, writers[1]):
        for i in range(writer.done, 10):
            two_hands(writer, i)
        writer.finish()
    cache, whole = Cache(tmp_path / "t.h5"), Cache(tmp_path / "whole.h5")
    assert len(cache) == 20 and cache.verify() == []
    assert cache.content_hash == whole.content_hash
    assert cache.index["hand"].tolist() == [1, 2] * 10
    assert cache.names.tolist()[:3] == ["two0.png#1", "two0.png#2", "two1.png#1"]
    for rows in (slice(None), [3, 0]):
        np.testing.assert_array_equal(cache.films("raw", rows), whole.films("raw", rows))


def test_a_film_whose_second_hand_did_not_reach_the_disk_is_made_again_from_its_first(path):
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0))
        two_hands(writer, 1)
        writer.append(row(4))
        partial = writer.partial
    with h5py.File(partial, "r+") as file:
        file["films/crop-he"][2, 0, 0] ^= 1
    with Writer(path, header(), total=6) as writer:
        assert (writer.done, writer.rows) == (1, 1)
        assert "1 film kept" in writer.notes[0]


def test_memory_does_not_grow_with_the_films_written(path):
    films = [row(i) for i in range(4)]
    held = []
    with Writer(path, header(), total=600) as writer:
        tracemalloc.start()
        for i in range(600):
            writer.append(films[i % 4])
            if i in (99, 599):
                writer.flush()
                gc.collect()  # h5py's selections lie in circles
                held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] - held[0] < 50_000  # 100 bytes a film; its line of the index takes 2,000


def test_hands_out_of_order_are_refused(path):
    with Writer(path, header(), total=1) as writer:
        for hands in ([1], [2, 1], [0, 1], [1, 2, 4], []):
            with pytest.raises(ValueError, match="hands"):
                writer.append(*(row(0, hand=hand) for hand in hands))
        with pytest.raises(ValueError, match="film"):
            writer.append(row(0, hand=1), row(1, hand=2, films=dict.fromkeys(VARIANTS, np.zeros((3, 3)))))
        assert (writer.done, writer.rows) == (0, 0)


BOXES = [(1.5, 2, 10, 12.25, 1), (3, 4, 5, 6, 4)]


def test_boxes_come_back_and_are_checked(path):
    with Writer(path, header(boxes=True), total=3) as writer:
        for i, boxes in enumerate((BOXES, None, BOXES * 8)):
            writer.append(row(i, boxes=boxes))
        with pytest.raises(ValueError, match="17 boxes"):
            writer.append(row(3, boxes=[*BOXES * 8, BOXES[0]]))
        writer.finish()
    cache = Cache(path)
    assert cache.has_boxes and cache.verify() == []
    found = cache.boxes(np.array([1, 0]))
    assert found.shape == (2, 16, 5) and found.dtype == np.float32
    assert not found[0].any() and not found[1, 2:].any()
    np.testing.assert_array_equal(found[1, :2], np.array(BOXES, np.float32))
    np.testing.assert_array_equal(cache.boxes(slice(2, None))[0], np.array(BOXES * 8, np.float32))


def test_a_changed_box_is_found(path):
    with Writer(path, header(boxes=True), total=1) as writer:
        writer.append(row(0, boxes=BOXES))
        writer.finish()
    with h5py.File(path, "r+") as file:
        file["targets/boxes"][0, 0, 0] += 1
    assert Cache(path).verify() == ["row 0 (a/ü0.png): the stored bytes do not match their checksum"]


def test_without_boxes_there_are_none(cache):
    assert not cache.has_boxes
    with pytest.raises(InputError, match=r"no boxes in it; run `anomaly preprocess SOURCE --for ssd`"):
        cache.boxes(slice(None))


def test_the_nets_that_were_asked_are_known(cache, tmp_path):
    assert cache.nets == {}
    nets = {"localizer": {"name": "ssd", "run": "/runs/a", "digest": "0123456789ab"}}
    path = tmp_path / "nets.h5"
    with Writer(path, header(nets=json.dumps(nets)), total=1) as writer:
        writer.append(row(0))
    nets["localizer"]["run"] = "/runs/moved"
    with Writer(path, header(nets=json.dumps(nets)), total=1) as writer:
        assert writer.done == 1
        writer.finish()
    assert Cache(path).nets == nets


def test_names_are_paths_where_no_film_has_two_hands(cache):
    assert cache.names.tolist() == cache.index["path"].tolist()


def cut_off(writer, films, more):
    """Leave what a full disk does: films stored, and then more, of which only the end of the file is not recorded."""
    for i in range(films):
        writer.append(row(i))
    writer.flush()
    partial = writer.partial
    journal = partial.with_name(partial.name + ".rows")
    superblock, lines = partial.read_bytes()[:96], journal.read_bytes()
    for i in range(films, films + more):
        writer.append(row(i))
    writer.close()
    with partial.open("r+b") as file:
        file.write(superblock)
    journal.write_bytes(lines)


@pytest.mark.parametrize("compression", ["lzf", "gzip"])
@pytest.mark.parametrize(("films", "more", "kept"), [(3, 2, 3), (10, 30, 10), (0, 5, 0), (64, 6, 0)])
def test_a_compressed_partial_that_a_full_disk_cut_off_can_be_written_again(path, compression, films, more, kept):
    total = 80
    cut_off(Writer(path, header(), total=total, compression=compression), films, more)
    with Writer(path, header(), total=total, compression=compression) as writer:
        assert writer.done == kept
        assert [note for note in writer.notes if "discarded, damaged" not in note] == []
        assert bool(writer.notes) == (films != kept or not films)
        for i in range(kept, total):
            writer.append(row(i))
        writer.finish()
    assert Cache(path).verify() == []


def test_a_disk_that_is_still_full_costs_nothing(path, monkeypatch):
    with Writer(path, header(), total=6, compression="lzf") as writer:
        writer.append(row(0))

    def full(writer):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_clear_rest", full)
        with pytest.raises(OSError, match="No space"):
            Writer(path, header(), total=6, compression="lzf")
    with Writer(path, header(), total=6, compression="lzf") as writer:
        assert (writer.done, writer.notes) == (1, [])


def test_films_that_did_not_reach_the_disk_are_made_again(path):
    with Writer(path, header(), total=6) as writer:
        for i in range(4):
            writer.append(row(i))
        partial = writer.partial
    with h5py.File(partial, "r+") as file:
        file["films/crop-he"][2, 0, 0] ^= 1
    with Writer(path, header(), total=6) as writer:
        assert writer.done == 2
        assert "2 films kept" in writer.notes[0]


def test_a_torn_last_line_is_dropped(path):
    with Writer(path, header(), total=6) as writer:
        for i in range(3):
            writer.append(row(i))
        journal = writer.partial.with_name(writer.partial.name + ".rows")
    journal.write_bytes(journal.read_bytes()[:-5])
    with Writer(path, header(), total=6) as writer:
        assert writer.done == 2
        writer.append(row(2))
    with Writer(path, header(), total=6) as writer:
        assert (writer.done, writer.notes) == (3, [])


def test_a_second_writer_is_refused(path):
    with Writer(path, header(), total=6) as writer:
        with pytest.raises(InputError, match="another process is writing this cache"):
            Writer(path, header(), total=6)
        writer.append(row(0))  # the first is undisturbed
    with Writer(path, header(), total=6) as writer:
        assert writer.done == 1


def test_discarding_leaves_nothing(path):
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0))
        writer.discard()
    assert list(path.parent.iterdir()) == []


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_schema import Writer, header, row
with Writer(Path({path!r}), header(), total={total}, compression={compression!r}) as writer:
    films = [[row(i)] if i % 3 else [row(i, hand=1), row(i, hand=2)] for i in range(20)]
    print("ready", flush=True)
    while True:
        writer.append(*films[writer.done % 20])
"""


@pytest.mark.parametrize(("compression", "total"), [(None, 100_000), ("lzf", 100_000), (None, 2)])
def test_a_killed_writer_leaves_whole_films(path, compression, total):
    """Uncompressed, always; of a file whose tables grow a kill in the middle of a flush may cost all.

    They grow with compression, and here where the films have two hands and next to no room was laid out for them.
    """
    kept = 0
    for _ in range(2):
        script = KILLED.format(tests=str(Path(__file__).parent), path=str(path), compression=compression, total=total)
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        journal = path.with_name(path.name + ".partial.rows")
        wanted = journal.read_bytes().count(b"\n") + 30
        while process.poll() is None and journal.read_bytes().count(b"\n") < wanted:
            time.sleep(0.01)
        time.sleep(0.02)  # into whatever comes after a flush
        process.kill()
        process.wait()
        process.stdout.close()
        with Writer(path, header(), total=total, compression=compression) as writer:
            discarded = any("discarded, damaged" in note for note in writer.notes)
            grows = compression is not None or total == 2
            assert writer.done > kept or (discarded and writer.done == 0 and grows)
            assert not (discarded and not grows)
            kept = writer.done
            assert writer.rows == sum(1 + (i % 20 % 3 == 0) for i in range(kept))


# A disk that fails


class FaultyDisk:
    """Lets one call of os.pwrite fail, or write half of what it was given and then fail; counts them."""

    def __init__(self, monkeypatch, fails_at, number, *, half=False):
        self.calls, self.fails_at, self.number, self.half, self.real = 0, fails_at, number, half, os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, descriptor, data, position):
        self.calls += 1
        if self.calls == self.fails_at and self.half and len(data) > 1:
            self.fails_at += 1
            return self.real(descriptor, data[: len(data) // 2], position)
        if self.calls == self.fails_at:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(descriptor, data, position)


def all_but_finished(path, compression):
    writer = Writer(path, header(), total=6, compression=compression)
    for i in range(5):
        writer.append(row(i))
    writer.fail("broken.png", "cut short")
    return writer


FAULTS = [(errno.ENOSPC, False), (errno.EIO, False), (errno.EDQUOT, True)]  # and whether half of it is written


@pytest.mark.parametrize("compression", [None, "lzf"])
def test_a_write_of_the_index_that_fails_gives_no_cache_and_costs_no_film(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    begun = all_but_finished(tmp_path / "begun.h5", compression)
    begun.close()
    copies = [begun.partial, begun.partial.with_name(begun.partial.name + ".rows")]

    def take_up(name):
        path = tmp_path / name
        for file in copies:
            shutil.copyfile(file, file.with_name(file.name.replace("begun.h5", name)))
        writer = Writer(path, header(), total=6, compression=compression)
        writer.flush()
        return writer

    whole = take_up("whole.h5")
    with monkeypatch.context() as patch:
        disk = FaultyDisk(patch, 0, 0)
        whole.finish()
    assert disk.calls > 20
    content = Cache(whole.path).content_hash
    for fails_at in range(1, disk.calls + 1, 1 if compression is None else 13):
        number, half = FAULTS[fails_at % len(FAULTS)]
        path = tmp_path / f"{fails_at}.h5"
        with monkeypatch.context() as patch, pytest.raises(OSError) as caught, take_up(path.name) as writer:
            FaultyDisk(patch, fails_at, number, half=half)
            writer.finish()
        assert (caught.value.errno, caught.value.filename) == (number, f"{path}.partial")
        assert not path.exists()
        with Writer(path, header(), total=6, compression=compression) as writer:
            assert (writer.done, writer.notes) == (6, [])
            if fails_at % 13 == 1:
                writer.finish()
                cache = Cache(path)
                assert cache.content_hash == content and cache.verify() == []
                assert cache.failures == [("broken.png", "cut short")]


@pytest.mark.parametrize("compression", [None, "lzf"])
@pytest.mark.parametrize("fails_at", [1, 2, 5, 9, 14, 22, 33, 41])
def test_a_write_of_a_film_that_fails_costs_at_most_what_was_not_flushed(path, monkeypatch, compression, fails_at):
    with Writer(path, header(), total=6, compression=compression) as writer:
        writer.append(row(0))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        FaultyDisk(patch, fails_at, errno.EIO)
        write(path, compression=compression)
    with Writer(path, header(), total=6, compression=compression) as writer:
        assert writer.done >= 1 and not any("discarded" in note for note in writer.notes)
    cache = write(path, compression=compression)
    assert cache.verify() == []
    for i in range(5):
        np.testing.assert_array_equal(cache.films("raw", [i])[0], row(i).films["raw"])


@pytest.mark.parametrize("name", ["label", "patient", "box", "checksum"])
def test_an_index_that_reads_back_otherwise_gives_no_cache(path, monkeypatch, name):
    """Whatever the reason is, even one that no write reported."""
    real = Writer._write_index

    def wrong(writer, file):
        real(writer, file)
        column = file[f"index/{name}"]
        column[1] = column[2]

    with monkeypatch.context() as patch, pytest.raises(OSError, match=f"reads back otherwise: index/{name}"):
        patch.setattr(Writer, "_write_index", wrong)
        with all_but_finished(path, None) as writer:
            writer.finish()
    assert not path.exists()
    with Writer(path, header(), total=6) as writer:
        assert writer.done == 6
        writer.finish()
    assert Cache(path).verify() == []


def test_what_the_disk_reports_only_when_it_is_waited_for_gives_no_cache(path, monkeypatch):
    def fails(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "fsync", fails)
        with all_but_finished(path, None) as writer:
            writer.finish()
    assert not path.exists()


# Refusals


def edit(path, **attributes):
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)


def test_a_missing_cache_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"no cache .*t\.h5; run `anomaly preprocess`"):
        Cache(tmp_path / "t.h5")


def test_another_schema_names_the_command_that_made_it(cache):
    edit(cache.path, schema=0)
    with pytest.raises(InputError) as caught:
        Cache(cache.path)
    assert str(caught.value) == (
        f"{cache.path}: cache schema 0, this version reads 3; run `anomaly preprocess films --force`"
    )


def test_an_unfinished_cache_is_refused(cache):
    edit(cache.path, complete=False)
    with pytest.raises(InputError, match="not finished; run `anomaly preprocess films --force`"):
        Cache(cache.path)


def test_a_partial_file_is_refused(path):
    with Writer(path, header(), total=6) as writer:
        writer.append(row(0))
    with pytest.raises(InputError, match="not finished; run `anomaly preprocess films`"):
        Cache(writer.partial)


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("hello")
    with pytest.raises(InputError, match="not an HDF5 file"):
        Cache(text)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = 1
    with pytest.raises(InputError, match="another program's HDF5 file"):
        Cache(tmp_path / "foreign.h5")


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_a_file_cut_short_is_named_as_such(cache, keep):
    data = cache.path.read_bytes()
    cache.path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"truncated; make it again with `anomaly preprocess \.\.\. --force`"):
        Cache(cache.path)


@pytest.mark.parametrize("name", ["films/crop-he", "masks/crop", "index/label", "failures/reason"])
def test_a_missing_dataset_is_named(cache, name):
    with h5py.File(cache.path, "r+") as file:
        del file[name]
    with pytest.raises(InputError, match=f"damaged .*{name.split('/')[1]}.* run `anomaly preprocess films --force`"):
        Cache(cache.path)


def test_a_garbled_file_is_damaged(cache):
    data = bytearray(cache.path.read_bytes())
    data[8] = 77  # the version of the superblock
    cache.path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged \(.*\); make it again with `anomaly preprocess \.\.\. --force`"):
        Cache(cache.path)


def test_damage_that_reaches_the_command_is_told_without_it(cache):
    data = cache.path.read_bytes()
    place = data.index(b"anomaly preprocess films")
    heap = data.rindex(b"GCOL", 0, place)  # where HDF5 keeps texts
    cache.path.write_bytes(data[:heap] + b"LOCG" + data[heap + 4 :])
    with pytest.raises(InputError, match=r"damaged .*; run `anomaly preprocess SOURCE --force`"):
        Cache(cache.path)
    assert replaceable(cache.path)


def shorten(name, length=4):
    def change(file):
        values = file[name][:length]
        del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (shorten("index/label"), r"index/label: int8 \(4,\), expected int8 \(5,\)"),
        (shorten("masks/raw"), r"masks/raw: uint8 \(4, 50\), expected uint8 \(5, 50\)"),
        (shorten("failures/reason", 0), r"failures/reason: object \(0,\), expected str \(1,\)"),
        (lambda file: file.attrs.update(size=21), r"films/raw: uint8 \(5, 20, 20\), expected uint8 \(5, 21, 21\)"),
        (lambda file: file.attrs.update(size="wide"), "invalid literal"),
        (lambda file: file.attrs.update(variants=3), "split"),
        (lambda file: file.attrs.update(done=9), "5 films and 1 failures, expected 9 together"),
    ],
    ids=["index", "masks", "failures", "size", "text", "variants", "done"],
)
def test_a_layout_that_does_not_hold_together_is_damaged(cache, change, fault):
    with h5py.File(cache.path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=f"damaged .*{fault}.*; run `anomaly preprocess films --force`"):
        Cache(cache.path)


def test_only_caches_and_empty_files_may_be_replaced(cache, tmp_path):
    assert replaceable(cache.path)
    edit(cache.path, schema=0)
    assert replaceable(cache.path)
    cache.path.write_bytes(cache.path.read_bytes()[:1000])
    assert replaceable(cache.path)
    (tmp_path / "empty").touch()
    assert replaceable(tmp_path / "empty")
    (tmp_path / "notes.py").write_text("print()")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = 1
    for path in (tmp_path, tmp_path / "notes.py", tmp_path / "foreign.h5", tmp_path / "gone"):
        assert not replaceable(path)


def test_an_unknown_variant_lists_those_stored(cache):
    for read in (cache.films, cache.masks, cache.anomaly):
        with pytest.raises(InputError, match=r"no variant 'crop'; there are: raw, crop-he, .*--variants raw,.*,crop`"):
            read("crop", slice(None))


# Verifying


def test_an_intact_cache_verifies(cache):
    assert cache.verify() == []


@pytest.mark.parametrize("name", ["films/raw", "masks/crop", "truth/raw"])
def test_a_flipped_byte_is_found(cache, name):
    with h5py.File(cache.path, "r+") as file:
        stored = file[name][3]
        stored.flat[7] ^= 4
        file[name][3] = stored
    assert Cache(cache.path).verify() == ["row 3 (a/ü3.png): the stored bytes do not match their checksum"]


def test_a_changed_label_is_found(cache):
    with h5py.File(cache.path, "r+") as file:
        file["index/label"][0] = 1
    assert Cache(cache.path).verify() == ["index: its hash is not the recorded one"]
    with pytest.raises(
        InputError, match="the index was changed after it was written; run `anomaly preprocess films --force`"
    ):
        Cache(cache.path).index  # noqa: B018


# The newest


def test_the_newest_complete_cache_is_found(tmp_path):
    with pytest.raises(InputError) as caught:
        newest_cache(tmp_path / "cache")
    assert str(caught.value) == f"no cache in {tmp_path / 'cache'}/; run `anomaly preprocess`"
    for age, name in enumerate(("c", "a", "b")):
        os.utime(write(tmp_path / f"{name}.h5").path, (age, age))
    assert newest_cache(tmp_path) == tmp_path / "b.h5"
    edit(tmp_path / "b.h5", schema=0)
    os.utime(tmp_path / "b.h5", (9, 9))
    assert newest_cache(tmp_path) == tmp_path / "a.h5"
    for name in ("a", "c"):
        (tmp_path / f"{name}.h5").unlink()
    with pytest.raises(InputError, match="schema 0"):
        newest_cache(tmp_path)


def test_content_hash_tells_contents_apart(tmp_path):
    hashes = {write(tmp_path / f"{n}.h5", n).content_hash for n in (3, 4, 4, 5)}
    assert len(hashes) == 3


def test_the_docstring_names_every_column():
    for name, (dtype, shape) in COLUMNS.items():
        line = next(line for line in schema.__doc__.splitlines() if line.split()[:1] == [f"index/{name}"])
        assert line.split()[1] == dtype
        assert f"({', '.join(map(str, ('N', *shape)))}{'' if shape else ','})" in line


@pytest.mark.parametrize("compression", [None, "lzf"])
def test_a_row_is_written_as_it_is_read_whatever_its_type_and_of_no_other_shape(
    compression: str | None, tmp_path: Path
) -> None:
    file = OutputFile(tmp_path / "rows.h5", create=True)
    file.hdf5.create_dataset("rows", (3, 2, 4), "uint16", chunks=(1, 2, 4), compression=compression)
    rows = np.arange(24, dtype=np.float64).reshape(3, 4, 2).transpose(0, 2, 1)  # of another type, not contiguous
    for place in (2, 0, 1):
        file.write_row("rows", place, rows[place])
    with pytest.raises((ValueError, TypeError)):
        file.write_row("rows", 0, np.zeros((2, 5)))
    file.close()
    with h5py.File(tmp_path / "rows.h5") as written:
        assert np.array_equal(written["rows"][:], rows)
