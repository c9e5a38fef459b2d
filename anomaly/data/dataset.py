"""Films of a cache as arrays, at the size a model takes: in memory, or read from the cache when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import STAGES, stage_of

FOREGROUND = "full"
"""The stage whose mask is the foreground."""
Targets = Literal["none", "labels", "boxes", "masks"]
"""What a model learns from: nothing but normal films, labels, boxes, or masks of the foreground."""
Sample = Literal["film", "study"]


# --- films ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Films:
    """Films and masks in memory, as stored: levels in the cache's own type, at the side the model takes."""

    film: NDArray[Any]  # (n, S, S) uint8 or uint16
    mask: NDArray[np.bool_]  # (n, S, S)
    label: NDArray[np.int8]  # (n,)
    boxes: NDArray[np.float32] | None = None  # (n, K, 5), where a net learns boxes
    foreground: NDArray[np.bool_] | None = None  # (n, S, S), where a net learns masks
    study: NDArray[np.int64] | None = None  # (n,), the same number for films of one study; where a study is one sample

    def __len__(self) -> int:
        return len(self.film)

    def part(self, rows: NDArray[Any] | slice) -> Films:
        """Return some of the films."""
        return Films(*(None if own is None else own[rows] for own in self.arrays()))  # type: ignore[arg-type]

    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """Return the arrays in the order of the fields."""
        return self.film, self.mask, self.label, self.boxes, self.foreground, self.study

    def samples(self) -> list[NDArray[np.int64]]:
        """Return the rows of each sample: of a film, or of a study where those are the samples."""
        return _samples(len(self), self.study)

    def unit(self) -> NDArray[np.float32]:
        """Return the films in the models' range: (n, S, S) float32 in [0, 1]."""
        return self.film.astype(np.float32) / np.float32(np.iinfo(self.film.dtype).max)


@dataclass(frozen=True)
class FilmSet:
    """Which films a model looks at: rows of one variant of a cache, at one size. They stay there until they are read.

    Where the cache holds larger films, they are brought to `size` x `size` by an area filter; a mask pixel is set where
    at least half of its area was. A size beyond the cache's own is refused: it would invent detail.
    """

    cache: Cache
    variant: str
    rows: NDArray[np.int64]  # (n,) of the cache
    size: int  # pixels a side
    targets: Targets = "none"  # "boxes" or "masks": films are read with their boxes, or the foreground of stage "full"
    sample: Sample = "film"  # "study": films are read with the study that each belongs to

    def __post_init__(self) -> None:
        if self.size > self.cache.size:
            raise InputError(
                f"{self.cache.path} holds films of {self.cache.size} px, {self.size} were asked for; "
                f"run `anomaly preprocess ... --size {self.size}` or take `--set size={self.cache.size}`"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the cache's index for these films."""
        column: NDArray[Any] = self.cache.index[name][self.rows]
        return column

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """The label of each film, (n,): 0 normal, 1 abnormal, -1 unknown."""
        return self.column("label")

    @property
    def bytes(self) -> int:
        """The memory that all of the films take with their masks."""
        return len(self) * self.size**2 * (self.cache.dtype.itemsize + 1)

    def trivial_scores(self) -> dict[str, NDArray[np.float64]]:
        """Return what a net has to beat: mean grey level and minus standard deviation, under the mask, name -> (n,).

        They are those of the film before its levels were spread or equalized, which would make them all alike.
        """
        grey = self.column("grey")[:, STAGES.index(stage_of(self.variant))]  # (n, 2)
        return {"mean_grey": grey[:, 0], "minus_std": -grey[:, 1]}

    def samples(self) -> list[NDArray[np.int64]]:
        """Return the places of each sample's films: of one film, or of a study where those are the samples."""
        return _samples(len(self), self._study(self.rows))

    def subset(self, places: NDArray[Any] | slice) -> FilmSet:
        """Return some of the films, unread; places are among these films."""
        return replace(self, rows=self.rows[places])

    def chunks(self) -> Iterator[tuple[slice, Films]]:
        """Yield `(places, films)`, about four million pixels at a time: memory doesn't grow with the films."""
        count = chunk_length(self.size)
        for start in range(0, len(self), count):
            places = slice(start, min(start + count, len(self)))
            yield places, self.part(places)

    def read(self) -> Films:
        """Read all of the films."""
        return self.part(slice(None))

    def part(self, places: NDArray[Any] | slice) -> Films:
        """Read some of the films."""
        rows, cache, size = self.rows[places], self.cache, self.size
        label, study = cache.index["label"][rows], self._study(rows)
        boxes = cache.boxes(rows) if self.targets == "boxes" else None
        wanted = self.targets == "masks"
        if size == cache.size:
            foreground = cache.masks(FOREGROUND, rows) if wanted else None
            films, masks = cache.films(self.variant, rows), cache.masks(self.variant, rows)
            return Films(films, masks, label, boxes, foreground, study)
        import cv2  # only to shrink films: training and scoring at the cache's size go without

        film = np.empty((len(rows), size, size), cache.dtype)
        mask = np.empty(film.shape, np.bool_)
        foreground = np.empty(film.shape, np.bool_) if wanted else None
        for i, row in enumerate(rows):  # one at a time: the films at the cache's size may not fit into memory
            one = np.array([row])
            mask[i] = resize_mask(cache.masks(self.variant, one)[0], size)
            large = cache.films(self.variant, one)[0]
            film[i] = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA) * mask[i]
            if foreground is not None:
                foreground[i] = resize_mask(cache.masks(FOREGROUND, one)[0], size)
        if boxes is not None:
            boxes[..., :4] *= size / cache.size
        return Films(film, mask, label, boxes, foreground, study)

    def marked(self, place: int) -> NDArray[np.bool_] | None:
        """Return the marked lesion of a film at its size, (S, S), or None where the source marks none."""
        if not self.cache.has_truth[self.rows[place]]:
            return None
        lesion = self.cache.anomaly(self.variant, self.rows[place : place + 1])
        return None if lesion is None else resize_mask(lesion[0], self.size)

    def _study(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if self.sample == "film":
            return None
        return np.unique(self.cache.index["study"][rows], return_inverse=True)[1]


def chunk_length(size: int) -> int:
    """Return how many films of `size` x `size` pixels a model is given at a time: about four million pixels."""
    return max(1, min(64, 2**22 // size**2))


def _samples(count: int, study: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    if study is None:
        return list(np.arange(count)[:, None])
    order = np.argsort(study, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(study[order])) + 1)


def resize_films(films: Films, size: int) -> Films:
    """Return films brought to `size` x `size` pixels as a `FilmSet` does it, with their masks and labels alone."""
    if films.film.shape[1] == size:
        return Films(films.film, films.mask, films.label)
    import cv2

    mask = np.stack([resize_mask(one, size) for one in films.mask])
    film = np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_AREA) for one in films.film])
    return Films(film * mask, mask, films.label)


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Return a mask at `size` x `size`, a pixel set where at least half of its area was: (S, S) -> (size, size)."""
    if len(mask) == size:
        return mask
    import cv2

    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 0.5)
