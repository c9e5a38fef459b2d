"""Locks between processes, on files: the kernel releases them with the process that holds them, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on a file, which is created where it is missing.

    Yields True while it is held, and False where another process holds it and `wait` is not set. Any number of
    processes can hold it `shared`; otherwise one alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:  # on NFS a shared lock needs a readable file, an exclusive one a writable file
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
