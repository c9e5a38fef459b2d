"""Heatmaps on the run's one scale, in the cache's geometry or on the original film."""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.conformal import Reference
from anomaly.evaluation.domain import Domain, thumbnails
from anomaly.evaluation.predict import PredictedFilms, predict
from anomaly.export.finding import UNLIKE, Finding, SoftwareDevice
from anomaly.pipeline.film_reference import domain_of
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.selection import Selection
from anomaly.pipeline.software_device import software_device
from anomaly.reporting.heatmap import overlay, to_film_space, write_map, write_png
from preprocessing import InputError
from preprocessing.readers import read_film
from preprocessing.sources import Source
from preprocessing.where import LABELS

MAP_FORMATS = ("png", "tiff", "npy")


@dataclass(frozen=True)
class Heatmap:
    """A film under its map."""

    name: str  # of the film, as scores.csv has it
    path: str  # of the film in its source, and which hand of two
    source: str  # path of the film in its source
    film: NDArray[np.float32]  # (H, W) in [0, 1]
    map: NDArray[np.float32]  # (H, W) >= 0, smoothed inside the mask, in `unit`
    mask: NDArray[np.bool_]  # (H, W)
    score: float
    flagged: bool
    scale: float  # of the colors, one for all films of a run
    unit: str
    title: str
    score_name: str  # the score that flags
    scores: Mapping[str, float]  # every score of the model, by name
    threshold: float  # of the score that flags
    p_value: float | None  # conformal; None where the run keeps no scores of normal films
    p_interval: tuple[float, float] | None  # 95 %, of the share of normal films that score as high
    hand: int  # 0: the film's only one; 1, 2: of two, left to right
    synthetic: bool  # the film was drawn by this program
    out_of_domain: bool | None  # whether it shows something else than the films of the training; None: not known
    device: Callable[[], SoftwareDevice] = field(repr=False)  # the run, as DICOM objects name it

    def __repr__(self) -> str:
        return f"<heatmap of {self.name}: {self.map.shape[1]} x {self.map.shape[0]}, score {self.score:.6g}>"

    def overlay(self) -> NDArray[np.uint8]:
        """Return the film with its heat, a title and the color bar: (H', W', 3) RGB."""
        return overlay(self.film, self.map, self.mask, self.scale, title=self.title, unit=self.unit)

    def finding(self, created: datetime) -> Finding:
        """Return what DICOM objects are made of, by `anomaly.export.dicom_objects.dicom_results`, from this moment.

        They need the heatmap of the original film: that of `space="film"`.
        """
        return Finding(
            self.film,
            self.map,
            self.mask,
            self.scale,
            self.unit,
            self.score_name,
            self.scores,
            self.threshold,
            self.device(),
            created,
            self.p_value,
            self.p_interval,
            self.hand,
            self.synthetic,
            self.out_of_domain,
        )

    def save(self, file: str | Path) -> None:
        """Write the overlay as PNG, or the map's own numbers as TIFF or NPY (float32), by the suffix."""
        file = Path(file)
        if file.suffix.removeprefix(".") not in MAP_FORMATS:
            raise InputError(f"{file}: no format {file.suffix!r}; there are: {', '.join(MAP_FORMATS)}")
        if file.suffix == ".png":
            write_png(file, self.overlay())
        else:
            write_map(file, self.map)


@dataclass(frozen=True)
class _Drawn:
    """A film's place among those of the selection, with its score and map."""

    place: int
    score: float  # the one that ranks and flags
    scores: dict[str, float]
    map: NDArray[np.float32]
    outside: bool | None  # of the domain of the training; None: not known


def heatmaps(
    run: OpenRun,
    selection: Selection,
    *,
    by: str | None = None,
    limit: int | None = None,
    originals: Source | None = None,
    on_films: Callable[[int], None] = lambda count: None,
) -> Iterator[Heatmap]:
    """Give the heatmap of every film, in their order, or of the `limit` highest-scored ones, the highest first.

    Each film passes the model once. `by` names the score they are ranked by. `originals` lays the maps back onto the
    original films; without it they stay in the cache's geometry. Raises InputError where the model draws no map.
    """
    main, domain = run.main_score(by), domain_of(run)
    passes: Iterator[_Drawn] = (
        drawn
        for predicted in predict(run.model, selection.films, maps=True)
        for drawn in _drawn(predicted, main, domain, on_films)
    )
    if limit is not None:
        passes = iter(heapq.nlargest(limit, passes, key=lambda drawn: (drawn.score, -drawn.place)))
    reference = run.calibration.reference("mean", "film", main)
    for drawn in passes:
        (standing,) = _standings(reference, [drawn.score])
        yield _heatmap(run, selection, drawn, main, originals, standing)


