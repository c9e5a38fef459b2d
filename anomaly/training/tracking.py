"""Figures of a training as it goes on, for TensorBoard or MLflow: those of history.csv, under the same names.

Off unasked, and then nothing of either is imported. A resumed run goes on where it stood: what its checkpoint knows is
told again where a tracker lacks it, and an epoch that is trained a second time stands there once.

TensorBoard reads RUN/tensorboard: `tensorboard --logdir runs`. MLflow gets a run named like the folder, in the
experiment `anomaly`, at MLFLOW_TRACKING_URI or, without one, in a database of ours (`mlflow ui --backend-store-uri
sqlite:///runs/mlflow/mlflow.db`, with the whole of mlflow). Either is told settings, seeds and hashes, never a path or
the name of a film: a tracking server is often shared.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from anomaly.console import warn
from anomaly.runs import CHECKPOINT, RUNS, Record, Run, RunConfig, checkpoint_state, to_json
from preprocessing import InputError
from preprocessing.locks import file_lock

KINDS = {
    "none": (),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),  # the last two write its SQLite file
}
"""Each tracker and the packages that it needs; they come with the extra of its name."""

EXPERIMENT = "anomaly"
_LOGGED = (
    "model",
    "preset",
    "variant",
    "size",
    "seed",
    "split_seed",
    "split_rule",
    "split_hash",
    "precision",
    "device",
)


def check(kind: str) -> None:
    """Raise InputError where there is no tracker of this name, or a package that it needs is missing."""
    if kind not in KINDS:
        raise InputError(f"no tracker {kind!r}; there are: {', '.join(KINDS)}")
    for package in KINDS[kind]:
        if find_spec(package) is None:
            raise InputError(f"--track {kind} needs {package}: pip install 'xray-anomaly[{kind}]'")


def open_tracker(kind: str, run_path: Path, config: RunConfig) -> "Tracker":
    """Return the tracker of a run, which may have epochs behind it.

    kind  none, tensorboard or mlflow.    run_path  an existing run folder, held by this process (`Run.locked`).
    config  what stands in run.json.    Raises InputError as `check` does, or where MLflow does not answer.
    """
    check(kind)
    run = Run(run_path)
    if kind == "tensorboard":
        return _TensorBoard(run, config)
    if kind == "mlflow":
        return _MLflow(run, config)
    return Tracker()


class Tracker:
    """Takes the figures of every epoch; this one keeps none. As a context it closes itself, whatever happened."""

    closed = False

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        """Take a line of history.csv: its figures, finite, without the number of the epoch, from 1 on."""

    def close(self, final: Mapping[str, float] | None = None, status: str = "FINISHED") -> None:
        """End, with what is known at last (name -> finite value); more calls do nothing.

        status  FINISHED, FAILED or KILLED: what MLflow shows of the run.
        """
        if not self.closed:
            self.closed = True
            self._end({f"final.{name}": value for name, value in (final or {}).items()}, status)

    def _end(self, final: Mapping[str, float], status: str) -> None:
        """Write what is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(status="FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")


class _TensorBoard(Tracker):
    """A file of events in RUN/tensorboard."""

    def __init__(self, run: Run, config: RunConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote may lack epochs of the checkpoint, or have later ones: all of it is shown no
        # more, and the past told again at the times it had.
        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=1)
        self.last = 0
        self.writer.add_text("settings", f"```\n{to_json(_parameters(config))}```", 1)
        for number, figures, when in _past(run):
            self._write(figures, number, when)

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        self._write(figures, number, time.time())

    def _write(self, figures: Mapping[str, float], number: int, when: float) -> None:
        self.last = number
        for name, value in figures.items():
            self.writer.add_scalar(name, value, number, when)
        self.writer.flush()

    def _end(self, final: Mapping[str, float], status: str) -> None:
        self._write(final, self.last, time.time())
        self.writer.close()


class _MLflowRun(Record):
    """mlflow.json: which run of which store it is."""

    run_id: str


