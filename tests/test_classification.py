"""Calls against scikit-learn and by hand, intervals against their promise, probabilities against what came."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    classification_report,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
)

from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.classification import FIGURES, classify, figures_of_cells, reliability, youden
from anomaly.evaluation.cohort import Cohort, ScoredCohort
from anomaly.evaluation.evaluation import Evaluation, evaluate
from anomaly.evaluation.figures import (
    AccuracyRow,
    ClassifierFigures,
    ClassRow,
    Confusion,
    EvaluationSettings,
    ReliabilityBin,
)
from anomaly.evaluation.ranking import at_threshold
from anomaly.formatting import number
from anomaly.reporting.text import classifier_table, report_table, summary
from anomaly.runs import to_json

# Label, probability, patient. Tenths tie often and lie on the edges of bins.
films = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 10).map(lambda tenth: tenth / 10), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)

# Two normal patients with two films each, two abnormal ones with three and one.
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
SAID = [0.1, 0.6, 0.2, 0.3, 0.9, 0.8, 0.4, 0.7]
PATIENTS = ["a", "a", "b", "b", "c", "c", "c", "d"]


def columns_of(rows):
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def cohort(normal, abnormal, specificity, recall, *, films=1, seed=0):
    """Labels, scores, patients of films that are called right at 0 with the given chances."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(normal + abnormal), films)
    labels = (patients >= normal).astype(int)
    right = random.random(len(labels)) < np.where(labels == 1, recall, specificity)
    return labels, np.where(right == labels, 1.0, -1.0), patients


def plain(figures):
    """Whether JSON can hold the figures."""
    return type(figures).model_validate_json(to_json(figures.to_data())) == figures


# ---------------------------------------------------------------------------------------------------------- threshold


def test_youden_stands_midway_where_the_two_shares_are_best():
    # From .4 on: sensitivity 3/3, specificity 2/3. From .6 on: 2/3 and 3/3. The gap below .4 is the wider.
    assert youden([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.4, 0.5, 0.6, 0.9]) == pytest.approx(0.3)
    # One film above .9 would also be called right, but two are missed.
    assert youden([0, 0, 1, 1, 1], [0.1, 0.2, 0.7, 0.8, 0.9]) == pytest.approx(0.45)
    assert youden([0, 1, 0, 1], [1, 2, 3, 4]) == 1.5  # equally good and equally wide: the lowest


def test_youden_without_a_useful_threshold_calls_every_film_normal():
    for labels, scores in (([0, 1], [1.0, 1.0]), ([1, 0], [0.0, 1.0])):
        threshold = youden(labels, scores)
        assert threshold > 1 and threshold == pytest.approx(1)
    for labels in ([0, 0], [1, 1]):
        with pytest.raises(ValueError, match="one class only"):
            youden(labels, [0.1, 0.2])


@given(films, st.randoms())
def test_no_threshold_is_better_than_youdens(rows, random):
    labels, scores, _ = columns_of(rows)
    assume(0 < labels.sum() < len(labels))

    def gain(threshold):
        figures = at_threshold(labels, scores, threshold)
        return figures.sensitivity + figures.specificity

    threshold = youden(labels, scores)
    assert threshold not in scores
    assert gain(threshold) >= max(gain(other) for other in [*scores, 2.0]) - 1e-12
    order = list(range(len(labels)))
    random.shuffle(order)
    assert youden(labels[order], scores[order]) == threshold


def test_youden_parts_even_neighbouring_numbers():
    low = 0.3
    high = math.nextafter(low, 1)
    threshold = youden([0, 1], [low, high])
    assert low < threshold <= high
    assert youden([0, 1], [-1e308, 1e308]) == 0  # halves do not overflow


# ------------------------------------------------------------------------------------------------------------ figures


