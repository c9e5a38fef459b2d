"""`anomaly watch`: films of a folder scored as they come, by the same worker process as a service has.

    results.csv               a row a film (two for two hands): also what is remembered of films that are done
    <film>.json               its result, as a service answers it
    <film>_heatmap.png, ...   where it has one; <film>-1_heatmap.png, ..., of two hands

A film is done when its row is on the disk. One that has changed since, in size or time, is another film, and one that
another detector scored is scored again. Hidden files, links, what is called as heatmaps of this program are, and what
lies in the folder of the results are passed over.
"""

import csv
import fcntl
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from anomaly.console import plain
from anomaly.formatting import csv_cell, from_csv_cell
from anomaly.runs import FULL, DiskFull, inside, to_json, write_atomic
from anomaly.service.detector import Detector, Task
from anomaly.service.dispatcher import BATCH, MOST_DEATHS
from anomaly.service.records import DetectorFacts, FilmResult
from anomaly.service.spool import now
from anomaly.service.worker import Worker, WorkerDied
from preprocessing import InputError
from preprocessing.locks import open_lock
from preprocessing.sources.listing import is_heatmap_name
from preprocessing.wording import counted

COLUMNS = (
    "film",
    "part",
    "size",
    "modified_ns",
    "finished",
    "run",
    "detector",
    "score_name",
    "score",
    "flagged",
    "p_value",
    "p_low",
    "p_high",
    "out_of_domain",
    "synthetic",
    "error",
)
DETECTOR_DIGITS = 16
"""Hexadecimal digits of the detector's digest in results.csv."""
COLLECTIONS = (".zip", ".csv", ".tsv")
"""What other verbs take for a source of many films."""


class Seen(NamedTuple):
    """A file as it was looked at."""

    film: str  # its path in the folder
    size: int
    modified_ns: int


