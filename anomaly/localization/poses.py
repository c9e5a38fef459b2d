"""Built-in films posed and framed as films of any limb are: what the packaged nets learn from.

The built-in films show a hand that stands upright on its carrier. Real limbs lie at any angle, run out of the film, are
as thick as a thigh, share a film with a second view, and are framed by collimators and lead. So drawn films are turned,
stretched, enlarged, brought together in pairs, thickened and framed here; their ground truth moves along. SYNTHETIC, as
what they are made of.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.runs import write_atomic
from preprocessing import InputError
from preprocessing.phantom import VIEWS, FilmPlan, Phantom, draw_film, plan_films

Levels = NDArray[np.float32]
Mask = NDArray[np.bool_]

REVISION = 3
"""Of the posing: raise it whenever the same seed gives other films."""
DRAWN_SIZE = 448
"""Longer side in pixels of the films that are drawn and then posed."""
PLAIN = 0.3
"""Share of the films that stay as they were drawn."""
PAIRED = 0.2
"""Share of the posed films that show two limbs side by side."""
UPRIGHT = 0.6
"""Share of the posed films on which limbs are at most TILT degrees from upright. These alone have boxes: a localizer
learns upright hands, and turns the others until they are."""
TILT = 30.0
SMALLEST, LARGEST = 96, 448
"""Longer sides of posed films in pixels: a film of 64 pixels that is enlarged is blurred, one of 4,000 is not."""
LEAST_SHARE, MOST_SHARE = 0.03, 0.97
"""Of a film that is foreground: with less there is no limb, with more no background."""
FLESHY = 0.35
"""Share of the posed limbs that have more flesh than a hand."""
PLATES = 0.25
"""Share of the posed limbs that lie on a grey carrier, whose straight edges tell it from flesh."""
TRIES = 12
INVERTED = 0.08
NOTE = "SYNTHETIC.txt"


@dataclass(frozen=True)
class PosedFilm:
    """A film and its ground truth.

    pixels      (H, W) uint8
    foreground  (H, W) bool
    boxes       class ("left hand", "right marker", ...) and x0, y0, x1, y1 in pixels from the film's edge; none of a
                film that is not upright
    """

    pixels: NDArray[np.uint8]
    foreground: Mask
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]


def write_posed_films(
    out: Path, *, seed: int, patients: int, on_film: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Write films of `patients` in MURA's tree, with masks and boxes beside them; return how many, and how many posed.

    A complete set of the same settings is left as it is, an interrupted one completed; `on_film(done, total)` follows
    each film. InputError where other films are in `out`.
    """
    plans = plan_films(seed=seed, patients=patients)
    note = (
        "SYNTHETIC FILMS: drawn by a program, of nobody; hands posed and framed as films of any limb are, to train the "
        f"nets that prepare films.\nSettings: revision {REVISION}, seed {seed}, patients {patients}.\n"
    )
    settings, posed = out / NOTE, sum(_is_posed(plan, seed) for plan in plans)
    written = settings.read_text() if settings.is_file() else None
    if written != note and out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: holds other films than those asked for; remove it, or name another folder")
    write_atomic(settings, note)
    for done, plan in enumerate(plans, start=1):
        if not (out / plan.path).exists():
            _write(out / plan.path, pose_film(plan, seed))
        if on_film is not None:
            on_film(done, len(plans))
    return len(plans), posed


def _write(path: Path, film: PosedFilm) -> None:
    """Write the ground truth, then the film: where that is, all is."""
    stem = str(path).removesuffix(".png")
    boxes = [{"class": name, "box": list(box)} for name, box in film.boxes]
    write_atomic(Path(f"{stem}.json"), json.dumps({"boxes": boxes}) + "\n")
    for file, picture in ((f"{stem}_hand.png", film.foreground.astype(np.uint8) * 255), (str(path), film.pixels)):
        _, png = cv2.imencode(".png", picture)
        write_atomic(Path(file), png.tobytes())


