"""Worker processes: kept for the next tasks, replaced where they would work elsewhere, ended where they are busy."""

import os
from pathlib import Path

import pytest

from preprocessing import workers
from preprocessing.workers import run_in_order


@pytest.fixture(autouse=True)
def no_worker_is_kept(monkeypatch):
    """Start from none, and end those kept."""
    kept: list[workers._Worker] = []
    monkeypatch.setattr(workers, "_idle", kept)
    yield
    for worker in kept:
        worker.end()


def pids(count: int = 2) -> set[int]:
    """Return the processes that worked on some tasks."""
    return set(run_in_order(_pid, range(count), workers=1, ahead=4))


def _pid(_: int) -> int:
    return os.getpid()


def _folder(_: int) -> str:
    return str(Path.cwd())


def test_idle_workers_stay_for_the_next_tasks():
    (first,) = pids()
    assert pids() == {first} and first != os.getpid()


def test_a_kept_worker_that_has_ended_is_replaced():
    (first,) = pids()
    workers._idle[0]._process.kill()
    workers._idle[0]._process.wait()
    (second,) = pids()
    assert second != first


def test_workers_start_anew_in_another_folder_or_with_other_settings(tmp_path, monkeypatch):
    (first,) = pids()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert list(run_in_order(_folder, [0], workers=1, ahead=1)) == [str(tmp_path / "other")]
    (second,) = pids()
    monkeypatch.setenv("SOME_SETTING", "1")
    (third,) = pids()
    assert first != second != third


def test_a_worker_that_is_busy_when_the_results_are_left_is_ended():
    results = run_in_order(_pid, range(40), workers=2, ahead=40)
    next(results)
    processes = [worker._process for worker in results.gi_frame.f_locals["pool"]]
    results.close()
    kept = [worker._process for worker in workers._idle]
    assert all((process in kept) or process.poll() is not None for process in processes)
    assert all(worker.task is None for worker in workers._idle)


def test_an_idle_worker_ends_by_itself(monkeypatch):
    briefly = "import preprocessing.workers as w; w.KEPT = 0.2; from preprocessing"
    monkeypatch.setattr(workers, "SERVE", workers.SERVE.replace("from preprocessing", briefly))
    monkeypatch.setattr(
        workers, "SERVE", workers.SERVE.replace("from pre", "import preprocessing.workers as w; w.KEPT = 0.2; from pre")
    )
    pids()
    assert workers._idle[0]._process.wait(timeout=20) == 0
    assert pids()
