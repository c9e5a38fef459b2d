"""manifest.json of a folder: the SHA-256 of its files, compared when numbers are made of them.

A bit that flips on a disk, or a file of another run copied over one's own, otherwise changes scores and nobody sees it:
safetensors has no checksums, and a changed digit of a JSON file is still JSON. A training lists its files when it ends;
what is written later is listed as it is written: first in the manifest, beside what was there, then on the disk. So a
kill at any moment leaves files that the manifest knows. Pictures and pages are not listed: no number is made of them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from anomaly.runs import Record, first_error, sha256, to_json, write_atomic
from preprocessing import InputError
from preprocessing.locks import file_lock

FILE = "manifest.json"
MADE_AGAIN = ("choices.json", "abnormal.json", "films.safetensors")
"""What a run does without, or makes again, where it is deleted."""


class Manifest(Record):
    """manifest.json."""

    format: int = 1
    files: dict[str, list[str]]
    """Name of a file in the folder -> the SHA-256 of what it may hold: one, or two while it is being replaced."""
    sha256: str
    """Of `files`, as JSON with sorted keys: the manifest itself may be damaged."""

    @classmethod
    def of(cls, files: Mapping[str, list[str]]) -> "Manifest":
        """Return the manifest of these files."""
        return cls(files=dict(files), sha256=_digest(json.dumps(files, sort_keys=True)))


def list_files(folder: Path, names: Sequence[str], coming: Mapping[str, str]) -> None:
    """Begin the manifest of a folder anew, with those of the named files that are there.

    coming  the content of files that are written next.
    """
    files = {name: [sha256(folder / name)] for name in names if (folder / name).is_file()}
    files |= {name: [_digest(text)] for name, text in coming.items()}
    with file_lock(folder / ".manifest.lock", wait=True):
        write_atomic(folder / FILE, to_json(Manifest.of(files).model_dump()))


def write_listed(path: Path, content: bytes | str) -> None:
    """Write a file as `write_atomic` does, and list it in the manifest of its folder."""
    folder, name = path.parent, path.name
    with file_lock(folder / ".manifest.lock", wait=True):
        try:
            files = dict(_read(folder))
        except InputError:  # a damaged manifest must not stay in the way of a new one
            files = {}
        listed, there = files.get(name, []), [sha256(path)] if path.is_file() else []
        before = [digest for digest in there if digest in listed or not listed]  # a damaged file is no such
        files[name] = list(dict.fromkeys([*before, _digest(content)]))
        write_atomic(folder / FILE, to_json(Manifest.of(files).model_dump()))
        write_atomic(path, content)


def check_files(folder: Path, remedy: str, without: Sequence[str] = ()) -> set[str]:
    """Compare the listed files of a folder with its manifest, and return their names; those that are gone are no fault.

    remedy  what to do about a damaged file.    without  files that are not looked at.

    Raises InputError that names the first damaged file, or the manifest itself.
    """
    files = _read(folder)
    for name in files.keys() - set(without):
        check_file(folder / name, "delete it" if name in MADE_AGAIN else remedy, files)
    return set(files)


def check_file(path: Path, remedy: str, files: Mapping[str, list[str]] | None = None) -> None:
    """Compare one file with the manifest of its folder, if that lists it; InputError where they differ."""
    listed = (_read(path.parent) if files is None else files).get(path.name)
    if listed and path.is_file() and sha256(path) not in listed:
        raise InputError(f"{path} was changed or damaged after it was written ({FILE} has another SHA-256); {remedy}")


def _read(folder: Path) -> Mapping[str, list[str]]:
    """Return what the manifest of a folder lists, {} where there is none."""
    path = folder / FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        reason = first_error(error)
    else:
        if manifest.sha256 == _digest(json.dumps(manifest.files, sort_keys=True)):
            return manifest.files
        reason = "its own SHA-256 is another"
    raise InputError(f"{path} is damaged ({reason}); put the right file back, or delete it: nothing is checked then")


def _digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
