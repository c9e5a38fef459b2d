"""Tracking: the figures of history.csv and no others, once each, also after an interruption."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare
from anomaly.runs import Run, create
from anomaly.training import tracking
from anomaly.training.config import EpochReport
from anomaly.training.tracking import KINDS, open_tracker
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import TINY
from .test_runs import run_config

Lines = dict[int, dict[str, float]]  # epoch -> name -> value

# MLflow uses what SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def history(run: Run) -> Lines:
    lines = [{name: float(value) for name, value in line.items()} for line in run.history()]
    return {int(line.pop("epoch")): line for line in lines}


def in_tensorboard(run: Run) -> Lines:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run.path / "tensorboard"))
    seen.Reload()
    lines: Lines = {}
    for name in seen.Tags()["scalars"]:
        for event in seen.Scalars(name):
            assert name not in lines.setdefault(event.step, {}), "an epoch stands there twice"
            lines[event.step][name] = event.value
    return lines


def mlflow_run(run: Run) -> tuple[Any, Any]:
    """A client of the store that is ours, and what it holds of a run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('runs/mlflow/mlflow.db').absolute()}")
    return client, client.get_run(json.loads((run.path / "mlflow.json").read_text())["run_id"])


def in_mlflow(run: Run) -> Lines:
    """What MLflow holds of a run."""
    client, found = mlflow_run(run)
    lines: Lines = {}
    for name in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, name):
            assert name not in lines.setdefault(metric.step, {}), "an epoch stands there twice"
            lines[metric.step][name] = metric.value
    return lines


READERS: dict[str, Callable[[Run], Lines]] = {"tensorboard": in_tensorboard, "mlflow": in_mlflow}


def needs(kind: str) -> None:
    for package in KINDS[kind]:
        pytest.importorskip(package, reason=f"pip install 'xray-anomaly[{kind}]'", exc_type=ImportError)


def same(a: Lines, b: Mapping[int, Mapping[str, float]]) -> bool:
    """Whether the figures are the same, but for what is measured by the clock and TensorBoard's float32."""
    clock = ("seconds", "films_per_second")
    return a.keys() == b.keys() and all(
        a[number].keys() == b[number].keys()
        and all(a[number][name] == pytest.approx(b[number][name], rel=1e-6) for name in a[number] if name not in clock)
        for number in a
    )


@pytest.fixture
def folder(tmp_path: Path) -> Run:
    return create(tmp_path / "runs/cae-7", run_config())


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_an_interrupted_training_is_told_as_its_history_has_it(kind: str, cache: Cache) -> None:
    needs(kind)
    prepared = prepare(Plan("cae", cache.path, "full-he", settings=(*TINY, "epochs=4"), device="cpu"))
    run = continue_or_create(prepared, Path("runs/tracked"), resume=False)

    def part(last: int) -> None:
        with open_tracker(kind, run.path, run.config) as tracker:

            def on_epoch(report: EpochReport) -> None:
                tracker.epoch(report.figures, report.epoch)
                if report.epoch == last:
                    raise KeyboardInterrupt

            fit(prepared, run, workers=0, on_epoch=on_epoch)
            tracker.close({"best_epoch": 2})

    with pytest.raises(KeyboardInterrupt):
        part(3)
    assert run.epochs_done() == 1, "the checkpoint lies behind what was tracked: epochs 2 and 3 come again"
    assert sorted(READERS[kind](run)) == [1, 2, 3]
    part(0)
    told = READERS[kind](run)
    assert told[4].pop("final.best_epoch") == 2
    assert same(told, history(run))
    with open_tracker(kind, run.path, run.config):  # a finished run has nothing to tell, and loses nothing
        pass
    assert same(READERS[kind](run) | {4: told[4]}, history(run))


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_epochs_before_tracking_began_are_told_too(kind: str, run: Run) -> None:
    needs(kind)
    copy = create(Path("runs/late"), run.config)
    copy.write("history.csv", (run.path / "history.csv").read_bytes())
    open_tracker(kind, copy.path, copy.config).close()
    assert READERS[kind](copy) == {number: pytest.approx(line, rel=1e-6) for number, line in history(run).items()}


def test_mlflow_shows_settings_and_state_but_no_path(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(KeyboardInterrupt), open_tracker("mlflow", folder.path, folder.config):
        raise KeyboardInterrupt
    client, found = mlflow_run(folder)
    assert found.info.run_name == "cae-7" and found.info.status == "KILLED"
    assert client.get_experiment(found.info.experiment_id).name == "anomaly"
    assert found.data.params["training.epochs"] == "3" and found.data.params["cache.content_hash"] == "cd34"
    assert found.data.params["model.weights"] == "ab12" and "someone" not in str(found.data)
    tracker = open_tracker("mlflow", folder.path, folder.config)
    assert mlflow_run(folder)[1].info.status == "RUNNING"
    tracker.close()
    tracker.close(status="FAILED")
    assert mlflow_run(folder)[1].info.status == "FINISHED"
    client.delete_run(found.info.run_id)
    open_tracker("mlflow", folder.path, folder.config).close()
    assert mlflow_run(folder)[1].info.run_id != found.info.run_id


def test_a_server_that_goes_away_ends_no_training(
    folder: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("mlflow")
    tracker = open_tracker("mlflow", folder.path, folder.config)
    from mlflow.exceptions import MlflowException

    def away(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", away)  # type: ignore[attr-defined]
        tracker.epoch({"validation": 0.5}, 1)
        tracker.epoch({"validation": 0.4}, 2)
    assert "MLflow refuses (connection refused); training continues, 2 epochs are waiting" in capsys.readouterr().err
    tracker.epoch({"validation": 0.3}, 3)
    tracker.close({"best_epoch": 3})
    told = in_mlflow(folder)
    assert told == {1: {"validation": 0.5}, 2: {"validation": 0.4}, 3: {"validation": 0.3, "final.best_epoch": 3}}


def test_a_server_that_is_not_there_is_refused(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at MLFLOW_TRACKING_URI refuses .*; leave out --track"):
        open_tracker("mlflow", folder.path, folder.config)


def test_what_is_missing_is_named(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no tracker 'wandb'; there are: none, tensorboard, mlflow"):
        open_tracker("wandb", folder.path, folder.config)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for kind in ("tensorboard", "mlflow"):
        with pytest.raises(InputError, match=rf"needs {kind}: pip install 'xray-anomaly\[{kind}\]'"):
            open_tracker(kind, folder.path, folder.config)


def test_off_it_writes_and_imports_nothing(folder: Run) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom anomaly.runs import Run\n"
        "from anomaly.training.tracking import open_tracker\nrun = Run(Path(sys.argv[1]))\n"
        "with open_tracker('none', run.path, run.config) as tracker: tracker.epoch({'validation': 1.0}, 1)\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('tensorboard', 'mlflow', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
