"""Films with annotations, and what a network detects on films."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.batch import as_batch
from anomaly.data.dataset import Films
from anomaly.data.splits import assign_splits, split_hash
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import Detection
from anomaly.models import TOOLS, find_model
from anomaly.runs import Run
from anomaly.training.weights import load_weights
from preprocessing import InputError
from preprocessing.cache.reader import Cache

BATCH_SIZE = 16
"""Films that a network takes at a time."""


def load_localization_model(run: Run, device: torch.device) -> LocalizationModel:
    """Return the trained network of a run in evaluation mode; InputError where the run is of another kind of model."""
    kind = find_model(run.config.model)
    if not issubclass(kind, LocalizationModel):
        raise InputError(
            f"{run.path} is a run of {run.config.model}, which prepares no films; there are: {', '.join(TOOLS)}"
        )
    return load_weights(run, kind, device)


def detect_films(model: LocalizationModel, films: Films, device: torch.device) -> Iterator[Detection]:
    """Yield what the model detects on each film, in the order of the films."""
    with torch.inference_mode():
        for start in range(0, len(films), BATCH_SIZE):
            yield from model.detect(as_batch(films.part(slice(start, start + BATCH_SIZE)), device))


def annotated_rows(cache: Cache, targets: Literal["boxes", "masks"]) -> NDArray[np.int64]:
    """Return the rows of the films that a network can learn its targets from, in ascending order: (n,).

    Boxes: the films that have any. Masks: those whose mask came with the film; where none did, those whose mask the
    classical steps determined, so that the network learns to do as they do.

    Raises InputError, with the command that prepares such films, where there are none.
    """
    if targets == "boxes":
        if not cache.has_boxes:
            raise InputError(
                f"{cache.path} has no boxes; `anomaly preprocess FILMS --for ssd` takes them from beside the films"
            )
        return np.flatnonzero((cache.boxes(np.arange(len(cache)))[..., 4] > 0).any(axis=1))
    if not {"crop", "full"} <= set(cache.variants):
        raise InputError(
            f"{cache.path} lacks crop or full films; `anomaly preprocess FILMS --for unet` makes them with the masks "
            "beside the films, `anomaly preprocess FILMS --variants crop,full` with those of the classical steps"
        )
    given = cache.index["given"]
    if given.any():
        return np.flatnonzero(given)
    if json.loads(cache.recipe_json)["mask"] == "none":
        raise InputError(
            f"{cache.path} has no masks: its recipe takes the whole film as foreground; `anomaly preprocess FILMS "
            "--for unet` takes masks from beside the films, `--mask local` makes some"
        )
    return np.flatnonzero(["mask" not in fallbacks.split(",") for fallbacks in cache.index["fallbacks"]])


def split_by_patient(cache: Cache, seed: int) -> NDArray[Any]:
    """Return "train", "val" or "test" for every film, by patient: (N,).

    A source's own splits are kept; otherwise a tenth of the patients validates and a tenth tests. Labels have no say
    here: a hand is a hand, normal or not.
    """
    index = cache.index
    return assign_splits(index["patient"], np.zeros(len(cache), np.int8), index["split"], seed=seed)


def check_split(run: Run, cache: Cache) -> None:
    """Raise InputError for a cache whose splits are not those that the run was trained with."""
    split = split_by_patient(cache, run.config.split_seed)
    if split_hash(cache.index["path"], split) != run.config.split_hash:
        raise InputError(f"the splits of {cache.path} are not those of {run.path}; train again")
