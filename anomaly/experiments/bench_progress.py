"""How far a bench is: cells done and failed, and what each process is doing, which it notes in a file of its own."""

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from anomaly.experiments.bench import Bench
from anomaly.experiments.grid import Cell
from anomaly.runs import write_atomic


class WorkerFile(BaseModel):
    """workers/<host>-<process>.json: what a process is doing."""

    cell: str
    state: str  # "epoch 3/10", in words


@dataclass(frozen=True)
class BenchProgress:
    """How far a bench is."""

    done: int
    failed: int
    cells: int
    running: Mapping[str, str]  # cell -> epoch, in words

    def note(self) -> str:
        """Return it in a few words."""
        running = ", ".join(f"{cell} {state}" for cell, state in sorted(self.running.items()))
        return f"{f'{self.failed} failed  ' if self.failed else ''}{running}"


def bench_progress(bench: Bench, running: Mapping[str, str]) -> BenchProgress:
    """Return how far a bench is while these cells are running."""
    done = sum(bench.done(cell) for cell in bench.cells)
    failed = sum(bench.failure(cell) is not None for cell in bench.cells)
    return BenchProgress(done, failed, len(bench.cells), dict(running))


def write_note(bench: Bench, cell: Cell, state: str) -> None:
    """Note what this process is doing."""
    write_atomic(_note(bench, os.getpid()), WorkerFile(cell=cell.name, state=state).model_dump_json())


def remove_note(bench: Bench) -> None:
    """Remove the note of this process."""
    _note(bench, os.getpid()).unlink(missing_ok=True)


def read_notes(bench: Bench, pids: Sequence[int]) -> dict[str, str]:
    """Return what processes of this machine are doing: cell -> state."""
    running = {}
    for pid in pids:
        with suppress(OSError, ValidationError):  # none yet, or just removed
            note = WorkerFile.model_validate_json(_note(bench, pid).read_bytes())
            running[note.cell] = note.state
    return running


def _note(bench: Bench, pid: int) -> Path:
    """Return the file of a process; other machines that share the folder have the same process ids."""
    return bench.path / "workers" / f"{socket.gethostname()}-{pid}.json"
