"""The journal beside a partial cache: a line for each film of the source that is done.

A line is its checksum (BLAKE2b, 64 bits, in hexadecimal), a space, and JSON: a changed digit is still JSON.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from preprocessing import InputError
from preprocessing.locks import open_lock

VERSION = 3  # of the lines
_CHECKSUM = 17  # bytes of a line before its JSON


class Journal:
    """A journal, held by one process at a time: the lock goes with the process, however it ends.

    Its first line says what build it belongs to. Entries count once they were added and flushed, or, of a journal that
    an earlier process left, once `accept` has gone over them.

    Raises InputError where another process holds it; `cache` is what that process writes, for the message.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self._handle = _lock(path, cache)
        self._bytes = 0  # of the lines that count
        self._pending: list[str] = []  # lines not written yet

    @property
    def pending(self) -> int:
        """Entries that were added and not flushed."""
        return len(self._pending)

    def identity(self) -> dict[str, Any] | None:
        """Read what build the journal belongs to: {} if it is empty, None if it is damaged."""
        with self.path.open("rb") as lines:
            first = lines.readline()
        identity = _decoded(first) if first else {}
        return identity if identity or not first else None

    def start(self, identity: dict[str, Any]) -> None:
        """Begin anew, for this build."""
        self._handle.truncate(0)
        self._bytes = 0
        self._pending = [_encoded(identity)]

    def accept(self, valid: Callable[[dict[str, Any]], bool]) -> bool:
        """Count the entries that are there up to the first that is torn or not valid; True if all of them count."""
        with self.path.open("rb") as lines:
            self._bytes = len(lines.readline())
            for line in lines:
                entry = _decoded(line)
                if not entry or not valid(entry):
                    return False
                self._bytes += len(line)
        return True

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read the entries that count."""
        with self.path.open("rb") as lines:
            position = len(lines.readline())
            for line in lines:
                position += len(line)
                if position > self._bytes:
                    return
                yield json.loads(line[_CHECKSUM:])

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry; `flush` writes it."""
        self._pending.append(_encoded(entry))

    def flush(self) -> None:
        """Write what was added; raises OSError where that fails, and nothing of it counts then."""
        self._handle.truncate(self._bytes)  # drops the torn line of a write that failed
        data = "".join(self._pending).encode()
        written = self._handle.write(data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._bytes += written
        self._pending.clear()

    def keep(self, entries: int) -> None:
        """Keep so many of the entries that count, the first."""
        with self.path.open("rb") as lines:
            self._bytes = sum(len(line) for line in itertools.islice(lines, 1 + entries))
        self._handle.truncate(self._bytes)

    def close(self) -> None:
        """Release the journal and leave it for another process; what was added and not flushed is lost."""
        self._handle.close()

    def delete(self) -> None:
        """Remove the journal, and release it."""
        self.path.unlink()
        self._handle.close()


def _encoded(entry: dict[str, Any]) -> str:
    text = json.dumps(entry)  # ASCII
    return f"{_digest(text.encode())} {text}\n"


def remove_left(path: Path, partial: Path) -> None:
    """Remove a journal that a kill left when its cache was finished; not that of another build."""
    if path.exists() and not partial.exists():
        with suppress(InputError, OSError), _lock(path, partial):
            path.unlink()


def _decoded(line: bytes) -> dict[str, Any]:
    """Decode a line: {} if it is torn or damaged."""
    if not line.endswith(b"\n") or line[:_CHECKSUM] != f"{_digest(line[_CHECKSUM:-1])} ".encode():
        return {}
    entry: dict[str, Any] = json.loads(line[_CHECKSUM:])
    return entry


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _lock(path: Path, cache: Path) -> IO[bytes]:
    while True:
        handle = open_lock(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise InputError(f"{cache}: another process is writing this cache; wait for it or stop it") from error
        if path.exists() and os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
            return handle
        handle.close()  # another writer finished, and took its journal away, between the two lines above
