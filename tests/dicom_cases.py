"""Source films and findings for the tests of DICOM objects: headers as broken as real ones are."""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from anomaly.export.finding import Finding, SoftwareDevice

DCIODVFY = shutil.which("dciodvfy")
"""Debian's dicom3tools."""
STORESCU = shutil.which("storescu")
"""Debian's dcmtk."""
HEIGHT, WIDTH = 40, 56

CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "CT": "1.2.840.10008.5.1.4.1.1.2",  # highdicom wants a frame of reference of these
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "SC of frames": "1.2.840.10008.5.1.4.1.1.7.2",  # and functional groups of these
    "XA of frames": "1.2.840.10008.5.1.4.1.1.12.1.1",
    "private": "1.2.826.0.1.3680043.8.498.1.2",
}
NAMES = {
    "": ("Roe^Jane", "Ward^"),
    "ISO_IR 100": ("Müller^Jörg", "Nuñez^"),
    "ISO_IR 144": ("Люкceмбypг^Иван", "Петров^"),
    "ISO 2022 IR 6\\ISO 2022 IR 87": ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Sato^=佐藤^"),
    "ISO_IR 192": ("Wang^XiaoDong=王^小东", "Ωμέγα^"),
}
"""Character set -> a patient's name and a physician's."""
VALID: dict[str, Any] = {
    "PatientID": "4711",
    "PatientBirthDate": "19700131",
    "PatientSex": "F",
    "PatientAge": "054Y",
    "PatientWeight": "61.5",
    "IssuerOfPatientID": "Ward 3",
    "StudyDate": "20240229",
    "StudyTime": "235959",
    "StudyID": "S1",
    "AccessionNumber": "A-17",
    "StudyDescription": "Hand",
    "BodyPartExamined": "HAND",
    "Laterality": "L",
    "ImageLaterality": "L",
    "PatientOrientation": ["L", "F"],
    "PixelSpacing": ["0.2", "0.1"],
    "ImagerPixelSpacing": ["0.15", "0.15"],
    "PixelAspectRatio": ["2", "1"],
    "Manufacturer": "Roentgen & Sons",
    "LossyImageCompression": "01",
    "LossyImageCompressionRatio": ["10.5"],
    "LossyImageCompressionMethod": ["ISO_10918_1"],
    "TimezoneOffsetFromUTC": "+0530",
    "PatientIdentityRemoved": "NO",
    "RecognizableVisualFeatures": "NO",
}
INVALID: dict[str, Any] = {
    "PatientBirthDate": "31.01.1970",
    "PatientSex": "female",
    "PatientAge": "54",
    "PatientWeight": "sixty",
    "StudyDate": "20240230",
    "StudyTime": "25:61",
    "AccessionNumber": "longer than sixteen characters",
    "BodyPartExamined": "Left hand, 2 views",
    "Laterality": "left",
    "ImageLaterality": "?",
    "PatientOrientation": ["L", "R"],
    "PixelSpacing": ["0", "0"],
    "PixelAspectRatio": ["0", "1"],
    "TimezoneOffsetFromUTC": "CET",
    "PatientIdentityRemoved": "YES",  # valid, but then it must be said how
}


def source_film(kind: str = "CR", charset: str = "", **values: Any) -> Dataset:
    """A film's header, as it would be read from a file: what is not named in `values` is not there."""
    film = Dataset()
    film.SOPClassUID = CLASSES[kind]
    film.SOPInstanceUID, film.StudyInstanceUID, film.SeriesInstanceUID = "1.2.3.4", "1.2.3", "1.2.3.5"
    film.Modality = "CR"
    film.Rows, film.Columns = HEIGHT, WIDTH
    if charset:
        film.SpecificCharacterSet = charset.split("\\")
    for keyword, value in values.items():
        tag, vr = Tag(keyword), dictionary_VR(keyword)
        if keyword in INVALID and value == INVALID[keyword]:  # as from a file: converted when it is looked at
            raw = "\\".join([value] if isinstance(value, str) else value).encode()
            film[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True, True)
        else:
            film.add(DataElement(tag, vr, value))
    return film


@st.composite
def source_films(draw: st.DrawFn) -> Dataset:
    """Films of any class and character set, with any attributes missing, empty or invalid."""
    charset = draw(st.sampled_from(sorted(NAMES)))
    values: dict[str, Any] = {}
    for keyword, valid in VALID.items():
        state = draw(st.sampled_from(["valid", "missing", "missing", "empty", "invalid"]))
        if state == "invalid" and keyword in INVALID:
            values[keyword] = INVALID[keyword]
        elif state == "empty":
            values[keyword] = None
        elif state != "missing":
            values[keyword] = valid
    if draw(st.booleans()):
        values["PatientName"], values["ReferringPhysicianName"] = NAMES[charset]
    return source_film(draw(st.sampled_from(sorted(CLASSES))), charset, **values)


def finding(*, height: int = HEIGHT, width: int = WIDTH, **changes: Any) -> Finding:
    """A finding with one hot spot, half of which lies above the scale."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot((rows - height * 0.4) / height, (columns - width * 0.6) / width)
    mask = np.ones((height, width), np.bool_)
    mask[:, :2] = False
    values: dict[str, Any] = {
        "film": ((rows + columns) / (height + width)).astype(np.float32),
        "map": (0.02 * np.exp(-((distance / 0.2) ** 2)) * mask).astype(np.float32),
        "mask": mask,
        "scale": 0.01,
        "unit": "squared error",
        "score_name": "mse",
        "scores": {"mse": 1 / 3, "ssim": 0.25},
        "threshold": 0.3,
        "device": SoftwareDevice("cae", "0.1.0", "cae-1", "ab" * 32, {"variant": "crop", "size": "64 px"}),
        "created": datetime(2026, 2, 28, 23, 30, 5, tzinfo=UTC),
        "p_value": 1 / 7,
        "p_interval": (0.01, 0.3),
    }
    return Finding(**(values | changes))


def errors_of(file: Path) -> list[str]:
    """What dciodvfy, of dicom3tools, calls errors in a file."""
    assert DCIODVFY is not None
    done = subprocess.run([DCIODVFY, str(file)], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
