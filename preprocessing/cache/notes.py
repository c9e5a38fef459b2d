"""What a user should know of the films in a cache: what is not known of them, and what cannot be right."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from preprocessing.cache.reader import Cache
from preprocessing.where import LABELS
from preprocessing.wording import counted, patients_note

NAMED = 3  # films that a note names


def cache_notes(cache: Cache) -> list[str]:
    """Say, a line each: patients that are not known or are in two splits, films that are there twice, flat films."""
    index = cache.index
    notes = [patients_note(int((~index["patient_known"]).sum()), len(cache)), _one_patient(cache)]
    return [note for note in (*notes, *_in_two_splits(cache), *_twice(cache), _flat(cache)) if note]


def _one_patient(cache: Cache) -> str | None:
    known = cache.index["patient_known"]
    studies = len(set(cache.index["study"][known]))
    if not known.all() or len(set(cache.index["patient"])) > 1 or studies < 2:
        return None
    return (
        f"all of {counted(len(cache), 'film')}, of {counted(studies, 'study')}, are of one patient, "
        f"{cache.index['patient'][0]!r}: if that is a placeholder, name the patients in a manifest"
    )


def _in_two_splits(cache: Cache) -> list[str]:
    """Name patients, known from the headers of their films alone, whom the source's splits part."""
    splits: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(cache.index["patient"], cache.index["split"], strict=True):
        splits[patient].add(split)
    parted = sorted(patient for patient, found in splits.items() if len(found) > 1)
    if not parted:
        return []
    return [
        f"{counted(len(parted), 'patient')} in two splits, by the headers of the films ({_some(parted)}): training "
        "refuses that; give all films of a patient one split"
    ]


def _twice(cache: Cache) -> list[str]:
    """Count films of the same bytes, and say where they contradict each other."""
    index = cache.index
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, (digest, hand) in enumerate(zip(index["sha256"], index["hand"].tolist(), strict=True)):
        if hand < 2:  # the second hand of a film is not a second film
            rows_of[digest].append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    if not groups:
        return []
    extra = sum(len(rows) - 1 for rows in groups)
    notes = [f"{counted(extra, 'film')} there a second time, byte for byte ({_pairs(cache, groups)}): leave one out"]
    for what, column in (("two labels", "label"), ("two splits", "split"), ("two patients", "patient")):
        parted = [rows for rows in groups if len(set(index[column][rows].tolist())) > 1]
        if what == "two patients":
            parted = [rows for rows in parted if index["patient_known"][rows].all()]
        if parted:
            values = ", ".join(sorted({str(LABELS.get(v, v) or "none") for v in index[column][parted[0]].tolist()}))
            notes.append(f"{counted(len(parted), 'film')} with {what} ({_pairs(cache, parted)}; the first: {values})")
    return notes


def _flat(cache: Cache) -> str | None:
    """Count films of one grey level throughout: nothing can be seen on them."""
    deviation = np.nanmax(cache.index["grey"][..., 1], axis=1, initial=0)  # (N,) of the stages made
    flat = cache.names[deviation == 0].tolist()
    return (
        f"{counted(len(flat), 'film')} of one gray level throughout, black or white ({_some(flat)})" if flat else None
    )


def _pairs(cache: Cache, groups: Sequence[Sequence[int]]) -> str:
    return _some([f"{cache.index['path'][rows[0]]} = {cache.index['path'][rows[1]]}" for rows in groups])


def _some(names: Sequence[str]) -> str:
    """Name the first few, and how many more there are."""
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
