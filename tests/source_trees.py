"""Small trees of files that stand for films, for the tests of sources: only a few need bytes that can be read."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from preprocessing import InputError
from preprocessing.sources import Record, Source, open_source

FILM = b"film bytes"
DICOM = b"\0" * 128 + b"DICM" + b"more"


def plant(root: Path, *files: str, data: bytes = FILM) -> Path:
    for file in files:
        place = root / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data + file.encode())
    return root


def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for place in sorted(folder.rglob("*")):
            if place.is_file():
                out.write(place, prefix + place.relative_to(folder).as_posix())
    return archive


def manifest(root: Path, text: str | bytes, name: str = "manifest.csv") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def paths(source: Source) -> list[str]:
    return [record.path for record in source.records]


def by_path(source: Source) -> dict[str, Record]:
    return {record.path: record for record in source.records}
