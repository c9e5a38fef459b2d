"""Masks by local levels, GrabCut and Otsu, against the truth of built-in films and the U-Net's masks of real ones.

--data FOLDER holds fracatlas/ and hands/ with a manifest.csv, as docs/results.md names them; what is missing is passed
over. Of the built-in SYNTHETIC films the mask is known; of the others nobody drew one, so the package's U-Net, trained
on drawn hands, stands in for it: what it says is no truth, but takes no side. All masks are those of the recipe `limb`,
(size, size), in the same crop; films without a limb are left whole by every method, and left out here.

IoU: mean and 5th percentile over films, and the difference to GrabCut on the same films, with its 95 % interval by
bootstrap over patients (fracatlas: blocks of films; hands: films).
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from anomaly.localization.nets import load_segmenter
from benchmarks.preparation import drawn_lots, listed
from benchmarks.record import command_line, record
from benchmarks.truth import difference, iou, summary
from preprocessing import steps
from preprocessing.phantom import draw_film, plan_films
from preprocessing.prepared import Prepared
from preprocessing.readers import Film, read_film
from preprocessing.recipe import Nets, Recipe

METHODS = ("local", "grabcut", "otsu")
SETS = ("built-in", "hands", "fracatlas")

Chosen = tuple[str, Film, steps.Mask | None]  # patient, film, and its true mask where that is known


def films(name: str, data: Path | None, count: int, seed: int) -> Iterator[Chosen]:
    """Yield the films of a set: the first of the built-in ones, every nth hand, limbs drawn by region and view."""
    if name == "built-in":
        for plan in plan_films(seed=seed)[:count]:
            drawn = draw_film(plan, seed=seed)
            yield str(plan.patient), Film(drawn.pixels, 8), drawn.hand
        return
    assert data is not None
    rows = listed(name, data)
    if name == "hands":
        chosen = rows[:: max(1, len(rows) // count)][:count]
    else:
        chosen = drawn_lots([row for row in rows if row["split"] == "test"], count, seed)
    for row in chosen:
        yield (
            row.get("patient", row["path"]),
            read_film(row["path"], (data / name / row["path"]).read_bytes()),
            None,
        )


def reference(film: Film, truth: steps.Mask | None, made: Prepared, by_net: Recipe, net: Nets) -> steps.Mask | None:
    """Return the mask to compare with, in the frame of what was made: the truth, or the U-Net's; None without one."""
    if truth is not None:
        shown = steps.warp_mask(truth, made.matrices["crop"], made.masks["full"].shape)
        return shown & made.masks["crop"]
    (segmented,) = by_net.apply(film, variants=("crop", "full"), nets=net)
    return None if {"segmenter", "mask"} & set(segmented.fallbacks) else segmented.masks["full"]


def measure(name: str, data: Path | None, count: int, seed: int, size: int) -> dict[str, Any]:
    """Return the figures of a set, method by method."""
    recipes = {method: Recipe(name="limb", size=size, mask=method) for method in METHODS}
    net = Nets(segmenter=load_segmenter())
    values: dict[str, list[float]] = {method: [] for method in METHODS}
    whole, spent, patients = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0), []
    for patient, film, truth in films(name, data, count, seed):
        made = {}
        for method, recipe in recipes.items():
            start = time.thread_time()
            (made[method],) = recipe.apply(film, variants=("crop", "full"))
            spent[method] += time.thread_time() - start
        expected = None
        if "hand" not in made["local"].fallbacks:
            expected = reference(film, truth, made["local"], recipes["local"], net)
        if expected is None:
            continue
        patients.append(patient)
        for method, one in made.items():
            values[method].append(iou(one.masks["full"], expected))
            whole[method] += "mask" in one.fallbacks
    numbers = np.unique(patients, return_inverse=True)[1].tolist()
    return {
        method: {
            "films": len(patients),
            **summary(found),
            "minus grabcut": difference(found, values["grabcut"], numbers),
            "left whole": whole[method],
            "recipe, ms": round(1000 * spent[method] / count, 2),
        }
        for method, found in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--films", type=int, default=200, help="of each set")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the built-in films, and of the limbs drawn")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    there = [
        name
        for name in SETS
        if name == "built-in" or (options.data is not None and (options.data / name / "manifest.csv").is_file())
    ]
    figures = {name: measure(name, options.data, options.films, options.seed, options.size) for name in there}
    record(
        "foreground",
        command_line("foreground"),
        {"films": options.films, "size": options.size, "seed": options.seed},
        figures,
    )


if __name__ == "__main__":
    main()
