"""Training batches: the same order and augmentation for the same seed, with any number of worker processes."""

import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from anomaly.data.augment import Augmentation, AugmentationName, DeviceAugmentation
from anomaly.data.batch import Batch, Tensors, tensors_of, to_batch
from anomaly.data.crops import Crops
from anomaly.data.dataset import Films, FilmSet
from anomaly.distributed import SINGLE_PROCESS, World
from preprocessing import InputError

DEVICE_SHARE = 0.25
"""Of a GPU's free memory, what films may take there."""

# --- the order of training ------------------------------------------------------------------------------------------


class _Augmented(Dataset[tuple[Tensors, int]]):
    """Batches and their seeds by `(rows, seed)`; imgaug works on whole batches at half the cost of single films."""

    def __init__(self, films: Films | FilmSet, augmentation: AugmentationName) -> None:
        self.films = films
        self.augmentation = Augmentation(augmentation)

    def __getitem__(self, key: tuple[NDArray[np.int64], int]) -> tuple[Tensors, int]:
        rows, seed = key
        some = self.films.part(rows)
        film, mask, boxes, foreground = self.augmentation(some.film, some.mask, seed, some.boxes, some.foreground)
        return tensors_of(Films(film, mask, some.label, boxes, foreground, some.study)), seed


class _Order(Sampler[tuple[NDArray[np.int64], int]]):
    """A fresh permutation an epoch, drawn from (seed, epoch) alone, cut into batches that differ by one sample at most.

    Equal batches lose no sample and leave no last batch of one, which batch normalization can't take.
    """

    def __init__(self, samples: list[NDArray[np.int64]], batch_size: int, seed: int, world: World) -> None:
        self.samples, self.seed, self.world, self.epoch = samples, seed, world, 0
        self.batches = max(1, min(math.ceil(len(samples) / batch_size), len(samples) // (2 * world.size)))

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        for some in np.array_split(draw.permutation(len(self.samples)), self.batches):
            mine = some[self.world.rank :: self.world.size]
            yield np.concatenate([self.samples[i] for i in mine]), int(draw.integers(2**31)) + self.world.rank

    def __len__(self) -> int:
        return self.batches


class _OnDevice:
    """Batches and their seeds, in an order, of films that lie on the device: there is nothing to gather or to send."""

    def __init__(self, films: Films, order: _Order, device: torch.device) -> None:
        *others, self._study = tensors_of(films)  # on the host: `to_batch` numbers the studies of a batch anew there
        self._tensors = [own if own is None else own.to(device) for own in others]
        self._order, self._device = order, device

    def __iter__(self) -> Iterator[tuple[Tensors, int]]:
        for rows, seed in self._order:
            here = torch.from_numpy(rows)
            there = here.to(self._device, non_blocking=True)  # else the host would wait for the steps before
            study = None if self._study is None else self._study[here]
            yield (*(own if own is None else own[there] for own in self._tensors), study), seed


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the training process: it may go on with them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fits(films: Films, device: torch.device) -> bool:
    """Whether films take so little of a GPU's free memory that they may stay there."""
    if device.type != "cuda":
        return False
    size = sum(own.nbytes for own in films.arrays() if own is not None)
    return size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


class TrainingBatches:
    """The training films as batches; the same (seed, epoch) gives the same batches for any number of workers."""

    def __init__(
        self,
        films: Films | FilmSet,
        *,
        batch_size: int,
        augmentation: AugmentationName,
        seed: int,
        workers: int,
        device: torch.device,
        world: World = SINGLE_PROCESS,
        augmented_by: Literal["imgaug", "device"] = "imgaug",
        crops: Crops | None = None,
    ) -> None:
        """`workers` processes prepare batches ahead, 0 in this one. Each process of `world` takes its part.

        Films are augmented by imgaug where they are prepared, or on the `device` once they are there. In the latter
        case films in memory are sent to a GPU once for all, if they take at most a quarter of what is free there.
        With `crops`, the batch consists of crops of augmented films instead.
        """
        self.device = device
        self._crops = crops
        self._on_device = DeviceAugmentation(augmentation) if augmented_by == "device" else None
        if isinstance(films, FilmSet) or self._on_device is None:  # else nothing is left for OpenCV to do
            import cv2

            cv2.setNumThreads(1)  # on films this small more gain nothing, and compete with torch's threads for cores
        samples = films.samples()
        if len(samples) < 2 * world.size:  # in all processes alike: one alone would leave others waiting
            raise InputError(
                f"{len(samples)} films, or studies with sample=study, to train on; each of {world.size} processes "
                "takes two of every batch: take fewer processes, or more films"
            )
        self._order = _Order(samples, batch_size // crops.per_film if crops else batch_size, seed, world)
        if self._on_device and isinstance(films, Films) and _fits(films, device):
            self._loader: DataLoader[Any] | _OnDevice = _OnDevice(films, self._order, device)
            return
        self._loader = DataLoader(
            _Augmented(films, "none" if self._on_device else augmentation),
            sampler=self._order,
            batch_size=None,  # the dataset makes whole batches
            num_workers=workers,
            # Forked processes share the films' memory; others would each get a copy.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._order)

    def _prepared(self) -> Iterator[tuple[Tensors, int]]:
        try:
            yield from self._loader
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            raise InputError(
                "/dev/shm is full, and workers hand the batches over there; free or enlarge it (docker run "  # nosec B108 # text
                "--shm-size), or take --workers 0; the same command resumes"
            ) from error

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch `number` on the device."""
        self._order.epoch = number
        for tensors, seed in self._prepared():
            batch = to_batch(tensors, self.device)
            if self._on_device:
                film, mask = self._on_device(batch.film, batch.mask, seed)
                batch = replace(batch, film=film, mask=mask)
            yield self._crops.cut(batch, seed) if self._crops else batch
