"""Hyper-parameter search: many short trainings, stopped early where they fall behind, the best of them kept.

Optuna's TPE (Bergstra et al. 2011) draws settings from the `space` that a model states; Hyperband (Li et al. 2018), as
in the source this follows, gives each trial some epochs and goes on with the best third of them. What is searched for
is decided on the validation split alone, never on the test split:

    loss   the validation loss of the weights that a run keeps, the least wins. For a detector that is the loss on
           validation normals. It compares only trainings whose loss is the same yardstick, so a space holds no
           setting that goes into the validation loss itself, such as the weight of a VAE's KL term. And it says how
           well normal films are fitted, not how well abnormal ones are told from them.
    auc    the ROC-AUC over the labelled films of the validation split, the greatest wins. It needs abnormal films
           there, and no trial is stopped early: it is known only once a training is over, and the loss on the way to
           it is no sign of it. The winner's own ROC-AUC on validation is too good by the search: report that of the
           test split.

A study has a folder:

    study.json     what is searched, and with which fixed settings; written first
    study.sqlite3  every trial, as Optuna keeps it (unless --storage names another place)
    trials/<n>/    the run folder of trial n, one like any other: the best can be scored as it stands. A trial that
                   was stopped keeps its history.csv and no weights
    trials.csv     a line a trial
    best.json      the best trial, and the command that trains with its settings
    tune.png       the values of all trials, and against each setting
    workers/       a locked file for each living worker of this machine

**Whoever dies, nothing is lost.** A trial belongs to a worker. A worker of this machine lives as long as the kernel
holds its lock; one of another machine is given up when its heartbeat in the storage is older than `LOST_SECONDS`, so
the clocks of machines that share a study must agree to a minute. A trial whose worker is gone is marked failed, and its
settings are queued again; where its folder is at hand, the new trial goes on from its last checkpoint.
"""

import fcntl
import io
import json
import math
import multiprocessing
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from anomaly import runs
from anomaly.console import Advance, progress, warn
from anomaly.evaluation.predict import View, score
from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import markdown
from anomaly.memory import share_memory
from anomaly.models import TOOLS, find_model, zoo
from anomaly.models.base import Detector, Model
from anomaly.models.search_space import Choice, Range, Space
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_model, run_view
from anomaly.pipeline.plan import Plan, prepare
from anomaly.training.config import EpochReport, TrainConfig
from anomaly.training.device import choose_device
from anomaly.training.trainer import history_csv
from preprocessing import InputError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked


TUNE = Path("tune")
OBJECTIVES = ("auc", "loss")
REDUCTION = 3
"""Hyperband goes on with one trial in so many."""
HEARTBEAT_SECONDS = 20.0
LOST_SECONDS = 120.0
"""A worker of another machine that has not been heard of for so long is gone."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
"""Time for a worker to give its trial back when the others stop."""
MOST_DEATHS = 3
"""So many workers that die one after another, with no trial finished in between, end the search."""
NOT_FINITE = "is not finite"
"""What training and scoring say where numbers overflowed: an outcome of a trial's settings, no fault of the study."""
SHOWN = 10
"""Trials in the table."""


@dataclass(frozen=True)
class Training:
    """How runs of a kind of model come about; functions of a module, which other processes find by their name.

    The default trains detectors. A net of the preprocessing brings functions of the same shapes.
    """

    prepare: Callable[[Any], Any] = prepare
    """Plan -> what has `.config`, which becomes run.json, and `.cache`."""
    continue_or_create: Callable[..., runs.Run] = continue_or_create
    """(prepared, folder, *, resume) -> its run."""
    fit: Callable[..., runs.Run] = fit
    """(prepared, run, *, workers, on_epoch) -> the run, finished; `on_epoch` takes an `EpochReport`."""


@dataclass(frozen=True)
class Trial:
    """What became of one set of settings."""

    number: int
    state: Literal["complete", "pruned", "failed", "running"]
    value: float | None  # of the objective; of a pruned one, where it stood
    epochs: int
    seconds: float | None
    parameters: Mapping[str, Any]
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
    space: Space = field(default_factory=dict)

    def ranked(self) -> list[Trial]:
        """Return the complete trials, the best first, and then the pruned ones, those that came furthest first."""
        sign = 1 if self.objective == "loss" else -1
        done = [t for t in self.trials if t.state == "complete"]
        cut = [t for t in self.trials if t.state == "pruned"]
        return sorted(done, key=lambda t: (sign * _known(t), t.number)) + sorted(
            cut, key=lambda t: (-t.epochs, math.inf if t.value is None else sign * t.value, t.number)
        )

    @property
    def best(self) -> Trial | None:
        """The best trial, or None while none is complete."""
        first = self.ranked()[:1]
        return first[0] if first and first[0].state == "complete" else None

    def command(self) -> str | None:
        """Return what trains with the best settings."""
        return None if self.best is None else train_command(self.plan, self.best.parameters)


