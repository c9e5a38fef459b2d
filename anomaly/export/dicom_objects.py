"""A detector's finding on a film as DICOM objects that a PACS stores beside it. Torch-free; needs highdicom."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anomaly.export.finding import Finding

if TYPE_CHECKING:
    from pydicom import Dataset

KINDS = ("sc", "seg", "pm", "sr")
"""Secondary Capture, Segmentation, Parametric Map, Structured Report: in this order, as the report refers to the SEG."""


def dicom_results(source: "Dataset", finding: Finding, kinds: Sequence[str] = KINDS) -> "list[Dataset]":
    """Return the DICOM objects of a finding, in the order of `KINDS`; a SEG only where an area lies above the scale.

    source  the film's dataset; its pixels are not read.    kinds  which of `KINDS`.
    Each is ready for `save_as(..., enforce_file_format=True)`. Raises InputError where the source names no study,
    series and instance, is of another size than the map, or highdicom is not installed.
    """
    raise NotImplementedError
