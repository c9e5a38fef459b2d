"""identity.json: whose a DICOM film is, as the worklist shows it. It lies beside a result, and is no part of it.

Written by the worker, as the process of the service decodes nothing, and shown on the worklist's page alone: neither
the answers nor the archive of results nor the audit log has it. It goes when the film does.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from anomaly.runs import Record, to_json, write_atomic
from preprocessing import InputError
from preprocessing.readers import read_dicom_header, recognize
from preprocessing.readers.dicom_header import text

if TYPE_CHECKING:
    from pydicom import Dataset

FILE = "identity.json"
HEAD_BYTES = 2**16
"""So many bytes have a header, as a rule; what could not be scored may be a bomb, and is unpacked no further."""
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")  # PS3.5 6.2; older files have dots


class Identity(Record):
    """What the header of a DICOM film says: each as it is written there, on one line, "" where it says nothing."""

    patient_id: str = ""
    patient_name: str = ""
    study_date: str = ""
    """YYYY-MM-DD, where it is a date."""
    accession_number: str = ""
    study: str = ""
    """StudyDescription; where it and the date are missing, the StudyInstanceUID."""

    def lines(self) -> list[str]:
        """Return what is known, in words: "patient Doe Jane (4711)", "study of 2026-11-26", "accession A-17"."""
        patient = " ".join(filter(None, [self.patient_name, f"({self.patient_id})" if self.patient_id else ""]))
        dated = f" of {self.study_date}" if self.study_date else ""
        study = f"study{dated}{': ' if self.study else ''}{self.study}"
        return [
            *([f"patient {patient}"] if patient else []),
            *([study] if dated or self.study else []),
            *([f"accession {self.accession_number}"] if self.accession_number else []),
        ]


def write_identity(film: Path, folder: Path, *, whole: bool) -> None:
    """Write what a film's header says beside its result; nothing, where it is no DICOM film or says nothing.

    whole  whether all of it may be read, where the first bytes are not enough: of a film that could be scored.
    """
    header = _header(film, whole=whole)
    if header is None:
        return
    date = text(header, "StudyDate")
    identity = Identity(
        patient_id=text(header, "PatientID"),
        patient_name=" ".join(re.split(r"[\^=\s]+", text(header, "PatientName"))).strip(),
        study_date="-".join(found.groups()) if (found := _DATE.fullmatch(date)) else date,
        accession_number=text(header, "AccessionNumber"),
        study=text(header, "StudyDescription") or ("" if date else text(header, "StudyInstanceUID")),
    )
    if identity != Identity():
        write_atomic(folder / FILE, to_json(identity.model_dump(mode="json")))


def _header(film: Path, *, whole: bool) -> "Dataset | None":
    with film.open("rb") as file:
        data = file.read(HEAD_BYTES)
        if recognize(data) != "DICOM":  # not to be read whole for a header that it does not have
            return None
        for rest in (False, whole):
            data += file.read() if rest else b""
            with suppress(InputError):  # it is longer, packed, or damaged, which the film's result says
                return read_dicom_header("the film", data)
    return None


def read_identity(folder: Path) -> Identity:
    """Return what was written of a film; nothing known where there is none."""
    try:
        return Identity.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return Identity()
