"""Spectral normalization: a layer's weight divided by its largest singular value. Miyato et al. 2018."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import register_parametrization

FIRST_ITERATIONS = 15
"""Power iterations on the weights that a layer begins with."""
EPSILON = 1e-12


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Return `layer` with its weight W as W / sigma, sigma = u W v from one power iteration a pass of the training.

    The same as `torch.nn.utils.parametrizations.spectral_norm`, names in the state included, with a quarter of its
    passes over memory, which for wide layers on small films cost more than the convolutions: the gradient of W / sigma
    is written down instead of derived operation by operation, sigma falls out of the power iteration, and weights that
    lie channels last are not laid out anew.
    """
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    register_parametrization(layer, "weight", _SpectralNorm(weight, transposed))
    return layer


class _SpectralNorm(nn.Module):
    _u: Tensor  # (outputs,), unit length
    _v: Tensor  # (all others,), unit length

    def __init__(self, weight: Tensor, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        rows = weight.shape[1 if transposed else 0]
        u, v = weight.new_empty(rows).normal_(), weight.new_empty(weight.numel() // rows).normal_()
        self.register_buffer("_u", normalize(u, dim=0, eps=EPSILON))
        self.register_buffer("_v", normalize(v, dim=0, eps=EPSILON))
        matrix, v = self._matrix(weight.detach()), self._ordered(self._v, weight)
        for _ in range(FIRST_ITERATIONS):
            self._iterate(matrix, v)
        self._v.copy_(self._disordered(v, weight))

    def forward(self, weight: Tensor) -> Tensor:
        matrix, v = self._matrix(weight.detach()), self._ordered(self._v, weight)
        with torch.autocast(weight.device.type, enabled=False):  # a GPU's would cast the whole weight, twice a pass
            if self.training:
                sigma = self._iterate(matrix, v)
                self._v.copy_(self._disordered(v, weight))
            else:
                sigma = torch.dot(self._u, torch.mv(matrix, v))
        # As they are now: later passes move them before the gradient asks for them.
        u, v = self._u.clone(), self._disordered(v, weight)
        shape = (1, -1, *[1] * (weight.ndim - 2)) if self.transposed else (-1, *[1] * (weight.ndim - 1))
        others = (len(weight), 1, *weight.shape[2:]) if self.transposed else (1, *weight.shape[1:])
        divided: Tensor = _Divided.apply(weight, sigma, u.view(shape), v.reshape(others))
        return divided

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, v: Tensor) -> Tensor:
        """Move u and then v, in place, and return sigma: u W v where v is W' u over its length is that length."""
        normalize(torch.mv(matrix, v), dim=0, eps=EPSILON, out=self._u)
        back = torch.mv(matrix.T, self._u)
        sigma: Tensor = torch.linalg.vector_norm(back)
        v.copy_(back / sigma.clamp(min=EPSILON))
        return sigma

    def _matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as (outputs, all others), without a copy if it lies channels last."""
        if self.transposed:
            weight = weight.transpose(0, 1)
        elif _channels_last(weight):
            weight = weight.permute(0, 2, 3, 1)
        matrix: Tensor = weight.flatten(1)
        return matrix

    def _ordered(self, v: Tensor, weight: Tensor) -> Tensor:
        """Return a copy of `_v`, which goes by the weight's dimensions, in the order of the matrix's columns."""
        if self.transposed or not _channels_last(weight):
            return v.clone()
        return v.view(weight.shape[1:]).permute(1, 2, 0).flatten().clone()

    def _disordered(self, v: Tensor, weight: Tensor) -> Tensor:
        """Return what `_ordered` was given."""
        if self.transposed or not _channels_last(weight):
            return v
        _, inputs, height, width = weight.shape
        return v.view(height, width, inputs).permute(2, 0, 1).flatten()


def _channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


class _Divided(torch.autograd.Function):
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
        along = torch.dot(_flat(gradient), _flat(out))
        return (gradient / sigma).addcmul_(u * (-along / sigma), v), None, None, None


def _flat(tensor: Tensor) -> Tensor:
    """Return all numbers of a dense tensor in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))
