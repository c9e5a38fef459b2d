"""No lock, draft or unfinished file is written through a link: folders may come from strangers."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from anomaly.runs import Run
from anomaly.service.detector import Detector
from anomaly.service.spool import Spool
from anomaly.service.watch import Watch
from anomaly.training.tracking import _own_store
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.locks import file_lock, is_held, open_lock
from preprocessing.phantom import write_phantoms
from preprocessing.phantom.write import _write_whole
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

SECRET = "what is kept\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text(SECRET)
    return path


def test_a_lock_is_no_link(tmp_path, victim):
    (tmp_path / ".lock").symlink_to(victim)
    fault = r"\.lock is a symbolic link, which no lock may be; remove it"
    with pytest.raises(InputError, match=fault), file_lock(tmp_path / ".lock"):
        pass
    assert not is_held(tmp_path / ".lock")
    assert victim.read_text() == SECRET


def test_a_lock_that_points_nowhere_makes_no_file(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(InputError, match="symbolic link"), file_lock(tmp_path / ".lock"):
        pass
    assert not (tmp_path / "made").exists()


def test_a_lock_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="pipe, socket or device"), file_lock(tmp_path / ".lock"):
        pass
    assert not is_held(tmp_path / ".lock")


def test_the_locks_of_services_are_no_links(tmp_path, victim):
    for name in ("spool", "results", "films"):
        (tmp_path / name).mkdir()
    for name in ("spool", "results"):
        (tmp_path / name / ".lock").symlink_to(victim)
    holds = (
        lambda: Spool(tmp_path / "spool", 2**20),
        lambda: Watch(tmp_path / "films", tmp_path / "results", Detector),
    )
    for hold in holds:
        with pytest.raises(InputError, match="symbolic link"):
            hold()
    assert victim.read_text() == SECRET


def test_a_lock_is_never_emptied(tmp_path, victim):
    os.link(victim, tmp_path / ".lock")
    with file_lock(tmp_path / ".lock") as held:
        assert held and is_held(tmp_path / ".lock")
    assert victim.read_text() == SECRET


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    place = tmp_path if os.geteuid() else Path(tempfile.mkdtemp())  # those of pytest are closed to other users
    place.chmod(0o755)
    closed = place / "closed"
    closed.mkdir(mode=0o555)
    fault = r"closed can't be locked: \.lock may not be opened .*Permission denied"
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may open everything: as nobody
    try:
        with pytest.raises(InputError, match=fault), file_lock(closed / ".lock"):
            pass
    finally:
        os.seteuid(user)
        if user == 0:
            shutil.rmtree(place)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_no_fault_of_the_lock(tmp_path, monkeypatch, number):
    """Or else it is taken for one of what is locked: a search for a detector left that one out, and went on."""

    def full(path, *arguments):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        open_lock(tmp_path / ".lock")


def test_a_run_is_not_locked_through_a_link(run, tmp_path, victim):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / ".lock").unlink(missing_ok=True)
    (copy / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match="symbolic link"), Run(copy).locked():
        pass
    assert not Run(copy).busy()
    assert victim.read_text() == SECRET


def test_the_store_of_a_tracker_is_not_locked_through_a_link(tmp_path, victim):
    (tmp_path / "runs" / "mlflow").mkdir(parents=True)
    (tmp_path / "runs" / "mlflow" / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match="symbolic link"), _own_store():
        pass
    assert victim.read_text() == SECRET


@pytest.mark.parametrize("name", ["films.h5.partial", "films.h5.partial.rows"])
def test_an_unfinished_cache_is_not_written_through_a_link(tmp_path, victim, name):
    write_phantoms(tmp_path / "films", seed=0, patients=4, size=64)
    (tmp_path / name).symlink_to(victim)
    path = tmp_path / "films.h5"
    options = BuildOptions(variants=("raw",), workers=1)
    if name.endswith(".rows"):
        with pytest.raises(InputError, match="symbolic link"):
            build(open_source(tmp_path / "films"), Recipe(name="plain", size=64), path, options=options)
    else:
        build(open_source(tmp_path / "films"), Recipe(name="plain", size=64), path, options=options)
        assert not path.is_symlink() and not Cache(path).verify()
    assert victim.read_text() == SECRET


def test_a_drawn_film_is_not_written_through_a_link(tmp_path, victim):
    (tmp_path / ".image1.png.draft").symlink_to(victim)
    _write_whole(tmp_path / "image1.png", b"film")
    assert (tmp_path / "image1.png").read_bytes() == b"film"
    assert not (tmp_path / "image1.png").is_symlink()
    assert victim.read_text() == SECRET
