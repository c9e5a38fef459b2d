"""What DICOM results take over from their source film: patient, study, reference, geometry, orientation, side.

Real films break the standard: anonymization drops attributes of type 2, archives hold free text where terms are
defined. Here every value is checked against its value representation (PS3.5 section 6.2) and, where the standard
enumerates values, against those. What is missing or invalid becomes empty where the standard wants the attribute, else
it is left out; `SourceHeader.notes` says which values were not taken over, never what they were.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly.export.dicom_faults import film_fault
from anomaly.export.dicom_text import TEXT, character_set, clean_text, reread, written_set
from preprocessing import InputError
from preprocessing.readers.dicom_header import number, numbers, present
from preprocessing.readers.film import quiet

if TYPE_CHECKING:
    from pydicom import Dataset

# Type 2, PS3.3 C.7.1.1 and C.7.2.1: in every object, empty where they are not known.
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
# Type 3 of the Patient, General Study, Patient Study, General Series and SOP Common modules, and of the equipment.
_OPTIONAL = (
    *("IssuerOfPatientID", "PatientBirthTime", "EthnicGroup", "PatientComments", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight", "BodyPartExamined"),
    *("TimezoneOffsetFromUTC", "RecognizableVisualFeatures"),
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "InstitutionName"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_ENUMERATED = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "RecognizableVisualFeatures": ("YES", "NO"),
    "LossyImageCompression": ("00", "01"),
}
_REFERENCE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_SPACING_TEXT = ("PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription")
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
"""Directions of a biped and what they exclude, PS3.3 C.7.6.1.1.1."""
_UNPAIRED = """
    ABDOMEN ABDOMENPELVIS AORTA BACK BLADDER BRAIN CEREBELLUM CERVIX CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS
    COCCYX COLON CORONARYARTERY CSPINE CTSPINE DUODENUM ESOPHAGUS FACE GALLBLADDER HEAD HEADNECK HEART ILEUM ILIUM JAW
    JEJUNUM LARYNX LIVER LSPINE LSSPINE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE
    PANCREAS PELVIS PENIS PHARYNX PROSTATE RECTUM SCALP SKULL SPINE SPLEEN SSPINE STERNUM STOMACH THYMUS THYROID TLSPINE
    TONGUE TRACHEA TSPINE URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY
