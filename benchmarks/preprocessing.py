"""Films a second from files to cache, with one worker process and with two, alternating; built-in SYNTHETIC films."""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.record import record, spread
from preprocessing.build import build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import VARIANTS, Recipe
from preprocessing.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = Path(folder) / "films"
        made = write_phantoms(films, seed=0, patients=options.patients)
        source = open_source(films)
        sets = {"full-he": ("full-he",), "all six variants": VARIANTS[:6]}  # the paper's
        rates: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, variants in sets.items():
                for workers in (1, 2):
                    start = time.perf_counter()
                    recipe = Recipe(name="hand", size=options.size)
                    build(source, recipe, Path(folder) / "cache.h5", variants=variants, workers=workers, force=True)
                    rate = made.films / (time.perf_counter() - start)
                    rates.setdefault(f"{name}, {workers} worker{'s' * (workers > 1)}, films_per_second", []).append(
                        rate
                    )
    figures = {name: spread(values) for name, values in rates.items()}
    one, two = (figures[f"full-he, {n}, films_per_second"]["median"] for n in ("1 worker", "2 workers"))
    record(
        "preprocessing",
        f"python -m benchmarks.preprocessing --patients {options.patients} --size {options.size} "
        f"--rounds {options.rounds}",
        {"films": made.films, "film_px": 512, "size": options.size, "rounds": options.rounds},
        {**figures, "two_workers_over_one": two / one},
    )


if __name__ == "__main__":
    main()
