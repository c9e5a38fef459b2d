"""Several runs as one."""

import shutil
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.predict import score
from anomaly.models.ensemble import Ensemble, EnsembleConfig, Member
from anomaly.nn.p_values import KNOTS
from anomaly.pipeline.ensemble import combine
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run, run_cache_and_split
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import TINY, shared
from .test_cli import typed

CPU = torch.device("cpu")
SPACING = log(14 / 7) / (KNOTS - 1)
"""Of the knots of 13 normal films, in -log p; between them the distribution is interpolated."""


def trained(cache: Cache, out: Path, model: str = "cae", seed: int = 1, **more: object) -> Run:
    settings = more.pop("settings", () if model == "contrast_density" else TINY)
    plan = Plan(model, cache.path, settings=settings, seed=seed, device="cpu", **more)  # type: ignore[arg-type]
    return fit(prepare(plan), continue_or_create(prepare(plan), out, resume=False), workers=0, on_epoch=lambda _: None)


@pytest.fixture(scope="module")
def other(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run like the shared one, of another seed; as that, it is not to be written into."""
    return shared(trained(cache, tmp_path_factory.mktemp("runs") / "other"))


@pytest.fixture(scope="module")
def floor(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared(trained(cache, tmp_path_factory.mktemp("runs") / "floor", "contrast_density"))


def view(cache: Cache) -> FilmSet:
    return FilmSet(cache, "full-he", np.arange(len(cache)), 64)


def log_p(normal: np.ndarray, values: np.ndarray) -> np.ndarray:
    """-log p of values that are no lower than all normal ones, written down from the definition."""
    x, n = np.sort(normal.astype(float)), len(normal)
    tail = min(max(10, int(np.ceil(np.sqrt(n)))), n // 2)
    if x[0] >= 0:
        x, values = np.log(x), np.log(values)
    u = x[n - tail - 1]
    inside = np.interp(values, x, -np.log(1 - np.arange(1, n + 1) / (n + 1)))
    return np.where(values > u, np.log((n + 1) / (tail + 1)) + (values - u) / (x[n - tail :] - u).mean(), inside)


def test_an_ensemble_of_seeds_has_all_scores_of_its_members(run: Run, other: Run, cache: Cache, tmp_path: Path) -> None:
    made = combine([run, other], tmp_path / "both", None, CPU)
    assert made.finished and made.config.members == [str(run.path), str(other.path)]
    names = open_run(run, "cpu").model.score_names
    assert open_run(made, "cpu").model.score_names == ("fisher", *names)
    ours = score(open_run(made, "cpu").model, view(cache))
    assert np.array_equal(ours["fisher"], ours["mse"]), "the first score of each member, unless another is named"
    films, split = run_cache_and_split(made)
    normals = (split == "val") & (films.index["label"] == 0)
    each = [score(open_run(r, "cpu").model, view(cache))["peak"] for r in (run, other)]
    reached = np.all([values >= values[normals].min() for values in each], axis=0)
    expected = np.mean([log_p(values[normals], values) for values in each], axis=0)
    np.testing.assert_allclose(ours["peak"][reached], expected[reached], rtol=1e-3, atol=2 * SPACING)


def test_fisher_is_the_mean_of_minus_log_p_among_validation_normals(
    run: Run, floor: Run, cache: Cache, tmp_path: Path
) -> None:
    made = combine([run, floor], tmp_path / "both", None, CPU, ["ssim", None])
    films, split = run_cache_and_split(made)
    normals = (split == "val") & (films.index["label"] == 0)
    opened = open_run(made, "cpu")
    assert opened.main_score(None) == "fisher" and [m["score"] for m in made.config.settings.model["members"]] == [
        "ssim",
        "atypicality",
    ]
    ours = score(opened.model, view(cache))["fisher"]
    each = [score(open_run(r, "cpu").model, view(cache))[n] for r, n in ((run, "ssim"), (floor, "atypicality"))]
    expected = np.mean([log_p(values[normals], values) for values in each], axis=0)
    reached = np.all([values >= values[normals].min() for values in each], axis=0)
    assert reached[normals].sum() > 10
    np.testing.assert_allclose(ours[reached], expected[reached], rtol=1e-3, atol=2 * SPACING)
    assert ours.min() >= 0 and ours[normals].mean() == pytest.approx(1, abs=0.35)


def test_members_may_take_films_of_another_size(run: Run, cache: Cache, tmp_path: Path) -> None:
    small = trained(cache, tmp_path / "small", "cae", settings=(*TINY[:-1], "size=32"))
    assert (small.config.size, run.config.size) == (32, 64)
    made = combine([small, run], tmp_path / "both", None, CPU)
    assert made.config.size == 64
    model = open_run(made, "cpu").model.detector
    batch = as_batch(view(cache).part(slice(0, 5)), CPU)
    with torch.inference_mode():
        prediction = model.predict(batch, maps=True)
        inside = model._predictions(batch, maps=True)[0].scores["mse"]
        films = replace(view(cache), size=32).part(slice(0, 5))
        own = open_run(small, "cpu").model.detector.predict(as_batch(films, CPU))
    # But for the rounding to the cache's 8-bit levels, the small member sees what it was trained on.
    torch.testing.assert_close(inside, own.scores["mse"], rtol=0.02, atol=0)
    assert prediction.map is not None and prediction.map.shape == prediction.reconstruction.shape == batch.film.shape
    assert (prediction.map >= 0).all() and (prediction.map[~batch.mask] == 0).all()


def test_the_map_is_minus_log_p_among_pixels_of_normal_films(
    run: Run, floor: Run, cache: Cache, tmp_path: Path
) -> None:
    made = combine([run, floor], tmp_path / "both", None, CPU)
    films, split = run_cache_and_split(made)
    normals = replace(view(cache), rows=np.flatnonzero((split == "val") & (films.index["label"] == 0)))
    batch = as_batch(normals.read(), CPU)
    with torch.inference_mode():
        map = open_run(made, "cpu").model.detector.predict(batch, maps=True).map
        own = open_run(run, "cpu").model.detector.predict(batch, maps=True).map
    assert map is not None and own is not None
    assert map[batch.mask].mean().item() == pytest.approx(1, abs=0.1)
    high = own > own[batch.mask].quantile(0.99)
    assert map[high].mean() > 2, "where one member's map is high, so is the ensemble's"


def test_a_score_is_named_after_its_run(
    capsys: pytest.CaptureFixture[str], run: Run, cache: Cache, tmp_path: Path
) -> None:
    odd = trained(cache, tmp_path / "with:colon")
    status, _, err = typed(capsys, "ensemble", f"{run.path}:ssim", odd.path)
    assert status == 0 and "13 normal validation films: p-values below 1/14 are extrapolated" in " ".join(err.split())
    members = Run(Path("runs/ensemble-1")).config.settings.model["members"]
    assert [member["score"] for member in members] == ["ssim", "mse"]
    status, _, err = typed(capsys, "ensemble", f"{run.path}:grey", odd.path)
    assert status == 2 and "has no score 'grey'; there are: atypicality, " in err
    status, _, err = typed(capsys, "ensemble", f"{tmp_path / 'nothing'}:mse", odd.path)
    assert status == 2 and "nothing is not a run folder" in err


def test_a_score_that_never_varies_is_refused() -> None:
    member = Member(model="contrast_density", settings={}, size=32, score="atypicality")
    ensemble = Ensemble(EnsembleConfig(members=[member, member]), 32)
    film = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(film, dtype=torch.bool)
    different = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for model in ensemble.members:
        model.fit_reference([Batch(different, mask.expand(8, -1, -1, -1), torch.zeros(8))])
    same = Batch(film.expand(5, -1, -1, -1), mask.expand(5, -1, -1, -1), torch.zeros(5))
    with pytest.raises(InputError, match=r"score atypicality of member 1 is .* on all 5 normal .* RUN:SCORE"):
        ensemble.fit_reference([same])


def test_it_needs_none_of_its_members_folders(run: Run, other: Run, cache: Cache, tmp_path: Path) -> None:
    copied = Run(Path(shutil.copytree(other.path, tmp_path / "other")))
    made = combine([run, copied], tmp_path / "both", None, CPU)
    before = score(open_run(made, "cpu").model, view(cache))
    copied.path.rename(tmp_path / "gone")
    again = score(open_run(Run(made.path), "cpu").model, view(cache))
    assert all(np.array_equal(before[name], again[name]) for name in before)


def test_different_models_share_the_scores_they_share(run: Run, floor: Run, cache: Cache, tmp_path: Path) -> None:
    made = combine([run, floor], tmp_path / "both", None, CPU)
    assert set(score(open_run(made, "cpu").model, view(cache))) == {
        "fisher",
        "atypicality",
        "mean_grey",
        "minus_std",
    }


@pytest.mark.parametrize("kinds", ["contrast_density contrast_density", "cae contrast_density", "both cae"])
def test_one_is_scored_mapped_and_reported_as_any_run_is(
    capsys: pytest.CaptureFixture[str], run: Run, other: Run, cache: Cache, films: Path, tmp_path: Path, kinds: str
) -> None:
    members = []
    for number, kind in enumerate(kinds.split()):
        out = tmp_path / f"member-{number}"
        if kind == "both":  # an ensemble is a run, and may be a member
            members.append(combine([run, other], out, None, CPU).path)
        else:
            members.append(run.path if kind == "cae" and number else trained(cache, out, kind, number).path)
    (tmp_path / "new.png").write_bytes(next(films.rglob("*.png")).read_bytes())
    typed(capsys, "ensemble", *members)
    made = Path("runs/ensemble-1")
    for words in (
        ["score", made],
        ["score", made, "--by", "atypicality", "--aggregate", "max"],
        ["score", made, "--split", "val"],
        ["score", made, "new.png"],
        ["report", made],
        ["heatmap", made, "--by", "atypicality", "--space", "film", "--limit", 1],
        ["heatmap", made, "new.png", "--formats", "npy"],
    ):
        status, _, err = typed(capsys, *words)
        assert status == 0, (words, err)
    files = (
        "scores.csv",
        "studies.csv",
        "patients.csv",
        "metrics.json",
        "report.html",
        "val/report.html",
    )
    assert all((made / name).is_file() for name in files) and list((made / "maps").rglob("*.png"))
    assert len(list((made / "new").glob("*/scores.csv"))) == len(list((made / "new").glob("*/maps"))) == 1
    page = (made / "report.html").read_text()
    assert "ensemble of 2 runs" in page and "One training with one seed" not in page
    assert all(str(member) in page for member in members)
    counts = Run(run.path).config.films
    assert f"{counts['train']} for training, {counts['val']} for validation" in page


def test_an_ensemble_has_no_settings_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = typed(capsys, "models", "ensemble")
    assert status == 2 and "`anomaly ensemble RUN RUN`" in err


def test_what_can_not_be_put_together_is_refused(run: Run, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two different runs"):
        combine([run], tmp_path / "one", None, CPU)
    with pytest.raises(InputError, match="at least two different runs"):
        combine([run, run], tmp_path / "twice", None, CPU)
    with pytest.raises(InputError, match="`anomaly ensemble RUN RUN`"):
        prepare(Plan("ensemble", cache.path))
    raw = trained(cache, tmp_path / "raw", variant="raw")
    with pytest.raises(InputError, match="has variant raw"):
        combine([run, raw], tmp_path / "mixed", None, CPU)
    assert not (tmp_path / "one").exists() and not (tmp_path / "mixed").exists()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"anomaly.pipeline.ensemble.{step}", stopped)


@pytest.mark.parametrize("step", ["write_weights", "finish"])
@pytest.mark.parametrize("named", [True, False])
def test_the_same_command_goes_on_after_a_stop(
    run: Run, other: Run, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, named: bool
) -> None:
    out = tmp_path / "both" if named else None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step)
        combine([run, other], out, None, CPU)
    half = Run(out or Path("runs/ensemble-1"))
    with pytest.raises(InputError, match=rf"`anomaly ensemble {run.path} {other.path} --out {half.path}` resumes it"):
        open_run(half, CPU)
    made = combine([run, other], out, None, CPU)
    assert made.path == half.path and made.finished
    whole = combine([run, other], tmp_path / "whole", None, CPU)
    for name in ("weights.safetensors", "calibration.json", "films.safetensors"):
        assert (made.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_folder_of_other_members_is_not_gone_on_with(
    run: Run, other: Run, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = trained(cache, tmp_path / "third", seed=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "finish")
        combine([run, other], tmp_path / "both", None, CPU)
    with pytest.raises(InputError, match="started with other settings: members: "):
        combine([run, third], tmp_path / "both", None, CPU)
    assert combine([run, third], None, None, CPU).path == Path("runs/ensemble-1")
    combine([run, other], tmp_path / "both", None, CPU)
    with pytest.raises(InputError, match="both exists and is finished"):
        combine([run, other], tmp_path / "both", None, CPU)
