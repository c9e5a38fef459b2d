"""What a DICOM header says beside the pixels: numbers, geometry, polarity, and the patient and view without names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_TAGS = (
    *("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "PatientSex", "PatientAge"),
    *("Modality", "Manufacturer", "ManufacturerModelName", "InstitutionName"),
    *("BodyPartExamined", "Laterality", "ImageLaterality", "ViewPosition"),
)
"""No names, birth dates or dates: nothing is needed of them."""
_LONGEST = 64  # of LO, the longest of these representations: PS3.5 6.2

# Of equal worth here: distance at the patient, at the detector, on the scanned film. C.7.6.2, C.8.11.4, C.8.6.1.
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_MM = (0.005, 10.0)  # real files give metres, or zeros
_RATIO = (0.1, 10.0)


def present(dataset: Any, keyword: str) -> list[Any]:
    """Give an attribute's values; [] where it is absent, empty, or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts only now; what is no number or text says nothing
        return []
    if value is None or value == "":
        return []
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [item for item in value if item is not None and item != ""]
    return [value]


def number(dataset: Any, keyword: str) -> float | None:
    """Give an attribute's first value as a finite number; None where it is absent or empty."""
    for value in present(dataset, keyword)[:1]:
        try:
            converted = float(value)
        except (TypeError, ValueError):
            return None
        return converted if math.isfinite(converted) else None
    return None


def numbers(dataset: Any, keyword: str) -> list[float]:
    """Give all values of an attribute as finite numbers; [] where it is absent or one of them is no number."""
    try:
        values = [float(value) for value in present(dataset, keyword)]
    except (TypeError, ValueError):
        return []
    return values if all(math.isfinite(value) for value in values) else []


def text(dataset: Any, keyword: str) -> str:
    """Give an attribute as one line of text; "" where it is absent."""
    joined = "\\".join(str(value).strip() for value in present(dataset, keyword))
    printable = "".join(letter if letter.isprintable() else " " for letter in joined)
    return " ".join(printable.split())[:_LONGEST]


def tags(dataset: Any) -> dict[str, str]:
    """Give what `Film.tags` holds: those of `_TAGS` that are not empty."""
    return {keyword: value for keyword in _TAGS if (value := text(dataset, keyword))}


def geometry(dataset: Any) -> tuple[float, tuple[float, float] | None]:
    """Give a pixel's height divided by its width, and the spacing of rows and columns in mm or None.

    Spacing goes before PixelAspectRatio, C.7.6.3.1.7: that one stands only where there is no spacing. What is absurd
    counts as absent, but the ratio of two numbers in a wrong unit is right.
    """
    for keyword in _SPACINGS:
        spacing = numbers(dataset, keyword)
        if len(spacing) == 2 and min(spacing) > 0 and _RATIO[0] < spacing[0] / spacing[1] < _RATIO[1]:
            in_mm = _MM[0] < min(spacing) and max(spacing) < _MM[1]
            return spacing[0] / spacing[1], (spacing[0], spacing[1]) if in_mm else None
    ratio = numbers(dataset, "PixelAspectRatio")
    if len(ratio) == 2 and min(ratio) > 0 and _RATIO[0] < ratio[0] / ratio[1] < _RATIO[1]:
        return ratio[0] / ratio[1], None
    return 1.0, None


def polarity_known(dataset: Any, photometric: str) -> bool:
    """Whether the header says which end is black, and does not contradict itself: C.7.6.3.1.2 and C.7.6.1."""
    shape = text(dataset, "PresentationLUTShape").upper()
    expected = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}.get(photometric)
    return expected is not None and shape in ("", expected)


def transfer_syntax(dataset: Any) -> Any:
    """Give the transfer syntax that the file meta information names, a pydicom UID, or None."""
    meta = getattr(dataset, "file_meta", None)
    syntax = None if meta is None else meta.get("TransferSyntaxUID")
    return syntax or None


def is_little_endian(dataset: Any) -> bool:
    """By the transfer syntax; where none is named, as pydicom found the data set while reading it."""
    syntax = transfer_syntax(dataset)
    if syntax is not None and not syntax.is_private and syntax.is_transfer_syntax:
        return bool(syntax.is_little_endian)
    return dataset.original_encoding[1] is not False
