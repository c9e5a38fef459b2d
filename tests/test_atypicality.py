"""What is compared with normal films: patterns of the residual, whichever way they depart."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from anomaly.nn.atypicality import GRID, Atypicality, cells
from anomaly.nn.filters import gaussian_blur, local_mean, structural_dissimilarity


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normals(draw: torch.Generator, count: int = 120, spread: float = 1.0) -> torch.Tensor:
    """Maps that vary along a few directions, and a little everywhere: (count, GRID²)."""
    directions = torch.randn(6, GRID**2, generator=torch.Generator().manual_seed(7))
    return spread * (torch.randn(count, 6, generator=draw) @ directions) + 0.3 * torch.randn(
        count, GRID**2, generator=draw
    )


def test_both_less_and_more_than_usual_is_unusual(draw: torch.Generator) -> None:
    """An opaque lung reconstructs better than a healthy one: an error that is too small is an anomaly too."""
    fitted = Atypicality()
    fitted.fit(normals(draw))
    usual = fitted(normals(draw, 50))
    assert abs(float(usual.mean())) < 0.3  # z-scored by normals that were left out: 0 is the usual new film
    for shift in (-3.0, 3.0):
        assert (fitted(normals(draw, 50) + shift) > usual.max()).all()


def test_it_does_not_hang_on_the_unit(draw: torch.Generator) -> None:
    maps, other = normals(draw), normals(draw, 20) + 1
    one, two = Atypicality(), Atypicality()
    one.fit(maps)
    two.fit(100 * maps - 7)
    torch.testing.assert_close(one(other), two(100 * other - 7), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_few_normals_give_a_finite_score(count: int, draw: torch.Generator) -> None:
    fitted = Atypicality()
    fitted.fit(normals(draw, count))
    assert fitted(normals(draw, 5)).isfinite().all()


def test_normals_all_alike_give_a_finite_score() -> None:
    fitted = Atypicality()
    fitted.fit(torch.ones(20, GRID**2))
    same, other = fitted(torch.ones(1, GRID**2)), fitted(torch.zeros(1, GRID**2))
    assert same.isfinite().all() and other.isfinite().all() and other > same


def test_cells_off_the_mask_say_nothing(draw: torch.Generator) -> None:
    mask = torch.zeros(1, 1, 56, 56, dtype=torch.bool)
    mask[..., :28] = True
    value = torch.ones(1, 1, 56, 56)
    value[..., 28:] = 9
    grid = cells(value, mask).reshape(GRID, GRID)
    assert (grid[:, : GRID // 2] == 1).all() and grid[:, GRID // 2 :].isnan().all()
    fitted = Atypicality()
    fitted.fit(normals(draw))
    gaps = fitted.center.clone()[None]
    gaps[:, ::3] = torch.nan
    torch.testing.assert_close(fitted(gaps), fitted(fitted.center[None]))


def test_a_score_before_fit_is_a_mistake(draw: torch.Generator) -> None:
    with pytest.raises(RuntimeError, match="fit"):
        Atypicality()(normals(draw, 1))


def test_it_is_saved_with_whatever_it_was_fitted_on(draw: torch.Generator) -> None:
    fitted, again = Atypicality(), Atypicality()
    fitted.fit(normals(draw, 33))
    again.load_state_dict(fitted.state_dict())
    maps = normals(draw, 4)
    assert torch.equal(fitted(maps), again(maps))


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(0.3, 4.0), st.integers(0, 2**31))
def test_a_local_mean_stays_within_its_values(height: int, width: int, sigma: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 1, height, width, generator=draw, dtype=torch.float64)
    mask = torch.rand(2, 1, height, width, generator=draw) > 0.4
    mean = local_mean(x, mask, sigma)
    assert (mean[~mask] == 0).all() and (mean >= 0).all() and (mean <= 1 + 1e-9).all()
    elsewhere = torch.where(mask, x, 5.0)
    torch.testing.assert_close(local_mean(elsewhere, mask, sigma), mean)
    torch.testing.assert_close(local_mean(torch.full_like(x, 0.7), mask, sigma)[mask], torch.full_like(x, 0.7)[mask])


def test_a_gaussian_blur_keeps_the_sum() -> None:
    x = torch.zeros(1, 2, 41, 41)
    x[0, 0, 20, 20], x[0, 1, 18, 25] = 1.0, 2.0
    blurred = gaussian_blur(x, 2.0)
    torch.testing.assert_close(blurred.sum(dim=(2, 3)), torch.tensor([[1.0, 2.0]]))
    assert blurred[0, 0].argmax() == 20 * 41 + 20


def test_dissimilarity_is_that_of_scikit_image() -> None:
    draw = np.random.default_rng(0)
    x = draw.random((48, 48)).astype(np.float32)
    y = np.clip(x + 0.2 * draw.standard_normal((48, 48)), 0, 1).astype(np.float32)
    _, theirs = structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    whole = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    ours = structural_dissimilarity(torch.tensor(x)[None, None], torch.tensor(y)[None, None], whole)[0, 0].numpy()
    inner = np.s_[6:-6, 6:-6]  # the two treat the border differently
    np.testing.assert_allclose(ours[inner], ((1 - theirs) / 2)[inner], atol=2e-3)
    same = structural_dissimilarity(torch.tensor(x)[None, None], torch.tensor(x)[None, None], whole)
    assert float(same.max()) < 1e-4
