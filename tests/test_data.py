"""Splits by patient, films at the model's size, the order of training."""

import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.data.augment import AugmentationName
from anomaly.data.batch import Batch
from anomaly.data.batch import batches as whole_batches
from anomaly.data.dataset import Films, FilmSet, resize_mask
from anomaly.data.loader import TrainingBatches
from anomaly.data.splits import SplitRule, assign_splits, split_hash
from anomaly.memory import free_memory
from preprocessing import InputError
from preprocessing.cache.reader import Cache

CPU = torch.device("cpu")


def arrays(labels: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One inner list a patient, its films' labels."""
    patient = np.array([f"p{i}" for i, films in enumerate(labels) for _ in films], dtype=object)
    label = np.array([x for films in labels for x in films], np.int8)
    return patient, label, np.full(len(label), "", dtype=object)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0, 0, 0, 1, -1]), min_size=1, max_size=4), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_splits_part_patients_and_train_on_none_of_p_plus(labels: list[list[int]], seed: int) -> None:
    patient, label, given_split = arrays(labels)
    split = assign_splits(patient, label, given_split, seed=seed)
    assert set(split) <= {"train", "val", "test"}
    for name in set(patient):
        assert len(set(split[patient == name])) == 1
    positive = set(patient[label == 1])
    assert not positive & set(patient[split == "train"])
    assert (split == assign_splits(patient, label, given_split, seed=seed)).all()


def test_the_papers_rule_on_muras_numbers() -> None:
    """1,945 patients, 510 of them with an abnormal study: halved, with as many normal patients on each side."""
    patient, label, given_split = arrays([[1]] * 510 + [[0]] * 1435)
    split = assign_splits(patient, label, given_split, seed=42)
    counts = {(s, x): int(((split == s) & (label == x)).sum()) for s in ("train", "val", "test") for x in (0, 1)}
    assert counts == {
        ("train", 0): 925,
        ("train", 1): 0,
        ("val", 0): 255,
        ("val", 1): 255,
        ("test", 0): 255,
        ("test", 1): 255,
    }
    assert (split != assign_splits(patient, label, given_split, seed=0)).any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0, 0, 1, -1]), min_size=1, max_size=4), min_size=1, max_size=60),
    st.integers(0, 5),
    st.sampled_from(["paper, labelled", "70/20/10"]),
)
def test_splits_for_labels_part_patients_and_give_every_split_both_classes(
    labels: list[list[int]], seed: int, rule: SplitRule
) -> None:
    patient, label, given_split = arrays(labels)
    positive, known = set(patient[label == 1]), set(patient[label >= 0])
    few = [group for group in (positive, known - positive) if len(group) < 3]
    if few and (rule == "70/20/10" or len(positive) < 3):
        with pytest.raises(
            InputError, match=r"^[0-2] patients with(out)? an abnormal film are too few for train, val, test"
        ):
            assign_splits(patient, label, given_split, seed=seed, rule=rule)
        return
    split = assign_splits(patient, label, given_split, seed=seed, rule=rule)
    assert all(len(set(split[patient == name])) == 1 for name in set(patient))
    assert all(positive & set(patient[split == name]) for name in ("train", "val", "test"))
    if rule == "paper, labelled":  # the same test films as for models that see normal ones alone
        assert ((split == "test") == (assign_splits(patient, label, given_split, seed=seed) == "test")).all()
    else:
        assert all((known - positive) & set(patient[split == name]) for name in ("train", "val", "test"))


def test_seventy_twenty_ten() -> None:
    patient, label, given_split = arrays([[1]] * 100 + [[0]] * 300)
    split = assign_splits(patient, label, given_split, seed=0, rule="70/20/10")
    counts = [int(((split == s) & (label == x)).sum()) for s in ("train", "val", "test") for x in (0, 1)]
    assert counts == [210, 70, 60, 20, 30, 10]
    given_split[:], given_split[::5] = "train", "test"  # a source's own splits are kept
    assert (
        (assign_splits(patient, label, given_split, seed=0, rule="70/20/10") == "test") == (given_split == "test")
    ).all()


