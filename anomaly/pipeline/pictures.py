"""Pictures of the highest-ranked films of a worklist: the original film, its heatmap, its reconstruction, a thumbnail.

Maps and reconstructions are kept from the one pass over all films, compressed and of the highest-ranked films alone:
about 100 KB a film at 512 px, however many films there are. Originals are read again, one at a time a thread.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly.console import silent
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.predict import PredictedFilms
from anomaly.pipeline.gallery import Most
from anomaly.pipeline.heatmaps import original_film
from anomaly.pipeline.selection import Display
from anomaly.reporting.heatmap import REACH, blend, jpeg, to_film_space
from anomaly.runs import write_atomic
from preprocessing import InputError
from preprocessing.sources import Source

LONGEST = 768
"""The longer side of a picture in pixels, at most."""
THUMBNAIL = 144
"""The longer side of a thumbnail in pixels, at most."""
FOLDER = "worklist"
"""Beside worklist.html: where the pictures are."""
Level = TypeVar("Level", np.uint8, np.float32)
_NAME = re.compile(r"\d{5,}(-[a-z]+)?\.jpg")
_THREADS = min(4, os.cpu_count() or 1)  # each holds one original film


@dataclass(frozen=True)
class Pictures:
    """The files of a film's pictures, relative to the page."""

    thumbnail: str
    layers: Mapping[str, str]  # "film", "heatmap", "reconstruction" -> file; those that there are
    original: bool  # whether they show the original film, not the prepared one


@dataclass(frozen=True)
class Drawn:
    """The pictures of a worklist."""

    by_place: Mapping[int, Pictures] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a reader of the pictures has to know, a sentence each


@dataclass(frozen=True)
class _Kept:
    """What a pass gave of one film, as PNG: levels of the map from 0 to REACH times the scale, and reconstruction."""

    map: bytes | None
    reconstruction: bytes | None


class PictureCollector:
    """Keeps maps and reconstructions of the highest-scored films of a pass."""

    def __init__(self, main: str, count: int, scale: float | None) -> None:
        """`main` ranks, `count` films are kept, at `scale` maps are drawn; None: the model draws none."""
        self.main, self.scale = main, scale
        self.kept: dict[int, _Kept] = {}  # by place in the set
        self._highest = Most(count)

    def add(self, predicted: PredictedFilms) -> None:
        """Take the films of a pass."""
        if not self._highest.count:
            return
        for index, score in enumerate(predicted.scores[self.main]):
            place = predicted.places.start + index
            if self._highest.offer(float(score), place):
                self.kept[place] = self._compressed(predicted, index)
        wanted = self._highest.places()
        self.kept = {place: kept for place, kept in self.kept.items() if place in wanted}

    def _compressed(self, predicted: PredictedFilms, index: int) -> _Kept:
        drawn = reconstruction = None
        if predicted.maps is not None and self.scale is not None:
            drawn = _png(predicted.smoothed_map(index) / (REACH * self.scale))
        if predicted.reconstructions is not None:
            reconstruction = _png(predicted.reconstructions[index])
        return _Kept(drawn, reconstruction)


def draw_pictures(
    collector: PictureCollector, films: FilmSet, originals: Source | None, folder: Path, *, display: Display = silent
) -> Drawn:
    """Write the pictures of the films that a collector kept into `folder / FOLDER`, and remove older ones there.

    originals  where the original films are; None draws the prepared ones, as for each that is gone or another one now.
    """
    lock = Lock()  # a cache is read by one thread at a time

    def draw(place: int) -> tuple[int, Pictures, str]:
        film, matrix, reason = None, None, "the original films are not where they were prepared from"
        if originals is not None:
            try:
                film, matrix = original_film(films, place, originals)
                if not np.isfinite(matrix).all():
                    film, reason = None, "where the prepared film lies on the original one is not known"
            except InputError as error:
                reason = str(error)
        if film is None or matrix is None:
            with lock:
                film = films.part(slice(place, place + 1)).unit()[0]
            return place, _write(folder, place, film, np.eye(2, 3), collector), reason
        return place, _write(folder, place, film, matrix, collector, original=True), ""

    pictures: dict[int, Pictures] = {}
    reasons: list[str] = []
    with display("drawing pictures", len(collector.kept), "films") as advance:
        for place, one, reason in _in_threads(draw, sorted(collector.kept)):
            pictures[place] = one
            reasons += [reason] if reason else []
            advance()
    _tidy(folder / FOLDER, pictures.values())
    notes = []
    if reasons:
        notes.append(f"pictures of {len(reasons)} of {len(pictures)} films show the prepared film: {reasons[0]}")
    return Drawn(pictures, notes)


