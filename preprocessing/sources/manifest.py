"""A manifest: a table with a line for each film.

Columns, by name and in any order (`columns.ALIASES` has their other names):

path          of the film, relative to the manifest's folder, in which it stays; `finder` says what else is understood
label         0 or 1, also as 0.0 or False, normal or abnormal and the other words of `names`; empty, nan, -1, unknown:
              not known. A word for a finding is label 1, and the finding. Other words need --normal or --abnormal.
patient, study, split (train, val, test and other words of `names`), finding, difficulty
box           "x0 y0 x1 y1" in pixels of the film as read: the region to prepare
lesion_boxes  the same, with `;` between several: pixel truth
mask, anomaly_mask   paths of masks
others        are kept with the film as they are

A film that is not there stays, with the reason in `Record.missing`.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from preprocessing import InputError
from preprocessing.sources.columns import ALIASES, Columns, recognize_columns
from preprocessing.sources.finder import Finder
from preprocessing.sources.names import NOT_KNOWN, meaning, named, split_names, split_of
from preprocessing.sources.paths import natural_key
from preprocessing.sources.patients import identify_all, is_placeholder
from preprocessing.sources.reading import Asked, Found
from preprocessing.sources.record import Record
from preprocessing.sources.storage import Store
from preprocessing.sources.tables import SEPARATORS, Table, open_table
from preprocessing.wording import counted, squeezed

MAX_LESION_BOXES = 1000
"""A film with more boxes is refused."""

_LABELS = {"normal": 0, "abnormal": 1, "finding": 1, "unlabelled": -1}
_NUMBER = re.compile(r"[+-]?[0-9]+([.,]0*)?")
_LINES_LOOKED_AT = 50
_YES_NO = frozenset({"abnormal", "isabnormal", "anomalous", "isanomaly"})  # columns of which "yes" says something


def has_labels(table: Table) -> bool:
    """Whether a table has a column of labels."""
    return bool({squeezed(name) for name in table.columns} & {*ALIASES["label"]})


def hints_at_labels(file: str, table: Table) -> bool:
    """Whether a table's name or a column says that it is about what is normal, though none is called label."""
    told = {"label", "labels", "target", "targets", "diagnosis", "diagnoses", "classes", "groundtruth", "findings"}
    return squeezed(Path(file).stem) in told or any(
        meaning(name) in ("normal", "abnormal", "finding") and squeezed(name) not in ALIASES["finding"]
        for name in table.columns
    )


def names_films(table: Table, finder: Finder) -> Table | None:
    """Return a table with its column of films called path; None where no column, or more than one, names films.

    A column of another name than `columns.ALIASES` has is one of films where all of its first cells are names of some,
    each once.
    """
    keys = [squeezed(name) for name in table.columns]
    if {*keys} & {*ALIASES["path"]}:
        return table
    lines = [row for _, row in islice(table.rows(ragged=True), _LINES_LOOKED_AT)]
    films = [index for index in range(len(keys)) if lines and _all_films([row[index] for row in lines], finder)]
    if len(films) != 1:
        return None
    names = ("path" if index == films[0] else name for index, name in enumerate(table.columns))
    return replace(table, columns=tuple(names))


def _all_films(cells: Sequence[str], finder: Finder) -> bool:
    try:
        return len({*cells}) == len(cells) and all(finder.find(cell, "path")[1] for cell in cells)
    except InputError:  # an empty cell, or a path that leads out
        return False


def manifest_records(files: Sequence[str], root: Path, store: Store, asked: Asked) -> Found:
    """Read manifests that lie at the top of their store; of several, each names its split by what it is called."""
    finder = Finder(store, root)
    records: dict[str, Record] = {}
    places: dict[str, str] = {}
    notes: list[str] = []
    repeated = 0
    for file in files:
        where = f"{root / file}"
        table = open_table(where, file, store)
        if table is None:
            raise InputError(
                f"{where}: no films in it; looked for lines below a heading with the columns path and label"
            )
        reader = _Reader(
            names_films(table, Finder(store, root)) or table,
            finder,
            asked,
            (split_of(Path(file).stem) or "") if len(files) > 1 else "",
        )
        for line, record in reader.records():
            at = f"line {line}" + (f" of {file}" if len(files) > 1 else "")
            if record.path in records and records[record.path] != record:
                raise InputError(
                    f"{where}, line {line}: {record.path} was given in {places[record.path]} already; leave one out"
                )
            repeated += record.path in records
            records[record.path], places[record.path] = record, at
        notes += reader.notes(file)
    if not records:
        raise InputError(
            f"{root / files[0]}: no films in it; looked for lines below a heading with the columns path and label"
        )
    _check_there(f"{root / files[0]}", records.values())
    found = Found("manifest", sorted(records.values(), key=lambda record: natural_key(record.path)), notes, {*files})
    if repeated:
        found.notes.append(f"{counted(repeated, 'line')} repeated, read once")
    _decide_splits(found)
    _identify(found)
    found.notes += finder.notes()
    return found


