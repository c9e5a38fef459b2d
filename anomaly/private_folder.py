"""Folders for films that are kept only while they are worked on: nobody else may read them, and none stays behind."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anomaly.console import warn
from preprocessing import InputError
from preprocessing.locks import file_lock, is_held, open_lock


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield an empty folder, removed at the end, in `anomaly-<user id>` of the system's folder for temporary files.

    Prepared films of patients are in it, which a process that is killed leaves behind: what no living process holds is
    removed here first. Raises InputError where that folder is not this user's own.
    """
    home = _home()
    with file_lock(home / ".lock", wait=True):  # no folder is seen before it is held
        for left in home.iterdir():
            if left.is_dir() and not left.is_symlink() and not is_held(left / ".lock"):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=home))
        lock = open_lock(folder / ".lock")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            films = folder / "films"
            films.mkdir()
            yield films
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # a disk may fail once, and the films in it are a patient's
                shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                warn(f"{folder}, where films were prepared, could not be removed; the next such command removes it")


def _home() -> Path:
    home = Path(tempfile.gettempdir()) / f"anomaly-{os.getuid()}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    status = home.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InputError(f"{home} is not a folder of yours alone; remove it, or name another place in TMPDIR")
    return home
