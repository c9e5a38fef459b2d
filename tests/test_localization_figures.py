"""How well maps point at lesions: every figure against a plain rendering that sorts everything, and what is refused."""

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.cohort import Cohort, ScoredCohort
from anomaly.evaluation.figures import LesionFigures, LocalizationFigures
from anomaly.evaluation.film_localization import MARK_RADIUS, POINTING_TOLERANCE, VALUES_KEPT, measure_film
from anomaly.evaluation.histogram import ValueCounts, condensed, value_keys
from anomaly.evaluation.localization import LocalizationRanking
from anomaly.evaluation.localization_curves import FALSE_MARKS
from anomaly.formatting import number as shown
from anomaly.reporting.charts.froc import froc_chart
from anomaly.reporting.text import localization_lines

EXACT = {"rel": 1e-6, "abs": 1e-9}
NAMES = [name for name in LesionFigures.model_fields if f"{name}_interval" in LesionFigures.model_fields]


# ---------------------------------------------------------------------------------------------------- plain renderings


def lesions_of(truth, mask):
    """The pixels under the mask of each 8-connected component, by walking from pixel to pixel."""
    left, lesions = truth.copy(), []
    for start in zip(*np.nonzero(truth), strict=True):
        if not left[start]:
            continue
        left[start], lesion, queue = False, [], deque([start])
        while queue:
            y, x = queue.popleft()
            lesion.append((y, x))
            for at in ((y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if 0 <= at[0] < len(truth) and 0 <= at[1] < truth.shape[1] and left[at]:
                    left[at] = False
                    queue.append(at)
        lesions.append({at for at in lesion if mask[at]})
    return [lesion for lesion in lesions if lesion]


def marks_of(values, mask):
    """Pixels above 0 that no other exceeds nearby, the middle one of each plateau."""
    reach = max(1, round(max(values.shape) * MARK_RADIUS))
    peaks = np.zeros(values.shape, bool)
    inside = np.where(mask, values, 0)
    for y, x in zip(*np.nonzero(inside > 0), strict=True):
        near = inside[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        peaks[y, x] = inside[y, x] == near.max()
    return [sorted(plateau)[len(plateau) // 2] for plateau in lesions_of(peaks, mask)]


def plain(films, wanted=lambda film, lesion: True):
    """Every figure of the wanted lesions from all pixels, marks and lesions of all films at once."""
    normal, regions, false, found, by_film = [], [], [], [], []
    for film in films:
        values, truth, mask = np.float32(film[0]), film[1], film[2]
        normal.append(values[mask & ~truth])
        lesions, marks = lesions_of(truth, mask), marks_of(values, mask)
        every = {at for lesion in lesions for at in lesion}
        false += [values[at] for at in marks if at not in every]
        own = [lesion for lesion in lesions if wanted(film, lesion)]
        if not own:
            continue
        regions += [np.array([values[at] for at in lesion]) for lesion in own]
        found += [max((values[at] for at in marks if at in lesion), default=-1) for lesion in own]
        peaks = [at for at in zip(*np.nonzero(mask), strict=True) if values[at] == values[mask].max()]
        tolerance = POINTING_TOLERANCE * max(values.shape)
        hits = [sum(at in lesion for lesion in own) for at in peaks]
        near = [
            sum(min(math.hypot(at[0] - y, at[1] - x) for y, x in lesion_pixels(truth, lesion)) <= tolerance
                for lesion in own)
            for at in peaks
        ]  # fmt: skip
        whole = len(own) == len(lesions)
        labels, scores = truth[mask], values[mask]
        by_film.append(
            {
                "peak_in_lesion": sum(hits) / len(peaks),
                "pointing": min(1, sum(near) / len(peaks)),
                "film_roc_auc": roc_auc_score(labels, scores) if whole and len(set(labels.tolist())) == 2 else math.nan,
                "best_dice": max(dice(labels, scores >= t) for t in set(scores.tolist())) if whole else math.nan,
            }
        )
    return pixel_figures(np.concatenate(normal), regions) | {
        name: nan_mean([film[name] for film in by_film]) for name in by_film[0]
    } | froc_figures(found, false, len(films))  # fmt: skip


def lesion_pixels(truth, lesion):
    """All pixels of the component that a lesion is part of, those outside the mask too."""
    return next(one for one in lesions_of(truth, np.ones_like(truth)) if lesion <= one)


def dice(labels, flagged):
    return 2 * (labels & flagged).sum() / (labels.sum() + flagged.sum())


def nan_mean(values):
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def pixel_figures(normal, regions):
    scores = np.concatenate([normal, *regions])
    labels = np.r_[np.zeros(len(normal), int), np.ones(len(scores) - len(normal), int)]
    if not len(normal):
        return dict.fromkeys(("roc_auc", "ap", "ap_over_prevalence", "f1_max", "aupro_30", "aupro_05"))
    ap = average_precision_score(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    rates, _, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    overlap = np.array([np.mean([(region >= at).mean() for region in regions]) for at in thresholds])
    result = {"roc_auc": roc_auc_score(labels, scores), "ap": ap, "ap_over_prevalence": ap / labels.mean()}
    for name, limit in (("aupro_30", 0.3), ("aupro_05", 0.05)):
        below = rates <= limit
        last = int(np.flatnonzero(below)[-1])
        x, y = rates[below], overlap[below]
        if last + 1 < len(rates):
            share = (limit - rates[last]) / (rates[last + 1] - rates[last])
            x, y = np.r_[x, limit], np.r_[y, overlap[last] + share * (overlap[last + 1] - overlap[last])]
        result[name] = auc(x, y) / limit
    return result | {"f1_max": f1.max()}


def froc_figures(found, false, films):
    found, false = np.array(found), np.array(false)
    points = []
    for rate in FALSE_MARKS:
        allowed = [t for t in {*found.tolist()} - {-1} if (false >= t).sum() <= rate * films]
        points.append(max([(found >= t).mean() for t in allowed], default=0.0))
    return {"froc": points, "froc_mean": np.mean(points)}


def measured(films, **settings):
    ranking = LocalizationRanking()
    for number, film in enumerate(films):
        values, truth, mask, *kinds = film
        kind = kinds[0] if kinds else ""
        ranking.add(values, truth, mask, patient=f"p{number // 2}", finding=kind, difficulty=kind.upper())
    return ranking.figures(**{"resamples": 20, **settings})


def assert_equal(figures, expected):
    for name, value in expected.items():
        if name == "froc":
            assert [point.found for point in figures.froc] == pytest.approx(value, **EXACT)
        elif value is None:
            assert getattr(figures, name) is None, name
        else:
            assert getattr(figures, name) == pytest.approx(value, **EXACT), name


# ------------------------------------------------------------------------------------------ against the plain rendering

LEVELS = st.one_of(st.integers(1, 3), st.just(10_000))
"""How many different values a map has: few give ties and plateaus."""


def drawn(seed, count, levels, side=14):
    """Films of noise with lesions of any shape, masks with holes, normal films, lesions that reach out of the mask."""
    random = np.random.default_rng(seed)
    films = []
    for number in range(count):
        truth = np.zeros((side, side), bool)
        for _ in range(int(random.integers(0, 4)) if number else 1):
            y, x, height, width = random.integers(0, side - 3, 2).tolist() + random.integers(1, 8, 2).tolist()
            truth[y : y + height, x : x + width] |= random.random(truth[y : y + height, x : x + width].shape) < 0.8
        mask = random.random((side, side)) < random.choice([0.7, 1.0])
        if not number:
            truth[5, 5] = mask[5, 5] = True
        raised = random.random((side, side)) + random.choice([0.0, 0.3]) * truth
        values = np.floor(raised * levels) * random.choice([1.0, 1e-3, 100.0]) if levels < 100 else raised
        films.append((values.astype(np.float32), truth, mask, "ab"[int(random.integers(2))]))
    return films


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), LEVELS)
def test_every_figure_is_that_of_all_pixels_sorted_together(seed, count, levels):
    films = drawn(seed, count, levels)
    figures = measured(films)
    assert_equal(figures, plain(films))
    for kind, own in figures.kinds["finding"].items():
        assert_equal(own, plain(films, lambda film, _, kind=kind: film[3] == kind))
        assert own == figures.kinds["difficulty"][kind.upper()]
    kinds = figures.kinds["finding"].values()
    assert sum(own.n_lesions for own in kinds) == figures.n_lesions == sum(len(lesions_of(*f[1:3])) for f in films)
    assert sum(own.n_films for own in kinds) == figures.n_films
    assert figures.n_normal_pixels == sum(int((film[2] & ~film[1]).sum()) for film in films)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_kinds_by_size_are_the_lesions_of_that_share_of_the_foreground(seed):
    films = drawn(seed, 3, 10_000, side=24)

    def size(film, lesion):
        share = len(lesion) / film[2].sum()
        return "small" if share < 0.005 else "medium" if share < 0.02 else "large"

    figures = measured(films)
    for name, own in figures.kinds["size"].items():
        assert_equal(own, plain(films, lambda film, lesion, name=name: size(film, lesion) == name))
    assert list(figures.kinds["size"]) == [n for n in ("small", "medium", "large") if n in figures.kinds["size"]]


def smooth_films(count, side, seed=0):
    random = np.random.default_rng(seed)
    films = []
    for number in range(count):
        values = random.gamma(0.7, size=(side, side)).astype(np.float32) ** 2 * 1e-3
        truth = np.zeros((side, side), bool)
        if number % 2:
            y, x = random.integers(10, side - 110, 2)
            truth[y : y + 100, x : x + 90] = True
            values[truth] *= np.float32(2.5)
        films.append((values, truth, np.ones((side, side), bool)))
    return films


@pytest.mark.parametrize("saturating", [False, True])
def test_beyond_two_million_values_pixel_figures_stay_within_a_millionth(monkeypatch, saturating):
    """Saturating maps crowd into few float32 values near their upper end, and lesions there most of all."""
    films = smooth_films(24, 256)
    if saturating:
        films = [(np.float32(1 + 0.8 * (1 - np.exp(-300 * values))), *others) for values, *others in films]
    monkeypatch.setattr(ValueCounts.__init__, "__defaults__", (2**19,))  # condensed twice or oftener
    figures = measured(films)
    assert VALUES_KEPT < 100 * 90 and len(np.unique([film[0] for film in films])) > 2**19
    values, truths = (np.concatenate([film[i].ravel() for film in films]) for i in (0, 1))
    assert figures.roc_auc == pytest.approx(roc_auc_score(truths, values), abs=1e-6)
    assert figures.ap == pytest.approx(average_precision_score(truths, values), abs=1e-6)
    expected = sorted_overlap(values[~truths], [film[0][film[1]] for film in films if film[1].any()])
    assert figures.aupro_30 == pytest.approx(expected[0.3], abs=1e-6)
    assert figures.aupro_05 == pytest.approx(expected[0.05], abs=1e-6)


def sorted_overlap(normal, regions):
    """AUPRO from all pixels sorted together: limit -> figure."""
    weight = np.r_[np.zeros(len(normal)), *(np.full(len(region), 1 / len(region) / len(regions)) for region in regions)]
    values = np.concatenate([normal, *regions])
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.r_[values[order][1:] != values[order][:-1], True])  # of each value
    rate = np.r_[0, np.cumsum(order < len(normal))[last] / len(normal)]
    overlap = np.r_[0, np.cumsum(weight[order])[last]]
    result = {}
    for limit in (0.3, 0.05):
        inside = rate <= limit
        end = np.interp(limit, rate, overlap)
        result[limit] = auc(np.r_[rate[inside], limit], np.r_[overlap[inside], end]) / limit
    return result


@given(st.lists(st.lists(st.floats(0, 2.0**60, width=32), max_size=30), max_size=8), st.integers(1, 40))
def test_counts_above_a_value_are_exact_up_to_the_limit(films, limit):
    counts = ValueCounts(max(limit, sum(map(len, films))))
    for film in films:
        counts.add(np.sort(value_keys(np.array(film))))
    values = np.array([value for film in films for value in film], np.float32)
    keys = np.unique(value_keys(values))
    above, upto = counts.at_or_above(keys)
    assert counts.total == len(values)
    assert above.tolist() == [(value_keys(values) > key).sum() for key in keys]
    assert upto.tolist() == [(value_keys(values) >= key).sum() for key in keys]
    if len(values):
        ranks = np.arange(1, len(values) + 1)
        assert counts.largest(ranks).tolist() == np.sort(value_keys(values))[::-1].tolist()


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=400),
    st.sampled_from([0.5, 0.1, 0.01]),
    st.sampled_from([0.2, 0.05, 0.001]),
)
def test_condensing_keeps_all_values_the_largest_ones_exactly_and_every_rank_nearly(sizes, finest, coarsest):
    keys, counts = np.arange(len(sizes), dtype=np.uint32) * 3, np.array(sizes)
    fewer, merged = condensed(keys, counts, finest=finest, coarsest=coarsest)
    assert merged.sum() == counts.sum() and set(fewer.tolist()) <= set(keys.tolist())
    assert (np.diff(fewer.astype(int)) > 0).all()
    for key in keys:
        exact, kept = counts[keys >= key].sum(), merged[fewer >= key].sum()
        room = max(1, min(finest * exact, coarsest * counts.sum())) + counts.max()
        assert kept == exact if exact <= 1 / finest else abs(kept - exact) <= 2 * room


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 20, 40, 5_000]), st.booleans())
@example(0, 5_000, True)
def test_counts_of_a_film_are_interpolated_within_three_percent(seed, count, tied):
    random = np.random.default_rng(seed)
    values = random.gamma(0.5, size=(count, 1)).astype(np.float32)
    values = np.round(values, 1) if tied else values
    film, _ = measure_film(values, np.zeros(values.shape, bool), np.ones(values.shape, bool))
    at = np.unique(np.r_[values.ravel(), 0, 1e9])
    exact = np.array([(values >= one).sum() for one in at])
    assert (np.abs(film.normals_from(at.astype(np.float64)) - exact) <= np.maximum(0.03 * exact, 0) + 1e-9).all()


