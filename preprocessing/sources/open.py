"""A folder, zip archive or CSV manifest of films as sorted records.

Four kinds of source are distinguished, in this order; each may be a folder or a zip archive (a single folder at the top
of an archive is entered, unless its name means something):

manifest  a `.csv` file, or a folder with `manifest.csv` at its top. Columns, by name and in any order: path and label
          (0, 1, normal, abnormal, negative, positive; empty or unknown: not known), and optionally patient, study,
          split (train, val, test), finding, difficulty, box ("x0 y0 x1 y1" in pixels), mask, anomaly_mask (paths).
          Paths are relative to the manifest's folder and stay in it. Other columns are ignored.
mura      `patient<digits>/study<digits>_positive|_negative/image<digits>.<suffix>` at any depth, as in MURA. The label
          is the study folder's. Under `train/` and `valid/` films have the splits "train" and "test" (MURA's own test
          films are not public, and `valid` takes their place), or "val" for `valid` beside a `test` folder. Beside
          `image1.png` may lie `image1.json` ("finding", "difficulty") and `image1_anomaly.png` (pixel truth).
classes   folders named normal, negative, good or healthy, and beside them abnormal, positive or any other name, which
          is then the finding; all of them at the top, or all under train, val (valid, validation) and test.
          `ground_truth/<class>/<film>_mask.png`, at the top, is pixel truth.
folder    films in any folders, all with the label `unlabelled`.

Where films share a patient, the source must say so: by MURA's folders, a manifest's column, or, in the other two, a
folder or file name that begins with `patient<digits>`. Otherwise each film is a patient of its own; in a manifest
with studies but no patients, each study is. A split folder `train` alone says nothing, and is left out.

Records are in the natural order of their paths (`image2` before `image10`). Hidden files and folders are skipped.
Links are not followed: one to another place in the source adds nothing, one that leads out is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from preprocessing import InputError
from preprocessing.readers import SUFFIXES
from preprocessing.sources.class_folders import check_no_class_folders, class_records
from preprocessing.sources.manifest import open_manifest
from preprocessing.sources.mura import MURA_FILM, is_mura_sidecar, mura_records
from preprocessing.sources.names import ABNORMAL, MANIFEST, NORMAL, SPLITS, SYNTHETIC
from preprocessing.sources.paths import film_suffix, identify, natural_key, safe_name
from preprocessing.sources.record import Kind, Record, Source
from preprocessing.sources.storage import Archive, Folder, Parts, Store
from preprocessing.wording import counted

_ORDINARY_SUFFIX = re.compile(r"\.[A-Za-z]\w*")  # unlike the last part of a DICOM identifier such as 1.2.840.7


def open_source(path: Path, *, unlabelled: int = 0) -> Source:
    """List the films of a folder, a `.zip` or a manifest `.csv`; the module's docstring says how it is understood.

    unlabelled  the label of films about which the source says nothing: 0 normal, -1 not known.

    Raises `InputError` if there is no film, and for contradictions: a patient in two splits, a study with two
    labels, a line of a manifest that makes no sense.
    """
    source = _list_films(path, unlabelled)
    _check_consistent(source)
    return source


def open_films(paths: list[Path], *, names: Mapping[Path, str] = MappingProxyType({})) -> Source:
    """List new films for scoring: any mix of files, folders, archives and manifests, each film once.

    names  path -> what a lone film is called in place of its path, such as one written to a temporary folder.

    Films are in the order of `paths`, those of a folder, archive or manifest in its own. Patients, studies, boxes and
    masks are kept where they are known; labels are -1 and splits empty. Paths are relative to the folder that all of
    `paths` have in common; so are patients and studies where they come from more than one tree. Raises `InputError` if
    there is no film; contradictions in labels and splits do not matter here.
    """
    if not paths:
        raise InputError("no films named; give files or folders")
    places = [_existing(path) for path in paths]
    folders = [
        place.parent if place.is_file() else place
        for path, place in zip(paths, places, strict=True)
        if path not in names
    ]
    root = Path(os.path.commonpath(folders)) if folders else Path("films in memory")
    sources = [_list_films(place, None) if _is_collection(place) else _lone_film(place) for place in places]
    trees = [_tree(place, source) for place, source in zip(places, sources, strict=True)]
    several = len({tree for tree in trees if tree is not None}) > 1

    files: dict[str, tuple[Store, str]] = {}
    records: dict[str, Record] = {}
    for path, source, tree in zip(paths, sources, trees, strict=True):
        if path in names:
            (record,), name = source.records, names[path]
            files[name] = source.store, record.path
            records[name] = Record(name, name, name, -1)
            continue
        prefix = _prefix(source.root, root)
        for record in source.records:
            moved = _new_film(record, prefix, _prefix(tree, root) if tree is not None and several else "")
            if moved.path in names.values():
                raise InputError(
                    f"{source.root / record.path}: {moved.path} is the name of a film in memory; rename it"
                )
            # A new film has no pixel truth, which is the last of a record's files.
            files |= {new: (source.store, old) for new, old in zip(moved.files(), record.files(), strict=False)}
            records.setdefault(moved.path, moved)
    kinds = {source.kind for source in sources}
    return Source(
        name=sources[0].name if len(sources) == 1 else safe_name(root.name),
        kind=kinds.pop() if len(kinds) == 1 else "folder",
        root=root,
        records=list(records.values()),
        synthetic=any(source.synthetic for source in sources),
        ignored=sum(source.ignored for source in sources),
        store=Parts(files),
    )


def _is_collection(place: Path) -> bool:
    return place.is_dir() or place.suffix.lower() in (".zip", ".csv")


def _lone_film(place: Path) -> Source:
    """Make a source of one film, whatever its suffix: the reader decides whether it is one."""
    store = Folder(place.parent)
    store.find(place.name)
    mura = MURA_FILM.fullmatch("/".join(place.parts[-3:]))
    patient, study = (mura[1], f"{mura[1]}/{mura[2]}") if mura else identify(place.name)
    record = Record(place.name, patient, study, -1)
    drawn = mura is not None and _drawn_above(place.parent)
    return Source(safe_name(place.stem), "folder", place.parent, [record], drawn, 0, store)


def _tree(place: Path, source: Source) -> Path | None:
    """Return the folder within which patients' names are unique; None where names are paths anyway."""
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


