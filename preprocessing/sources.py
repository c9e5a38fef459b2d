"""A folder, zip archive or CSV manifest of films as sorted records.

Four kinds of source are told apart, in this order; each may be a folder or a zip archive (a single folder at the top
of an archive is entered, unless its name means something):

manifest  a `.csv` file, or a folder with `manifest.csv` at its top. Columns, by name and in any order: path and label
          (0, 1, normal, abnormal, negative, positive; empty or unknown: not known), and where wanted patient, study,
          split (train, val, test), finding, difficulty, box ("x0 y0 x1 y1" in pixels), mask, anomaly_mask (paths).
          Paths are relative to the manifest's folder and stay in it. Other columns are left alone.
mura      `patient<digits>/study<digits>_positive|_negative/image<digits>.<suffix>` at any depth, as in MURA. The label
          is the study folder's. Under `train/` and `valid/` films have the splits "train" and "test" (MURA's own test
          films are not public and `valid` stands in for them), or "val" for `valid` beside a `test` folder. Beside
          `image1.png` may lie `image1.json` ("finding", "difficulty") and `image1_anomaly.png` (pixel truth).
classes   folders named normal, negative, good or healthy, and beside them abnormal, positive or any other name, which
          is then the finding; all of them at the top, or all under train, val (valid, validation) and test.
          `ground_truth/<class>/<film>_mask.png`, at the top, is pixel truth.
folder    films in any folders, all with the label `unlabelled`.

Where films share a patient, the source must say so: by MURA's folders, a manifest's column, or, in the other two, a
folder or file name that begins with `patient<digits>`. Otherwise each film is a patient of its own; in a manifest
with studies but no patients, each study is. A split folder `train` alone says nothing, and is left out.

Records are in the natural order of their paths (`image2` before `image10`). Hidden files and folders are passed over.
Links are not followed: one to another place in the source adds nothing, one that leads out is refused.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal

from preprocessing import InputError
from preprocessing.readers import MAX_BYTES, SUFFIXES

Kind = Literal["mura", "classes", "manifest", "folder"]

MAX_MANIFEST_BYTES = 2**26
"""A longer manifest, or sidecar, is refused."""

MANIFEST = "manifest.csv"
SYNTHETIC = "SYNTHETIC.txt"

_NORMAL = {"normal", "negative", "good", "healthy"}
_ABNORMAL = {"abnormal", "positive"}
_TRUTH = "ground_truth"
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LABELS = {"0": 0, "normal": 0, "negative": 0, "1": 1, "abnormal": 1, "positive": 1, "": -1, "unknown": -1}

_MURA_FILM = re.compile(r"(patient[0-9]+)/(study[0-9]+)_(negative|positive)/image[0-9]+\.[^/]+")
_MURA_SIDECAR = re.compile(r"image[0-9]+(\.json|_hand\.png|_anomaly\.png)")
_NAMED_PATIENT = re.compile(r"(?:^|/)(patient[0-9]+)(?:[/_-](study[0-9]+))?", re.IGNORECASE)
_ORDINARY_SUFFIX = re.compile(r"\.[A-Za-z]\w*")  # unlike the last part of a DICOM identifier such as 1.2.840.7


@dataclass(frozen=True)
class Record:
    """One film of a source, and what the source says about it.

    path          relative POSIX path within the source; so are `mask` and `anomaly_mask`.
    study         unique across patients, such as "patient00001/study1".
    label         0 normal, 1 abnormal, -1 not known.
    split         "train", "val", "test", or "" where the source leaves it open.
    box           (x0, y0, x1, y1) in pixels of the film as read: the region to take, in place of localisation.
    mask          a given foreground mask, in place of segmentation.
    anomaly_mask  pixel truth: for measuring, never for training.
    boxes         class ("right hand", "left marker", ...), x0, y0, x1, y1 in pixels of the film as read: to learn from.
    """

    path: str
    patient: str
    study: str
    label: int
    split: str = ""
    finding: str = ""
    difficulty: str = ""
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    anomaly_mask: str | None = None
    boxes: tuple[tuple[str, float, float, float, float], ...] = ()

    def files(self) -> Iterator[str]:
        """Give the paths of the film and its masks."""
        yield from (path for path in (self.path, self.mask, self.anomaly_mask) if path is not None)


class _Store(ABC):
    """Where the bytes are. `sizes` holds the bytes of every file that may be read, by relative path."""

    sizes: dict[str, int]

    def part(self, paths: Iterable[str]) -> _Store:
        """Return a store of these files alone: what a worker process is sent stays small."""
        chosen = copy.copy(self)
        chosen.sizes = {path: self.sizes[path] for path in paths}
        return chosen

    @abstractmethod
    def find(self, relative: str) -> bool:
        """Say whether there is such a file, and from then on let it be read."""

    @abstractmethod
    def _stream(self, relative: str) -> IO[bytes]:
        """Open a file; damage raises OSError, zipfile.BadZipFile and the like."""

    def read(self, relative: str, limit: int = MAX_BYTES) -> bytes:
        """Read a file whole; `InputError` for one that is not listed, is gone, or has more than `limit` bytes."""
        if relative not in self.sizes:
            raise InputError(f"{relative}: not a file of this source")
        data = self.head(relative, limit + 1)
        if len(data) > limit:
            raise InputError(f"{relative}: more than {limit} bytes, the limit")
        return data

    def head(self, relative: str, size: int) -> bytes:
        """Read the first `size` bytes."""
        try:
            with self._stream(relative) as stream:
                return stream.read(size)
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{relative}: cannot be read ({error})") from error


class _Folder(_Store):
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.sizes = {}

    def walk(self) -> int:
        """List every visible file; returns how many links and special files were passed over."""
        passed, folders = 0, [self.root]
        above = len(self.root.as_posix().rstrip("/")) + 1
        while folders:
            folder = folders.pop()
            try:
                entries = [entry for entry in os.scandir(folder) if not _hidden(entry.name)]
            except OSError as error:
                raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error
            for entry in entries:
                place = Path(entry.path)
                if entry.is_symlink():
                    wanted = place.is_dir() or (place.is_file() and _suffix(entry.name) in SUFFIXES)
                    if wanted and not self._within(place):
                        raise InputError(f"{place}: a link out of the source; put the films themselves there")
                    passed += 1
                elif entry.is_dir():
                    folders.append(place)
                elif entry.is_file():
                    self.sizes[entry.path[above:].replace(os.sep, "/")] = entry.stat().st_size
                else:
                    passed += 1
        return passed

    def find(self, relative: str) -> bool:
        place = self.root / relative
        try:
            if not (place.is_file() and self._within(place)):
                return False
            self.sizes[relative] = place.stat().st_size
        except (OSError, ValueError):  # a name too long, or with a null character
            return False
        return True

    def _within(self, place: Path) -> bool:
        return place.resolve().is_relative_to(self.root)

    def _stream(self, relative: str) -> IO[bytes]:
        place = self.root / relative
        if not self._within(place):
            raise InputError(f"{relative}: a link that leads out of the source")
        return place.open("rb")


class _Archive(_Store):
    """Files of a zip archive, opened on first use in each process and never unpacked to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.top = ""
        self.sizes = {}
        self.members: dict[str, tuple[str, int]] = {}  # name in the archive and bytes, also of what no record names
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: no readable zip archive ({error})") from error
        for entry in entries:
            self._list(entry)

    def _list(self, entry: zipfile.ZipInfo) -> None:
        relative = PurePosixPath(entry.filename)
        if _climbs(entry.filename):
            raise InputError(f"{self.path}: the name {entry.filename!r} leads out of the archive; pack it again")
        if entry.is_dir() or any(_hidden(part) for part in relative.parts):
            return
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{self.path}: {entry.filename} is a link; pack the films themselves")
        if entry.flag_bits & 1:
            raise InputError(f"{self.path}: {entry.filename} is encrypted; pack it without a password")
        if relative.as_posix() in self.members:
            raise InputError(f"{self.path}: {entry.filename} is in it twice; pack it again")
        self.members[relative.as_posix()] = entry.filename, entry.file_size
        self.sizes[relative.as_posix()] = entry.file_size

    def find(self, relative: str) -> bool:
        if self.top + relative not in self.members:
            return False
        _, self.sizes[relative] = self.members[self.top + relative]
        return True

    def part(self, paths: Iterable[str]) -> _Archive:
        chosen = copy.copy(self)
        chosen.sizes = {path: self.sizes[path] for path in paths}
        chosen.members = {self.top + path: self.members[self.top + path] for path in chosen.sizes}
        return chosen

    def _stream(self, relative: str) -> IO[bytes]:
        # A forked process must not share the file position with its parent.
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), zipfile.ZipFile(self.path)
        member, _ = self.members[self.top + relative]
        if self.sizes[relative] > MAX_BYTES:
            raise InputError(f"{relative}: {self.sizes[relative]} bytes; the limit is {MAX_BYTES}")
        return self._handle[1].open(member)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}