def _check_there(where: str, records: Iterable[Record]) -> None:
    missing = [record for record in records if record.missing]
    if len(missing) == len([*records]):
        first = missing[0]
        raise InputError(
            f"{where}: none of its {counted(len(missing), 'film')} is there with its masks, such as "
            f"{first.path[:200]!r}: {first.missing} in the manifest's folder; write paths relative to that"
        )


def _decide_splits(found: Found) -> None:
    """Leave out a split `train` that divides nothing, as with folders."""
    splits = split_names({record.split for record in found.records})
    if any(name and not split for name, split in splits.items()):
        found.notes.append("split train alone divides nothing, and is left out")
    found.records = [replace(record, split=splits[record.split]) for record in found.records]


def _identify(found: Found) -> None:
    """Read patients from paths where the manifest has neither patients nor studies."""
    if any(record.patient != record.path for record in found.records):
        return
    identities, notes = identify_all([record.path for record in found.records])
    found.notes += notes
    found.records = [
        replace(record, patient=who.patient, study=who.study, patient_known=who.known)
        for record, who in ((record, identities[record.path]) for record in found.records)
    ]


@dataclass
class _Cells:
    """Cells of a line by field, and those that belong to no field by column."""

    fields: Mapping[str, str]
    others: tuple[tuple[str, str], ...]


