"""Polarity and recipe of real films: how often each is told wrongly, set by set; and sheets of limbs to judge by eye.

--data FOLDER holds the sets as docs/results.md names them: fracatlas/, chest/ and hands/ with a manifest.csv, wrist/
with PNG files, pelvis_dicom/ with DICOM files; those that are missing are passed over. The built-in SYNTHETIC films are
added. No film of these sets is inverted; each is tried as it is and inverted on purpose. What was fitted was fitted on
`train` of fracatlas and chest and on every second film of hands; `rest` is the others.

--fit prints the weights that `preprocessing.steps.polarity` and `preprocessing.choice` hold. --sheets FOLDER draws
--films films of fracatlas, spread over regions and views, with what the recipe `limb` finds: the crop yellow, the mask
red, the carrier green.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.record import command_line, record
from preprocessing import choice, steps
from preprocessing.phantom import draw_film, plan_films
from preprocessing.readers import Film, read_film
from preprocessing.recipe import UNCERTAIN, Recipe
from preprocessing.steps.polarity import WEIGHTS, evidence

LISTED = ("fracatlas", "chest", "hands")
FOLDERS = {"wrist": "wrist/*.png", "pelvis": "pelvis_dicom/*.dcm"}
LIMBS = {"fracatlas", "hands", "wrist", "built-in"}  # the others fill the frame
CELL, COLUMNS = 300, 5  # pixels of a film on a sheet, and films side by side


@dataclass(frozen=True)
class Shown:
    """A film of a set: what is known of it."""

    path: str
    film: Film
    fitted: bool  # whether weights were fitted on it
    inverted: bool
    region: str


def films(name: str, data: Path) -> Iterator[Shown]:
    """Yield the films of a set in order."""
    if name == "built-in":
        for plan in plan_films():
            drawn = draw_film(plan)
            yield Shown(plan.path, Film(drawn.pixels, 8), False, drawn.inverted, "hand")
    elif name in FOLDERS:
        for path in sorted(data.glob(FOLDERS[name])):
            film = read_film(path.name, path.read_bytes())
            yield Shown(path.name, Film(film.pixels, film.depth), False, False, "")  # its header is not asked
    else:
        for number, row in enumerate(listed(name, data)):
            path = data / name / row["path"]
            fitted = row["split"] == "train" if "split" in row else number % 2 == 0
            yield Shown(row["path"], read_film(row["path"], path.read_bytes()), fitted, False, row.get("region", ""))


def listed(name: str, data: Path) -> list[dict[str, str]]:
    """Read a set's manifest."""
    with (data / name / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def there(data: Path) -> list[str]:
    """Name the sets that there are."""
    found = [name for name in LISTED if (data / name / "manifest.csv").is_file()]
    return [*found, *(name for name, pattern in FOLDERS.items() if any(data.glob(pattern))), "built-in"]


@dataclass
class Measured:
    """What was measured on a set, a row a film: evidence (N, 7), log-odds as it is and inverted, and of a limb."""

    evidence: NDArray[np.float64]
    odds: NDArray[np.float64]
    turned: NDArray[np.float64]
    limb: NDArray[np.float64]
    measures: NDArray[np.float64]
    fitted: NDArray[np.bool_]
    regions: NDArray[np.str_]


def measure(name: str, data: Path) -> Measured:
    """Take the evidence on every film of a set; signs are those of films that are not inverted."""
    rows: list[tuple[Any, ...]] = []
    for shown in films(name, data):
        pixels = shown.film.pixels
        right, wrong = (steps.invert(pixels), pixels) if shown.inverted else (pixels, steps.invert(pixels))
        upright = Film(right, shown.film.depth, polarity_known=True)
        measures = choice.measures(upright)
        rows.append(
            (
                list(evidence(right).values()),
                steps.polarity_odds(right),
                steps.polarity_odds(wrong),
                choice.weigh(measures),
                list((measures or dict.fromkeys(choice.WEIGHTS, 0.0)).values()),
                shown.fitted,
                shown.region,
            )
        )
    return Measured(*(np.array(column) for column in zip(*rows, strict=True)))


def inversion(sets: dict[str, Measured]) -> dict[str, Any]:
    """Count, by set and part, films turned wrongly as they are, and inverted ones that were left, and the uncertain."""
    figures: dict[str, Any] = {}
    for name, found in sets.items():
        for part, chosen in (("all", found.fitted | True), ("fitted", found.fitted), ("rest", ~found.fitted)):
            if not chosen.any() or (part != "all" and not found.fitted.any()):
                continue
            odds, turned = found.odds[chosen], found.turned[chosen]
            figures[f"{name}, {part}"] = {
                "films": int(chosen.sum()),
                "as is, turned": int((odds < -UNCERTAIN).sum()),
                "inverted, left": int((turned >= -UNCERTAIN).sum()),
                "either, by the sign alone": [int((odds < 0).sum()), int((turned >= 0).sum())],
                "uncertain": int((np.abs(odds) <= UNCERTAIN).sum()),
            }
    return figures


def without(sets: dict[str, Measured]) -> dict[str, Any]:
    """Count the errors on each listed set of weights that were fitted on the two others alone."""
    listed_sets = [name for name in LISTED if name in sets]
    figures = {}
    for left_out in listed_sets:
        weights = fit_polarity({name: sets[name] for name in listed_sets if name != left_out})
        odds = sets[left_out].evidence @ np.array(list(weights.values()))
        figures[f"{left_out}, fitted on the others"] = f"{int((odds < 0).sum())} of {len(odds)}"
    return figures


def recipes(sets: dict[str, Measured]) -> dict[str, Any]:
    """Count, by set, the films that show a limb, and those that clearly do not fit the set's recipe."""
    figures: dict[str, Any] = {}
    for name, found in sets.items():
        sign = 1 if name in LIMBS else -1
        figures[name] = {
            "films": len(found.limb),
            "limb": int((found.limb >= 0).sum()),
            "misfits": int((sign * found.limb < -choice.CLEAR).sum()),
        }
        if name == "fracatlas":
            counts, limbs = Counter(found.regions.tolist()), Counter(found.regions[found.limb >= 0].tolist())
            figures[name]["limb, by region"] = {r: f"{limbs[r]} of {counts[r]}" for r in sorted(counts)}
    return figures


def fit_polarity(sets: dict[str, Measured]) -> dict[str, float]:
    """Fit the weights of the evidence: every set counts alike; without an intercept, so that evidence stays odd."""
    parts = [found.evidence[found.fitted] for found in sets.values() if found.fitted.any()]
    values = np.concatenate(parts)
    weight = np.concatenate([np.full(len(part), len(values) / len(part) / len(parts)) for part in parts])
    scale = np.sqrt((values**2).mean(axis=0))
    model = LogisticRegression(C=0.5, fit_intercept=False, max_iter=2000)
    model.fit(np.r_[values, -values] / scale, np.repeat([1, 0], len(values)), np.r_[weight, weight])
    return dict(zip(WEIGHTS, (model.coef_[0] / scale).round(1).tolist(), strict=True))


def fit_choice(sets: dict[str, Measured]) -> dict[str, float]:
    """Fit the weights of the recipe's choice: hands and legs, and built-in films, against chests."""
    parts, labels = [], []
    for name, found in sets.items():
        chosen = found.fitted if name in LISTED else np.full(len(found.fitted), name == "built-in")
        if name == "fracatlas":
            chosen = chosen & np.isin(found.regions, ("hand", "leg"))
        parts.append(found.measures[chosen])
        labels.append(name in LIMBS)
    sizes = [len(part) for part in parts]
    weight = np.repeat([(1 if limb else 3) / max(1, size) for size, limb in zip(sizes, labels, strict=True)], sizes)
    target = np.repeat(labels, sizes)
    model = LogisticRegression(C=30, max_iter=2000).fit(np.concatenate(parts), target, weight / weight.mean())
    fitted = dict(zip(choice.WEIGHTS, model.coef_[0].round(1).tolist(), strict=True))
    return fitted | {"offset": round(float(model.intercept_[0]), 1)}


# Sheets ---------------------------------------------------------------------------------------------------------------


def drawn_lots(rows: list[dict[str, str]], count: int, seed: int) -> list[dict[str, str]]:
    """Draw films, by a seed, so that every region and view has its share."""
    order = np.random.default_rng(seed).permutation(len(rows))
    sizes, seen = Counter((row["region"], row["view"]) for row in rows), Counter[tuple[str, str]]()
    ranked = []
    for place, number in enumerate(order):
        key = rows[number]["region"], rows[number]["view"]
        seen[key] += 1
        ranked.append(((seen[key] - 0.5) / sizes[key], place, int(number)))
    return [rows[number] for _, _, number in sorted(ranked)[:count]]


def outlined(film: Film, recipe: Recipe) -> NDArray[np.uint8]:
    """Draw a film (H, W, 3), BGR, with carrier, crop and mask outlined, as the recipe finds them."""
    scale = CELL * 2 / max(film.pixels.shape)
    levels = np.asarray(255 * (film.pixels / film.pixels.max()) ** 0.6, np.uint8)
    canvas = cv2.cvtColor(
        cv2.resize(levels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR
    )
    for made in recipe.apply(film, variants=("full",)):
        back = np.linalg.inv(np.vstack([made.matrices["crop"], (0, 0, 1)]))
        contours, _ = cv2.findContours(made.masks["full"].astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        x0, y0, x1, y1 = made.frame
        crop = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
        for corners, colour in [*((c[:, 0], (0, 0, 255)) for c in contours), (crop, (0, 255, 255))]:
            points = np.c_[corners, np.ones(len(corners))] @ back.T
            cv2.polylines(canvas, [np.int32(points[:, :2] * scale)], True, colour, 2)
        if made.carrier is not None:
            cv2.polylines(canvas, [np.int32(made.carrier * scale)], True, (0, 255, 0), 2)
        if made.inverted:
            cv2.putText(canvas, "inverted", (5, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 255, 255), 3)
    return np.asarray(canvas, np.uint8)


def sheets(data: Path, folder: Path, count: int, seed: int) -> list[Path]:
    """Draw the films to be judged, 25 on a sheet, numbered; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, chosen, paths = Recipe(name="limb", size=512), drawn_lots(listed("fracatlas", data), count, seed), []
    for first in range(0, count, 25):
        sheet = np.full((5 * (CELL + 16), COLUMNS * (CELL + 6), 3), 60, np.uint8)
        for place, row in enumerate(chosen[first : first + 25]):
            film = read_film(row["path"], (data / "fracatlas" / row["path"]).read_bytes())
            picture = outlined(film, recipe)
            size = [max(1, round(side * CELL / max(picture.shape[:2]))) for side in picture.shape[1::-1]]
            small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            y, x = (place // COLUMNS) * (CELL + 16), (place % COLUMNS) * (CELL + 6)
            sheet[y : y + small.shape[0], x : x + small.shape[1]] = small
            text = f"{first + place} {Path(row['path']).stem} {row['region']} {row['view']}"
            cv2.putText(sheet, text, (x, y + CELL + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 255, 255), 1, cv2.LINE_AA)
        paths.append(folder / f"sheet-{first // 25}.png")
        cv2.imwrite(str(paths[-1]), sheet)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--fit", action="store_true", help="print weights fitted anew")
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="draw films to judge, and measure nothing")
    parser.add_argument("--films", type=int, default=100, help="on the sheets")
    parser.add_argument("--seed", type=int, default=16, help="of the films on the sheets")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.sheets:
        for path in sheets(options.data, options.sheets, options.films, options.seed):
            print(path)
        return
    sets = {name: measure(name, options.data) for name in there(options.data)}
    if options.fit:
        print("polarity", fit_polarity({name: sets[name] for name in LISTED if name in sets}))
        print("recipe", fit_choice(sets))
    record(
        "polarity and recipe",
        command_line("preparation"),
        {"films": {name: len(found.odds) for name, found in sets.items()}, "uncertain": UNCERTAIN},
        {"inversion": inversion(sets), "inversion, leave one out": without(sets), "recipes": recipes(sets)},
    )


if __name__ == "__main__":
    main()
