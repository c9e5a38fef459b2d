"""From what was asked for to a checked training plan, before a folder is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from anomaly import runs
from anomaly.data.dataset import Films, Sample, StoredFilms, bytes_of, load_films
from anomaly.data.splits import LABELS, LEAST_TRAINING_FILMS, SplitRule, assign_splits, split_hash
from anomaly.localization.base import LocalizationModel
from anomaly.localization.predict import annotated_rows, split_by_patient
from anomaly.memory import free_memory
from anomaly.models import TOOLS, find_model, zoo
from anomaly.models.base import Detector, Model, Settings
from anomaly.models.reconstructor import Reconstructor
from anomaly.training.config import TrainConfig
from anomaly.training.device import choose_device, choose_precision
from preprocessing import InputError
from preprocessing.schema import Cache, split_variant

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
        if issubclass(self.model, LocalizationModel):
            usable = annotated_rows(self.cache, self.model.targets)
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
        learns = self.model.targets if issubclass(self.model, LocalizationModel) else None
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
        if free is None or issubclass(self.model, LocalizationModel):
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
    if training.augmented_by == "device" and issubclass(kind, LocalizationModel):
        raise InputError(f"{plan.model} learns boxes or masks, which imgaug alone moves too: leave out augmented_by")
    if training.sample == "study" and not learns_labels(kind):
        raise InputError(f"{plan.model} learns from each film by itself: leave out sample=study")
    cache = Cache(plan.cache)
    if (
        issubclass(kind, LocalizationModel)
        and kind.targets == "boxes"
        and training.augmentation not in ("none", "upright")
    ):
        raise InputError(
            f"augmentation {training.augmentation} mirrors films, which makes right hands left ones; "
            f"{plan.model} takes none or upright"
        )
    if issubclass(kind, LocalizationModel):
        annotated_rows(cache, kind.targets)  # a cache without what is to be learnt is answered before its size
    variant = plan.variant or (kind.variant if issubclass(kind, LocalizationModel) else default_variant(cache.variants))
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
        kind(model_config, size).load_pretrained(weights)  # weights that don't fit are refused before a folder is made
    index = cache.index
    if issubclass(kind, LocalizationModel) and training.splits != "paper":
        raise InputError(f"{plan.model} is split by patient whatever the labels; leave out splits")
    rule: SplitRule = training.splits
    if (index["split"] != "").any():
        rule = "given"
    elif rule == "paper" and learns_labels(kind):
        rule = "paper, labelled"
    if issubclass(kind, LocalizationModel):
        if variant != kind.variant:
            raise InputError(f"{plan.model} finds things on films of variant {kind.variant}; leave --variant out")
        split = split_by_patient(cache, plan.split_seed)
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
    which = "annotated" if issubclass(kind, LocalizationModel) else "labelled" if learns_labels(kind) else "normal"
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
