"""A mixture of many Gaussians with full covariances, fitted in one or two passes, and the k-means that places them.

What the cells of normal films look like has no one shape: k-means finds the kinds there are, and each gets a Gaussian
of its own. Memory depends on components and axes, not on how many cells were seen.
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from anomaly.nn.filters import exact
from anomaly.nn.fitted import Fitted

ROUNDS = 8
"""Of k-means; beyond these the scores change no more."""
NEAREST = 4
"""Components whose density is computed for a cell: one of the four with the nearest means has the greatest."""
CHUNK = 2**15
"""Cells whose distances to all means are in memory at a time."""
GATHERED = 2**12
"""Cells whose components' factors are copied at a time, on a GPU: at most .6 GB of them at 96 axes."""
FOLDS = 4
"""Of the cross-validation that scores are standardized by."""
LEAST_OF_KIND, LEAST_SPREAD = 30, 0.3
"""Held-out cells that a kind needs for figures of its own; its least spread, as a share of the usual one."""


def nearest_means(cells: Tensor, means: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` nearest means, by Euclidean distance: (M, A), (K, A) -> (M, count)."""
    distance = torch.addmm(means.square().sum(dim=1), cells, means.T, alpha=-2)  # (M, K), less the cell's own square
    if count == 1:
        return distance.argmin(dim=1, keepdim=True)
    return distance.topk(count, dim=1, largest=False, sorted=False).indices


def k_means(cells: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the means of ROUNDS rounds of Lloyd's algorithm from `count` distinct cells: (M, A) -> (K, A).

    K is `count`, less the clusters that lost all their cells. `generator`, on the CPU, draws the first means.
    """
    chosen = torch.randperm(len(cells), generator=generator)[:count].to(cells.device)
    means = cells[chosen]
    for _ in range(ROUNDS):
        moments = Moments(means, second=False)
        for chunk in torch.split(cells, CHUNK):
            moments.add(chunk)
        means = moments.means()
    return means


class Moments:
    """Number, sum and sum of outer products of the cells that are nearest to each mean, streamed."""

    def __init__(self, centers: Tensor, *, second: bool = True) -> None:
        """`centers` (K, A) are what sums are taken about; `second` whether outer products are wanted."""
        self.centers = centers
        count, axes = centers.shape
        self.number = torch.zeros(count, dtype=torch.float64, device=centers.device)
        self.first = torch.zeros(count, axes, dtype=torch.float64, device=centers.device)
        shape = (count, axes, axes) if second else (0, axes, axes)
        self.second = torch.zeros(shape, dtype=torch.float64, device=centers.device)

    def add(self, cells: Tensor) -> None:
        """Take cells, (M, A)."""
        for chunk in torch.split(cells, CHUNK):
            owner, order = nearest_means(chunk, self.centers, 1)[:, 0].sort(stable=True)
            deviation = chunk[order] - self.centers[owner]
            numbers = torch.bincount(owner, minlength=len(self.centers))
            for k, own in _groups(deviation, numbers):
                self.first[k] += own.sum(dim=0)
                if len(self.second):
                    self.second[k] += own.T @ own
            self.number += numbers

    def plus(self, other: "Moments", sign: int = 1) -> "Moments":
        """Return the moments of these cells and others about the same centers; with sign -1, of these without them."""
        result = Moments(self.centers, second=len(self.second) > 0)
        for name in ("number", "first", "second"):
            setattr(result, name, getattr(self, name) + sign * getattr(other, name))
        return result

    def means(self) -> Tensor:
        """Return the mean of each cluster that has cells, (K', A)."""
        seen = self.number > 0
        return (self.centers + self.first / self.number.clamp(min=1)[:, None]).to(self.centers.dtype)[seen]

    def covariances(self) -> Tensor:
        """Return their covariances, (K', A, A) float64."""
        seen = self.number > 0
        number = self.number[seen]
        mean = self.first[seen] / number[:, None]
        return self.second[seen] / number[:, None, None] - mean[:, :, None] * mean[:, None, :]


def _groups(rows: Tensor, numbers: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each component that has rows, and its rows: `rows` (M, ...) are sorted by component, `numbers` (K,)."""
    sizes = numbers.tolist()
    for k, own in enumerate(torch.split(rows, sizes)):
        if sizes[k]:
            yield k, own


class GaussianMixture(Fitted):
    """Components with full covariances, shrunk toward the identity, which is the covariance of all whitened cells."""

    means: Tensor  # (K, A)
    factors: Tensor  # (K, A, A) F with F Fᵀ the inverse covariance: |(x - mean) F|² is the squared Mahalanobis distance
    constants: Tensor  # (K,) log det of the covariance - 2 log of the component's share

    fitted: ClassVar = ("means", "factors", "constants")

    def fit(self, means: Tensor, cells: Iterable[Tensor], shrinkage: float) -> None:
        """Fit a component about each of `means` (K, A) to the cells nearest to it, a pass over `cells`, each (M, A).

        A covariance becomes (1 - shrinkage) of itself + shrinkage of the identity, 0 < shrinkage <= 1.
        """
        moments = Moments(means)
        for some in cells:
            moments.add(some)
        self.take(moments, shrinkage)

    def take(self, moments: Moments, shrinkage: float) -> None:
        """Take the components whose cells have these moments."""
        covariance = moments.covariances()
        axes = moments.centers.shape[1]
        identity = torch.eye(axes, dtype=torch.float64, device=moments.centers.device)
        root = torch.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * identity)
        share = moments.number[moments.number > 0] / moments.number.sum()
        self.means = moments.means()
        inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
        self.factors = inverse.mT.float().contiguous()
        log_determinant = 2 * root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        self.constants = (log_determinant - 2 * share.log()).float()

    def forward(self, cells: Tensor) -> Tensor:
        """Return how unusual the cells of one film are: (M, A) -> (M,), less is more usual.

        The least of Mahalanobis² + log det - 2 log share over the NEAREST components: up to a constant, twice the
        negative logarithm of the likeliest component's density. One film at a time: the rounding of a matrix product
        may depend on its number of rows.
        """
        self.check_fitted()
        if cells.device.type == "cuda":
            return torch.cat([self._gathered(some) for some in torch.split(cells, GATHERED)])
        count = min(NEAREST, len(self.means))
        owner, order = nearest_means(cells, self.means, count).flatten().sort(stable=True)  # (M count,)
        deviation = cells[order.div(count, rounding_mode="floor")] - self.means[owner]
        whitened = torch.empty_like(deviation)
        numbers = torch.bincount(owner, minlength=len(self.means))
        for (k, own), (_, target) in zip(_groups(deviation, numbers), _groups(whitened, numbers), strict=True):
            torch.mm(own, self.factors[k], out=target)
        score = torch.empty_like(whitened[:, 0])
        score[order] = whitened.square().sum(dim=1) + self.constants[owner]
        return score.view(-1, count).amin(dim=1)

    def _gathered(self, cells: Tensor) -> Tensor:
        """Do so with a copy of its factors for each cell: far more bytes, but a GPU copies them in less time than it
        takes to launch a product for each component, two and a half times as fast in all.
        """
        owner = nearest_means(cells, self.means, min(NEAREST, len(self.means)))  # (M, count)
        deviation = cells[:, None] - self.means[owner]
        whitened = (deviation[:, :, None, :] @ self.factors[owner])[:, :, 0]
        return (whitened.square().sum(dim=2) + self.constants[owner]).amin(dim=1)


def polynomials(means: Tensor, factors: Tensor, constants: Tensor) -> Tensor:
    """Return the score of each component of a `GaussianMixture` as a polynomial of a cell: (1 + A + A², K) float64.

    `powers(cells) @ polynomials(...)` are the scores of all components. For few axes that costs less than to choose the
    nearest ones; in float64, as its terms are large beside their sum.
    """
    means, factors = exact(means), exact(factors)
    inverse = factors @ factors.mT  # (K, A, A), of the covariances
    linear = (inverse @ means[:, :, None])[:, :, 0]
    constant = (linear * means).sum(dim=1, keepdim=True) + exact(constants)[:, None]
    return torch.cat([constant, -2 * linear, inverse.flatten(1)], dim=1).T.contiguous()


def powers(cells: Tensor) -> Tensor:
    """Return 1, the cell, and the products of its axes, (M, A) -> (M, 1 + A + A²) float64."""
    x = exact(cells)
    return torch.cat([torch.ones_like(x[:, :1]), x, (x[:, :, None] * x[:, None, :]).flatten(1)], dim=1)


class StandardizedMixture(Fitted):
    """A mixture whose scores say how unusual a cell is for its kind, the component with the nearest mean.

    Some kinds of structure are rarer or more varied than others, so that their densities are low on every film: without
    this, the fingertips and joints of normal hands score above what is wrong in a bone. Each kind's scores are
    standardized by those of normal cells of that kind, from mixtures that were fitted without their films.
    """

    expected: Tensor  # (K,) mean score of held-out normal cells of each kind
    spread: Tensor  # (K,) and its standard deviation

    fitted: ClassVar = ("expected", "spread")

    def __init__(self) -> None:
        super().__init__()
        self.mixture = GaussianMixture()

    def fit(
        self, means: Tensor, cells: Iterable[Tensor], held_out: Iterable[Tensor], films: int, shrinkage: float
    ) -> None:
        """Fit a component about each of `means` (K, A), and what its cells score in cross-validation.

        cells     of each of `films` films, (M, A): one pass. Films of one patient follow each other: folds are
                  consecutive films, so that they hardly share patients.
        held_out  the same cells or some of them, film by film: another pass, no two folds at a time.
        shrinkage as in `GaussianMixture.fit`
        """
        folds = min(FOLDS, films)
        parts = [Moments(means) for _ in range(folds)]
        for index, some in enumerate(cells):
            parts[index * folds // films].add(some)
        total = parts[0]
        for part in parts[1:]:
            total = total.plus(part)
        self.mixture.take(total, shrinkage)
        count = len(self.mixture.means)
        sums = torch.zeros(3, count, dtype=torch.float64, device=means.device)  # of 1, the score and its square
        fold, rest = -1, GaussianMixture()
        for index, some in enumerate(held_out):
            if index * folds // films != fold:
                fold = index * folds // films
                rest.take(total.plus(parts[fold], -1) if folds > 1 else total, shrinkage)
            if len(some):
                score = rest(some).double()
                powers = torch.stack([torch.ones_like(score), score, score.square()])
                sums.index_add_(1, self._kinds(some), powers)
        self.expected, self.spread = _standards(sums)

    def forward(self, cells: Tensor) -> Tensor:
        """Return by how many standard deviations of normal cells of their kind cells are unusual: (M, A) -> (M,).

        One film at a time, as in `GaussianMixture`.
        """
        self.check_fitted()
        kind = self._kinds(cells)
        score: Tensor = (self.mixture(cells) - self.expected[kind]) / self.spread[kind]
        return score

    def _kinds(self, cells: Tensor) -> Tensor:
        return nearest_means(cells, self.mixture.means, 1)[:, 0]


def _standards(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each kind from its sums of 1, score and square, (3, K): each (K,)."""
    number, first, second = sums
    enough = number >= LEAST_OF_KIND
    expected = torch.where(enough, first / number.clamp(min=1), first.sum() / number.sum())
    within = (second - first.square() / number.clamp(min=1)).clamp(min=0)  # (K,) sum of squared distances from the mean
    usual = (within.sum() / number.sum()).sqrt()
    spread = torch.where(enough, (within / number.clamp(min=1)).sqrt(), usual)
    return expected.float(), spread.clamp(min=LEAST_SPREAD * float(usual) + 1e-6).float()
