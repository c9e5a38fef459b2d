"""The command line as typed: the path from films to heatmaps, one line for what is wrong, nothing lost."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from anomaly import console
from anomaly.cli.app import main
from anomaly.console import _Pace, progress
from anomaly.runs import Run
from preprocessing.cache.reader import Cache

from .conftest import TINY


def typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `anomaly ARGUMENTS` in this process: status, stdout, stderr."""
    argv, sys.argv = sys.argv, ["anomaly", *map(str, arguments)]
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = argv
    out = capsys.readouterr()
    return status, out.out, out.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error that the user can mend."""
    status, _, err = typed(capsys, *arguments)
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith(("error:", "Error:"))]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_the_whole_path_as_typed(capsys: pytest.CaptureFixture[str], films: Path) -> None:
    settings = [word for setting in TINY for word in ("--set", setting)]
    status, out, _ = typed(capsys, "preprocess", films, "--size", 64, "--workers", 1)
    assert status == 0 and "SYNTHETIC" in out and len(list(Path("cache").glob("*.h5"))) == 1
    status, out, _ = typed(capsys, "train", "cae", *settings, "--device", "cpu")
    assert status == 0 and "next: anomaly score runs/cae-1" in out and "SYNTHETIC" in out
    status, out, _ = typed(capsys, "score", "runs/cae-1")
    assert status == 0 and "| mse " in out and "| mean_grey " in out and "by difficulty" in out
    assert out.count("SYNTHETIC") == 6  # over every table of figures: three levels, finding, difficulty, pixels
    status, out, _ = typed(capsys, "heatmap", "runs/cae-1", "--limit", 2)
    assert status == 0 and len(list(Path("runs/cae-1/maps").rglob("*.png"))) == 2
    page = Path("runs/cae-1/report.html").read_text()
    assert "SYNTHETIC" in page and "http://" not in page and "https://" not in page
    status, out, _ = typed(capsys, "inspect", "--verify", "--sheet", "sheet.png", "--films", 4)
    assert status == 0 and "every checksum holds" in out and Path("sheet.png").stat().st_size > 10_000
    status, out, _ = typed(capsys, "inspect", "--json")
    assert status == 0 and json.loads(out)["synthetic"] is True
    status, out, _ = typed(capsys, "preprocess", films, "--size", 64, "--workers", 1)
    assert status == 0 and "films already there, 0 left out" in out


def test_preprocess_without_a_source_draws_films_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomaly.pipeline import preprocess
    from anomaly.pipeline.options import PhantomOptions

    drawn: list[PhantomOptions] = []
    draw = preprocess.draw_phantoms

    def small(options: PhantomOptions, **more: Any) -> object:
        drawn.append(options)
        return draw(replace(options, patients=6, size=96), **more)

    monkeypatch.setattr(preprocess, "draw_phantoms", small)
    status, out, _ = typed(capsys, "preprocess", "--size", 32, "--workers", 1)
    assert status == 0 and "no SOURCE given: using the built-in films" in out and "SYNTHETIC" in out
    assert drawn == [PhantomOptions(Path("cache/phantoms"))]


def test_help_loads_nothing_heavy() -> None:
    """Beside the standard library: typer, what typer is made of, and modules of our own. Torch would make it cost 25
    times as much; benchmarks/startup.py holds the seconds.
    """

    def loaded(*lines: str) -> set[str]:
        packages = "print(*{name.split('.')[0] for name in sys.modules} - {*sys.stdlib_module_names})"
        program = "\n".join(("import sys", *lines, packages))
        printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        return set(printed.splitlines()[-1].split())

    empty = (
        "import typer",
        "app = typer.Typer()",
        "app.command()(lambda: None)",
        "app(['--help'], standalone_mode=False)",
    )
    ours = loaded("from anomaly.cli.app import app", "app(['--help'], standalone_mode=False)")
    assert ours - loaded(*empty) == {"anomaly", "preprocessing"}


def test_a_reader_that_goes_ends_no_work(cache: Cache) -> None:
    words = " ".join(f"--set {setting}" for setting in TINY)
    command = f"{sys.executable} -m anomaly train cae --cache {cache.path} {words} | true"
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True, stderr=subprocess.DEVNULL)
    assert Run(Path("runs/cae-1")).finished


def test_a_time_is_told_when_there_is_one_to_tell() -> None:
    pace = _Pace(total=9, start=3)
    assert pace.state(0, "cells", "cae begins", None) == "cae begins"
    assert pace.state(0, "epochs", "", 70) == "1 min 10 s left"
    pace.began -= 10
    assert pace.state(2, "cells", "vae begins", None) == "0.2 cells/s  20 s left  vae begins"


def test_models_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cae " in typed(capsys, "models")[1]
    _, out, _ = typed(capsys, "models", "cae")
    for word in ("code_channels", "learning_rate", "patience", "standard", "paper", "fast", "mse_topk"):
        assert word in out
    assert "no model 'vqvae'; there are: alphagan, " in refused(capsys, "models", "vqvae")
    assert "no model 'vqvae'; there are: alphagan, " in refused(capsys, "train", "vqvae")


def test_films_are_prepared_by_nets_of_ones_own(
    capsys: pytest.CaptureFixture[str], films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes and masks beside films -> nets -> another cache -> a detector -> a new film, through the same nets."""
    for net, size, settings in (("unet", 32, ("width=2",)), ("ssd", 96, ("size=none",))):
        words = [word for one in (*settings, "epochs=1", "batch_size=16") for word in ("--set", one)]
        status, out, _ = typed(capsys, "preprocess", films, "--for", net, "--size", size, "--out", f"{net}.h5")
        assert status == 0 and f"next: anomaly train {net} --cache {net}.h5" in out
        status, out, _ = typed(capsys, "train", net, "--preset", "fast", "--cache", f"{net}.h5", *words)
        assert status == 0 and f"next: anomaly preprocess FILMS --{'mask' if net == 'unet' else 'localizer'}" in out
        status, out, _ = typed(capsys, "score", f"runs/{net}-1")
        assert status == 0 and "SYNTHETIC test films" in out and Path(f"runs/{net}-1/films.csv").is_file()
    nets = ("--localizer", "ssd:runs/ssd-1", "--mask", "unet:runs/unet-1")
    status, out, _ = typed(capsys, "preprocess", films, "--size", 64, "--workers", 2, "--out", "nets.h5", *nets)
    assert status == 0 and set(Cache(Path("nets.h5")).nets) == {"localizer", "segmenter"}
    assert "ssd" in typed(capsys, "inspect", "nets.h5")[1]
    tiny = [word for setting in TINY for word in ("--set", setting)]
    assert typed(capsys, "train", "cae", "--cache", "nets.h5", *tiny)[0] == 0
    film = next(films.rglob("image1.png"))
    status, out, _ = typed(capsys, "score", "runs/cae-1", film)
    assert status == 0 and film.name in out
    assert "is a run of unet, which" not in refused(capsys, "score", "runs/unet-1", film)
    assert "unet prepares films and scores none" in refused(capsys, "heatmap", "runs/unet-1")
    Path("runs/unet-1/calibration.json").write_text('{"threshold": 0.9}')
    Path("runs/unet-1/manifest.json").unlink()
    assert "it has other weights" in refused(capsys, "score", "runs/cae-1", film)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mask", "unit"), "no --mask 'unit'; there are: local, grabcut, otsu, none, unet, unet:RUN"),
        (("--localizer", "unet"), "no --localizer 'unet'; there are: classical, none, ssd, ssd:RUN"),
        (("--localizer", "ssd:"), "there are: classical, none, ssd, ssd:RUN"),
        (("--localizer", "ssd:nowhere"), "nowhere is not a run folder"),
        (("--for", "cae"), "no net 'cae' that prepares films; there are: dense, ssd, unet"),
        (("--cluster", "tcp://127.0.0.1:1"), "no Dask scheduler answered"),
    ],
)
def test_wrong_ways_are_refused(
    capsys: pytest.CaptureFixture[str], films: Path, words: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "preprocess", films, *words)