class _Parts(_Store):
    """Files of several stores under one roof."""

    def __init__(self, parts: dict[str, tuple[_Store, str]]) -> None:
        self.parts = parts
        self.sizes = {path: store.sizes[inner] for path, (store, inner) in parts.items()}

    def find(self, relative: str) -> bool:
        return relative in self.sizes

    def part(self, paths: Iterable[str]) -> _Parts:
        chosen = {path: self.parts[path] for path in paths}
        return _Parts({path: (store.part([inner]), inner) for path, (store, inner) in chosen.items()})

    def _stream(self, relative: str) -> IO[bytes]:
        store, inner = self.parts[relative]
        return store._stream(inner)


@dataclass
class Source:
    """Films in a fixed order, with the bytes behind them; can be pickled and read from any process.

    name       short and safe for file names.
    root       the folder, or the archive; for a manifest the folder it stands in.
    synthetic  a file `SYNTHETIC.txt` in the source (for a MURA tree also beside it) says that the films are drawn.
    ignored    visible files that are neither films nor anything else that was looked for.
    """

    name: str
    kind: Kind
    root: Path
    records: list[Record] = field(repr=False)
    synthetic: bool
    ignored: int
    store: _Store = field(repr=False)

    def read(self, relative: str) -> bytes:
        """Read a film or a mask that the records name.

        Raises `InputError` for any other path, a file that is gone, cannot be read or holds more than
        `readers.MAX_BYTES`.
        """
        return self.store.read(relative)

    def part(self, records: Sequence[Record]) -> Source:
        """Return a source of some of the records, and nothing of the others: light to send to another process."""
        paths = {path for record in records for path in record.files()}
        return replace(self, records=list(records), store=self.store.part(paths))

    def listing_hash(self) -> str:
        """Hash every field of every record and the size of every file named: 64 hex digits; no film is opened."""
        digest = hashlib.sha256()
        for record in self.records:
            sizes = [self.store.sizes[path] for path in record.files()]
            digest.update(json.dumps([asdict(record), sizes], sort_keys=True).encode())
        return digest.hexdigest()