# ------------------------------------------------------------------------------------------------- known special cases


def one_lesion(side=64, at=(20, 20), size=8):
    truth = np.zeros((side, side), bool)
    truth[at[0] : at[0] + size, at[1] : at[1] + size] = True
    return truth, np.ones((side, side), bool)


def test_a_map_that_is_the_truth_is_perfect_and_a_constant_one_is_at_its_floors():
    truth, mask = one_lesion()
    perfect = measured([(truth * 1.0, truth, mask), (mask * 0.0, ~mask, mask)])
    for name in NAMES:
        if name not in ("ap_over_prevalence",):
            assert perfect.value(name)[0] == 1, name
    assert perfect.ap_over_prevalence == pytest.approx(1 / perfect.prevalence)
    constant = measured([(mask * 2.0, truth, mask), (mask * 2.0, ~mask, mask)])
    assert (constant.roc_auc, constant.aupro_30, constant.aupro_05) == pytest.approx((0.5, 0.15, 0.025))
    assert constant.ap == pytest.approx(constant.prevalence) and constant.ap_over_prevalence == pytest.approx(1)
    assert constant.peak_in_lesion == pytest.approx(truth.mean())  # a peak at random
    assert constant.froc_mean == 0  # its one mark lies in the middle


def test_the_pointing_game_allows_for_a_tolerance():
    truth, mask = one_lesion(side=512, at=(100, 100), size=10)
    for distance, peak, pointed in ((0, 1, 1), (15, 0, 1), (16, 0, 0)):
        values = np.zeros(truth.shape)
        values[105, 109 + distance] = 1
        film, _ = measure_film(values, truth, mask)
        assert (film.lesions[0].peak, film.lesions[0].pointed) == (peak, pointed)


