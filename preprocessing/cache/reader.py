"""Reading a finished cache."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.cache.columns import Columns
from preprocessing.cache.own import points_elsewhere
from preprocessing.cache.schema import (
    COLUMNS,
    FORMAT,
    VERSION,
    Header,
    checksum,
    content_hash,
    load_dataset,
    seal,
    stage_of,
    truth_stage,
)
from preprocessing.where import INDEXED, chosen, label_names
from preprocessing.wording import did_you_mean

MAGIC = b"\x89HDF\r\n\x1a\n"  # the first bytes of every HDF5 file


class Cache:
    """A finished cache, for reading. Picklable; every process opens the file for itself, at its first use of it.

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

    Raises InputError for a file that is missing, foreign, of another schema, unfinished, truncated or damaged: at once
    where its layout is or what it says of itself, at the first use of its index or of a row where that is not what was
    written. A row is compared with its checksum once in a process, as it is first read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._handle: Any = None
        self._process = 0
        self._datasets: dict[str, tuple[Any, NDArray[np.int64] | None]] = {}  # of the handle: what `_locate` returns
        self._intact: NDArray[np.bool_] | None = None  # rows that were compared with their checksums
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
        return self.__dict__ | {"_handle": None, "_process": 0, "_datasets": {}, "_intact": None}

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return np.arange(len(self))

    @cached_property
    def index(self) -> Columns:
        """The index, column name -> (N, ...), as the module's table has it; texts are object arrays of str."""
        if content_hash(self._load_column) != self.content_hash:  # column by column: all at once may be a gigabyte
            raise InputError(f"{self.path}: the index was changed after it was written; run `{self.remake}`")
        return self._columns

    @cached_property
    def _columns(self) -> Columns:
        """The index as it is in the file, which need not be what was written."""
        return Columns(self._load_column)

    def _load_column(self, name: str) -> NDArray[Any]:
        return self._load({f"index/{name}": COLUMNS[name][0]})[name]

    @cached_property
    def _checksums(self) -> NDArray[np.uint64]:
        """The recorded checksum of each row, (N,)."""
        return self._load({"index/checksum": "uint64"})["checksum"]

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

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What the source says of its films beyond the index, name -> (N,) object array of str; "" where it does not.

        Those of a manifest and of DICOM headers: region, view, site, sex, age, scanner, ...
        """
        texts = self.index["columns"].tolist()
        try:
            said = {text: dict(json.loads(text)) for text in set(texts)}  # many films are said to be alike
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{self.path}: index/columns is no JSON ({error}); run `{self.remake}`") from None
        names = sorted({name for row in said.values() for name in row})
        return {name: np.array([said[text].get(name, "") for text in texts], dtype=object) for name in names}

    @property
    def known(self) -> dict[str, Any]:
        """What the index says in words of every film, name -> (N,): path, patient, study, label, split, ..."""
        return {name: self.index[name] for name in INDEXED} | {"label": label_names(self.index["label"])}

    def column(self, name: str) -> NDArray[Any]:
        """What is known of every film under a name, of the index or of `columns`, (N,); InputError lists the names."""
        known = self.known | self.columns
        if name not in known:
            raise InputError(
                f"{self.path}: no column {name!r}; there are: {', '.join(known)}{did_you_mean(name, known)}"
            )
        return np.asarray(known[name], dtype=object)

    def where(self, conditions: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which rows meet conditions such as "region=hand", (N,), as `where.chosen` reads them."""
        return chosen(conditions, self.known | self.columns, len(self))

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
        for row, (path, recorded) in enumerate(zip(index["path"], index["checksum"], strict=True)):
            try:
                intact = checksum(file[name][row] for name in self._arrays) == recorded
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
            fault = "truncated" if "truncated" in reason else f"damaged ({reason})"
            raise InputError(f"{self.path}: {fault}; make it again with `anomaly preprocess ... --force`") from error

    def _read_header(self, file: Any) -> None:
        attrs = file.attrs
        if attrs.get("format") != FORMAT:
            raise InputError(f"{self.path}: not a cache (another program's HDF5 file); run `anomaly preprocess`")
        if attrs.get("schema") != VERSION:
            raise InputError(
                f"{self.path}: cache schema {attrs.get('schema')}, this version reads {VERSION}; run `{_remake(file)}`"
            )
        if fault := points_elsewhere(file):
            raise InputError(f"{self.path}: {fault}, and a cache holds its films itself; run `{_remake(file)}`")
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
            dataset = file[name]  # a missing one is a KeyError that names it
            if dataset.shape != shape or dataset.dtype != (object if dtype == "str" else dtype):
                raise ValueError(f"{name}: {dataset.dtype} {dataset.shape}, expected {dtype} {shape}")
        films = int((file["index/hand"][:] < 2).sum())
        if films + failed != int(attrs["done"]):
            raise ValueError(f"{films} films and {failed} failures, expected {attrs['done']} together")
        texts = [load_dataset(file[f"failures/{name}"], "str").tolist() for name in ("path", "reason")]
        if "seal" in attrs and attrs["seal"] != seal(dict(attrs), list(zip(*texts, strict=True))):
            raise InputError(
                f"{self.path}: what it says of itself was changed after it was written; run `{self.remake}`"
            )

    def _load(self, names: dict[str, str]) -> dict[str, NDArray[Any]]:
        """Load whole datasets, given with their dtypes; by the last part of their names."""
        file = self._opened()  # the same for all columns: another file may take its place meanwhile
        try:
            return {name.rpartition("/")[2]: load_dataset(file[name], dtype) for name, dtype in names.items()}
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
            wanted, hint = ",".join((*self.variants, variant)), did_you_mean(variant, self.variants)
            raise InputError(
                f"{self.path}: no variant {variant!r}; there are: {', '.join(self.variants)}{hint}; "
                f"run `anomaly preprocess SOURCE --variants {wanted}`"
            )

    def _read(self, name: str, rows: NDArray[Any] | slice) -> NDArray[Any]:
        wanted = self._rows[rows]  # resolves slices and masks, and checks the bounds
        try:
            self._check_rows(wanted)
            return self._read_rows(name, wanted)
        except (OSError, RuntimeError) as error:  # tables of HDF5 that are read only now
            raise InputError(f"{self.path}: damaged ({' '.join(str(error).split())}); run `{self.remake}`") from error

    def _check_rows(self, wanted: NDArray[np.int64]) -> None:
        """Compare rows with their checksums, those that this process has not compared before."""
        if self._intact is None:
            self._intact = np.zeros(len(self), np.bool_)
        for row in np.unique(wanted[~self._intact[wanted]]):
            parts = (self._read_rows(name, np.array([row]))[0] for name in self._arrays)
            if checksum(parts) != self._checksums[row]:
                raise InputError(
                    f"{self.path}: row {row} ({self._columns['path'][row]}) is not what was written: the file is "
                    f"damaged; run `{self.remake}`"
                )
            self._intact[row] = True

    def _read_rows(self, name: str, wanted: NDArray[np.int64]) -> NDArray[Any]:
        dataset, places = self._locate(name)
        dtype, shape = self._arrays[name]
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

    def _locate(self, name: str) -> tuple[Any, NDArray[np.int64] | None]:
        """A dataset, and at which byte of the file each of its rows begins, (N,), if it lies there as it is.

        Past HDF5 a film of 512 px is read in a tenth of the time; its tables are gone through once a process.
        """
        file = self._opened()
        if name not in self._datasets:
            dataset, (_, shape) = file[name], self._arrays[name]
            places = np.full(len(self), -1, np.int64)

            def note(chunk: Any) -> None:
                row = chunk.chunk_offset[0]
                if row < len(places):  # else HDF5's table is damaged, and HDF5 reads what lacks its place
                    places[row] = chunk.byte_offset

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


def _command(file: Any) -> str:
    try:
        return str(file.attrs["command"])
    except (KeyError, OSError, RuntimeError, ValueError):  # damage has not spared it
        return "anomaly preprocess SOURCE"


def _remake(file: Any) -> str:
    """The command that puts a new cache in the place of this one; a joined one is replaced unasked if it is damaged."""
    command = _command(file)
    return f"{command} --force" if command.startswith("anomaly preprocess") else command
