"""Worker processes of this machine: tasks in, results out in the order of the tasks.

Each worker has a pipe of its own. When it ends, the pipe does, even in the middle of a result; and when this process
ends, however that is, its workers read the end of their pipes and end too. Workers that are idle at the end stay for
the next tasks of this process, with the nets that they have loaded, and end by themselves after KEPT seconds.
"""

import os
import subprocess  # nosec B404 # starts this very Python, below
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from enum import Enum
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

SERVE = "import sys; sys.path[:] = sys.argv[2:]; from preprocessing.workers import serve; serve(int(sys.argv[1]))"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


KEPT = 30.0  # seconds that a worker waits for a task; then it gives back its memory


class Lost(Enum):
    """What stands for the result of a task whose worker ended: LOST."""

    LOST = "lost"


LOST: Literal[Lost.LOST] = Lost.LOST


def run_in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int, ahead: int
) -> Generator[Result | Literal[Lost.LOST], None, None]:
    """Run a function on tasks in worker processes; yields its results, or LOST, in the order of the tasks.

    workers   processes; one that ends is replaced
    ahead     tasks given out before the first of them has its result taken: bounds the results that wait

    Function, tasks and results are sent, so they must be picklable. What the function raises is raised here.
    """
    todo, given, taken = iter(tasks), 0, 0
    results: dict[int | None, tuple[bool, Any]] = {}  # by the task's number: whether it succeeded, and what came of it
    pool = [_kept_or_new() for _ in range(workers)]
    try:
        while True:
            for worker in pool:
                if worker.task is None and given - taken < ahead:
                    for task in todo:
                        worker.give(given, function, task)
                        given += 1
                        break
            if taken in results:
                succeeded, result = results.pop(taken)
                taken += 1
                if not succeeded:
                    raise result
                yield result
                continue
            busy = {worker.pipe: worker for worker in pool if worker.task is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                number = worker.task
                results[number] = worker.answer()
    finally:
        for worker in pool:
            if worker.task is None:
                _idle.append(worker)
            else:
                worker.end()


def serve(descriptor: int) -> None:
    """Work, in a worker process, until the pipe ends, or no task comes for KEPT seconds."""
    pipe = Connection(descriptor)
    while pipe.poll(KEPT):  # also at the pipe's end
        try:
            function, task = pipe.recv()
        except (EOFError, ConnectionResetError):  # reset: the parent closed it with an answer unread
            return
        try:
            answer: tuple[bool, Any] = (True, function(task))
        except Exception as error:
            answer = (False, error)
        with suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(answer)


class _Worker:
    """A worker process, started at once, and the number of the task it has."""

    def __init__(self) -> None:
        self.task: int | None = None
        self._start()

    def serves(self) -> bool:
        """Tell whether the process is alive, and as it would be if it were started now."""
        return self._process.poll() is None and self._started_in == _surroundings()

    def give(self, number: int, function: Callable[[Any], Any], task: Any) -> None:
        """Give an idle worker a task; one that has ended since is replaced."""
        try:
            self.pipe.send((function, task))
        except (BrokenPipeError, ConnectionResetError):
            self.end()
            self._start()
            self.pipe.send((function, task))
        self.task = number

    def answer(self) -> tuple[bool, Any]:
        """Take the answer to the task: whether it succeeded, and its result, LOST, or what was raised."""
        self.task = None
        try:
            answer: tuple[bool, Any] = self.pipe.recv()
        except (EOFError, OSError):  # OSError: in the middle of an answer
            self.end()
            self._start()
            return True, LOST
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._started_in = _surroundings()
        self.pipe, other = Pipe()
        with other:
            self._process = subprocess.Popen(  # nosec B603 # no shell, and no word of it comes from a user
                [sys.executable, "-c", SERVE, str(other.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                process_group=0,  # Ctrl-C reaches all of the terminal's group; this process ends its workers itself
                env=os.environ | dict.fromkeys(THREADS, "1"),
            )


_idle: list[_Worker] = []


def _kept_or_new() -> _Worker:
    """Take a worker that is idle, or start one; one that would work elsewhere than this process does now is ended."""
    while _idle:
        worker = _idle.pop()
        if worker.serves():
            return worker
        worker.end()
    return _Worker()


def _surroundings() -> tuple[object, ...]:
    """What a worker takes over when it starts: paths of modules, the folder relative paths start from, settings."""
    return tuple(sys.path), Path.cwd(), dict(os.environ)
