"""p-values among normal values, and films reduced by an area filter."""

from math import log

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomaly.nn.filters import area_resize
from anomaly.nn.p_values import KNOTS, PValue

NUMBERS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def fitted(values: np.ndarray) -> PValue:
    p_value = PValue()
    p_value.fit(torch.from_numpy(values))
    return p_value


@given(hnp.arrays(np.float32, st.integers(2, 60), elements=NUMBERS), hnp.arrays(np.float32, 20, elements=NUMBERS))
def test_minus_log_p_is_finite_not_negative_and_never_falls(normal: np.ndarray, values: np.ndarray) -> None:
    said = fitted(normal)(torch.from_numpy(np.sort(values)))
    assert said.isfinite().all() and (said >= 0).all()
    assert (said.diff() >= -1e-5 * said[1:].abs().clamp(min=1)).all()


@given(st.integers(5, 400), st.integers(0, 2**32 - 1))
def test_it_is_the_empirical_p_up_to_the_tail(count: int, seed: int) -> None:
    normal = np.sort(np.random.default_rng(seed).normal(size=count))
    tail = min(max(10, int(np.ceil(np.sqrt(count)))), count // 2)
    said = fitted(normal)(torch.from_numpy(normal[: count - tail])).numpy()
    expected = -np.log(1 - np.arange(1, count - tail + 1) / (count + 1))
    spacing = log((count + 1) / (tail + 1)) / (KNOTS - 1)
    np.testing.assert_allclose(said, expected, atol=2 * spacing + 1e-4)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda rng, n: rng.normal(size=n), id="normal"),
        pytest.param(lambda rng, n: rng.exponential(size=n), id="exponential"),
        pytest.param(lambda rng, n: np.exp(rng.normal(size=n)), id="log-normal"),
        pytest.param(lambda rng, n: rng.chisquare(4, size=n), id="chi-square"),
    ],
)
def test_few_normal_values_have_a_small_p(draw: object) -> None:
    # Of values drawn anew, a share of about p has a p-value below p: 1,000 fit, some hundreds of times as many try.
    rng = np.random.default_rng(0)
    p_value = fitted(draw(rng, 1000))  # type: ignore[operator]
    said = p_value(torch.from_numpy(draw(rng, 400_000)))  # type: ignore[operator]
    for p, factor in ((0.5, 1.2), (0.1, 1.3), (0.01, 2), (0.001, 4)):
        share = float((said >= -log(p)).float().mean())
        assert p / factor < share < p * factor, (p, share)
    assert float(said.mean()) == pytest.approx(1, abs=0.15)


def test_values_beyond_all_normal_ones_are_not_tied() -> None:
    normal = np.random.default_rng(0).normal(size=50)
    said = fitted(normal)(torch.tensor([3.0, 4.0, 5.0, 50.0, -9.0, -8.0]))
    assert (said[:4].diff() > 0.1).all() and said[5] > said[4] > 0


def test_a_value_that_most_normal_ones_have_is_not_seldom() -> None:
    normal = np.concatenate([np.zeros(80), np.linspace(0.1, 1, 20)])
    said = fitted(normal)(torch.tensor([0.0, 0.05, 0.5, 5.0]))
    assert said[0] < 0.02 and (said.diff() > 0).all()
    none = fitted(np.zeros(30))(torch.tensor([0.0, 1.0]))
    assert none.isfinite().all() and none[1] > none[0]


def test_values_of_any_shape_keep_it_and_say_the_same_alone() -> None:
    p_value = fitted(np.random.default_rng(0).exponential(size=200))
    values = torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(0)) * 9
    said = p_value(values)
    assert said.shape == values.shape and torch.equal(said[1:2], p_value(values[1:2]))


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_what_no_distribution_can_be_taken_of_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must be \(n,\), n >= 2, and finite"):
        PValue().fit(torch.tensor(values))


@given(st.integers(1, 48), st.data())
def test_an_area_filter_is_opencvs(side: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, side))
    films = np.random.default_rng(side).random((3, side, side), np.float32)
    said = area_resize(torch.from_numpy(films)[:, None], size)
    expected = np.stack([cv2.resize(film, (size, size), interpolation=cv2.INTER_AREA) for film in films])
    np.testing.assert_allclose(said[:, 0].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(said[1:2], area_resize(torch.from_numpy(films[1:2])[:, None], size))


def test_films_are_not_enlarged() -> None:
    with pytest.raises(ValueError, match="films of 8 px can't be reduced to 9 px"):
        area_resize(torch.zeros(1, 1, 8, 8), 9)
