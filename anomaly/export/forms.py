"""Modules in the operations that ONNX has: batched, with no shape that Python decides film by film.

A graph is traced from the detector's own `predict`. What it does in a loop over films, or by a search that no operator
does, has a form here that gives the same numbers; `exportable` puts it in place. Sums that cancel, or whose terms are
many, are taken in float64: the graph's rounding is then that of its convolutions.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from anomaly.nn.atypicality import NEIGHBORS, Atypicality
from anomaly.nn.mixture import NEAREST, GaussianMixture, StandardizedMixture, nearest_means, polynomials
from anomaly.nn.p_values import KNOTS, TINY, PValue
from anomaly.nn.residual_mixture import ResidualMixture, grid_cells, mean_over_grid

Forms = dict[type[nn.Module], Callable[[Any], nn.Module]]


def exportable(module: nn.Module, forms: Forms) -> nn.Module:
    """Return a copy of a module, in evaluation mode and on the CPU, with the forms of its parts in their place and
    weights that are parametrized, as by spectral normalization, computed once.
    """
    own = copy.deepcopy(module).cpu().float().eval()
    for part in [module for module in own.modules() if is_parametrized(module)]:
        _compute(part)
    for parameter in own.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.contiguous()
    return _replaced(own, forms)


def _compute(layer: nn.Module) -> None:
    """Make parameters of a copied layer's parametrized tensors.

    Not by `remove_parametrizations`, which takes the tensor from the layer's class, and so from the layer it was copied
    from, too.
    """
    names: list[str] = list(layer.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(layer, name).detach().clone() for name in names}
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value))


def _replaced(module: nn.Module, forms: Forms) -> nn.Module:
    for name, part in module.named_children():
        setattr(module, name, _replaced(part, forms))
    form = forms.get(type(module))
    return module if form is None else form(module).eval()


def _constant(owner: nn.Module, name: str, value: Tensor) -> None:
    owner.register_buffer(name, value.detach().clone().contiguous())


class AtypicalityForm(nn.Module):
    """`Atypicality`, its distances in float64."""

    maps: Tensor
    center: Tensor
    axes: Tensor
    plane: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, fitted: Atypicality) -> None:
        super().__init__()
        fitted.check_fitted()
        for name in fitted.fitted:
            _constant(self, name, getattr(fitted, name))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, D) with NaN -> (N,) float64."""
        x = torch.where(maps.isnan(), self.center, maps.float()).double()
        normals = self.maps.double()
        # As a product: the differences themselves, (N, R, D), would not fit where there are 4,096 normal maps.
        square = x.square().sum(dim=1, keepdim=True) - 2 * x @ normals.T + normals.square().sum(dim=1)
        count = min(NEIGHBORS, len(self.maps))
        nearest = square.clamp(min=0).sqrt().topk(count, dim=1, largest=False).values.mean(dim=1)
        centered, plane = x - self.center.double(), self.plane.double()
        mahalanobis = (centered @ self.axes.double().T).square().sum(dim=1).sqrt()
        residual = (centered - centered @ plane.T @ plane).square().sum(dim=1).sqrt()
        distances = torch.stack([nearest, mahalanobis, residual], dim=1)
        return ((distances - self.shift.double()) / self.scale.double()).mean(dim=1)


def _squares_by_component(deviation: Tensor, factors: Tensor, bounds: Tensor) -> Tensor:
    """Return |row F|² of rows sorted by component, whose own lie between two `bounds`: (M, A), (K, A, A), (K + 1,)."""
    found = torch.zeros([0])
    for k in range(factors.shape[0]):
        rows = deviation[bounds[k] : bounds[k + 1]]
        found = torch.cat([found, torch.mm(rows, factors[k]).square().sum(dim=1)])
    return found


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is deprecated, and has no successor that an exporter writes as a loop
    _squares = torch.jit.script(_squares_by_component)


