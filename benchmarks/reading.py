"""Reading films of 512 px: decoding PNGs against reading the cache, the very same pixels; built-in SYNTHETIC films.

    png   read the file, `cv2.imdecode` to grey (libpng, one thread); files as `cv2.imwrite` writes them unasked
    ours  `Cache.films`, one film or 16 at a time, from a cache uncompressed, lzf or gzip; one thread, too
    copy  the same films copied one by one from an array in memory: no reader that hands out an array can be faster

All sides take the films in one shuffled order, as training does, in turns. Warm: the files are in the page cache, and
the cache is open, as within an epoch. Cold: before each round the kernel is asked to drop every page of all files, and
the cache is opened anew. What a disk, or the host of a virtual machine, keeps in memory of its own stays there.
"""

import argparse
import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import alternate, record, spread
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

SIZE = 512
BATCH = 16
COMPRESSIONS = {"uncompressed": None, "lzf": "lzf", "gzip": "gzip"}
FILMS = {"plain": "crop", "limb": "full-he"}
"""Recipe and variant: the film as it came, and what `anomaly preprocess` makes of it unasked."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = Path(folder) / "films"
        write_phantoms(films, seed=0, patients=options.patients, size=SIZE)
        for recipe, variant in FILMS.items():
            measure(films, Path(folder) / recipe, recipe, variant, options.patients, options.rounds)


def measure(films: Path, folder: Path, recipe: str, variant: str, patients: int, rounds: int) -> None:
    source, caches = open_source(films), {}
    for name, compression in COMPRESSIONS.items():
        path = folder / f"{name}.h5"
        build(
            source,
            Recipe(name=recipe, size=SIZE),
            path,
            options=BuildOptions(variants=(variant,), compression=compression),
        )
        caches[name] = path
    stored = Cache(caches["uncompressed"]).films(variant, slice(None))
    pngs = [write_png(folder / f"{row}.png", film) for row, film in enumerate(stored)]
    for row, png in enumerate(pngs):
        for path in caches.values():
            assert (Cache(path).films(variant, np.array([row]))[0] == decode(png)).all()
    order = np.random.default_rng(0).permutation(len(stored))

    def decode_all() -> None:
        for row in order:
            decode(pngs[row])

    def read_all(path: Path | Cache, count: int) -> None:
        cache = path if isinstance(path, Cache) else Cache(path)
        for start in range(0, len(order), count):
            cache.films(variant, order[start : start + count])

    def sides(given: dict[str, Any]) -> dict[str, Callable[[], object]]:
        made: dict[str, Callable[[], object]] = {"png": decode_all}
        for name, cache in given.items():
            for count in (1, BATCH):
                made[f"{name}, {count} at a time"] = lambda cache=cache, count=count: read_all(cache, count)
        return made

    def copy_all() -> None:
        for row in order:
            stored[row].copy()

    opened = {name: Cache(path) for name, path in caches.items()}
    warm = alternate(sides(opened) | {"copy": copy_all}, rounds, len(order))
    cold, left = dropped(sides(caches), rounds, len(order), [*pngs, *caches.values()])
    figures: dict[str, Any] = {}
    for state, seconds in (("warm", warm), ("cold", cold)):
        for name, values in seconds.items():
            figures[f"{state}, {name}, ms"] = {key: 1000 * value for key, value in values.items()}
        for name in seconds:
            if name != "png":
                figures[f"{state}, png over {name}"] = seconds["png"]["median"] / seconds[name]["median"]
    figures["png, bytes a film"] = sum(png.stat().st_size for png in pngs) / len(pngs)
    for name, path in caches.items():  # with masks and index
        figures[f"{name}, bytes a film"] = path.stat().st_size / len(pngs)
    figures["share of pages left when cold"] = left
    record(
        f"reading, {recipe}",
        f"python -m benchmarks.reading --patients {patients} --rounds {rounds}",
        {
            "films": len(pngs),
            "size": SIZE,
            "recipe": recipe,
            "variant": variant,
            "rounds": rounds,
            "decoder": f"opencv {cv2.__version__}, libpng {built_with('PNG')}, zlib {built_with('ZLib')}",
        },
        figures,
    )


def write_png(path: Path, film: NDArray[Any]) -> Path:
    """Write a film and wait until it is on the disk: only then can its pages be dropped."""
    cv2.imwrite(str(path), film)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def decode(path: Path) -> NDArray[Any]:
    """Return a PNG file's film, (S, S) uint8."""
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)


def dropped(
    sides: dict[str, Callable[[], object]], rounds: int, films: int, paths: list[Path]
) -> tuple[dict[str, dict[str, float]], float]:
    """Return the seconds a film of every side, each time from files just dropped from the page cache, in turns.

    With it comes the share of the files' pages that was still there after the worst of all drops.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    left = []
    for _ in range(rounds):
        for name, side in sides.items():
            for path in paths:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            left.append(in_memory(paths))
            start = time.perf_counter()
            side()
            seconds[name].append((time.perf_counter() - start) / films)
    return {name: spread(values) for name, values in seconds.items()}, max(left)


def in_memory(paths: list[Path]) -> float:
    """Return the share of the files' pages that are in memory, as the kernel says (mincore)."""
    libc, pages, there = ctypes.CDLL(None, use_errno=True), 0, 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
            count = -(-len(mapped) // mmap.PAGESIZE)
            found = (ctypes.c_ubyte * count)()
            first = ctypes.c_char.from_buffer(mapped)  # a private, writable map: the file itself cannot change
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), found)
            del first  # lets the map close
            if failed:
                raise OSError(ctypes.get_errno(), f"mincore of {path}")
            pages, there = pages + count, there + sum(page & 1 for page in found)
    return there / pages


def built_with(library: str) -> str:
    """Return the version of a library that OpenCV was built with, as it says."""
    lines = (line.strip() for line in cv2.getBuildInformation().splitlines())
    return next((line.rpartition("ver ")[2].rstrip(")") for line in lines if line.startswith(f"{library}:")), "?")


if __name__ == "__main__":
    main()
