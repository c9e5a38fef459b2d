"""What names of folders, files and splits, and words for labels, mean to a source: the one table of them.

Words are compared without regard to case, to spaces, `_` and `-`, and to fillers such as "images" or "cases":
`Normals`, `normal_images` and `01-NORMAL` are one word. Docs/films.md shows this table to users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

from preprocessing.wording import squeezed

MANIFEST = "manifest.csv"
BOXES = "boxes.csv"  # of hands and markers, for training: see `annotations`
SYNTHETIC = "SYNTHETIC.txt"  # says of the films around it that they are drawn
GROUND_TRUTH = ("ground_truth", "groundtruth")


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


NORMAL = word_set(
    "normal normals negative negatives neg good ok okay healthy health intact unremarkable control controls "
    "nofinding nofindings nofinds noabnormality noabnormalities nopathology nodisease nodefect nodefects notabnormal "
    "nonabnormal withoutfinding withoutfindings withoutpathology"
)
ABNORMAL = word_set(
    "abnormal abnormals positive positives pos bad anomaly anomalies anomalous defect defects defective ungood nok "
    "ng pathological pathologic pathology pathologies abnormality abnormalities lesion lesions diseased disease sick "
    "finding findings notnormal nonnormal notgood nogood nothealthy unhealthy notok notokay"
)
UNLABELLED = word_set(
    "unlabelled unlabeled unlabel unknown unknowns unsorted unclassified unread unreported unreviewed unannotated "
    "undetermined indeterminate uncertain equivocal pending new todo nolabel nolabels notlabelled notlabeled"
)
FINDINGS = word_set(
    "fracture fractures fractured broken crack cracks cracked dislocation dislocated subluxation luxation avulsion "
    "osteoporosis osteopenia osteoarthritis arthritis arthrosis osteomyelitis osteolysis osteonecrosis sarcoma "
    "osteosarcoma dysplasia scoliosis effusion effusions pneumonia pneumonias covid covid19 coronavirus sarscov2 "
    "tuberculosis tb pneumothorax atelectasis cardiomegaly consolidation consolidations edema oedema emphysema "
    "fibrosis hernia infiltration infiltrate infiltrates mass masses nodule nodules opacity opacities thickening "
    "tumor tumors tumour tumours cancer carcinoma malignant malignancy metastasis metastases cyst cysts abscess "
    "hemorrhage haemorrhage bleeding bacteria bacterial virus viral infection infected inflammation foreignbody "
    "foreignbodies amputation erosion erosions spur periosteal scratch scratches hole "
    "holes dent contamination caries"
)
"""Words that name what is wrong with a film: a folder or label that has one of them is abnormal, and a finding."""

CLASS_WORDS = word_set(
    "yes no true false benign class grade type stage group kl birads category cat label other others rest cases "
    "mild moderate severe doubtful minimal suspicious stable treated pre post"
)
"""Words that classes are called by, but which do not say which of them is normal."""

NEGATIONS = frozenset({"no", "non", "not", "without"})
_FILLERS = word_set(
    "image images img imgs film films case cases xray xrays x ray rays cxr radiograph radiographs scan scans picture "
    "pictures patient patients class cls data dataset folder only the"
)

_MASKS = word_set(
    "mask masks label labels labelstr labelsts seg segs segmentation segmentations groundtruth gt contours rois"
)
_OTHERS = word_set(
    "annotation annotations thumbnail thumbnails thumb thumbs preview previews icon icons overlay overlays heatmap "
    "heatmaps prediction predictions gradcam saliency"
)
NOT_FILMS: Mapping[str, str] = dict.fromkeys(_MASKS, "mask") | dict.fromkeys(_OTHERS, "picture beside films")
"""Folder name -> what is in such a folder, at any depth: never films."""

_TELLING = word_set(
    "mask masks segmentation segmentations annotation annotations thumbnail thumbnails preview previews overlay "
    "overlays heatmap heatmaps"
)

IMAGES = word_set("image images img imgs film films imagestr imagests jpegimages png pngs jpg jpegs dicom dicoms")
"""Folders that hold the films of the folder in which they lie, often beside `masks`."""

SPLITS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "tests": "test",
    "testset": "test",
    "holdout": "test",
    "heldout": "test",
}

NOT_KNOWN = frozenset({"", "-1", "nan", "na", "n/a", "#n/a", "null", "<na>", "?", "-", "--", "unknown", "uncertain"})
"""Cells of a table that say that a label is not known."""

_BODY_PARTS = word_set(
    "hand hands wrist wrists elbow elbows forearm forearms humerus shoulder shoulders finger fingers thumb foot feet "
    "ankle ankles knee knees hip hips pelvis leg legs femur tibia spine chest thorax lung lungs skull arm arms limb "
    "limbs bone bones abdomen xr ap pa lat lateral frontal oblique axial left right l r view views male female man "
    "woman men women adult adults child children pediatric paediatric"
)
_PLACES = IMAGES | word_set(
    "hospital hospitals clinic clinics site sites center centre centers centres ward wards department dept radiology "
    "institute university uni city scanner scanners device vendor archive export exports originals original raw "
    "study studies series session sessions visit visits batch batches part parts subset source sources download "
    "downloads tif tiff nifti nii dcm misc jan feb mar apr may jun jul aug sep oct nov dec january february march "
    "april june july august september october november december jpeg"
)
_UNIT_NUMBER = re.compile(
    r"(patient|pat|pt|p|subject|subj|sub|s|case|study|st|series|se|scan|visit|ses|session|exam|ex|site|center|centre|"
    r"hospital|ward|batch|part|folder|disk|disc|cd|day|week|month|room|person|id|im|img|image)[ _.-]*[0-9]+",
    re.IGNORECASE,
)


def words(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers and fillers, unless nothing else is in it.

    >>> words("01_Normal images"), words("LungOpacity"), words("images"), words("covid19")
    (['normal'], ['lung', 'opacity'], ['images'], ['covid19'])
    """
    spaced = re.sub(r"([a-z])([A-Z][a-z])", r"\1 \2", name)
    found = [word for word in re.findall(r"[^\W\d_]+[0-9]*", spaced.casefold()) if word]
    return [word for word in found if word not in _FILLERS] or found


