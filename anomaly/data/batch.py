"""Films as the models see them: one batch of tensors on one device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly.data.dataset import Films, FilmSet, chunk_length


@dataclass(frozen=True)
class Batch:
    """Films as the models see them, on one device."""

    film: Tensor  # (N, 1, S, S) float32 in [0, 1]: stored level / greatest level of the cache's type, 0 off the mask
    mask: Tensor  # (N, 1, S, S) bool: where loss, score and map look
    label: Tensor  # (N,) int64: 0 normal, 1 abnormal, -1 unknown
    corrupted: Tensor | None = None  # (N, 1, S, S): the film as a denoising training shows it; none shows `film`
    boxes: Tensor | None = None  # (N, K, 5): x0, y0, x1, y1, pixels from the film's edge, class (0: no box)
    foreground: Tensor | None = None  # (N, 1, S, S) bool: what a net is to learn of the film
    study: Tensor | None = None  # (N,) int64: which of the batch's studies, from 0 on; where a study is one sample
    studies: int = 0  # how many those are

    @property
    def model_input(self) -> Tensor:
        """What a model that reconstructs is given to reconstruct `film` from: (N, 1, S, S)."""
        return self.film if self.corrupted is None else self.corrupted


Tensors = tuple[torch.Tensor | None, ...]  # the arrays of Films, in their order


def to_batch(tensors: Tensors, device: torch.device) -> Batch:
    """Return a Batch on `device` from the arrays of `Films`: film (N, S, S) in stored levels, mask, label, ..."""
    *others, study = tensors
    studies = 0
    if study is not None:  # numbered anew before it is moved: a GPU would have to be waited for
        names, study = torch.unique(study, return_inverse=True)
        studies = len(names)
    film, mask, label, boxes, foreground, study = (
        t if t is None else t.to(device, non_blocking=True) for t in (*others, study)
    )
    assert film is not None and mask is not None and label is not None
    inside = mask[:, None]
    # What lies off the mask is not part of the film, whatever a cache says of it: no score may see it.
    unit = film.to(torch.float32).div_(torch.iinfo(film.dtype).max)[:, None] * inside
    target = None if foreground is None else foreground[:, None]
    return Batch(unit, inside, label.long(), boxes=boxes, foreground=target, study=study, studies=studies)


def as_batch(films: Films, device: torch.device) -> Batch:
    """Return all of `films` as one Batch."""
    return to_batch(tensors_of(films), device)


class Batches:
    """Films as they are, in their order, some at a time; every iteration passes over all of them again."""

    def __init__(self, films: Films | FilmSet, device: torch.device) -> None:
        self._films, self._device = films, device
        self.films = len(films)
        """How many films there are."""

    def __iter__(self) -> Iterator[Batch]:
        side = self._films.film.shape[1] if isinstance(self._films, Films) else self._films.size
        count = chunk_length(side)
        for start in range(0, self.films, count):
            yield as_batch(self._films.part(slice(start, start + count)), self._device)

    def evenly(self, count: int) -> "Batches":
        """Return `count` films taken evenly from all, or all where there are no more."""
        if count >= self.films:
            return self
        places = np.linspace(0, self.films - 1, count).round().astype(np.int64)
        films = self._films.subset(places) if isinstance(self._films, FilmSet) else self._films.part(places)
        return Batches(films, self._device)


def batches(films: Films | FilmSet, device: torch.device) -> Batches:
    """Return films as they are, in their order, some at a time."""
    return Batches(films, device)


def tensors_of(films: Films) -> Tensors:
    """Return the arrays of `films` as tensors, in the order of its fields."""
    return tuple(own if own is None else torch.from_numpy(np.ascontiguousarray(own)) for own in films.arrays())
