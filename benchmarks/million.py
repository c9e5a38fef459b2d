"""A cache of 1,000,000 films: opening, splitting, listing it, and scoring 1,000 of them.

The films are built-in ones (SYNTHETIC). The file is simulated as far as its pixels go, and only so far: all chunks are
laid out, as a build does, but written for the films to be scored alone, the others being holes of a sparse file. The
tables of chunks and the whole index are real: paths, patients, studies, checksums, and a manifest's columns. Two films
make a study, two studies a patient.

Each stage is a process of its own: seconds of processor, and peak memory by the kernel's mark (VmHWM); that of a
process that does nothing but import is a stage too. Exponents are between the last two sizes.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import FilmSet
from anomaly.data.splits import assign_splits, split_hash
from benchmarks.record import record
from benchmarks.scaling import MIB, exponent, high_water, took
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import COLUMNS, checksum, content_hash, seal

SITES = ("a", "b", "c", "d")
SUBSET = "scored"  # the site of the films whose pixels are written
ARRAYS = ("films", "masks", "truth")
FILMS_PER_STUDY, STUDIES_PER_PATIENT = 2, 2

STAGES: dict[str, Callable[[Cache], object]] = {
    "open": len,
    "index": lambda cache: cache.index,
    "split": lambda cache: split_hash(
        cache.names, assign_splits(*(cache.index[name] for name in ("patient", "label", "split")), seed=0)
    ),
    "film set": lambda cache: FilmSet(cache, cache.variants[0], np.arange(len(cache)), cache.size).label,
    "where": lambda cache: cache.where([f"site={SUBSET}"]),
    "read 100 films": lambda cache: cache.films(
        cache.variants[0], np.flatnonzero(cache.where([f"site={SUBSET}"]))[:100]
    ),
}
"""What is done to a cache that was just opened, each in a process of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--scored", type=int, default=1000, help="films whose pixels are written, and that are scored")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1, help="how often each stage runs; medians are kept")
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        name, path = options.stage
        start = time.process_time()
        if name != "import":
            STAGES[name](Cache(Path(path)))
        print(json.dumps({"seconds": time.process_time() - start, "peak": high_water(os.getpid())}))
        return
    sizes = sorted(set(options.films))
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder), sizes, options.scored, options.size, options.rounds)
    command = f"python -m benchmarks.million --films {' '.join(map(str, sizes))} --scored {options.scored}"
    command += f" --size {options.size} --rounds {options.rounds}"
    record("million", command, {"films": sizes, "scored": options.scored, "size": options.size}, figures)


def measured(folder: Path, sizes: list[int], scored: int, size: int, rounds: int) -> dict[str, Any]:
    """Return stage -> seconds and MiB by number of films, and what the file takes."""
    small, run = folder / "small.h5", folder / "run"
    took(0, ["phantom", str(folder / "films"), "--patients", "40", "--size", str(size)])
    took(0, ["preprocess", str(folder / "films"), "--size", str(size), "--out", str(small)])
    took(0, ["train", "cae", "--preset", "fast", "--set", "epochs=1", "--cache", str(small), "--out", str(run)])
    figures: dict[str, Any] = {}
    for films in sizes:
        cache = folder / f"{films}.h5"
        simulate(Cache(small), cache, films, scored)
        stat = cache.stat()
        figures.setdefault("file, GB", {})[str(films)] = stat.st_size / 1e9
        figures.setdefault("file, GB on disk", {})[str(films)] = stat.st_blocks * 512 / 1e9
        for name, (seconds, peak) in stages_of(cache, run, rounds).items():
            figures.setdefault(f"{name}, s", {})[str(films)] = round(seconds, 3)
            figures.setdefault(f"{name}, peak MiB", {})[str(films)] = round(peak / MIB, 1)
            print(f"{films} films, {name}: {seconds:.2f} s, {peak / MIB:.0f} MiB", flush=True)
        cache.unlink()
        shutil.rmtree(run / cache.stem, ignore_errors=True)
    for name in [name for name in figures if name.endswith(", s") and name != "import, s"]:
        figures[f"{name[:-3]}, exponent"] = exponent(sizes, list(figures[name].values())).get("last two")
    return figures