def open_source(path: Path, *, unlabelled: int = 0) -> Source:
    """List the films of a folder, a `.zip` or a manifest `.csv`; the module's docstring says how it is understood.

    unlabelled  the label of films about which nothing is said: 0 takes them as normal, -1 as not known.

    Raises `InputError` where there is no film, and for contradictions: a patient in two splits, a study with two
    labels, a line of a manifest that cannot be meant.
    """
    source = _listed(path, unlabelled)
    _check_consistent(source)
    return source


def open_films(paths: list[Path]) -> Source:
    """List new films for scoring: any mix of files, folders, archives and manifests, each film once.

    Patients, studies, boxes and masks are kept where they are known; labels are -1 and splits empty. Paths are relative
    to the folder that all of `paths` have in common; so are patients and studies where they come from more than one
    tree. Raises `InputError` where there is no film; contradictions in labels and splits do not matter here.
    """
    if not paths:
        raise InputError("no films named; give files or folders")
    places = [_existing(path) for path in paths]
    root = Path(os.path.commonpath([place.parent if place.is_file() else place for place in places]))
    sources = [_listed(place, None) if _is_collection(place) else _lone_film(place) for place in places]
    trees = [_tree(place, source) for place, source in zip(places, sources, strict=True)]
    several = len({tree for tree in trees if tree is not None}) > 1

    files: dict[str, tuple[_Store, str]] = {}
    records: dict[str, Record] = {}
    for source, tree in zip(sources, trees, strict=True):
        prefix = _prefix(source.root, root)
        for record in source.records:
            moved = _new_film(record, prefix, _prefix(tree, root) if tree is not None and several else "")
            # A new film has no pixel truth, which is the last of a record's files.
            files |= {new: (source.store, old) for new, old in zip(moved.files(), record.files(), strict=False)}
            records.setdefault(moved.path, moved)
    kinds = {source.kind for source in sources}
    return Source(
        name=sources[0].name if len(sources) == 1 else _safe_name(root.name),
        kind=kinds.pop() if len(kinds) == 1 else "folder",
        root=root,
        records=sorted(records.values(), key=lambda record: _natural(record.path)),
        synthetic=any(source.synthetic for source in sources),
        ignored=sum(source.ignored for source in sources),
        store=_Parts(files),
    )