class _MLflow(Tracker):
    """A run of MLflow, its id in RUN/mlflow.json.

    A server that goes away ends no training: what could not be sent goes with the next epoch.
    """

    def __init__(self, run: Run, config: RunConfig) -> None:
        # Nothing of a training on patients' films is for anybody else, and a server that is gone is told so in seconds.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.refused = MlflowException
        self.waiting: list[tuple[Mapping[str, float], int, float]] = []
        given = os.environ.get("MLFLOW_TRACKING_URI")
        try:
            with _own_store() as store:  # held: two trainings that begin together would both lay out its tables
                self.client = MlflowClient(given or f"sqlite:///{store / 'mlflow.db'}")
                experiment = self._experiment(None if given else (store / "artifacts").as_uri())
            self.id = self._existing(run) or self._new(run, experiment, config)
            known = self.client.get_run(self.id).data.metrics
            histories = [self.client.get_metric_history(self.id, name) for name in known]
        except (MlflowException, ImportError) as error:  # it may not know the SQLAlchemy that is there
            raise InputError(
                f"MLflow at {'MLFLOW_TRACKING_URI' if given else RUNS / 'mlflow'} refuses ({_first_line(error)}); "
                "leave out --track, or fix that"
            ) from None
        self.last = max((metric.step for history in histories for metric in history), default=0)
        self.waiting = [(figures, number, when) for number, figures, when in _past(run) if number > self.last]
        self._send()

    def _experiment(self, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        return found.experiment_id if found else self.client.create_experiment(EXPERIMENT, artifact_location=artifacts)

    def _existing(self, run: Run) -> str | None:
        """Return the id of the run that was begun, set going again, or None where there is none."""
        if not (run.path / "mlflow.json").is_file():
            return None
        begun = run.read("mlflow.json", _MLflowRun).run_id
        try:
            stage = self.client.get_run(begun).info.lifecycle_stage
        except self.refused as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            stage = "missing"
        if stage != "active":
            warn(f"MLflow's run {begun} of {run.path} is {stage} there; it gets a new one, with all epochs")
            return None
        self.client.update_run(begun, status="RUNNING")
        return begun

    def _new(self, run: Run, experiment: str, config: RunConfig) -> str:
        from mlflow.entities import Param

        made = str(self.client.create_run(experiment, run_name=run.path.resolve().name).info.run_id)
        parameters = [Param(name, str(value)) for name, value in _parameters(config).items()]
        for start in range(0, len(parameters), 100):  # as many as a call may have
            self.client.log_batch(made, params=parameters[start : start + 100])
        run.write("mlflow.json", to_json({"run_id": made}))
        return made

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        if number > self.last:  # else it was told before the interruption
            self.waiting.append((figures, number, time.time()))
            self._send()

    def _send(self) -> bool:
        """Send what waits; says and returns whether it could."""
        from mlflow.entities import Metric

        try:
            while self.waiting:
                figures, number, when = self.waiting[0]
                line = [Metric(name, value, int(when * 1000), number) for name, value in figures.items()]
                self.client.log_batch(self.id, metrics=line)
                self.last = number
                del self.waiting[0]
        except self.refused as error:
            warn(f"MLflow refuses ({_first_line(error)}); training continues, {len(self.waiting)} epochs are waiting")
            return False
        return True

    def _end(self, final: Mapping[str, float], status: str) -> None:
        if final:
            self.waiting.append((final, self.waiting[-1][1] if self.waiting else self.last, time.time()))
        if self._send():
            try:
                self.client.set_terminated(self.id, status)
            except self.refused as error:
                warn(f"MLflow refuses ({_first_line(error)}); the run seems unfinished there")


@contextmanager
def _own_store() -> Iterator[Path]:
    """Hold the folder of the store that is ours, made where there is none."""
    folder = (RUNS / "mlflow").absolute()
    with file_lock(folder / ".lock", wait=True):
        yield folder


def _past(run: Run) -> Iterator[tuple[int, dict[str, float], float]]:
    """Yield number, figures and time of each epoch that training goes on after, or that a finished run has."""
    checkpoint = run.path / CHECKPOINT
    lines: list[dict[str, Any]] = checkpoint_state(checkpoint)["history"] if checkpoint.is_file() else [*run.history()]
    left = sum(float(line["seconds"]) for line in lines)
    for line in lines:
        figures = {name: float(value) for name, value in line.items()}
        left -= figures["seconds"]
        yield int(figures.pop("epoch")), figures, time.time() - left


def _parameters(config: RunConfig) -> dict[str, Any]:
    """Return what made a run as one flat mapping: settings by "model.name" and "training.name", seeds, hashes."""
    flat: dict[str, Any] = config.model_dump(include=set(_LOGGED))
    for owner, settings in (("model", config.settings.model), ("training", config.settings.training)):
        flat |= {f"{owner}.{name}": value for name, value in settings.items()}
    if config.weights:
        flat["model.weights"] = config.weights.sha256
    return flat | {"cache.content_hash": config.cache.content_hash, "cache.synthetic": config.cache.synthetic}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
