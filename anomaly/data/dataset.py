"""Films of a cache as arrays, at the size a model takes: in memory, or read from the cache when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.schema import Cache

FOREGROUND = "full"
"""The stage whose mask is the foreground."""
Learns = Literal["boxes", "masks"]
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

    def part(self, rows: NDArray[Any] | slice) -> "Films":
        """Return some of the films."""
        return Films(*(None if own is None else own[rows] for own in self._arrays()))  # type: ignore[arg-type]

    def _arrays(self) -> tuple[NDArray[Any] | None, ...]:
        return self.film, self.mask, self.label, self.boxes, self.foreground, self.study

    def samples(self) -> list[NDArray[np.int64]]:
        """Return the rows of each sample: of a film, or of a study where those are the samples."""
        return _samples(len(self), self.study)

    def unit(self) -> NDArray[np.float32]:
        """Return the films in the models' range: (n, S, S) float32 in [0, 1]."""
        return self.film.astype(np.float32) / np.float32(np.iinfo(self.film.dtype).max)


@dataclass(frozen=True)
class StoredFilms:
    """Films that stay in the cache and are read when a batch asks for them: to training the same as `Films`."""

    cache: Cache
    variant: str
    rows: NDArray[np.int64]  # (n,) of the cache
    size: int
    sample: Sample = "film"

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """The label of each film, (n,)."""
        label: NDArray[np.int8] = self.cache.index["label"][self.rows]
        return label

    def part(self, rows: NDArray[Any] | slice) -> Films:
        """Read some of the films."""
        return load_films(self.cache, self.variant, self.rows[rows], self.size, sample=self.sample)

    def samples(self) -> list[NDArray[np.int64]]:
        """Return the rows of each sample, as `Films.samples` does."""
        return _samples(len(self), _studies(self.cache, self.rows) if self.sample == "study" else None)


def _samples(count: int, study: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    if study is None:
        return list(np.arange(count)[:, None])
    order = np.argsort(study, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(study[order])) + 1)


def _studies(cache: Cache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(cache.index["study"][rows], return_inverse=True)[1]


def bytes_of(cache: Cache, films: int, size: int) -> int:
    """Return the memory that so many films of a cache take with their masks, at `size` x `size` pixels."""
    return films * size**2 * (cache.dtype.itemsize + 1)


def load_films(
    cache: Cache,
    variant: str,
    rows: NDArray[np.int64],
    size: int | None = None,
    *,
    learns: Learns | None = None,
    sample: Sample = "film",
) -> Films:
    """Read `rows` of the cache, brought to `size` x `size` by an area filter where the cache holds larger films.

    A mask pixel is set where at least half of its area was. A size beyond the cache's own is refused: it would invent
    detail. With `learns` the films bring their boxes, or the foreground of their stage "full", along; with `sample`
    "study" the study that each belongs to.
    """
    if size is not None and size > cache.size:
        raise InputError(
            f"{cache.path} holds films of {cache.size} px, {size} were asked for; "
            f"run `anomaly preprocess ... --size {size}` or take `--set size={cache.size}`"
        )
    label = cache.index["label"][rows]
    boxes = cache.boxes(rows) if learns == "boxes" else None
    study = _studies(cache, rows) if sample == "study" else None
    if size is None or size == cache.size:
        foreground = cache.masks(FOREGROUND, rows) if learns == "masks" else None
        return Films(cache.films(variant, rows), cache.masks(variant, rows), label, boxes, foreground, study)
    film = np.empty((len(rows), size, size), cache.dtype)
    mask = np.empty(film.shape, np.bool_)
    foreground = np.empty(film.shape, np.bool_) if learns == "masks" else None
    for i, row in enumerate(rows):  # one at a time: the films at the cache's size may not fit into memory
        one = np.array([row])
        mask[i] = brought_to(cache.masks(variant, one)[0], size)
        film[i] = cv2.resize(cache.films(variant, one)[0], (size, size), interpolation=cv2.INTER_AREA) * mask[i]
        if foreground is not None:
            foreground[i] = brought_to(cache.masks(FOREGROUND, one)[0], size)
    if boxes is not None:
        boxes[..., :4] *= size / cache.size
    return Films(film, mask, label, boxes, foreground, study)


def brought_to(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Return a mask at `size` x `size`, a pixel set where at least half of its area was: (S, S) -> (size, size)."""
    if len(mask) == size:
        return mask
    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 0.5)


def chunks(cache: Cache, variant: str, rows: NDArray[np.int64], size: int, count: int) -> Iterator[tuple[Any, Films]]:
    """Yield `(rows, films)` for `count` rows at a time, so that memory doesn't grow with the number of films."""
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        yield part, load_films(cache, variant, part, size)