def test_given_splits_are_kept_and_a_missing_validation_split_is_carved() -> None:
    patient, label, given_split = arrays([[0]] * 40 + [[1]] * 20)
    given_split[:30], given_split[30:40], given_split[40:50], given_split[50:] = "train", "test", "train", "test"
    split = assign_splits(patient, label, given_split, seed=0)
    assert (split[given_split == "test"] == "test").all()
    assert {(int(x), s) for x, s in zip(label[split == "val"], split[split == "val"], strict=True)} == {
        (0, "val"),
        (1, "val"),
    }
    assert (split == "val").sum() == 4
    given_split[0] = "val"
    assert (assign_splits(patient, label, given_split, seed=0) == given_split).all()


def test_a_patient_in_two_splits_is_named() -> None:
    patient, label, _ = arrays([[0, 0], [0]])
    with pytest.raises(InputError, match="patient p0 is in splits test and train"):
        assign_splits(patient, label, np.array(["train", "test", "val"], dtype=object), seed=0)


def test_the_split_hash_does_not_depend_on_the_order_but_on_every_film() -> None:
    path, split = np.array(["a", "b", "c"]), np.array(["train", "val", "test"])
    assert split_hash(path, split) == split_hash(path[::-1], split[::-1])
    assert split_hash(path, split) != split_hash(path, np.array(["train", "val", "val"]))


def test_films_come_smaller_by_their_area_mean_and_never_larger(cache: Cache) -> None:
    rows = np.arange(4)
    whole, half = (FilmSet(cache, "raw", rows, size).read() for size in (64, 32))
    inside = half.mask & np.stack([resize_mask(mask, 32) for mask in whole.mask])
    means = whole.film.reshape(4, 32, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(means - half.film)[inside].max() <= 1
    assert (half.film[~half.mask] == 0).all()
    with pytest.raises(InputError, match="holds films of 64 px, 128 were asked for"):
        FilmSet(cache, "raw", rows, 128)


def counted(count: int, dtype: type = np.uint8) -> Films:
    """Films whose every pixel is the film's own number."""
    film = np.ones((count, 32, 32), dtype) * np.arange(count, dtype=dtype)[:, None, None]
    return Films(film, np.ones(film.shape, bool), np.zeros(count, np.int8))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.integers(2, 9), st.integers(0, 3))
def test_studies_stay_whole_where_they_are_the_samples(films_of: list[int], batch_size: int, seed: int) -> None:
    films = counted(sum(films_of))
    study = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(films_of)), films_of))
    films = Films(films.film, films.mask, films.label, study=study)
    batches = TrainingBatches(films, batch_size=batch_size, augmentation="none", seed=0, workers=0, device=CPU)
    seen: list[int] = []
    for batch in batches.epoch(1):
        rows = (batch.film[:, 0, 0, 0] * 255).round().int().numpy()
        seen += rows.tolist()
        assert batch.study is not None
        names, numbers = np.unique(study[rows]), batch.study.numpy()
        assert (numbers == np.searchsorted(names, study[rows])).all() and 1 < len(names) <= max(batch_size, 3)
        assert all((study == name).sum() == (study[rows] == name).sum() for name in names)
    assert sorted(seen) == list(range(len(films)))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 90), st.integers(2, 33))
