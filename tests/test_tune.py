"""Hyper-parameter search: the least loss wins, whoever dies loses nothing, and all workers share one study."""

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from anomaly.data.batch import as_batch
from anomaly.data.dataset import FilmSet
from anomaly.experiments import search, search_report, trial_queue, trial_worker
from anomaly.experiments import storage as storage_module
from anomaly.experiments.search import tune
from anomaly.experiments.search_progress import seconds_left
from anomaly.experiments.search_report import summary
from anomaly.experiments.study import Outcome, Search, SearchOptions
from anomaly.experiments.trial_queue import TrialQueue
from anomaly.experiments.trial_worker import TrialWorker, kept_loss, run_worker
from anomaly.models import TOOLS, ZOO, find_model
from anomaly.models.base import Detector
from anomaly.models.search_space import Choice, Range, Space
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare, resolve, settings_of
from anomaly.pipeline.scoring import score_selection
from anomaly.pipeline.selection import recorded_films
from anomaly.runs import Run, to_json
from anomaly.training.config import EpochReport
from anomaly.training.trainer import history_csv
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

from .conftest import on_path

SPACE = {"learning_rate": Range(1e-4, 1e-2, log=True), "augmentation": Choice(("none", "flips"))}


def plan(cache: Cache, *settings: str, epochs: int = 2, **more: Any) -> Plan:
    fixed = ("width=2", f"epochs={epochs}", "batch_size=12", *settings)
    return Plan("cae", cache.path, "full-he", settings=fixed, device="cpu", **more)


Fit = Callable[..., Run]


