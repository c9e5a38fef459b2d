"""The two distributions that p-values of new films need: without SciPy, which is 140 MB and a tenth of a second of
every start.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_TINY = 1e-300
_NOISE = 1e-14
"""Below it terms differ by rounding alone."""


def beta_quantile(share: ArrayLike, a: ArrayLike, b: ArrayLike) -> Floats:
    """Return the quantiles of beta distributions: where I_x(a, b) = share.

    share  in (0, 1), a and b above 0, of shapes that broadcast. Returns x in [0, 1], to about 11 digits;
    one below 1e-300 is 1e-300.

    I_x is the continued fraction of DLMF 8.17.22, taken on the side where it converges fast; its inverse is Newton's
    step where that stays between the bounds found so far, and a bisection of them elsewhere.

    >>> beta_quantile([0.5, 0.95], [1, 2], [1, 1]).round(6).tolist()
    [0.5, 0.974679]
    """
    p, a, b = (np.array(one, np.float64) for one in np.broadcast_arrays(share, a, b))
    if not ((p > 0) & (p < 1) & (a > 0) & (b > 0)).all():
        raise ValueError("a share must lie in (0, 1), a and b above 0")
    shape, p, a, b = p.shape, p.ravel(), a.ravel(), b.ravel()
    scale = np.array([math.lgamma(s + t) - math.lgamma(s) - math.lgamma(t) for s, t in zip(a, b, strict=True)])
    low, high = np.zeros_like(p), np.ones_like(p)
    # Of a far below 1 most quantiles are next to 0, where I_x = x^a / (a B(a, b)): begun there, or at the mean.
    near_0 = np.exp(np.minimum((np.log(p) + np.log(a) - scale) / a, 0))
    x = np.where(a < 1, np.clip(near_0, _TINY, a / (a + b)), a / (a + b))
    for _ in range(200):
        value, density = _incomplete_beta(x, a, b, scale)
        low, high = np.where(value < p, x, low), np.where(value < p, high, x)
        with np.errstate(all="ignore"):
            step = x - (value - p) / density
        inside = np.isfinite(step) & (step > low) & (step < high)
        # Toward 0 a quantile may be as small as any number: there the bounds are halved by their ratio.
        middle = np.where((low > 0) & (high / np.maximum(low, _TINY) > 4), np.sqrt(low * high), (low + high) / 2)
        following = np.where(inside, step, middle)
        done = np.abs(following - x) <= 10 * _NOISE * x
        x = following
        if done.all():
            break
    return x.reshape(shape)


def _incomplete_beta(x: Floats, a: Floats, b: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Return I_x(a, b) and its derivative, the density of the beta distribution; scale = -log B(a, b)."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_x, log_rest = np.log(x), np.log1p(-x)
        power = np.exp(scale + a * log_x + b * log_rest)  # x^a (1 - x)^b / B(a, b)
        swap = x > (a + 1) / (a + b + 2)
        s, t, y = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, 1 - x, x)
        value = power * _fraction(y, s, t) / s
        return np.where(swap, 1 - value, value), power / (x * (1 - x))


def _fraction(x: Floats, a: Floats, b: Floats) -> Floats:
    """Return the continued fraction of I_x(a, b), 1 / (1 + d1 / (1 + d2 / ...)), by Lentz's method."""
    c, d = np.ones_like(x), 1 / _away_from_0(1 - (a + b) * x / (a + 1))
    out = d.copy()
    for m in range(1, 5000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_0(1 + term * d)
            c = _away_from_0(1 + term / c)
            out = out * d * c
        if (np.abs(d * c - 1) <= _NOISE).all():
            break
    return out


def _away_from_0(values: Floats) -> Floats:
    return np.where(np.abs(values) < _TINY, _TINY, values)


def kolmogorov(x: float) -> float:
    """Return how often Kolmogorov's statistic exceeds x under the null hypothesis: 2 sum (-1)^(k-1) exp(-2 k^2 x^2).

    Below 1 by the other form of the same theta function, which converges there (Kolmogorov 1933; Feller 1948).

    >>> round(kolmogorov(1.3581), 4)
    0.05
    """
    if x <= 0:
        return 1.0
    if x < 1:
        terms = (math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8) for k in range(1, 6))
        return 1 - math.sqrt(2 * math.pi) / x * sum(terms)
    return 2 * sum((-1.0) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 6))
