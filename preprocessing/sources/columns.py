"""Which column of a manifest says what: the one table of names that columns have.

Names are compared without regard to case, spaces, `_` and `-`. The column's own name comes first and settles the
matter; without it one of the others is taken. Where several say the same field, they must agree; a name that is nearly
one of these is refused, so that no field is lost to a slip.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocessing import InputError
from preprocessing.wording import squeezed


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALIASES: Mapping[str, tuple[str, ...]] = {
    "path": _names(
        "path filepath file filename imagepath image imagefile imagefilename imagename img imgpath imgname film "
        "filmpath relativepath dicompath dicomfile imageid imageindex"
    ),
    "label": _names("label class target y abnormal isabnormal anomalous isanomaly diagnosis classname labelname"),
    "patient": _names(
        "patient patientid patientno patientnr patientnumber patientuid patientkey patid patno patnr ptid ptno subject "
        "subjectid subjectno subjectnumber subj subjid participant participantid personid mrn medicalrecordnumber pid"
    ),
    "study": _names(
        "study studyid studyinstanceuid studyuid studyno studynumber exam examid examination examinationid accession "
        "accessionnumber accessionno session sessionid"
    ),
    "split": _names("split subset partition set"),
    "finding": _names("finding findings pathology"),
    "difficulty": ("difficulty",),
    "box": _names("box handbox regionbox"),
    "lesion_boxes": _names("lesionboxes lesionbox"),
    "mask": _names("mask foregroundmask handmask"),
    "anomaly_mask": _names("anomalymask lesionmask"),
}
"""Field of a record -> names of its column, squeezed, the most telling first."""

_ASKED = {
    **dict.fromkeys(("bbox", "bboxes", "boxes", "boundingbox", "boundingboxes", "bboxs"), ("box", "lesion_boxes")),
    **dict.fromkeys(("maskpath", "masks", "maskfile", "segmentation", "segmentationmask"), ("mask", "anomaly_mask")),
    **dict.fromkeys(("normal", "isnormal"), ("label",)),
    **dict.fromkeys(
        _names(
            "caseid caseno casenumber anonid anonymizedid anonymisedid pseudonym pseudonymid individual individualid "
            "clientid userid empi empianon paciente pacienteid idpaciente paziente pazienteid idpaziente pacjent "
            "pacjentid donor donorid volunteer volunteerid proband"
        ),
        ("patient",),
    ),
}
"""Names that could be either of some fields, and the fields."""

_FIELD_HELP = {
    "box": "box (the region to prepare, such as the hand)",
    "lesion_boxes": "lesion_boxes (lesions, `;` between)",
    "mask": "mask (the foreground)",
    "anomaly_mask": "anomaly_mask (the lesion)",
    "label": "label (0 normal, 1 abnormal)",
}
_ABOUT_PATIENTS = re.compile(
    "age|sex|gender|size|weight|height|birth|dob|orientation|position|comment|state|ethnic|race|history|class|group|count"
)
_ABOUT_OTHERS = re.compile("date|time|description|desc|type|size|format|width|height|depth|count|number|status|notes?$")
_LEAST_LIKE = 0.85


@dataclass(frozen=True)
class Columns:
    """Fields of a manifest.

    fields  field -> indices of its columns, the first of which is read, as the others say the same
    others  name and index of every other column that has a name
    """

    fields: Mapping[str, tuple[int, ...]]
    others: tuple[tuple[str, int], ...]
    names: tuple[str, ...]


def recognize_columns(heading: Sequence[str]) -> Columns:
    """Tell the columns of a manifest apart; raises `InputError` for near misses and for what could be two things."""
    keys = [squeezed(name) for name in heading]
    for key, times in Counter(key for key in keys if key).items():
        if times > 1:
            name = heading[keys.index(key)].strip().lower()
            raise InputError(f"column {name!r} occurs {times} times; name each once")
    fields = {}
    for field, aliases in ALIASES.items():
        own = squeezed(field)
        present = [keys.index(alias) for alias in aliases if alias in keys and not (alias == "y" and "x" in keys)]
        if field in ("label", "path", "split", "finding", "box", "lesion_boxes", "mask", "anomaly_mask"):
            # Beside the column of the field's own name, the others are about something else.
            present = [keys.index(own)] if own in keys else present
        if present:
            fields[field] = tuple(present)
    used = {index for indices in fields.values() for index in indices}
    rest = [(name, index) for index, name in enumerate(heading) if name and index not in used]
    for name, _ in rest:
        _refuse_doubtful(name, fields)
    if "path" in fields:
        fields["path"] = _one("path", fields["path"], heading)
    if "label" in fields:
        fields["label"] = _one("label", fields["label"], heading)
    return Columns(fields, tuple(rest), tuple(heading))


def _one(field: str, indices: tuple[int, ...], heading: Sequence[str]) -> tuple[int, ...]:
    """Refuse several columns for a field that is read from one; `imageid` and `imageindex` only stand in for paths."""
    weak = {"imageid", "imageindex", "img", "image", "imagename", "diagnosis"}
    strong = [index for index in indices if squeezed(heading[index]) not in weak] or list(indices)
    if len(strong) > 1:
        names = " and ".join(repr(heading[index]) for index in strong)
        raise InputError(f"columns {names}: which is the {field}? call that one {field!r}")
    return (strong[0],)


def _refuse_doubtful(name: str, fields: Mapping[str, object]) -> None:
    """Refuse a column that may be meant for a field that no other column fills."""
    key = squeezed(name)
    if (meant := _ASKED.get(key)) and not any(field in fields for field in meant):
        fields_meant = " or ".join(_FIELD_HELP.get(field, field) for field in meant)
        raise InputError(f"column {name!r}: did you mean {fields_meant}? rename it, or leave it out")
    if re.search("patient|subject", key) and not _ABOUT_PATIENTS.search(key) and "patient" not in fields:
        raise InputError(f"column {name!r}: did you mean patient? rename it, or leave it out")
    if len(key) < 4 or _ABOUT_OTHERS.search(key) or re.search("patient|subject", key):
        return
    for field, aliases in ALIASES.items():
        if field not in fields and difflib.get_close_matches(key, aliases, n=1, cutoff=_LEAST_LIKE):
            raise InputError(f"column {name!r}: did you mean {field}? rename it, or leave it out")
