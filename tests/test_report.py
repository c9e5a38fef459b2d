"""The pages hold what they should, load nothing, and let no file name become markup."""

import base64
import hashlib
import json
import re
import shutil
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomaly.data.batch import Batch
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.cohort import Cohort, ScoredCohort
from anomaly.evaluation.comparison import ComparisonSettings, Scored, build_table
from anomaly.evaluation.evaluation import Evaluation, evaluate
from anomaly.evaluation.figures import (
    UNITS,
    ClassificationFigures,
    ClassifierFigures,
    Difference,
    EvaluationSettings,
    Metrics,
    Reliability,
    Unit,
)
from anomaly.evaluation.localization import LocalizationRanking
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.formatting import number, with_interval
from anomaly.models.base import Detector, Prediction, Settings
from anomaly.pipeline.open_run import OpenRun, open_run
from anomaly.pipeline.results import write_page, write_results
from anomaly.pipeline.scoring import ScoringResult, score_selection
from anomaly.pipeline.selection import Selection
from anomaly.reporting import page as report
from anomaly.reporting.bench_page import BenchRun, render_bench
from anomaly.reporting.context import ReportContext
from anomaly.reporting.galleries import Shown, gallery_rows
from anomaly.reporting.heatmap import blend, png
from anomaly.reporting.text import summary
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache

EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=y>.png'


def evaluation(*, labels=None, scores=(), main="mse", synthetic=True, classes=None) -> Evaluation:
    """Sixty films of thirty patients, the last half of them abnormal, if not labelled otherwise."""
    patients = np.repeat(np.arange(30), 2)
    truth = (patients >= 15).astype(int) if labels is None else labels
    cohort = Cohort(
        film=np.array([f"film{row}" for row in range(60)]),
        study=np.array([f"patient{patient}/study1" for patient in patients]),
        patient=patients,
        label=truth,
        split=np.full(60, "test"),
        finding=np.where(truth == 1, np.where(patients % 2, "fracture", EVIL), ""),
        difficulty=np.full(60, ""),
        synthetic=synthetic,
    )
    random = np.random.default_rng(11)
    values = {
        "mse": truth * 0.02 + random.random(60) * 0.05,
        "mean_grey": random.random(60),
        "$_under{score": random.random(60),
    }
    scored = ScoredCohort(cohort, values, EvaluationSettings(resamples=50))
    made = evaluate(scored, main=main, thresholds={"film": {"mse": 0.05}})
    return made if classes is None else with_classes(made, classes)


def with_classes(evaluation: Evaluation, classes: dict[Unit, ClassifierFigures]) -> Evaluation:
    update = {"classes": classes, "chosen_on": 9}
    return replace(evaluation, figures=evaluation.figures.model_copy(update=update))


def context(**changes) -> ReportContext:
    film = np.random.default_rng(11).random((500, 380))
    heat = blend(film, film * 0.1, film > 0, 0.05)
    given = ReportContext(
        title=f"cae {EVIL}",
        model="cae",
        data="drawn films",
        evaluation=changes["evaluation"] if "evaluation" in changes else evaluation(),
        config={"model": {"latent": 64}, EVIL: EVIL},
        facts={"seed": "0"},
        history={"epoch": [0, 1, 2], "loss": [3.0, 2.0, 1.5], "val_$x_roc_auc": [None, 0.6, float("nan")]},
        map_scale=0.05,
        highest=[Shown(EVIL, 1, 0.07, film, {"heatmap": heat, EVIL: heat}, {"finding": EVIL, "study": ""})],
        wrong=[Shown("image2.png", 1, 0.01, film)],
        failures=[(EVIL, EVIL)],
        notes=[EVIL],
        pictures={EVIL: png(heat)},
        films={"train": 90, "val": 30},
        origin={EVIL: EVIL},
        versions={"python": "3"},
    )
    return replace(given, **changes)


