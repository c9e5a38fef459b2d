"""A folder, zip archive or table of films as sorted records: which reader reads a source.

These are tried in order; each may be a folder or a zip archive (a single folder at the top of an archive is entered,
unless its name means something):

manifest   a `.csv` or `.tsv` file, or a folder with `manifest.csv` at its top: `manifest`.
data sets  CheXpert, NIH ChestX-ray14, RSNA, VinDr-CXR and MedIAnomaly by their label files: `datasets`.
manifest   the one table at the top with columns of paths and of labels, whatever it is called; or several that are
           called like splits (train.csv, test.csv).
mura       MURA's tree: `mura`.
classes    folders whose names are labels: `class_folders`.
folder     films in any folders, all with the label `unlabelled`.

What is a film is in `listing`, who is a patient in `patients`, what names mean in `names`; docs/films.md tells all of
it with examples. Records are in the natural order of their paths (`image2` before `image10`). Hidden files and folders
are skipped. Links are not followed unless asked; one that leads out of the source is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from preprocessing import InputError
from preprocessing.readers import SUFFIXES
from preprocessing.sources.class_folders import class_records, folder_records
from preprocessing.sources.datasets import DATASETS, is_label_file
from preprocessing.sources.finder import Finder
from preprocessing.sources.listing import RUN_FILES, Listing, list_files, passed_note
from preprocessing.sources.manifest import has_labels, hints_at_labels, manifest_records, names_films
from preprocessing.sources.mura import LABEL_FILES, PATH_FILES, mura_records
from preprocessing.sources.names import MANIFEST, SYNTHETIC, meaning, not_films, split_of
from preprocessing.sources.paths import film_suffix, natural_key, safe_name
from preprocessing.sources.patients import identify_all
from preprocessing.sources.reading import Asked, Found
from preprocessing.sources.record import Record, Source
from preprocessing.sources.storage import MAX_MANIFEST_BYTES, Archive, Folder, Walk
from preprocessing.sources.tables import TABLE_SUFFIXES, Table, open_table
from preprocessing.wording import counted


def open_source(
    path: Path,
    *,
    unlabelled: int = 0,
    normal: Sequence[str] = (),
    abnormal: Sequence[str] = (),
    follow_links: bool = False,
    strict: bool = True,
) -> Source:
    """List the films of a folder, a `.zip` or a table; the module's docstring says how it is understood.

    unlabelled        the label of films about which the source says nothing: 0 normal, -1 not known.
    normal, abnormal  folders, or words for labels, that mean so; `*` and `?` stand for any characters.
    follow_links      whether to follow links that stay in the source.
    strict            whether labels, splits and patients matter; if not, the films are listed all the same where these
                      contradict each other or cannot be understood, such as to find the files of a cache again.

    Raises `InputError` if there is no film; if `strict` for folders or words that may be labels but are not known, and
    for contradictions: a patient in two splits, a study with two labels; for a line of a manifest that makes no sense.
    """
    asked = Asked(unlabelled if strict else -1, tuple(normal), tuple(abnormal), strict)
    source = list_source(path, asked, follow_links=follow_links)
    if strict:
        _check_consistent(source)
    return source


def is_collection(place: Path) -> bool:
    """Whether a path is a source of films, rather than a film."""
    return place.is_dir() or place.suffix.lower() in (".zip", *TABLE_SUFFIXES)


def existing(path: Path) -> Path:
    """Return where a path leads; `InputError` where there is nothing, or what would be waited for or never ends."""
    try:
        place = path.resolve(strict=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'no such file or folder'}") from error
    if not place.is_file() and not place.is_dir():
        raise InputError(f"{path}: a pipe, socket or device; copy what it gives into a file, and name that")
    return place


def list_source(path: Path, asked: Asked, *, follow_links: bool = False) -> Source:
    """Determine the kind of a source and list it."""
    place = existing(path)
    if not is_collection(place):
        raise InputError(f"{path}: neither a folder nor a .zip nor a .csv")
    if place.is_dir() and (place / MANIFEST).is_file():
        place = place / MANIFEST
    if place.is_file() and place.suffix.lower() in TABLE_SUFFIXES:
        return _open_table(place, asked, follow_links=follow_links)

    name = safe_name(place.name if place.is_dir() else place.stem)
    store: Folder | Archive
    if place.is_dir():
        store = Folder(place, follow_links=follow_links)
        walk = store.walk()
    else:
        store, walk = Archive(place), Walk()
    root = _enter_lone_folder(store)
    if MANIFEST in store.sizes:
        return _source(name, root, store, manifest_records([MANIFEST], root, store, asked), [], False)

    listing = list_files(store, root, is_archive=isinstance(store, Archive))
    if not listing.films:
        raise InputError(f"{path}: {_nothing_in(listing)}")
    found = _records(listing, asked)
    _note_links(listing, walk, follow_links)
    drawn = any(file.rpartition("/")[2] == SYNTHETIC for file in store.sizes)
    drawn = drawn or (found.kind == "mura" and place.is_dir() and drawn_above(root))
    return _source(name, root, store, found, _left_notes(listing, found), drawn)


def drawn_above(folder: Path) -> bool:
    """Look for the mark of synthetic films over part of a tree: above XR_HAND, a patient or a study."""
    return any((above / SYNTHETIC).is_file() for above in folder.parents[:3])


def _open_table(place: Path, asked: Asked, *, follow_links: bool) -> Source:
    """Open a table that a user named: a data set's label file, or a manifest."""
    name = safe_name(place.parent.name if place.name == MANIFEST else place.stem)
    folder = Folder(place.parent, follow_links=follow_links)
    folder.find(place.name)
    root = folder.root
    table = open_table(str(place), place.name, folder) if place.name != MANIFEST else None
    if table is not None and is_label_file(table):
        walked = Folder(place.parent, follow_links=follow_links)
        walked.walk()
        listing = list_files(walked, root, is_archive=False)
        for reader in DATASETS.values():
            if found := reader(listing, {place.name: table}):
                return _source(name, root, walked, found, _left_notes(listing, found), False)
    drawn = folder.find(SYNTHETIC)
    return _source(name, root, folder, manifest_records([place.name], root, folder, asked), [], drawn)


