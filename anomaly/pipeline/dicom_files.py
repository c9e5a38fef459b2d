"""Heatmaps as DICOM files: of which films there can be any, and what is written of each."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.export.dicom_objects import KINDS, check_highdicom, dicom_bytes, dicom_results, kind_of
from anomaly.export.dicom_source import source_header
from anomaly.export.dicom_study import LooseFilm, film_as_study
from anomaly.pipeline.heatmaps import Heatmap
from anomaly.pipeline.selection import Selection
from anomaly.runs import DiskFull, inside, write_atomic
from preprocessing import InputError
from preprocessing.readers import read_dicom_header, read_film
from preprocessing.sources import Source
from preprocessing.wording import counted

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_FORMATS = {"dicom": KINDS, **{f"dicom-{kind}": (kind,) for kind in KINDS}}
"""Names of formats -> kinds of DICOM object."""
_HEAD = 2**18  # bytes of a file, in which its header usually ends


def creation_time() -> datetime:
    """Return now, or what the environment's SOURCE_DATE_EPOCH says: the same films then give the same bytes.

    Raises InputError where that is no number of seconds since 1970.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return datetime.now().astimezone()
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(f"SOURCE_DATE_EPOCH is {text[:40]!r}; give seconds since 1970, or unset it") from None


@dataclass
class DicomFiles:
    """The DICOM objects of a selection's heatmaps, as files."""

    selection: Selection
    originals: Source
    kinds: Sequence[str] = KINDS
    as_study: bool = False  # whether films that name no study get one of their own
    created: datetime = field(default_factory=creation_time)
    failures: list[tuple[str, str]] = field(default_factory=list)  # film and reason, of those that have no objects

    def __post_init__(self) -> None:
        """Refuse, before any film passes the detector, what could not be written: see `check`."""
        check_highdicom()
        self._notes: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._films: set[str] = set()
        if not self.as_study:
            self.check()

    def check(self) -> None:
        """Raise InputError where a film of the selection names no study that its results could join."""
        refused = []
        paths = dict.fromkeys(str(path) for path in self.selection.films.column("path"))
        for path in paths:
            try:
                self._header_of(path)
            except InputError as error:
                refused.append(error)
        if refused:
            count = f"{len(refused)} of {counted(len(paths), 'film')} can't have DICOM objects, the first: "
            raise InputError(
                f"{count * (len(paths) > 1)}{refused[0]}; add --as-study to make studies of their own, or leave dicom "
                "out of --formats"
            )

    def write(self, heatmap: Heatmap, folder: Path) -> Path | None:
        """Write the objects of a heatmap on its original film as `<film>_heatmap.<kind>.dcm`; return the first file.

        A film that gets a study of its own is written too, as `<film>_film.dcm`. None: there can't be any, and
        `failures` says why; the films after it go on.
        """
        try:
            return self._write(heatmap, folder)
        except DiskFull:
            raise
        except InputError as error:
            self.failures.append((heatmap.path, str(error).removeprefix(f"{heatmap.source}: ")))
            return None

    def _write(self, heatmap: Heatmap, folder: Path) -> Path:
        source = self._source_of(heatmap, folder)
        header = source_header(source)
        results = dicom_results(source, heatmap.finding(self.created), self.kinds)
        content = {kind_of(result): dicom_bytes(result) for result in results}  # all, or nothing is written
        written = []
        for kind, data in content.items():
            written.append(inside(folder, f"{heatmap.path}_heatmap.{kind}.dcm"))
            write_atomic(written[-1], data)
        for note in header.notes:
            self._note(note, heatmap.source)
        if "seg" in self.kinds and "seg" not in content:
            inside(folder, f"{heatmap.path}_heatmap.seg.dcm").unlink(missing_ok=True)  # of an earlier time
            self._note("no pixel of its map is above the normal range, so it has no Segmentation", heatmap.source)
        return written[0] if written else folder

    def notes(self) -> list[str]:
        """Return what was left out, replaced or not known, a sentence for all films that it is true of."""
        return [
            f"{counted(count, 'film')} (the first: {self._first[note]}): {note}" for note, count in self._notes.items()
        ]

    def _note(self, note: str, path: str) -> None:
        self._notes[note] += 1
        self._first.setdefault(note, path)

    def _header_of(self, path: str) -> "Dataset":
        """Return the header of a DICOM film; raises InputError where it is none, or names no study."""
        try:
            header = read_dicom_header(path, self.originals.store.head(path, _HEAD))
        except InputError:  # it is longer, or packed
            header = read_dicom_header(path, self.originals.read(path))
        if header is None:
            raise InputError(f"{path} is no DICOM film, so there is no study that results could join")
        try:
            source_header(header)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return header

    def _source_of(self, heatmap: Heatmap, folder: Path) -> "Dataset":
        """Return the film that results refer to: itself, or what is made of it where it names no study."""
        path = heatmap.source
        try:
            return self._header_of(path)
        except InputError:
            if not self.as_study:
                raise
        data = self.originals.read(path)
        film = read_film(path, data)
        films = self.selection.films
        place = films.column("path").tolist().index(path)
        known = bool(films.column("patient_known")[place])
        aspect = Fraction(film.aspect).limit_denominator(1000)
        loose = LooseFilm(
            film.pixels,
            film.depth,
            hashlib.sha256(data).hexdigest(),
            films.cache.source,
            str(films.column("patient")[place]) if known else "",
            str(films.column("study")[place]),
            film.spacing,
            None if aspect == 1 else (aspect.numerator, aspect.denominator),
        )
        made = film_as_study(loose, self.created)
        if path not in self._films:
            self._films.add(path)
            write_atomic(inside(folder, f"{path}_film.dcm"), dicom_bytes(made))
            whose = "PatientID is the source's patient" if known else "patient not known: PatientID is of its hash"
            self._note(f"it names no study, so it got one of its own; {whose}", path)
        return made
