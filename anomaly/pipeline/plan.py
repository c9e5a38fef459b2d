"""From what was asked for to a checked training, before a folder is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from anomaly.data.dataset import FilmSet, Targets
from anomaly.data.splits import LEAST_TRAINING_FILMS, SplitRule, assign_chosen, split_hash
from anomaly.localization.base import LocalizationModel
from anomaly.localization.predict import annotated_rows, split_by_patient
from anomaly.memory import free_memory
from anomaly.models import TOOLS, ZOO, find_model, zoo
from anomaly.models.base import Model, Settings
from anomaly.pipeline.options import CACHES, Plan
from anomaly.runs import CacheRecord, RunConfig, RunSettings, WeightsFile, sha256, versions
from anomaly.training.config import TrainConfig
from anomaly.training.device import choose_device, choose_precision
from preprocessing import InputError
from preprocessing.cache.reader import Cache, newest_cache
from preprocessing.cache.schema import split_variant
from preprocessing.where import LABELS
from preprocessing.wording import counted, did_you_mean

MEMORY_SHARE = 0.5
"""Of the memory that is free, what films may take; beyond that they are read as they are needed."""
LEARNS_FROM: dict[Targets, str] = {"none": "normal", "labels": "labelled", "boxes": "annotated", "masks": "annotated"}
"""What a model learns from, as an adjective of its films."""


# --- settings -------------------------------------------------------------------------------------------------------


def settings_of(model: type[Model]) -> dict[str, Literal["training", "model"]]:
    """Return the names of all settings of a model and its training, and whose they are."""
    names: dict[str, Literal["training", "model"]] = dict.fromkeys(TrainConfig.model_fields, "training")
    return names | dict.fromkeys(model.Config.model_fields, "model")


def resolve(name: str, preset: str, settings: Sequence[str]) -> tuple[Settings, TrainConfig]:
    """Return the model's and the training's settings: defaults, then the preset's, then each "key=value" in turn."""
    model = find_model(name)
    if not model.presets:
        raise InputError(f"{name} is not trained but made of finished runs: `anomaly {name} RUN RUN`")
    if preset not in model.presets:
        hint = did_you_mean(preset, model.presets)
        raise InputError(f"no preset {preset!r} of {name}; there are: {', '.join(sorted(model.presets))}{hint}")
    owners = settings_of(model)
    chosen: dict[str, Any] = dict(model.presets[preset])
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} is not key=value")
        if key not in owners:
            hint = did_you_mean(key, owners)
            raise InputError(f"no setting {key!r} of {name}; there are: {', '.join(sorted(owners))}{hint}")
        chosen[key] = value
    fields = TrainConfig.model_fields | model.Config.model_fields
    chosen |= {key: None for key, value in chosen.items() if value == "none" and fields[key].default is None}
    parts = {owner: {k: v for k, v in chosen.items() if owners[k] == owner} for owner in ("model", "training")}
    try:
        return model.Config(**parts["model"]), TrainConfig(**parts["training"])
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
    model: type[Model]
    model_config: Settings
    training: TrainConfig
    cache: Cache
    split: NDArray[Any]  # (N,) of each row of the cache; "" of those that --where leaves out
    usable: NDArray[np.int64]  # rows that the model may learn from
    config: RunConfig  # becomes run.json

    def films(self, split: str) -> FilmSet:
        """Return the films of a split that the model may learn from."""
        rows = self.usable[self.split[self.usable] == split]
        return FilmSet(
            self.cache, self.config.variant, rows, self.config.size, self.model.targets, self.training.sample
        )

    @cached_property
    def outgrown(self) -> str | None:
        """Why training and validation films can't be kept in memory, or None where they can; asked once.

        They may take half of what is free. Nets that prepare films always keep theirs: films with annotations are few.
        """
        free = free_memory()
        if free is None or prepares_films(self.model):
            return None
        needed = self.films("train").bytes + self.films("val").bytes
        if needed <= free * MEMORY_SHARE:
            return None
        return f"{needed / 1e9:.1f} GB of films stay in {self.cache.path}, as {free / 1e9:.1f} GB of memory are free"


def prepares_films(model: type[Model]) -> bool:
    """Whether a model is a net that prepares films, trained on boxes or masks, and no detector."""
    return model.targets in ("boxes", "masks")


