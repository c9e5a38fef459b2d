"""Films a second from files to cache, with one worker process and with two, alternating; built-in SYNTHETIC films.

Everything counts: decoding, hashing, the recipe, writing. One worker is this process with OpenCV on one thread, which
is what each of the two is. The floor is what cannot be left out: decoding, the recipe, and writing films and masks to
one HDF5 file, without a source, an index or workers.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from anomaly.localization.nets import load_localizer, load_segmenter
from benchmarks.record import command_line, record, spread
from preprocessing.build import BuildOptions, build
from preprocessing.cache.schema import stage_of
from preprocessing.phantom import write_phantoms
from preprocessing.readers import read_film
from preprocessing.recipe import VARIANTS, Nets, Recipe
from preprocessing.sources import open_source


def floor(films: Path, recipe: Recipe, variants: tuple[str, ...], nets: Nets) -> None:
    """Decode, prepare and write every film."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    source = open_source(films)
    shape = len(source.records), recipe.size, recipe.size
    with h5py.File(films.parent / "floor.h5", "w") as file:
        stored = {v: file.create_dataset(v, shape, "u1", chunks=(1, *shape[1:])) for v in variants}
        masks = {
            stage: file.create_dataset(f"{stage} mask", (shape[0], shape[1] * shape[2] // 8), "u1")
            for stage in sorted({stage_of(variant) for variant in variants})
        }
        for row, film in enumerate(source.records):
            (made, *_) = recipe.apply(read_film(film.path, source.read(film.path)), variants=variants, nets=nets)
            for variant, dataset in stored.items():
                dataset[row] = made.films[variant]
            for stage, packed in masks.items():
                packed[row] = np.packbits(made.masks[stage])
    cv2.setNumThreads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", action="store_true", help="a recipe by the package's nets, too")
    options = parser.parse_args()
    sides: dict[str, dict[str, Any]] = {
        "full-he": {"variants": ("full-he",)},
        "the paper's six variants": {"variants": VARIANTS[:6]},
    }
    if options.nets:
        nets = Nets(load_localizer(), load_segmenter())
        sides["full-he by SSD and U-Net"] = {"variants": ("full-he",), "nets": nets}
    with tempfile.TemporaryDirectory() as folder:
        films = Path(folder) / "films"
        made = write_phantoms(films, seed=0, patients=options.patients)
        source = open_source(films)
        rates: dict[str, list[float]] = {}
        shares: dict[str, list[float]] = {}  # of the processor's time that one worker takes, what the floor takes
        for number in range(options.rounds + 1):
            for name, how in sides.items():
                recipe = Recipe(name="limb", size=options.size)
                start, busy = time.perf_counter(), time.process_time()
                floor(films, recipe, how["variants"], how.get("nets", Nets()))
                least = time.process_time() - busy
                if number:
                    rates.setdefault(f"{name}, floor", []).append(made.films / (time.perf_counter() - start))
                for workers in (1, 2):
                    start, busy = time.perf_counter(), time.process_time()
                    settings = BuildOptions(workers=workers, force=True, variants=how["variants"])
                    build(source, recipe, Path(folder) / "cache.h5", how.get("nets", Nets()), settings)
                    if number and workers == 1:
                        shares.setdefault(name, []).append(least / (time.process_time() - busy))
                    if number:  # the first round starts the processes
                        rate = made.films / (time.perf_counter() - start)
                        rates.setdefault(f"{name}, {workers} worker{'s' * (workers > 1)}", []).append(rate)
    figures: dict[str, Any] = {f"{name}, films_per_second": spread(values) for name, values in rates.items()}
    for name in sides:
        one, two = (figures[f"{name}, {n}, films_per_second"]["median"] for n in ("1 worker", "2 workers"))
        figures[f"{name}, two_workers_over_one"] = two / one
        figures[f"{name}, of_the_floor"] = spread(shares[name])
    record(
        "preprocessing",
        command_line("preprocessing"),
        {"films": made.films, "film_px": 512, "size": options.size, "rounds": options.rounds},
        figures,
    )


if __name__ == "__main__":
    main()
