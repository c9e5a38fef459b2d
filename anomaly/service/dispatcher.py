"""From the queue to the worker: batches of what waits, films that end a worker found and given up, none other lost."""

import threading
from collections.abc import Callable, Sequence

from anomaly.console import warn
from anomaly.runs import DiskFull
from anomaly.service.audit import Audit
from anomaly.service.detector import Detector, Task
from anomaly.service.queue import FilmQueue
from anomaly.service.records import DetectorFacts, State
from anomaly.service.spool import Spool
from anomaly.service.worker import Worker, WorkerDied
from preprocessing import InputError
from preprocessing.wording import counted

BATCH = 16
"""Films that are scored together at most; nobody waits for a batch to fill."""
MOST_DEATHS = 2
"""A film with which so many workers died, the last with it alone, is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries to open the detector, or to write on a full disk."""
HEATMAPS = ("png", "tiff", "npy")


class Dispatcher(threading.Thread):
    """A worker process and the thread that feeds it. Several of them may share a queue."""

    def __init__(
        self,
        open_detector: Callable[[], Detector],
        spool: Spool,
        queue: FilmQueue,
        audit: Audit,
        *,
        seconds: float,
        on_done: Callable[[str, State], None] = lambda film_id, state: None,
    ) -> None:
        """`seconds` a film may take; `on_done` is called with each film that is done, and with what became of it."""
        super().__init__(name="dispatcher", daemon=True)
        self.worker = Worker(open_detector)
        self.deaths = 0  # of workers
        self.trouble: str | None = None  # why nothing is scored now
        self._spool, self._queue, self._audit = spool, queue, audit
        self._seconds, self._on_done = seconds, on_done
        self._pause_seconds = FIRST_PAUSE

    def open(self) -> DetectorFacts:
        """Start the worker before anything is taken; raises InputError where its detector can't be opened."""
        try:
            return self.worker.start()
        except WorkerDied as error:
            raise InputError(f"the process that opens the detector ended by {error}") from None

    def run(self) -> None:
        """Score what comes until the queue is closed."""
        try:
            while taken := self._queue.take(BATCH):
                self._score(taken)
        finally:
            self.worker.stop()

    def _score(self, taken: Sequence[str]) -> None:
        try:
            if self.worker.pid is None:
                self.worker.start()
        except (InputError, WorkerDied) as error:  # no film's fault
            self._pause(taken, f"the detector can't be opened: {error}")
            return
        tasks: list[Task] = []
        try:
            tasks += [task for film_id in taken if (task := self._task(film_id))]
            if tasks:
                self.worker.score(tasks, self._seconds * len(tasks))
            for task in tasks:
                self._finish(task.id)
        except WorkerDied as error:
            self._queue.done([film_id for film_id in taken if film_id not in {task.id for task in tasks}])
            self._died([task.id for task in tasks], str(error))
        except (DiskFull, OSError) as error:
            self._pause(taken, str(error))
        except Exception as error:  # whatever it is, the thread has to go on, and /health to say it
            self._pause(taken, f"unexpected {type(error).__name__}: {error}")
        else:
            self.trouble, self._pause_seconds = None, FIRST_PAUSE
            self._queue.done(taken)

    def _task(self, film_id: str) -> Task | None:
        """Return what is to be done with a film; None where it is done, or removed from the disk by somebody."""
        try:
            submission = self._spool.submission(film_id)
        except KeyError:
            return None
        if self._spool.result(film_id) is not None:  # a worker was killed, or a disk full, just after
            self._finish(film_id)
            return None
        folder = self._spool.path(film_id)
        heatmaps = HEATMAPS if submission.heatmap else ()
        dicom = _all_kinds() if submission.dicom else ()
        return Task(film_id, folder / "film", folder, "result", heatmaps, dicom, identify=True)

    def _died(self, taken: Sequence[str], cause: str) -> None:
        """Give up the film that has ended its second worker; let the others wait again, each to be scored alone."""
        self.deaths += 1
        self._audit.log("worker died", films=len(taken), reason=cause)
        warn(f"the worker died by {cause}, with {counted(len(taken), 'film')}; another one takes over")
        try:
            alone = len(taken) == 1
            if self._spool.count_deaths(taken) >= MOST_DEATHS and alone:
                self._spool.fail(taken[0], f"{MOST_DEATHS} processes died scoring it, the last by {cause}")
                self._finish(taken[0])
                self._queue.done(taken)
                return
        except (DiskFull, OSError) as error:
            self._pause(taken, str(error))
            return
        self._queue.put_back(taken, suspects=taken)

    def _pause(self, taken: Sequence[str], trouble: str) -> None:
        """Let films wait until the disk has room again, or the detector can be opened."""
        if trouble != self.trouble:
            warn(f"nothing is scored for now: {trouble}")
        self.trouble = trouble
        self._queue.put_back(taken)
        self._queue.wait_closed(self._pause_seconds)
        self._pause_seconds = min(LONGEST_PAUSE, 2 * self._pause_seconds)

    def _finish(self, film_id: str) -> None:
        self._spool.drop_film(film_id)
        result = self._spool.result(film_id)
        assert result is not None
        self._audit.log(result.state, film_id)
        if self._spool.is_deleted(film_id):
            self._spool.remove(film_id)
            return
        self._on_done(film_id, result.state)


def _all_kinds() -> tuple[str, ...]:
    from anomaly.export.dicom_objects import KINDS  # imports what a service without DICOM never needs

    return KINDS
