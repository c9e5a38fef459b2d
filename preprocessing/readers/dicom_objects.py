"""DICOM objects that are no films, by what their headers say, though some have pixels that could be read as one.

Segmentations, Parametric Maps, reports and the like are known by their SOP class (PS3.4 annex B.5), overlays of this
program by their maker (PS3.3 C.7.5.1) and derivation (C.7.6.1): scored, results would be taken for films of a patient.
Any other Secondary Capture is a film, such as a digitized one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER = "xray-anomaly"
"""Of every DICOM object that this program writes."""
OVERLAY = "xray-anomaly overlay"
LAST_TAG = 0x00082111
"""DerivationDescription: no later element is needed."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_OTHERS = {  # SOP classes, and beginnings of them, which end in a dot
    f"{_STORAGE}66.4": "Segmentation",
    f"{_STORAGE}66.7": "Segmentation",  # label map
    f"{_STORAGE}30": "Parametric Map",
    f"{_STORAGE}88.59": "Key Object Selection",
    f"{_STORAGE}88.": "Structured Report",
    f"{_STORAGE}11.": "Presentation State",
    f"{_STORAGE}104.": "Encapsulated Document",
}
_CLASS = re.compile(re.escape(_STORAGE).encode() + rb"[0-9.]+")


def other_object(dataset: Dataset) -> str | None:
    """Name what a DICOM object is that is no film, "Segmentation"; None for a film, and for what may be one."""
    if kind := _kind_of_class(str(dataset.get("SOPClassUID", ""))):
        return kind
    own = str(dataset.get("Manufacturer", "")) == MANUFACTURER
    return OVERLAY if own and "DerivationDescription" in dataset else None


def kind_in_head(head: bytes) -> str | None:
    """Name it by its SOP class alone, from the first bytes of its file after the preamble.

    The first class of storage in a file is its own: in the file meta information, else early in the data set.
    """
    found = _CLASS.search(head)
    return _kind_of_class(found[0].decode()) if found else None


def _kind_of_class(sop_class: str) -> str | None:
    for known, kind in _OTHERS.items():
        if sop_class == known or (known.endswith(".") and sop_class.startswith(known)):
            return kind
    return None