def _streams(plan: FilmPlan, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, plan.patient, plan.study, plan.image, 6])


def _is_posed(plan: FilmPlan, seed: int) -> bool:
    return bool(_streams(plan, seed).random() >= PLAIN)


def pose_film(plan: FilmPlan, seed: int) -> PosedFilm:
    """Draw a film, and pose it unless it is one of those that stay as they are; it depends on its arguments alone."""
    rng = _streams(plan, seed)
    stays = rng.random() < PLAIN
    drawn = draw_film(plan, seed=seed, size=DRAWN_SIZE)
    if stays or sum(name.endswith("hand") for name, _ in drawn.boxes) > 1:
        return PosedFilm(drawn.pixels, drawn.hand, drawn.boxes)
    limbs = [drawn]
    if rng.random() < PAIRED:
        view = str(rng.choice(VIEWS))
        limbs.append(draw_film(FilmPlan(plan.patient, plan.study, plan.image + 100, view), seed=seed, size=DRAWN_SIZE))
    upright = bool(rng.random() < UPRIGHT)
    layers = [_fleshed(_cut_out(limb, rng), rng) for limb in limbs]
    side = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    ratio = rng.uniform(0.6, 1.0)
    lying = rng.random() < (0.6 if len(limbs) > 1 else 0.25)
    height, width = (round(side * ratio), side) if lying else (side, round(side * ratio))
    cuts = [0, round(width * rng.uniform(0.4, 0.6)), width] if len(limbs) > 1 else [0, width]
    parts = [
        _placed(layer, (height, right - left), upright=upright, rng=rng)
        for layer, left, right in zip(layers, cuts, cuts[1:], strict=False)
    ]
    film = np.concatenate([_exposed(part, rng) for part in parts], axis=1)
    foreground = np.concatenate([part.foreground for part in parts], axis=1)
    film, hidden = _framed(_littered(film, rng), cuts[1:-1], rng)
    boxes = [
        (name, _bounding_box(np.pad(area, ((0, 0), (left, width - left - area.shape[1]))) & ~hidden))
        for part, left in zip(parts, cuts, strict=False)
        for name, area in part.areas
    ]
    film = np.clip(film + rng.uniform(0, 0.015) * rng.standard_normal(film.shape, np.float32), 0, 1)
    pixels = np.asarray(np.rint(255 * (1 - film if rng.random() < INVERTED else film)), np.uint8)
    kept = tuple((name, box) for name, box in boxes if upright and box is not None)
    return PosedFilm(pixels, foreground & ~hidden, kept)


@dataclass(frozen=True)
class _Layer:
    """One limb and what lies around it: bones bright.

    film        (h, w) float32, 0..1
    foreground  (h, w) bool
    areas       class of each box and where it lies, (h, w) bool
    """

    film: Levels
    foreground: Mask
    areas: tuple[tuple[str, Mask], ...]


def _cut_out(drawn: Phantom, rng: np.random.Generator) -> _Layer:
    """Return a drawn film, mostly without what lies around its carrier, at times with a carrier as grey as flesh."""
    height, width = drawn.pixels.shape
    film = drawn.pixels.astype(np.float32) / 255
    film = 1 - film if drawn.inverted else film
    areas = [("", drawn.hand)]
    for name, (x0, y0, x1, y1) in drawn.boxes:
        area = np.zeros(drawn.hand.shape, bool)
        area[y0:y1, x0:x1] = True
        areas.append((name, drawn.hand if name.endswith("hand") else area))
    plate = rng.random() < PLATES
    if plate:
        lit = np.zeros(film.shape, np.uint8)
        cv2.fillConvexPoly(lit, np.rint(drawn.carrier).astype(np.int32), 1)
        film = film + rng.uniform(0.15, 0.6) * (1 - film) * lit
    x, y = drawn.carrier.T
    left, right = max(x[0], x[3], 0), min(x[1], x[2], width)
    top, bottom = max(y[0], y[1], 0), min(y[2], y[3], height)
    kept = slice(0, height), slice(0, width)
    if rng.random() < 0.8 and not plate and right - left > width / 2 and bottom - top > height / 2:
        kept = slice(math.ceil(top) + 2, int(bottom) - 2), slice(math.ceil(left) + 2, int(right) - 2)
    return _Layer(
        np.asarray(film[kept], np.float32), drawn.hand[kept], tuple((name, area[kept]) for name, area in areas[1:])
    )