def test_every_figure_by_hand():
    figures = classify(LABELS, SAID, PATIENTS, 0.5)
    assert plain(figures)
    assert [getattr(figures, name) for name in ("threshold", "n", "n_abnormal", "n_patients")] == [0.5, 8, 4, 4]
    assert figures.confusion == Confusion(counts=((3, 1), (1, 3)), normalized=((0.75, 0.25), (0.25, 0.75)))
    assert [getattr(figures, name) for name in FIGURES] == [
        0.75,
        0.75,
        0.75,
        0.75,
        0.75,
        0.5,
    ]  # (6/8 - 1/2) / (1 - 1/2)
    each = ClassRow(precision=0.75, recall=0.75, f1=0.75, support=4)
    average = each.model_copy(update={"support": 8})
    assert figures.report == {
        "normal": each,
        "abnormal": each,
        "accuracy": AccuracyRow(f1=0.75, support=8),
        "macro avg": average,
        "weighted avg": average,
    }
    stricter = classify(LABELS, SAID, PATIENTS, 0.8)  # .8 itself is called abnormal
    assert stricter.confusion.counts == ((4, 0), (2, 2))
    assert [getattr(stricter, name) for name in FIGURES] == [0.75, 1, 0.5, pytest.approx(2 / 3), 1, 0.5]
    assert stricter.report["normal"].precision == pytest.approx(4 / 6)
    assert stricter.report["macro avg"].precision == pytest.approx(5 / 6)


@given(films, st.integers(0, 10))
@settings(deadline=None, max_examples=40)
def test_figures_are_scikit_learns(rows, tenth):
    labels, scores, patients = columns_of(rows)
    threshold = tenth / 10
    figures = classify(labels, scores, patients, threshold, resamples=2)
    called = (scores >= threshold).astype(int)
    undefined = {"zero_division": math.nan}
    expected = {
        "accuracy": accuracy_score(labels, called),
        "precision": precision_score(labels, called, **undefined),
        "recall": recall_score(labels, called, **undefined),
        "f1": f1_score(labels, called, **undefined),
        "specificity": recall_score(labels, called, pos_label=0, **undefined),
        "kappa": math.nan if len({*labels, *called}) == 1 else cohen_kappa_score(labels, called),
    }
    assert {
        name: math.nan if getattr(figures, name) is None else getattr(figures, name) for name in FIGURES
    } == pytest.approx(expected, nan_ok=True)
    assert np.array_equal(figures.confusion.counts, confusion_matrix(labels, called, labels=[0, 1]))
    assert plain(figures)
    if 0 < called.sum() < len(called) and 0 < labels.sum() < len(labels):
        sheet = classification_report(labels, called, target_names=["normal", "abnormal"], output_dict=True)
        for name in ("normal", "abnormal", "macro avg", "weighted avg"):
            row = {key.replace("f1-score", "f1"): value for key, value in sheet[name].items()}
            assert figures.report[name].to_data() == pytest.approx(row)


@given(films, st.integers(0, 10), st.randoms())
@settings(deadline=None, max_examples=40)
def test_figures_stay_in_range_and_do_not_depend_on_the_order_of_films(rows, tenth, random):
    labels, scores, patients = columns_of(rows)
    figures = classify(labels, scores, patients, tenth / 10, resamples=20)
    for name in FIGURES:
        value, limits = getattr(figures, name), getattr(figures, f"{name}_interval")
        lowest = -1 if name == "kappa" else 0
        assert value is None or lowest <= value <= 1
        if limits is not None:
            assert lowest <= limits[0] <= value + 1e-9 and value - 1e-9 <= limits[1] <= 1
            assert limits[0] < limits[1]
    order = list(range(len(labels)))
    random.shuffle(order)
    assert classify(labels[order], scores[order], patients[order], tenth / 10, resamples=20) == figures


