"""The cache: one HDF5 file of prepared films. This docstring is the format, and this module alone knows it.

N prepared films of one size S in the order of their source, which two rows share where a film shows two hands; M films
failed. P = ceil(S * S / 8) bytes hold a packed (S, S) mask, eight pixels a byte, the first in the highest bit.

    films/<variant>    uint8|16  (N, S, S)  prepared film: a stage (raw, crop, full), as it is or with -he, -clahe or
                                            -contrast; larger is brighter
    masks/<stage>      uint8     (N, P)     packed foreground of a stage: raw, crop or full
    truth/<stage>      uint8     (N, P)     packed anomaly, raw or crop (for full too); only where the source has any
    targets/boxes      float32   (N, 16, 5) x0, y0, x1, y1 in the pixels of stage crop, whose edges are at 0 and S, and
                                            class: 1 right hand, 2 left hand, 3 right marker, 4 left marker, 0 no box;
                                            only where the source has any

    index/path         str       (N,)       film file, relative POSIX path within the source
    index/hand         int8      (N,)       0 the film's only hand, or the whole film; 1, 2 of two, left to right
    index/side         str       (N,)       of the body, as a trained localizer said: left, right, or empty
    index/patient      str       (N,)       patient; a split never parts one
    index/study        str       (N,)       study, unique across patients
    index/label        int8      (N,)       0 normal, 1 abnormal, -1 unknown
    index/split        str       (N,)       the source's own: train, val, test, or empty
    index/finding      str       (N,)       what is abnormal, or empty
    index/difficulty   str       (N,)       how hard it is to see, or empty
    index/sha256       str       (N,)       of the film file's bytes, hex
    index/height       int32     (N,)       of the film file, pixels
    index/width        int32     (N,)       of the film file, pixels
    index/depth        uint8     (N,)       significant bits of the film file, 8 to 16
    index/inverted     bool      (N,)       the grey levels were turned round, as the background was bright
    index/turns        int8      (N,)       quarter turns counter-clockwise that brought the carrier upright, 0 to 3
    index/markers      int8      (N,)       side markers blanked in the stages crop and full
    index/given        bool      (N,)       the foreground mask came with the film, it was not estimated
    index/fallbacks    str       (N,)       steps that found nothing and were passed over: comma list, or empty
    index/carrier      float64   (N, 4, 2)  carrier's corners (x, y) in the film, clockwise from top left; NaN if none
    index/box          float64   (N, 4)     crop x0, y0, x1, y1 in the carrier as turned upright, or in the film if it
                                            has none; NaN if none
    index/matrix_raw   float64   (N, 2, 3)  film (x, y) -> cache (x, y) of stage raw, pixel centres; NaN if unknown
    index/matrix_crop  float64   (N, 2, 3)  the same of the stages crop and full
    index/grey         float64   (N, 3, 2)  mean and standard deviation of stages raw, crop, full under their masks,
                                            before levels were spread, shares of 2**depth - 1; NaN if not made
    index/truth        bool      (N,)       has pixel truth of its anomaly; where not, its truth/ rows are zeros
    index/checksum     uint64    (N,)       BLAKE2b of the row's bytes in films, masks, truth and targets, for `verify`

    failures/path      str       (M,)       film file that could not be prepared
    failures/reason    str       (M,)       why, one line

    attributes: format, schema (version), complete, done (films of the source: those prepared and M), content (hash of
    the index, and through its checksums of every film), size (S), variants (comma list), recipe (JSON), recipe_digest,
    nets (JSON: localizer, segmenter -> name, run, digest; {} without), source (name), source_kind, source_hash (of its
    listing), source_path (where it was), synthetic (drawn, not taken from patients), command (that makes the file
    again)

One film is one chunk: any row costs one read. While it is made, a cache is `NAME.partial`, and `NAME.partial.rows`
beside it has one JSON line for each film of the source that is done, with all its rows, written after them: a film is
there wholly or not at all. Space for a row a film is laid out at the start: from then on only film bytes change, and a
build killed at any moment goes on from its last whole line. With compression, and each time that films with two hands
have used that space up, the file's tables grow too: a kill in the middle of writing them may damage it, and the build
then begins again, and says so.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from preprocessing import InputError
from preprocessing.cache.disk import DiskFile

FORMAT = "xray-anomaly cache"
VERSION = 2

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # dtype and shape of a row's value, as in the table above
    "path": ("str", ()),
    "hand": ("int8", ()),
    "side": ("str", ()),
    "patient": ("str", ()),
    "study": ("str", ()),
    "label": ("int8", ()),
    "split": ("str", ()),
    "finding": ("str", ()),
    "difficulty": ("str", ()),
    "sha256": ("str", ()),
    "height": ("int32", ()),
    "width": ("int32", ()),
    "depth": ("uint8", ()),
    "inverted": ("bool", ()),
    "turns": ("int8", ()),
    "markers": ("int8", ()),
    "given": ("bool", ()),
    "fallbacks": ("str", ()),
    "carrier": ("float64", (4, 2)),
    "box": ("float64", (4,)),
    "matrix_raw": ("float64", (2, 3)),
    "matrix_crop": ("float64", (2, 3)),
    "grey": ("float64", (3, 2)),
    "truth": ("bool", ()),
    "checksum": ("uint64", ()),
}

STAGES = ("raw", "crop", "full")  # in the order of index/grey
BOX_CLASSES = ("right hand", "left hand", "right marker", "left marker")  # of targets/boxes: 1, 2, 3, 4
MAX_BOXES = 16  # of a film

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk without room says
MAGIC = b"\x89HDF\r\n\x1a\n"  # the first bytes of every HDF5 file

GROWTH = 64  # rows that a file grows by, where films have two hands
INDEX_ROWS = 1024  # of the index, written at a time
HDF5_BYTES = 2**20  # of its own tables that HDF5 keeps in memory while it writes; unasked up to 32 times as many
FLUSH_ROWS = 64
FLUSH_SECONDS = 2.0


def split_variant(variant: str) -> tuple[str, str]:
    """Split a variant's name into its stage and how its levels were spread: "" (stretched), "he", "clahe", "contrast".

    >>> split_variant("crop-he"), split_variant("raw")
    (('crop', 'he'), ('raw', ''))
    """
    stage, _, levels = variant.partition("-")
    return stage, levels


def stage_of(variant: str) -> str:
    """Name the stage whose mask a variant has.

    >>> stage_of("crop-contrast")
    'crop'
    """
    return split_variant(variant)[0]


def truth_stage(variant: str) -> str:
    """Name the stage whose anomaly truth a variant has: that of "crop" for "full" too, as segmentation moves no pixel.

    >>> truth_stage("full-he")
    'crop'
    """
    return "raw" if stage_of(variant) == "raw" else "crop"


@dataclass(frozen=True)
class Header:
    """What a cache says of itself before its first film."""

    variants: tuple[str, ...]
    size: int  # pixels, both sides
    dtype: str  # "uint8" | "uint16"
    recipe_json: str
    recipe_digest: str
    source: str
    source_kind: str
    source_hash: str
    synthetic: bool
    truth: bool  # any film of the source has pixel truth
    boxes: bool = False  # any film of the source has boxes
    source_path: str = ""  # absolute; it, the command and where nets lie say nothing about the content
    command: str = "anomaly preprocess"
    nets: str = "{}"  # JSON: "localizer", "segmenter" -> name, run, digest; their weights are in recipe_digest

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """List the datasets of film bytes, name -> (dtype, a row's shape), in the order a checksum runs over them."""
        packed = (-(-self.size * self.size // 8),)
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        for variant in self.variants:
            arrays[f"films/{variant}"] = (self.dtype, (self.size, self.size))
        for variant in self.variants:
            arrays[f"masks/{stage_of(variant)}"] = ("uint8", packed)
        for variant in self.variants if self.truth else ():
            arrays[f"truth/{truth_stage(variant)}"] = ("uint8", packed)
        if self.boxes:
            arrays["targets/boxes"] = ("float32", (MAX_BOXES, 5))
        return arrays

    def row_bytes(self) -> int:
        """Bytes one film takes, uncompressed and without its line of the index."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in self.arrays().values())


@dataclass(frozen=True)
class Row:
    """One prepared film with its line of the index, ready to be stored; fields as in the table of the module.

    boxes   x0, y0, x1, y1 and class of each box of the film, (n, 5) and n at most MAX_BOXES
    """

    path: str
    patient: str
    study: str
    label: int
    split: str
    finding: str
    difficulty: str
    sha256: str
    height: int
    width: int
    depth: int
    inverted: bool
    fallbacks: str
    carrier: ArrayLike | None
    box: ArrayLike | None
    matrix_raw: ArrayLike | None
    matrix_crop: ArrayLike | None
    grey: ArrayLike | None
    films: dict[str, NDArray[Any]] = field(repr=False)  # variant -> (S, S)
    masks: dict[str, NDArray[np.bool_]] = field(repr=False)  # stage -> (S, S)
    truth: dict[str, NDArray[np.bool_]] | None = field(default=None, repr=False)  # "raw" | "crop" -> (S, S)
    boxes: ArrayLike | None = None
    hand: int = 0
    side: str = ""
    turns: int = 0
    markers: int = 0
    given: bool = False


class Writer:
    """Writes a cache, one film after the other in the order of the source, and goes on where a killed one stopped.

    A partial file of another recipe, source, size or schema is discarded, and so is a damaged one; `notes` says so.
    Films already there are compared with their checksums first: a power cut may cost films, but corrupts none. What is
    known of the films done stays in the journal until `finish`: memory does not grow with their number.

    header        what is to be stored
    total         films of the source
    compression   None, "lzf" or "gzip"
    on_kept       told the number of films found intact while a partial file is taken up
    changed       given `dealt_with()` of the films taken up, the paths of those that are others now: with any, the
                  partial file is discarded

    Raises InputError when another process writes the same cache.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        *,
        total: int,
        compression: str | None = None,
        on_kept: Callable[[int], None] | None = None,
        changed: Callable[[Iterable[tuple[str, str]]], Iterable[str]] | None = None,
    ) -> None:
        self._on_kept, self._changed = on_kept, changed
        self.path, self.header, self.total, self.compression = path, header, total, compression
        self.partial = path.with_name(path.name + ".partial")
        self.notes: list[str] = []
        self._arrays = header.arrays()
        self._rows = self._films = 0
        self._capacity = total  # rows that there is space for
        self._failures: list[tuple[str, str]] = []
        self._pending: list[str] = []  # lines not yet in the journal
        self._journal_bytes = 0  # of whole lines
        self._flushed_at = time.monotonic()
        self._file: Any = None  # as HDF5 has it
        self._disk: DiskFile | None = None  # what HDF5 writes to
        path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = _lock(self.partial.with_name(self.partial.name + ".rows"), path)
        try:
            with Path(self._journal.name).open("rb") as lines:
                first = lines.readline()
                reason = self._resume(first, lines) if first or self.partial.exists() else ""
            if reason:
                self.notes.append(f"{self.partial}: discarded, {reason}")
            if self._file is None:
                self._create()
        except BaseException:
            with suppress(OSError, RuntimeError):  # the error that led here says more
                self._release()
            raise

    @property
    def done(self) -> int:
        """Films of the source dealt with: those prepared and those that failed."""
        return self._films + self.failed

    @property
    def rows(self) -> int:
        """Rows stored: of a film one, or two where it shows two hands."""
        return self._rows

    @property
    def failed(self) -> int:
        """Films that could not be prepared."""
        return len(self._failures)

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of every film that could not be prepared."""
        return list(self._failures)

    def append(self, *rows: Row, read: str = "") -> None:
        """Store one film: its row, or one for each of its hands. `read` tells what it was made of.

        Raises InputError for a text that HDF5 cannot hold, ValueError for hands out of order and for a film or mask
        unlike the header.
        """
        hands = [row.hand for row in rows]
        if hands != ([0] if len(rows) == 1 else list(range(1, len(rows) + 1))) or not rows:
            raise ValueError(f"{rows[0].path if rows else self.path}: hands {hands}; 0 alone, or 1 and 2")
        lines, parts = [_line(row) for row in rows], [self._parts(row) for row in rows]
        if self._rows + len(rows) > self._capacity:
            self._grow()
        for i, (line, arrays) in enumerate(zip(lines, parts, strict=True)):
            line["checksum"] = _checksum(arrays.values())
            for name, array in arrays.items():
                self._file[name][self._rows + i] = array
        self._check_written()
        self._rows += len(rows)
        self._films += 1
        self._wrote({"rows": lines, "read": read})

    def fail(self, path: str, reason: str, *, read: str = "") -> None:
        """Record that a film could not be prepared, and why."""
        failure = (_storable(path), _storable(" ".join(reason.split())))
        self._failures.append(failure)
        self._wrote({"failure": failure, "read": read})

    def dealt_with(self) -> Iterator[tuple[str, str]]:
        """Give, in the order of the source, the path of every film done, and what `read` told of it."""
        self.flush()
        for line in self._lines():
            yield line["rows"][0]["path"] if "rows" in line else line["failure"][0], line["read"]

    def cut(self, films: int) -> None:
        """Keep the first `films` of those done for the next writer, none of the others, and let go."""
        self.flush()
        with Path(self._journal.name).open("rb") as lines:
            self._journal_bytes = sum(len(line) for line in itertools.islice(lines, 1 + films))
        self.close()

    def flush(self) -> None:
        """Write out everything so far: a killed build goes on from here."""
        self._flush_file()
        self._journal.truncate(self._journal_bytes)  # drops the torn line of a write that failed
        data = "".join(self._pending).encode()
        written = self._journal.write(data)
        if written != len(data):
            raise OSError(errno.ENOSPC, "No space left on device", str(self.partial))
        self._journal_bytes += written
        self._pending.clear()
        self._flushed_at = time.monotonic()

    def finish(self) -> Path:
        """Write the index and move the cache into place, replacing an older one; the path.

        Raises ValueError when films are missing.
        """
        if self.done != self.total:
            raise ValueError(f"{self.path}: {self.done} of {self.total} films are dealt with")
        self.flush()
        self._begin()
        for name in self._arrays:
            self._file[name].resize(self.rows, axis=0)
        self._write_index()
        for i, name in enumerate(("path", "reason")):
            texts = np.array([failure[i] for failure in self._failures], dtype=object)
            self._file.create_dataset(f"failures/{name}", data=texts, dtype=_stored("str"))
        attributes = self._attributes() | {"content": content_hash(lambda name: _column(self._file, name))}
        self._file.attrs.update(attributes)
        self._close_file(sync=True)
        self._check_stored(attributes)
        self.partial.replace(self.path)
        _sync(self.path.parent)
        Path(self._journal.name).unlink()
        self._release()
        return self.path

    def discard(self) -> None:
        """Delete the partial file: nothing of it is worth keeping."""
        self._delete()
        Path(self._journal.name).unlink()
        self._release()

    def close(self) -> None:
        """Flush and let go; the partial file stays for the next writer. Closing twice is harmless."""
        try:
            if self._file is not None:
                self.flush()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with suppress(*(() if kind is None else (OSError, RuntimeError))):
            self.close()

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Read the journal: a line for each film done."""
        with Path(self._journal.name).open("rb") as lines:
            place = len(lines.readline())
            for line in lines:
                place += len(line)
                if place > self._journal_bytes:  # beyond lie films that do not count
                    return
                yield json.loads(line)

    def _write_index(self) -> None:
        """Write the index, some rows at a time, from the journal."""
        for name, (dtype, shape) in COLUMNS.items():
            self._file.create_dataset(f"index/{name}", (self.rows, *shape), _stored(dtype))
        for start, columns in self._index_columns():
            for name, column in columns.items():
                self._file[f"index/{name}"][start : start + len(column)] = column
            self._check_written()

    def _attributes(self) -> dict[str, Any]:
        """What the finished file says of itself, but for the hash of its content."""
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
        """Read the finished file anew, and compare it with what was meant to be written; raises OSError."""
        with h5py.File(self.partial, "r", locking=False, rdcc_nbytes=0) as file:
            different = [name for name, value in attributes.items() if file.attrs.get(name) != value]
            failures = zip(*(file[f"failures/{name}"].asstr()[:] for name in ("path", "reason")), strict=True)
            if list(failures) != self._failures:
                different.append("failures")
            for start, columns in self._index_columns():
                for name, column in columns.items():
                    stored = file[f"index/{name}"]
                    part = (stored.asstr() if COLUMNS[name][0] == "str" else stored)[start : start + len(column)]
                    if part.tobytes() != column.tobytes() if part.dtype != object else part.tolist() != column.tolist():
                        different.append(f"index/{name}")
            if content_hash(lambda name: _column(file, name)) != attributes["content"]:
                different.append("content")
        if different:
            text = f"what was written reads back otherwise: {', '.join(dict.fromkeys(different))}"
            raise OSError(errno.EIO, text, str(self.partial))

    def _index_columns(self) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Give the index as the journal has it, INDEX_ROWS at a time: the first row's number, and name -> column."""
        rows = (row for line in self._lines() for row in line.get("rows", ()))
        for start in range(0, self.rows, INDEX_ROWS):
            part = list(itertools.islice(rows, INDEX_ROWS))
            columns = {}
            for name, (dtype, shape) in COLUMNS.items():
                columns[name] = np.empty((len(part), *shape), "object" if dtype == "str" else dtype)
                for i, row in enumerate(part):
                    columns[name][i] = row[name]
            yield start, columns

    def _wrote(self, line: dict[str, Any]) -> None:
        self._pending.append(json.dumps(line) + "\n")
        if len(self._pending) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def _parts(self, row: Row) -> dict[str, NDArray[Any]]:
        given: dict[str, dict[str, NDArray[Any]]] = {"films": row.films, "masks": row.masks, "truth": row.truth or {}}
        parts: dict[str, NDArray[Any]] = {}
        square = (self.header.size, self.header.size)
        if row.truth is not None and not self.header.truth:
            raise ValueError(f"{row.path}: pixel truth is given, the cache was laid out without")
        for name, (dtype, shape) in self._arrays.items():
            group, key = name.split("/")
            if group == "targets":
                parts[name] = _padded(row, shape)
                continue
            if group == "truth" and row.truth is None:
                parts[name] = np.zeros(shape, dtype)
                continue
            part = given[group][key]  # (S, S)
            wanted = dtype if group == "films" else "bool"
            if part.shape != square or part.dtype != wanted:
                raise ValueError(f"{row.path}: {name} is {part.dtype} {part.shape}, the cache stores {wanted} {square}")
            parts[name] = np.ascontiguousarray(part) if group == "films" else np.packbits(part)  # (S, S) | (P,)
        return parts

    def _identity(self) -> dict[str, Any]:
        aside = ("command", "nets", "source_path")
        mine = {key: value for key, value in asdict(self.header).items() if key not in aside}
        mine |= {"schema": VERSION, "total": self.total, "compression": self.compression}
        return json.loads(json.dumps(mine))  # type: ignore[no-any-return]

    def _create(self) -> None:
        try:
            self._lay_out()
        except BaseException:
            with suppress(OSError):  # the error that led here says more
                self._delete()  # there is no film in it
            raise

    def _lay_out(self) -> None:
        """Make a new partial file with space for a row a film."""
        self._delete()
        self._open_file("w")
        for name, (dtype, shape) in self._arrays.items():
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if self.compression is None:
                layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # settles places; space is taken when used
            self._file.create_dataset(
                name,
                (self.total, *shape),
                dtype,
                chunks=(1, *shape),
                maxshape=(None, *shape),
                compression=self.compression,
                fill_time="never",
                dcpl=layout,
            )
        self._file.attrs.update(format=FORMAT, schema=VERSION, complete=False, command=self.header.command)
        self._capacity = self.total
        self._pending = [json.dumps(self._identity()) + "\n"]
        self.flush()

    def _grow(self) -> None:
        """Make room for more rows than the source has films."""
        self.flush()
        self._begin()
        self._capacity += max(GROWTH, self.total // 16)
        for name in self._arrays:
            self._file[name].resize(self._capacity, axis=0)
        self._flush_file()

    def _resume(self, first: bytes, lines: Iterable[bytes]) -> str:
        """Open the partial file and take up its films; why it cannot be used, or an empty text."""
        try:
            identity = json.loads(first) if first.endswith(b"\n") else {}
        except ValueError:
            return "damaged"
        mine = self._identity()
        if not isinstance(identity, dict) or not identity:
            return "damaged"
        if identity != mine:
            return "begun with another " + ", ".join(key for key in mine if identity.get(key) != mine[key])
        self._journal_bytes = len(first)
        try:
            grown = self._reopen()
            self._take(lines)
            if self.compression is not None or grown:
                self._clear_rest()
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            if disk_full(error) or (getattr(error, "filename", None) and not isinstance(error, FileNotFoundError)):
                raise  # the disk fails, the file may be well
            self._forget()
            return f"damaged ({' '.join(str(error).split())})"
        for path in self._changed(self.dealt_with()) if self._changed else ():
            self._forget()
            return f"{path} has changed since"
        self.flush()
        return ""

    def _reopen(self) -> bool:
        """Open the partial file for writing, and undo what was done if it was killed while finishing; has it grown?"""
        self._close_file()
        self._open_file("r+")
        self._file.attrs["complete"] = False
        for name in ("index", "failures"):
            if name in self._file:
                del self._file[name]
        self._capacity = max(self.total, *(len(self._file[name]) for name in self._arrays))
        for name in self._arrays:
            if len(self._file[name]) != self._capacity:
                self._file[name].resize(self._capacity, axis=0)
        return self._capacity > self.total

    def _clear_rest(self) -> None:
        """Give up every place beyond the rows taken up, and see that rows can be written there.

        Compressed films get their places as they are written, others those of a grown file. Where a full disk or a kill
        came between the tables of places and the recorded end of the file, the tables name places beyond that end,
        which nothing can be written to. Raises OSError or RuntimeError where that cannot be mended.
        """
        settled = self.rows if self.compression is not None else max(self.rows, self.total)
        for name in self._arrays:
            self._file[name].resize(settled, axis=0)
        self._reopen()  # the list of free places, with those beyond the end, is not in the file
        if self.rows < self._capacity:
            for name, (dtype, shape) in self._arrays.items():
                self._file[name][self.rows] = np.zeros(shape, dtype)
            self._flush_file()

    def _forget(self) -> None:
        """Let go of a partial file that is not to be taken up."""
        with suppress(OSError, RuntimeError):  # it may be damaged
            self._close_file()
        self._rows = self._films = 0
        self._failures.clear()
        self.notes.clear()

    def _take(self, lines: Iterable[bytes]) -> None:
        """Take up films until a line is torn or stored bytes differ from their checksum."""
        for text in lines:
            try:
                line = json.loads(text) if text.endswith(b"\n") else {}
            except ValueError:
                line = {}
            if "failure" in line:
                path, reason = line["failure"]
                self._failures.append((path, reason))
            elif line.get("rows") and all(self._holds(i, row["checksum"]) for i, row in enumerate(line["rows"])):
                self._rows += len(line["rows"])
                self._films += 1
            else:
                self.notes.append(
                    f"{self.partial}: {self.done} film{'s' * (self.done != 1)} kept, the rest was not wholly written"
                )
                return
            self._journal_bytes += len(text)
            if self._on_kept:
                self._on_kept(self.done)

    def _holds(self, ahead: int, checksum: int) -> bool:
        """Whether the bytes stored for a row so far ahead of those taken up are those of its checksum."""
        row = self._rows + ahead
        return row < self._capacity and _checksum(self._file[name][row] for name in self._arrays) == checksum

    def _delete(self) -> None:
        with suppress(OSError):  # of a write that failed to what is not wanted any more
            self._close_file()
        self.partial.unlink(missing_ok=True)
        self._journal.truncate(0)
        self._journal_bytes = 0

    def _open_file(self, mode: Literal["w", "r+"]) -> None:
        """Open the partial file for writing; what HDF5 keeps of it in memory does not grow with the films."""
        self._disk = DiskFile(self.partial, create=mode == "w")
        self._file = h5py.File(self._disk, mode, rdcc_nbytes=0)
        tables = self._file.id.get_mdc_config()
        tables.set_initial_size, tables.initial_size, tables.min_size, tables.max_size = True, *3 * (HDF5_BYTES,)
        self._file.id.set_mdc_config(tables)

    def _flush_file(self) -> None:
        """Write out what HDF5 still holds; raises OSError where that or an earlier write failed."""
        self._file.flush()
        self._check_written()
        if self._disk is not None and self.compression is None:
            self._disk.commit()
        else:
            self._begin()

    def _begin(self) -> None:
        if self._disk is not None:
            self._disk.begin()

    def _check_written(self) -> None:
        if self._disk is not None:
            self._disk.check()

    def _close_file(self, *, sync: bool = False) -> None:
        """Close the partial file; raises OSError where a write of it failed, the last ones included."""
        disk, file, self._disk, self._file = self._disk, self._file, None, None
        if disk is None:
            return
        try:
            if file is not None:
                file.close()
            disk.check()
            if sync:
                disk.sync()
        finally:
            disk.close()

    def _release(self) -> None:
        try:
            self._close_file()
        finally:
            self._journal.close()


class Cache:
    """A finished cache, for reading. Picklable; every process opens the file for itself, at its first film.

    path           the file                        size          pixels, both sides
    variants       names of the films stored       dtype         of the films, uint8 or uint16
    recipe_json    what was done to the films      recipe_digest its hash, with that of the nets asked
    nets           localizer, segmenter: each the name, run and digest of the trained net that was asked
    has_boxes      whether there are `boxes`
    source         name of the source              source_kind   mura, classes, manifest or folder
    source_hash    of the source's listing         source_path   where it was
    synthetic      drawn, not from patients        command       that makes this file, where there is none
    remake         the command that replaces it
    content_hash   equal for equal content, however it was made

    Raises InputError for a file that is missing, foreign, of another schema, unfinished, cut short or damaged: at once
    where its layout is, and at the first use of its index where that is not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._handle: Any = None
        self._process = 0
        self._datasets: dict[str, tuple[Any, NDArray[np.int64] | None]] = {}  # of the handle: what `_found` gives
        with self._open() as file:
            try:
                self._read_header(file)
            except InputError:
                raise
            except (AttributeError, KeyError, OSError, RuntimeError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{self.path}: damaged ({reason}); run `{_remake(file)}`") from error

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": 0, "_datasets": {}}

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return np.arange(len(self))

    @cached_property
    def index(self) -> dict[str, NDArray[Any]]:
        """The index, column name -> (N, ...), as the module's table has it; texts are object arrays of str."""
        if content_hash(self._columns.__getitem__) != self.content_hash:
            raise InputError(f"{self.path}: the index was changed after it was written; run `{self.remake}`")
        return self._columns

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """The index as it is in the file, which need not be what was written."""
        return self._load({f"index/{name}": dtype for name, (dtype, _) in COLUMNS.items()})

    @cached_property
    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of every film of the source that could not be prepared."""
        texts = self._load({"failures/path": "str", "failures/reason": "str"})
        return list(zip(texts["path"].tolist(), texts["reason"].tolist(), strict=True))

    @cached_property
    def names(self) -> NDArray[Any]:
        """A name for each row that no other has, (N,): the film's path, with #1 and #2 where it has two hands."""
        rows = zip(self.index["path"], self.index["hand"].tolist(), strict=True)
        return np.array([f"{path}#{hand}" if hand else path for path, hand in rows], dtype=object)

    @property
    def has_truth(self) -> NDArray[np.bool_]:
        """Which rows have pixel truth of their anomaly, (N,)."""
        return self.index["truth"]

    def films(self, variant: str, rows: NDArray[Any] | slice) -> NDArray[Any]:
        """Read films, (n, S, S) in the cache's dtype; rows in any order, with repeats, or as a (N,) bool mask."""
        self._check(variant)
        return self._read(f"films/{variant}", rows)

    def masks(self, variant: str, rows: NDArray[Any] | slice) -> NDArray[np.bool_]:
        """Read the foreground masks that go with a variant, (n, S, S)."""
        self._check(variant)
        return self._unpack(self._read(f"masks/{stage_of(variant)}", rows))

    def anomaly(self, variant: str, rows: NDArray[Any] | slice) -> NDArray[np.bool_] | None:
        """Read anomaly truth in a variant's pixels, (n, S, S), empty where not `has_truth`; None if there is none."""
        self._check(variant)
        name = f"truth/{truth_stage(variant)}"
        return self._unpack(self._read(name, rows)) if name in self._arrays else None

    def boxes(self, rows: NDArray[Any] | slice) -> NDArray[np.float32]:
        """Read target boxes, (n, 16, 5): x0, y0, x1, y1, class, as the module's table has it; class 0 is no box."""
        if not self.has_boxes:
            raise InputError(
                f"{self.path}: no boxes in it; run `anomaly preprocess SOURCE --for ssd` on films with boxes"
            )
        return self._read("targets/boxes", rows)

    def verify(self) -> list[str]:
        """Recompute every checksum; what does not hold, one line each, or an empty list."""
        problems, file, index = [], self._opened(), self._columns
        if content_hash(index.__getitem__) != self.content_hash:
            problems.append("index: its hash is not the recorded one")
        for row, (path, checksum) in enumerate(zip(index["path"], index["checksum"], strict=True)):
            try:
                intact = _checksum(file[name][row] for name in self._arrays) == checksum
            except OSError as error:
                problems.append(f"row {row} ({path}): unreadable ({' '.join(str(error).split())})")
                continue
            if not intact:
                problems.append(f"row {row} ({path}): the stored bytes do not match their checksum")
        return problems

    def _open(self) -> Any:
        """Open the file, or say in one line why it is not a cache."""
        if not self.path.is_file():
            raise InputError(f"no cache {self.path}; run `anomaly preprocess`")
        try:
            # Nothing writes to a finished cache: a lock would protect nothing, and some network drives refuse it.
            return h5py.File(self.path, "r", locking=False, rdcc_nbytes=0)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, PermissionError):
                raise InputError(f"{self.path}: may not be read ({reason}); change its permissions") from error
            if not h5py.is_hdf5(self.path):
                raise InputError(f"{self.path}: not a cache (not an HDF5 file); run `anomaly preprocess`") from error
            fault = "cut short" if "truncated" in reason else f"damaged ({reason})"
            raise InputError(f"{self.path}: {fault}; make it again with `anomaly preprocess ... --force`") from error

    def _read_header(self, file: Any) -> None:
        attrs = file.attrs
        if attrs.get("format") != FORMAT:
            raise InputError(f"{self.path}: not a cache (another program's HDF5 file); run `anomaly preprocess`")
        if attrs.get("schema") != VERSION:
            raise InputError(
                f"{self.path}: cache schema {attrs.get('schema')}, this version reads {VERSION}; run `{_remake(file)}`"
            )
        if not attrs["complete"]:
            command = _command(file) if self.path.suffix == ".partial" else _remake(file)  # the one goes on with it
            raise InputError(f"{self.path}: not finished; run `{command}`")
        self.size = int(attrs["size"])
        self.variants: tuple[str, ...] = tuple(attrs["variants"].split(","))
        self.dtype: np.dtype[Any] = file[f"films/{self.variants[0]}"].dtype
        self.recipe_json: str = attrs["recipe"]
        self.recipe_digest: str = attrs["recipe_digest"]
        self.source: str = attrs["source"]
        self.source_kind: str = attrs["source_kind"]
        self.source_hash: str = attrs["source_hash"]
        self.source_path: str = attrs["source_path"]
        self.synthetic = bool(attrs["synthetic"])
        self.command: str = attrs["command"]
        self.remake = _remake(file)
        self.content_hash: str = attrs["content"]
        self._length = len(file["index/path"])
        self.nets: dict[str, dict[str, str]] = json.loads(attrs["nets"])
        self.has_boxes = "targets" in file
        aside = ("truth", "dtype", "boxes", "nets")
        header = {f.name: getattr(self, f.name) for f in fields(Header) if f.name not in aside}
        self._arrays = Header(
            **header, dtype=self.dtype.name, truth="truth" in file, boxes=self.has_boxes, nets=attrs["nets"]
        ).arrays()
        rows, failed = self._length, len(file["failures/path"])
        layout = {name: (dtype, (rows, *shape)) for name, (dtype, shape) in self._arrays.items()}
        layout |= {f"index/{name}": (dtype, (rows, *shape)) for name, (dtype, shape) in COLUMNS.items()}
        layout |= {f"failures/{name}": ("str", (failed,)) for name in ("path", "reason")}
        for name, (dtype, shape) in layout.items():
            found = file[name]  # a missing one is a KeyError that names it
            if found.shape != shape or found.dtype != (object if dtype == "str" else dtype):
                raise ValueError(f"{name}: {found.dtype} {found.shape}, expected {dtype} {shape}")
        films = int((file["index/hand"][:] < 2).sum())
        if films + failed != int(attrs["done"]):
            raise ValueError(f"{films} films and {failed} failures, expected {attrs['done']} together")

    def _load(self, names: dict[str, str]) -> dict[str, NDArray[Any]]:
        """Load whole datasets, given with their dtypes; by the last part of their names."""
        with self._open() as file:
            try:
                return {name.rpartition("/")[2]: _loaded(file[name], dtype) for name, dtype in names.items()}
            except (OSError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{self.path}: damaged ({reason}); run `{self.remake}`") from error

    def _opened(self) -> Any:
        if self._handle is None or self._process != os.getpid():
            self._handle, self._process = self._open(), os.getpid()
            self._datasets = {}
        return self._handle

    def _check(self, variant: str) -> None:
        if variant not in self.variants:
            wanted = ",".join((*self.variants, variant))
            raise InputError(
                f"{self.path}: no variant {variant!r}; there are: {', '.join(self.variants)}; "
                f"run `anomaly preprocess SOURCE --variants {wanted}`"
            )

    def _read(self, name: str, rows: NDArray[Any] | slice) -> NDArray[Any]:
        dataset, places = self._found(name)
        dtype, shape = self._arrays[name]
        wanted = self._rows[rows]  # resolves slices and masks, and checks the bounds
        out = np.empty((len(wanted), *shape), dtype)
        if places is None:
            for i, row in enumerate(wanted):  # HDF5's own selection takes rising rows only, and longer for scattered
                out[i] = dataset[row]
            return out
        file = self._handle.id.get_vfd_handle()
        for film, row, place in zip(out, wanted, places[wanted].tolist(), strict=True):
            if os.preadv(file, [film], place) != film.nbytes:
                film[:] = dataset[row]  # HDF5 says what is wrong
        return out

    def _found(self, name: str) -> tuple[Any, NDArray[np.int64] | None]:
        """A dataset, and at which byte of the file each of its rows begins, (N,), if it lies there as it is.

        Past HDF5 a film of 512 px is read in a tenth of the time; its tables are gone through once a process.
        """
        file = self._opened()
        if name not in self._datasets:
            dataset, (_, shape) = file[name], self._arrays[name]
            places = np.full(len(self), -1, np.int64)

            def note(chunk: Any) -> None:
                places[chunk.chunk_offset[0]] = chunk.byte_offset

            plain = dataset.chunks == (1, *shape) and not dataset.id.get_create_plist().get_nfilters()
            if plain and not file.userblock_size and hasattr(dataset.id, "chunk_iter"):  # from HDF5 1.12.3 on
                dataset.id.chunk_iter(note)
            self._datasets[name] = dataset, places if (places > 0).all() else None
        return self._datasets[name]

    def _unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
        bits = np.unpackbits(packed, axis=1, count=self.size * self.size)  # (n, S * S)
        return bits.view(np.bool_).reshape(-1, self.size, self.size)


def newest_cache(folder: Path = Path("cache")) -> Path:
    """Find the cache that was finished last, passing over what is not one.

    Raises InputError where there is none, naming the newest file's fault if there is a file.
    """
    faults = []
    for path in sorted(folder.glob("*.h5"), key=lambda path: (path.stat().st_mtime, path.name), reverse=True):
        try:
            return Cache(path).path
        except InputError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    raise InputError(f"no cache in {folder}/; run `anomaly preprocess`")


def replaceable(path: Path) -> bool:
    """Whether a file may make way for a cache: it is one, whole, damaged or of another schema, or it is empty."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    if head != MAGIC:
        return not head
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except (KeyError, OSError, RuntimeError, ValueError):  # damaged so much that not even this can be read
        return True


def disk_full(error: Exception) -> bool:
    """Whether an error says that a disk has no room."""
    return getattr(error, "errno", None) in FULL


def content_hash(column_of: Callable[[str], NDArray[Any]]) -> str:
    """Hash a cache's content: its index, and through the checksums in it every stored byte; sha256 in hex.

    The same for any number of workers, after any interruption, and with any compression.
    """
    digest = hashlib.sha256()
    for name, (dtype, _) in COLUMNS.items():
        column = column_of(name)
        digest.update(f"{name} {dtype} {column.shape}".encode())
        digest.update(json.dumps(column.tolist()).encode() if dtype == "str" else column.astype(dtype).tobytes())
    return digest.hexdigest()


def _line(row: Row) -> dict[str, Any]:
    """The row's line of the index, but for its checksum, as JSON can hold it."""
    line: dict[str, Any] = {}
    for name, (dtype, shape) in COLUMNS.items():
        if name in ("truth", "checksum"):
            continue
        value = getattr(row, name)
        if dtype == "str":
            if value != _storable(value):
                raise InputError(
                    f"{_storable(row.path)}: {name} is not text that can be stored (UTF-8, no zero byte); rename it"
                )
            line[name] = value
        elif shape:
            array = np.full(shape, np.nan) if value is None else np.asarray(value, dtype)
            if array.shape != shape:
                raise ValueError(f"{row.path}: {name} has shape {array.shape}, the cache stores {shape}")
            line[name] = array.tolist()
        else:
            line[name] = np.dtype(dtype).type(value).item()
    return line | {"truth": row.truth is not None}


def _padded(row: Row, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The row's boxes, and lines of zeros up to (16, 5)."""
    boxes = np.asarray([] if row.boxes is None else row.boxes, np.float32).reshape(-1, shape[1])
    if len(boxes) > shape[0]:
        raise ValueError(f"{row.path}: {len(boxes)} boxes, the cache stores {shape[0]}")
    padded = np.zeros(shape, np.float32)
    padded[: len(boxes)] = boxes
    return padded


def _stored(dtype: str) -> Any:
    return h5py.string_dtype() if dtype == "str" else np.dtype(dtype)


def _loaded(dataset: Any, dtype: str) -> NDArray[Any]:
    return dataset.asstr()[:] if dtype == "str" else dataset[:]  # type: ignore[no-any-return]


def _column(file: Any, name: str) -> NDArray[Any]:
    return _loaded(file[f"index/{name}"], COLUMNS[name][0])


def _storable(text: str) -> str:
    """The text as HDF5 can hold it: what is not UTF-8 escaped, zero bytes left out."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def _checksum(parts: Iterable[NDArray[Any]]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.data)
    return int.from_bytes(digest.digest(), "little")


def _command(file: Any) -> str:
    try:
        return str(file.attrs["command"])
    except (KeyError, OSError, RuntimeError, ValueError):  # damage has not spared it
        return "anomaly preprocess SOURCE"


def _remake(file: Any) -> str:
    """The command that puts a new cache in the place of this one."""
    return f"{_command(file)} --force"


def _lock(journal: Path, path: Path) -> IO[bytes]:
    """Open the journal for this process alone; the lock goes with the process, however it ends."""
    while True:
        handle = journal.open("a+b", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise InputError(f"{path}: another process is writing this cache; wait for it or stop it") from error
        if journal.exists() and os.fstat(handle.fileno()).st_ino == journal.stat().st_ino:
            handle.seek(0)
            return handle
        handle.close()  # another writer finished, and took its journal away, between the two lines above


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut after the move cannot leave an empty cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
