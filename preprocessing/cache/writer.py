"""Writing a cache: film by film, resumable, and never finished with anything but what was meant to be written."""

import errno
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from preprocessing.cache import journal
from preprocessing.cache.disk import OutputFile, disk_full, sync_folder
from preprocessing.cache.encoding import index_line, row_arrays, storable
from preprocessing.cache.journal import Journal
from preprocessing.cache.own import points_elsewhere
from preprocessing.cache.schema import COLUMNS, FORMAT, VERSION, Header, Row, checksum, content_hash, load_dataset, seal

EXTRA_ROWS = 64  # that a file grows by, at least, where films have two hands
INDEX_ROWS = 1024  # of the index, written at a time
FLUSH_FILMS = 64
FLUSH_SECONDS = 2.0

Fingerprints = Iterable[tuple[str, str]]  # path of a film, and what tells whether it has changed


class Writer:
    """Writes a cache, one film after the other in the order of the source, and resumes where a killed one stopped.

    A partial file of another recipe, source, size or schema is discarded, and so is a damaged one; `notes` says so.
    Films already there are compared with their checksums first: a power cut may cost films, but corrupts none. What is
    known of the films done stays in the journal until `finish`: memory does not grow with their number.

    header         what is to be stored
    total          films of the source
    compression    None, "lzf" or "gzip"
    on_checked     called with the number of films found intact while a partial file is resumed
    find_changed   called with the `fingerprints` of the films resumed, returns the paths of those that have changed:
                   with any, the partial file is discarded

    Raises InputError when another process writes the same cache. Every method raises OSError where a write has failed;
    what was flushed before stays for the next writer.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        *,
        total: int,
        compression: str | None = None,
        on_checked: Callable[[int], None] | None = None,
        find_changed: Callable[[Fingerprints], Iterable[str]] | None = None,
    ) -> None:
        self.path, self.header, self.total, self.compression = path, header, total, compression
        self.partial = path.with_name(path.name + ".partial")
        self.notes: list[str] = []
        self._on_checked, self._find_changed = on_checked, find_changed
        self._arrays = header.arrays()
        self._rows = self._films = 0
        self._capacity = total  # rows that there is space for
        self._failures: list[tuple[str, str]] = []
        self._flushed_at = time.monotonic()
        self._output: OutputFile | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self.partial.with_name(self.partial.name + ".rows"), path)
        try:
            reason = self._resume()
            if reason:
                self.notes.append(f"{self.partial}: discarded, {reason}")
            if self._output is None:
                self._create()
        except BaseException:
            with suppress(OSError, RuntimeError):  # the error that led here says more
                self._release()
            raise

    @property
    def done(self) -> int:
        """Films of the source that were processed: those prepared and those that failed."""
        return self._films + self.failed

    @property
    def rows(self) -> int:
        """Rows stored: one for each film, or two where it shows two hands."""
        return self._rows

    @property
    def failed(self) -> int:
        """Films that could not be prepared."""
        return len(self._failures)

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of every film that could not be prepared."""
        return list(self._failures)

    def append(self, *rows: Row, fingerprint: str = "") -> None:
        """Store one film: its row, or one for each of its hands. `fingerprint` tells later whether it has changed.

        Raises InputError for a text that HDF5 cannot hold, ValueError for hands out of order and for a film or mask
        unlike the header.
        """
        hands = [row.hand for row in rows]
        if hands != ([0] if len(rows) == 1 else list(range(1, len(rows) + 1))) or not rows:
            raise ValueError(f"{rows[0].path if rows else self.path}: hands {hands}; 0 alone, or 1 and 2")
        lines, arrays_of_rows = [index_line(row) for row in rows], [row_arrays(row, self.header) for row in rows]
        if self._rows + len(rows) > self._capacity:
            self._grow()
        output = self._open_output
        for i, (line, arrays) in enumerate(zip(lines, arrays_of_rows, strict=True)):
            line["checksum"] = checksum(arrays.values())
            for name, array in arrays.items():
                output.write_row(name, self._rows + i, array)
        output.check()
        self._rows += len(rows)
        self._films += 1
        self._add_entry({"rows": lines, "fingerprint": fingerprint})

    def fail(self, path: str, reason: str, *, fingerprint: str = "") -> None:
        """Record that a film could not be prepared, and why."""
        failure = (storable(path), storable(" ".join(reason.split())))
        self._failures.append(failure)
        self._add_entry({"failure": failure, "fingerprint": fingerprint})

    def fingerprints(self) -> Iterator[tuple[str, str]]:
        """Give path and fingerprint of every film done, in the order of the source."""
        self.flush()
        for entry in self._journal.entries():
            yield entry["rows"][0]["path"] if "rows" in entry else entry["failure"][0], entry["fingerprint"]

    def keep_first(self, films: int) -> None:
        """Keep the first `films` of those done for the next writer, none of the others, and close."""
        self.flush()
        self._journal.keep(films)
        self._release()

    def flush(self) -> None:
        """Write out everything so far: a killed build resumes from here."""
        if self.compression is None:
            self._open_output.flush()
        else:
            self._open_output.begin()  # each film changes tables, which agree with each other here
        self._journal.flush()
        self._flushed_at = time.monotonic()

    def finish(self) -> Path:
        """Write the index, check it, and move the cache into place, replacing an older one; returns its path.

        Raises ValueError when films are missing, OSError where the finished file reads back otherwise than it was
        written.
        """
        if self.done != self.total:
            raise ValueError(f"{self.path}: {self.done} of {self.total} films are done")
        self.flush()
        output = self._open_output
        output.begin()
        for name in self._arrays:
            output.hdf5[name].resize(self.rows, axis=0)
        self._write_index(output.hdf5)
        output.check()
        attributes = self._attributes() | {"content": _content_hash(output.hdf5)}
        output.hdf5.attrs.update(attributes)
        attributes["seal"] = seal(dict(output.hdf5.attrs), self._failures)
        output.hdf5.attrs["seal"] = attributes["seal"]
        self._close_output(sync=True)
        self._check_stored(attributes)
        self.partial.replace(self.path)
        sync_folder(self.path.parent)
        self._journal.delete()
        return self.path

    def discard(self) -> None:
        """Delete the partial file and close: nothing of it is worth keeping."""
        self._abandon()
        self.partial.unlink(missing_ok=True)
        self._journal.delete()

    def close(self) -> None:
        """Flush and close; the partial file stays for the next writer. Closing twice is harmless."""
        try:
            if self._output is not None:
                self.flush()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with suppress(*(() if kind is None else (OSError, RuntimeError))):
            self.close()

    @property
    def _open_output(self) -> OutputFile:
        if self._output is None:
            raise ValueError(f"{self.path}: the writer is closed")
        return self._output

    def _add_entry(self, entry: dict[str, Any]) -> None:
        self._journal.add(entry)
        if self._journal.pending >= FLUSH_FILMS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    # Finishing

    def _write_index(self, file: Any) -> None:
        for name, (dtype, shape) in COLUMNS.items():
            file.create_dataset(f"index/{name}", (self.rows, *shape), _stored_dtype(dtype))
        for start, columns in self._index_columns():
            for name, column in columns.items():
                file[f"index/{name}"][start : start + len(column)] = column
        for i, name in enumerate(("path", "reason")):
            texts = np.array([failure[i] for failure in self._failures], dtype=object)
            file.create_dataset(f"failures/{name}", data=texts, dtype=_stored_dtype("str"))

    def _index_columns(self) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Give the index as the journal has it, INDEX_ROWS at a time: the first row's number, and name -> column."""
        rows = (row for entry in self._journal.entries() for row in entry.get("rows", ()))
        for start in range(0, self.rows, INDEX_ROWS):
            block = list(itertools.islice(rows, INDEX_ROWS))
            columns = {}
            for name, (dtype, shape) in COLUMNS.items():
                columns[name] = np.empty((len(block), *shape), "object" if dtype == "str" else dtype)
                for i, row in enumerate(block):
                    columns[name][i] = row[name]
            yield start, columns

    def _attributes(self) -> dict[str, Any]:
        """What the finished file says of itself, without the hash of its content."""
        header = self.header
        return {
            "done": self.done,
            "size": header.size,
            "variants": ",".join(header.variants),
            "recipe": header.recipe_json,
            "recipe_digest": header.recipe_digest,
            "nets": header.nets,
            "source": header.source,
            "source_kind": header.source_kind,
            "source_hash": header.source_hash,
            "source_path": header.source_path,
            "synthetic": header.synthetic,
            "command": header.command,
            "complete": True,
        }

    def _check_stored(self, attributes: dict[str, Any]) -> None:
        """Open the finished file anew, and compare it with what was meant to be written; raises OSError."""
        with h5py.File(self.partial, "r", locking=False, rdcc_nbytes=0) as file:
            different = [name for name, value in attributes.items() if file.attrs.get(name) != value]
            stored = (load_dataset(file[f"failures/{name}"], "str").tolist() for name in ("path", "reason"))
            if list(zip(*stored, strict=True)) != self._failures:
                different.append("failures")
            for start, columns in self._index_columns():
                for name, column in columns.items():
                    dtype, rows = COLUMNS[name][0], slice(start, start + len(column))
                    if not _same_values(load_dataset(file[f"index/{name}"], dtype, rows), column):
                        different.append(f"index/{name}")
            if _content_hash(file) != attributes["content"]:
                different.append("content")
        if different:
            text = f"what was written reads back otherwise: {', '.join(dict.fromkeys(different))}"
            raise OSError(errno.EIO, text, str(self.partial))

    # Beginning and resuming

    def _identity(self) -> dict[str, Any]:
        """What a partial file must agree in to be resumed."""
        ignored = ("command", "nets", "source_path")
        identity = {key: value for key, value in asdict(self.header).items() if key not in ignored}
        identity |= {"schema": VERSION, "journal": journal.VERSION}
        identity |= {"total": self.total, "compression": self.compression}
        return json.loads(json.dumps(identity))  # type: ignore[no-any-return]

    def _create(self) -> None:
        """Make a new partial file with space for a row a film."""
        self.partial.unlink(missing_ok=True)
        self._journal.start(self._identity())
        try:
            self._output = OutputFile(self.partial, create=True)
            self._create_datasets(self._output.hdf5)
            self._capacity = self.total
            self.flush()
        except BaseException:
            self._abandon()
            self.partial.unlink(missing_ok=True)  # there is no film in it
            raise

    def _create_datasets(self, file: Any) -> None:
        for name, (dtype, shape) in self._arrays.items():
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if self.compression is None:
                layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # settles places; space is taken when used
            file.create_dataset(
                name,
                (self.total, *shape),
                dtype,
                chunks=(1, *shape),
                maxshape=(None, *shape),
                compression=self.compression,
                fill_time="never",
                dcpl=layout,
            )
        file.attrs.update(format=FORMAT, schema=VERSION, complete=False, command=self.header.command)

    def _grow(self) -> None:
        """Make room for more rows than the source has films."""
        self.flush()
        output = self._open_output
        output.begin()
        self._capacity += max(EXTRA_ROWS, self.total // 16)
        for name in self._arrays:
            output.hdf5[name].resize(self._capacity, axis=0)
        output.flush()

    def _resume(self) -> str:
        """Open the partial file, if there is one, and take over its films; why it cannot be used, or an empty text."""
        identity, expected = self._journal.identity(), self._identity()
        if not identity:
            return "damaged" if identity is None or self.partial.exists() else ""
        if self.partial.is_symlink():
            return "a symbolic link"
        if identity != expected:
            differing = [key for key in expected if identity.get(key) != expected[key]]
            return f"begun with another {', '.join(differing)}"
        try:
            grown = self._reopen()
            if not self._journal.accept(self._restore):
                plural = "s" if self.done != 1 else ""
                self.notes.append(f"{self.partial}: {self.done} film{plural} kept, the rest was not wholly written")
            if self.compression is not None or grown:
                self._clear_rest()
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            if disk_full(error) or (getattr(error, "filename", None) and not isinstance(error, FileNotFoundError)):
                raise  # the disk fails, the file may be well
            self._abandon()
            return f"damaged ({' '.join(str(error).split())})"
        for path in self._find_changed(self.fingerprints()) if self._find_changed else ():
            self._abandon()
            return f"{path} has changed since"
        self.flush()
        return ""

    def _restore(self, entry: dict[str, Any]) -> bool:
        """Count an entry of the journal, if all that it speaks of is stored."""
        if "failure" in entry:
            path, reason = entry["failure"]
            self._failures.append((path, reason))
        elif entry.get("rows") and all(self._is_intact(i, row["checksum"]) for i, row in enumerate(entry["rows"])):
            self._rows += len(entry["rows"])
            self._films += 1
        else:
            return False
        if self._on_checked:
            self._on_checked(self.done)
        return True

    def _is_intact(self, ahead: int, recorded: int) -> bool:
        """Tell whether the bytes stored for a row so far ahead of those counted have the recorded checksum."""
        row, file = self._rows + ahead, self._open_output.hdf5
        return row < self._capacity and checksum(file[name][row] for name in self._arrays) == recorded

    def _reopen(self) -> bool:
        """Open the partial file for writing, and undo what was done if it was killed while finishing; has it grown?"""
        self._close_output()
        self._output = OutputFile(self.partial, create=False)
        file = self._output.hdf5
        if fault := points_elsewhere(file):  # films would be written there
            raise ValueError(fault)
        file.attrs["complete"] = False
        file.attrs.pop("seal", None)
        for name in ("index", "failures"):
            if name in file:
                del file[name]
        self._capacity = max(self.total, *(len(file[name]) for name in self._arrays))
        for name in self._arrays:
            if len(file[name]) != self._capacity:
                file[name].resize(self._capacity, axis=0)
        return self._capacity > self.total

    def _clear_rest(self) -> None:
        """Give up every place beyond the rows counted, and see that rows can be written there.

        Compressed films get their places as they are written, others those of a grown file. Where a kill came between
        the tables of places and the recorded end of the file, the tables name places beyond that end, which nothing can
        be written to. Raises OSError or RuntimeError where that cannot be mended.
        """
        settled = self.rows if self.compression is not None else max(self.rows, self.total)
        for name in self._arrays:
            self._open_output.hdf5[name].resize(settled, axis=0)
        self._reopen()  # the list of free places, with those beyond the end, is not in the file
        if self.rows < self._capacity:
            for name, (dtype, shape) in self._arrays.items():
                self._open_output.hdf5[name][self.rows] = np.zeros(shape, dtype)
            self._open_output.flush()

    def _abandon(self) -> None:
        """Close a partial file that is not to be used."""
        with suppress(OSError, RuntimeError):  # it may be damaged
            self._close_output()
        self._rows = self._films = 0
        self._failures.clear()
        self.notes.clear()

    def _close_output(self, *, sync: bool = False) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.close(sync=sync)

    def _release(self) -> None:
        try:
            self._close_output()
        finally:
            self._journal.close()


def _stored_dtype(dtype: str) -> Any:
    return h5py.string_dtype() if dtype == "str" else np.dtype(dtype)


def _content_hash(file: Any) -> str:
    return content_hash(lambda name: load_dataset(file[f"index/{name}"], COLUMNS[name][0]))


def tidy(path: Path) -> None:
    """Remove what a writer of the finished cache at `path` left that was killed at its last step."""
    partial = path.with_name(path.name + ".partial")
    journal.remove_left(partial.with_name(partial.name + ".rows"), partial)


def _same_values(stored: NDArray[Any], column: NDArray[Any]) -> bool:
    """Compare two columns; NaN is equal to NaN."""
    return bool(stored.tolist() == column.tolist() if stored.dtype == object else stored.tobytes() == column.tobytes())
