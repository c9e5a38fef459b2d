"""From cache rows to batches: splits by patient, films at the model's size, the same order for the same seed.

Films are read once and kept in memory as stored, 8 or 16 bits a pixel; processes that prepare batches share that
memory. Films that don't fit stay in the cache and are read a batch at a time, with the same result.
"""

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from anomaly.augment import Augmentation, AugmentationName, DeviceAugmentation
from anomaly.detector import Batch
from anomaly.team import ALONE, Team
from preprocessing import InputError
from preprocessing.cache.reader import Cache

SPLITS = ("train", "val", "test")
FOREGROUND = "full"
"""The stage whose mask is the foreground."""
Learns = Literal["boxes", "masks"]
SplitRule = Literal["given", "paper", "paper, labelled", "70/20/10"]
Sample = Literal["film", "study"]
LABELS = {0: "normal", 1: "abnormal", -1: "unknown"}
LEAST_TRAINING_FILMS = 8
"""Fewer films than this are no training set: a mistake in the source is the likelier explanation."""


# --- splits ---------------------------------------------------------------------------------------------------------


def assign_splits(
    patient: NDArray[Any], label: NDArray[Any], given: NDArray[Any], *, seed: int, rule: SplitRule = "paper"
) -> NDArray[Any]:
    """Return "train", "val" or "test" for every film, no patient in two of them: (N,), (N,), (N,) -> (N,).

    Where the source gives no split at all, the rule decides. P+ are the patients with an abnormal film, P- the others.

    `paper`            (section 4, its figure 10) P+ is halved over val and test, as many patients of P- join each (at
                       most a quarter of P- each, at least a tenth), the rest of P- trains.
    `paper, labelled`  the same test split, so that supervised models are tested on the same films as the others; of
                       val's P+, half train.
    `70/20/10`         70 % of P+ and of P- train, 20 % validate, 10 % are tested on; each at least one patient.

    A source's own splits are kept (`given`), a film without one counting as "train"; where "val" is missing, a tenth of
    the training patients is carved off, P+ and P- alike. Patients of unknown label go to "test".
    """
    split = np.array(given, dtype=object)
    if (split == "").all():
        return (_shared_out if rule == "70/20/10" else _paper_splits)(patient, label, seed, rule)
    split[split == ""] = "train"
    home: dict[str, str] = {}
    for name, place in zip(patient, split, strict=True):
        if home.setdefault(name, place) != place:
            places = " and ".join(sorted((home[name], place)))
            raise InputError(f"patient {name} is in splits {places}; a patient belongs to one split only")
    if not (split == "val").any():
        training = split == "train"
        draw = np.random.default_rng(seed)
        for group in _patients_by_label(patient[training], label[training])[:2]:
            if len(group) > 1:
                carved = set(draw.permutation(group)[: max(1, round(len(group) / 10))])
                split[[name in carved for name in patient]] = "val"
    return split


def _patients_by_label(patient: NDArray[Any], label: NDArray[Any]) -> tuple[list[str], list[str], list[str]]:
    """Return the sorted patients: with an abnormal film, normal only, the rest (no label known)."""
    positive = set(patient[label == 1])
    negative = set(patient[label == 0]) - positive
    rest = set(patient) - positive - negative
    return sorted(positive), sorted(negative), sorted(rest)


