"""What describes normal cells: whitening, k-means, the mixture of Gaussians, the coreset."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from anomaly.nn.coreset import Coreset
from anomaly.nn.mixture import NEAREST, GaussianMixture, Moments, StandardizedMixture, k_means
from anomaly.nn.whitening import Whitening
from preprocessing import InputError


def drawn(seed: int, count: int = 400, axes: int = 5) -> Tensor:
    """Cells of three kinds of structure, each spread along other axes."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(3, axes, axes, generator=generator)
    centers = 6 * torch.randn(3, axes, generator=generator)
    kind = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(count, 1, axes, generator=generator)
    return centers[kind] + (noise @ spread[kind])[:, 0]


def fitted(cells: Tensor, components: int, shrinkage: float = 0.2, chunks: int = 1) -> GaussianMixture:
    mixture = GaussianMixture()
    means = k_means(cells, components, torch.Generator().manual_seed(0))
    mixture.fit(means, cells.chunk(chunks), shrinkage)
    return mixture


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), components=st.integers(1, NEAREST), shrinkage=st.floats(0.01, 1))
def test_a_cell_scores_by_its_likeliest_component(seed: int, components: int, shrinkage: float) -> None:
    """Compared with torch's own densities, of moments computed plainly in double precision."""
    cells = drawn(seed).double()
    means = k_means(cells, components, torch.Generator().manual_seed(0))
    mixture = GaussianMixture()
    mixture.fit(means, [cells], shrinkage)
    owner = torch.cdist(cells, means).argmin(dim=1)
    axes = cells.shape[1]
    densities = []
    for k in range(len(means)):
        own = cells[owner == k]
        covariance = torch.cov(own.T, correction=0).reshape(axes, axes) if len(own) > 1 else torch.zeros(axes, axes)
        covariance = (1 - shrinkage) * covariance + shrinkage * torch.eye(axes, dtype=torch.float64)
        share = torch.tensor(len(own) / len(cells), dtype=torch.float64)
        densities.append(MultivariateNormal(own.mean(dim=0), covariance).log_prob(cells) + share.log())
    expected = -2 * torch.stack(densities).amax(dim=0) - axes * torch.log(torch.tensor(2 * torch.pi))
    mixture = mixture.double()
    torch.testing.assert_close(mixture(cells), expected, rtol=1e-3, atol=1e-2)


def test_it_does_not_matter_in_what_parts_cells_come() -> None:
    cells = drawn(1)
    whole, parts = fitted(cells, 6), fitted(cells, 6, chunks=7)
    torch.testing.assert_close(whole(cells), parts(cells), rtol=1e-4, atol=1e-3)


def test_cells_of_no_kind_score_above_all_normal_ones() -> None:
    cells = drawn(2)
    mixture = fitted(cells, 12)
    assert mixture(cells.amax(dim=0, keepdim=True) + 20) > mixture(cells).max()


def test_a_component_is_a_cluster_not_the_whole() -> None:
    """Between two clusters lies nothing, though the mean of all cells does."""
    cells = torch.cat([torch.randn(200, 4) - 10, torch.randn(200, 4) + 10])
    one, two = fitted(cells, 1, 0.01), fitted(cells, 2, 0.01)
    middle = torch.zeros(1, 4)
    assert one(middle) < one(cells).median()
    assert two(middle) > two(cells).max()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 20))
def test_rounds_of_k_means_bring_means_nearer(seed: int, count: int) -> None:
    cells = drawn(seed)

    def error(means: Tensor) -> Tensor:
        return torch.cdist(cells, means).amin(dim=1).square().mean()

    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(3))[:count]
    means = k_means(cells, count, torch.Generator().manual_seed(3))
    assert 1 <= len(means) <= count and means.isfinite().all()
    assert error(means) <= error(cells[chosen]) + 1e-4
    again = k_means(cells, count, torch.Generator().manual_seed(3))
    assert torch.equal(means, again)


def test_a_cluster_without_cells_is_left_out() -> None:
    moments = Moments(torch.tensor([[0.0, 0.0], [100.0, 100.0]]))
    moments.add(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]))
    assert torch.equal(moments.means(), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(moments.covariances(), torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]).double())


def test_whitened_features_have_mean_0_and_variance_1() -> None:
    features = drawn(4, 2000) * torch.tensor([1, 10, 100, 0.1, 1])
    whitening = Whitening(5, equal_spread=True)
    whitening.fit(features.chunk(3))
    white = whitening(features)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(5), rtol=0, atol=1e-2)


