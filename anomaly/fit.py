"""From a cache and settings to a finished run folder: choose films, train, calibrate, draw. One way for every model."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save

from anomaly import runs
from anomaly.data import LABELS, LEAST_TRAINING_FILMS, as_batch, assign_splits, load_films, split_hash
from anomaly.detector import Detector, Settings
from anomaly.heatmap import blend, png, titled
from anomaly.models import find_model
from anomaly.score import View, calibrate, make_repeatable, maps
from anomaly.train import (
    EpochReport,
    TrainConfig,
    Trainer,
    choose_device,
    choose_precision,
    history_csv,
)
from preprocessing import InputError
from preprocessing.schema import Cache

PICTURED = 6
"""Validation films in reconstructions.png."""


@dataclass(frozen=True)
class Plan:
    """All that decides what a training gives, before it starts."""

    model: str
    cache: Path
    variant: str | None = None  # none: the cache's last
    preset: str = "standard"
    settings: Sequence[str] = ()  # "key=value"
    seed: int = 0
    split_seed: int = 0
    device: str = "auto"
    precision: str = "auto"


# --- settings -------------------------------------------------------------------------------------------------------


def settings_of(model: type[Detector]) -> dict[str, Literal["training", "model"]]:
    """Return the names of all settings of a model and its training, and whose they are."""
    names: dict[str, Literal["training", "model"]] = dict.fromkeys(TrainConfig.model_fields, "training")
    return names | dict.fromkeys(model.Config.model_fields, "model")


def resolve(name: str, preset: str, settings: Sequence[str]) -> tuple[Settings, TrainConfig]:
    """Return the model's and the training's settings: defaults, then the preset's, then each "key=value" in turn."""
    model = find_model(name)
    if preset not in model.presets:
        raise InputError(f"no preset {preset!r} of {name}; there are: {', '.join(sorted(model.presets))}")
    owners = settings_of(model)
    chosen: dict[str, Any] = dict(model.presets[preset])
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} is not key=value")
        if key not in owners:
            raise InputError(f"no setting {key!r} of {name}; there are: {', '.join(sorted(owners))}")
        chosen[key] = value
    if chosen.get("size") == "none":
        chosen["size"] = None
    config = {owner: {k: v for k, v in chosen.items() if owners[k] == owner} for owner in ("model", "training")}
    try:
        return model.Config(**config["model"]), TrainConfig(**config["training"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"--set {where}={chosen.get(where)}: {first['msg']}; `anomaly models {name}` lists all"
        ) from None


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A plan with everything looked up and checked, nothing trained yet."""

    plan: Plan
    cache: Cache
    split: NDArray[Any]
    config: dict[str, Any]  # becomes run.json

    @property
    def model(self) -> type[Detector]:
        """The class of the model."""
        return find_model(self.plan.model)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split that the model may learn from: normal films only, unless it is supervised."""
        label = self.cache.index["label"]
        usable = (label >= 0) if self.model.supervised else (label == 0)
        return np.flatnonzero((self.split == split) & usable)


def prepare(plan: Plan) -> Prepared:
    """Check a plan against its cache; what can't be trained is refused here, before a folder is made."""
    kind = find_model(plan.model)
    model_config, training = resolve(plan.model, plan.preset, plan.settings)
    cache = Cache(plan.cache)
    variant = plan.variant or cache.variants[-1]
    cache.films(variant, np.arange(0))  # an unknown variant is refused, with those there are
    size = training.size or cache.size
    if size > cache.size:
        raise InputError(
            f"{cache.path} holds films of {cache.size} px, {plan.model} was to take {size}: `anomaly preprocess SOURCE "
            f"--size {size}` makes them, --set size={cache.size} takes these"
        )
    if reason := kind.check_size(model_config, size):
        raise InputError(
            f"{plan.model} {reason}; {cache.path} has {cache.size} px: take --set size= or another `preprocess --size`"
        )
    index = cache.index
    split = assign_splits(index["patient"], index["label"], index["split"], seed=plan.split_seed)
    config = {
        "model": plan.model,
        "preset": plan.preset,
        "settings": {"model": model_config.model_dump(), "training": training.model_dump()},
        "size": size,
        "variant": variant,
        "seed": plan.seed,
        "split_seed": plan.split_seed,
        "split_hash": split_hash(index["path"], split),
        "precision": choose_precision(plan.precision, kind, choose_device(plan.device)),
        "device": choose_device(plan.device).type,
        "cache": {
            "path": str(cache.path.absolute()),
            "content_hash": cache.content_hash,
            "recipe": cache.recipe_json,
            "recipe_digest": cache.recipe_digest,
            "dtype": cache.dtype.name,
            "source": cache.source,
            "synthetic": cache.synthetic,
            "command": cache.command,
        },
        "versions": runs.versions(),
    }
    prepared = Prepared(plan, cache, split, config)
    counts = {name: len(prepared.rows(name)) for name in ("train", "val")}
    which = "labelled" if kind.supervised else "normal"
    labels = index["label"]
    if counts["train"] < LEAST_TRAINING_FILMS or counts["val"] < 1:
        there = ", ".join(f"{int((labels == value).sum())} {name}" for value, name in LABELS.items())
        raise InputError(
            f"{cache.path} ({there}) has {counts['train']} {which} films to train on and {counts['val']} to validate "
            f"with; at least {LEAST_TRAINING_FILMS} and 1 are needed: prepare more films"
        )
    config["films"] = counts
    return prepared


def continue_or_create(prepared: Prepared, out: Path | None, *, resume: bool) -> runs.Run:
    """Return the run folder to train in; the same command after an interruption gets the folder it had.

    Without `out`, that is the unfinished `runs/<model>-<n>` of the very same settings, or else the next number. With
    `out`, a run there must be unfinished and have the same settings. `resume` insists on a run that is there, and takes
    a finished one too.
    """
    if out is None:
        for path in reversed(runs.numbered(prepared.plan.model)):
            if (path / "run.json").is_file():
                run = runs.Run(path)
                if not run.finished and not _changed(run, prepared) and not run.busy():
                    return run
        if resume:
            raise InputError(
                f"{runs.RUNS}/ has no unfinished {prepared.plan.model} of these settings; leave --resume out"
            )
        return _create(runs.next_path(prepared.plan.model), prepared)
    if not (out / "run.json").is_file():
        if resume:
            raise InputError(f"{out} is no run folder to go on with; leave --resume out")
        return _create(out, prepared)
    run = runs.Run(out)
    if changed := _changed(run, prepared):
        raise InputError(f"{out} was started with other settings: {'; '.join(changed)}; give those, or another --out")
    if run.finished and not resume:
        raise InputError(f"{out} exists and is finished; take another --out, or score it: `anomaly score {out}`")
    return run


def _create(path: Path, prepared: Prepared) -> runs.Run:
    return runs.create(path, prepared.config | {"created": datetime.now(UTC).isoformat(timespec="seconds")})


def _changed(run: runs.Run, prepared: Prepared) -> list[str]:
    """Return in what a run differs from a plan; the same films under another path or name are the same films."""
    told = {"cache": {"content_hash": prepared.cache.content_hash}}
    old = {k: v for k, v in run.config.items() if k not in ("format", "created")}
    found = old | {"cache": {"content_hash": old.get("cache", {}).get("content_hash")}}
    return runs.differences(found, prepared.config | told)


def fit(prepared: Prepared, run: runs.Run, *, workers: int, on_epoch: Callable[[EpochReport], None]) -> runs.Run:
    """Train in `run` from wherever it stands, calibrate on validation normals, and write all that a run holds."""
    plan, config = prepared.plan, prepared.config
    device = choose_device(plan.device)
    with run.locked():
        if run.finished:
            return run
        make_repeatable(device)
        torch.manual_seed(plan.seed)
        model_config, training = resolve(plan.model, plan.preset, plan.settings)
        model = prepared.model(model_config, config["size"])
        films = {
            s: load_films(prepared.cache, config["variant"], prepared.rows(s), config["size"]) for s in ("train", "val")
        }
        trainer = Trainer(
            model,
            training,
            films["train"],
            films["val"],
            seed=plan.seed,
            device=device,
            precision=config["precision"],
            workers=workers,
        )
        checkpoint = run.path / "checkpoint.safetensors"
        if checkpoint.is_file():
            trainer.restore(checkpoint)
        weights = trainer.run(run, on_epoch)
        run.write("weights.safetensors", save({k: v.contiguous() for k, v in weights.items()}))
        run.write("history.csv", history_csv(trainer.state.history))
        model.load_state_dict(weights)
        model.eval()
        finish(model, prepared, run, device, trainer.state.history)
        checkpoint.unlink(missing_ok=True)
    return run


def finish(
    model: Detector,
    prepared: Prepared,
    run: runs.Run,
    device: torch.device,
    history: Sequence[dict[str, float]],
) -> None:
    """Write the pictures and, last, calibration.json, whose presence says that the run is whole."""
    view = View(
        prepared.cache,
        prepared.config["variant"],
        normals(prepared.cache, prepared.split, "val"),
        prepared.config["size"],
    )
    calibration = calibrate(model, view, device)
    run.write("learning_curve.png", learning_curve(history, synthetic=prepared.cache.synthetic))
    if calibration.map_scale is not None:
        run.write("reconstructions.png", picture(model, view, calibration.map_scale, device))
    run.write("calibration.json", runs.to_json(calibration.to_dict()))


def learning_curve(history: Sequence[dict[str, float]], *, synthetic: bool) -> bytes:
    """Return a PNG of every loss term and the validation loss over the epochs, on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [line["epoch"] for line in history]
    for name in (n for n in history[0] if "." in n or n == "validation"):
        axes.plot(epochs, [line[name] for line in history], label=name, marker="." if len(history) < 30 else None)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log", title="SYNTHETIC films" if synthetic else None)
    axes.grid(alpha=0.3)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def picture(model: Detector, view: View, scale: float, device: torch.device) -> bytes:
    """Return a PNG of some validation films: a row a film, with film, reconstruction and map on the run's scale."""
    some = View(view.cache, view.variant, view.rows[:: max(1, len(view.rows) // PICTURED)][:PICTURED], view.size)
    rows = []
    for number, drawn, film, mask in maps(model, some, device):
        one = as_batch(load_films(view.cache, view.variant, np.array([number]), view.size), device)
        with torch.inference_mode():
            made = model.reconstruct(one)
        columns = [film] if made is None else [film, made[0, 0].float().cpu().numpy()]
        grey = [np.rint(np.clip(c, 0, 1) * 255).astype(np.uint8)[..., None].repeat(3, axis=2) for c in columns]
        rows.append(np.concatenate([*grey, blend(film, drawn, mask, scale)], axis=1))
    title = f"{'SYNTHETIC films: ' if view.cache.synthetic else ''}film, reconstruction, error"
    return png(titled(np.concatenate(rows, axis=0), title))


def normals(cache: Cache, split: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return the rows of the normal films of a split."""
    return np.flatnonzero((split == name) & (cache.index["label"] == 0))
