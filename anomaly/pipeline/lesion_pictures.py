"""Pictures of films whose lesions are known, under the map that a detector draws: what it finds, and what it misses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.film_localization import measure_film
from anomaly.evaluation.predict import predict
from anomaly.pipeline.heatmaps import Heatmap, heatmaps
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.selection import Selection
from anomaly.reporting.heatmap import Picture, blend, outlined, titled
from preprocessing import InputError

LEAST = 160
"""Pixels a side of each film of a sheet, at least."""


@dataclass(frozen=True)
class FoundLesion:
    """The highest-scored abnormal film whose map peaks in its lesion."""

    heatmap: Heatmap
    lesion: NDArray[np.bool_]  # (S, S)
    finding: str  # empty where it is not known
    difficulty: str
    found: int  # films whose map peaks in a lesion
    marked: int  # abnormal films with a marked lesion

    def __str__(self) -> str:
        """Return how it was picked."""
        return f"the highest-scored of the {self.found} of {self.marked} abnormal films whose map peaks in their lesion"

    def picture(self, title: str) -> Picture:
        """Return the film and its heat side by side, the lesion outlined on both, under a line of text."""
        map = self.heatmap
        heat = blend(map.film, map.map, map.mask, map.scale)
        pair = [outlined(map.film, self.lesion, under=under) for under in (_gray(map.film), heat)]
        return titled(np.concatenate(pair, axis=1), title)


def marked_films(films: FilmSet) -> FilmSet:
    """Return the abnormal films whose lesion is marked."""
    return films.subset(np.flatnonzero((films.label == 1) & films.cache.has_truth[films.rows]))


def find_lesion(run: OpenRun, selection: Selection, by: str) -> FoundLesion | None:
    """Return the highest-scored abnormal film whose map's largest value lies in its lesion; None if there is none.

    by  the score. Raises InputError where the model draws no map.
    """
    films = marked_films(selection.films)
    best: tuple[Heatmap, NDArray[np.bool_], int] | None = None
    found = 0
    marked = Selection(films, np.full(len(films), selection.name, dtype=object), selection.name)
    for place, heatmap in enumerate(heatmaps(run, marked, by=by)):
        lesion = films.marked(place)
        if lesion is None:
            continue
        measured, _ = measure_film(heatmap.map, lesion, heatmap.mask)
        if sum(one.peak for one in measured.lesions) > 0.5:  # 0 or 1 unless several pixels share the largest value
            found += 1
            if best is None or heatmap.score > best[0].score:
                best = heatmap, lesion, place
    if best is None:
        return None
    heatmap, lesion, place = best
    finding, difficulty = (str(films.column(name)[place]) for name in ("finding", "difficulty"))
    return FoundLesion(heatmap, lesion, finding, difficulty, found, len(films))


def of_each_finding(films: FilmSet, difficulty: str | None = None) -> FilmSet:
    """Return the first marked film of each finding: chosen by place, not by what a detector makes of it."""
    films = marked_films(films)
    if difficulty is not None:
        films = films.subset(np.flatnonzero(films.column("difficulty") == difficulty))
    _, first = np.unique(films.column("finding"), return_index=True)
    return films.subset(np.sort(first))


def lesion_sheet(runs: Sequence[OpenRun], films: FilmSet, side: int) -> Picture:
    """Return a column a film, the lesion outlined, and beneath it a row a run, its map on its own scale.

    Each run looks at the films in the variant and at the size that it was trained on.

    side  pixels of each film, at most; small films are enlarged. Raises InputError where a run draws no map.
    """
    read = films.read()
    levels = read.unit()
    rows = [[_outlined(film, films.marked(place)) for place, film in enumerate(levels)]]
    for run in runs:
        scale = run.calibration.map_scale
        if scale is None:
            raise InputError(f"{run.run.path} draws no map")
        row, config = [], run.run.config
        sized = replace(films, variant=config.variant, size=config.size)
        for part in predict(run.model, sized, maps=True):
            pairs = zip(part.films.unit(), part.films.mask, strict=True)
            row += [blend(film, part.smoothed_map(i), mask, scale) for i, (film, mask) in enumerate(pairs)]
        rows.append(row)
    tile = min(max(films.size, LEAST), side)
    return np.concatenate([np.concatenate([_resized(one, tile) for one in row], axis=1) for row in rows])


def _outlined(film: NDArray[np.float32], lesion: NDArray[np.bool_] | None) -> Picture:
    gray = _gray(film)
    return gray if lesion is None else outlined(film, lesion, under=gray)


def _gray(film: NDArray[np.float32]) -> Picture:
    levels: NDArray[np.uint8] = np.rint(film * 255).astype(np.uint8)
    return levels[..., None].repeat(3, axis=2)


def _resized(picture: Picture, side: int) -> Picture:
    method = cv2.INTER_AREA if len(picture) > side else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (side, side), interpolation=method), np.uint8)
