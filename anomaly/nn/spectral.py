"""Spectral normalization: a layer's weight divided by its largest singular value. Miyato et al. 2018."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import register_parametrization

FIRST_ITERATIONS = 15
"""Power iterations on a layer's initial weights."""
EPSILON = 1e-12


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Return `layer` with its weight W replaced by W / sigma, sigma = u W v, one power iteration per training pass.

    Equivalent to `torch.nn.utils.parametrizations.spectral_norm`, down to the names in its state, with a quarter of the
    passes over memory, which for wide layers on small films cost more than the convolutions: the gradient of W / sigma
    has a closed form here, sigma is a by-product of the power iteration, and weights in channels-last order are not
    copied.
    """
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    register_parametrization(layer, "weight", _SpectralNorm(weight, transposed))
    return layer


class _SpectralNorm(nn.Module):
    _u: Tensor  # (outputs,), unit length
    _v: Tensor  # (all other dimensions,), unit length

    def __init__(self, weight: Tensor, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        rows = weight.shape[1 if transposed else 0]
        u, v = weight.new_empty(rows).normal_(), weight.new_empty(weight.numel() // rows).normal_()
        self.register_buffer("_u", normalize(u, dim=0, eps=EPSILON))
        self.register_buffer("_v", normalize(v, dim=0, eps=EPSILON))
        matrix, v = self._matrix(weight.detach()), self._in_matrix_order(self._v, weight)
        for _ in range(FIRST_ITERATIONS):
            self._iterate(matrix, v)
        self._v.copy_(self._in_weight_order(v, weight))

    def forward(self, weight: Tensor) -> Tensor:
        matrix, v = self._matrix(weight.detach()), self._in_matrix_order(self._v, weight)
        with torch.autocast(weight.device.type, enabled=False):  # a GPU's casts the whole weight, twice per pass
            if self.training:
                sigma = self._iterate(matrix, v)
                self._v.copy_(self._in_weight_order(v, weight))
            else:
                sigma = torch.dot(self._u, torch.mv(matrix, v))
        # Copies: later passes update both before the backward pass needs them.
        u, v = self._u.clone(), self._in_weight_order(v, weight)
        shape = (1, -1, *[1] * (weight.ndim - 2)) if self.transposed else (-1, *[1] * (weight.ndim - 1))
        other_shape = (len(weight), 1, *weight.shape[2:]) if self.transposed else (1, *weight.shape[1:])
        normalized: Tensor = _Divide.apply(weight, sigma, u.view(shape), v.reshape(other_shape))
        return normalized

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, v: Tensor) -> Tensor:
        """Update u, then v, in place, and return sigma: with v = W' u / |W' u|, u W v is |W' u|."""
        normalize(torch.mv(matrix, v), dim=0, eps=EPSILON, out=self._u)
        product = torch.mv(matrix.T, self._u)
        sigma: Tensor = torch.linalg.vector_norm(product)
        v.copy_(product / sigma.clamp(min=EPSILON))
        return sigma

    def _matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as (outputs, all other dimensions), without a copy if it lies channels last."""
        if self.transposed:
            weight = weight.transpose(0, 1)
        elif _channels_last(weight):
            weight = weight.permute(0, 2, 3, 1)
        matrix: Tensor = weight.flatten(1)
        return matrix

    def _in_matrix_order(self, v: Tensor, weight: Tensor) -> Tensor:
        """Return a copy of `_v`, which follows the weight's dimensions, in the order of the matrix's columns."""
        if self.transposed or not _channels_last(weight):
            return v.clone()
        return v.view(weight.shape[1:]).permute(1, 2, 0).flatten().clone()

    def _in_weight_order(self, v: Tensor, weight: Tensor) -> Tensor:
        """Return the inverse of `_in_matrix_order`."""
        if self.transposed or not _channels_last(weight):
            return v
        _, inputs, height, width = weight.shape
        return v.view(height, width, inputs).permute(2, 0, 1).flatten()


def _channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


class _Divide(torch.autograd.Function):
    """W / sigma with sigma = u W v, where u and v are shaped so that u * v has the shape of W.

    The gradient of W is (g - (g . W / sigma) u * v) / sigma.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
        out = weight / sigma
        ctx.save_for_backward(out, sigma, u, v)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        out, sigma, u, v = ctx.saved_tensors
        gradient = (
            gradient.contiguous(memory_format=torch.channels_last) if _channels_last(out) else gradient.contiguous()
        )
        projection = torch.dot(_flat(gradient), _flat(out))
        return (gradient / sigma).addcmul_(u * (-projection / sigma), v), None, None, None


def _flat(tensor: Tensor) -> Tensor:
    """Return the elements of a dense tensor in memory order, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))
