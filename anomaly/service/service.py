"""A service without its doors: films in, answers out, and what goes on in between. HTTP and DICOM both call it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly.console import warn
from anomaly.formatting import size_on_disk
from anomaly.runs import Record
from anomaly.service.audit import Audit
from anomaly.service.detector import Detector
from anomaly.service.dispatcher import Dispatcher
from anomaly.service.outbox import Outbox
from anomaly.service.queue import FilmQueue
from anomaly.service.records import DetectorFacts, FilmAnswer, FilmResult, State, Submission, answer_of
from anomaly.service.spool import Incoming, Spool, display_name, now
from preprocessing import InputError

TIDY_SECONDS = 15.0
"""How often is looked for films whose time is over: they stay for so much longer at most."""


class NoRoom(InputError):
    """The disk has no room for a film."""


@dataclass(frozen=True)
class Limits:
    """What a service takes."""

    queue: int = 1000  # films that wait or are in work
    most_bytes: int = 256 * 2**20  # of a film
    seconds: float = 60.0  # to score a film, and to receive one
    keep_minutes: float = 60.0  # results, from when a film is scored


DEFAULTS = Limits()


class Health(Record):
    """The answer of /health."""

    status: str
    """ok, or why nothing is scored for now, or no film taken."""
    waiting: int
    at_work: int
    scored: int
    """Since the service was started."""
    failed: int
    unsent: int
    """Films whose DICOM objects the PACS does not have yet; they are kept until it has."""
    refused: int
    """Films with DICOM objects that the PACS refused for good; they are kept until they are deleted."""
    workers_died: int


class Service:
    """Films of one detector."""

    def __init__(
        self, folder: Path, open_detector: Callable[[], Detector], limits: Limits = DEFAULTS, *, workers: int = 1
    ) -> None:
        """`folder` is the spool; raises InputError where another service has it."""
        self.limits = limits
        self.spool = Spool(folder, limits.most_bytes)
        self.queue, self.audit = FilmQueue(limits.queue), Audit(folder / "audit.jsonl")
        self.facts: DetectorFacts | None = None
        self.outbox = Outbox(self.spool)
        self.stopping: Callable[[], bool] = lambda: False
        self._counts = {"scored": 0, "failed": 0}
        self._full = False  # it was said that the disk is
        self._untold: set[str] = set()  # reasons why there are no findings, each said once
        self._stopped = threading.Event()
        self._dispatchers = [
            Dispatcher(open_detector, self.spool, self.queue, self.audit, seconds=limits.seconds, on_done=self._done)
            for _ in range(workers)
        ]
        self._tidying = threading.Thread(target=self._tidy, name="tidying", daemon=True)

    def start(self) -> DetectorFacts:
        """Open the detector, and go on with the films that are there; raises InputError where it can't be opened."""
        for dispatcher in self._dispatchers:
            self.facts = dispatcher.open()
        assert self.facts is not None
        resumed = 0
        for film_id in self.spool.ids():
            resumed += self._resume(film_id)
        self.audit.log("started", films=resumed)
        for thread in (*self._dispatchers, self._tidying):
            thread.start()
        return self.facts

    def stop(self) -> None:
        """Finish what is in work; what waits stays on the disk for the next start."""
        self._stopped.set()
        self.queue.close()
        for thread in (*self._dispatchers, self._tidying):
            if thread.is_alive():
                thread.join()
        for dispatcher in self._dispatchers:
            dispatcher.worker.stop()
        self.audit.log("stopped")
        self.spool.close()

    # --- films ------------------------------------------------------------------------------------------------------

    def receive(self, size: int = 0) -> Incoming:
        """Begin to receive a film of `size` bytes (0: not known), in a place of the queue.

        `accept` or `refuse` ends it. Raises QueueFull, NoRoom.
        """
        self.queue.reserve()
        try:
            room = self.spool.room()
            if not room or room < size:
                film = f"a film of {size_on_disk(size)}" if size else "another film"
                raise NoRoom(f"the disk has no room for {film}: {size_on_disk(room)} are free for films")
            return self.spool.receive()
        except BaseException:
            self.queue.release()
            raise

    def accept(
        self,
        incoming: Incoming,
        name: str,
        *,
        origin: Literal["http", "dicom"] = "http",
        heatmap: bool = False,
        dicom: bool = False,
    ) -> str:
        """Take a film that has been received; when this returns, it will be scored whatever happens. Its id."""
        submission = Submission(
            id=incoming.id,
            name=display_name(name),
            origin=origin,
            received=now(),
            size=incoming.size,
            heatmap=heatmap,
            dicom=dicom,
        )
        self.spool.accept(incoming, submission)
        self.queue.put(incoming.id)
        self.audit.log("received", incoming.id, origin=origin, bytes=incoming.size)
        return incoming.id

    def refuse(self, incoming: Incoming) -> None:
        """Give up a film that was being received."""
        incoming.discard()
        self.queue.release()

    def answer(self, film_id: str) -> FilmAnswer:
        """Return what is known of a film; raises KeyError where there is none."""
        return answer_of(*self._known(film_id))

    def result(self, film_id: str) -> FilmResult:
        """Return the result of a film; raises KeyError where there is none (yet)."""
        result = self._known(film_id)[1]
        if result is None:
            raise KeyError(film_id)
        return result

    def delete(self, film_id: str) -> None:
        """Remove a film and all that was made of it; raises KeyError where there is none."""
        self._known(film_id)
        if self.queue.withdraw(film_id) or not self.queue.at_work(film_id):
            self.spool.remove(film_id)
        else:
            self.spool.mark_deleted(film_id)
        self.outbox.discard(film_id)
        self.audit.log("deleted", film_id)

    def answers(self, most: int) -> list[FilmAnswer]:
        """Return the films that came last, `most` of them."""
        found = []
        for film_id in list(self.spool.ids())[-most:]:
            try:
                found.append(self.answer(film_id))
            except KeyError:  # removed meanwhile
                continue
        return found

    def unfinished(self, film_ids: Sequence[str]) -> bool:
        """Whether one of these films is still to be scored, as far as this service will before it stops."""
        return self.queue.unfinished(film_ids) and not self.stopping()

    def health(self) -> Health:
        """Return how it stands."""
        waiting, at_work = self.queue.counts()
        trouble = next((one.trouble for one in self._dispatchers if one.trouble), None)
        unsent, refused = self.outbox.counts()
        full = "no film is taken: the disk of the spool is full" if self.spool.is_full() else ""
        return Health(
            status=trouble or full or "ok",
            waiting=waiting,
            at_work=at_work,
            scored=self._counts["scored"],
            failed=self._counts["failed"],
            unsent=unsent,
            refused=refused,
            workers_died=sum(one.deaths for one in self._dispatchers),
        )

    def worker_pids(self) -> list[int]:
        """Return the worker processes."""
        return [pid for one in self._dispatchers if (pid := one.worker.pid)]

    def _known(self, film_id: str) -> tuple[Submission, FilmResult | None]:
        submission, result = self.spool.submission(film_id), self.spool.result(film_id)
        if self.spool.is_deleted(film_id):
            raise KeyError(film_id)
        return submission, result

    def _resume(self, film_id: str) -> bool:
        """Go on with a film of an earlier time; whether it is still to be scored."""
        if self.spool.is_deleted(film_id):
            self.spool.remove(film_id)
            return False
        try:
            self.spool.submission(film_id)
        except KeyError:  # what is left of a removal that was interrupted
            self.spool.remove(film_id)
            return False
        if self.spool.result(film_id) is None:
            self.queue.put(film_id, suspect=self.spool.deaths(film_id) > 0, reserved=False)
            return True
        self.spool.drop_film(film_id)
        self.outbox.add(film_id)
        return False

    def _done(self, film_id: str, state: State) -> None:
        self.outbox.add(film_id)
        self._counts[state] += 1
        self._tell(film_id)

    def _tell(self, film_id: str) -> None:
        """Say what went wrong with a film that came by DICOM: who sent it has heard nothing but that it is here."""
        try:
            submission, result = self._known(film_id)
        except KeyError:  # deleted meanwhile
            return
        if submission.origin != "dicom" or result is None:
            return
        if result.state == "failed":
            warn(f"not scored: {submission.name}, which came by DICOM as film {film_id}: {result.error}")
        elif submission.dicom and not self.spool.objects(film_id):
            self.audit.log("no findings", film_id)
            reason = next((note for note in result.notes if "no DICOM objects" in note), "no DICOM objects were made")
            if reason not in self._untold:
                self._untold.add(reason)
                warn(f"nothing is sent of film {film_id}, nor of others like it: {reason}")

    def _tidy(self) -> None:
        """Remove films whose time is over, unless the PACS has yet to get them."""
        while not self._stopped.wait(TIDY_SECONDS):
            self._say_full()
            for film_id in self.spool.ids():
                try:
                    if not self.queue.unfinished([film_id]):
                        self._tidy_film(film_id)
                except OSError as error:
                    warn(f"{self.spool.path(film_id)} can't be removed ({error.strerror}), and will be tried again")

    def _say_full(self) -> None:
        """Say once that films are refused for want of room, and once that they no longer are."""
        if self.spool.is_full() != self._full:
            self._full = not self._full
            warn(f"{self.spool.folder}: the disk {'is full: no film is taken' if self._full else 'has room again'}")

    def _tidy_film(self, film_id: str) -> None:
        if self.spool.is_deleted(film_id):
            self.spool.remove(film_id)
        elif self.spool.age(film_id) > 60 * self.limits.keep_minutes and film_id not in self.outbox:
            self.spool.remove(film_id)
            self.audit.log("expired", film_id)
