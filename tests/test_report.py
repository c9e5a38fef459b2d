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
from torch import Tensor

from anomaly import evaluation, heatmap, metrics, report
from anomaly.chart import Chart, ticks
from anomaly.detector import Batch, Detector, Settings
from anomaly.runs import Run
from anomaly.score import View, read_calibration
from anomaly.table import Scored, build
from preprocessing import InputError
from preprocessing.cache.reader import Cache

RANDOM = np.random.default_rng(3)
EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=y>.png'


def context(**changes) -> report.ReportContext:
    patients = np.repeat(np.arange(30), 2)
    labels = (patients >= 15).astype(int)
    scores = {
        "mse": labels * 0.02 + RANDOM.random(60) * 0.05,
        "mean_grey": RANDOM.random(60),
        "$_under{score": RANDOM.random(60),
    }
    studies = np.array([f"patient{patient}/study1" for patient in patients])
    columns = {
        "label": labels,
        "patient": patients,
        "study": studies,
        "finding": np.where(labels, np.where(patients % 2, "fracture", EVIL), ""),
    }
    film = RANDOM.random((500, 380))
    heat = heatmap.blend(film, film * 0.1, film > 0, 0.05)
    given = report.ReportContext(
        title=f"cae {EVIL}",
        model="cae",
        data="drawn films",
        synthetic=True,
        score="mse",
        labels=labels,
        studies=studies,
        patients=patients,
        scores=scores,
        metrics=metrics.evaluate(columns, scores, thresholds={"film": {"mse": 0.05}}, resamples=50),
        config={"model": {"latent": 64}, EVIL: EVIL},
        facts={"seed": "0"},
        history={"epoch": [0, 1, 2], "loss": [3.0, 2.0, 1.5], "val_$x_roc_auc": [None, 0.6, float("nan")]},
        threshold=0.05,
        map_scale=0.05,
        highest=[report.Shown(EVIL, 1, 0.07, film, {"heatmap": heat, EVIL: heat}, {"finding": EVIL, "study": ""})],
        wrong=[report.Shown("image2.png", 1, 0.01, film)],
        failures=[(EVIL, EVIL)],
        notes=[EVIL],
        pictures={EVIL: heatmap.png(heat)},
        films={"train": 90, "val": 30},
        origin={EVIL: EVIL},
        versions={"python": "3"},
    )
    return replace(given, **changes)


def classified(threshold: float, *, counts=((9, 1), (2, 8)), kappa=0.7) -> dict:
    """The figures of `classification.classify`, made by hand."""
    figures = {"threshold": threshold, "n": 20, "n_abnormal": 10, "n_patients": 12}
    for name, value in {
        "accuracy": 0.85, "precision": 0.889, "recall": 0.8, "specificity": 0.9, "f1": 0.842, "kappa": kappa,
    }.items():  # fmt: skip
        figures |= {name: value, f"{name}_interval": None if value is None else [value - 0.1, value + 0.05]}
    one = {"precision": 0.818, "recall": 0.9, "f1": 0.857, "support": 10}
    return figures | {
        "confusion": {
            "counts": [list(row) for row in counts],
            "normalised": [[n / sum(row) for n in row] if sum(row) else None for row in counts],
        },
        "report": {"normal": one, "abnormal": one, "accuracy": {"f1": 0.853, "support": 20}, "macro avg": one},
    }


def classes(**changes) -> dict:
    """The figures of `classification.evaluate_classes`, made by hand."""
    bins = [
        {"low": 0.1, "high": 0.2, "n": 9, "mean_probability": 0.14, "share": 0.2, "share_interval": [0.05, 0.5]},
        {"low": 0.8, "high": 0.9, "n": 11, "mean_probability": 0.86, "share": 0.75, "share_interval": None},
    ]
    reliable = {"brier": 0.123, "brier_interval": [0.101, 0.147], "brier_of_prevalence": 0.25, "bins": bins}
    one = {"half": classified(0.5), "chosen": classified(0.3712, **changes), "reliability": reliable}
    return {level: one for level in ("film", "study", "patient")}


@pytest.fixture(scope="module")
def given() -> report.ReportContext:
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


