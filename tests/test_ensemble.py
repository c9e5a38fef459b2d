"""Several runs as one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.predict import score
from anomaly.pipeline.ensemble import combine
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import TINY
from .test_cli import typed

CPU = torch.device("cpu")


def trained(cache: Cache, out: Path, model: str = "cae", seed: int = 1, **more: object) -> Run:
    plan = Plan(
        model, cache.path, settings=() if model == "contrast_density" else TINY, seed=seed, device="cpu", **more
    )  # type: ignore[arg-type]
    return fit(prepare(plan), continue_or_create(prepare(plan), out, resume=False), workers=0, on_epoch=lambda _: None)


def view(cache: Cache) -> FilmSet:
    return FilmSet(cache, "full-he", np.arange(len(cache)), 64)


def test_a_score_is_the_mean_of_the_members_standardized_ones(run: Run, cache: Cache, tmp_path: Path) -> None:
    other = trained(cache, tmp_path / "other")
    made = combine([run, other], tmp_path / "both", None, CPU)
    assert made.finished and made.config.members == [str(run.path), str(other.path)]
    ours = score(open_run(made, CPU).model, view(cache), CPU)
    each = [np.log(score(open_run(r, CPU).model, view(cache), CPU)["mse"]) for r in (run, other)]
    # Standardized over validation normals: the mean is linear in each member's logarithm, with equal slopes in z.
    fitted = np.linalg.lstsq(np.stack([*each, np.ones(len(each[0]))], axis=1), ours["mse"], rcond=None)
    assert fitted[1].sum() < 1e-4 * ours["mse"].var() * len(ours["mse"])
    assert (fitted[0][:2] > 0).all()


def test_it_needs_none_of_its_members_folders(run: Run, cache: Cache, tmp_path: Path) -> None:
    other = trained(cache, tmp_path / "other")
    made = combine([run, other], tmp_path / "both", None, CPU)
    before = score(open_run(made, CPU).model, view(cache), CPU)
    other.path.rename(tmp_path / "gone")
    again = score(open_run(Run(made.path), CPU).model, view(cache), CPU)
    assert all(np.array_equal(before[name], again[name]) for name in before)


def test_different_models_share_the_scores_they_share(run: Run, cache: Cache, tmp_path: Path) -> None:
    floor = trained(cache, tmp_path / "floor", "contrast_density")
    made = combine([run, floor], tmp_path / "both", None, CPU)
    assert set(score(open_run(made, CPU).model, view(cache), CPU)) == {"atypicality", "mean_grey", "minus_std"}


@pytest.mark.parametrize("kinds", ["contrast_density contrast_density", "cae contrast_density", "both cae"])
def test_one_is_scored_mapped_and_reported_as_any_run_is(
    capsys: pytest.CaptureFixture[str], run: Run, cache: Cache, films: Path, tmp_path: Path, kinds: str
) -> None:
    members = []
    for number, kind in enumerate(kinds.split()):
        out = tmp_path / f"member-{number}"
        if kind == "both":  # an ensemble is a run, and may be a member
            members.append(combine([run, trained(cache, tmp_path / "other")], out, None, CPU).path)
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