@given(films, st.integers(0, 10), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_draw_is_classify_with_films_repeated(rows, tenth, seed):
    labels, scores, patients = columns_of(rows)
    called = (scores >= tenth / 10).astype(int)
    draws = PatientBootstrap(labels, patients, resamples=2, seed=seed)
    times = draws.counts[0][draws.patient]
    drawn = np.repeat(np.arange(len(labels)), times)
    cells = np.bincount(2 * labels + called, weights=times, minlength=4)[None]
    if drawn.size:
        again = classify(labels[drawn], scores[drawn], patients[drawn], tenth / 10, resamples=2)
        for name, (value,) in figures_of_cells(cells).items():
            assert (None if math.isnan(value) else value) == pytest.approx(getattr(again, name))


def test_one_class_tells_what_it_can():
    normal = classify([0, 0, 0], [0.1, 0.2, 0.9], ["a", "b", "c"], 0.5)
    assert (normal.accuracy, normal.specificity) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert normal.recall is None and normal.precision == 0 and normal.kappa == 0
    assert normal.specificity_interval[0] < 2 / 3 < normal.specificity_interval[1]
    for name in ("precision", "recall", "f1", "kappa"):
        assert getattr(normal, f"{name}_interval") is None
    assert normal.confusion.normalized == ((pytest.approx(2 / 3), pytest.approx(1 / 3)), None)
    assert normal.report["abnormal"] == ClassRow(precision=0, recall=None, f1=0, support=0)
    assert normal.report["macro avg"].recall is None
    assert normal.report["weighted avg"].recall == pytest.approx(2 / 3)  # no abnormal film weighs nothing
    right = classify([1, 1], [0.8, 0.9], ["a", "b"], 0.5)
    assert (right.recall, right.kappa, right.specificity) == (1, None, None)


def test_calls_that_are_all_alike_have_no_precision_and_no_kappa_worth_an_interval():
    never = classify(LABELS, SAID, PATIENTS, 2.0)
    assert (never.precision, never.recall, never.f1, never.kappa) == (None, 0, 0, 0)
    assert never.precision_interval is None and never.kappa_interval is None
    assert never.report["weighted avg"].precision is None
    assert never.recall_interval == (0, pytest.approx(1 - 0.025 ** (1 / 2)))  # two abnormal patients


@pytest.mark.parametrize(
    ("labels", "scores", "patients", "words"),
    [
        ([], [], [], "no film with a known label"),
        ([0, -1], [0.1, 0.2], ["a", "b"], "label -1; there are: 0, 1"),
        ([0, 1], [0.1, math.nan], ["a", "b"], "not finite"),
        ([0, 1], [0.1, 0.2], ["a"], "one patient a film"),
    ],
)
def test_what_cannot_be_told_is_refused(labels, scores, patients, words):
    with pytest.raises(ValueError, match=words):
        classify(labels, scores, patients, 0.5)
    with pytest.raises(ValueError, match=words if patients else "no film"):
        reliability(labels, scores, patients)


# ---------------------------------------------------------------------------------------------------------- intervals


def test_intervals_rest_on_patients_and_not_on_films():
    labels, scores, patients = cohort(40, 40, 0.8, 0.7)
    alone = classify(labels, scores, patients, 0.0)
    thrice = classify(*(np.repeat(column, 3) for column in (labels, scores, patients)), 0.0)
    for name in FIGURES:
        assert getattr(thrice, f"{name}_interval") == pytest.approx(getattr(alone, f"{name}_interval"))
    split = classify(*(np.repeat(column, 3) for column in (labels, scores)), np.arange(240), 0.0)
    widths = [np.diff(figures.accuracy_interval)[0] for figures in (alone, split)]
    assert widths[0] > 1.5 * widths[1]


def test_the_accuracy_of_independent_films_has_about_the_textbook_interval():
    labels = np.repeat([0, 1], 200)
    scores = np.where(np.arange(400) % 5 == 0, 1 - labels, labels)  # 320 of 400 right
    figures = classify(labels, scores, np.arange(400), 0.5)
    error = 1.966 * (0.8 * 0.2 / 400) ** 0.5 / (0.8 * 0.2)  # Student's t, on the logit scale
    expected = [1 / (1 + math.exp(-math.log(4) - side * error)) for side in (-1, 1)]
    assert figures.accuracy == 0.8 and figures.accuracy_interval == pytest.approx(expected, abs=0.004)


def test_few_patients_are_taken_from_the_draws_of_metrics_with_students_t():
    labels, scores = np.repeat([0, 1], 5), np.array([0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    draws = PatientBootstrap(labels, np.arange(10), resamples=1000, seed=4)
    error = (draws.counts @ ((scores > 0.5) == labels) / 10).std(ddof=1)
    reach = 2.2622 * error / (0.8 * 0.2)  # nine degrees of freedom
    expected = [1 / (1 + math.exp(-math.log(4) - side * reach)) for side in (-1, 1)]
    figures = classify(labels, scores, np.arange(10), 0.5, seed=4)
    assert figures.accuracy_interval == pytest.approx(expected, abs=1e-4)


def test_no_error_is_not_certainty():
    figures = classify([0] * 8 + [1] * 5, [0.1] * 8 + [0.9] * 5, range(13), 0.5)
    for name, patients in (("accuracy", 13), ("recall", 5), ("precision", 5), ("specificity", 8)):
        assert getattr(figures, f"{name}_interval") == (pytest.approx(0.025 ** (1 / patients)), 1)
    assert figures.kappa_interval == (pytest.approx(2 * 0.025 ** (1 / 5) - 1), 1)


def test_one_patient_of_a_class_leaves_what_the_others_tell():
    figures = classify([0, 0, 0, 1], [0.1, 0.7, 0.2, 0.9], ["a", "b", "c", "d"], 0.5)
    assert figures.recall == 1 and figures.recall_interval is None
    assert figures.specificity_interval is not None and figures.accuracy_interval is not None
    assert figures.precision == 0.5 and figures.precision_interval is figures.kappa_interval is None


@pytest.mark.parametrize(("normal", "abnormal", "films"), [(30, 30, 1), (60, 8, 2)])
def test_intervals_cover_the_truth_as_often_as_they_say(normal, abnormal, films):
    specificity, recall, prevalence = 0.95, 0.85, abnormal / (normal + abnormal)
    shares = [(1 - prevalence) * specificity, (1 - prevalence) * 0.05, prevalence * 0.15, prevalence * recall]
    truth = figures_of_cells(np.array([shares]))
    hits = dict.fromkeys(FIGURES, 0)
    for seed in range(80):
        rows = cohort(normal, abnormal, specificity, recall, films=films, seed=seed)
        figures = classify(*rows, 0.0, resamples=100, seed=seed)
        for name in FIGURES:
            low, high = getattr(figures, f"{name}_interval")
            hits[name] += low <= truth[name][0] <= high
    assert min(hits.values()) / 80 >= 0.91, hits


# -------------------------------------------------------------------------------------------------------- reliability


def test_reliability_by_hand():
    result = reliability([0, 1, 0, 1], [0.0, 0.3, 0.75, 1.0], ["a", "b", "c", "d"], bins=4)
    assert plain(result)
    assert result.brier == pytest.approx((0 + 0.49 + 0.5625 + 0) / 4)
    assert result.brier_of_prevalence == 0.25
    assert 0 == result.brier_interval[0] < result.brier < result.brier_interval[1] <= 1
    first, second, last = result.bins  # no film from .5 to .75
    assert first == ReliabilityBin(low=0, high=0.25, n=1, mean_probability=0, share=0, share_interval=None)
    assert (second.low, second.n, second.share) == (0.25, 1, 1)
    assert (last.low, last.high, last.n, last.mean_probability) == (0.75, 1, 2, 0.875)
    assert last.share == 0.5 and last.share_interval[0] < 0.5 < last.share_interval[1]


@given(films, st.integers(1, 12), st.randoms())
@settings(deadline=None)
def test_bins_hold_every_film_once(rows, bins, random):
    labels, said, patients = columns_of(rows)
    result = reliability(labels, said, patients, bins=bins, resamples=10)
    assert plain(result)
    assert result.brier == pytest.approx(brier_score_loss(labels, said, labels=[0, 1]))
    assert sum(part.n for part in result.bins) == len(labels)
    assert sum(part.n * part.share for part in result.bins) == pytest.approx(labels.sum())
    for part in result.bins:
        inside = (said >= part.low) & ((said < part.high) | (part.high == 1))
        assert part.n == inside.sum() and part.share == pytest.approx(labels[inside].mean())
        assert part.low <= part.mean_probability + 1e-12 and part.mean_probability <= part.high + 1e-12
        limits = part.share_interval
        assert limits is None or 0 <= limits[0] <= part.share <= limits[1] <= 1
    order = list(range(len(labels)))
    random.shuffle(order)
    again = reliability(labels[order], said[order], patients[order], bins=bins, resamples=10)
    assert again.brier == pytest.approx(result.brier)
    assert [part.share_interval for part in again.bins] == [part.share_interval for part in result.bins]


def test_calibrated_probabilities_lie_on_the_diagonal_and_beat_the_prevalence():
    random = np.random.default_rng(3)
    said = random.random(4000)
    labels = (random.random(4000) < said).astype(int)
    result = reliability(labels, said, np.arange(4000), level=0.999, resamples=200)
    for part in result.bins:
        assert part.share_interval[0] < part.mean_probability < part.share_interval[1]
    assert result.brier == pytest.approx(1 / 6, abs=0.01) and result.brier < result.brier_of_prevalence


def test_what_is_no_probability_is_refused():
    for strange in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"they must lie in \[0, 1\]"):
            reliability([0, 1], [0.5, strange], ["a", "b"])
    with pytest.raises(ValueError, match="0 bins"):
        reliability([0, 1], [0.5, 0.5], ["a", "b"], bins=0)


# ------------------------------------------------------------------------------------------------- evaluation, tables


def evaluated(pooling="mean") -> Evaluation:
    columns = {
        "film": np.array([f"film{row}" for row in range(10)]),
        "label": np.array([*LABELS, -1, -1]),
        "patient": np.array([*PATIENTS, "d", "e"]),
        "study": np.array(["a1", "a2", "b1", "b1", "c1", "c1", "c1", "d1", "d1", "e1"]),
        "split": np.full(10, "test"),
    }
    cohort = Cohort(**columns, finding=np.full(10, ""), difficulty=np.full(10, ""), synthetic=False)
    settings = EvaluationSettings(aggregate=pooling, resamples=50)
    scored = ScoredCohort(cohort, {"probability": np.array([*SAID, 0.1, 0.9])}, settings)
    thresholds = {"film": {"probability": 0.8}, "study": {"probability": 0.35}, "patient": {"probability": 0.3}}
    return evaluate(scored, main="probability", thresholds=thresholds, chosen_on=1)


def test_every_unit_is_classified_at_both_thresholds():
    classes = evaluated().figures.classes
    assert list(classes) == ["film", "study", "patient"]
    for name, threshold in (("half", 0.5), ("chosen", 0.8)):  # the films without a label do not count
        assert getattr(classes["film"], name) == classify(LABELS, SAID, PATIENTS, threshold, resamples=50)
    assert classes["film"].reliability == reliability(LABELS, SAID, PATIENTS, resamples=50)
    # Studies a1 .1, a2 .6, b1 .25; c1 .7, d1 (.7 + .1) / 2 = .4
    assert classes["study"].half.confusion.counts == ((2, 1), (1, 1))
    assert classes["study"].chosen.confusion.counts == ((2, 1), (0, 2))
    # Patients a .35, b .25; c .7, d .4
    assert classes["patient"].chosen.confusion.counts == ((1, 1), (0, 2))
    assert [figures.half.n_patients for figures in classes.values()] == [4, 4, 4]
    assert evaluated("max").figures.classes["study"].half.recall == 1  # d1 by its worst view, .7


def test_one_class_is_evaluated_and_printed():
    half = classify([0, 0], [0.1, 0.9], ["a", "b"], 0.5)
    figures = ClassifierFigures(half=half, chosen=half, reliability=reliability([0, 0], [0.1, 0.9], ["a", "b"]))
    assert half.accuracy == 0.5 and figures.reliability.brier_of_prevalence == 0
    assert "–" in classifier_table(figures)[2]
    assert report_table(half)[-1].split("|")[3].strip() == "0 (–)"


def test_tables_read_as_they_should():
    figures = evaluated().figures.classes["film"]
    lines = classifier_table(figures)
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "threshold",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "specificity",
        "kappa",
    ]
    low, high = figures.half.kappa_interval
    assert lines[2].startswith("| at .500 ") and f" .500 [{number(low)}, {number(high)}] |" in lines[2]
    assert lines[3].startswith("| at .800, chosen on validation |")
    assert report_table(figures.chosen) == [
        "| class        | precision | recall |   F1 |   n |",
        "| :----------- | --------: | -----: | ---: | --: |",
        "| normal       |      .667 |  1.000 | .800 |   4 |",
        "| abnormal     |     1.000 |   .500 | .667 |   4 |",
        "| accuracy     |           |        | .750 |   8 |",
        "| macro avg    |      .833 |   .750 | .733 |   8 |",
        "| weighted avg |      .833 |   .750 | .733 |   8 |",
        "",
        "| label    | called normal | called abnormal |",
        "| :------- | ------------: | --------------: |",
        "| normal   |     4 (1.000) |        0 (.000) |",
        "| abnormal |      2 (.500) |        2 (.500) |",
    ]


def test_the_terminal_says_on_what_a_classifier_was_measured():
    text = "\n".join(summary(evaluated().figures))
    assert "as a classifier by film (split test; second threshold chosen on 1 validation film)" in text
    assert "class by class at .800, chosen on validation (split test)" in text and text.count("Brier score") == 3