def heatmaps_of(
    run: OpenRun,
    selection: Selection,
    scores: Mapping[str, NDArray[np.float64]],
    maps: Mapping[int, NDArray[np.float32]],
    main: str,
    originals: Source | None = None,
    outside: NDArray[np.bool_] | None = None,
) -> Iterator[Heatmap]:
    """Give the heatmaps of films that have passed the model already, in their order.

    scores  name -> (n,), of all films of the selection.    maps  place among them -> the smoothed map, (S, S).
    main  the score that flags.    outside  (n,) which show something else than the films of the training; None: that is
    not known. `originals` is as of `heatmaps`.
    """
    places = sorted(maps)
    standings = _standings(run.calibration.reference("mean", "film", main), scores[main][places])
    for place, standing in zip(places, standings, strict=True):
        own = {name: float(scores[name][place]) for name in run.model.score_names}
        drawn = _Drawn(place, own[main], own, maps[place], None if outside is None else bool(outside[place]))
        yield _heatmap(run, selection, drawn, main, originals, standing)


def _drawn(
    predicted: PredictedFilms, main: str, domain: Domain | None, on_films: Callable[[int], None]
) -> Iterator[_Drawn]:
    if predicted.maps is None:
        raise InputError("this model has no heatmap: it scores a film as a whole; cae, for example, has one")
    films, outside = predicted.films, None
    if domain is not None:
        outside = domain.distances(thumbnails(films.unit(), films.mask)) > domain.limit
    for index in range(len(films)):
        scores = {name: float(values[index]) for name, values in predicted.scores.items()}
        place, unlike = predicted.places.start + index, None if outside is None else bool(outside[index])
        yield _Drawn(place, scores[main], scores, predicted.smoothed_map(index), unlike)
        on_films(1)


_Standing = tuple[float | None, tuple[float, float] | None]
"""A film's p-value and the interval of the share of normal films that score as high; None: not calibrated."""


def _standings(reference: Reference | None, scores: ArrayLike) -> list[_Standing]:
    """Return that of each score, (N,); all at once, as one interval takes 10 ms and a hundred hardly more."""
    if reference is None:
        return [(None, None)] * np.size(scores)
    pairs = zip(reference.p_values(scores), reference.intervals(scores), strict=True)
    return [(float(p_value), (float(low), float(high))) for p_value, (low, high) in pairs]


def _heatmap(
    run: OpenRun,
    selection: Selection,
    drawn: _Drawn,
    main: str,
    originals: Source | None,
    standing: _Standing,
) -> Heatmap:
    films = selection.films
    cache, row = films.cache, films.rows[drawn.place]
    part = films.part(slice(drawn.place, drawn.place + 1))
    film, values, mask = part.unit()[0], drawn.map, part.mask[0]
    if originals is not None:
        film, values, mask = _on_original(selection, drawn.place, values, mask, originals)
    path, hand = str(cache.index["path"][row]), int(cache.index["hand"][row])  # hand 0: the film's only one
    threshold = run.calibration.thresholds["mean"]["film"][main]  # a film alone is its own mean
    flagged, label = drawn.score >= threshold, int(part.label[0])
    title = f"{cache.names[row]}\n{'SYNTHETIC film, ' * cache.synthetic}{main} {drawn.score:.4g}, "
    title += f"{'flagged' if flagged else 'not flagged'} (from {threshold:.4g})"
    title += "" if label < 0 else f", labelled {LABELS[label]}"
    title += f"\n{UNLIKE.upper()}: the score means nothing" * bool(drawn.outside)
    return Heatmap(
        str(cache.names[row]),
        f"{path}-{hand}" if hand else path,
        path,
        film,
        values,
        mask,
        drawn.score,
        flagged,
        run.calibration.map_scale or 1.0,
        run.model.map_unit,
        title,
        main,
        drawn.scores,
        threshold,
        *standing,
        hand,
        cache.synthetic,
        drawn.outside,
        partial(software_device, run, main),
    )


def _on_original(
    selection: Selection, place: int, values: NDArray[np.float32], mask: NDArray[np.bool_], originals: Source
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return the original film in [0, 1], and map and mask in its geometry."""
    grey, matrix = original_film(selection.films, place, originals)
    height, width = grey.shape
    on_film = to_film_space(mask.astype(np.float32), matrix, (height, width)) >= 0.5
    return grey, to_film_space(values, matrix, (height, width)), on_film


def original_film(films: FilmSet, place: int, originals: Source) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the original of a film of a set, (H, W) in [0, 1], and the (2, 3) matrix from its (x, y) to the set's.

    originals  where the originals are. Raises InputError where that film is gone, or is not the one that was prepared.
    """
    cache, row = films.cache, films.rows[place]
    index = cache.index
    path = str(index["path"][row])
    data = originals.read(path)
    if hashlib.sha256(data).hexdigest() != index["sha256"][row]:
        raise InputError(f"{path} in {originals.root} is not the film that was prepared; name the right --source")
    levels = read_film(path, data).pixels.astype(np.float32)
    stage = "matrix_raw" if films.variant.startswith("raw") else "matrix_crop"
    scale = films.size / cache.size  # the model's film may be smaller than the cache's
    shrink = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])  # pixel centers at whole numbers
    matrix = shrink @ np.vstack([index[stage][row], [0, 0, 1]])
    low, high = float(levels.min()), float(levels.max())
    return (levels - low) / max(1.0, high - low), matrix