def test_a_detectors_cache_teaches_no_net(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    assert "has no boxes; `anomaly preprocess FILMS --for ssd`" in refused(
        capsys, "train", "ssd", "--cache", cache.path
    )
    assert "'cae' is not trained by --make; there are: ssd, unet" in refused(capsys, "models", "cae", "--make")


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_sources_that_cannot_be_taken(capsys: pytest.CaptureFixture[str], films: Path) -> None:
    film = next(films.rglob("image1.png")).read_bytes()
    Path("empty").mkdir()
    assert "empty" in refused(capsys, "preprocess", "empty")
    assert "gone" in refused(capsys, "preprocess", "gone")
    write(Path("five/manifest.csv"), "path,label\na.png,2\n")
    write(Path("five/a.png"), film)
    assert "line 2" in refused(capsys, "preprocess", "five")
    write(Path("five/manifest.csv"), "path,label\nb.png,0\n")
    assert "b.png" in refused(capsys, "preprocess", "five")
    write(Path("five/manifest.csv"), "path,label\n../five/a.png,0\n")
    assert "../five/a.png" in refused(capsys, "preprocess", "five")
    write(Path("five/manifest.csv"), "path,label,patient,split\na.png,0,p,train\nc.png,0,p,test\n")
    write(Path("five/c.png"), film)
    assert "patient 'p' is in two splits" in refused(capsys, "preprocess", "five")
    with zipfile.ZipFile("climbs.zip", "w") as file:
        file.writestr("../a.png", film)
    assert "../a.png" in refused(capsys, "preprocess", "climbs.zip")


def test_films_that_cannot_be_read_are_left_out_and_named(capsys: pytest.CaptureFixture[str], films: Path) -> None:
    film = next(films.rglob("image1.png")).read_bytes()
    for i in range(3):
        write(Path(f"mixed/good{i}.png"), film)
    write(Path("mixed/cut.png"), film[: len(film) // 2])
    write(Path("mixed/nothing.png"), b"")
    write(Path("mixed/text.png"), "not a film at all")
    status, out, err = typed(capsys, "preprocess", "mixed", "--size", 32, "--workers", 1)
    assert status == 0 and "3 films written, 3 left out" in out
    assert all(name in err for name in ("cut.png", "nothing.png", "text.png"))
    (path,) = Path("cache").glob("*.h5")
    assert {failure for failure, _ in Cache(path).failures} == {"cut.png", "nothing.png", "text.png"}
    for good in Path("mixed").glob("good*.png"):
        good.unlink()
    assert refused(capsys, "preprocess", "mixed", "--size", 32, "--workers", 1)


def test_few_films_are_no_training_set(capsys: pytest.CaptureFixture[str], films: Path) -> None:
    for i, path in enumerate(sorted(films.rglob("image1.png"))[:5]):
        write(Path(f"five/{i}.png"), path.read_bytes())
    assert typed(capsys, "preprocess", "five", "--size", 32, "--workers", 1)[0] == 0
    assert "normal films to train on" in refused(capsys, "train", "cae")
    assert "5 normal, 0 abnormal, 0 unknown" in refused(capsys, "train", "cae")
    assert not Path("runs").exists()


def test_caches_that_cannot_be_taken(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    assert "run `anomaly preprocess`" in refused(capsys, "train", "cae")
    data = cache.path.read_bytes()
    write(Path("cut.h5"), data[: len(data) // 2])
    write(Path("text.h5"), "text")
    assert "cut.h5" in refused(capsys, "train", "cae", "--cache", "cut.h5")
    assert "not an HDF5 file" in refused(capsys, "inspect", "text.h5")


def test_wrong_words(capsys: pytest.CaptureFixture[str], films: Path, cache: Cache) -> None:
    assert "no recipe 'foot'; there are: auto, limb, plain" in refused(capsys, "preprocess", films, "--recipe", "foot")
    assert "no recipe 'foot'" in refused(capsys, "preprocess", "--recipe", "foot")
    assert not Path("cache").exists(), "films were drawn before the settings were looked at"
    assert "full-he" in refused(capsys, "preprocess", films, "--variants", "full-eq")
    assert "not key=value" in refused(capsys, "preprocess", films, "--set", "margin")
    assert "no compression 'zip'" in refused(capsys, "preprocess", films, "--compression", "zip")
    assert "no preset 'quick'" in refused(capsys, "train", "cae", "--cache", cache.path, "--preset", "quick")
    assert "no setting 'epoch'" in refused(capsys, "train", "cae", "--cache", cache.path, "--set", "epoch=3")
    assert "its size --size" in refused(capsys, "preprocess", films, "--set", "size=64")
    assert "is not a run folder" in refused(capsys, "score", "runs/cae-7")
    assert "'--seed'" in refused(capsys, "train", "cae", "--cache", cache.path, "--seed", 10**30)
    assert "no device 'meta' (there are: cpu, cuda, mps)" in refused(
        capsys, "train", "cae", "--cache", cache.path, "--device", "meta"
    )
    assert not Path("runs").exists()
    assert "'--workers'" in refused(capsys, "preprocess", films, "--workers", 10**6)
    assert "augmentation" in typed(capsys, "train", "cae", "--set", "augmentation=noone", "--cache", cache.path)[2]
    assert "No such command" in refused(capsys, "trian")
    assert "No such option" in refused(capsys, "train", "cae", "--epochs", 3)


def test_an_error_of_ours_is_one_line_unless_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a <b>\nc")

    monkeypatch.setattr("anomaly.models.zoo", broken)
    status, _, err = typed(capsys, "models")
    assert status == 1 and err.startswith("error: unexpected ZeroDivisionError: a <b> c; ") and err.count("\n") == 1
    with mock.patch.dict(os.environ):  # which --debug changes, for the processes that a verb starts
        assert "Traceback" in typed(capsys, "models", "--debug")[2]


def test_an_interruption_is_said_kindly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anomaly.models.zoo", stopped)
    status, _, err = typed(capsys, "models")
    assert status == 130 and err == "error: interrupted; the same command resumes it\n"
    monkeypatch.setattr("anomaly.runs.Run", stopped)
    status, _, err = typed(capsys, "score", "runs/cae-1")
    assert status == 130 and err == "error: interrupted; nothing is lost\n"


def test_scores_of_hostile_names_stay_text(capsys: pytest.CaptureFixture[str], run: Run, films: Path) -> None:
    name = "<script>alert(1)</script> | x\n\x1b[31m.png".replace("/", "_")
    write(Path("new") / name, next(films.rglob("image1.png")).read_bytes())
    status, out, _ = typed(capsys, "score", run.path, "new", "--out", "out")
    assert status == 0 and "\\|" in out and "\x1b" not in out and "[31m.png" in out
    status, out, _ = typed(capsys, "heatmap", run.path, "new", "--out", "maps", "--formats", "npy")
    assert status == 0
    (file,) = Path("maps").rglob("*.npy")
    assert np.load(file, allow_pickle=False).shape == (64, 64)


@pytest.mark.parametrize(("hours", "most"), [(0.01, 4), (1, 35), (10, 150)])
def test_without_a_terminal_long_work_prints_few_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hours: float, most: int
) -> None:
    """Every ten seconds at first, then after a fifth of the time that has passed, five minutes at most."""
    now = [0.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    seconds = round(3600 * hours)
    with progress("working", seconds, "films") as advance:
        for _ in range(seconds):
            now[0] += 1
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert min(seconds // 10, 4) <= len(lines) <= most
    assert lines[-1].startswith(f"working {seconds}/{seconds}  done in")
