"""Opening a run: its detector, its cache, the splits it was trained with."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from anomaly.data.splits import assign_splits, split_hash
from anomaly.models import find_detector
from anomaly.models.base import Detector
from anomaly.runs import Run
from anomaly.training.weights import load_weights
from preprocessing import InputError
from preprocessing.schema import Cache


def open_model(run: Run, device: torch.device) -> Detector:
    """Return the trained detector of a run on `device`, ready to score."""
    return load_weights(run, find_detector(run.config["model"]), device)


def run_view(run: Run, cache_path: Path | None = None) -> tuple[Cache, NDArray[Any]]:
    """Return the cache that a run was trained on and the split of each of its rows.

    A cache that has moved is named by `cache_path`; one of other content is refused.
    """
    cache = run_cache(run, cache_path)
    index = cache.index
    seed, rule = run.config["split_seed"], run.config["split_rule"]
    split = assign_splits(index["patient"], index["label"], index["split"], seed=seed, rule=rule)
    if split_hash(index["path"], split) != run.config["split_hash"]:
        raise InputError(f"the splits of {cache.path} are not those of {run.path}; train again")
    return cache, split


def run_cache(run: Run, cache_path: Path | None = None) -> Cache:
    """Return the cache that a run was trained on; `cache_path` says where it is now, if not where it was."""
    recorded = run.config["cache"]
    if cache_path is None and not Path(recorded["path"]).is_file():
        raise InputError(f"the cache {recorded['path']} of {run.path} is gone; say with --cache where it is now")
    cache = Cache(cache_path or Path(recorded["path"]))
    if cache.content_hash != recorded["content_hash"]:
        raise InputError(
            f"{cache.path} is not the cache that {run.path} was trained on (content {cache.content_hash[:12]}, "
            f"not {recorded['content_hash'][:12]}); make it again with `{recorded['command']}`, or name films to score"
        )
    return cache
