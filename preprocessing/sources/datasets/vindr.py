"""VinDr-CXR, from PhysioNet and as the VinBigData challenge: a line for each box that a radiologist drew.

Nguyen et al., "VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations", Scientific Data 9, 429
(2022), and the pages of both releases. `annotations_train.csv` (or `train.csv`): image_id (file name), rad_id,
class_name ("No finding" without a box), x_min, y_min, x_max, y_max in pixels of the DICOM films;
`image_labels_train.csv`: image_id, rad_id and a column of 0 and 1 for each finding; the same for `test`, by consensus,
without rad_id. They lie at the top or in `annotations/`, the films in `train/` and `test/`.

Three radiologists read each training film: it is normal if none finds anything, abnormal if most do, and of unknown
label otherwise. Boxes of all of them are kept. Patients are not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from preprocessing.sources.datasets.lookup import Lookup, number, with_columns
from preprocessing.sources.listing import Listing
from preprocessing.sources.names import split_names
from preprocessing.sources.reading import Found
from preprocessing.sources.record import Record
from preprocessing.sources.tables import Table

NONE = "No finding"
_EDGES = ("x_min", "y_min", "x_max", "y_max")
_Box = tuple[float, float, float, float]


def vindr_records(listing: Listing, tables: Mapping[str, Table]) -> Found | None:
    """Read VinDr-CXR's label files; None where there are none."""
    drawn = with_columns(tables, ("image_id", "class_name", *_EDGES))
    if not drawn:
        return None
    marked = with_columns(tables, ("image_id", NONE))
    readings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # film -> radiologist -> findings
    boxes: dict[str, dict[_Box, None]] = defaultdict(dict)
    splits: dict[str, str] = {}
    for file, table in (drawn | marked).items():
        split = next((split for split in ("train", "test") if split in PurePosixPath(file).stem), "")
        for line, row in table.dicts():
            name = row["image_id"]
            splits.setdefault(name, split)
            readings[name][row.get("rad_id", "")] |= {*_findings(row, file in marked)}
            if row.get("x_min", "") and row["class_name"] != NONE:
                x0, y0, x1, y1 = (number(row[edge], f"{table.where}, line {line}") for edge in _EDGES)
                boxes[name][x0, y0, x1, y1] = None
    lookup = Lookup(listing)
    names = split_names({*splits.values()})
    records = []
    for name, readers in readings.items():
        if (film := lookup.by_name(name)) is None:
            continue
        abnormal = sum(bool(findings) for findings in readers.values())
        label = 0 if not abnormal else 1 if 2 * abnormal > len(readers) else -1
        finding = ", ".join(sorted(set().union(*readers.values()))) if label == 1 else ""
        lesions = tuple(boxes.get(name, ())) if label else ()
        records.append(Record(film, film, film, label, names[splits[name]], finding, lesion_boxes=lesions))
    unknown = sum(record.label < 0 for record in records)
    notes = [f"{unknown} of unknown label: radiologists disagree"] if unknown else []
    return lookup.found("vindr", records, drawn | marked, notes)


def _findings(row: Mapping[str, str], marked: bool) -> Iterable[str]:
    """Yield the findings of a line, whether one box or marks for each finding."""
    if marked:
        yield from (
            name for name, value in row.items() if name not in ("image_id", "rad_id", NONE) and value in ("1", "1.0")
        )
    elif row["class_name"] != NONE:
        yield row["class_name"]
