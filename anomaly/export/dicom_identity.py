"""UIDs, dates, device and codes of DICOM results: what all kinds of them have alike."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from anomaly.evaluation.heatmap_scale import QUANTILE
from anomaly.export.dicom_source import SourceHeader
from anomaly.export.finding import MANUFACTURER, UNLIKE, Finding, SoftwareDevice

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.sr.coding import Code

SCHEME = "99XRAYANOMALY"
"""Designator of the private codes, for what no standard scheme has a term: PS3.16 section 8.2."""
SERIES_NUMBERS = {"sc": 9001, "seg": 9002, "pm": 9003, "sr": 9004, "film": 9000}
NOT_A_DEVICE = "NOT A MEDICAL DEVICE"

_NAMESPACE = uuid.UUID("7d0a4bd7-54c5-4b9a-9d0f-6f2b7a9c3e51")
"""Of the names that UIDs are made of; another one would make others of all."""


def derived_uid(*parts: object) -> str:
    """Return a UID made of a name: 2.25. and a name-based UUID (version 5, RFC 9562) as an integer, PS3.5 annex B.2.

    >>> derived_uid("1.2.3", "sc") == derived_uid("1.2.3", "sc") != derived_uid("1.2.3", "seg")
    True
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, parts))).int}"


def series_uid(header: SourceHeader, finding: Finding, kind: str) -> str:
    """Return the UID of the series that a kind of results of one film and one detector makes."""
    device = finding.device
    return derived_uid(header.instance_uid, device.digest, device.version, kind)


def instance_uid(header: SourceHeader, finding: Finding, kind: str) -> str:
    """Return the UID of one result: those of two hands on one film differ."""
    return derived_uid(series_uid(header, finding, kind), finding.hand)


def identifiers(header: SourceHeader, finding: Finding, kind: str) -> dict[str, Any]:
    """Return what a constructor of highdicom wants to know of series and instance."""
    return {
        "series_instance_uid": series_uid(header, finding, kind),
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": instance_uid(header, finding, kind),
        "instance_number": max(1, finding.hand),
    }


def patient_and_study(header: SourceHeader) -> dict[str, Any]:
    """Return what a constructor of highdicom wants to know of patient and study."""
    source = header.dataset
    return {
        "study_instance_uid": source.StudyInstanceUID,
        "patient_id": source.PatientID,
        "patient_name": source.PatientName,
        "patient_birth_date": source.PatientBirthDate,
        "patient_sex": source.PatientSex,
        "accession_number": source.AccessionNumber,
        "study_id": source.StudyID,
        "study_date": source.StudyDate or None,
        "study_time": source.StudyTime or None,
        "referring_physician_name": source.ReferringPhysicianName,
    }


