"""The comparison of detectors against `bootstrap`, and its p-values against their promise."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.evaluation.bootstrap import interval, paired
from anomaly.evaluation.comparison import ComparisonSettings, Entry, Scored, Table, against_best, build_table
from anomaly.evaluation.paper import PAPER, PAPER_VARIANTS
from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import number
from anomaly.reporting.tables import footnotes, to_markdown


def scored(shift, *, patients=40, films=2, seed=0, first=0):
    """Test films of patients by turns normal and abnormal, whose films vary together."""
    random = np.random.default_rng(seed)
    whose = np.repeat(np.arange(patients), films)
    labels = whose % 2
    scores = shift * labels + random.normal(size=len(whose)) + random.normal(size=patients)[whose]
    return Scored(labels, scores, np.array([f"p{first + patient}" for patient in whose]))


def seeds(shift, count=3, start=0, **films):
    return [scored(shift, seed=start + place, **films) for place in range(count)]


AWKWARD = 'out of memory:\n 12 % of <b>GPU_0</b> | a & b \\ {x} #1 ~ ^ $5 *no* [1] "q" `c` α -- --set size=64'


def example_table() -> Table:
    """A table with a cell of every kind."""
    cells = {}
    for place, variant in enumerate(["raw", "full-he"]):
        cells |= {
            ("cae", "mse", variant): seeds(2.5, start=10 * place),
            ("cae", "mse_topk", variant): seeds(2.4, start=10 * place + 3),
            ("vae", "kld", variant): seeds(-1.0, start=10 * place + 6),
            ("bigan", "mse", variant): AWKWARD if variant == "raw" else "no seed finished",
            ("trivial", "mean_grey", variant): [scored(0.3, seed=99), None],
            ("alphagan", "mse", variant): [None, None] if variant == "raw" else [AWKWARD, None],
            ("alphagan", "code", variant): [None, *seeds(1.0, start=40), AWKWARD, "no seed finished", AWKWARD],
        }
    cells["classifier", "probability", "full-he"] = seeds(99)
    cells["dcgan", "discriminator", "raw-he"] = []
    return build_table(
        cells,
        title="Hands, 64 px",
        synthetic=True,
        facts={"data_hash": "ab12", "preset": "fast", "seeds": [1, 2, 3]},
        notes=["a | note with *stars*"],
        paper=True,
    )


@pytest.fixture(scope="module")
def whole() -> Table:
    return example_table()


# ------------------------------------------------------------------------------------------------------------ figures


def test_one_seed_is_metrics_to_the_last_digit():
    a, b = scored(1.0, seed=1), scored(0.7, seed=2)
    entries = build_table({("a", "x", "raw"): [a], ("b", "x", "raw"): [b]}, title="t").entries
    better, other = entries["a", "x", "raw"], entries["b", "x", "raw"]
    assert better.best and not better.tied and better.difference is None and better.p is None
    assert better.each == (better.mean,) == (roc_auc(a.labels, a.scores),)
    assert better.sd is None
    assert better.interval == interval(a.labels, a.scores, a.patients)
    comparison = paired(b.labels, b.scores, a.scores, a.patients)
    assert other.difference == comparison.difference
    assert other.difference_interval == (comparison.low, comparison.high)
    assert other.p == pytest.approx(comparison.p, abs=0.05)  # one other row: nothing to correct but the normal law
    assert (better.n, better.n_abnormal, better.n_patients, better.prevalence) == (80, 40, 40, 0.5)


def test_seeds_are_averaged_and_their_spread_is_no_part_of_the_interval():
    cell = seeds(1.0)
    entry = build_table({("a", "x", "raw"): cell}, title="t").entries["a", "x", "raw"]
    each = [roc_auc(scored.labels, scored.scores) for scored in cell]
    assert entry.each == tuple(each)
    assert (entry.mean, entry.sd) == (statistics.fmean(each), statistics.stdev(each))
    assert entry.interval[0] < entry.mean < entry.interval[1]
    same = build_table({("a", "x", "raw"): cell[:1] * 3}, title="t").entries["a", "x", "raw"]
    assert same.interval == pytest.approx(interval(cell[0].labels, cell[0].scores, cell[0].patients))
    assert same.sd == 0


def test_seeds_may_have_other_patients_and_the_interval_is_over_all_of_them():
    halves = [scored(1.0, seed=1), scored(1.0, seed=2, first=40)]
    table = build_table({("a", "x", "raw"): halves, ("b", "x", "raw"): halves[:1]}, title="t")
    entry, half = table.entries["a", "x", "raw"], table.entries["b", "x", "raw"]
    assert (entry.n, entry.n_abnormal, entry.n_patients) == (80, 40, 80)
    assert (half.n, half.n_patients) == (80, 40)
    # Twice the patients, so a narrower interval.
    assert entry.interval[1] - entry.interval[0] < 0.85 * (half.interval[1] - half.interval[0])
    assert len(table.notes) == 2
    assert "raw: test films differ between seeds" in table.notes[0]
    assert "raw: not all rows have the same test films" in table.notes[1]


def test_a_row_scores_the_same_whatever_stands_beside_it():
    """Draws are of the column's patients: rows with the same films share them, and other columns do not matter."""
    cells = {("a", "x", "raw"): seeds(1.0)}
    alone = build_table(cells, title="t").entries["a", "x", "raw"]
    more = {("b", "x", "raw"): seeds(0.1, start=5), ("b", "x", "crop"): seeds(2, patients=9), ("c", "x", "raw"): "died"}
    assert build_table(cells | more, title="t").entries["a", "x", "raw"] == alone