def test_an_epoch_shows_every_film_once_in_batches_of_nearly_one_size(count: int, batch_size: int) -> None:
    batches = TrainingBatches(counted(count), batch_size=batch_size, augmentation="none", seed=0, workers=0, device=CPU)
    sizes, seen = [], []
    for batch in batches.epoch(1):
        sizes.append(len(batch.film))
        seen += (batch.film[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(seen) == list(range(count))
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)
    assert len(batches) == len(sizes)


def test_the_order_depends_on_seed_and_epoch_and_not_on_workers() -> None:
    def order(seed: int, epoch: int, workers: int) -> list[torch.Tensor]:
        batches = TrainingBatches(
            counted(20), batch_size=4, augmentation="advanced", seed=seed, workers=workers, device=CPU
        )
        return [batch.film for batch in batches.epoch(epoch)]

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    first = order(0, 1, 0)
    assert same(first, order(0, 1, 0)) and same(first, order(0, 1, 2))
    assert not same(first, order(0, 2, 0)) and not same(first, order(1, 1, 0))


@pytest.mark.parametrize(("dtype", "greatest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_levels_of_any_depth_become_zero_to_one(dtype: type, greatest: int) -> None:
    films = counted(2, dtype)
    films.film[1] = greatest
    (batch,) = TrainingBatches(films, batch_size=2, augmentation="none", seed=0, workers=0, device=CPU).epoch(1)
    assert batch.film.dtype == torch.float32
    assert sorted(batch.film[:, 0, 0, 0].tolist()) == [0.0, 1.0]
    assert films.unit().max() == 1.0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sample", ["film", "study"])
@pytest.mark.parametrize("size", [64, 32])
def test_films_that_stay_in_the_cache_make_the_same_batches(
    cache: Cache, workers: int, sample: Literal["film", "study"], size: int
) -> None:
    rows = np.arange(len(cache))[3:40][::-1]
    stored = FilmSet(cache, "full-he", rows, size, sample=sample)
    kept = stored.read()
    assert len(stored) == len(kept) and (stored.label == kept.label).all()

    def batches(films: Films | FilmSet) -> list[Batch]:
        made = TrainingBatches(films, batch_size=4, augmentation="advanced", seed=0, workers=workers, device=CPU)
        return list(made.epoch(1))

    for ours, theirs in zip(batches(stored), batches(kept), strict=True):
        assert torch.equal(ours.film, theirs.film) and torch.equal(ours.mask, theirs.mask)
        assert torch.equal(ours.label, theirs.label) and ours.studies == theirs.studies
        assert ours.study is theirs.study is None or torch.equal(ours.study, theirs.study)  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [True, False])
def test_films_can_be_passed_over_again_and_taken_evenly(cache: Cache, stored: bool) -> None:
    films = FilmSet(cache, "full-he", np.arange(len(cache)), 64)
    whole = whole_batches(films if stored else films.read(), CPU)
    first, second = (torch.cat([batch.film for batch in whole]) for _ in range(2))
    assert whole.films == len(first) == len(cache) and torch.equal(first, second)
    few = whole.evenly(5)
    chosen = torch.cat([batch.film for batch in few])
    assert few.films == len(chosen) == 5
    assert torch.equal(chosen[0], first[0]) and torch.equal(chosen[-1], first[-1])
    assert whole.evenly(len(cache)) is whole


def test_the_memory_that_films_take_is_that_of_their_arrays(cache: Cache) -> None:
    stored = FilmSet(cache, "full-he", np.arange(5), 32)
    films = stored.read()
    assert stored.bytes == films.film.nbytes + films.mask.nbytes
    free = free_memory()
    assert free is None or 0 < free < 2**50


SHARED = """
from pathlib import Path
import numpy as np, torch
from anomaly.data.dataset import Films
from anomaly.data.loader import TrainingBatches

film = np.zeros((800, 256, 256), np.uint8)
films = Films(film, film == 0, np.zeros(len(film), np.int8))
made = TrainingBatches(films, batch_size=8, augmentation="none", seed=0, workers=1, device=torch.device("cpu"))
for _ in made.epoch(1):
    (worker,) = made._loader._iterator._workers
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
print(sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024 / (2 * film.nbytes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told apart in /proc")
def test_processes_that_prepare_batches_share_the_films() -> None:
    """Less than half of the films' bytes are their own; in a process of its own, whose other memory is small."""
    done = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


@pytest.mark.parametrize("augmentation", ["none", "flips", "advanced"])
def test_augmentation_on_the_device_gives_films_with_masks_in_the_same_order(augmentation: AugmentationName) -> None:
    def batches(augmented_by: Literal["imgaug", "device"]) -> list[Batch]:
        made = TrainingBatches(
            counted(20),
            batch_size=4,
            augmentation=augmentation,
            seed=0,
            workers=0,
            device=CPU,
            augmented_by=augmented_by,
        )
        return list(made.epoch(1))

    for ours, theirs in zip(batches("device"), batches("imgaug"), strict=True):
        assert ours.film.dtype == torch.float32 and ours.mask.dtype == torch.bool
        assert ours.film.shape == theirs.film.shape and (ours.film[~ours.mask] == 0).all()
        middle = (slice(None), 0, 14, 14)  # films of one level each: brightness alone changes it there
        assert torch.allclose(ours.film[middle], theirs.film[middle], rtol=0.55, atol=1e-6)