def _source(name: str, root: Path, store: Folder | Archive, found: Found, notes: list[str], synthetic: bool) -> Source:
    """Make a source of what a reader found, in which nothing can be read but what its records name."""
    synthetic = synthetic or (found.kind == "manifest" and store.find(SYNTHETIC))
    used = {file for record in found.records for file in record.files()}
    store.sizes = {file: store.sizes[file] for file in sorted(used, key=natural_key)}
    return Source(name, found.kind, root, found.records, synthetic, tuple([*found.notes, *notes]), store)


def _records(listing: Listing, asked: Asked) -> Found:
    """List films in the first layout that fits any of them."""
    tables = _tables(listing)
    for reader in DATASETS.values():
        if found := reader(listing, tables):
            return found
    if found := _by_table(listing, tables, asked):
        return found
    if found := mura_records(listing.films, listing.store, None if listing.is_archive else listing.root):
        return found
    identities, notes = identify_all(listing.films)
    found = class_records(listing, asked, identities)
    if found is None:
        _refuse_doubtful(listing, tables, asked)
        found = folder_records(listing, asked, identities)
    found.notes += notes
    return found


def _refuse_doubtful(listing: Listing, tables: dict[str, Table], asked: Asked) -> None:
    """Refuse a table beside unlabelled films that names them and seems to label them, in columns of other names."""
    if listing.doubtful and asked.strict and not (asked.normal or asked.abnormal):
        file = listing.doubtful[0]
        raise InputError(
            f"{listing.root / file}: names films and may label them, but no column is called label; there are: "
            f"{', '.join(tables[file].columns[:20])}; call the one that says normal or abnormal label, or move it away"
        )


def _tables(listing: Listing) -> dict[str, Table]:
    """Read the headings of tables at the top and in `annotations`, without those that are no text."""
    tables = {}
    for file in listing.tables():
        if listing.store.sizes[file] > MAX_MANIFEST_BYTES:
            continue
        try:
            table = open_table(f"{listing.root / file}", file, listing.store)
        except InputError:
            continue
        if table is not None:
            tables[file] = table
    return tables