def test_nothing_from_files_becomes_markup_on_the_page_of_wrong_films(given):
    film = RANDOM.random((20, 20))
    wrong = [report.Shown(EVIL, 0, 0.07, film, {}, {"finding": EVIL, "study": EVIL, "patient": EVIL})]
    html = report.render_wrong(replace(given, wrong=wrong, score="mse", map_unit=EVIL))
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
    root = Path(report.__file__).parent
    settings = tomllib.loads((root.parent / "pyproject.toml").read_text())
    packed = {path for glob in settings["tool"]["setuptools"]["package-data"]["anomaly"] for path in root.glob(glob)}
    assert set((root / "templates").iterdir()) <= packed


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
    taken = context(synthetic=False, history={})
    assert "SYNTHETIC" not in report.render_report(taken) + report.render_wrong(taken)


def test_figures_stand_with_their_intervals_beside_the_trivial_ones(given, html):
    text = " ".join(Page(html).text.split())
    for level in ("film", "study", "patient"):
        for figures in given.metrics[level].values():
            assert metrics.with_interval(figures["roc_auc"], figures["roc_auc_interval"]) in text
    assert report.verdict(given.metrics, "mse")[0] in text and "mean_grey" in report.verdict(given.metrics, "mse")[1]


@pytest.mark.parametrize(
    ("interval", "words"),
    [([0.1, 0.3], "Better"), ([-0.3, -0.1], "WORSE"), ([-0.1, 0.3], "NOT shown"), (None, "too few")],
)
def test_verdict_claims_no_more_than_the_interval(interval, words):
    film = {"roc_auc": 0.7, "roc_auc_interval": None, "n": 4, "n_patients": 4, "n_abnormal": 2, "prevalence": 0.5}
    film["against"] = {"mean_grey": {"difference": 0.1, "interval": interval, "p": None}}
    assert words in report.verdict({"film": {"mse": film}}, "mse")[1]


def test_films_without_labels_make_a_page_too():
    columns = {"label": np.full(60, -1), "patient": np.arange(60), "study": np.arange(60)}
    given = context(
        labels=columns["label"],
        history={},
        highest=(),
        pictures={},
        wrong=(),
        failures=(),
        threshold=None,
        map_scale=None,
    )
    given = replace(given, metrics=metrics.evaluate(columns, given.scores))
    text = Page(report.render_report(given)).text
    assert "No ROC-AUC: the films are not labelled" in text and "Learning curves" not in text
    assert "Nothing is known of how well it tells" in text and "NOT A MEDICAL DEVICE" in text
    assert "No ROC-AUC" in Page(report.render_report(replace(given, metrics={}))).text


def test_the_same_run_makes_the_same_page(given, html):
    assert report.render_report(given) == html


def test_an_unknown_main_score_is_refused():
    with pytest.raises(ValueError, match="no score 'kld'; there are: "):
        report.render_report(context(score="kld"))


def test_many_learning_curves_are_cut_and_counted(monkeypatch, given):
    monkeypatch.setattr(report, "_PANELS", 2)
    history = {f"column{number}": [1.0, 2.0] for number in range(5)}
    html = report.render_report(replace(given, history=history, metrics={}))
    assert "3 more columns are in history.csv" in html


def test_training_and_validation_share_a_panel_where_both_were_watched():
    columns = {"epoch": [0, 1], "net.loss": [2.0, 1.0], "validation": [2.0, 1.5]}
    watched = {"accuracy": [0.5, 0.6], "validation_accuracy": [0.5, 0.55], "validation_gap": [0.1, 0.2]}
    across, panels = report._panels(columns | watched)
    assert across[0] == "epoch"
    assert {title: list(names) for title, names in panels.items()} == {
        "net.loss": ["net.loss"],
        "validation": ["validation"],
        "accuracy": ["accuracy", "validation_accuracy"],
        "validation_gap": ["validation_gap"],
    }


def test_a_classifier_has_its_figures_at_both_thresholds(given):
    metrics_of = {**given.metrics, "classes": classes(kappa=None)}
    html = report.render_report(replace(given, metrics=metrics_of, rule="youden"))
    text = " ".join(Page(html).text.split())
    assert "As a classifier" in text and "As a classifier" not in report.render_report(given)
    for level in ("film", "study", "patient"):
        assert f"By {level}: 20, 10 of them abnormal, of 12 patients" in text
    assert text.count("at 0.5 .850 [.750, .900]") == 3  # a row a level
    assert text.count("at 0.3712, chosen on validation .850 [.750, .900]") == 3
    assert text.count(".842 [.742, .892] –") == 3  # kappa that cannot be told, at the chosen threshold alone
    assert "accuracy .853 20" in text  # one value and the support, as scikit-learn prints it
    assert "normal 9 .900 1 .100" in text and "abnormal 2 .200 8 .800" in text
    assert "film .123 [.101, .147] .250" in text
    assert "chosen on labelled validation films (Youden's index)" in text and "found on validation" not in text
    assert html.count('class="panel"') == report.render_report(given).count('class="panel"') + 2


