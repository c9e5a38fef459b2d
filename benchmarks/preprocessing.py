"""Films a second from files to cache, with one worker process and with two, alternating; built-in SYNTHETIC films.

Everything counts: decoding, hashing, the recipe, writing. One worker is this process with OpenCV on one thread, which
is what each of the two is.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from anomaly.localization.nets import load_localizer, load_segmenter
from benchmarks.record import command_line, record, spread
from preprocessing.build import BuildOptions, build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import VARIANTS, Nets, Recipe
from preprocessing.sources import open_source


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
        for number in range(options.rounds + 1):
            for name, how in sides.items():
                for workers in (1, 2):
                    start = time.perf_counter()
                    recipe = Recipe(name="limb", size=options.size)
                    settings = BuildOptions(workers=workers, force=True, variants=how["variants"])
                    build(source, recipe, Path(folder) / "cache.h5", how.get("nets", Nets()), settings)
                    if number:  # the first round starts the processes
                        rate = made.films / (time.perf_counter() - start)
                        rates.setdefault(f"{name}, {workers} worker{'s' * (workers > 1)}", []).append(rate)
    figures: dict[str, Any] = {f"{name}, films_per_second": spread(values) for name, values in rates.items()}
    for name in sides:
        one, two = (figures[f"{name}, {n}, films_per_second"]["median"] for n in ("1 worker", "2 workers"))
        figures[f"{name}, two_workers_over_one"] = two / one
    record(
        "preprocessing",
        command_line("preprocessing"),
        {"films": made.films, "film_px": 512, "size": options.size, "rounds": options.rounds},
        figures,
    )


if __name__ == "__main__":
    main()