def prepare(plan: Plan) -> Prepared:
    """Check a plan against its cache; what can't be trained is refused here, before a folder is made."""
    model = find_model(plan.model)
    model_config, training = resolve(plan.model, plan.preset, plan.settings)
    _check_settings(plan.model, model, training)
    cache = Cache(plan.cache or newest_cache(CACHES))
    if plan.where and prepares_films(model):
        raise InputError(f"{plan.model} is trained on every film with annotations; use `preprocess --where` instead")
    chosen = cache.where(plan.where)
    usable = usable_rows(cache, model.targets)
    usable = usable[chosen[usable]]
    variant = _variant(plan, model, cache)
    size = _size(plan.model, model, model_config, training, cache)
    _check_crop(plan.model, model, model_config, training.crop, size)
    _check_stages(model, model_config, training, size)
    weights = model.weights_file(model_config)
    if weights:
        model(model_config, size).load_pretrained(weights)  # weights that don't fit are refused before a folder is made
    rule, split = _split(plan, model, training, cache, chosen)
    device = choose_device(plan.device)
    index = cache.index
    counts = {name: int((split[usable] == name).sum()) for name in ("train", "val")}
    if model.targets == "labels":
        counts["abnormal"] = int((index["label"][usable[split[usable] == "train"]] == 1).sum())
    config = RunConfig(
        model=plan.model,
        preset=plan.preset,
        settings=RunSettings(model=model_config.model_dump(), training=training.model_dump()),
        size=size,
        variant=variant,
        seed=plan.seed,
        split_seed=plan.split_seed,
        split_rule=rule,
        split_hash=split_hash(index["path"], split),
        weights=WeightsFile(file=str(weights.absolute()), sha256=sha256(weights)) if weights else None,
        precision=choose_precision(plan.precision, device, pays=model.pays_in_bfloat16(model_config)),
        device=device.type,
        cache=cache_record(cache),
        versions=versions(None if plan.model in TOOLS else zoo()[plan.model].package),
        films=counts,
        where=list(plan.where),
    )
    prepared = Prepared(plan, model, model_config, training, cache, split, usable, config)
    _check_films(prepared)
    return prepared


def usable_rows(cache: Cache, targets: Targets) -> NDArray[np.int64]:
    """Return the rows of a cache that a model of these targets may learn from.

    A detector: normal films only, unless it learns from labels. A net that prepares films: those with what it is to
    learn, whatever their label; a cache without any is refused.
    """
    if targets == "boxes" or targets == "masks":
        return annotated_rows(cache, targets)
    label = cache.index["label"]
    return np.flatnonzero((label >= 0) if targets == "labels" else (label == 0))


def cache_record(cache: Cache) -> CacheRecord:
    """Return what a run notes of its cache."""
    return CacheRecord(
        path=str(cache.path.absolute()),
        content_hash=cache.content_hash,
        recipe=cache.recipe_json,
        recipe_digest=cache.recipe_digest,
        nets=cache.nets,
        dtype="uint8" if cache.dtype == np.uint8 else "uint16",
        source=cache.source,
        synthetic=cache.synthetic,
        command=cache.command,
    )


def default_variant(variants: Sequence[str]) -> str:
    """Return the variant of a cache that is taken unasked: the last of the paper's, or the last where it has none.

    >>> default_variant(["raw", "full-he", "full-contrast", "full-clahe"])
    'full-he'
    """
    papers = [variant for variant in variants if split_variant(variant)[1] in ("", "he")]
    return (papers or list(variants))[-1]


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_settings(name: str, model: type[Model], training: TrainConfig) -> None:
    """Refuse settings of the training that make no sense for a model."""
    if (training.noise or training.erase) and not model.reconstructs:
        raise InputError(f"{name} doesn't reconstruct, so it can't learn to denoise: leave out noise and erase")
    if training.crop and not model.takes_crops:
        raise InputError(f"{name} learns from whole films: leave out crop (models that take crops: {_crop_takers()})")
    if training.crops_per_film > 1 and not training.crop:
        raise InputError(f"crops_per_film={training.crops_per_film} needs the side of the crops: --set crop=128")
    if training.batch_size % training.crops_per_film:
        raise InputError(
            f"a batch of {training.batch_size} crops can't hold {training.crops_per_film} of each film: take a "
            "batch_size that is a multiple of crops_per_film"
        )
    if training.sample == "study" and model.targets != "labels":
        raise InputError(f"{name} is trained on single films: leave out sample=study")
    if not prepares_films(model):
        return
    if training.augmented_by == "device":
        raise InputError(
            f"{name} learns boxes or masks, which only imgaug transforms with the film: leave out augmented_by"
        )
    if model.targets == "boxes" and training.augmentation not in ("none", "upright"):
        raise InputError(
            f"augmentation {training.augmentation} mirrors films, which makes right hands left ones; {name} takes none "
            "or upright"
        )
    if training.splits != "paper":
        raise InputError(f"{name} is always split by patient, whatever the labels; leave out splits")