def _paper_splits(patient: NDArray[Any], label: NDArray[Any], seed: int, rule: SplitRule) -> NDArray[Any]:
    positive, negative, rest = _patients_by_label(patient, label)
    draw = np.random.default_rng(seed)
    p, n = list(draw.permutation(positive)), list(draw.permutation(negative))
    half = math.ceil(len(p) / 2)
    each = min(max(half, math.ceil(len(n) / 10)), len(n) // 4) if len(n) >= 4 else 0
    home = dict.fromkeys(p[:half] + n[:each], "val") | dict.fromkeys(p[half:] + n[each : 2 * each] + rest, "test")
    if rule == "paper, labelled":
        _enough(p, "with an")
        home |= dict.fromkeys(p[: half // 2], "train")
    return np.array([home.get(name, "train") for name in patient], dtype=object)


def _shared_out(patient: NDArray[Any], label: NDArray[Any], seed: int, rule: SplitRule) -> NDArray[Any]:
    positive, negative, rest = _patients_by_label(patient, label)
    draw = np.random.default_rng(seed)
    home = dict.fromkeys(rest, "test")
    for group, which in ((positive, "with an"), (negative, "without an")):
        _enough(group, which)
        names = list(draw.permutation(group))
        val, test = (max(1, round(share * len(names))) for share in (0.2, 0.1))
        home |= dict.fromkeys(names[:val], "val") | dict.fromkeys(names[val : val + test], "test")
    return np.array([home.get(name, "train") for name in patient], dtype=object)


def _enough(patients: list[str], which: str) -> None:
    if len(patients) < len(SPLITS):
        raise InputError(
            f"{len(patients)} patients {which} abnormal film are too few for {', '.join(SPLITS)}: to learn from labels "
            f"takes {len(SPLITS)} at the very least; prepare more films, or train a detector that needs normal films "
            "alone, such as cae"
        )


def split_hash(path: NDArray[Any], split: NDArray[Any]) -> str:
    """Return 12 hexadecimal digits that change when any film changes its split."""
    lines = "\n".join(sorted(f"{p}\t{s}" for p, s in zip(path, split, strict=True)))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


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
    return to_batch(_tensors(films), device)


def _tensors(films: Films) -> Tensors:
    return tuple(own if own is None else torch.from_numpy(np.ascontiguousarray(own)) for own in films._arrays())


# --- the order of training ------------------------------------------------------------------------------------------


class _Augmented(Dataset[tuple[Tensors, int]]):
    """Batches and their seeds by `(rows, seed)`; imgaug works on whole batches at half the cost of single films."""

    def __init__(self, films: Films | StoredFilms, augmentation: AugmentationName) -> None:
        self.films = films
        self.augmentation = Augmentation(augmentation)

    def __getitem__(self, key: tuple[NDArray[np.int64], int]) -> tuple[Tensors, int]:
        rows, seed = key
        some = self.films.part(rows)
        film, mask, boxes, foreground = self.augmentation(some.film, some.mask, seed, some.boxes, some.foreground)
        return _tensors(Films(film, mask, some.label, boxes, foreground, some.study)), seed


class _Order(Sampler[tuple[NDArray[np.int64], int]]):
    """A fresh permutation an epoch, drawn from (seed, epoch) alone, cut into batches that differ by one sample at most.

    Equal batches lose no sample and leave no last batch of one, which batch normalisation can't take.
    """

    def __init__(self, samples: list[NDArray[np.int64]], batch_size: int, seed: int, team: Team) -> None:
        self.samples, self.seed, self.team, self.epoch = samples, seed, team, 0
        self.batches = max(1, min(math.ceil(len(samples) / batch_size), len(samples) // (2 * team.size)))

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        for some in np.array_split(draw.permutation(len(self.samples)), self.batches):
            mine = some[self.team.rank :: self.team.size]
            yield np.concatenate([self.samples[i] for i in mine]), int(draw.integers(2**31)) + self.team.rank

    def __len__(self) -> int:
        return self.batches


class TrainingBatches:
    """The training films as batches; the same (seed, epoch) gives the same batches for any number of workers."""

    def __init__(
        self,
        films: Films | StoredFilms,
        *,
        batch_size: int,
        augmentation: AugmentationName,
        seed: int,
        workers: int,
        device: torch.device,
        team: Team = ALONE,
        augmented_by: Literal["imgaug", "device"] = "imgaug",
    ) -> None:
        """`workers` processes prepare batches ahead; 0 prepares them in this one. Of each, `team` takes its part.

        Films are augmented by imgaug where they are prepared, or on the `device` once they are there.
        """
        self.device = device
        cv2.setNumThreads(1)  # of films this small they speed up nothing, and they fight for cores with torch's threads
        self._on_device = DeviceAugmentation(augmentation) if augmented_by == "device" else None
        samples = films.samples()
        if len(samples) < 2 * team.size:  # on all of a team alike: one alone would leave the others waiting
            raise InputError(
                f"{len(samples)} films, or studies with sample=study, to train on; each of {team.size} processes takes "
                "two of every batch: take fewer processes, or more films"
            )
        self._order = _Order(samples, batch_size, seed, team)
        self._loader: DataLoader[Any] = DataLoader(
            _Augmented(films, "none" if self._on_device else augmentation),
            sampler=self._order,
            batch_size=None,  # the dataset makes whole batches
            num_workers=workers,
            # Forked processes share the films' memory; others would each get a copy.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch `number` on the device."""
        self._order.epoch = number
        for tensors, seed in self._loader:
            batch = to_batch(tensors, self.device)
            if self._on_device:
                film, mask = self._on_device(batch.film, batch.mask, seed)
                batch = replace(batch, film=film, mask=mask)
            yield batch
