"""Looking at a cache: what is in it as numbers, and its films as a contact sheet, those with problems first."""

import hashlib
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers import read_film
from preprocessing.schema import Cache, stage_of

LABELS = {0: "normal", 1: "abnormal", -1: "unknown"}
SHEET_FILMS = 200  # more would not be looked at, and a picture has at most 65,536 pixels a side
SHOWN_SIDE = 400  # pixels of a film on the sheet


class Films(Protocol):
    """Where film files can be read: a `sources.Source`."""

    def read(self, relative: str, /) -> bytes:
        """Read a file by its path in the source."""


def problems_first(cache: Cache, rows: NDArray[Any] | None = None) -> NDArray[np.intp]:
    """Order rows, all by default, by the number of steps that failed in them, most first, else as they are; (n,)."""
    rows = np.arange(len(cache)) if rows is None else np.arange(len(cache))[rows]
    counts = np.array([len(_steps(text)) for text in cache.index["fallbacks"][rows]], int)
    return rows[np.argsort(-counts, kind="stable")]


def summarise(cache: Cache) -> dict[str, Any]:
    """Count what a cache holds, as plain data that JSON can hold.

    labels, splits, findings, difficulties, depths (bits), shapes ("width x height" in pixels) and fallbacks (by step)
    are counts, most frequent first; films_per_study and films_per_patient tell how many studies (patients) have how
    many films; problems lists the films of which a step failed, worst first; failures those that are not in the cache.
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
        "films": len(cache),
        "patients": len(set(index["patient"])),
        "studies": len(set(index["study"])),
        "labels": _counts(LABELS[label] for label in index["label"].tolist()),
        "splits": _counts(split or "none" for split in index["split"]),
        "findings": _counts(finding for finding in index["finding"] if finding),
        "difficulties": _counts(difficulty for difficulty in index["difficulty"] if difficulty),
        "depths": _counts(map(str, index["depth"].tolist())),
        "shapes": _counts(f"{w} x {h}" for w, h in zip(index["width"], index["height"], strict=True)),
        "films_per_study": _counts(map(str, Counter(index["study"]).values())),
        "films_per_patient": _counts(map(str, Counter(index["patient"]).values())),
        "inverted": int(index["inverted"].sum()),
        "truth": int(cache.has_truth.sum()),
        "fallbacks": _counts(step for text in index["fallbacks"] for step in _steps(text)),
        "problems": [
            {"row": row, "path": index["path"][row], "fallbacks": _steps(index["fallbacks"][row])} for row in problems
        ],
        "failures": [{"path": path, "reason": reason} for path, reason in cache.failures],
    }


def format(summary: dict[str, Any], *, most: int = 6) -> list[str]:
    """Write a summary as lines of text; of long lists the first `most`."""
    lines = [
        f"{summary['path']}: {_number(summary['films'], 'film')}, {_number(summary['studies'], 'study', 'studies')}, "
        f"{_number(summary['patients'], 'patient')}",
        f"source        {summary['source']} ({summary['kind']}){', SYNTHETIC' if summary['synthetic'] else ''}",
        f"stored        {', '.join(summary['variants'])}; {summary['size']} x {summary['size']} {summary['dtype']}",
    ]
    for name in (
        "labels",
        "splits",
        "findings",
        "difficulties",
        "depths",
        "shapes",
        "films_per_study",
        "films_per_patient",
    ):
        if summary[name]:
            lines.append(f"{TITLES.get(name, name):<14}{_listed(summary[name], most)}")
    lines.append(f"{'inverted':<14}{summary['inverted']}")
    lines.append(f"{'pixel truth':<14}{summary['truth']}")
    lines.append(f"{'fallbacks':<14}{_listed(summary['fallbacks'], most) or 'none'}")
    lines += [
        f"  {problem['path']}: no {', no '.join(problem['fallbacks'])} found" for problem in summary["problems"][:most]
    ]
    lines += _rest(summary["problems"], most)
    lines.append(f"{'failures':<14}{len(summary['failures']) or 'none'}")
    lines += [f"  {failure['path']}: {failure['reason']}" for failure in summary["failures"][:most]]
    lines += _rest(summary["failures"], most)
    return lines


TITLES = {"depths": "bits", "shapes": "pixels", "films_per_study": "films/study", "films_per_patient": "films/patient"}


def sheet(
    cache: Cache,
    source: Films | None,
    out: Path,
    rows: NDArray[Any] | None = None,
    *,
    variant: str | None = None,
    count: int = 24,
) -> Path:
    """Draw a contact sheet, two films a line, those with problems first: film, foreground mask, prepared film.

    The film has the carrier's outline (orange) and the crop's (cyan). Where the film itself is not at hand, or is no
    longer the one that was prepared, the stored stage "raw" takes its place, or nothing.

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
    lines = -(-len(shown) // 2)
    figure = Figure(figsize=(12, 0.3 + 2.4 * lines), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, 6, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for i, row in enumerate(shown):
        film, mask, result = panels[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        note = _draw_film(film, cache, int(row), source)
        _draw(mask, cache.masks(variant, np.array([row]))[0].astype(np.uint8), 1)
        _draw(result, cache.films(variant, np.array([row]))[0], np.iinfo(cache.dtype).max)
        fallbacks = cache.index["fallbacks"][row]
        height, width, depth = (cache.index[name][row] for name in ("height", "width", "depth"))
        _title(film, f"{_shortened(cache.index['path'][row])}\n{width} x {height}, {depth} bit", "left")
        _title(
            mask,
            f"no {', no '.join(_steps(fallbacks))}" if fallbacks else note,
            "left",
            "firebrick" if fallbacks else "grey",
        )
        _title(result, f"{LABELS[int(cache.index['label'][row])]}, {variant}", "right")
    _save(figure, out)
    return out


def _draw_film(panel: Axes, cache: Cache, row: int, source: Films | None) -> str:
    """Draw the film with its outlines; a note if something else had to stand in for it."""
    pixels, note = _film(cache, row, source)
    onto = np.eye(2, 3)  # film (x, y) -> panel (x, y)
    if pixels is not None:
        _draw(panel, pixels, max(int(pixels.max()), 1))
    else:
        onto = cache.index["matrix_raw"][row]
        stored = next((variant for variant in cache.variants if stage_of(variant) == "raw"), None)
        if stored is None:
            panel.text(0.5, 0.5, note, ha="center", va="center", color="grey", fontsize=8, parse_math=False)
            return note
        _draw(panel, cache.films(stored, np.array([row]))[0], np.iinfo(cache.dtype).max)
    for corners, colour in ((cache.index["carrier"][row], "orange"), (_crop(cache, row), "cyan")):
        if np.isfinite(corners).all():
            x, y = _moved(np.vstack([corners, corners[:1]]), onto).T
            panel.plot(x, y, color=colour, linewidth=1, scalex=False, scaley=False)
    return note


def _film(cache: Cache, row: int, source: Films | None) -> tuple[NDArray[Any] | None, str]:
    """Read the film (H, W) that a row was made of, or say why it is not there."""
    if source is None:
        return None, "film not at hand"
    path = cache.index["path"][row]
    try:
        data = source.read(path)
        if hashlib.sha256(data).hexdigest() != cache.index["sha256"][row]:
            return None, "film has changed since"
        return read_film(path, data).pixels, ""
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


def _draw(panel: Axes, pixels: NDArray[Any], white: int) -> None:
    height, width = pixels.shape
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # outlines stay in the pixels of the film
    panel.imshow(small, cmap="gray", vmin=0, vmax=white, extent=extent, interpolation="nearest")
    x, y, half = (width - 1) / 2, (height - 1) / 2, max(width, height) / 2
    panel.set(
        xlim=(x - half, x + half), ylim=(y + half, y - half)
    )  # every panel is square, so that titles stand in line


def _title(panel: Axes, text: str, place: Any, colour: str = "black") -> None:
    panel.set_title(text, fontsize=7, loc=place, color=colour, parse_math=False)  # a `$` in a file's name is a `$`


def _save(figure: Figure, out: Path) -> None:
    partial = out.with_name(f".{out.name}.partial")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in a script that the font lacks
            figure.savefig(partial, format=out.suffix.removeprefix(".").lower())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _shortened(path: str, length: int = 90) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in path)
    return text if len(text) <= length else "…" + text[1 - length :]


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
    text = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[:most])
    return f"{text}, and {len(counts) - most} more" if len(counts) > most else text


def _rest(entries: list[Any], most: int) -> list[str]:
    return [f"  and {len(entries) - most} more"] if len(entries) > most else []