def test_a_lesion_outside_the_mask_is_counted_and_left_out():
    truth, mask = one_lesion()
    figures = measured([(mask * 1.0, truth, mask & ~truth)])
    assert (figures.n_hidden, figures.n_lesions, figures.roc_auc, figures.ground_truth) == (1, 0, None, "masks")
    empty = measured([(mask * 1.0, truth, ~mask)])
    assert empty.n_normal_pixels == 0 and empty.n_lesions == 0


def test_draws_are_those_of_the_films_figures():
    random = np.random.default_rng(1)
    patients = [f"p{number}" for number in random.integers(0, 9, 30)]
    labels = np.arange(30) % 2
    names = np.array([str(number) for number in range(30)])
    cohort = Cohort(names, names, np.array(patients), labels, names, names, names, True)
    draws = ScoredCohort(cohort, {"mse": random.random(30)}).bootstraps["film"]
    own = PatientBootstrap(np.zeros(30, np.int64), patients, resamples=1000, seed=0)
    assert (draws.counts == own.counts).all() and (draws.patient == own.patient).all()


def test_intervals_cover_the_figures_and_shrink_with_patients():
    random = np.random.default_rng(3)

    def films(count):
        for _ in range(count):
            at = random.integers(2, 50, 2)
            truth, mask = one_lesion(at=tuple(at))
            yield random.random(truth.shape) + random.random() * truth, truth, mask

    few, many = (measured(list(films(count)), resamples=200) for count in (10, 90))
    for name in NAMES:
        (value, limits), (_, narrow) = few.value(name), many.value(name)
        assert limits[0] <= value <= limits[1], name
        assert narrow[1] - narrow[0] < limits[1] - limits[0], name
    again = measured(list(films(0)) or [(np.ones((4, 4)), np.eye(4, dtype=bool), np.ones((4, 4), bool))])
    assert again.roc_auc_interval is None and again.roc_auc == 0.5  # one patient has no interval


