"""CheXpert: `train.csv` and `valid.csv` (`test.csv`) with a line for each film.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison", AAAI 2019,
section 2 and the data set's README. Columns: Path (`CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg`), Sex,
Age, Frontal/Lateral, AP/PA, No Finding, and 13 observations: 1 present, 0 absent, -1 uncertain, empty: not mentioned.

A film is abnormal if any observation other than Support Devices, which is no disease, is present; normal if No Finding
is 1 and none is uncertain; and of unknown label otherwise. `valid` is the test split where there is no `test.csv`, as
with MURA, since the test films came later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from preprocessing.sources.datasets.lookup import Lookup, number, rest_of, with_columns
from preprocessing.sources.listing import Listing
from preprocessing.sources.names import split_names, split_of
from preprocessing.sources.patients import identify
from preprocessing.sources.reading import Found
from preprocessing.sources.record import Record
from preprocessing.sources.tables import Table

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)


def chexpert_records(listing: Listing, tables: Mapping[str, Table]) -> Found | None:
    """Read CheXpert's label files; None where there are none."""
    chosen = with_columns(tables, ("Path", "No Finding", "Cardiomegaly", "Pleural Effusion"))
    if not chosen:
        return None
    lookup = Lookup(listing)
    names = {file: split_of(PurePosixPath(file).stem) or "" for file in chosen}
    splits = split_names({*names.values()})
    notes = []
    if "val" in splits and "test" not in splits:
        splits["val"] = "test"
        notes.append("valid is the test split, as there is no test.csv")
    records = {}
    for file, table in chosen.items():
        for line, row in table.dicts():
            film = lookup.by_path(row["Path"])
            if film is None:
                continue
            label, finding = _label(row, f"{table.where}, line {line}")
            who = identify(film)
            records[film] = Record(
                path=film,
                patient=who.patient,
                study=who.study,
                label=label,
                split=splits[names[file]],
                finding=finding,
                patient_known=who.known,
                columns=rest_of(row, ("Path",)),
            )
    unknown = sum(record.label < 0 for record in records.values())
    if unknown:
        notes.append(f"{unknown} of unknown label: uncertain, or nothing mentioned")
    return lookup.found("chexpert", records.values(), chosen, notes)


def _label(row: Mapping[str, str], where: str) -> tuple[int, str]:
    """Return label and finding of a line."""
    values = {name: number(row.get(name) or "0", where) for name in OBSERVATIONS}
    present = [name for name, value in values.items() if value == 1]
    if present:
        return 1, ", ".join(present)
    uncertain = any(value == -1 for value in values.values())
    return (0 if number(row["No Finding"] or "0", where) == 1 and not uncertain else -1), ""
