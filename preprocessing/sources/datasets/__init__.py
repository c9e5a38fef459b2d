"""Public data sets by their label files: one small reader each, tried in this order on the tables of a source.

A reader takes the listing and its tables (file -> heading and lines) and returns what they say of the films, or None
where they are not those of its data set. Label files name the whole set: of films that are not there only the number is
said. Layouts that are told by folders alone, MURA, MVTec AD and BMAD, are read by `mura` and `class_folders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from preprocessing.sources.datasets.chexpert import chexpert_records
from preprocessing.sources.datasets.medianomaly import medianomaly_records
from preprocessing.sources.datasets.nih import nih_records
from preprocessing.sources.datasets.rsna import rsna_records
from preprocessing.sources.datasets.vindr import vindr_records
from preprocessing.sources.listing import Listing
from preprocessing.sources.reading import Found
from preprocessing.sources.tables import Table

DATASETS: Mapping[str, Callable[[Listing, Mapping[str, Table]], Found | None]] = {
    "chexpert": chexpert_records,
    "nih": nih_records,
    "rsna": rsna_records,
    "vindr": vindr_records,
    "medianomaly": medianomaly_records,
}
"""Name of a data set, which is the kind of its source -> its reader."""

_SIGNATURES = (
    {"Path", "No Finding", "Cardiomegaly"},
    {"Image Index", "Finding Labels"},
    {"patientId", "Target"},
    {"image_id", "class_name", "x_min"},
)


def is_label_file(table: Table) -> bool:
    """Whether a table may be the label file of one of the data sets."""
    return any(signature <= {*table.columns} for signature in _SIGNATURES)