def test_nothing_is_flipped(whole):
    entry = whole.entries["vae", "kld", "raw"]
    assert entry.mean == statistics.fmean(roc_auc(scored.labels, scored.scores) for scored in seeds(-1.0, start=6))
    assert entry.mean < 0.5 and not entry.tied


def test_interval_of_the_mean_over_seeds_holds_what_it_says():
    """Nets that agree on a patient are no three nets: cohorts of 40, three seeds whose scores share the patient."""
    random = np.random.default_rng(0)
    true, hits, cohorts = 0.5 * (1 + math.erf(1 / 2)), 0, 100  # shift 1 between scores of variance 1/2 + 1/2
    patients = np.arange(40)
    labels = patients % 2
    for _ in range(cohorts):
        shared = random.normal(size=40) / 2**0.5
        cell = [Scored(labels, labels + shared + random.normal(size=40) / 2**0.5, patients) for _ in range(3)]
        table = build_table({("a", "x", "raw"): cell}, title="t", settings=ComparisonSettings(resamples=100))
        entry = table.entries["a", "x", "raw"]
        hits += entry.interval[0] <= true <= entry.interval[1]
    assert hits / cohorts >= 0.9


# --------------------------------------------------------------------------------------------------------- comparison


def test_of_rows_that_are_equally_good_one_is_separated_in_one_table_of_twenty():
    """Holm's correction, which takes the best as given, separated one in 22 of these 60 tables."""
    random = np.random.default_rng(0)
    whose = np.repeat(np.arange(60), 3)
    labels, slips = whose % 2, 0
    for _ in range(60):
        rows = random.normal(size=(24, 60))[:, whose] * 2 + random.normal(size=(24, 180))
        cells = {(f"m{place}", "x", "raw"): [Scored(labels, labels + row, whose)] for place, row in enumerate(rows)}
        entries = build_table(cells, title="t", settings=ComparisonSettings(resamples=100)).entries.values()
        slips += not all(entry.best or entry.tied for entry in entries)
    assert slips <= 7


@st.composite
def drawn(draw):
    """Means of some rows, and draws around them with errors of their own, partly in common."""
    random = np.random.default_rng(draw(st.integers(0, 999)))
    rows, count = draw(st.integers(2, 8)), 99
    errors = random.uniform(0.01, 0.2, (rows, 1))
    means = random.uniform(0.3, 0.9, rows)
    return means, means[:, None] + errors * (random.normal(size=(rows, count)) + random.normal(size=count))


@given(drawn(), st.integers(1, 50))
def test_p_against_the_best(given, freedom):
    means, draws = given
    p = against_best(means, draws, freedom)
    best = means.argmax()
    assert p[best] == 1 and (p >= 0.01).all() and (p <= 1).all()
    distance = (means[best] - means) / np.maximum((draws - draws[best]).std(axis=1, ddof=1), 1e-9)
    ordered = np.delete(p, best)[np.argsort(np.delete(distance, best))]
    assert (np.diff(ordered) <= 0).all()
    back = against_best(means[::-1], draws[::-1], freedom)[::-1]
    assert back == pytest.approx(p)
    twice = against_best(np.tile(means, 2), np.tile(draws, (2, 1)), freedom)  # rows that rank alike cost nothing
    assert twice[: len(p)] == pytest.approx(p)
    assert (against_best(means, draws, 2 * freedom) <= p).all()  # more patients: less is left to chance


def test_more_rows_make_it_harder_to_be_separated():
    best, near = [scored(1.5, seed=1)], [scored(0.9, seed=2)]
    cells = {("best", "x", "raw"): best, ("near", "x", "raw"): near}
    ps = []
    for count in (0, 3, 30):
        more = {(f"more{place}", "x", "raw"): [scored(1.2, seed=50 + place)] for place in range(count)}
        entry = build_table(cells | more, title="t").entries["near", "x", "raw"]
        assert entry.tied == (entry.p >= 0.05)
        ps.append(entry.p)
    assert 2 * ps[0] < ps[1] < 0.05 < ps[2]


