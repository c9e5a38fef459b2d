"""Bytes of a cache that were changed are noticed when they are first read."""

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing import InputError
from preprocessing.cache.reader import Cache


@pytest.fixture
def copied(cache: Cache, tmp_path: Path) -> Path:
    """A copy of the shared cache, to be spoilt."""
    return Path(shutil.copy(cache.path, tmp_path / "copied.h5"))


def read_all(cache: Cache) -> None:
    """Read everything that a training, a score or a page reads."""
    rows = np.arange(len(cache))
    assert len(cache.failures) >= 0 and len(cache.columns) >= 0
    for variant in cache.variants:
        cache.films(variant, rows)
        cache.masks(variant, rows)
        cache.anomaly(variant, rows)


def test_no_flipped_bit_of_a_cache_changes_what_is_read(copied):
    """Of 150 bits at random places, each is noticed or changes nothing that is read."""
    whole = Cache(copied)
    rows = np.arange(len(whole))
    films = {variant: whole.films(variant, rows) for variant in whole.variants}
    masks = {variant: whole.masks(variant, rows) for variant in whole.variants}
    described = {name: getattr(whole, name) for name in SAID}
    random, size = np.random.default_rng(0), copied.stat().st_size
    noticed = 0
    for place in random.integers(size, size=150).tolist():
        with copied.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << int(random.integers(8))]))
        try:
            spoilt = Cache(copied)
            read_all(spoilt)
            for variant in whole.variants:
                assert np.array_equal(spoilt.films(variant, rows), films[variant]), place
                assert np.array_equal(spoilt.masks(variant, rows), masks[variant]), place
            assert {name: getattr(spoilt, name) for name in SAID} == described, place
            assert spoilt.failures == whole.failures
        except InputError as error:
            noticed += 1
            assert "\n" not in str(error) and str(copied) in str(error)
        with copied.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))
    assert noticed > 100
    assert not Cache(copied).verify()


SAID = ("size", "variants", "recipe_json", "recipe_digest", "nets", "source", "source_kind", "source_hash")
SAID += ("source_path", "synthetic", "command")


@pytest.mark.parametrize("name", ["recipe", "synthetic", "source_path", "command", "nets"])
def test_a_changed_attribute_is_noticed_at_once(copied, name):
    with h5py.File(copied, "r+") as file:
        value = file.attrs[name]
        file.attrs[name] = not value if isinstance(value, (bool, np.bool_)) else f"{value} "
    with pytest.raises(InputError, match=r"copied\.h5: what it says of itself was changed after it was written; run"):
        Cache(copied)


def test_changed_failures_are_noticed(copied):
    with h5py.File(copied, "r+") as file:
        assert len(file["failures/path"]) == 0
        for part in ("path", "reason"):
            del file[f"failures/{part}"]
            file.create_dataset(f"failures/{part}", data=["x"], dtype=h5py.string_dtype())
        file.attrs["done"] = file.attrs["done"] + 1
    with pytest.raises(InputError, match="was changed after it was written"):
        Cache(copied)


def test_a_cache_of_before_these_were_covered_still_opens(copied):
    with h5py.File(copied, "r+") as file:
        del file.attrs["seal"]
    read_all(Cache(copied))


def test_a_row_is_compared_once_in_a_process(copied, monkeypatch):
    from preprocessing.cache import reader

    counts: list[int] = []
    checksum = reader.checksum
    monkeypatch.setattr(reader, "checksum", lambda parts: (counts.append(1), checksum(parts))[1])
    cache = Cache(copied)
    for _ in range(3):
        cache.films("full-he", [0, 1, 1])
        cache.masks("full-he", [0, 1])
    assert len(counts) == 2
    pickle.loads(pickle.dumps(cache)).films("full-he", [0])  # as another process has it
    assert len(counts) == 3 and os.getpid()


def test_a_damaged_row_leaves_the_others_readable(copied):
    with h5py.File(copied, "r+") as file:
        film = file["films/full-he"][3]
        film[0, 0] ^= 1
        file["films/full-he"][3] = film
    cache = Cache(copied)
    cache.films("full-he", [0, 1, 2, 4])
    path = cache.index["path"][3]
    with pytest.raises(InputError, match=rf"row 3 \({path}\) is not what was written: the file is damaged; run `"):
        cache.masks("full-he", [2, 3])
    assert [problem.split()[1] for problem in cache.verify()] == ["3"]