def test_a_class_without_films_has_counts_and_no_shares(given):
    figures = classes(counts=((0, 0), (2, 8)), kappa=None)
    text = " ".join(
        Page(report.render_report(replace(given, metrics={**given.metrics, "classes": figures}))).text.split()
    )
    assert "normal 0 – 0 –" in text


def test_the_reliability_chart_is_opaque_and_says_what_is_synthetic():
    assert report.reliability_png({}, synthetic=True) is None
    pictures = {}
    for synthetic in (False, True):
        data = report.reliability_png(classes(), synthetic=synthetic)
        pictures[synthetic] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert pictures[synthetic].shape[2] == 3 or (pictures[synthetic][..., 3] == 255).all()
        assert (pictures[synthetic][0, 0, :3] == 255).all()
    assert pictures[True].shape[0] > pictures[False].shape[0]  # room for the line above


def test_the_wrong_films_have_a_page_and_the_first_of_them_a_place_in_the_report(given):
    film = RANDOM.random((20, 20))
    wrong = [
        report.Shown(f"wrong{i}.png", i % 2, 0.01 * i, film, {}, {"finding": "" if i % 2 == 0 else "fracture"})
        for i in range(20)
    ]
    many = replace(given, wrong=wrong, map_unit="Grad-CAM")
    whole, page = report.render_report(many), report.render_wrong(many)
    assert "The most wrong (20)" in whole and [f"wrong{i}.png" in whole for i in (5, 6)] == [True, False]
    text = " ".join(Page(page).text.split())
    assert all(f"wrong{i}.png" in text for i in range(20))
    assert "Normal films that score high (10)" in text and "Abnormal films that score low (10)" in text
    assert "abnormal mse 0.01 · not flagged wrong1.png finding fracture" in text
    assert "normal mse 0 · not flagged wrong0.png normal" in text  # no finding, no line
    assert "Grad-CAM" in text and "Grad-CAM" in whole and "squared error" not in whole + page
    assert "wrong.html" not in report.render_report(replace(given, wrong=()))


def test_gallery_rows_are_the_highest_and_the_most_contradicted():
    labels, scores = np.repeat([0, 1, -1], 20), RANDOM.normal(size=60)
    highest, wrong, lowest = report.gallery_rows(labels, scores, count=8)
    assert all(scores[first] >= scores[second] for first, second in pairwise(highest))
    assert all(scores[first] <= scores[second] for first, second in pairwise(lowest))
    assert scores[highest[0]] == scores.max() and scores[lowest[0]] == scores.min() and not (labels[wrong] == -1).any()
    worst_normal = 0 + int(np.argmax(scores[:20]))
    assert worst_normal in wrong
    assert report.gallery_rows([0, 0], [1.0, 2.0]) == ([1, 0], [], [0, 1])
    assert report.gallery_rows([0, 1], [1.0, 2.0])[1] == []  # told apart: nothing is wrong


def test_the_band_is_that_of_drawn_patients_and_holds_the_curve():
    patients = np.repeat(np.arange(40), 3)
    labels = (patients % 2).astype(int)
    scores = labels + RANDOM.normal(size=40)[patients] + RANDOM.normal(size=120)
    at = np.linspace(0, 1, 101)
    low, high = report.roc_band(labels, scores, patients, at, resamples=400)
    normal, abnormal = metrics.roc_curve(labels, scores)
    middle = np.interp(at, normal, abnormal)
    assert ((low <= middle + 1e-9) & (middle <= high + 1e-9)).mean() > 0.95
    assert (np.diff(low) >= -1e-12).all() and (np.diff(high) >= -1e-12).all() and low[-1] == high[-1] == 1
    alone = report.roc_band(labels, scores, np.arange(120), at, resamples=400)
    assert (high - low).mean() > 1.2 * (alone[1] - alone[0]).mean()  # films of a patient are not three patients
    again = report.roc_band(labels, scores, patients, at, resamples=400)
    assert (again[0] == low).all() and (again[1] == high).all()
    assert report.roc_band(labels[:3], scores[:3], patients[:3], at) is None


