"""NIH ChestX-ray14: `Data_Entry_2017*.csv` with a line for each film, in `images_*/images/`.

Wang et al., "ChestX-ray8", CVPR 2017, and the data set's README. Columns: Image Index (file name), Finding Labels ("No
Finding", or findings with `|` between), Follow-up #, Patient ID, Patient Age, Patient Gender (or Sex), View Position,
and sizes. `train_val_list.txt` and `test_list.txt` hold the official splits, by patient; `BBox_List_2017.csv` boxes for
880 films: Image Index, Finding Label, and x, y, width, height in pixels of the 1024 px films.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from preprocessing.sources.datasets.lookup import Lookup, number, rest_of, with_columns
from preprocessing.sources.listing import Listing
from preprocessing.sources.names import split_names
from preprocessing.sources.reading import Found
from preprocessing.sources.record import Record
from preprocessing.sources.storage import MAX_MANIFEST_BYTES
from preprocessing.sources.tables import Table, decoded

NONE = "No Finding"
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
_USED = ("Image Index", "Finding Labels", "Patient ID")


def nih_records(listing: Listing, tables: Mapping[str, Table]) -> Found | None:
    """Read ChestX-ray14's label files; None where there are none."""
    chosen = with_columns(tables, _USED)
    if not chosen:
        return None
    lookup = Lookup(listing)
    splits = _splits(listing)
    names = split_names({*splits.values()} or {""})
    boxed = with_columns(tables, ("Image Index", "Finding Label"))
    boxes = _boxes(boxed)
    records = {}
    for table in chosen.values():
        for _, row in table.dicts():
            film = lookup.by_name(row["Image Index"])
            if film is None:
                continue
            findings = row["Finding Labels"]
            patient = row["Patient ID"]
            follow_up = row.get("Follow-up #", "")
            records[film] = Record(
                path=film,
                patient=patient or film,
                study=f"{patient}/{follow_up}" if patient and follow_up else film,
                label=-1 if not findings else int(findings != NONE),
                split=names.get(splits.get(row["Image Index"], ""), ""),
                finding=findings if findings != NONE else "",
                patient_known=bool(patient),
                lesion_boxes=tuple(boxes.get(row["Image Index"], ())),
                columns=rest_of(row, _USED),
            )
    return lookup.found(
        "nih", records.values(), (*chosen, *boxed, *(name for name in _LISTS if name in listing.store.sizes))
    )


def _splits(listing: Listing) -> dict[str, str]:
    splits: dict[str, str] = {}
    for file, split in _LISTS.items():
        if file in listing.store.sizes:
            text = decoded(f"{listing.root / file}", listing.store.read(file, MAX_MANIFEST_BYTES))
            splits |= dict.fromkeys((line.strip() for line in text.splitlines() if line.strip()), split)
    return splits


def _boxes(tables: Mapping[str, Table]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Read boxes by place: the heading `Bbox [x,y,w,h]` is itself four cells."""
    boxes = defaultdict(list)
    for table in tables.values():
        for line, (name, _, *cells) in table.rows(ragged=True):
            x, y, width, height = (number(cell, f"{table.where}, line {line}") for cell in cells[:4])
            boxes[name].append((x, y, x + width, y + height))
    return boxes
