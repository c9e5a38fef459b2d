"""The grid: every cell once, whoever dies; the table the same however it came about."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomaly import runs
from anomaly.cli.benching import bench as bench_verb
from anomaly.cli.scoring import report
from anomaly.evaluation.comparison import Entry, Table
from anomaly.experiments import cells, results
from anomaly.experiments import grid as grids
from anomaly.experiments import run_bench as running
from anomaly.experiments.bench import MOST_ATTEMPTS, Bench, bench_folder, reopen
from anomaly.experiments.bench_plan import PAPER_MODELS
from anomaly.experiments.bench_progress import BenchProgress
from anomaly.experiments.cells import run_cell
from anomaly.experiments.estimate import estimate
from anomaly.experiments.grid import Cell, Grid, every_model
from anomaly.experiments.results import FILES, bench_table, write_results
from anomaly.experiments.run_bench import run_bench, run_on_cluster
from anomaly.experiments.supervisor import exit_on_sigterm
from anomaly.models.cae import CAE
from anomaly.pipeline.fit import continue_or_create
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.options import BenchOptions, ReportOptions
from anomaly.pipeline.plan import prepare
from anomaly.reporting import tables
from anomaly.sealed import sealed, unsealed
from anomaly.training.trainer import Trainer
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.cluster import Cluster
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

TINY = ("width=4", "epochs=2", "batch_size=8", "augmentation=none", "patience=0")


def grid(cache: Cache, **more: object) -> Grid:
    chosen: dict[str, object] = {
        "models": ("cae", "contrast_density"),
        "variants": ("full-he",),
        "seeds": (0, 1),
        "settings": TINY,
        "device": "cpu",
    }
    return Grid(cache.path, **(chosen | more))  # type: ignore[arg-type]


def finished(path: Path, chosen: Grid, jobs: int = 1) -> Bench:
    bench = Bench(path, chosen)
    run_bench(bench, jobs=jobs, threads=1, on_change=lambda progress: None)
    write_results(bench, bench_table(bench))
    return bench


@pytest.fixture(scope="module")
def whole(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return finished(tmp_path_factory.mktemp("bench") / "whole", grid(cache))


def test_a_bench_has_a_run_a_cell_and_a_table_of_all(whole: Bench, cache: Cache) -> None:
    assert len(whole.cells) == 4 and not whole.remaining()
    table = bench_table(whole)
    scores = ("mse", "mse_topk", "atypicality", "weighted", "peak", "ssim", "mixture")
    assert set(table.rows) == {
        *(("cae", name) for name in scores),
        ("contrast_density", "atypicality"),
        *(("trivial", name) for name in ("mean_grey", "minus_std")),
    }
    assert list(table.columns) == ["full-he"] and table.synthetic
    for variant in table.columns:
        figures = json.loads((whole.path / "cells" / f"cae-{variant}-1" / "metrics.json").read_text())
        entry = table.entries["cae", "mse", variant]
        assert entry.each[1] == figures["film"]["mse"]["roc_auc"] and entry.n == figures["film"]["mse"]["n"]
        assert entry.mean == pytest.approx(sum(entry.each) / 2)
        assert [e for e in table.entries.values() if e.best and e in column(table, variant)]
    for name in (*FILES, "index.html"):
        assert (whole.path / name).stat().st_size > 200


@pytest.fixture
def copied(whole: Bench, tmp_path: Path) -> Bench:
    """The same in a folder of its own, to be spoilt."""
    return Bench(Path(shutil.copytree(whole.path, tmp_path / "copied")), whole.grid)


def column(table: Table, variant: str) -> list[Entry]:
    return [entry for (_, _, own), entry in table.entries.items() if own == variant]


def test_a_finished_cell_is_not_run_again(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "run_cell", lambda *arguments: pytest.fail("ran again"))
    run_bench(whole, jobs=1, threads=1, on_change=lambda progress: None)


def pid(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def test_two_processes_one_killed_make_the_same_table(whole: Bench, cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "two", grid(cache))
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for file in (bench.path / "workers").glob("*-*.json"):
                time.sleep(0.2)
                killed.append(pid(file))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    seen: list[BenchProgress] = []
    run_bench(bench, jobs=2, threads=1, on_change=seen.append)
    killer.join()
    assert killed and not bench.remaining() and not any(bench.failure(cell) for cell in bench.cells)
    assert tables.to_json(bench_table(bench)) == tables.to_json(bench_table(whole))
    assert seen[-1].done == seen[-1].cells == 4 and any(progress.running for progress in seen)


def test_a_cluster_that_loses_a_worker_makes_the_same_table(
    whole: Bench, cache: Cache, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, processes = cluster
    bench = Bench(tmp_path / "far", grid(cache))
    lost: list[BenchProgress] = []

    def lose(progress: BenchProgress) -> None:
        if not lost:
            processes[1].kill()
        lost.append(progress)

    run_on_cluster(bench, address, threads=1, on_change=lose)
    assert lost and not bench.remaining() and not any(bench.failure(cell) for cell in bench.cells)
    assert tables.to_json(bench_table(bench)) == tables.to_json(bench_table(whole))
    with pytest.raises(InputError, match="no Dask scheduler answered"):
        run_on_cluster(Bench(tmp_path / "b", grid(cache)), "tcp://127.0.0.1:9", threads=1, on_change=lose)


@contextmanager
def on_two_cores() -> Iterator[None]:
    """What is started here may use two cores: of `bench`, each of two processes and more then has one thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc, and kept to some cores")