def _known(trial: Trial) -> float:
    assert trial.value is not None  # a complete trial has one
    return trial.value


# --- what is searched -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """All that a worker has to know; travels to other processes."""

    plan: Plan
    space: Space
    training: Training
    folder: Path
    name: str
    storage: str | None  # none: the folder's own
    objective: Literal["loss", "auc"]
    by: str | None  # the score, where the objective is auc
    trials: int
    epochs: int
    least_epochs: int
    keeps_best: bool  # which weights a run keeps: those of the lowest validation loss, or the last


def tune(
    model: type[Model],
    plan: Plan,
    *,
    trials: int = 30,
    jobs: int = 1,
    objective: str = "loss",
    by: str | None = None,
    least_epochs: int | None = None,
    out: Path | None = None,
    name: str | None = None,
    storage: str | None = None,
    space: Space | None = None,
    training: Training | None = None,
) -> Outcome:
    """Search until `trials` of the study are finished, complete or pruned, and write what came out of it.

    The same call goes on with the study that it began, also beside another process that is at it, and runs what is
    missing. Settings that the plan names itself are fixed and not searched.

    model         whose `space` is searched, unless `space` is another.
    plan          what all trials share: cache, variant, preset, fixed settings, seeds. Its seed decides the draws, too.
    jobs          processes, each with its share of the cores.
    by            the score whose ROC-AUC counts, for the objective "auc"; none: the model's first.
    least_epochs  epochs that Hyperband gives every trial; none: a 27th of those of a full training.
    out           the study's folder; none: tune/<name>, or tune/<model>-<n>.
    name          of the study within its storage; none: as its folder.
    storage       none: a file in the folder. Else postgresql://..., sqlite:///..., or the path of a journal on a disk
                  that machines share; with it, `name` says which study they work on.
    training      how its runs come about; none: as those of detectors.
    """
    _library()
    training = training or Training()
    if objective not in OBJECTIVES:
        raise InputError(f"no objective {objective!r}; there are: {', '.join(OBJECTIVES)}")
    if trials < 1 or jobs < 1:
        raise InputError(f"--trials {trials} --jobs {jobs}: a search has at least one of each")
    searched = _searched(plan, model.space if space is None else space)
    prepared = training.prepare(plan)
    for key, how in searched.items():  # a value that can't be trained ends no search half way
        for bound in how.bounds():
            training.prepare(_with(plan, {key: bound}))
    score_name = _score_name(model, prepared, by) if objective == "auc" else None
    if by and objective == "loss":
        raise InputError("--by goes with --objective auc; leave it out")
    config = prepared.config
    told = config.settings.training
    most = TrainConfig(**told).most_epochs
    least = least_epochs or max(1, most // REDUCTION**3)
    if least > most:
        raise InputError(f"--least-epochs {least} is more than the {most} epochs of a full training")
    shared = {key: value for key, value in config.items() if key not in ("cache", "device", "versions", "settings")}
    settings = {
        **shared,
        "cache": {"content_hash": prepared.cache.content_hash},
        "settings": {
            owner: {key: value for key, value in values.items() if key not in searched}
            for owner, values in config.settings.items()
        },
        "space": {key: asdict(how) for key, how in searched.items()},
        "objective": objective if score_name is None else f"auc by {score_name}",
        "least_epochs": least,
    }
    settings = json.loads(runs.to_json(settings))  # as it is read again
    folder, name = _place(plan.model, out, name, storage, settings)
    task = _Task(
        plan=plan,
        space=searched,
        training=training,
        folder=folder,
        name=name,
        storage=storage,
        objective="auc" if objective == "auc" else "loss",
        by=score_name,
        trials=trials,
        epochs=most,
        least_epochs=least,
        keeps_best=told["keep"] == "best",
    )
    worker = _Worker(task)
    _agree(task, worker.study, settings)
    for number in worker.return_lost():
        warn(f"trial {number} was interrupted; its settings are queued again")
    done = _count(worker.study)
    if done < trials:
        with progress("tuning", trials, "trials", start=done) as advance:
            display = _Display(task, worker.study, advance, done)
            worker.on_change = display.refresh
            if jobs == 1:
                worker.work()
            else:
                _supervise(task, min(jobs, trials - done), display)
    outcome = Outcome(
        folder=folder,
        name=name,
        plan=plan,
        objective=settings["objective"],
        trials=_rows(worker.study),
        importance=_importance(worker.study),
        synthetic=bool(prepared.cache.synthetic),
        space=searched,
    )
    write(outcome, settings)
    return outcome


def tunable() -> list[str]:
    """Return the names of the models that state a space."""
    found = []
    for name in sorted([*zoo(), *TOOLS]):
        with suppress(InputError):  # a broken model of another package is no reason to name none
            if find_model(name).space:
                found.append(name)
    return found


def train_command(plan: Plan, parameters: Mapping[str, Any]) -> str:
    """Return the command that trains one run of a plan with these settings.

    >>> train_command(Plan("cae", Path("films.h5"), seed=3), {"beta1": 0.8})
    'anomaly train cae --cache films.h5 --set beta1=0.8 --seed 3'
    """
    chosen = _with(plan, parameters)
    words = ["anomaly", "train", plan.model, "--cache", str(plan.cache)]
    for one in fields(plan):
        value = getattr(chosen, one.name)
        if one.name == "settings":
            words += [word for setting in value for word in ("--set", setting)]
        elif one.name not in ("model", "cache") and value != one.default:
            words += [f"--{one.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _with(plan: Plan, parameters: Mapping[str, Any]) -> Plan:
    return replace(plan, settings=(*plan.settings, *(f"{key}={value}" for key, value in parameters.items())))


def _searched(plan: Plan, space: Space) -> Space:
    """Return what is left of a space beside the settings that the plan fixes."""
    if not space:
        raise InputError(f"{plan.model} has nothing to search; there are: {', '.join(tunable())}")
    fixed = {text.partition("=")[0] for text in plan.settings}
    left = {key: how for key, how in space.items() if key not in fixed}
    if not left:
        raise InputError(f"every setting that is searched for {plan.model} is fixed by --set; leave one of them out")
    return left


def _score_name(model: type[Model], prepared: Any, by: str | None) -> str:
    """Return the score whose ROC-AUC is the objective; a source that can't tell is refused."""
    if not issubclass(model, Detector):
        raise InputError(f"{prepared.config.model} scores no films, so it has no ROC-AUC; take --objective loss")
    if by is not None and by not in model.score_names:
        raise InputError(
            f"no score {by!r} of {prepared.config.model}; there are: {', '.join(sorted(model.score_names))}"
        )
    label = prepared.cache.index["label"][prepared.split == "val"]
    counts = {"normal": int((label == 0).sum()), "abnormal": int((label == 1).sum())}
    if not all(counts.values()):
        there = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(
            f"the validation split of {prepared.cache.path} has {there} films, and a ROC-AUC needs both; "
            "take --objective loss"
        )
    return by or model.score_names[0]


def _place(
    model: str, out: Path | None, name: str | None, storage: str | None, settings: Mapping[str, Any]
) -> tuple[Path, str]:
    """Return folder and name of the study: a new one, or that which the same command began."""
    if storage is not None and name is None:
        raise InputError("--storage goes with --study NAME: which of its studies, new or begun")
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"--study {name!r} names a folder, too; take letters, digits, - and _")
    if out is None and name is None:
        for path in reversed(runs.numbered(model, TUNE)):
            known = _told(path)
            if known and known["storage"] == "own" and not runs.differences(known["settings"], settings):
                return path, known["study"]
    folder = out or (TUNE / name if name else runs.next_path(model, TUNE))
    known = _told(folder)
    name = name or (str(known["study"]) if known else folder.resolve().name)
    told = {"study": name, "storage": "own" if storage is None else "given", "settings": settings}
    if known is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is no study; take another --out")
        runs.write_atomic(folder / "study.json", runs.to_json(told))
    elif changed := runs.differences(known, told):
        raise _other(folder, [text.removeprefix("settings.") for text in changed])
    return folder, name


def _told(folder: Path) -> dict[str, Any] | None:
    """Return the study.json of a folder, or None where there is none."""
    path = folder / "study.json"
    if not path.is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        assert {"study", "storage", "settings"} <= set(told)
    except (ValueError, AssertionError, TypeError):
        raise InputError(f"{path} is damaged; take another --out, or delete {folder}") from None
    return told


def _other(folder: Path, changed: Sequence[str]) -> InputError:
    return InputError(
        f"the study {folder} was started with other settings: {'; '.join(changed)}; give those, or another --study"
    )


# --- the storage ----------------------------------------------------------------------------------------------------


def _library() -> Any:
    """Return optuna, quiet: a study says what happens by itself."""
    try:
        import optuna
    except ImportError:
        raise InputError("`anomaly tune` needs optuna: pip install 'xray-anomaly[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _open(task: _Task) -> "Study":
    """Return the study, made where there is none yet."""
    optuna = _library()
    where = task.storage
    try:
        if where is None:
            from sqlalchemy import URL

            path = task.folder / "study.sqlite3"
            where = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
        if "://" in where:
            # Beside other processes a write to SQLite may have to wait for its turn.
            patience = {"connect_args": {"timeout": 60}} if where.startswith("sqlite") else {}
            storage = optuna.storages.RDBStorage(where, engine_kwargs=patience)
        else:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(where))
        study: Study = optuna.create_study(
            storage=storage,
            study_name=task.name,
            direction="minimize" if task.objective == "loss" else "maximize",
            load_if_exists=True,
        )
    except Exception as error:  # every database has errors of its own
        # A password within the address must not come out with the reason.
        reason = " ".join(str(error).replace(where or "", "the address").split())[:200]
        place = f"{task.folder}/study.sqlite3" if task.storage is None else "--storage"
        raise InputError(f"{place} can't be opened ({type(error).__name__}: {reason}); name another") from None
    return study


def _agree(task: _Task, study: "Study", settings: Mapping[str, Any]) -> None:
    """Refuse a study that searches for something else."""
    known = study.user_attrs.get("settings")
    if known is None and study.get_trials(deepcopy=False):
        raise InputError(f"the study {task.name} of --storage is not one of `anomaly tune`; take another --study")
    if known is None:
        study.set_user_attr("settings", settings)
    elif changed := runs.differences(known, settings):
        raise _other(task.folder, changed)


def _finished(trial: "FrozenTrial") -> bool:
    return trial.state.name in ("COMPLETE", "PRUNED")


def _count(study: "Study") -> int:
    return sum(_finished(trial) for trial in study.get_trials(deepcopy=False))


def _epochs(trial: "FrozenTrial") -> int:
    return trial.last_step or int(trial.user_attrs.get("epochs", 0))


def _seconds(trial: "FrozenTrial") -> float | None:
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return (trial.datetime_complete - trial.datetime_start).total_seconds()


def _rows(study: "Study") -> tuple[Trial, ...]:
    states: dict[str, Literal["complete", "pruned", "failed", "running"]] = {
        "COMPLETE": "complete",
        "PRUNED": "pruned",
        "FAIL": "failed",
        "RUNNING": "running",
    }
    return tuple(
        Trial(
            t.number,
            states[t.state.name],
            t.value if _finished(t) else None,
            _epochs(t),
            _seconds(t),
            dict(t.params),
            str(t.user_attrs.get("note", "interrupted, queued again" if t.state.name == "FAIL" else "")),
        )
        for t in study.get_trials(deepcopy=False)
        if t.state.name in states
    )


def _importance(study: "Study") -> dict[str, float]:
    """Return the share of each setting by PED-ANOVA (Watanabe et al. 2023), {} where there is too little to tell."""
    done = [t.value for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if len(done) < 4 or len(set(done)) < 2:
        return {}
    shares: dict[str, float] = _library().importance.get_param_importances(study)
    return shares


# --- a worker -------------------------------------------------------------------------------------------------------


class _Pruned(Exception):
    """The trial has fallen behind."""


class _TakenAway(Exception):
    """The trial was given up for lost while this process was at it: a machine that slept, or a storage that hung."""


class _Stopped(BaseException):
    """The process was told to end, or the one that started it is gone."""


class _Worker:
    """One process at a study: draws settings, trains, tells, until enough trials are finished."""

    def __init__(self, task: _Task, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called after every epoch, and while there is nothing to do but to wait for others."""
        self.task, self.on_change = task, on_change
        self.host = socket.gethostname()
        self.id = f"{self.host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.study = _open(task)
        optuna = _library()
        self.running, self.failed = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.FAIL
        self.pruned: Any = optuna.trial.TrialState.PRUNED
        self.undecided = optuna.pruners.NopPruner()
        self.hyperband = self.undecided
        if task.objective == "loss":
            self.hyperband = optuna.pruners.HyperbandPruner(task.least_epochs, task.epochs, REDUCTION)

    def work(self) -> None:
        """Run trials until the study has enough."""
        with self._living():
            while (trial := self._next()) is not None:
                self._run(trial)

    # --- whose trial it is ---

    @contextmanager
    def _living(self) -> Iterator[None]:
        """Hold the lock that says that this worker is alive: the kernel lets it go with the process."""
        path = self._lock(self.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _lock(self, worker: str) -> Path:
        return runs.inside(self.task.folder, f"workers/{worker}.lock")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the only process of this machine that counts and takes trials."""
        with (self.task.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lives(self, trial: "FrozenTrial") -> bool:
        """Whether some worker is at a running trial. Asked within a turn: a worker marks its trial within one, too."""
        worker = trial.user_attrs.get("worker")
        if worker == self.id or (worker is None and self.task.storage is None):
            return False
        here = isinstance(worker, str) and worker.rsplit("-", 2)[0] == self.host
        if here and (path := self._lock(str(worker))).is_file():
            with path.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
            path.unlink(missing_ok=True)
            return False
        if here and self.task.storage is None:
            return False
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return bool(time.time() - float(trial.user_attrs.get("seen", began)) < LOST_SECONDS)

    def return_lost(self) -> list[int]:
        """Queue the settings of trials again whose worker is gone, and return the trials' numbers."""
        with self._turn():
            return self._return_lost()

    def _return_lost(self) -> list[int]:
        lost = [t for t in self.study.get_trials(deepcopy=False, states=(self.running,)) if not self._lives(t)]
        return [t.number for t in lost if self._give_back(t)]

    def _give_back(self, trial: "FrozenTrial") -> bool:
        """Mark a trial failed and queue its settings again; False where another process has."""
        try:
            self.study.tell(trial.number, state=self.failed)
        except ValueError:  # it isn't running any more
            return False
        if set(trial.params) == set(self.task.space):  # else it was lost before it was drawn
            began = self._path(trial.number).is_dir()
            origin = trial.number if began else trial.user_attrs.get("origin", trial.number)
            self.study.enqueue_trial(dict(trial.params), user_attrs={"origin": origin})
        return True

    def _next(self) -> "Asked | None":
        """Return a trial to run; None when enough are finished."""
        while True:
            with self._turn():
                self._return_lost()
                there = self.study.get_trials(deepcopy=False)
                finished = sum(map(_finished, there))
                if finished >= self.task.trials:
                    return None
                if finished + sum(t.state == self.running for t in there) < self.task.trials:
                    trial = self._ask(len(there))
                    if trial is not None:
                        return trial
            self.on_change()
            time.sleep(POLL_SECONDS)

    def _ask(self, count: int) -> "Asked | None":
        # A sampler of its own for every trial, so that a study that was interrupted draws what it would have drawn;
        # several machines may see the same count at once, and must not draw the same.
        machine = [] if self.task.storage is None else [zlib.crc32(self.id.encode())]
        drawn = np.random.SeedSequence([self.task.plan.seed, count, *machine]).generate_state(1)[0]
        self.study.sampler = _library().samplers.TPESampler(seed=int(drawn))
        # Under Hyperband's own eyes the sampler would see the trials of one bracket only: too few to learn from.
        self.study.pruner = self.undecided
        trial = self.study.ask()
        self.study.pruner = self.hyperband
        trial.set_user_attr("worker", self.id)
        trial.set_user_attr("seen", time.time())
        ahead = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number]
        if sum(_finished(t) or t.state == self.running for t in ahead) >= self.task.trials:
            self._settings(trial)  # another machine was quicker: it is kept for when more are wanted
            self._give_back(self.study.get_trials(deepcopy=False)[trial.number])
            return None
        return trial

    # --- one trial ---

    def _path(self, number: int) -> Path:
        return self.task.folder / "trials" / str(number)

    def _settings(self, trial: "Asked") -> dict[str, Any]:
        return {key: _suggest(trial, key, how) for key, how in self.task.space.items()}

    def _run(self, trial: "Asked") -> None:
        """Train with a trial's settings and tell what came of it."""
        note = ""
        try:
            with _heartbeat(trial):
                value: float | None = self._train(trial)
        except _TakenAway:
            shutil.rmtree(self._path(trial.number), ignore_errors=True)
            return
        except _Pruned:
            value = None
        except BaseException as error:
            note = _outcome(error)
            if not note:
                with self._turn():
                    self._give_back(self.study.get_trials(deepcopy=False)[trial.number])
                raise
            value = None
        with suppress(ValueError):  # taken away in the last moment
            if note:
                trial.set_user_attr("note", note)
            if value is None:
                (self._path(trial.number) / "checkpoint.safetensors").unlink(missing_ok=True)
                self.study.tell(trial, state=self.pruned)
            else:
                self.study.tell(trial, value)
        self.on_change()

    def _train(self, trial: "Asked") -> float:
        """Return the value of a finished run; raises _Pruned where the trial falls behind."""
        task = self.task
        prepared = task.training.prepare(_with(task.plan, self._settings(trial)))
        run = self._folder(trial, prepared)
        history: list[dict[str, Any]] = []

        def see(line: dict[str, Any], *, judged: bool) -> None:
            history.append(line)
            if _orphaned():
                raise _Stopped
            self._report(trial, int(line["epoch"]), _worth(history, keeps_best=task.keeps_best))
            # Who has got to the last epoch is finished, whatever place it takes.
            if judged and line["epoch"] < task.epochs and trial.should_prune():
                run.write("history.csv", history_csv(history))
                raise _Pruned

        def on_epoch(report: EpochReport) -> None:
            see({"epoch": report.epoch, **report.figures}, judged=True)
            self.on_change()

        for line in _earlier(run):
            see(line, judged=not run.finished)
        task.training.fit(prepared, run, workers=0, on_epoch=on_epoch)
        if task.by is not None:
            return _roc_auc(run, task.by, choose_device(task.plan.device))
        return _worth(_earlier(run), keeps_best=task.keeps_best)

    def _report(self, trial: "Asked", epoch: int, value: float) -> None:
        gone = _library().exceptions.UpdateFinishedTrialError
        try:
            if self.task.objective == "loss":
                trial.report(value, epoch)
            else:
                trial.set_user_attr("epochs", epoch)
        except gone:
            raise _TakenAway from None

    def _folder(self, trial: "Asked", prepared: Any) -> runs.Run:
        """Return the trial's run folder: that of the trial whose place it takes, if that got anywhere."""
        path, make = self._path(trial.number), self.task.training.continue_or_create
        origin = trial.user_attrs.get("origin")
        old = None if origin is None else self._path(int(origin))
        if old and (old / "run.json").is_file() and not path.exists() and not runs.Run(old).busy():
            old.rename(path)
            try:
                return make(prepared, path, resume=True)
            except InputError:  # another version of a library, say: what it trained is not what would be trained now
                shutil.rmtree(path)
        return make(prepared, path, resume=False)


def _suggest(trial: "Asked", key: str, how: Range | Choice) -> Any:
    if isinstance(how, Choice):
        return trial.suggest_categorical(key, how.options)
    if how.integer:
        return trial.suggest_int(key, int(how.low), int(how.high), log=how.log)
    return trial.suggest_float(key, how.low, how.high, log=how.log)


def _outcome(error: BaseException) -> str:
    """Return what an error says of a trial's settings, or "" where it says something of the program or machine."""
    if isinstance(error, InputError) and NOT_FINITE in str(error):
        return "diverged"
    if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return "not enough memory"
    return ""


def _earlier(run: runs.Run) -> list[dict[str, Any]]:
    """Return the history of a run, of an unfinished one up to its checkpoint: a mapping an epoch."""
    checkpoint = run.path / "checkpoint.safetensors"
    if run.finished:
        return [{name: float(value) for name, value in line.items()} for line in run.history()]
    return list(runs.checkpoint_state(checkpoint)["history"]) if checkpoint.is_file() else []


def _worth(history: Sequence[Mapping[str, Any]], *, keeps_best: bool) -> float:
    """Return the validation loss of the weights that a run of this history keeps."""
    losses = [float(line["validation"]) for line in history]
    return min(losses) if keeps_best else losses[-1]


def _roc_auc(run: runs.Run, by: str, device: torch.device) -> float:
    """Return the ROC-AUC of a score over the labelled films of the validation split."""
    cache, split = run_view(run)
    label = cache.index["label"]
    rows = np.flatnonzero((split == "val") & (label >= 0))
    view = View(cache, run.config.variant, rows, run.config.size)
    return roc_auc(label[rows], score(open_model(run, device), view, device)[by])


@contextmanager
def _heartbeat(trial: "Asked") -> Iterator[None]:
    """Say every so often that the trial is being worked at."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with suppress(Exception):  # a storage that is gone for a moment ends no training
                trial.set_user_attr("seen", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- several processes ----------------------------------------------------------------------------------------------


class _Display:
    """Trials done, best so far, remaining time."""

    def __init__(self, task: _Task, study: "Study", advance: Advance, done: int) -> None:
        self.task, self.study, self.advance, self.done = task, study, advance, done

    def refresh(self) -> None:
        """Show how the study stands."""
        trials = self.study.get_trials(deepcopy=False)
        seconds = _seconds_left(trials, self.task, datetime.now())
        if seconds is None:  # nothing to reckon with yet
            return
        done = sum(map(_finished, trials))
        notes = []
        complete = [t for t in trials if t.state.name == "COMPLETE"]
        if complete:
            best = (min if self.task.objective == "loss" else max)(complete, key=lambda t: t.value or 0.0)
            notes.append(f"best {best.value:.5g} (trial {best.number})")
        notes += [f"trial {t.number} epoch {_epochs(t)}" for t in trials if t.state.name == "RUNNING"][:4]
        self.advance(done - self.done, "  ".join(notes), seconds)
        self.done = done


def _seconds_left(trials: "Sequence[FrozenTrial]", task: _Task, now: datetime) -> float | None:
    """Return how long the missing trials will take: as long as those so far; None before the first epoch."""
    known = [seconds for t in trials if _finished(t) and (seconds := _seconds(t)) is not None]
    spent = [
        ((now - t.datetime_start).total_seconds(), _epochs(t))
        for t in trials
        if t.state.name == "RUNNING" and t.datetime_start
    ]
    if not known:
        known = [seconds / epochs * task.epochs for seconds, epochs in spent if epochs]
    if not known:
        return None
    each = sum(known) / len(known)
    missing = task.trials - sum(map(_finished, trials))
    return max(0.0, missing * each - sum(min(each, seconds) for seconds, _ in spent)) / max(1, len(spent))


def _supervise(task: _Task, jobs: int, display: _Display) -> None:
    """Keep `jobs` workers at the study until it has enough trials; one that dies is replaced."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs if hasattr(os, "sched_getaffinity") else 1)
    children: dict[BaseProcess, Connection] = {}
    deaths, done = 0, display.done
    try:
        for _ in range(jobs):
            _start(task, jobs, threads, children)
        while children:
            wait([child.sentinel for child in children], timeout=POLL_SECONDS)
            display.refresh()
            for child in [child for child in children if child.exitcode is not None]:
                said = children.pop(child)
                if child.exitcode == 0:
                    continue
                _raise_from(said)
                deaths, done = (deaths + 1 if display.done == done else 1), display.done
                if deaths >= MOST_DEATHS:
                    raise InputError(
                        f"{deaths} workers died one after another, the last by {_cause(child)}; if memory is short, "
                        "take fewer --jobs or a lower --set size=; the same command goes on"
                    )
                warn(f"a worker died by {_cause(child)}; another goes on with its trial")
                _start(task, jobs, threads, children)
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.join(GRACE_SECONDS)
            if child.is_alive():
                child.kill()
                child.join()


def _cause(child: BaseProcess) -> str:
    code = child.exitcode or 0
    return f"signal {-code}" if code < 0 else f"status {code}"


def _start(task: _Task, jobs: int, threads: int, children: dict[BaseProcess, Connection]) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share the database's connection, and CUDA fails in it
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(task, jobs, threads, writer))
    # Ctrl-C goes to every process of a terminal: the workers leave it to this one, from their first moment on.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        child.start()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        if limit is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = limit
    writer.close()
    children[child] = reader


def _work(task: _Task, jobs: int, threads: int, say: Connection) -> None:
    """Be one of `jobs` workers, in a process of its own."""
    share_memory(jobs)

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Stopped

    signal.signal(signal.SIGTERM, stop)
    torch.set_num_threads(threads)
    try:
        _Worker(task, _leave_if_orphaned).work()
    except _Stopped:
        pass
    except Exception as error:
        known = isinstance(error, (InputError, OSError))
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        say.send((known, text, traceback.format_exc()))
        sys.exit(1)


def _orphaned() -> bool:
    """Whether this is a worker whose starter is gone."""
    starter = multiprocessing.parent_process()
    return starter is not None and not starter.is_alive()


def _leave_if_orphaned() -> None:
    if _orphaned():
        raise _Stopped


def _raise_from(said: Connection) -> None:
    """Raise what a worker said before it ended; one that was killed said nothing."""
    try:
        known, text, where = said.recv() if said.poll() else (False, "", "")
    except EOFError:
        return
    if text:
        error = InputError(text) if known else RuntimeError(text)
        error.add_note(where)
        raise error


# --- what comes out -------------------------------------------------------------------------------------------------


def write(outcome: Outcome, settings: Mapping[str, Any]) -> None:
    """Write trials.csv, best.json and tune.png into the study's folder."""
    trials = outcome.trials
    columns: dict[str, list[Any]] = {
        name: [getattr(t, name) for t in trials] for name in ("number", "state", "value", "epochs", "seconds", "note")
    }
    columns |= {name: [t.parameters.get(name) for t in trials] for name in outcome.space}
    columns["synthetic"] = [int(outcome.synthetic)] * len(trials)
    runs.write_atomic(outcome.folder / "trials.csv", runs.to_csv(columns))
    if best := outcome.best:
        found = {
            "study": outcome.name,
            "model": outcome.plan.model,
            "objective": outcome.objective,
            "value": best.value,
            "trial": best.number,
            "epochs": best.epochs,
            "parameters": best.parameters,
            "run": str(outcome.folder / "trials" / str(best.number)),
            "command": outcome.command(),
            "importance": outcome.importance,
            "trials": {state: _number_of(outcome, state) for state in ("complete", "pruned", "failed")},
            "synthetic": outcome.synthetic,
            "settings": settings,
        }
        runs.write_atomic(outcome.folder / "best.json", runs.to_json(found))
    runs.write_atomic(outcome.folder / "tune.png", picture(outcome))


def _number_of(outcome: Outcome, state: str) -> int:
    return sum(t.state == state for t in outcome.trials)


def _headline(outcome: Outcome) -> str:
    """Return what the study is and how far it is, in one line."""
    counts = ", ".join(f"{_number_of(outcome, state)} {state}" for state in ("complete", "pruned", "failed"))
    what = "validation loss" if outcome.objective == "loss" else f"validation ROC-AUC {outcome.objective[4:]}"
    return f"{'SYNTHETIC films: ' if outcome.synthetic else ''}{outcome.plan.model}, {what}, trials {counts}"


def summary(outcome: Outcome) -> list[str]:
    """Return the study as lines to print: the best trials, what mattered, where it lies, what to do next."""
    names = list(outcome.space)
    rows = [
        (
            str(t.number),
            "" if t.value is None else f"{t.value:.6g}",
            f"{t.epochs}{'' if t.state == 'complete' else f' ({t.note or t.state})'}",
            *(_short(t.parameters.get(name)) for name in names),
        )
        for t in outcome.ranked()[:SHOWN]
    ]
    lines = [_headline(outcome), *markdown(["trial", outcome.objective, "epochs", *names], rows)]
    if outcome.importance:
        shares = sorted(outcome.importance.items(), key=lambda pair: -pair[1])
        lines.append(f"importance over complete trials: {', '.join(f'{name} {share:.0%}' for name, share in shares)}")
    lines.append(f"{outcome.folder}: trials.csv, best.json, tune.png")
    best = outcome.best
    if best is None:
        return [*lines, "no trial has come to its end: all were stopped or diverged; raise --trials, or --set epochs="]
    run = outcome.folder / "trials" / str(best.number)
    lines.append(f"the best settings: {outcome.command()}")
    if (run / "run.json").is_file():  # a trial of another machine has its folder there
        lines.append(f"{run}: the best run, finished like any other")
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(outcome: Outcome) -> bytes:
    """Return a PNG: the value of each trial, with the best so far, and against every setting; pruned ones are faint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names, columns, best = list(outcome.space), 3, outcome.best
    done = sorted((t for t in outcome.trials if t.state == "complete"), key=lambda t: t.number)
    cut = [t for t in outcome.trials if t.state == "pruned" and t.value is not None]
    values = [_known(t) for t in done + cut]
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(11, 3.2 + 2.6 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.2] + [1.0] * rows)
    whole = figure.add_subplot(grid[0, :])
    if values and 0 < 5 * min(values) < max(values):
        whole.set_yscale("log")
    for i, name in enumerate(["trial", *names]):
        axes = whole if not i else figure.add_subplot(grid[1 + (i - 1) // columns, (i - 1) % columns], sharey=whole)
        how = outcome.space.get(name)
        for some, label, alpha in ((cut, "pruned", 0.3), (done, "complete", 1.0)):
            at = [_position(t, name, how) for t in some]
            axes.scatter(at, [_known(t) for t in some], s=16, alpha=alpha, label=label, color="tab:blue", linewidths=0)
        if best:
            axes.scatter(_position(best, name, how), _known(best), s=60, facecolors="none", edgecolors="tab:red")
        if isinstance(how, Choice):
            axes.set_xticks(range(len(how.options)), [str(option) for option in how.options])
            axes.set_xlim(-0.5, len(how.options) - 0.5)
        elif how and how.log:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    if done:
        so_far = (np.minimum if outcome.objective == "loss" else np.maximum).accumulate([_known(t) for t in done])
        last = max(t.number for t in done + cut)
        line = [*(t.number for t in done), last], [*so_far, so_far[-1]]
        whole.step(*line, where="post", color="tab:red", label="best so far")
    whole.set_ylabel(outcome.objective)
    whole.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    whole.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(_headline(outcome))
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _position(trial: Trial, name: str, how: Range | Choice | None) -> float:
    """Return where a trial lies on the axis of a setting, or of the trials."""
    if how is None:
        return trial.number
    value = trial.parameters[name]
    return how.options.index(value) if isinstance(how, Choice) else float(value)
