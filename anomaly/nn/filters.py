"""Filters of films and residuals that respect a mask: pixels outside it do not contribute."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Return `x` under a Gaussian window of `sigma` pixels, cut at three sigma, zeros beyond the film: (N, C, H, W).

    Rows and columns are each multiplied by the matrix of all windows, most of it zeros: libraries multiply matrices
    many times as fast as they convolve a single channel. Each film is multiplied separately, so that its rounding
    doesn't depend on the rest of the batch.
    """
    films = x.flatten(0, 1)  # (N C, H, W)
    count = films.shape[0]  # not len(films), which a traced graph would keep as a constant
    rows = torch.bmm(films, _windows(x.shape[3], sigma, x).expand(count, -1, -1))
    return torch.bmm(_windows(x.shape[2], sigma, x).expand(count, -1, -1), rows).view_as(x)


def exact(x: Tensor) -> Tensor:
    """Return `x` in float64, for a variance as the difference of squares; as it is on a device that has none (Apple's).

    In float32 the variance of a flat place is the rounding of its level's square, which no two libraries have alike.
    """
    return x if x.device.type == "mps" else x.double()


def blurred_at(x: Tensor, sigmas: Sequence[float], pixels: slice) -> list[Tensor]:
    """Return `gaussian_blur` by each sigma of square films at these rows and columns alone: each (N, C, G, G).

    The columns under all windows come from one product a film, which is twice as fast as many small ones.
    """
    count, channels, side, _ = x.shape
    windows = torch.cat([_windows(side, sigma, x)[pixels] for sigma in sigmas])  # (sigmas G, S)
    grid = windows.shape[0] // len(sigmas)
    columns = torch.bmm(x.reshape(count, channels * side, side), windows.T.expand(count, -1, -1))
    parts = torch.split(columns.view(count * channels, side, windows.shape[0]), grid, dim=2)
    blurred = []
    for own, part in zip(torch.split(windows, grid), parts, strict=True):
        rows = torch.bmm(own.expand(count * channels, -1, -1), part)
        blurred.append(rows.view(count, channels, grid, grid))
    return blurred


def _windows(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the window about each of `size` pixels: (size, size), symmetric."""
    reach = max(1, math.ceil(3 * sigma))
    window = torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype)
    total = torch.exp(-0.5 * (window / sigma).square()).sum()
    pixels = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = pixels - pixels[:, None]
    return torch.where(distance.abs() <= reach, torch.exp(-0.5 * (distance / sigma).square()) / total, 0)


def area_resize(x: Tensor, size: int) -> Tensor:
    """Return square films reduced by an area filter, as OpenCV's INTER_AREA: (N, C, S, S) -> (N, C, size, size).

    A pixel is the mean of the area that it covers. Each film is multiplied separately, as in `gaussian_blur`.

    >>> area_resize(torch.tensor([[[[1.0, 2.0, 3.0]] * 3]]), 2)[0, 0, 0]
    tensor([1.3333, 2.6667])
    """
    side = x.shape[3]
    if not 1 <= size <= side:
        raise ValueError(f"films of {side} px can't be reduced to {size} px")
    edges = torch.arange(size + 1, device=x.device, dtype=torch.float64) * side / size
    pixels = torch.arange(side, device=x.device, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    weights = (overlap.clamp(min=0) * size / side).to(x.dtype)  # (size, side)
    films = x.flatten(0, 1)
    rows = torch.bmm(films, weights.T.expand(films.shape[0], -1, -1))
    return torch.bmm(weights.expand(films.shape[0], -1, -1), rows).view(*x.shape[:2], size, size)


def local_mean(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Return the mean of `x` (N, C, H, W) under the mask (N, 1, H, W) in a Gaussian window of `sigma` pixels, 0 off the
    mask.

    >>> x, mask = torch.tensor([[[[2.0, 2.0, 9.0]]]]), torch.tensor([[[[True, True, False]]]])
    >>> local_mean(x, mask, 1.0)
    tensor([[[[2., 2., 0.]]]])
    """
    blurred = gaussian_blur(torch.cat([x * mask, mask.to(x.dtype)], dim=1), sigma)
    mean: Tensor = blurred[:, :-1] / blurred[:, -1:].clamp(min=1e-6) * mask
    return mean


def structural_dissimilarity(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return (1 - SSIM) / 2 of each pixel, in [0, 1], 0 off the mask: films in [0, 1], (N, 1, H, W).

    SSIM compares mean, variance and covariance in a Gaussian window of 1.5 pixels, K1 = .01 and K2 = .03 as in Wang et
    al. 2004, equation 13; only pixels under the mask enter the window.
    """
    x, y = x.float(), y.float()
    means = local_mean(torch.cat([x, y, x * x, y * y, x * y], dim=1), mask, 1.5)
    mean_x, mean_y, square_x, square_y, product = torch.split(means, 1, dim=1)
    var_x, var_y = (square_x - mean_x.square()).clamp(min=0), (square_y - mean_y.square()).clamp(min=0)
    cov = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    ssim = similarity / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return ((1 - ssim) / 2).clamp(0, 1) * mask
