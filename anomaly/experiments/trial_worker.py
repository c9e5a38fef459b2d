"""A worker of a search: draws settings, trains with them, and records what came of it."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from anomaly import runs
from anomaly.evaluation.predict import score
from anomaly.evaluation.ranking import roc_auc
from anomaly.experiments.storage import import_optuna
from anomaly.experiments.study import Search, with_settings
from anomaly.experiments.trial_queue import TrialQueue
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run, run_films
from anomaly.pipeline.plan import Prepared, prepare
from anomaly.training.config import EpochReport
from anomaly.training.trainer import history_csv
from preprocessing import InputError

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial

HEARTBEAT_SECONDS = 20.0
NOT_FINITE = "is not finite"
"""What training and scoring say where numbers overflowed: an outcome of a trial's settings, no fault of the study."""


class _Pruned(Exception):
    """The trial has fallen behind."""


class _TakenAway(Exception):
    """The trial was given up for lost while this process ran it: a machine that slept, or a storage that hung."""


class TrialWorker:
    """One process of a search: runs trials until enough are finished."""

    def __init__(self, search: Search, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called after every epoch, and while there is nothing to do but to wait for others."""
        self.search, self.on_change = search, on_change
        self.queue = TrialQueue(search)

    def work(self) -> None:
        """Run trials until the study has enough."""
        with self.queue.alive():
            while (trial := self.queue.next(self.on_change)) is not None:
                self._run(trial)

    def _run(self, trial: "OptunaTrial") -> None:
        """Train with a trial's settings and record what came of it."""
        note = ""
        folder = self.search.run_folder(trial.number)
        try:
            with _heartbeat(trial):
                value: float | None = self._train(trial)
        except _TakenAway:
            shutil.rmtree(folder, ignore_errors=True)
            return
        except _Pruned:
            value = None
        except BaseException as error:
            note = _outcome(error)
            if not note:
                with self.queue.exclusive():
                    self.queue.give_back(trial.number)
                raise
            value = None
        with suppress(ValueError):  # taken away at the last moment
            if note:
                trial.set_user_attr("note", note)
            if value is None:
                (folder / runs.CHECKPOINT).unlink(missing_ok=True)
                self.queue.study.tell(trial, state=import_optuna().trial.TrialState.PRUNED)
            else:
                self.queue.study.tell(trial, value)
        self.on_change()

    def _train(self, trial: "OptunaTrial") -> float:
        """Return the value of a finished run; raises _Pruned where the trial falls behind."""
        search = self.search
        prepared = prepare(with_settings(search.plan, self.queue.suggest(trial)))
        run = self._open_or_create(trial, prepared)
        history: list[dict[str, float]] = []

        def add(line: dict[str, float], *, prune: bool) -> None:
            history.append(line)
            epoch, value = int(line["epoch"]), kept_loss(history, keeps_best=search.keeps_best)
            self._report(trial, epoch, value)
            # A trial that has reached the last epoch is finished, whatever its rank.
            if prune and epoch < search.epochs and self.queue.falls_behind(trial, epoch, value):
                run.write("history.csv", history_csv(history))
                raise _Pruned

        def on_epoch(report: EpochReport) -> None:
            add({"epoch": report.epoch, **report.figures}, prune=True)
            self.on_change()

        for line in _history(run):
            add(line, prune=not run.finished)
        fit(prepared, run, workers=0, on_epoch=on_epoch)
        if search.score is not None:
            return validation_roc_auc(run, search.score, search.plan.device)
        return kept_loss(_history(run), keeps_best=search.keeps_best)

    def _report(self, trial: "OptunaTrial", epoch: int, value: float) -> None:
        try:
            if self.search.score is None:
                trial.report(value, epoch)
            else:
                trial.set_user_attr("epochs", epoch)
        except import_optuna().exceptions.UpdateFinishedTrialError:
            raise _TakenAway from None

    def _open_or_create(self, trial: "OptunaTrial", prepared: Prepared) -> runs.Run:
        """Return the trial's run folder: that of the lost trial whose settings it has, if that one got anywhere."""
        path = self.search.run_folder(trial.number)
        origin = trial.user_attrs.get("origin")
        old = None if origin is None else self.search.run_folder(int(origin))
        if old and (old / "run.json").is_file() and not path.exists() and not runs.Run(old).busy():
            old.rename(path)
            try:
                return continue_or_create(prepared, path, resume=True)
            except InputError:  # another version of a library, say: this training would have begun differently
                shutil.rmtree(path)
        return continue_or_create(prepared, path, resume=False)


def run_worker(search: Search, threads: int) -> None:
    """Be a worker in a process of its own."""
    torch.set_num_threads(threads)
    TrialWorker(search).work()


def kept_loss(history: Sequence[Mapping[str, float]], *, keeps_best: bool) -> float:
    """Return the validation loss of the weights that a run of this history keeps: the lowest, or the last."""
    losses = [line["validation"] for line in history]
    return min(losses) if keeps_best else losses[-1]


def validation_roc_auc(run: runs.Run, by: str, device: str) -> float:
    """Return the ROC-AUC of a score over the labelled films of the validation split."""
    films, _ = run_films(run, "val")
    labelled = films.subset(np.flatnonzero(films.label >= 0))
    return roc_auc(labelled.label, score(open_run(run, device).model, labelled)[by])


def _outcome(error: BaseException) -> str:
    """Return what an error says of a trial's settings, or "" where it says something of the program or machine."""
    if isinstance(error, InputError) and NOT_FINITE in str(error):
        return "diverged"
    if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return "not enough memory"
    return ""


def _history(run: runs.Run) -> list[dict[str, float]]:
    """Return the history of a run, of an unfinished one up to its checkpoint: a mapping per epoch."""
    checkpoint = run.path / runs.CHECKPOINT
    if run.finished:
        return [{name: float(value) for name, value in line.items()} for line in run.history()]
    return list(runs.checkpoint_state(checkpoint)["history"]) if checkpoint.is_file() else []


@contextmanager
def _heartbeat(trial: "OptunaTrial") -> Iterator[None]:
    """Record every so often in the storage that the trial is being worked on."""
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