def _is_collection(place: Path) -> bool:
    return place.is_dir() or place.suffix.lower() in (".zip", ".csv")


def _lone_film(place: Path) -> Source:
    """Make a source of one film, whatever its suffix: the reader decides whether it is one."""
    store = _Folder(place.parent)
    store.find(place.name)
    mura = _MURA_FILM.fullmatch("/".join(place.parts[-3:]))
    patient, study = (mura[1], f"{mura[1]}/{mura[2]}") if mura else _identify(place.name)
    record = Record(place.name, patient, study, -1)
    drawn = mura is not None and _drawn_above(place.parent)
    return Source(_safe_name(place.stem), "folder", place.parent, [record], drawn, 0, store)


def _tree(place: Path, source: Source) -> Path | None:
    """Name the folder within which patients are told apart by their names; None where names are paths anyway."""
    if _is_collection(place):
        return source.root
    record = source.records[0]
    return None if record.patient == record.path else place.parents[2]


def _prefix(place: Path, root: Path) -> str:
    return "" if place == root else Path(os.path.relpath(place, root)).as_posix() + "/"


def _new_film(record: Record, prefix: str, tree: str) -> Record:
    """Move a record below `prefix`, its names below `tree`, and drop what is not known of new films."""
    return Record(
        path=prefix + record.path,
        patient=(prefix if record.patient == record.path else tree) + record.patient,
        study=(prefix if record.study == record.path else tree) + record.study,
        label=-1,
        box=record.box,
        mask=None if record.mask is None else prefix + record.mask,
    )


def _listed(path: Path, unlabelled: int | None) -> Source:
    """Tell the kind of a source and list it; `unlabelled` None: labels do not matter."""
    place = _existing(path)
    if not _is_collection(place):
        raise InputError(f"{path}: neither a folder nor a .zip nor a .csv")
    if place.is_dir() and (place / MANIFEST).is_file():
        place = place / MANIFEST
    if place.suffix.lower() == ".csv":
        folder = _Folder(place.parent)
        folder.find(place.name)
        name = _safe_name(place.parent.name if place.name == MANIFEST else place.stem)
        return _manifest(name, place.name, folder.root, folder)

    name = _safe_name(place.name if place.is_dir() else place.stem)
    store: _Folder | _Archive
    if place.is_dir():
        store = _Folder(place)
        passed = store.walk()
    else:
        store, passed = _Archive(place), 0
    root = _enter_lone_folder(store)
    if MANIFEST in store.sizes:
        return _manifest(name, MANIFEST, root, store)

    names = sorted(store.sizes, key=_natural)
    films = [film for film in names if _is_film(film, store)]
    if not films:
        raise InputError(
            f"{path}: no film found among {len(names)} files; looked for {', '.join(sorted(SUFFIXES))}, DICOM files "
            f"without a suffix, and {MANIFEST}"
        )
    kind: Kind = "mura"
    records = _mura_records(films, store, root if place.is_dir() else None)
    if not records:
        kind = "classes"
        records = _class_records(films, store, strict=unlabelled is not None)
    if not records:
        kind = "folder"
        if unlabelled is not None:
            _check_no_class_folders(films)
        records = [Record(film, *_identify(film), -1 if unlabelled is None else unlabelled) for film in films]

    used = {file for record in records for file in record.files()}
    known = sum(
        file not in used and (PurePosixPath(file).name == SYNTHETIC or (kind == "mura" and _is_mura_sidecar(file)))
        for file in names
    )
    drawn = any(PurePosixPath(file).name == SYNTHETIC for file in names)
    source = Source(
        name=name,
        kind=kind,
        root=root,
        records=records,
        synthetic=drawn or (kind == "mura" and place.is_dir() and _drawn_above(root)),
        ignored=passed + len(names) - len(used) - known,
        store=store,
    )
    store.sizes = {file: store.sizes[file] for file in names if file in used}
    return source


