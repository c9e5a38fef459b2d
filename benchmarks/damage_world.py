"""What `benchmarks.damage` damages: small folders of every kind, and what the package makes of each."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

import anomaly
from anomaly.cli.app import main as command
from anomaly.evaluation.detector_search import AutoRecord
from anomaly.evaluation.figures import read_metrics
from anomaly.experiments.bench import Bench, read_grid
from anomaly.experiments.grid import Grid
from anomaly.experiments.run_comparison import compare_runs
from anomaly.pipeline.auto_record import read_record, read_scores, write_record, write_scores
from anomaly.pipeline.export import export_run
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.plan import Plan, Prepared, prepare
from anomaly.runs import CHECKPOINT, Run
from anomaly.training.trainer import Trainer
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

SIZE, TINY = 32, ("width=4", "epochs=2", "batch_size=8", "augmentation=none")
RECIPE, OPTIONS = Recipe(name="plain", size=SIZE), BuildOptions(variants=("raw", "full-he"), workers=1)


@dataclass(frozen=True)
class Kind:
    """A kind of folder, and what is made of it."""

    folder: str  # in the world; "cache" with a copy of it beside it as "cache2" is none
    files: tuple[str, ...]  # patterns of what is damaged
    uses: tuple[str, ...]  # names in USES, one after the other
    flips: int  # of each file


WORLD = Path("world")  # in the current folder, as all paths that a world records


def make_world() -> None:
    """Draw films (SYNTHETIC), prepare them, train, score, calibrate, export and search, and stop some of it halfway."""
    WORLD.mkdir()
    write_phantoms(WORLD / "films", seed=1, patients=24, size=96)
    write_phantoms(WORLD / "new", seed=2, patients=4, size=96)
    cache = WORLD / "cache" / "films.h5"
    build(open_source(WORLD / "films"), RECIPE, cache, options=OPTIONS)
    for seed, name in enumerate(("run", "other")):
        prepared = plan(cache, seed)
        fit(prepared, continue_or_create(prepared, WORLD / name, resume=False), workers=0, on_epoch=lambda report: None)
        typed("score", WORLD / name, "--sensitivity", "0.8")
    typed("calibrate", WORLD / "run", WORLD / "films", "--name", "clinic")
    export_run(Run(WORLD / "run"), WORLD / "bundle")
    typed("score", WORLD / "bundle", WORLD / "new", "--threshold", "0.01")
    _stop_training(plan(cache, 0))
    _stop_build()
    _search(cache)
    for picture in (*WORLD.rglob("*.png"), *WORLD.rglob("*.html")):
        if picture.is_relative_to(WORLD / "films") or picture.is_relative_to(WORLD / "new"):
            continue
        picture.unlink()
    for folder in ("run/new", "bundle/new", "other/new"):
        shutil.rmtree(WORLD / folder, ignore_errors=True)


def plan(cache: Path, seed: int) -> Prepared:
    return prepare(Plan("cae", cache, "full-he", settings=TINY, seed=seed, device="cpu"))


def typed(*words: object) -> str:
    """Run a verb in this process, and return what it says; InputError where it ends with an error."""
    import sys

    out, argv = StringIO(), sys.argv
    sys.argv = ["anomaly", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(out):
            command()
    except SystemExit as stop:
        if stop.code:
            text = out.getvalue()
            said = [line for line in text.splitlines() if line.startswith("error: ")]
            if stop.code == 2 and len(said) == 1:
                raise InputError(said[0].removeprefix("error: ")) from None
            raise RuntimeError(text[-500:]) from None
    finally:
        sys.argv = argv
    return out.getvalue()


def _stop_training(prepared: Prepared) -> None:
    run, original = continue_or_create(prepared, WORLD / "unfinished", resume=False), Trainer.run

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    Trainer.run = lambda self, *given: original(self, *given, checkpoint_seconds=0.0)  # type: ignore[method-assign]
    try:
        fit(prepared, run, workers=0, on_epoch=stop)
    except KeyboardInterrupt:
        pass
    finally:
        Trainer.run = original  # type: ignore[method-assign]


def _stop_build() -> None:
    def stop(progress: object) -> None:
        if getattr(progress, "phase", "") == "films" and getattr(progress, "done", 0) == 40:
            raise KeyboardInterrupt

    try:
        build(open_source(WORLD / "films"), RECIPE, WORLD / "partial" / "films.h5", options=OPTIONS, on_progress=stop)
    except KeyboardInterrupt:
        return
    raise AssertionError("the build was not stopped")


def _search(cache: Path) -> None:
    wanted = {"films": "films", "listing_hash": "0", "where": [], "seed": 0, "choose_by": "labels", "recipe": "plain"}
    record = AutoRecord.model_validate(wanted | {"size": SIZE, "minutes": 5, "spent": 12.5})
    write_record(WORLD / "auto", record)
    write_scores(WORLD / "auto", "cae", {"film": [f"{i}.png" for i in range(30)], "score": [i / 7 for i in range(30)]})
    Bench(WORLD / "bench", Grid(cache, ("cae",), ("full-he",), (0, 1), "fast", TINY))


# --- what is made of a folder; each returns what has to stay the same ----------------------------------------------


def score_cache(folder: Path) -> object:
    """The films of a run's cache scored, with p-values and flags, and a heatmap."""
    run = anomaly.load(folder, device="cpu")
    return _outcome(run, None)


def score_moved_cache(folder: Path) -> object:
    """The same with the cache in this folder, and the films behind it read one by one."""
    return _outcome(anomaly.load(WORLD / "run", cache=folder / "films.h5", device="cpu"), None)