def test_a_binned_draw_of_every_patient_once_is_near_the_exact_figure():
    from anomaly.evaluation.localization import _pixel_figures, _Sample

    ranking = LocalizationRanking()
    for number, film in enumerate(smooth_films(8, 160)):
        ranking.add(*film, patient=str(number))
    bootstrap = PatientBootstrap(np.zeros(8, np.int64), [str(n) for n in range(8)], resamples=2, seed=0)
    bootstrap.counts[:] = 1
    sample = _Sample(ranking._films, ranking._normals, bootstrap, 0.95)
    chosen = np.arange(len(sample.lesions))
    exact, drawn_once = _pixel_figures(sample._exact_curves(chosen)), _pixel_figures(sample._drawn_curves(chosen))
    for name, value in exact.items():
        assert drawn_once[name][0] == pytest.approx(value[0], rel=0.02), name
    assert np.allclose(*sample._froc(chosen))


def test_memory_is_some_kilobytes_a_film():
    sizes = []
    for values, truth, mask in smooth_films(2, 512):
        film, _ = measure_film(values, truth, mask)
        arrays = [film.values, film.false_marks, *(a for one in film.lesions for a in (one.keys, one.counts))]
        sizes.append(sum(array.nbytes for array in arrays))
    assert sizes[0] < 4_000 and sizes[1] < 4_000 + 16 * VALUES_KEPT
    counts, random = ValueCounts(), np.random.default_rng(0)
    for _ in range(12):
        counts.add(np.sort(value_keys(random.random(400_000) ** 3)))
        assert sum(len(keys) for keys, _ in counts._parts) <= counts.limit
    assert counts.total == 4_800_000