def _variant(plan: Plan, model: type[Model], cache: Cache) -> str:
    """Return the variant to train on; one that the cache lacks is refused, with those there are."""
    if prepares_films(model):
        own = cast("type[LocalizationModel]", model).variant
        if plan.variant not in (None, own):
            raise InputError(f"{plan.model} is trained on films of variant {own}; leave out --variant")
        variant = own
    else:
        variant = plan.variant or default_variant(cache.variants)
    cache.films(variant, np.arange(0))
    return variant


def _size(name: str, model: type[Model], config: Settings, training: TrainConfig, cache: Cache) -> int:
    """Return the side of the films in pixels; one that the cache or the model can't give is refused."""
    size = training.size or cache.size
    if size > cache.size:
        raise InputError(
            f"{cache.path} holds films of {cache.size} px, but {name} is set to {size}: `anomaly preprocess SOURCE "
            f"--size {size}` makes such films, --set size={cache.size} uses these"
        )
    if reason := model.check_size(config, size):
        raise InputError(
            f"{name} {reason}; {cache.path} has {cache.size} px: take --set size= or another `preprocess --size`"
        )
    return size


def _crop_takers() -> str:
    return ", ".join(name for name in sorted(ZOO) if find_model(name).takes_crops)


def _check_crop(name: str, model: type[Model], config: Settings, crop: int, size: int) -> None:
    """Refuse crops that are larger than the films, or of a side that the model can't take."""
    if crop > size:
        raise InputError(f"crops of {crop} px don't fit into films of {size} px: take --set crop={size} or less, or 0")
    if crop and (reason := model.check_size(config, crop)):
        raise InputError(f"{name} {reason}, and crop={crop} is none: take another --set crop=, or 0 for whole films")


def _split(
    plan: Plan, model: type[Model], training: TrainConfig, cache: Cache, chosen: NDArray[np.bool_]
) -> tuple[SplitRule, NDArray[Any]]:
    """Return the rule that split the patients, and the split of each row, (N,); "" of those that are not chosen."""
    index = cache.index
    rule: SplitRule = training.splits
    if (index["split"][chosen] != "").any():
        rule = "given"
    elif rule == "paper" and model.targets == "labels":
        rule = "paper, labelled"
    if prepares_films(model):
        return rule, split_by_patient(cache, plan.split_seed)
    try:
        return rule, assign_chosen(index, chosen, seed=plan.split_seed, rule=rule)
    except InputError as error:
        raise InputError(f"{cache.path}: {error}") from None


def _check_stages(model: type[Model], config: Settings, training: TrainConfig, size: int) -> None:
    if training.order == ["all"]:
        return
    with torch.device("meta"):  # shapes alone
        stages = ["all", *model(config, size).parts()]
    for name in training.order:
        if name not in stages:
            raise InputError(f"no stage {name!r} of this model; there are: {', '.join(stages)}")


def _check_films(prepared: Prepared) -> None:
    """Refuse a cache with too few films to learn from, or with one class only where labels are learnt."""
    counts, label, path = prepared.config.films, prepared.cache.index["label"], prepared.cache.path
    if counts["train"] < LEAST_TRAINING_FILMS or counts["val"] < 1:
        contents = ", ".join(f"{int((label == value).sum())} {name}" for value, name in LABELS.items())
        raise InputError(
            f"{path} ({contents}) has {counts['train']} {LEARNS_FROM[prepared.model.targets]} films to train on and "
            f"{counts['val']} to validate with; at least {LEAST_TRAINING_FILMS} and 1 are needed: prepare more films"
        )
    if prepared.model.targets != "labels":
        return
    for split, use in (("train", "train on"), ("val", "validate with")):
        labels = prepared.films(split).label
        for value in (0, 1):
            if not (labels == value).any():
                raise InputError(
                    f"{path} has {counted(len(labels), 'labelled film')} to {use} and none of them is "
                    f"{LABELS[value]}; {prepared.plan.model} learns from both classes: prepare films of both, or train "
                    "a detector that needs normal films alone, `anomaly train cae`"
                )
