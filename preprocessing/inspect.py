"""Looking at a cache: what is in it as numbers, and each film's way through the steps as a sheet; problems first."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from preprocessing import InputError, steps
from preprocessing.cache.notes import cache_notes
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import BOX_CLASSES, stage_of
from preprocessing.readers import read_film
from preprocessing.recipe import Recipe
from preprocessing.where import LABELS

TURNS = {1: "turned by a quarter", 2: "turned by a half", 3: "turned by three quarters"}  # counter-clockwise

SHEET_FILMS = 200  # more would not be looked at, and a picture has at most 65,536 pixels a side
WIDTH = 960  # of a sheet with all columns; this and the following in pixels
PANEL = 200  # at most, of a film on the sheet
GAP = 8  # between panels, and around them
LINE = 15  # of text
FONT = 8  # points, of which 72 are an inch
DPI = 100
EMPTY = 238  # grey level of a panel that could not be drawn

BYTES_SHOWN = re.compile(r"""b(['"])(?:(?!\1)[^\\]|\\.)*\1""")  # in a reason: the first bytes of a file
DIGITS = re.compile(r"\d+(?:\.\d+)?")


class Films(Protocol):
    """Where film files can be read: a `sources.Source`."""

    def read(self, relative: str, /) -> bytes:
        """Read a file by its path in the source."""


def problems_first(cache: Cache, rows: NDArray[Any] | None = None) -> NDArray[np.intp]:
    """Order rows, all by default, by the number of steps that found nothing, most first, else as they are; (n,)."""
    rows = np.arange(len(cache)) if rows is None else np.arange(len(cache))[rows]
    counts = np.array([len(_steps(text)) for text in cache.index["fallbacks"][rows]], int)
    return rows[np.argsort(-counts, kind="stable")]


# Numbers --------------------------------------------------------------------------------------------------------------


def summarise(cache: Cache) -> dict[str, Any]:
    """Count what a cache holds, as plain data that JSON can hold.

    A film here is a row of the cache: of two hands on one film each is one, and `several_hands` counts the films that
    show two. labels, splits, findings, difficulties, depths (bits), shapes ("width x height" in pixels), turned
    (quarters), sides, boxes (targets, by class) and fallbacks (by step) are counts, most frequent first;
    films_per_study and films_per_patient tell how many studies (patients) have how many films; inverted, truth (films
    with pixel truth), given (films that came with their mask) and markers (blanked) are numbers.

    steps       for each step of the recipe, in its order, how many films it "worked" on (carrier, hand or foreground
                was found, levels were inverted, markers blanked), on how many a trained net found nothing and it "fell
                back" on the classical way, on how many it "failed" and its whole input was kept, and how many were
                "left" as they were: boxes or masks were given, the levels were the right way round, there was no
                marker. The four add up to the films.
    notes       what a user should know: patients not known, films there twice, flat films
    columns     what else the source says of its films, name -> how many values: for `--where` and `--by-column`
    nets        localizer, segmenter -> name, run and digest of the trained net that was asked
    problems    films in which a step found nothing, worst first: row, name, fallbacks
    failures    films that are not in the cache: path, reason
    reasons     the same grouped by reason, its numbers left out: reason, films, and the first paths as examples
    """
    index = cache.index
    problems = [int(row) for row in problems_first(cache) if index["fallbacks"][row]]
    return {
        "path": str(cache.path),
        "source": cache.source,
        "kind": cache.source_kind,
        "synthetic": cache.synthetic,
        "variants": list(cache.variants),
        "size": cache.size,
        "dtype": cache.dtype.name,
        "content": cache.content_hash,
        "recipe": Recipe.from_json(cache.recipe_json).model_dump(),
        "nets": cache.nets,
        "films": len(cache),
        "patients": len(set(index["patient"])),
        "studies": len(set(index["study"])),
        "notes": cache_notes(cache),
        "columns": {name: len(set(values.tolist()) - {""}) for name, values in cache.columns.items()},
        "labels": _counts(LABELS[label] for label in index["label"].tolist()),
        "splits": _counts(split or "none" for split in index["split"]),
        "findings": _counts(finding for finding in index["finding"] if finding),
        "difficulties": _counts(difficulty for difficulty in index["difficulty"] if difficulty),
        "depths": _counts(map(str, index["depth"].tolist())),
        "shapes": _counts(f"{w} x {h}" for w, h in zip(index["width"], index["height"], strict=True)),
        "films_per_study": _counts(map(str, Counter(index["study"]).values())),
        "films_per_patient": _counts(map(str, Counter(index["patient"]).values())),
        "inverted": int(index["inverted"].sum()),
        "turned": _counts(str(turns) for turns in index["turns"].tolist() if turns),
        "sides": _counts(side for side in index["side"] if side),
        "several_hands": int((index["hand"] == 2).sum()),
        "markers": int(index["markers"].sum(dtype=int)),
        "given": int(index["given"].sum()),
        "truth": int(cache.has_truth.sum()),
        "boxes": _boxes(cache),
        "steps": _by_step(cache),
        "fallbacks": _counts(step for text in index["fallbacks"] for step in _steps(text)),
        "problems": [
            {"row": row, "name": cache.names[row], "fallbacks": _steps(index["fallbacks"][row])} for row in problems
        ],
        "failures": [{"path": path, "reason": reason} for path, reason in cache.failures],
        "reasons": _grouped(cache.failures),
    }


def format(summary: dict[str, Any], *, most: int = 6) -> list[str]:
    """Write a summary as lines of text; of long lists the first `most`."""
    lines = [
        f"{summary['path']}: {_number(summary['films'], 'film')}, {_number(summary['studies'], 'study', 'studies')}, "
        f"{_number(summary['patients'], 'patient')}",
        f"source        {summary['source']} ({summary['kind']}){', SYNTHETIC' if summary['synthetic'] else ''}",
        f"stored        {', '.join(summary['variants'])}; {summary['size']} x {summary['size']} {summary['dtype']}",
    ]
    lines += [f"{'note':<14}{_printable(note)}" for note in summary["notes"]]
    for role, net in summary["nets"].items():
        origin = f"trained in {net['run']}" if net["run"] else "of the package"
        lines.append(f"{role:<14}{net['name']} {net['digest']}, {origin}")
    for name, title in TITLES.items():
        if summary[name]:
            lines.append(f"{title:<14}{_listed(summary[name], most)}")
    for name, title in NUMBERS.items():
        if summary[name] or name in ("inverted", "truth"):
            lines.append(f"{title:<14}{summary[name]}")
    if summary["steps"]:
        lines.append(f"{'steps':<14}" + "".join(f"{title:>11}" for title in OUTCOMES.values()))
    for step, counts in summary["steps"].items():
        lines.append(f"  {step:<12}" + "".join(f"{counts[name]:>11}" for name in OUTCOMES))
    lines.append(f"{'fallbacks':<14}{_listed(summary['fallbacks'], most) or 'none'}")
    lines += [
        f"  {_printable(problem['name'])}: {'; '.join(_told(problem['fallbacks'], summary['recipe']))}"
        for problem in summary["problems"][:most]
    ]
    lines += _rest(summary["problems"], most)
    lines.append(f"{'failures':<14}{len(summary['failures']) or 'none'}")
    for group in summary["reasons"][:most]:
        examples = ", ".join(map(_printable, group["examples"]))
        more = f", and {group['films'] - len(group['examples'])} more" * (group["films"] > len(group["examples"]))
        lines.append(f"  {_number(group['films'], 'film')}: {_printable(group['reason'])} ({examples}{more})")
    return lines + _rest(summary["reasons"], most)


TITLES = {
    "labels": "labels",
    "splits": "splits",
    "findings": "findings",
    "difficulties": "difficulties",
    "depths": "bits",
    "shapes": "pixels",
    "films_per_study": "films/study",
    "films_per_patient": "films/patient",
    "turned": "quarter turns",
    "sides": "sides",
    "boxes": "boxes",
}
NUMBERS = {
    "inverted": "inverted",
    "several_hands": "of two hands",
    "markers": "markers",
    "given": "masks given",
    "truth": "pixel truth",
}
OUTCOMES = {"worked": "worked", "fell_back": "fell back", "failed": "failed", "left": "left"}


def _by_step(cache: Cache) -> dict[str, dict[str, int]]:
    """Count by step of the recipe as `summarise` says."""
    index, recipe, nets = cache.index, Recipe.from_json(cache.recipe_json), cache.nets
    stages = {stage_of(variant) for variant in cache.variants}
    none = np.zeros(len(cache), bool)
    nothing = {  # step -> (N,) whether it found nothing
        name: np.array([name in _steps(text) for text in index["fallbacks"]], bool)
        for name in ("carrier", "hand", "mask", "localizer", "segmenter")
    }
    on_carrier, boxed = np.isfinite(index["carrier"]).all(axis=(1, 2)), np.isfinite(index["box"]).all(axis=1)
    localizer = "localizer" in nets and stages != {"raw"}
    localised = recipe.hand != "none" or localizer
    # A box that came with its film takes the place of the carrier too, and nothing is said to be missing.
    box_given = boxed & ~on_carrier & ~nothing["carrier"] if recipe.carrier != "none" else none
    found: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]] = {}
    if recipe.carrier != "none":
        found["carrier"] = on_carrier, none, nothing["carrier"]
    if recipe.invert != "never":
        found["inversion"] = index["inverted"], none, none
    if localised:
        lost = ~boxed & (nothing["localizer"] | nothing["hand"])
        found["localisation"] = boxed & ~nothing["localizer"] & ~box_given, boxed & nothing["localizer"], lost
    if localizer:
        found["markers"] = index["markers"] > 0, none, none
    if "full" in stages and (recipe.mask != "none" or "segmenter" in nets):
        whole = nothing["mask"] | (nothing["segmenter"] if recipe.mask == "none" else none)
        found["mask"] = ~whole & ~nothing["segmenter"] & ~index["given"], ~whole & nothing["segmenter"], whole
    return {
        step: {name: int(rows.sum()) for name, rows in zip(OUTCOMES, outcomes, strict=False)}
        | {"left": int((~np.any(outcomes, axis=0)).sum())}
        for step, outcomes in found.items()
    }