def classified(threshold: float, *, counts=((9, 1), (2, 8)), kappa: float | None = 0.7) -> ClassificationFigures:
    """The figures at a threshold, by hand."""
    figures = {"threshold": threshold, "n": 20, "n_abnormal": 10, "n_patients": 12}
    for name, value in {
        "accuracy": 0.85, "precision": 0.889, "recall": 0.8, "specificity": 0.9, "f1": 0.842, "kappa": kappa,
    }.items():  # fmt: skip
        figures |= {name: value, f"{name}_interval": None if value is None else (value - 0.1, value + 0.05)}
    row = {"precision": 0.818, "recall": 0.9, "f1": 0.857, "support": 10}
    figures["confusion"] = {
        "counts": counts,
        "normalized": [[count / sum(row) for count in row] if sum(row) else None for row in counts],
    }
    figures["report"] = {"normal": row, "abnormal": row, "accuracy": {"f1": 0.853, "support": 20}, "macro avg": row}
    return ClassificationFigures.model_validate(figures)


def classes(**changes) -> dict[Unit, ClassifierFigures]:
    """The figures of a classifier, by hand."""
    bins = [
        {"low": 0.1, "high": 0.2, "n": 9, "mean_probability": 0.14, "share": 0.2, "share_interval": (0.05, 0.5)},
        {"low": 0.8, "high": 0.9, "n": 11, "mean_probability": 0.86, "share": 0.75, "share_interval": None},
    ]
    calibration = {"brier": 0.123, "brier_interval": (0.101, 0.147), "brier_of_prevalence": 0.25, "bins": bins}
    figures = ClassifierFigures(
        half=classified(0.5),
        chosen=classified(0.3712, **changes),
        reliability=Reliability.model_validate(calibration),
    )
    return dict.fromkeys(UNITS, figures)


@pytest.fixture(scope="module")
def given() -> ReportContext:
    return context()


@pytest.fixture(scope="module")
def html(given) -> str:
    return report.render_report(given)


