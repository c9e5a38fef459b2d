"""Which trial a worker runs next, and whose the running ones are.

A trial belongs to a worker. A worker of this machine is alive as long as the kernel holds its lock; one of another
machine is given up when its heartbeat in the storage is older than `LOST_SECONDS`, so the clocks of machines that share
a study must agree to a minute. A trial whose worker is gone is marked failed, and its settings are queued again; where
its folder is on this machine, the new trial resumes from its last checkpoint.
"""

import os
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomaly import runs
from anomaly.experiments.storage import import_optuna, is_finished, is_running, open_study
from anomaly.experiments.study import Search, Value
from anomaly.models.search_space import Choice, Range
from preprocessing.locks import file_lock

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

LOST_SECONDS = 120.0
"""A worker of another machine that has not been heard of for so long is gone."""
WAIT_SECONDS = 0.5
REDUCTION = 3
"""Hyperband keeps one trial in so many."""


class TrialQueue:
    """The trials of a study, for one worker."""

    def __init__(self, search: Search) -> None:
        """Open the study of a search."""
        self.search = search
        self.host = socket.gethostname()
        self.worker = f"{self.host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.study = open_study(search)
        pruners = import_optuna().pruners
        self.never = pruners.NopPruner()
        # A loss on the way says nothing of the ROC-AUC at the end.
        hyperband = pruners.HyperbandPruner(search.least_epochs, search.epochs, REDUCTION)
        self.pruner = hyperband if search.score is None else self.never

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Hold the lock that says that this worker is alive."""
        path = self._worker_lock(self.worker)
        with file_lock(path, wait=True):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _worker_lock(self, worker: str) -> Path:
        return runs.inside(self.search.folder, f"workers/{worker}.lock")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only process of this machine that counts and takes trials."""
        with file_lock(self.search.folder / ".lock", wait=True):
            yield

    # --- the next trial ---

    def next(self, on_wait: Callable[[], None]) -> "OptunaTrial | None":
        """Return a trial to run, None when enough are finished; `on_wait` is called while others run the last ones."""
        while True:
            with self.exclusive():
                self._return_lost()
                trials = self.study.get_trials(deepcopy=False)
                finished = sum(map(is_finished, trials))
                if finished >= self.search.trials:
                    return None
                if finished + sum(map(is_running, trials)) < self.search.trials:
                    trial = self.draw(len(trials))
                    if trial is not None:
                        return trial
            on_wait()
            time.sleep(WAIT_SECONDS)

    def draw(self, count: int) -> "OptunaTrial | None":
        """Return a new trial of a study of `count`, or None where another machine was quicker to begin the last one."""
        # A sampler of its own for every trial, so that a study that was interrupted draws what it would have drawn;
        # several machines may see the same count at once, and must not draw the same.
        machine = [] if self.search.storage is None else [zlib.crc32(self.worker.encode())]
        seed = np.random.SeedSequence([self.search.plan.seed, count, *machine]).generate_state(1)[0]
        self.study.sampler = import_optuna().samplers.TPESampler(seed=int(seed))
        # With Hyperband as its pruner the sampler would learn from the trials of one bracket only: too few.
        self.study.pruner = self.never
        trial = self.study.ask()
        self.study.pruner = self.pruner
        trial.set_user_attr("worker", self.worker)
        trial.set_user_attr("seen", time.time())
        earlier = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number]
        if sum(is_finished(t) or is_running(t) for t in earlier) >= self.search.trials:
            self.suggest(trial)  # kept for when more trials are wanted
            self.give_back(trial.number)
            return None
        return trial

    def suggest(self, trial: "OptunaTrial") -> dict[str, Value]:
        """Return the settings of a trial, drawn on the first call."""
        return {key: _suggest(trial, key, values) for key, values in self.search.space.items()}

    # --- trials whose worker is gone ---

    def return_lost(self) -> list[int]:
        """Queue again the settings of trials whose worker is gone, and return the trials' numbers."""
        with self.exclusive():
            return self._return_lost()

    def _return_lost(self) -> list[int]:
        running = [t for t in self.study.get_trials(deepcopy=False) if is_running(t)]
        return [t.number for t in running if not self._has_worker(t) and self.give_back(t.number)]

    def _has_worker(self, trial: "FrozenTrial") -> bool:
        """Whether some worker runs a trial. Asked while exclusive: a worker marks its trial while it is, too."""
        worker = trial.user_attrs.get("worker")
        if worker == self.worker or (worker is None and self.search.storage is None):
            return False
        here = isinstance(worker, str) and worker.rsplit("-", 2)[0] == self.host
        if here and (path := self._worker_lock(str(worker))).is_file():
            with file_lock(path) as abandoned:
                if not abandoned:
                    return True
            path.unlink(missing_ok=True)
            return False
        if here and self.search.storage is None:
            return False
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return bool(time.time() - float(trial.user_attrs.get("seen", began)) < LOST_SECONDS)

    def give_back(self, number: int) -> bool:
        """Mark a trial failed and queue its settings again; False where another process has done so."""
        trial = self.study.get_trials(deepcopy=False)[number]
        try:
            self.study.tell(number, state=import_optuna().trial.TrialState.FAIL)
        except ValueError:  # it isn't running any more
            return False
        if set(trial.params) == set(self.search.space):  # else it was lost before its settings were drawn
            began = self.search.run_folder(number).is_dir()
            origin = number if began else trial.user_attrs.get("origin", number)
            self.study.enqueue_trial(dict(trial.params), user_attrs={"origin": origin})
        return True


def _suggest(trial: "OptunaTrial", key: str, values: Range | Choice) -> Value:
    if isinstance(values, Choice):
        option = trial.suggest_categorical(key, values.options)
        assert option is not None  # a Choice has no such option
        return option
    if values.integer:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)
