"""From a cache and settings to a finished run folder: choose films, train, calibrate, draw. One way for every model."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save

from anomaly import runs
from anomaly.data import (
    LABELS,
    LEAST_TRAINING_FILMS,
    Films,
    Sample,
    SplitRule,
    StoredFilms,
    as_batch,
    assign_splits,
    bytes_of,
    load_films,
    split_hash,
)
from anomaly.detector import Batch, Detector, Model, Settings
from anomaly.finder import Finder
from anomaly.finding import calibrate as threshold_of
from anomaly.finding import pictured, rows_of, splits_of
from anomaly.heatmap import blend, map_scale, png, titled
from anomaly.memory import free_memory, keep_freed_memory
from anomaly.models import TOOLS, find_detector, find_model, zoo
from anomaly.models.ensemble import Ensemble, EnsembleConfig
from anomaly.reconstructor import Reconstructor
from anomaly.score import View, calibrate, make_repeatable, maps, open_model, read_calibration, run_view
from anomaly.team import ALONE, Team
from anomaly.tracking import open_tracker
from anomaly.train import (
    EpochReport,
    TrainConfig,
    Trainer,
    choose_device,
    choose_precision,
    history_csv,
)
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import split_variant

PICTURED = 6
"""Validation films in reconstructions.png."""
DRAWN = 6
"""Generated films a side of samples.png."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, what films may take; beyond that they are read as they are needed."""


@dataclass(frozen=True)
class Plan:
    """All that decides what a training gives, before it starts."""

    model: str
    cache: Path
    variant: str | None = None  # none: `default_variant`
    preset: str = "standard"
    settings: Sequence[str] = ()  # "key=value"
    seed: int = 0
    split_seed: int = 0
    device: str = "auto"
    precision: str = "auto"


# --- settings -------------------------------------------------------------------------------------------------------


def settings_of(model: type[Model]) -> dict[str, Literal["training", "model"]]:
    """Return the names of all settings of a model and its training, and whose they are."""
    names: dict[str, Literal["training", "model"]] = dict.fromkeys(TrainConfig.model_fields, "training")
    return names | dict.fromkeys(model.Config.model_fields, "model")


