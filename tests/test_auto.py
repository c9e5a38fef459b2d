"""Which detector: the choice, planted anomalies, and the whole search within its budget."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.data.anomalies.diffuse import DIFFUSE
from anomaly.data.anomalies.families import FAMILIES
from anomaly.data.batch import Batch
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.detector_choice import TIE, Contender, choose, enough_to_choose_by, labelled_contender
from anomaly.evaluation.detector_search import AutoRecord
from anomaly.evaluation.planted import (
    MOST_FILMS,
    PLANTED,
    films_to_plant,
    plant,
    planted_contender,
    planted_figures,
    planted_scores,
)
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.models import ZOO
from anomaly.models.base import Prediction
from anomaly.models.profiles import PROFILES
from anomaly.models.synthetic import SyntheticConfig
from anomaly.pipeline import auto as search
from anomaly.pipeline.auto_candidates import CANDIDATES, Candidate, Cost
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare, resolve
from anomaly.reporting.auto import render_auto
from anomaly.runs import DiskFull, Run
from preprocessing.cache.reader import Cache

from .test_cli import refused, typed

CPU = torch.device("cpu")
FEW = (
    Candidate("contrast_density", "contrast_density", "standard", ("atypicality",), floor=True),
    Candidate("cae-small", "cae", "fast", ("mixture", "mse"), 32, settings=("width=2", "epochs=3")),
)
NEEDY = Candidate("mixture", "feature_mixture", "fast", ("top50",), settings=("weights=nowhere.safetensors",))
"""Its weights are not there."""

# --- the choice -----------------------------------------------------------------------------------------------------


def contender(name: str, figure: float, spread: float, draws: np.ndarray) -> Contender:
    return Contender(name, "score", figure, None, figure + spread * draws)


@given(
    st.lists(st.tuples(st.floats(0.3, 0.9), st.floats(0, 0.1)), min_size=1, max_size=8),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=50)
def test_the_choice_is_the_first_that_cannot_be_told_from_the_best(rows: list[tuple[float, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    contenders = [contender(str(i), figure, spread, rng.normal(size=200)) for i, (figure, spread) in enumerate(rows)]
    choice = choose(contenders)
    assert choice.best.figure == max(one.figure for one in contenders)
    assert choice.best in choice.tied and choice.tied[0] is choice.chosen
    for one in contenders[: contenders.index(choice.chosen)]:  # every simpler one is worse by more than that
        error = (choice.best.drawn - one.drawn).std(ddof=1)
        assert choice.best.figure - one.figure > TIE * error
    assert choice.best.figure - choice.chosen.figure <= TIE * choice.error


def test_a_clear_difference_beats_simplicity_and_noise_does_not() -> None:
    draws = np.random.default_rng(0).normal(size=500)
    simple, noisy = contender("simple", 0.80, 0.05, draws), contender("complex", 0.81, 0.05, -draws)
    assert choose([simple, noisy]).chosen is simple  # .01 apart, the error of the difference .1
    better = contender("complex", 0.81, 0.05, draws)  # errs on the same films: the difference has no spread
    assert choose([simple, better]).chosen is better
    with pytest.raises(ValueError, match="nothing to choose"):
        choose([])


def test_labelled_films_judge_as_the_tables_do(rng: np.random.Generator) -> None:
    labels = np.repeat([0, 1], 30)
    patients = np.arange(60) // 2
    values = rng.normal(size=60) + labels
    draws = PatientBootstrap(labels, patients, resamples=200, seed=0)
    one = labelled_contender("a", "s", values, draws)
    assert one.interval is not None and one.interval[0] < one.figure < one.interval[1]
    assert enough_to_choose_by(labels, patients)
    assert not enough_to_choose_by(labels, np.where(labels == 1, 99, patients))  # all abnormal films of one patient


# --- planted anomalies ----------------------------------------------------------------------------------------------


def normals(cache: Cache) -> FilmSet:
    rows = np.flatnonzero(cache.index["label"] == 0)[:12]
    return FilmSet(cache, "full-he", rows, cache.size)


def test_no_detector_trains_on_what_is_planted() -> None:
    held_out = SyntheticConfig().held_out
    trained_on = {name for name in FAMILIES if name != held_out}
    assert not trained_on & set(PLANTED) and set(DIFFUSE) <= set(PLANTED)
    own = [one for one in CANDIDATES if one.model == "synthetic"]
    assert all(resolve(one.model, one.preset, one.settings)[0].model_dump()["held_out"] == held_out for one in own)


@pytest.mark.parametrize("family", PLANTED)
def test_anomalies_are_planted_alike_and_inside_the_mask(cache: Cache, family: str) -> None:
    films = normals(cache)
    before = films.read()
    after = [list(plant(films, family)) for _ in range(2)]
    first, again = (np.concatenate([part.film for part in parts]) for parts in after)
    np.testing.assert_array_equal(first, again)
    changed = (first != before.film).any(axis=(1, 2))
    assert changed.mean() > 0.5  # those that can't be told from grain are given back as they were
    assert not (first[~before.mask] != 0).any()
    small = np.concatenate([part.film for part in plant(replace(films, size=films.size // 2), family)])
    resized = first.reshape(len(first), films.size // 2, 2, films.size // 2, 2).mean(axis=(2, 4))
    where = before.mask.reshape(resized.shape[0], resized.shape[1], 2, resized.shape[2], 2).all(axis=(2, 4))
    assert np.abs(small - resized)[where].max() <= 1  # the very same anomaly, at half the size


class Judge(torch.nn.Module):
    """Scores by the mean absolute difference of neighboring pixels, and by nothing."""

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        detail = batch.film.diff(dim=3).abs().mean(dim=(1, 2, 3))
        return Prediction({"detail": -detail, "blind": torch.zeros(len(batch.film))})


def test_a_blind_score_is_at_chance_and_one_that_sees_is_above(cache: Cache) -> None:
    films = films_to_plant(normals(cache))
    scores = planted_scores(TorchScorer(Judge(), CPU), films)  # type: ignore[arg-type]
    blind = planted_figures("blind", scores)
    assert set(blind.values()) == {0.5}
    assert planted_figures("detail", scores)["haze"] > 0.6  # a haze takes detail away
    one = planted_contender("a", "detail", scores, films.column("patient"))
    assert one.figure == pytest.approx(np.mean(list(planted_figures("detail", scores).values())))
    assert one.interval is not None and one.interval[0] < one.figure < one.interval[1]
    assert set(scores.normal) == {"detail", "blind", "mean_grey", "minus_std"}


def test_no_more_films_are_planted_than_need_be(cache: Cache) -> None:
    films = normals(cache)
    many = films.subset(np.arange(100) % len(films))
    assert len(films_to_plant(many)) == MOST_FILMS and len(films_to_plant(films)) == len(films)


# --- the budget -----------------------------------------------------------------------------------------------------


def test_epochs_that_fit() -> None:
    trained, fitted = Cost(10, 2.0, 30, 0.1), Cost(10, 0.0, 1, 0.1)
    assert trained.fitting_epochs(30) == 10 and trained.fitting_epochs(1e6) == 30
    assert trained.least == 10 + 12 * 2 and trained.least_epochs == 12
    assert fitted.least == 10 and fitted.seconds(0) == 10 and fitted.at_pace(2).least == 20


def test_a_training_that_is_stopped_keeps_its_best_weights(cache: Cache) -> None:
    prepared = prepare(Plan("cae", cache.path, preset="fast", settings=("width=2", "epochs=9", "size=32")))
    run = continue_or_create(prepared, Path("run"), resume=False)
    fit(prepared, run, workers=0, on_epoch=lambda report: None, should_stop=lambda state: True)
    assert run.finished and len(run.history()) == 1


# --- the whole ------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates that train in seconds."""
    for module in ("anomaly.pipeline.auto", "anomaly.pipeline.auto_choice"):
        monkeypatch.setattr(f"{module}.CANDIDATES", FEW)


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "auto.json").read_text())
    return content


