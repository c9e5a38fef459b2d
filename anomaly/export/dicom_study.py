"""A film that was no DICOM as a Secondary Capture of a study of its own, so that results have something to refer to."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from anomaly.export.dicom_faults import film_fault
from anomaly.export.dicom_identity import SERIES_NUMBERS, decimal, derived_uid
from anomaly.export.finding import MANUFACTURER

if TYPE_CHECKING:
    from pydicom import Dataset

_LONGEST = 64  # of a patient's ID, value representation LO


@dataclass(frozen=True)
class LooseFilm:
    """A film without a study, and what its source says of it."""

    levels: NDArray[np.uint8] | NDArray[np.uint16]  # (H, W), larger is brighter
    depth: int  # significant bits, 8..16
    sha256: str  # of its file, 64 hex digits
    source: str  # name of the source, which keeps patients of the same name apart
    patient: str  # "" where the source does not say
    study: str
    spacing: tuple[float, float] | None = None  # mm between the centers of rows, of columns
    aspect: tuple[int, int] | None = None  # height to width of a pixel, where it is no square


@film_fault("making a study of it")
def film_as_study(film: LooseFilm, created: datetime) -> "Dataset":
    """Return the film as a grey Secondary Capture, whole, with UIDs derived from its bytes or its patient's study.

    The patient's ID is that of the source; where that says none, it is made of the film's hash. Name, dates and
    orientation are not known, and so empty.
    """
    from highdicom.sc import SCImage

    known = bool(film.patient)
    patient = film.patient[:_LONGEST] if known else f"film-{film.sha256[:16]}"
    owner = (film.source, film.patient, film.study) if known else (film.sha256,)
    bits = 8 if film.levels.dtype == np.uint8 else 16
    result: Any = SCImage(
        pixel_array=film.levels,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=bits,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # the constructor wants one; it is not known, and emptied below
        study_instance_uid=derived_uid("study", *owner),
        series_instance_uid=derived_uid("series", film.sha256),
        series_number=SERIES_NUMBERS["film"],
        sop_instance_uid=derived_uid("film", film.sha256),
        instance_number=1,
        manufacturer=MANUFACTURER,
        patient_id=patient,
        patient_name="",
        specific_character_set=None if patient.isascii() else "ISO_IR 192",
    )
    result.PatientOrientation, result.Laterality = None, ""
    result.ConversionType = "WSD"  # workstation
    result.SeriesDescription = "Film that was no DICOM"
    date, time = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    result.InstanceCreationDate = result.ContentDate = result.DateOfSecondaryCapture = date
    result.InstanceCreationTime = result.ContentTime = result.TimeOfSecondaryCapture = time
    if bits == 16:
        result.BitsStored, result.HighBit = film.depth, film.depth - 1
        low, high = int(film.levels.min()), int(film.levels.max())
        result.WindowCenter, result.WindowWidth = decimal((low + high + 1) / 2), decimal(max(1, high - low + 1))
    if film.spacing is not None:
        result.PixelSpacing = [decimal(value) for value in film.spacing]
    elif film.aspect is not None:
        result.PixelAspectRatio = list(film.aspect)
    return cast("Dataset", result)