def test_a_drawn_curve_is_that_of_the_films_of_its_patients(monkeypatch):
    patients, labels = np.repeat(np.arange(12), 2), np.repeat([0, 1], 12)
    scores = np.round(labels + RANDOM.normal(size=24), 1)
    seen = []
    monkeypatch.setattr(report.np, "quantile", lambda curves, *given, **more: seen.append(curves) or curves[:2])
    at = np.linspace(0.013, 1, 50)
    report.roc_band(labels, scores, patients, at, resamples=20, seed=5)
    counts = metrics._Draws(labels, patients, resamples=20, seed=5).counts
    both = [row for row in counts if row[:6].any() and row[6:].any()]
    for curve, count in zip(seen[0], both, strict=True):
        rows = np.repeat(np.arange(24), count[patients])
        assert curve == pytest.approx(np.interp(at, *metrics.roc_curve(labels[rows], scores[rows])), abs=1e-9)


# --- charts ---------------------------------------------------------------------------------------------------------


def test_a_chart_escapes_cuts_and_breaks():
    chart = Chart((0, 1), (0, 10), xlabel=EVIL, ylabel=EVIL)
    chart.line([0, 0.5, 1, 2], [0, float("nan"), 99, 1], "one", dots=True)
    chart.text(3, EVIL, "")
    chart.point(0.5, 5, "one", title=EVIL)
    markup = str(chart.svg(EVIL))
    page = Page(markup)
    assert "<script" not in markup and not any(tag == "img" for tag, _ in page.tags) and page.text.count(EVIL) >= 3
    line = next(given["d"] for tag, given in page.tags if given.get("class") == "line one")
    assert line.count("M") == 2 and "nan" not in markup  # broken where it is not finite
    assert float(line.split(",")[-1]) == pytest.approx(chart.bottom - 0.1 * (chart.bottom - 10), abs=0.1)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-9, 2e-9), (0.0831, 0.0833), (1e7, 9e7), (-1, 0)])
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high, most=6)
    assert 2 <= len(found) <= 7 and min(found) >= low - 1e-12 and max(found) <= high + 1e-12
    assert Chart((1.0, 1.0), (0, 0)).across == (0.5, 1.5)


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
    table = build(cells, title="A bench", synthetic=True, paper=True, trivial=("trivial",), facts={"seeds": [0, 1]})
    runs = [
        report.BenchRun("cae", "raw", 0, "cells/cae-raw-0/report.html"),
        report.BenchRun("cae", "raw", 1, "cells/cae raw#1/report.html"),
        report.BenchRun("vae", "full-he", 0, None, failure),
    ]
    return report.render_bench(table, runs, {"models": ["cae", "vae"], EVIL: EVIL}, **given)


def test_the_page_of_a_bench_has_table_forest_runs_and_failures():
    html = bench_page(notes=["Look twice."])
    page = Page(html)
    text = " ".join(page.text.split())
    assert "SYNTHETIC" in text and "Look twice." in text and "failed (1)" in text and "no memory" in text
    assert "paper .460 ± .033, ours +" in text and "paper .570 ± .019, ours" in text
    assert [words for words in ("Table Differences Runs", "full-he: cae mse is the best") if words not in text] == []
    assert "; 0 of 2 others cannot be told apart" in text and "; no other row to compare" in text
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
    supervised = True
    score_names = ("mse",)  # one that the run's calibration knows
    map_unit = "Grad-CAM"

    check_size = classmethod(lambda kind, config, size: None)
    players = training_steps = validation_loss = reconstruct = lambda self, *given: None

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        return {"mse": batch.film.mean(dim=(1, 2, 3))}

    def anomaly_map(self, batch: Batch) -> Tensor:
        return batch.film * batch.mask


def scored(run: Run, model: Detector, cache: Cache, folder: Path, name: str, rows: np.ndarray) -> str:
    given = {"split": np.full(len(rows), name), "main": "mse", "how": "mean", "command": ""}
    view, device = View(cache, "full-he", rows, 64), torch.device("cpu")
    return "\n".join(evaluation.score_films(run, model, view, device, folder, **given, on_films=lambda count: None))


