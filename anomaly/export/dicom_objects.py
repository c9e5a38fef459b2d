"""A detector's finding on a film as DICOM objects that a PACS stores beside it. Torch-free; needs highdicom.

Everything but the dates is a function of source and finding: the same two give the same bytes.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from anomaly.export.dicom_faults import film_fault
from anomaly.export.dicom_images import secondary_capture, segmentation
from anomaly.export.dicom_map import parametric_map
from anomaly.export.dicom_report import structured_report
from anomaly.export.dicom_source import correct_references, source_header
from anomaly.export.finding import Finding
from preprocessing import InputError
from preprocessing.readers.film import quiet

if TYPE_CHECKING:
    from pydicom import Dataset

KINDS = ("sc", "seg", "pm", "sr")
"""Secondary Capture, Segmentation, Parametric Map, Structured Report: in this order, as the report names the SEG."""

_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.7": "sc",
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.30": "pm",
    "1.2.840.10008.5.1.4.1.1.88.33": "sr",
}


@film_fault("making them")
def dicom_results(source: "Dataset", finding: Finding, kinds: Sequence[str] = KINDS) -> "list[Dataset]":
    """Return the DICOM objects of a finding, in the order of `KINDS`; `kind_of` tells which is which.

    source  the film's dataset; its pixels are not read.    kinds  which of `KINDS`. There is no "seg" where no pixel of
    the map reaches the scale; without it the report speaks of the film alone.

    Each is ready for `save_as(..., enforce_file_format=True)`. Raises InputError where the source names no study,
    series and instance, is of another size than the map, or highdicom is not installed; and for whatever highdicom and
    pydicom refuse.
    """
    check_highdicom()
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"no kind {unknown[0]!r} of DICOM object; there are: {', '.join(KINDS)}")
    header = source_header(source)
    size = header.dataset.Rows, header.dataset.Columns
    if not size == finding.film.shape == finding.map.shape == finding.mask.shape:
        raise InputError(
            f"the film has {size[0]} x {size[1]} pixels and its map {finding.map.shape[0]} x {finding.map.shape[1]}: "
            "DICOM objects need the map on the original film"
        )
    made: dict[str, Dataset | None] = {}
    with quiet:  # highdicom warns of names without a caret, and of what the source left empty
        if "sc" in kinds:
            made["sc"] = secondary_capture(header, finding)
        if "seg" in kinds:
            made["seg"] = segmentation(header, finding)
        if "pm" in kinds:
            made["pm"] = parametric_map(header, finding)
        if "sr" in kinds:
            made["sr"] = structured_report(header, finding, made.get("seg"))
    results = [result for result in made.values() if result is not None]
    for result in results:
        correct_references(result, header)
    return results


def kind_of(result: "Dataset") -> str:
    """Return which of `KINDS` a DICOM object is."""
    return _CLASSES[str(result.SOPClassUID)]


def check_highdicom() -> None:
    """Raise InputError where highdicom is not installed."""
    if find_spec("highdicom") is None:
        raise InputError("DICOM objects need highdicom; install it with `pip install 'xray-anomaly[dicom]'`")


@film_fault("writing them")
def dicom_bytes(result: "Dataset") -> bytes:
    """Return a DICOM object as the bytes of a file; raises InputError where pydicom can't write it."""
    from io import BytesIO

    data = BytesIO()
    with quiet:
        result.save_as(data, enforce_file_format=True)
    return data.getvalue()
