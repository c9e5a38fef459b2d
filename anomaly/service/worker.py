"""The process that holds the detector: it may die of a film, by signal or for want of memory, and is replaced.

The process of the service never decodes a film. It says which films to score, this one writes their results, and says
when they are there. It ends when the service is gone, and leaves Ctrl-C and SIGTERM to it. Where memory runs out, the
system is told to end this process first.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anomaly.runs import DiskFull
from anomaly.service.detector import Detector, Task
from anomaly.service.records import DetectorFacts, FilmResult
from preprocessing import InputError

START_SECONDS = 300.0
"""A detector that is not open by then is given up."""


class WorkerDied(Exception):
    """The process ended, or was ended, with the films that it had."""


class Worker:
    """A process with a detector. Its methods are called by one thread, `kill` by any."""

    def __init__(self, open_detector: Callable[[], Detector]) -> None:
        """`open_detector` is picklable: it is called in the process."""
        self._open = open_detector
        self._process: multiprocessing.process.BaseProcess | None = None
        self._messages: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The process, where one runs."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    def start(self) -> DetectorFacts:
        """Start the process, and wait until the detector is open.

        Raises InputError where it can't be opened, WorkerDied where the process ends.
        """
        context = multiprocessing.get_context("spawn")
        self._messages, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self._open, theirs), name="anomaly-worker", daemon=True)
        self._process.start()
        theirs.close()
        kind, answer = self._receive(START_SECONDS)
        if kind == "ready":
            return DetectorFacts.model_validate(answer)
        self.stop()
        raise InputError(answer) if kind == "refused" else WorkerDied(answer)

    def score(self, tasks: Sequence[Task], seconds: float) -> list[FilmResult]:
        """Let films be scored; their results are written when this returns.

        Raises WorkerDied where the process ends with them or takes longer, and is stopped then; DiskFull.
        """
        assert self._messages is not None
        try:
            self._messages.send(list(tasks))
        except OSError:  # it died between two batches
            raise WorkerDied(self._cause()) from None
        kind, answer = self._receive(seconds)
        if kind == "full":
            raise DiskFull(answer)
        if kind != "done":
            self.stop()
            raise WorkerDied(answer)
        return [FilmResult.model_validate(result) for result in answer]

    def stop(self) -> None:
        """End the process; it has nothing in work that is wanted."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    def _receive(self, seconds: float) -> tuple[str, Any]:
        assert self._messages is not None
        try:
            if not self._messages.poll(seconds):
                self.stop()
                raise WorkerDied(f"being stopped, as it took longer than {seconds:g} s")
            message: tuple[str, Any] = self._messages.recv()
        except (EOFError, OSError):
            raise WorkerDied(self._cause()) from None
        return message

    def _cause(self) -> str:
        """Say what ended the process, and clear it away."""
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode or 0
        self.stop()
        return f"signal {-code}" if code < 0 else f"exit status {code}"


def _work(open_detector: Callable[[], Detector], messages: Connection) -> None:
    """Be the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # another system than Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_end_when_orphaned, daemon=True).start()
    try:
        detector = open_detector()
    except (InputError, OSError) as error:
        messages.send(("refused", str(error)))
        return
    except Exception as error:
        messages.send(("broken", f"unexpected {type(error).__name__}: {error}"))
        traceback.print_exc()
        return
    messages.send(("ready", detector.facts.model_dump()))
    while True:
        try:
            tasks: list[Task] = messages.recv()
        except EOFError:
            return
        try:
            results = detector.score(tasks)
        except DiskFull as error:
            messages.send(("full", str(error)))
        else:
            messages.send(("done", [result.model_dump() for result in results]))


def _end_when_orphaned() -> None:
    """End this process when the one that started it is gone: another may have begun with the same films."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(0.1)  # a service that stops in order has ended its worker itself
    os._exit(1)
