"""MURA's tree: `patient<digits>/study<digits>_positive|_negative/image<digits>.<suffix>`."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

from preprocessing import InputError
from preprocessing.sources.names import SPLITS, split_names
from preprocessing.sources.record import Record
from preprocessing.sources.storage import MAX_MANIFEST_BYTES, Store

MURA_FILM = re.compile(r"(patient[0-9]+)/(study[0-9]+)_(negative|positive)/image[0-9]+\.[^/]+")
_SIDECAR = re.compile(r"image[0-9]+(\.json|_hand\.png|_anomaly\.png)")


def mura_records(films: list[str], store: Store, root: Path | None) -> list[Record]:
    """List the films in MURA's layout; none: an empty list. `root`, the source's folder, may lie within such a tree."""
    above = [*root.parts[-3:]] if root is not None else []
    matches = []
    for film in films:
        match = MURA_FILM.fullmatch("/".join([*above, *film.split("/")][-3:]))
        if match:
            folders = film.split("/")[:-3]
            split = next((folder.lower() for folder in reversed(folders) if folder.lower() in SPLITS), "")
            region = "/".join(folder for folder in folders if folder.lower() not in SPLITS)
            matches.append((film, match, split, region))
    splits = split_names({split for _, _, split, _ in matches})
    if "test" not in splits:
        splits |= {name: "test" for name, split in splits.items() if split == "val"}
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
                label=int(match[3] == "positive"),
                split=splits[split],
                finding=finding,
                difficulty=difficulty,
                anomaly_mask=ground_truth if ground_truth in store.sizes else None,
            )
        )
    return records


def is_mura_sidecar(file: str) -> bool:
    """Whether a file has the name of one that belongs beside a film in MURA's layout."""
    return _SIDECAR.fullmatch(PurePosixPath(file).name) is not None


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