def resolve(name: str, preset: str, settings: Sequence[str]) -> tuple[Settings, TrainConfig]:
    """Return the model's and the training's settings: defaults, then the preset's, then each "key=value" in turn."""
    model = find_model(name)
    if not model.presets:
        raise InputError(f"{name} isn't trained: it is made of finished runs, `anomaly {name} RUN RUN`")
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
    fields = TrainConfig.model_fields | model.Config.model_fields
    chosen |= {key: None for key, value in chosen.items() if value == "none" and fields[key].default is None}
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
    def model(self) -> type[Model]:
        """The class of the model."""
        return find_model(self.plan.model)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split that the model may learn from.

        A detector: normal films only, unless it is supervised. A net that prepares films: those with what it is to
        find, whatever their label.
        """
        if issubclass(self.model, Finder):
            usable = rows_of(self.cache, self.model.learns)
        else:
            label = self.cache.index["label"]
            usable = np.flatnonzero((label >= 0) if learns_labels(self.model) else (label == 0))
        chosen: NDArray[np.int64] = usable[self.split[usable] == split]
        return chosen

    @property
    def size(self) -> int:
        """The side of the films in pixels, as the model takes them."""
        size: int = self.config["size"]
        return size

    def films(self, split: str) -> Films:
        """Read those rows, with what is to be found where the model finds something."""
        learns = self.model.learns if issubclass(self.model, Finder) else None
        rows = self.rows(split)
        return load_films(self.cache, self.config["variant"], rows, self.size, learns=learns, sample=self._sample)

    def stored(self, split: str) -> StoredFilms:
        """Return those rows as films that stay in the cache."""
        return StoredFilms(self.cache, self.config["variant"], self.rows(split), self.size, self._sample)

    @cached_property
    def outgrown(self) -> str | None:
        """Why training and validation films can't be kept in memory, or None where they can; asked once.

        They may take half of what is free. Nets that find things always keep theirs: films with annotations are few.
        """
        free = free_memory()
        if free is None or issubclass(self.model, Finder):
            return None
        needed = bytes_of(self.cache, sum(len(self.rows(split)) for split in ("train", "val")), self.size)
        if needed <= free * MEMORY_SHARE:
            return None
        return f"{needed / 1e9:.1f} GB of films stay in {self.cache.path}, as {free / 1e9:.1f} GB of memory are free"

    @property
    def _sample(self) -> Sample:
        sample: Sample = self.config["settings"]["training"]["sample"]
        return sample


def learns_labels(kind: type[Model]) -> bool:
    """Whether a model trains on films of both classes."""
    return issubclass(kind, Detector) and kind.supervised


def prepare(plan: Plan) -> Prepared:
    """Check a plan against its cache; what can't be trained is refused here, before a folder is made."""
    kind = find_model(plan.model)
    model_config, training = resolve(plan.model, plan.preset, plan.settings)
    if (training.noise or training.erase) and not issubclass(kind, Reconstructor):
        raise InputError(f"{plan.model} doesn't reconstruct, so there is nothing to mend: leave out noise and erase")
    if training.augmented_by == "device" and issubclass(kind, Finder):
        raise InputError(f"{plan.model} learns boxes or masks, which imgaug alone moves too: leave out augmented_by")
    if training.sample == "study" and not learns_labels(kind):
        raise InputError(f"{plan.model} learns from each film by itself: leave out sample=study")
    cache = Cache(plan.cache)
    if issubclass(kind, Finder) and kind.learns == "boxes" and training.augmentation not in ("none", "upright"):
        raise InputError(
            f"augmentation {training.augmentation} mirrors films, which makes right hands left ones; "
            f"{plan.model} takes none or upright"
        )
    if issubclass(kind, Finder):
        rows_of(cache, kind.learns)  # a cache without what is to be learnt is answered before its size
    variant = plan.variant or (kind.variant if issubclass(kind, Finder) else default_variant(cache.variants))
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
    _check_stages(kind, model_config, training, size)
    weights = kind.weights_file(model_config)
    if weights:
        kind(model_config, size).begin(weights)  # weights that don't fit are refused before a folder is made
    index = cache.index
    if issubclass(kind, Finder) and training.splits != "paper":
        raise InputError(f"{plan.model} is split by patient whatever the labels; leave out splits")
    rule: SplitRule = training.splits
    if (index["split"] != "").any():
        rule = "given"
    elif rule == "paper" and learns_labels(kind):
        rule = "paper, labelled"
    if issubclass(kind, Finder):
        if variant != kind.variant:
            raise InputError(f"{plan.model} finds things on films of variant {kind.variant}; leave --variant out")
        split = splits_of(cache, plan.split_seed)
    else:
        try:
            split = assign_splits(index["patient"], index["label"], index["split"], seed=plan.split_seed, rule=rule)
        except InputError as error:
            raise InputError(f"{cache.path}: {error}") from None
    device = choose_device(plan.device)
    config = {
        "model": plan.model,
        "preset": plan.preset,
        "settings": {"model": model_config.model_dump(), "training": training.model_dump()},
        "size": size,
        "variant": variant,
        "seed": plan.seed,
        "split_seed": plan.split_seed,
        "split_rule": rule,
        "split_hash": split_hash(index["path"], split),
        "weights": weights and {"file": str(weights.absolute()), "sha256": runs.sha256(weights)},
        "precision": choose_precision(plan.precision, device, pays=kind.pays_in_bfloat16(model_config)),
        "device": device.type,
        "cache": {
            "path": str(cache.path.absolute()),
            "content_hash": cache.content_hash,
            "recipe": cache.recipe_json,
            "recipe_digest": cache.recipe_digest,
            "nets": cache.nets,
            "dtype": cache.dtype.name,
            "source": cache.source,
            "synthetic": cache.synthetic,
            "command": cache.command,
        },
        "versions": runs.versions(None if plan.model in TOOLS else zoo()[plan.model].package),
    }
    prepared = Prepared(plan, cache, split, config)
    counts = {name: len(prepared.rows(name)) for name in ("train", "val")}
    which = "annotated" if issubclass(kind, Finder) else "labelled" if learns_labels(kind) else "normal"
    labels = index["label"]
    if counts["train"] < LEAST_TRAINING_FILMS or counts["val"] < 1:
        there = ", ".join(f"{int((labels == value).sum())} {name}" for value, name in LABELS.items())
        raise InputError(
            f"{cache.path} ({there}) has {counts['train']} {which} films to train on and {counts['val']} to validate "
            f"with; at least {LEAST_TRAINING_FILMS} and 1 are needed: prepare more films"
        )
    if learns_labels(kind):
        _check_classes(prepared)
        counts["abnormal"] = int((labels[prepared.rows("train")] == 1).sum())
    config["films"] = counts
    return prepared