class GaussianMixtureForm(nn.Module):
    """`GaussianMixture`: a loop over the components, each with the cells of all films that it is near to."""

    means: Tensor
    factors: Tensor
    constants: Tensor

    def __init__(self, fitted: GaussianMixture) -> None:
        super().__init__()
        fitted.check_fitted()
        for name in fitted.fitted:
            _constant(self, name, getattr(fitted, name))

    def forward(self, cells: Tensor) -> Tensor:
        """(M, A) -> (M,)."""
        components = len(self.means)
        count = min(NEAREST, components)
        owner = nearest_means(cells, self.means, count).flatten()  # (M count,)
        order = owner.argsort()
        owner = owner[order]
        deviation = cells[order.div(count, rounding_mode="floor")] - self.means[owner]
        numbers = torch.zeros(components, dtype=torch.int64).scatter_add(0, owner, torch.ones_like(owner))
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), numbers.cumsum(0)])
        squares = _squares(deviation, self.factors, bounds) + self.constants[owner]
        score = torch.zeros_like(squares).scatter(0, order, squares)
        return score.view(-1, count).amin(dim=1)


class StandardizedMixtureForm(nn.Module):
    """`StandardizedMixture`, whose mixture is a form."""

    expected: Tensor
    spread: Tensor

    def __init__(self, fitted: StandardizedMixture) -> None:
        super().__init__()
        self.mixture = fitted.mixture
        for name in fitted.fitted:
            _constant(self, name, getattr(fitted, name))

    def forward(self, cells: Tensor) -> Tensor:
        """(M, A) -> (M,)."""
        means = self.mixture.means
        assert isinstance(means, Tensor)
        kind = nearest_means(cells, means, 1)[:, 0]
        score: Tensor = (self.mixture(cells) - self.expected[kind]) / self.spread[kind]
        return score


class ResidualMixtureForm(nn.Module):
    """`ResidualMixture`: all cells of all films at once."""

    components: Tensor

    def __init__(self, fitted: ResidualMixture) -> None:
        super().__init__()
        self.whitening = fitted.whitening
        mixture = fitted.mixture
        _constant(self, "components", polynomials(mixture.means, mixture.factors, mixture.constants))

    def of_films(self, film: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
        """(N, 1, S, S) each -> (N,) float64."""
        cells, inside = grid_cells(film, reconstruction, mask)
        white = self.whitening(cells.flatten(0, 1)).view(*cells.shape[:2], -1)
        return mean_over_grid(white, inside, self.components)


class PValueForm(nn.Module):
    """`PValue`, by bisection: ONNX has no search in a sorted list."""

    knots: Tensor
    levels: Tensor

    def __init__(self, fitted: PValue) -> None:
        super().__init__()
        self.scale, self.logarithm = float(fitted.scale), bool(fitted.logarithm)
        _constant(self, "knots", fitted.knots)
        _constant(self, "levels", fitted.levels)

    def forward(self, values: Tensor) -> Tensor:
        """Any shape -> the same."""
        x = values.float()
        if self.logarithm:
            x = x.clamp(min=TINY).log()
        below = torch.zeros_like(x, dtype=torch.int64)  # how many knots are, KNOTS - 1 at most
        step = KNOTS // 2
        while step:
            below = torch.where(self.knots[below + (step - 1)] < x, below + step, below)
            step //= 2
        above = below.clamp(min=1)
        low, high = self.knots[above - 1], self.knots[above]
        share = ((x - low) / (high - low).clamp(min=TINY)).clamp(0, 1)
        first = self.levels[above - 1]
        inside = first + share * (self.levels[above] - first)
        reach = float((self.knots[-1] - self.knots[0]).clamp(min=TINY))
        under = torch.exp((x - self.knots[0]).clamp(max=0) / reach)
        return inside * under + (x - self.knots[-1]).clamp(min=0) / self.scale


FORMS: Forms = {
    Atypicality: AtypicalityForm,
    GaussianMixture: GaussianMixtureForm,
    PValue: PValueForm,
    ResidualMixture: ResidualMixtureForm,
    StandardizedMixture: StandardizedMixtureForm,
}