def test_rows_that_are_clearly_worse_hide_nothing():
    close = {("a", "x", "raw"): [scored(2.5, seed=1)], ("b", "x", "raw"): [scored(1.5, seed=2)]}
    bad = {(f"bad{place}", "x", "raw"): [scored(-4.0, seed=10 + place)] for place in range(20)}
    alone, among = build_table(close, title="t").entries, build_table(close | bad, title="t").entries
    assert among["b", "x", "raw"].p == alone["b", "x", "raw"].p < 0.05
    assert not any(among[key].tied for key in bad)


def test_rows_that_rank_alike_are_tied_and_the_first_is_the_best():
    cell = seeds(1.0)
    alike = [Scored(seed.labels, np.exp(seed.scores), seed.patients) for seed in cell]
    entries = build_table({("a", "x", "raw"): cell, ("b", "x", "raw"): alike}, title="t").entries
    assert entries["a", "x", "raw"].best
    other = entries["b", "x", "raw"]
    assert other.tied and not other.best
    assert (other.difference, other.difference_interval, other.p) == (0, (0, 0), 1)


def test_trivial_detectors_are_compared_but_never_best():
    cells = {("cae", "mse", "raw"): seeds(0.2), ("trivial", "mean_grey", "raw"): seeds(4.0)}
    table = build_table(cells, title="t")
    best, trivial = table.entries["cae", "mse", "raw"], table.entries["trivial", "mean_grey", "raw"]
    assert best.best and not trivial.best and not trivial.tied
    assert trivial.difference > 0 and trivial.p < 0.05
    assert table.notes == ("raw: trivial mean_grey is better than the best detector.",)
    assert "mean_grey: baselines, never the best" in to_markdown(table)
    named = build_table(cells, title="t", settings=ComparisonSettings(trivial=("cae",)))  # by model, too
    assert named.entries["trivial", "mean_grey", "raw"].best
    alone = build_table({("trivial", "mean_grey", "raw"): seeds(1)}, title="t").entries["trivial", "mean_grey", "raw"]
    assert alone.mean is not None and not alone.best and not alone.tied and alone.difference is None


def test_complete_separation_is_not_tied_with_a_constant_score():
    """Every draw says the same, so there is no standard error to test by."""
    labels, patients = np.arange(20) % 2, np.arange(20)
    entries = build_table(
        {
            ("a", "x", "raw"): [Scored(labels, labels.astype(float), patients)] * 3,
            ("b", "x", "raw"): [Scored(labels, np.zeros(20), patients)] * 3,
        },
        title="t",
    ).entries
    assert entries["a", "x", "raw"].interval == pytest.approx((0.025**0.1, 1))
    other = entries["b", "x", "raw"]
    assert (other.mean, other.difference, other.p, other.tied) == (0.5, -0.5, None, False)


def test_one_abnormal_patient_has_no_interval_and_all_are_tied():
    labels, patients = np.array([0, 0, 0, 1, 1]), np.array(["a", "b", "c", "d", "d"])
    entries = build_table(
        {
            ("a", "x", "raw"): [Scored(labels, np.array([1.0, 2, 3, 4, 2.5]), patients)],
            ("b", "x", "raw"): [Scored(labels, np.array([5.0, 2, 3, 4, 2.5]), patients)],
        },
        title="t",
    ).entries
    assert entries["a", "x", "raw"].best and entries["a", "x", "raw"].interval is None
    other = entries["b", "x", "raw"]
    assert other.tied and other.p is None and other.difference_interval is None and other.difference < 0


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_failed_cell_says_why_and_stops_nothing():
    good = scored(1.0)
    lone = Scored(np.zeros(80, int), good.scores, good.patients)
    broken = Scored(good.labels, np.where(np.arange(80) < 3, np.nan, good.scores), good.patients)
    cells = {"good": [good], "said": "out of\n memory", "silent": "", "lone": [lone], "nan": [broken]}
    table = build_table({(name, "x", "raw"): cell for name, cell in cells.items()}, title="t")
    entries = {name: table.entries[name, "x", "raw"] for name in cells}
    assert entries["good"].best
    reasons = {
        "said": "out of memory",
        "silent": "no reason given",
        "lone": "seed 1 of 1: 80 normal and 0 abnormal test films; a ROC-AUC needs both",
        "nan": "seed 1 of 1: 3 of 80 scores not finite",
    }
    for name, reason in reasons.items():
        assert entries[name] == Entry(failure=reason, failed=1)
    assert list(table.failures.values()) == [1, 2, 3, 4]
    assert "failed (2): no reason given" in footnotes(table)