def _fleshed(layer: _Layer, rng: np.random.Generator) -> _Layer:
    """Return a limb, or one of FLESHY with more flesh around its bones, as a calf or a thigh has: fingers vanish in it.

    The flesh is as thick as a ball is that rolls along the limb, and mostly dim.
    """
    if rng.random() >= FLESHY:
        return layer
    reach = max(layer.film.shape) * math.exp(rng.uniform(math.log(0.02), math.log(0.25)))
    outside = cv2.distanceTransform((~layer.foreground).astype(np.uint8), cv2.DIST_L2, 5)
    foreground = outside < 0.9 * reach  # beyond, the flesh is too thin to be seen
    thick = np.sqrt(np.clip(1 - (outside / reach) ** 2, 0, 1))
    level = math.exp(rng.uniform(math.log(0.1), math.log(0.5)))
    film = 1 - (1 - layer.film) * (1 - level * thick)
    areas = tuple((name, foreground if name.endswith("hand") else area) for name, area in layer.areas)
    return _Layer(np.asarray(film, np.float32), foreground, areas)


def _placed(layer: _Layer, shape: tuple[int, int], *, upright: bool, rng: np.random.Generator) -> _Layer:
    """Return a limb turned, stretched, enlarged and shifted onto a part of a film, (h, w).

    What lies beyond the drawn film is its edge, drawn out: a forearm gets as long as a leg.
    """
    source_height, source_width = layer.film.shape
    fitting = min(shape[0] / source_height, shape[1] / source_width)
    for _ in range(TRIES):
        angle = rng.uniform(-TILT, TILT) if upright else rng.uniform(0, 360)
        zoom, stretched = fitting * math.exp(rng.uniform(math.log(0.5), math.log(2.4))), math.exp(rng.normal(0, 0.15))
        radians = math.radians(angle)
        turn = np.array([[math.cos(radians), -math.sin(radians)], [math.sin(radians), math.cos(radians)]])
        matrix = turn @ np.diag([zoom * stretched, zoom / stretched])
        rows, columns = np.nonzero(layer.foreground)
        chosen = rng.integers(len(rows))  # a point of the limb comes to lie well inside the film
        place = rng.uniform(0.15, 0.85, 2) * shape[::-1]
        matrix = np.column_stack([matrix, place - matrix @ (columns[chosen], rows[chosen])])
        foreground = _warped(layer.foreground, matrix, shape)
        if LEAST_SHARE <= foreground.mean() <= MOST_SHARE:
            break
    blur = max(0.0, 0.5 / max(zoom, 1e-3) - 0.5)  # against aliasing
    film = cv2.GaussianBlur(layer.film, (0, 0), blur) if blur > 0.2 else layer.film
    warped = cv2.warpAffine(film, matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    areas = tuple(
        (name, foreground if name.endswith("hand") else _warped(area, matrix, shape, beyond=cv2.BORDER_CONSTANT))
        for name, area in layer.areas
    )
    return _Layer(np.asarray(warped, np.float32), foreground, areas)


def _warped(
    mask: Mask, matrix: NDArray[np.float64], shape: tuple[int, int], beyond: int = cv2.BORDER_REPLICATE
) -> Mask:
    smooth = cv2.warpAffine(mask.astype(np.float32), matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=beyond)
    return np.asarray(smooth >= 0.5)


def _exposed(part: _Layer, rng: np.random.Generator) -> Levels:
    """Return a part's film with tissue as thick as a hand's or a thigh's, exposed in one way or another."""
    film, inside = part.film, part.foreground.astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    reach = rng.uniform(0.03, 0.2) * max(film.shape)
    thick = 1 - np.exp(-depth / reach)  # steep at the edge, flat in the middle
    film = film + (rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0) * thick * (1 - film)
    if rng.random() < 0.3:  # one end of the limb is thicker than the other: a foot and its heel, an arm and its chest
        direction = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[-1 : 1 : film.shape[0] * 1j, -1 : 1 : film.shape[1] * 1j]
        slope = 1 / (1 + np.exp(-4 * (x * math.cos(direction) + y * math.sin(direction))))
        film = film + rng.uniform(0.2, 1.5) * slope * thick * (1 - film)
    if rng.random() < 0.15:  # air: a lung, a bowel
        film = film - rng.uniform(0.1, 0.35) * _cloud(film.shape, 0.12, rng) * thick
    film = np.clip(film, 0, 1) ** math.exp(rng.normal(0, 0.35))
    return np.asarray(film, np.float32)


def _cloud(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Levels:
    """Return smooth random patches, 0..1."""
    noise = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), scale * max(shape))
    return np.asarray(np.clip(noise / max(float(noise.std()), 1e-6), 0, 1), np.float32)