def _check_stages(kind: type[Model], config: Settings, training: TrainConfig, size: int) -> None:
    if training.order == ["all"]:
        return
    with torch.device("meta"):  # shapes alone
        there = ["all", *kind(config, size).parts()]
    for name in training.order:
        if name not in there:
            raise InputError(f"no stage {name!r} of this model; there are: {', '.join(there)}")


def _check_classes(prepared: Prepared) -> None:
    """Refuse to learn from labels where a split has one class only."""
    for split, use in (("train", "train on"), ("val", "validate with")):
        label = prepared.cache.index["label"][prepared.rows(split)]
        for value in (0, 1):
            if not (label == value).any():
                raise InputError(
                    f"{prepared.cache.path} has {len(label)} labelled films to {use} and not one of them is "
                    f"{LABELS[value]}; {prepared.plan.model} learns from both classes: prepare films of both, or train "
                    "a detector that needs normal films alone, `anomaly train cae`"
                )


def default_variant(variants: Sequence[str]) -> str:
    """Return the variant of a cache that is taken unasked: the last of the paper's, or the last where it has none.

    >>> default_variant(["raw", "full-he", "full-contrast", "full-clahe"])
    'full-he'
    """
    papers = [variant for variant in variants if split_variant(variant)[1] in ("", "he")]
    return (papers or list(variants))[-1]


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
    return runs.create(path, prepared.config | {"created": _now()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _changed(run: runs.Run, prepared: Prepared) -> list[str]:
    """Return in what a run differs from a plan; the same films under another path or name are the same films."""
    told = {"cache": {"content_hash": prepared.cache.content_hash}}
    old = {k: v for k, v in run.config.items() if k not in ("format", "created")}
    found = old | {"cache": {"content_hash": old.get("cache", {}).get("content_hash")}}
    return runs.differences(found, prepared.config | told)


def fit(
    prepared: Prepared,
    run: runs.Run,
    *,
    workers: int,
    on_epoch: Callable[[EpochReport], None],
    team: Team = ALONE,
    track: str = "none",
) -> runs.Run:
    """Train in `run` from wherever it stands, calibrate on validation films, and write all that a run holds.

    Of a `team` all train and the first one writes. `track` tells the history to a tracker as well.
    """
    plan, config = prepared.plan, prepared.config
    device = choose_device(plan.device)
    with run.locked() if team.first else nullcontext():
        if run.finished:
            return run
        make_repeatable(device)
        keep_freed_memory()
        torch.manual_seed(plan.seed)
        model_config, training = resolve(plan.model, plan.preset, plan.settings)
        model = prepared.model(model_config, config["size"])
        read = prepared.stored if prepared.outgrown else prepared.films
        films, validation = read("train"), read("val")
        trainer = Trainer(
            model,
            training,
            films,
            validation,
            seed=plan.seed,
            device=device,
            precision=config["precision"],
            workers=workers,
            team=team,
        )
        checkpoint = run.path / "checkpoint.safetensors"
        if checkpoint.is_file():
            trainer.restore(checkpoint)
        elif config["weights"]:
            model.begin(Path(config["weights"]["file"]))
        draw, end = _closing(model, prepared, validation, run, device)
        if not team.first:
            trainer.run(run, on_epoch)
            team.wait()
            return run
        with open_tracker(track, run.path, config) as tracker:

            def told(report: EpochReport) -> None:
                tracker.epoch(report.figures, report.epoch)
                on_epoch(report)

            kept = trainer.run(run, told, draw)
            state = trainer.state
            tracker.close({"epochs": state.epoch, "best_epoch": state.best_epoch, "best_validation": state.best})
        model.load_state_dict(kept)
        model.eval()
        if isinstance(model, Detector):
            with torch.inference_mode():
                model.remember(batches(films, device))
        run.write("weights.safetensors", save({k: v.contiguous() for k, v in model.state_dict().items()}))
        run.write("history.csv", history_csv(trainer.state.history))
        run.write("warnings.json", runs.to_json({"warnings": trainer.state.warnings}))
        if model.players():
            curve = learning_curve(trainer.state.history, synthetic=prepared.cache.synthetic)
            run.write("learning_curve.png", curve)
        end()
        checkpoint.unlink(missing_ok=True)
        team.wait()
    return run


def _closing(
    model: Model, prepared: Prepared, validation: Films | StoredFilms, run: runs.Run, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what is done at every checkpoint, and what in the end, by what the model is for."""
    if isinstance(model, Finder):
        assert isinstance(validation, Films)
        synthetic = prepared.cache.synthetic

        def draw_finds() -> None:
            run.write("finds.png", finds_picture(model, validation, None, device, synthetic=synthetic))

        return draw_finds, lambda: finish_finder(model, validation, run, device, synthetic=synthetic)
    assert isinstance(model, Detector)
    view = _validation(prepared)

    def draw() -> None:
        if model.players():
            _pictures(model, view, run, device, None)

    return draw, lambda: finish(model, view, run, device)


def combine(members: Sequence[runs.Run], out: Path | None, cache: Path | None, device: torch.device) -> runs.Run:
    """Make one run of several finished ones, which must have seen the same films, splits, variant and size.

    `cache` says where their cache is now, if not where it was. The members' weights are copied: the new run needs none
    of their folders.
    """
    first = members[0].config
    shared = set.intersection(*(set(find_detector(run.config["model"]).score_names) for run in members))
    if not shared:
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
    models = [open_model(run, device) for run in members]
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
        made.remember(as_batch(films, device) for _, films in view.chunks())
    config = {k: v for k, v in first.items() if k not in ("format", "created", "films")} | {
        "model": "ensemble",
        "preset": "none",
        "seed": ", ".join(str(run.config["seed"]) for run in members),
        "settings": {"model": settings.model_dump(), "training": {}},
        "members": [str(run.path) for run in members],
        "device": device.type,
        "versions": runs.versions(),
    }
    run = runs.create(out or runs.next_path("ensemble"), config | {"created": _now()})
    run.write("weights.safetensors", save({k: v.contiguous().cpu() for k, v in made.state_dict().items()}))
    if made.supervised:
        rows = np.flatnonzero((split == "val") & (opened.index["label"] >= 0))
    finish(made, replace(view, rows=rows), run, device)
    return run


def finish(model: Detector, view: View, run: runs.Run, device: torch.device) -> None:
    """Write the pictures and, last, calibration.json, whose presence says that the run is whole."""
    calibration = calibrate(model, view, device)
    _pictures(model, view, run, device, calibration.map_scale)
    run.write("calibration.json", runs.to_json(calibration.to_dict()))


def finish_finder(model: Finder, validation: Films, run: runs.Run, device: torch.device, *, synthetic: bool) -> None:
    """Write the picture of its finds and, last, calibration.json: from how sure on something counts as found."""
    threshold = threshold_of(model, validation, device)
    run.write("finds.png", finds_picture(model, validation, threshold, device, synthetic=synthetic))
    run.write("calibration.json", runs.to_json({"threshold": threshold, "films": len(validation)}))


def batches(films: Films | StoredFilms, device: torch.device) -> Iterator[Batch]:
    """Yield films as they are, in their order, some at a time."""
    side = films.film.shape[1] if isinstance(films, Films) else films.size
    count = max(1, min(64, 2**22 // side**2))
    for start in range(0, len(films), count):
        yield as_batch(films.part(slice(start, start + count)), device)


def _validation(prepared: Prepared) -> View:
    """Return the validation films that the model may be calibrated on: normal ones, or for labels both."""
    return View(prepared.cache, prepared.config["variant"], prepared.rows("val"), prepared.config["size"])


@torch.inference_mode()
def _pictures(model: Detector, view: View, run: runs.Run, device: torch.device, scale: float | None) -> None:
    """Write what the model draws as it stands: samples.png, and the maps, on `scale` if known, in reconstructions.png
    or, where it reconstructs nothing, maps.png.
    """
    model.eval()
    made = model.generate(DRAWN * DRAWN)
    if made is not None:
        run.write("samples.png", samples(made[:, 0].float().cpu().numpy(), synthetic=view.cache.synthetic))
    label = view.column("label")
    classes = [view.rows[label == value] for value in np.unique(label)]  # both, where both are validated with
    each = PICTURED // len(classes)
    rows = np.concatenate([own[:: max(1, len(own) // each)][:each] for own in classes])
    some = View(view.cache, view.variant, rows, view.size)
    batch = as_batch(load_films(some.cache, some.variant, some.rows, some.size), device)
    if model.anomaly_map(batch) is not None:
        name = "maps.png" if model.reconstruct(batch) is None else "reconstructions.png"
        run.write(name, picture(model, some, scale, device))


def learning_curve(history: Sequence[dict[str, float]], *, synthetic: bool) -> bytes:
    """Return a PNG of every loss term and the validation loss over the epochs, and below it of what was watched.

    Losses lie on a logarithmic scale where all are above 0; what is a share in every epoch has a panel of its own.
    """
    from matplotlib.figure import Figure

    terms = [name for name in history[0] if "." in name or name == "validation"]
    watched = [name for name in history[0] if name not in (*terms, "epoch", "seconds", "films_per_second")]
    shares = [name for name in watched if all(0 <= line[name] <= 1 for line in history)]
    others = [name for name in watched if name not in shares]
    panels = [panel for panel in (("loss", terms), ("share", shares), ("watched", others)) if panel[1]]
    figure = Figure(figsize=(9, 1.5 + 2.5 * len(panels)), layout="constrained")
    epochs, marker = [line["epoch"] for line in history], "." if len(history) < 30 else None
    for axes, (title, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name in names:
            axes.plot(epochs, [line[name] for line in history], label=name, marker=marker)
        positive = all(line[name] > 0 for line in history for name in names)
        axes.set(ylabel=title, yscale="log" if positive and title == "loss" else "linear")
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside the lines, which it would hide
    axes.set(xlabel="epoch")
    if synthetic:
        figure.suptitle("SYNTHETIC films")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def samples(made: NDArray[np.float32], *, synthetic: bool) -> bytes:
    """Return a PNG of generated films in a square: (DRAWN², S, S) in [0, 1]."""
    grey = np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8)
    rows = [np.concatenate(grey[i : i + DRAWN], axis=1) for i in range(0, len(grey), DRAWN)]
    square = np.concatenate(rows, axis=0)[..., None].repeat(3, axis=2)
    return png(titled(_enlarged(square, made.shape[1]), f"generated films{', of SYNTHETIC ones' if synthetic else ''}"))


def picture(model: Detector, view: View, scale: float | None, device: torch.device) -> bytes:
    """Return a PNG of the view's films: a row a film, with film, reconstruction and map.

    Without a `scale`, the maps share that of the view itself.
    """
    drawn = list(maps(model, view, device))
    scale = scale or map_scale((heat, mask) for _, heat, _, mask in drawn)
    rows = []
    for number, heat, film, mask in drawn:
        one = as_batch(load_films(view.cache, view.variant, np.array([number]), view.size), device)
        with torch.inference_mode():
            made = model.reconstruct(one)
        columns = [film] if made is None else [film, made[0, 0].float().cpu().numpy()]
        grey = [np.rint(np.clip(c, 0, 1) * 255).astype(np.uint8)[..., None].repeat(3, axis=2) for c in columns]
        rows.append(np.concatenate([*grey, blend(film, heat, mask, scale)], axis=1))
    shown = f"film, {'' if made is None else 'reconstruction, '}{model.map_unit}"
    sheet = _enlarged(np.concatenate(rows, axis=0), view.size)
    return png(titled(sheet, f"{'SYNTHETIC films: ' if view.cache.synthetic else ''}{shown}"))


def finds_picture(
    model: Finder, films: Films, threshold: float | None, device: torch.device, *, synthetic: bool
) -> bytes:
    """Return a PNG of some films with what is there (white) and what the model finds (coloured), surer than .5 or the
    threshold.
    """
    model.eval()
    some = films.part(np.arange(0, len(films), max(1, len(films) // PICTURED))[:PICTURED])
    sheet = pictured(model, some, 0.5 if threshold is None else threshold, device)
    return png(titled(sheet, f"{'SYNTHETIC films: ' if synthetic else ''}white: there, coloured: found"))


def _enlarged(sheet: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a sheet of films of `side` pixels so that each has at least 128: pixels repeated, not blurred."""
    times = -(-128 // side)
    return sheet.repeat(times, axis=0).repeat(times, axis=1)


def normals(cache: Cache, split: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return the rows of the normal films of a split."""
    return np.flatnonzero((split == name) & (cache.index["label"] == 0))
