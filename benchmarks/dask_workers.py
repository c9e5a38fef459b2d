"""Preparation and a bench on Dask clusters of 1, 2, 4 and 8 workers of this machine, beside the same without Dask.

Workers have one thread each. Efficiency is the rate over that of one worker, over the workers that the machine has
cores for: beyond these more workers can only share them. Starting a cluster is not counted, starting a build is. The
bench trains a small CAE and DCGAN with several seeds, a cell at a time for each worker. Built-in films (SYNTHETIC).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import command_line, record, spread
from preprocessing.build import BuildOptions, build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source


@contextmanager
def cluster(workers: int, folder: Path) -> Iterator[str]:
    """Start a scheduler and so many workers, and give its address once all have come."""
    from distributed import Client

    place = folder / f"scheduler-{workers}.json"
    local = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(place)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "critical"}

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", f"distributed.cli.dask_{program}", *local, *arguments]
        return subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)

    processes = [start("scheduler", "--port", "0")]
    worker = ["--no-nanny", "--nthreads", "1", "--local-directory", str(folder / "dask")]
    processes += [start("worker", *worker) for _ in range(workers)]
    try:
        while not place.exists():
            time.sleep(0.05)
        address = str(json.loads(place.read_text())["address"])
        with Client(address) as client:
            client.wait_for_workers(workers, timeout=120)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def bench(cache: Path, out: Path, seeds: int, *place: str) -> float:
    """Return the seconds that a small bench takes, from the command to the table."""
    words = [sys.executable, "-m", "anomaly", "bench", "--cache", str(cache), "--out", str(out), "--device", "cpu"]
    words += ["--models", "cae,dcgan", "--size", "64", "--seeds", ",".join(map(str, range(seeds)))]
    start = time.perf_counter()
    subprocess.run([*words, *place], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3, help="of the preparation; the first, uncounted one warms up")
    parser.add_argument("--seeds", type=int, default=4, help="of the bench; 0 leaves it out")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="anomaly-dask-") as place:
        folder = Path(place)
        made = write_phantoms(folder / "films", seed=0, patients=options.patients)
        source, recipe, small = open_source(folder / "films"), Recipe(size=512), folder / "small.h5"
        build(source, Recipe(size=64), small)

        def measure(name: str, workers: int, address: str | None) -> None:
            settings = BuildOptions(workers=workers, cluster=address, force=True)
            rates = []
            for _ in range(options.rounds + 1):
                start = time.perf_counter()
                build(source, recipe, folder / "cache.h5", options=settings)
                rates.append(made.films / (time.perf_counter() - start))
            figures[f"prepare, {name}, films_per_second"] = spread(rates[1:])
            if options.seeds:
                where = ("--jobs", str(workers)) if address is None else ("--cluster", address)
                figures[f"bench, {name}, s"] = bench(small, folder / f"bench {name}", options.seeds, *where)

        for workers in (1, min(2, cores)):
            measure(f"without Dask, {workers}", workers, None)
        for workers in options.workers:
            with cluster(workers, folder) as address:
                measure(f"Dask, {workers}", 1, address)
        least = options.workers[0]
        for workers in options.workers:
            more = min(workers, cores) / min(least, cores)
            rate, one = (figures[f"prepare, Dask, {n}, films_per_second"]["median"] for n in (workers, least))
            figures[f"prepare, Dask, {workers}, efficiency"] = rate / one / more
            if options.seeds:
                ratio = figures[f"bench, Dask, {least}, s"] / figures[f"bench, Dask, {workers}, s"]
                figures[f"bench, Dask, {workers}, efficiency"] = ratio / more
    settings = {"films": made.films, "cores": cores, "rounds": options.rounds, "cells": 2 * options.seeds}
    record("dask_workers", command_line("dask_workers"), settings, figures)


if __name__ == "__main__":
    main()