def test_a_killed_bench_goes_on_with_the_same_command(whole: Bench, cache: Cache, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "anomaly",
        "bench",
        "--table",
        "--format",
        "json",
        "--jobs",
        "2",
        "--device",
        "cpu",
    ]
    command += ["--cache", str(cache.path), "--models", "cae,contrast_density", "--variants", "full-he"]
    command += ["--seeds", "0,1", *(word for setting in TINY for word in ("--set", setting))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with on_two_cores():
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("runs/bench-1/cells/*/report.html")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    left = [pid(file) for file in tmp_path.glob("runs/bench-1/workers/*-*.json")]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left and not any(Path(f"/proc/{number}").exists() for number in left), "workers outlive the command"
    with on_two_cores():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "runs/bench-1: " in done.stderr and "4 of 4 to do" not in done.stderr and not Path("runs/bench-2").exists()
    printed = tables.from_json(done.stdout)  # and nothing else
    assert {k: e.each for k, e in printed.entries.items()} == {k: e.each for k, e in bench_table(whole).entries.items()}


class Failing(CAE):
    """A CAE that can't be trained."""

    def __init__(self, *arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_a_failed_cell_is_shown_and_stops_nothing(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = grid(
        cache, models=("contrast_density", "cae"), variants=("raw",), seeds=(0,), settings=("code_channels=0",)
    )
    monkeypatch.setattr("anomaly.models.cae.CAE", Failing)
    bench = finished(tmp_path / "a", chosen)
    (cell,) = [cell for cell in bench.cells if cell.model == "cae"]
    assert bench.failure(cell) == "RuntimeError: DefaultCPUAllocator: can't allocate memory"
    table = bench_table(bench)
    assert "can't allocate memory" in str(table.entries["cae", "mse", "raw"].failure)
    assert table.entries["contrast_density", "atypicality", "raw"].mean is not None
    assert "can't allocate memory" in (tmp_path / "a" / "table.md").read_text()
    bench.clear_failures()
    assert bench.remaining() == [cell]


def test_a_cell_that_takes_its_process_with_it_fails_alone(cache: Cache, tmp_path: Path) -> None:
    """The net of 512 px in a process that may not have the memory."""
    bench = Bench(tmp_path / "a", grid(cache, models=("contrast_density",), variants=("raw",), seeds=(0,), settings=()))
    cell = bench.cells[0]
    deaths: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 90
        while len(deaths) < MOST_ATTEMPTS and time.monotonic() < deadline:
            for file in (bench.path / "workers").glob("*-*.json"):
                if pid(file) not in deaths:
                    deaths.append(pid(file))
                    os.kill(deaths[-1], signal.SIGKILL)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    run_bench(bench, jobs=2, threads=1, on_change=lambda progress: None)
    killer.join()
    assert len(deaths) == MOST_ATTEMPTS
    assert bench.failure(cell) == "its process ended 2 times at the start: killed, or out of memory?"


def floor(cache: Cache, **more: object) -> Grid:
    """A grid of cells that are done in a moment: nothing is trained."""
    return grid(cache, **({"models": ("contrast_density",), "variants": ("raw", "raw-he"), "settings": ()} | more))


def dies_at(bench: Bench, cell: Cell) -> None:
    """Let a process end on the spot while it is at a cell."""
    with warnings.catch_warnings(action="ignore"):  # the child of a process with threads; it ends before it needs one
        child = os.fork()
    if child == 0:
        with bench.lock(cell), bench.attempt(cell) as allowed:
            os._exit(9 if allowed else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_attempts_are_counted_in_the_folder_whichever_process_made_them(cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,)))
    poison, other = bench.cells
    for _ in range(MOST_ATTEMPTS):
        dies_at(bench, poison)
        assert bench.failure(poison) is None
    run_bench(bench, jobs=1, threads=1, on_change=lambda progress: None)
    assert bench.done(other) and "its process ended 2 times at the start" in str(bench.failure(poison))
    bench.clear_failures()
    run_bench(bench, jobs=1, threads=1, on_change=lambda progress: None)
    assert bench.done(poison) and not bench.attempts()


def test_an_attempt_from_a_later_checkpoint_is_the_first_one_again(cache: Cache, tmp_path: Path) -> None:
    """Long cells outlive any number of machines that are taken away, as long as they come further."""
    bench = Bench(tmp_path / "a", grid(cache, models=("cae",), seeds=(0,)))
    (cell,) = bench.cells
    dies_at(bench, cell)

    def stops(report: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(bench, cell, stops)
    for _ in range(MOST_ATTEMPTS):
        dies_at(bench, cell)
    with bench.attempt(cell) as allowed:
        assert not allowed
    assert "its process ended 2 times after epoch 1" in str(bench.failure(cell))


def test_what_python_ends_leaves_no_attempt(cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,)))
    with pytest.raises(KeyboardInterrupt), bench.attempt(bench.cells[0]):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), exit_on_sigterm(), bench.attempt(bench.cells[0]):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not bench.attempts() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_failures_are_cleared_by_a_new_command_but_not_by_one_that_joins(cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,)))
    bench.fail(bench.cells[0], "no memory")
    with bench.at_work(), bench.at_work():
        bench.clear_failures()
        assert bench.failure(bench.cells[0]) == "no memory"
    bench.clear_failures()
    assert bench.remaining() == bench.cells


