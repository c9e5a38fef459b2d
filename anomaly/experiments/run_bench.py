"""Doing all cells of a bench: in this process, in worker processes beside it, or on a Dask cluster."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from anomaly import runs
from anomaly.experiments.bench import Bench
from anomaly.experiments.bench_progress import BenchProgress, bench_progress, read_notes
from anomaly.experiments.cells import WAIT_SECONDS, do_cell, do_cells
from anomaly.experiments.grid import Cell, Grid
from anomaly.experiments.supervisor import MOST_DEATHS, exit_on_sigterm, supervise
from preprocessing import InputError
from preprocessing.cluster import connect

OnChange = Callable[[BenchProgress], None]


def run_bench(bench: Bench, *, jobs: int, threads: int, on_change: OnChange) -> None:
    """Do all cells in `jobs` processes of `threads` threads each; the cell of one that dies is resumed by another."""
    with bench.at_work(), exit_on_sigterm():
        if jobs == 1:

            def report(cell: Cell, state: str) -> None:
                on_change(bench_progress(bench, {cell.name: state}))

            do_cells(bench.path, bench.grid, threads, report)
        else:
            supervise(
                partial(do_cells, bench.path, bench.grid, threads),
                jobs=min(jobs, len(bench.remaining())),
                threads=threads,
                on_poll=lambda pids: on_change(bench_progress(bench, read_notes(bench, pids))),
                achieved=bench.achieved,
            )
        on_change(bench_progress(bench, {}))


def run_on_cluster(bench: Bench, address: str, *, threads: int, on_change: OnChange) -> None:
    """Do all cells on the workers of a Dask cluster, a cell at a time each; they read the cache and write the bench.

    A cell whose worker is lost is resumed by another one. A cell that another process holds is waited for while there
    is nothing else to do.
    """
    path, grid = bench.path.absolute(), replace(bench.grid, cache=bench.grid.cache.absolute())
    check = partial(_check_worker, path, grid.cache)
    with (
        bench.at_work(),
        exit_on_sigterm(),
        connect(address, check, runs.FORMAT, f"{grid.cache} and {path}", gpu=True) as cluster,
    ):
        deaths = 0
        while remaining := bench.remaining():
            before = bench.achieved()
            try:
                for _ in cluster.run_as_completed(partial(do_cell_on_worker, path, grid, threads), remaining):
                    on_change(bench_progress(bench, {}))
            except cluster.lost:
                # The cell whose worker was lost has an attempt more, which changes what was achieved.
                deaths = deaths + 1 if bench.achieved() == before else 0
                if deaths >= MOST_DEATHS:
                    raise InputError(
                        f"{address}: {deaths} workers in a row were lost with nothing done; see what they printed"
                    ) from None
            if bench.remaining() == remaining:
                time.sleep(WAIT_SECONDS)
        on_change(bench_progress(bench, {}))


def _check_worker(path: Path, cache: Path) -> int:
    """Check, on a worker, that cache and bench are there; return the version of the run folders that it makes."""
    cache.stat()
    (path / "bench.json").stat()
    return runs.FORMAT


def do_cell_on_worker(path: Path, grid: Grid, threads: int, cell: Cell) -> None:
    """Do one cell on a worker of a cluster, unless another process does it."""
    torch.set_num_threads(threads)
    do_cell(Bench(path, grid), cell, lambda cell, state: None)