# ----------------------------------------------------------------------------------------------------------- bad input


def test_maps_that_cannot_be_measured_are_refused():
    ones, truth = np.ones((2, 2)), np.zeros((2, 2), bool)
    for wrong in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="finite and not negative"):
            measure_film(ones * wrong, truth, ~truth)
    measure_film(
        np.array([[1.0, math.nan]]), np.array([[True, False]]), np.array([[True, False]])
    )  # not under the mask
    with pytest.raises(ValueError, match=r"map \(2, 2\), ground truth \(2, 3\) and mask \(2, 2\) must have one shape"):
        LocalizationRanking().add(ones, np.zeros((2, 3), bool), truth, patient="a")
    with pytest.raises(ValueError, match="ground truth int64 and mask bool must both be bool"):
        measure_film(ones, truth.astype(np.int64), truth)


def test_without_ground_truth_one_line_says_so():
    ranking = LocalizationRanking()
    ranking.add(np.ones((2, 2)), None, np.ones((2, 2), bool), patient="a")
    figures = ranking.figures(resamples=2)
    assert localization_lines(figures, "split test") == [
        "no pixel figures: none of the 1 abnormal film has a mask or boxes"
    ]
    assert all(figures.value(name) == (None, None) for name in NAMES)
    assert LocalizationFigures.model_validate_json(figures.model_dump_json()) == figures


# ------------------------------------------------------------------------------------------------------ shown in words


def test_lines_name_the_main_figures_and_the_ground_truth():
    truth, mask = one_lesion()
    ranking = LocalizationRanking()
    for patient in "abc":
        values = np.random.default_rng(ord(patient)).random(truth.shape) + truth
        ranking.add(values, truth, mask, patient=patient, truth_from="boxes" if patient == "a" else "masks")
    figures = ranking.figures(resamples=50)
    first, second = localization_lines(figures, "split test")
    assert "3 lesions on 3 abnormal films, ground truth: masks and boxes" in first
    assert f"AUPRO .3 {shown(figures.aupro_30)} [" in first and f"at prevalence {shown(figures.prevalence)}" in first
    assert f"peak in a lesion on {shown(figures.peak_in_lesion)} [" in second
    assert f"{shown(figures.froc_mean)} [" in second
    panel = froc_chart(figures, 0.95)
    assert shown(figures.froc_mean) in panel.title and len(panel.charts[0].marks) == 2 + len(FALSE_MARKS)
