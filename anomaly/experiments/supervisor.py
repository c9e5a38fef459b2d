"""Worker processes: started with their share of the machine, replaced when they die, stopped in order.

A bench and a search both run on them. What a worker does is one picklable function without arguments, which returns
when there is nothing left to do. It is told to stop by SIGTERM, which raises SystemExit in it, so that `finally`
blocks run: when this process is interrupted or fails, and when this process is gone.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from anomaly.console import warn
from anomaly.memory import share_memory
from preprocessing import InputError

POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
"""Time for a worker to stop in order before it is killed."""
MOST_DEATHS = 3
"""This many deaths in a row with nothing achieved in between end the work."""


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, by which schedulers end a program, so that it stops as after Ctrl-C.

    Does nothing outside the main thread, which alone may set signal handlers.
    """
    if not _in_main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def supervise(
    work: Callable[[], None],
    *,
    jobs: int,
    threads: int,
    on_poll: Callable[[Sequence[int]], None],
    achieved: Callable[[], object],
) -> None:
    """Run `work` in `jobs` processes until it has returned in each of them; a process that dies is replaced.

    work      picklable: the processes are spawned, as a fork would share database connections, and CUDA fails in one.
    threads   of each process, for libraries that read OMP_NUM_THREADS when they are loaded.
    on_poll   called about twice a second with the ids of the living processes.
    achieved  says what has been achieved so far, only to be compared: `MOST_DEATHS` deaths in a row without a change
              end the work.

    Raises InputError for what the user can mend (an InputError or OSError of `work`, workers that die again and again),
    RuntimeError for any other exception of `work`; both carry its traceback as a note.
    """
    workers: list[_Worker] = []
    deaths, before = 0, achieved()
    try:
        for _ in range(jobs):
            workers.append(_start(work, jobs, threads))
        while workers:
            wait([worker.process.sentinel for worker in workers], timeout=POLL_SECONDS)
            on_poll([worker.process.pid for worker in workers if worker.process.pid is not None])
            for worker in [worker for worker in workers if worker.process.exitcode is not None]:
                workers.remove(worker)
                if worker.process.exitcode == 0:
                    continue
                worker.raise_error()
                now = achieved()
                deaths, before = (deaths + 1 if now == before else 1), now
                if deaths >= MOST_DEATHS:
                    raise InputError(
                        f"{deaths} workers in a row died with nothing done, the last by {worker.cause}; see what they "
                        "printed; if memory is short, use fewer --jobs or a smaller --set size=; the same command "
                        "resumes"
                    )
                warn(f"a worker died by {worker.cause}; another one takes over")
                workers.append(_start(work, jobs, threads))
    finally:
        _stop(workers)


@dataclass(frozen=True, eq=False)
class _Worker:
    process: BaseProcess
    messages: Connection

    @property
    def cause(self) -> str:
        """What ended a process that is over."""
        code = self.process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def raise_error(self) -> None:
        """Raise the exception that ended the process; one that was killed has sent none."""
        try:
            if not self.messages.poll():
                return
            can_be_mended, text, where = self.messages.recv()
        except EOFError:
            return
        error = InputError(text) if can_be_mended else RuntimeError(text)
        error.add_note(where)
        raise error


def _start(work: Callable[[], None], jobs: int, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, jobs, writer))
    with _inherited(threads):
        process.start()
    writer.close()
    return _Worker(process, reader)


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """Set what a process started meanwhile inherits: its number of threads, and that Ctrl-C is not for it.

    Ctrl-C goes to every process of a terminal; the workers leave it to this one, from their first moment on.
    """
    limit = os.environ.get("OMP_NUM_THREADS")
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if limit is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = limit
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)


def _stop(workers: Sequence[_Worker]) -> None:
    """Let workers stop in order, and kill those that do not."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


# --- in a worker ----------------------------------------------------------------------------------------------------


def _run(work: Callable[[], None], jobs: int, messages: Connection) -> None:
    """Do the work as one of `jobs` processes, and send the exception that ends it."""
    with exit_on_sigterm():
        threading.Thread(target=_stop_when_orphaned, daemon=True).start()
        share_memory(jobs)
        try:
            work()
        except Exception as error:
            text = " ".join(str(error).split())
            if not isinstance(error, InputError):
                text = f"{type(error).__name__}: {text}"
            messages.send((isinstance(error, (InputError, OSError)), text, traceback.format_exc()))
            sys.exit(1)


def _stop_when_orphaned() -> None:
    """Stop this process when the one that started it is gone: nobody waits for its work any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
