"""Films a second of scores and of maps, from the cache to numbers, and where the time goes: net alone against all.

The five models with their presets `standard` at 128 px, untrained (weights change no time), in float32 as always when
scoring; built-in films, SYNTHETIC. `net` is the reconstruction or judgement alone on films in place, as many at a time
as scoring takes, which on a processor is faster than more.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import FilmSet, chunk_length
from anomaly.evaluation.predict import predict, score
from anomaly.evaluation.torch_scorer import LEAST_FILMS, PROCESSOR_PIXELS, TorchScorer
from anomaly.models import find_detector
from anomaly.models.base import Detector
from anomaly.pipeline.plan import resolve
from anomaly.training.device import make_repeatable
from benchmarks.record import alternate, record
from benchmarks.training import DEVICE
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

MODELS = ("cae", "vae", "dcgan", "bigan", "alphagan")


def in_place(films: FilmSet) -> list[Batch]:
    """Return films on the device, as many at a time as scoring takes."""
    count = max(LEAST_FILMS, PROCESSOR_PIXELS // films.size**2) if DEVICE.type == "cpu" else chunk_length(films.size)
    places = range(0, len(films), count)
    return [as_batch(films.part(slice(start, start + count)), DEVICE) for start in places]


@torch.inference_mode()
def network(model: Detector, batches: list[Batch]) -> None:
    """Reconstruct all films, or score them where the model does not reconstruct."""
    reconstruct = getattr(model, "reconstruct", None)
    for batch in batches:
        if reconstruct:
            reconstruct(batch.film)
        else:
            model.predict(batch)


def draw(model: TorchScorer, films: FilmSet) -> None:
    """Compute every film's map as it is shown."""
    for part in predict(model, films, maps=True):
        for i in range(len(part.films)):
            part.smoothed_map(i)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--films", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    make_repeatable(DEVICE)
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "films", seed=0, patients=options.films)
        recipe, path = Recipe(name="limb", size=options.size), Path(folder) / "cache.h5"
        build(open_source(Path(folder) / "films"), recipe, path, options=BuildOptions(variants=("full-he",)))
        films = FilmSet(Cache(path), "full-he", np.arange(options.films), options.size)
        batches = in_place(films)
        for name in MODELS:
            kind = find_detector(name)
            torch.manual_seed(0)
            model = kind(resolve(name, "standard", [])[0], options.size)
            model = model.to(device=DEVICE, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            with torch.inference_mode():
                model.fit_reference(batches)
                has_maps = model.predict(batches[0], maps=True).map is not None
            sides: dict[str, Callable[[], object]] = {
                "net": partial(network, model, batches),
                "scores": partial(score, TorchScorer(model, DEVICE), films),
            }
            if has_maps:
                sides["maps"] = partial(draw, TorchScorer(model, DEVICE), films)
            for side, seconds in alternate(sides, options.rounds, units=options.films).items():
                figures[f"{name}, {side}, films_per_second"] = {
                    "median": 1 / seconds["median"],
                    "min": 1 / seconds["max"],
                    "max": 1 / seconds["min"],
                }
    command = f"python -m benchmarks.scoring --size {options.size} --films {options.films} --rounds {options.rounds}"
    record("scoring", command, {**vars(options), "device": DEVICE.type}, figures)


if __name__ == "__main__":
    main()
