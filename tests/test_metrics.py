"""Figures against scikit-learn, intervals against their promise, pixels against the exact answer."""

import math
import time
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.evaluation.bootstrap import Comparison, PatientBootstrap, interval, paired
from anomaly.evaluation.classification import classify, reliability
from anomaly.evaluation.cohort import Cohort, ScoredCohort, group
from anomaly.evaluation.evaluation import Evaluation, evaluate
from anomaly.evaluation.figures import UNITS, EvaluationSettings, Metrics
from anomaly.evaluation.histogram import StreamingHistogram
from anomaly.evaluation.localization import LocalizationRanking
from anomaly.evaluation.ranking import average_precision, roc_auc, roc_curve
from anomaly.formatting import markdown, number
from anomaly.reporting.text import kind_table, score_table, summary
from anomaly.runs import to_json

films = st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5), st.integers(0, 3)), min_size=2, max_size=40)


def cohort(normal: int, abnormal: int, shift: float, *, films: int = 1, shared: float = 0.0, seed: int = 0):
    """Labels, scores, patients: some films a patient, whose scores share part of their variance."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(normal + abnormal), films)
    labels = (patients >= normal).astype(int)
    own = random.normal(size=len(patients)) * (1 - shared) ** 0.5
    return labels, labels * shift + own + random.normal(size=normal + abnormal)[patients] * shared**0.5, patients


# ------------------------------------------------------------------------------------------------------------ figures


def test_raw_scores_outside_0_to_1_are_ranked_as_they_are():
    """A sigmoid would turn every one of them into 1 and the figure into .5."""
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(100, 10, 1000), random.normal(115, 10, 1000)])
    labels = np.repeat([0, 1], 1000)
    expected = NormalDist().cdf(15 / (10 * 2**0.5))  # .856 for endless films
    assert roc_auc(labels, scores) == pytest.approx(expected, abs=0.02)
    assert roc_auc(labels, -scores) == pytest.approx(1 - roc_auc(labels, scores))  # never flipped


@given(films)
def test_one_draw_with_every_patient_once_is_scikit_learn(rows):
    labels, scores, _ = (np.array(column) for column in zip(*rows, strict=True))
    assume(0 < labels.sum() < len(labels))
    assert roc_auc(labels, scores) == roc_auc_score(labels, scores)
    assert average_precision(labels, scores) == average_precision_score(labels, scores)


@given(films, st.integers(0, 99))
@settings(deadline=None)
def test_draws_are_scikit_learn_with_films_repeated(rows, seed):
    labels, scores, patients = (np.array(column) for column in zip(*rows, strict=True))
    draws = PatientBootstrap(labels, patients, resamples=4, seed=seed)
    assume(draws.enough)
    for metric, figure in (("roc_auc", roc_auc_score), ("ap", average_precision_score)):
        for row, value in enumerate(draws.figures(scores.astype(float), metric)):
            films = np.repeat(np.arange(len(labels)), draws.counts[row][draws.patient])
            if len(np.unique(labels[films])) < 2:
                assert math.isnan(value)
            else:
                assert value == pytest.approx(figure(labels[films], scores[films]))


@given(films, st.randoms())
def test_only_the_order_of_scores_counts_and_not_that_of_films(rows, random):
    labels, scores, _ = (np.array(column) for column in zip(*rows, strict=True))
    assume(0 < labels.sum() < len(labels))
    value = roc_auc(labels, scores)
    assert roc_auc(labels, np.exp(scores / 3.0) - 100) == value
    order = list(range(len(labels)))
    random.shuffle(order)
    assert roc_auc(labels[order], scores[order]) == pytest.approx(value)


def test_one_class_has_no_figure():
    assert math.isnan(roc_auc([1, 1], [0.1, 0.2]))
    assert math.isnan(average_precision([0, 0], [0.1, 0.2]))
    with pytest.raises(ValueError, match="one class only"):
        roc_curve([0, 0], [0.1, 0.2])


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [math.nan, 1], "1 of 2 scores are not finite, the first .nan. in row 0"),
        ([0, 1], [0, math.inf], "not finite"),
        ([0, -1], [0, 1], "label -1; there are: 0, 1"),
        ([0, 1, 1], [0, 1], "must both be"),
    ],
)
def test_what_cannot_be_ranked_is_refused(labels, scores, words):
    with pytest.raises(ValueError, match=words):
        roc_auc(labels, scores)


# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("metric", ["roc_auc", "ap"])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0, 2.5])
def test_interval_holds_the_estimate_and_stays_between_0_and_1(metric, shift):
    labels, scores, patients = cohort(12, 15, shift)
    low, high = interval(labels, scores, patients, metric)
    estimate = {"roc_auc": roc_auc, "ap": average_precision}[metric](labels, scores)
    assert 0 < low < estimate < high < 1
    assert (low, high) == interval(labels, scores, patients, metric)  # the same seed draws the same patients


def test_fewer_patients_and_films_that_share_patients_give_wider_intervals():
    def width(labels, scores, patients):
        low, high = interval(labels, scores, patients)
        return high - low

    labels, scores, patients = cohort(60, 60, 1.0, films=4, shared=0.9)
    assert width(labels, scores, patients) > 1.5 * width(labels, scores, np.arange(len(labels)))
    assert width(*cohort(15, 15, 1.0)) > 1.5 * width(*cohort(150, 150, 1.0))


@pytest.mark.parametrize(("normal", "abnormal", "films"), [(30, 30, 1), (30, 30, 3), (60, 4, 1)])
def test_interval_covers_the_truth_as_often_as_it_says(normal, abnormal, films):
    truth = NormalDist().cdf(0.5)  # shift / sqrt(2)
    hits = 0
    for seed in range(200):
        low, high = interval(*cohort(normal, abnormal, 0.5 * 2**0.5, films=films, shared=0.5, seed=seed), resamples=300)
        hits += low <= truth <= high
    assert hits / 200 >= 0.92


def test_complete_separation_is_not_certainty():
    low, high = interval([0] * 8 + [1] * 5, range(13), range(13))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 5)), 1)
    assert interval([1] * 5 + [0] * 8, range(13), range(13)) == (0, pytest.approx(1 - low))


def test_one_patient_of_a_class_has_no_interval():
    labels, scores, patients = [0, 0, 1, 1], [1.0, 2.0, 1.5, 3.0], ["a", "b", "c", "c"]
    assert all(math.isnan(limit) for limit in interval(labels, scores, patients))
    comparison = paired(labels, scores, scores[::-1], patients)
    assert math.isfinite(comparison.difference) and math.isnan(comparison.p)


def test_interval_is_fast_and_frugal(monkeypatch):
    """Its thousand resamples cost less than a tenth of as many ROC-AUCs of scikit-learn's; measured a hundredth."""
    labels, scores, patients = cohort(250, 250, 0.5, films=3)
    interval(labels, scores, patients, resamples=2)  # imports
    started = time.process_time()
    for _ in range(20):
        roc_auc_score(labels, scores)
    apart = (time.process_time() - started) / 20
    started = time.process_time()
    whole = interval(labels, scores, patients, resamples=1000)
    assert time.process_time() - started < 0.1 * 1000 * apart
    monkeypatch.setattr("anomaly.evaluation.bootstrap._CELLS", 5000)
    assert interval(labels, scores, patients) == pytest.approx(whole)


