"""External validation: labelled films of elsewhere, thresholds at work with their intervals, another cache."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

import anomaly
from anomaly.evaluation.cohort import Cohort, ScoredCohort
from anomaly.evaluation.conformal import binomial_interval
from anomaly.evaluation.evaluation import evaluate
from anomaly.evaluation.figures import EvaluationSettings, Rate
from anomaly.evaluation.operating import operating_figures, rate
from anomaly.reporting.external import external_lines
from anomaly.reporting.text import summary
from anomaly.runs import Run, read_csv
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

from .test_cli import refused, typed

CPU = ("--device", "cpu", "--workers", "1")


# ------------------------------------------------------------------------------------------------------------ a share


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_one_unit_a_patient_has_the_exact_interval(drawn: tuple[int, int]) -> None:
    hits, n = drawn
    part = np.arange(n) < hits
    one = rate(part, np.ones(n, bool), np.arange(n))
    exact = binomtest(hits, n).proportion_ci(0.95, "exact")
    assert one == Rate(value=hits / n, interval=one.interval, count=hits, n=n, n_patients=n)
    assert one.interval == pytest.approx((exact.low, exact.high), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_an_interval_holds_its_share_and_no_more_units_than_there_are(units: list[tuple[int, bool, bool]]) -> None:
    patients, part, whole = (np.array(column) for column in zip(*units, strict=True))
    one = rate(part, whole, patients)
    assert one.n == whole.sum() and one.count == (part & whole).sum() and one.n_patients == len({*patients[whole]})
    if not one.n:
        assert one.value is None and one.interval is None
        return
    assert one.value is not None and one.interval is not None
    low, high = one.interval
    assert 0 <= low <= one.value + 1e-12 and one.value <= high + 1e-12 <= 1 + 1e-9
    exact = binomial_interval([one.count], one.n)[0]
    assert high - low >= exact[1] - exact[0] - 1e-9  # units of one patient never tell more than as many patients


@pytest.mark.parametrize("films", [2, 5])
def test_films_that_are_copies_tell_no_more_than_their_patients(films: int) -> None:
    hits = np.arange(40) < 10
    alone = rate(hits, np.ones(40, bool), np.arange(40))
    copies = rate(hits.repeat(films), np.ones(40 * films, bool), np.arange(40).repeat(films))
    assert alone.interval is not None and copies.interval is not None
    width, wide = (limits[1] - limits[0] for limits in (alone.interval, copies.interval))
    assert width <= wide <= 1.1 * width
    none = rate(np.zeros(40 * films, bool), np.ones(40 * films, bool), np.arange(40).repeat(films))
    assert none.interval == pytest.approx(tuple(binomial_interval([0], 40)[0]))


@pytest.mark.parametrize(("patients", "share", "within"), [(30, 0.1, 0.5), (60, 0.05, 0.8), (60, 0.4, 0.0)])
def test_the_interval_over_patients_covers(patients: int, share: float, within: float) -> None:
    """The simulation that the module's docstring speaks of: 1 to 6 films a patient, correlated by `within`."""
    rng, covered, draws = np.random.default_rng(1), 0, 400
    for _ in range(draws):
        chance = np.full(patients, share)
        if within:
            chance = rng.beta(share * (1 - within) / within, (1 - share) * (1 - within) / within, patients)
        owner = np.arange(patients).repeat(rng.integers(1, 7, patients))
        one = rate(rng.random(len(owner)) < chance[owner], np.ones(len(owner), bool), owner)
        assert one.interval is not None
        covered += one.interval[0] <= share <= one.interval[1]
    assert covered / draws >= 0.91


# ------------------------------------------------------------------------------------------------------- a threshold


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=40))
def test_the_threshold_at_work_is_the_confusion_matrix(units: list[tuple[int, int]]) -> None:
    labels, values = (np.array(column) for column in zip(*units, strict=True))
    at = operating_figures(labels, values.astype(float), np.arange(len(labels)), 2)
    tp, fp = (int(((values >= 2) & (labels == label)).sum()) for label in (1, 0))
    fn, tn = (int(((values < 2) & (labels == label)).sum()) for label in (1, 0))
    assert (at.flag_rate.count, at.flag_rate.n) == (tp + fp, len(units))
    assert (at.sensitivity.count, at.sensitivity.n) == (tp, tp + fn)
    assert (at.specificity.count, at.specificity.n) == (tn, tn + fp)
    if {0, 1} <= set(labels.tolist()):
        assert (at.ppv.count, at.ppv.n, at.npv.count, at.npv.n) == (tp, tp + fp, tn, tn + fn)
    else:
        assert at.ppv.value is None and at.npv.value is None