def _boxes(cache: Cache) -> dict[str, int]:
    """Count target boxes by class; {} where there are none."""
    if not cache.has_boxes:
        return {}
    classes = cache.boxes(slice(None))[..., 4].astype(int)  # (N, 16)
    return _counts(BOX_CLASSES[number - 1] for number in classes[classes > 0].tolist())


def _grouped(failures: Sequence[tuple[str, str]], examples: int = 3) -> list[dict[str, Any]]:
    """Group failures of the same reason, whatever its numbers, the largest group first.

    >>> _grouped([("a.png", "9 x 9 pixels"), ("b.png", "cut short"), ("c.png", "7 x 8 pixels")])[0]
    {'reason': 'N x N pixels', 'films': 2, 'examples': ['a.png', 'c.png']}
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, reason in failures:
        groups.setdefault(DIGITS.sub("N", BYTES_SHOWN.sub("...", reason)), []).append((path, reason))
    return [
        {
            "reason": members[0][1] if len({reason for _, reason in members}) == 1 else alike,
            "films": len(members),
            "examples": [path for path, _ in members[:examples]],
        }
        for alike, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    ]


# The sheet ------------------------------------------------------------------------------------------------------------


def sheet(
    cache: Cache,
    source: Films | None,
    out: Path,
    rows: NDArray[Any] | None = None,
    *,
    variant: str | None = None,
    count: int = 24,
) -> Path:
    """Draw every step side by side, a film a line, those with problems first.

    The columns: the film as read, with its carrier's outline; the carrier as inverted and turned upright, with the box
    of the hand; the crop; the crop with the foreground mask's outline; the prepared film. What the recipe does not do,
    what is not stored, and what cannot be shown of any film, has no column. Under each film: its path (with #1 or #2
    for one of two hands), its label, and what the steps did; in red what they did not find.

    Nothing is detected again. All but the prepared film is redrawn from the film file and the index: what is shown is
    what was done. A film that is not at hand, or is no longer the one that was prepared, is said to be so, and shown in
    the stages stored. Side markers are seen blanked where "crop" is stored: the index does not say where they were.
    Films are shown from black to the least of 255, 511, 1023, ... that no level exceeds.

    source    where the film files are; None: not at hand
    out       the picture to write, in a folder that is there; its suffix names the format
    rows      of the cache; all by default
    variant   stored variant to show; the last by default
    count     films at most

    Raises InputError for no rows, more than 200 films, an unknown variant, an unknown format and a missing folder.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it, or name another")
    known = FigureCanvasAgg.get_supported_filetypes()
    if out.suffix.removeprefix(".").lower() not in known:
        raise InputError(f"{out}: no picture format {out.suffix!r}; there are: {', '.join(sorted(known))}")
    variant = variant or cache.variants[-1]
    shown = problems_first(cache, rows)[:count]
    if not 0 < len(shown) <= SHEET_FILMS:
        raise InputError(f"{len(shown)} films for a contact sheet; choose 1 to {SHEET_FILMS}")
    recipe = Recipe.from_json(cache.recipe_json)
    columns = _columns(cache, shown, variant, recipe, at_hand=source is not None)
    side = min(PANEL, (WIDTH - GAP) // len(columns) - GAP)
    films = [_line(cache, int(row), source, variant, recipe, side) for row in shown]
    columns = {name: title for name, title in columns.items() if any(name in film.panels for film in films)}
    heading = f"{_printable(cache.path.name)}: {len(shown)} of {_number(len(cache), 'film')}, problems first"
    with warnings.catch_warnings():  # of names in a script that the font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from|Matplotlib currently does not support")
        _save(_figure(films, columns, heading + ", SYNTHETIC" * cache.synthetic, side), out)
    return out


@dataclass(frozen=True)
class _Panel:
    """A picture (h, w) uint8, and closed outlines in its pixels, edges at 0 and w or h, with their colours."""

    picture: NDArray[np.uint8]
    outlines: list[tuple[NDArray[Any], str]]


@dataclass(frozen=True)
class _Line:
    """What is shown of a film: a panel for each column that there is something for, texts with colours, what is amiss.

    note   why the film itself is not shown, or empty
    """

    panels: dict[str, _Panel]
    caption: list[tuple[str, str]]
    note: str


def _columns(
    cache: Cache, rows: NDArray[np.intp], variant: str, recipe: Recipe, *, at_hand: bool
) -> dict[str, tuple[str, str]]:
    """Choose the columns that there may be something for: name -> title and legend."""
    index, stages = cache.index, {stage_of(stored) for stored in cache.variants}
    carrier = recipe.carrier != "none"
    hand = recipe.hand != "none" or "localizer" in cache.nets or bool(np.isfinite(index["box"][rows]).any())
    masked = recipe.mask != "none" or "segmenter" in cache.nets or bool(index["given"][rows].any())
    blanking, blanked = bool(index["markers"][rows].any()), "blanked" if "crop" in stages else "not blanked yet"
    legends = ["carrier: orange"] * carrier + ["hand: cyan"] * (hand and not at_hand)
    columns = {
        "film": (at_hand or "raw" in stages, "film as read", ", ".join(legends)),
        "upright": (
            at_hand and (carrier or hand or recipe.invert != "never"),
            "upright carrier" if carrier else "bones bright",
            "hand: cyan" * hand,
        ),
        "crop": ((carrier or hand) and bool(stages & {"crop", "full"}), "crop", f"markers {blanked}" * blanking),
        "mask": (masked and "full" in stages, "foreground", "outline: green"),
        "result": (True, variant, f"as stored, {cache.size} x {cache.size} pixels"),
    }
    return {name: (title, legend) for name, (wanted, title, legend) in columns.items() if wanted}


def _line(cache: Cache, row: int, source: Films | None, variant: str, recipe: Recipe, side: int) -> _Line:
    """Redraw a film's way through the steps, in panels of at most `side` pixels a side."""
    index, at = {name: column[row] for name, column in cache.index.items()}, np.array([row])
    full = int(np.iinfo(cache.dtype).max)
    stored = {stage_of(name): cache.films(name, at)[0] for name in reversed(cache.variants)}  # the plainest of a stage
    panels: dict[str, _Panel] = {}
    film, note = _film(cache, row, source, recipe)
    crop, white = stored.get("crop"), full
    to_crop: NDArray[Any] = np.eye(2, 3)  # cache (x, y) -> crop (x, y)
    if film is not None:
        white = max(255, 2 ** int(film.max()).bit_length() - 1)
        panels["film"] = _panel(film, white, side, [(index["carrier"], "orange")])
        upright = steps.invert(film) if index["inverted"] else film
        if np.isfinite(index["carrier"]).all():
            upright, _ = steps.rectify(upright, index["carrier"].astype(np.float32))
        upright = np.ascontiguousarray(np.rot90(upright, index["turns"]))
        x0, y0, x1, y1 = index["box"]
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
        panels["upright"] = _panel(upright, white, side, [(corners, "cyan")])
        if crop is not None and index["markers"]:
            white = full  # as stored, for there the markers are blank
        else:
            crop = upright if np.isnan(x0) else upright[int(y0) : int(y1), int(x0) : int(x1)]
            fitted = steps.fit_matrix(crop.shape, cache.size)
            to_crop = np.hstack([np.diag(1 / np.diag(fitted)), (-fitted[:, 2] / np.diag(fitted))[:, None]])
    elif "raw" in stored:
        outlines = [(index["carrier"], "orange"), (_crop(cache, row), "cyan")]
        onto = [(_moved(corners, index["matrix_raw"]), colour) for corners, colour in outlines]
        panels["film"] = _panel(stored["raw"], full, side, onto)
    if crop is not None:
        panels["crop"] = _panel(crop, white, side, [])
    if "full" in stored:
        mask = cache.masks(next(name for name in cache.variants if stage_of(name) == "full"), at)[0].astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        around = [(_moved(contour[:, 0], to_crop), "lime") for contour in contours]
        panels["mask"] = _panel(mask, 4, side, around) if crop is None else _panel(crop, white, side, around)
    panels["result"] = _panel(cache.films(variant, at)[0], full, side, [])
    return _Line(panels, _caption(cache, row, recipe, note), note)


def _caption(cache: Cache, row: int, recipe: Recipe, note: str) -> list[tuple[str, str]]:
    """Say in a few words what the film is and what the steps did, in red what they did not find."""
    index = {name: column[row] for name, column in cache.index.items()}
    side, markers = index["side"], int(index["markers"])
    label = LABELS[int(index["label"])] + f" ({_shortened(index['finding'], 30)})" * bool(index["finding"])
    done = [
        "inverted" * bool(index["inverted"]),
        TURNS.get(int(index["turns"]), ""),
        f"{side} hand" if side else "",
        f"{_number(markers, 'marker')} blanked" if markers else "",
        "mask given" * bool(index["given"]),
    ]
    size = f"{index['width']} x {index['height']}, {index['depth']} bit"
    missing = [note, *_told(_steps(index["fallbacks"]), recipe.model_dump())]
    texts = [(_shortened(cache.names[row]), "black"), (label, "black"), (size, "grey")]
    return [*texts, *((text, "teal") for text in done if text), *((text, "firebrick") for text in missing if text)]


def _told(fallbacks: Sequence[str], recipe: dict[str, Any]) -> list[str]:
    """Say what found nothing, and what was done then."""
    instead = {
        step: "nothing else asked" if recipe.get(step) == "none" else "classical way taken" for step in ("hand", "mask")
    }
    words = {
        "carrier": "no carrier found",
        "localizer": f"localizer found nothing, {instead['hand']}",
        "hand": "no hand found",
        "segmenter": f"segmenter found nothing, {instead['mask']}",
        "mask": "no foreground found",
        "polarity": "polarity uncertain, not turned round",
        "exposed field": "the exposed field lies beside the crop",
    }
    return [words.get(name, f"no {name} found") for name in fallbacks]


def _film(cache: Cache, row: int, source: Films | None, recipe: Recipe) -> tuple[NDArray[Any] | None, str]:
    """Read the film (H, W) that a row was made of, or say why it is not there."""
    if source is None:
        return None, "film not at hand"
    path = cache.index["path"][row]
    try:
        data = source.read(path)
        if hashlib.sha256(data).hexdigest() != cache.index["sha256"][row]:
            return None, "film has changed since"
        film = read_film(path, data, window=recipe.window == "voi")
        return steps.square(film.pixels, film.aspect)[0] if film.aspect != 1 else film.pixels, ""
    except (InputError, OSError):
        return None, "film not at hand"


def _crop(cache: Cache, row: int) -> NDArray[Any]:
    """Corners (4, 2) of the crop in the film's pixels: NaN if the film was not cropped."""
    x0, y0, x1, y1 = cache.index["box"][row]
    half = np.array([x1 - x0, y1 - y0]) * cache.size / max(x1 - x0, y1 - y0) / 2
    corners = (cache.size - 1) / 2 + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    matrix = cache.index["matrix_crop"][row]
    return (
        (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        if np.isfinite(corners).all()
        else np.full((4, 2), np.nan)
    )


def _moved(points: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    moved: NDArray[Any] = points @ matrix[:, :2].T + matrix[:, 2]  # (n, 2)
    return moved


def _panel(pixels: NDArray[Any], white: int, side: int, outlines: Sequence[tuple[NDArray[Any], str]]) -> _Panel:
    """Scale a film (H, W) to `side` pixels on its longer side, 0 black; outlines are in its pixels, centres whole."""
    height, width = pixels.shape
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    picture = np.rint(np.minimum(small, white) * (255 / white)).astype(np.uint8)
    known = [(points, colour) for points, colour in outlines if np.isfinite(points).all()]
    return _Panel(picture, [((points + 0.5) * scale, colour) for points, colour in known])


def _figure(films: Sequence[_Line], columns: dict[str, tuple[str, str]], heading: str, side: int) -> Figure:
    """Put the panels below each other, a caption under each film, all in whole pixels."""
    width = GAP + max(len(columns) * (side + GAP), 3 * (PANEL + GAP))  # captions need some
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    font = FontProperties(size=FONT)

    def measure(text: str) -> float:
        return float(renderer.get_text_width_height_descent(text, font, ismath=False)[0])

    captions = [_wrapped(film.caption, measure, width - 2 * GAP) for film in films]
    pitches = [side + (caption[-1][1] + 1) * LINE + 2 * GAP for caption in captions]
    uppers = 3 * LINE + 2 * GAP + np.cumsum([0, *pitches])  # of each film, and the end
    height = int(uppers[-1])
    figure.set_size_inches(width / DPI, height / DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _write(axes, GAP, GAP, _fitted(heading, measure, width - 2 * GAP), "black", weight="bold")
    lefts = {name: GAP + i * (side + GAP) for i, name in enumerate(columns)}
    for name, (title, legend) in columns.items():
        _write(axes, lefts[name], GAP + LINE, title, "black")
        _write(axes, lefts[name], GAP + 2 * LINE, legend, "grey")
    canvas = np.full((height, width), 255, np.uint8)
    for film, caption, upper in zip(films, captions, uppers.tolist(), strict=False):
        for name, left in lefts.items():
            if name in film.panels:
                _place(axes, canvas, film.panels[name], left, upper, side)
            else:
                canvas[upper : upper + side, left : left + side] = EMPTY
                _write(axes, left + GAP, upper + side // 2, film.note, "grey")
        for x, line, text, colour in caption:
            _write(axes, GAP + x, upper + side + GAP // 2 + line * LINE, text, colour)
    extent = (0, width, height, 0)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="nearest")
    return figure


def _place(axes: Axes, canvas: NDArray[np.uint8], panel: _Panel, left: int, upper: int, side: int) -> None:
    """Draw a panel in the middle of its square of the sheet."""
    height, width = panel.picture.shape
    x, y = left + (side - width) // 2, upper + (side - height) // 2
    canvas[y : y + height, x : x + width] = panel.picture
    for points, colour in panel.outlines:
        closed = np.vstack([points, points[:1]]) + np.array([x, y])
        (line,) = axes.plot(*closed.T, color=colour, linewidth=1, scalex=False, scaley=False)
        line.set_clip_path(Rectangle((x - 1, y - 1), width + 2, height + 2, transform=axes.transData))


def _write(axes: Axes, x: float, y: float, text: str, colour: str, weight: str = "normal") -> None:
    # A `$` in a file's name is a `$`.
    axes.text(x, y, text, fontsize=FONT, color=colour, weight=weight, va="top", parse_math=False)


def _wrapped(
    texts: Sequence[tuple[str, str]], measure: Callable[[str], float], width: float, space: float = 12
) -> list[tuple[float, int, str, str]]:
    """Lay texts out in lines of this width: (x, line, text, colour); one that is too wide is shortened."""
    placed, x, line = [], 0.0, 0
    for text, colour in texts:
        text = _fitted(text, measure, width)
        if x and x + measure(text) > width:
            x, line = 0.0, line + 1
        placed.append((x, line, text, colour))
        x += measure(text) + space
    return placed


def _fitted(text: str, measure: Callable[[str], float], width: float) -> str:
    """Leave out the beginning of a text until it is no wider than this."""
    while measure(text) > width and len(text) > 1:
        text = _shortened(text, min(len(text) - 1, int(len(text) * width / measure(text))) or 1)
    return text


def _save(figure: Figure, out: Path) -> None:
    partial = out.with_name(f".{out.name}.partial")
    try:
        figure.savefig(partial, dpi=DPI, format=out.suffix.removeprefix(".").lower())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


# Words ----------------------------------------------------------------------------------------------------------------


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _shortened(text: str, length: int = 80) -> str:
    """Make a text printable, and leave out its beginning where it is longer than this.

    >>> _shortened("patient00001/study1/image1.png", 11)
    '…image1.png'
    """
    text = _printable(text)
    return text if len(text) <= length else "…" + text[len(text) + 1 - length :]


def _steps(fallbacks: str) -> list[str]:
    return fallbacks.split(",") if fallbacks else []


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _number(count: int, one: str, several: str = "") -> str:
    """A count with its word.

    >>> _number(1, "film"), _number(0, "film"), _number(2, "study", "studies")
    ('1 film', '0 films', '2 studies')
    """
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def _listed(counts: dict[str, int], most: int) -> str:
    text = ", ".join(f"{_printable(name)}: {count}" for name, count in list(counts.items())[:most])
    return f"{text}, and {len(counts) - most} more" if len(counts) > most else text


def _rest(entries: list[Any], most: int) -> list[str]:
    return [f"  and {len(entries) - most} more"] if len(entries) > most else []
