"""Conformal p-values, their intervals and thresholds, against brute force and what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, false_discovery_control

from anomaly.evaluation.calibration import MOST_PATIENTS, Calibration, FlagRule, ScoredFilms
from anomaly.evaluation.conformal import Reference, benjamini_hochberg, binomial_interval, more_abnormal_than
from preprocessing import InputError

# Few values, so that there are ties; some patients with several films.
calibration_films = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 7)), min_size=1, max_size=30)
rates = st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.25, 0.5, 0.9])


def reference_of(films: list[tuple[int, int]]) -> Reference:
    scores, owners = zip(*films, strict=True)
    return Reference.of(scores, owners)


def brute_force(films: list[tuple[int, int]], score: float) -> float:
    """The p-value by its definition: each patient's share of films at least as high."""
    owners = {owner for _, owner in films}
    total = 0.0
    for owner in owners:
        own = [value for value, whose in films if whose == owner]
        total += sum(value >= score for value in own) / len(own)
    return (1 + total) / (len(owners) + 1)


@given(calibration_films, st.integers(-5, 5))
def test_p_values_are_those_of_the_definition(films: list[tuple[int, int]], score: int) -> None:
    reference = reference_of(films)
    (p,) = reference.p_values([score])
    assert p == pytest.approx(brute_force(films, score), abs=1e-9)
    assert reference.smallest <= p <= 1 and reference.patients == len({owner for _, owner in films})


@given(calibration_films)
def test_p_values_fall_as_scores_rise_and_end_at_one_of_n_plus_one(films: list[tuple[int, int]]) -> None:
    reference = reference_of(films)
    p = reference.p_values(np.linspace(-6, 6, 49))
    assert (np.diff(p) <= 0).all()
    assert p[0] == 1 and p[-1] == 1 / (reference.patients + 1)


@given(calibration_films, rates)
def test_a_threshold_flags_exactly_the_p_values_up_to_its_rate(films: list[tuple[int, int]], rate: float) -> None:
    reference = reference_of(films)
    if rate < reference.smallest:
        with pytest.raises(ValueError, match=r"must lie in \[1 / "):
            reference.threshold(rate)
        return
    threshold = reference.threshold(rate)
    scores = np.concatenate([np.linspace(-6, 6, 97), reference.values, [threshold]])
    np.testing.assert_array_equal(scores >= threshold, reference.p_values(scores) <= rate)


def test_one_film_a_patient_flags_as_many_as_the_rate_allows() -> None:
    reference = Reference.of(np.arange(99.0), np.arange(99))
    assert reference.threshold(0.05) == math.nextafter(94.0, math.inf)  # 4 above, and the film itself: 5 of 100
    assert reference.threshold(0.01) == math.nextafter(98.0, math.inf)
    expected, low, high = reference.false_alarm_rate(reference.threshold(0.05))
    assert expected == 0.05
    assert (low, high) == pytest.approx(beta(5, 95).ppf([0.025, 0.975]))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40))
def test_p_values_of_exchangeable_patients_are_super_uniform(scores: list[int]) -> None:
    """Each patient in turn against all others: at most a share a of the p-values is up to a, ties or not."""
    values = np.array(scores, float)
    p = []
    for place, value in enumerate(values):
        others = np.delete(values, place)
        p.append(Reference.of(others, np.arange(len(others))).p_values([value])[0])
    for rate in np.unique(p):
        assert np.mean(np.array(p) <= rate) <= rate + 1e-12


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=2, max_size=8))
def test_p_values_of_a_film_of_an_exchangeable_patient_are_super_uniform(patients: list[list[int]]) -> None:
    """Each patient in turn against all others, each of its films with the same chance."""
    found: list[tuple[float, float]] = []  # p-value, its probability
    for place, own in enumerate(patients):
        others = [(score, owner) for owner, films in enumerate(patients) if owner != place for score in films]
        p = reference_of(others).p_values(own)
        found += [(value, 1 / len(own) / len(patients)) for value in p]
    for rate in {p for p, _ in found}:
        assert sum(chance for p, chance in found if p <= rate) <= rate + 1e-9


def test_the_false_alarm_rate_of_drawn_patients_lies_in_its_interval() -> None:
    """Of 400 calibrations a share of .95 does: with probability 1 - 1e-6 at least .9."""
    random, held, rates = np.random.default_rng(0), 0, []
    for _ in range(400):
        reference = Reference.of(random.random(60), np.arange(60))  # the true rate of a threshold t is 1 - t
        threshold = reference.threshold(0.1)
        _, low, high = reference.false_alarm_rate(threshold)
        held += low <= 1 - threshold <= high
        rates.append(1 - threshold)
    assert held >= 360
    assert np.mean(rates) == pytest.approx(6 / 61, abs=0.01)  # standard error .0019


@settings(max_examples=50)
@given(st.integers(1, 200), st.integers(0, 200))
def test_intervals_are_those_of_clopper_and_pearson(n: int, hits: int) -> None:
    hits = min(hits, n)
    exact = binomtest(hits, n).proportion_ci(0.95, "exact")
    assert binomial_interval([hits], n)[0] == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_intervals_of_fractions_lie_between() -> None:
    low, high = binomial_interval(np.arange(0, 10.25, 0.25), 10).T
    assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all()
    assert low[0] == 0 and high[-1] == 1


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_q_values_are_those_of_scipy(ranks: list[int]) -> None:
    p = np.array(ranks) / 20
    q = benjamini_hochberg(p)
    assert q == pytest.approx(false_discovery_control(p, method="bh"))
    # What a level calls discoveries is the step-up rule itself: the largest k with p_(k) <= k q / N.
    for level in (0.05, 0.1, 0.3):
        rising = np.sort(p)
        below = np.flatnonzero(rising <= np.arange(1, len(p) + 1) * level / len(p) + 1e-12)
        expected = p <= rising[below[-1]] if len(below) else np.zeros(len(p), bool)
        np.testing.assert_array_equal(q <= level + 1e-12, expected)


