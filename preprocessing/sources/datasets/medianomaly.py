"""MedIAnomaly: `data.json` beside `images/`, with lists of file names by split and label.

Cai et al., "MedIAnomaly: A comparative study of anomaly detection in medical images", 2024, and the README of its code:
{"train": {"0": [...], "unlabeled": {"0": [...], "1": [...]}}, "test": {"0": [...], "1": [...]}}, where 0 is normal.
`unlabeled` holds films that a method may train on without their labels: here they keep them, in the split train.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from preprocessing import InputError
from preprocessing.sources.datasets.lookup import Lookup
from preprocessing.sources.listing import Listing
from preprocessing.sources.names import split_names, split_of
from preprocessing.sources.patients import identify_all
from preprocessing.sources.reading import Found
from preprocessing.sources.record import Record
from preprocessing.sources.storage import MAX_MANIFEST_BYTES
from preprocessing.sources.tables import Table

FILE = "data.json"


def medianomaly_records(listing: Listing, tables: Mapping[str, Table]) -> Found | None:
    """Read `data.json`; None where there is none, or another."""
    if FILE not in listing.store.sizes:
        return None
    where = f"{listing.root / FILE}"
    try:
        content = json.loads(listing.store.read(FILE, MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError):
        return None
    if not (isinstance(content, dict) and any(split_of(key) and isinstance(content[key], dict) for key in content)):
        return None
    lookup = Lookup(listing)
    lists = [
        (split_of(key) or "", label, names)
        for key, value in content.items()
        if split_of(key) and isinstance(value, dict)
        for label, names in _lists(value, f"{where}, {key}")
    ]
    splits = split_names({split for split, _, _ in lists})
    records: dict[str, Record] = {}
    identities, notes = identify_all(listing.films)
    for split, label, names in lists:
        for name in names:
            film = lookup.by_path(name) or lookup.by_name(name.rpartition("/")[2])
            if film is not None or "/" in name:  # looked for twice
                lookup.absent.pop(name, None)
            if film is None:
                continue
            who = identities[film]
            record = Record(film, who.patient, who.study, label, splits[split], patient_known=who.known)
            if records.setdefault(film, record) != record:
                raise InputError(f"{where}: {name} is in two lists; leave one out")
    return lookup.found("medianomaly", records.values(), (FILE,), notes)


def _lists(content: Mapping[str, Any], where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield label and file names of each list of a split."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _lists(value, f"{where}, {key}")
        elif key in ("0", "1") and isinstance(value, list) and all(isinstance(name, str) for name in value):
            yield int(key), value
        else:
            raise InputError(f'{where}: {key!r} is no list of file names under "0" or "1"')