def test_axes_that_are_rounding_are_left_out_and_distances_kept() -> None:
    """A feature that is constant, and one that repeats another, add no axis; unwhitened distances stay."""
    features = drawn(5)
    more = torch.cat([features, features[:, :1], torch.full((len(features), 1), 3.0)], dim=1)
    whitening = Whitening(7, equal_spread=False)
    whitening.fit([more])
    assert whitening.projection.shape == (7, 5)
    standardized = (more - more.mean(dim=0)) / more.std(dim=0, correction=0).clamp(min=1e-6)
    torch.testing.assert_close(
        torch.cdist(whitening(more), whitening(more)), torch.cdist(standardized, standardized), rtol=1e-3, atol=1e-2
    )


def test_fewer_cells_than_axes_are_refused() -> None:
    with pytest.raises(InputError, match=r"have 5 cells under their masks, too few for 8 axes: take more films"):
        Whitening(8, equal_spread=True).fit([torch.randn(5, 20)])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 30))
def test_members_of_a_coreset_lie_apart_and_cover_the_rest(seed: int, count: int) -> None:
    """No cell is farther from the nearest member than members are from each other: what greedy k-center promises."""
    cells = drawn(seed)
    coreset = Coreset()
    coreset.fit(cells, count, torch.Generator().manual_seed(seed))
    farthest = coreset(cells).max()
    apart = min(float((a - b).norm()) for a, b in itertools.combinations(coreset.members, 2))
    assert len(coreset.members) == count and float(farthest) <= apart + 1e-2
    torch.testing.assert_close(coreset(cells), torch.cdist(cells, coreset.members).amin(dim=1), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("module", [GaussianMixture(), StandardizedMixture(), Coreset()])
def test_scores_before_fitting_are_refused(module: torch.nn.Module) -> None:
    with pytest.raises(RuntimeError, match="comes before the first score"):
        module(torch.zeros(1, 3))


def test_scores_are_standardized_by_kind_on_films_that_the_fit_has_not_seen() -> None:
    """Two kinds, the second as broad as it is rare: both score 0 ± 1 on new films, and a mixture alone does not."""
    draw = torch.Generator().manual_seed(3)

    def film() -> Tensor:
        narrow = 0.1 * torch.randn(90, 4, generator=draw)
        broad = 5 + 2 * torch.randn(10, 4, generator=draw)
        return torch.cat([narrow, broad])

    films = [film() for _ in range(80)]
    means = torch.stack([torch.zeros(4), torch.full((4,), 5.0)])
    fitted = StandardizedMixture()
    fitted.fit(means, films, films, len(films), 0.001)
    fresh = torch.stack([film() for _ in range(80)])
    for kind in (slice(0, 90), slice(90, 100)):
        score = fitted(fresh[:, kind].flatten(0, 1))
        assert abs(float(score.mean())) < 0.25 and 0.7 < float(score.std()) < 1.4
    raw = [float(fitted.mixture(fresh[:, kind].flatten(0, 1)).mean()) for kind in (slice(0, 90), slice(90, 100))]
    assert raw[1] > raw[0] + 10


def test_few_films_memorized_still_score_as_new_ones_do() -> None:
    """With hardly more cells than axes, a fit scores its own cells far below new ones; cross-validation does not."""
    draw = torch.Generator().manual_seed(4)
    films = [torch.randn(10, 12, generator=draw) for _ in range(8)]
    fitted = StandardizedMixture()
    fitted.fit(torch.zeros(1, 12), films, films, len(films), 0.01)
    new = fitted(torch.randn(500, 12, generator=draw))
    assert float(fitted(torch.cat(films)).mean()) < -0.25 and abs(float(new.median())) < 0.7


def test_moments_without_a_part_are_those_of_the_rest() -> None:
    draw = torch.Generator().manual_seed(5)
    centers, parts = torch.randn(3, 5, generator=draw), torch.randn(2, 200, 5, generator=draw)
    each = []
    for part in parts:
        moments = Moments(centers)
        moments.add(part)
        each.append(moments)
    rest = each[0].plus(each[1]).plus(each[1], -1)
    torch.testing.assert_close(rest.covariances(), each[0].covariances())
    torch.testing.assert_close(rest.means(), each[0].means())


def test_copied_factors_give_the_scores_of_products_by_component() -> None:
    """The way of a GPU."""
    cells = drawn(3)
    mixture = fitted(cells, 20)
    assert mixture._gathered(cells).numpy() == pytest.approx(mixture(cells).numpy(), rel=1e-4, abs=1e-4)