def test_p_values_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(N,\) and lie in \[0, 1\]"):
        benjamini_hochberg([0.5, 1.5])
    with pytest.raises(ValueError, match="and finite"):
        Reference.of([math.nan], [0])
    with pytest.raises(ValueError, match="M >= 1"):
        Reference.of([], [])


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_what_a_p_value_means_is_said(n: int, above: int) -> None:
    above = min(above, n)
    low, high = binomial_interval([above], n)[0]
    text = more_abnormal_than((1 + above) / (n + 1), (low, high), n)
    assert f" {n} normal patient" in text and ("than all " in text or "than the " in text) == (above == 0)
    if above:
        said = float(text.split()[3])
        assert said == pytest.approx(100 * (1 - above / n), abs=0.051)


# --- calibration -----------------------------------------------------------------------------------------------------


def calibration(patients: int = 40, films: int = 2) -> Calibration:
    owner = np.repeat(np.arange(patients), films)
    normals = ScoredFilms.of(
        owner, owner * 2, {"a": np.arange(patients * films) / 10, "b": -np.arange(patients * films)}
    )
    none = {"mean": {"film": {"a": 0.0}}}
    return Calibration.model_validate(
        {"thresholds": none, "map_scale": None, "quantile": 0.95, "films": len(owner), "patients": patients}
        | {"normals": normals}
    )


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("unit", ["film", "study", "patient"])
def test_every_score_and_unit_gets_a_threshold_at_the_rate(pooling, unit) -> None:
    made = calibration().applying(FlagRule(kind="false alarms", value=0.1), "a")
    for name in ("a", "b"):
        reference = made.reference(pooling, unit, name)
        assert reference is not None and reference.patients == 40
        expected, low, high = reference.false_alarm_rate(made.thresholds[pooling][unit][name])
        assert low < expected <= 0.1 < high
    bound = "at most " if unit == "film" else ""  # each patient has one study
    assert f"flags p <= .1: expect {bound}9.8 % [" in made.sentence(pooling, unit, "a")


def test_a_rate_that_so_few_patients_cannot_tell_is_refused_with_the_least() -> None:
    with pytest.raises(InputError, match=r"rate of \.02 can't be told from 40 normal patients: take \.0244 \(1/41\)"):
        calibration().applying(FlagRule(kind="false alarms", value=0.02), "a")
    calibration().applying(FlagRule(kind="false alarms", value=1 / 41), "a")


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 20)), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
)
def test_a_sensitivity_is_reached_on_an_exchangeable_abnormal_patient(films, wanted) -> None:
    """The conformal rule for what is missed: the weight below the threshold, and the new one, at most 1 - wanted."""
    scores, owners = zip(*films, strict=True)
    abnormal = ScoredFilms.of(owners, owners, {"a": np.array(scores, float)})
    rule = FlagRule(kind="sensitivity", value=wanted)
    n = abnormal.patients
    if round((1 - wanted) * (n + 1), 9) < 1:
        with pytest.raises(InputError, match=rf"can't be told from {n} abnormal validation patient"):
            calibration().applying(rule, "a", abnormal)
        return
    made = calibration().applying(rule, "a", abnormal)
    threshold = made.thresholds["mean"]["film"]["a"]

    def missed(value: float) -> float:
        """Weight of the abnormal films below a value."""
        return sum(sum(s < value for s, o in films if o == owner) / owners.count(owner) for owner in set(owners))

    assert threshold in scores  # the highest such value: the next one would miss too many
    assert (1 + missed(threshold)) / (n + 1) <= 1 - wanted + 1e-9
    higher = [value for value in scores if value > threshold]
    if higher:
        assert (1 + missed(min(higher))) / (n + 1) > 1 - wanted - 1e-9
    assert f"{n} abnormal validation patient" in made.sentence("mean", "film", "a")


def test_of_very_many_patients_as_many_as_are_kept_are_drawn() -> None:
    owner = np.repeat(np.arange(MOST_PATIENTS + 100), 2)
    kept = ScoredFilms.of(owner, owner, {"a": owner.astype(float)})
    assert kept.patients == MOST_PATIENTS and len(kept.patient) == 2 * MOST_PATIENTS
    assert len(set(kept.scores["a"])) == MOST_PATIENTS  # both films of each
    assert kept == ScoredFilms.of(owner, owner, {"a": owner.astype(float)})


def test_damaged_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry a film"):
        ScoredFilms(patient=[0, 1], study=[0, 1], scores={"a": [0.5]})


def test_few_patients_are_said() -> None:
    (note,) = calibration(7).notes
    assert note.startswith("thresholds and p-values rest on 7 normal patients, fewer than 20: ") and "(1/8)" in note
    assert calibration(20).notes == []
    (note,) = calibration().model_copy(update={"normals": None}).notes
    assert "older version" in note
