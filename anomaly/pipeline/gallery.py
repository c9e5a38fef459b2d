"""The films that a page shows, kept from the one pass over all films: the most and least abnormal, the most wrong."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.predict import PredictedFilms

SHOWN = 6
"""Films that score highest, and lowest, on a page."""
MOST_WRONG = 40
"""Films on the page of the most wrong ones, at most."""


@dataclass(frozen=True)
class Layers:
    """What a pass gave of one film that is shown; the film itself is read from the cache again."""

    map: NDArray[np.float32] | None  # (S, S), smoothed
    reconstruction: NDArray[np.float32] | None  # (S, S) in [0, 1]

    @classmethod
    def of(cls, predicted: PredictedFilms, index: int) -> Self:
        """Return those of one of the films of a pass."""
        reconstructions = predicted.reconstructions
        return cls(
            None if predicted.maps is None else predicted.smoothed_map(index),
            None if reconstructions is None else reconstructions[index].copy(),
        )


class Collector(Protocol):
    """Keeps something of the one pass over films."""

    def add(self, predicted: PredictedFilms) -> None:
        """Take the films of a pass, some at a time, in their order."""


class MapCollector:
    """Keeps the smoothed map of every film, (S, S), by its place in the set."""

    def __init__(self) -> None:
        self.maps: dict[int, NDArray[np.float32]] = {}

    def add(self, predicted: PredictedFilms) -> None:
        """Take the films of a pass."""
        if predicted.maps is not None:
            self.maps |= {predicted.places.start + i: predicted.smoothed_map(i) for i in range(len(predicted.films))}


class Most:
    """The `count` films of the largest value, the first ones of equal value."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._heap: list[tuple[float, int]] = []  # value and minus the place: the least to be kept comes first

    def offer(self, value: float, place: int) -> bool:
        """Whether a film is among them so far."""
        entry = (value, -place)
        if len(self._heap) < self.count:
            heapq.heappush(self._heap, entry)
            return True
        return heapq.heappushpop(self._heap, entry) != entry

    def places(self) -> set[int]:
        """Return the places of those kept."""
        return {-place for _, place in self._heap}


class GalleryCollector:
    """Keeps the layers of the films that galleries may show, in memory that doesn't grow with the films.

    The most wrong films are normal ones that score highest and abnormal ones that score lowest, so all that a gallery
    can show is among the extremes of each class and of all films.
    """

    def __init__(self, main: str) -> None:
        """`main` is the score that films are ranked by."""
        self.main = main
        self.layers: dict[int, Layers] = {}  # by place in the set
        self._rankings: list[tuple[Most, Callable[[float, int], float | None]]] = [
            (Most(SHOWN), lambda score, label: score),
            (Most(SHOWN), lambda score, label: -score),
            (Most(MOST_WRONG), lambda score, label: score if label == 0 else None),
            (Most(MOST_WRONG), lambda score, label: -score if label == 1 else None),
        ]

    def add(self, predicted: PredictedFilms) -> None:
        """Take the films of a pass."""
        for index, score in enumerate(predicted.scores[self.main]):
            place, label = predicted.places.start + index, int(predicted.films.label[index])
            offers = [
                ranking.offer(value, place)
                for ranking, value_of in self._rankings
                if (value := value_of(float(score), label)) is not None
            ]
            if any(offers):
                self.layers[place] = Layers.of(predicted, index)
        wanted = set().union(*(ranking.places() for ranking, _ in self._rankings))
        self.layers = {place: layers for place, layers in self.layers.items() if place in wanted}