def searched(
    cache: Cache, *settings: str, epochs: int = 2, space: Space = SPACE, fit: Fit = fit, seed: int = 0, **options: Any
) -> Outcome:
    """Search settings of a small CAE, with `fit` in place of the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_worker, "fit", fit)
        return tune(plan(cache, *settings, epochs=epochs, seed=seed), SearchOptions(**options), space=space)


UNPRUNED = {"least_epochs": 2}
"""Every trial comes to its end."""


def history(outcome: Outcome, number: int) -> list[float]:
    with (outcome.folder / f"trials/{number}/history.csv").open() as file:
        return [float(line["validation"]) for line in csv.DictReader(file)]


def stored(outcome: Outcome) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=outcome.name, storage=f"sqlite:///{outcome.folder}/study.sqlite3").trials


# --- a training that takes no time: a known loss of the settings ---


def valley(prepared: Any, run: Run, *, workers: int, on_epoch: Callable[[EpochReport], None]) -> Run:
    """The loss is least at a learning rate of .001, and falls with the epochs."""
    training = prepared.config.settings.training
    off = (math.log10(training["learning_rate"]) + 3) ** 2
    lines: list[dict[str, float]] = []
    for epoch in range(1, training["epochs"] + 1):
        lines.append({"epoch": epoch, "seconds": 0.1, "validation": off + 1 / epoch})
        figures = {name: value for name, value in lines[-1].items() if name != "epoch"}
        on_epoch(EpochReport(epoch, training["epochs"], figures, epoch, 0.0, []))
    run.write("history.csv", history_csv(lines))
    run.write("calibration.json", "{}")
    return run


def dies_once(prepared: Any, run: Run, *, workers: int, on_epoch: Callable[[EpochReport], None]) -> Run:
    """Like `valley`, but the first process of all to end its first epoch is killed."""

    def deadly(report: EpochReport) -> None:
        on_epoch(report)
        try:
            os.close(os.open(Path(prepared.plan.cache.parent / "died"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            time.sleep(0.05)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    return valley(prepared, run, workers=workers, on_epoch=deadly)


def never(prepared: Any, run: Run, *, workers: int, on_epoch: Callable[[EpochReport], None]) -> Run:
    raise AssertionError("nothing was to be trained")


# --- studies ---


def test_the_least_loss_wins_and_its_run_is_one_like_any_other(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = searched(cache, trials=3)
    assert outcome.folder == Path("tune/cae-1") and outcome.synthetic
    done = [t for t in outcome.trials if t.state == "complete"]
    best = outcome.best
    assert len(outcome.trials) == 3 and best and best.value == min(t.value or 9 for t in done)
    for trial, frozen in zip(outcome.trials, stored(outcome), strict=True):
        assert trial.value == frozen.value == min(history(outcome, trial.number)) and trial.epochs == len(
            history(outcome, trial.number)
        )
        run = Run(outcome.folder / f"trials/{trial.number}")
        assert run.finished == (trial.state == "complete")
        assert not (run.path / "checkpoint.safetensors").exists()
        training = run.config.settings.training
        assert {key: training[key] for key in SPACE} == trial.parameters == frozen.params
    assert open_run(Run(outcome.folder / f"trials/{best.number}"), "cpu").note is None

    said = json.loads((outcome.folder / "best.json").read_text())
    assert said["value"] == best.value and said["synthetic"] and said["parameters"] == best.parameters
    lines = (outcome.folder / "trials.csv").read_text().splitlines()
    assert len(lines) == 4 and all(line.endswith(",1") for line in lines[1:])
    assert (outcome.folder / "tune.png").stat().st_size > 10_000
    text = "\n".join(summary(outcome))
    assert text.startswith("SYNTHETIC films") and f"trials/{best.number}: the best run" in text

    command = outcome.command()
    assert command and command in text
    words = shlex.split(command)
    chosen = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    again = replace(plan(cache), settings=chosen)
    assert words[:5] == ["anomaly", "train", "cae", "--cache", str(cache.path)]
    prepared = prepare(again)
    run = fit(prepared, continue_or_create(prepared, Path("again"), resume=False), workers=0, on_epoch=lambda _: None)
    assert min(float(line["validation"]) for line in run.history()) == best.value

    capsys.readouterr()
    same = searched(cache, trials=3, fit=never)
    assert same.folder == outcome.folder and same.trials == outcome.trials and "tuning" not in capsys.readouterr().err


def test_hyperband_stops_what_falls_behind_and_tpe_finds_the_valley(cache: Cache) -> None:
    outcome = searched(cache, trials=24, epochs=9, fit=valley)
    cut = [t for t in outcome.trials if t.state == "pruned"]
    assert len(outcome.trials) == 24 and 5 <= len(cut) < 24 and all(1 <= t.epochs < 9 for t in cut)
    for trial in cut:
        assert history(outcome, trial.number)[-1] == trial.value and len(history(outcome, trial.number)) == trial.epochs
    assert outcome.best and 7e-4 < outcome.best.parameters["learning_rate"] < 1.4e-3
    assert outcome.importance["learning_rate"] > 0.8
    table = [line for line in summary(outcome) if line.startswith("| ")]
    assert len(table) == 2 + search_report.SHOWN and table[2].startswith(f"| {outcome.best.number} ")


def test_more_trials_go_on_and_a_study_in_two_goes_draws_what_one_draws(cache: Cache) -> None:
    whole = searched(cache, trials=12, fit=valley, folder=Path("whole"), name="same")
    searched(cache, trials=11, fit=valley, folder=Path("parts"), name="same")
    parts = searched(cache, trials=12, fit=valley, folder=Path("parts"))
    assert [t.parameters for t in parts.trials] == [t.parameters for t in whole.trials]
    assert [t.state for t in parts.trials] == [t.state for t in whole.trials]
    seeds = [searched(cache, trials=2, fit=valley, folder=Path(f"seed{n}"), space=SPACE) for n in (1, 2)]
    assert seeds[0].trials[0].parameters == seeds[1].trials[0].parameters
    other = searched(cache, seed=5, trials=2, fit=valley)
    assert other.trials[0].parameters != seeds[0].trials[0].parameters


# --- nothing is lost ---


def test_a_killed_process_loses_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import os, signal
from tests.test_tune import *
def deadly(prepared, run, *, workers, on_epoch):
    def see(report):
        on_epoch(report)
        if run.path.name == "1" and report.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return fit(prepared, run, workers=workers, on_epoch=see)
searched(Cache(Path({str(cache.path)!r})), trials=2, epochs=3, least_epochs=3, fit=deadly)
"""
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", code], env=on_path(root), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = Path("tune/cae-1/trials/1/history.csv").read_text()

    outcome = searched(cache, trials=2, epochs=3, least_epochs=3)
    assert [t.state for t in outcome.trials] == ["complete", "failed", "complete"]
    assert outcome.trials[1].parameters == outcome.trials[2].parameters
    went_on = Path("tune/cae-1/trials/2/history.csv").read_text()
    assert went_on.startswith(left) and len(left.splitlines()) == 2  # the first epoch was not trained again
    assert len(went_on.splitlines()) == 4 and outcome.trials[2].value == min(history(outcome, 2))
    assert not Path("tune/cae-1/trials/1").exists() and not list(Path("tune/cae-1/workers").iterdir())