def test_paired_sees_what_two_intervals_do_not():
    labels, scores, patients = cohort(80, 80, 0.8)
    better = scores + 0.25 * labels
    comparison = paired(labels, better, scores, patients)
    assert comparison.low > 0 and comparison.p < 0.01
    assert comparison.low < comparison.difference < comparison.high
    low, high = interval(labels, scores, patients)
    assert low < roc_auc(labels, better) < high
    back = paired(labels, scores, better, patients)
    assert (back.difference, back.p) == (pytest.approx(-comparison.difference), pytest.approx(comparison.p))
    assert paired(labels, scores, np.exp(scores), patients) == Comparison(0, 0, 0, 1)


def test_the_band_is_that_of_drawn_patients_and_holds_the_curve():
    random = np.random.default_rng(3)
    patients = np.repeat(np.arange(40), 3)
    labels = (patients % 2).astype(int)
    scores = labels + random.normal(size=40)[patients] + random.normal(size=120)
    at = np.linspace(0, 1, 101)
    low, high = PatientBootstrap(labels, patients, resamples=400, seed=0).roc_band(scores, at)
    normal, abnormal = roc_curve(labels, scores)
    middle = np.interp(at, normal, abnormal)
    assert ((low <= middle + 1e-9) & (middle <= high + 1e-9)).mean() > 0.95
    assert (np.diff(low) >= -1e-12).all() and (np.diff(high) >= -1e-12).all() and low[-1] == high[-1] == 1
    alone = PatientBootstrap(labels, np.arange(120), resamples=400, seed=0).roc_band(scores, at)
    assert (high - low).mean() > 1.2 * (alone[1] - alone[0]).mean()  # films of a patient are not three patients
    again = PatientBootstrap(labels, patients, resamples=400, seed=0).roc_band(scores, at)
    assert (again[0] == low).all() and (again[1] == high).all()
    assert PatientBootstrap(labels[:3], patients[:3], resamples=9, seed=0).roc_band(scores[:3], at) is None


