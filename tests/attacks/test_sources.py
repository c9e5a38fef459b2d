"""Sources that are waited for, never end, or are damaged."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.data.loader import TrainingBatches
from anomaly.runs import Run, write_atomic
from preprocessing import InputError
from preprocessing.sources import open_films, open_source

from ..test_cli import typed


@pytest.mark.parametrize("name", ["film.png", "films.zip", "films.csv", "film"])
def test_a_pipe_is_no_film_and_no_source(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for opened in (open_source, lambda path: open_films([path])):
        with pytest.raises(InputError, match=rf"{name}: a pipe, socket or device; copy what it gives into a file"):
            opened(tmp_path / name)


def test_a_device_is_no_film():
    with pytest.raises(InputError, match="/dev/zero: a pipe, socket or device"):
        open_films([Path("/dev/zero")])


def test_the_command_ends_at_a_pipe(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "film.dcm")
    status, _, error = typed(capsys, "score", run.path, tmp_path / "film.dcm")
    assert status == 2 and "a pipe, socket or device" in error and error.count("\n") == 1


def test_a_pipe_among_films_is_passed_over(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.png").write_bytes(next(films.rglob("image1.png")).read_bytes())
    os.mkfifo(folder / "b.png")
    source = open_source(folder)
    assert [record.path for record in source.records] == ["a.png"]
    assert any("special" in note for note in source.notes)


PACKINGS = {zipfile.ZIP_DEFLATED: "deflate", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}


@pytest.mark.parametrize("packing", PACKINGS, ids=PACKINGS.get)
def test_a_damaged_member_is_a_film_that_cannot_be_read(tmp_path, films, packing):
    film = next(films.rglob("image1.png")).read_bytes()
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w", packing) as archive:
        archive.writestr("a.png", film)
        archive.writestr("b.png", film)
        start = archive.getinfo("a.png").header_offset + 30 + len("a.png")
        size = archive.getinfo("a.png").compress_size
    data = whole.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(start, start + size, 40).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.zip").write_bytes(damaged)
        source = open_source(tmp_path / "damaged.zip")
        with pytest.raises(InputError, match=r"^a\.png: cannot be read"):
            source.read("a.png")
        assert source.read("b.png") == film


def test_a_full_shared_memory_is_told_in_one_line(cache, monkeypatch):
    from anomaly.data.dataset import FilmSet

    films = FilmSet(cache, "full-he", np.arange(len(cache)), 64)
    batches = TrainingBatches(films, batch_size=4, augmentation="none", seed=0, workers=0, device=torch.device("cpu"))

    def full() -> None:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28); out of shared memory")
        yield

    batches._loader = full()
    with pytest.raises(InputError, match=r"^/dev/shm is full, .* --workers 0; the same command resumes$"):
        next(batches.epoch(1))


def test_a_file_that_may_not_be_written_is_named_by_its_own_name(tmp_path, monkeypatch):
    really = Path.open

    def refused(path: Path, *given: object, **named: object) -> object:
        if path.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *given, **named)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError) as error:
        write_atomic(tmp_path / "run.json", "{}")
    assert error.value.filename == str(tmp_path / "run.json")