@pytest.mark.usefixtures("few")
def test_the_whole_search_as_typed_and_typed_again(capsys: pytest.CaptureFixture[str], films: Path) -> None:
    arguments = (
        "auto",
        films,
        "--size",
        64,
        "--minutes",
        5,
        "--workers",
        1,
        "--choose-by",
        "labels",
        "--device",
        "cpu",
    )
    status, out, err = typed(capsys, *arguments)
    assert status == 0, err
    folder = Path("runs/auto-1")
    assert len(out.splitlines()) <= 20 and "SYNTHETIC" in out and "recipe limb" in out
    following = [line for line in out.splitlines() if line.startswith("next: ")]
    assert [line.split()[2] for line in following] == ["score", "heatmap", "calibrate"]
    known = record(folder)
    assert [one["state"] for one in known["candidates"]] == ["done", "done"]
    assert known["basis"] == "labels" and set(known["floor"]) == {"mean_grey", "minus_std"}
    chosen = folder / known["choice"]["detector"]
    assert Run(chosen).finished and (chosen / "report.html").is_file()  # the chosen one alone was tested
    assert [path.parent for path in folder.glob("*/metrics.json")] == [chosen]
    page = (folder / "index.html").read_text()
    assert "SYNTHETIC" in page and "cae-small mse" in page and "https://" not in page
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
    tested = (chosen / "metrics.json").stat().st_mtime_ns
    status, out, _ = typed(capsys, *arguments)
    assert status == 0 and "cae-small: done before" in out and "goes on" in out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")} == weights
    assert (chosen / "metrics.json").stat().st_mtime_ns == tested  # the test films were not looked at again
    assert record(folder)["spent"] > known["spent"] and not Path("runs/auto-2").exists()
    assert record(folder)["tested"] == [f"{known['choice']['detector']} {known['choice']['score']}"]


