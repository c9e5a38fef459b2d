"""The films of a service on disk: what was accepted survives a kill of any process, and of the machine.

    spool.json                says that the folder is a spool: in any other folder nothing is changed
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
        sent.json             which DICOM objects the PACS has, and which it refused, and why
        deleted               the film was deleted while a worker had it; goes with it

The folder is private (0700). Names that a sender gives are never part of a path.
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from anomaly.runs import FULL, Record, to_json, write_atomic
from anomaly.service.records import FilmResult, Submission
from preprocessing import InputError
from preprocessing.locks import open_lock

_ID = re.compile(r"[0-9a-f]{32}")
LONGEST_NAME = 200
"""Characters of a film's name that are kept."""
MARK, FORMAT = "spool.json", 1
EMPTY = re.compile(r"\.lock|lost\+found|\.anomaly-.*\.partial")
"""What may lie in a folder that is to become a spool: of a start that was cut off, of a file system's root."""
RESERVE = 8 * 2**20
"""Bytes of the disk that films are not to fill: results are to be written, too."""
FULL_SECONDS = 60.0
"""For so long it is remembered that a film could not be written."""


class TooLarge(InputError):
    """A film of more bytes than are taken."""


class Sent(Record):
    """sent.json: what became of a film's DICOM objects."""

    sent: list[str] = Field(default_factory=list)
    rejected: dict[str, str] = Field(default_factory=dict)
    """File -> why the PACS does not take it."""
    unsupported: dict[str, str] = Field(default_factory=dict)
    """The same, of classes that it takes of nobody."""


class SpoolMark(Record):
    """spool.json."""

    format: int


class Incoming:
    """A film that is being received."""

    def __init__(self, folder: Path, most_bytes: int, on_full: Callable[[], None]) -> None:
        """`on_full` is called where the disk takes no more."""
        folder.mkdir(mode=0o700)
        self.id, self.folder, self.size, self._most, self._on_full = folder.name, folder, 0, most_bytes, on_full
        self._file: IO[bytes] = (folder / "film").open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append bytes; raises TooLarge before more than allowed are on the disk."""
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge(f"the film has more than {self._most} bytes, the limit of --max-bytes")
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno in FULL:
                self._on_full()
            raise

    def sync(self) -> None:
        """Bring it to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Spool:
    """The folder; raises InputError where another service holds it, and where it is no spool and not empty."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._films, self._incoming = folder / "films", folder / "incoming"
        self._full_at = -FULL_SECONDS
        is_spool = _check_folder(folder)
        self._lock = open_lock(folder / ".lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"{folder} is the spool of a service that runs; take another --spool") from None
        if not is_spool:
            write_atomic(folder / MARK, to_json(SpoolMark(format=FORMAT).model_dump()))
        for made in (self._films, self._incoming):
            made.mkdir(mode=0o700, exist_ok=True)
        for half in self._incoming.iterdir():
            if _ID.fullmatch(half.name):
                shutil.rmtree(half, ignore_errors=True)

    def close(self) -> None:
        """Let another service have it."""
        self._lock.close()

    def room(self) -> int:
        """Return the bytes of the disk that films may take, beyond what is kept free for results."""
        try:
            return max(0, shutil.disk_usage(self.folder).free - RESERVE)
        except OSError:  # a disk that can't be asked takes no film
            return 0

    def is_full(self) -> bool:
        """Whether no film fits on the disk, or one could not be written a short time ago (a quota shows in no room)."""
        return self.room() == 0 or time.monotonic() - self._full_at < FULL_SECONDS

    def _note_full(self) -> None:
        self._full_at = time.monotonic()

    def receive(self) -> Incoming:
        """Begin to receive a film."""
        return Incoming(self._incoming / secrets.token_hex(16), self.most_bytes, self._note_full)

    def accept(self, incoming: Incoming, submission: Submission) -> None:
        """Make a received film one to score; when this returns it is on the disk for good."""
        incoming.sync()
        write_atomic(incoming.folder / "submission.json", to_json(submission.model_dump(mode="json")))
        incoming.folder.rename(self._films / incoming.id)
        _sync_folder(self._films)
        self._full_at = -FULL_SECONDS

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
        """Return what became of its objects."""
        try:
            return Sent.model_validate_json((self.path(film_id) / "sent.json").read_bytes())
        except (OSError, ValidationError):
            return Sent()

    def undelivered(self, film_id: str) -> list[Path]:
        """Return the objects that a PACS is to get of a film, and has not.

        One of a class that it does not take counts as long as it has no other of the film: else the finding is there.
        """
        try:
            submission = self.submission(film_id)
        except KeyError:
            return []
        if submission.origin != "dicom" or not submission.dicom:
            return []
        known = self.sent(film_id)
        done = {*known.sent, *(known.unsupported if known.sent else ())}
        return [path for path in self.objects(film_id) if path.name not in done]

    def record_sent(self, film_id: str, name: str) -> None:
        """Record that the PACS has an object."""
        known = self.sent(film_id)
        left = {file: why for file, why in known.rejected.items() if file != name}
        unsupported = {file: why for file, why in known.unsupported.items() if file != name}
        self._record(film_id, Sent(sent=[*known.sent, name], rejected=left, unsupported=unsupported))

    def record_rejected(self, film_id: str, name: str, reason: str, *, unsupported: bool) -> None:
        """Record that the PACS refused an object, or takes none of its class."""
        known = self.sent(film_id)
        place = "unsupported" if unsupported else "rejected"
        self._record(film_id, known.model_copy(update={place: getattr(known, place) | {name: reason}}))

    def _record(self, film_id: str, sent: Sent) -> None:
        if self.path(film_id).is_dir():  # else it was deleted meanwhile
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


def _check_folder(folder: Path) -> bool:
    """Make the folder of a spool private; whether it is one already.

    Raises InputError, and changes nothing, where it holds anything else: what lies in a spool goes with time.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = [entry.name for entry in folder.iterdir()]
        if MARK in names:
            SpoolMark.model_validate_json((folder / MARK).read_bytes())
        elif others := sorted(name for name in names if not EMPTY.fullmatch(name)):
            raise InputError(
                f"--spool {folder} holds {display_name(others[0])} and is no spool, in which films are kept for a "
                "while and removed: take an empty folder, or one that is not there"
            )
        folder.chmod(0o700)  # it may have been there
    except OSError as error:
        raise InputError(f"--spool {folder} can't be used ({error.strerror}); take another folder") from None
    except ValidationError:
        raise InputError(f"{folder / MARK} is damaged or of a newer version; take another --spool") from None
    return MARK in names


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
