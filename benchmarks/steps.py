"""Milliseconds a film of every preprocessing step: one thread, best of several runs, SYNTHETIC films of 512 px.

Times are this thread's on the processor, so that other work on the machine counts little.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np

from benchmarks.record import record
from preprocessing import steps
from preprocessing.phantom import draw_film, plan_films
from preprocessing.readers import Film, read_film
from preprocessing.recipe import VARIANTS, Recipe


def best(call: Callable[[], object], runs: int) -> float:
    """Return the milliseconds of the quickest of several runs: others only had more company."""
    spent = []
    for _ in range(runs):
        start = time.thread_time()
        call()
        spent.append((time.thread_time() - start) * 1000)
    return min(spent)


def calls(film: Film, size: int) -> dict[str, Callable[[], object]]:
    """Return every step on what the steps before it give, by name."""
    pixels = film.pixels
    carrier = steps.find_carrier(pixels)
    upright = pixels if carrier is None else steps.rectify(pixels, carrier)[0]
    box = steps.find_hand(upright)
    crop = upright if box is None else upright[box[1] : box[3], box[0] : box[2]]
    inside = steps.foreground(crop)
    mask = np.ones(crop.shape, np.bool_) if inside is None else inside
    small, small_mask, _ = steps.fit(crop, mask, size)
    limb = Recipe(name="limb", size=size)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    return {
        "read a PNG file": lambda: read_film("film.png", png),
        "find_carrier": lambda: steps.find_carrier(pixels),
        "is_inverted": lambda: steps.is_inverted(pixels),
        "find_field": lambda: steps.find_field(pixels),
        "rectify": lambda: carrier is not None and steps.rectify(pixels, carrier),
        "find_hand": lambda: steps.find_hand(upright),
        "foreground, local": lambda: steps.foreground(crop, method="local"),
        "foreground, grabcut": lambda: steps.foreground(crop, method="grabcut"),
        "foreground, otsu": lambda: steps.foreground(crop, method="otsu"),
        "fit": lambda: steps.fit(crop, mask, size),
        "equalize": lambda: steps.equalize(small, small_mask),
        "recipe limb, full-he": lambda: limb.apply(film, variants=("full-he",)),
        "clahe": lambda: steps.clahe(small, small_mask),
        "local_contrast": lambda: steps.local_contrast(small, small_mask),
        "recipe limb, six variants": lambda: limb.apply(film, variants=VARIANTS[:6]),  # the paper's
        "recipe plain, full-he": lambda: Recipe(name="plain", size=size).apply(film, variants=("full-he",)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    spent: dict[str, list[float]] = {}
    for plan in plan_films()[: options.films]:
        film = Film(draw_film(plan).pixels, 8)
        for name, call in calls(film, options.size).items():
            spent.setdefault(name, []).append(best(call, options.runs))
    record(
        "preprocessing steps",
        f"python -m benchmarks.steps --films {options.films} --size {options.size} --runs {options.runs}",
        {"films": options.films, "film_px": 512, "size": options.size, "threads": 1},
        {f"{name}, ms": round(median(values), 3) for name, values in spent.items()},
    )


if __name__ == "__main__":
    main()