@pytest.mark.usefixtures("few")
def test_planted_anomalies_choose_where_labels_cannot(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    arguments = ("auto", cache.path, "--minutes", 60, "--device", "cpu", "--out", "found")
    status, out, err = typed(capsys, *arguments)
    assert status == 0 and "val has too few patients of both classes" in out, err
    known = record(Path("found"))
    assert known["basis"] == "planted"
    for one in known["candidates"]:
        assert set(one["planted"]) == set(one["labels"])  # both, where there are labels
        assert all(set(score["families"]) == set(PLANTED) for score in one["planted"].values())
    assert "mottle (diffuse)" in Path("found/index.html").read_text()
    assert "found is of other films or options" in refused(capsys, *arguments, "--choose-by", "labels")


@pytest.mark.usefixtures("few")
def test_an_interrupted_search_goes_on(
    capsys: pytest.CaptureFixture[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def interrupted(prepared: Any, run: Run, **options: Any) -> Run:
        trained.append(run.path.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(prepared, run, **options)

    monkeypatch.setattr(search, "fit", interrupted)
    arguments = ("auto", cache.path, "--minutes", 60, "--device", "cpu", "--out", "found")
    status, _, err = typed(capsys, *arguments)
    assert status == 130 and "the same command resumes it" in err
    spent = record(Path("found"))["spent"]
    assert spent > 0 and [one["name"] for one in record(Path("found"))["candidates"]] == ["contrast_density"]
    status, _, err = typed(capsys, *arguments)
    assert status == 0, err
    assert trained == ["contrast_density", "cae-small", "cae-small"] and record(Path("found"))["spent"] > spent


@pytest.mark.usefixtures("few")
def test_what_does_not_fit_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(prepared: Any, scored: int) -> Cost:
        return Cost(1.0, 3600.0, 3, 0.001) if prepared.plan.model == "cae" else Cost(1.0, 0.0, 1, 0.001)

    monkeypatch.setattr(search, "probe", costly)
    status, out, _ = typed(capsys, "auto", cache.path, "--minutes", 30, "--device", "cpu", "--out", "found")
    assert status == 0 and "cae-small: left out: it takes about 1 h 00 min" in out
    assert "cae-small: it takes about 1 h" in Path("found/index.html").read_text()
    monkeypatch.setattr(search, "probe", lambda prepared, scored: Cost(3600.0, 0.0, 1, 0.001))
    message = refused(capsys, "auto", cache.path, "--minutes", 1, "--device", "cpu", "--out", "none")
    assert "1 minutes are too few" in message and "give --minutes 12" in message


@pytest.mark.usefixtures("few")
def test_a_detector_without_its_weights_is_left_out(
    capsys: pytest.CaptureFixture[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("anomaly.pipeline.auto", "anomaly.pipeline.auto_choice"):
        monkeypatch.setattr(f"{module}.CANDIDATES", (*FEW[:1], NEEDY))
    status, out, _ = typed(capsys, "auto", cache.path, "--minutes", 30, "--device", "cpu", "--out", "found")
    assert status == 0 and "mixture: left out: there are no weights nowhere.safetensors" in out


@pytest.mark.usefixtures("few")
def test_a_candidate_keeps_its_place_when_it_is_looked_at_again(
    capsys: pytest.CaptureFixture[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("anomaly.pipeline.auto", "anomaly.pipeline.auto_choice"):
        monkeypatch.setattr(f"{module}.CANDIDATES", (FEW[0], NEEDY, *FEW[1:]))
    for _ in range(2):
        status, _, err = typed(capsys, "auto", cache.path, "--minutes", 30, "--device", "cpu", "--out", "found")
        assert status == 0, err
        assert [one["name"] for one in record(Path("found"))["candidates"]] == [
            *(FEW[0].name, "mixture", *(one.name for one in FEW[1:])),
        ]


@pytest.mark.usefixtures("few")
def test_a_candidate_is_done_only_with_its_figures(
    capsys: pytest.CaptureFixture[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    arguments = ("auto", cache.path, "--minutes", 30, "--device", "cpu", "--out", "found")
    with monkeypatch.context() as patch:
        patch.setattr(search, "judged", interrupted)
        assert typed(capsys, *arguments)[0] == 130
    assert record(Path("found"))["candidates"] == []
    assert typed(capsys, *arguments)[0] == 0
    assert all(one["labels"] for one in record(Path("found"))["candidates"] if one["state"] == "done")


@pytest.mark.usefixtures("few")
def test_a_full_disk_ends_the_search_and_leaves_no_candidate_out(
    capsys: pytest.CaptureFixture[str], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else another detector would be chosen, as if the one that could not be written did not suit the films."""

    def full(prepared: Any, run: Run, **options: Any) -> Run:
        if run.path.name == FEW[1].name:
            raise DiskFull("weights.safetensors: the disk is full")
        return fit(prepared, run, **options)

    monkeypatch.setattr(search, "fit", full)
    arguments = ("auto", cache.path, "--minutes", 30, "--device", "cpu", "--out", "found")
    assert "the disk is full" in refused(capsys, *arguments)
    assert [one["name"] for one in record(Path("found"))["candidates"]] == [FEW[0].name]


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], cache: Cache, tmp_path: Path) -> None:
    assert "no --choose-by 'luck'; there are: auto, labels, planted" in refused(
        capsys, "auto", cache.path, "--choose-by", "luck"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    assert "is no folder of `anomaly auto`" in refused(capsys, "auto", cache.path, "--out", tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "auto.json").write_text("{}")
    assert "can't be read" in refused(capsys, "auto", cache.path, "--out", tmp_path / "broken")


def test_films_without_normal_ones_are_refused(capsys: pytest.CaptureFixture[str], films: Path, tmp_path: Path) -> None:
    from shutil import copy

    for number, path in enumerate(sorted(films.rglob("image*.png"))[:12]):
        (tmp_path / "films" / "abnormal").mkdir(parents=True, exist_ok=True)
        copy(path, tmp_path / "films" / "abnormal" / f"{number}.png")
    (tmp_path / "films" / "normal").mkdir()
    copy(path, tmp_path / "films" / "normal" / "one.png")
    assert "has 1 normal film of 13; detectors learn from normal films" in refused(capsys, "auto", tmp_path / "films")


def test_text_of_files_is_escaped_on_the_page() -> None:
    hostile = "<script>alert(1)</script>"
    figure = {"figure": 0.7, "interval": (0.6, 0.8)}
    made = AutoRecord.model_validate(
        {
            "films": hostile,
            "listing_hash": "",
            "where": [hostile],
            "seed": 0,
            "choose_by": "auto",
            "recipe": "auto",
            "size": None,
            "minutes": 5,
            "counts": {"train": 9, "val_normal": 9, "val_abnormal": 9, "test": 9},
            "floor": {"mean_grey": figure},
            "candidates": [
                {"name": "a", "model": "cae", "preset": "fast", "state": "done", "labels": {"mse": figure}},
                {"name": "b", "model": "cae", "preset": "fast", "state": "left out", "reason": hostile},
            ],
            "choice": {"detector": "a", "score": "mse", "reason": hostile, "tied": ["a mse"]},
            "test_reason": hostile,
            "notes": [hostile],
            "commands": [f"anomaly score {hostile}"],
        }
    )
    page = render_auto(made, hostile)
    assert hostile not in page and page.count("&lt;script&gt;") >= 7


# --- the list of models ---------------------------------------------------------------------------------------------


def test_every_model_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(PROFILES) == set(ZOO)
    _, out, _ = typed(capsys, "models")
    assert next(line for line in out.splitlines() if line.startswith("feature_mixture")).split()[1:3] == [
        "both",
        ".986",
    ]
    _, out, _ = typed(capsys, "models", "--json")
    listed = {one["name"]: one for one in json.loads(out)}
    assert set(listed) >= set(ZOO) and listed["cae"]["finds"] == "diffuse"
    assert 0 < listed["cae"]["chest"]["roc_auc"] < 1
    _, out, _ = typed(capsys, "models", "cae", "--json")
    assert [one["name"] for one in json.loads(out)] == ["cae"]
    assert "no model 'vqvae'" in refused(capsys, "models", "vqvae", "--json")