def _in_threads(
    draw: Callable[[int], tuple[int, Pictures, str]], places: Sequence[int]
) -> Iterator[tuple[int, Pictures, str]]:
    """Yield what is drawn, in order; an interruption waits for no film that was not begun."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield from pool.map(draw, places)
    finally:
        pool.shutdown(cancel_futures=True)


def _write(
    folder: Path,
    place: int,
    film: NDArray[np.float32],
    matrix: NDArray[np.float64],
    collector: PictureCollector,
    *,
    original: bool = False,
) -> Pictures:
    """Draw a film, (H, W) in [0, 1], its map and its reconstruction, which `matrix` leads to from the film's (x, y)."""
    small, onto = _shrunk(film, matrix)
    shape = (small.shape[0], small.shape[1])
    kept, layers = collector.kept[place], {"film": _bytes(small)}
    if kept.map is not None and collector.scale is not None:
        levels = to_film_space(_unpng(kept.map), onto, shape) * (REACH * collector.scale)
        layers["heatmap"] = blend(small, levels, np.ones(shape, np.bool_), collector.scale)
    if kept.reconstruction is not None:
        layers["reconstruction"] = _bytes(to_film_space(_unpng(kept.reconstruction), onto, shape))
    files = {"film": f"{place:05d}.jpg"} | {name: f"{place:05d}-{name}.jpg" for name in layers if name != "film"}
    for name, picture in layers.items():
        write_atomic(folder / FOLDER / files[name], jpeg(picture))
    thumbnail = f"{place:05d}-small.jpg"
    write_atomic(folder / FOLDER / thumbnail, jpeg(_resized(layers.get("heatmap", layers["film"]), THUMBNAIL)))
    return Pictures(f"{FOLDER}/{thumbnail}", {name: f"{FOLDER}/{file}" for name, file in files.items()}, original)


def _shrunk(film: NDArray[np.float32], matrix: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a film at no more than LONGEST pixels a side, and the matrix from its (x, y)."""
    small = _resized(film, LONGEST)
    y, x = (large / little for large, little in zip(film.shape, small.shape, strict=True))
    grow = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # pixel centers at whole numbers
    return small, matrix @ grow


def _resized(picture: NDArray[Level], longest: int) -> NDArray[Level]:
    """Return a picture, reduced by an area filter where its longer side has more pixels."""
    import cv2

    factor = longest / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = [max(1, round(side * factor)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), picture.dtype)


def _bytes(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _png(picture: NDArray[np.float32]) -> bytes:
    import cv2

    _, data = cv2.imencode(".png", _bytes(picture), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return bytes(data.tobytes())


def _unpng(data: bytes) -> NDArray[np.float32]:
    import cv2

    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(picture, np.float32) / np.float32(255)


def _tidy(folder: Path, pictures: Iterable[Pictures]) -> None:
    """Remove the pictures of an earlier time that are not among these."""
    wanted = {Path(file).name for one in pictures for file in (one.thumbnail, *one.layers.values())}
    for file in folder.glob("*.jpg"):
        if _NAME.fullmatch(file.name) and file.name not in wanted:
            file.unlink(missing_ok=True)
