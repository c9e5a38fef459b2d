"""What a folder holds, without what may differ between two undisturbed runs of the same command.

Everything that is not named in this module is compared byte for byte.
"""

import csv
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import pydicom

from anomaly.sealed import unsealed

KEYS: Mapping[str, frozenset[str]] = {
    "*/run.json": frozenset({"created"}),
    "*/calibrations/*/source.json": frozenset({"created"}),
    "*/new/*/results.json": frozenset({"made"}),
    "*results/*.json": frozenset({"finished"}),
    "tune/*/best.json": frozenset({"trial", "run", "trials"}),
    "*/auto.json": frozenset({"spent", "estimate", "seconds", "predict"}),
}
"""JSON files by the end of their path -> keys that are left out, at any depth: when something was made. The hash that a
file has of itself is compared with the file.
"""
TEXTS: Mapping[str, str] = {
    "*/worklist.html": r"20\d\d-\d\d-\d\d \d\d:\d\d",
    "*/report.html": r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d",
    "runs/auto-*/index.html": r"\b\d+ (s|min)\b",
}
"""Other text files -> a pattern that is left out: when something was made, or how long it took."""
COLUMNS: Mapping[str, frozenset[str]] = {
    "*/history.csv": frozenset({"seconds", "films_per_second"}),
    "*/trials.csv": frozenset({"number", "seconds", "note"}),
    "results/results.csv": frozenset({"finished"}),
}
"""CSV files -> columns that are left out: when, and how long."""
LEFT_OUT = ("tmp/.ses", "tune/*/study.sqlite3", "tune/*/tune.png")
"""Files that are not compared at all: what ONNX Runtime leaves in the folder for temporary files; the database of a
search, which keeps that a trial was interrupted, and its picture, which has trials by their number (what comes of them
is in trials.csv and best.json).
"""
_TRIALS = re.compile(r"(tune/[^/]+)/trials/(\d+)")
"""Trials of a search that were interrupted are left out, and the others numbered in their order: an interrupted one is
repeated under another number.
"""
CACHES = "*.h5"
"""Caches are compared by what is in them: every attribute and dataset, with its type. Where in the file HDF5 puts them
depends on the order of writing, which is another one for a cache that is resumed.
"""
DICOM = "*.dcm"
DRAWN_ANEW = ("UI", "DA", "TM", "DT")
"""DICOM objects without elements of these kinds: identifiers are drawn at random, and dates and times say when."""
MANIFEST = "manifest.json"
"""Of a run: hashes of files with times in them. Compared is which files it lists, and whether it and they
agree.
"""
FOLDER = "directory"


def tree(folder: Path) -> dict[str, str]:
    """Return every file and folder below a folder -> a digest of what it holds, without what may differ."""
    return _tree(folder, digest)


def exact(folder: Path) -> dict[str, str]:
    """Return every file and folder below a folder -> a digest of its bytes."""
    return _tree(folder, lambda path, name: hashlib.sha256(path.read_bytes()).hexdigest())


def _tree(folder: Path, of: Callable[[Path, str], str]) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = _renumbered(folder, path.relative_to(folder).as_posix())
        if name and not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            found[name] = FOLDER if path.is_dir() else of(path, name)
    return found


def _renumbered(folder: Path, name: str) -> str:
    """Return the name of a file, with a number for a trial that interrupted ones don't change; "" for one of those."""
    trial = _TRIALS.match(name)
    if trial is None or not (folder / trial[1] / "trials.csv").is_file():
        return name
    order = [row["number"] for row in _finished((folder / trial[1] / "trials.csv").read_text())]
    return f"{trial[1]}/trials/{order.index(trial[2])}{name[trial.end() :]}" if trial[2] in order else ""


def _finished(text: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(StringIO(text)) if row.get("state") not in ("failed", "running")]


def whole_manifest(path: Path) -> bool:
    """Whether a manifest is whole, and agrees with all files that it lists and that are there."""
    try:
        listed, own = json.loads(_manifest(path.parent, json.loads(path.read_bytes())))
    except (ValueError, KeyError):
        return False
    return bool(own) and "differs" not in listed.values()


def digest(path: Path, name: str) -> str:
    """Return a digest of a file without what may differ; `name` is its path in the folder that is compared."""
    content = path.read_bytes()
    try:
        content = _canonical(path, name, content)
    except (ValueError, KeyError, OSError, sqlite3.Error) as error:
        return f"damaged: {error}"
    return hashlib.sha256(content).hexdigest()


def _canonical(path: Path, name: str, content: bytes) -> bytes:
    if keys := _named(KEYS, name):
        return json.dumps(_without(unsealed(content), keys)).encode()
    if columns := _named(COLUMNS, name):
        rows = _finished(content.decode())
        return json.dumps([{key: cell for key, cell in row.items() if key not in columns} for row in rows]).encode()
    if pattern := _named(TEXTS, name):
        return re.sub(pattern, "", content.decode()).encode()
    if fnmatch(name, CACHES):
        return _cache(path)
    if fnmatch(name, DICOM):
        return _dicom(path)
    return _manifest(path.parent, json.loads(content)) if path.name == MANIFEST else content


def _cache(path: Path) -> bytes:
    found = hashlib.sha256()
    with h5py.File(path, "r", locking=False) as file:
        found.update(repr(sorted((key, str(value)) for key, value in file.attrs.items())).encode())

        def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
            found.update(name.encode())
            if isinstance(item, h5py.Dataset):
                values = item[()]
                content = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
                found.update(f"{item.dtype} {item.shape} {item.chunks} {item.compression}".encode() + content)

        file.visititems(add)
    return found.digest()


def _dicom(path: Path) -> bytes:
    dataset = pydicom.dcmread(path)
    found = [f"{one.tag} {one.VR} {one.value}" for one in dataset.iterall() if one.VR not in (*DRAWN_ANEW, "SQ")]
    return "\n".join(found).encode()


def _manifest(folder: Path, content: Any) -> bytes:
    listed = {}
    for name, hashes in content["files"].items():
        file = folder / name
        agrees = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() in hashes
        listed[name] = "agrees" if agrees else "differs" if file.is_file() else "gone"
    own = hashlib.sha256(json.dumps(content["files"], sort_keys=True).encode()).hexdigest()
    return json.dumps([listed, own == content["sha256"]], sort_keys=True).encode()


def _named(table: Mapping[str, Any], name: str) -> Any:
    return next((value for pattern, value in table.items() if fnmatch(name, pattern)), None)


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return what differs between two trees, a line each."""
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"{name} is left over" for name in sorted(found.keys() - wanted.keys())]
    return lines + [f"{name} differs" for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
