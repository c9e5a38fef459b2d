"""feature_mixture: the strip along the edges of the foreground that its maps leave out."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomaly.data.batch import Batch, batches
from anomaly.data.dataset import Films
from anomaly.models.feature_mixture import FeatureMixture, FeatureMixtureConfig

SIZE = 64


def model_of(**more: Any) -> FeatureMixture:
    torch.manual_seed(0)
    small = {"weights": "none", "blocks": "2,4", "axes": 16, "components": 8}
    return FeatureMixture(FeatureMixtureConfig.model_validate(small | more), SIZE).eval()


def batch_of(mask: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    film = torch.rand(len(mask), 1, SIZE, SIZE, generator=generator)
    return Batch(film * mask, mask, torch.zeros(len(mask), dtype=torch.int64))


def rectangle(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


@pytest.fixture(scope="module")
def fitted() -> dict[str, Tensor]:
    """The state of a model of the films that are measured here."""
    model = model_of()
    film = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE), np.uint8)
    normal = Films(film, np.ones(film.shape, np.bool_), np.zeros(len(film), np.int8))
    with torch.inference_mode():
        model.fit_reference(batches(normal, torch.device("cpu")))
    return model.state_dict()


def ready(fitted: dict[str, Tensor], margin: float) -> FeatureMixture:
    model = model_of(margin=margin)
    model.load_state_dict(fitted)
    return model


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(8, 64), st.integers(8, 64), st.floats(0, 0.25))
def test_cells_of_the_strip_are_left_out(top: int, left: int, height: int, width: int, margin: float) -> None:
    model, mask = model_of(margin=margin), rectangle(top, left, height, width)
    rows, columns = (axis.any(dim=dim).nonzero().flatten() for axis, dim in ((mask[0], 1), (mask[0], 0)))
    radius = round(margin * SIZE)
    inner = model._inner(mask)
    cells = model.backbone.cells.positions(mask.device)
    if min(len(rows), len(columns)) <= 2 * radius:
        assert inner.all(), "nothing would be left"
        return
    far = [
        (cells >= int(some[0]) + radius - 4) & (cells <= int(some[-1]) - radius + 4)  # half of a cell of 8 px
        for some in (rows, columns)
    ]
    assert inner.any() and not (inner & ~(far[0][:, None] & far[1][None])).any()


def test_scores_stay_and_maps_are_zero_in_the_strip(fitted: dict[str, Tensor]) -> None:
    batch = batch_of(torch.stack([rectangle(8, 8, 48, 48), rectangle(0, 0, SIZE, SIZE)]))
    with torch.inference_mode():
        plain, inner = (ready(fitted, margin).predict(batch, maps=True) for margin in (0.0, 0.2))
    assert all(torch.equal(plain.scores[name], values) for name, values in inner.scores.items())
    assert plain.map is not None and inner.map is not None
    assert (inner.map <= plain.map + 1e-6).all() and inner.map.amax(dim=(1, 2, 3)).gt(0).all()
    # 13 px are left out; cells of 8 px reach over no more than their neighbors' centers.
    assert plain.map[0, 0, 8:12, 8:56].gt(0).any() and not inner.map[0, 0, 8:12, 8:56].any()
    assert plain.map[1, 0, :4].gt(0).any() and not inner.map[1, 0, :4].any()


def test_a_limb_thinner_than_both_strips_keeps_its_map(fitted: dict[str, Tensor]) -> None:
    batch = batch_of(rectangle(0, 28, SIZE, 10)[None])
    with torch.inference_mode():
        plain, inner = (ready(fitted, margin).predict(batch, maps=True).map for margin in (0.0, 0.2))
    assert plain is not None and inner is not None and plain.any()
    torch.testing.assert_close(inner, plain)


@pytest.mark.parametrize("value", ["-.01", ".3"])
def test_a_margin_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="margin"):
        model_of(margin=value)