def _framed(film: Levels, borders: Sequence[int], rng: np.random.Generator) -> tuple[Levels, Mask]:
    """Return a film with rims at its edges and dividers at `borders`, and where these hide the limb."""
    height, width = film.shape
    cover, level = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    bands: list[tuple[slice, slice, float]] = []
    if rng.random() < 0.5:
        shade = _shade(rng)
        for side in np.flatnonzero(rng.random(4) < 0.5):
            reach = max(1, round(max(film.shape) * math.exp(rng.uniform(math.log(0.008), math.log(0.08)))))
            band = slice(0, reach) if side < 2 else slice(-reach, None)
            bands.append((band, slice(None), shade) if side % 2 else (slice(None), band, shade))
    for border in borders:
        half = max(1, round(width * rng.uniform(0.004, 0.025)))
        if rng.random() < 0.7:
            bands.append((slice(None), slice(max(0, border - half), border + half), _shade(rng)))
    for rows, columns, shade in bands:
        cover[rows, columns], level[rows, columns] = 1, shade
    hidden, feather = cover > 0, rng.uniform(0.3, 0.006 * max(film.shape) + 0.4)
    soft_cover, soft_level = (cv2.GaussianBlur(layer, (0, 0), feather) for layer in (cover, level))
    return np.asarray(film * (1 - soft_cover) + soft_level, np.float32), hidden


def _littered(film: Levels, rng: np.random.Generator) -> Levels:
    """Return a film with a ring or a letter on the limb or beside it: neither makes background of a limb, nor limb of
    background.
    """
    height, width = film.shape
    things, thick = np.zeros((height, width), np.uint8), max(1, round(0.006 * max(film.shape)))
    if rng.random() < 0.2:
        center, axes = rng.uniform(0.15, 0.85, 2) * (width, height), rng.uniform(0.06, 0.4, 2) * min(film.shape)
        ring = (float(center[0]), float(center[1])), (float(axes[0]), float(axes[1])), float(rng.uniform(0, 180))
        cv2.ellipse(things, ring, 255, thick)
    if rng.random() < 0.2:
        x, y = rng.uniform(0.05, 0.85, 2) * (width, height)
        scale = 0.0025 * max(film.shape)
        cv2.putText(things, str(rng.choice(("L", "R"))), (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick)
    opaque = rng.uniform(0.7, 1) * things.astype(np.float32) / 255
    return np.asarray(film + opaque * (1 - film), np.float32)


def _shade(rng: np.random.Generator) -> float:
    """Return the grey of a rim: mostly white, as a collimator's or lead's, now and then black."""
    return float(rng.uniform(0.8, 1) if rng.random() < 0.75 else rng.uniform(0, 0.05))


def _bounding_box(area: Mask) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 around an area, or None where it is empty."""
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
