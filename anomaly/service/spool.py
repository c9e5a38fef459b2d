"""The films of a service on disk: what was accepted survives a kill of any process, and of the machine.

    .lock                     held by the service: two of them would score the same films
    audit.jsonl               what happened to which film; see `audit`
    incoming/<id>/            being received; removed at the next start
    films/<id>/               accepted, moved here once all of it is on the disk
        submission.json       as it came in
        film                  its bytes; removed as soon as it is scored or given up
        deaths                how many workers died with it, as text
        result.json           what became of it; until then it waits
        identity.json         whose film it is, for the worklist; see `identity`
        result_heatmap.png, .tiff, .npy, result_sc.dcm, ...   where they were asked for; result-1_..., of two hands
        sent.json             which DICOM objects the PACS has; until it is complete, they are sent again
        deleted               the film was deleted while a worker had it; goes with it

The folder is private (0700). Names that a sender gives are never part of a path.
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from anomaly.runs import Record, to_json, write_atomic
from anomaly.service.records import FilmResult, Submission
from preprocessing import InputError
from preprocessing.locks import open_lock

_ID = re.compile(r"[0-9a-f]{32}")
LONGEST_NAME = 200
"""Characters of a film's name that are kept."""


class TooLarge(InputError):
    """A film of more bytes than are taken."""


class Sent(Record):
    """sent.json: what became of a film's DICOM objects."""

    sent: list[str]
    rejected: dict[str, str]
    """File -> why the PACS does not take it, however often it is sent."""
    complete: bool


class Incoming:
    """A film that is being received."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        folder.mkdir(mode=0o700)
        self.id, self.folder, self.size, self._most = folder.name, folder, 0, most_bytes
        self._file: IO[bytes] = (folder / "film").open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append bytes; raises TooLarge before more than allowed are on the disk."""
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge(f"the film has more than {self._most} bytes, the limit of --max-bytes")
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def sync(self) -> None:
        """Bring it to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Spool:
    """The folder; raises InputError where another service holds it."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._films, self._incoming = folder / "films", folder / "incoming"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may have been there
        self._lock = open_lock(folder / ".lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"{folder} is the spool of a service that runs; take another --spool") from None
        shutil.rmtree(self._incoming, ignore_errors=True)
        for made in (self._films, self._incoming):
            made.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Let another service have it."""
        self._lock.close()

    def has_room(self) -> bool:
        """Whether a film of the largest size would fit on the disk."""
        return shutil.disk_usage(self.folder).free > self.most_bytes

    def receive(self) -> Incoming:
        """Begin to receive a film."""
        return Incoming(self._incoming / secrets.token_hex(16), self.most_bytes)

    def accept(self, incoming: Incoming, submission: Submission) -> None:
        """Make a received film one to score; when this returns it is on the disk for good."""
        incoming.sync()
        write_atomic(incoming.folder / "submission.json", to_json(submission.model_dump(mode="json")))
        incoming.folder.rename(self._films / incoming.id)
        _sync_folder(self._films)

    def path(self, film_id: str) -> Path:
        """Return a film's folder; raises KeyError for what is no id, as a name must never become a path."""
        if not _ID.fullmatch(film_id):
            raise KeyError(film_id)
        return self._films / film_id

    def ids(self) -> Iterator[str]:
        """Give the films that are there, those that came first ahead."""
        with os.scandir(self._films) as entries:
            found = [(entry.stat().st_ctime_ns, entry.name) for entry in entries if _ID.fullmatch(entry.name)]
        return iter([name for _, name in sorted(found)])

    def submission(self, film_id: str) -> Submission:
        """Return a film as it came in; raises KeyError where there is none."""
        try:
            return Submission.model_validate_json((self.path(film_id) / "submission.json").read_bytes())
        except (OSError, ValidationError):
            raise KeyError(film_id) from None

    def result(self, film_id: str) -> FilmResult | None:
        """Return what became of a film; None while it waits."""
        try:
            return FilmResult.model_validate_json((self.path(film_id) / "result.json").read_bytes())
        except FileNotFoundError:
            return None

    def fail(self, film_id: str, error: str) -> None:
        """Give a film up."""
        result = FilmResult(state="failed", finished=now(), error=error)
        write_atomic(self.path(film_id) / "result.json", to_json(result.model_dump(mode="json")))

    def drop_film(self, film_id: str) -> None:
        """Remove the bytes of a film: nothing more is to be made of it."""
        (self.path(film_id) / "film").unlink(missing_ok=True)

    def count_deaths(self, film_ids: Sequence[str]) -> int:
        """Count that a worker died with films, and return the most that any of them has met."""
        for film_id in film_ids:
            write_atomic(self.path(film_id) / "deaths", str(self.deaths(film_id) + 1))
        return max((self.deaths(film_id) for film_id in film_ids), default=0)

    def deaths(self, film_id: str) -> int:
        """Return how many workers died with a film."""
        with suppress(OSError, ValueError):
            return int((self.path(film_id) / "deaths").read_text())
        return 0

    def objects(self, film_id: str) -> list[Path]:
        """Return the DICOM objects made of a film."""
        return sorted(self.path(film_id).glob("result*.dcm"))

    def sent(self, film_id: str) -> Sent:
        """Return which of its objects the PACS has."""
        try:
            return Sent.model_validate_json((self.path(film_id) / "sent.json").read_bytes())
        except (OSError, ValidationError):
            return Sent(sent=[], rejected={}, complete=False)

    def record_sent(self, film_id: str, sent: Sent) -> None:
        """Record it."""
        write_atomic(self.path(film_id) / "sent.json", to_json(sent.model_dump(mode="json")))

    def mark_deleted(self, film_id: str) -> None:
        """Let a film that a worker has go as soon as it can, after a restart too."""
        write_atomic(self.path(film_id) / "deleted", "")

    def is_deleted(self, film_id: str) -> bool:
        """Whether it was to go."""
        return (self.path(film_id) / "deleted").exists()

    def remove(self, film_id: str) -> None:
        """Remove a film and all that was made of it."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path(film_id))

    def age(self, film_id: str) -> float:
        """Return the seconds since a film was scored or given up; 0 while it waits."""
        with suppress(OSError):
            return max(0.0, time.time() - (self.path(film_id) / "result.json").stat().st_mtime)
        return 0.0


def now() -> str:
    """Return the time as the records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def display_name(name: str) -> str:
    """Return a name as it is shown: its last part, printable, not endless; it never becomes a path.

    >>> display_name("../../etc/pass\\nwd")
    'passwd'
    """
    last = re.split(r"[/\\]", name)[-1]
    return "".join(character for character in last if character.isprintable())[:LONGEST_NAME]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
