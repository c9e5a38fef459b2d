"""How well carrier, hand, mask and polarity are found, by ours and by the original's rules, against an exact truth.

The films are built-in SYNTHETIC ones; all figures are in film pixels. Where a rule of the original needs what another
of its rules finds, it gets that; its masks are also made with the true polarity given. Differences are of the same
films, with 95 % intervals by bootstrap over patients.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from anomaly.formatting import markdown, number, with_interval
from benchmarks import original
from benchmarks.record import record
from preprocessing import steps
from preprocessing.phantom import Phantom, draw_film, plan_films
from preprocessing.readers import Film
from preprocessing.recipe import Localization, Localizer, Nets, Recipe, Segmenter

Mask = NDArray[np.bool_]
Figures = dict[str, float]  # column -> value, 0 to 1, larger is better

COLUMNS = {
    "carrier_iou": "carrier IoU",
    "box_iou": "hand-box IoU",
    "hand_kept": "hand kept in crop",
    "mask_iou": "mask IoU",
    "inversion_right": "inversion right",
    "hand_unblanked": "no hand blanked",
}
CROP = "original 1.1: carrier crop"
BOX = "original 1.2: true box, its end wrong"
INVERSIONS = {"original 1.3: mean or corners": False, "original 1.3: corners only": True}
MASKS: dict[str, Callable[[original.Film], Mask]] = {
    "original 1.4: GrabCut, its rectangle": original.grabcut_demo,
    "original 1.4: GrabCut, its margins": lambda film: original.grabcut_demo(film, rectangle=None),
    "original 1.5: Otsu filter": original.otsu_filter,
}
GIVEN = ", polarity given"
RUNS = 3  # of each step on each film; the quickest counts: others only had more company
SLOW = 200  # milliseconds


# Masks in the film's pixels -------------------------------------------------------------------------------------------


def iou(a: Mask, b: Mask) -> float:
    """Return the intersection over the union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def polygon(corners: ArrayLike, shape: tuple[int, int]) -> Mask:
    """Return a filled polygon, (K, 2) corners (x, y), as a mask."""
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(np.asarray(corners) * 16).astype(np.int32)], 1, shift=4)
    return canvas > 0


