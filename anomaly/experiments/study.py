"""What a search is, and what came of it: plain data that its other files share."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, JsonValue

from anomaly.models.search_space import Space
from anomaly.pipeline.options import Plan

STUDIES = Path("tune")
OBJECTIVES = ("auc", "loss")

Value = str | int | float | bool
"""Of a setting that is searched."""
State = Literal["complete", "pruned", "failed", "running"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    trials        finished ones, complete or pruned, of the study in all.
    jobs          processes, each with its share of the cores.
    objective     "loss" or "auc".
    by            the score whose ROC-AUC counts, for the objective "auc"; None: the model's first.
    least_epochs  epochs that Hyperband gives every trial; None: a 27th of those of a full training.
    folder        of the study; None: tune/<name>, or tune/<model>-<n>.
    name          of the study within its storage; None: that of its folder.
    storage       None: a file in the folder. Else postgresql://..., sqlite:///..., or the path of a journal on a disk
                  that machines share; `name` then says which of its studies they work on.
    """

    trials: int = 30
    jobs: int = 1
    objective: str = "loss"
    by: str | None = None
    least_epochs: int | None = None
    folder: Path | None = None
    name: str | None = None
    storage: str | None = None


@dataclass(frozen=True)
class Search:
    """All that a worker needs to know; it is sent to other processes."""

    plan: Plan
    space: Space
    folder: Path
    name: str
    storage: str | None  # None: the folder's own
    score: str | None  # whose ROC-AUC is the objective; None: the validation loss is
    trials: int
    epochs: int
    least_epochs: int
    keeps_best: bool  # which weights a run keeps: those of the lowest validation loss, or the last

    def run_folder(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / "trials" / str(number)


@dataclass(frozen=True)
class Trial:
    """What became of one set of settings."""

    number: int
    state: State
    value: float | None  # of the objective; of a pruned one, where it stood
    epochs: int
    seconds: float | None
    parameters: Mapping[str, Value]
    note: str


@dataclass(frozen=True)
class Outcome:
    """A study as it stands."""

    folder: Path
    name: str
    plan: Plan
    objective: str  # "loss", or "auc by <score>"
    trials: tuple[Trial, ...]
    importance: Mapping[str, float]  # setting -> share of the variation of the objective that it explains
    synthetic: bool
    space: Space

    def ranked(self) -> list[Trial]:
        """Return the complete trials, the best first, and then the pruned ones, those that came furthest first."""
        sign = 1 if self.objective == "loss" else -1

        def value(trial: Trial) -> float:
            return math.inf if trial.value is None else sign * trial.value

        complete = [t for t in self.trials if t.state == "complete"]
        pruned = [t for t in self.trials if t.state == "pruned"]
        return sorted(complete, key=lambda t: (value(t), t.number)) + sorted(
            pruned, key=lambda t: (-t.epochs, value(t), t.number)
        )

    @property
    def best(self) -> Trial | None:
        """The best trial, or None while none is complete."""
        first = self.ranked()[:1]
        return first[0] if first and first[0].state == "complete" else None

    def command(self) -> str | None:
        """Return the command that trains with the best settings."""
        return None if self.best is None else train_command(self.plan, self.best.parameters)

    def count(self, state: State) -> int:
        """Return the number of trials in a state."""
        return sum(t.state == state for t in self.trials)


class StudyFile(BaseModel):
    """study.json: what is searched, and with which fixed settings."""

    study: str
    storage: Literal["own", "given"]
    settings: dict[str, JsonValue]  # only compared with those of another search, key by key


class BestFile(BaseModel):
    """best.json: the best trial, and the command that trains with its settings."""

    study: str
    model: str
    objective: str
    value: float
    trial: int
    epochs: int
    parameters: dict[str, Value]
    run: str
    command: str
    importance: dict[str, float]
    trials: dict[State, int]
    synthetic: bool
    settings: dict[str, JsonValue]


def with_settings(plan: Plan, parameters: Mapping[str, Value]) -> Plan:
    """Return a plan with more settings."""
    return replace(plan, settings=(*plan.settings, *(f"{key}={value}" for key, value in parameters.items())))


def train_command(plan: Plan, parameters: Mapping[str, Value]) -> str:
    """Return the command that trains one run of a plan with these settings.

    >>> train_command(Plan("cae", Path("films.h5"), seed=3), {"beta1": 0.8})
    'anomaly train cae --cache films.h5 --set beta1=0.8 --seed 3'
    """
    chosen = with_settings(plan, parameters)
    words = ["anomaly", "train", plan.model, "--cache", str(plan.cache)]
    for option in fields(plan):
        value = getattr(chosen, option.name)
        if option.name == "settings":
            words += [word for setting in value for word in ("--set", setting)]
        elif option.name == "where":
            words += [word for condition in value for word in ("--where", condition)]
        elif option.name not in ("model", "cache") and value != option.default:
            words += [f"--{option.name.replace('_', '-')}", str(value)]
    return shlex.join(words)