def test_a_drawn_curve_is_that_of_the_films_of_its_patients(monkeypatch):
    random = np.random.default_rng(4)
    patients, labels = np.repeat(np.arange(12), 2), np.repeat([0, 1], 12)
    scores = np.round(labels + random.normal(size=24), 1)
    seen = []
    monkeypatch.setattr(np, "quantile", lambda curves, *given, **more: seen.append(curves) or curves[:2])
    at = np.linspace(0.013, 1, 50)
    bootstrap = PatientBootstrap(labels, patients, resamples=20, seed=5)
    bootstrap.roc_band(scores, at)
    both = [row for row in bootstrap.counts if row[:6].any() and row[6:].any()]
    for curve, count in zip(seen[0], both, strict=True):
        rows = np.repeat(np.arange(24), count[patients])
        assert curve == pytest.approx(np.interp(at, *roc_curve(labels[rows], scores[rows])), abs=1e-9)


# --------------------------------------------------------------------------------------------------------- evaluation


def test_groups_take_the_worst_label_and_keep_the_unknown():
    ids, scores, labels = ["s2", "s1", "s2", "s3"], {"mse": [1.0, 4.0, 3.0, 9.0]}, [-1, 0, 1, -1]
    mean, largest = group(ids, labels, scores), group(ids, labels, scores, "max")
    assert mean.ids.tolist() == ["s2", "s1", "s3"] and mean.labels.tolist() == [1, 0, -1]
    assert mean.scores["mse"].tolist() == [2, 4, 9] and largest.scores["mse"].tolist() == [3, 4, 9]
    assert mean.first.tolist() == [0, 1, 3] and mean.films.tolist() == [2, 1, 1]
    assert mean.known_scores["mse"].tolist() == [2, 4]
    with pytest.raises(ValueError, match="no pooling 'median'; there are: max, mean"):
        group(ids, labels, scores, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 labels but 3 ids"):
        group(ids[:3], labels, scores)


@given(films, st.sampled_from(["mean", "max"]))
def test_a_group_is_the_films_of_its_name(rows, pooling):
    labels, scores, names = (np.array(column) for column in zip(*rows, strict=True))
    groups = group(names, labels, {"score": scores}, pooling)
    assert groups.ids.tolist() == list(dict.fromkeys(names.tolist()))  # in the order of their first film
    assert groups.films.sum() == len(rows)
    for name, label, films, first, value in zip(
        groups.ids, groups.labels, groups.films, groups.first, groups.scores["score"], strict=True
    ):
        inside = names == name
        pool = np.mean if pooling == "mean" else np.max
        assert (label, films, first) == (labels[inside].max(), inside.sum(), np.flatnonzero(inside)[0])
        assert value == pytest.approx(pool(scores[inside]))


def cohort_of(labels, patients, **columns) -> Cohort:
    none = np.full(len(labels), "")
    given = {
        "film": np.array([f"film{row}" for row in range(len(labels))]),
        "study": np.array([f"{patient}/study1" for patient in patients]),
        "patient": np.asarray(patients).astype(str),
        "label": np.asarray(labels),
        "split": np.full(len(labels), "test"),
        "finding": none,
        "difficulty": none,
    } | columns
    return Cohort(**given, synthetic=True)


def test_columns_of_a_cohort_are_of_one_length():
    with pytest.raises(ValueError, match=r"study \(1,\) must be \(2,\): one a film"):
        cohort_of([0, 1], ["a", "b"], study=np.array(["a"]))
    with pytest.raises(ValueError, match="label 2; there are: -1, 0, 1"):
        cohort_of([0, 2], ["a", "b"])


def evaluated(**given) -> Evaluation:
    labels, scores, patients = cohort(20, 20, 1.0, films=2)
    labels[:2] = -1
    films = cohort_of(
        labels,
        patients,
        finding=np.where(labels == 1, np.where(patients % 2, "fracture", "implant"), ""),
        difficulty=np.where(labels == 1, "hard", ""),
    )
    all_scores = {"mse": scores, "mean_grey": np.random.default_rng(7).random(len(labels))}
    scored = ScoredCohort(films, all_scores, EvaluationSettings(resamples=100))
    return evaluate(scored, **{"main": "mse", "thresholds": {"film": {"mse": 1.0}}} | given)


def test_evaluate_has_figures_of_every_unit_and_kind():
    evaluation = evaluated()
    figures, films, scores = evaluation.figures, evaluation.scored.cohort, evaluation.scored.scores
    known = films.label >= 0
    film, study, patient = (figures.units[unit]["mse"] for unit in ("film", "study", "patient"))
    assert film is figures.main and film.roc_auc == roc_auc_score(films.label[known], scores["mse"][known])
    assert (film.n, film.n_abnormal, film.n_patients) == (78, 40, 39)  # the unknown ones do not count
    assert (study.n, study.n_abnormal, study.prevalence) == (39, 20, 20 / 39)
    means = scores["mse"].reshape(40, 2).mean(1)[1:]
    assert study.roc_auc == patient.roc_auc == roc_auc_score(np.arange(39) >= 19, means)
    assert film.threshold.n_flagged == (scores["mse"][known] >= 1).sum() and study.threshold is None
    against = film.against["mean_grey"]
    assert against.difference == film.roc_auc - figures.film["mean_grey"].roc_auc
    assert against.interval[0] < against.difference < against.interval[1]
    assert figures.film["mean_grey"].against is None
    assert list(figures.finding) == ["fracture", "implant"] and list(figures.difficulty) == ["hard"]
    kind = figures.finding["fracture"]["mse"]
    rows = known & ((films.label == 0) | (films.finding == "fracture"))
    assert kind.roc_auc == roc_auc_score(films.label[rows], scores["mse"][rows])
    assert (kind.n, kind.n_abnormal) == (58, 20)


def test_evaluate_uses_the_same_numbers_as_its_parts():
    evaluation = evaluated(chosen_on=9, main="mean_grey", thresholds={unit: {"mean_grey": 0.4} for unit in UNITS})
    figures, scored = evaluation.figures, evaluation.scored
    for unit in UNITS:
        groups = scored.groups[unit]
        labels, patients = groups.labels[groups.known], scored.cohort.patient[groups.first][groups.known]
        values, grey = (groups.known_scores[name] for name in ("mse", "mean_grey"))
        for metric in ("roc_auc", "ap"):
            alone = interval(labels, values, patients, metric, resamples=100)
            assert getattr(figures.units[unit]["mse"], f"{metric}_interval") == alone
        pair = paired(labels, values, grey, patients, resamples=100)
        assert figures.units[unit]["mse"].against["mean_grey"] == pair.figures()
        classes = figures.classes[unit]
        assert classes.half == classify(labels, grey, patients, 0.5, resamples=100)
        assert classes.chosen == classify(labels, grey, patients, 0.4, resamples=100)
        assert classes.reliability == reliability(labels, grey, patients, resamples=100)


def test_evaluate_without_labels_has_no_figures():
    films = cohort_of([-1, -1], ["a", "b"])
    scored = ScoredCohort(films, {"p": np.array([0.1, 0.2])})
    figures = evaluate(scored, main="p", thresholds={unit: {"p": 0.15} for unit in UNITS}, chosen_on=3).figures
    film = figures.main
    assert (film.roc_auc, film.ap_interval, film.n, film.prevalence) == (None, None, 0, None)
    assert film.threshold.sensitivity is None and figures.kinds == {} and figures.classes == {}
    assert Metrics.model_validate_json(to_json(figures.to_data())) == figures


def test_metrics_are_read_back_as_written_and_leave_out_what_was_not_asked():
    plain = evaluated(
        localization=LocalizationRanking().figures(resamples=10), run="runs/cae-1", command="anomaly score runs/cae-1"
    ).figures
    classified = evaluated(
        main="mean_grey", chosen_on=9, thresholds={unit: {"mean_grey": 0.4} for unit in UNITS}
    ).figures
    for figures in (plain, classified):
        assert Metrics.model_validate_json(to_json(figures.to_data())) == figures
    data = plain.to_data()
    assert "classes" not in data and "chosen_on" not in data and data["localization"]["roc_auc"] is None
    assert "threshold" not in data["study"]["mse"] and "against" not in data["film"]["mean_grey"]
    assert set(data["finding"]["fracture"]["mse"]) == {
        "roc_auc", "roc_auc_interval", "n", "n_abnormal", "n_patients", "prevalence",
    }  # fmt: skip
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Metrics.model_validate(data | {"figure": 1})


def test_a_main_score_or_threshold_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no score 'kld'; there are: mean_grey, mse"):
        evaluated(main="kld")
    with pytest.raises(ValueError, match="no threshold of mean_grey by study"):
        evaluated(main="mean_grey", chosen_on=9, thresholds={"film": {"mean_grey": 0.4}})


def test_patients_are_resampled_once_a_unit():
    scored = evaluated().scored
    assert scored.bootstraps is scored.bootstraps and scored.groups is scored.groups
    for unit in UNITS:
        assert len(scored.bootstraps[unit].labels) == len(scored.known_scores(unit, "mse"))


# ------------------------------------------------------------------------------------------------------------- pixels


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=50), st.floats(0.01, 1))
def test_histogram_finds_quantiles_within_its_bins(values, q):
    histogram = StreamingHistogram()
    histogram.add(np.array(values))
    exact = np.sort(np.float32(values))[math.ceil(q * len(values)) - 1]
    assert exact <= histogram.quantile(q) <= exact * (1 + 2**-11)