class Ledger:
    """results.csv: which films are done, and by which detector.

    run, detector  the one at work, and digits of its digest, once it is open: films that others scored are not done
    """

    def __init__(self, file: Path) -> None:
        """Read it; a row that a kill cut off is dropped, and its film is scored again."""
        self.file, self.run, self.detector = file, "", ""
        self._done: dict[str, set[Seen]] = {}  # detector -> films
        if not file.exists():
            write_atomic(file, ",".join(COLUMNS) + "\n")
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = csv.reader(io.StringIO(whole.decode("utf-8", "replace")))
        if next(rows, None) != list(COLUMNS):
            raise InputError(f"{file} is not of this version of `anomaly watch`; take another --out")
        if len(whole) < len(content):
            write_atomic(file, whole)
        for row in rows:
            if len(row) == len(COLUMNS) and row[2].isdigit() and row[3].isdigit():
                detector = self._done.setdefault(row[COLUMNS.index("detector")], set())
                detector.add(Seen(from_csv_cell(row[0]), int(row[2]), int(row[3])))

    def __contains__(self, seen: Seen) -> bool:
        return seen._replace(film=plain(seen.film)) in self._done.get(self.detector, ())

    def by_another(self, seen: Seen) -> bool:
        """Whether a film is done, but by other detectors alone."""
        named = seen._replace(film=plain(seen.film))
        return seen not in self and any(named in films for films in self._done.values())

    def add(self, results: Sequence[tuple[Seen, FilmResult]]) -> None:
        """Append films that are done, and bring them to the disk."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for seen, result in results:
            rows = _rows(seen, result, self.run, self.detector)
            writer.writerows([csv_cell(value) for value in row] for row in rows)
        try:
            with self.file.open("ab") as file:
                file.write(text.getvalue().encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in FULL:
                raise DiskFull(f"{self.file}: the disk is full; free some and type the same command again") from error
            raise
        done = self._done.setdefault(self.detector, set())
        done.update(seen._replace(film=plain(seen.film)) for seen, _ in results)


@dataclass
class Counts:
    """What was done."""

    scored: int = 0
    flagged: int = 0
    failed: int = 0
    unstable: int = 0  # files that still changed at the last look
    own: int = 0  # files passed over at the last look: this program wrote them


class Watch:
    """A folder under watch."""

    def __init__(
        self,
        folder: Path,
        out: Path,
        open_detector: Callable[[], Detector],
        *,
        formats: Sequence[str] = ("png",),
        dicom: Sequence[str] = (),
        seconds: float = 60.0,
        on_result: Callable[[str, FilmResult], None] = lambda film, result: None,
    ) -> None:
        """`formats` of png, tiff, npy; a film may take so many `seconds`. Raises InputError where `out` is used.

        dicom      kinds of DICOM object that are written too, of `KINDS`.
        on_result  called with each film that is done.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; give the one that films come into")
        self.folder, self.out = folder.resolve(), out.resolve()
        if self.folder == self.out:
            raise InputError(f"--out {out} is the folder that is watched; take another")
        out.mkdir(parents=True, exist_ok=True)
        self._lock = open_lock(self.out / ".lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"{out} is in use by another `anomaly watch`; take another --out") from None
        try:
            self.ledger, self.counts = Ledger(self.out / "results.csv"), Counts()
        except BaseException:
            self._lock.close()
            raise
        self._worker, self._seconds, self._on_result = Worker(open_detector), seconds, on_result
        self._heatmaps, self._dicom = tuple(formats), tuple(dicom)
        self._stop = threading.Event()

    def open(self) -> DetectorFacts:
        """Start the worker; raises InputError where its detector can't be opened."""
        try:
            facts = self._worker.start()
        except WorkerDied as error:
            raise InputError(f"the process that opens the detector ended by {error}") from None
        self.ledger.run, self.ledger.detector = facts.run, facts.digest[:DETECTOR_DIGITS]
        return facts

    def notes(self) -> list[str]:
        """Say which files of the folder are scored again, and which are no films, once the detector is open."""
        again, notes = sum(map(self.ledger.by_another, self._look())), []
        if again:
            notes.append(f"{counted(again, 'film')} that another detector scored: scored again by {self.ledger.run}")
        if self.counts.own:
            notes.append(f"no films: {counted(self.counts.own, 'file')} written by this program (heatmaps)")
        return notes

    def stop(self) -> None:
        """End when the films in work are done; may be called by a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """End the worker, and let another one have the folder of the results."""
        self._worker.stop()
        self._lock.close()

    def run(self, every: float, *, once: bool = False) -> Counts:
        """Score what comes until stopped, or what is there: files that are the same at two looks `every` seconds apart.

        Raises DiskFull; InputError where the folder is gone at the first look.
        """
        if self._worker.pid is None:
            self.open()
        before = set(self._look())
        while not self._stop.wait(every):
            files = list(self._look())
            stable = [seen for seen in files if seen in before]
            self.counts.unstable = len(files) - len(stable)
            before = set(files)
            for start in range(0, len(stable), BATCH):
                if self._stop.is_set():
                    break
                self._score(stable[start : start + BATCH])
            if once:
                break
        return self.counts

    def _look(self) -> Iterator[Seen]:
        """Give the files that are there and not done, in the order of their names."""
        self.counts.own = 0
        for place, folders, files in os.walk(self.folder):
            here = Path(place)
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and (here / name).resolve() != self.out
            )
            for name in sorted(files):
                path = here / name
                if name.startswith(".") or path.is_symlink():
                    continue
                if is_heatmap_name(name):
                    self.counts.own += 1
                    continue
                try:
                    state = path.stat()
                except OSError:  # gone since
                    continue
                seen = Seen(path.relative_to(self.folder).as_posix(), state.st_size, state.st_mtime_ns)
                if seen not in self.ledger:
                    yield seen

    def _score(self, films: Sequence[Seen]) -> None:
        """Score films together; where a worker dies with them, each by itself."""
        lone = [seen for seen in films if Path(seen.film).suffix.lower() in COLLECTIONS]
        for seen in lone:
            self._record([(seen, _failure("it may hold many films: unpack it, or give it to `anomaly score`"))])
        films = [seen for seen in films if seen not in lone]
        if not films:
            return
        try:
            self._record(list(zip(films, self._ask(films), strict=True)))
        except WorkerDied:
            for seen in films:
                self._score_alone(seen)

    def _score_alone(self, seen: Seen) -> None:
        for death in range(1, MOST_DEATHS + 1):
            try:
                self._record([(seen, self._ask([seen])[0])])
                return
            except WorkerDied as error:
                if death == MOST_DEATHS:
                    self._record([(seen, _failure(f"{death} processes died scoring it, the last by {error}"))])

    def _ask(self, films: Sequence[Seen]) -> list[FilmResult]:
        if self._worker.pid is None:
            self.open()
        return self._worker.score([self._task(seen) for seen in films], self._seconds * len(films))

    def _task(self, seen: Seen) -> Task:
        file = inside(self.out, f"{seen.film}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        return Task(
            seen.film,
            self.folder / seen.film,
            file.parent,
            file.name.removesuffix(".json"),
            self._heatmaps,
            self._dicom,
        )

    def _record(self, results: Sequence[tuple[Seen, FilmResult]]) -> None:
        for seen, result in results:
            if result.state == "failed":  # some have no worker to write it
                write_atomic(inside(self.out, f"{seen.film}.json"), to_json(result.model_dump(mode="json")))
        self.ledger.add(results)
        for seen, result in results:
            self.counts.scored += result.state == "scored"
            self.counts.failed += result.state == "failed"
            self.counts.flagged += any(part.flagged for part in result.parts)
            self._on_result(seen.film, result)


def _failure(reason: str) -> FilmResult:
    return FilmResult(state="failed", finished=now(), error=reason)


def _rows(seen: Seen, result: FilmResult, run: str, detector: str) -> Iterator[list[object]]:
    film = [plain(seen.film)]
    file = [seen.size, seen.modified_ns, result.finished, plain(run), detector]
    if result.state == "failed":
        yield [*film, 0, *file, *[""] * 8, plain(result.error or "")]
    for part in result.parts:
        low, high = part.p_interval or ("", "")
        p_value = "" if part.p_value is None else part.p_value
        outside = "" if part.out_of_domain is None else int(part.out_of_domain)
        scored = [result.score_name, part.score, int(part.flagged), p_value, low, high, outside, int(result.synthetic)]
        yield [*film, part.part, *file, *scored, ""]