"""
"""Body parts that have no side, PS3.16 annex L."""
_OFFSET = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_CLASS_FOR_HIGHDICOM = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography: one frame, no frame of reference


@dataclass(frozen=True)
class SourceHeader:
    """The source film as its results refer to it."""

    dataset: "Dataset"
    """Patient, study, equipment, reference and size, values that are missing or invalid in the source empty.

    Its class is always Computed Radiography, as highdicom expects frames of reference and functional groups of others,
    which a film does not need; `class_uid` is the true one, to which references are corrected afterwards.
    """
    class_uid: str
    orientation: tuple[str, ...]  # of rows and columns, as ("L", "F"); () unknown
    laterality: str  # of what the film shows: "R", "L", "B" both, "U" unpaired, "" unknown
    spacing: dict[str, tuple[float, float]]  # keyword -> mm between the centers of rows, of columns
    spacing_text: dict[str, str]  # how PixelSpacing was calibrated
    aspect: tuple[int, int] | None  # PixelAspectRatio, where there is no spacing
    character_set: tuple[str, ...]  # terms of the one that all this text is written in; () ASCII
    notes: tuple[str, ...]  # what was not taken over, a sentence each

    @property
    def instance_uid(self) -> str:
        """The SOP instance UID of the film."""
        return str(self.dataset.SOPInstanceUID)

    @property
    def pixel_area(self) -> float | None:
        """In mm², by the calibrated spacing; None where there is only that at the detector, or none."""
        spacing = self.spacing.get("PixelSpacing")
        return spacing[0] * spacing[1] if spacing else None


@film_fault("reading its header")
def source_header(source: "Dataset") -> SourceHeader:
    """Return what results take over from a film.

    source  its dataset; pixels are not read. Raises InputError where it lacks what a reference needs: class and UIDs of
    its instance, its study and its series.
    """
    with quiet:  # pydicom warns of every invalid value it converts
        return _header(source)


def _header(source: "Dataset") -> SourceHeader:
    from pydicom import Dataset

    header, notes = Dataset(), []
    for keyword in _REFERENCE:
        if not _take(header, source, keyword):
            raise InputError(f"no valid {keyword}: results could not refer to it")
    class_uid, header.SOPClassUID = str(header.SOPClassUID), _CLASS_FOR_HIGHDICOM
    size = [number(source, keyword) for keyword in ("Rows", "Columns")]
    if None in size:
        raise InputError("no Rows and Columns: it is no image")
    header.Rows, header.Columns = (int(side) for side in size if side is not None)
    header.Modality = "CR"  # read by highdicom, not written
    keywords = (*_REQUIRED, *_OPTIONAL, *_SPACING_TEXT)
    charset = character_set(source, keywords)
    read, texts, rejected = reread(source, keywords, charset), Dataset(), []
    for keyword in (*_REQUIRED, *_OPTIONAL):
        if not _take(header, read, keyword):
            if keyword in _REQUIRED:
                setattr(header, keyword, "" if keyword not in ("PatientName", "ReferringPhysicianName") else None)
            if present(read, keyword):
                rejected.append(keyword)
    if rejected:
        notes.append(f"not valid in the film, so left empty in its results: {', '.join(rejected)}")
    notes += [*charset.notes, *_complete(header)]
    orientation = _orientation(source)
    if present(source, "PatientOrientation") and not orientation:
        notes.append("its PatientOrientation is not a biped's pair of directions and was left empty")
    spacing = {keyword: pair for keyword in _SPACINGS if (pair := _spacing(source, keyword))}
    if "PixelSpacing" in spacing:
        header.PixelSpacing = [float(f"{value:.8g}") for value in spacing["PixelSpacing"]]
        for keyword in _SPACING_TEXT:
            _take(texts, read, keyword)
    terms, note = written_set([*header, *texts], charset)
    notes += [note] if note else []
    return SourceHeader(
        header,
        class_uid,
        orientation,
        _laterality(source),
        spacing,
        {element.keyword: str(element.value) for element in texts},
        None if spacing else _aspect(source),
        terms,
        tuple(notes),
    )


def _take(header: "Dataset", source: "Dataset", keyword: str) -> bool:
    """Copy an attribute that has a valid value; whether it has."""
    from pydicom import DataElement, config
    from pydicom.datadict import dictionary_VM, dictionary_VR
    from pydicom.valuerep import DA, TM

    values = present(source, keyword)
    if not values or (len(values) > 1 and dictionary_VM(keyword) == "1"):
        return False
    if keyword in _ENUMERATED and values[0] not in _ENUMERATED[keyword]:
        return False
    if keyword == "TimezoneOffsetFromUTC" and not _OFFSET.fullmatch(str(values[0])):
        return False
    vr = dictionary_VR(keyword)
    try:
        value = source[keyword].value
        if vr in TEXT:
            texts = [clean_text(str(one)) for one in values]
            if None in texts:
                return False
            value = texts if len(texts) > 1 else texts[0]
        element = DataElement(keyword, vr, value, validation_mode=config.RAISE)
        if vr in ("DA", "TM"):  # `20040231` has the right form and is no date
            {"DA": DA, "TM": TM}[vr](str(values[0]))
    except Exception:  # pydicom raises whatever the conversion of a value does
        return False
    header.add(element)
    return True


def _complete(header: "Dataset") -> list[str]:
    """Set what the standard wants beside what was copied; say so."""
    notes = []
    if header.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in header:
        header.DeidentificationMethod = "NOT STATED BY THE SOURCE"  # type 1C, PS3.3 C.7.1.1
        notes.append("the film does not say how it was de-identified; its results say that it does not")
    return notes


def _orientation(source: "Dataset") -> tuple[str, ...]:
    """Return the directions of rows and columns, each of one to three letters, by falling weight; () unknown."""
    values = [str(value) for value in present(source, "PatientOrientation")]
    quadruped = present(source, "AnatomicalOrientationType") == ["QUADRUPED"]
    if len(values) != 2 or quadruped or not all(_direction(value) for value in values):
        return ()
    row, column = ({*value} for value in values)
    # The first letters must differ in axis; a column may lean along the row's minor axis.
    return () if values[0][0] in (values[1][0], _OPPOSITE[values[1][0]]) or row == column else tuple(values)


def _direction(value: str) -> bool:
    letters = set(value)
    known = letters <= set(_OPPOSITE) and len(letters) == len(value) <= 3
    return bool(value) and known and not any(_OPPOSITE[letter] in letters for letter in letters)


def _laterality(source: "Dataset") -> str:
    """Return the side by ImageLaterality, else by the series' Laterality, else by the body part: C.7.6.1, C.7.3.1."""
    for keyword, known in (("ImageLaterality", ("R", "L", "U", "B")), ("Laterality", ("R", "L"))):
        if (values := present(source, keyword)) and values[0] in known:
            return str(values[0])
    part = present(source, "BodyPartExamined")
    return "U" if part and part[0] in _UNPAIRED.split() else ""


def _spacing(source: "Dataset", keyword: str) -> tuple[float, float] | None:
    values = numbers(source, keyword)
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def _aspect(source: "Dataset") -> tuple[int, int] | None:
    values = [int(value) for value in numbers(source, "PixelAspectRatio")]
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 and values[0] != values[1] else None


def correct_references(result: "Dataset", header: SourceHeader) -> None:
    """Give references to the source, wherever they stand in a result, its true class."""
    from pydicom import DataElement

    def correct(dataset: Any, element: DataElement) -> None:
        if element.keyword == "ReferencedSOPInstanceUID" and element.value == header.instance_uid:
            dataset.ReferencedSOPClassUID = header.class_uid

    result.walk(correct)
