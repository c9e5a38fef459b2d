"""RSNA Pneumonia Detection Challenge: `stage_2_train_labels.csv`, with a line for each box.

Shih et al., "Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations of Possible
Pneumonia", Radiology: AI 2019, and the challenge's data page. Columns: patientId (file name of the DICOM film), x, y,
width, height (empty without a box), Target (1: lung opacity). `stage_2_detailed_class_info.csv`: patientId, class
(Normal, Lung Opacity, No Lung Opacity / Not Normal).

Target 0 says that there is no opacity, not that the film is normal: without the classes such films are of unknown
label. `patientId` is one per film, so it does not tell which films share a patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from preprocessing.sources.datasets.lookup import Lookup, number, with_columns
from preprocessing.sources.listing import Listing
from preprocessing.sources.reading import Found
from preprocessing.sources.record import Record
from preprocessing.sources.tables import Table

NORMAL = "Normal"


def rsna_records(listing: Listing, tables: Mapping[str, Table]) -> Found | None:
    """Read the challenge's label files; None where there are none."""
    labels = with_columns(tables, ("patientId", "x", "y", "width", "height", "Target"))
    if not labels:
        return None
    details = with_columns(tables, ("patientId", "class"))
    classes = {row["patientId"]: row["class"] for table in details.values() for _, row in table.dicts()}
    targets: dict[str, bool] = {}
    boxes: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for table in labels.values():
        for line, row in table.dicts():
            name, where = row["patientId"], f"{table.where}, line {line}"
            targets[name] = targets.get(name, False) or number(row["Target"], where) == 1
            if row["x"] and row["x"].lower() != "nan":
                x, y, width, height = (number(row[column], where) for column in ("x", "y", "width", "height"))
                boxes[name].append((x, y, x + width, y + height))
    lookup = Lookup(listing)
    records = []
    for name, opacity in targets.items():
        if (film := lookup.by_name(name)) is None:
            continue
        kind = "Lung Opacity" if opacity else classes.get(name, "")
        label = 1 if opacity or kind not in ("", NORMAL) else 0 if kind == NORMAL else -1
        finding = kind if label == 1 else ""
        records.append(Record(film, name, name, label, finding=finding, lesion_boxes=tuple(boxes.get(name, ()))))
    notes = ["patientId is one per film in this set: it does not tell which films share a patient"]
    if any(record.label < 0 for record in records):
        notes.append("Target 0 is no opacity, not a normal film: unknown without stage_2_detailed_class_info.csv")
    return lookup.found("rsna", records, (*labels, *details), notes)
