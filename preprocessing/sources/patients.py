"""Who is a patient: what paths, names of columns and headers say of the person that a film is of.

Paths, in this order; only the whole words are looked for:

patient00001/study1/  a folder or a file name that begins with `patient<digits>` or `subject<digits>`, also with a
                      space, `_` or `-` before the digits, as in MURA and CheXpert.
sub-01/ses-02/        BIDS (Gorgolewski et al. 2016; specification, "Entities"): folders, or file names that begin so.
p10000032/s50414267/  MIMIC-CXR: subject and study folders of eight digits.
00000001_000.png      NIH ChestX-ray14: patient and follow-up number. Only where nearly all film names are of this kind.
0001_1297860395_01_WRI-L1_M014.png   GRAZPEDWRI-DX: patient, time and study number. Only where nearly all are.
ID/20210304/          a folder of a date (YYYYMMDD or YYYY-MM-DD) in one of a patient. Only where nearly all films lie
                      so, below several folders which have digits in their names, or of which there are at least 10.

Otherwise a film stands for a patient of its own, and `Record.patient_known` is False.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocessing.sources.names import meaning, split_of, word_set
from preprocessing.wording import counted, squeezed

NEARLY_ALL = 0.95
"""A pattern of names that could be a coincidence counts where at least this share of the films has it."""

_MANY_FOLDERS = 10
_NAMED = re.compile(r"(?:^|/)((?:patient|subject)[ _-]?[0-9]+)(?:[/_-](study[ _-]?[0-9]+))?", re.IGNORECASE)
_BIDS = re.compile(r"(?:^|/)(sub-[0-9A-Za-z]+)(?:[/_](?:\1[/_])?(ses-[0-9A-Za-z]+))?(?=[/_.])")
_MIMIC = re.compile(r"(?:^|/)(p[0-9]{8})/(s[0-9]{8})/")
_NIH = re.compile(r"(?:^|/)([0-9]{8})_[0-9]{3}\.[^/]+$")
_GRAZ = re.compile(r"(?:^|/)([0-9]{4})_[0-9]{10}_([0-9]{2})_WRI-[LR][0-9]_[MF][0-9]{3}\.[^/]+$")
_DATED = re.compile(
    r"(?:^|/)([^/]+)/((?:19|20)[0-9]{2}(?:-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])|"
    r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])))/"
)
_PLACEHOLDERS = word_set(
    "anonymous anonymized anonymised anonym anon deidentified none null na nan unknown unnamed noname noid test "
    "patient patientid subject id removed redacted hidden default empty blank"
)


@dataclass(frozen=True)
class Identity:
    """Patient and study of a film; `known` is False where the film's path stands in for the patient."""

    patient: str
    study: str
    known: bool


def identify(path: str) -> Identity:
    """Read patient and study from a path alone, by the patterns that need no other films.

    >>> identify("normal/patient7_study2_hand.png")
    Identity(patient='patient7', study='patient7/study2', known=True)
    >>> identify("sub-01/ses-pre/anat/sub-01_ses-pre_xray.png").study
    'sub-01/ses-pre'
    >>> identify("normal/a.png")
    Identity(patient='normal/a.png', study='normal/a.png', known=False)
    """
    for pattern in (_NAMED, _BIDS, _MIMIC):
        if match := pattern.search(path):
            patient, study = match.groups()
            return Identity(patient, f"{patient}/{study}" if study else path, True)
    return Identity(path, path, False)


def identify_all(paths: Sequence[str]) -> tuple[dict[str, Identity], list[str]]:
    """Read patients and studies from the paths of all films of a source: by path, and notes on what was guessed."""
    identities = {path: identify(path) for path in paths}
    if not paths or any(identity.known for identity in identities.values()):
        return identities, []
    notes: list[str] = []
    for pattern, kind in ((_NIH, "PATIENT_NUMBER (NIH ChestX-ray14)"), (_GRAZ, "PATIENT_TIME_STUDY (GRAZPEDWRI-DX)")):
        matches = {path: match for path in paths if (match := pattern.search(path))}
        if len(matches) >= NEARLY_ALL * len(paths) and len(paths) > 1:
            for path, match in matches.items():
                patient, *study = match.groups()
                identities[path] = Identity(patient, f"{patient}/{study[0]}" if study else path, True)
            return identities, [_said(identities, f"file names {kind}")]
        if matches:
            notes.append(
                f"{counted(len(matches), 'file name')} of {len(paths)} like {kind}: too few, or one alone, to read "
                "patients from"
            )
    dated = {path: match for path in paths if (match := _DATED.search(path))}
    if len(dated) < NEARLY_ALL * len(paths):
        return identities, notes
    folders = {match[1] for match in dated.values()}
    whose = all(re.search("[0-9]", folder) for folder in folders) or len(folders) >= _MANY_FOLDERS
    if len(folders) < 2 or not whose or any(meaning(folder) or split_of(folder) for folder in folders):
        names = ", ".join(sorted(folders)[:3])
        return identities, [
            *notes,
            f"folders of dates below {names}: not clearly those of patients, so not read as such",
        ]
    for path, match in dated.items():
        identities[path] = Identity(match[1], f"{match[1]}/{match[2]}", True)
    return identities, [_said(identities, "folders PATIENT/DATE")]


def _said(identities: Mapping[str, Identity], how: str) -> str:
    known = [identity.patient for identity in identities.values() if identity.known]
    rest = len(identities) - len(known)
    others = f"; {counted(rest, 'film')} of other names are patients of their own" if rest else ""
    return f"patients are read from {how}: {counted(len({*known}), 'patient')}{others}"


def identity_from_tags(tags: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return patient and study as a film's header has them, each None where it is absent or a placeholder.

    tags  by DICOM keyword, as in `readers.Film.tags`: PatientID, IssuerOfPatientID, StudyInstanceUID, AccessionNumber.

    An ID is unique only together with its issuer (PS3.3 C.2.1.1.1), which is therefore part of the name. Names of
    patients are never read. Without a StudyInstanceUID the accession number stands for the study.

    >>> identity_from_tags({"PatientID": "4711", "IssuerOfPatientID": "ward", "StudyInstanceUID": "1.2.3"})
    ('ward:4711', '1.2.3')
    >>> identity_from_tags({"PatientID": "ANONYMOUS", "StudyInstanceUID": ""})
    (None, None)
    """
    patient = _identifier(tags.get("PatientID", ""))
    issuer = _identifier(tags.get("IssuerOfPatientID", ""))
    study = _identifier(tags.get("StudyInstanceUID", "")) or _identifier(tags.get("AccessionNumber", ""))
    return (f"{issuer}:{patient}" if patient and issuer else patient), study


def is_placeholder(text: str) -> bool:
    """Whether a cell holds a word in place of a patient; zeros may number one in a table, unlike in a header.

    >>> [is_placeholder(text) for text in ("Anonymous", "removed", "0", "Ann")]
    [True, True, False, False]
    """
    return re.sub(r"\W", "", squeezed(text)) in _PLACEHOLDERS


def _identifier(text: str) -> str | None:
    """Return an identifier, or None for what anonymizers and empty forms leave in its place."""
    text = " ".join(text.replace("\0", " ").split())
    core = re.sub(r"\W", "", squeezed(text))
    if re.fullmatch(r"0*|x+", core) or core.rstrip("0") in _PLACEHOLDERS:
        return None
    return text
