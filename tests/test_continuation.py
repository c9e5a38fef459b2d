"""Going on from a finished run: its weights, its splits, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anomaly
from anomaly.data.splits import assign_splits
from anomaly.pipeline.continuation import prepare_continuation
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import run_cache_and_split
from anomaly.pipeline.options import Plan, TrainOptions
from anomaly.pipeline.plan import prepare
from anomaly.runs import Run, Warnings
from anomaly.training.trainer import NO_BETTER
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.join import join, new_films
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

from .test_cli import refused, typed

VARIANT = "full-he"


def prepared_films(
    folder: Path, name: str, *, seed: int, patients: int = 12, size: int = 64, **recipe: object
) -> Cache:
    """Draw films of other hands, and prepare them."""
    write_phantoms(folder / name, seed=seed, patients=patients, size=128)
    for place in (folder / name / "XR_HAND").iterdir():
        if int(place.name[-5:]) > 5:  # the others bear the names of patients of the run
            place.rename(place.with_name(place.name.replace("patient0", "patient9")))
    return prepared_source(folder / name, folder / f"{name}.h5", size=size, **recipe)


def prepared_source(source: Path, path: Path, *, size: int = 64, **recipe: object) -> Cache:
    made = Recipe(name="limb", size=size, **recipe)  # type: ignore[arg-type]
    build(open_source(source), made, path, options=BuildOptions(variants=(VARIANT,), workers=1))
    return Cache(path)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Films that the run has never seen; some of their paths and patients bear the names of its own."""
    return prepared_films(tmp_path_factory.mktemp("other"), "other", seed=7)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "weights.safetensors")


def split_by_patient(run: Run) -> dict[str, str]:
    cache, split = run_cache_and_split(run)
    return dict(zip(cache.index["patient"], split, strict=True))


# --- more epochs ----------------------------------------------------------------------------------------------------