def test_a_trial_that_nobody_is_at_is_failed_and_queued_again(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    first = searched(cache, trials=1, **UNPRUNED, fit=valley)
    study = optuna.load_study(study_name=first.name, storage=f"sqlite:///{first.folder}/study.sqlite3")
    lost = study.ask()
    lost.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    lost.suggest_categorical("augmentation", ("none", "flips"))
    outcome = searched(cache, trials=2, **UNPRUNED, fit=valley)
    assert [t.state for t in outcome.trials] == ["complete", "failed", "complete"]
    assert outcome.trials[2].parameters == lost.params
    assert "trial 1 was interrupted; its settings are queued again" in capsys.readouterr().err


def test_an_interruption_gives_its_trial_back_at_once(cache: Cache) -> None:
    def interrupted(prepared: Any, run: Run, **how: Any) -> Run:
        if run.path.name == "1":
            raise KeyboardInterrupt
        return valley(prepared, run, **how)

    with pytest.raises(KeyboardInterrupt):
        searched(cache, trials=2, **UNPRUNED, fit=interrupted)
    names = [
        t.state.name for t in optuna.load_study(study_name=None, storage="sqlite:///tune/cae-1/study.sqlite3").trials
    ]
    assert names == ["COMPLETE", "FAIL", "WAITING"]
    outcome = searched(cache, trials=2, **UNPRUNED, fit=valley)
    assert [t.state for t in outcome.trials] == ["complete", "failed", "complete"]
    assert outcome.trials[1].parameters == outcome.trials[2].parameters


def test_a_trial_of_another_machine_is_left_alone_while_its_heart_beats(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_queue, "LOST_SECONDS", 3.0)
    where = f"sqlite:///{Path.cwd()}/shared.db"
    shared: dict[str, Any] = {"fit": valley, "storage": where, "name": "shared", **UNPRUNED}
    searched(cache, trials=1, **shared)
    study = optuna.load_study(study_name="shared", storage=where)
    theirs = study.ask()
    theirs.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    theirs.suggest_categorical("augmentation", ("none", "flips"))
    theirs.set_user_attr("worker", "elsewhere-1-a")
    theirs.set_user_attr("seen", time.time())
    began = time.time()
    outcome = searched(cache, trials=3, **shared)
    assert [t.state for t in outcome.trials] == ["complete", "failed", "complete", "complete"]
    assert outcome.trials[3].parameters == outcome.trials[1].parameters
    ended = [t.datetime_complete for t in study.trials]
    assert ended[2] and ended[1] and ended[3] and ended[2] < ended[1] < ended[3]  # one's own first, then theirs
    assert ended[1].timestamp() >= began + 2.5


def test_a_trial_that_was_taken_away_is_dropped(cache: Cache) -> None:
    taken: list[int] = []

    def slept(prepared: Any, run: Run, **how: Any) -> Run:
        if not taken:
            taken.append(1)
            study = optuna.load_study(study_name=None, storage="sqlite:///tune/cae-1/study.sqlite3")
            study.tell(0, state=optuna.trial.TrialState.FAIL)
        return valley(prepared, run, **how)

    outcome = searched(cache, trials=2, **UNPRUNED, fit=slept)
    assert [t.state for t in outcome.trials] == ["failed", "complete", "complete"]
    assert not (outcome.folder / "trials/0").exists()


def test_no_more_trials_than_asked_for(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines that both see room for one more both begin one: the later one steps back, and keeps its settings."""
    queues: list[TrialQueue] = []
    work = TrialWorker.work
    monkeypatch.setattr(TrialWorker, "work", lambda self: (queues.append(self.queue), work(self))[1])
    searched(cache, trials=2, **UNPRUNED, fit=valley)
    assert queues[0].draw(queues[0].study.trials) is None
    outcome = searched(cache, trials=3, **UNPRUNED, fit=valley)
    assert [t.state for t in outcome.trials] == ["complete", "complete", "failed", "complete"]
    assert outcome.trials[3].parameters == outcome.trials[2].parameters


def test_a_study_that_is_killed_again_and_again_draws_and_stops_as_one_that_is_not(cache: Cache) -> None:
    """Wherever it is interrupted: before the settings are drawn, in a training, at its end, and while settings are
    queued again.
    """
    kinds = {"trials": 14, "epochs": 9, "seed": 3}
    whole = searched(cache, fit=valley, folder=Path("whole"), **kinds)
    assert {t.state for t in whole.trials} == {"complete", "pruned"}, "or nothing is shown of the brackets"
    random = np.random.default_rng(0)

    def interrupted(prepared: Any, run: Run, *, workers: int, on_epoch: Callable[[EpochReport], None]) -> Run:
        fatal = random.integers(1, 36)

        def see(report: EpochReport) -> None:
            if report.epoch == fatal:
                raise KeyboardInterrupt
            on_epoch(report)
            if report.epoch == fatal - 9:
                raise KeyboardInterrupt

        return valley(prepared, run, workers=workers, on_epoch=see)

    def failing(method: Callable[..., Any]) -> Callable[..., Any]:
        def fails_now_and_then(*arguments: Any, **options: Any) -> Any:
            if random.random() < 0.2:
                raise KeyboardInterrupt
            return method(*arguments, **options)

        return fails_now_and_then

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialQueue, "suggest", failing(TrialQueue.suggest))
        patch.setattr(optuna.Study, "enqueue_trial", failing(optuna.Study.enqueue_trial))
        for _ in range(200):
            with suppress(KeyboardInterrupt):
                parts = searched(cache, fit=interrupted, folder=Path("parts"), **kinds)
                break
    failed = [t for t in parts.trials if t.state == "failed"]
    assert len(failed) > 10
    places = {t.number: t.user_attrs["place"] for t in stored(parts) if t.state.name != "FAIL"}
    kept = sorted((t for t in parts.trials if t.state != "failed"), key=lambda t: places[t.number])
    assert [(t.parameters, t.state, t.value) for t in kept] == [(t.parameters, t.state, t.value) for t in whole.trials]
    assert whole.best and parts.best and parts.best.parameters == whole.best.parameters


def test_searches_begun_at_once_share_one_study(cache: Cache) -> None:
    code = f"""
from tests.test_tune import *
searched(Cache(Path({str(cache.path)!r})), trials=4, fit=valley, folder=Path("shared"), **UNPRUNED)
"""
    root = Path(__file__).parent.parent
    both = [subprocess.Popen([sys.executable, "-c", code], env=on_path(root), stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()
    outcome = searched(cache, trials=4, fit=never, folder=Path("shared"), **UNPRUNED)
    assert [t.state for t in outcome.trials] == ["complete"] * 4


def test_a_storage_whose_tables_another_process_is_making_is_waited_for(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter(["table alembic_version already exists", "UNIQUE constraint failed: version_info"])
    begin = optuna.storages.RDBStorage.__init__

    def busy(*arguments: Any, **options: Any) -> None:
        for text in refusals:
            raise ValueError(text)
        begin(*arguments, **options)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", busy)
    monkeypatch.setattr(storage_module, "WAIT_SECONDS", 0.0)
    outcome = searched(cache, trials=1, fit=valley, name="ours", storage=f"sqlite:///{tmp_path}/shared.db")
    assert outcome.best and not list(refusals)


def test_a_database_that_can_not_be_written_is_one_line(cache: Cache) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise optuna.exceptions.StorageInternalError("during the commit") from OSError("disk I/O error")

    with pytest.raises(
        InputError, match=r"study.sqlite3 can't be written \(disk I/O error\); the same command resumes"
    ):
        searched(cache, trials=1, fit=failing, folder=Path("failing"))
    assert searched(cache, trials=1, fit=valley, folder=Path("failing")).best


def worker_that_may_die(search: Search, threads: int) -> None:
    trial_worker.fit = dies_once
    run_worker(search, threads)


def test_two_jobs_share_a_study_and_a_death_loses_no_trial(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    films = tmp_path / "films" / "films.h5"
    films.parent.mkdir()
    films.symlink_to(cache.path)
    moved = replace(plan(cache, epochs=3), cache=films)
    monkeypatch.setattr(search, "run_worker", worker_that_may_die)
    outcome = tune(moved, SearchOptions(trials=8, jobs=2, least_epochs=3), space=SPACE)
    assert (films.parent / "died").exists() and "a worker died by signal 9" in capfd.readouterr().err
    assert sum(t.state == "complete" for t in outcome.trials) == 8
    (dead,) = [t for t in outcome.trials if t.state == "failed"]
    assert sum(t.parameters == dead.parameters for t in outcome.trials) == 2
    assert len({t.user_attrs["worker"] for t in stored(outcome)}) >= 2
    assert len({json.dumps(t.parameters) for t in outcome.trials}) == 8  # no two workers drew the same


# --- outcomes of single trials ---


def test_a_training_that_diverges_is_an_outcome(cache: Cache) -> None:
    space = {"learning_rate": Range(1e28, 1e30)}
    outcome = searched(cache, "batch_norm=false", trials=1, space=space)
    assert [(t.state, t.note) for t in outcome.trials] == [("pruned", "diverged")]
    assert outcome.best is None and outcome.command() is None and not (outcome.folder / "best.json").exists()
    assert any("no trial is complete" in line for line in summary(outcome))


def test_settings_that_need_too_much_memory_are_not_tried_for_ever(cache: Cache) -> None:
    def short(prepared: Any, run: Run, **how: Any) -> Run:
        if run.path.name == "0":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return valley(prepared, run, **how)

    outcome = searched(cache, trials=2, **UNPRUNED, fit=short)
    assert [(t.state, t.note) for t in outcome.trials] == [("pruned", "not enough memory"), ("complete", "")]


def test_a_fault_of_ours_ends_the_search_and_the_trial_stays_queued(cache: Cache) -> None:
    def broken(prepared: Any, run: Run, **how: Any) -> Run:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        searched(cache, trials=1, fit=broken)
    outcome = searched(cache, trials=1, fit=valley)
    assert [t.state for t in outcome.trials] == ["failed", "complete"]


# --- one study, the same for all ---


def test_other_settings_are_refused_by_name(cache: Cache, films: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"trials": 1, "fit": valley, "name": "mine"}
    searched(cache, **options)
    other = {**SPACE, "learning_rate": Range(1e-4, 1e-1, log=True)}
    build(
        open_source(films),
        Recipe(name="limb", size=32),
        tmp_path / "other.h5",
        options=BuildOptions(variants=("full-he",), workers=1),
    )
    trials: list[tuple[str, Callable[[], object]]] = [
        (r"settings\.training\.epochs: 2 -> 3", lambda: searched(cache, epochs=3, **options)),
        (r"space\.learning_rate\.high: 0\.01 -> 0\.1", lambda: searched(cache, **options | {"space": other})),
        (r"objective: loss -> auc by ssim", lambda: searched(cache, **options, objective="auc", by="ssim")),
        (r"settings\.model\.topk: 200\S* -> 50", lambda: searched(cache, "topk=50", **options)),
        (r"least_epochs: 1 -> 2", lambda: searched(cache, **options, least_epochs=2)),
        (r"cache\.content_hash: ", lambda: searched(Cache(tmp_path / "other.h5"), **options)),
        (r"storage: own -> given", lambda: searched(cache, **options, storage=str(tmp_path / "journal"))),
    ]
    for what, call in trials:
        with pytest.raises(InputError, match=rf"tune/mine was started with other settings: .*{what}") as refusal:
            call()
        assert "\n" not in str(refusal.value)
    assert searched(cache, **options | {"name": None}, epochs=3).folder == Path("tune/cae-1")


@pytest.mark.parametrize("kind", ["sqlite:///{}/shared.db", "{}/shared.journal"])
def test_machines_share_a_study_by_its_storage(cache: Cache, tmp_path: Path, kind: str) -> None:
    shared: dict[str, Any] = {"storage": kind.format(tmp_path), "name": "ours", "fit": valley}
    searched(cache, trials=2, folder=Path("here"), **shared)
    there = searched(cache, trials=4, folder=Path("there"), **shared)
    assert [t.state in ("complete", "pruned") for t in there.trials] == [True] * 4
    assert len({json.dumps(t.parameters) for t in there.trials}) == 4
    assert {p.name for p in Path("here/trials").iterdir()} == {"0", "1"}
    assert {p.name for p in Path("there/trials").iterdir()} == {"2", "3"}
    with pytest.raises(InputError, match=r"other settings: .*epochs: 2 -> 3"):
        searched(cache, epochs=3, trials=2, folder=Path("elsewhere"), **shared)


def test_storages_that_cannot_be_taken(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--storage goes with --study NAME"):
        searched(cache, storage="sqlite:///x.db")
    for address in ("nosuch://user:secret@host/db", "sqlite:////nowhere/at/all.db", "://"):
        with pytest.raises(InputError, match=r"^--storage can't be opened \(") as refusal:
            searched(cache, storage=address, name=f"a{len(address)}")
        assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)
    optuna.create_study(study_name="theirs", storage=f"sqlite:///{tmp_path}/theirs.db").ask()
    with pytest.raises(InputError, match="theirs of --storage is not one of `anomaly tune`"):
        searched(cache, storage=f"sqlite:///{tmp_path}/theirs.db", name="theirs")
    for name in ("../up", "", "a b", "/x"):
        with pytest.raises(InputError, match="--study"):
            searched(cache, name=name)
    Path("full").mkdir()
    Path("full/file").touch()
    with pytest.raises(InputError, match="full exists and is not a study"):
        searched(cache, folder=Path("full"))
    Path("full/study.json").write_text("[")
    with pytest.raises(InputError, match=r"full/study\.json is damaged"):
        searched(cache, folder=Path("full"))
    odd = searched(cache, folder=Path("a b %41 #?"), name="odd", trials=1, fit=valley)
    assert (odd.folder / "study.sqlite3").is_file()


# --- the objective ---


def test_the_roc_auc_is_that_of_the_validation_split(cache: Cache) -> None:
    outcome = searched(cache, trials=1, objective="auc", by="mse_topk")
    assert outcome.objective == "auc by mse_topk" and outcome.trials[0].epochs == 2
    run = Run(outcome.folder / "trials/0")
    opened = open_run(run, "cpu")
    figures = score_selection(opened, recorded_films(run, "val", None), by="mse_topk").figures
    assert figures and figures.film["mse_topk"].roc_auc == pytest.approx(outcome.trials[0].value)
    assert "validation ROC-AUC by mse_topk" in summary(outcome)[0]


def test_the_greatest_roc_auc_wins(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_worker, "validation_roc_auc", lambda run, by, device: [0.4, 0.9, 0.7][int(run.path.name)])
    outcome = searched(cache, trials=3, objective="auc", fit=valley)
    assert outcome.best and outcome.best.number == 1 and [t.number for t in outcome.ranked()] == [1, 2, 0]
    assert all(t.state == "complete" for t in outcome.trials), "a loss on the way says nothing of a ROC-AUC"


def test_what_has_no_roc_auc_is_refused(cache: Cache) -> None:
    def normal_only(plan: Plan) -> Any:
        prepared = prepare(plan)
        label = cache.index["label"].copy()
        label[prepared.split == "val"] = 0
        films = SimpleNamespace(index={"label": label}, path=cache.path, content_hash="")
        return SimpleNamespace(plan=plan, config=prepared.config, cache=films, split=prepared.split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "prepare", normal_only)
        with pytest.raises(InputError, match=r"validation split of .* has \d+ normal and 0 abnormal films"):
            searched(cache, objective="auc")
    with pytest.raises(InputError, match="no score 'mes' of cae; there are: atypicality, mixture, mse, "):
        searched(cache, objective="auc", by="mes")
    with pytest.raises(InputError, match="--by goes with --objective auc"):
        searched(cache, by="mse")
    with pytest.raises(InputError, match="no objective 'accuracy'; there are: auc, loss"):
        searched(cache, objective="accuracy")
    assert not Path("tune").exists()


def test_with_keep_last_the_last_epoch_counts(cache: Cache) -> None:
    assert kept_loss([{"validation": 2.0}, {"validation": 1.0}, {"validation": 3.0}], keeps_best=True) == 1.0
    assert kept_loss([{"validation": 2.0}, {"validation": 1.0}, {"validation": 3.0}], keeps_best=False) == 3.0


# --- spaces ---


@pytest.mark.parametrize("name", sorted(ZOO | TOOLS))
def test_a_space_has_settings_of_the_model_and_values_they_take(name: str) -> None:
    kind = find_model(name)
    assert set(kind.space) <= set(settings_of(kind))
    for key, how in kind.space.items():
        assert not {"epochs", "size", "patience", "keep"} & {key}, "these are what a study fixes"
        for value in how.bounds():
            for preset in kind.presets:
                config, training = resolve(name, preset, [f"{key}={value}"])
                assert (config.model_dump() | training.model_dump())[key] == value


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_space_leaves_the_validation_loss_the_same_yardstick(name: str, cache: Cache) -> None:
    """The same weights have the same validation loss, whatever value a searched setting of the model has."""
    kind = find_model(name)
    normals = FilmSet(cache, "full-he", (cache.index["label"] == 0).nonzero()[0][:4], 64)
    batch = as_batch(normals.read(), torch.device("cpu"))
    narrow = ["width=4"] if "width" in kind.Config.model_fields else []

    def made(*settings: str) -> Detector:
        torch.manual_seed(0)
        built = kind(resolve(name, "fast", [*narrow, *settings])[0], 64).eval()
        assert isinstance(built, Detector)
        return built

    plain = made()
    for key, how in kind.space.items():
        if key not in kind.Config.model_fields:
            continue
        for value in how.bounds():
            other = made(f"{key}={value}")
            if {k: v.shape for k, v in other.state_dict().items()} == {
                k: v.shape for k, v in plain.state_dict().items()
            }:
                with torch.inference_mode():
                    assert torch.equal(other.validation_loss(batch), plain.validation_loss(batch)), key


def test_what_cannot_be_searched_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = replace(plan(cache), model="contrast_density", settings=())
    models = "alphagan, bigan, cae, classifier, dcgan, "
    with pytest.raises(InputError, match=rf"^contrast_density has nothing to search; there are: {models}.*vae"):
        tune(fixed, SearchOptions())
    with pytest.raises(InputError, match="fixed by --set"):
        searched(cache, "learning_rate=.1", "augmentation=none")
    with pytest.raises(InputError, match="greater than 0"):
        searched(cache, space={"learning_rate": Range(-1, 1)})
    with pytest.raises(InputError, match="no setting 'rate'"):
        searched(cache, space={"rate": Range(0.1, 1)})
    with pytest.raises(InputError, match="--least-epochs 5 is more than the 2 epochs"):
        searched(cache, least_epochs=5)
    with pytest.raises(InputError, match="--trials 0 --jobs 1"):
        searched(cache, trials=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"needs optuna: pip install 'xray-anomaly\[tune\]'"):
        searched(cache)
    assert not Path("tune").exists()


def test_settings_that_the_user_fixes_are_not_searched(cache: Cache) -> None:
    outcome = searched(cache, "augmentation=none", trials=1, fit=valley)
    assert set(outcome.trials[0].parameters) == {"learning_rate"}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda: Range(2, 1), "no range from 2 to 1"),
        (lambda: Range(0.0, 1.0, log=True), "no logarithm of 0"),
        (lambda: Range(1, 2.5, integer=True), "not both one"),
        (lambda: Choice(("a",)), "is no choice"),
        (lambda: Choice(("a", "a")), "is no choice"),
    ],
)
def test_what_is_no_space(how: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        how()


def test_the_time_left_is_that_of_the_trials_so_far() -> None:
    now = datetime(2024, 1, 1, 12)

    def trial(state: str, began: float, ended: float | None, epochs: int = 0) -> Any:
        end = None if ended is None else now - timedelta(seconds=ended)
        return SimpleNamespace(
            state=SimpleNamespace(name=state),
            user_attrs={},
            last_step=epochs,
            datetime_start=now - timedelta(seconds=began),
            datetime_complete=end,
        )

    task: Any = SimpleNamespace(trials=5, epochs=10)
    assert seconds_left([trial("RUNNING", 3, None)], task, now) is None
    assert seconds_left([trial("RUNNING", 3, None, 1)], task, now) == 5 * 30 - 3
    known = [trial("COMPLETE", 60, 40), trial("PRUNED", 40, 30), trial("FAIL", 90, 0)]
    assert seconds_left([*known, trial("RUNNING", 5, None)], task, now) == 3 * 15 - 5
    assert seconds_left([*known, *[trial("RUNNING", 20, None)] * 3], task, now) == 0


def test_a_study_whose_trials_are_read_by_a_person(cache: Cache) -> None:
    outcome = searched(cache, trials=2, fit=valley)
    with (outcome.folder / "trials.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["learning_rate"]) for line in lines] == [t.parameters["learning_rate"] for t in outcome.trials]
    assert json.loads(to_json(json.loads((outcome.folder / "study.json").read_text())["settings"]))["model"] == "cae"