class Page(HTMLParser):
    """Collects the tags of a page, and checks that they nest."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "line", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "br":
            self.text += " "

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag
        if tag in ("td", "th", "p", "li", "span", "figcaption", "text", "title"):
            self.text += " "  # cells stand apart

    def handle_data(self, data):
        self.text += data


def test_nothing_from_files_becomes_markup(html):
    page = Page(html)
    assert html.count("<script") == 1 == [name for name, _ in page.tags].count("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(EVIL) >= 12  # shown as it is: title, setting, note, film, layer, finding, failure, picture


def test_nothing_from_files_becomes_markup_on_the_page_of_wrong_films(given, rng):
    film = rng.random((20, 20))
    wrong = [Shown(EVIL, 0, 0.07, film, {}, {"finding": EVIL, "study": EVIL, "patient": EVIL})]
    html = report.render_wrong(replace(given, wrong=wrong, map_unit=EVIL))
    page = Page(html)
    assert html.count("<script") == 1 and not any(name.startswith("on") for _, given in page.tags for name in given)
    assert page.text.count(EVIL) >= 7  # title twice, film, finding, study, patient, unit of the map


@pytest.mark.parametrize(("render", "other"), [("render_report", "wrong.html"), ("render_wrong", "report.html")])
def test_the_pages_load_nothing_and_lead_to_each_other(given, render, other):
    html = getattr(report, render)(given)
    page = Page(html)
    addresses = [value for _, given in page.tags for name, value in given.items() if name in ("src", "srcset")]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    led = {given["href"] for _, given in page.tags if "href" in given}
    assert {address for address in led if not address.startswith("#")} == {other}
    assert not {"link", "iframe", "object", "base", "form"} & {name for name, _ in page.tags}
    assert {address[1:] for address in led if address.startswith("#")} <= {given.get("id") for _, given in page.tags}


def test_the_one_script_is_the_one_that_the_policy_names(html):
    policy = next(
        given["content"] for _, given in Page(html).tags if given.get("http-equiv") == "Content-Security-Policy"
    )
    script = html.split("<script>")[1].split("</script>")[0]
    name = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{name}'; base-uri 'none'; "
        "form-action 'none'"
    )


def test_every_template_is_packed():
    room = Path(report.__file__).parent
    settings = tomllib.loads((room.parents[1] / "pyproject.toml").read_text())
    packed = {
        path for glob in settings["tool"]["setuptools"]["package-data"]["anomaly.reporting"] for path in room.glob(glob)
    }
    assert set((room / "templates").iterdir()) <= packed


def test_pictures_are_pictures(html):
    shapes = []
    for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
        shapes.append(picture.shape[:2])
    assert len(shapes) == 2 + 2 + 1 + 1  # two films, two layers, the bar, the picture of the training
    assert shapes.count((360, 274)) == 4  # shrunk, aspect kept


def test_synthetic_films_are_called_so_in_capitals(html):
    assert "SYNTHETIC FILMS" in html
    assert "SYNTHETIC FILMS" in report.render_wrong(context())
    taken = context(evaluation=evaluation(synthetic=False), history={})
    assert "SYNTHETIC" not in report.render_report(taken) + report.render_wrong(taken)


def test_figures_stand_with_their_intervals_beside_the_trivial_ones(given, html):
    text = " ".join(Page(html).text.split())
    for scores in given.figures.units.values():
        for figures in scores.values():
            assert with_interval(figures.roc_auc, figures.roc_auc_interval) in text
    first, against = report.verdict(given.figures)
    assert first in text and "on 60 films of 30 patients" in first and "mean_grey" in against


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.1, 0.3), "Better"), ((-0.3, -0.1), "WORSE"), ((-0.1, 0.3), "NOT shown"), (None, "too few")],
)
def test_verdict_claims_no_more_than_the_interval(given, interval, words):
    difference = Difference(difference=0.1, interval=interval, p=None)
    film = given.figures.main.model_copy(update={"against": {"mean_grey": difference}, "n": 1, "n_patients": 1})
    first, against = report.verdict(given.figures.model_copy(update={"film": {"mse": film}}))
    assert words in against and "on 1 film of 1 patient," in first


def test_films_without_labels_make_a_page_too():
    given = context(
        evaluation=evaluation(labels=np.full(60, -1)),
        history={},
        highest=(),
        pictures={},
        wrong=(),
        failures=(),
        map_scale=None,
    )
    text = Page(report.render_report(given)).text
    assert "No ROC-AUC: the films are unlabelled" in text and "Learning curves" not in text
    assert "ROC curves by film" not in text and "NOT A MEDICAL DEVICE" in text
    assert "Its performance is unknown: there are no figures." in text


def test_the_same_run_makes_the_same_page(given, html):
    assert report.render_report(given) == html


def test_many_learning_curves_are_cut_and_counted(monkeypatch, given):
    monkeypatch.setattr(report, "_PANELS", 2)
    history = {f"column{number}": [1.0, 2.0] for number in range(5)}
    html = report.render_report(replace(given, history=history))
    assert "3 more columns in history.csv" in html


def test_a_classifier_has_its_figures_at_both_thresholds(given):
    judged = with_classes(given.evaluation, classes(kappa=None))
    html = report.render_report(
        replace(given, evaluation=judged, rule="chosen on labelled validation films (Youden's index)")
    )
    text = " ".join(Page(html).text.split())
    assert "As a classifier" in text and "As a classifier" not in report.render_report(given)
    for units in ("films", "studies", "patients"):
        assert f"20 {units} of 12 patients, 10 abnormal" in text
    assert text.count("at 0.5 .850 [.750, .900]") == 3  # a row a level
    assert text.count("at 0.3712, chosen on validation .850 [.750, .900]") == 3
    assert text.count(".842 [.742, .892] –") == 3  # kappa that cannot be told, at the chosen threshold alone
    assert "accuracy .853 20" in text  # one value and the support, as scikit-learn prints it
    assert "normal 9 .900 1 .100" in text and "abnormal 2 .200 8 .800" in text
    assert "film .123 [.101, .147] .250" in text
    assert "chosen on labelled validation films (Youden's index)" in text and "chosen on validation normals" not in text
    assert html.count('class="panel"') == report.render_report(given).count('class="panel"') + 2


def test_a_class_without_films_has_counts_and_no_shares(given):
    judged = with_classes(given.evaluation, classes(counts=((0, 0), (2, 8)), kappa=None))
    text = " ".join(Page(report.render_report(replace(given, evaluation=judged))).text.split())
    assert "normal 0 – 0 –" in text


def test_the_wrong_films_have_a_page_and_the_first_of_them_a_place_in_the_report(given, rng):
    film = rng.random((20, 20))
    wrong = [
        Shown(f"wrong{i}.png", i % 2, 0.01 * i, film, {}, {"finding": "" if i % 2 == 0 else "fracture"})
        for i in range(20)
    ]
    many = replace(given, wrong=wrong, map_unit="Grad-CAM")
    whole, page = report.render_report(many), report.render_wrong(many)
    assert "All the most wrong films (20)" in whole and [f"wrong{i}.png" in whole for i in (5, 6)] == [True, False]
    text = " ".join(Page(page).text.split())
    assert all(f"wrong{i}.png" in text for i in range(20))
    assert "Normal films that score high (10)" in text and "Abnormal films that score low (10)" in text
    assert "abnormal mse 0.01 · not flagged wrong1.png finding fracture" in text
    assert "normal mse 0 · not flagged wrong0.png normal" in text  # no finding, no line
    assert "Grad-CAM" in text and "Grad-CAM" in whole and "squared error" not in whole + page
    assert "wrong.html" not in report.render_report(replace(given, wrong=()))


def contradicted(labels, scores, row) -> float:
    """The share of the other class on a film's wrong side."""
    others = scores[labels == 1 - labels[row]]
    return float((others < scores[row] if labels[row] == 0 else others > scores[row]).mean())