def test_any_error_is_its_cells_failure(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = cells.score_selection

    def broken(run: OpenRun, *arguments: Any, **more: Any) -> object:
        if run.run.config.variant == "raw":
            raise ValueError("label 3; there are: 0, 1\nand more")
        return score(run, *arguments, **more)

    monkeypatch.setattr(cells, "score_selection", broken)
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,)))
    run_bench(bench, jobs=1, threads=1, on_change=lambda progress: None)
    assert bench.failure(bench.cells[0]) == "ValueError: label 3; there are: 0, 1" and bench.done(bench.cells[1])


@pytest.mark.parametrize("error", [runs.DiskFull("the disk is full"), OSError(errno.ENOSPC, "No space left")])
def test_a_full_disk_stops_the_bench(
    error: Exception, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(cells, "write_results", full)
    bench = Bench(tmp_path / "a", floor(cache))
    with pytest.raises(type(error)):
        run_bench(bench, jobs=1, threads=1, on_change=lambda progress: None)
    assert bench.remaining() == bench.cells


def test_what_stops_a_process_beside_is_said(cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache))
    (tmp_path / "a" / "bench.json").write_text(runs.to_json(floor(cache, seeds=(7,)).to_file().model_dump()))
    with pytest.raises(InputError, match=r"a is a bench with other films or settings: seeds: \[7\] -> \[0, 1\]"):
        run_bench(bench, jobs=2, threads=1, on_change=lambda progress: None)


class Lost(Exception):
    """What a cluster raises where a worker was lost."""


