"""The page holds what it should, loads nothing, and lets no file name become markup."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import cv2
import numpy as np
import pytest

from anomaly import heatmap, metrics, report

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
        scores=scores,
        metrics=metrics.evaluate(columns, scores, thresholds={"film": {"mse": 0.05}}, resamples=50),
        config={"model": {"latent": 64}, EVIL: EVIL},
        facts={"seed": "0"},
        history={"epoch": [0, 1, 2], "loss": [3.0, 2.0, 1.5], "val_$x_roc_auc": [None, 0.6, float("nan")]},
        threshold=0.05,
        map_scale=0.05,
        highest=[report.Shown(EVIL, 1, 0.07, film, heat, EVIL)],
        wrong=[report.Shown("image2.png", -1, 0.01, film)],
        failures=[(EVIL, EVIL)],
        notes=[EVIL],
    )
    return replace(given, **changes)


@pytest.fixture(scope="module")
def given() -> report.ReportContext:
    return context()


@pytest.fixture(scope="module")
def html(given) -> str:
    return report.render_report(given)


class Page(HTMLParser):
    """Collects the tags of a page, and checks that they nest."""

    VOID = frozenset({"meta", "link", "img", "br", "source", "line", "circle"})

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

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_nothing_from_files_becomes_markup(html):
    page = Page(html)
    names = [name for name, _ in page.tags]
    assert "script" not in names and "<script" not in html
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(EVIL) >= 8  # shown as it is: title, setting, note, film, finding, failure


def test_the_page_loads_nothing(html):
    page = Page(html)
    addresses = [value for _, given in page.tags for name, value in given.items() if name in ("src", "srcset", "href")]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not {"link", "iframe", "object"} & {name for name, _ in page.tags}
    policy = next(given["content"] for _, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_pictures_are_pictures(html):
    shapes = []
    for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
        shapes.append(picture.shape[:2])
    assert len(shapes) == 3 * 2 + 1 * 2 + 2 + 1  # three charts for light and dark, a bar for each gallery, three films
    assert shapes.count((360, 274)) == 3  # shrunk, aspect kept


def test_synthetic_films_are_called_so_in_capitals(html):
    assert "SYNTHETIC FILMS" in html
    assert "SYNTHETIC" not in report.render_report(context(synthetic=False, history={}))


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
        labels=columns["label"], history={}, highest=(), wrong=(), failures=(), threshold=None, map_scale=None
    )
    given = replace(given, metrics=metrics.evaluate(columns, given.scores))
    text = Page(report.render_report(given)).text
    assert "No ROC-AUC: the films are not labelled" in text and "Learning curves" not in text
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


def test_gallery_rows_are_the_highest_and_the_most_contradicted():
    labels, scores = np.repeat([0, 1, -1], 20), RANDOM.normal(size=60)
    highest, wrong = report.gallery_rows(labels, scores, count=8)
    assert all(scores[first] >= scores[second] for first, second in pairwise(highest))
    assert scores[highest[0]] == scores.max() and not (labels[wrong] == -1).any()
    worst_normal = 0 + int(np.argmax(scores[:20]))
    assert worst_normal in wrong
    assert report.gallery_rows([0, 0], [1.0, 2.0]) == ([1, 0], [])
    assert report.gallery_rows([0, 1], [1.0, 2.0])[1] == []  # told apart: nothing is wrong
