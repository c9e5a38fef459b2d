"""How well carrier, hand and mask are found on built-in SYNTHETIC films, whose truth is exact, in film pixels."""

import argparse
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import record
from preprocessing.phantom import Phantom, draw_film, plan_films
from preprocessing.readers import Film
from preprocessing.recipe import Recipe


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the intersection over the union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def polygon(corners: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a filled polygon, (K, 2) corners (x, y), as a mask."""
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(np.asarray(corners) * 16).astype(np.int32)], 1, shift=4)
    return canvas > 0


def laid_back(mask: NDArray[np.bool_], matrix: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask of the cache in the film's pixels; `matrix` leads from the film to the cache."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(mask.astype(np.float32), matrix, (shape[1], shape[0]), flags=flags) >= 0.5)


def measure(film: Phantom, size: int) -> dict[str, float]:
    """Return what one film gives. A carrier that isn't found is the whole film, as it is for the recipe."""
    shape = (film.pixels.shape[0], film.pixels.shape[1])
    made = Recipe(name="hand", size=size).apply(Film(film.pixels, 8), variants=("crop", "full"))
    whole = [(0, 0), (shape[1] - 1, 0), (shape[1] - 1, shape[0] - 1), (0, shape[0] - 1)]
    carrier = polygon(whole if made.carrier is None else made.carrier, shape)
    crop, hand = (laid_back(made.masks[stage], made.matrices["crop"], shape) for stage in ("crop", "full"))
    return {
        "carrier_iou": iou(carrier, polygon(film.carrier, shape)),
        "mask_iou": iou(hand, film.hand),
        "hand_kept_in_crop": float(film.hand[crop].sum() / film.hand.sum()),
        "inversion_right": float(made.inverted == film.inverted),
        "carrier_found": float("carrier" not in made.fallbacks),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean, 5th percentile and minimum."""
    return {"mean": float(np.mean(values)), "p5": float(np.quantile(values, 0.05)), "min": float(np.min(values))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = [
        measure(draw_film(plan, seed=options.seed), options.size)
        for plan in plan_films(seed=options.seed)[: options.films]
    ]
    record(
        "preprocessing against the truth",
        f"python -m benchmarks.truth --films {options.films} --size {options.size} --seed {options.seed}",
        {"films": len(found), "film_px": 512, "size": options.size, "seed": options.seed, "synthetic": True},
        {name: summary([one[name] for one in found]) for name in found[0]},
    )


if __name__ == "__main__":
    main()
