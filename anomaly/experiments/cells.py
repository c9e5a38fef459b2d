"""Doing the cells of a bench: train, score on test, and record what went wrong."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from anomaly import runs
from anomaly.experiments.bench import Bench
from anomaly.experiments.bench_progress import remove_note, write_note
from anomaly.experiments.grid import Cell, Grid
from anomaly.formatting import command_line
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.plan import Prepared, prepare
from anomaly.pipeline.results import write_results
from anomaly.pipeline.scoring import score_selection
from anomaly.pipeline.selection import recorded_films
from anomaly.training.config import EpochReport
from preprocessing import InputError

WAIT_SECONDS = 0.5
STOPS = (*runs.FULL, errno.EPIPE)
"""Errors of the system that no cell is to blame for: a full disk; a reader of the output that has gone."""


def do_cells(path: Path, grid: Grid, threads: int, on_change: Callable[[Cell, str], None] | None = None) -> None:
    """Do cells, one after the other, until none remains, waiting for those that other processes hold.

    threads    of this process; the same number gives the same figures, whichever process does a cell.
    on_change  called with a cell and its state, in words.
    """
    torch.set_num_threads(threads)
    bench = Bench(path, grid)

    def report(cell: Cell, state: str) -> None:
        write_note(bench, cell, state)
        if on_change:
            on_change(cell, state)

    try:
        while remaining := bench.remaining():
            if not any([do_cell(bench, cell, report) for cell in remaining]):
                time.sleep(WAIT_SECONDS)  # other processes hold what remains; one of them may die
    finally:
        remove_note(bench)


def do_cell(bench: Bench, cell: Cell, on_change: Callable[[Cell, str], None]) -> bool:
    """Do a cell, unless another process holds it or has done it; return whether this one has."""
    with bench.lock(cell) as locked:
        if not locked or bench.done(cell) or bench.failure(cell) is not None:
            return False
        with bench.attempt(cell) as allowed:
            if allowed:
                on_change(cell, "starts")
                run_cell(bench, cell, lambda report: on_change(cell, f"epoch {report.epoch}/{report.epochs}"))
        on_change(cell, "failed" if bench.failure(cell) else "done")
        return True


def run_cell(bench: Bench, cell: Cell, on_epoch: Callable[[EpochReport], None] = lambda report: None) -> None:
    """Train a cell from wherever it stands and score it on test; any error is recorded as its failure.

    Except an error that every other cell would meet as well, such as a full disk: that is raised.
    """
    try:
        prepared = prepare(bench.grid.plan(cell))
        run = _open_or_create(prepared, bench.folder(cell))
        fit(prepared, run, workers=0, on_epoch=on_epoch)
        _score(bench, run)
    except runs.DiskFull:
        raise
    except InputError as error:
        bench.fail(cell, str(error))
    except Exception as error:  # models of other packages may raise anything
        if isinstance(error, OSError) and error.errno in STOPS:
            raise
        bench.fail(cell, describe(error))


def _open_or_create(prepared: Prepared, path: Path) -> runs.Run:
    """Return the run folder of a cell: as it stands where it can be resumed, or a new one.

    The grid is the same, so an unfinished run differs in the machine or in versions of libraries. It is not resumed, as
    that would make half a training of each. A finished run stays.
    """
    if path.exists():
        try:
            run = runs.Run(path)
            return run if run.finished else continue_or_create(prepared, path, resume=True)
        except InputError:
            shutil.rmtree(path)
    return continue_or_create(prepared, path, resume=False)


def _score(bench: Bench, run: runs.Run) -> None:
    """Score the test films, and write what `anomaly score` writes."""
    opened = open_run(run, bench.grid.device, bench.grid.cache)
    selection = recorded_films(run, "test", bench.grid.cache)
    result = score_selection(opened, selection, command=command_line("anomaly", "score", run.path))
    write_results(result, run.path)


def describe(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = (line.strip()[:300] for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {next(lines, 'no message')}"