def boxed(boxes: Iterable[tuple[int, int, int, int]], shape: tuple[int, int]) -> Mask:
    """Return the union of boxes (x0, y0, x1, y1), the last two exclusive, as a mask."""
    mask = np.zeros(shape, np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def laid_back(mask: Mask, matrix: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Return a mask in the film's pixels; `matrix`, (2, 3) or (3, 3), leads from the film to where the mask lies."""
    whole = np.vstack([matrix, (0.0, 0.0, 1.0)])[:3]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpPerspective(mask.astype(np.float32), whole, shape[::-1], flags=flags) >= 0.5)


# What one film gives --------------------------------------------------------------------------------------------------


def ours(film: Phantom, recipe: Recipe, localizer: Localizer | None, segmenter: Segmenter | None) -> Figures:
    """Return what the recipe finds. A carrier that isn't found is the whole film; several hands are one region.

    The hand's box is that of the crop without a margin; what is kept of the hand, and the mask, come of the recipe's
    own margin.
    """
    shape, reading = film_shape(film), Film(film.pixels, 8)
    bare = Recipe(**{**recipe.model_dump(), "margin": 0.0})
    made = recipe.apply(reading, nets=Nets(localizer=localizer, segmenter=segmenter), variants=("crop", "full"))
    tight = bare.apply(reading, nets=Nets(localizer=localizer), variants=("crop",))
    crop, box, hand = (
        reduce(np.logical_or, [laid_back(one.masks[stage], one.matrices["crop"], shape) for one in hands])
        for hands, stage in ((made, "crop"), (tight, "crop"), (made, "full"))
    )
    carrier = made[0].carrier
    blank = np.zeros(shape, np.bool_)
    if localizer is not None:
        plain = recipe.apply(reading, nets=Nets(localizer=Unmarked(localizer)), variants=("crop",))
        for one, other in zip(made, plain, strict=True):
            changed = differing(one.films["crop"], other.films["crop"], other.masks["crop"])
            blank |= laid_back(changed, one.matrices["crop"], shape)
    return {
        "carrier_iou": iou(
            np.ones(shape, np.bool_) if carrier is None else polygon(carrier, shape), polygon(film.carrier, shape)
        ),
        "box_iou": iou(box, boxed(hand_boxes(film), shape)),
        "hand_kept": float(film.hand[crop].sum() / film.hand.sum()),
        "mask_iou": iou(hand, film.hand),
        "inversion_right": float(made[0].inverted == film.inverted),
        "carrier_found": float(carrier is not None),
        "hand_unblanked": float(not (blank & film.hand).any()),
        "markers_blanked": float(sum(one.markers for one in made)),
    }


@dataclass(frozen=True)
class Unmarked:
    """A localizer that keeps the side markers it finds to itself."""

    localizer: Localizer

    def __call__(self, film: steps.Pixels) -> Localization | None:
        """Find hands alone."""
        found = self.localizer(film)
        return None if found is None else replace(found, markers=())


def differing(film: steps.Pixels, other: steps.Pixels, mask: Mask) -> Mask:
    """Return where two films of the same pixels show something else, their levels stretched apart from each other.

    What is the same on both lies on one straight line of levels: nearly all pixels do.
    """
    a, b = other[mask].astype(float), film[mask].astype(float)
    near = np.ones(len(a), np.bool_)
    for _ in range(5):
        slope, offset = np.polyfit(a[near], b[near], 1)
        apart = np.abs(b - np.clip(slope * a + offset, 0, 255))
        near = apart <= max(4.0, float(np.quantile(apart, 0.9)))
    changed = np.zeros(mask.shape, np.bool_)
    changed[mask] = np.abs(b - np.clip(slope * a + offset, 0, 255)) > 8
    return changed


def theirs(film: Phantom) -> dict[str, Figures]:
    """Return what each of the original's rules finds, by rule; a rule has the columns it has a say in."""
    shape, boxes = film_shape(film), boxed(hand_boxes(film), film_shape(film))
    corners = original.find_carrier(film.pixels)
    crop, matrix = (film.pixels, np.eye(3)) if corners is None else original.cut_carrier(film.pixels, corners)
    carrier = np.ones(shape, np.bool_) if corners is None else polygon(corners, shape)
    slipped = boxed([original.hand_crop(box, shape) for box in hand_boxes(film)], shape)
    found = {
        CROP: {
            "carrier_iou": iou(carrier, polygon(film.carrier, shape)),
            "box_iou": iou(carrier, boxes),
            "hand_kept": float(film.hand[carrier].sum() / film.hand.sum()),
            "carrier_found": float(corners is not None),
        },
        BOX: {"box_iou": iou(slipped, boxes), "hand_kept": float(film.hand[slipped].sum() / film.hand.sum())},
    }
    for name, corners_only in INVERSIONS.items():
        for where, shown in (("carrier crop", crop), ("film", film.pixels)):
            inverted = original.is_inverted(shown, corners_only=corners_only)
            found[f"{name}, on the {where}"] = {"inversion_right": float(inverted == film.inverted)}
    inverted = original.is_inverted(crop)
    upright, other = (original.invert(crop), crop) if inverted else (crop, original.invert(crop))
    for name, rule in MASKS.items():
        found[name] = {"mask_iou": iou(laid_back(rule(upright), matrix, shape), film.hand)}
        if inverted == film.inverted:
            found[name + GIVEN] = found[name]
        else:
            found[name + GIVEN] = {"mask_iou": iou(laid_back(rule(other), matrix, shape), film.hand)}
    return found


def film_shape(film: Phantom) -> tuple[int, int]:
    """Return height and width."""
    return film.pixels.shape[0], film.pixels.shape[1]


def hand_boxes(film: Phantom) -> list[tuple[int, int, int, int]]:
    """Return the true boxes of the film's hands."""
    return [box for name, box in film.boxes if name.endswith("hand")]


# Times ----------------------------------------------------------------------------------------------------------------

Call = Callable[[], object]


def our_steps(film: Phantom, localizer: Localizer | None, segmenter: Segmenter | None) -> dict[str, Call]:
    """Return each of our steps on what the steps before it give."""
    carrier = steps.find_carrier(film.pixels)
    pixels = steps.invert(film.pixels) if steps.is_inverted(film.pixels) else film.pixels
    upright = pixels if carrier is None else steps.rectify(pixels, carrier)[0]
    box = steps.find_hand(upright)
    crop = upright if box is None else upright[box[1] : box[3], box[0] : box[2]]
    calls: dict[str, Call] = {
        "carrier": lambda: steps.find_carrier(film.pixels),
        "inversion": lambda: steps.is_inverted(film.pixels),
        "cutting out": lambda: carrier is not None and steps.rectify(pixels, carrier),
        "hand": lambda: steps.find_hand(upright),
        "mask, local": lambda: steps.foreground(crop),
        "mask, GrabCut": lambda: steps.foreground(crop, method="grabcut"),
        "mask, Otsu": lambda: steps.foreground(crop, method="otsu"),
    }
    if localizer is not None:
        calls["hand, trained net"] = lambda: localizer(upright)
    if segmenter is not None:
        calls["mask, trained net"] = lambda: segmenter(crop)
    return calls


def their_steps(film: Phantom) -> dict[str, Call]:
    """Return each of the original's rules on what the rules before it give, by the name of our step."""
    corners = original.find_carrier(film.pixels)
    crop = film.pixels if corners is None else original.cut_carrier(film.pixels, corners)[0]
    upright = original.invert(crop) if original.is_inverted(crop) else crop
    return {
        "carrier": lambda: list(
            original.quadrilaterals(film.pixels)
        ),  # it searches all ten levels, then takes the first
        "carrier, to the first hit": lambda: original.find_carrier(film.pixels),
        "inversion": lambda: original.is_inverted(crop),
        "cutting out": lambda: corners is not None and original.cut_carrier(film.pixels, corners),
        "mask, GrabCut": lambda: original.grabcut_demo(upright),
        "mask, Otsu": lambda: original.otsu_filter(upright),
    }


def milliseconds(calls: dict[str, Call]) -> dict[str, float]:
    """Return the milliseconds of each call: the quickest of RUNS, all taking turns; one of over SLOW counts at once.

    They are this thread's on the processor, so that other work on the machine counts little. Adds what a film takes
    from pixels to mask, with either mask.
    """
    spent: dict[str, float] = {}
    for _ in range(RUNS):
        for name, call in calls.items():
            if spent.get(name, 0) > SLOW:
                continue
            start = time.thread_time()
            call()
            spent[name] = min(spent.get(name, float("inf")), (time.thread_time() - start) * 1000)
    before = sum(spent.get(name, 0) for name in ("carrier", "inversion", "cutting out", "hand"))
    masks = [name for name in ("local", "GrabCut", "Otsu") if f"mask, {name}" in spent]
    return spent | {f"all, {mask}": before + spent[f"mask, {mask}"] for mask in masks}


# Over all films -------------------------------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> Figures:
    """Return mean, 5th percentile and minimum."""
    return {"mean": float(np.mean(values)), "p5": float(np.quantile(values, 0.05)), "min": float(np.min(values))}


def difference(
    a: Sequence[float], b: Sequence[float], patients: Sequence[int], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return the mean of a minus b over films, (N,) each, and its 95 % percentile interval over draws of patients.

    All of a patient's films are drawn together.
    """
    apart = np.subtract(a, b)
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    sums, films = np.bincount(patient, apart), np.bincount(patient)  # (P,) each
    drawn = np.random.default_rng(seed).integers(len(films), size=(resamples, len(films)))
    means = sums[drawn].sum(axis=1) / films[drawn].sum(axis=1)
    return {"difference": float(apart.mean()), "interval": [float(v) for v in np.quantile(means, (0.025, 0.975))]}


def report(figures: dict[str, Any]) -> list[str]:
    """Return the Markdown of three tables: quality, differences, milliseconds."""
    lines = ["Mean over films, in brackets the 5th percentile; SYNTHETIC films.", ""]
    rows = [
        [name, *(f"{number(v['mean'])} ({number(v['p5'])})" if (v := found.get(column)) else "–" for column in COLUMNS)]
        for name, found in figures["quality"].items()
    ]
    lines += [*markdown(["", *COLUMNS.values()], rows), ""]
    lines += ["Ours minus the original's rule on the same films, 95 % over patients; ! where ours is behind.", ""]
    apart = figures["ours minus original"]
    rows = []
    for rule, columns in next(iter(apart.values())).items():
        for column in columns:
            told = [apart[mine][rule][column] for mine in apart]
            cells = [with_interval(d["difference"], d["interval"]) + " !" * (d["difference"] < 0) for d in told]
            rows.append([f"{rule}: {COLUMNS[column]}", *cells])
    lines += [*markdown(["against", *apart], rows), ""]
    lines += [
        "Milliseconds a film of one thread, median over films; the original's hand detector was never published.",
        "",
    ]
    mine, other = figures["ms"]["ours"], figures["ms"]["original"]
    rows = [
        [name, *(f"{own[name]:.2f}" if name in own else "–" for own in (mine, other))]
        for name in dict.fromkeys((*mine, *other))
    ]
    return lines + markdown(["step", "ours", "original"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--size", type=int, default=512, help="pixels a side of the cache that our masks go through")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timed", type=int, default=40, help="films, the first ones, on which steps are timed")
    parser.add_argument("--localizer", nargs="?", const="", metavar="RUN", help="the package's SSD, or a run's")
    parser.add_argument("--segmenter", nargs="?", const="", metavar="RUN", help="the package's U-Net, or a run's")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    localizer: Localizer | None = None
    segmenter: Segmenter | None = None
    if options.localizer is not None or options.segmenter is not None:
        from anomaly.localization.nets import load_localizer, load_segmenter

        named = [Path(run) if run else None for run in (options.localizer, options.segmenter)]
        localizer = None if options.localizer is None else load_localizer(named[0])
        segmenter = None if options.segmenter is None else load_segmenter(named[1])

    recipe = Recipe(name="limb", size=options.size)
    recipes = {
        f"ours, {name}": Recipe(name="limb", size=options.size, mask=mask)
        for name, mask in (("local", "local"), ("GrabCut", "grabcut"), ("Otsu", "otsu"))
    }
    plans = plan_films(seed=options.seed)[: options.films]
    found: dict[str, list[Figures]] = {}
    spent: dict[str, dict[str, list[float]]] = {"ours": {}, "original": {}}
    for done, plan in enumerate(plans):
        film = draw_film(plan, seed=options.seed)
        sides = {name: ours(film, chosen, None, None) for name, chosen in recipes.items()}
        if localizer is not None or segmenter is not None:
            sides["ours, trained nets"] = ours(film, recipe, localizer, segmenter)
        for name, figures in (sides | theirs(film)).items():
            found.setdefault(name, []).append(figures)
        if done >= options.timed:
            continue
        for side, calls in (("ours", our_steps(film, localizer, segmenter)), ("original", their_steps(film))):
            for name, value in milliseconds(calls).items():
                spent[side].setdefault(name, []).append(value)

    columns = {name: {key: [one[key] for one in films] for key in films[0]} for name, films in found.items()}
    patients = [plan.patient for plan in plans]
    result = {
        "quality": {name: {key: summary(v) for key, v in own.items()} for name, own in columns.items()},
        "ours minus original": {
            mine: {
                rule: {key: difference(columns[mine][key], own[key], patients) for key in COLUMNS if key in own}
                for rule, own in columns.items()
                if rule.startswith("original")
            }
            for mine in columns
            if mine.startswith("ours")
        },
        "ms": {side: {name: round(float(np.median(v)), 3) for name, v in own.items()} for side, own in spent.items()},
    }
    nets = "".join(
        f" --{name} {path}"
        for name, path in (("localizer", options.localizer), ("segmenter", options.segmenter))
        if path is not None
    )
    record(
        "preprocessing against the truth",
        f"python -m benchmarks.truth --films {options.films} --size {options.size} --seed {options.seed} "
        f"--timed {options.timed}{nets}",
        {
            "films": len(plans),
            "patients": len(set(patients)),
            "films_timed": min(options.timed, len(plans)),
            "film_px": 512,
            "size": options.size,
            "seed": options.seed,
            "synthetic": True,
            "threads": 1,
        },
        result,
    )
    print("\n".join(["", *report(result)]))


if __name__ == "__main__":
    main()
