"""Which trial a worker runs next, and whose the running ones are.

A trial belongs to a worker. A worker of this machine is alive as long as the kernel holds its lock; one of another
machine is given up when its heartbeat in the storage is older than `LOST_SECONDS`, so the clocks of machines that share
a study must agree to a minute. A trial whose worker is gone is marked failed, and its settings are queued again; where
its folder is on this machine, the new trial resumes from its last checkpoint.

A trial has a place among those of the study, 0, 1, 2, ..., which the one that takes over from it inherits: draws and
brackets depend on the places, not on how many trials were interrupted. A search in one process that is killed, however
often, so ends as one that was not.
"""

import itertools
import os
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomaly import runs
from anomaly.experiments.hyperband import Hyperband, falls_behind
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


class TrialQueue:
    """The trials of a study, for one worker."""

    def __init__(self, search: Search) -> None:
        """Open the study of a search."""
        self.search = search
        self.host = socket.gethostname()
        self.worker = f"{self.host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.study = open_study(search)
        # With Hyperband as its pruner the sampler would learn from the trials of one bracket only: too few.
        self.study.pruner = import_optuna().pruners.NopPruner()
        self.hyperband = Hyperband(search.least_epochs, search.epochs, search.plan.seed)

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
                    trial = self.draw(trials)
                    if trial is not None:
                        return trial
            on_wait()
            time.sleep(WAIT_SECONDS)

    def draw(self, trials: "Sequence[FrozenTrial]") -> "OptunaTrial | None":
        """Return a new trial beside those given, or None where another machine was quicker to begin the last one."""
        taken = {place_of(t) for t in trials if t.state.name != "FAIL"}
        place = next(number for number in itertools.count() if number not in taken)
        # A sampler of its own for every trial, so that a study that was interrupted draws what it would have drawn;
        # several machines may see the same trials at once, and must not draw the same.
        machine = [] if self.search.storage is None else [zlib.crc32(self.worker.encode())]
        seed = np.random.SeedSequence([self.search.plan.seed, place, *machine]).generate_state(1)[0]
        self.study.sampler = import_optuna().samplers.TPESampler(seed=int(seed))
        trial = self.study.ask()
        if "place" not in trial.user_attrs:  # else it takes over from a trial that was interrupted
            trial.set_user_attr("place", place)
        trial.set_user_attr("worker", self.worker)
        trial.set_user_attr("seen", time.time())
        earlier = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number]
        if sum(is_finished(t) or is_running(t) for t in earlier) >= self.search.trials:
            self.suggest(trial)  # kept for when more trials are wanted
            self.give_back(trial.number)
            return None
        return trial

    def falls_behind(self, trial: "OptunaTrial", epoch: int, value: float) -> bool:
        """Whether Hyperband stops a trial after an epoch at this value, as the trials of the study stand."""
        if self.search.score is not None:  # a loss on the way says nothing of the ROC-AUC at the end
            return False
        place = int(trial.user_attrs["place"])
        if not self.hyperband.is_rung(place, epoch):
            return False
        bracket = self.hyperband.bracket(place)
        rivals = [
            t.intermediate_values[epoch]
            for t in self.study.get_trials(deepcopy=False)
            if t.number != trial.number and t.state.name != "FAIL" and epoch in t.intermediate_values
            if self.hyperband.bracket(place_of(t)) == bracket
        ]
        return falls_behind(value, rivals)

    def suggest(self, trial: "OptunaTrial") -> dict[str, Value]:
        """Return the settings of a trial, drawn on the first call."""
        return {key: _suggest(trial, key, values) for key, values in self.search.space.items()}

    # --- trials whose worker is gone ---

    def return_lost(self) -> list[int]:
        """Queue again the settings of trials whose worker is gone, and return the trials' numbers."""
        with self.exclusive():
            return self._return_lost()

    def _return_lost(self) -> list[int]:
        trials = self.study.get_trials(deepcopy=False)
        replaced = {t.user_attrs.get("replaces") for t in trials}
        for trial in trials:  # killed between the failure of a trial and the queueing of its settings
            if trial.state.name == "FAIL" and trial.number not in replaced and self._is_over(trial):
                self._queue_again(trial)
        running = [t for t in trials if is_running(t)]
        return [t.number for t in running if not self._has_worker(t) and self.give_back(t.number)]

    def _is_over(self, trial: "FrozenTrial") -> bool:
        """Whether nobody is about to queue the settings of a failed trial; on this machine nobody else is now."""
        ended = trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0
        return self.search.storage is None or time.time() - ended > LOST_SECONDS

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
        self._queue_again(trial)
        return True

    def _queue_again(self, trial: "FrozenTrial") -> None:
        """Queue the settings of a failed trial, unless it was lost before all of them were drawn."""
        if set(trial.params) != set(self.search.space):
            return
        began = self.search.run_folder(trial.number).is_dir()
        origin = trial.number if began else trial.user_attrs.get("origin", trial.number)
        known = {"origin": origin, "place": place_of(trial), "replaces": trial.number}
        self.study.enqueue_trial(dict(trial.params), user_attrs=known)


def place_of(trial: "FrozenTrial") -> int:
    """Return the place of a trial among those of its study; its number, of one that began under an older version."""
    return int(trial.user_attrs.get("place", trial.number))


def _suggest(trial: "OptunaTrial", key: str, values: Range | Choice) -> Value:
    if isinstance(values, Choice):
        option = trial.suggest_categorical(key, values.options)
        assert option is not None  # a Choice has no such option
        return option
    if values.integer:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)