def test_gallery_rows_are_the_highest_and_the_most_contradicted(rng):
    labels, scores = np.repeat([0, 1, -1], 20), rng.normal(size=60)
    highest, wrong, lowest = gallery_rows(labels, scores, count=8)
    assert all(scores[first] >= scores[second] for first, second in pairwise(highest))
    assert all(scores[first] <= scores[second] for first, second in pairwise(lowest))
    assert scores[highest[0]] == scores.max() and scores[lowest[0]] == scores.min() and not (labels[wrong] == -1).any()
    worst_normal = 0 + int(np.argmax(scores[:20]))
    assert worst_normal in wrong
    for first, second in pairwise(wrong):
        share = [contradicted(labels, scores, row) for row in (first, second)]
        assert share[0] >= share[1] > 0
        if share[0] == share[1] and labels[first] == labels[second]:
            assert scores[first] > scores[second] if labels[first] == 0 else scores[first] < scores[second]
    assert gallery_rows([0, 0], [1.0, 2.0]) == ([1, 0], [], [0, 1])
    assert gallery_rows([0, 1], [1.0, 2.0])[1] == []  # told apart: nothing is wrong


# --- a bench --------------------------------------------------------------------------------------------------------


def bench_page(failure: str = "no memory", **given) -> str:
    patients, labels = np.repeat(np.arange(30), 2), np.repeat([0, 1], 30)
    random = np.random.default_rng(0)

    def seeds(lift: float) -> list[Scored]:
        return [Scored(labels, lift * labels + random.normal(size=60), patients) for _ in range(2)]

    cells = {
        ("cae", "mse", "raw"): seeds(2.0),
        ("cae", "mse", "full-he"): seeds(1.0),
        ("vae", "kld", "raw"): seeds(0.0),
        ("vae", "kld", "full-he"): failure,
        ("trivial", "mean_grey", "raw"): seeds(0.0),
    }
    settings = ComparisonSettings(trivial=("trivial",))
    table = build_table(cells, title="A bench", synthetic=True, paper=True, facts={"seeds": [0, 1]}, settings=settings)
    runs = [
        BenchRun("cae", "raw", 0, "cells/cae-raw-0/report.html"),
        BenchRun("cae", "raw", 1, "cells/cae raw#1/report.html"),
        BenchRun("vae", "full-he", 0, None, failure),
    ]
    return render_bench(table, runs, {"models": ["cae", "vae"], EVIL: EVIL}, **given)


def test_the_page_of_a_bench_has_table_forest_runs_and_failures():
    html = bench_page(notes=["Look twice."])
    page = Page(html)
    text = " ".join(page.text.split())
    assert "SYNTHETIC" in text and "Look twice." in text and "failed (1)" in text and "no memory" in text
    assert "paper .460 ± .033, ours +" in text and "paper .570 ± .019, ours" in text
    assert [words for words in ("Table Differences Runs", "full-he: cae mse is the best") if words not in text] == []
    assert "; 2 of 2 other rows significantly worse" in text and "; no other row to compare" in text
    assert " best [" in text and "NOT A MEDICAL DEVICE" in text and '["cae", "vae"]' in text
    led = [given["href"] for tag, given in page.tags if tag == "a" and not given["href"].startswith("#")]
    assert led == ["cells/cae-raw-0/report.html", "cells/cae%20raw%231/report.html"]
    assert sum(given.get("class") == "chart" for _, given in page.tags) == 2  # a forest a column
    assert bench_page(notes=["Look twice."]) == html


