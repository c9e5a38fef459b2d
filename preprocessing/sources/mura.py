"""MURA's tree: `patient<digits>/study<digits>_positive|_negative/image<digits>.<suffix>`, at any depth.

Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs", 2018, and the data
set's README: `train_labeled_studies.csv` and `valid_labeled_studies.csv` have no heading, and a line for each study:
its folder, `MURA-v1.1/train/XR_HAND/patient00001/study1_positive/`, and 0 or 1. Where they lie at the top they must
agree with the names of the folders, and label studies whose folders have lost `_positive` or `_negative`.

Under `train/` and `valid/` films have the splits "train" and "test" (MURA's own test films are not public, and `valid`
takes their place), or "val" for `valid` beside a `test` folder.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path, PurePosixPath

from preprocessing import InputError
from preprocessing.sources.names import split_names, split_of
from preprocessing.sources.reading import Found
from preprocessing.sources.record import Record
from preprocessing.sources.storage import MAX_MANIFEST_BYTES, Store
from preprocessing.sources.tables import decoded
from preprocessing.wording import counted

MURA_FILM = re.compile(r"(patient[0-9]+)/(study[0-9]+)_(negative|positive)/image[0-9]+\.[^/]+")
LABEL_FILES = ("train_labeled_studies.csv", "valid_labeled_studies.csv")
PATH_FILES = ("train_image_paths.csv", "valid_image_paths.csv")
_ANY_FILM = re.compile(r"(patient[0-9]+)/(study[0-9]+)(?:_(negative|positive))?/image[0-9]+\.[^/]+")
_SIDECAR = re.compile(r"image[0-9]+(\.json|_hand\.png|_anomaly\.png)")


def mura_records(films: list[str], store: Store, root: Path | None) -> Found | None:
    """List the films in MURA's layout; None where there are none.

    root  the source's folder, which may itself lie within such a tree; None for an archive
    """
    labels = _study_labels(store, root)
    pattern = _ANY_FILM if labels else MURA_FILM
    above = [*root.parts[-3:]] if root is not None else []
    matches = []
    for film in films:
        match = pattern.fullmatch("/".join([*above, *film.split("/")][-3:]))
        if match:
            folders = film.split("/")[:-3]
            split = next((folder.lower() for folder in reversed(folders) if split_of(folder)), "")
            region = "/".join(folder for folder in folders if not split_of(folder))
            matches.append((film, match, split, region))
    if not matches:
        return None
    splits = split_names({split for _, _, split, _ in matches})
    notes = []
    if "test" not in splits.values() and "val" in splits.values():
        splits |= {name: "test" for name, split in splits.items() if split == "val"}
        notes.append("valid is the test split, as MURA's test films are not public")
    several_regions = len({region for _, _, _, region in matches}) > 1
    records = []
    for film, match, split, region in matches:
        study = f"{match[1]}/{match[2]}"
        stem = film.rpartition(".")[0]
        ground_truth = stem + "_anomaly.png"
        finding, difficulty = _sidecar(stem + ".json", store)
        records.append(
            Record(
                path=film,
                patient=match[1],
                study=f"{region}/{study}" if several_regions else study,
                label=_label(film, match[3], labels),
                split=splits[split],
                finding=finding,
                difficulty=difficulty,
                anomaly_mask=ground_truth if ground_truth in store.sizes else None,
                patient_known=True,
            )
        )
    if rest := len(films) - len(records):
        notes.append(f"{counted(rest, 'film')} not named as MURA's patient/study/image: left out")
    used = {name for name in (*LABEL_FILES, *PATH_FILES) if name in store.sizes}
    return Found("mura", records, notes, used)


def is_mura_sidecar(file: str) -> bool:
    """Whether a file has the name of one that belongs beside a film in MURA's layout."""
    return _SIDECAR.fullmatch(PurePosixPath(file).name) is not None


def _study_labels(store: Store, root: Path | None) -> dict[str, tuple[int, str]]:
    """Read the label files: last folders of each study, without the label in its name -> label, and where it stands."""
    labels = {}
    for file in LABEL_FILES:
        if file not in store.sizes:
            continue
        where = file if root is None else f"{root / file}"
        text = decoded(where, store.read(file, MAX_MANIFEST_BYTES))
        rows = csv.reader(io.StringIO(text, newline=""))
        for row in rows:
            if not any(row):
                continue
            place = f"{where}, line {rows.line_num}"
            if len(row) != 2 or row[1].strip() not in ("0", "1"):
                raise InputError(f"{place}: a study's folder and its label, 0 or 1, are expected")
            labels[_study_key(row[0].strip().strip("/"))] = int(row[1]), place
    return labels


def _study_key(folder: str) -> str:
    """Return the folders that tell a study: region, patient and study, without its label.

    >>> _study_key("MURA-v1.1/train/XR_HAND/patient1/study2_positive")
    'XR_HAND/patient1/study2'
    """
    *_, region, patient, study = ["", "", *folder.split("/")]
    return f"{region}/{patient}/{study.partition('_')[0]}"


def _label(film: str, named: str | None, labels: dict[str, tuple[int, str]]) -> int:
    """Return a film's label by its study folder's name and the label files, which must agree."""
    known = labels.get(_study_key(film.rpartition("/")[0]))
    if named is None:
        return -1 if known is None else known[0]
    label = int(named == "positive")
    if known is not None and known[0] != label:
        raise InputError(f"{known[1]}: label {known[0]}, but the folder of {film} says {named}; correct one of them")
    return label


def _sidecar(file: str, store: Store) -> tuple[str, str]:
    """Read finding and difficulty from the JSON beside a film, if any."""
    if file not in store.sizes:
        return "", ""
    data = store.read(file, MAX_MANIFEST_BYTES)
    try:
        content = json.loads(data)
        finding, difficulty = content.get("finding") or "", content.get("difficulty") or ""
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not the JSON object that belongs beside a film; correct or remove it") from error
    if not (isinstance(finding, str) and isinstance(difficulty, str)):
        raise InputError(f"{file}: finding {finding!r} and difficulty {difficulty!r} must be text")
    return finding, difficulty