class Near(Cluster):
    """A cluster of two threads of this process."""

    def run_as_completed(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Generator[Any, None, None]:
        with ThreadPoolExecutor(2) as pool:
            for future in as_completed([pool.submit(function, task) for task in tasks]):
                yield future.result()


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two threads of this process."""

    @contextmanager
    def connect(*arguments: object, **more: object) -> Iterator[Cluster]:
        yield Near("tcp://test", None, 2, 2, {}, Lost)

    monkeypatch.setattr(running, "connect", connect)


def test_a_cluster_waits_for_a_cell_that_another_process_holds(near: None, cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,)))
    held = (tmp_path / "a" / "locks" / f"{bench.cells[0].name}.lock").absolute()
    held.parent.mkdir(exist_ok=True)
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(3, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        run_on_cluster(bench, "near", threads=1, on_change=lambda progress: None)
        timer.join()
    assert all(map(bench.done, bench.cells)) and not any(map(bench.failure, bench.cells))


def test_a_cell_that_a_cluster_loses_fails_alone(
    near: None, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "a", floor(cache))
    poison, *others = bench.cells
    deaths: list[Cell] = []
    on_worker = running.do_cell_on_worker

    def loses(path: Path, chosen: Grid, threads: int, cell: Cell) -> None:
        if cell != poison or len(deaths) == MOST_ATTEMPTS:
            on_worker(path, chosen, threads, cell)
            return
        deaths.append(cell)
        attempts = {"tries": len(deaths), "place": "at the start"}  # what a worker leaves that ends on the spot
        runs.write_atomic(path / "tries" / f"{cell.name}.json", json.dumps(attempts))
        raise Lost

    monkeypatch.setattr(running, "do_cell_on_worker", loses)
    run_on_cluster(bench, "near", threads=1, on_change=lambda progress: None)
    assert all(map(bench.done, others)) and "its process ended 2 times" in str(bench.failure(poison))


def test_a_cluster_whose_workers_end_at_once_is_given_up(
    near: None, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: object) -> None:
        raise Lost

    monkeypatch.setattr(running, "do_cell_on_worker", lost)
    with pytest.raises(InputError, match="near: 3 workers in a row were lost with nothing done"):
        run_on_cluster(Bench(tmp_path / "a", floor(cache)), "near", threads=1, on_change=lambda progress: None)


def test_one_bench_is_opened_and_written_by_many_at_once(copied: Bench, tmp_path: Path) -> None:
    table = bench_table(copied)
    gate = threading.Barrier(8)

    def opens(number: int) -> None:
        gate.wait()
        for place in range(5):
            Bench(tmp_path / str(place), copied.grid)
            write_results(copied, table)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(opens, range(8)))
    assert not [file for file in tmp_path.rglob("*") if "partial" in file.name]
    assert tables.to_json(table) == (copied.path / "results.json").read_text()


def test_a_table_shows_the_seeds_that_are_there(copied: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds that are done, one that failed, one that is still to do: none of them spoils another."""
    for name in ("cae-full-he-1", "contrast_density-full-he-0"):
        shutil.rmtree(copied.path / "cells" / name)
    copied.fail(next(cell for cell in copied.cells if cell.name == "cae-full-he-1"), "no memory")
    table = bench_table(copied)
    failed, undone = (
        table.entries["cae", "mse", "full-he"],
        table.entries["contrast_density", "atypicality", "full-he"],
    )
    assert (len(failed.each), failed.failed, failed.undone, failed.failure) == (1, 1, 0, "no memory")
    assert (len(undone.each), undone.failed, undone.undone, undone.failure) == (1, 0, 1, None)
    assert len(table.entries["trivial", "mean_grey", "full-he"].each) == 2
    report(ReportOptions(copied.path, device="cpu"))
    page = (copied.path / "index.html").read_text()
    assert "1 of 2 seeds, failed (1)" in page and '<span title="no memory">1 failed</span>' in page
    assert "<span>0 not done</span>" in page
    shutil.rmtree(copied.path / "cells" / "contrast_density-full-he-1")
    assert bench_table(copied).entries["contrast_density", "atypicality", "full-he"].state == "not done"


def test_a_report_keeps_the_papers_figures(copied: Bench) -> None:
    write_results(copied, bench_table(copied, paper=True))
    assert ".570 ± .019" in (copied.path / "table.md").read_text()
    report(ReportOptions(copied.path, device="cpu"))
    assert ".570 ± .019" in (copied.path / "table.md").read_text()
    write_results(copied, bench_table(copied))
    report(ReportOptions(copied.path, device="cpu"))
    assert ".570 ± .019" not in (copied.path / "table.md").read_text()


def test_a_report_takes_the_cache_from_where_it_is_told(copied: Bench, cache: Cache, tmp_path: Path) -> None:
    for file in copied.path.glob("cells/*/run.json"):
        content = json.dumps(unsealed(file.read_text())).replace(str(cache.path), "/moved.h5")
        file.write_text(sealed(json.loads(content)))
        file.with_name("manifest.json").unlink()
    with pytest.raises(InputError, match=r"the films of .* are not at /moved.h5; name their cache with --cache"):
        report(ReportOptions(copied.path, device="cpu"))
    report(ReportOptions(copied.path, cache.path, "cpu"))
    shutil.copy(cache.path, tmp_path / "other.h5")
    grid_file = copied.path / "bench.json"
    content = json.dumps(unsealed(grid_file.read_text())).replace(cache.content_hash, "0" * 64)
    grid_file.write_text(sealed(json.loads(content)))
    with pytest.raises(InputError, match="bench with other films or settings: content_hash"):
        report(ReportOptions(copied.path, tmp_path / "other.h5", "cpu"))


def test_another_precision_is_another_bench(copied: Bench, cache: Cache) -> None:
    with pytest.raises(InputError, match="precision: auto -> float32"):
        Bench(copied.path, grid(cache, precision="float32"))
    without = copied.grid.to_file().model_dump(exclude={"precision"})
    (copied.path / "bench.json").write_text(runs.to_json(without))  # as it was before this key
    assert not Bench(copied.path, grid(cache)).remaining() and not reopen(copied.path).remaining()


def test_a_cell_begun_on_another_machine_begins_anew(cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,), variants=("raw",)))
    (cell,) = bench.cells
    prepared = prepare(bench.grid.plan(cell))
    run = continue_or_create(prepared, bench.folder(cell), resume=False)
    elsewhere = run.config.model_copy(update={"device": "cuda", "versions": {"torch": "0.1"}})
    run.write("run.json", runs.to_json(elsewhere.model_dump()))
    run.write("checkpoint.safetensors", "of that device")
    run_cell(bench, cell)
    assert bench.done(cell) and bench.failure(cell) is None
    assert runs.Run(bench.folder(cell)).config.device == "cpu"