def _existing(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'no such file or folder'}") from error


def _hidden(name: str) -> bool:
    """Hidden files, and what macOS leaves in archives."""
    return name.startswith(".") or name == "__MACOSX"


def _climbs(name: str) -> bool:
    """Say whether a relative path could mean a place outside: `..`, absolute, or a Windows path of any sort."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or bool(PureWindowsPath(name).drive)


def _suffix(name: str) -> str:
    return ".nii.gz" if name.lower().endswith(".nii.gz") else PurePosixPath(name).suffix.lower()


def _is_film(name: str, store: _Store) -> bool:
    """Go by the suffix; DICOM files often have none, or end in a number, and are known by their first bytes."""
    suffix = _suffix(name)
    if suffix in SUFFIXES:
        return True
    if _ORDINARY_SUFFIX.fullmatch(suffix) or PurePosixPath(name).name == "DICOMDIR":
        return False
    return store.head(name, 132)[128:] == b"DICM"


def _natural(path: str) -> str:
    """Sort key by which image2 comes before image10; runs of digits compare as numbers.

    Before its digits stands how many there are, after a zero byte, which no path has; the path at the end tells image01
    from image1. One text a path: a list of its pieces takes ten times the memory, for every file at once.
    """
    return re.sub(r"0*([0-9]+)", lambda run: f"\0{chr(len(run[1]))}{run[1]}", path) + f"\0\0{path}"


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:40] or "films"


def _identify(path: str) -> tuple[str, str]:
    """Read patient and study from a path such as `patient7/study2/a.png` or `patient7_a.png`; else they are the path.

    >>> _identify("normal/patient7_study2_hand.png")
    ('patient7', 'patient7/study2')
    >>> _identify("normal/a.png")
    ('normal/a.png', 'normal/a.png')
    """
    found = _NAMED_PATIENT.search(path)
    if found is None:
        return path, path
    return found[1], f"{found[1]}/{found[2]}" if found[2] else path


def _enter_lone_folder(store: _Folder | _Archive) -> Path:
    """Make the only folder at the top of a source its root, again and again, unless the name of that folder matters."""
    top = ""
    while True:
        heads = {name[len(top) :].partition("/")[0] for name in store.sizes}
        if len(heads) != 1 or not all("/" in name[len(top) :] for name in store.sizes):
            break
        (head,) = heads
        meaning = {*_NORMAL, *_ABNORMAL, *_SPLITS}
        if head.lower() in meaning or re.fullmatch(r"patient[0-9]+|study[0-9]+_\w+", head):
            break
        top += head + "/"
    store.sizes = {name[len(top) :]: size for name, size in store.sizes.items()}
    if isinstance(store, _Archive):
        store.top = top
        return store.path
    store.root /= top
    return store.root


def _drawn_above(folder: Path) -> bool:
    """Look for the mark of synthetic films over part of a tree: above XR_HAND, a patient or a study."""
    return any((above / SYNTHETIC).is_file() for above in folder.parents[:3])


# ---- MURA


def _mura_records(films: list[str], store: _Store, root: Path | None) -> list[Record]:
    """Read MURA's tree; `root` may itself lie in such a tree. No film in MURA's layout: no records."""
    above = [*root.parts[-3:]] if root is not None else []
    found = []
    for film in films:
        match = _MURA_FILM.fullmatch("/".join([*above, *film.split("/")][-3:]))
        if match:
            folders = film.split("/")[:-3]
            split = next((folder.lower() for folder in reversed(folders) if folder.lower() in _SPLITS), "")
            region = "/".join(folder for folder in folders if folder.lower() not in _SPLITS)
            found.append((film, match, split, region))
    splits = _split_names({split for _, _, split, _ in found})
    if "test" not in splits:
        splits |= {name: "test" for name, split in splits.items() if split == "val"}
    several_regions = len({region for _, _, _, region in found}) > 1
    records = []
    for film, match, split, region in found:
        study = f"{match[1]}/{match[2]}"
        stem = film.rpartition(".")[0]
        truth = stem + "_anomaly.png"
        finding, difficulty = _sidecar(stem + ".json", store)
        records.append(
            Record(
                path=film,
                patient=match[1],
                study=f"{region}/{study}" if several_regions else study,
                label=int(match[3] == "positive"),
                split=splits[split],
                finding=finding,
                difficulty=difficulty,
                anomaly_mask=truth if truth in store.sizes else None,
            )
        )
    return records


def _is_mura_sidecar(file: str) -> bool:
    return _MURA_SIDECAR.fullmatch(PurePosixPath(file).name) is not None


def _sidecar(file: str, store: _Store) -> tuple[str, str]:
    """Read finding and difficulty from the JSON beside a film, where there is one."""
    if file not in store.sizes:
        return "", ""
    data = store.read(file, MAX_MANIFEST_BYTES)
    try:
        content = json.loads(data)
        finding, difficulty = content.get("finding") or "", content.get("difficulty") or ""
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not the JSON object that belongs beside a film; mend or remove it") from error
    if not (isinstance(finding, str) and isinstance(difficulty, str)):
        raise InputError(f"{file}: finding {finding!r} and difficulty {difficulty!r} are to be text")
    return finding, difficulty


def _split_names(found: set[str]) -> dict[str, str]:
    """Map the split folders that occur, lower-case, to splits; `train` alone divides nothing and maps to "" ."""
    return {name: "" if found <= {"train", ""} else _SPLITS.get(name, "") for name in found}


# ---- class folders


def _class_records(films: list[str], store: _Store, *, strict: bool) -> list[Record]:
    """Read class folders; none: no records. `strict`: a film outside them is an error, not one of unknown label."""
    paths = [film.split("/") for film in films if film.split("/")[0].lower() != _TRUTH]
    known = _NORMAL | _ABNORMAL
    divided = any(len(path) > 2 and path[0].lower() in _SPLITS and path[1].lower() in known for path in paths)
    if not divided and not any(len(path) > 1 and path[0].lower() in known for path in paths):
        return []
    splits = _split_names({path[0].lower() for path in paths}) if divided else {}
    records = []
    for path in paths:
        film = "/".join(path)
        patient, study = _identify(film)
        inner = path[1:] if divided else path
        if len(inner) < 2 or (divided and path[0].lower() not in _SPLITS):
            if strict:
                expected = "train, val or test and the class folders there" if divided else "the class folders"
                raise InputError(f"{film}: lies outside {expected}; move it, or write a {MANIFEST}")
            records.append(Record(film, patient, study, -1))
            continue
        name = inner[0]
        truth = "/".join([_TRUTH, *inner]).rpartition(".")[0] + "_mask.png"
        records.append(
            Record(
                path=film,
                patient=patient,
                study=study,
                label=int(name.lower() not in _NORMAL),
                split=splits[path[0].lower()] if divided else "",
                finding="" if name.lower() in known else name,
                anomaly_mask=truth if truth in store.sizes else None,
            )
        )
    return records


def _check_no_class_folders(films: list[str]) -> None:
    """Refuse to take films as unlabelled that lie in class folders, but not where those are looked for."""
    for film in films:
        folders = film.split("/")[:-1]
        for depth, folder in enumerate(folders):
            if folder.lower() in _NORMAL | _ABNORMAL:
                place = "/".join(folders[: depth + 1])
                raise InputError(
                    f"{place}: a class folder, but neither at the top nor under train, val or test; name the folder "
                    f"that holds the class folders, or write a {MANIFEST}"
                )


# ---- manifest


def _manifest(name: str, file: str, root: Path, store: _Store) -> Source:
    """Read a manifest that lies at the top of its store."""
    where = f"{root / file}"
    try:
        text = store.read(file, MAX_MANIFEST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: no UTF-8 text at byte {error.start}; save it as UTF-8") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: dict[str, Record] = {}
    lines: dict[str, int] = {}
    columns: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = _columns(row)
                continue
            record = _row(columns, row, store)
            if record.path in lines:
                raise InputError(f"{record.path} was given in line {lines[record.path]} already; leave one out")
            records[record.path], lines[record.path] = record, rows.line_num
    except (InputError, csv.Error) as error:
        raise InputError(f"{where}, line {rows.line_num}: {error}") from None
    if not records:
        raise InputError(f"{where}: no films in it; looked for lines below a heading with the columns path and label")
    ordered = sorted(records.values(), key=lambda record: _natural(record.path))
    drawn = store.find(SYNTHETIC)
    store.sizes = {path: store.sizes[path] for record in ordered for path in record.files()}
    return Source(name, "manifest", root, ordered, drawn, 0, store)


def _columns(row: list[str]) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    for needed in ("path", "label"):
        if needed not in columns:
            raise InputError(f"no column {needed!r}; there are: {', '.join(columns)} (separated by commas)")
    for column, times in Counter(columns).items():
        if times > 1 and column:
            raise InputError(f"column {column!r} occurs {times} times; name each once")
    return columns


def _row(columns: list[str], row: list[str], store: _Store) -> Record:
    """Check one line; errors are completed with its number by the caller."""
    if len(row) != len(columns):
        raise InputError(f"{len(row)} cells, the heading has {len(columns)}; quote cells that contain a comma")
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
    path = _file(cells["path"], "path", store)
    label, split = cells["label"].lower(), cells.get("split", "").lower()
    if label not in _LABELS:
        raise InputError(f"label {cells['label']!r}; there are: {', '.join(filter(None, _LABELS))}, or an empty cell")
    if split not in ("", *_SPLITS):
        raise InputError(f"split {cells['split']!r}; there are: train, val, test, or an empty cell")
    study = cells.get("study", "")
    patient = cells.get("patient", "") or study or path
    return Record(
        path=path,
        patient=patient,
        study=_within_patient(study, patient) if study else path,
        label=_LABELS[label],
        split=_SPLITS.get(split, ""),
        finding=cells.get("finding", ""),
        difficulty=cells.get("difficulty", ""),
        box=_box(cells.get("box", "")),
        mask=_file(cells["mask"], "mask", store) if cells.get("mask") else None,
        anomaly_mask=_file(cells["anomaly_mask"], "anomaly_mask", store) if cells.get("anomaly_mask") else None,
    )


def _within_patient(study: str, patient: str) -> str:
    """Make a study's name unique across patients, unless it is already."""
    return study if study == patient or study.startswith(patient + "/") else f"{patient}/{study}"


