"""Which files of a folder or an archive are films, and what all others are: nothing is passed over unsaid.

Files with a film's suffix are films, and so are DICOM files by their first bytes, whatever they are called, and films
of any format without a suffix; only files whose suffix says nothing are opened for that. No films are: masks and other
pictures beside films (`names.NOT_FILMS`, `masks`), heatmaps and run folders of this program, and DICOM objects that are
no films by their headers, of which the first bytes are read: `readers.dicom_objects`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from preprocessing import InputError
from preprocessing.readers import HEAD_BYTES, OBJECT_HEAD_BYTES, SUFFIXES, other_object_by_head, recognize
from preprocessing.sources.masks import film_of_mask, is_mask_name, mask_places, split_path, truth_places
from preprocessing.sources.mura import is_mura_sidecar
from preprocessing.sources.names import BOXES, MANIFEST, SYNTHETIC, not_films, word_set
from preprocessing.sources.paths import film_suffix, natural_key
from preprocessing.sources.storage import Store
from preprocessing.sources.tables import TABLE_SUFFIXES
from preprocessing.wording import counted, plural

RUN_FILES = ("run.json", "bench.json")
"""A folder that holds one of these was written by `anomaly train`, `tune` or `bench`."""

_HEATMAP = re.compile(r".*_heatmap\.(png|tiff|npy|(sc|seg|pm|sr)\.dcm)", re.DOTALL)
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".dcm.gz"})
_OTHER_SUFFIXES = word_set(
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yml .yaml .ini .cfg .toml .html .htm .pdf .doc .docx .xls .xlsx .ods "
    ".ppt .pptx .rtf .log .py .ipynb .m .r .js .css .h5 .hdf5 .npy .npz .pt .pth .pkl .mat .safetensors .onnx .db "
    ".sqlite .zip .tar .tgz .7z .rar .bz2 .xz .sh .bat .exe .dll .so .lnk .url .gif .webp .svg .jpx "
    ".ico .heic .mp4 .avi .mov .wav .mp3 .gz .md5 .sha256 .license .tmp .part .bak"
)
_PICTURES = frozenset({".gif", ".webp", ".jpx", ".heic", ".gz"})
_SHEETS = frozenset({".xls", ".xlsx", ".ods"})
_NAMED = 6


@dataclass
class Listing:
    """The files of a source.

    root     its folder, or the archive
    films    paths of the films, in natural order
    masks    paths of masks, which are no films
    objects  what DICOM objects are that are no films -> their number
    passed   suffix -> number of other files, "" for none
    own      number of files that this program wrote
    doubtful tables that name films and may label them, in columns of other names
    notes    what the listing found that is no film, a line each
    """

    store: Store
    root: Path
    is_archive: bool
    films: list[str] = field(default_factory=list)
    masks: set[str] = field(default_factory=set)
    objects: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    own: int = 0
    doubtful: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def tables(self) -> list[str]:
        """Return the tables at the top and in a folder `annotations` there."""
        names = (name for name in sorted(self.store.sizes) if name.lower().endswith(TABLE_SUFFIXES))
        return [name for name in names if name.rpartition("/")[0].lower() in ("", "annotations") and name != BOXES]


def list_files(store: Store, root: Path, *, is_archive: bool) -> Listing:
    """Tell films from all other files that a store lists."""
    listing = Listing(store, root, is_archive)
    runs = {name.rpartition("/")[0] for name in store.sizes if name.rpartition("/")[2] in RUN_FILES}
    beside: Counter[tuple[str, str]] = Counter()
    by_bytes: Counter[str] = Counter()
    films = []
    for name in sorted(store.sizes, key=natural_key):
        file = name.rpartition("/")[2]
        suffix = film_suffix(name)
        if is_heatmap_name(file) or (runs and _is_below(name, runs)):
            listing.own += 1
            continue
        found = suffix in SUFFIXES
        is_dicom = suffix in _DICOM_SUFFIXES
        if not found and _may_be_film(suffix, file):
            kind = _kind_by_bytes(name, suffix, store)
            found, is_dicom = kind is not None, kind == "DICOM"
            by_bytes[suffix] += found
        if is_dicom and (other := _other_object(name, store)) is not None:
            listing.objects[other] += 1
            by_bytes[suffix] -= suffix not in SUFFIXES
            continue
        folder = next((part for part in name.split("/")[:-1] if not_films(part)), None)
        if found and folder is not None:
            what = not_films(folder) or ""
            beside[name[: name.index(folder) + len(folder)] + "/", what] += 1
            listing.masks |= {name} if what == "mask" else set()
        elif found:
            films.append(name)
        elif not _belongs(name):
            listing.passed[suffix] += 1
    listed = {*films}
    named = {name for name in films if is_mask_name(name)}
    stems = {"".join(split_path(name)[:2]) for name in films}
    named |= {name for name in films if film_of_mask(name) in stems}
    named |= {place for film in films for places in (mask_places, truth_places) for place in places(film)} & listed
    listing.masks |= named
    listing.films = [name for name in films if name not in named]
    listing.notes = _notes(listing, beside, by_bytes, sum(not is_mura_sidecar(name) for name in named))
    return listing


def is_heatmap_name(file: str) -> bool:
    """Whether a file is called as this program calls the heatmaps that it writes.

    >>> is_heatmap_name("a.png_heatmap.png"), is_heatmap_name("a.dcm_heatmap.seg.dcm"), is_heatmap_name("a.seg.dcm")
    (True, True, False)
    """
    return _HEATMAP.fullmatch(file) is not None


def _is_below(name: str, runs: set[str]) -> bool:
    return any(folder.as_posix().removeprefix(".") in runs for folder in PurePosixPath(name).parents)


def _may_be_film(suffix: str, file: str) -> bool:
    """Whether only its bytes can say: of unknown suffixes, numbers (1.2.840.7) and none."""
    return suffix not in _OTHER_SUFFIXES and file not in ("DICOMDIR", "README", "LICENSE", "Makefile")


def _kind_by_bytes(name: str, suffix: str, store: Store) -> str | None:
    kind = recognize(store.head(name, HEAD_BYTES))
    ordinary = re.fullmatch(r"\.[a-z]\w*", suffix)  # unlike the last part of a DICOM identifier such as 1.2.840.7
    return kind if kind == "DICOM" or not ordinary else None


def _other_object(name: str, store: Store) -> str | None:
    try:
        return other_object_by_head(store.head(name, OBJECT_HEAD_BYTES))
    except InputError:  # said of the film, when it is to be read whole
        return None


def _belongs(name: str) -> bool:
    """Whether a file that is no film says something of the films."""
    file = name.rpartition("/")[2]
    return file in (SYNTHETIC, MANIFEST, BOXES) or is_mura_sidecar(name)


def _notes(listing: Listing, beside: Counter[tuple[str, str]], by_bytes: Counter[str], named: int) -> list[str]:
    notes = []
    if beside:
        folders = [f"{folder}: {counted(number, what)}" for (folder, what), number in beside.items()]
        notes.append(f"no films: {_few(folders)}")
    if named:
        notes.append(f"no films: {counted(named, 'mask')} beside films, by name")
    if listing.own:
        notes.append(f"no films: {counted(listing.own, 'file')} written by this program (runs, heatmaps)")
    if listing.objects:
        kinds = [counted(number, kind) for kind, number in listing.objects.items()]
        notes.append(f"no films, by their DICOM headers: {_few(kinds)}")
    if found := [f"{number} {suffix or 'without a suffix'}" for suffix, number in by_bytes.items() if number]:
        notes.append(f"films by their first bytes: {_few(found)}")
    return notes


def passed_note(passed: Counter[str]) -> list[str]:
    """Say how many files were passed over, by suffix."""
    if not passed:
        return []
    kinds = _few([f"{number} {suffix or 'without a suffix'}" for suffix, number in passed.most_common()])
    unread = sorted(suffix for suffix in passed if suffix in _PICTURES)
    sheets = sorted(suffix for suffix in passed if suffix in _SHEETS)
    advice = (
        f"; {', '.join(unread)} may hold films, but are not read: save them as PNG, TIFF or DICOM" if unread else ""
    )
    advice += f"; tables are read as .csv or .tsv, not as {', '.join(sheets)}" if sheets else ""
    number = sum(passed.values())
    verb = "is no film" if number == 1 else f"are no {plural('film')}"
    return [f"passed over {counted(number, 'file')} that {verb}: {kinds}{advice}"]


def _few(texts: list[str]) -> str:
    more = [f"{len(texts) - _NAMED} more kinds"] if len(texts) > _NAMED + 1 else []
    return ", ".join(texts[: _NAMED if more else None] + more)