def test_scores_of_a_classifier_are_shown_as_such(run: Run, cache: Cache, tmp_path: Path) -> None:
    labels = cache.index["label"]
    folder, every = tmp_path / "scores", np.arange(len(cache))
    out = scored(run, Judge(), cache, folder, "test", every)
    figures = json.loads((folder / "metrics.json").read_text())
    assert set(figures["classes"]) == {"film", "study", "patient"}
    assert out.count("Brier score") == 3 and figures["chosen_on"] == read_calibration(run).films
    chosen = f"the second threshold is chosen on {figures['chosen_on']} validation films"
    assert f"as a classifier by patient (SYNTHETIC films, split test; {chosen})" in out
    assert "class by class at .5 (SYNTHETIC" in out and ", chosen on validation (SYNTHETIC" in out
    page, wrong = ((folder / f"{name}.html").read_text() for name in ("report", "wrong"))
    assert "As a classifier" in page and 'href="wrong.html"' in page and 'href="report.html"' in wrong
    assert "Grad-CAM" in page and "Grad-CAM" in wrong and "squared error; clear" not in page + wrong
    assert (folder / "reliability.png").stat().st_size > 10_000 and f"{folder / 'wrong.html'}: " in out
    assert "patient patient" in Page(wrong).text.replace("\n", " ")

    # One class alone: nobody is wrong. What was written before must not lie beside the new figures.
    out = scored(run, Judge(), cache, folder, "test", every[labels == 0])
    assert not (folder / "wrong.html").exists() and "wrong.html" not in out
    assert "wrong.html" not in (folder / "report.html").read_text()


def test_scores_of_other_detectors_are_no_probabilities(run: Run, cache: Cache, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "reliability.png").write_bytes(b"of an earlier time")
    monkeypatch.setattr(Judge, "supervised", False)
    out = scored(run, Judge(), cache, tmp_path, "test", np.arange(len(cache)))
    assert "classifier" not in out and "classes" not in json.loads((tmp_path / "metrics.json").read_text())
    assert not (tmp_path / "reliability.png").exists() and (tmp_path / "wrong.html").exists()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("quantile", "5% of their validation normals reach the threshold"),
        ("youden", "the threshold was chosen on labelled validation films (Youden's index)"),
    ],
)
def test_new_films_are_told_how_their_threshold_was_found(run, cache, tmp_path, monkeypatch, rule, words) -> None:
    calibration = replace(read_calibration(run), rule=rule)
    monkeypatch.setattr(evaluation, "read_calibration", lambda run: calibration)
    out = scored(run, Judge(), cache, tmp_path, "new", np.arange(4))
    assert words in out and not (tmp_path / "report.html").exists()


# --- the page anew --------------------------------------------------------------------------------------------------


def copied(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, folder / "cae")))


def test_a_page_is_made_of_what_was_scored(run, cache, tmp_path, monkeypatch) -> None:
    mine, told = copied(run, tmp_path), []
    out = "\n".join(evaluation.run_page(mine, on_films=told.append))
    assert sum(told) > 0 and (mine.path / "scores.csv").is_file() and "by patient (SYNTHETIC" in out
    first = (mine.path / "report.html").read_text()
    (mine.path / "report.html").unlink()

    monkeypatch.setattr(evaluation, "score", lambda *given: pytest.fail("scored again"))
    lines = evaluation.run_page(mine)
    assert f"{mine.path / 'report.html'}: the page to open" in lines
    assert (mine.path / "report.html").read_text() == first
    text = " ".join(Page(first).text.split())
    for words in ("Most abnormal", "Most normal", "reconstruction", "marked lesion", "Validation films, their recon"):
        assert words in text
    assert cache.content_hash in text and "NOT A MEDICAL DEVICE" in text and "training.epochs" in text


def test_scores_of_other_films_are_not_taken_for_these(run, tmp_path) -> None:
    mine = copied(run, tmp_path)
    evaluation.run_page(mine)
    lines = (mine.path / "scores.csv").read_text().splitlines()
    (mine.path / "scores.csv").write_text("\n".join(lines[:-1]))
    told = []
    evaluation.run_page(mine, on_films=told.append)
    assert sum(told) == len(lines) - 1 and (mine.path / "scores.csv").read_text().splitlines() == lines


def test_a_run_without_maps_has_a_page_that_says_so(run, tmp_path, monkeypatch) -> None:
    mine = copied(run, tmp_path)
    bare = replace(read_calibration(mine), map_scale=None)
    monkeypatch.setattr(evaluation, "read_calibration", lambda run: bare)
    evaluation.run_page(mine)
    html = (mine.path / "report.html").read_text()
    assert "This model draws no heatmap" in html and 'data-layer="heatmap"' not in html


def test_a_net_that_prepares_films_has_no_page(run, tmp_path) -> None:
    mine = copied(run, tmp_path)
    mine.config["model"] = "unet"
    with pytest.raises(InputError, match="prepares films and has no page; `anomaly score"):
        evaluation.run_page(mine)