@pytest.mark.parametrize("gone", ["report.html", "scores.csv"])
def test_a_cell_without_its_page_is_not_done_but_needs_no_training(
    gone: str, copied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = copied.cells[0]
    (copied.folder(cell) / gone).unlink()
    assert copied.remaining() == [cell]
    monkeypatch.setattr(Trainer, "run", lambda *arguments: pytest.fail("trained again"))
    run_cell(copied, cell)
    assert copied.done(cell)


def test_a_bench_that_lost_its_bench_json_is_taken_up(copied: Bench, cache: Cache) -> None:
    file = copied.path / "bench.json"
    file.write_text("{")
    with pytest.raises(InputError, match=r"is damaged .*; delete it"):
        Bench(copied.path, copied.grid)
    file.unlink()
    with pytest.raises(
        InputError, match=r"has other films or settings: settings\.model\.width: 4 -> 8; choose another"
    ):
        Bench(copied.path, grid(cache, settings=("width=8", *TINY[1:])))
    assert not file.exists()
    again = Bench(copied.path, copied.grid)
    assert not again.remaining() and tables.to_json(bench_table(reopen(copied.path))) == tables.to_json(
        bench_table(again)
    )


def test_what_cannot_be_benched_is_refused(cache: Cache, whole: Bench, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"bench with other films or settings: seeds: \[0, 1\] -> \[5\]; choose another"
    ):
        Bench(whole.path, grid(cache, seeds=(5,)))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("")
    with pytest.raises(InputError, match="exists and is not a bench"):
        Bench(tmp_path / "x", grid(cache))
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["mine"]
    for more, message in (
        ({"variants": ("raw", "side")}, "side"),
        ({"models": ("cae", "vqvae")}, "no model 'vqvae'"),
        ({"models": ("ssd",)}, "ssd prepares films and scores none"),
        ({"settings": ("legs=4",)}, "none of cae, contrast_density has this setting"),
        ({"preset": "best"}, "no preset 'best' of cae"),
        ({"models": ("cae/best",)}, "no preset 'best' of cae"),
        ({"settings": ("epochs=abc",)}, "--set epochs=abc: Input should be a valid integer"),
    ):
        with pytest.raises(InputError, match=message):
            grid(cache, **more).check()


def test_films_of_one_class_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_phantoms(films, seed=3, patients=12, size=64)
    paths = sorted(path for path in films.rglob("*.png") if "negative" in str(path))
    lines = [f"{path.relative_to(tmp_path)},normal,p{i}" for i, path in enumerate(paths)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient", *lines]))
    build(
        open_source(tmp_path / "m.csv"),
        Recipe(name="plain", size=64),
        tmp_path / "m.h5",
        options=BuildOptions(variants=("raw",), workers=1),
    )
    with pytest.raises(InputError, match=r"m\.h5 has no abnormal films to test on \(\d+ films in its test split\)"):
        grid(Cache(tmp_path / "m.h5"), variants=("raw",)).check()


def test_the_test_split_is_looked_at_by_the_rule_that_is_set(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    split = grids.assign_chosen
    monkeypatch.setattr(grids, "assign_chosen", lambda *a, rule, **k: asked.append(rule) or split(*a, rule=rule, **k))
    grid(cache, models=("cae", "classifier/mura"), settings=(*TINY, "splits=70/20/10")).check()
    grid(cache, models=("cae",)).check()
    assert set(asked[:-2]) == {"70/20/10"} and asked[-2:] == ["paper", "paper"]


def test_the_same_grid_takes_the_same_folder(cache: Cache) -> None:
    first = bench_folder(None, grid(cache))
    assert first == Path("runs/bench-1")
    Bench(first, grid(cache))
    assert bench_folder(None, grid(cache)) == first
    assert bench_folder(None, grid(cache, seeds=(7,))) == Path("runs/bench-2")
    assert bench_folder(Path("mine"), grid(cache)) == Path("mine")


def test_rows_may_name_their_preset_and_settings_go_where_they_belong(cache: Cache) -> None:
    chosen = grid(cache, models=("classifier/cnn", "cae"), variants=("raw",), seeds=(3,), split_by_seed=True)
    assert [(c.model, c.preset, c.name) for c in chosen.cells()] == [
        ("classifier", "cnn", "classifier_cnn-raw-3"),
        ("cae", "fast", "cae-raw-3"),
    ]
    plan = grid(cache, settings=("width=4", "code_channels=2")).plan(Cell("contrast_density", "raw", 0, "standard"))
    assert plan.settings == () and plan.split_seed == 0
    assert chosen.plan(chosen.cells()[0]).split_seed == 3


def test_an_estimate_counts_runs_epochs_and_films(cache: Cache) -> None:
    chosen = grid(cache, settings=("width=4", "epochs=7"))
    (cae, density), refused = estimate(chosen)
    assert (cae.row, cae.runs, cae.epochs, cae.size) == ("cae", 2, 7, 64) and cae.seconds > 0 and cae.films >= 8
    assert density.seconds == 0 and not refused


def test_a_bench_is_shown_again_from_its_folder_alone(whole: Bench, tmp_path: Path) -> None:
    again = reopen(whole.path)
    assert tables.to_json(bench_table(again)) == tables.to_json(bench_table(whole))
    (whole.path / "index.html").unlink()
    report(ReportOptions(whole.path, device="cpu"))
    assert "Model card" in (whole.path / "index.html").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="can't be read"):
        reopen(tmp_path / "empty")
    with pytest.raises(InputError, match="runs/ has no run and no bench"):
        report(ReportOptions())


PLANNED = BenchOptions(
    models="cae",
    variants="full-he",
    seeds="0,1",
    settings=TINY,
    dry_run=True,
    timed=True,
    jobs=1,
    device="cpu",
    precision="float32",
)


def planned(cache: Path | None, **more: Any) -> None:
    bench_verb(replace(PLANNED, cache=cache, **more))


def test_a_plan_is_said_and_nothing_is_trained(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    planned(cache.path)
    said = capsys.readouterr().out
    assert "2 trainings: 1 model x 1 variant x 2 seeds, preset fast" in said
    assert "cae: 2 runs of at most 2 epochs on" in said and "all of them:" in said
    assert not Path("runs").exists()


def test_a_plan_names_what_cannot_be_trained_and_goes_on(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    planned(cache.path, models="cae,vae", settings=[*TINY[1:], "size=128"])
    said = capsys.readouterr().out
    assert "cae: can't be trained, and will be shown as failed: " in said and "holds films of 64 px" in said
    assert "all of them: at most 0 s" in said


def test_seeds_are_numbers_and_models_may_be_all(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    planned(cache.path, seeds="1,01,2")
    assert "2 trainings: 1 model x 1 variant x 2 seeds" in capsys.readouterr().out
    assert every_model("fast") == (*PAPER_MODELS, "classifier", "contrast_density", "feature_mixture", "synthetic")
    assert every_model("paper") == (*PAPER_MODELS, "contrast_density")  # which has nothing to set
    with pytest.raises(InputError, match="no model has a preset 'best'"):
        every_model("best")
    planned(cache.path, models="all,cae", seeds="0", settings=["epochs=1"], preset="fast")
    said = capsys.readouterr().out
    assert "9 trainings: 9 models" in said and "alphagan: 1 run of" in said


def test_a_bench_takes_the_cores_that_it_may(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: {1, 3, 5}, raising=False)
    monkeypatch.setattr(running, "run_bench", lambda bench, **more: given.append((more["jobs"], more["threads"])))
    with pytest.raises(InputError, match="none of its 2 cells could be trained"):
        planned(cache.path, dry_run=False, timed=False, jobs=0)
    assert given == [(2, 1)]


def test_a_bench_without_a_cell_is_an_error(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="bench-1: none of its 1 cell could be trained, for the reasons above"):
        planned(cache.path, dry_run=False, timed=False, seeds="0", settings=[*TINY, "size=128"], table=True)
    said = capsys.readouterr()
    assert "failed (1)" in said.out and "holds films of 64 px" in said.err


def test_data_formats_are_printed_sign_for_sign(
    whole: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(results.FORMATS, "json", lambda table: '{"films": "Hand\u00a0films"}\n')
    planned(
        whole.grid.cache, models="cae,contrast_density", dry_run=False, timed=False, table=True, format="json",
        out=whole.path, precision="auto",
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out) == {"films": "Hand\u00a0films"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format": "word"}, "no format 'word'; there are: terminal, markdown, latex, csv, json"),
        ({"source": Path("films")}, "a SOURCE is prepared, a --cache is there already; give one of them"),
        ({"cache": None, "preset": "paper"}, "--preset paper is the protocol of MURA's hands: give the folder"),
        ({"seeds": "0,one"}, "--seeds '0,one' is not a comma list of whole numbers"),
        ({"variants": "full-he,side"}, "side"),
    ],
)
def test_a_bench_that_cannot_be_meant_is_refused(cache: Cache, more: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**({"cache": cache.path} | more))  # type: ignore[arg-type]


def test_a_new_command_leaves_nothing_of_failures_and_of_dead_processes(cache: Cache, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a", floor(cache, seeds=(0,), variants=("raw",)))
    bench.fail(bench.cells[0], "the disk failed")
    ended = subprocess.run([sys.executable, "-c", DRAFT, tmp_path / "a/workers/1.json"], check=True)
    assert ended.returncode == 0 and [*tmp_path.glob("a/workers/.anomaly-*")]
    bench.clear_failures()
    assert not (tmp_path / "a/failures").exists() and not [*tmp_path.glob("a/workers/.anomaly-*")]


DRAFT = """
import sys
from pathlib import Path
from anomaly.drafts import aside
file = Path(sys.argv[1])
file.parent.mkdir(exist_ok=True)
aside(file).touch()
"""
