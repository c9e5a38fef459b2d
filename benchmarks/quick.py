"""Two minutes: the ratios that tell most, beside those recorded last on such a machine; exit status 1 for a regression.

Each ratio is that of two sides measured in turns, higher is better:

    training      a step of the CAE in plain NCHW float32 over ours (both keep freed memory, as they share a process)
    loading       what an epoch of the CAE at 128 px keeps of the bare step's pace
    reading       decoding a 512 px film's PNG over reading it from an uncompressed cache, 16 at a time
    preparation   decoding and recipe alone over the build of a cache, one worker, 512 px
    scoring       the CAE's network alone over the way from a cache to scores, 128 px
    bundle        processor time of `anomaly score RUN FILM` over that of `anomaly score BUNDLE FILM`

Such a machine has the same processor, number of cores and GPU, and the line the same settings. A ratio regresses where
its median is less than the recorded minimum by more than MARGIN of it. Without a line of such a machine the figures are
recorded, and the next run compares with them; with one only where --record is given: a run that was slow is no measure
for the next. Films are built-in ones or noise (SYNTHETIC).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.predict import score
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.models import find_detector
from anomaly.pipeline.plan import resolve
from anomaly.training.device import make_repeatable
from benchmarks import record as recording
from benchmarks.data_loading import bare
from benchmarks.reading import BATCH, decode, write_png
from benchmarks.record import machine, record, rounds_of, spread
from benchmarks.scoring import in_place, network
from benchmarks.startup import spent
from benchmarks.training import DEVICE, noise, our_epoch, step, trainer
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.readers import read_film
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

NAME = "quick"
MARGIN = 0.1
"""Share of the recorded minimum by which a median may be less: noise of a shared machine, sides in turns or not."""
VARIANT = "full-he"


@dataclass(frozen=True)
class Sizes:
    """How large the sides are; those of the command unless a test wants less."""

    rounds: int = 5
    films: int = 48  # read, prepared, scored
    film_px: int = 512  # of the files, and of the films read and prepared
    step_px: int = 256
    model_px: int = 128  # of loading, scoring and the bundle's run
    batch: int = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for size in fields(Sizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, default=size.default)
    parser.add_argument("--ratios", nargs="+", choices=RATIOS, default=list(RATIOS), help="these alone")
    parser.add_argument("--record", action="store_true", help="append the figures to results.jsonl in any case")
    options = vars(parser.parse_args())
    forced, names = options.pop("record"), options.pop("ratios")
    sizes = Sizes(**options)
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: spread(values) for name, values in ratios(Path(folder), sizes, names).items()}
    settings = asdict(sizes) | ({} if names == list(RATIOS) else {"ratios": names})
    last = recorded(settings)
    slower = regressed(figures, last["figures"]) if last else []
    print("\n".join(table(figures, last["figures"] if last else {}, slower)))
    if last:
        print(
            f"last: {last['date']}, commit {last['commit']}; a ratio regresses at less than {1 - MARGIN:.1f} x its min"
        )
    else:
        print("no line of such a machine and these settings in results.jsonl: nothing to compare with, recorded")
    if forced or not last:
        record(NAME, recording.command_line(NAME), settings, figures)
    if slower:
        sys.exit(f"slower than recorded: {', '.join(slower)}; again with --record where this is meant")


def ratios(folder: Path, sizes: Sizes, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the ratio of the sides in every round, by name."""
    make_repeatable(DEVICE)
    write_phantoms(folder / "films", seed=0, patients=max(12, sizes.films // 2), size=sizes.film_px)
    return {name: RATIOS[name](folder, sizes) for name in names}


def turns(slow: Callable[[], object], quick: Callable[[], object], rounds: int) -> list[float]:
    """Return seconds of the first side over those of the second in every round."""
    seconds = rounds_of({"slow": slow, "quick": quick}, rounds)
    return [a / b for a, b in zip(seconds["slow"], seconds["quick"], strict=True)]


def training(_: Path, sizes: Sizes) -> list[float]:
    films = noise(sizes.batch, sizes.step_px)
    sides = []
    for plain in (True, False):
        made = trainer("cae", films, sizes.step_px, f"batch_size={sizes.batch}", plain=plain)
        sides.append(partial(step, made, next(made.batches.epoch(0))))
    return turns(*sides, sizes.rounds)


def loading(_: Path, sizes: Sizes) -> list[float]:
    count = 8  # batches
    films = noise(2 * sizes.batch * count, sizes.model_px)
    made = trainer("cae", films, sizes.model_px, f"batch_size={2 * sizes.batch}")
    ready = next(made.batches.epoch(0))
    return turns(partial(bare, made, ready, count), partial(our_epoch, made, 1), sizes.rounds)


def reading(folder: Path, sizes: Sizes) -> list[float]:
    source, path = open_source(folder / "films"), folder / "plain.h5"
    build(source, Recipe(name="plain", size=sizes.film_px), path, options=BuildOptions(variants=("crop",)))
    cache = Cache(path)
    stored = cache.films("crop", slice(0, sizes.films))
    pngs = [write_png(folder / f"{row}.png", film) for row, film in enumerate(stored)]
    order = np.random.default_rng(0).permutation(len(pngs))

    def decode_all() -> None:
        for row in order:
            decode(pngs[row])

    def read_all() -> None:
        for start in range(0, len(order), BATCH):
            cache.films("crop", order[start : start + BATCH])

    return turns(decode_all, read_all, 2 * sizes.rounds)


def preparation(folder: Path, sizes: Sizes) -> list[float]:
    source, recipe = open_source(folder / "films"), Recipe(name="limb", size=sizes.film_px)
    options = BuildOptions(workers=1, force=True, variants=(VARIANT,))
    paths = [film.path for film in source.records]

    def floor() -> None:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # as a worker has it
        for path in paths:
            recipe.apply(read_film(path, source.read(path)), variants=(VARIANT,))
        cv2.setNumThreads(threads)

    whole = partial(build, source, recipe, folder / "limb.h5", options=options)
    return turns(floor, whole, sizes.rounds)


@torch.inference_mode()
def scoring(folder: Path, sizes: Sizes) -> list[float]:
    path = folder / "small.h5"
    recipe = Recipe(name="limb", size=sizes.model_px)
    build(open_source(folder / "films"), recipe, path, options=BuildOptions(variants=(VARIANT,)))
    cache = Cache(path)
    films = FilmSet(cache, VARIANT, np.arange(min(sizes.films, len(cache))), sizes.model_px)
    batches = in_place(films)
    torch.manual_seed(0)
    model = find_detector("cae")(resolve("cae", "standard", [])[0], sizes.model_px)
    model = model.to(device=DEVICE, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    model.fit_reference(batches)
    return turns(partial(network, model, batches), partial(score, TorchScorer(model, DEVICE), films), sizes.rounds)


def bundle(folder: Path, sizes: Sizes) -> list[float]:
    run, cache = folder / "run", folder / "bundle.h5"
    size = str(sizes.model_px)
    spent(["preprocess", str(folder / "films"), "--size", size, "--workers", "1", "--out", str(cache)])
    spent(["train", "cae", "--preset", "fast", "--set", "epochs=1", "--cache", str(cache), "--out", str(run)])
    spent(["export", str(run)])
    film = next((folder / "films").rglob("*.png"))
    words = [["score", str(place), str(film)] for place in (run, run / "bundle")]
    rounds = [[spent(command)[0] for command in words] for _ in range(1 + min(3, sizes.rounds))]
    return [run_took / bundle_took for run_took, bundle_took in rounds[1:]]  # the first warms up


RATIOS: dict[str, Callable[[Path, Sizes], list[float]]] = {
    "training": training,
    "loading": loading,
    "reading": reading,
    "preparation": preparation,
    "scoring": scoring,
    "bundle": bundle,
}


def recorded(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the last line of results.jsonl of such a machine and these settings, or None."""
    here, found = _kind(machine()), None
    for text in recording.RESULTS.read_text().splitlines() if recording.RESULTS.exists() else ():
        line = json.loads(text)
        if line["benchmark"] == NAME and _kind(line["machine"]) == here and line["settings"] == settings:
            found = line
    return found


def _kind(described: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(described.get(name) for name in ("processor", "cores", "gpu"))


def regressed(figures: Mapping[str, Mapping[str, float]], last: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the names of the ratios that are less than they were, by more than MARGIN.

    >>> regressed({"a": {"median": 0.89}, "b": {"median": 0.91}}, {"a": {"min": 1.0}, "b": {"min": 1.0}})
    ['a']
    """
    return [name for name in figures if name in last and figures[name]["median"] < (1 - MARGIN) * last[name]["min"]]


def table(
    figures: Mapping[str, Mapping[str, float]], last: Mapping[str, Mapping[str, float]], slower: list[str]
) -> list[str]:
    """Return the lines of a table: ratio now, the last one, its range."""
    lines = [f"{'ratio':<14}{'now':>8}{'range':>18}{'last':>8}{'range':>18}"]
    for name, now in figures.items():
        lines.append(f"{name:<14}{_shown(now)}{_shown(last[name]) if name in last else ''}")
        lines[-1] += "   REGRESSION" * (name in slower)
    return lines


def _shown(value: Mapping[str, float]) -> str:
    ends = f"{value['min']:.2f} to {value['max']:.2f}"
    return f"{value['median']:>8.2f}{ends:>18}"


if __name__ == "__main__":
    main()
