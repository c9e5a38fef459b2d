"""What a bench trains: models x variants x seeds on one cache."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from anomaly.data.splits import SplitRule, assign_chosen
from anomaly.experiments.bench_plan import PAPER_MODELS, TRAINING_FREE
from anomaly.models import find_detector, zoo
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import resolve, settings_of
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.where import LABEL_VALUES
from preprocessing.wording import did_you_mean


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    row: str  # a model, or "model/preset"
    variant: str
    seed: int
    preset: str

    @property
    def model(self) -> str:
        """The model alone."""
        return self.row.partition("/")[0]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.row.replace('/', '_')}-{self.variant}-{self.seed}"


class GridFile(BaseModel):
    """bench.json: a grid, and the content of its cache in place of its path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    settings: tuple[str, ...]
    split_by_seed: bool
    precision: str = "auto"  # that of a file without this key
    where: tuple[str, ...] = ()
    content_hash: str


@dataclass(frozen=True)
class Grid:
    """All that defines a bench."""

    cache: Path
    models: tuple[str, ...]  # "cae", or "classifier/mura" with a preset of its own
    variants: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    preset: str = "fast"
    settings: tuple[str, ...] = ()  # "key=value", for every model that has the setting
    split_by_seed: bool = False  # whether each seed has a patient split of its own, as in the paper's protocol
    device: str = "auto"
    precision: str = "auto"
    where: tuple[str, ...] = ()  # conditions that the films meet

    def cells(self) -> list[Cell]:
        """Return its cells: seed by seed, so that the table soon has all its rows, and within a seed by variant."""
        return [
            Cell(row, variant, seed, row.partition("/")[2] or _preset(row, self.preset))
            for seed in self.seeds
            for variant in self.variants
            for row in self.models
        ]

    def plan(self, cell: Cell) -> Plan:
        """Return what a cell trains."""
        known = settings_of(find_detector(cell.model))
        settings = tuple(text for text in self.settings if text.partition("=")[0] in known)
        return Plan(
            cell.model,
            self.cache,
            cell.variant,
            cell.preset,
            settings,
            seed=cell.seed,
            split_seed=cell.seed if self.split_by_seed else 0,
            device=self.device,
            precision=self.precision,
            where=self.where,
        )

    def check(self) -> None:
        """Raise InputError for what no cell can train, before anything is trained."""
        cache = Cache(self.cache)
        for variant in self.variants:
            cache.films(variant, np.arange(0))  # raises for an unknown variant
        rows = self.cells()[: len(self.models)]
        for text in self.settings:
            if not any(text.partition("=")[0] in settings_of(find_detector(row.model)) for row in rows):
                known = {name for row in rows for name in settings_of(find_detector(row.model))}
                hint = did_you_mean(text.partition("=")[0], known)
                raise InputError(f"--set {text!r}: none of {', '.join(self.models)} has this setting{hint}")
        rules: set[SplitRule] = set()
        for row in rows:
            find_detector(row.model)
            _, training = resolve(row.model, row.preset, self.plan(row).settings)
            rules.add(training.splits)
        for seed in self.seeds:
            reasons = [
                _untestable(cache, self.where, seed if self.split_by_seed else 0, rule) for rule in sorted(rules)
            ]
            if reason := reasons[0] if all(reasons) else None:
                raise InputError(reason)

    def to_file(self) -> GridFile:
        """Return it as bench.json holds it: the same films at another path make the same grid."""
        return GridFile(
            models=self.models,
            variants=self.variants,
            seeds=self.seeds,
            preset=self.preset,
            settings=self.settings,
            split_by_seed=self.split_by_seed,
            precision=self.precision,
            where=self.where,
            content_hash=Cache(self.cache).content_hash,
        )

    @classmethod
    def from_file(cls, file: GridFile, cache: Path) -> "Grid":
        """Return the grid of a bench.json, with its films at `cache`."""
        return cls(
            cache,
            file.models,
            file.variants,
            file.seeds,
            file.preset,
            file.settings,
            file.split_by_seed,
            precision=file.precision,
            where=file.where,
        )


def every_model(preset: str) -> tuple[str, ...]:
    """Return the rows of all models that have a preset, the paper's first, and of the one that needs no training."""
    order = {name: place for place, name in enumerate(PAPER_MODELS)}
    names = sorted(zoo(), key=lambda name: (order.get(name, len(order)), name))
    with_preset = {name for name in names if preset in find_detector(name).presets}
    if not with_preset:
        raise InputError(f"no model has a preset {preset!r}")
    return tuple(name for name in names if name in with_preset | {TRAINING_FREE})


def _preset(row: str, preset: str) -> str:
    """Return the preset of a row that names none; the training-free model has `standard` alone."""
    return preset if preset in find_detector(row).presets or row != TRAINING_FREE else "standard"


def _untestable(cache: Cache, where: tuple[str, ...], seed: int, rule: SplitRule) -> str | None:
    """Return why a split of a cache has no films of both classes to test on, or None."""
    index = cache.index
    try:
        split = assign_chosen(index, cache.where(where), seed=seed, rule=rule)
    except InputError as error:
        return f"{cache.path}: {error}"
    label = index["label"][split == "test"]
    for name, value in LABEL_VALUES.items():
        if not (label == value).any():
            return (
                f"{cache.path} has no {name} films to test on ({len(label)} films in its test split); a table needs "
                "films of both classes: give them in a MURA tree, class folders or a manifest"
            )
    return None
