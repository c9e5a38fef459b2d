"""Batch normalization computed into the convolution before it: in evaluation both are an affine map of each channel."""

from itertools import pairwise

import torch
from torch import nn


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> None:
    """Make normalizations right after convolutions parts of these, in place; the module can't be trained any more.

    A pass over each map less. Sums are rounded at another place, so that outputs differ in float32's last digits. Parts
    are followed where their order is known: in `nn.Sequential` and those of its subclasses that pass on as it does.
    """
    for part in module.modules():
        if type(part).forward is not nn.Sequential.forward:
            continue
        names = list(part._modules)
        for name, following in pairwise(names):
            layer, norm = part._modules[name], part._modules[following]
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
                _fold(layer, norm)
                part._modules[following] = nn.Identity()


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (norm.weight.double() if norm.affine else 1)
    bias = -norm.running_mean.double() + (0 if convolution.bias is None else convolution.bias.double())
    bias = bias * scale + (norm.bias.double() if norm.affine else 0)
    weight = (convolution.weight.double() * scale.view(-1, 1, 1, 1)).to(convolution.weight.dtype)
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
