"""A cache from a stranger reads nothing but itself."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source


@pytest.fixture
def copied(cache: Cache, tmp_path: Path) -> Path:
    """A copy of the shared cache, to be spoilt."""
    return Path(shutil.copy(cache.path, tmp_path / "copied.h5"))


def secret(folder: Path, count: int) -> Path:
    """A readable file of other things, long enough to be read as films."""
    path = folder / "secret"
    path.write_bytes(np.arange(count, dtype=np.uint8).tobytes())
    return path


def external_link(file: h5py.File, name: str, folder: Path) -> None:
    films = file[name]
    with h5py.File(folder / "other.h5", "w") as other:
        other.create_dataset("stolen", films.shape, films.dtype)
    del file[name]
    file[name] = h5py.ExternalLink(str(folder / "other.h5"), "/stolen")


def group_link(file: h5py.File, name: str, folder: Path) -> None:
    group = name.partition("/")[0]
    with h5py.File(folder / "other.h5", "w") as other:
        file.copy(group, other)
    del file[group]
    file[group] = h5py.ExternalLink(str(folder / "other.h5"), group)


def soft_link(file: h5py.File, name: str, folder: Path) -> None:
    file.move(name, "hidden")
    file[name] = h5py.SoftLink("/hidden")


def external_storage(file: h5py.File, name: str, folder: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    count = int(np.prod(shape)) * dtype.itemsize
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(secret(folder, count)), 0, count)])


def virtual(file: h5py.File, name: str, folder: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    with h5py.File(folder / "other.h5", "w") as other:
        other.create_dataset("stolen", shape, dtype)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "stolen", shape, dtype)
    del file[name]
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("place", ["films/full-he", "masks/full", "index/path", "index/hand", "failures/path"])
@pytest.mark.parametrize("point", [external_link, group_link, soft_link, external_storage, virtual])
def test_a_cache_that_points_elsewhere_is_refused(copied, tmp_path, point, place):
    if place.endswith("/path") and point is external_storage:
        pytest.skip("HDF5 keeps no texts of variable length there")
    with h5py.File(copied, "r+") as file:
        point(file, place, tmp_path)
    with pytest.raises(InputError, match=r"copied.h5: .* a cache holds its films itself; run `anomaly preprocess") as e:
        Cache(copied)
    assert "\n" not in str(e.value)


def test_a_link_back_to_the_top_ends(copied):
    with h5py.File(copied, "r+") as file:
        file["films/again"] = file["/"]
    Cache(copied)


def test_what_is_not_finished_is_not_written_elsewhere(tmp_path, monkeypatch):
    write_phantoms(tmp_path / "films", seed=0, patients=4, size=64)
    source, path = open_source(tmp_path / "films"), tmp_path / "films.h5"
    options = BuildOptions(variants=("raw",), workers=1)

    def stop(progress: object) -> None:
        if getattr(progress, "phase", "") == "films" and getattr(progress, "done", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, Recipe(name="plain", size=64), path, options=options, on_progress=stop)
    partial = tmp_path / "films.h5.partial"
    with h5py.File(partial, "r+") as file:
        external_link(file, "films/raw", tmp_path)
    before = (tmp_path / "other.h5").read_bytes()
    report = build(source, Recipe(name="plain", size=64), path, options=options)
    assert (tmp_path / "other.h5").read_bytes() == before
    assert any("films/raw is a link to somewhere else" in note for note in report.notes)
    assert not Cache(path).verify()
