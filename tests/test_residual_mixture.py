"""The mixture of local residuals, and the mean residual of each place."""

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.data.batch import Batch
from anomaly.models.reconstructor import Reconstructor
from anomaly.nn import residual_mixture
from anomaly.nn.residual_mixture import CELLS, CellSample, ResidualMixture, grid_cells, mean_over_grid, residual_cells

SIDE = 64


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return films that are rough on the left and smooth on the right, reconstructions that err where they are rough,
    and whole masks.
    """
    rng = np.random.default_rng(seed)
    rough = np.where(np.arange(SIDE) < SIDE // 2, 0.1, 0.002)
    film = 0.5 + rough * rng.normal(size=(count, 1, SIDE, SIDE))
    error = 0.3 * rough * rng.normal(size=film.shape)
    film, reconstruction = (torch.from_numpy(x.astype(np.float32)) for x in (film, film + error))
    return film, reconstruction, torch.ones(film.shape, dtype=torch.bool)


def fitted() -> ResidualMixture:
    sample = CellSample()
    for cells in residual_cells(*drawn(12, 0)):
        sample.add(cells)
    mixture = ResidualMixture()
    mixture.fit(sample.cells())
    return mixture


def test_the_same_error_is_unusual_where_the_film_is_smooth() -> None:
    film, reconstruction, mask = drawn(3, 1)
    reconstruction[1:2] = film[1:2] + (reconstruction - film)[:1].flip(3)  # errors of film 0, on the other side
    reconstruction[2:] = film[2:] + (reconstruction - film)[:1]
    usual, elsewhere, again = fitted()(residual_cells(film, reconstruction, mask)).tolist()
    assert elsewhere > usual + 10, "the mean squared error is the same"
    assert abs(again - usual) < 2


def test_too_small_an_error_is_unusual_too_and_so_is_one_to_one_side() -> None:
    film, reconstruction, mask = drawn(1, 2)
    mixture = fitted()
    usual, exact, shifted = (
        mixture(residual_cells(film, own, mask)).item()
        for own in (reconstruction, film + 0.05 * (reconstruction - film), reconstruction + 0.1)
    )
    assert exact > usual + 2 and shifted > usual + 2


@pytest.mark.parametrize("side", [20, 64, 200, 256])
def test_features_are_those_under_the_mask_at_any_size(side: int) -> None:
    film = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(film.shape, dtype=torch.bool)
    mask[0, :, : side // 2] = True
    half, none = residual_cells(film, film * 0.9, mask)
    assert half.isfinite().all() and none.isfinite().all()
    grid = round(len(none) ** 0.5)  # a film without a mask has all cells
    assert grid <= CELLS and abs(len(half) - len(none) / 2) <= grid
    beside = torch.where(mask, film, 0.123)  # what lies off the mask says nothing
    torch.testing.assert_close(residual_cells(beside, film * 0.9, mask)[0], half)


def test_a_large_film_has_the_features_of_its_area_means() -> None:
    film = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    large = film.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    mask, wide = (torch.ones(x.shape, dtype=torch.bool) for x in (film, large))
    # 256 px are reduced to 128: windows of the same share of the side, on the same grid but for half a pixel.
    mean = [
        cells.mean(dim=0)
        for cells in (residual_cells(film, film * 0.9, mask)[0], residual_cells(large, large * 0.9, wide)[0])
    ]
    torch.testing.assert_close(mean[0], mean[1], rtol=0.03, atol=0.03)


def test_the_cells_kept_are_bounded_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual_mixture, "KEPT", 100)
    sample = CellSample()
    for number in range(200):
        sample.add(torch.stack([torch.full((16,), float(number)), torch.arange(16.0)], dim=1))
        assert len(sample.cells()) <= 100
    cells = sample.cells()
    assert len(cells) >= 40
    assert cells[:, 0].mean().item() == pytest.approx(99.5, abs=10), "of early films as of late ones"
    assert cells[:, 1].mean().item() == pytest.approx(7.5, abs=2), "of all places"


class Copy(Reconstructor):
    """Draws every film a tenth darker."""

    def reconstruct(self, film: Tensor) -> Tensor:
        return film * 0.9


def test_a_place_that_no_normal_film_covers_has_the_mean_error() -> None:
    model = Copy(SIDE, 0.1)
    film, _, mask = drawn(20, 3)
    mask[:, :, :, SIDE // 2 :] = False
    model.fit_reference([Batch(film * mask, mask, torch.zeros(20, dtype=torch.long))])
    variance, error = model.normals.variance[0, 0], (0.1 * film[mask]).square().mean()
    torch.testing.assert_close(variance[:, -1], error.expand(SIDE), rtol=1e-3, atol=0)
    torch.testing.assert_close(variance[:, 4:20].mean(), error, rtol=0.05, atol=0)


def test_a_films_score_is_that_of_the_likeliest_components_of_its_cells() -> None:
    mixture = fitted()
    cells = residual_cells(*drawn(2, 3))
    inner, expected = mixture.mixture, []
    for own in cells:
        white = mixture.whitening(own).double().numpy()
        deviation = white[:, None] - inner.means.double().numpy()
        distance = np.einsum("mka,kab->mkb", deviation, inner.factors.double().numpy())
        expected.append((np.square(distance).sum(axis=2) + inner.constants.double().numpy()).min(axis=1).mean())
    assert mixture(cells).numpy() == pytest.approx(expected, abs=1e-9, rel=1e-9)
    assert torch.equal(mixture(cells)[1:], mixture(cells[1:])), "alone as in a batch, bit for bit"


def test_no_films_have_no_cells() -> None:
    none = torch.zeros(0, 1, SIDE, SIDE)
    assert residual_cells(none, none, none > 0) == []


def test_all_cells_of_a_grid_at_once_score_as_those_under_the_mask() -> None:
    """The way of a GPU and of an exported graph."""
    mixture = fitted()
    film, reconstruction, mask = drawn(3, 4)
    mask[1, :, :20] = False
    mask[2] = False
    cells, inside = grid_cells(film, reconstruction, mask)
    whole = mean_over_grid(mixture.whitening(cells), inside, mixture._components())
    assert whole.numpy() == pytest.approx(mixture.of_films(film, reconstruction, mask).numpy(), rel=1e-5)
