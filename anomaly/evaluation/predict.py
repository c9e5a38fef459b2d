"""A trained detector over films: the one pass that every score, map and reconstruction comes from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import Films, FilmSet
from anomaly.evaluation.heatmap_scale import smooth
from anomaly.evaluation.scorer import Scorer
from preprocessing import InputError

SMOOTHING = 5 / 512
"""Standard deviation of the map's Gaussian as a share of the film's side: the paper's 5 pixels at 512."""


@dataclass(frozen=True)
class PredictedFilms:
    """What a detector says of some films of a set."""

    places: slice  # among the films of the set
    films: Films
    scores: dict[str, NDArray[np.float64]]  # name -> (k,)
    maps: NDArray[np.float32] | None  # (k, S, S), as the model gives them; None where not asked for, or not drawn
    reconstructions: NDArray[np.float32] | None  # (k, S, S) in [0, 1]

    def smoothed_map(self, index: int) -> NDArray[np.float32]:
        """Return the map of one of the films as it is shown and measured: smoothed inside the mask, (S, S)."""
        assert self.maps is not None
        mask = self.films.mask[index]
        return smooth(self.maps[index], mask, len(mask) * SMOOTHING)


def predict(
    model: Scorer,
    films: FilmSet,
    *,
    maps: bool = False,
    on_films: Callable[[int], None] | None = None,
) -> Iterator[PredictedFilms]:
    """Pass each film of the set once through the model, some at a time, in their order and in float32.

    maps  whether maps are wanted, where the model draws any.    on_films  is told of films as they are done. Raises
    InputError where a map is not finite.
    """
    for places, part in films.chunks():
        prediction = model.predict_films(part, maps=maps)
        drawn = prediction.map
        if drawn is not None and not np.isfinite(drawn).all():
            film = films.column("path")[places][~np.isfinite(drawn).all(axis=(1, 2))][0]
            raise InputError(f"the map of {film} is not finite; the training diverged: lower --set learning_rate=")
        yield PredictedFilms(places, part, prediction.scores, drawn, prediction.reconstruction)
        if on_films:
            on_films(len(part))


class ScoreColumns:
    """Every score of every film of a set, collected from one pass."""

    def __init__(self, films: FilmSet) -> None:
        self.films = films
        self._columns: dict[str, NDArray[np.float64]] = {}

    def add(self, predicted: PredictedFilms) -> None:
        """Take the scores of some films."""
        for name, values in predicted.scores.items():
            # Arrays of their whole length from the start: a small one kept from each pass would come to lie between the
            # large ones that the pass frees, whose place can't be used again, and memory would grow with the films.
            self._columns.setdefault(name, np.full(len(self.films), np.nan))[predicted.places] = values

    def finish(self) -> dict[str, NDArray[np.float64]]:
        """Return name -> (n,): the scores of the model and those of the trivial detectors.

        Raises InputError where one is not finite.
        """
        for name, values in self._columns.items():
            if not np.isfinite(values).all():
                worst = self.films.column("path")[~np.isfinite(values)][0]
                raise InputError(
                    f"score {name} of {worst} is not finite; the training diverged: lower --set learning_rate="
                )
        return self._columns | self.films.trivial_scores()


def score(
    model: Scorer, films: FilmSet, on_films: Callable[[int], None] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return every score of the model and of the trivial detectors: name -> (n,), in the order of the films."""
    columns = ScoreColumns(films)
    for predicted in predict(model, films, on_films=on_films):
        columns.add(predicted)
    return columns.finish()