def test_figures_by_unit_kind_and_column_are_in_metrics_and_lines() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(-1, 2, 90)
    names = np.arange(90).astype(str).astype(object)
    cohort = Cohort(
        film=names,
        study=np.arange(90) // 2,
        patient=np.arange(90) // 3,
        label=label,
        split=np.full(90, "new"),
        finding=np.where(label == 1, np.where(rng.random(90) < 0.5, "cyst", "screw"), ""),
        difficulty=np.full(90, ""),
        synthetic=True,
        columns={"site": np.array(["a", "b", ""] * 30, object)},
    )
    scored = ScoredCohort(cohort, {"mse": rng.normal(size=90) + (label == 1)}, EvaluationSettings(resamples=50))
    thresholds = {unit: {"mse": 0.5} for unit in ("film", "study", "patient")}
    figures = evaluate(scored, main="mse", thresholds=thresholds).figures
    operating = figures.operating
    assert operating is not None and operating.film.flag_rate.n == (label >= 0).sum()
    assert operating.patient.flag_rate.n == scored.groups["patient"].known.sum() < operating.film.flag_rate.n
    assert sum(at.flag_rate.count for at in operating.columns["site"].values()) == operating.film.flag_rate.count
    kinds = operating.kinds["finding"]
    assert sum(kind.count for kind in kinds.values()) == operating.film.sensitivity.count
    assert type(figures).model_validate_json(json.dumps(figures.to_data())) == figures
    lines = external_lines(figures)
    assert len([line for line in lines if line.startswith("at the threshold by ")]) == 3
    assert [line.split(":")[0] for line in lines if line.startswith("site ")] == ["site none", "site a", "site b"]
    assert any(line.startswith("at the threshold by patient: sensitivity ") for line in summary(figures))
    assert evaluate(scored, main="mse").figures.operating is None


