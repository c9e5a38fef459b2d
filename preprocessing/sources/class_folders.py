"""Class folders: normal films in one, each finding in its own, at the top or under train, val and test."""

from __future__ import annotations

from preprocessing import InputError
from preprocessing.sources.names import ABNORMAL, GROUND_TRUTH, MANIFEST, NORMAL, SPLITS, split_names
from preprocessing.sources.paths import identify
from preprocessing.sources.record import Record
from preprocessing.sources.storage import Store


def class_records(films: list[str], store: Store, *, strict: bool) -> list[Record]:
    """List the films in class folders; none: an empty list.

    strict  whether a film outside them is an error, rather than a film of unknown label.
    """
    paths = [film.split("/") for film in films if film.split("/")[0].lower() != GROUND_TRUTH]
    known = NORMAL | ABNORMAL
    divided = any(len(path) > 2 and path[0].lower() in SPLITS and path[1].lower() in known for path in paths)
    if not divided and not any(len(path) > 1 and path[0].lower() in known for path in paths):
        return []
    splits = split_names({path[0].lower() for path in paths}) if divided else {}
    records = []
    for path in paths:
        film = "/".join(path)
        patient, study = identify(film)
        inner = path[1:] if divided else path
        if len(inner) < 2 or (divided and path[0].lower() not in SPLITS):
            if strict:
                expected = "train, val or test and the class folders there" if divided else "the class folders"
                raise InputError(f"{film}: lies outside {expected}; move it, or write a {MANIFEST}")
            records.append(Record(film, patient, study, -1))
            continue
        name = inner[0]
        ground_truth = "/".join([GROUND_TRUTH, *inner]).rpartition(".")[0] + "_mask.png"
        records.append(
            Record(
                path=film,
                patient=patient,
                study=study,
                label=int(name.lower() not in NORMAL),
                split=splits[path[0].lower()] if divided else "",
                finding="" if name.lower() in known else name,
                anomaly_mask=ground_truth if ground_truth in store.sizes else None,
            )
        )
    return records


def check_no_class_folders(films: list[str]) -> None:
    """Refuse films in class folders that lie deeper than where `class_records` looks: they are not unlabelled."""
    for film in films:
        folders = film.split("/")[:-1]
        for depth, folder in enumerate(folders):
            if folder.lower() in NORMAL | ABNORMAL:
                place = "/".join(folders[: depth + 1])
                raise InputError(
                    f"{place}: a class folder, but neither at the top nor under train, val or test; name the folder "
                    f"that holds the class folders, or write a {MANIFEST}"
                )
