"""The distributions that need no SciPy, held against SciPy."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.evaluation.distributions import beta_quantile, kolmogorov

SIDES = st.floats(1e-3, 6000, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(a=SIDES, b=SIDES, share=st.floats(1e-6, 1 - 1e-6))
def test_a_beta_quantile_is_scipys(a: float, b: float, share: float) -> None:
    expected = scipy.special.betaincinv(a, b, share)
    assert float(beta_quantile(share, a, b)) == pytest.approx(expected, rel=1e-7, abs=1e-11)


def test_quantiles_of_many_shapes_are_scipys() -> None:
    """As Clopper and Pearson's intervals ask for them: every count of n patients."""
    for n in (1, 2, 5, 412, 5000):
        k = np.unique(np.linspace(1, n, min(n, 200)).round())
        for tail in (0.025, 0.975):
            expected = scipy.special.betaincinv(k, n - k + 1, tail)
            np.testing.assert_allclose(beta_quantile(tail, k, n - k + 1), expected, rtol=1e-10)


def test_shares_and_shapes_outside_their_range_are_refused() -> None:
    for share, a, b in ((0, 1, 1), (1, 1, 1), (0.5, 0, 1), (0.5, 1, -1), (float("nan"), 1, 1)):
        with pytest.raises(ValueError, match="must lie in"):
            beta_quantile(share, a, b)


def test_kolmogorovs_tail_is_scipys() -> None:
    for x in np.linspace(0, 6, 601):
        assert kolmogorov(float(x)) == pytest.approx(float(scipy.special.kolmogorov(x)), rel=1e-11, abs=1e-14)