def test_nothing_becomes_markup_on_the_page_of_a_bench():
    html = bench_page(EVIL, notes=[EVIL])
    page = Page(html)
    assert html.count("<script") == 1 and not any(tag == "img" for tag, _ in page.tags)
    assert page.text.count(EVIL) >= 4


# --- scored films ---------------------------------------------------------------------------------------------------


class Judge(Detector):
    """Takes the mean level for the probability; not trained."""

    Config = Settings
    targets = "labels"
    score_names = ("mse",)  # one that the run's calibration knows
    map_unit = "Grad-CAM"

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        return Prediction({"mse": batch.film.mean(dim=(1, 2, 3))}, batch.film * batch.mask if maps else None)


def judged(run: Run, cache: Cache, split: str, rows: np.ndarray, model: Detector | None = None) -> ScoringResult:
    opened = OpenRun(run, TorchScorer(model or Judge(), torch.device("cpu")), read_calibration(run))
    films = FilmSet(cache, "full-he", rows, 64)
    return score_selection(opened, Selection(films, np.full(len(rows), split), split))


def test_scores_of_a_classifier_are_shown_as_such(run: Run, cache: Cache, tmp_path: Path) -> None:
    labels, every = cache.index["label"], np.arange(len(cache))
    result = judged(run, cache, "test", every)
    files = dict(write_results(result, tmp_path))
    figures = Metrics.model_validate_json((tmp_path / "metrics.json").read_text())
    assert figures == result.figures and set(figures.classes) == set(UNITS)
    assert figures.chosen_on == read_calibration(run).films
    text = "\n".join(summary(figures))
    chosen = f"second threshold chosen on {figures.chosen_on} validation films"
    assert f"as a classifier by patient (SYNTHETIC films, split test; {chosen})" in text
    assert "class by class at .500 (SYNTHETIC" in text and ", chosen on validation (SYNTHETIC" in text
    page, wrong = ((tmp_path / f"{name}.html").read_text() for name in ("report", "wrong"))
    assert "As a classifier" in page and 'href="wrong.html"' in page and 'href="report.html"' in wrong
    assert "Grad-CAM" in page and "Grad-CAM" in wrong and "squared error; transparent" not in page + wrong
    assert (tmp_path / "reliability.png").stat().st_size > 10_000
    assert {tmp_path / "wrong.html", tmp_path / "reliability.png", tmp_path / "report.html"} <= set(files)
    assert "patient patient" in Page(wrong).text.replace("\n", " ")

    # One class alone: no film is ranked wrongly. What was written before must not lie beside the new figures.
    files = dict(write_results(judged(run, cache, "test", every[labels == 0]), tmp_path))
    assert tmp_path / "wrong.html" not in files and not (tmp_path / "wrong.html").exists()
    assert "wrong.html" not in (tmp_path / "report.html").read_text()


def test_scores_of_other_detectors_are_no_probabilities(run: Run, cache: Cache, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "reliability.png").write_bytes(b"of an earlier time")
    monkeypatch.setattr(Judge, "targets", "none")
    write_results(judged(run, cache, "test", np.arange(len(cache))), tmp_path)
    assert "classes" not in json.loads((tmp_path / "metrics.json").read_text())
    assert not (tmp_path / "reliability.png").exists() and (tmp_path / "wrong.html").exists()


@pytest.mark.parametrize("split", ["new", "train"])
def test_films_that_must_not_be_measured_have_no_figures(run, cache, tmp_path, monkeypatch, split) -> None:
    if split == "new":  # unlabelled: the model has seen none of them, but there is nothing to measure by
        unlabelled = {**cache.index, "label": np.full(len(cache), -1, np.int8)}
        monkeypatch.setitem(vars(cache), "index", unlabelled)
    result = judged(run, cache, split, np.arange(4))
    files = write_results(result, tmp_path)
    assert result.figures is None and {path.name for path, _ in files} == {"scores.csv", "studies.csv", "patients.csv"}


