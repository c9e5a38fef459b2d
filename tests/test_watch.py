"""A folder under watch: each film once, whatever happens; what is none is named once."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anomaly.runs import Run
from anomaly.service.records import FilmResult
from anomaly.service.watch import COLUMNS, Watch
from preprocessing import InputError

from .service_detectors import FACTS, OpenFake
from .service_running import until
from .test_cli import refused, typed
from .test_next_commands import following


@contextmanager
def watching(folder: Path, out: Path, **options: object) -> Iterator[tuple[Watch, list[tuple[str, FilmResult]]]]:
    told: list[tuple[str, FilmResult]] = []
    watch = Watch(folder, out, OpenFake(), on_result=lambda film, result: told.append((film, result)), **options)  # type: ignore[arg-type]
    try:
        yield watch, told
    finally:
        watch.close()


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "incoming"
    (made / "deep").mkdir(parents=True)
    return made


def put(path: Path, content: str) -> None:
    path.write_text(content)


def test_films_are_scored_as_they_come_and_once(folder: Path, tmp_path: Path) -> None:
    put(folder / "a.png", "0.75")
    put(folder / "deep" / "a.png", "0.25")
    put(folder / ".hidden.png", "0.1")
    (folder / "link.png").symlink_to(folder / "a.png")
    with watching(folder, tmp_path / "out") as (watch, told):
        thread = threading.Thread(target=watch.run, args=(0.05,))
        thread.start()
        until(lambda: len(told) == 2)
        put(folder / "b.png", "0.5")
        until(lambda: len(told) == 3)
        put(folder / "b.png", "0.625")  # another film of the same name
        until(lambda: len(told) == 4)
        watch.stop()
        thread.join()
    assert [(row["film"], row["score"], row["flagged"]) for row in rows(tmp_path / "out")] == [
        ("a.png", "0.75", "1"),
        ("deep/a.png", "0.25", "0"),
        ("b.png", "0.5", "1"),
        ("b.png", "0.625", "1"),
    ]
    assert json.loads((tmp_path / "out/deep/a.png.json").read_text())["parts"][0]["score"] == 0.25
    assert (tmp_path / "out/deep/a.png_heatmap.png").read_bytes() == b"map of 0.25"
    with watching(folder, tmp_path / "out") as (watch, told):
        watch.run(0.01, once=True)
    assert not told


def test_a_film_that_still_grows_is_left(folder: Path, tmp_path: Path) -> None:
    put(folder / "whole.png", "0.5")
    put(folder / "part.png", "0.")
    stop = threading.Event()

    def grow() -> None:
        with (folder / "part.png").open("a") as file:
            while not stop.wait(0.01):
                file.write("1")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with watching(folder, tmp_path / "out") as (watch, told):
            counts = watch.run(0.3, once=True)
    finally:
        stop.set()
        writer.join()
    assert [film for film, _ in told] == ["whole.png"] and counts.unstable == 1


def test_what_is_no_film_is_named_once(folder: Path, tmp_path: Path) -> None:
    for name, content in (
        ("bad.png", "bad"),
        ("good.png", "0.5"),
        ("many.zip", "PK"),
        ("list.csv", "path\n/etc/passwd\n"),
    ):
        put(folder / name, content)
    for expected in (4, 0):
        with watching(folder, tmp_path / "out") as (watch, told):
            counts = watch.run(0.01, once=True)
        assert len(told) == expected
        assert (counts.scored, counts.failed) == ((1, 3) if expected else (0, 0))
    errors = {row["film"]: row["error"] for row in rows(tmp_path / "out") if row["error"]}
    assert set(errors) == {"bad.png", "many.zip", "list.csv"} and errors["bad.png"] == "the film: not a film"
    assert json.loads((tmp_path / "out/bad.png.json").read_text())["state"] == "failed"


def test_a_film_that_kills_the_worker_is_left_out_and_its_neighbours_are_not(folder: Path, tmp_path: Path) -> None:
    for name, content in (("a", "0.1"), ("b", "die"), ("c", "0.3")):
        put(folder / name, content)
    with watching(folder, tmp_path / "out") as (watch, told):
        watch.run(0.01, once=True)
    assert {film: result.state for film, result in told} == {"a": "scored", "b": "failed", "c": "scored"}
    assert "2 processes died scoring it, the last by signal 9" in rows(tmp_path / "out")[1]["error"]


def test_a_row_that_a_kill_cut_off_is_made_again(folder: Path, tmp_path: Path) -> None:
    put(folder / "a.png", "0.5")
    put(folder / "b.png", "0.25")
    out = tmp_path / "out"
    with watching(folder, out) as (watch, _):
        watch.run(0.01, once=True)
    content = (out / "results.csv").read_bytes()
    for cut in range(1, len(content) - content.rstrip(b"\n").rfind(b"\n") - 1):
        (out / "results.csv").write_bytes(content[:-cut])
        with watching(folder, out) as (watch, told):
            watch.run(0.001, once=True) if cut % 16 == 1 else None
        assert [film for film, _ in told] == (["b.png"] if cut % 16 == 1 else [])
        assert (out / "results.csv").read_bytes().endswith(b"\n")
    with watching(folder, out) as (watch, told):
        watch.run(0.01, once=True)
    assert [row["film"] for row in rows(out)] == ["a.png", "b.png"]


def test_results_inside_the_folder_are_no_films(folder: Path) -> None:
    put(folder / "a.png", "0.5")
    for _ in range(2):
        with watching(folder, folder / "results") as (watch, _):
            watch.run(0.01, once=True)
    assert [row["film"] for row in rows(folder / "results")] == ["a.png"]


def test_what_cannot_be_watched_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        Watch(tmp_path / "nothing", tmp_path / "out", OpenFake())
    with pytest.raises(InputError, match="take another"):
        Watch(folder, folder, OpenFake())
    with watching(folder, tmp_path / "out"), pytest.raises(InputError, match="in use"):
        Watch(folder, tmp_path / "out", OpenFake())
    put(tmp_path / "out" / "results.csv", "film,score\n")
    with pytest.raises(InputError, match="another --out"):
        Watch(folder, tmp_path / "out", OpenFake())
    assert "finished" in COLUMNS


def test_the_verb_scores_what_is_there(
    capsys: pytest.CaptureFixture[str], run: Run, films: Path, folder: Path, tmp_path: Path
) -> None:
    chosen = sorted(films.rglob("image1.png"))[:3]
    for number, film in enumerate(chosen):
        (folder / f"{number}.png").write_bytes(film.read_bytes())
    put(folder / "notes.txt", "no film")
    words = ("watch", run.path, folder, "--out", tmp_path / "out", "--once", "--every", 1, "--device", "cpu")
    status, out, err = typed(capsys, *words)
    assert status == 0 and "of 3 films flagged, 1 left out" in out
    assert following(out) == ["anomaly", *map(str, words)]  # the same command, with all that it was given
    assert "calibration: the one of the training" in out
    assert "SYNTHETIC" in out and "left out: notes.txt" in err
    for number, film in enumerate(chosen):
        alone = typed(capsys, "score", run.path, film, "--out", tmp_path / f"alone{number}", "--device", "cpu")
        assert alone[0] == 0
        with (tmp_path / f"alone{number}/scores.csv").open(newline="") as file:
            (row,) = list(csv.DictReader(file))
        (mine,) = [one for one in rows(tmp_path / "out") if one["film"] == f"{number}.png"]
        assert float(mine["score"]) == pytest.approx(float(row["mse"]), rel=1e-5) and mine["flagged"] == row["flagged"]
        assert (tmp_path / f"out/{number}.png_heatmap.png").is_file()
    unknown = refused(capsys, *words[:5], "--formats", "gif")
    assert "no format 'gif'" in unknown and "dicom-sc" in unknown and "none" in unknown


def test_the_verb_ends_in_order_on_sigterm(run: Run, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "anomaly", "watch", str(run.path), str(folder), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: (tmp_path / "out/results.csv").exists(), 60)
        assert process.stdout is not None and "SYNTHETIC" in process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        out = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "0 of 0 films flagged" in out


def test_a_name_in_the_csv_is_never_a_formula_and_is_remembered(folder: Path, tmp_path: Path) -> None:
    names = ("=cmd.png", "+1.png", "'quoted.png", "-2.png")
    for name in names:
        put(folder / name, "0.5")
    for expected in (4, 0):
        with watching(folder, tmp_path / "out") as (watch, told):
            watch.run(0.01, once=True)
        assert len(told) == expected
    assert {row["film"] for row in rows(tmp_path / "out")} == {f"'{name}" for name in names}


def test_what_another_detector_scored_is_scored_again_and_said(folder: Path, tmp_path: Path) -> None:
    put(folder / "a.png", "0.5")
    put(folder / "a.png_heatmap.png", "0.5")
    out = tmp_path / "out"
    with watching(folder, out) as (watch, told):
        watch.open()
        assert watch.notes() == ["no films: 1 file written by this program (heatmaps)"]
        watch.run(0.01, once=True)
    digits = FACTS.digest[:16]
    assert [(row["film"], row["run"], row["detector"]) for row in rows(out)] == [("a.png", "run", digits)]
    (out / "results.csv").write_text((out / "results.csv").read_text().replace(digits, "f" * 16))
    for expected in (1, 0):
        with watching(folder, out) as (watch, told):
            watch.open()
            again = [note for note in watch.notes() if "another detector" in note]
            assert again == ["1 film that another detector scored: scored again by run"] * expected
            watch.run(0.01, once=True)
        assert len(told) == expected
    assert [row["detector"] for row in rows(out)] == ["f" * 16, digits]
