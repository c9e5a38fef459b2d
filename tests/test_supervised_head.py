"""The ceiling that a head on frozen features reaches when it is shown the lesions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.ranking import roc_auc
from anomaly.nn.backbone import Backbone
from benchmarks.supervised_head import LEARNED, Cells, choose_films, cross_validate, extract, film_scores, shown
from preprocessing import InputError
from preprocessing.cache.reader import Cache

CHANNELS = 8


def planted(strength: float, *, by_patient: bool = False) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Return cells of 40 films of 20 patients, half of them with a lesion of three cells that raises one channel, and
    label and patient of each. `by_patient` gives each abnormal patient a direction of their own, in all of their cells.
    """
    rng = np.random.default_rng(0)
    label, patient = np.repeat(np.arange(20) % 2, 2), np.repeat(np.arange(20), 2)
    features = rng.normal(size=(40, 64, CHANNELS))
    lesion = np.zeros((40, 64), np.float32)
    for film in np.flatnonzero(label):
        where = rng.permutation(64)[:3]
        lesion[film, where] = 0.5
        features[film, where, 2] += strength
    if by_patient:
        features += label[:, None, None] * rng.normal(size=(20, 1, CHANNELS))[patient]
    return Cells(features.astype(np.float16), lesion, np.ones(lesion.shape, bool)), label, patient


def test_a_head_finds_what_the_features_show() -> None:
    cells, label, patient = planted(6.0)
    logits = cross_validate(cells, patient, steps=100)
    assert roc_auc((cells.lesion > 0).ravel().astype(int), logits.ravel()) > 0.9
    assert all(roc_auc(label, values) > 0.9 for values in film_scores(logits, cells.inside).values())


def test_it_finds_nothing_where_there_is_nothing_but_the_patient() -> None:
    # A film scored by a head that saw its patient would be told by the patient's own direction.
    cells, _, patient = planted(0.0, by_patient=True)
    figure = roc_auc((cells.lesion > 0).ravel().astype(int), cross_validate(cells, patient, steps=100).ravel())
    assert 0.25 < figure < 0.75
    with pytest.raises(InputError, match="20 patients are too few for 21 folds"):
        cross_validate(cells, patient, folds=21)


def test_it_is_shown_lesions_however_small_and_not_their_borders() -> None:
    features = np.zeros((2, 1000, CHANNELS), np.float16)
    lesion = np.zeros((2, 1000), np.float32)
    lesion[0, :600] = 0.9
    lesion[0, 600:700] = 0.05
    lesion[1, 3] = 0.02
    features[0, 600:700] = 1
    features[1, 3] = 2
    cells = Cells(features, lesion, np.ones(lesion.shape, bool))
    rng = np.random.default_rng(0)
    x, positive = shown(cells, 0, rng)
    assert len(x) == LEARNED and positive.sum() == LEARNED // 2 and not x.any()
    x, positive = shown(cells, 1, rng)
    assert positive.sum() == 1 and (x[positive] == 2).all() and not x[~positive].any()


def test_cells_of_a_cache_have_its_lesions_and_masks(cache: Cache, tmp_path: Path) -> None:
    split = np.full(len(cache), "test", dtype=object)
    rows = choose_films(cache, split, "test", 0, np.random.default_rng(0))
    films = FilmSet(cache, "full-he", rows, 64)
    assert set(films.label) == {0, 1} and cache.has_truth[rows[films.label == 1]].all()
    torch.manual_seed(0)
    backbone = Backbone("lite0", (2, 4), 8, 64)
    cells = extract(films, backbone, tmp_path, torch.device("cpu"))
    assert cells.features.shape[:2] == (len(films), 64) and np.isfinite(cells.features).all()
    assert not cells.lesion[films.label == 0].any() and cells.inside.any(axis=1).all()
    share = [films.marked(i).mean() for i in np.flatnonzero(films.label == 1)]  # type: ignore[union-attr]
    np.testing.assert_allclose(cells.lesion[films.label == 1].mean(axis=1), share, atol=0.02)
    few = choose_films(cache, np.full(len(cache), "", dtype=object), "test", 3, np.random.default_rng(0))
    assert len(few) == 6