def score_new(folder: Path) -> object:
    return _outcome(anomaly.load(folder, device="cpu"), WORLD / "new")


def score_by_clinic(folder: Path) -> object:
    return _outcome(anomaly.load(folder, calibration="clinic", device="cpu"), WORLD / "new")


def _outcome(run: "anomaly.LoadedRun", films: Path | None) -> object:
    result = run.score(films, split="all" if films is None else None)
    heat = run.heatmap(films, split="test" if films is None else None, limit=1)
    scored = [(film.id, film.scores, film.flagged, film.p_value, film.label) for film in result]
    return scored, result.notes, [(one.name, one.scale, one.map.tobytes()) for one in heat]


def figures(folder: Path) -> object:
    return read_metrics(Run(folder)).to_data()


def compare(folder: Path) -> object:
    return compare_runs((Run(folder), None), (Run(WORLD / "other"), None)).to_data()


def listing(folder: Path) -> object:
    """What `anomaly runs` shows: only where it names no damage."""
    listed = json.loads(typed("runs", folder.parent, "--json"))
    for one in listed:
        if one["state"] == "damaged":
            raise InputError(one["reason"])
    return [{name: value for name, value in one.items() if name not in ("created", "bytes")} for one in listed]


def inspect(folder: Path) -> object:
    """`inspect --verify`: what does not hold is its error."""
    return typed("inspect", folder / "films.h5", "--verify")


def read_cache(folder: Path) -> object:
    """All that a training reads."""
    cache = Cache(folder / "films.h5")
    rows = np.arange(len(cache))
    said = {name: column.tolist() for name, column in cache.index.items()}
    arrays = [read(name, rows).tobytes() for name in cache.variants for read in (cache.films, cache.masks)]
    return repr(said), arrays, cache.failures, cache.source, cache.recipe_json, cache.synthetic


def score_unfinished(folder: Path) -> object:
    return _outcome(anomaly.load(folder, device="cpu"), None)


def resume(folder: Path) -> object:
    run = Run(folder)
    prepared = plan(WORLD / "cache" / "films.h5", 0)
    fit(prepared, continue_or_create(prepared, folder, resume=True), workers=0, on_epoch=lambda report: None)
    assert not (folder / CHECKPOINT).exists()
    return (folder / "weights.safetensors").read_bytes(), (folder / "calibration.json").read_bytes(), run.config


def resume_build(folder: Path) -> object:
    build(open_source(WORLD / "films"), RECIPE, folder / "films.h5", options=OPTIONS)
    assert not Cache(folder / "films.h5").verify()
    return read_cache(folder)


def go_on_searching(folder: Path) -> object:
    return read_record(folder), read_scores(folder, "cae")


def go_on_benching(folder: Path) -> object:
    try:
        return read_grid(folder)
    except ValueError as error:  # `anomaly bench` and `report` say it with the file
        raise InputError(f"{folder / 'bench.json'}: {error}") from None


def export(folder: Path) -> object:
    shutil.rmtree(folder.parent / "exported", ignore_errors=True)
    export_run(Run(folder), folder.parent / "exported")
    return read_all(folder.parent / "exported", ("model.onnx", "calibration.json", "metrics.json"))


def read_all(folder: Path, names: tuple[str, ...]) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


USES: dict[str, Callable[[Path], Any]] = {
    use.__name__: use
    for use in (
        score_cache,
        score_moved_cache,
        score_new,
        score_by_clinic,
        figures,
        compare,
        listing,
        inspect,
        read_cache,
        score_unfinished,
        resume,
        resume_build,
        go_on_searching,
        go_on_benching,
        export,
    )
}

MADE = ("run.json", "calibration.json", "weights.safetensors", "films.safetensors", "manifest.json")
KINDS = {
    "run, scored on its cache": Kind("run", (*MADE, "choices.json", "abnormal.json"), ("score_cache",), 40),
    "run, new films": Kind("run", MADE, ("score_new",), 10),
    "run, exported": Kind("run", (*MADE, "history.csv", "warnings.json", "metrics.json"), ("export",), 10),
    "results of a run": Kind("run", ("scores.csv", "metrics.json"), ("figures", "compare", "listing"), 40),
    "calibration of a place": Kind("run", ("calibrations/clinic/*",), ("score_by_clinic",), 40),
    "cache, scored": Kind("cache", ("films.h5",), ("score_moved_cache",), 400),
    "cache, read": Kind("cache", ("films.h5",), ("read_cache",), 300),
    "cache, inspected": Kind("cache", ("films.h5",), ("inspect", "read_cache"), 100),
    "unfinished run, scored": Kind("unfinished", ("run.json", CHECKPOINT), ("score_unfinished",), 60),
    "unfinished run, resumed": Kind("unfinished", ("run.json", CHECKPOINT), ("resume",), 60),
    "unfinished cache": Kind("partial", ("films.h5.partial", "films.h5.partial.rows"), ("resume_build",), 30),
    "bundle": Kind("bundle", ("*",), ("score_new",), 25),
    "auto": Kind("auto", ("auto.json", "scores/cae.csv", "scores/manifest.json"), ("go_on_searching",), 40),
    "bench": Kind("bench", ("bench.json",), ("go_on_benching",), 40),
}


def files_of(kind: Kind) -> list[str]:
    """Return the files of a kind that are there, by their path in its folder."""
    folder = WORLD / kind.folder
    found = [path for pattern in kind.files for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [os.path.relpath(path, folder) for path in found if not path.name.startswith(".") and path.stat().st_size]