def test_histogram_refuses_what_no_map_holds():
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            StreamingHistogram().add(np.array([0.5, wrong]))
    histogram = StreamingHistogram()
    with pytest.raises(ValueError, match="no pixel"):
        histogram.quantile(0.5)
    histogram.add(np.array([0.0, -0.0]))
    assert histogram.quantile(1.0) == 0


def test_tables_have_a_row_for_every_score_or_kind():
    figures = evaluated().figures
    lines = score_table(figures.film)
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[2].startswith("| mse ") and f"{number(figures.main.roc_auc)} [" in lines[2]
    kinds = kind_table(figures.finding, ("mse", *figures.settings.trivial))  # without minus_std, which is no score here
    assert [cell.strip() for cell in kinds[0].split("|")[1:-1]] == ["kind", "mse", "mean_grey", "abnormal films"]
    assert len(kinds) == 4
    text = "\n".join(summary(figures))
    for words in (
        "by patient (SYNTHETIC films, split test, 95% confidence intervals over patients)",
        "mse by finding (",
    ):
        assert words in text
    with pytest.raises(ValueError, match="needs 2 cells"):
        markdown(["a", "b"], [["1"]])


def test_restricted_draws_are_the_same_draws():
    random = np.random.default_rng(0)
    patients, labels, scores = np.repeat(np.arange(12), 3), np.repeat(np.arange(12) % 2, 3), random.normal(size=36)
    whole = PatientBootstrap(labels, patients, resamples=50, seed=1)
    same = whole.restricted(labels, whole.patient)
    assert (same.figures(scores, "roc_auc") == whole.figures(scores, "roc_auc")).all()
    rows = np.flatnonzero(patients < 9)
    part = whole.restricted(labels[rows], whole.patient[rows])
    drawn = part.figures(scores[rows], "roc_auc")
    for figure, counts in zip(drawn, whole.counts, strict=True):
        repeated = np.repeat(rows, counts[patients[rows]])  # a film as often as its patient was drawn
        assert figure == pytest.approx(roc_auc(labels[repeated], scores[repeated]), nan_ok=True)
    assert (part.classes, whole.classes) == ([5, 4], [6, 6])
