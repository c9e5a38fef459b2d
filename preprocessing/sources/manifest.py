"""A CSV manifest: a line for each film."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from pathlib import Path, PurePosixPath

from preprocessing import InputError
from preprocessing.sources.names import LABELS, SPLITS, SYNTHETIC
from preprocessing.sources.paths import leads_out, natural_key
from preprocessing.sources.record import Record, Source
from preprocessing.sources.storage import MAX_MANIFEST_BYTES, Store
from preprocessing.wording import counted


def open_manifest(name: str, file: str, root: Path, store: Store) -> Source:
    """Read a manifest that lies at the top of its store."""
    where = f"{root / file}"
    try:
        text = store.read(file, MAX_MANIFEST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
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
    ordered = sorted(records.values(), key=lambda record: natural_key(record.path))
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


def _row(columns: list[str], row: list[str], store: Store) -> Record:
    """Check one line; the caller adds its number to errors."""
    if len(row) != len(columns):
        raise InputError(
            f"{counted(len(row), 'cell')}, the heading has {len(columns)}; quote cells that contain a comma"
        )
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
    path = _existing_file(cells["path"], "path", store)
    label, split = cells["label"].lower(), cells.get("split", "").lower()
    if label not in LABELS:
        raise InputError(f"label {cells['label']!r}; there are: {', '.join(filter(None, LABELS))}, or an empty cell")
    if split not in ("", *SPLITS):
        raise InputError(f"split {cells['split']!r}; there are: train, val, test, or an empty cell")
    study = cells.get("study", "")
    patient = cells.get("patient", "") or study or path
    return Record(
        path=path,
        patient=patient,
        study=_within_patient(study, patient) if study else path,
        label=LABELS[label],
        split=SPLITS.get(split, ""),
        finding=cells.get("finding", ""),
        difficulty=cells.get("difficulty", ""),
        box=_box(cells.get("box", "")),
        mask=_optional_file(cells, "mask", store),
        anomaly_mask=_optional_file(cells, "anomaly_mask", store),
    )


def _within_patient(study: str, patient: str) -> str:
    """Make a study's name unique across patients, unless it is already."""
    return study if study == patient or study.startswith(patient + "/") else f"{patient}/{study}"


def _optional_file(cells: dict[str, str], column: str, store: Store) -> str | None:
    return _existing_file(cells[column], column, store) if cells.get(column) else None


def _existing_file(text: str, column: str, store: Store) -> str:
    if not text:
        raise InputError(f"an empty {column}")
    if leads_out(text):
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
