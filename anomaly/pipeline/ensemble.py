"""One run made of several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from anomaly import runs
from anomaly.data.batch import as_batch
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.predict import View
from anomaly.models.ensemble import Ensemble, EnsembleConfig
from anomaly.pipeline.fit import finish, now
from anomaly.pipeline.open_run import open_model, run_view
from preprocessing import InputError
from preprocessing.schema import Cache


def combine(members: Sequence[runs.Run], out: Path | None, cache: Path | None, device: torch.device) -> runs.Run:
    """Make one run of several finished ones, which must have seen the same films, splits, variant and size.

    `cache` says where their cache is now, if not where it was. The members' weights are copied: the new run needs none
    of their folders.
    """
    first = members[0].config
    models = [open_model(run, device) for run in members]
    if not set.intersection(*(set(model.score_names) for model in models)):
        raise InputError(f"{', '.join(str(r.path) for r in members)} have no score in common; `anomaly models NAME`")
    for key in ("variant", "size", "split_hash"):
        for run in members[1:]:
            if run.config[key] != first[key]:
                raise InputError(
                    f"{run.path} has {key} {run.config[key]}, {members[0].path} {first[key]}; "
                    "an ensemble's members share one"
                )
    if len({str(run.path.resolve()) for run in members}) != len(members) or len(members) < 2:
        raise InputError("an ensemble has at least two runs, each once; name more")
    opened, split = run_view(members[0], cache)
    for run in members[1:]:
        run_view(run, cache)  # refuses a member that was trained on other films
    named = [{"model": run.config["model"], "settings": run.config["settings"]["model"]} for run in members]
    settings = EnsembleConfig(members=named)
    made = Ensemble(settings, first["size"])
    for slot, model in zip(made.members, models, strict=True):
        slot.load_state_dict(model.state_dict())
    scales = [read_calibration(run).map_scale for run in members]
    made.scale = torch.tensor([scale or 0.0 for scale in scales])
    made.to(device).eval()
    rows = normals(opened, split, "val")
    view = View(opened, first["variant"], rows, first["size"])
    with torch.inference_mode():
        made.fit_reference(as_batch(films, device) for _, films in view.chunks())
    config = {k: v for k, v in first.items() if k not in ("format", "created")} | {
        "model": "ensemble",
        "preset": "none",
        "seed": ", ".join(str(run.config["seed"]) for run in members),
        "settings": {"model": settings.model_dump(), "training": {}},
        "members": [str(run.path) for run in members],
        "films": _films_of(members),
        "weights": None,
        "precision": ", ".join(dict.fromkeys(run.config["precision"] for run in members)),
        "device": device.type,
        "versions": runs.versions(),
    }
    run = runs.create(out or runs.next_path("ensemble"), config | {"created": now()})
    run.write("weights.safetensors", save({k: v.contiguous().cpu() for k, v in made.state_dict().items()}))
    if made.supervised:
        rows = np.flatnonzero((split == "val") & (opened.index["label"] >= 0))
    finish(made, replace(view, rows=rows), run, device)
    return run


def _films_of(members: Sequence[runs.Run]) -> dict[str, int]:
    """Return how many films the members trained and validated on, together.

    They share their splits, so that of two members one has all films of the other: those with labels include the normal
    ones.
    """
    counts = [run.config["films"] for run in members]
    return {name: max(count.get(name, 0) for count in counts) for name in dict.fromkeys(k for c in counts for k in c)}


def normals(cache: Cache, split: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return the rows of the normal films of a split."""
    return np.flatnonzero((split == name) & (cache.index["label"] == 0))
