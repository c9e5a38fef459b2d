"""Scores, thresholds, maps and figures of a trained run, on its cache and on new films."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

import anomaly
from anomaly.cli.scoring import heatmap
from anomaly.cli.scoring import score as score_verb
from anomaly.data.batch import batches
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.predict import predict, score
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.manifest import write_listed
from anomaly.models.cae import CAE
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.map_files import MapFiles, write_heatmaps
from anomaly.pipeline.open_run import open_run, run_cache_and_split, run_films
from anomaly.pipeline.options import HeatmapOptions, Plan, ScoreOptions
from anomaly.pipeline.plan import prepare
from anomaly.pipeline.scoring import score_selection
from anomaly.pipeline.selection import NewFilms, new_films, new_folder, recorded_films
from anomaly.reporting.text import summary
from anomaly.runs import Run, RunSettings, read_csv
from anomaly.training.config import EpochReport
from anomaly.training.weights import load_best_checkpoint
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.sources import open_films
from preprocessing.steps import find_field

from .conftest import TINY
from .test_cli import typed

CPU = torch.device("cpu")


@pytest.fixture
def tested(run: Run) -> FilmSet:
    return run_films(run, "test")[0]


def score_options(run: Path, **options: Any) -> ScoreOptions:
    return ScoreOptions(run, **({"device": "cpu", "workers": 1} | options))


def heatmap_options(run: Path, **options: Any) -> HeatmapOptions:
    return HeatmapOptions(run, **({"device": "cpu", "workers": 1} | options))


def scored(run: Run, out: Path, paths: Sequence[Path] = (), aggregate: str | None = None) -> list[dict[str, str]]:
    score_verb(score_options(run.path, paths=paths, aggregate=aggregate, out=out))
    return read_csv(out / "scores.csv")


def test_thresholds_and_scale_come_from_validation_normals_alone(run: Run, cache: Cache) -> None:
    model = open_run(run, "cpu").model
    rows = np.flatnonzero((run_cache_and_split(run)[1] == "val") & (cache.index["label"] == 0))
    normals = FilmSet(cache, "full-he", rows, 64)
    values = score(model, normals)["mse"]
    calibration = read_calibration(run)
    study, patient = cache.index["study"][rows], cache.index["patient"][rows]
    assert calibration.films == len(rows) and calibration.patients == len(set(patient)) < 19
    # So few patients can't tell 5 %: what is above all of them is flagged.
    assert calibration.thresholds["mean"]["film"]["mse"] == pytest.approx(values.max(), rel=1e-5)
    assert calibration.quantile == pytest.approx(1 - 1 / (len(set(patient)) + 1))
    for how, put_together in (("mean", np.mean), ("max", np.max)):
        pooled = [put_together(values[study == name]) for name in sorted(set(study))]
        assert calibration.thresholds[how]["study"]["mse"] == pytest.approx(max(pooled), rel=1e-5)
    drawn = [
        predicted.smoothed_map(i)[mask]
        for predicted in predict(model, normals, maps=True)
        for i, mask in enumerate(predicted.films.mask)
    ]
    assert calibration.map_scale == pytest.approx(np.quantile(np.concatenate(drawn), 0.995), rel=0.01)


def test_a_reopened_model_scores_the_same_for_any_chunk(run: Run, tested: FilmSet) -> None:
    whole = score(open_run(run, "cpu").model, tested)
    for i in range(4):
        alone = score(open_run(run, "cpu").model, tested.subset(np.array([i])))
        for name, values in alone.items():
            assert values[0] == pytest.approx(whole[name][i], rel=1e-4, abs=1e-5)  # atypicality can be near 0


def test_maps_are_zero_outside_the_mask_and_carry_the_score(run: Run, tested: FilmSet) -> None:
    places: list[int] = []
    for predicted in predict(open_run(run, "cpu").model, tested, maps=True):
        places += range(predicted.places.start, predicted.places.stop)
        for i, (mask, value) in enumerate(zip(predicted.films.mask, predicted.scores["mse"], strict=True)):
            drawn = predicted.smoothed_map(i)
            assert drawn.shape == mask.shape == (64, 64)
            assert (drawn[~mask] == 0).all() and drawn.min() >= 0
            assert drawn[mask].mean() == pytest.approx(value, rel=0.25)  # smoothing moves error about, it makes none
    assert places == list(range(len(tested)))


def test_scoring_writes_films_studies_patients_and_figures(run: Run, tested: FilmSet, tmp_path: Path) -> None:
    rows = scored(run, tmp_path / "out")
    assert [row["film"] for row in rows] == tested.column("path").tolist()
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    for level, file in (("film", "scores"), ("study", "studies"), ("patient", "patients")):
        lines = (tmp_path / f"out/{file}.csv").read_text().splitlines()
        assert figures[level]["mse"]["n"] == len(lines) - 1
        for name in ("mse", "mse_topk", "mean_grey", "minus_std"):
            low, high = figures[level][name]["roc_auc_interval"]
            assert low <= figures[level][name]["roc_auc"] <= high
    assert figures["synthetic"] is True and figures["localization"]["n_films"] > 0
    threshold = read_calibration(run).thresholds["mean"]["film"]["mse"]
    assert figures["film"]["mse"]["threshold"]["threshold"] == threshold
    assert [row["flagged"] for row in rows] == [str(int(float(row["mse"]) >= threshold)) for row in rows]
    assert {row["split"] for row in rows} == {"test"} and {row["synthetic"] for row in rows} == {"1"}


@pytest.fixture
def mine(run: Run, tmp_path: Path) -> Run:
    """The run, which may remember what is chosen."""
    shutil.copytree(run.path, tmp_path / "mine")
    return Run(tmp_path / "mine")


def test_another_score_can_flag_and_rank(mine: Run, tmp_path: Path) -> None:
    run = mine
    score_verb(score_options(run.path, out=tmp_path, by="atypicality"))
    lines = read_csv(tmp_path / "scores.csv")
    threshold = read_calibration(run).thresholds["mean"]["film"]["atypicality"]
    assert [int(line["flagged"]) for line in lines] == [int(float(line["atypicality"]) >= threshold) for line in lines]
    heatmap(heatmap_options(run.path, formats="npy", limit=1, out=tmp_path / "maps", by="atypicality"))
    highest = max(lines, key=lambda line: float(line["atypicality"]))["film"]
    assert (tmp_path / "maps" / f"{highest}_heatmap.npy").is_file()
    with pytest.raises(
        InputError, match=r"has no score 'likelihood'; there are: atypicality, mixture, mse, mse_topk, peak"
    ):
        score_verb(score_options(run.path, out=tmp_path, by="likelihood"))


def test_other_splits_go_beside_and_training_films_give_no_figures(run: Run, cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    score_verb(score_options(run.path, split="val"))
    assert json.loads((run.path / "val/metrics.json").read_text())["split"] == "val"
    score_verb(score_options(run.path, split="all"))
    assert not (run.path / "all/metrics.json").exists()
    rows = read_csv(run.path / "all/scores.csv")
    assert len(rows) == len(cache) and {row["split"] for row in rows} == {"train", "val", "test"}


def test_the_trivial_detectors_see_the_levels_before_equalization(run: Run, tested: FilmSet, films: Path) -> None:
    """Equalized films all have one mean and one deviation: detectors made of those would be beaten by anything."""
    given = score(open_run(run, "cpu").model, tested)
    assert given["mean_grey"].std() > 0.02 and given["minus_std"].std() > 0.01
    raw = replace(tested, variant="raw")
    inverted = raw.column("inverted")
    for i, path in enumerate(raw.column("path")):
        if not inverted[i]:
            film = cv2.imread(str(films / path), cv2.IMREAD_UNCHANGED)
            field = find_field(film)
            exposed = film if field is None else film[field]
            assert raw.trivial_scores()["mean_grey"][i] == pytest.approx(exposed.mean() / 255, abs=0.01)


def test_scoring_twice_gives_the_same_file(run: Run, tmp_path: Path) -> None:
    scored(run, tmp_path / "a")
    scored(run, tmp_path / "b")
    assert (tmp_path / "a/scores.csv").read_text() == (tmp_path / "b/scores.csv").read_text()


def test_a_study_is_the_mean_or_the_worst_of_its_films(mine: Run, tmp_path: Path) -> None:
    for how, put_together in (("mean", np.mean), ("max", np.max)):
        rows = scored(mine, tmp_path / how, aggregate=how)
        studies = {row["study"]: float(row["mse"]) for row in read_csv(tmp_path / how / "studies.csv")}
        for study, value in studies.items():
            films = [float(row["mse"]) for row in rows if row["study"] == study]
            assert value == pytest.approx(put_together(films))


def test_new_films_get_the_score_they_have_in_the_cache(run: Run, films: Path, tmp_path: Path) -> None:
    """The recipe that the run recorded is the one that new films go through."""
    known = {row["film"]: float(row["mse"]) for row in scored(run, tmp_path / "cache")}
    names = sorted(known)[:3]
    rows = scored(run, tmp_path / "new", [films / name for name in names])
    assert (
        len(rows) == 3 and {row["split"] for row in rows} == {"new"} and {row["label"] for row in rows} == {"unknown"}
    )
    for row in rows:
        (match,) = [name for name in names if name.endswith(row["film"])]
        assert float(row["mse"]) == pytest.approx(known[match], rel=1e-4)


def test_new_films_that_cannot_be_read_are_named_and_the_others_scored(
    run: Run, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next(films.rglob("image1.png"))
    bad = tmp_path / "bad.png"
    bad.write_text("no film")
    with pytest.raises(InputError, match="1 of 2 films can't be read"):
        score_verb(score_options(run.path, paths=(good, bad), out=tmp_path / "out"))
    assert len((tmp_path / "out/scores.csv").read_text().splitlines()) == 2
    said = capsys.readouterr()
    assert "image1.png" in said.out and "bad.png" in said.err


def test_a_new_films_score_does_not_depend_on_the_depth_of_the_films_beside_it(
    run: Run, films: Path, tmp_path: Path
) -> None:
    one = next(films.rglob("image1.png"))
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), cv2.imread(str(one), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 257)
    alone = scored(run, tmp_path / "alone", [one])
    both = scored(run, tmp_path / "both", [one, deep])
    assert alone[0]["mse"] == next(row["mse"] for row in both if row["film"].endswith("image1.png"))


def test_films_prepared_by_another_recipe_version_are_refused(run: Run, films: Path, tmp_path: Path) -> None:
    old = Run(run.path)
    recorded = run.config.cache.model_copy(update={"recipe_digest": "0" * 12})
    old.config = run.config.model_copy(update={"cache": recorded})
    with (
        pytest.raises(InputError, match="by another version of the recipe limb"),
        new_films(old, open_films([films]), workers=1),
    ):
        pass


def heatmaps(run: Run, out: Path, **options: Any) -> list[Path]:
    heatmap(heatmap_options(run.path, **({"limit": 4, "out": out} | options)))
    return sorted(path for path in out.rglob("*") if path.is_file())


def test_heatmaps_come_as_picture_and_as_numbers(run: Run, tmp_path: Path) -> None:
    files = heatmaps(run, tmp_path / "maps")
    assert {p.suffix for p in files} == {".png", ".tiff", ".npy"} and len(files) == 12
    for path in files:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            assert values.dtype == np.float32 and values.shape == (64, 64) and values.min() >= 0
            assert (values == tifffile.imread(path.with_suffix(".tiff"))).all()


def test_heatmaps_can_lie_on_the_original_film(run: Run, films: Path, tmp_path: Path) -> None:
    """In film space a map has the film's size, and its mass lies where the film's prepared crop came from."""
    files = heatmaps(run, tmp_path / "maps", space="film", formats="npy", source=films)
    assert len(files) == 4
    for path in files:
        relative = path.relative_to(tmp_path / "maps")
        name = relative.with_name(relative.name.replace("_heatmap.npy", ""))
        film = cv2.imread(str(films / name), cv2.IMREAD_UNCHANGED)
        hand = cv2.imread(str((films / name).with_name(f"{name.stem}_hand.png")), cv2.IMREAD_UNCHANGED) > 0
        values = np.load(path, allow_pickle=False)
        assert values.shape == film.shape
        assert values[hand].sum() > 0.6 * values.sum()


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        (score_verb, {"split": "tset"}, "no split 'tset'; there are: all"),
        (score_verb, {"aggregate": "median"}, "no aggregate 'median'; there are: max, mean"),
        (score_verb, {"run": Path("nowhere")}, "is not a run folder"),
        (heatmap, {"formats": "gif"}, "no format 'gif'; there are: png, tiff, npy"),
        (heatmap, {"space": "page"}, "no space 'page'; there are: cache, film"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(
    run: Run, tmp_path: Path, verb: Any, options: dict[str, Any], message: str
) -> None:
    made = score_options if verb is score_verb else heatmap_options
    with pytest.raises(InputError, match=message):
        verb(made(**{"run": run.path, "out": tmp_path / "out"} | options))
    assert not (tmp_path / "out").exists()


def test_films_whose_names_differ_in_their_suffix_alone_keep_their_own_maps(
    run: Run, films: Path, tmp_path: Path
) -> None:
    data = next(films.rglob("image1.png")).read_bytes()
    for name in ("a.png", "a.PNG.png", "a.b.png"):
        (tmp_path / name).write_bytes(data)
    names = [path.name for path in heatmaps(run, tmp_path / "maps", paths=[tmp_path], formats="npy", limit=None)]
    assert names == ["a.PNG.png_heatmap.npy", "a.b.png_heatmap.npy", "a.png_heatmap.npy"]


def test_each_hand_of_a_film_keeps_its_own_map(run: Run, cache: Cache, tmp_path: Path) -> None:
    selection = recorded_films(run, "test", cache.path)
    first, second = selection.films.rows[:2]
    index = selection.films.cache.index
    index["path"][second], index["hand"][first], index["hand"][second] = index["path"][first], 1, 2
    paths = write_heatmaps(open_run(run, "cpu"), selection, MapFiles(tmp_path / "maps", ("npy",)))
    assert len({*paths}) == len(selection.films) and all(path.is_file() for path in paths)
    stem = tmp_path / "maps" / str(index["path"][first])
    assert {path for path in paths if path.is_relative_to(stem.parent) and path.name.startswith(stem.name)} == {
        stem.with_name(f"{stem.name}-{hand}_heatmap.npy") for hand in (1, 2)
    }


def test_a_map_is_not_laid_on_another_film(run: Run, films: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(films, other)
    for path in other.rglob("image1.png"):
        path.write_bytes(path.with_name("image1_hand.png").read_bytes())
    with pytest.raises(InputError, match="is not the film that was prepared"):
        heatmaps(run, tmp_path / "maps", space="film", source=other, limit=None)


def test_a_damaged_calibration_is_named(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    (tmp_path / "copy/calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration.json was changed or damaged after it was written"):
        score_verb(score_options(tmp_path / "copy"))
    (tmp_path / "copy/manifest.json").unlink()  # a run of before there were manifests
    with pytest.raises(InputError, match=r"calibration.json can't be read"):
        score_verb(score_options(tmp_path / "copy"))


def test_a_map_that_is_not_finite_names_its_film(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    selection, opened = recorded_films(run, "test", None), open_run(run, "cpu")
    predict_one = type(opened.model).predict_films

    def broken(self: Any, films: Any, *, maps: bool = False) -> Any:
        prediction = predict_one(self, films, maps=maps)
        return replace(prediction, map=prediction.map * float("nan"))

    monkeypatch.setattr(type(opened.model), "predict_films", broken)
    with pytest.raises(InputError, match=r"the map of .*\.png is not finite; the training diverged"):
        score_selection(opened, selection)


def test_films_without_ground_truth_get_no_pixel_figures_but_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = recorded_films(run, "test", None)
    films = selection.films
    unmarked = {**films.cache.index, "truth": np.zeros(len(films.cache), bool)}
    monkeypatch.setitem(vars(films.cache), "index", unmarked)
    result = score_selection(open_run(run, "cpu"), selection)
    assert result.figures is not None and result.figures.localization is not None
    abnormal = int((films.label == 1).sum())
    assert result.figures.localization.n_unmarked == abnormal and result.figures.localization.n_lesions == 0
    line = f"no pixel figures: none of the {abnormal} abnormal films has a mask or boxes"
    assert line in summary(result.figures)


def test_figures_of_an_older_version_name_the_command_that_makes_them_again(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    scored(Run(tmp_path / "copy"), tmp_path / "copy")
    file = tmp_path / "copy/metrics.json"
    older = json.loads(file.read_text())
    older["pixel"] = {"roc_auc": 0.5}
    write_listed(file, json.dumps(older))
    with pytest.raises(InputError, match=r"metrics\.json can't be read \(pixel: .*\); run `anomaly score .*copy`"):
        anomaly.load(tmp_path / "copy").figures  # noqa: B018


def test_another_cache_is_refused(run: Run) -> None:
    other = Run(run.path)
    recorded = run.config.cache.model_copy(update={"content_hash": "0" * 64})
    other.config = run.config.model_copy(update={"cache": recorded})
    with pytest.raises(InputError, match=r"is not the cache that .* was trained on"):
        run_cache_and_split(other)


def test_weights_of_another_shape_are_refused(run: Run) -> None:
    other = Run(run.path)
    settings = run.config.settings
    wider = RunSettings(model=settings.model | {"width": 8}, training=settings.training)
    other.config = run.config.model_copy(update={"settings": wider})
    with pytest.raises(InputError, match=r"weights.safetensors has weights of another model or version than the cae"):
        open_run(other, "cpu")


# --- an unfinished run ---


@pytest.fixture
def unfinished(cache: Cache, tmp_path: Path) -> Run:
    """A training that was interrupted after its checkpoint."""

    def interrupt(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    prepared = prepare(Plan("cae", cache.path, "full-he", settings=(*TINY, "patience=0"), device="cpu"))
    run = continue_or_create(prepared, tmp_path / "unfinished", resume=False)
    with pytest.raises(KeyboardInterrupt):
        fit(prepared, run, workers=0, on_epoch=interrupt)
    assert run.epochs_done() == 1 and not run.finished
    return run


def test_an_unfinished_run_is_scored_mapped_and_shown_with_a_note(
    unfinished: Run, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished.path
    words = f"{path} is unfinished: these are the weights of epoch 1, the best of 1 so far; "
    words += f"`anomaly train cae --out {path} --resume` resumes it"
    status, out, err = typed(capsys, "score", path, "--device", "cpu")
    assert status == 0 and f"note: {words}" in err and "| mse " in out
    best, _, _ = load_best_checkpoint(unfinished, CAE, CPU)
    _, split = run_cache_and_split(unfinished)
    normals = FilmSet(cache, "full-he", np.flatnonzero((split == "train") & (cache.index["label"] == 0)), 64)
    with torch.inference_mode():
        best.fit_reference(batches(normals, CPU))
    expected = score(TorchScorer(best, CPU), run_films(unfinished, "test")[0])
    for name, values in expected.items():
        assert [float(row[name]) for row in read_csv(path / "scores.csv")] == pytest.approx(values.tolist(), rel=1e-4)
    status, _, err = typed(capsys, "heatmap", path, "--limit", 1, "--device", "cpu")
    assert status == 0 and f"note: {words}" in err and len([*path.glob("maps/**/*.png")]) == 1
    status, _, err = typed(capsys, "report", path, "--device", "cpu")
    assert status == 0 and f"note: {words}" in err
    assert "is unfinished: these are the weights of epoch 1" in (path / "report.html").read_text()
    assert unfinished.epochs_done() == 1 and not unfinished.finished  # looking at it changes nothing of the training

    status, _, err = typed(capsys, "ensemble", path, path)
    assert status == 2 and "is unfinished; `anomaly train cae" in err
    (path / "checkpoint.safetensors").unlink()
    status, _, err = typed(capsys, "score", path, "--device", "cpu")
    assert status == 2 and "is unfinished and has no checkpoint yet; `anomaly train cae" in err


def test_an_unfinished_run_is_loaded_with_a_warning(unfinished: Run, run: Run) -> None:
    with pytest.warns(UserWarning, match="is unfinished: these are the weights of epoch 1, the best of 1 so far"):
        loaded = anomaly.load(unfinished.path, device="cpu")
    assert ", unfinished>" in repr(loaded)
    scored = loaded.score()
    assert scored.figures and scored.figures.film["mse"].threshold
    normals = loaded.score(split="val")
    calibrated = [film.score for film in normals if film.label == 0]
    assert loaded.thresholds["film"]["mse"] == pytest.approx(max(calibrated), rel=1e-5)
    assert "unfinished" not in repr(anomaly.load(run.path, device="cpu"))  # and no warning, which would be an error


def test_results_of_weights_that_are_no_more_are_not_shown(
    unfinished: Run, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished.path
    words = ("train", "cae", "--cache", cache.path, "--variant", "full-he", "--out", path, "--resume")
    settings = [word for setting in (*TINY, "patience=0") for word in ("--set", setting)]
    typed(capsys, "score", path, "--device", "cpu")
    old = (path / "scores.csv").read_text()
    (path / "scores.csv").write_text(old.replace(",0.", ",9."))
    typed(capsys, "report", path, "--device", "cpu")
    assert (path / "scores.csv").read_text() == old  # taken anew: the checkpoint may be another one by now
    status, _, err = typed(capsys, *words, *settings, "--device", "cpu")
    assert status == 0 and unfinished.finished, err
    assert not (path / "scores.csv").exists() and anomaly.load(path, device="cpu").figures is None
    typed(capsys, "report", path, "--device", "cpu")
    assert len(read_csv(path / "scores.csv")) == len(old.splitlines()) - 1
    assert "is unfinished: these" not in (path / "report.html").read_text()


def test_a_folder_of_new_films_begun_before_a_kill_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, other = (NewFilms(source=name, films=1, listing_hash=name) for name in ("today", "other"))

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("os.fsync", killed)
        new_folder(tmp_path, record, "today")
    assert list(tmp_path.iterdir()) == []
    first = new_folder(tmp_path, record, "today")
    assert first.name.endswith("-today") and new_folder(tmp_path, record, "today") == first
    assert new_folder(tmp_path, other, "today").name == f"{first.name}-2"
