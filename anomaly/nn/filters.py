"""Filters over films and residuals that respect a mask: what lies outside it counts as not there."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Return `x` under a Gaussian window of `sigma` pixels, cut at three sigma, zeros beyond the film: (N, C, H, W)."""
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    window = torch.exp(-0.5 * (at / sigma).square())
    window = (window / window.sum()).expand(x.shape[1], 1, 1, -1)
    along = conv2d(x, window, padding=(0, reach), groups=x.shape[1])
    return conv2d(along, window.transpose(2, 3), padding=(reach, 0), groups=x.shape[1])


def local_mean(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Return the mean of `x` under the mask in a Gaussian window of `sigma` pixels, 0 off the mask: (N, 1, H, W).

    >>> x, mask = torch.tensor([[[[2.0, 2.0, 9.0]]]]), torch.tensor([[[[True, True, False]]]])
    >>> local_mean(x, mask, 1.0)
    tensor([[[[2., 2., 0.]]]])
    """
    weight = gaussian_blur(mask.to(x.dtype), sigma)
    return gaussian_blur(x * mask, sigma) / weight.clamp(min=1e-6) * mask


def structural_dissimilarity(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return (1 - SSIM) / 2 of each pixel, in [0, 1], 0 off the mask: films in [0, 1], (N, 1, H, W).

    SSIM compares mean, spread and correlation in a Gaussian window of 1.5 pixels, K1 = .01 and K2 = .03 as in Wang et
    al. 2004, equation 13; the window looks under the mask only.
    """
    x, y = x.float(), y.float()
    mean_x, mean_y = local_mean(x, mask, 1.5), local_mean(y, mask, 1.5)
    var_x = (local_mean(x * x, mask, 1.5) - mean_x.square()).clamp(min=0)
    var_y = (local_mean(y * y, mask, 1.5) - mean_y.square()).clamp(min=0)
    cov = local_mean(x * y, mask, 1.5) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    ssim = alike / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return ((1 - ssim) / 2).clamp(0, 1) * mask
