"""Settings of feature_mixture compared on kept features are those of the model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anomaly.data.batch import as_batch, batches
from anomaly.data.dataset import FilmSet
from anomaly.models.feature_mixture import FeatureMixture
from benchmarks.features import KeptFeatures, _make_room, _model, _prepared, compare, keep
from preprocessing import InputError
from preprocessing.cache.reader import Cache

SMALL = ["weights=none", "axes=16", "components=8"]


def arguments(cache: Cache, **more: Any) -> Any:
    given = {"cache": cache.path, "variant": "full-he", "where": [], "seed": 0, "limit": 1.0}
    return SimpleNamespace(**given | {"shared": SMALL, "blocks": "2,4", "settings": [""]} | more)


@pytest.fixture
def own_cache(cache: Cache, tmp_path: Path) -> Cache:
    """A copy whose features lie in the test's folder."""
    path = tmp_path / "films.h5"
    path.write_bytes(cache.path.read_bytes())
    return Cache(path)


@torch.inference_mode()
def test_kept_features_give_the_scores_of_films(own_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, once what the network says is rounded to what is kept of it."""
    whole = FeatureMixture.features
    monkeypatch.setattr(FeatureMixture, "features", lambda *given: (own.half().float() for own in whole(*given)))
    prepared = _prepared(arguments(own_cache), [*SMALL, "blocks=2,4"])
    films = prepared.films("train")
    features, inside = keep(prepared, films, 10**9)
    model, plain = _model(prepared), _model(prepared)
    kept = KeptFeatures(model, features, inside, np.arange(features.shape[2]), np.arange(len(films)))
    model.fit_cells(kept)
    plain.fit_reference(batches(films, torch.device("cpu")))
    few = FilmSet(own_cache, "full-he", films.rows[:3], films.size)
    scores = plain.predict(as_batch(few.read(), torch.device("cpu"))).scores["mean"]
    ours = torch.stack([model.score_cells(cells).mean() for cells in list(kept)[:3]])
    torch.testing.assert_close(ours, scores, rtol=1e-6, atol=1e-6)


def test_the_network_is_asked_once(own_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(arguments(own_cache, settings=["", "blocks=4 components=4"]))
    assert len(first) == 2 and len(first[0]) == 2 + 2 * 5
    monkeypatch.setattr(FeatureMixture, "features", None)
    again = compare(arguments(own_cache, settings=["blocks=4 components=4"]))
    assert again[0][:-1] == first[1][:-1]
    with pytest.raises(InputError, match=r"no features of blocks \{1\} are kept; name all with --blocks"):
        compare(arguments(own_cache, settings=["blocks=1"]))


def test_old_features_make_room(tmp_path: Path) -> None:
    folder = tmp_path / "films.features"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.features.npy").write_bytes(bytes(100))
    _make_room(folder, 300, needed=50)
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(InputError, match="raise --limit"):
        _make_room(folder, 300, needed=301)
