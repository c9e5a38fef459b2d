"""A file that HDF5 writes through Python: every failed write is reported, and none ends the process.

HDF5 drops the error of a write that fails while a file is being closed, and crashes where it writes again after one.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk without room reports
METADATA_BYTES = 2**20  # of its own tables that HDF5 keeps in memory while it writes; by default up to 32 times as many


class OutputFile:
    """An HDF5 file that is being written.

    path     the file
    create   make a new file, or empty the one that is there
    hdf5     the file as h5py has it; nothing of it may be used after `close`

    Every method raises OSError where a write has failed, this one or one before. A write that fails between `begin` and
    the next `flush` takes back all others since `begin`.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self._disk = DiskFile(path, create=create)
        try:
            self.hdf5 = h5py.File(self._disk, "w" if create else "r+", rdcc_nbytes=0)
        except BaseException:
            self._disk.close()
            raise
        self._datasets: dict[str, tuple[Any, np.dtype[Any], tuple[int, ...], bool]] = {}
        cache = self.hdf5.id.get_mdc_config()
        cache.set_initial_size, cache.initial_size, cache.min_size, cache.max_size = True, *3 * (METADATA_BYTES,)
        self.hdf5.id.set_mdc_config(cache)

    def write_row(self, name: str, row: int, array: NDArray[Any]) -> None:
        """Write a row of a dataset whose chunks are its rows: an array of a row's shape.

        Looked up once, and past HDF5's selections where rows lie in the file as they are: a third of the time.
        """
        found = self._datasets.get(name)
        if found is None:
            dataset = self.hdf5[name]
            found = self._datasets[name] = dataset, dataset.dtype, dataset.chunks, dataset.compression is None
        dataset, dtype, chunks, plain = found
        if plain:
            if (1, *array.shape) != chunks:
                raise ValueError(f"{name}: a row of shape {array.shape}, not {chunks[1:]}")
            dataset.id.write_direct_chunk((row, *[0] * array.ndim), np.ascontiguousarray(array, dtype))
        else:
            dataset[row] = array

    def check(self) -> None:
        """Raise the error of the first write that failed, if one has."""
        self._disk.check()

    def begin(self) -> None:
        """Write out everything so far, and take back what is written from here on if a part of it fails."""
        self.flush()
        self._disk.begin()

    def flush(self) -> None:
        """Write out everything so far."""
        self.hdf5.flush()
        self._disk.check()
        self._disk.commit()

    def close(self, *, sync: bool = False) -> None:
        """Write out everything, wait with `sync` until the disk has it, and close the file."""
        try:
            self.hdf5.close()
            self._disk.check()
            if sync:
                self._disk.sync()
        finally:
            self._disk.close()


def disk_full(error: Exception) -> bool:
    """Tell whether an error says that a disk has no room."""
    return getattr(error, "errno", None) in NO_SPACE


def sync_folder(path: Path) -> None:
    """Wait until a folder is on the disk, so that a power cut cannot undo a move into it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskFile:
    """A file opened for writing, in the form that h5py takes for a file object.

    HDF5 is never told of a failed write. `check` raises the first one, and from then on the disk stays as it is: later
    writes are kept in memory, where HDF5 finds them again while it closes its side of the file. A write that fails
    between `begin` and `commit` takes back all others since `begin`, so that the tables of HDF5 on the disk agree.

    path     the file
    create   make a new file, or empty the one that is there

    Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_TRUNC if create else 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._position = 0
        self._error: BaseException | None = None
        self._unwritten: list[tuple[int, bytes]] = []  # position and bytes of all writes after the error
        self._size = 0  # bytes of the file at `begin`
        self._replaced: list[tuple[int, bytes]] | None = None  # what was overwritten since, if that is noted
        self.begin()

    def begin(self) -> None:
        """Note from here on what is overwritten; a failed write then restores the file of this moment."""
        self._size, self._replaced = os.fstat(self._descriptor).st_size, []

    def commit(self) -> None:
        """Keep everything written so far."""
        self._replaced = None

    def check(self) -> None:
        """Raise the error of the first write that failed, if one has."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Wait until everything is on the disk; what fails only there is an OSError here."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file, once HDF5 has closed its side."""
        os.close(self._descriptor)

    # What h5py calls, from within HDF5.

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the file, counted from its beginning or, with SEEK_END, from its end."""
        self._position = offset + (os.fstat(self._descriptor).st_size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def read(self, size: int) -> bytes:
        """Read so many bytes."""
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; beyond the end of the file lie zeros, as HDF5's own drivers have it."""
        view = memoryview(buffer).cast("B")
        count = os.preadv(self._descriptor, [view], self._position)
        view[count:] = bytes(len(view) - count)
        for position, data in self._unwritten:
            first, last = max(position, self._position), min(position + len(data), self._position + len(view))
            if first < last:
                view[first - self._position : last - self._position] = data[first - position : last - position]
        return len(view)

    def write(self, data: Any) -> int:
        """Write all of the data, or note why that failed."""
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                self._write(view)
            except BaseException as error:  # an interruption too must not pass through HDF5
                self._fail(error)
        if self._error is not None:
            self._unwritten.append((self._position, bytes(view)))
        return len(view)

    def truncate(self, size: int) -> int:
        """Give the file another size; what is added reads as zeros and takes no space yet."""
        if self._error is None:
            try:
                os.ftruncate(self._descriptor, size)
            except BaseException as error:
                self._fail(error)
        return size

    def flush(self) -> None:
        """Do nothing, as nothing is buffered here."""

    def _write(self, view: memoryview) -> None:
        if self._replaced is not None and self._position < self._size:
            length = min(len(view), self._size - self._position)
            self._replaced.append((self._position, os.pread(self._descriptor, length, self._position)))
        written = 0
        while written < len(view):
            written += os.pwrite(self._descriptor, view[written:], self._position + written)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            error.filename = str(self.path)
        self._error = error
        if self._replaced is not None:
            with suppress(OSError):  # the disk may have failed altogether
                for position, data in reversed(self._replaced):
                    os.pwrite(self._descriptor, data, position)
                os.ftruncate(self._descriptor, self._size)