@lru_cache(maxsize=4096)  # folders repeat, for each film in them
def meaning(name: str) -> str | None:
    """Return what a folder or label means: "normal", "abnormal", "unlabelled", "finding", or None where not known.

    >>> [meaning(name) for name in ("Normals", "Non-normal", "no findings", "Lung_Opacity", "non-COVID", "0")]
    ['normal', 'abnormal', 'normal', 'finding', None, None]
    """
    parts = words(name)
    parts = [part for part in parts if part not in _BODY_PARTS] or parts
    joined, plain = "".join(parts), "".join(part.rstrip("0123456789") for part in parts)
    for table, what in ((NORMAL, "normal"), (ABNORMAL, "abnormal"), (UNLABELLED, "unlabelled"), (FINDINGS, "finding")):
        if joined in table or plain in table:
            return what
    if NEGATIONS & {*parts} or parts[:1] == ["un"]:
        return None
    bare = {part.rstrip("0123456789") for part in parts} | {*parts}
    if bare & (NORMAL | UNLABELLED) or not bare & (FINDINGS | {"abnormal", "anomaly", "defect", "lesion"}):
        return None
    return "finding"


def split_of(name: str) -> str | None:
    """Return the split that a folder or a cell names, or None.

    >>> split_of("Validation"), split_of("hold-out"), split_of("2019")
    ('val', 'test', None)
    """
    return SPLITS.get(squeezed(name))


def is_class_word(name: str) -> bool:
    """Whether a name is one that classes have, though not whether they are normal.

    >>> [is_class_word(name) for name in ("0", "non-COVID", "KL-3", "Class A", "0042", "smith")]
    [True, True, True, True, False, False]
    """
    parts = {part.rstrip("0123456789") for part in re.findall(r"[^\W_]+", name.casefold())}
    return re.fullmatch(r"\s*[0-9]\s*", name) is not None or bool(parts & (CLASS_WORDS | NEGATIONS))


def is_mere_folder(name: str) -> bool:
    """Whether a folder's name is one of patients, dates, sites, views or the like, which say nothing of a label.

    A single digit is not: `0` and `1` are what classes are called.

    >>> [is_mere_folder(name) for name in ("P0001", "2021-03-04", "Hospital West", "XR_HAND", "images", "Osteoid")]
    [True, True, True, True, True, False]
    """
    if re.fullmatch(r"\s*[0-9]\s*", name):
        return False
    if re.search(r"[0-9]{2}", name) or _UNIT_NUMBER.fullmatch(name):
        return True
    parts = set(re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z][a-z])", r"\1 \2", name).casefold()))
    return bool(parts & _PLACES) or (
        bool(parts) and parts <= _BODY_PARTS | {"patient", "patients", "subject", "subjects"}
    )


@lru_cache(maxsize=4096)
def not_films(folder: str) -> str | None:
    """Return what a folder of this name holds if never films: "mask" or "picture beside films"; else None.

    Longer words count wherever they stand in a name, `label`, `gt` and the like alone.

    >>> not_films("labelsTr"), not_films("ManualMask"), not_films("unmasked"), not_films("label 2")
    ('mask', 'mask', None, 'mask')
    """
    parts = words(folder)
    alone = NOT_FILMS.get(squeezed(folder)) or NOT_FILMS.get("".join(parts))
    return alone or next((NOT_FILMS[part] for part in parts if part in _TELLING), None)


def named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of those that a user gave; `*` and `?` stand for any characters.

    >>> named("Siemens A", ["siemens*"])
    True
    """
    return any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)


def split_names(folders: set[str]) -> dict[str, str]:
    """Map names of splits that occur ("" for none) to splits; train alone divides nothing and maps to ""."""
    splits = {name: split_of(name) or "" for name in folders}
    return dict.fromkeys(folders, "") if {*splits.values()} <= {"train", ""} else splits
