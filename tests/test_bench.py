"""The grid: every cell once, whoever dies; the table the same however it came about."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anomaly import bench as module
from anomaly import commands
from anomaly import table as tables
from anomaly.bench import Bench, Cell, Grid, Standing, estimate, run_bench, run_on_cluster, take_folder
from anomaly.models.cae import CAE
from preprocessing import InputError
from preprocessing.build import build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.schema import Cache
from preprocessing.sources import open_source

TINY = ("width=4", "epochs=2", "batch_size=8", "augmentation=none", "patience=0")


def grid(cache: Cache, **more: object) -> Grid:
    told: dict[str, object] = {
        "models": ("cae", "contrast_density"),
        "variants": ("full-he",),
        "seeds": (0, 1),
        "settings": TINY,
        "device": "cpu",
    }
    return Grid(cache.path, **(told | more))  # type: ignore[arg-type]


def finished(path: Path, chosen: Grid, jobs: int = 1) -> Bench:
    bench = Bench(path, chosen)
    run_bench(bench, jobs=jobs, threads=1, on_change=lambda standing: None)
    bench.write(bench.table())
    return bench


@pytest.fixture(scope="module")
def whole(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return finished(tmp_path_factory.mktemp("bench") / "whole", grid(cache))


def test_a_bench_has_a_run_a_cell_and_a_table_of_all(whole: Bench, cache: Cache) -> None:
    assert len(whole.cells) == 4 and not whole.open()
    table = whole.table()
    scores = ("mse", "mse_topk", "typicality", "weighted", "peak", "ssim")
    assert set(table.rows) == {
        *(("cae", name) for name in scores),
        ("contrast_density", "typicality"),
        *(("trivial", name) for name in ("mean_grey", "minus_std")),
    }
    assert list(table.columns) == ["full-he"] and table.synthetic
    for variant in table.columns:
        figures = json.loads((whole.path / "cells" / f"cae-{variant}-1" / "metrics.json").read_text())
        entry = table.entries["cae", "mse", variant]
        assert entry.each[1] == figures["film"]["mse"]["roc_auc"] and entry.n == figures["film"]["mse"]["n"]
        assert entry.mean == pytest.approx(sum(entry.each) / 2)
        assert [e for e in table.entries.values() if e.best and e in column(table, variant)]
    for name in (*module.WRITTEN, "index.html"):
        assert (whole.path / name).stat().st_size > 200


def column(table: tables.Table, variant: str) -> list[tables.Entry]:
    return [entry for (_, _, own), entry in table.entries.items() if own == variant]


def test_a_finished_cell_is_not_run_again(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_cell", lambda *arguments: pytest.fail("ran again"))
    run_bench(whole, jobs=1, threads=1, on_change=lambda standing: None)


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
    seen: list[Standing] = []
    run_bench(bench, jobs=2, threads=1, on_change=seen.append)
    killer.join()
    assert killed and not bench.open() and not any(bench.failure(cell) for cell in bench.cells)
    assert tables.to_json(bench.table()) == tables.to_json(whole.table())
    assert seen[-1].done == seen[-1].cells == 4 and any(standing.running for standing in seen)


def test_a_cluster_that_loses_a_worker_makes_the_same_table(
    whole: Bench, cache: Cache, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, processes = cluster
    bench = Bench(tmp_path / "far", grid(cache))
    lost: list[Standing] = []

    def lose(standing: Standing) -> None:
        if not lost:
            processes[1].kill()
        lost.append(standing)

    run_on_cluster(bench, address, threads=1, on_change=lose)
    assert lost and not bench.open() and not any(bench.failure(cell) for cell in bench.cells)
    assert tables.to_json(bench.table()) == tables.to_json(whole.table())
    with pytest.raises(InputError, match="no Dask scheduler answered"):
        run_on_cluster(Bench(tmp_path / "b", grid(cache)), "tcp://127.0.0.1:9", threads=1, on_change=lose)


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
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("runs/bench-1/cells/*/metrics.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    left = [pid(file) for file in tmp_path.glob("runs/bench-1/workers/*-*.json")]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{one}").exists() for one in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left and not any(Path(f"/proc/{one}").exists() for one in left), "workers outlive the command"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "runs/bench-1: " in done.stderr and "4 of 4 to do" not in done.stderr and not Path("runs/bench-2").exists()
    printed = tables.from_json(done.stdout)  # and nothing else
    assert {k: e.each for k, e in printed.entries.items()} == {k: e.each for k, e in whole.table().entries.items()}


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
    table = bench.table()
    assert "can't allocate memory" in str(table.entries["cae", "mse", "raw"].failure)
    assert table.entries["contrast_density", "typicality", "raw"].mean is not None
    assert "can't allocate memory" in (tmp_path / "a" / "table.md").read_text()
    bench.forgive()
    assert bench.open() == [cell]


def test_a_cell_that_takes_its_process_with_it_fails_alone(cache: Cache, tmp_path: Path) -> None:
    """The net of 512 px in a process that may not have the memory."""
    bench = Bench(tmp_path / "a", grid(cache, models=("contrast_density",), variants=("raw",), seeds=(0,), settings=()))
    cell = bench.cells[0]
    deaths: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 90
        while len(deaths) < module.TRIES and time.monotonic() < deadline:
            for file in (bench.path / "workers").glob("*-*.json"):
                if pid(file) not in deaths:
                    deaths.append(pid(file))
                    os.kill(deaths[-1], signal.SIGKILL)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    run_bench(bench, jobs=2, threads=1, on_change=lambda standing: None)
    killer.join()
    assert len(deaths) == module.TRIES
    assert "its process ended 2 times with status -9" in str(bench.failure(cell))


def test_what_cannot_be_benched_is_refused(cache: Cache, whole: Bench, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bench of other films or settings: seeds: \[0, 1\] -> \[5\]; take another"):
        Bench(whole.path, grid(cache, seeds=(5,)))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("")
    with pytest.raises(InputError, match="exists and is no bench"):
        Bench(tmp_path / "x", grid(cache))
    for more, message in (
        ({"variants": ("raw", "side")}, "side"),
        ({"models": ("cae", "vqvae")}, "no model 'vqvae'"),
        ({"models": ("ssd",)}, "ssd prepares films and scores none"),
        ({"settings": ("legs=4",)}, "none of cae, contrast_density has this setting"),
        ({"preset": "best"}, "no preset 'best' of cae"),
        ({"models": ("cae/best",)}, "no preset 'best' of cae"),
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
        open_source(tmp_path / "m.csv"), Recipe(name="plain", size=64), tmp_path / "m.h5", variants=("raw",), workers=1
    )
    with pytest.raises(InputError, match=r"m\.h5 has no abnormal films to test on \(\d+ films in its test split\)"):
        grid(Cache(tmp_path / "m.h5"), variants=("raw",)).check()


def test_the_same_grid_takes_the_same_folder(cache: Cache) -> None:
    first = take_folder(None, grid(cache))
    assert first == Path("runs/bench-1")
    Bench(first, grid(cache))
    assert take_folder(None, grid(cache)) == first
    assert take_folder(None, grid(cache, seeds=(7,))) == Path("runs/bench-2")
    assert take_folder(Path("mine"), grid(cache)) == Path("mine")


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
    cae, floor = estimate(chosen)
    assert (cae.row, cae.runs, cae.epochs, cae.size) == ("cae", 2, 7, 64) and cae.seconds > 0 and cae.films >= 8
    assert floor.seconds == 0


def test_a_bench_is_shown_again_from_its_folder_alone(whole: Bench, tmp_path: Path) -> None:
    again = module.reopen(whole.path)
    assert tables.to_json(again.table()) == tables.to_json(whole.table())
    (whole.path / "index.html").unlink()
    commands.report(whole.path, None, "cpu")
    assert "Model card" in (whole.path / "index.html").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="can't be read"):
        module.reopen(tmp_path / "empty")
    with pytest.raises(InputError, match="runs/ has no run and no bench"):
        commands.report(None, None, "cpu")


def planned(cache: Path | None, **more: object) -> None:
    told: dict[str, object] = {
        "source": None,
        "table": False,
        "cache": cache,
        "models": "cae",
        "variants": "full-he",
        "seeds": "0,1",
        "preset": "fast",
        "settings": list(TINY),
        "size": None,
        "recipe": "hand",
        "paper": False,
        "format_": "terminal",
        "out": None,
        "dry_run": True,
        "jobs": 1,
        "cluster": None,
        "device": "cpu",
        "precision": "float32",
    }
    commands.bench(**(told | more))  # type: ignore[arg-type]


def test_a_plan_is_said_and_nothing_is_trained(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    planned(cache.path)
    said = capsys.readouterr().out
    assert "2 trainings: 1 models x 1 variants x 2 seeds, preset fast" in said
    assert "cae: 2 runs of at most 2 epochs on" in said and "all of them:" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format_": "word"}, "no format 'word'; there are: terminal, markdown, latex, csv, json"),
        ({"source": Path("films")}, "a SOURCE is prepared, a --cache is there already; give one of them"),
        ({"cache": None, "preset": "paper"}, "--preset paper is the protocol of MURA's hands: give the folder"),
        ({"seeds": "0,one"}, "--seeds '0,one' is no comma list of whole numbers"),
        ({"variants": "full-he,side"}, "side"),
    ],
)
def test_a_bench_that_cannot_be_meant_is_refused(cache: Cache, more: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**({"cache": cache.path} | more))  # type: ignore[arg-type]