def _file(text: str, column: str, store: _Store) -> str:
    if not text:
        raise InputError(f"an empty {column}")
    if _climbs(text):
        raise InputError(f"{column} {text!r} leads out of the manifest's folder; write it relative to that, with /")
    path = PurePosixPath(text).as_posix()
    if not store.find(path):
        raise InputError(f"{column} {text!r}: no such file in the manifest's folder")
    return path


def _box(text: str) -> tuple[float, float, float, float] | None:
    if not text:
        return None
    try:
        x0, y0, x1, y1 = (float(number) for number in text.split())
    except ValueError:
        raise InputError(f"box {text!r}; write four numbers: x0 y0 x1 y1") from None
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        raise InputError(f"box {text!r}; x0 < x1 and y0 < y1 are needed, in pixels from 0")
    return x0, y0, x1, y1


# ---- contradictions


def _check_consistent(source: Source) -> None:
    """Refuse a patient in two splits and a study with two labels; unknown labels contradict nothing."""
    first: dict[str, Record] = {}
    labelled: dict[str, Record] = {}
    for record in source.records:
        other = first.setdefault(record.patient, record)
        if other.split != record.split:
            raise InputError(
                f"{source.root}: patient {record.patient!r} is in two splits, {other.split or 'none'!r} ({other.path}) "
                f"and {record.split or 'none'!r} ({record.path}); give all films of a patient one split"
            )
        if record.label < 0:
            continue
        other = labelled.setdefault(record.study, record)
        if other.label != record.label:
            raise InputError(
                f"{source.root}: study {record.study!r} has two labels, {other.label} ({other.path}) and "
                f"{record.label} ({record.path}); a study is normal or abnormal as a whole"
            )
