"""Runs listed, compared, named and removed: what is said of them, and what is refused."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly import runs
from anomaly.evaluation.bootstrap import paired
from anomaly.experiments.run_comparison import compare_runs
from anomaly.experiments.run_list import Listed, list_runs
from anomaly.experiments.run_removal import check_removal, remove
from anomaly.runs import CacheRecord, Run, RunConfig, RunSettings
from preprocessing import InputError

from .test_cli import refused, typed

CACHE = CacheRecord(
    path="/films.h5",
    content_hash="c" * 64,
    recipe="{}",
    recipe_digest="r",
    nets={},
    dtype="uint8",
    source="chests",
    synthetic=False,
    command="anomaly preprocess chests",
)
CONFIG = RunConfig(
    model="cae",
    preset="fast",
    settings=RunSettings(model={}, training={"epochs": 9, "stages": "head,all"}),
    size=64,
    variant="full-he",
    seed=0,
    split_seed=0,
    split_rule="paper",
    split_hash="s",
    weights=None,
    precision="float32",
    device="cpu",
    cache=CACHE,
    versions={},
    films={"train": 9, "val": 3},
    created="2026-01-02T03:04:05+00:00",
)


def make(path: Path, *, finished: bool = True, **changes: Any) -> Run:
    """Make a run without training it."""
    run = runs.create(path, CONFIG.model_copy(update=changes))
    if finished:
        run.write("calibration.json", "{}")
    return run


def scored(path: Path, scores: list[float], labels: list[str] | None = None, **changes: Any) -> Run:
    """Make a run and the scores of its test films, two a patient."""
    labels = labels or ["normal", "abnormal"] * (len(scores) // 2)
    run = make(path, **changes)
    columns: dict[str, Any] = {
        "film": [f"film{n}.png" for n in range(len(scores))],
        "patient": [f"p{n // 4}{labels[n]}" for n in range(len(scores))],
        "label": labels,
        "split": ["test"] * len(scores),
        "mse": scores,
        "mean_grey": [0.5] * len(scores),
        "flagged": [0] * len(scores),
    }
    run.write("scores.csv", runs.to_csv(columns))
    return run


def line(path: str, folder: Path = Path("runs")) -> Listed:
    (found,) = [one for one in list_runs(folder) if one.path == Path(path)]
    return found


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock as another process would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the list -------------------------------------------------------------------------------------------------------


def test_each_run_is_a_line_and_a_damaged_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    make(Path("runs/a-10"))
    make(Path("runs/a-9"), finished=False).write("history.csv", "epoch,validation\n1,.5\n2,.4\n")
    make(Path("runs/team"), members=["runs/a-9", "runs/a-10"])
    make(Path("runs/sites/north"))  # as `--out` makes it
    make(Path("runs/broken")).write("run.json", "{")
    runs.write_atomic(Path("runs/old/run.json"), json.dumps({"format": 1, "model": "vae"}))
    grid = {"models": ["cae", "vae"], "variants": ["raw"], "seeds": [0], "content_hash": "c"}
    runs.write_atomic(Path("runs/bench-1/bench.json"), json.dumps(grid))
    cell = make(Path("runs/bench-1/cells/cae-raw-0"))
    for name in ("scores.csv", "report.html"):
        cell.write(name, "")
    assert [str(one.path) for one in list_runs(Path("runs"), "name")] == [
        *("runs/a-9", "runs/a-10", "runs/bench-1", "runs/broken", "runs/old", "runs/sites/north", "runs/team")
    ]
    assert (line("runs/a-9").state, line("runs/a-9").progress) == ("unfinished", "epoch 2 of 18")
    assert line("runs/team").model == "ensemble of 2" and line("runs/team").kind == "ensemble"
    bench = line("runs/bench-1")
    assert (bench.kind, bench.model, bench.variant) == ("bench", "2 models", "raw")
    assert (bench.state, bench.progress, bench.films) == ("unfinished", "1 of 2 cells", "chests")
    assert line("runs/broken").state == line("runs/old").state == "damaged" and "format 1" in line("runs/old").reason
    status, out, err = typed(capsys, "runs")
    assert status == 0 and out.count(" damaged |") == 2 and "note: runs/broken: " in err and "next: anomaly " in out
    status, out, err = typed(capsys, "runs", "--json", "--sort", "name")
    data = json.loads(out)
    assert status == 0 and len(data) == 7 and data[1]["created"] == CONFIG.created and not err


def test_a_list_shows_the_figures_that_were_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("low", 0.6), ("high", 0.9), ("exact", 1.0)):
        figures = {"roc_auc": value, "roc_auc_interval": None if name == "exact" else [value - 0.1, value + 0.05]}
        make(Path("runs") / name).write("metrics.json", json.dumps({"score": "mse", "film": {"mse": figures}}))
    make(Path("runs/net")).write("metrics.json", json.dumps({"boxes": 3}))  # of a net that prepares films
    make(Path("runs/odd")).write("metrics.json", json.dumps({"score": "mse"}))
    assert [one.path.name for one in list_runs(Path("runs"), "auc")][:3] == ["exact", "high", "low"]
    out = typed(capsys, "runs")[1]
    assert ".900 [.800, .950] mse" in out and "1.000 mse" in out and "damaged" in out
    following = [text for text in out.splitlines() if text.startswith("next: ")]
    assert len(following) == 1 and following[0].startswith("next: anomaly compare runs/")


def test_a_list_knows_what_is_running_and_writes_nothing() -> None:
    run = make(Path("runs/a"), finished=False)
    before = sorted(Path("runs").rglob("*"))
    assert line("runs/a").state == "unfinished" and sorted(Path("runs").rglob("*")) == before
    with held(run.path / ".lock"):
        assert line("runs/a").state == "running"
    assert line("runs/a").state == "unfinished"


def test_an_empty_place_and_another_order(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = typed(capsys, "runs")
    assert status == 0 and "runs/ has no run and no bench" in out and "next: anomaly train cae" in out
    assert json.loads(typed(capsys, "runs", "--json")[1]) == []
    assert "there are: date, name" in refused(capsys, "runs", "--sort", "age")


def test_many_runs_are_listed_quickly_without_torch() -> None:
    """Measured .4 s for 1,000 on one core; the bound leaves room for a slower or busy machine."""
    text = runs.to_json(CONFIG.model_dump())
    for number in range(1000):
        folder = Path(f"runs/cae-{number}")
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text)
        (folder / "calibration.json").write_text("{}")
    code = "import sys; from anomaly.cli.app import app; app(['runs'], standalone_mode=False); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'h5py', 'sklearn', 'cv2')))"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") > 1000 and time.monotonic() - start < 10


# --- comparing ------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_on_the_draws_of_the_same_patients(
    capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    labels = ["normal", "abnormal"] * 40
    abnormal = np.array([0, 1] * 40)
    good, poor = (rng.normal(size=80) + shift * abnormal for shift in (2.0, 0.3))
    first, second = scored(Path("runs/a"), good.tolist()), scored(Path("runs/b"), poor.tolist())
    compared = compare_runs((first, "mse"), (second, "mse"))
    patients = np.array([text.split(",")[1] for text in (first.path / "scores.csv").read_text().splitlines()[1:]])
    wanted = paired(abnormal, good, poor, patients)
    assert compared.comparison == wanted and wanted.difference > 0 and wanted.p < 0.05
    swapped = compare_runs((second, "mse"), (first, "mse")).comparison
    assert swapped.difference == -wanted.difference and swapped.p == pytest.approx(wanted.p)
    status, out, _ = typed(capsys, "compare", "runs/a:mse", "runs/b:mse")
    assert status == 0 and "80 test films (40 abnormal)" in out and "distinguishable at 5 %" in out
    assert "next: anomaly report runs/a" in out
    data = json.loads(typed(capsys, "compare", "runs/a:mse", "runs/b:mse", "--json")[1])
    assert data["difference"] == wanted.difference and data["first"]["run"] == "runs/a" and labels


def test_what_cannot_be_compared_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rising = [float(n) for n in range(16)]
    scored(Path("runs/a"), rising)
    scored(Path("runs/fewer"), rising[:12])
    scored(Path("runs/swapped"), rising, ["abnormal", "normal"] * 8)
    scored(Path("runs/one"), rising, ["normal"] * 16)
    make(Path("runs/unscored"))
    make(Path("runs/begun"), finished=False)
    assert "run `anomaly score runs/unscored`" in refused(capsys, "compare", "runs/a:mse", "runs/unscored")
    assert "is unfinished" in refused(capsys, "compare", "runs/begun", "runs/a")
    assert "compared with itself" in refused(capsys, "compare", "runs/a:mse", "runs/a:mse")
    assert "not the same films" in refused(capsys, "compare", "runs/a:mse", "runs/swapped:mse")
    assert "there are: mse, mean_grey; did you mean 'mse'?" in refused(
        capsys, "compare", "runs/a:msw", "runs/fewer:mse"
    )
    assert "--shared" in refused(capsys, "compare", "runs/a:mse", "runs/fewer:mse")
    assert "run `anomaly score runs/a`" in refused(capsys, "compare", "runs/a", "runs/fewer:mse")  # no metrics.json
    status, out, _ = typed(capsys, "compare", "runs/a:mse", "runs/fewer:mse", "--shared")
    assert status == 0 and "12 test films" in out and "left out: 4 test films" in out
    assert "difference .000 [.000, .000], p = 1.000: not distinguishable" in out
    assert "a ROC-AUC needs both" in refused(capsys, "compare", "runs/one:mse", "runs/one:mean_grey")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp", "a\\b", ".hidden", "-x", " x", "x\n", "ü" * 60])
def test_a_name_that_is_a_path_or_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        runs.named(name)


@pytest.mark.parametrize("name", ["cae", "knees of May (2)", "Füße", "a.b-c_d"])
def test_a_plain_name_is_a_folder_of_runs(name: str) -> None:
    assert runs.named(name) == Path("runs", name)


# --- removing -------------------------------------------------------------------------------------------------------


def test_what_is_removed_is_gone_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c", "broken"):
        make(Path("runs") / name).write("weights.safetensors", b"x" * 5000)
    Path("runs/broken/run.json").write_text("{")
    assert "add --yes" in refused(capsys, "rm", "runs/a")
    status, out, _ = typed(capsys, "rm", "runs/a", "runs/broken", "runs/a/", "--yes")
    assert status == 0 and "2 folders removed" in out and "next: anomaly runs" in out and "kB freed" in out
    assert sorted(path.name for path in Path("runs").iterdir()) == ["b", "c"]


def test_what_has_to_stay_is_refused_before_anything_is_removed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "net"):
        make(Path("runs") / name)
    nets = {"localizer": {"name": "ssd", "run": str(Path("runs/net").absolute()), "digest": "d"}}
    make(Path("runs/team"), members=["runs/a", "runs/b"], cache=CACHE.model_copy(update={"nets": nets}))
    make(Path("runs/outer"))
    make(Path("runs/outer/inner"))
    Path("plain").mkdir()
    Path("link").symlink_to("runs/b")
    for words, reason in (
        (("runs/a",), "runs/a is a member of runs/team"),
        (("runs/b", "runs/net", "runs/a"), "is a member of"),
        (("runs/net",), "prepares the films of runs/team"),
        (("runs/team", "plain"), "plain is not the folder of a run"),
        (("runs/team", "nothing"), "nothing is not the folder of a run"),
        (("runs",), "runs is not the folder of a run"),
        (("link",), "is a link"),
        (("runs/outer",), "holds another run, runs/outer/inner"),
    ):
        assert reason in refused(capsys, "rm", *words, "--yes"), words
    with held(Path("runs/team/.lock")):
        assert "a process is at work in runs/team" in refused(capsys, "rm", "runs/team", "--yes")
    monkeypatch.chdir("runs/outer/inner")
    assert "is the current folder" in refused(capsys, "rm", "../inner", "--yes")
    monkeypatch.chdir("../../..")
    assert len(list_runs(Path("runs"))) == 5
    assert typed(capsys, "rm", "runs/a", "runs/team", "--yes")[0] == 0  # both are named
    assert typed(capsys, "rm", "runs/net", "--yes")[0] == 0


def test_a_bench_is_removed_whole_unless_it_is_worked_on(capsys: pytest.CaptureFixture[str]) -> None:
    runs.write_atomic(Path("runs/bench-1/bench.json"), "{}")
    cell = make(Path("runs/bench-1/cells/cae-raw-0"))
    for lock in (Path("runs/bench-1/locks/at-work.lock"), cell.path / ".lock"):
        with held(lock):
            assert "a process is at work" in refused(capsys, "rm", "runs/bench-1", "--yes")
    assert typed(capsys, "rm", "runs/bench-1", "--yes")[0] == 0 and not Path("runs/bench-1").exists()


def test_an_interrupted_removal_leaves_no_half_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make(Path("runs/a"))

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(check_removal([Path("runs/a")]))
    assert list_runs(Path("runs")) == [] and not Path("runs/a").exists()


@pytest.mark.parametrize("answer, gone", [("y", True), ("", False), ("n", False)])
def test_a_terminal_is_asked(answer: str, gone: bool) -> None:
    make(Path("runs/a"))
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "anomaly", "rm", "runs/a"], stdin=child, stdout=child, stderr=child
    )
    os.write(parent, f"{answer}\n".encode())
    assert process.wait(timeout=60) == 0
    assert Path("runs/a").exists() != gone
    os.close(child)
    os.close(parent)


def test_a_removal_counts_bytes_not_links() -> None:
    run = make(Path("runs/a"))
    (run.path / "far").symlink_to("/usr")
    (removal,) = check_removal([run.path])
    assert removal.bytes < 10_000 and replace(removal, bytes=0).kind == "run"
