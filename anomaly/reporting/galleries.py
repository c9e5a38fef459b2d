"""Galleries: which films a page shows, and the films with the layers that can be laid over them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.reporting.heatmap import CLEAR, REACH, color_bar, png
from anomaly.reporting.html import compact, png_address

_WIDEST = 360  # pixels of a film in the gallery


@dataclass(frozen=True)
class Shown:
    """A film of the gallery."""

    name: str
    label: int  # 0 normal, 1 abnormal, -1 unknown
    score: float  # of the report's main score
    film: NDArray[Any]  # (H, W) float in [0, 1]
    layers: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Name -> (H', W') grey or (H', W', 3) RGB: what the slider lays over the film, the first one by default. Any
    names; `heatmap.blend` makes a heatmap."""
    facts: Mapping[str, str] = field(default_factory=dict)  # name -> text: finding, study, patient; "" is not shown


def gallery_rows(labels: ArrayLike, scores: ArrayLike, count: int = 6) -> tuple[list[int], list[int], list[int]]:
    """Rows of the films that score highest, of the most wrong ones, each worst first, and of the lowest, lowest first.

    labels  (N,) -1, 0 or 1.    scores  (N,) finite.    How wrong a film is: the share of the other class on its wrong
    side, that is of abnormal films that score lower than a normal one, of normal films that score higher than an
    abnormal one. Films that no film of the other class contradicts are not wrong; with one class none is. Of equally
    wrong films the normal ones come first, in each class the more extreme score (normal: the higher; abnormal: the
    lower), then the first row.

    >>> gallery_rows([0, 0, 1, 1], [0.1, 0.9, 0.2, 0.8], count=3)
    ([1, 3, 2], [1, 2, 3], [0, 2, 3])
    >>> gallery_rows([0, 1, 0, 1, 1], [0.8, 0.5, 0.9, 0.2, 0.1])[1]
    [2, 0, 4, 3, 1]
    """
    truth, score = np.asarray(labels), np.asarray(scores, np.float64)
    normal, abnormal = np.sort(score[truth == 0]), np.sort(score[truth == 1])
    wrong = np.zeros(len(score))
    if len(normal) and len(abnormal):
        lower = np.searchsorted(abnormal, score, side="left") / len(abnormal)
        higher = 1 - np.searchsorted(normal, score, side="right") / len(normal)
        wrong = np.where(truth == 0, lower, np.where(truth == 1, higher, 0.0))
    extreme = np.where(truth == 1, -score, score)
    worst = [int(row) for row in np.lexsort((-extreme, truth, -wrong))[:count] if wrong[row] > 0]
    highest, lowest = ([int(row) for row in np.argsort(by, kind="stable")[:count]] for by in (-score, score))
    return highest, worst, lowest


@dataclass(frozen=True)
class Card:
    """A film in a gallery, as templates need it."""

    number: int  # on its page
    shown: Shown
    flagged: bool | None  # None without a threshold

    @property
    def film(self) -> str:
        """The film as a data address."""
        return png_address(png(_small(np.rint(np.clip(self.shown.film, 0, 1) * 255).astype(np.uint8))))

    @property
    def layers(self) -> dict[str, str]:
        """Name -> what can be laid over the film, as a data address."""
        return {name: png_address(png(_small(layer))) for name, layer in self.shown.layers.items()}


def numbered_galleries(groups: Mapping[str, Sequence[Shown]], threshold: float | None) -> dict[str, list[Card]]:
    """Title -> cards as templates need them, numbered throughout the page: the controls of a card share a name."""
    numbers = itertools.count(1)
    return {
        title: [Card(next(numbers), film, None if threshold is None else film.score >= threshold) for film in films]
        for title, films in groups.items()
    }


def layer_names(galleries: Mapping[str, Sequence[Card]]) -> list[str]:
    """The layers that some film of a page has, in their order."""
    return list(dict.fromkeys(name for cards in galleries.values() for card in cards for name in card.shown.layers))


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture, reduced by an area filter where it is larger than galleries show."""
    import cv2

    factor = _WIDEST / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = tuple(max(1, round(side * factor)) for side in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def heat_bar(scale: float | None, unit: str) -> dict[str, str] | None:
    """The colors of heatmaps and their meaning in words; None without a scale: the model draws no map."""
    if scale is None:
        return None
    reach, clear = compact(REACH * scale), compact(CLEAR * scale)
    words = (
        f"≥ {reach} {unit}; transparent below {clear}; "
        f"one scale for all films: {compact(scale)}, from validation normals"
    )
    return {"picture": png_address(png(color_bar(320, 14))), "words": words}