# --- the page of a run ----------------------------------------------------------------------------------------------


def opened(run: Run, folder: Path) -> OpenRun:
    """A copy of the run, open."""
    return open_run(Run(Path(shutil.copytree(run.path, folder / "cae"))), "cpu")


def test_a_page_is_made_of_what_was_scored(run, cache, tmp_path, monkeypatch) -> None:
    mine = opened(run, tmp_path)
    folder = mine.run.path
    write_page(mine)
    assert (folder / "scores.csv").is_file()
    first = (folder / "report.html").read_text()
    (folder / "report.html").unlink()

    monkeypatch.setattr("anomaly.pipeline.results.score_selection", lambda *given, **more: pytest.fail("scored again"))
    assert folder / "report.html" in dict(write_page(mine))
    assert (folder / "report.html").read_text() == first
    text = " ".join(Page(first).text.split())
    for words in ("Most abnormal", "Most normal", "reconstruction", "marked lesion", "Validation films, their recon"):
        assert words in text
    assert cache.content_hash in text and "NOT A MEDICAL DEVICE" in text and "training.epochs" in text


def test_scores_of_other_films_are_not_taken_for_these(run, tmp_path) -> None:
    mine = opened(run, tmp_path)
    write_page(mine)
    scores = mine.run.path / "scores.csv"
    lines = scores.read_text().splitlines()
    scores.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"scores\.csv was changed or damaged .*; run `anomaly score "):
        write_page(mine)
    (mine.run.path / "manifest.json").unlink()
    assert scores in dict(write_page(mine)) and scores.read_text().splitlines() == lines


def test_figures_of_another_version_are_refused(run, tmp_path) -> None:
    mine = opened(run, tmp_path)
    write_page(mine)
    file = mine.run.path / "metrics.json"
    file.write_text(file.read_text().replace('"roc_auc"', '"auc"'))
    with pytest.raises(InputError, match=r"metrics\.json"):
        write_page(mine)


def test_a_run_without_maps_has_a_page_that_says_so(run, tmp_path) -> None:
    mine = opened(run, tmp_path)
    bare = mine.calibration.model_copy(update={"map_scale": None})
    write_page(replace(mine, calibration=bare))
    html = (mine.run.path / "report.html").read_text()
    assert "This model draws no heatmap" in html and 'data-layer="heatmap"' not in html


def test_heatmaps_are_measured_on_a_section_of_their_own_or_one_line_says_why_not():
    ranking, random = LocalizationRanking(), np.random.default_rng(5)
    for patient in range(6):
        lesion = np.zeros((64, 64), bool)
        lesion[10 + patient : 20, 12:30] = True
        values = random.random((64, 64)) + 0.5 * lesion
        ranking.add(
            values, lesion, np.ones_like(lesion), patient=str(patient), finding=EVIL if patient % 2 else "lytic"
        )
    measured = ranking.figures(resamples=50)

    def shown(localization):
        made = evaluation()
        update = {"localization": localization}
        return report.render_report(context(evaluation=replace(made, figures=made.figures.model_copy(update=update))))

    page = shown(measured)
    parts = page[page.index('<h2 id="localization">') : page.index('<h2 id="figures">')]
    for name in ("aupro_30", "aupro_05", "ap", "roc_auc", "f1_max", "best_dice", "peak_in_lesion", "froc_mean"):
        value, limits = measured.value(name)
        assert f"<b>{number(value)}</b>" in parts and number(limits[0]) in parts, name
    assert "FROC, mean" in parts and "finding lytic" in parts and "size large" in parts and "optimistic" in parts
    assert "ground truth: masks" in parts and EVIL not in parts
    assert 'href="#localization"' in page

    empty = LocalizationRanking()
    empty.add(np.ones((4, 4)), None, np.ones((4, 4), bool), patient="a")
    reason = "No pixel figures: none of the 1 abnormal film has a mask or boxes."
    assert reason in shown(empty.figures(resamples=2))
    assert 'id="localization"' not in shown(None)
