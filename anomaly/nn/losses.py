"""Losses and scores as pure functions; each says formula, unit, reduction and source."""

import math

import torch
from torch import Tensor


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `value` over the pixels of `mask`: (N, 1, H, W), (N, 1, H, W) bool -> (N,).

    A film with an empty mask gives 0.

    >>> masked_mean(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[True, False]]]]))
    tensor([1.])
    """
    return (value * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)


def squared_error(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return (x - y)² where `mask` is set and 0 elsewhere, in squared units of the film: (N, 1, H, W) in float32."""
    return (x.float() - y.float()).square() * mask


def topk_mean(value: Tensor, mask: Tensor, k: float) -> Tensor:
    """Return the mean of the `k` largest values under the mask: (N, 1, H, W) >= 0 -> (N,).

    `k` >= 1 is a number of pixels (the paper takes 200 at every film size); `k` < 1 is a share of the film's own
    mask, at least one pixel. A mask of fewer than `k` pixels is taken whole; an empty one gives 0. Davletshina et al.
    2020, section 4.

    >>> topk_mean(torch.tensor([[[[1.0, 2.0, 3.0, 9.0]]]]), torch.tensor([[[[True, True, True, False]]]]), 2)
    tensor([2.5000])
    """
    area = mask.flatten(1).sum(dim=1)  # (N,)
    count = (area * k).round().long().clamp(min=1) if k < 1 else torch.full_like(area, round(k))  # (N,)
    count = torch.minimum(count, area).clamp(min=1)
    # As many as the largest mask could need, whatever the masks: a GPU needn't be waited for.
    pixels = math.prod(map(int, value.shape[1:]))
    most = min(pixels, math.ceil(pixels * k) + 1 if k < 1 else round(k))
    largest = (value * mask).flatten(1).topk(most, dim=1).values  # (N, K)
    wanted = torch.arange(largest.shape[1], device=value.device) < count[:, None]  # (N, K)
    return (largest * wanted).sum(dim=1) / count


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return KL( N(mean, exp(logvar)) || N(0, 1) ) in nats, summed over the code: (N, Z), (N, Z) -> (N,).

    Kingma & Welling 2014, appendix B.

    >>> gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3))
    tensor([0.])
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1)


def soft_dice(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) under the mask: (N, 1, H, W) each, in [0, 1] -> (N,).

    p is a pixel's predicted probability of being foreground, t its annotation; the ones give two empty masks loss 0.
    Milletari et al. 2016, without the squares in the denominator.

    >>> soft_dice(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[True, True]]]]))
    tensor([0.2500])
    """
    intersection = (predicted * target * mask).flatten(1).sum(dim=1)
    return 1 - (2 * intersection + 1) / ((predicted + target) * mask).flatten(1).sum(dim=1).add(1)


def average_precision(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the average precision of the pixels under the mask, ranked by `value`: (N, 1, H, W), bool, bool -> (N,).

    The mean, over the pixels of the target, of the share of target among those ranked as high or higher; equal values
    are ranked in the order of the pixels. A film without a target gives 0.

    >>> value, target = torch.tensor([[[[3.0, 2.0, 1.0]]]]), torch.tensor([[[[True, False, True]]]])
    >>> average_precision(value, target, torch.ones_like(target))
    tensor([0.8333])
    """
    ranked = torch.where(mask, value.float(), -torch.inf).flatten(1).argsort(dim=1, descending=True, stable=True)
    hit = (target & mask).flatten(1).gather(1, ranked)
    rank = torch.arange(1, hit.shape[1] + 1, device=hit.device)
    return (hit.cumsum(dim=1) / rank * hit).sum(dim=1) / hit.sum(dim=1).clamp(min=1)


def class_weighted_cross_entropy(abnormal: Tensor, normal: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Return -w1 y log p - w0 (1 - y) log(1 - p), in nats, without reduction: (N,) each -> (N,).

    `abnormal` is log p, `normal` log(1 - p), `label` y, 0 or 1, `weights` (2,) are w0 and w1. Rajpurkar et al. 2017,
    section 3.1, with w1 = N / (A + N) and w0 = A / (A + N) for N normal and A abnormal films.

    >>> class_weighted_cross_entropy(torch.tensor([0.5]).log(), torch.tensor([0.5]).log(), torch.tensor([1]),
    ...                              torch.tensor([0.25, 0.75]))
    tensor([0.5199])
    """
    return -torch.where(label == 1, weights[1] * abnormal, weights[0] * normal)


def log_mean(logarithm: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the logarithm of each group's mean: (N,) of log x, (N,) groups 0 to G - 1, none empty -> (G,).

    >>> log_mean(torch.tensor([0.2, 0.6, 0.5]).log(), torch.tensor([0, 0, 1]), 2).exp()
    tensor([0.4000, 0.5000])
    """
    member = group == torch.arange(groups, device=group.device)[:, None]  # (G, N)
    by_group = torch.where(member, logarithm, -torch.inf)
    return by_group.logsumexp(dim=1) - member.sum(dim=1).to(logarithm.dtype).log()