# ------------------------------------------------------------------------------------------------------- new films


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of another place, with the masks of their lesions."""
    out = tmp_path_factory.mktemp("elsewhere") / "films"
    write_phantoms(out, seed=5, patients=10, size=128)
    return out


def normals(films: Path, folder: Path) -> Path:
    """Normal films alone, in a folder of that name, each of another patient."""
    (folder / "normal").mkdir(parents=True)
    for number, path in enumerate(sorted(films.rglob("*negative/image1.png"))):
        shutil.copy(path, folder / "normal" / f"film{number}.png")
    return folder


def test_normal_films_alone_give_the_false_alarm_rate_and_its_exact_interval(
    run: Run, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = normals(elsewhere, tmp_path / "ours")
    (films / "manifest.csv").write_text(
        "path,label\n" + "".join(f"normal/{path.name},0\n" for path in sorted((films / "normal").iterdir()))
    )
    words = ("score", run.path, films / "manifest.csv", "--out", tmp_path / "out", *CPU)
    status, out, err = typed(capsys, *words)
    assert status == 0, err
    rows = read_csv(tmp_path / "out/scores.csv")
    flagged = sum(int(row["flagged"]) for row in rows)
    exact = binomtest(flagged, len(rows)).proportion_ci(0.95, "exact")
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    film = figures["operating"]["film"]
    assert film["flag_rate"]["count"] == flagged and film["flag_rate"]["n"] == len(rows)
    assert film["flag_rate"]["interval"] == pytest.approx([exact.low, exact.high])
    assert film["sensitivity"]["value"] is None and film["ppv"]["value"] is None
    assert figures["film"]["mse"]["roc_auc"] is None
    assert f"{flagged} of {len(rows)} films flagged, all normal: false-alarm rate" in out
    page = (tmp_path / "out/report.html").read_text()
    assert "The threshold at work" in page and "No ROC-AUC" in page


def test_labelled_films_of_a_manifest_give_figures_by_column_and_of_their_masks(
    run: Run, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,label,patient,site,age,scanner,anomaly_mask"]
    for number, path in enumerate(sorted(elsewhere.rglob("image*.png"))):
        if "_" in path.stem:
            continue
        mask = path.with_name(f"{path.stem}_anomaly.png")
        marked = mask.relative_to(elsewhere) if mask.exists() else ""
        name = path.relative_to(elsewhere)
        columns = ("ab"[number % 2], number % 9, number % 8, marked)
        lines.append(",".join(map(str, (name, int("positive" in str(name)), name.parts[1], *columns))))
    (elsewhere / "labels.csv").write_text("\n".join(lines) + "\n")
    words = ("score", run.path, elsewhere / "labels.csv", "--by-column", "site", "--out", tmp_path / "out")
    status, out, err = typed(capsys, *words, *CPU)
    assert status == 0, err
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(figures["operating"]["columns"]["site"]) == set(figures["columns"]["site"]) == {"a", "b"}
    assert figures["localization"]["n_lesions"] > 0
    assert {line.split(":")[0] for line in out.splitlines() if line.startswith("site ")} == {"site a", "site b"}
    assert "pixels (" in out and len(out.splitlines()) <= 20
    page = (tmp_path / "out/report.html").read_text()
    assert "Films by site" in page and "SYNTHETIC" in page
    status, out, err = typed(capsys, *words, "--by-column", "age", "--by-column", "scanner", "--pictures", 0, *CPU)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 20, out
    assert any(re.fullmatch(r"\.\.\. and \d+ more lines of figures, in metrics\.json", line) for line in lines)
    assert lines[-1].startswith("next: ")


# ------------------------------------------------------------------------------------------------------ another cache


def cached(films: Path, path: Path, **settings: object) -> Cache:
    """Prepare films as the run's were, save for what is said."""
    variants = settings.pop("variants", ("full-he",))
    recipe = Recipe(**({"name": "limb", "size": 64} | settings))
    build(open_source(films), recipe, path, options=BuildOptions(variants=variants, workers=1))  # type: ignore[arg-type]
    return Cache(path)


def test_another_cache_made_alike_is_scored_as_its_films_are(
    run: Run, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    cache = cached(elsewhere, tmp_path / "theirs.h5")
    status, out, err = typed(capsys, "score", mine.path, cache.path, *CPU)
    assert status == 0, err
    (folder,) = (mine.path / "new").iterdir()
    assert folder.name.endswith("-theirs") and str(folder / "worklist.html") in out
    rows = read_csv(folder / "scores.csv")
    direct = anomaly.load(mine.path, device="cpu").score(elsewhere, workers=1)
    assert [row["film"] for row in rows] == [film.id for film in direct]
    given: NDArray[np.float64] = np.array([float(row["mse"]) for row in rows])
    assert given == pytest.approx([film.score for film in direct], rel=1e-5)
    through = anomaly.load(mine.path, device="cpu").score(cache.path, where=["label=normal"])
    assert {film.label for film in through} == {0} and through.figures is not None
    again = typed(capsys, "score", mine.path, cache.path, *CPU)
    assert again[0] == 0 and len([*(mine.path / "new").iterdir()]) == 1
    status, _, err = typed(capsys, "heatmap", mine.path, cache.path, "--space", "film", "--limit", 1, *CPU)
    assert status == 0, err


def test_a_cache_made_otherwise_is_refused_with_what_differs(
    run: Run, cache: Cache, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = normals(elsewhere, tmp_path / "few")
    smaller = cached(films, tmp_path / "smaller.h5", size=32)
    message = refused(capsys, "score", run.path, smaller.path, *CPU)
    assert "was not prepared as the films of" in message and "recipe.size: 64 -> 32" in message
    assert f"`anomaly score {run.path} {smaller.source_path}`" in message
    raw = cached(films, tmp_path / "raw.h5", variants=("raw",))
    assert "variant full-he: there are raw" in refused(capsys, "score", run.path, raw.path, *CPU)
    assert "choose its films with --split" in refused(capsys, "score", run.path, cache.path, *CPU)
    assert "score it alone" in refused(capsys, "score", run.path, raw.path, films, *CPU)