class _Reader:
    """Reads the lines of one manifest."""

    def __init__(self, table: Table, finder: Finder, asked: Asked, split: str) -> None:
        self._table, self._finder, self._asked, self._split = table, finder, asked, split
        try:
            self._columns = recognize_columns(table.columns)
            for needed in ("path", "label"):
                if needed not in self._columns.fields:
                    listed = ", ".join(name.lower() for name in table.columns)
                    raise InputError(
                        f"no column {needed!r}; there are: {listed} (separated by {SEPARATORS[table.separator]})"
                    )
        except InputError as error:
            raise InputError(f"{table.where}, line {table.line}: {error}") from None
        self._columns = _without_other_splits(self._columns, table)
        self._pairs: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self._by_study = False
        self._labels: set[str] = set()

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the number and record of each line; errors carry the line."""
        for line, row in self._table.rows():
            try:
                yield line, self._record(self._cells(row))
            except InputError as error:
                raise InputError(f"{self._table.where}, line {line}: {error}") from None
        if self._asked.strict and (self._asked.normal or self._asked.abnormal):
            self._asked.check_used(self._labels, "label")

    def notes(self, file: str) -> list[str]:
        """Say which columns of other names were read, and which are kept as they are."""
        names = self._columns.names
        read = [f"{field} from column {names[indices[0]]}" for field, indices in self._columns.fields.items()]
        renamed = [
            text
            for text, (field, at) in zip(read, self._columns.fields.items(), strict=True)
            if field != squeezed_name(names[at[0]])
        ]
        notes = [f"{file}: {', '.join(renamed)}"] if renamed else []
        if self._by_study:
            notes.append(f"{file}: films without a patient: each study counts as one patient")
        return notes

    def _cells(self, row: list[str]) -> _Cells:
        fields = {}
        for field, indices in self._columns.fields.items():
            fields[field] = row[indices[0]]
            for other in indices[1:]:
                self._check_alike(field, indices[0], other, row)
        others = tuple(sorted((name, row[index]) for name, index in self._columns.others if row[index]))
        return _Cells(fields, others)

    def _check_alike(self, field: str, first: int, other: int, row: list[str]) -> None:
        """Refuse two columns for one field that do not tell the same films apart."""
        names = self._columns.names
        there, back = self._pairs.setdefault(f"{first} {other}", ({}, {}))
        if (
            there.setdefault(row[first], row[other]) != row[other]
            or back.setdefault(row[other], row[first]) != row[first]
        ):
            raise InputError(
                f"columns {names[first]!r} and {names[other]!r} both say the {field}, but differ; leave one out"
            )

    def _record(self, cells: _Cells) -> Record:
        path, there = self._finder.find(cells.fields["path"], "path")
        missing = "" if there else "no such file"
        masks: dict[str, str | None] = {}
        for field in ("mask", "anomaly_mask"):
            text = cells.fields.get(field, "")
            mask, found = self._finder.find(text, field) if text else ("", True)
            masks[field] = mask if text and found else None
            if not found and not missing:
                missing = f"{field} {text!r}: no such file"
        label, finding = self._label(cells.fields["label"])
        patient, study, known = self._identity(cells, path)
        lesions = _boxes(cells.fields.get("lesion_boxes", ""), "lesion_boxes")
        if len(lesions) > MAX_LESION_BOXES:
            raise InputError(f"{len(lesions)} lesion_boxes; a film may have {MAX_LESION_BOXES}")
        if lesions and label == 0:
            raise InputError(f"{path}: a normal film with lesion_boxes; correct one of the two")
        return Record(
            path=path,
            patient=patient,
            study=study,
            label=label,
            split=self._split_of(cells.fields.get("split", "")),
            finding=cells.fields.get("finding", "") or finding,
            difficulty=cells.fields.get("difficulty", ""),
            box=_box(cells.fields.get("box", "")),
            mask=masks["mask"],
            anomaly_mask=masks["anomaly_mask"],
            patient_known=known,
            lesion_boxes=lesions,
            columns=cells.others,
            missing=missing,
        )

    def _identity(self, cells: _Cells, path: str) -> tuple[str, str, bool]:
        patient, study = (
            "" if text.lower() in NOT_KNOWN or is_placeholder(text) else text
            for text in (cells.fields.get(field, "") for field in ("patient", "study"))
        )
        if study and not patient:
            self._by_study = True
        whose = patient or study or path
        return whose, _within_patient(study, whose) if study else path, bool(patient)

    def _split_of(self, text: str) -> str:
        if text.lower() in NOT_KNOWN:
            return self._split
        split = split_of(text)
        if split is None:
            raise InputError(f"split {text!r}; there are: train, val, test, or an empty cell")
        return split

    def _label(self, text: str) -> tuple[int, str]:
        """Return label and finding that a cell says."""
        if text.lower() in NOT_KNOWN:
            return -1, ""
        self._labels.add(text)
        asked = self._asked
        by_user = named(text, (*asked.normal, *asked.abnormal)) or asked.normal
        if not by_user and _NUMBER.fullmatch(text) and (number := float(text.replace(",", "."))) in (0, 1, -1):
            return int(number), ""
        if not by_user and text.lower() in ("true", "false"):
            return int(text.lower() == "true"), ""
        name = self._columns.names[self._columns.fields["label"][0]]
        if squeezed(name) in _YES_NO and text.lower() in ("yes", "no", "y", "n"):
            return int(text.lower().startswith("y")), ""
        what = asked.meaning(text)
        if what is None:
            if not asked.strict:
                return -1, ""
            value = shlex.quote(text)
            raise InputError(
                f"label {text!r}; there are: 0, normal, 1, abnormal, other words for them, common findings, or an "
                f"empty cell; else say which it is: --normal {value} or --abnormal {value}"
            )
        return _LABELS[what], text if what == "finding" else ""


def squeezed_name(name: str) -> str:
    """Return the field that a column is called after, or its squeezed name.

    >>> squeezed_name("Lesion boxes"), squeezed_name("PatientID")
    ('lesion_boxes', 'patientid')
    """
    key = squeezed(name)
    return next((field for field in ALIASES if squeezed(field) == key), key)


def _without_other_splits(columns: Columns, table: Table) -> Columns:
    """Keep a column `set` or `subset` that holds no splits as any other column."""
    if "split" not in columns.fields or squeezed(columns.names[columns.fields["split"][0]]) == "split":
        return columns
    (index,) = columns.fields["split"][:1]
    if all(row[index].lower() in NOT_KNOWN or split_of(row[index]) for _, row in table.rows(ragged=True)):
        return columns
    fields = {field: indices for field, indices in columns.fields.items() if field != "split"}
    return Columns(fields, (*columns.others, (columns.names[index], index)), columns.names)


def _within_patient(study: str, patient: str) -> str:
    """Make a study's name unique across patients, unless it is already."""
    return study if study == patient or study.startswith(patient + "/") else f"{patient}/{study}"


def _boxes(text: str, column: str) -> tuple[tuple[float, float, float, float], ...]:
    """Read boxes with `;` between; the caller adds the line to errors."""
    boxes = []
    for part in text.split(";"):
        bare = part.strip(" []()")
        if not bare:
            continue
        try:
            x0, y0, x1, y1 = (float(number) for number in re.split(r"[\s,]+", bare))
        except ValueError:
            raise InputError(f"{column} {text[:60]!r}; write four numbers: x0 y0 x1 y1") from None
        if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
            raise InputError(f"{column} {text[:60]!r}; x0 < x1 and y0 < y1 are needed, in pixels from 0")
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def _box(text: str) -> tuple[float, float, float, float] | None:
    boxes = _boxes(text, "box")
    if len(boxes) > 1:
        raise InputError(
            f"{len(boxes)} boxes in column box, which has the one region to prepare; for lesions call it lesion_boxes"
        )
    return boxes[0] if boxes else None
