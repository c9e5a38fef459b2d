"""Whether the files of a source have changed since they were read."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from preprocessing import InputError
from preprocessing.sources import Record, Source


def last_written(source: Source, record: Record) -> int:
    """Tell when a film or its masks were last written, in nanoseconds."""
    return max((_written(source.root, path) for path in record.files()), default=0)


def fingerprint_of(written: int, hashes: Iterable[str]) -> str:
    """Join when a film's files were last written and the hashes of their bytes; empty for a file that was not read."""
    return f"{written} {_joined(hashes)}"


def changed_films(source: Source, fingerprints: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Find those of the source's first films, given by path and fingerprint, that have changed; yields their paths."""
    fresh = None
    for record, (_, fingerprint) in zip(source.records, fingerprints, strict=False):
        written, _, digest = fingerprint.partition(" ")
        if fingerprint and written != str(last_written(source, record)):
            fresh = fresh or source.part(source.records)  # this one may hold an archive open that has been replaced
            if digest != _joined(_sha256(fresh, path) for path in record.files()):
                yield record.path


def changed_since(source: Source, hashes: dict[str, str], since: int) -> list[str]:
    """List those of some films, path -> sha256, that have changed; files older than `since` (ns) have not."""
    return [
        path
        for path, sha256 in hashes.items()
        if _written(source.root, path) >= since and _sha256(source, path) != sha256
    ]


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _written(root: Path, relative: str) -> int:
    """Tell when a film's file, or the archive it is in, was last written or put in its place, in nanoseconds."""
    for place in (root / relative, *(root / relative).parents):
        with suppress(OSError):  # it lies in an archive, or is gone
            status = place.stat()  # a file moved or unpacked here brings its old mtime along
            return max(status.st_mtime_ns, status.st_ctime_ns)
    return 0


def _sha256(source: Source, path: str) -> str:
    """Hash a file's bytes; of one that cannot be read, nothing."""
    try:
        return hashlib.sha256(source.read(path)).hexdigest()
    except (InputError, KeyError):  # KeyError: of an archive that has been packed again without it
        return ""