def _list_films(path: Path, unlabelled: int | None) -> Source:
    """Determine the kind of a source and list it; `unlabelled` None: labels do not matter."""
    place = _existing(path)
    if not _is_collection(place):
        raise InputError(f"{path}: neither a folder nor a .zip nor a .csv")
    if place.is_dir() and (place / MANIFEST).is_file():
        place = place / MANIFEST
    if place.suffix.lower() == ".csv":
        folder = Folder(place.parent)
        folder.find(place.name)
        name = safe_name(place.parent.name if place.name == MANIFEST else place.stem)
        return open_manifest(name, place.name, folder.root, folder)

    name = safe_name(place.name if place.is_dir() else place.stem)
    store: Folder | Archive
    if place.is_dir():
        store = Folder(place)
        passed = store.walk()
    else:
        store, passed = Archive(place), 0
    root = _enter_lone_folder(store)
    if MANIFEST in store.sizes:
        return open_manifest(name, MANIFEST, root, store)

    names = sorted(store.sizes, key=natural_key)
    films = [film for film in names if _is_film(film, store)]
    if not films:
        raise InputError(
            f"{path}: no film among {counted(len(names), 'file')}; looked for {', '.join(sorted(SUFFIXES))}, DICOM "
            f"files without a suffix, and {MANIFEST}"
        )
    kind, records = _records(films, store, root if place.is_dir() else None, unlabelled)
    used = {file for record in records for file in record.files()}
    known = sum(
        file not in used and (PurePosixPath(file).name == SYNTHETIC or (kind == "mura" and is_mura_sidecar(file)))
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


def _records(films: list[str], store: Store, root: Path | None, unlabelled: int | None) -> tuple[Kind, list[Record]]:
    """List films in the first layout that fits any of them; `root` None: in an archive."""
    if records := mura_records(films, store, root):
        return "mura", records
    if records := class_records(films, store, strict=unlabelled is not None):
        return "classes", records
    if unlabelled is not None:
        check_no_class_folders(films)
    return "folder", [Record(film, *identify(film), -1 if unlabelled is None else unlabelled) for film in films]


def _existing(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'no such file or folder'}") from error


def _is_film(name: str, store: Store) -> bool:
    """Decide by the suffix; DICOM files often have none, or a number, and are recognized by their first bytes."""
    suffix = film_suffix(name)
    if suffix in SUFFIXES:
        return True
    if _ORDINARY_SUFFIX.fullmatch(suffix) or PurePosixPath(name).name == "DICOMDIR":
        return False
    return store.head(name, 132)[128:] == b"DICM"


def _enter_lone_folder(store: Folder | Archive) -> Path:
    """Make the only folder at the top of a source its root, again and again, unless the name of that folder matters."""
    top = ""
    while True:
        heads = {name[len(top) :].partition("/")[0] for name in store.sizes}
        if len(heads) != 1 or not all("/" in name[len(top) :] for name in store.sizes):
            break
        (head,) = heads
        meaning = {*NORMAL, *ABNORMAL, *SPLITS}
        if head.lower() in meaning or re.fullmatch(r"patient[0-9]+|study[0-9]+_\w+", head):
            break
        top += head + "/"
    store.sizes = {name[len(top) :]: size for name, size in store.sizes.items()}
    if isinstance(store, Archive):
        store.top = top
        return store.path
    store.root /= top
    return store.root


def _drawn_above(folder: Path) -> bool:
    """Look for the mark of synthetic films over part of a tree: above XR_HAND, a patient or a study."""
    return any((above / SYNTHETIC).is_file() for above in folder.parents[:3])


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