def stages_of(cache: Path, run: Path, rounds: int) -> dict[str, tuple[float, int]]:
    """Return what each stage takes of a cache: median seconds, and the most bytes that were resident."""
    found: dict[str, list[tuple[float, int]]] = {}
    for _ in range(rounds):
        for name in ("import", *STAGES):
            words = [sys.executable, "-m", "benchmarks.million", "--stage", name, str(cache)]
            said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
            found.setdefault(name, []).append((said["seconds"], said["peak"]))
        for name, words in {
            "inspect": ["inspect", str(cache)],
            "score the subset": ["score", str(run), str(cache), "--where", f"site={SUBSET}"],
        }.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            peak = took(0, words).peaks[0]
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found.setdefault(name, []).append((seconds, peak))
    return {
        name: (median(seconds for seconds, _ in tries), max(peak for _, peak in tries)) for name, tries in found.items()
    }


def simulate(small: Cache, path: Path, films: int, written: int) -> None:
    """Write a cache of so many films as a build would leave it, with the pixels of `written` of them, evenly spread.

    small  the films that these repeat, each time as those of new patients
    """
    rows = np.unique(np.linspace(0, films - 1, min(written, films)).astype(int))
    with h5py.File(small.path, "r", locking=False) as source, h5py.File(path, "w") as file:
        arrays = {
            f"{group}/{name}": source[group][name] for group in ARRAYS if group in source for name in source[group]
        }
        for name, array in arrays.items():
            lay_out(file, name, films, array)
            for row in rows:
                file[name][row] = array[row % len(small)]
        hole = checksum(np.zeros(array.shape[1:], array.dtype) for array in arrays.values())
        columns = index_of(small, films, rows, hole)
        for name, (dtype, _) in COLUMNS.items():
            file.create_dataset(
                f"index/{name}", data=columns[name], dtype=h5py.string_dtype() if dtype == "str" else dtype
            )
        for name in ("path", "reason"):
            file.create_dataset(f"failures/{name}", (0,), h5py.string_dtype())
        file.attrs.update({name: value for name, value in source.attrs.items() if name != "seal"})
        file.attrs.update(done=films, content=content_hash(columns.__getitem__))
        file.attrs["seal"] = seal(dict(file.attrs), [])


def lay_out(file: Any, name: str, films: int, like: Any) -> None:
    """Make a dataset whose chunks have their places in the file, and are holes until they are written."""
    layout, shape = h5py.h5p.create(h5py.h5p.DATASET_CREATE), like.shape[1:]
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    chunks, most = (1, *shape), (None, *shape)
    file.create_dataset(name, (films, *shape), like.dtype, chunks=chunks, maxshape=most, fill_time="never", dcpl=layout)


def index_of(small: Cache, films: int, written: NDArray[np.int64], hole: int) -> dict[str, NDArray[Any]]:
    """Return the index of `films` films, name -> (films, ...); `hole` is the checksum of those not written."""
    rows = range(films)
    columns = {name: np.resize(values, (films, *values.shape[1:])) for name, values in small.index.items()}
    checksums = np.full(films, hole, np.uint64)
    checksums[written] = columns["checksum"][written]
    studies = [row // FILMS_PER_STUDY for row in rows]
    patients = [study // STUDIES_PER_PATIENT for study in studies]
    sites = [SITES[patient % len(SITES)] for patient in patients]
    for row in written:
        sites[row] = SUBSET
    said = [
        {"age": str(20 + p % 60), "sex": "FM"[p % 2], "site": site} for p, site in zip(patients, sites, strict=True)
    ]
    places = list(zip(patients, studies, rows, strict=True))
    return columns | {
        "path": texts(f"XR_HAND/patient{p:07d}/study{s:07d}/image{r:07d}.png" for p, s, r in places),
        "patient": texts(f"patient{p:07d}" for p in patients),
        "study": texts(f"patient{p:07d}/study{s:07d}" for p, s, _ in places),
        "sha256": texts(hashlib.sha256(str(row).encode()).hexdigest() for row in rows),
        "columns": texts(map(json.dumps, said)),
        "split": texts("" for _ in rows),
        "hand": np.zeros(films, np.int8),
        "checksum": checksums,
    }


def texts(values: Iterable[str]) -> NDArray[Any]:
    """Return an object array of str."""
    return np.array(list(values), dtype=object)


if __name__ == "__main__":
    main()