def test_more_epochs_make_a_new_run_that_begins_with_the_weights(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    status, out, err = typed(capsys, "train", run.path, "--more-epochs", 2, "--device", "cpu")
    assert status == 0, err
    new = Run(Path("runs/cae-1"))
    begun = new.config.begun_with
    assert begun and (begun.run, begun.epochs, begun.more_films) == (str(run.path), 3, None)
    assert len(new.history()) == 2 and new.config.seed == 1 and new.config.split_hash == run.config.split_hash
    assert new.config.settings.training == run.config.settings.training | {"epochs": 2}
    assert "begins with the weights of" in out and "after 3 epochs" in out and "next: anomaly score runs/cae-1" in out
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    assert typed(capsys, "train", new.path, "--more-epochs", 1, "--name", "third", "--device", "cpu")[0] == 0
    third = Run(Path("runs/third")).config.begun_with
    assert third and third.epochs == 5


def test_weights_that_no_epoch_betters_are_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--more-epochs", 1, "--set", "learning_rate=10", "--set", "clip=1", "--device", "cpu")
    status, out, err = typed(capsys, "train", run.path, *words)
    assert status == 0 and "the weights are those it began with" in out and NO_BETTER in err
    new = weights(Run(Path("runs/cae-1")))
    assert all(torch.equal(value, new[name]) for name, value in weights(run).items())


def test_an_interrupted_continuation_is_resumed_to_the_bit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly.training.trainer import Trainer

    options = TrainOptions(str(run.path), more_epochs=3, device="cpu")
    prepared = prepare_continuation(options).prepared
    whole = fit(prepared, continue_or_create(prepared, Path("whole"), resume=False), workers=0, on_epoch=lambda _: None)
    original = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, *arguments: original(self, *arguments, checkpoint_seconds=0.0))

    def stop(report: anomaly.training.config.EpochReport) -> None:  # type: ignore[name-defined]
        if report.epoch == 2:
            raise KeyboardInterrupt

    parts = continue_or_create(prepared, None, resume=False)
    with pytest.raises(KeyboardInterrupt):
        fit(prepared, parts, workers=0, on_epoch=stop)
    again = prepare_continuation(options).prepared
    resumed = continue_or_create(again, None, resume=True)
    assert resumed.path == parts.path
    fit(again, resumed, workers=0, on_epoch=lambda _: None)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_what_no_training_goes_on_from_is_refused(
    run: Run, cache: Cache, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--more-epochs", 2, "--device", "cpu")
    assert "is a run: --more-epochs N" in refused(capsys, "train", run.path)
    assert "is not a run folder" in refused(capsys, "train", "cae", *words)
    assert "keeps its own --variant" in refused(capsys, "train", run.path, *words, "--variant", "raw")
    assert "keeps its own --weights" in refused(capsys, "train", run.path, *words, "--weights", "none")
    assert "a setting of the model" in refused(capsys, "train", run.path, *words, "--set", "width=8")
    fitted = prepare(Plan("contrast_density", cache.path, VARIANT, device="cpu"))
    made = fit(fitted, continue_or_create(fitted, tmp_path / "f", resume=False), workers=0, on_epoch=lambda _: None)
    assert "is fitted to its films, not trained by epochs" in refused(capsys, "train", made.path, *words)
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    (copy / "calibration.json").unlink()
    assert "is unfinished" in refused(capsys, "train", copy, *words)
    (copy / "calibration.json").write_text("{}")
    (copy / "weights.safetensors").unlink()
    assert "weights.safetensors is gone" in refused(capsys, "train", copy, *words)


# --- more films -----------------------------------------------------------------------------------------------------


def test_more_films_join_and_no_patient_changes_split(
    run: Run, cache: Cache, other: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--more-films", other.path, "--more-epochs", 1, "--device", "cpu")
    status, out, err = typed(capsys, "train", run.path, *words)
    assert status == 0, err
    new = Run(Path("runs/cae-1"))
    joined, _ = run_cache_and_split(new)
    assert len(joined) == len(cache) + len(other) and joined.verify() == []
    assert new.config.begun_with and new.config.begun_with.more_films == str(other.path)
    before, after = split_by_patient(run), split_by_patient(new)
    assert {name: after[name] for name in before} == before
    assert {*other.index["patient"]} - {*before} and {*other.index["patient"]} & {*before}
    strangers = [row for row, name in enumerate(other.index["patient"]) if name not in before]
    rule = run.config.split_rule
    columns = (other.index[name][strangers] for name in ("patient", "label", "split"))
    wanted = assign_splits(*columns, seed=0, rule=rule)
    assert [after[name] for name in other.index["patient"][strangers]] == wanted.tolist()
    assert (
        len(set(joined.names)) == len(joined)
        and joined.index["path"][: len(cache)].tolist() == cache.index["path"].tolist()
    )
    assert (
        joined.films(VARIANT, slice(None))
        == np.concatenate([cache.films(VARIANT, slice(None)), other.films(VARIANT, slice(None))])
    ).all()
    assert f"{len(other)} new films" in out and f"cache/{joined.path.name}: " in out
    assert typed(capsys, "score", new.path)[0] == 0
    with (new.path / "scores.csv").open() as file:
        tested = {line["film"] for line in csv.DictReader(file)}
    trained_before = set(cache.names[run_cache_and_split(run)[1] == "train"])
    assert not tested & trained_before
    first = joined.path.stat().st_mtime_ns
    assert typed(capsys, "train", run.path, *words, "--name", "again")[0] == 0
    assert joined.path.stat().st_mtime_ns == first  # the joined cache is taken as it is


def test_a_grown_folder_adds_its_new_films_alone(
    films: Path, cache: Cache, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Patients of the run whose new films come later stay in their split, whatever these show."""
    old = prepared_source(films, tmp_path / "old.h5")
    plan = prepare(Plan("contrast_density", old.path, device="cpu"))
    run = fit(plan, continue_or_create(plan, tmp_path / "run", resume=False), workers=0, on_epoch=lambda _: None)
    grown = Path(shutil.copytree(films, tmp_path / "grown"))
    write_phantoms(tmp_path / "more", seed=9, patients=6, size=128)
    studies = sorted({Path(path).parent for path in old.index["path"]})
    target = grown / studies[0].parent / "study9_negative"
    target.mkdir()
    shutil.copy(next((tmp_path / "more").rglob("*.png")), target / "image1.png")
    again = prepared_source(grown, tmp_path / "grown.h5")
    status, out, err = typed(capsys, "train", run.path, "--more-films", again.path, "--device", "cpu")
    assert status == 0, err
    new = Run(Path("runs/contrast_density-1"))
    joined, _ = run_cache_and_split(new)
    assert len(joined) == len(old) + 1 and "1 new film" in out and f"{len(old)} films of them" in out
    assert "1 patient of" in out and "is fitted to all of these films anew" in out
    before, after = split_by_patient(run), split_by_patient(new)
    assert after == before
    fresh = prepare(Plan("contrast_density", joined.path, VARIANT, device="cpu"))
    anew = fit(fresh, continue_or_create(fresh, tmp_path / "n", resume=False), workers=0, on_epoch=lambda _: None)
    assert all(torch.equal(value, weights(new)[name]) for name, value in weights(anew).items())
    assert "none is new" in refused(capsys, "train", new.path, "--more-films", again.path)


def test_films_prepared_otherwise_are_refused(
    run: Run, cache: Cache, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("train", run.path, "--device", "cpu", "--more-films")
    larger = prepared_films(tmp_path, "larger", seed=7, size=96)
    assert "has another recipe than" in refused(capsys, *words, larger.path)
    margin = prepared_films(tmp_path, "margin", seed=7, margin=0.2)
    assert "has another recipe than" in refused(capsys, *words, margin.path)
    build(
        open_source(tmp_path / "larger"),
        Recipe(name="limb", size=64),
        tmp_path / "raw.h5",
        options=BuildOptions(variants=("raw",), workers=1),
    )
    assert "no variant 'full-he'" in refused(capsys, *words, tmp_path / "raw.h5")
    assert "none is new" in refused(capsys, *words, cache.path)
    assert "no cache" in refused(capsys, *words, tmp_path / "nothing.h5")
    assert not Path("runs").exists()


def test_other_films_under_known_names_are_kept_apart(cache: Cache, other: Cache) -> None:
    new = new_films(cache, other)
    paths = [names.path for names in new.names]
    assert len(new.rows) == len(other) and not set(paths) & set(cache.index["path"])
    clashing = set(other.index["path"]) & set(cache.index["path"])
    assert clashing and all(f"other/{path}" in paths for path in clashing)


def test_an_interrupted_join_is_resumed(cache: Cache, other: Cache, tmp_path: Path) -> None:
    new = new_films(cache, other)
    splits = np.full(len(cache), "train", dtype=object), np.full(len(new.rows), "val", dtype=object)
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    whole = join(cache, other, new, splits, tmp_path / "a.h5", variant=VARIANT, command="anomaly train x")
    with pytest.raises(KeyboardInterrupt):
        join(cache, other, new, splits, tmp_path / "b.h5", variant=VARIANT, command="anomaly train x", on_film=stop)
    parts = join(cache, other, new, splits, tmp_path / "b.h5", variant=VARIANT, command="anomaly train x")
    assert Cache(whole).content_hash == Cache(parts).content_hash
    assert Cache(parts).remake == "anomaly train x"  # --force belongs to preprocess


def test_python_goes_on_as_the_command_line_does(run: Run, other: Cache) -> None:
    loaded = anomaly.train(run.path, more_films=other.path, more_epochs=1, device="cpu", quiet=True)
    config = Run(loaded.path).config
    assert config.begun_with and config.begun_with.run == str(run.path)
    assert json.loads((loaded.path / "run.json").read_text())["begun_with"]["more_films"] == str(other.path)
    with pytest.raises(InputError, match="is not a run folder"):
        anomaly.train("cae", more_epochs=1)
    assert Warnings.model_validate_json((loaded.path / "warnings.json").read_bytes()) is not None