def _by_table(listing: Listing, tables: dict[str, Table], asked: Asked) -> Found | None:
    """Read the table beside the films that has their paths and labels; `InputError` where several could be it."""
    finder = Finder(listing.store, listing.root)
    sizes = dict(listing.store.sizes)
    of_films = {file for file, table in tables.items() if "/" not in file and names_films(table, finder)}
    listing.store.sizes = sizes
    files = sorted(file for file in of_films if has_labels(tables[file]))
    for file in sorted({*tables} - {*files} - {*PATH_FILES, *LABEL_FILES}):
        why = "names films, but has no column of labels" if file in of_films else "has no column of films"
        listing.notes.append(f"{file} is not read: it {why}")
        listing.passed[film_suffix(file)] -= 1
    if not files:
        listing.doubtful = sorted(file for file in of_films if hints_at_labels(file, tables[file]))
        return None
    splits = [split_of(PurePosixPath(file).stem) for file in files]
    if len(files) > 1 and (None in splits or len({*splits}) < len(splits)):
        if not asked.strict:
            return None
        raise InputError(
            f"{listing.root}: {', '.join(files)} each have paths and labels of films; name the one to read, or call "
            f"one {MANIFEST}"
        )
    found = manifest_records(files, listing.root, listing.store, asked)
    listing.store.sizes = sizes | listing.store.sizes
    named = {record.path for record in found.records}
    rest = sum(film not in named for film in listing.films)
    found.notes.insert(0, f"labels from {', '.join(files)}, which lies beside the films")
    if rest:
        found.notes.append(f"{counted(rest, 'film')} not in {', '.join(files)}: left out")
    if asked.strict:
        _check_folders(listing, found, files)
    return found


def _check_folders(listing: Listing, found: Found, files: list[str]) -> None:
    """Refuse a table that contradicts the class folders in which the films lie."""
    identities, _ = identify_all(listing.films)
    lenient = Asked(unlabelled=-1, strict=False)
    folders = class_records(
        Listing(listing.store, listing.root, True, listing.films, listing.masks), lenient, identities
    )
    by_folder = {record.path: record.label for record in folders.records} if folders else {}
    for record in found.records:
        if min(record.label, by_folder.get(record.path, -1)) >= 0 and record.label != by_folder[record.path]:
            raise InputError(
                f"{listing.root / files[0]}: {record.path} has label {record.label}, but lies in a folder of label "
                f"{by_folder[record.path]}; correct one of them, or call the table {MANIFEST} to have it believed"
            )


def _left_notes(listing: Listing, found: Found) -> list[str]:
    """Say what else lies in the source."""
    for file in found.tables:
        suffix = film_suffix(file)
        listing.passed[suffix] -= file in listing.store.sizes and listing.passed[suffix] > 0
    attached = {record.anomaly_mask for record in found.records if record.anomaly_mask and found.kind != "mura"}
    said = [f"{counted(len(attached), 'mask')} of lesions found beside the films"] if attached else []
    return [*said, *listing.notes, *passed_note(+listing.passed)]


def _note_links(listing: Listing, walk: Walk, followed: bool) -> None:
    if walk.unfollowed:
        verb = "is" if walk.unfollowed == 1 else "are"
        listing.notes.append(
            f"{counted(walk.unfollowed, 'link')} {verb} not followed; --follow-links does, within the source"
        )
    if walk.unreadable_names:
        number = counted(walk.unreadable_names, "file")
        listing.notes.append(f"passed over {number} of which the name is not UTF-8: rename what should be read")
    if walk.repeated:
        listing.notes.append(f"{counted(walk.repeated, 'link')} to files listed already: passed over")
    if walk.special:
        verb = "file that is a broken link" if walk.special == 1 else "files that are broken links"
        listing.notes.append(f"passed over {walk.special} {verb} or special")


def _nothing_in(listing: Listing) -> str:
    """Say why there is no film among some files."""
    number = counted(len(listing.store.sizes), "file")
    asides = "".join(f"; {note}" for note in (*listing.notes, *passed_note(listing.passed)))
    looked_for = ", ".join(sorted(SUFFIXES))
    return f"no film among {number}; looked for {looked_for}, DICOM files of any name, and {MANIFEST}{asides}"


def _enter_lone_folder(store: Folder | Archive) -> Path:
    """Make the only folder at the top of a source its root, again and again, unless the name of that folder matters."""
    top = ""
    while True:
        heads = {name[len(top) :].partition("/")[0] for name in store.sizes}
        if len(heads) != 1 or not all("/" in name[len(top) :] for name in store.sizes):
            break
        (head,) = heads
        meaningful = meaning(head) or split_of(head) or not_films(head)
        if meaningful or re.fullmatch(r"(patient|sub-|p)[0-9]+|study[0-9]+_\w+", head):
            break
        if any(f"{top}{head}/{file}" in store.sizes for file in RUN_FILES):
            break
        top += head + "/"
    store.sizes = {name[len(top) :]: size for name, size in store.sizes.items()}
    if isinstance(store, Archive):
        store.top = top
        return store.path
    store.root /= top
    return store.root


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
