"""One run made of several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from anomaly import runs
from anomaly.console import warn
from anomaly.data.batch import batches
from anomaly.data.dataset import FilmSet
from anomaly.models import find_detector
from anomaly.models.base import Detector
from anomaly.models.ensemble import FISHER, Ensemble, EnsembleConfig, Member
from anomaly.pipeline.fit import created, finish, folder_for, write_weights
from anomaly.pipeline.open_run import run_cache_and_split
from anomaly.training.weights import load_weights
from preprocessing import InputError
from preprocessing.wording import counted

FEW = 20
"""Normal validation films below which a warning says what the p-values rest on."""
MAPPED = 128
"""Normal validation films whose maps are looked at, taken evenly from all."""


def combine(
    members: Sequence[runs.Run],
    out: Path | None,
    cache_path: Path | None,
    device: torch.device,
    scores: Sequence[str | None] | None = None,
) -> runs.Run:
    """Make one run of several finished ones, of one cache, with the same variant and splits.

    scores  the score of each member that enters `fisher`; None for its first.    cache_path  where their cache is now,
    if not where it was. The ensemble's films have the largest size among the members'. The members' weights are copied:
    the new run needs none of their folders. One that was interrupted is finished in its folder by the same call.
    """
    models = [load_weights(run, find_detector(run.config.model), device) for run in members]
    _check_members(members)
    chosen = _chosen(members, models, scores or [None] * len(members))
    first = members[0].config
    cache, split = run_cache_and_split(members[0], cache_path)
    for run in members[1:]:
        run_cache_and_split(run, cache_path)  # refuses a member that was trained on other films
    config = EnsembleConfig(
        members=[
            Member(model=run.config.model, settings=run.config.settings.model, size=run.config.size, score=score)
            for run, score in zip(members, chosen, strict=True)
        ]
    )
    size = max(run.config.size for run in members)
    run_config = _config(members, config, size, device)
    place = folder_for(run_config, out, resume=False)
    ensemble = Ensemble(config, size)
    for slot, model in zip(ensemble.members, models, strict=True):
        slot.load_state_dict(model.state_dict())
    ensemble.to(device).eval()
    if FISHER not in ensemble.score_names and any(scores or ()):
        raise InputError("all members learned from labels, and their probabilities are averaged: leave out :SCORE")
    label = cache.index["label"]
    normals = FilmSet(cache, first.variant, np.flatnonzero((split == "val") & (label == 0)), size)
    with torch.inference_mode():
        ensemble.fit_reference(batches(normals, device))
        few = np.unique(np.linspace(0, len(normals) - 1, min(len(normals), MAPPED)).round().astype(int))
        ensemble.fit_maps(batches(normals.subset(few), device))
    if len(normals) < FEW and FISHER in ensemble.score_names:
        warn(
            f"{cache.path} has {counted(len(normals), 'normal validation film')}: p-values below 1/{len(normals) + 1} "
            f"are extrapolated from the {len(normals) // 2} highest; more normal films make them exact"
        )
    run = created(place, run_config)
    labelled = replace(normals, rows=np.flatnonzero((split == "val") & (label >= 0)))
    with run.locked():
        write_weights(run, ensemble)
        finish(ensemble, labelled if ensemble.targets == "labels" else normals, run, device)
    return run


def _config(members: Sequence[runs.Run], settings: EnsembleConfig, size: int, device: torch.device) -> runs.RunConfig:
    """Return run.json: that of the first member but for what is the ensemble's own."""
    changes = {
        "format": runs.FORMAT,
        "model": "ensemble",
        "preset": "none",
        "size": size,
        "seed": ", ".join(str(run.config.seed) for run in members),
        "settings": runs.RunSettings(model=settings.model_dump(), training={}),
        "members": [str(run.path) for run in members],
        "films": _film_counts(members),
        "weights": None,
        "precision": ", ".join(dict.fromkeys(run.config.precision for run in members)),
        "device": device.type,
        "versions": runs.versions(),
    }
    return members[0].config.model_copy(update=changes)


def _chosen(members: Sequence[runs.Run], models: Sequence[Detector], scores: Sequence[str | None]) -> list[str]:
    """Return the score of each member, its first where none is named."""
    for run, model, score in zip(members, models, scores, strict=True):
        if score is not None and score not in model.score_names:
            raise InputError(f"{run.path} has no score {score!r}; there are: {', '.join(sorted(model.score_names))}")
    return [score or model.score_names[0] for model, score in zip(models, scores, strict=True)]


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
    for key in ("variant", "split_hash", "where"):
        for run in members[1:]:
            own, shared = getattr(run.config, key), getattr(first, key)
            if own != shared:
                raise InputError(
                    f"{run.path} has {key} {own}, {members[0].path} {shared}; an ensemble's members share one"
                )
    if len({str(run.path.resolve()) for run in members}) != len(members) or len(members) < 2:
        raise InputError("an ensemble needs at least two different runs; name more")
