"""A run's scorer: what it gives does not depend on how many films go through the network at a time."""

import numpy as np
import pytest

from anomaly.data.dataset import FilmSet
from anomaly.evaluation import torch_scorer
from anomaly.evaluation.torch_scorer import trained_scorer
from anomaly.runs import Run
from preprocessing.cache.reader import Cache


@pytest.mark.parametrize("least", [1, 4, 5])
def test_films_are_scored_alike_however_many_go_through_at_a_time(
    least: int, run: Run, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = trained_scorer(run, "cpu")
    seen: list[int] = []
    predict = scorer.detector.predict
    films = FilmSet(cache, "full-he", np.arange(11), 64).read()
    monkeypatch.setattr(torch_scorer, "PROCESSOR_PIXELS", 11 * 64**2)
    together = scorer.predict_films(films, maps=True)
    monkeypatch.setattr(torch_scorer, "PROCESSOR_PIXELS", 0)
    monkeypatch.setattr(torch_scorer, "LEAST_FILMS", least)
    monkeypatch.setattr(
        scorer.detector, "predict", lambda batch, maps: (seen.append(len(batch.film)), predict(batch, maps=maps))[1]
    )
    apart = scorer.predict_films(films, maps=True)
    assert seen == [least] * (11 // least) + [11 % least] * (11 % least > 0)
    assert together.scores.keys() == apart.scores.keys()
    for name, values in together.scores.items():
        np.testing.assert_allclose(apart.scores[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("map", "reconstruction"):
        one, other = getattr(together, name), getattr(apart, name)
        assert one.shape == other.shape == (11, 64, 64)
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_pictures_that_are_not_drawn_stay_none(run: Run, cache: Cache) -> None:
    films = FilmSet(cache, "full-he", np.arange(5), 64).read()
    assert trained_scorer(run, "cpu").predict_films(films).map is None
