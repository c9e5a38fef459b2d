"""One run made of several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from anomaly import runs
from anomaly.data.batch import batches
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import read_calibration
from anomaly.models import find_detector
from anomaly.models.ensemble import Ensemble, EnsembleConfig
from anomaly.pipeline.fit import finish, now, write_weights
from anomaly.pipeline.open_run import run_cache_and_split
from anomaly.training.weights import load_weights
from preprocessing import InputError


def combine(members: Sequence[runs.Run], out: Path | None, cache_path: Path | None, device: torch.device) -> runs.Run:
    """Make one run of several finished ones, which must have seen the same films, splits, variant and size.

    `cache_path` says where their cache is now, if not where it was. The members' weights are copied: the new run needs
    none of their folders.
    """
    models = [load_weights(run, find_detector(run.config.model), device) for run in members]
    if not set.intersection(*(set(model.score_names) for model in models)):
        raise InputError(
            f"{', '.join(str(r.path) for r in members)} have no score in common; `anomaly models NAME` lists them"
        )
    _check_members(members)
    first = members[0].config
    cache, split = run_cache_and_split(members[0], cache_path)
    for run in members[1:]:
        run_cache_and_split(run, cache_path)  # refuses a member that was trained on other films
    settings = EnsembleConfig(
        members=[{"model": run.config.model, "settings": run.config.settings.model} for run in members]
    )
    ensemble = Ensemble(settings, first.size)
    for slot, model in zip(ensemble.members, models, strict=True):
        slot.load_state_dict(model.state_dict())
    ensemble.scale = torch.tensor([read_calibration(run).map_scale or 0.0 for run in members])
    ensemble.to(device).eval()
    label = cache.index["label"]
    normals = FilmSet(cache, first.variant, np.flatnonzero((split == "val") & (label == 0)), first.size)
    with torch.inference_mode():
        ensemble.fit_reference(batches(normals, device))
    changes = {
        "model": "ensemble",
        "preset": "none",
        "seed": ", ".join(str(run.config.seed) for run in members),
        "settings": runs.RunSettings(model=settings.model_dump(), training={}),
        "members": [str(run.path) for run in members],
        "films": _film_counts(members),
        "weights": None,
        "precision": ", ".join(dict.fromkeys(run.config.precision for run in members)),
        "device": device.type,
        "versions": runs.versions(),
        "created": now(),
    }
    run = runs.create(out or runs.next_path("ensemble"), first.model_copy(update=changes))
    write_weights(run, ensemble)
    labelled = replace(normals, rows=np.flatnonzero((split == "val") & (label >= 0)))
    finish(ensemble, labelled if ensemble.targets == "labels" else normals, run, device)
    return run


def _film_counts(members: Sequence[runs.Run]) -> dict[str, int]:
    """Return how many films the members trained and validated on, together.

    They share their splits, so that of two members one has all films of the other: those with labels include the normal
    ones.
    """
    counts = [run.config.films for run in members]
    names = dict.fromkeys(name for count in counts for name in count)
    return {name: max(count.get(name, 0) for count in counts) for name in names}


def _check_members(members: Sequence[runs.Run]) -> None:
    """Refuse members that can't be put together."""
    first = members[0].config
    for key in ("variant", "size", "split_hash", "where"):
        for run in members[1:]:
            own, shared = getattr(run.config, key), getattr(first, key)
            if own != shared:
                raise InputError(
                    f"{run.path} has {key} {own}, {members[0].path} {shared}; an ensemble's members share one"
                )
    if len({str(run.path.resolve()) for run in members}) != len(members) or len(members) < 2:
        raise InputError("an ensemble needs at least two different runs; name more")
