"""A service without its doors: films in, answers out, and what goes on in between. HTTP and DICOM both call it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly.console import warn
from anomaly.runs import Record
from anomaly.service.audit import Audit
from anomaly.service.detector import Detector
from anomaly.service.dispatcher import Dispatcher
from anomaly.service.queue import FilmQueue
from anomaly.service.records import DetectorFacts, FilmAnswer, FilmResult, State, Submission, answer_of
from anomaly.service.spool import Incoming, Spool, display_name, now
from preprocessing import InputError

TIDY_SECONDS = 15.0
"""How often is looked for films whose time is over."""


class NoRoom(InputError):
    """The disk has no room for another film."""


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
    """ok, or why nothing is scored for now."""
    waiting: int
    at_work: int
    scored: int
    """Since the service was started."""
    failed: int
    unsent: int
    """Films whose DICOM objects the PACS does not have yet."""
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
        self.unsent: Callable[[], Sequence[str]] = tuple  # films that the sender still has to send
        self.on_done: Callable[[str], None] = lambda film_id: None
        self.stopping: Callable[[], bool] = lambda: False
        self._counts = {"scored": 0, "failed": 0}
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

    def receive(self) -> Incoming:
        """Begin to receive a film, in a place of the queue; `accept` or `refuse` ends it.

        Raises QueueFull, NoRoom.
        """
        self.queue.reserve()
        try:
            if not self.spool.has_room():
                raise NoRoom(f"{self.spool.folder}: the disk has no room for another film")
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
        return Health(
            status=trouble or "ok",
            waiting=waiting,
            at_work=at_work,
            scored=self._counts["scored"],
            failed=self._counts["failed"],
            unsent=len(self.unsent()),
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
        self.on_done(film_id)
        return False

    def _done(self, film_id: str, state: State) -> None:
        self._counts[state] += 1
        self.on_done(film_id)

    def _tidy(self) -> None:
        """Remove films whose time is over, unless the PACS has yet to get them."""
        while not self._stopped.wait(TIDY_SECONDS):
            unsent = set(self.unsent())
            for film_id in self.spool.ids():
                try:
                    if not self.queue.unfinished([film_id]):
                        self._tidy_film(film_id, unsent)
                except OSError as error:
                    warn(f"{self.spool.path(film_id)} can't be removed ({error.strerror}), and will be tried again")

    def _tidy_film(self, film_id: str, unsent: set[str]) -> None:
        if self.spool.is_deleted(film_id):
            self.spool.remove(film_id)
        elif film_id not in unsent and self.spool.age(film_id) > 60 * self.limits.keep_minutes:
            self.spool.remove(film_id)
            self.audit.log("expired", film_id)
