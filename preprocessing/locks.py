"""Locks between processes, on files: the kernel releases them with the process that holds them, however it ends."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from preprocessing import InputError

_OPENED = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""On NFS a shared lock needs a readable file, an exclusive one a writable file; a pipe is not waited for."""


FAILING = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What a full or failing disk answers."""


def open_lock(path: Path) -> IO[bytes]:
    """Open the file of a lock to read and append, unbuffered; it is created where it is missing, and never emptied.

    A folder may come from a stranger, with a link to any file of its user in the place of a lock: neither a link nor
    a pipe or device is opened. Raises InputError for these, and where the file may not be opened or created; OSError
    where the disk is full or fails, which is no fault of this lock.
    """
    try:
        file = os.fdopen(os.open(path, _OPENED | os.O_CREAT, 0o666), "a+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a symbolic link, which no lock may be; remove it") from None
        if error.errno == errno.ENXIO:
            raise _special(path) from None
        if error.errno in FAILING:
            raise
        raise InputError(
            f"{path.parent} can't be locked: {path.name} may not be opened for writing ({error.strerror}); change the "
            "permissions, or take a folder that can be written to"
        ) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _special(path)
    return file


def _special(path: Path) -> InputError:
    return InputError(f"{path} is a pipe, socket or device, which no lock may be; remove it")


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on a file, which is created where it is missing.

    Yields True while it is held, and False where another process holds it and `wait` is not set. Any number of
    processes can hold it `shared`; otherwise one alone. Raises InputError as `open_lock` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on a file; one that isn't there, or may not be opened, is held by none.

    Nothing is written or created.
    """
    try:
        with os.fdopen(os.open(path, _OPENED), "rb", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