def equipment(device: SoftwareDevice) -> dict[str, Any]:
    """Return what the Enhanced General Equipment module says of the detector, PS3.3 C.7.5.2."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": plain_text(f"{MANUFACTURER} {device.model}"),
        "software_versions": plain_text(device.version or "unknown"),
        "device_serial_number": device.digest[:64],
    }


def code(value: str, meaning: str) -> "Code":
    """Return a private code."""
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, meaning)


def plain_text(text: str, longest: int = 64) -> str:
    """Return text of this program as every character set can hold it, no longer than its value representation.

    What is not ASCII, as a model that is not built in may name its unit, becomes a question mark.
    """
    cleaned = " ".join(text.replace("\\", "/").split()).encode("ascii", "replace").decode()
    return cleaned if len(cleaned) <= longest else f"{cleaned[: longest - 3]}..."


def stamp(result: "Dataset", header: SourceHeader, finding: Finding, kind: str) -> None:
    """Complete a result that highdicom made: character set, dates, orientation, side, body part.

    Nothing random or of now is left. highdicom does not name the character set, as it refuses legal ones.
    """
    if header.character_set:
        result.SpecificCharacterSet = list(header.character_set)
    moment = _moment(header, finding)
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    for keyword in ("ContentDate", "InstanceCreationDate", "DateOfSecondaryCapture"):
        if keyword in result:
            setattr(result, keyword, date)
    for keyword in ("ContentTime", "InstanceCreationTime", "TimeOfSecondaryCapture"):
        if keyword in result:
            setattr(result, keyword, time)
    for contributor in result.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in contributor:  # of the libraries, not of the source's device
            contributor.ContributionDateTime = date + time
    result.SeriesDescription = _SERIES[kind]
    for keyword in ("BodyPartExamined", "TimezoneOffsetFromUTC"):
        if keyword in header.dataset and (kind != "sr" or keyword != "BodyPartExamined"):
            result.add(header.dataset[keyword])
    if finding.out_of_domain and kind != "sr":
        result.ImageComments = f"The film is {UNLIKE}: score, flag, p-value and map mean nothing."  # C.7.6.1
    if kind != "sr":
        # The image says its side; only where it does not, and can have one, the series does, as empty: C.7.3.1.
        if header.laterality:
            result.ImageLaterality = header.laterality
        elif kind != "seg":
            result.Laterality = ""
        result.PatientOrientation = list(header.orientation) or None
    if kind != "sc":
        result.CodingSchemeIdentificationSequence = [
            item(CodingSchemeDesignator=SCHEME, CodingSchemeName="Codes of the program xray-anomaly")  # C.12.1
        ]
    if "DimensionOrganizationSequence" in result:
        _fix_dimensions(result, derived_uid(result.SOPInstanceUID, "dimensions"))


_SERIES = {
    "sc": f"Anomaly overlay ({NOT_A_DEVICE})",
    "seg": f"Anomaly segmentation ({NOT_A_DEVICE})",
    "pm": f"Anomaly map ({NOT_A_DEVICE})",
    "sr": f"Anomaly report ({NOT_A_DEVICE})",
}


def derive(result: "Dataset", header: SourceHeader, finding: Finding, how: str) -> None:
    """Say how an image was derived, and from which one: PS3.3 C.7.6.1.1.3, C.12.4."""
    device = finding.device
    result.DerivationDescription = plain_text(
        f"{NOT_A_DEVICE}. {MANUFACTURER} {device.model} {device.version}, run {device.run} {device.digest[:12]}: {how}"
        f"{f'; the film is {UNLIKE}' * bool(finding.out_of_domain)}",
        1024,
    )
    result.SourceImageSequence = [source_reference(header)]


def source_reference(header: SourceHeader) -> "Dataset":
    """Return the reference to the film that a result was made of, and for what purpose: PS3.3 C.12.4."""
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    return item(
        ReferencedSOPClassUID=header.class_uid,
        ReferencedSOPInstanceUID=header.instance_uid,
        PurposeOfReferenceCodeSequence=[CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)],
    )


def rule_of(finding: Finding) -> str:
    """Say from where the map is above the normal range."""
    return f"map >= {finding.scale:.6g} {finding.unit}, the {QUANTILE:.1%} quantile of normal validation pixels"


def item(**attributes: Any) -> "Dataset":
    """Return an item of a sequence."""
    from pydicom import Dataset

    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def decimal(value: float) -> Any:
    """Return a number as a decimal string of at most 16 characters, PS3.5 section 6.2."""
    from pydicom.valuerep import DS

    return DS(value, auto_format=True)


def _moment(header: SourceHeader, finding: Finding) -> datetime:
    """Return when the result was made, in the zone of the film's own times where it names one, PS3.3 C.12.1."""
    offset = str(header.dataset.get("TimezoneOffsetFromUTC", ""))
    if not offset:
        return finding.created
    sign = -1 if offset[0] == "-" else 1
    digits = offset.lstrip("+-")
    zone = timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))
    return finding.created.astimezone(UTC).astimezone(zone)


def _fix_dimensions(result: "Dataset", uid: str) -> None:
    """Put a derived UID in place of highdicom's random one of the dimension organization."""
    for item in (*result.DimensionOrganizationSequence, *result.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = uid
