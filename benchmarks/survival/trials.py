"""One command of the command line as a process: forked from one that has imported everything, so it starts at once."""

import atexit
import ctypes
import importlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.survival.shim import Shim

TIMEOUT = 120.0
"""Seconds that a command may take."""
_LEFT_BEHIND = 10.0
"""Seconds that what a command started may outlive it."""
_SUBREAPER = 36
_SKIPPED = ("anomaly.service", "anomaly.__main__")
"""Start threads or a program when they are imported."""
_LIBRARIES = ("torch", "torchvision", "sklearn.metrics", "scipy.ndimage", "matplotlib.figure", "tifffile")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    """Exit status; minus the signal that killed it."""
    out: str
    err: str
    seconds: float
    hung: bool
    """Whether it, or a process that it started, had to be killed here."""


def import_everything() -> None:
    """Import what any verb imports, and use none of it: what is forked afterwards starts at once.

    No operation of torch may run before: its threads do not survive a fork.
    """
    import anomaly
    import preprocessing

    names = [*_LIBRARIES]
    for package in (anomaly, preprocessing):
        names += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=str)]
    for name in names:
        if not name.startswith(_SKIPPED):
            with suppress(ImportError):  # of an optional package
                importlib.import_module(name)


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def run(words: Sequence[str], folder: Path, logs: Path, arm: Callable[[int], None], shim: Shim) -> Ended:
    """Run `anomaly WORDS` in a folder, and return when no process of it is left.

    arm    called in the forked process with the id of its process group, just before the command begins.
    logs   folder, not watched, for what it prints.
    """
    files = [logs / "out.txt", logs / "err.txt"]
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(words, folder, files, arm)
    status, hung = _wait(child)
    shim.disarm()
    out, err = (file.read_text(errors="replace") for file in files)
    return Ended(status, out, err, time.monotonic() - start, hung)


def _become(words: Sequence[str], folder: Path, files: Sequence[Path], arm: Callable[[int], None]) -> NoReturn:
    """In the child: become the command, and end with its status."""
    status = 1
    try:
        os.setsid()
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        sys.argv = ["anomaly", *words]
        from anomaly.cli.app import main

        arm(os.getpid())
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _wait(child: int) -> tuple[int, bool]:
    """Wait for the child and all that it started; what takes too long is killed. Return its status, and whether so."""
    deadline, status, hung = time.monotonic() + TIMEOUT, None, False
    while True:
        try:
            pid, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return (status if status is not None else 1), hung
        if pid == child:
            status = os.waitstatus_to_exitcode(how)
            deadline = time.monotonic() + (0.0 if status == -signal.SIGKILL else _LEFT_BEHIND)
        elif pid == 0:
            if time.monotonic() > deadline:
                hung = hung or status != -signal.SIGKILL
                for orphan in _children():
                    with suppress(ProcessLookupError):
                        os.kill(orphan, signal.SIGKILL)
                deadline = time.monotonic() + _LEFT_BEHIND
            time.sleep(0.003)


def _children() -> list[int]:
    threads = Path("/proc/self/task")
    return [int(pid) for one in threads.iterdir() for pid in (one / "children").read_text().split()]
