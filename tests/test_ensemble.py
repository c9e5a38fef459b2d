"""Several runs as one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.fit import Plan, combine, continue_or_create, fit, prepare
from anomaly.runs import Run
from anomaly.score import View, open_model, score
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import TINY

CPU = torch.device("cpu")


def trained(cache: Cache, out: Path, model: str = "cae", seed: int = 1, **more: object) -> Run:
    plan = Plan(
        model, cache.path, settings=() if model == "contrast_density" else TINY, seed=seed, device="cpu", **more
    )  # type: ignore[arg-type]
    return fit(prepare(plan), continue_or_create(prepare(plan), out, resume=False), workers=0, on_epoch=lambda _: None)


def view(cache: Cache) -> View:
    return View(cache, "full-he", np.arange(len(cache)), 64)


def test_a_score_is_the_mean_of_the_members_standardised_ones(run: Run, cache: Cache, tmp_path: Path) -> None:
    other = trained(cache, tmp_path / "other")
    made = combine([run, other], tmp_path / "both", None, CPU)
    assert made.finished and made.config["members"] == [str(run.path), str(other.path)]
    ours = score(open_model(made, CPU), view(cache), CPU)
    each = [np.log(score(open_model(r, CPU), view(cache), CPU)["mse"]) for r in (run, other)]
    # Standardised over validation normals: the mean is linear in each member's logarithm, with equal slopes in z.
    fitted = np.linalg.lstsq(np.stack([*each, np.ones(len(each[0]))], axis=1), ours["mse"], rcond=None)
    assert fitted[1].sum() < 1e-4 * ours["mse"].var() * len(ours["mse"])
    assert (fitted[0][:2] > 0).all()


def test_it_needs_none_of_its_members_folders(run: Run, cache: Cache, tmp_path: Path) -> None:
    other = trained(cache, tmp_path / "other")
    made = combine([run, other], tmp_path / "both", None, CPU)
    before = score(open_model(made, CPU), view(cache), CPU)
    other.path.rename(tmp_path / "gone")
    again = score(open_model(Run(made.path), CPU), view(cache), CPU)
    assert all(np.array_equal(before[name], again[name]) for name in before)


def test_different_models_share_the_scores_they_share(run: Run, cache: Cache, tmp_path: Path) -> None:
    floor = trained(cache, tmp_path / "floor", "contrast_density")
    made = combine([run, floor], tmp_path / "both", None, CPU)
    assert set(score(open_model(made, CPU), view(cache), CPU)) == {"typicality", "mean_grey", "minus_std"}


def test_what_can_not_be_put_together_is_refused(run: Run, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two runs, each once"):
        combine([run], tmp_path / "one", None, CPU)
    with pytest.raises(InputError, match="at least two runs, each once"):
        combine([run, run], tmp_path / "twice", None, CPU)
    with pytest.raises(InputError, match="`anomaly ensemble RUN RUN`"):
        prepare(Plan("ensemble", cache.path))
    raw = trained(cache, tmp_path / "raw", variant="raw")
    with pytest.raises(InputError, match="has variant raw"):
        combine([run, raw], tmp_path / "mixed", None, CPU)
    assert not (tmp_path / "one").exists() and not (tmp_path / "mixed").exists()