def test_a_missing_seed_leaves_the_others():
    done = seeds(1.0)
    lone = Scored(np.zeros(80, int), done[0].scores, done[0].patients)
    cells = {
        "whole": done,
        "part": [done[0], None, done[1], None, done[2]],
        "spoilt": [done[0], "out of memory", done[1], lone, done[2], "out of memory"],
        "begun": [None, "out of memory"],
        "lost": ["out of memory", "out of memory"],
        "open": [None, None],
        "empty": [],
    }
    table = build_table({(name, "x", "raw"): cell for name, cell in cells.items()}, title="t")
    entries = {name: table.entries[name, "x", "raw"] for name in cells}
    whole = entries["whole"]
    for name in ("part", "spoilt"):
        assert (entries[name].mean, entries[name].interval) == (whole.mean, whole.interval)
        assert (entries[name].sd, entries[name].each, entries[name].n) == (whole.sd, whole.each, whole.n)
    reason = "out of memory; seed 4 of 6: 80 normal and 0 abnormal test films; a ROC-AUC needs both"
    assert (entries["part"].failed, entries["part"].undone, entries["part"].failure) == (0, 2, None)
    assert (entries["spoilt"].failed, entries["spoilt"].undone, entries["spoilt"].failure) == (3, 0, reason)
    assert entries["begun"] == Entry(failed=1, undone=1, failure="out of memory")
    assert entries["lost"] == Entry(failed=2, failure="out of memory")
    assert entries["open"] == Entry(undone=2) and entries["empty"] == Entry(undone=1)
    states = {name: entry.state for name, entry in entries.items()}
    assert states == {
        "whole": "",
        "part": "3 of 5 seeds",
        "spoilt": "3 of 6 seeds",
        "begun": "0 of 2 seeds",
        "lost": "",
        "open": "not done",
        "empty": "not done",
    }
    text = to_markdown(table)
    for cell in ("], 3 of 5 seeds |", "], 3 of 6 seeds, failed (1) |", " 0 of 2 seeds, failed (2) |", " not done |"):
        assert cell in text
    assert "- k of n seeds: the others failed or are not done" in text and "- not done: no seed is done" in text
    text = to_markdown(build_table({("a", "x", "raw"): done}, title="t"))
    assert "of n seeds" not in text and "not done" not in text


def test_a_cell_that_was_not_run_is_a_dash(whole):
    assert whole.entries["cae", "mse", "raw-he"] == Entry(paper=(0.504, 0.034))
    assert whole.entries["classifier", "probability", "raw"] == Entry()
    assert set(whole.entries) == {(*row, variant) for row in whole.rows for variant in whole.columns}


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="no cell"):
        build_table({}, title="t")
    for name in ("", "a\nb", " a"):
        with pytest.raises(ValueError, match="is no name"):
            build_table({(name, "x", "raw"): "failed"}, title="t")
    with pytest.raises(ValueError, match="must all be"):
        Scored(np.zeros(3), np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="label 2"):
        Scored(np.array([0, 2]), np.zeros(2), np.zeros(2))


# ---------------------------------------------------------------------------------------------------------- the paper


def test_the_papers_figures():
    assert len(PAPER) == 18 * 6
    assert sum(figure is None for figure in PAPER.values()) == 8 * 2
    assert PAPER["cae", "mse", "full-he"] == (0.57, 0.019)  # as README.md quotes it
    assert PAPER["alphagan", "code", "raw"] == (0.5, 0.0)  # as docs/paper.md does
    assert PAPER["alphagan", "code", "raw-he"] is None
    published = {key: figure for key, figure in PAPER.items() if figure}
    assert max(published, key=lambda key: published[key]) == ("alphagan", "discriminator", "full")  # "the highest"
    for variant in PAPER_VARIANTS:  # docs/paper.md: its L1 is half the squared error, its "C + D" is D
        assert PAPER["vae", "l1", variant] == PAPER["vae", "mse", variant]
        assert PAPER["vae", "l1_topk", variant] == PAPER["vae", "mse_topk", variant]
        assert PAPER["alphagan", "discriminator_code", variant] == PAPER["alphagan", "discriminator", variant]


def test_the_papers_rows_are_scores_of_our_models():
    from anomaly.models import find_detector

    for model, score, _ in PAPER:
        assert score in find_detector(model).score_names


def test_paper_only_where_asked(whole):
    entry = whole.entries["cae", "mse", "full-he"]
    assert entry.above_paper == entry.mean - 0.57
    assert f"; paper .570 ± .019, ours +{number(entry.mean - 0.57)} |" in to_markdown(whole)
    plain = build_table({("cae", "mse", "full-he"): seeds(1.0)}, title="t")
    assert "aper" not in to_markdown(plain)
    assert plain.entries["cae", "mse", "full-he"].paper is None
